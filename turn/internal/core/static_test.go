package core

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"wicgate/internal/keyring"
	"wicgate/internal/peerpolicy"
	"wicgate/internal/secret"
	"wicgate/internal/wire/stun"
)

var (
	bob   = Tuple{Client: netip.MustParseAddrPort("198.51.100.2:5000"), Transport: 17}
	carol = Tuple{Client: netip.MustParseAddrPort("198.51.100.3:5000"), Transport: 17}
	dave  = Tuple{Client: netip.MustParseAddrPort("198.51.100.4:5000"), Transport: 17}
)

// book is a Users.
type book struct {
	passwords map[string]string
	weak      bool // no keys by SHA-256
}

func (b *book) Key(username string, alg stun.Algorithm) (secret.Bytes, bool) {
	p, ok := b.passwords[username]
	if !ok || b.weak && alg == stun.SHA256 {
		return secret.Bytes{}, false
	}
	return secret.New(alg.Key([]byte(username), []byte(realm), []byte(p))), true
}

func (b *book) Userhash(h [sha256.Size]byte) (string, bool) {
	for name := range b.passwords {
		if stun.Userhash([]byte(name), []byte(realm)) == h {
			return name, true
		}
	}
	return "", false
}

func (b *book) SHA256() bool { return !b.weak }

func static(alg stun.Algorithm, name, password string) cred {
	return cred{username: name, realm: realm, key: alg.Key([]byte(name), []byte(realm), []byte(password)), sha256: alg == stun.SHA256}
}

// chosen adds what a client sends that has seen the offer.
func chosen(alg stun.Algorithm) add {
	return func(m []byte) []byte {
		return stun.AppendPasswordAlgorithm(stun.AppendAttr(m, stun.AttrPasswordAlgorithms, offer), alg)
	}
}

