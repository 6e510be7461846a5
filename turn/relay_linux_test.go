package turn

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"wicgate/internal/peerpolicy"
	"wicgate/internal/turnclient"
	"wicgate/internal/wire/stun"
)

// inNamespace is set in the process that has a network of its own.
const inNamespace = "WICGATE_TURN_NAMESPACE"

// alone runs the test that calls it once more, in a network namespace whose loopback has the given MTU,
// and returns true there. It leaves the machine's own network as it is.
func alone(t *testing.T, mtu string) bool {
	t.Helper()
	ip, err := exec.LookPath("ip")
	if err != nil {
		t.Skip("no ip(8)")
	}
	if os.Getenv(inNamespace) != "" {
		for _, args := range [][]string{{"link", "set", "lo", "mtu", mtu}, {"link", "set", "lo", "up"}} {
			if out, err := exec.Command(ip, args...).CombinedOutput(); err != nil {
				t.Skipf("ip %v: %v: %s", args, err, out)
			}
		}
		return true
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), inNamespace+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	if os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	out, err := cmd.CombinedOutput()
	switch {
	case cmd.ProcessState == nil:
		t.Skipf("no namespace may be made here: %v", err)
	case err != nil:
		t.Errorf("in the namespace: %v\n%s", err, out)
	case bytes.Contains(out, []byte("--- SKIP")):
		t.Skipf("in the namespace: %s", out)
	}
	return false
}

// sendWhole sends by an indication with DONT-FRAGMENT.
func (b *bench) sendWhole(c *turnclient.Client, peer netip.AddrPort, data []byte) {
	b.t.Helper()
	m := stun.AppendHeader(nil, stun.NewType(stun.Send, stun.Indication), stun.TransactionID{9})
	m = stun.AppendXORAddress(m, stun.AttrXORPeerAddress, peer)
	m = stun.AppendAttr(m, stun.AttrDontFragment, nil)
	m = stun.AppendAttr(m, stun.AttrData, data)
	if err := c.Raw(m); err != nil {
		b.t.Fatal(err)
	}
}

// TestDontFragment: on a path of 1500 bytes a packet of 2000 arrives in pieces without DONT-FRAGMENT and
// not at all with it, whatever came before.
func TestDontFragment(t *testing.T) {
	if !alone(t, "1500") {
		return
	}
	t.Cleanup(func() { goleak.VerifyNone(t) })
	b := start(t)
	ctx := timeout(t)
	peer, err := net.ListenUDP("udp4", &net.UDPAddr{IP: loopback.AsSlice()})
	if err != nil {
		t.Fatal(err)
	}
	defer closed(t, peer)
	if err := peer.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	c := b.client(turnclient.TokenUsername(b.issue("p1", time.Hour)))
	if _, err := c.Allocate(ctx, 0, func(m []byte) []byte { return stun.AppendAttr(m, stun.AttrDontFragment, nil) }); err != nil {
		t.Fatal(err)
	}
	at := peer.LocalAddr().(*net.UDPAddr).AddrPort()
	if err := c.CreatePermission(ctx, at); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4096)
	next := func(want int) {
		t.Helper()
		if n, err := peer.Read(buf); err != nil || n != want {
			t.Errorf("the peer got %d bytes, want %d: %v", n, want, err)
		}
	}
	for range 2 {
		b.sendWhole(c, at, make([]byte, 1000))
		next(1000)
		b.sendWhole(c, at, make([]byte, 2000)) // is lost, and why is told once
		if p, err := c.Receive(ctx); err != nil || p.ICMP == nil || p.Peer.Addr() != loopback || *p.ICMP != (stun.ICMP{Type: 3, Code: 4, Data: 1500}) {
			t.Errorf("%+v %+v, %v", p, p.ICMP, err)
		}
		if err := c.Send(at, make([]byte, 2001)); err != nil {
			t.Fatal(err)
		}
		next(2001)
	}
	if st := b.s.Stats(); st.SendErrors != 2 || st.ICMP != 2 {
		t.Errorf("%d send errors, %d told, want 2", st.SendErrors, st.ICMP)
	}
}

