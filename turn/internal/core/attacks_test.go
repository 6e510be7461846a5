package core

import (
	"bytes"
	"crypto/rand"
	"encoding/base32"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"wicgate/internal/keyring"
	"wicgate/internal/peerpolicy"
	"wicgate/internal/secret"
	"wicgate/internal/token"
	"wicgate/internal/wire/stun"
)

// Each TestAttack plays one class of attack that TURN servers have been open to, and sees it fail
// here. The identifiers in the comments name the class.

// source returns the i-th of many clients on UDP, each on an address of its own.
func source(i int) Tuple {
	ip := netip.AddrFrom4([4]byte{11, byte(i >> 16), byte(i >> 8), byte(i)})
	return Tuple{Client: netip.AddrPortFrom(ip, uint16(1024+i%60000)), Transport: stun.ProtocolUDP}
}

// inner are addresses that no peer may have, and forms in which they have been smuggled past filters.
var (
	inner = []netip.Addr{
		netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.255.255.254"), netip.MustParseAddr("0.0.0.0"), netip.MustParseAddr("0.1.2.3"),
		netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("172.31.255.1"), netip.MustParseAddr("192.168.1.1"), netip.MustParseAddr("100.64.0.1"),
		netip.MustParseAddr("169.254.169.254"), netip.MustParseAddr("224.0.0.1"), netip.MustParseAddr("255.255.255.255"),
	}
	inner6 = []netip.Addr{
		netip.MustParseAddr("::"), netip.MustParseAddr("::1"), netip.MustParseAddr("fe80::1"), netip.MustParseAddr("fec0::1"),
		netip.MustParseAddr("fc00::1"), netip.MustParseAddr("fdff:ffff::1"), netip.MustParseAddr("ff02::1"), netip.MustParseAddr("2001:db8::1"),
	}
	disguises = map[string]func(v4 [4]byte) [16]byte{
		"IPv4-mapped": func(a [4]byte) [16]byte {
			return [16]byte{10: 0xff, 11: 0xff, 12: a[0], 13: a[1], 14: a[2], 15: a[3]}
		},
		"IPv4-compatible": func(a [4]byte) [16]byte { return [16]byte{12: a[0], 13: a[1], 14: a[2], 15: a[3]} },
		"IPv4-translated": func(a [4]byte) [16]byte {
			return [16]byte{8: 0xff, 9: 0xff, 12: a[0], 13: a[1], 14: a[2], 15: a[3]}
		},
		"NAT64": func(a [4]byte) [16]byte {
			return [16]byte{0, 0x64, 0xff, 0x9b, 12: a[0], 13: a[1], 14: a[2], 15: a[3]}
		},
		"NAT64 local": func(a [4]byte) [16]byte {
			return [16]byte{0, 0x64, 0xff, 0x9b, 0, 1, 12: a[0], 13: a[1], 14: a[2], 15: a[3]}
		},
		"6to4": func(a [4]byte) [16]byte { return [16]byte{0x20, 0x02, a[0], a[1], a[2], a[3], 15: 1} },
		"Teredo server": func(a [4]byte) [16]byte {
			return [16]byte{0x20, 0x01, 0, 0, a[0], a[1], a[2], a[3], 12: 0xf7, 13: 0xf7, 14: 0xf7, 15: 0xf7}
		},
		"Teredo client": func(a [4]byte) [16]byte {
			return [16]byte{0x20, 0x01, 0, 0, 8, 8, 8, 8, 12: ^a[0], 13: ^a[1], 14: ^a[2], 15: ^a[3]}
		},
		"ISATAP": func(a [4]byte) [16]byte {
			return [16]byte{0x26, 0x06, 0x47, 0, 10: 0x5e, 11: 0xfe, 12: a[0], 13: a[1], 14: a[2], 15: a[3]}
		},
		"ISATAP universal": func(a [4]byte) [16]byte {
			return [16]byte{0x26, 0x06, 0x47, 0, 8: 2, 10: 0x5e, 11: 0xfe, 12: a[0], 13: a[1], 14: a[2], 15: a[3]}
		},
	}
)