func TestStaticUsers(t *testing.T) {
	users := &book{passwords: map[string]string{"anna": "TheMatrIX", "ben": "secret"}}
	w := newWorld(t, func(c *Config) { c.Users = users; c.Policy = Strict })
	r := w.packet(alice, w.build(stun.Allocate, stun.Request, transport(17)))
	if got := r.get(stun.AttrPasswordAlgorithms); !bytes.Equal(got, []byte{0, 2, 0, 0, 0, 1, 0, 0}) {
		t.Errorf("PASSWORD-ALGORITHMS %x, want SHA-256 before MD5", got)
	}
	nonce := r.get(stun.AttrNonce)
	if f, ok := stun.ParseCookie(nonce); !ok || f != stun.PasswordAlgorithms|stun.UsernameAnonymity || !bytes.HasPrefix(nonce, []byte("obMatJos2wAAA")) {
		t.Errorf("nonce %q announces %x", nonce, f)
	}
	if len(nonce) > 127 {
		t.Errorf("nonce of %d bytes", len(nonce))
	}

	// A client that knows the offer, one that does not, and one that chooses the old way.
	w.want(w.ask(alice, static(stun.SHA256, "anna", "TheMatrIX"), stun.Allocate, transport(17), chosen(stun.SHA256)), 0)
	w.want(w.ask(bob, static(stun.MD5, "anna", "TheMatrIX"), stun.Allocate, transport(17)), 0)
	w.want(w.ask(carol, static(stun.MD5, "anna", "TheMatrIX"), stun.Allocate, transport(17), chosen(stun.MD5)), 0)
	w.want(w.ask(alice, static(stun.SHA256, "anna", "TheMatrIX"), stun.CreatePermission, peer(gateway), chosen(stun.SHA256)), 0)
	for _, a := range w.core.List(w.now, nil) {
		if a.Credential != KindStatic || !a.CredentialEnds.IsZero() || a.Pseudonym != "anna" {
			t.Errorf("listed as %+v", a)
		}
	}
	// No end of a credential, also under strict.
	w.sleep(599 * time.Second)
	w.want(w.ask(alice, static(stun.SHA256, "anna", "TheMatrIX"), stun.Refresh, chosen(stun.SHA256)), 0)

	// Wrong password, unknown user, other key: one and the same answer.
	for name, c := range map[string]cred{
		"password": static(stun.MD5, "ben", "TheMatrIX"), "unknown": static(stun.MD5, "carl", "secret"), "of SHA-256": {username: "ben", realm: realm, key: static(stun.SHA256, "ben", "secret").key},
	} {
		if r := w.ask(dave, c, stun.Allocate, transport(17)); r.code != 401 || r.mac || r.get(stun.AttrNonce) == nil {
			t.Errorf("%s: %v", name, r)
		}
	}

	// The bid-down guard: what the client gives back must be what was offered.
	weak := stun.AppendPasswordAlgorithms(make([]byte, stun.HeaderSize), stun.MD5)[stun.HeaderSize+4:]
	for name, adds := range map[string][]add{
		"list shortened":    {attr(stun.AttrPasswordAlgorithms, weak), attr(stun.AttrPasswordAlgorithm, []byte{0, 1, 0, 0})},
		"no choice":         {attr(stun.AttrPasswordAlgorithms, offer)},
		"no list":           {attr(stun.AttrPasswordAlgorithm, []byte{0, 2, 0, 0})},
		"unknown algorithm": {attr(stun.AttrPasswordAlgorithms, offer), attr(stun.AttrPasswordAlgorithm, []byte{0, 3, 0, 0})},
		"parameters":        {attr(stun.AttrPasswordAlgorithms, offer), attr(stun.AttrPasswordAlgorithm, []byte{0, 2, 0, 4, 1, 2, 3, 4})},
	} {
		if r := w.ask(dave, static(stun.MD5, "ben", "secret"), stun.Allocate, append(adds, transport(17))...); r.code != 400 || r.get(stun.AttrNonce) != nil {
			t.Errorf("%s: %v, want 400", name, r)
		}
	}
	// Nobody can take the cookie off, or set its bits anew.
	n := w.nonce(dave)
	for name, bad := range map[string][]byte{"cut off": n[stun.CookieSize:], "no features": append([]byte("obMatJos2AAAA"), n[stun.CookieSize:]...)} {
		if r := w.askNonce(dave, static(stun.MD5, "ben", "secret"), bad, stun.Allocate, transport(17)); r.code != 438 {
			t.Errorf("cookie %s: %v, want 438", name, r)
		}
	}

	// A user that is gone, or has another password, loses what is open; nobody else does.
	w.want(w.ask(dave, static(stun.MD5, "ben", "secret"), stun.Allocate, transport(17)), 0)
	users.passwords["anna"] = "another"
	if n := w.core.Recheck(w.now, &w.out); n != 3 {
		t.Errorf("%d allocations ended, want anna's 3", n)
	}
	w.act(alice)
	if w.core.Allocations() != 1 {
		t.Errorf("%d allocations left, want ben's", w.core.Allocations())
	}
	w.invariants()
}

