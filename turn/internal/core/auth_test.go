package core

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"wicgate/internal/keyring"
	"wicgate/internal/token"
	"wicgate/internal/wire/stun"
)

func TestChallenge(t *testing.T) {
	w := newWorld(t)
	for _, c := range []struct {
		name string
		b    []byte
		most float64 // bytes back for each byte in
	}{
		{"20 bytes, the shortest", w.build(stun.Allocate, stun.Request), 4.4},
		{"28 bytes, Chromium's", w.build(stun.Allocate, stun.Request, transport(17)), 3.2},
		{"44 bytes, Firefox's", stun.AppendFingerprint(w.build(stun.Allocate, stun.Request, transport(17), lifetime(3600))), 2.2},
	} {
		r := w.packet(alice, c.b)
		if r.code != 401 || string(r.get(stun.AttrRealm)) != realm || string(r.get(stun.AttrThirdPartyAuthorization)) != realm || len(r.get(stun.AttrNonce)) != nonceLen {
			t.Fatalf("%s: %v", c.name, r)
		}
		if _, reason, err := stun.ParseErrorCode(r.get(stun.AttrErrorCode)); err != nil || len(reason) != 0 {
			t.Errorf("%s: reason %q, %v", c.name, reason, err)
		}
		if r.get(stun.AttrSoftware) != nil || r.msg.HasIntegrity() || r.msg.HasFingerprint() != strings.Contains(c.name, "Firefox") {
			t.Errorf("%s: SOFTWARE, integrity or an unasked fingerprint", c.name)
		}
		if got := float64(r.size) / float64(len(c.b)); got > c.most {
			t.Errorf("%s: %d bytes answered with %d, factor %.2f, want at most %.1f", c.name, len(c.b), r.size, got, c.most)
		}
		if w.last.Cause != CauseChallenge || w.core.Allocations() != 0 {
			t.Errorf("%s: cause %v, %d allocations", c.name, w.last.Cause, w.core.Allocations())
		}
	}
	for _, m := range []stun.Method{stun.Refresh, stun.CreatePermission, stun.ChannelBind} {
		if r := w.packet(alice, w.build(m, stun.Request)); r.code != 401 { // never 437: that would be an oracle
			t.Errorf("bare %v: %v", m, r)
		}
	}
}

func TestBothShapes(t *testing.T) {
	for _, s := range []shape{inUsername, inToken} {
		for _, sha := range []bool{false, true} {
			t.Run(fmt.Sprintf("%v-sha256=%v", s, sha), func(t *testing.T) {
				w := newWorld(t)
				c := w.issue(s, "p1", w.now, time.Hour)
				c.sha256 = sha
				r := w.want(w.ask(alice, c, stun.Allocate, transport(17)), 0)
				relayed, err := stun.ParseXORAddress(r.get(stun.AttrXORRelayedAddress), r.msg.TransactionID())
				if err != nil || relayed.Addr() != relayIP || relayed.Port() != w.port {
					t.Errorf("XOR-RELAYED-ADDRESS %v, %v", relayed, err)
				}
				mapped, err := stun.ParseXORAddress(r.get(stun.AttrXORMappedAddress), r.msg.TransactionID())
				if err != nil || mapped != alice.Client || r.lifetime() != 600 {
					t.Errorf("XOR-MAPPED-ADDRESS %v, %v, %v", mapped, err, r)
				}
				if r.msg.HasIntegrity() == sha || r.msg.HasIntegritySHA256() != sha {
					t.Error("the answer's integrity is not of the request's kind")
				}
				if s == inToken {
					c.realm = "" // RFC 7635 §4 does without
				}
				w.want(w.ask(alice, c, stun.CreatePermission, peer(gateway)), 0)
				w.want(w.ask(alice, c, stun.ChannelBind, channelNumber(0x4000), peer(gateway)), 0)
				w.want(w.ask(alice, c, stun.Refresh, lifetime(1200)), 0)
				if p, s, ok := w.toPeer(alice, stun.AppendChannelData(nil, 0x4000, []byte("hi"))); !ok || p != gateway || s != "hi" {
					t.Errorf("ChannelData leaves as %v %q %v", p, s, ok)
				}
				w.invariants()
				w.want(w.ask(alice, c, stun.Refresh, lifetime(0)), 0)
				if w.core.Allocations() != 0 || len(w.ended) != 1 || w.ended[0].Cause != EndDeleted || w.ended[0].Owner != "p1" || w.ended[0].Traffic.SentBytes != 2 {
					t.Errorf("after Refresh with 0: %d allocations, ended %+v", w.core.Allocations(), w.ended)
				}
				w.invariants()
			})
		}
	}
}