// TestAttackForbiddenPeers: loopback, zero, unspecified, private and own addresses, plain and in every
// disguise, at all five doors. A permission for each is planted besides, as if the policy had been
// another when it was made: each door asks the policy itself (CVE-2018-4058, CVE-2020-26262,
// CVE-2026-27624, b057acbe, 6c13608c; pion#570, livekit#4505).
func TestAttackForbiddenPeers(t *testing.T) {
	ownUDP, ownTCP := ap("8.8.4.4:3478"), ap("8.8.4.4:443")
	ownUDP6, ownTCP6 := ap("[2606:4700::9]:3478"), ap("[2606:4700::9]:443")
	type target struct {
		what string
		addr netip.AddrPort
	}
	var targets []target
	for _, a := range inner {
		targets = append(targets, target{"plain", netip.AddrPortFrom(a, 80)})
		for what, f := range disguises {
			targets = append(targets, target{what, netip.AddrPortFrom(netip.AddrFrom16(f(a.As4())), 80)})
		}
	}
	for _, a := range inner6 {
		targets = append(targets, target{"plain", netip.AddrPortFrom(a, 80)})
	}
	for _, own := range []netip.AddrPort{ownUDP, ownTCP} {
		targets = append(targets, target{"own listener", own})
		for what, f := range disguises {
			targets = append(targets, target{"own listener, " + what, netip.AddrPortFrom(netip.AddrFrom16(f(own.Addr().As4())), own.Port())})
		}
	}
	targets = append(targets, target{"own listener", ownUDP6}, target{"own listener", ownTCP6})

	for name, policy := range map[string]peerpolicy.Policy{
		"general": peerpolicy.General(),
		"ims":     peerpolicy.IMS(peerpolicy.Range{Prefix: netip.MustParsePrefix("192.0.2.10/32"), MinPort: 40000, MaxPort: 40999}),
		"none":    {},
	} {
		for _, tcp := range []bool{false, true} {
			w := newWorld(t, func(c *Config) {
				c.Peers = policy.WithListeners(ownUDP, ownTCP, ownUDP6, ownTCP6).WithRelays(relayIP, relayIP6)
				c.Families, c.TCPRelay, c.MaxPermissions = bothFamilies, true, 1000
			})
			c := w.issue(inUsername, "p1", w.now, time.Hour)
			client, proto := alice, byte(stun.ProtocolUDP)
			if tcp {
				client, proto = aliceTCP, stun.ProtocolTCP
			}
			w.want(w.ask(client, c, stun.Allocate, transport(proto), small(stun.AttrAdditionalAddressFamily, stun.FamilyIPv6)), 0)
			a, nonce := w.core.tuples[client], w.nonce(client)
			for _, x := range targets {
				p, to := x.addr, peer(x.addr)
				if p.Addr().Is6() {
					to = raw6(p.Addr(), p.Port())
				}
				door := func(what string, r response) {
					t.Helper()
					if r.code != 403 {
						t.Errorf("%s, %s %v at %s: %v, want 403", name, x.what, p, what, r)
					}
				}
				// A permission has no port: for other ports of the listeners' addresses it may be had.
				own := x.what == "own listener"
				if r := w.askNonce(client, c, nonce, stun.CreatePermission, to); !own || r.code != 0 {
					door("CreatePermission", r)
				}
				if tcp {
					door("Connect", w.askNonce(client, c, nonce, stun.Connect, to))
				} else {
					door("ChannelBind", w.askNonce(client, c, nonce, stun.ChannelBind, channelNumber(0x4000), to))
				}
				if !own && a.permitted(p.Addr(), w.now) {
					t.Errorf("%s, %s %v: there is a permission", name, x.what, p)
				}
				a.permit(p.Addr(), w.now)
				a.channels = map[uint16]*channel{0x4001: {number: 0x4001, peer: p, expires: w.now.Add(time.Minute)}}
				if _, _, ok := w.toPeer(client, w.build(stun.Send, stun.Indication, to, data("x"))); ok {
					t.Errorf("%s, %s %v: Send relays", name, x.what, p)
				}
				if _, _, ok := w.toPeer(client, stun.AppendChannelData(nil, 0x4001, []byte("x"))); ok {
					t.Errorf("%s, %s %v: ChannelData relays", name, x.what, p)
				}
				if _, ok := w.fromPeer(client, p, "x"); ok {
					t.Errorf("%s, %s %v: a packet from there is relayed", name, x.what, p)
				}
				w.core.Accepted(w.now, a.id, p, "in", &w.out)
				if w.find(ToClient) != nil || w.find(CloseConn) == nil || len(w.core.conns) != 0 {
					t.Errorf("%s, %s %v: a connection from there is taken", name, x.what, p)
				}
				clear(a.permissions)
				a.channels = nil
			}
		}
	}
}

// padding returns the padding bytes of all attributes of a message, those behind the integrity too.
func padding(m []byte) (out []byte) {
	for at := stun.HeaderSize; at < len(m); {
		size := int(binary.BigEndian.Uint16(m[at+2:]))
		next := at + 4 + (size+3)&^3
		out = append(out, m[at+4+size:next]...)
		at = next
	}
	return out
}

// TestAttackPaddingLeaks: whatever a reply's buffer held before, no byte of it is sent. The buffers are
// full of 0xAA here (CVE-2020-4067).
func TestAttackPaddingLeaks(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.ReplyBurst = 1000 })
	c := w.issue(inUsername, "p1", w.now, time.Hour)
	padded := 0
	dirty := func() {
		for i := range w.out.scratch {
			w.out.scratch[i] = 0xAA
		}
	}
	clean := func(what string, m []byte) {
		t.Helper()
		p := padding(m)
		padded += len(p)
		if len(bytes.Trim(p, "\x00")) > 0 {
			t.Errorf("%s: padding %x in %x", what, p, m)
		}
	}
	nonce := w.nonce(alice)
	for what, b := range map[string][]byte{
		"401":      w.build(stun.Allocate, stun.Request, transport(17)),
		"438":      w.sign(w.build(stun.Allocate, stun.Request, transport(17)), c, []byte("stale")),
		"420 of 1": w.sign(w.build(stun.Allocate, stun.Request, attr(0x7f01, nil)), c, nonce),
		"420 of 3": w.build(stun.Binding, stun.Request, attr(0x7f01, nil), attr(0x7f02, nil), attr(0x7f03, nil)),
		"400":      w.sign(w.build(stun.Allocate, stun.Request), c, nonce),
		"437":      w.sign(w.build(stun.Refresh, stun.Request), c, nonce),
		"Binding":  w.build(stun.Binding, stun.Request),
		"success":  w.sign(w.build(stun.Allocate, stun.Request, transport(17)), c, nonce),
	} {
		dirty()
		r := w.packet(alice, b)
		if !r.ok {
			t.Errorf("%s: silence", what)
			continue
		}
		clean(what, r.msg.Raw())
	}
	// A packet of a peer is wrapped where it was received, behind another client's.
	w.want(w.ask(alice, c, stun.CreatePermission, peer(gateway)), 0)
	for n := range 9 {
		dirty()
		buf := bytes.Repeat([]byte{0xAA}, Headroom+n+Tailroom)
		w.core.FromPeer(w.now, w.core.tuples[alice].id, gateway, buf, n, &w.out)
		a := w.find(ToClient)
		if a == nil {
			t.Fatalf("%d bytes: not relayed", n)
		}
		clean(fmt.Sprintf("Data of %d bytes", n), a.Data)
	}
	if padded < 15 {
		t.Errorf("%d bytes of padding seen: this test no longer looks at any", padded)
	}
	// The same as bytes: a 401 whose REALM and NONCE are of 13 and 16 bytes.
	dirty()
	bare := stun.AppendByte(stun.AppendHeader(nil, stun.NewType(stun.Allocate, stun.Request), stun.TransactionID{1}), stun.AttrRequestedTransport, 17)
	r := w.packet(alice, bare)
	want := "01130044" + "2112a442" + "010000000000000000000000" +
		"00090004" + "00000401" +
		"0014000d" + hex.EncodeToString([]byte(realm)) + "000000" +
		"00150010" + hex.EncodeToString(r.get(stun.AttrNonce)) +
		"802e000d" + hex.EncodeToString([]byte(realm)) + "000000"
	if got := hex.EncodeToString(r.msg.Raw()); got != want {
		t.Errorf("401:\n%s, want\n%s", got, want)
	}
}

