package epcscf

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"go.uber.org/goleak"
)

// TestOneBrowserEndsNoOther: whatever one browser sends, the connection that it shares with others
// towards the core lives on, and so does a call that rings.
func TestOneBrowserEndsNoOther(t *testing.T) {
	defer goleak.VerifyNone(t)
	h := newHouse(t)
	defer h.stop()
	h.play(registered+"alice> INVITE bob\n<bob INVITE\nbob> 180\n<alice 180\ncarol connects\ncarol> REGISTER\n<carol 200\n", "ringing")
	a, c := h.ua("alice"), h.ua("carol")
	message := func(fields []string, body string) {
		t.Helper()
		if c.ws == nil {
			h.play("carol connects\ncarol> REGISTER\n<carol 200\n", "again")
		}
		m := c.request("MESSAGE", "sip:bob@ims.test", newBranch(), "t", "", "sip:bob@ims.test", 1, newBranch())
		_ = c.ws.Write(t.Context(), websocket.MessageText, []byte(edit(m, append(fields, "Content-Type: text/plain"), body))) // it may be cut short
		for {                                                                                                                 // an answer, or the end of this WebSocket alone
			select {
			case _, ok := <-c.in:
				if !ok {
					c.vanish()
				}
				return
			case <-time.After(patience):
				t.Fatal("no answer")
			}
		}
	}
	x := func(n, size int) (list []string) {
		for i := range n {
			list = append(list, fmt.Sprintf("X%d: %s", i, strings.Repeat("x", size)))
		}
		return list
	}
	message(x(114, 1), "")
	message(x(4, 7780), "")
	message(x(3, 7900), "")
	message([]string{"X: " + strings.Repeat("x", 5000) + "\r\n " + strings.Repeat("y", 5000)}, "") // longer when unfolded
	message(nil, strings.Repeat("x", 65000))
	if c.ws == nil {
		h.play("carol connects\ncarol> REGISTER\n<carol 200\n", "again")
	}
	c.cseq = 1<<31 - 2
	c.register("600")
	if _, m, err := c.next(); err != nil || m.Status != 400 {
		t.Errorf("CSeq 2^31-1: %v %v", m, err)
	}
	c.cseq = 1<<31 - 1002
	c.register("600")
	if _, m, err := c.next(); err != nil || m.Status != 200 {
		t.Errorf("CSeq 2^31-1001: %v %v", m, err)
	}
	c.vanish()
	select {
	case s := <-a.in:
		t.Errorf("the ringing call got %q", strings.SplitN(s, "\r\n", 2)[0])
	case <-time.After(300 * time.Millisecond):
	}
	if s := h.log.String(); strings.Contains(s, "connection ended") {
		t.Error("the connection to the core has ended")
	}
	h.wait("carol is unregistered at the core", func() bool { return h.core.Stats().Registrations == 2 })
}

// TestStrangersHoldNothing: without a registration, INVITEs are refused and leave nothing behind,
// however many there are and although nobody acknowledges them.
func TestStrangersHoldNothing(t *testing.T) {
	defer goleak.VerifyNone(t)
	h := newHouse(t)
	defer h.stop()
	a := h.ua("alice")
	a.connect()
	for _, auth := range []string{"", "Bearer " + token("alice"), "Bearer x"} {
		for i := range 50 {
			a.auth = auth
			m := a.request("INVITE", "sip:bob@ims.test", fmt.Sprint("c", i), "t", "", "sip:bob@ims.test", 1, newBranch())
			a.raw(edit(m, nil, ""))
			want := 401
			if strings.Contains(auth, ".") {
				want = 403
			}
			select {
			case s := <-a.in:
				if !strings.HasPrefix(s, fmt.Sprint("SIP/2.0 ", want, " ")) {
					t.Fatalf("got %q", s)
				}
			case <-time.After(patience):
				t.Fatal("no answer")
			}
		}
	}
	var server int
	h.edge.locked(func() { server, _ = h.edge.layer.Live() })
	if server != 0 {
		t.Errorf("%d transactions are kept", server)
	}
	a.auth = "Bearer " + token("alice")
	h.play("alice> REGISTER\n<alice 200\n", "after that")
}

// TestRegisterWithin: a WebSocket that does not register is closed; one that does stays.
func TestRegisterWithin(t *testing.T) {
	defer goleak.VerifyNone(t)
	h := newHouse(t, func(c *Config) { c.RegisterWithin = 200 * time.Millisecond })
	defer h.stop()
	h.play("alice connects\nalice> REGISTER\n<alice 200\nbob connects\nedge: flows=2\n", "before")
	if _, _, err := h.ua("bob").next(); err == nil {
		t.Error("bob stays")
	}
	h.wait("it is logged", func() bool { return strings.Contains(h.log.String(), "no registration in time") })
	time.Sleep(100 * time.Millisecond)
	h.play("edge: flows=1 bindings=1\n", "after")
}

func TestCountedAs(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.7": "192.0.2.7", "2001:db8:1:2:3:4:5:6": "2001:db8:1:2::", "2001:db8:1:2::1": "2001:db8:1:2::", "2001:db8:1:3::1": "2001:db8:1:3::", "fe80::1%eth0": "fe80::",
	} {
		if got := countedAs(netip.MustParseAddr(in)); got != netip.MustParseAddr(want) {
			t.Errorf("%s: %v", in, got)
		}
	}
}
