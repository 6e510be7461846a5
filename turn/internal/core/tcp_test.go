package core

import (
	"net/netip"
	"testing"
	"time"

	"wicgate/internal/wire/stun"
)

var (
	aliceTCP = Tuple{Client: netip.MustParseAddrPort("198.51.100.1:6000"), Transport: stun.ProtocolTCP}
	dataTCP  = Tuple{Client: netip.MustParseAddrPort("198.51.100.1:6001"), Transport: stun.ProtocolTCP}
)

// find returns the first action of a kind that the last call led to.
func (w *world) find(k Kind) *Action {
	for i := range w.out.Actions {
		if w.out.Actions[i].Kind == k {
			return &w.out.Actions[i]
		}
	}
	return nil
}

func connection(id Conn) add {
	return func(m []byte) []byte { return stun.AppendUint32(m, stun.AttrConnectionID, uint32(id)) }
}

// TestTCPRelay: a peer that is connected to, one that connects, and what is refused (RFC 6062 §5).
func TestTCPRelay(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.TCPRelay, c.DontFragment = true, true })
	c, other := w.issue(inUsername, "p1", w.now, time.Hour), w.issue(inUsername, "p2", w.now, time.Hour)
	// §5.1: over TCP alone, with nothing that means UDP.
	w.want(w.ask(alice, c, stun.Allocate, transport(6)), 400)
	w.want(w.ask(aliceTCP, c, stun.Allocate, transport(6), attr(stun.AttrEvenPort, []byte{0})), 400)
	w.want(w.ask(aliceTCP, c, stun.Allocate, transport(6), attr(stun.AttrReservationToken, make([]byte, 8))), 400)
	w.want(w.ask(aliceTCP, c, stun.Allocate, transport(6), attr(stun.AttrDontFragment, nil)), 400)
	w.want(w.ask(aliceTCP, c, stun.Allocate, transport(6)), 0)
	w.want(w.ask(aliceTCP, c, stun.ChannelBind, channelNumber(0x4000), peer(gateway)), 400)

	// Connect, by the policy and without a permission.
	w.want(w.ask(aliceTCP, c, stun.Connect, peer(stranger)), 403)
	w.want(w.ask(aliceTCP, c, stun.Connect), 400)
	if r := w.ask(aliceTCP, c, stun.Connect, peer(gateway)); r.ok {
		t.Fatalf("Connect is answered before there is a connection: %v", r)
	}
	dial := w.find(Dial)
	if dial == nil || dial.Peer != gateway || dial.Conn == 0 {
		t.Fatalf("no Dial: %+v", w.out.Actions)
	}
	id := dial.Conn
	w.want(w.ask(aliceTCP, c, stun.Connect, peer(gateway)), 446)
	w.core.Connected(w.now, id, "peer", &w.out)
	if r := w.act(aliceTCP); r.code != 0 || !r.ok {
		t.Fatalf("Connect: %v", r)
	}
	// ConnectionBind: by its owner, on another connection, once.
	if r := w.ask(dataTCP, other, stun.ConnectionBind, connection(id)); r.code != 400 {
		t.Errorf("somebody else's ConnectionBind: %v", r)
	}
	if r := w.ask(dataTCP, other, stun.ConnectionBind, connection(id+1)); r.code != 400 {
		t.Errorf("ConnectionBind of an unknown id: %v", r)
	}
	if r := w.ask(aliceTCP, c, stun.ConnectionBind, connection(id)); r.code != 400 {
		t.Errorf("ConnectionBind on the control connection: %v", r)
	}
	udp := alice
	if r := w.ask(udp, c, stun.ConnectionBind, connection(id)); r.code != 400 {
		t.Errorf("ConnectionBind over UDP: %v", r)
	}
	// Over UDP the source is forged, perhaps: the nonce must be its own, and the answer is budgeted.
	if r := w.askNonce(udp, c, w.nonce(aliceTCP), stun.ConnectionBind, connection(id)); r.code != 438 {
		t.Errorf("ConnectionBind over UDP with the control connection's nonce: %v", r)
	}
	// Clients bring the nonce of the control connection along.
	if r := w.askNonce(dataTCP, c, w.nonce(alice), stun.ConnectionBind, connection(id)); r.code != 438 {
		t.Errorf("a nonce of another client: %v", r)
	}
	w.want(w.askNonce(dataTCP, c, w.nonce(aliceTCP), stun.ConnectionBind, connection(id)), 0)
	if s := w.find(Splice); s == nil || s.Conn != id || s.Relay != "peer" || s.Tuple != dataTCP {
		t.Fatalf("no Splice: %+v", w.out.Actions)
	}
	if r := w.ask(dataTCP, c, stun.ConnectionBind, connection(id)); r.code != 400 {
		t.Errorf("a second ConnectionBind: %v", r)
	}
	if wait, ok := w.core.Passed(w.now, id, true, 1000); wait != 0 || !ok {
		t.Errorf("Passed: %v, %v", wait, ok)
	}
	if l := w.core.List(w.now, nil); l[0].Traffic.SentBytes != 1000 {
		t.Errorf("traffic %+v", l[0].Traffic)
	}
	w.core.Gone(id, &w.out)
	if _, ok := w.core.Passed(w.now, id, true, 1); ok {
		t.Error("a connection that is gone passes bytes")
	}

	// A peer that cannot be reached: 447, and it may be tried again.
	w.ask(aliceTCP, c, stun.Connect, peer(gateway))
	w.core.Connected(w.now, w.find(Dial).Conn, nil, &w.out)
	if r := w.act(aliceTCP); r.code != 447 {
		t.Errorf("unreachable: %v", r)
	}

	// Peers that connect need a permission, and are announced.
	allocation := w.core.tuples[aliceTCP].id
	accept := func(from netip.AddrPort) *Action {
		w.core.Accepted(w.now, allocation, from, from.String(), &w.out)
		return w.find(CloseConn)
	}
	if a := accept(gateway); a == nil || a.Relay != gateway.String() {
		t.Error("a peer without a permission is not closed")
	}
	w.want(w.ask(aliceTCP, c, stun.CreatePermission, peer(gateway)), 0)
	if accept(gateway) != nil {
		t.Fatal("a permitted peer is closed")
	}
	say := w.find(ToClient)
	m, err := stun.Parse(say.Data)
	if err != nil || m.Type() != stun.NewType(stun.ConnectionAttempt, stun.Indication) || say.Tuple != aliceTCP {
		t.Fatalf("announced by %v, %v", m, err)
	}
	v, _ := m.Get(stun.AttrConnectionID)
	n, _ := stun.ParseUint32(v)
	if pv, _ := m.Get(stun.AttrXORPeerAddress); len(pv) == 0 {
		t.Error("no XOR-PEER-ADDRESS")
	} else if p, _ := stun.ParseXORAddress(pv, m.TransactionID()); p != gateway {
		t.Errorf("from %v", p)
	}
	if accept(gateway) == nil {
		t.Error("a second connection of a peer is not closed")
	}
	// Unclaimed, it is closed after 30 s.
	if at, ok := w.core.NextTimeout(); !ok || at != w.now.Add(BindTimeout) {
		t.Errorf("next timeout %v, %v", at, ok)
	}
	w.now = w.now.Add(BindTimeout)
	if r := w.ask(dataTCP, c, stun.ConnectionBind, connection(Conn(n))); r.code != 400 {
		t.Errorf("a late ConnectionBind: %v", r)
	}
	w.core.Timeout(w.now, &w.out)
	if a := w.find(CloseConn); a == nil || a.Relay != gateway.String() {
		t.Error("an unclaimed connection is not closed")
	}

	// The allocation takes its connections along.
	accept(gateway)
	w.ask(aliceTCP, c, stun.Connect, peer(netip.AddrPortFrom(gateway.Addr(), 40001)))
	late := w.find(Dial).Conn
	w.core.Disconnected(w.now, aliceTCP, &w.out)
	if w.find(CloseConn) == nil || len(w.core.conns) != 0 {
		t.Errorf("%d connections outlive their allocation", len(w.core.conns))
	}
	w.act(aliceTCP)
	w.core.Connected(w.now, late, "late", &w.out)
	if a := w.find(CloseConn); a == nil || a.Relay != "late" {
		t.Error("a connection that comes late is not closed")
	}
	w.invariants()
}