// balanced fails unless each bit of the samples is set in half of them, within six standard
// deviations, and no two are equal, where there are 64 bits or more of them.
func balanced(t *testing.T, what string, samples [][]byte) {
	t.Helper()
	seen := map[string]bool{}
	ones := make([]int, 8*len(samples[0]))
	for _, s := range samples {
		if seen[string(s)] && len(s) >= 8 {
			t.Errorf("%s: %x twice", what, s)
		}
		seen[string(s)] = true
		for i := range ones {
			ones[i] += int(s[i/8] >> (i % 8) & 1)
		}
	}
	n := float64(len(samples))
	for i, k := range ones {
		if math.Abs(float64(k)-n/2) > 6*math.Sqrt(n)/2 {
			t.Errorf("%s: bit %d is set in %d of %d", what, i, k, len(samples))
		}
	}
}

// TestAttackPredictable: what a nonce, a ticket, a reservation, a connection and an indication are named
// by has no pattern, and nothing of another client's nonce is seen in one's own (CVE-2025-69217).
func TestAttackPredictable(t *testing.T) {
	const n = 2000
	w := newWorld(t, func(c *Config) {
		c.Mobility, c.TCPRelay, c.ReplyBurst, c.MaxAllocations, c.Quota, c.QuotaTenant = true, true, 1<<30, 1<<20, 1<<20, 1<<20
	})
	c := w.issue(inUsername, "p1", w.now, 12*time.Hour)
	var nonces, tickets, reservations, conns, ids [][]byte
	for i := range n {
		from := source(i)
		nonce := w.nonce(from)
		macs := make([]byte, 12)
		if _, err := decodeNonce(macs, nonce); err != nil {
			t.Fatal(err)
		}
		nonces = append(nonces, macs[4:])
		r := w.want(w.askNonce(from, c, nonce, stun.Allocate, transport(17), attr(stun.AttrMobilityTicket, nil)), 0)
		ticket, err := base32.StdEncoding.WithPadding(base32.NoPadding).DecodeString(string(r.get(stun.AttrMobilityTicket)))
		if err != nil {
			t.Fatal(err)
		}
		tickets = append(tickets, ticket)
		w.want(w.askNonce(from, c, nonce, stun.CreatePermission, peer(gateway)), 0)
		m, ok := w.fromPeer(from, gateway, "x")
		if !ok {
			t.Fatal("not relayed")
		}
		ids = append(ids, bytes.Clone(m[8:20]))
		w.want(w.askNonce(from, c, nonce, stun.Refresh, lifetime(0)), 0)

		r = w.want(w.askNonce(from, c, nonce, stun.Allocate, transport(17), pair), 0)
		reservations = append(reservations, bytes.Clone(r.get(stun.AttrReservationToken)))
		w.want(w.askNonce(from, c, nonce, stun.Refresh, lifetime(0)), 0)
		w.core.EndAll(w.now, &w.out)

		from.Transport = stun.ProtocolTCP
		nonce = w.nonce(from)
		w.want(w.askNonce(from, c, nonce, stun.Allocate, transport(6)), 0)
		w.askNonce(from, c, nonce, stun.Connect, peer(gateway))
		id := w.find(Dial).Conn
		conns = append(conns, binary.BigEndian.AppendUint32(nil, uint32(id)))
		w.core.EndAll(w.now, &w.out)
	}
	balanced(t, "nonces", nonces)
	balanced(t, "tickets", tickets)
	balanced(t, "reservations", reservations)
	balanced(t, "connections", conns)
	balanced(t, "transaction ids", ids)
	// Another ring, with other secrets: the same client at the same time gets another nonce.
	if o := newWorld(t); bytes.Equal(o.core.makeNonce(nil, w.now, alice, 0), w.core.makeNonce(nil, w.now, alice, 0)) {
		t.Error("two servers make one nonce")
	}
}

