package core

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"wicgate/internal/peerpolicy"
	"wicgate/internal/wire/stun"
)

func ap(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// raw6 is XOR-PEER-ADDRESS of family IPv6 whatever the address, as an attacker writes ::ffff:a.b.c.d.
func raw6(a netip.Addr, port uint16) add {
	return func(m []byte) []byte {
		v := []byte{0, stun.FamilyIPv6, byte(port>>8) ^ 0x21, byte(port) ^ 0x12}
		for i, b := range a.As16() {
			v = append(v, b^m[4+i])
		}
		return stun.AppendAttr(m, stun.AttrXORPeerAddress, v)
	}
}

// TestForbiddenPeers: loopback, private, translated and own addresses are refused at every door
// (CVE-2018-4058, CVE-2020-26262, CVE-2026-27624, RFC 8656 §21.4).
func TestForbiddenPeers(t *testing.T) {
	listener := ap("8.8.4.4:3478")
	general := func(v6 bool) func(*Config) {
		return func(c *Config) {
			if c.Families = stun.FamilyIPv4; v6 {
				c.Families = stun.FamilyIPv6
			}
			c.Peers = peerpolicy.General().WithListeners(listener).WithRelays(relayIP)
		}
	}
	for _, s := range []string{
		"127.0.0.1:80", "0.0.0.0:80", "10.0.0.1:80", "172.16.0.1:80", "192.168.1.1:80", "169.254.169.254:80", "100.64.0.1:80", "224.0.0.1:80", "255.255.255.255:80", listener.String(),
		"203.0.113.9:22", // the relay's own address, a port that it does not hold
		"[::1]:80", "[::]:80", "[fe80::1]:80", "[fd00::1]:80", "[ff02::1]:80",
		"[::ffff:127.0.0.1]:80", "[::ffff:10.0.0.1]:80", "[::ffff:8.8.8.8]:80", "[::127.0.0.1]:80", "[64:ff9b::7f00:1]:80", "[2002:7f00:1::]:80", "[2001:0:1::1]:80",
	} {
		p := ap(s)
		for _, v6 := range []bool{false, true} {
			w := newWorld(t, general(v6))
			family := byte(1)
			if v6 {
				family = 2
			}
			c := w.issue(inUsername, "p1", w.now, time.Hour)
			w.want(w.ask(alice, c, stun.Allocate, transport(17), small(stun.AttrRequestedAddressFamily, family)), 0)
			to := peer(p)
			if p.Addr().Is6() {
				to = raw6(p.Addr(), p.Port())
			}
			code := 403
			if p.Addr().Is6() != v6 {
				code = 443
			}
			r := w.ask(alice, c, stun.CreatePermission, to)
			// A permission has no port: that of the own relay address and of the listener's stands
			// for other ports. The packet is refused below.
			portless := p == listener || p.Addr() == relayIP
			if r.code != code && !(portless && r.code == 0) {
				t.Errorf("CreatePermission %s, IPv6 relay %v: %v, want %d", s, v6, r, code)
			}
			if r = w.ask(alice, c, stun.ChannelBind, channelNumber(0x4000), to); r.code != code {
				t.Errorf("ChannelBind %s, IPv6 relay %v: %v, want %d", s, v6, r, code)
			}
			if code == 403 {
				var pe *PeerError
				if !errors.As(w.last.Detail, &pe) || pe.Peer != p {
					t.Errorf("%s: the log would not name the peer: %v", s, w.last.Detail)
				}
			}
			if _, _, ok := w.toPeer(alice, w.build(stun.Send, stun.Indication, to, data("x"))); ok {
				t.Errorf("Send to %s, IPv6 relay %v: relayed", s, v6)
			}
			if _, ok := w.fromPeer(alice, p, "x"); ok {
				t.Errorf("from %s, IPv6 relay %v: relayed", s, v6)
			}
			if _, _, ok := w.toPeer(alice, stun.AppendChannelData(nil, 0x4000, []byte("x"))); ok {
				t.Errorf("ChannelData to %s, IPv6 relay %v: relayed", s, v6)
			}
		}
	}
}

// TestOwnRelay: two clients of this server reach each other, while both are allocated and permitted.
func TestOwnRelay(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.Peers = peerpolicy.General().WithRelays(relayIP) })
	a, b := w.issue(inUsername, "p1", w.now, time.Hour), w.issue(inUsername, "p2", w.now, time.Hour)
	w.want(w.ask(alice, a, stun.Allocate, transport(17)), 0)
	w.want(w.ask(mallory, b, stun.Allocate, transport(17)), 0)
	ra, rb := w.core.tuples[alice].halves[0].Relayed, w.core.tuples[mallory].halves[0].Relayed
	w.want(w.ask(alice, a, stun.ChannelBind, channelNumber(0x4000), peer(rb)), 0)
	if p, _, ok := w.toPeer(alice, stun.AppendChannelData(nil, 0x4000, []byte("x"))); !ok || p != rb {
		t.Error("not relayed to the neighbour's relay")
	}
	if _, ok := w.fromPeer(mallory, ra, "x"); ok {
		t.Error("the neighbour gets it without a permission")
	}
	w.want(w.ask(mallory, b, stun.CreatePermission, peer(ra)), 0)
	if _, ok := w.fromPeer(mallory, ra, "x"); !ok {
		t.Error("the neighbour does not get it in spite of a permission")
	}
	w.want(w.ask(mallory, b, stun.Refresh, lifetime(0)), 0)
	if _, _, ok := w.toPeer(alice, stun.AppendChannelData(nil, 0x4000, []byte("x"))); ok {
		t.Error("relayed to a relay address that is no longer allocated")
	}
}