// TestOne401: what is wrong with a credential cannot be told from the answer.
func TestOne401(t *testing.T) {
	for _, s := range []shape{inUsername, inToken} {
		w := newWorld(t)
		good := w.issue(s, "p1", w.now, time.Hour)
		foreign := keyring.New(realm)
		badMAC := good
		badMAC.key = bytes.Repeat([]byte{1}, 20)
		otherRealm := good
		otherRealm.realm = "elsewhere"
		if s == inUsername {
			k := stun.MD5.Key([]byte(good.username), []byte("elsewhere"), []byte("x"))
			otherRealm.key = k[:]
		}
		// A token that is altered in its last byte, and one made for another server.
		k, f, _, _ := w.ring.Key(w.ring.KID("p1"))
		mac := token.NewMACKey()
		payload := token.Payload{MACKey: mac, Timestamp: token.NewTimestamp(w.now), Lifetime: time.Hour}
		tok, err := token.Seal(f, k, realm, payload)
		if err != nil {
			t.Fatal(err)
		}
		whole := bytes.Clone(tok)
		tok[len(tok)-1] ^= 1
		elsewhere, err := token.Seal(f, k, "turn2.ims.test", payload)
		if err != nil {
			t.Fatal(err)
		}
		var first []byte
		for _, c := range []struct {
			name  string
			c     cred
			cause Cause
		}{
			{"bad MAC", badMAC, CauseBadMAC},
			{"unknown kid", w.issueUnder(foreign, s, foreign.KID("p1"), w.now, time.Hour), CauseUnknownKey},
			{"bad tag", shaped(s, realm, w.ring.KID("p1"), tok, mac), CauseBadToken},
			{"other server", shaped(s, realm, w.ring.KID("p1"), elsewhere, mac), CauseBadToken},
			{"other pseudonym's token", shaped(s, realm, w.ring.KID("p2"), whole, mac), CauseBadToken},
			{"cut token", shaped(s, realm, w.ring.KID("p1"), tok[:40], mac), CauseBadToken},
			{"expired", w.issue(s, "p1", w.now.Add(-time.Hour-6*time.Second), time.Hour), CauseExpiredToken},
			{"future", w.issue(s, "p1", w.now.Add(6*time.Second), time.Hour), CauseFutureToken},
			{"other realm", otherRealm, CauseBadMAC},
			{"plain user", cred{username: "alice", realm: realm, key: []byte("k")}, CauseUsername},
			{"o1 and rubbish", cred{username: "o1.a.b.%%%", realm: realm, key: []byte("k")}, CauseUsername},
			{"padded base64", cred{username: good.username + "=", realm: realm, key: []byte("k")}, CauseUsername},
		} {
			if s == inToken && c.cause == CauseUsername {
				continue
			}
			for _, m := range []stun.Method{stun.Allocate, stun.Refresh} {
				n := w.nonce(alice)
				r := w.want(w.askNonce(alice, c.c, n, m, transport(17)), 401)
				if w.last.Cause != c.cause {
					t.Errorf("%v %s: cause %q, want %q", s, c.name, w.last.Cause, c.cause)
				}
				// All but type, transaction id and nonce must be the same bytes.
				b := bytes.Clone(r.msg.Raw())
				clear(b[:2])
				clear(b[8:20])
				b = bytes.Replace(b, r.get(stun.AttrNonce), make([]byte, nonceLen), 1)
				if first == nil {
					first = b
				} else if !bytes.Equal(b, first) {
					t.Errorf("%v %s: answer differs:\n%x\n%x", s, c.name, b, first)
				}
			}
		}
		if w.core.Allocations() != 0 || len(w.core.tenants[0].owners) != 0 {
			t.Errorf("%v: %d allocations after refusals", s, w.core.Allocations())
		}
	}
}