// TestFragmentOption: what the socket is set to, in both families, where no namespace can be made.
func TestFragmentOption(t *testing.T) {
	for _, x := range []struct {
		bind                   string
		level, option, no, yes int
	}{
		{"127.0.0.1", unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_OMIT, unix.IP_PMTUDISC_PROBE},
		{"::1", unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DONT, unix.IPV6_PMTUDISC_PROBE},
	} {
		c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.ParseIP(x.bind)})
		if err != nil {
			t.Fatal(err)
		}
		var p platform
		if err := p.prepare(c, x.bind == "::1"); err != nil {
			t.Fatal(err)
		}
		for _, whole := range []bool{false, true, true, false} {
			if err := p.setWhole(whole); err != nil {
				t.Fatal(err)
			}
			got := -1
			if err := p.raw.Control(func(fd uintptr) { got, err = unix.GetsockoptInt(int(fd), x.level, x.option) }); err != nil {
				t.Fatal(err)
			}
			if want := map[bool]int{false: x.no, true: x.yes}[whole]; err != nil || got != want {
				t.Errorf("%s, whole %v: %d, want %d (%v)", x.bind, whole, got, want, err)
			}
		}
		if n := testing.AllocsPerRun(100, func() {
			if p.setWhole(true) != nil || p.setWhole(false) != nil {
				t.Error("not set")
			}
		}); n != 0 {
			t.Errorf("%v allocations", n)
		}
		closed(t, c)
	}
}

// dual starts a server with both families, and a client with an allocation of both.
func dual(t *testing.T) (*bench, *turnclient.Client, turnclient.Allocation) {
	t.Helper()
	six := netip.IPv6Loopback()
	b := start(t, func(c *Config) {
		c.Relays = append(c.Relays, Relay{Bind: six, MinPort: 50000, MaxPort: 59999})
		c.Peers = peerpolicy.IMS(peerpolicy.Range{Prefix: netip.MustParsePrefix("127.0.0.0/8")}, peerpolicy.Range{Prefix: netip.PrefixFrom(six, 128)})
	})
	c := b.client(turnclient.TokenUsername(b.issue("p1", time.Hour)))
	a, err := c.Allocate(timeout(t), 0, func(m []byte) []byte {
		return stun.AppendByte(m, stun.AttrAdditionalAddressFamily, stun.FamilyIPv6)
	})
	if err != nil {
		t.Fatal(err)
	}
	return b, c, a
}