// TestReconfigure: what has been allocated lives on, under the new settings; a user who is gone with all
// users does not.
func TestReconfigure(t *testing.T) {
	users := &book{passwords: map[string]string{"anna": "TheMatrIX"}}
	w := newWorld(t, func(c *Config) { c.Users = users })
	first := w.core.cfg.Tenant
	anna := static(stun.MD5, "anna", "TheMatrIX")
	w.call(alice, anna)
	token := w.issue(inUsername, "p1", w.now, time.Hour)
	w.call(bob, token)
	frame := w.build(stun.Send, stun.Indication, peer(gateway), data(strings.Repeat("x", 1000)))
	passes := func(want bool) {
		t.Helper()
		if _, _, ok := w.toPeer(alice, frame); ok != want {
			t.Fatalf("relayed: %v, want %v (%v)", ok, want, w.out.Cause)
		}
	}
	passes(true)

	// Rates, of allocations that are there.
	for name, limit := range map[string]func(*Tenant){
		"allocation": func(n *Tenant) { n.Rate = 12000 }, "pseudonym": func(n *Tenant) { n.RatePseudonym = 12000 }, "tenant": func(n *Tenant) { n.RateTenant = 12000 },
	} {
		next := first
		limit(&next)
		w.core.Reconfigure([]Tenant{next}, false)
		passes(true)
		passes(false)
		if w.out.Cause != CauseRate {
			t.Errorf("%s: %v", name, w.out.Cause)
		}
		w.core.Reconfigure([]Tenant{next}, false) // the same again gives no new bucket
		passes(false)
		w.core.Reconfigure([]Tenant{first}, false)
		for range 100 {
			passes(true)
		}
	}

	// Peers.
	next := first
	next.Peers = peerpolicy.IMS(peerpolicy.Range{Prefix: netip.PrefixFrom(stranger.Addr(), 32)})
	w.core.Reconfigure([]Tenant{next}, false)
	passes(false)
	if _, ok := w.fromPeer(alice, gateway, "x"); ok || w.out.Cause != CausePeer {
		t.Errorf("from a peer that is closed now: %v, %v", ok, w.out.Cause)
	}
	w.want(w.ask(alice, anna, stun.CreatePermission, peer(gateway)), 403)
	w.core.Reconfigure([]Tenant{first}, false)
	passes(true) // the permission has lived on

	// Quotas, and what happens at a credential's end.
	next = first
	next.Quota, next.Policy = 1, Strict
	w.core.Reconfigure([]Tenant{next}, false)
	w.want(w.ask(carol, w.issue(inUsername, "p1", w.now, time.Hour), stun.Allocate, transport(17)), 486)
	if got := w.want(w.ask(bob, token, stun.Refresh, lifetime(7200)), 0).lifetime(); got > 3600 {
		t.Errorf("under strict a Refresh gives %d s", got)
	}
	w.sleep(59 * time.Minute)
	w.want(w.ask(bob, token, stun.Refresh, lifetime(3600)), 0)
	w.sleep(2 * time.Minute)
	if w.core.Holds(bob) {
		t.Error("under strict an allocation outlives its token")
	}

	// Blind.
	w.core.Reconfigure([]Tenant{first}, true)
	w.core.Blind(true)
	if r := w.ask(carol, w.issue(inUsername, "p2", w.now, time.Hour), stun.Allocate, transport(17)); r.code == 0 {
		t.Error("blind and closed, and allocated")
	}

	// No users any more.
	w.core.Reconfigure([]Tenant{first}, false)
	w.want(w.ask(dave, anna, stun.Allocate, transport(17)), 0)
	next = first
	next.Users = nil
	w.core.Reconfigure([]Tenant{next}, false)
	w.invariants()
	if n := w.core.Recheck(w.now, &w.out); n != 1 {
		t.Errorf("%d allocations ended, want anna's", n)
	}
	w.act(Tuple{})
	w.invariants()
}

// TestNonceWithoutOffer: a nonce that does not announce what a tenant offers is stale for its users: with one of
// another tenant's, or of the time before there were any, who sits on the way would take the offer away.
func TestNonceWithoutOffer(t *testing.T) {
	w := newWorld(t, func(c *Config) {
		c.Others = []Tenant{{Name: "green.example", Keys: keyring.New("green.example"), Users: &book{passwords: map[string]string{"anna": "x"}}, Peers: c.Peers, Quota: 5, QuotaTenant: 10}}
	})
	green := alice
	green.Tenant = 2
	anna := static(stun.MD5, "anna", "x")
	anna.realm = "green.example"
	old := w.nonce(alice)
	w.want(w.askNonce(green, anna, old, stun.Allocate, transport(17)), 438)
	w.want(w.ask(green, anna, stun.Allocate, transport(17)), 0)
	// The other way round nothing is taken away.
	w.want(w.askNonce(bob, w.issue(inUsername, "p1", w.now, time.Hour), w.nonce(Tuple{Client: bob.Client, Transport: 17, Tenant: 2}), stun.Allocate, transport(17)), 0)

	next := w.core.cfg.Tenant
	next.Users = w.core.tenants[1].Users
	other := w.core.tenants[1].Tenant
	old = w.nonce(dave)
	w.core.Reconfigure([]Tenant{next, other}, false)
	w.want(w.askNonce(dave, static(stun.MD5, "anna", "x"), old, stun.Allocate, transport(17)), 438)
	// Nobody can guess what is behind a token, and 438 is a browser's end.
	w.want(w.askNonce(dave, w.issue(inUsername, "p1", w.now, time.Hour), old, stun.Allocate, transport(17)), 0)
}