// TestHairpin: the same behind a one-to-one NAT, where the packet goes to the socket's own address
// and comes from one, and both clients see the relayed addresses. The inside address is nobody's peer.
func TestHairpin(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.Peers = peerpolicy.General().WithRelays(relayIP, insideIP) })
	w.behindNAT = true
	a, b := w.issue(inUsername, "p1", w.now, time.Hour), w.issue(inUsername, "p2", w.now, time.Hour)
	w.want(w.ask(alice, a, stun.Allocate, transport(17)), 0)
	w.want(w.ask(mallory, b, stun.Allocate, transport(17)), 0)
	from, to := w.core.tuples[alice].halves[0].Socket, w.core.tuples[mallory].halves[0].Socket
	w.want(w.ask(alice, a, stun.ChannelBind, channelNumber(0x4000), peer(to.Local)), 403)
	w.want(w.ask(alice, a, stun.ChannelBind, channelNumber(0x4000), peer(to.Relayed)), 0)
	if p, _, ok := w.toPeer(alice, stun.AppendChannelData(nil, 0x4000, []byte("x"))); !ok || p != to.Local {
		t.Errorf("leaves for %v, want %v", p, to.Local)
	}
	w.want(w.ask(mallory, b, stun.CreatePermission, peer(from.Relayed)), 0)
	m, ok := w.fromPeer(mallory, from.Local, "x")
	if !ok {
		t.Fatalf("not delivered: %v", w.out.Cause)
	}
	msg, err := stun.Parse(m)
	if err != nil {
		t.Fatal(err)
	}
	v, _ := msg.Get(stun.AttrXORPeerAddress)
	if p, err := stun.ParseXORAddress(v, msg.TransactionID()); err != nil || p != from.Relayed {
		t.Errorf("comes from %v, want %v", p, from.Relayed)
	}
	if _, ok := w.fromPeer(mallory, netip.AddrPortFrom(insideIP, 22), "x"); ok {
		t.Error("the inside address is a peer")
	}
	w.want(w.ask(alice, a, stun.Refresh, lifetime(0)), 0)
	if _, ok := w.fromPeer(mallory, from.Local, "x"); ok || len(w.core.locals) != 1 {
		t.Errorf("an ended allocation is a peer; %d addresses", len(w.core.locals))
	}
	w.invariants()
}