func TestIncomplete(t *testing.T) {
	w := newWorld(t)
	key := []byte("k")
	for name, b := range map[string][]byte{
		"no USERNAME": w.build(stun.Allocate, stun.Request, attr(stun.AttrRealm, []byte(realm)), attr(stun.AttrNonce, []byte("n"))),
		"no REALM":    w.build(stun.Allocate, stun.Request, attr(stun.AttrUsername, []byte("u")), attr(stun.AttrNonce, []byte("n"))),
		"no NONCE":    w.build(stun.Allocate, stun.Request, attr(stun.AttrUsername, []byte("u")), attr(stun.AttrRealm, []byte(realm))),
	} {
		r := w.packet(alice, w.h.AppendIntegrity(b, key))
		if r.code != 400 || r.get(stun.AttrNonce) != nil || r.get(stun.AttrRealm) != nil {
			t.Errorf("%s: %v", name, r)
		}
	}
}

func TestNonce(t *testing.T) {
	w := newWorld(t)
	c := w.issue(inUsername, "p1", w.now, 10*time.Hour)
	n := w.nonce(alice)
	if len(n) > 128 {
		t.Errorf("nonce of %d bytes: Firefox takes 128", len(n))
	}
	if bytes.Equal(n, w.nonce(mallory)) {
		t.Error("two sources get the same nonce")
	}
	port, tcp := alice, alice
	port.Client = netip.AddrPortFrom(alice.Client.Addr(), alice.Client.Port()+1)
	tcp.Transport = 6
	for name, tuple := range map[string]Tuple{"another address": mallory, "another port": port, "another transport": tcp} {
		r := w.want(w.askNonce(tuple, c, n, stun.Allocate, transport(17)), 438)
		if r.get(stun.AttrNonce) == nil || string(r.get(stun.AttrRealm)) != realm {
			t.Errorf("%s: 438 without REALM and NONCE", name)
		}
	}
	flipped := bytes.Clone(n)
	for i := range flipped {
		flipped[i] = n[i] ^ 1
		w.want(w.askNonce(alice, c, flipped, stun.Allocate, transport(17)), 438)
		flipped[i] = n[i]
	}
	for _, bad := range [][]byte{{}, n[:15], append(bytes.Clone(n), 'A'), bytes.Repeat([]byte{'A'}, 16), bytes.Repeat([]byte{'='}, 16)} {
		w.want(w.askNonce(alice, c, bad, stun.Allocate, transport(17)), 438)
	}
	ahead, _ := base64.RawURLEncoding.DecodeString(string(w.core.makeNonce(nil, w.now.Add(time.Minute), alice, 0)))
	w.want(w.askNonce(alice, c, []byte(base64.RawURLEncoding.EncodeToString(ahead)), stun.Allocate, transport(17)), 438)
	if w.core.Allocations() != 0 {
		t.Fatal("a bad nonce made state")
	}

	// Another listener of this node, a sibling and a restart take it; so does a ring that has a newer secret.
	sibling := New(w.core.cfg)
	if _, ok := sibling.checkNonce(n, w.now, alice); !ok {
		t.Error("a sibling with the same ring refuses the nonce")
	}
	if err := w.ring.Rotate(w.now, 48*time.Hour); err != nil {
		t.Fatal(err)
	}
	w.now = w.now.Add(time.Hour)
	w.want(w.askNonce(alice, c, n, stun.Allocate, transport(17)), 0)
	w.now = w.now.Add(time.Second)
	r := w.want(w.askNonce(alice, c, n, stun.Refresh), 438)
	w.want(w.askNonce(alice, c, bytes.Clone(r.get(stun.AttrNonce)), stun.Refresh), 0)
	if _, ok := New(Config{Tenant: Tenant{Name: realm, Keys: keyring.New(realm)}}).checkNonce(w.nonce(alice), w.now, alice); ok {
		t.Error("a stranger's ring takes the nonce")
	}
}

