package core

import (
	"bytes"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"wicgate/internal/wire/stun"
)

// TestAllocateRules goes through RFC 8656 §7.2 rule by rule.
func TestAllocateRules(t *testing.T) {
	v6 := func(c *Config) { c.Families = stun.FamilyIPv6 }
	none := func(*Config) {}
	for _, c := range []struct {
		name   string
		change func(*Config)
		adds   []add
		code   int
	}{
		{"plain", none, []add{transport(17)}, 0},
		{"no REQUESTED-TRANSPORT", none, nil, 400},
		{"REQUESTED-TRANSPORT of 1 byte", none, []add{attr(stun.AttrRequestedTransport, []byte{17})}, 400},
		{"TCP", none, []add{transport(6)}, 442},
		{"DONT-FRAGMENT", none, []add{transport(17), attr(stun.AttrDontFragment, nil)}, 420},
		{"IPv4 asked for", none, []add{transport(17), small(stun.AttrRequestedAddressFamily, 1)}, 0},
		{"IPv6 asked for", none, []add{transport(17), small(stun.AttrRequestedAddressFamily, 2)}, 440},
		{"family 7", none, []add{transport(17), small(stun.AttrRequestedAddressFamily, 7)}, 440},
		{"family of 1 byte", none, []add{transport(17), attr(stun.AttrRequestedAddressFamily, []byte{1})}, 400},
		{"IPv6 relay, nothing asked", v6, []add{transport(17)}, 440},
		{"IPv6 relay, IPv4 asked for", v6, []add{transport(17), small(stun.AttrRequestedAddressFamily, 1)}, 440},
		{"IPv6 relay, IPv6 asked for", v6, []add{transport(17), small(stun.AttrRequestedAddressFamily, 2)}, 0},
		{"both families", none, []add{transport(17), small(stun.AttrAdditionalAddressFamily, 2)}, 0},
		{"both, and one asked for", none, []add{transport(17), small(stun.AttrRequestedAddressFamily, 1), small(stun.AttrAdditionalAddressFamily, 2)}, 400},
		{"IPv4 as addition", none, []add{transport(17), small(stun.AttrAdditionalAddressFamily, 1)}, 400},
		{"even port", none, []add{transport(17), attr(stun.AttrEvenPort, []byte{0})}, 0},
		{"even port and the next", none, []add{transport(17), attr(stun.AttrEvenPort, []byte{0x80})}, 0},
		{"even port, next and both families", none, []add{transport(17), attr(stun.AttrEvenPort, []byte{0x80}), small(stun.AttrAdditionalAddressFamily, 2)}, 400},
		{"EVEN-PORT of 0 bytes", none, []add{transport(17), attr(stun.AttrEvenPort, nil)}, 400},
		{"reservation", none, []add{transport(17), attr(stun.AttrReservationToken, make([]byte, 8))}, 508},
		{"reservation of 4 bytes", none, []add{transport(17), attr(stun.AttrReservationToken, make([]byte, 4))}, 400},
		{"reservation and even port", none, []add{transport(17), attr(stun.AttrReservationToken, make([]byte, 8)), attr(stun.AttrEvenPort, []byte{0})}, 400},
		{"reservation and family", none, []add{transport(17), attr(stun.AttrReservationToken, make([]byte, 8)), small(stun.AttrRequestedAddressFamily, 1)}, 400},
		{"LIFETIME of 2 bytes", none, []add{transport(17), attr(stun.AttrLifetime, []byte{1, 2})}, 400},
		{"full", func(c *Config) { c.MaxAllocations = 0 }, []add{transport(17)}, 508},
		{"no quota", func(c *Config) { c.Quota = 0 }, []add{transport(17)}, 486},
	} {
		for _, s := range []shape{inUsername, inToken} {
			t.Run(fmt.Sprintf("%s, %v", c.name, s), func(t *testing.T) {
				w := newWorld(t, c.change)
				r := w.want(w.ask(alice, w.issue(s, "p1", w.now, time.Hour), stun.Allocate, c.adds...), c.code)
				if want := map[bool]int{true: 1, false: 0}[c.code == 0]; w.core.Allocations() != want {
					t.Errorf("%d allocations, want %d", w.core.Allocations(), want)
				}
				if got := r.get(stun.AttrAddressErrorCode); (c.name == "both families") != bytes.Equal(got, []byte{2, 0, 4, 40}) {
					t.Errorf("ADDRESS-ERROR-CODE %x", got)
				}
				w.invariants()
			})
		}
	}
}

func TestEvenPortIsAskedFor(t *testing.T) {
	w := newWorld(t)
	w.want(w.ask(alice, w.issue(inUsername, "p", w.now, time.Hour), stun.Allocate, transport(17), attr(stun.AttrEvenPort, []byte{0})), 0)
	if a := w.last.Actions[0]; a.Kind != Open || !a.Even {
		t.Errorf("action %+v", a)
	}
}

