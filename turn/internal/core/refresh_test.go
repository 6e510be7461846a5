package core

import (
	"fmt"
	"net/netip"
	"strconv"
	"testing"
	"time"

	"wicgate/internal/secret"
	"wicgate/internal/token"
	"wicgate/internal/wire/stun"
)

// TestExpiryTable is the table of DESIGN, «What happens when a credential ends», for both shapes of
// a token of 10 minutes, issued 5 minutes before its first use, and for the credentials of an edge.
func TestExpiryTable(t *testing.T) {
	const (
		life  = 10 * time.Minute
		grace = time.Hour
		delta = 5 * time.Second
	)
	for _, kind := range []CredentialKind{KindUsername, KindToken, KindEphemeral, KindPushed} {
		for _, p := range []CredentialPolicy{Session, CallGrace, Strict} {
			t.Run(fmt.Sprintf("%v-%d", kind, p), func(t *testing.T) {
				var ends time.Time
				w := newWorld(t, func(c *Config) {
					c.Policy, c.GraceMax = p, grace
					c.Secrets = func() []secret.Bytes { return []secret.Bytes{secret.New([]byte("north"))} }
					c.Pushed = func(username string) (Pushed, bool) {
						return Pushed{Password: secret.New([]byte("pw")), Pseudonym: "p1", Ends: ends}, username == "x7"
					}
				})
				issued := w.now
				ends = issued.Add(life + delta) // they have no Delta of their own
				var c cred
				switch kind {
				case KindUsername:
					c = w.issue(inUsername, "p1", issued, life)
				case KindToken:
					c = w.issue(inToken, "p1", issued, life)
				case KindEphemeral:
					c = ephemeral("north", ends, "p1")
				case KindPushed:
					c = static(stun.MD5, "x7", "pw")
				}
				w.sleep(5 * time.Minute)
				r := w.want(w.ask(alice, c, stun.Allocate, transport(17), lifetime(3600)), 0)
				want := 3600
				if p == Strict {
					want = 305 // RFC 7635 §4.1.1: lifetime + Delta - age
				}
				if r.lifetime() != want {
					t.Fatalf("Allocate: LIFETIME %d, want %d", r.lifetime(), want)
				}
				w.want(w.ask(alice, c, stun.CreatePermission, peer(gateway)), 0)

				// Just before the end: all is granted, no further than the policy goes.
				w.now = issued.Add(life + delta - time.Second)
				r = w.want(w.ask(alice, c, stun.Refresh, lifetime(600)), 0)
				want = 600
				if p == Strict {
					want = 1
				}
				if r.lifetime() != want {
					t.Errorf("Refresh 1 s before the end: LIFETIME %d, want %d", r.lifetime(), want)
				}
				w.want(w.ask(alice, c, stun.CreatePermission, peer(gateway)), 0)

				// After it: a new Allocate is 401 under every policy.
				w.sleep(2 * time.Second)
				w.want(w.ask(mallory, c, stun.Allocate, transport(17)), 401)
				if w.last.Cause != CauseExpiredToken {
					t.Errorf("cause %v", w.last.Cause)
				}
				if p == Strict {
					if w.core.Allocations() != 0 || w.ended[0].Cause != EndExpired {
						t.Error("strict: the allocation outlives its token")
					}
					w.want(w.ask(alice, c, stun.Refresh), 401)
					w.want(w.ask(alice, c, stun.CreatePermission, peer(gateway)), 401)
					return
				}
				// The allocation goes on: Refresh, and nothing refused for age.
				w.want(w.ask(alice, c, stun.Refresh), 0)
				w.want(w.ask(alice, c, stun.CreatePermission, peer(gateway)), 0)
				w.want(w.ask(alice, c, stun.ChannelBind, channelNumber(0x4000), peer(gateway)), 0)
				if _, _, ok := w.toPeer(alice, w.build(stun.Send, stun.Indication, peer(gateway), data("x"))); !ok {
					t.Error("Send is refused for age")
				}
				for w.now.Before(issued.Add(life + delta + grace - 5*time.Minute)) {
					w.sleep(4 * time.Minute)
					w.want(w.ask(alice, c, stun.Refresh), 0)
					w.want(w.ask(alice, c, stun.CreatePermission, peer(gateway)), 0)
				}
				if p == Session {
					// The issuer says: it lives, one hour more. Old news shorten nothing.
					until := issued.Add(life + delta + 2*grace)
					w.core.Extend(w.now, "p1", until)
					w.core.Extend(w.now, "p1", issued)
					r = w.want(w.ask(alice, c, stun.Refresh, lifetime(3600)), 0)
					if r.lifetime() != 3600 {
						t.Errorf("extended session: LIFETIME %d", r.lifetime())
					}
					w.sleep(59 * time.Minute)
					r = w.want(w.ask(alice, c, stun.Refresh), 0)
					if want := int(until.Add(SessionSlack).Sub(w.now) / time.Second); r.lifetime() != want {
						t.Errorf("Refresh near the session's end: LIFETIME %d, want %d", r.lifetime(), want)
					}
				}
				// The end of all: the last Refresh is granted up to it, and then there is nothing.
				w.sleep(9 * time.Minute)
				if w.core.Allocations() != 0 || w.ended[0].Cause != EndExpired {
					t.Errorf("%d allocations after the policy's end", w.core.Allocations())
				}
				w.want(w.ask(alice, c, stun.Refresh), 401)
			})
		}
	}
}

