package core

import (
	"bytes"
	"net/netip"
	"testing"
	"time"

	"wicgate/internal/wire/stun"
)

// roamer is a mobile client's world: alice moves to bob's place and to carol's.
func roamer(t *testing.T) (*world, cred, []byte) {
	w := newWorld(t, func(c *Config) { c.Mobility = true })
	c := w.issue(inUsername, "p1", w.now, time.Hour)
	r := w.want(w.ask(alice, c, stun.Allocate, transport(17), attr(stun.AttrMobilityTicket, nil)), 0)
	ticket := bytes.Clone(r.get(stun.AttrMobilityTicket))
	if len(ticket) != TicketSize {
		t.Fatalf("ticket %x", ticket)
	}
	w.want(w.ask(alice, c, stun.ChannelBind, channelNumber(0x4000), peer(gateway)), 0)
	return w, c, ticket
}

func withTicket(b []byte) add { return attr(stun.AttrMobilityTicket, b) }

// TestMobility: RFC 8016 §3.2.2, from the first address to a second and a third.
func TestMobility(t *testing.T) {
	w, c, first := roamer(t)
	say := func(from Tuple) bool {
		_, _, ok := w.toPeer(from, stun.AppendChannelData(nil, 0x4000, []byte("x")))
		return ok
	}
	// The core's own way back.
	back := func() Tuple {
		buf := make([]byte, Headroom+1+Tailroom)
		buf[Headroom] = 'y'
		w.core.FromPeer(w.now, w.core.tickets[ticketOf(w)].id, gateway, buf, 1, &w.out)
		if a := w.find(ToClient); a != nil {
			return a.Tuple
		}
		return Tuple{}
	}
	if say(bob) {
		t.Error("data of an unknown address is relayed")
	}
	w.want(w.ask(alice, c, stun.Refresh, withTicket(first)), 400) // it has not moved
	if r := w.ask(bob, w.issue(inUsername, "p2", w.now, time.Hour), stun.Refresh, withTicket(first)); r.code != 441 {
		t.Errorf("somebody else's move: %v", r)
	}
	w.want(w.ask(bob, c, stun.Refresh, withTicket([]byte("short"))), 400)
	w.want(w.ask(bob, c, stun.Refresh, withTicket(make([]byte, TicketSize))), 437)

	n := w.nonce(bob)
	move := w.sign(w.build(stun.Refresh, stun.Request, withTicket(first)), c, n)
	r := w.packet(bob, move)
	second := bytes.Clone(r.get(stun.AttrMobilityTicket))
	if r.code != 0 || r.lifetime() != 600 || len(second) != TicketSize || bytes.Equal(second, first) {
		t.Fatalf("move: %v, ticket %x", r, second)
	}
	// The same request again gets the same answer; the old ticket is good for nothing else.
	w.sleep(5 * time.Second)
	if r := w.packet(bob, move); r.code != 0 || !bytes.Equal(r.get(stun.AttrMobilityTicket), second) {
		t.Errorf("retransmission: %v", r)
	}
	w.want(w.ask(carol, c, stun.Refresh, withTicket(first)), 437)
	// The old path lives until data comes on the new one.
	if !say(alice) || back() != alice {
		t.Errorf("before data came on the new path, data goes to %v", back())
	}
	w.want(w.ask(bob, c, stun.CreatePermission, peer(gateway)), 0)
	if back() != alice {
		t.Error("a request moves the data")
	}
	if !say(bob) || back() != bob || say(alice) {
		t.Errorf("after data came on the new path, data goes to %v", back())
	}
	w.want(w.ask(alice, c, stun.Refresh), 437)
	w.invariants()

	// A move that is given up for another.
	r = w.want(w.ask(carol, c, stun.Refresh, withTicket(second)), 0)
	third := bytes.Clone(r.get(stun.AttrMobilityTicket))
	w.want(w.ask(dave, c, stun.Refresh, withTicket(third)), 0)
	if say(carol) || !say(bob) || !say(dave) || back() != dave {
		t.Error("the last of two moves is not the one that counts")
	}
	w.invariants()

	// A place that is taken.
	w.want(w.ask(alice, w.issue(inUsername, "p1", w.now, time.Hour), stun.Allocate, transport(17)), 0)
	w.want(w.ask(alice, c, stun.Refresh, withTicket(third)), 437)
	fourth := ticketOf(w)
	w.want(w.ask(alice, c, stun.Refresh, withTicket(fourth[:])), 437)
	w.invariants()

	w.want(w.ask(bob, c, stun.Refresh, withTicket(fourth[:]), lifetime(0)), 0)
	if w.core.Allocations() != 1 || len(w.core.tickets) != 0 {
		t.Errorf("%d allocations, %d tickets after the end", w.core.Allocations(), len(w.core.tickets))
	}
	w.invariants()
}