// TestTCPRelayOff: by default nothing of RFC 6062 is there.
func TestTCPRelayOff(t *testing.T) {
	w := newWorld(t)
	c := w.issue(inUsername, "p1", w.now, time.Hour)
	w.want(w.ask(aliceTCP, c, stun.Allocate, transport(6)), 442)
	w.want(w.ask(aliceTCP, c, stun.Allocate, transport(17)), 0)
	for _, m := range []stun.Method{stun.Connect, stun.ConnectionBind} {
		if r := w.ask(aliceTCP, c, m, peer(gateway)); r.ok {
			t.Errorf("%v is answered: %v", m, r)
		}
	}
}

// TestConnBounds: peers of one allocation, and rates on a stream, which wait instead of being dropped.
func TestConnBounds(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.TCPRelay = true; c.Rate = 8000 })
	c := w.issue(inUsername, "p1", w.now, time.Hour)
	w.want(w.ask(aliceTCP, c, stun.Allocate, transport(6)), 0)
	var first Conn
	for i := range w.core.cfg.MaxChannels {
		w.ask(aliceTCP, c, stun.Connect, peer(netip.AddrPortFrom(gateway.Addr(), uint16(40000+i))))
		if i == 0 {
			first = w.find(Dial).Conn
		}
	}
	w.want(w.ask(aliceTCP, c, stun.Connect, peer(netip.AddrPortFrom(gateway.Addr(), 40500))), 508)
	w.core.Connected(w.now, first, "peer", &w.out)
	w.act(aliceTCP)
	if wait, ok := w.core.Passed(w.now, first, false, 1000); wait != 0 || !ok {
		t.Errorf("within the rate: %v, %v", wait, ok)
	}
	if wait, ok := w.core.Passed(w.now, first, false, 500); wait == 0 || !ok {
		t.Errorf("beyond the rate: %v, %v", wait, ok)
	}
	if wait, ok := w.core.Passed(w.now.Add(time.Second), first, false, 500); wait != 0 || !ok {
		t.Errorf("a second later: %v, %v", wait, ok)
	}
}

// TestConnReconfigured: a peer that is closed while bytes pass is told none more, nor heard.
func TestConnReconfigured(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.TCPRelay = true })
	first := w.core.cfg.Tenant
	c := w.issue(inUsername, "p1", w.now, time.Hour)
	w.want(w.ask(aliceTCP, c, stun.Allocate, transport(6)), 0)
	w.ask(aliceTCP, c, stun.Connect, peer(gateway))
	id := w.find(Dial).Conn
	w.core.Connected(w.now, id, "peer", &w.out)
	w.act(aliceTCP)
	if _, ok := w.core.Passed(w.now, id, true, 1); !ok {
		t.Fatal("nothing passes")
	}
	next := first
	next.Peers = first.Peers.WithClosed(netip.PrefixFrom(gateway.Addr(), 32))
	w.core.Reconfigure([]Tenant{next}, false)
	for _, toPeer := range []bool{true, false} {
		if _, ok := w.core.Passed(w.now, id, toPeer, 1); ok {
			t.Errorf("bytes pass, to the peer: %v", toPeer)
		}
	}
	if n := w.core.Stats().Refused[CausePeer]; n != 2 {
		t.Errorf("%d refused, want 2", n)
	}
}
