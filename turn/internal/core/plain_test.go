package core

import (
	"testing"
	"time"

	"wicgate/internal/keyring"
	"wicgate/internal/secret"
	"wicgate/internal/token"
	"wicgate/internal/wire/stun"
)

// plainWorld has the plain keys north, A256GCM, and union, A128GCM.
func plainWorld(t *testing.T, change ...func(*Config)) *world {
	t.Helper()
	ring, err := keyring.NewPlain(realm,
		keyring.PlainKey{KID: "north", Enc: token.A256GCM, K: secret.Random(32)},
		keyring.PlainKey{KID: "union", Enc: token.A128GCM, K: secret.Random(16)},
		keyring.PlainKey{KID: "west", Enc: token.Draft13, K: secret.Random(32)})
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, append([]func(*Config){func(c *Config) { c.Keys = ring }}, change...)...)
	w.ring = ring
	return w
}

// TestPlainKIDs: who refreshes with another kid is not the owner, unless it is loose; and then the
// replaced key lives 40 s across kids.
func TestPlainKIDs(t *testing.T) {
	for _, loose := range []bool{false, true} {
		for _, p := range []CredentialPolicy{Session, CallGrace, Strict} {
			w := plainWorld(t, func(c *Config) { c.OAuthLoose, c.Policy = loose, p })
			first := w.issueUnder(w.ring, inToken, "north", w.now, 10*time.Minute)
			w.call(alice, first)
			again := w.issueUnder(w.ring, inToken, "north", w.now, 10*time.Minute)
			w.want(w.ask(alice, again, stun.Refresh), 0) // RFC 7635 §9: a new token of the same kid
			second := w.issueUnder(w.ring, inToken, "union", w.now, 10*time.Minute)
			if !loose {
				w.want(w.ask(alice, second, stun.Refresh), 441)
				w.want(w.ask(alice, second, stun.Refresh, lifetime(0)), 441)
				w.want(w.ask(alice, again, stun.CreatePermission, peer(gateway)), 0)
				continue
			}
			r := w.want(w.ask(alice, second, stun.Refresh), 0)
			if !r.mac {
				t.Error("the answer is not under the new key")
			}
			w.want(w.ask(alice, second, stun.CreatePermission, peer(gateway)), 0)
			w.sleep(OldKeyLife - time.Second)
			w.want(w.ask(alice, again, stun.CreatePermission, peer(gateway)), 0)
			w.sleep(2 * time.Second)
			w.want(w.ask(alice, again, stun.CreatePermission, peer(gateway)), 401)
			third := w.issueUnder(w.ring, inToken, "west", w.now, 10*time.Minute)
			w.want(w.ask(alice, third, stun.CreatePermission, peer(gateway)), 401) // not by Refresh
			w.want(w.ask(alice, third, stun.Refresh, lifetime(0)), 0)
			if n := w.core.Allocations(); n != 0 {
				t.Errorf("%d allocations", n)
			}
		}
	}
}

// TestLooseIsForPlainKIDs: with derived kids a token says whose it is, and loose changes nothing; nor
// does it let a token take what was allocated in another way.
func TestLooseIsForPlainKIDs(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.OAuthLoose = true })
	w.want(w.ask(alice, w.issue(inToken, "p1", w.now, time.Hour), stun.Allocate, transport(17)), 0)
	w.want(w.ask(alice, w.issue(inToken, "p2", w.now, time.Hour), stun.Refresh), 441)

	// Nor what is another tenant's: each kid here is plain.
	elsewhere, err := keyring.NewPlain("turn2.ims.test", keyring.PlainKey{KID: "south", Enc: token.A256GCM, K: secret.Random(32)})
	if err != nil {
		t.Fatal(err)
	}
	w = plainWorld(t, func(c *Config) {
		c.OAuthLoose = true
		other := c.Tenant
		other.Name, other.Keys = "turn2.ims.test", elsewhere
		c.Others = []Tenant{other}
	})
	w.want(w.ask(alice, w.issueUnder(w.ring, inToken, "north", w.now, time.Hour), stun.Allocate, transport(17)), 0)
	w.want(w.ask(alice, w.issueFor("turn2.ims.test", realm, elsewhere, inToken, "south", w.now, time.Hour), stun.Refresh), 441)

	sec := func() []secret.Bytes { return []secret.Bytes{secret.New([]byte("north"))} }
	w = plainWorld(t, func(c *Config) { c.OAuthLoose, c.Secrets = true, sec })
	w.want(w.ask(alice, ephemeral("north", w.now.Add(time.Hour), "p1"), stun.Allocate, transport(17)), 0)
	w.want(w.ask(alice, w.issueUnder(w.ring, inToken, "north", w.now, time.Hour), stun.Refresh), 441)
}