// TestUserhash: a name that stays hidden (RFC 8489 §9.2.4, §14.4).
func TestUserhash(t *testing.T) {
	users := &book{passwords: map[string]string{"anna": "TheMatrIX"}}
	w := newWorld(t, func(c *Config) { c.Users = users })
	hidden := func(name string, m stun.Method, adds ...add) response {
		b := w.build(m, stun.Request, append(adds, chosen(stun.SHA256))...)
		h := stun.Userhash([]byte(name), []byte(realm))
		b = stun.AppendAttr(b, stun.AttrUserhash, h[:])
		b = stun.AppendText(b, stun.AttrRealm, realm)
		b = stun.AppendAttr(b, stun.AttrNonce, w.nonce(alice))
		return w.packet(alice, w.h.AppendIntegritySHA256(b, static(stun.SHA256, name, "TheMatrIX").key))
	}
	if r := hidden("anna", stun.Allocate, transport(17)); r.code != 0 || !r.msg.HasIntegritySHA256() {
		t.Errorf("USERHASH: %v", r)
	}
	if r := hidden("anna", stun.Refresh, lifetime(700)); r.code != 0 || r.lifetime() != 700 {
		t.Errorf("Refresh with USERHASH: %v", r)
	}
	if r := hidden("carl", stun.Refresh); r.code != 401 {
		t.Errorf("unknown USERHASH: %v", r)
	}
}

// TestWeakUsers: who has no key by SHA-256 is offered none.
func TestWeakUsers(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.Users = &book{passwords: map[string]string{"anna": "x"}, weak: true} })
	r := w.packet(alice, w.build(stun.Allocate, stun.Request, transport(17)))
	if f, ok := stun.ParseCookie(r.get(stun.AttrNonce)); !ok || f != stun.UsernameAnonymity || r.get(stun.AttrPasswordAlgorithms) != nil {
		t.Errorf("announced %x, offered %x", f, r.get(stun.AttrPasswordAlgorithms))
	}
	w.want(w.ask(alice, static(stun.MD5, "anna", "x"), stun.Allocate, transport(17)), 0)
}

func TestPushed(t *testing.T) {
	ends, pending, revoked := time.Time{}, true, false
	w := newWorld(t, func(c *Config) {
		c.Policy = Strict
		c.Pushed = func(username string) (Pushed, bool) {
			return Pushed{Password: secret.New([]byte("pw")), Pseudonym: "p1", Ends: ends, Pending: pending}, username == "x7"
		}
		c.Revoked = func(p string) bool { return revoked && p == "p1" }
	})
	ends = w.now.Add(90 * time.Second)
	// While it is being asked for there is no answer: a 401 would be the browser's last.
	if r := w.ask(alice, static(stun.MD5, "x7", "pw"), stun.Allocate, transport(17)); r.ok || w.last.Cause != CausePending {
		t.Errorf("pending: %v, %v", r, w.last.Cause)
	}
	pending, revoked = false, true
	if r := w.ask(alice, static(stun.MD5, "x7", "pw"), stun.Allocate, transport(17)); r.code != 401 || w.last.Cause != CauseRevoked {
		t.Errorf("revoked: %v, %v", r, w.last.Cause)
	}
	revoked = false
	w.want(w.ask(alice, static(stun.MD5, "x7", "pw"), stun.Allocate, transport(17)), 0)
	if l := w.core.List(w.now, nil); len(l) != 1 || l[0].Credential != KindPushed || l[0].Pseudonym != "p1" {
		t.Errorf("listed as %+v", l)
	}
	pending = true // what has an allocation needs nothing more
	w.want(w.ask(alice, static(stun.MD5, "x7", "pw"), stun.Refresh), 0)
	pending = false
	if r := w.ask(bob, static(stun.MD5, "x8", "pw"), stun.Allocate, transport(17)); r.code != 401 {
		t.Errorf("unknown: %v", r)
	}
	w.sleep(91 * time.Second)
	if r := w.ask(bob, static(stun.MD5, "x7", "pw"), stun.Allocate, transport(17)); r.code != 401 || w.core.Allocations() != 0 {
		t.Errorf("expired: %v, %d allocations", r, w.core.Allocations())
	}
}