// TestSessionPolicy: with news of the issuer the allocation lives as long as the session, and no
// news that may have been lost ends it.
func TestSessionPolicy(t *testing.T) {
	const life = 10 * time.Minute
	for _, c := range []struct {
		name  string
		news  func(w *world)
		lives time.Duration // from the token's issue
	}{
		{"no news", func(*world) {}, life + 5*time.Second + 2*time.Hour},
		{"news", func(w *world) { w.core.Extend(w.now, "p1", w.now.Add(30*time.Minute)) }, 30*time.Minute + SessionSlack},
		{"news of less than the token's life", func(w *world) { w.core.Extend(w.now, "p1", w.now.Add(time.Minute)) }, life + 5*time.Second + SessionSlack},
		{"news of another", func(w *world) { w.core.Extend(w.now, "p2", w.now.Add(30*time.Minute)) }, life + 5*time.Second + 2*time.Hour},
		{"missed", func(w *world) { w.core.Extend(w.now, "p1", w.now.Add(30*time.Minute)); w.core.Missed() }, life + 5*time.Second + 2*time.Hour},
		{"news before the allocation", nil, 30*time.Minute + SessionSlack},
		{"blind", func(w *world) { w.core.Extend(w.now, "p1", w.now.Add(30*time.Minute)); w.core.Blind(true) }, life + 5*time.Second + 2*time.Hour},
		{"no longer blind", func(w *world) {
			w.core.Extend(w.now, "p1", w.now.Add(30*time.Minute))
			w.core.Blind(true)
			w.core.Blind(false)
		}, 30*time.Minute + SessionSlack},
	} {
		w := newWorld(t, func(c *Config) { c.Policy, c.GraceMax = Session, 2*time.Hour })
		cr := w.issue(inUsername, "p1", w.now, life)
		begun := w.now
		if c.news == nil {
			w.core.Extend(w.now, "p1", w.now.Add(30*time.Minute))
		}
		w.want(w.ask(alice, cr, stun.Allocate, transport(17)), 0)
		if c.news != nil {
			c.news(w)
		}
		for w.core.Allocations() > 0 && w.now.Sub(begun) < 4*time.Hour {
			w.want(w.ask(alice, cr, stun.Refresh), 0)
			w.sleep(time.Second)
		}
		if got := w.now.Sub(begun); got < c.lives-2*time.Second || got > c.lives+2*time.Second {
			t.Errorf("%s: lived %v, want %v", c.name, got, c.lives)
		}
	}
}

// TestLivingIsBounded: news of more sessions than are remembered takes no memory, and no look through
// all of them each time; what is over makes room.
func TestLivingIsBounded(t *testing.T) {
	w := newWorld(t)
	for i := range maxLiving {
		w.core.living[strconv.Itoa(i)] = w.now.Add(time.Hour)
	}
	w.core.Extend(w.now, "first", w.now.Add(time.Hour))
	looked := w.core.swept
	for i := range 1000 {
		w.now = w.now.Add(time.Millisecond)
		w.core.Extend(w.now, "more-"+strconv.Itoa(i), w.now.Add(time.Hour))
	}
	if looked.IsZero() || w.core.swept != looked {
		t.Error("each extension looks through all")
	}
	if n := len(w.core.living); n != maxLiving {
		t.Errorf("%d sessions", n)
	}
	w.now = w.now.Add(61 * time.Minute)
	w.core.Extend(w.now, "later", w.now.Add(time.Hour))
	if n := len(w.core.living); n != 1 {
		t.Errorf("%d sessions after their end", n)
	}
}