func TestBudget(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.ReplyBurst, c.ReplyRate = 5, 2 })
	c := w.issue(inUsername, "p1", w.now, time.Hour)
	n := w.nonce(alice) // draws 1
	bare := w.build(stun.Allocate, stun.Request, transport(17))
	answered := 0
	other := alice
	for i := range 100 {
		other.Client = netip.AddrPortFrom(alice.Client.Addr(), uint16(10000+i)) // without port
		if r := w.packet(other, bare); r.ok {
			answered++
		}
	}
	if answered != 4 {
		t.Errorf("%d of 100 spoofed requests answered, want 4", answered)
	}
	if w.last.Cause != CauseBudget {
		t.Errorf("cause %v", w.last.Cause)
	}
	// Binding, 400 and 438 draw on it too.
	for name, b := range map[string][]byte{
		"Binding":     w.build(stun.Binding, stun.Request),
		"incomplete":  w.h.AppendIntegrity(w.build(stun.Allocate, stun.Request), c.key),
		"stale nonce": w.sign(w.build(stun.Allocate, stun.Request, transport(17)), c, []byte("stale")),
	} {
		if r := w.packet(alice, b); r.ok {
			t.Errorf("%s is answered beyond the budget: %v", name, r)
		}
	}
	// With a valid nonce it is left alone, whatever else is wrong.
	for range 10 {
		bad := c
		bad.key = []byte("wrong")
		w.want(w.askNonce(alice, bad, n, stun.Allocate, transport(17)), 401)
	}
	w.want(w.askNonce(alice, c, n, stun.Allocate, transport(17)), 0)
	// Another source has its own; an IPv6 source is a /64.
	if r := w.packet(mallory, bare); !r.ok {
		t.Error("another source is not answered")
	}
	v6 := 0
	for i := range 20 {
		s := Tuple{Client: netip.AddrPortFrom(netip.MustParseAddr(fmt.Sprintf("2001:db8:0:1::%x", i+1)), 1), Transport: 17}
		if w.packet(s, bare).ok {
			v6++
		}
	}
	if v6 != 5 {
		t.Errorf("a /64 got %d replies, want 5", v6)
	}
	w.now = w.now.Add(time.Second)
	answered = 0
	for range 10 {
		if w.packet(alice, bare).ok {
			answered++
		}
	}
	if answered != 2 {
		t.Errorf("%d replies a second later, want 2", answered)
	}
}

// TestBudgetMemory: a flood from many sources neither grows the budget nor locks out the next one.
func TestBudgetMemory(t *testing.T) {
	b := NewBudget(3, 1)
	now := time.Now()
	for i := range 100_000 {
		b.Take(now.Add(time.Duration(i)*time.Microsecond), netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}))
	}
	if len(b.sets) != budgetSets {
		t.Errorf("%d sets", len(b.sets))
	}
	if !b.Take(now.Add(time.Second), netip.MustParseAddr("192.0.2.1")) {
		t.Error("a new source is refused")
	}
	if n := testing.AllocsPerRun(100, func() { b.Take(now, netip.MustParseAddr("2001:db8::1")) }); n != 0 {
		t.Errorf("Take makes %v allocations", n)
	}
}

