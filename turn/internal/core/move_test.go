package core

import (
	"bytes"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"wicgate/internal/peerpolicy"
	"wicgate/internal/wire/stun"
)

// move hands what is UDP's from w to a new world with the same configuration, and returns it.
func (w *world) move(change ...func(*Config)) *world {
	w.t.Helper()
	next := newWorld(w.t, append([]func(*Config){func(c *Config) { *c = w.core.cfg }}, change...)...)
	next.now, next.port, next.ring, next.behindNAT = w.now.Add(time.Second), w.port, w.ring, w.behindNAT
	s, sockets := w.core.State()
	read, err := ParseState(s.Append(nil))
	if err != nil {
		w.t.Fatal(err)
	}
	if again := read.Append(nil); !bytes.Equal(again, s.Append(nil)) || read.Sockets() != len(sockets) {
		w.t.Fatalf("%d sockets, want %d; or the encoding changes", read.Sockets(), len(sockets))
	}
	if err := next.restore(read, sockets); err != nil {
		w.t.Fatal(err)
	}
	w.core.Leave(w.now, s, w.now.Add(time.Hour))
	if len(read.stays) == 0 {
		next.invariants()
	}
	return next
}

// restore opens the sockets by the ports that the other world knows them by.
func (w *world) restore(s *State, sockets []any) error {
	seen := map[int]bool{}
	err := w.core.Restore(w.now, s, func(t Tuple) (Tuple, error) { return t, nil }, func(i int, id ID, was Socket) (Socket, error) {
		if seen[i] || was.Relayed.Port() != sockets[i].(uint16) || was.Relay != nil {
			w.t.Errorf("socket %d: %v, want port %v", i, was, sockets[i])
		}
		seen[i] = true
		was.Relay = sockets[i]
		return was, nil
	}, &w.out)
	if err == nil && len(seen) != len(sockets) {
		w.t.Errorf("%d sockets of %d", len(seen), len(sockets))
	}
	return err
}