// TestClosedPort: a peer's port that nobody listens on is told to the client as the kernel says it, with
// a channel too, and costs no packet to others.
func TestClosedPort(t *testing.T) {
	for _, x := range []struct {
		at   string
		want stun.ICMP
	}{{"127.0.0.1", stun.ICMP{Type: 3, Code: 3}}, {"::1", stun.ICMP{Type: 1, Code: 4}}} {
		t.Run(x.at, func(t *testing.T) {
			t.Cleanup(func() { goleak.VerifyNone(t) })
			at := netip.MustParseAddr(x.at)
			good := echoOn(t, at)
			c0, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(at, 0)))
			if err != nil {
				t.Fatal(err)
			}
			gone := c0.LocalAddr().(*net.UDPAddr).AddrPort()
			closed(t, c0)
			b, c, _ := dual(t)
			ctx := timeout(t)
			if err := c.CreatePermission(ctx, gone, good); err != nil {
				t.Fatal(err)
			}
			if err := c.Send(gone, []byte("x")); err != nil {
				t.Fatal(err)
			}
			if p, err := c.Receive(ctx); err != nil || p.Peer != gone || p.ICMP == nil || *p.ICMP != x.want {
				t.Fatalf("%+v, %v", p, err)
			}
			if _, err := c.ChannelBind(ctx, gone); err != nil {
				t.Fatal(err)
			}
			if err := c.Send(gone, []byte("x")); err != nil {
				t.Fatal(err)
			}
			if p, err := c.Receive(ctx); err != nil || p.Peer != gone || p.ICMP == nil || p.Channel != 0 {
				t.Fatalf("beside a channel: %+v, %v", p, err)
			}
			// Each other packet is between two that fail: none may be lost for their errors.
			const n = 200
			told := 0
			for range n {
				for _, p := range []netip.AddrPort{gone, good} {
					if err := c.Send(p, []byte("x")); err != nil {
						t.Fatal(err)
					}
				}
				for {
					p, err := c.Receive(ctx)
					if err != nil {
						t.Fatal(err)
					}
					if p.ICMP == nil {
						break
					}
					told++
				}
			}
			// The kernel bounds how many ICMP errors it sends in a second.
			if st := b.s.Stats(); st.SendErrors != 0 || told == 0 || st.ToPeerPackets != 2+2*n || st.ToClientPackets != n {
				t.Errorf("%d told, stats %+v", told, st)
			}
			if l := b.log.String(); strings.Contains(l, "read from peers") {
				t.Errorf("log:\n%s", l)
			}
			b.stop()
		})
	}
}

// TestICMPTypes: what routers say, forged as anybody can forge it, is told in the types that the clause
// names, and only about peers with a permission.
func TestICMPTypes(t *testing.T) {
	if !alone(t, "1500") {
		return
	}
	t.Cleanup(func() { goleak.VerifyNone(t) })
	b, c, a := dual(t)
	ctx := timeout(t)
	peers := []netip.AddrPort{echo(t), echoOn(t, netip.IPv6Loopback())}
	if err := c.CreatePermission(ctx, peers...); err != nil {
		t.Fatal(err)
	}
	for i, from := range []netip.AddrPort{a.Relayed, a.Second} {
		raw, err := net.ListenIP([]string{"ip4:icmp", "ip6:ipv6-icmp"}[i], &net.IPAddr{IP: from.Addr().AsSlice()})
		if errors.Is(err, os.ErrPermission) {
			t.Skipf("ICMP errors are forged on a raw socket, which needs CAP_NET_RAW: %v", err)
		}
		if err != nil {
			t.Fatal(err)
		}
		defer closed(t, raw)
		forge := func(icmp stun.ICMP, to netip.AddrPort) {
			t.Helper()
			if _, err := raw.WriteTo(routerSays(icmp, from, to), &net.IPAddr{IP: from.Addr().AsSlice()}); err != nil {
				t.Fatal(err)
			}
		}
		all := [][]stun.ICMP{
			{{Type: 3, Code: 1}, {Type: 3, Code: 13}, {Type: 11, Code: 0}, {Type: 3, Code: 4, Data: 1300}},
			{{Type: 1, Code: 0}, {Type: 1, Code: 4}, {Type: 3, Code: 0}, {Type: 2, Code: 0, Data: 1300}},
		}[i]
		other := []stun.ICMP{{Type: 12}, {Type: 4}}[i] // parameter problem
		stranger := []netip.AddrPort{netip.MustParseAddrPort("127.0.0.7:7"), netip.MustParseAddrPort("[2001:db8::7]:7")}[i]
		for _, want := range all {
			forge(other, peers[i])
			forge(want, stranger)
			forge(want, peers[i])
			p, err := c.Receive(ctx)
			if err != nil || p.Peer != peers[i] || p.ICMP == nil || *p.ICMP != want {
				t.Errorf("%+v: %+v %+v, %v", want, p, p.ICMP, err)
			}
		}
		// And the relay goes on, with DF and without.
		b.sendWhole(c, peers[i], []byte("x"))
		if p, err := c.Receive(ctx); err != nil || p.ICMP != nil || string(p.Data) != "x" {
			t.Errorf("%+v, %v", p, err)
		}
	}
	if st := b.s.Stats(); st.ICMP != 8 || st.Refused["no_permission"] != 8 || st.SendErrors != 0 {
		t.Errorf("stats %+v", st)
	}
}