// TestTenants: three names on one server.
func TestTenants(t *testing.T) {
	blue := keyring.New("blue.example")
	open := peerpolicy.IMS(peerpolicy.Range{Prefix: netip.PrefixFrom(gateway.Addr(), 32), MinPort: 1024, MaxPort: 65535})
	w := newWorld(t, func(c *Config) {
		c.Others = []Tenant{
			{Name: "blue.example", Keys: blue, Peers: open, Quota: 2, QuotaTenant: 3, GraceMax: time.Hour, Policy: CallGrace},
			{Name: "green.example", Keys: keyring.New("green.example"), Users: &book{passwords: map[string]string{"anna": "x"}}, Peers: open, Quota: 1, QuotaTenant: 10},
		}
	})
	at := func(tu Tuple, tenant uint16) Tuple { tu.Tenant = tenant; return tu }
	of := func(name string, ring *keyring.Ring, pseudonym, challenged string) cred {
		return w.issueFor(name, challenged, ring, inUsername, ring.KID(pseudonym), w.now, time.Hour)
	}
	// Each is challenged by its own name where the listener says so, by the first elsewhere.
	for tenant, want := range []string{realm, realm, "blue.example", "green.example"} {
		r := w.packet(at(dave, uint16(tenant)), w.build(stun.Allocate, stun.Request, transport(17)))
		if got := string(r.get(stun.AttrRealm)); got != want || string(r.get(stun.AttrThirdPartyAuthorization)) != want {
			t.Errorf("tenant %d: REALM %q, want %q", tenant, got, want)
		}
	}
	// By kid on a listener of all; by the listener's own.
	mine := of("blue.example", blue, "b1", realm)
	w.want(w.ask(alice, mine, stun.Allocate, transport(17)), 0)
	w.want(w.ask(at(bob, 2), of("blue.example", blue, "b1", "blue.example"), stun.Allocate, transport(17)), 0)
	// Its quotas are its own: of the pseudonym, then of the tenant.
	if r := w.ask(at(carol, 2), of("blue.example", blue, "b1", "blue.example"), stun.Allocate, transport(17)); r.code != 486 || !r.mac {
		t.Errorf("third of a pseudonym: %v, want 486", r)
	}
	w.want(w.ask(at(carol, 2), of("blue.example", blue, "b2", "blue.example"), stun.Allocate, transport(17)), 0)
	if r := w.ask(dave, of("blue.example", blue, "b3", realm), stun.Allocate, transport(17)); r.code != 508 {
		t.Errorf("fourth of the tenant: %v, want 508", r)
	}
	// And so are its peers: port 2000 is open to blue alone.
	other := netip.AddrPortFrom(gateway.Addr(), 2000)
	w.want(w.ask(alice, mine, stun.ChannelBind, channelNumber(0x4001), peer(other)), 0)
	firsts := w.issue(inUsername, "p1", w.now, time.Hour)
	w.want(w.ask(dave, firsts, stun.Allocate, transport(17)), 0)
	w.want(w.ask(dave, firsts, stun.ChannelBind, channelNumber(0x4001), peer(other)), 403)
	w.want(w.ask(dave, firsts, stun.Refresh, lifetime(0)), 0)

	// kid and listener must agree.
	if r := w.ask(at(dave, 3), of("blue.example", blue, "b4", "green.example"), stun.Allocate, transport(17)); r.code != 401 {
		t.Errorf("blue's token at green's listener: %v", r)
	}
	if r := w.ask(at(dave, 2), w.issue(inUsername, "p1", w.now, time.Hour), stun.Allocate, transport(17)); r.code != 401 {
		t.Errorf("the first's token at blue's listener: %v", r)
	}
	// Tokens are sealed for a name: the same key elsewhere opens nothing.
	if r := w.ask(at(dave, 2), of(realm, blue, "b4", "blue.example"), stun.Allocate, transport(17)); r.code != 401 {
		t.Errorf("a token of another name: %v", r)
	}
	// A user's name is of one tenant.
	g := cred{username: "anna", realm: "green.example", key: stun.MD5.Key([]byte("anna"), []byte(realm), []byte("x"))}
	if r := w.ask(at(dave, 2), g, stun.Allocate, transport(17)); r.code != 401 {
		t.Errorf("green's user at blue's listener: %v", r)
	}
	w.want(w.ask(at(dave, 3), g, stun.Allocate, transport(17)), 0)
	w.invariants()
}