// TestRevoked: a revoked pseudonym opens nothing, and brings no new credential into what it has.
func TestRevoked(t *testing.T) {
	revoked := map[string]bool{}
	w := newWorld(t, func(c *Config) {
		c.Revoked = func(p string) bool { return revoked[p] }
		c.Secrets = func() []secret.Bytes { return []secret.Bytes{secret.New([]byte("north"))} }
	})
	for _, c := range []cred{w.issue(inUsername, "p1", w.now, time.Hour), w.issue(inToken, "p1", w.now, time.Hour), ephemeral("north", w.now.Add(time.Hour), "p1")} {
		revoked["p1"] = true
		w.want(w.ask(alice, c, stun.Allocate, transport(17)), 401)
		if w.last.Cause != CauseRevoked {
			t.Errorf("cause %v", w.last.Cause)
		}
		w.want(w.ask(mallory, w.issue(inUsername, "p2", w.now, time.Hour), stun.Allocate, transport(17)), 0)
		w.want(w.ask(mallory, w.issue(inUsername, "p2", w.now, time.Hour), stun.Refresh, lifetime(0)), 0)
		revoked["p1"] = false
		w.want(w.ask(alice, c, stun.Allocate, transport(17)), 0)
		revoked["p1"] = true
		w.want(w.ask(alice, w.issue(inUsername, "p1", w.now, time.Hour), stun.Refresh), 401)
		revoked["p1"] = false
		w.want(w.ask(alice, c, stun.Refresh, lifetime(0)), 0)
	}
	w.invariants()
}

// TestBlind: with turn.blind closed nothing new is allocated while blind, and what is there goes on.
func TestBlind(t *testing.T) {
	for _, closed := range []bool{false, true} {
		w := newWorld(t, func(c *Config) { c.BlindClosed = closed })
		c := w.issue(inUsername, "p1", w.now, time.Hour)
		w.want(w.ask(alice, c, stun.Allocate, transport(17)), 0)
		w.core.Blind(true)
		want := 0
		if closed {
			want = 508
		}
		w.want(w.ask(mallory, w.issue(inUsername, "p2", w.now, time.Hour), stun.Allocate, transport(17)), want)
		w.want(w.ask(alice, c, stun.Refresh), 0)
		w.core.Blind(false)
		third := Tuple{Client: netip.MustParseAddrPort("198.51.100.3:1"), Transport: 17}
		w.want(w.ask(third, w.issue(inUsername, "p2", w.now, time.Hour), stun.Allocate, transport(17)), 0)
	}
}

// TestStrictSends: under strict the relay stops with the token, to the second.
func TestStrictSends(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.Policy = Strict })
	c := w.issue(inUsername, "p1", w.now, 2*time.Minute)
	w.call(alice, c)
	w.now = w.now.Add(2*time.Minute + 4*time.Second) // no timer runs here
	if _, _, ok := w.toPeer(alice, w.build(stun.Send, stun.Indication, peer(gateway), data("x"))); !ok {
		t.Error("refused before the end")
	}
	w.now = w.now.Add(time.Second)
	if _, _, ok := w.toPeer(alice, w.build(stun.Send, stun.Indication, peer(gateway), data("x"))); ok {
		t.Error("relayed after the end")
	}
}