func TestCreatePermissionRules(t *testing.T) {
	w := newWorld(t)
	c := w.issue(inUsername, "p1", w.now, time.Hour)
	w.want(w.ask(alice, c, stun.Allocate, transport(17)), 0)
	a := w.core.tuples[alice]
	for _, x := range []struct {
		name string
		adds []add
		code int
	}{
		{"no address", nil, 400},
		{"malformed", []add{attr(stun.AttrXORPeerAddress, []byte{0, 1, 2})}, 400},
		{"one good, one malformed", []add{peer(gateway), attr(stun.AttrXORPeerAddress, make([]byte, 8))}, 400},
		{"one good, one refused", []add{peer(gateway), peer(stranger)}, 403},
		{"one good, one of the other family", []add{peer(gateway), peer(ap("[2001:db8::1]:1"))}, 443},
	} {
		w.want(w.ask(alice, c, stun.CreatePermission, x.adds...), x.code)
		if len(a.permissions) != 0 {
			t.Fatalf("%s: installed %v: it is all or none", x.name, a.permissions)
		}
	}
	w.want(w.ask(alice, c, stun.CreatePermission, peer(netip.AddrPortFrom(gateway.Addr(), 0))), 0) // the port is ignored
	w.want(w.ask(alice, c, stun.CreatePermission, peer(gateway), peer(gateway)), 0)
	if len(a.permissions) != 1 {
		t.Errorf("%d permissions", len(a.permissions))
	}
}

// TestPermissionLasts300s, not a moment longer, and only its own requests renew it.
func TestPermissionLasts300s(t *testing.T) {
	w := newWorld(t)
	c := w.issue(inUsername, "p1", w.now, time.Hour)
	w.call(alice, c)
	send := func() bool {
		_, _, ok := w.toPeer(alice, w.build(stun.Send, stun.Indication, peer(gateway), data("x")))
		return ok
	}
	for range 9 { // relaying renews nothing
		w.now = w.now.Add(30 * time.Second)
		if !send() {
			t.Fatal("Send refused within 300 s")
		}
		if _, ok := w.fromPeer(alice, gateway, "x"); !ok {
			t.Fatal("Data refused within 300 s")
		}
	}
	w.now = w.now.Add(30*time.Second - time.Nanosecond)
	if !send() {
		t.Error("Send refused just before 300 s")
	}
	w.now = w.now.Add(time.Nanosecond)
	if _, in := w.fromPeer(alice, gateway, "x"); send() || in {
		t.Error("relayed at 300 s")
	}
	w.want(w.ask(alice, c, stun.Refresh), 0) // renews the allocation alone
	if send() {
		t.Error("Refresh renewed the permission")
	}
	w.want(w.ask(alice, c, stun.CreatePermission, peer(gateway)), 0)
	if !send() {
		t.Error("CreatePermission did not renew it")
	}
}