// TestTenantOfListener: what is one tenant's cannot be used on another's listener, also where the allocation's
// own key is asked: not in a move, not by ConnectionBind.
func TestTenantOfListener(t *testing.T) {
	blue := keyring.New("blue.example")
	w := newWorld(t, func(c *Config) {
		c.Mobility, c.TCPRelay = true, true
		t := c.Tenant
		t.Name, t.Keys = "blue.example", blue
		c.Others = []Tenant{t}
	})
	at := func(tu Tuple, tenant uint16) Tuple { tu.Tenant = tenant; return tu }
	for _, s := range []shape{inUsername, inToken} {
		c := w.issueFor("blue.example", "blue.example", blue, s, blue.KID("b1"), w.now, time.Hour)
		ticket := bytes.Clone(w.want(w.ask(at(alice, 2), c, stun.Allocate, transport(17), withTicket(nil)), 0).get(stun.AttrMobilityTicket))
		w.want(w.ask(at(aliceTCP, 2), c, stun.Allocate, transport(6)), 0)
		if r := w.ask(at(aliceTCP, 2), c, stun.Connect, peer(gateway)); r.ok {
			t.Fatalf("Connect: %v", r)
		}
		id := w.find(Dial).Conn
		w.core.Connected(w.now, id, "peer", &w.out)

		// Its own key, and the REALM that it is challenged with there, or none.
		stray := c
		stray.token = nil
		for _, stray.realm = range []string{realm, "blue.example", ""} {
			if stray.realm == "" && s == inUsername {
				continue // 400
			}
			if r := w.ask(at(bob, 1), stray, stun.Refresh, withTicket(ticket)); r.code != 401 {
				t.Errorf("%v, REALM %q: a move to another's listener: %v", s, stray.realm, r)
			}
			if r := w.ask(at(dataTCP, 1), stray, stun.ConnectionBind, connection(id)); r.code != 401 {
				t.Errorf("%v, REALM %q: ConnectionBind on another's listener: %v", s, stray.realm, r)
			}
		}
		// On a listener of all it may.
		stray.realm = realm
		ticket = bytes.Clone(w.want(w.ask(bob, stray, stun.Refresh, withTicket(ticket)), 0).get(stun.AttrMobilityTicket))
		w.want(w.ask(dataTCP, stray, stun.ConnectionBind, connection(id)), 0)
		w.want(w.ask(at(bob, 2), c, stun.Refresh, withTicket(ticket)), 0)
		w.core.EndAll(w.now, &w.out)
	}
}

// TestRates: what is beyond the rate of an allocation, a pseudonym or a tenant is dropped and counted.
func TestRates(t *testing.T) {
	const second = 8000 // bits: ten packets of 100 bytes
	packet := string(bytes.Repeat([]byte{'x'}, 100))
	for name, change := range map[string]func(*Config){
		"allocation": func(c *Config) { c.Rate = second },
		"pseudonym":  func(c *Config) { c.RatePseudonym = second },
		"tenant":     func(c *Config) { c.RateTenant = second },
	} {
		w := newWorld(t, change)
		clients := []Tuple{alice, bob, carol}
		for i, c := range clients {
			w.call(c, w.issue(inUsername, []string{"p1", "p1", "p2"}[i], w.now, time.Hour))
		}
		pass := func() (n [3]int) {
			for range 20 {
				for i, c := range clients {
					_, _, there := w.toPeer(c, w.build(stun.Send, stun.Indication, peer(gateway), data(packet)))
					if there {
						n[i]++
					}
				}
			}
			return n
		}
		want := map[string][]int{"allocation": {10, 10, 10}, "pseudonym": {10, 10}, "tenant": {10}}[name]
		sum := func(n [3]int) []int { // of who shares a bucket
			switch name {
			case "pseudonym":
				return []int{n[0] + n[1], n[2]}
			case "tenant":
				return []int{n[0] + n[1] + n[2]}
			}
			return n[:]
		}
		for range 3 { // the bucket holds a second, and fills in a second
			if got := sum(pass()); !slices.Equal(got, want) {
				t.Errorf("%s: %v packets pass in a second, want %v", name, got, want)
			}
			w.sleep(time.Second)
		}
		if _, ok := w.fromPeer(alice, gateway, packet); !ok {
			t.Errorf("%s: nothing passes from the peer after a pause", name)
		}
		if w.core.stats.Refused[CauseRate] == 0 {
			t.Errorf("%s: drops are not counted", name)
		}
	}
}

