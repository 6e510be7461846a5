package turn

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

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
func (b *bench) sendWhole(c *turnclient.Client, peer *net.UDPConn, data []byte) {
	b.t.Helper()
	m := stun.AppendHeader(nil, stun.NewType(stun.Send, stun.Indication), stun.TransactionID{9})
	m = stun.AppendXORAddress(m, stun.AttrXORPeerAddress, peer.LocalAddr().(*net.UDPAddr).AddrPort())
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
		b.sendWhole(c, peer, make([]byte, 1000))
		next(1000)
		b.sendWhole(c, peer, make([]byte, 2000)) // is lost
		if err := c.Send(at, make([]byte, 2001)); err != nil {
			t.Fatal(err)
		}
		next(2001)
	}
	if st := b.s.Stats(); st.SendErrors != 2 {
		t.Errorf("%d send errors, want 2", st.SendErrors)
	}
}

// TestFragmentOption: what the socket is set to, in both families, where no namespace can be made.
func TestFragmentOption(t *testing.T) {
	for _, x := range []struct {
		bind          string
		level, option int
	}{{"127.0.0.1", unix.IPPROTO_IP, unix.IP_MTU_DISCOVER}, {"::1", unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER}} {
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
			if want := map[bool]int{false: unix.IP_PMTUDISC_DONT, true: unix.IP_PMTUDISC_PROBE}[whole]; err != nil || got != want {
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
