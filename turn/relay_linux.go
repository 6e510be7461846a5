package turn

import (
	"cmp"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"wicgate/internal/wire/stun"
)

// dontFragment: DF can be chosen for each packet.
const dontFragment = true

// platform is what a relay socket has of Linux.
type platform struct {
	raw         syscall.RawConn
	six         bool
	whole, want bool             // what is set, and what is asked for
	set         func(fd uintptr) // sets want; made once, so that a packet costs no heap
	err         error            // of set
}

// prepare sets a new socket up: packets go without DF until one asks for it (RFC 8656 §14), and ICMP
// errors are kept for reports.
func (p *platform) prepare(c *net.UDPConn, six bool) (err error) {
	if p.raw, err = c.SyscallConn(); err != nil {
		return err
	}
	// Without DF: OMIT and not DONT on IPv4, for DONT drops what routers say of packets that had DF. On
	// IPv6, where routers take nothing apart, DONT does so here by what they say.
	level, option, recverr, no, yes := unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_RECVERR, unix.IP_PMTUDISC_OMIT, unix.IP_PMTUDISC_PROBE
	if six {
		level, option, recverr, no, yes = unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_RECVERR, unix.IPV6_PMTUDISC_DONT, unix.IPV6_PMTUDISC_PROBE
	}
	p.six = six
	p.set = func(fd uintptr) {
		p.err = os.NewSyscallError("setsockopt RECVERR", unix.SetsockoptInt(int(fd), level, recverr, 1))
	}
	if err := p.raw.Control(p.set); err != nil || p.err != nil {
		return cmp.Or(err, p.err)
	}
	p.set = func(fd uintptr) {
		v := no
		if p.want {
			v = yes // not DO, which heeds what the kernel has heard of the path: the client probes it
		}
		p.err = os.NewSyscallError("setsockopt MTU_DISCOVER", unix.SetsockoptInt(int(fd), level, option, v))
	}
	p.whole = true // so that it is set now
	return p.setWhole(false)
}

// setWhole chooses DF for the packets that follow. The relay's mu is held.
func (p *platform) setWhole(whole bool) error {
	if p.whole == whole {
		return nil
	}
	p.want = whole
	if err := p.raw.Control(p.set); err != nil {
		return err
	}
	if p.err == nil {
		p.whole = whole
	}
	return p.err
}

// reportErrors are what the kernel makes of ICMP errors (icmp_err_convert and its likes), and returns once
// for each from any call on the socket.
var reportErrors = []error{
	unix.ECONNREFUSED, unix.EHOSTUNREACH, unix.ENETUNREACH, unix.ENOPROTOOPT, unix.EMSGSIZE, unix.EOPNOTSUPP,
	unix.EHOSTDOWN, unix.ENONET, unix.EPROTO, unix.EACCES,
}

// isReport says whether err can be of an earlier packet.
func isReport(err error) bool {
	return err != nil && slices.ContainsFunc(reportErrors, func(e error) bool { return errors.Is(err, e) })
}

// maxReports bounds those read at once. The kernel says that there are more with the next error.
const maxReports = 16

// reports reads ICMP errors from the socket, with the inner destination, and gives them to f: what
// routers and peers say, and this machine's own word that a packet with DF is too long for its link.
func (p *platform) reports(f func(peer netip.AddrPort, icmp stun.ICMP)) {
	var list []report
	if err := p.raw.Control(func(fd uintptr) { list = readReports(int(fd), p.six) }); err != nil {
		return // closed
	}
	for _, r := range list {
		f(r.peer, r.icmp)
	}
}

type report struct {
	peer netip.AddrPort
	icmp stun.ICMP
}

func readReports(fd int, six bool) (list []report) {
	var data [1]byte // of the packet, which does not matter
	oob := make([]byte, 256)
	for range maxReports {
		_, n, _, to, err := unix.Recvmsg(fd, data[:], oob, unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
		if err != nil {
			break
		}
		r, ok := parseReport(oob[:n], to, six)
		// send's second try makes the machine's own word come twice.
		if ok && (len(list) == 0 || r != list[len(list)-1]) {
			list = append(list, r)
		}
	}
	return list
}

// parseReport reads a sock_extended_err (ip(7), IP_RECVERR) and the address that the packet went to.
func parseReport(oob []byte, to unix.Sockaddr, six bool) (r report, ok bool) {
	switch a := to.(type) {
	case *unix.SockaddrInet4:
		r.peer = netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		r.peer = netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port))
	default:
		return report{}, false
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil || r.peer.Addr().Is6() != six {
		return report{}, false
	}
	for _, m := range messages {
		if m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_RECVERR || m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_RECVERR {
			if len(m.Data) < 16 {
				return report{}, false
			}
			errno, origin, info := binary.NativeEndian.Uint32(m.Data), m.Data[4], binary.NativeEndian.Uint32(m.Data[8:])
			r.icmp = stun.ICMP{Type: m.Data[5], Code: m.Data[6], Data: info}
			switch {
			case origin == unix.SO_EE_ORIGIN_ICMP && !six, origin == unix.SO_EE_ORIGIN_ICMP6 && six:
				return r, true
			case origin == unix.SO_EE_ORIGIN_LOCAL && unix.Errno(errno) == unix.EMSGSIZE:
				if r.icmp = (stun.ICMP{Type: 3, Code: 4, Data: info}); six {
					r.icmp = stun.ICMP{Type: 2, Data: info}
				}
				return r, true
			}
		}
	}
	return report{}, false
}