func TestChannels(t *testing.T) {
	w := newWorld(t)
	c := w.issue(inUsername, "p1", w.now, time.Hour)
	w.want(w.ask(alice, c, stun.Allocate, transport(17), lifetime(3600)), 0)
	other := netip.AddrPortFrom(gateway.Addr(), 40001)
	bind := func(n uint16, p netip.AddrPort) response {
		return w.ask(alice, c, stun.ChannelBind, channelNumber(n), peer(p))
	}
	for _, x := range []struct {
		name string
		adds []add
		code int
	}{
		{"no number", []add{peer(gateway)}, 400},
		{"no peer", []add{channelNumber(0x4000)}, 400},
		{"number below", []add{channelNumber(0x3fff), peer(gateway)}, 400},
		{"number above (RFC 5766's range)", []add{channelNumber(0x5000), peer(gateway)}, 400},
		{"port 0", []add{channelNumber(0x4000), peer(netip.AddrPortFrom(gateway.Addr(), 0))}, 400},
		{"malformed peer", []add{channelNumber(0x4000), attr(stun.AttrXORPeerAddress, make([]byte, 7))}, 400},
		{"refused port", []add{channelNumber(0x4000), peer(netip.AddrPortFrom(gateway.Addr(), 22))}, 403},
		{"other family", []add{channelNumber(0x4000), peer(ap("[2001:db8::1]:1"))}, 443},
	} {
		w.want(w.ask(alice, c, stun.ChannelBind, x.adds...), x.code)
		if a := w.core.tuples[alice]; len(a.channels) != 0 || len(a.permissions) != 0 {
			t.Fatalf("%s left state", x.name)
		}
	}
	w.want(bind(0x4000, gateway), 0)
	w.want(bind(0x4000, gateway), 0) // renewed
	w.want(bind(0x4000, other), 400) // one number, one peer
	w.want(bind(0x4001, gateway), 400)
	w.want(bind(0x4fff, other), 0)
	w.invariants()

	channel := func() bool {
		p, s, ok := w.toPeer(alice, stun.AppendChannelData(nil, 0x4000, []byte("hello")))
		return ok && p == gateway && s == "hello"
	}
	arrives := func() string {
		b, ok := w.fromPeer(alice, gateway, "world")
		switch {
		case !ok:
			return "nothing"
		case bytes.Equal(b, stun.AppendChannelData(nil, 0x4000, []byte("world"))):
			return "ChannelData"
		}
		m, err := stun.Parse(b)
		if err != nil {
			t.Fatal(err)
		}
		v, _ := m.Get(stun.AttrXORPeerAddress)
		from, err := stun.ParseXORAddress(v, m.TransactionID())
		d, _ := m.Get(stun.AttrData)
		if err != nil || from != gateway || string(d) != "world" || m.Type() != stun.NewType(stun.Data, stun.Indication) {
			t.Fatalf("%v %v %q", err, from, d)
		}
		return "Data"
	}
	if !channel() || arrives() != "ChannelData" {
		t.Errorf("bound channel: out %v, in %v", channel(), arrives())
	}
	// The permission ends at 300 s and takes the channel's traffic with it; the binding stays.
	w.now = w.now.Add(300 * time.Second)
	if channel() || arrives() != "nothing" {
		t.Error("a channel relays without a permission")
	}
	w.want(w.ask(alice, c, stun.CreatePermission, peer(gateway)), 0)
	if !channel() || arrives() != "ChannelData" {
		t.Error("permission renewed, but the channel does not relay")
	}
	w.now = w.now.Add(299 * time.Second)
	w.want(w.ask(alice, c, stun.CreatePermission, peer(gateway)), 0)
	// The binding ends at 600 s.
	w.now = w.now.Add(time.Second)
	if channel() || arrives() != "Data" {
		t.Errorf("expired channel: out %v, in %v", channel(), arrives())
	}
	// 300 s of quarantine: only the same pair again.
	w.want(bind(0x4000, other), 400)
	w.want(bind(0x4001, gateway), 400)
	w.want(bind(0x4fff, other), 0)
	w.now = w.now.Add(299 * time.Second)
	w.want(bind(0x4001, gateway), 400)
	w.now = w.now.Add(time.Second)
	w.want(bind(0x4001, gateway), 0)
	w.want(bind(0x4000, netip.AddrPortFrom(gateway.Addr(), 40002)), 0)
	w.invariants()
}

func TestBoundsPerAllocation(t *testing.T) {
	w := newWorld(t, func(c *Config) {
		c.MaxPermissions, c.MaxChannels = 3, 2
		c.Peers = peerpolicy.IMS(peerpolicy.Range{Prefix: netip.MustParsePrefix("10.0.0.0/8")})
	})
	c := w.issue(inUsername, "p1", w.now, time.Hour)
	w.want(w.ask(alice, c, stun.Allocate, transport(17), lifetime(3600)), 0)
	p := func(i int) netip.AddrPort { return ap(fmt.Sprintf("10.0.0.%d:5000", i)) }
	w.want(w.ask(alice, c, stun.CreatePermission, peer(p(1)), peer(p(2)), peer(p(3)), peer(p(4))), 508)
	w.want(w.ask(alice, c, stun.CreatePermission, peer(p(1)), peer(p(2))), 0)
	w.want(w.ask(alice, c, stun.ChannelBind, channelNumber(0x4000), peer(p(3))), 0)
	w.want(w.ask(alice, c, stun.ChannelBind, channelNumber(0x4001), peer(p(4))), 508) // no permission left
	w.want(w.ask(alice, c, stun.ChannelBind, channelNumber(0x4001), peer(p(1))), 0)
	w.want(w.ask(alice, c, stun.ChannelBind, channelNumber(0x4002), peer(p(2))), 508) // no channel left
	w.want(w.ask(alice, c, stun.CreatePermission, peer(p(1)), peer(p(3))), 0)         // renewing fits
	w.invariants()
	w.now = w.now.Add(300 * time.Second)
	w.want(w.ask(alice, c, stun.CreatePermission, peer(p(5)), peer(p(6)), peer(p(7))), 0) // the old ones have made room
	w.invariants()
}