// TestRenewal: a Refresh with a new token of the same pseudonym takes over; the old key verifies
// for 40 s more.
func TestRenewal(t *testing.T) {
	for _, s := range []shape{inUsername, inToken} {
		for _, s2 := range []shape{inUsername, inToken} {
			t.Run(fmt.Sprintf("%v-to-%v", s, s2), func(t *testing.T) {
				w := newWorld(t, func(c *Config) { c.Policy = Strict })
				first := w.issue(s, "p1", w.now, 10*time.Minute)
				w.call(alice, first)
				w.sleep(9 * time.Minute)
				if err := w.ring.Rotate(time.Now(), 48*time.Hour); err != nil { // a new master, the same pseudonym
					t.Fatal(err)
				}
				second := w.issue(s2, "p1", w.now, 10*time.Minute)
				// A new credential enters by Refresh alone.
				r := w.ask(alice, second, stun.CreatePermission, peer(gateway))
				if s2 == inUsername && (r.code != 441 || !r.mac) || s2 == inToken && r.code != 401 {
					t.Errorf("CreatePermission under a new credential: %v", r)
				}
				refresh := w.sign(w.build(stun.Refresh, stun.Request, lifetime(600)), second, w.nonce(alice))
				if r := w.packet(alice, refresh); r.code != 0 || r.lifetime() != 600 || !w.h.CheckIntegrity(r.msg, second.key) {
					t.Fatalf("Refresh with a new token: %v, %v", r, w.last.Cause)
				}
				if r := w.packet(alice, refresh); r.code != 0 || !w.h.CheckIntegrity(r.msg, second.key) { // retransmitted
					t.Errorf("the same again: %v", r)
				}
				w.want(w.ask(alice, second, stun.CreatePermission, peer(gateway)), 0)
				// What was on its way under the old key is still answered, under the old key.
				w.sleep(39 * time.Second)
				w.want(w.ask(alice, first, stun.CreatePermission, peer(gateway)), 0)
				w.want(w.ask(alice, first, stun.Refresh), 0)
				if w.core.tuples[alice].cur.username != second.username {
					t.Error("a late Refresh brought the old credential back")
				}
				w.sleep(time.Second)
				r = w.ask(alice, first, stun.CreatePermission, peer(gateway))
				if r.ok && r.code == 0 {
					t.Errorf("the old key verifies after 40 s: %v", r)
				}
				// And it lives by the new token's time.
				w.sleep(8 * time.Minute)
				w.want(w.ask(alice, second, stun.Refresh), 0)
				w.invariants()
			})
		}
	}
}

// TestSpoofedRefresh: whoever can send from the client's address, with a token of his own, gets 441
// and changes nothing (RFC 7635 has no such tie; spec stun-turn-oauth 1.6).
func TestSpoofedRefresh(t *testing.T) {
	for _, s := range []shape{inUsername, inToken} {
		w := newWorld(t)
		c := w.issue(s, "p1", w.now, time.Hour)
		w.call(alice, c)
		for _, evil := range []shape{inUsername, inToken} {
			e := w.issue(evil, "p2", w.now, time.Hour)
			w.want(w.ask(alice, e, stun.Refresh, lifetime(0)), 441)
			w.want(w.ask(alice, e, stun.Refresh), 441)
			if evil == inUsername {
				w.want(w.ask(alice, e, stun.CreatePermission, peer(gateway)), 441)
				w.want(w.ask(alice, e, stun.ChannelBind, channelNumber(0x4000), peer(gateway)), 441)
			}
		}
		forged := c
		forged.key = []byte("guess")
		w.want(w.ask(alice, forged, stun.Refresh, lifetime(0)), 401)
		w.want(w.ask(mallory, c, stun.Refresh, lifetime(0)), 437)
		if w.core.Allocations() != 1 {
			t.Fatal("the allocation is gone")
		}
		w.want(w.ask(alice, c, stun.Refresh), 0)
	}
}

func TestRefreshRules(t *testing.T) {
	w := newWorld(t)
	c := w.issue(inUsername, "p1", w.now, time.Hour)
	w.call(alice, c)
	for _, x := range []struct {
		adds []add
		code int
		life int
	}{
		{nil, 0, 600}, {[]add{lifetime(60)}, 0, 600}, {[]add{lifetime(4000)}, 0, 3600}, {[]add{attr(stun.AttrLifetime, []byte{0})}, 400, 0},
		{[]add{small(stun.AttrRequestedAddressFamily, 1)}, 0, 600}, {[]add{small(stun.AttrRequestedAddressFamily, 2)}, 443, 0},
		{[]add{small(stun.AttrRequestedAddressFamily, 9)}, 443, 0}, {[]add{attr(stun.AttrRequestedAddressFamily, nil)}, 400, 0},
		{[]add{small(stun.AttrRequestedAddressFamily, 2), lifetime(0)}, 443, 0},
	} {
		if r := w.want(w.ask(alice, c, stun.Refresh, x.adds...), x.code); x.code == 0 && r.lifetime() != x.life {
			t.Errorf("LIFETIME %d, want %d", r.lifetime(), x.life)
		}
	}
	w.want(w.ask(alice, c, stun.Refresh, lifetime(0)), 0)
	w.want(w.ask(alice, c, stun.Refresh, lifetime(0)), 437) // which a client takes for success
}

// ephemeral is a credential derived from a shared secret.
func ephemeral(sec string, ends time.Time, pseudonym string) cred {
	name := token.EphemeralUsername(ends, pseudonym)
	key := stun.MD5.Key([]byte(name), []byte(realm), token.EphemeralPassword(secret.New([]byte(sec)), name).Expose())
	return cred{username: name, realm: realm, key: key[:]}
}