// TestAttackAddressOfNonce: a nonce is of no use at any other address, port or transport, nor after an
// hour, nor with any bit of it changed; a right credential does not help.
func TestAttackAddressOfNonce(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.ReplyBurst = 10000 })
	c := w.issue(inUsername, "p1", w.now, 12*time.Hour)
	nonce := w.nonce(alice)
	port, tcp, addr := alice, alice, alice
	port.Client = netip.AddrPortFrom(alice.Client.Addr(), alice.Client.Port()+1)
	tcp.Transport = stun.ProtocolTCP
	addr.Client = netip.AddrPortFrom(alice.Client.Addr().Next(), alice.Client.Port())
	for what, from := range map[string]Tuple{"port": port, "transport": tcp, "address": addr} {
		if r := w.askNonce(from, c, nonce, stun.Allocate, transport(17)); r.code != 438 {
			t.Errorf("at another %s: %v", what, r)
		}
	}
	for i := range len(nonce) * 8 {
		bad := bytes.Clone(nonce)
		bad[i/8] ^= 1 << (i % 8)
		if r := w.askNonce(alice, c, bad, stun.Allocate, transport(17)); r.code != 438 {
			t.Errorf("bit %d changed: %v", i, r)
		}
	}
	w.now = w.now.Add(NonceLife + time.Second)
	if r := w.askNonce(alice, c, nonce, stun.Allocate, transport(17)); r.code != 438 {
		t.Errorf("after an hour: %v", r)
	}
	if w.core.Allocations() != 0 {
		t.Error("an allocation")
	}
}

// attributes are all that a server reads, and some that it does not know.
var attributes = []stun.Attr{
	stun.AttrUsername, stun.AttrRealm, stun.AttrNonce, stun.AttrAccessToken, stun.AttrLifetime, stun.AttrRequestedTransport, stun.AttrRequestedAddressFamily,
	stun.AttrAdditionalAddressFamily, stun.AttrEvenPort, stun.AttrReservationToken, stun.AttrChannelNumber, stun.AttrXORPeerAddress, stun.AttrData,
	stun.AttrUserhash, stun.AttrPasswordAlgorithm, stun.AttrPasswordAlgorithms, stun.AttrTransmitCounter, stun.AttrChangeRequest, stun.AttrResponsePort,
	stun.AttrPadding, stun.AttrMobilityTicket, stun.AttrConnectionID, stun.AttrMappedAddress, stun.AttrXORMappedAddress, stun.AttrXORRelayedAddress,
	stun.AttrErrorCode, stun.AttrUnknownAttributes, stun.AttrPriority, stun.AttrUseCandidate, stun.AttrMessageIntegrity, stun.AttrMessageIntegritySHA256,
	stun.AttrFingerprint, 0x001a, 0x7f01, 0xff01,
}

// TestAttackLengths: each attribute at each length, odd ones too, at an address of each alignment, with
// each method, authenticated and not, with and without an allocation; and with a length that runs past the
// end. There is an answer or silence, the tables agree, and only who has authenticated has anything
// (CVE-2026-40613).
func TestAttackLengths(t *testing.T) {
	w := newWorld(t, func(c *Config) {
		c.ReplyBurst, c.Mobility, c.TCPRelay, c.Families, c.MaxPermissions = 1<<30, true, true, bothFamilies, 1000
	})
	c := w.issue(inUsername, "p1", w.now, 12*time.Hour)
	w.call(alice, c)
	nonces := map[Tuple][]byte{alice: w.nonce(alice), mallory: w.nonce(mallory)}
	value := bytes.Repeat([]byte{0x01, 0xff, 0x80, 0x00, 0x7e}, 20)
	lengths := []int{64, 65, 66, 67, 99, 100}
	for n := range 42 {
		lengths = append(lengths, n)
	}
	buf := make([]byte, 2048)
	at := 0
	play := func(from Tuple, b []byte) response {
		at = (at + 1) % 8 // unaligned in memory
		n := copy(buf[at:], b)
		return w.packet(from, buf[at:at+n:at+n])
	}
	for _, typ := range attributes {
		for _, n := range lengths {
			for _, m := range []stun.Method{stun.Binding, stun.Allocate, stun.Refresh, stun.CreatePermission, stun.ChannelBind, stun.Send, stun.Connect, stun.ConnectionBind} {
				class := stun.Request
				if m == stun.Send {
					class = stun.Indication
				}
				odd := attr(typ, value[:n])
				bare := w.build(m, class, odd)
				before := len(w.core.ids)
				if r := play(mallory, bare); r.ok && r.code == 0 && m != stun.Binding {
					t.Fatalf("%v of %d bytes, bare %v: %v", typ, n, m, r)
				}
				long := bytes.Clone(bare)
				binary.BigEndian.PutUint16(long[stun.HeaderSize+2:], uint16(n+5))
				if r := play(mallory, long); r.ok {
					t.Fatalf("%v of %d bytes that says %d, bare %v: %v", typ, n, n+5, m, r)
				}
				if len(w.core.ids) != before {
					t.Fatalf("%v of %d bytes, bare %v: %d allocations, before %d", typ, n, m, len(w.core.ids), before)
				}
				for from, nonce := range nonces {
					play(from, w.sign(w.build(m, class, odd), c, nonce))
					play(from, w.sign(w.build(m, class, transport(17), channelNumber(0x4000), peer(gateway), odd), c, nonce))
				}
			}
			w.core.EndAll(w.now, &w.out)
			w.act(alice)
			w.want(w.askNonce(alice, c, nonces[alice], stun.Allocate, transport(17)), 0)
			w.invariants()
		}
	}
	w.sockets()
}