// TestMove: the next process goes on where the last one was: permissions, channels, credentials old
// and new, lifetimes, books, reservations, counters, and what is known of sessions.
func TestMove(t *testing.T) {
	users := &book{passwords: map[string]string{"anna": "TheMatrIX"}}
	w := newWorld(t, families(bothFamilies), func(c *Config) { c.Policy, c.Users = Session, users })
	token := w.issue(inToken, "p1", w.now, time.Hour)
	w.want(w.ask(alice, token, stun.Allocate, transport(17), also(2)), 0)
	w.want(w.ask(alice, token, stun.CreatePermission, peer(gateway)), 0)
	w.want(w.ask(alice, token, stun.ChannelBind, channelNumber(0x4001), peer(gateway)), 0)
	w.want(w.ask(alice, token, stun.Refresh, only(2), lifetime(1200)), 0)
	before := w.issue(inUsername, "p2", w.now, time.Hour)
	w.want(w.ask(bob, before, stun.Allocate, transport(17), pair), 0)
	after := w.issue(inUsername, "p2", w.now.Add(time.Minute), time.Hour)
	w.now = w.now.Add(time.Minute)
	w.sleep(0)
	w.want(w.ask(bob, after, stun.Refresh), 0)
	anna := static(stun.SHA256, "anna", "TheMatrIX")
	w.want(w.ask(carol, anna, stun.Allocate, transport(17), chosen(stun.SHA256)), 0)
	create := w.sign(w.build(stun.Allocate, stun.Request, transport(17), pair), w.issue(inToken, "p3", w.now, time.Hour), w.nonce(dave))
	answer := w.packet(dave, create)
	held := bytes.Clone(answer.get(stun.AttrReservationToken))
	w.core.Extend(w.now, "p1", w.now.Add(10*time.Hour))
	w.core.Extend(w.now, "later", w.now.Add(5*time.Hour))
	if m, ok := w.fromPeer(alice, gateway, "hello"); !ok || len(m) != 9 {
		t.Fatal("no channel")
	}
	stats := w.core.Stats()

	n := w.move()
	if w.core.Allocations() != 0 || len(w.ended) != 0 || len(w.core.queue)+len(w.core.tuples)+len(w.core.tenants[0].owners) != 0 {
		t.Errorf("%d allocations are left, %d ended", w.core.Allocations(), len(w.ended))
	}
	if got := n.core.Stats(); got != stats {
		t.Errorf("counters %+v, want %+v", got, stats)
	}
	if m, ok := n.fromPeer(alice, gateway, "hello"); !ok || !bytes.Equal(m[:4], []byte{0x40, 1, 0, 5}) {
		t.Errorf("from the peer: %x, %v", m, ok)
	}
	if to, s, ok := n.toPeer(alice, stun.AppendChannelData(nil, 0x4001, []byte("hi"))); !ok || to != gateway || s != "hi" {
		t.Errorf("to %v: %q, %v", to, s, ok)
	}
	if a := n.core.tuples[alice]; a.peers != 1 {
		t.Errorf("%d peers, for the log", a.peers)
	}
	if _, ok := n.fromPeer(bob, gateway, "x"); ok {
		t.Error("a permission came from nowhere")
	}
	// Who is known by which key: ACCESS-TOKEN's, the replaced and the new one in USERNAME, the file's.
	n.want(n.ask(alice, token, stun.ChannelBind, channelNumber(0x4001), peer(gateway)), 0)
	n.want(n.ask(alice, token, stun.ChannelBind, channelNumber(0x4002), peer(gateway)), 400)
	n.want(n.ask(bob, before, stun.CreatePermission, peer(gateway)), 0)
	n.want(n.ask(bob, after, stun.CreatePermission, peer(gateway)), 0)
	n.want(n.ask(carol, anna, stun.Refresh, chosen(stun.SHA256)), 0)
	// A retransmission gets the answer of the old process, and the port that it held is held.
	if again := n.packet(dave, create); again.code != 0 || !bytes.Equal(again.get(stun.AttrXORRelayedAddress), answer.get(stun.AttrXORRelayedAddress)) {
		t.Errorf("retransmission: %v", again)
	}
	n.want(n.ask(mallory, n.issue(inToken, "p3", n.now, time.Hour), stun.Allocate, transport(17), reserved(held)), 0)
	// The session that was extended may be refreshed beyond its token, the books count, revocation ends.
	if n.core.living["later"].IsZero() || !n.core.tuples[alice].extended.After(n.now.Add(9*time.Hour)) {
		t.Error("extensions are lost")
	}
	id := n.core.lastID
	if id <= w.core.lastID { // which may go on beside
		t.Errorf("ids begin anew: %d after %d", id, w.core.lastID)
	}
	n.want(n.ask(Tuple{Client: netip.MustParseAddrPort("198.51.100.9:1"), Transport: 17}, n.issue(inToken, "p9", n.now, time.Hour), stun.Allocate, transport(17)), 0)
	if n.core.lastID != id+1 || n.core.ids[id+1] == nil {
		t.Errorf("ids begin anew: %d after %d", n.core.lastID, id)
	}
	n.invariants()
	if k := n.core.Revoke(n.now, "p2", &n.out); k != 1 {
		t.Errorf("%d revoked", k)
	}
	n.act(Tuple{})
	delete(users.passwords, "anna")
	if k := n.core.Recheck(n.now, &n.out); k != 1 {
		t.Errorf("%d of static users ended", k)
	}
	n.act(Tuple{})
	n.sleep(550 * time.Second) // dave's, mallory's and alice's first half
	if a := n.core.tuples[alice]; a == nil || len(a.relayed()) != 1 || !a.relayed()[0].Addr().Is6() {
		t.Error("alice's half of IPv6 is not there alone")
	}
	n.sleep(20 * time.Minute)
	if n.core.Allocations() != 0 {
		t.Errorf("%d allocations do not end", n.core.Allocations())
	}
	n.invariants()
}