func TestLifetimes(t *testing.T) {
	for _, c := range []struct {
		ask  []add
		want int
	}{
		{nil, 600}, {[]add{lifetime(0)}, 600}, {[]add{lifetime(1)}, 600}, {[]add{lifetime(599)}, 600}, {[]add{lifetime(777)}, 777}, {[]add{lifetime(3600)}, 3600}, {[]add{lifetime(3601)}, 3600}, {[]add{lifetime(0xffffffff)}, 3600},
	} {
		w := newWorld(t)
		cr := w.issue(inUsername, "p", w.now, time.Hour)
		r := w.want(w.ask(alice, cr, stun.Allocate, append(c.ask, transport(17))...), 0)
		if r.lifetime() != c.want {
			t.Errorf("Allocate: LIFETIME %d, want %d", r.lifetime(), c.want)
		}
		// It lives exactly as long.
		w.sleep(time.Duration(c.want)*time.Second - time.Millisecond)
		if w.core.Allocations() != 1 {
			t.Errorf("LIFETIME %d: ended early", c.want)
		}
		w.sleep(time.Millisecond)
		if w.core.Allocations() != 0 || len(w.ended) != 1 || w.ended[0].Cause != EndExpired || w.ended[0].Age != time.Duration(c.want)*time.Second {
			t.Errorf("LIFETIME %d: %d allocations at its end, %+v", c.want, w.core.Allocations(), w.ended)
		}
	}
}

// TestLateTimer: an allocation whose time has come is gone, timer or not.
func TestLateTimer(t *testing.T) {
	w := newWorld(t)
	c := w.issue(inUsername, "p", w.now, time.Hour)
	w.call(alice, c)
	w.now = w.now.Add(600 * time.Second)
	w.want(w.ask(alice, c, stun.Refresh), 437)
	w.call(mallory, w.issue(inUsername, "m", w.now, time.Hour))
	w.now = w.now.Add(600 * time.Second)
	if _, ok := w.fromPeer(mallory, gateway, "x"); ok || w.core.Allocations() != 0 {
		t.Errorf("relayed past its end; %d allocations", w.core.Allocations())
	}
	w.invariants()
}

func TestMismatchAndRetransmission(t *testing.T) {
	for _, s := range []shape{inUsername, inToken} {
		w := newWorld(t)
		c := w.issue(s, "p1", w.now, time.Hour)
		b := w.sign(w.build(stun.Allocate, stun.Request, transport(17)), c, w.nonce(alice))
		first := w.packet(alice, b)
		again := w.packet(alice, b)
		if first.code != 0 || !bytes.Equal(first.msg.Raw(), again.msg.Raw()) {
			t.Errorf("%v: the request again: %v, first %v", s, again, first)
		}
		if w.core.Allocations() != 1 || w.port != 49153 {
			t.Errorf("%v: %d allocations, port %d", s, w.core.Allocations(), w.port)
		}
		w.want(w.ask(alice, c, stun.Allocate, transport(17)), 437)
		// Another's request with the same transaction id is no retransmission.
		other := w.sign(stun.AppendByte(stun.AppendHeader(nil, stun.NewType(stun.Allocate, stun.Request), first.msg.TransactionID()), stun.AttrRequestedTransport, 17),
			w.issue(s, "p2", w.now, time.Hour), w.nonce(alice))
		if r := w.packet(alice, other); r.code != 437 {
			t.Errorf("%v: same transaction id, other client: %v", s, r)
		}
		// 437 is told to nobody who has not authenticated.
		bad := c
		bad.key = []byte("wrong")
		w.want(w.ask(alice, bad, stun.Allocate, transport(17)), 401)
		w.want(w.ask(mallory, c, stun.Refresh), 437)
		w.invariants()
	}
}