// TestAttackTokenNonceLength: a token whose nonce_length is anything from 0 to 65535 but 12 is refused
// as any bad one, whatever its own length (CVE-2026-43994, coturn#1932).
func TestAttackTokenNonceLength(t *testing.T) {
	w := newWorld(t)
	good := w.issue(inToken, "p1", w.now, time.Hour)
	nonce := w.nonce(alice)
	for n := range 1 << 16 {
		if n == 12 {
			continue
		}
		bad := good
		bad.token = bytes.Clone(good.token)
		binary.BigEndian.PutUint16(bad.token, uint16(n))
		if n%16 == 0 { // and as long as it says
			bad.token = append(bad.token, make([]byte, min(n, 60000))...)
		}
		if r := w.askNonce(alice, bad, nonce, stun.Allocate, transport(17)); r.code != 401 || r.mac {
			t.Fatalf("nonce_length %d: %v", n, r)
		}
	}
	for n := 0; n < 65000; n += 1 + n/37 {
		if n == len(good.token) {
			continue
		}
		bad := good
		bad.token = append(bytes.Clone(good.token), make([]byte, 65000)...)[:n]
		if r := w.askNonce(alice, bad, nonce, stun.Allocate, transport(17)); r.code != 401 || r.mac {
			t.Fatalf("token of %d bytes: %v", n, r)
		}
	}
	if w.core.Allocations() != 0 || len(w.core.tenants[0].owners) != 0 {
		t.Error("a bad token made state")
	}
	w.want(w.askNonce(alice, good, nonce, stun.Allocate, transport(17)), 0)
}

// TestAttackBehindIntegrity: what stands behind the integrity, where anybody on the way can write it, is
// obeyed by nobody: behind MESSAGE-INTEGRITY, behind MESSAGE-INTEGRITY-SHA256, and between them (ab762f33).
func TestAttackBehindIntegrity(t *testing.T) {
	for _, place := range []string{"behind SHA-1", "behind SHA-256", "between"} {
		w := newWorld(t, func(c *Config) { c.Mobility, c.Families = true, bothFamilies })
		c := w.issue(inUsername, "p1", w.now, time.Hour)
		n := w.nonce(alice)
		attack := func(m stun.Method, behind add, adds ...add) response {
			t.Helper()
			signer := c
			signer.sha256 = place == "behind SHA-256"
			b := behind(w.sign(w.build(m, stun.Request, adds...), signer, n))
			if place == "between" {
				b = w.h.AppendIntegritySHA256(b, c.key)
			}
			return w.packet(alice, b)
		}
		ok := func(what string, r response, code int) response {
			t.Helper()
			if r.code != code || !r.ok {
				t.Errorf("%s %s: %v, want %d", what, place, r, code)
			}
			return r
		}
		if r := ok("EVEN-PORT with R", attack(stun.Allocate, pair, transport(17)), 0); r.get(stun.AttrReservationToken) != nil {
			t.Error("a port is reserved")
		}
		w.want(w.askNonce(alice, c, n, stun.Refresh, lifetime(0)), 0)
		if r := ok("LIFETIME of Allocate", attack(stun.Allocate, lifetime(3600), transport(17)), 0); r.lifetime() != 600 {
			t.Errorf("%s: LIFETIME %d", place, r.lifetime())
		}
		if r := ok("LIFETIME 0", attack(stun.Refresh, lifetime(0)), 0); r.lifetime() != 600 || w.core.Allocations() != 1 {
			t.Errorf("%s: LIFETIME %d, %d allocations", place, r.lifetime(), w.core.Allocations())
		}
		ok("XOR-PEER-ADDRESS", attack(stun.CreatePermission, peer(gateway)), 400)
		ok("a second XOR-PEER-ADDRESS", attack(stun.CreatePermission, peer(netip.AddrPortFrom(stranger.Addr(), 1)), peer(gateway)), 0)
		if got := len(w.core.tuples[alice].permissions); got != 1 {
			t.Errorf("%s: %d permissions", place, got)
		}
		ok("CHANNEL-NUMBER", attack(stun.ChannelBind, channelNumber(0x4000), peer(gateway)), 400)
		ok("MOBILITY-TICKET", attack(stun.Refresh, attr(stun.AttrMobilityTicket, make([]byte, TicketSize))), 0)
		ok("REQUESTED-ADDRESS-FAMILY", attack(stun.Refresh, small(stun.AttrRequestedAddressFamily, stun.FamilyIPv6)), 0)
		ok("an unknown attribute", attack(stun.Refresh, attr(0x7f01, nil)), 0)
		for what, typ := range map[string]stun.Attr{"USERNAME": stun.AttrUsername, "REALM": stun.AttrRealm, "NONCE": stun.AttrNonce, "ACCESS-TOKEN": stun.AttrAccessToken} {
			ok(what, attack(stun.Refresh, attr(typ, []byte("somebody"))), 0)
		}
		// A whole credential there, and none before.
		b := w.h.AppendIntegrity(w.build(stun.Allocate, stun.Request, transport(17)), []byte("mine"))
		b = w.sign(b, c, n)
		ok("USERNAME, NONCE and REALM", w.packet(mallory, b), 400)
	}
}