// TestMoveMobile: a client that can move between addresses finds its allocation in the next process, by its
// ticket, the last one's retransmission, or none at all.
func TestMoveMobile(t *testing.T) {
	w, c, first := roamer(t)
	request := w.sign(w.build(stun.Refresh, stun.Request, withTicket(first)), c, w.nonce(bob))
	second := bytes.Clone(w.packet(bob, request).get(stun.AttrMobilityTicket))
	n := w.move() // in the middle of a move to bob
	if r := n.packet(bob, request); r.code != 0 || !bytes.Equal(r.get(stun.AttrMobilityTicket), second) {
		t.Errorf("retransmission: %v", r)
	}
	if _, _, ok := n.toPeer(bob, stun.AppendChannelData(nil, 0x4000, []byte("x"))); !ok {
		t.Error("not relayed from the new path")
	}
	onTCP := Tuple{Client: bob.Client, Transport: 6}
	third := bytes.Clone(n.want(n.ask(onTCP, c, stun.Refresh, withTicket(second)), 0).get(stun.AttrMobilityTicket))
	n.toPeer(onTCP, stun.AppendChannelData(nil, 0x4000, []byte("x")))
	if s, _ := n.core.State(); len(s.allocations) != 0 || len(s.stays) != 1 {
		t.Errorf("an allocation moves whose client is on a connection")
	}
	n.core.Disconnected(n.now, onTCP, &n.out)
	m := n.move()
	m.want(m.ask(carol, c, stun.Refresh, withTicket(third)), 0)
	if _, ok := m.fromPeer(carol, gateway, "x"); !ok {
		t.Error("a client that was nowhere is not found again")
	}
	m.invariants()
	m.sleep(time.Hour)
	m.invariants()
	if len(m.core.tickets)+len(n.core.tickets)+len(w.core.tickets) != 0 {
		t.Error("tickets are left")
	}
}

// TestMoveInPart: clients on connections stay. Calls between one that stays and one that moves go on,
// until the old process is gone.
func TestMoveInPart(t *testing.T) {
	for _, nat := range []bool{false, true} {
		w := newWorld(t, func(c *Config) {
			c.Peers = peerpolicy.General().WithRelays(relayIP, insideIP)
		})
		w.behindNAT = nat
		onTCP := Tuple{Client: netip.MustParseAddrPort("198.51.100.3:5000"), Transport: 6}
		ca, cb := w.issue(inUsername, "p1", w.now, time.Hour), w.issue(inUsername, "p2", w.now, time.Hour)
		w.want(w.ask(alice, ca, stun.Allocate, transport(17)), 0)
		w.want(w.ask(onTCP, cb, stun.Allocate, transport(17)), 0)
		a, b := w.core.tuples[alice].halves[0].Socket, w.core.tuples[onTCP].halves[0].Socket
		w.want(w.ask(alice, ca, stun.ChannelBind, channelNumber(0x4000), peer(b.Relayed)), 0)
		w.want(w.ask(onTCP, cb, stun.ChannelBind, channelNumber(0x4000), peer(a.Relayed)), 0)

		n := w.move()
		if n.core.Allocations() != 1 || w.core.Allocations() != 1 {
			t.Fatalf("%d moved, %d stayed", n.core.Allocations(), w.core.Allocations())
		}
		data := stun.AppendChannelData(nil, 0x4000, []byte("x"))
		to, _, ok := n.toPeer(alice, data)
		if _, in := w.fromPeer(onTCP, a.Local, "x"); !ok || !in || to != b.Local {
			t.Errorf("NAT %v: to the one that stayed: %v to %v, %v in", nat, ok, to, in)
		}
		to, _, ok = w.toPeer(onTCP, data)
		if _, in := n.fromPeer(alice, b.Local, "x"); !ok || !in || to != a.Local {
			t.Errorf("NAT %v: from it: %v to %v, %v in", nat, ok, to, in)
		}
		n.core.Alone()
		if _, _, ok := n.toPeer(alice, data); ok {
			t.Errorf("NAT %v: a relayed address of nobody is a peer", nat)
		}
		n.invariants()
		w.sleep(20 * time.Minute)
		if w.core.Allocations() != 0 {
			t.Error("what stayed does not end")
		}
	}
}