func TestSendRules(t *testing.T) {
	w := newWorld(t)
	c := w.issue(inUsername, "p1", w.now, time.Hour)
	w.call(alice, c)
	for _, x := range []struct {
		name  string
		adds  []add
		cause Cause
	}{
		{"good", []add{peer(gateway), data("x")}, CauseNone},
		{"no bytes", []add{peer(gateway), data("")}, CauseNone},
		{"no DATA", []add{peer(gateway)}, CauseBadRequest},
		{"no peer", []add{data("x")}, CauseBadRequest},
		{"malformed peer", []add{attr(stun.AttrXORPeerAddress, nil), data("x")}, CauseBadRequest},
		{"not permitted", []add{peer(stranger), data("x")}, CauseNoPermission},
		{"port outside of the policy", []add{peer(netip.AddrPortFrom(gateway.Addr(), 22)), data("x")}, CausePeer},
		{"DONT-FRAGMENT", []add{peer(gateway), data("x"), attr(stun.AttrDontFragment, nil)}, CauseUnknownAttribute},
	} {
		_, _, ok := w.toPeer(alice, w.build(stun.Send, stun.Indication, x.adds...))
		if w.out.Cause != x.cause || ok != (x.cause == CauseNone) {
			t.Errorf("%s: relayed %v, cause %v", x.name, ok, w.out.Cause)
		}
	}
	if _, _, ok := w.toPeer(mallory, w.build(stun.Send, stun.Indication, peer(gateway), data("x"))); ok || w.out.Cause != CauseNoAllocation {
		t.Errorf("without an allocation: %v", w.out.Cause)
	}
	if _, _, ok := w.toPeer(mallory, stun.AppendChannelData(nil, 0x4000, []byte("x"))); ok || w.out.Cause != CauseNoAllocation {
		t.Errorf("ChannelData without an allocation: %v", w.out.Cause)
	}
	if _, _, ok := w.toPeer(alice, stun.AppendChannelData(nil, 0x4000, []byte("x"))); ok || w.out.Cause != CauseChannel {
		t.Errorf("unbound channel: %v", w.out.Cause)
	}
	// In: a permitted address on a port outside of the policy, and one not permitted.
	if _, ok := w.fromPeer(alice, netip.AddrPortFrom(gateway.Addr(), 22), "x"); ok || w.out.Cause != CausePeer {
		t.Errorf("from port 22: %v", w.out.Cause)
	}
	if _, ok := w.fromPeer(alice, stranger, "x"); ok || w.out.Cause != CauseNoPermission {
		t.Errorf("from a stranger: %v", w.out.Cause)
	}
	huge := make([]byte, Headroom+65507+Tailroom)
	w.core.FromPeer(w.now, w.core.tuples[alice].id, gateway, huge, 65507, &w.out)
	if w.out.Cause != CauseTooLong || len(w.out.Actions) != 0 {
		t.Errorf("65507 bytes: %v", w.out.Cause)
	}
	w.want(w.ask(alice, c, stun.ChannelBind, channelNumber(0x4000), peer(gateway)), 0)
	w.core.FromPeer(w.now, w.core.tuples[alice].id, gateway, huge, 65507, &w.out)
	if w.out.Cause != CauseTooLong {
		t.Errorf("65507 bytes on a channel: %v", w.out.Cause)
	}
	st := w.core.Stats()
	if st.Traffic.SentPackets != 2 || st.Traffic.SentBytes != 1 || st.Refused[CausePeer] != 2 {
		t.Errorf("traffic %+v", st.Traffic)
	}
}