// TestRateOfNewcomers: who ends the last allocation of a pseudonym and allocates anew has no full bucket
// again.
func TestRateOfNewcomers(t *testing.T) {
	const second = 8000 // bits: ten packets of 100 bytes
	w := newWorld(t, func(c *Config) { c.RatePseudonym, c.ReplyBurst = second, 1000 })
	c := w.issue(inUsername, "p1", w.now, time.Hour)
	packet := data(strings.Repeat("x", 100))
	passed := 0
	cycle := func() {
		w.call(alice, c)
		for range 20 {
			if _, _, ok := w.toPeer(alice, w.build(stun.Send, stun.Indication, peer(gateway), packet)); ok {
				passed++
			}
		}
		w.want(w.ask(alice, c, stun.Refresh, lifetime(0)), 0)
	}
	for range 10 {
		cycle()
	}
	if passed != 10 {
		t.Errorf("%d packets in one second of ten cycles, want 10", passed)
	}
	w.sleep(500 * time.Millisecond)
	if cycle(); passed != 15 {
		t.Errorf("%d packets after half a second, want 15", passed)
	}
	w.sleep(time.Minute)
	if cycle(); passed != 25 {
		t.Errorf("%d packets after a minute, want 25", passed)
	}
	// Of each who went nothing is kept for long.
	for i := range 100 {
		w.call(alice, w.issue(inUsername, fmt.Sprint("q", i), w.now, time.Hour))
		w.core.EndAll(w.now, &w.out)
		w.sleep(time.Second)
	}
	if p := w.core.tenants[0].parted.meters; len(p[0])+len(p[1]) > 15 {
		t.Errorf("%d buckets are kept", len(p[0])+len(p[1]))
	}
	w.invariants()
}

// TestChannelNumbers5766: those of the older RFC are taken where that is switched on.
func TestChannelNumbers5766(t *testing.T) {
	for _, on := range []bool{false, true} {
		w := newWorld(t, func(c *Config) { c.ChannelNumbers5766 = on })
		c := w.issue(inUsername, "p1", w.now, time.Hour)
		w.call(alice, c)
		code := 400
		if on {
			code = 0
		}
		w.want(w.ask(alice, c, stun.ChannelBind, channelNumber(0x7FFF), peer(gateway)), code)
		if _, _, ok := w.toPeer(alice, stun.AppendChannelData(nil, 0x7FFF, []byte("x"))); ok != on {
			t.Errorf("ChannelData of 0x7FFF relayed: %v, want %v", ok, on)
		}
		w.want(w.ask(alice, c, stun.ChannelBind, channelNumber(0x8000), peer(gateway)), 400)
	}
}

// TestTransmitCounter: RFC 7982 §3.3, of a server that remembers no transaction.
func TestTransmitCounter(t *testing.T) {
	w := newWorld(t)
	counter := attr(stun.AttrTransmitCounter, []byte{0, 0, 3, 0})
	if r := w.packet(alice, w.build(stun.Binding, stun.Request, counter)); !bytes.Equal(r.get(stun.AttrTransmitCounter), []byte{0, 0, 3, 0}) {
		t.Errorf("Binding: counter %x", r.get(stun.AttrTransmitCounter))
	}
	c := w.issue(inUsername, "p1", w.now, time.Hour)
	if r := w.want(w.ask(alice, c, stun.Allocate, transport(17), counter), 0); !bytes.Equal(r.get(stun.AttrTransmitCounter), []byte{0, 0, 3, 0}) {
		t.Errorf("Allocate: counter %x", r.get(stun.AttrTransmitCounter))
	}
	for _, bad := range [][]byte{{}, {1}, {0, 0, 3, 0, 0}} {
		if r := w.packet(alice, w.build(stun.Binding, stun.Request, attr(stun.AttrTransmitCounter, bad))); r.code != 0 || r.get(stun.AttrTransmitCounter) != nil {
			t.Errorf("counter %x: %v", bad, r)
		}
	}
}