func TestNoAccessToken(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.NoAccessToken = true })
	r := w.packet(alice, w.build(stun.Allocate, stun.Request, transport(17)))
	if r.code != 401 || r.get(stun.AttrThirdPartyAuthorization) != nil {
		t.Errorf("challenge: %v, offers third-party authorization", r)
	}
	r = w.ask(alice, w.issue(inToken, "p1", w.now, time.Hour), stun.Allocate, transport(17))
	if r.code != 420 || !bytes.Equal(r.get(stun.AttrUnknownAttributes), []byte{0, 0x1b}) {
		t.Errorf("ACCESS-TOKEN: %v", r)
	}
	w.want(w.ask(alice, w.issue(inUsername, "p1", w.now, time.Hour), stun.Allocate, transport(17)), 0)

	// Another tenant's, by kid on a listener of all, where the first takes them.
	blue := keyring.New("blue.example")
	w = newWorld(t, func(c *Config) {
		other := c.Tenant
		other.Name, other.Keys, other.NoAccessToken = "blue.example", blue, true
		c.Others = []Tenant{other}
	})
	w.want(w.ask(alice, w.issueFor("blue.example", realm, blue, inToken, blue.KID("p1"), w.now, time.Hour), stun.Allocate, transport(17)), 401)
	w.want(w.ask(alice, w.issueFor("blue.example", realm, blue, inUsername, blue.KID("p1"), w.now, time.Hour), stun.Allocate, transport(17)), 0)
}

func TestUnknownAttributes(t *testing.T) {
	w := newWorld(t)
	c := w.issue(inUsername, "p1", w.now, time.Hour)
	w.call(alice, c)
	for _, m := range []stun.Method{stun.Allocate, stun.Refresh, stun.CreatePermission, stun.ChannelBind} {
		r := w.want(w.ask(alice, c, m, transport(17), attr(stun.AttrDontFragment, nil), attr(0x7f00, []byte("x")), attr(0xff00, []byte("x"))), 420)
		if !bytes.Equal(r.get(stun.AttrUnknownAttributes), []byte{0x7f, 0, 0, 0x1a}) {
			t.Errorf("%v: UNKNOWN-ATTRIBUTES %x", m, r.get(stun.AttrUnknownAttributes))
		}
	}
	// The clause checks authentication first, so a stranger learns nothing of what we know.
	if r := w.packet(mallory, w.build(stun.Allocate, stun.Request, attr(0x7f00, nil))); r.code != 401 {
		t.Errorf("unauthenticated: %v", r)
	}
	var many []add
	for i := range 200 {
		many = append(many, attr(stun.Attr(0x7000+i), nil))
	}
	if r := w.want(w.ask(alice, c, stun.Refresh, many...), 420); len(r.get(stun.AttrUnknownAttributes)) != 32 {
		t.Errorf("200 unknown attributes: %d named", len(r.get(stun.AttrUnknownAttributes))/2)
	}
	if r := w.packet(alice, w.build(stun.Binding, stun.Request, attr(0x0003, []byte{0, 0, 0, 4}))); r.code != 420 { // CHANGE-REQUEST
		t.Errorf("Binding with CHANGE-REQUEST: %v", r)
	}
}

func TestBinding(t *testing.T) {
	w := newWorld(t)
	r := w.packet(alice, stun.AppendFingerprint(w.build(stun.Binding, stun.Request, attr(stun.AttrUsername, []byte("a:b")), attr(stun.AttrPriority, make([]byte, 4)))))
	a, err := stun.ParseXORAddress(r.get(stun.AttrXORMappedAddress), r.msg.TransactionID())
	if err != nil || a != alice.Client || !r.msg.FingerprintOK() {
		t.Errorf("Binding: %v %v %v", r, a, err)
	}
	bad := stun.AppendFingerprint(w.build(stun.Binding, stun.Request))
	bad[len(bad)-1] ^= 1
	if r := w.packet(alice, bad); r.ok || w.last.Cause != CauseMalformed {
		t.Errorf("wrong fingerprint: %v, %v", r, w.last.Cause)
	}
	for name, b := range map[string][]byte{
		"Binding indication": w.build(stun.Binding, stun.Indication),
		"Allocate success":   w.build(stun.Allocate, stun.Success),
		"Connect":            w.build(0x00a, stun.Request),
		"Data indication":    w.build(stun.Data, stun.Indication),
		"DTLS":               {22, 0xfe, 0xfd, 0},
		"nothing":            nil,
		"RTP":                {0x80, 0, 0, 0},
	} {
		if r := w.packet(alice, b); r.ok {
			t.Errorf("%s is answered: %v", name, r)
		}
	}
}