// TestAttackEvenPort: no port is lost to EVEN-PORT in 100,000 allocations of every kind, not with R=0, R=1,
// a reservation that is redeemed, one that is left, an allocation that is refused, or a second socket that
// does not open (4adbd82e). That the ports themselves come back turn's TestAttackEvenPortSockets shows.
func TestAttackEvenPort(t *testing.T) {
	w := newWorld(t)
	c := w.issue(inUsername, "p1", w.now, 12*time.Hour)
	n := w.nonce(alice)
	kinds := []add{attr(stun.AttrEvenPort, []byte{0}), pair, attr(stun.AttrEvenPort, []byte{0x7f}), attr(stun.AttrEvenPort, nil), attr(stun.AttrEvenPort, []byte{0x80, 0})}
	cycles := 100_000
	if testing.Short() || raceDetector {
		cycles = 5000
	}
	for i := range cycles {
		if i%1000 == 999 {
			w.sleep(ReservationLifetime)
			n = w.nonce(alice)
			c = w.issue(inUsername, "p1", w.now, 12*time.Hour)
			w.sockets()
			if w.opened != w.closed {
				t.Fatalf("%d cycles: %d opened, %d closed", i, w.opened, w.closed)
			}
		}
		w.fails = 0
		if i%7 == 6 {
			w.fails = stun.FamilyIPv4
		}
		r := w.askNonce(alice, c, n, stun.Allocate, transport(17), kinds[i%len(kinds)])
		switch {
		case w.fails == 0 && i%5 < 3 && r.code != 0 && r.code != 486:
			t.Fatalf("cycle %d: %v", i, r)
		case r.code != 0:
			continue
		}
		if token := r.get(stun.AttrReservationToken); token != nil && i%2 == 0 {
			at := source(i)
			w.want(w.askNonce(at, c, w.core.makeNonce(nil, w.now, at, 0), stun.Allocate, transport(17), reserved(token)), 0)
			w.want(w.askNonce(at, c, w.core.makeNonce(nil, w.now, at, 0), stun.Refresh, lifetime(0)), 0)
		}
		w.want(w.askNonce(alice, c, n, stun.Refresh, lifetime(0)), 0)
		w.ended = w.ended[:0]
	}
}

// TestAttackMobility: a ticket is of no use to anybody but its allocation's owner, a flood of moves leaves
// nothing, and a move neither frees nor takes a place in the quota (a97f1924, 3c5b2615).
func TestAttackMobility(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.Mobility, c.Quota, c.ReplyBurst = true, 1, 1<<30 })
	c, thief := w.issue(inUsername, "p1", w.now, 12*time.Hour), w.issue(inUsername, "p2", w.now, 12*time.Hour)
	mobile := attr(stun.AttrMobilityTicket, nil)
	r := w.want(w.ask(alice, c, stun.Allocate, transport(17), mobile), 0)
	ticket := bytes.Clone(r.get(stun.AttrMobilityTicket))
	a := w.core.tuples[alice]
	size := func() [4]int {
		return [4]int{len(w.core.ids), len(w.core.tuples), len(w.core.tickets), len(w.core.queue)}
	}
	before := size()
	for i := range 5000 {
		from := source(i)
		n := w.nonce(from)
		var guess [TicketSize]byte
		rand.Read(guess[:])
		w.want(w.askNonce(from, thief, n, stun.Refresh, withTicket(guess[:])), 437)
		w.want(w.askNonce(from, thief, n, stun.Refresh, withTicket(ticket)), 441)
		if r := w.askNonce(from, thief, n, stun.Refresh, withTicket(ticket), lifetime(0)); r.code != 441 {
			t.Fatalf("somebody else's end: %v", r)
		}
		bad := c
		bad.key = []byte("guess")
		w.want(w.askNonce(from, bad, n, stun.Refresh, withTicket(ticket)), 401)
		w.packet(from, w.build(stun.Refresh, stun.Request, withTicket(ticket)))
	}
	if after := size(); after != before || w.core.tuples[alice] != a || a.mobile.next != (Tuple{}) {
		t.Errorf("allocations, tuples, tickets, queue: %v before the flood, %v after", before, after)
	}
	w.invariants()
	// Its Allocate again, from elsewhere, is no retransmission: the answer goes to who has asked.
	first := w.sign(stun.AppendByte(stun.AppendHeader(nil, stun.NewType(stun.Allocate, stun.Request), a.created.id), stun.AttrRequestedTransport, 17), c, w.nonce(bob))
	ticket = bytes.Clone(w.want(w.ask(bob, c, stun.Refresh, withTicket(ticket)), 0).get(stun.AttrMobilityTicket))
	if r := w.packet(bob, first); r.code != 437 || w.from != bob {
		t.Errorf("Allocate again on a new path: %v to %v", r, w.from)
	}
	// The owner moves often, and before data has shown any of the new paths.
	for i := range 1000 {
		from := source(i)
		n := w.nonce(from)
		ticket = bytes.Clone(w.want(w.askNonce(from, c, n, stun.Refresh, withTicket(ticket)), 0).get(stun.AttrMobilityTicket))
		if r := w.askNonce(from, c, n, stun.Allocate, transport(17), mobile); r.code != 437 {
			t.Fatalf("a second allocation on the new path: %v", r)
		}
		other := source(i + 1000)
		if r := w.ask(other, c, stun.Allocate, transport(17), mobile); r.code != 486 {
			t.Fatalf("a second allocation of a quota of one: %v", r)
		}
	}
	if got := size(); got != [4]int{1, 2, 2, 1} {
		t.Errorf("allocations, tuples, tickets, queue after 1000 moves: %v", got)
	}
	w.invariants()
	w.sleep(2 * time.Hour)
	if got := size(); got != [4]int{} {
		t.Errorf("allocations, tuples, tickets, queue at the end: %v", got)
	}
}