// TestPlainRevoked: a kid is revoked as a pseudonym is, also for the Refresh of another kid's allocation.
func TestPlainRevoked(t *testing.T) {
	w := plainWorld(t, func(c *Config) {
		c.OAuthLoose, c.Revoked = true, func(p string) bool { return p == "union" }
	})
	w.want(w.ask(alice, w.issueUnder(w.ring, inToken, "union", w.now, time.Hour), stun.Allocate, transport(17)), 401)
	w.want(w.ask(alice, w.issueUnder(w.ring, inToken, "north", w.now, time.Hour), stun.Allocate, transport(17)), 0)
	w.want(w.ask(alice, w.issueUnder(w.ring, inToken, "union", w.now, time.Hour), stun.Refresh), 401)
}

// TestMAC16: half a mac_key is no key, unless it is let; then answers come under it, and the whole key
// serves as before.
func TestMAC16(t *testing.T) {
	for _, let := range []bool{false, true} {
		w := plainWorld(t, func(c *Config) { c.OAuthMAC16, c.OAuthLoose = let, true })
		// NewMACKey ends in zeros, with which both readings are one: take 20 random bytes.
		issue := func(kid string) cred {
			k, f, _, _ := w.ring.Key(kid)
			mac := secret.Random(20)
			tok, err := token.Seal(f, k, realm, token.Payload{MACKey: mac, Timestamp: token.NewTimestamp(w.now), Lifetime: time.Hour})
			if err != nil {
				t.Fatal(err)
			}
			return shaped(inToken, realm, kid, tok, mac)
		}
		whole := issue("north")
		half := whole
		half.key = half.key[:16]
		if !let {
			w.want(w.ask(alice, half, stun.Allocate, transport(17)), 401)
			continue
		}
		good := func(c cred, m stun.Method, adds ...add) {
			t.Helper()
			if r := w.want(w.ask(alice, c, m, adds...), 0); !r.mac {
				t.Errorf("%v: the answer is not under the request's key", m)
			}
		}
		good(half, stun.Allocate, transport(17))
		good(half, stun.CreatePermission, peer(gateway))
		good(whole, stun.CreatePermission, peer(gateway))
		good(half, stun.Refresh)
		next := issue("union")
		next.key = next.key[:16]
		good(next, stun.Refresh)
		good(half, stun.CreatePermission, peer(gateway))
		good(next, stun.CreatePermission, peer(gateway))
		for _, n := range []int{15, 17} {
			bad := next
			bad.key = append([]byte(nil), issue("union").key[:n]...)
			w.want(w.ask(alice, bad, stun.CreatePermission, peer(gateway)), 401)
		}
		good(next, stun.Refresh, lifetime(0))
	}
}

// TestEphemeralSHA256: the version in the user part chooses the MAC, and the pseudonym is the same.
func TestEphemeralSHA256(t *testing.T) {
	sec := secret.New([]byte("north"))
	revoked := ""
	w := newWorld(t, func(c *Config) {
		c.Secrets = func() []secret.Bytes { return []secret.Bytes{sec} }
		c.Revoked = func(p string) bool { return p == revoked }
	})
	name := token.EphemeralUsernameSHA256(w.now.Add(time.Hour), "p1")
	signed := func(password []byte) cred {
		return cred{username: name, realm: realm, key: stun.MD5.Key([]byte(name), []byte(realm), password)}
	}
	c := signed(token.EphemeralPassword(sec, name).Expose())
	w.want(w.ask(alice, c, stun.Allocate, transport(17)), 0)
	if l := w.core.List(w.now, nil); len(l) != 1 || l[0].Pseudonym != "p1" {
		t.Errorf("%+v", l)
	}
	w.want(w.ask(mallory, signed([]byte("x")), stun.Allocate, transport(17)), 401)
	revoked = "p1"
	w.want(w.ask(mallory, c, stun.Allocate, transport(17)), 401)
}
