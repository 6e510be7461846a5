package core

import (
	"fmt"
	"testing"
	"time"

	"wicgate/internal/wire/stun"
)

// TestExpiryTable is the table of DESIGN, «What happens when a credential ends», for both shapes of
// a token of 10 minutes, issued 5 minutes before its first use.
func TestExpiryTable(t *testing.T) {
	const (
		life  = 10 * time.Minute
		grace = time.Hour
		delta = 5 * time.Second
	)
	for _, s := range []shape{inUsername, inToken} {
		for _, p := range []CredentialPolicy{Session, CallGrace, Strict} {
			t.Run(fmt.Sprintf("%v-%d", s, p), func(t *testing.T) {
				w := newWorld(t, func(c *Config) { c.Policy, c.GraceMax = p, grace })
				issued := w.now
				c := w.issue(s, "p1", issued, life)
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
					// The issuer says: it lives, one hour more.
					w.core.Extend("p1", issued.Add(life+delta+2*grace))
					w.core.Extend("p1", issued) // old news shorten nothing
					r = w.want(w.ask(alice, c, stun.Refresh, lifetime(3600)), 0)
					if r.lifetime() != 3600 {
						t.Errorf("extended session: LIFETIME %d", r.lifetime())
					}
					w.sleep(59 * time.Minute)
					w.want(w.ask(alice, c, stun.Refresh), 0)
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