// routerSays makes an ICMP error about a packet of UDP.
func routerSays(icmp stun.ICMP, from, to netip.AddrPort) []byte {
	b := binary.BigEndian.AppendUint32([]byte{icmp.Type, icmp.Code, 0, 0}, icmp.Data)
	if from.Addr().Is4() {
		b = append(b, 0x45, 0, 0, 29, 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0)
	} else {
		b = append(b, 0x60, 0, 0, 0, 0, 9, unix.IPPROTO_UDP, 64)
	}
	b = append(append(b, from.Addr().AsSlice()...), to.Addr().AsSlice()...)
	b = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(b, from.Port()), to.Port())
	b = append(b, 0, 9, 0, 0, 'x', 0)
	if from.Addr().Is4() { // for IPv6 the kernel does it
		sum := uint32(0)
		for i := 0; i < len(b); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(b[i:]))
		}
		sum = sum>>16 + sum&0xffff
		binary.BigEndian.PutUint16(b[2:], ^uint16(sum+sum>>16))
	}
	return b
}

// FuzzParseReport: what the kernel gives is trusted, and must not be able to end the server all the same.
func FuzzParseReport(f *testing.F) {
	v4 := make([]byte, 48)
	binary.NativeEndian.PutUint64(v4, uint64(unix.CmsgLen(32)))
	binary.NativeEndian.PutUint32(v4[8:], unix.IPPROTO_IP)
	binary.NativeEndian.PutUint32(v4[12:], unix.IP_RECVERR)
	v4[20], v4[21], v4[22] = unix.SO_EE_ORIGIN_ICMP, 3, 3
	f.Add(v4, false)
	f.Add(v4[:20], false)
	f.Add([]byte{}, true)
	f.Fuzz(func(t *testing.T, oob []byte, six bool) {
		for _, to := range []unix.Sockaddr{nil, &unix.SockaddrInet4{Port: 7}, &unix.SockaddrInet6{Port: 7}, &unix.SockaddrUnix{}} {
			if r, ok := parseReport(oob, to, six); ok && (r.peer.Addr().Is6() != six || r.peer.Port() != 7) {
				t.Errorf("%+v", r)
			}
		}
	})
}

// TestTakeoverFailsDF: a process that has not taken over leaves the relay sockets as they were set.
func TestTakeoverFailsDF(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	old := start(t)
	if _, err := old.client(turnclient.TokenUsername(old.issue("p1", time.Hour))).Allocate(timeout(t), 0); err != nil {
		t.Fatal(err)
	}
	look := func(f func(r *relay)) {
		t.Helper()
		if _, _, err := old.s.Pause(); err != nil {
			t.Fatal(err)
		}
		defer old.s.Resume()
		f(old.s.moved.relays[0])
	}
	look(func(r *relay) {
		if err := r.setWhole(true); err != nil {
			t.Error(err)
		}
	})
	if _, err, given := old.takeOver(func(c *Config) {
		take := c.Takeover
		c.Takeover = func(ctx context.Context, restore func([]byte, []*os.File) error) error {
			return take(ctx, func(state []byte, files []*os.File) error {
				return errors.Join(restore(state, files), errors.New("no room"))
			})
		}
	}); err == nil || given == nil {
		t.Fatal("taken over")
	}
	look(func(r *relay) {
		var got int
		if err := r.raw.Control(func(fd uintptr) { got, _ = unix.GetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER) }); err != nil || r.whole != (got == unix.IP_PMTUDISC_PROBE) {
			t.Errorf("DF %v, and the socket has %d; %v", r.whole, got, err)
		}
	})
}