// ticketOf returns the ticket that counts, of a world with one mobile allocation.
func ticketOf(w *world) ticket {
	for _, a := range w.core.tickets {
		return a.mobile.ticket
	}
	return ticket{}
}

// TestTicketIsText: clients hold a ticket as a string of at most 32 bytes (turnutils_uclient), where a zero
// byte would end it.
func TestTicketIsText(t *testing.T) {
	w, c, ticket := roamer(t)
	for i := range 300 {
		if len(ticket) > 32 || bytes.ContainsFunc(ticket, func(r rune) bool { return r <= ' ' || r > '~' }) {
			t.Fatalf("ticket %d: %q", i, ticket)
		}
		w.sleep(time.Second) // within the budget of 401
		from := []Tuple{bob, carol}[i%2]
		ticket = bytes.Clone(w.want(w.ask(from, c, stun.Refresh, withTicket(ticket)), 0).get(stun.AttrMobilityTicket))
	}
}

// TestMobilityOff: not by default, and a ticket is not for an Allocate to show.
func TestMobilityOff(t *testing.T) {
	w := newWorld(t)
	c := w.issue(inUsername, "p1", w.now, time.Hour)
	w.want(w.ask(alice, c, stun.Allocate, transport(17), withTicket(nil)), 405)
	w.want(w.ask(alice, c, stun.Allocate, transport(17), withTicket([]byte("x"))), 400)
	w.want(w.ask(alice, c, stun.Allocate, transport(17)), 0)
	w.want(w.ask(bob, c, stun.Refresh, withTicket(make([]byte, TicketSize))), 405)
	if r := w.packet(bob, w.build(stun.Refresh, stun.Request, withTicket(make([]byte, TicketSize)))); r.code != 401 {
		t.Errorf("without credentials: %v", r)
	}
}

// TestMobilityOfConnections: an allocation outlives its connection for a while, and goes to the next one.
func TestMobilityOfConnections(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.Mobility = true })
	c := w.issue(inUsername, "p1", w.now, time.Hour)
	w.want(w.ask(aliceTCP, c, stun.Allocate, transport(17), withTicket(nil)), 0)
	w.want(w.ask(aliceTCP, c, stun.CreatePermission, peer(gateway)), 0)
	w.core.Disconnected(w.now, aliceTCP, &w.out)
	if w.act(aliceTCP); w.core.Allocations() != 1 || w.core.Holds(aliceTCP) {
		t.Fatal("it has ended with its connection")
	}
	w.sleep(Unreachable - time.Second)
	n := ticketOf(w)
	next := aliceTCP
	next.Client = netip.AddrPortFrom(next.Client.Addr(), 7000)
	w.want(w.ask(next, c, stun.Refresh, withTicket(n[:])), 0)
	if _, ok := w.fromPeer(next, gateway, "hello"); !ok {
		t.Error("nothing reaches the new connection")
	}
	w.invariants()
	// Lost while a move is under way: the new path is the path.
	n = ticketOf(w)
	w.want(w.ask(alice, c, stun.Refresh, withTicket(n[:])), 0)
	w.core.Disconnected(w.now, next, &w.out)
	w.act(alice)
	if _, ok := w.fromPeer(alice, gateway, "hello"); !ok {
		t.Error("nothing reaches the new path once the old one is closed")
	}
	// And one that is not shown again ends.
	n = ticketOf(w)
	w.want(w.ask(next, c, stun.Refresh, withTicket(n[:])), 0)
	w.want(w.ask(next, c, stun.CreatePermission, peer(gateway)), 0)
	_, _, _ = w.toPeer(next, w.build(stun.Send, stun.Indication, peer(gateway), data("x")))
	w.core.Disconnected(w.now, next, &w.out)
	w.act(next)
	w.sleep(Unreachable)
	if w.core.Allocations() != 0 || len(w.core.tickets) != 0 || len(w.core.tuples) != 0 {
		t.Errorf("%d allocations, %d tickets, %d tuples left", w.core.Allocations(), len(w.core.tickets), len(w.core.tuples))
	}
}
