package turn

import (
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// dontFragment: DF can be chosen for each packet.
const dontFragment = true

// platform is what a relay socket has of Linux.
type platform struct {
	raw         syscall.RawConn
	whole, want bool             // what is set, and what is asked for
	set         func(fd uintptr) // sets want; made once, so that a packet costs no heap
	err         error            // of set
}

// prepare sets a new socket up: packets go without DF until one asks for it (RFC 8656 §14, and what
// this server's clients had no hand in may be longer than a path takes).
func (p *platform) prepare(c *net.UDPConn, six bool) (err error) {
	if p.raw, err = c.SyscallConn(); err != nil {
		return err
	}
	level, option, no, yes := unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT, unix.IP_PMTUDISC_PROBE
	if six {
		level, option, no, yes = unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DONT, unix.IPV6_PMTUDISC_PROBE
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