// TestAttackQuota: a quota is the pseudonym's, however many tokens it has, in whatever shape.
func TestAttackQuota(t *testing.T) {
	sec := secret.New([]byte("a secret shared with an edge"))
	w := newWorld(t, func(c *Config) { c.Quota, c.Secrets = 3, func() []secret.Bytes { return []secret.Bytes{sec} } })
	got := 0
	for i := range 60 {
		var c cred
		switch i % 3 {
		case 2:
			name := token.EphemeralUsername(w.now.Add(time.Hour+time.Duration(i)*time.Second), "p1")
			key := stun.MD5.Key([]byte(name), []byte(realm), token.EphemeralPassword(sec, name).Expose())
			c = cred{username: name, realm: realm, key: key}
		default:
			c = w.issue(shape(i%3), "p1", w.now, time.Hour)
		}
		switch r := w.ask(source(i), c, stun.Allocate, transport(17)); r.code {
		case 0:
			got++
		case 486:
		default:
			t.Fatalf("%v", r)
		}
	}
	if got != 3 {
		t.Errorf("%d allocations of one pseudonym, quota 3", got)
	}
	w.want(w.ask(alice, w.issue(inToken, "p2", w.now, time.Hour), stun.Allocate, transport(17)), 0)
}

// TestAttackWithoutCredentials: no method does anything without them or with a guess: Connect dials nobody,
// ConnectionBind joins nothing, nothing is permitted, refreshed or ended (pion 7a0272f).
func TestAttackWithoutCredentials(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.TCPRelay, c.Mobility, c.ReplyBurst = true, true, 1000 })
	c := w.issue(inUsername, "p1", w.now, time.Hour)
	w.want(w.ask(aliceTCP, c, stun.Allocate, transport(6)), 0)
	w.ask(aliceTCP, c, stun.Connect, peer(gateway))
	id := w.find(Dial).Conn
	w.core.Connected(w.now, id, "peer", &w.out)
	guess := c
	guess.key = []byte("guess")
	for _, m := range []stun.Method{stun.Allocate, stun.Refresh, stun.CreatePermission, stun.ChannelBind, stun.Connect, stun.ConnectionBind} {
		for _, from := range []Tuple{aliceTCP, dataTCP, mallory} {
			adds := []add{transport(6), lifetime(0), channelNumber(0x4000), peer(netip.AddrPortFrom(gateway.Addr(), 40001)), connection(id)}
			for what, r := range map[string]response{
				"bare": w.packet(from, w.build(m, stun.Request, adds...)),
				"with a guessed key": func() response {
					return w.ask(from, guess, m, adds...)
				}(),
			} {
				if r.code != 401 {
					t.Errorf("%v %s from %v: %v", m, what, from, r)
				}
			}
			for _, k := range []Kind{Open, Close, Dial, Splice, CloseConn, ToPeer} {
				if w.find(k) != nil {
					t.Errorf("%v from %v: an action of kind %d", m, from, k)
				}
			}
		}
	}
	if w.core.Allocations() != 1 || len(w.core.tuples[aliceTCP].permissions) != 0 || w.core.conns[id].bound {
		t.Error("state has changed")
	}
}

// TestAttackBadCredentials: whatever is wrong with a credential, and however odd its user name, the answer
// is one 401 of the same length without integrity: never 400, which browsers do not get over, and nothing
// that tells what was wrong. Only the MAC makes a difference for who guesses.
func TestAttackBadCredentials(t *testing.T) {
	w := newWorld(t, func(c *Config) {
		c.Secrets = func() []secret.Bytes { return []secret.Bytes{secret.New([]byte("a secret shared with an edge"))} }
	})
	good := w.issue(inUsername, "p1", w.now, time.Hour)
	stale := w.issue(inUsername, "p1", w.now.Add(-2*time.Hour), time.Hour)
	future := w.issue(inUsername, "p1", w.now.Add(time.Hour), time.Hour)
	ring := keyring.New(realm)
	foreign := w.issueUnder(ring, inUsername, ring.KID("p1"), w.now, time.Hour)
	names := map[string]string{
		"empty": "", "colon": "a:b", "colons": ":::", "ephemeral in the past": "1:p1", "ephemeral beyond": "99999999999999999999:p1", "negative": "-1:p1",
		"control characters": "a\x00b\r\nGET / HTTP/1.1\x1b[2J", "not UTF-8": "\xff\xfe", "line separator": "a\u2028b", "format": "%s%n%x", "SQL": "' OR 1=1 --",
		"o1 alone": "o1.", "o1 dots": "o1....", "o1 cut": good.username[:len(good.username)-1], "o1 longer": good.username + "A", "o1 padded": good.username + "=",
		"508": strings.Repeat("a", 508), "509": strings.Repeat("a", 509), "512": strings.Repeat("a", 512), "513": strings.Repeat("a", 513), "763": strings.Repeat("a", 763),
		"10000": strings.Repeat("o1.", 3333), "60000": strings.Repeat(":", 60000),
	}
	creds := map[string]cred{"stale": stale, "future": future, "foreign": foreign}
	for what, name := range names {
		c := good
		c.username = name
		creds[what] = c
	}
	for i := range 3 { // each part of the key
		c := good
		c.key = bytes.Clone(good.key)
		c.key[i*7] ^= 1
		creds[fmt.Sprint("key ", i)] = c
	}
	c := good
	c.realm = "other"
	creds["realm"] = c
	nonce, size := w.nonce(alice), 0
	for what, c := range creds {
		for _, m := range []stun.Method{stun.Allocate, stun.Refresh, stun.CreatePermission, stun.ChannelBind} {
			r := w.askNonce(alice, c, nonce, m, transport(17))
			if size == 0 {
				size = r.size
			}
			if r.code != 401 || r.mac || r.size != size || r.get(stun.AttrNonce) == nil || r.get(stun.AttrRealm) == nil {
				t.Errorf("%v with %s: %v, %d bytes", m, what, r, r.size)
			}
		}
	}
	if w.core.Allocations() != 0 {
		t.Error("an allocation")
	}
	w.want(w.askNonce(alice, good, nonce, stun.Allocate, transport(17)), 0)
}