// TestOpening: between Allocate and the relay socket there is one allocation and no answer yet.
func TestOpening(t *testing.T) {
	w := newWorld(t)
	c := w.issue(inUsername, "p1", w.now, time.Hour)
	n := w.nonce(alice)
	b := w.sign(w.build(stun.Allocate, stun.Request, transport(17)), c, n)
	var out Outbox
	w.core.FromClient(w.now, alice, b, &out)
	if len(out.Actions) != 1 || out.Actions[0].Kind != Open {
		t.Fatalf("actions %+v", out.Actions)
	}
	id := out.Actions[0].ID
	if w.core.FromClient(w.now, alice, b, &out); len(out.Actions) != 0 {
		t.Errorf("retransmission while opening: %+v", out.Actions)
	}
	w.want(w.askNonce(alice, c, n, stun.Refresh), 437)
	if w.core.FromPeer(w.now, id, gateway, make([]byte, Headroom+Tailroom), 0, &out); len(out.Actions) != 0 {
		t.Errorf("peer packet while opening: %+v", out.Actions)
	}
	w.invariants()
	// It is revoked before the socket comes: the socket is closed, and the client hears nothing.
	if n := w.core.Revoke(w.now, "p1", &out); n != 1 || len(out.Actions) != 0 {
		t.Errorf("revoked %d, %+v", n, out.Actions)
	}
	w.core.Opened(w.now, id, Sockets{Family: [2]Socket{{Relay: "socket", Relayed: netip.MustParseAddrPort("203.0.113.9:50000")}}}, &out)
	if len(out.Actions) != 1 || out.Actions[0].Kind != Close || out.Actions[0].Relay != "socket" || out.Actions[0].Ended != nil {
		t.Errorf("late socket: %+v", out.Actions)
	}
	w.core.Opened(w.now, id, Sockets{}, &out)
	if len(out.Actions) != 0 || w.core.Allocations() != 0 {
		t.Errorf("late failure: %+v", out.Actions)
	}
	// The socket never comes.
	w.core.FromClient(w.now, alice, w.sign(w.build(stun.Allocate, stun.Request, transport(17)), c, n), &out)
	w.sleep(openTimeout)
	if w.core.Allocations() != 0 {
		t.Error("an allocation waits for its socket for ever")
	}
	// It cannot be opened.
	w.fails = stun.FamilyIPv4 | stun.FamilyIPv6
	w.want(w.askNonce(alice, c, n, stun.Allocate, transport(17)), 508)
	if w.core.Allocations() != 0 || w.core.Stats().AllocationsTotal != 0 {
		t.Error("state remains after a failed opening")
	}
	w.invariants()
}

func TestQuota(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.Quota, c.MaxAllocations = 2, 3 })
	at := func(i int) Tuple {
		return Tuple{Client: netip.AddrPortFrom(alice.Client.Addr(), uint16(7000+i)), Transport: 17}
	}
	// Each allocation with a token, and so a USERNAME, of its own.
	w.want(w.ask(at(0), w.issue(inUsername, "p1", w.now, time.Hour), stun.Allocate, transport(17)), 0)
	w.want(w.ask(at(1), w.issue(inToken, "p1", w.now, time.Hour), stun.Allocate, transport(17)), 0)
	w.want(w.ask(at(2), w.issue(inUsername, "p1", w.now, time.Hour), stun.Allocate, transport(17)), 486)
	w.want(w.ask(at(2), w.issue(inUsername, "p2", w.now, time.Hour), stun.Allocate, transport(17)), 0)
	w.want(w.ask(at(3), w.issue(inUsername, "p3", w.now, time.Hour), stun.Allocate, transport(17)), 508)
	w.invariants()
	w.sleep(600 * time.Second)
	w.want(w.ask(at(4), w.issue(inUsername, "p1", w.now, time.Hour), stun.Allocate, transport(17)), 0)
	w.invariants()
}

func TestRevokeExtendDrain(t *testing.T) {
	w := newWorld(t)
	tuples := []Tuple{alice, mallory, {Client: netip.MustParseAddrPort("198.51.100.2:1"), Transport: 17}}
	owners := []string{"p1", "p2", "p1"}
	for i, tu := range tuples {
		w.want(w.ask(tu, w.issue(inUsername, owners[i], w.now, time.Hour), stun.Allocate, transport(17)), 0)
	}
	if n := w.core.Revoke(w.now, "p1", &w.out); n != 2 {
		t.Errorf("%d allocations revoked, want 2", n)
	}
	w.act(Tuple{})
	if len(w.ended) != 2 || w.ended[0].Cause != EndRevoked || w.ended[0].Owner != "p1" || w.core.Allocations() != 1 {
		t.Errorf("ended %+v, %d left", w.ended, w.core.Allocations())
	}
	if n := w.core.Revoke(w.now, "nobody", &w.out); n != 0 {
		t.Errorf("%d allocations of nobody", n)
	}
	w.invariants()
	w.core.Drain(true, time.Time{})
	w.want(w.ask(alice, w.issue(inUsername, "p1", w.now, time.Hour), stun.Allocate, transport(17)), 508)
	w.want(w.ask(mallory, w.issue(inUsername, "p2", w.now, time.Hour), stun.Refresh), 0) // who is in, stays
	w.core.EndAll(w.now, &w.out)
	w.act(Tuple{})
	if w.core.Allocations() != 0 || w.ended[2].Cause != EndShutdown {
		t.Errorf("%d allocations after EndAll", w.core.Allocations())
	}
	w.invariants()
	st := w.core.Stats()
	if st.AllocationsTotal != 3 || st.Ended != [NumEnds]uint64{EndRevoked: 2, EndShutdown: 1} {
		t.Errorf("stats %+v", st)
	}
}