// TestBehindIntegrity: attributes behind MESSAGE-INTEGRITY are obeyed by nobody (coturn ab762f33;
// pion v5.0.12 grants a LIFETIME there).
func TestBehindIntegrity(t *testing.T) {
	w := newWorld(t)
	c := w.issue(inUsername, "p1", w.now, time.Hour)
	b := w.sign(w.build(stun.Allocate, stun.Request, transport(17)), c, w.nonce(alice))
	if r := w.packet(alice, stun.AppendUint32(b, stun.AttrLifetime, 3600)); r.lifetime() != 600 {
		t.Errorf("LIFETIME behind the integrity of Allocate: %v", r)
	}
	b = w.sign(w.build(stun.Refresh, stun.Request), c, w.nonce(alice))
	if r := w.packet(alice, stun.AppendUint32(b, stun.AttrLifetime, 0)); r.lifetime() != 600 || w.core.Allocations() != 1 {
		t.Errorf("LIFETIME 0 behind the integrity of Refresh: %v", r)
	}
	b = w.sign(w.build(stun.CreatePermission, stun.Request), c, w.nonce(alice))
	if r := w.packet(alice, peer(gateway)(b)); r.code != 400 || len(w.core.tuples[alice].permissions) != 0 {
		t.Errorf("XOR-PEER-ADDRESS behind the integrity: %v", r)
	}
	b = w.sign(w.build(stun.Refresh, stun.Request), c, w.nonce(alice))
	if r := w.packet(alice, stun.AppendAttr(b, 0x7f00, nil)); r.code != 0 {
		t.Errorf("unknown attribute behind the integrity: %v", r)
	}
}

// TestCutRequests cuts an authenticated Allocate of each shape at every byte, as it is and with a
// length field that agrees: no state, and never more than an error.
func TestCutRequests(t *testing.T) {
	for _, s := range []shape{inUsername, inToken} {
		w := newWorld(t, func(c *Config) { c.ReplyBurst = 10000 })
		whole := stun.AppendFingerprint(w.sign(w.build(stun.Allocate, stun.Request, transport(17), lifetime(600)), w.issue(s, "p1", w.now, time.Hour), w.nonce(alice)))
		withoutFP := len(whole) - 8
		for n := range len(whole) {
			if r := w.packet(alice, whole[:n]); r.ok {
				t.Errorf("%v: %d of %d bytes are answered: %v", s, n, len(whole), r)
			}
			if n < stun.HeaderSize || n == withoutFP { // there, the whole request without its fingerprint remains
				continue
			}
			c := bytes.Clone(whole[:n])
			c[2], c[3] = byte((n-20)>>8), byte(n-20)
			if r := w.packet(alice, c); r.ok && r.code != 400 && r.code != 401 {
				t.Errorf("%v: %d bytes with their length: %v", s, n, r)
			}
		}
		if w.core.Allocations() != 0 || len(w.core.tenants[0].owners) != 0 || w.port != 49152 {
			t.Fatalf("%v: a cut request made state", s)
		}
		if r := w.packet(alice, whole); !r.ok || r.code != 0 {
			t.Errorf("%v: the whole request: %v", s, r)
		}
	}
}

// TestFlippedRequests flips each bit of an authenticated Allocate: none makes an allocation.
func TestFlippedRequests(t *testing.T) {
	for _, s := range []shape{inUsername, inToken} {
		w := newWorld(t, func(c *Config) { c.ReplyBurst = 100000 })
		whole := w.sign(w.build(stun.Allocate, stun.Request, transport(17)), w.issue(s, "p1", w.now, time.Hour), w.nonce(alice))
		for i := range len(whole) * 8 {
			b := bytes.Clone(whole)
			b[i/8] ^= 1 << (i % 8)
			w.packet(alice, b)
			if w.core.Allocations() != 0 {
				t.Fatalf("%v: byte %d bit %d flipped, and accepted", s, i/8, i%8)
			}
		}
	}
}

// TestDontFragment: where DF can be chosen, Allocate says so with success, and each Send chooses.
func TestDontFragment(t *testing.T) {
	df := attr(stun.AttrDontFragment, nil)
	w := newWorld(t, func(c *Config) { c.DontFragment = true })
	c := w.issue(inUsername, "p1", w.now, time.Hour)
	w.want(w.ask(alice, c, stun.Allocate, transport(17), df), 0)
	w.want(w.ask(alice, c, stun.ChannelBind, channelNumber(0x4000), peer(gateway)), 0)
	for _, x := range []struct {
		packet []byte
		whole  bool
	}{
		{w.build(stun.Send, stun.Indication, peer(gateway), data("x"), df), true},
		{w.build(stun.Send, stun.Indication, peer(gateway), data("x")), false},
		{stun.AppendChannelData(nil, 0x4000, []byte("x")), false},
	} {
		if _, _, ok := w.toPeer(alice, x.packet); !ok || w.out.Actions[0].Whole != x.whole {
			t.Errorf("%x: relayed %v, whole %v", x.packet, ok, !x.whole)
		}
	}
}