// TestMoveRefused: what does not fit the next configuration, or was revoked meanwhile.
func TestMoveRefused(t *testing.T) {
	w := newWorld(t)
	w.call(alice, w.issue(inUsername, "p1", w.now, time.Hour))
	w.call(bob, w.issue(inUsername, "p2", w.now, time.Hour))
	s, sockets := w.core.State()
	b := s.Append(nil)
	parse := func() *State {
		s, err := ParseState(b)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	cfg := func(c *Config) { *c = w.core.cfg }
	n := newWorld(t, cfg, func(c *Config) { c.Name = "other.test" })
	if err := n.restore(parse(), sockets); err == nil || !strings.Contains(err.Error(), `"turn.ims.test", which is not in the new configuration`) {
		t.Errorf("another name: %v", err)
	}
	n = newWorld(t, cfg)
	n.core.Extend(n.now, "p2", n.now.Add(5*time.Hour)) // news that came here first
	n.core.cfg.Revoked = func(p string) bool { return p == "p1" }
	if err := n.restore(parse(), sockets); err != nil {
		t.Fatal(err)
	}
	n.act(Tuple{})
	if len(n.ended) != 1 || n.ended[0].Owner != "p1" || n.ended[0].Cause != EndRevoked || n.core.Allocations() != 1 || n.core.tuples[bob].extended.IsZero() {
		t.Errorf("ended %+v", n.ended)
	}
	n.invariants()
	if err := n.restore(parse(), sockets); err == nil {
		t.Error("restored twice")
	}
	n = newWorld(t, cfg)
	if err := n.core.Restore(n.now, parse(), func(Tuple) (Tuple, error) { return alice, nil }, func(int, ID, Socket) (Socket, error) { return Socket{Relay: 1}, nil }, &n.out); err == nil {
		t.Error("two allocations on one 5-tuple")
	}
	// A version that is not ours, and each cut.
	for i := range b {
		if _, err := ParseState(b[:i]); !errors.Is(err, ErrState) {
			t.Fatalf("cut at %d: %v", i, err)
		}
	}
	if _, err := ParseState(append([]byte{StateVersion + 1}, b[1:]...)); !errors.Is(err, ErrState) {
		t.Errorf("another version: %v", err)
	}
}

// FuzzParseState: bytes of another process lead to an error or to a State that a Core takes or refuses.
func FuzzParseState(f *testing.F) {
	w := newWorld(f, families(bothFamilies))
	w.call(alice, w.issue(inUsername, "p1", w.now, time.Hour))
	c := w.issue(inToken, "p2", w.now, time.Hour)
	w.want(w.ask(bob, c, stun.Allocate, transport(17), also(2)), 0)
	w.want(w.ask(bob, c, stun.ChannelBind, channelNumber(0x4000), peer(gateway6)), 0)
	w.want(w.ask(carol, c, stun.Allocate, transport(17), pair), 0)
	w.core.Extend(w.now, "p1", w.now.Add(time.Hour))
	s, _ := w.core.State()
	f.Add(s.Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := ParseState(b)
		if err != nil {
			return
		}
		if again, err := ParseState(s.Append(nil)); err != nil || again.Sockets() != s.Sockets() {
			t.Fatalf("what was written again is not read: %v", err)
		}
		n := newWorld(t, families(bothFamilies))
		err = n.core.Restore(n.now, s, func(t Tuple) (Tuple, error) { return t, nil }, func(i int, _ ID, was Socket) (Socket, error) {
			was.Relay = i
			return was, nil
		}, &n.out)
		if err == nil {
			n.sleep(24 * time.Hour)
		}
	})
}