// heapInUse returns the bytes in use after a collection.
func heapInUse() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// TestAttackMemory: 100,000 sources that send whatever needs no credential, and one that sends 100,000
// bad tokens, leave nothing (pion#361, coturn#1962, pre-authentication session tables). A byte for each
// source would be 100,000.
func TestAttackMemory(t *testing.T) {
	const sources, bound = 100_000, 64 << 10 // bytes
	w := newWorld(t, func(c *Config) { c.TCPRelay, c.Mobility = true, true })
	bad := w.issue(inToken, "p1", w.now, time.Hour)
	bad.token = bytes.Clone(bad.token)
	bad.token[20] ^= 1
	nonce := w.nonce(alice)
	packets := [][]byte{
		w.build(stun.Allocate, stun.Request, transport(17)), w.build(stun.Binding, stun.Request),
		w.build(stun.Send, stun.Indication, peer(gateway), data("x")), stun.AppendChannelData(nil, 0x4000, []byte("x")),
		w.build(stun.Refresh, stun.Request, withTicket(make([]byte, TicketSize))), w.build(stun.ConnectionBind, stun.Request, connection(7)),
		w.sign(w.build(stun.Allocate, stun.Request, transport(17)), bad, nonce), {0x40}, nil,
	}
	good := w.sign(w.build(stun.Allocate, stun.Request, transport(17)), bad, nonce)
	flood := func(n int) {
		for i := range n {
			for _, b := range packets {
				for _, transport := range []uint8{stun.ProtocolUDP, stun.ProtocolTCP} {
					from := source(i)
					from.Transport = transport
					w.core.FromClient(w.now, from, b, &w.out)
				}
			}
			w.core.FromClient(w.now, alice, good, &w.out)
		}
	}
	flood(1000) // what is made once
	before := heapInUse()
	n := sources
	if raceDetector {
		n /= 20
	}
	flood(n)
	if grown := heapInUse() - before; grown > bound {
		t.Errorf("%d bytes for %d sources, at most %d", grown, n, bound)
	}
	if len(w.core.ids)+len(w.core.tuples)+len(w.core.tickets)+len(w.core.conns)+len(w.core.waiting)+len(w.core.tenants[0].owners)+len(w.core.living) != 0 {
		t.Error("something is kept")
	}
	runtime.KeepAlive(w)
}

// TestAttackBudgetOfNonceHolders: whatever exhausts the budget of an address, those there who have a valid
// nonce never draw on it, and nothing that they send gives or takes.
func TestAttackBudgetOfNonceHolders(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.Quota = 10_000 })
	c := w.issue(inUsername, "p1", w.now, 12*time.Hour)
	holder := func(i int) Tuple {
		return Tuple{Client: netip.AddrPortFrom(alice.Client.Addr(), uint16(20000+i)), Transport: stun.ProtocolUDP}
	}
	var nonces [50][]byte
	for i := range nonces {
		nonces[i] = w.nonce(holder(i))
	}
	bare := w.build(stun.Allocate, stun.Request, transport(17))
	drain := func() {
		for i := range 1000 {
			w.core.FromClient(w.now, Tuple{Client: netip.AddrPortFrom(alice.Client.Addr(), uint16(30000+i)), Transport: stun.ProtocolUDP}, bare, &w.out)
		}
		if w.out.Cause != CauseBudget {
			t.Fatal("the budget is not spent")
		}
	}
	drain()
	held := level(w.core.budget, alice.Client.Addr())
	for i, n := range nonces {
		bad := c
		bad.key = []byte("guess")
		w.want(w.askNonce(holder(i), bad, n, stun.Allocate, transport(17)), 401)
		w.want(w.askNonce(holder(i), c, n, stun.Allocate, transport(17)), 0)
		w.want(w.askNonce(holder(i), c, n, stun.CreatePermission, peer(gateway)), 0)
		w.want(w.askNonce(holder(i), c, n, stun.Refresh), 0)
		w.want(w.askNonce(holder(i), c, n, stun.Refresh, attr(0x7f01, nil)), 420)
	}
	if got := level(w.core.budget, alice.Client.Addr()); got != held {
		t.Errorf("the budget was at %v and is at %v", held, got)
	}
	// On a connection neither a nonce nor the budget is needed.
	for i := range 50 {
		from := holder(1000 + i)
		from.Transport = stun.ProtocolTCP
		w.want(w.ask(from, c, stun.Allocate, transport(17)), 0)
	}
}

// TestAttackForgetful: what would have to be kept for each client is not: a Core that has seen nothing
// answers in the same way as one that has been flooded.
func TestAttackForgetful(t *testing.T) {
	w := newWorld(t)
	fresh := New(w.core.cfg)
	bare := w.build(stun.Allocate, stun.Request, transport(17))
	for i := range 1000 {
		w.core.FromClient(w.now, source(i), bare, &w.out)
	}
	var a, b Outbox
	w.core.FromClient(w.now, mallory, bare, &a)
	fresh.FromClient(w.now, mallory, bare, &b)
	if len(a.Actions) != 1 || len(b.Actions) != 1 || !bytes.Equal(a.Actions[0].Data, b.Actions[0].Data) {
		t.Error("the answers differ")
	}
}

func decodeNonce(dst, nonce []byte) (int, error) {
	if len(nonce) != nonceLen {
		return 0, errors.New("nonce of another length")
	}
	return base64.RawURLEncoding.Decode(dst, nonce)
}

// level returns what is left of a source's budget.
func level(b *Budget, source netip.Addr) float64 {
	for _, set := range b.sets {
		for _, e := range set {
			if e.source == source {
				return e.tokens
			}
		}
	}
	return math.NaN()
}