// TestEphemeral: who shares a secret derives credentials that allocate until their expiry, under any
// of the secrets; the policy decides about what lives longer.
func TestEphemeral(t *testing.T) {
	secrets := []secret.Bytes{secret.New([]byte("new")), secret.New([]byte("old"))}
	for _, p := range []CredentialPolicy{Session, CallGrace, Strict} {
		w := newWorld(t, func(c *Config) {
			c.Policy, c.GraceMax = p, time.Hour
			c.Secrets = func() []secret.Bytes { return secrets }
		})
		ends := w.now.Add(10 * time.Minute)
		for _, c := range []struct {
			c     cred
			cause Cause
		}{
			{ephemeral("new", ends, "p1"), CauseNone},
			{ephemeral("old", ends, "p1"), CauseNone},
			{ephemeral("other", ends, "p1"), CauseBadMAC},
			{ephemeral("new", w.now, "p1"), CauseExpiredToken},
			{ephemeral("new", w.now.Add(token.MaxAhead+time.Second), "p1"), CauseFutureToken},
			{ephemeral("new", w.now.Add(token.MaxAhead), "p1"), CauseNone},
			{ephemeral("new", ends, ""), CauseUsername},
			{cred{username: "alice", realm: realm, key: []byte("k")}, CauseUsername},
		} {
			want := 0
			if c.cause != CauseNone {
				want = 401
			}
			w.want(w.ask(alice, c.c, stun.Allocate, transport(17)), want)
			if w.last.Cause != c.cause {
				t.Errorf("%s: cause %v, want %v", c.c.username, w.last.Cause, c.cause)
			}
			if want == 0 {
				w.want(w.ask(alice, c.c, stun.Refresh, lifetime(0)), 0)
			}
		}
		c := ephemeral("new", ends, "p1")
		w.call(alice, c)
		if l := w.core.List(w.now, nil); len(l) != 1 || l[0].Credential != "ephemeral" || l[0].Pseudonym != "p1" || !l[0].CredentialEnds.Equal(ends) || len(l[0].Permissions) == 0 {
			t.Errorf("%+v", l)
		}
		// Another credential of the same pseudonym renews it, one of another does not.
		w.want(w.ask(alice, ephemeral("new", ends, "p2"), stun.Refresh), 441)
		w.want(w.ask(alice, ephemeral("old", ends.Add(time.Minute), "p1"), stun.Refresh), 0)
		w.sleep(9 * time.Minute)
		w.want(w.ask(alice, ephemeral("old", ends.Add(time.Minute), "p1"), stun.Refresh), 0)
		w.sleep(2*time.Minute + time.Second) // past the end
		if (w.core.Allocations() == 0) != (p == Strict) {
			t.Errorf("policy %d: %d allocations after the end", p, w.core.Allocations())
		}
		if p != Strict {
			w.want(w.ask(alice, ephemeral("old", ends.Add(time.Minute), "p1"), stun.Refresh), 0)
		}
	}
	w := newWorld(t) // without secrets
	w.want(w.ask(alice, ephemeral("new", w.now.Add(time.Hour), "p1"), stun.Allocate, transport(17)), 401)
	if w.last.Cause != CauseUsername {
		t.Errorf("cause %v", w.last.Cause)
	}
}

func TestKill(t *testing.T) {
	w := newWorld(t)
	w.want(w.ask(alice, w.issue(inUsername, "p1", w.now, time.Hour), stun.Allocate, transport(17)), 0)
	w.want(w.ask(mallory, w.issue(inToken, "p2", w.now, time.Hour), stun.Allocate, transport(17)), 0)
	l := w.core.List(w.now, nil)
	if len(l) != 2 || l[0].Pseudonym != "p1" || l[0].Credential != "username" || l[1].Credential != "token" {
		t.Fatalf("%+v", l)
	}
	if !w.core.Kill(w.now, l[0].ID, &w.out) {
		t.Fatal("not found")
	}
	w.act(Tuple{})
	if len(w.ended) != 1 || w.ended[0].Cause != EndKilled || w.core.Allocations() != 1 {
		t.Errorf("%+v", w.ended)
	}
	if w.core.Kill(w.now, l[0].ID, &w.out) || w.core.Kill(w.now, 99, &w.out) {
		t.Error("killed twice, or killed nobody")
	}
	w.invariants()
}
