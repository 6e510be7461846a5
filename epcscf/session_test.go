package epcscf

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"go.uber.org/goleak"

	"wicgate/internal/claims"
)

// TestRevoke: a revoked session's call ends on both sides with the reason, its registration at the
// core and its WebSocket end, and its tokens are refused; others go on.
func TestRevoke(t *testing.T) {
	var mu sync.Mutex
	gone := map[string]bool{}
	extended := map[string]time.Time{}
	h := newHouse(t, func(c *Config) {
		c.Revoked = func(p string) bool { mu.Lock(); defer mu.Unlock(); return gone[p] }
		c.Extend = func(p string, until time.Time) error { mu.Lock(); defer mu.Unlock(); extended[p] = until; return nil }
	})
	t.Cleanup(func() { h.over(); goleak.VerifyNone(t) })
	h.play(talking, "revoke")
	mu.Lock()
	if left := time.Until(extended["p-alice"]); left < 9*time.Minute || left > time.Hour {
		t.Errorf("extended for %v", left)
	}
	gone["p-alice"] = true
	mu.Unlock()
	alice := h.ua("alice")
	begun := time.Now()
	if n := h.edge.Revoke("p-alice", "revoked"); n != 1 {
		t.Errorf("%d registrations", n)
	}
	h.play("<alice BYE\n  Reason: SIP;cause=403;text=\"Log-in Revoked By The Operator\"\n<bob BYE\n  Reason: SIP;cause=403;text=\"Log-in Revoked By The Operator\"\nbob> 200 BYE\n", "revoke")
	if d := time.Since(begun); d > time.Second {
		t.Errorf("took %v", d)
	}
	if _, _, err := alice.next(); err == nil {
		t.Error("alice's WebSocket goes on")
	}
	var c websocket.CloseError
	if !errors.As(alice.ended, &c) || c.Code != websocket.StatusPolicyViolation || c.Reason != "Log-in Revoked By The Operator" {
		t.Errorf("closed with %v", alice.ended)
	}
	h.settled()
	h.wait("alice is de-registered", func() bool { return strings.Contains(h.toCore.sent(), "Expires: 0") })
	alice.vanish()
	h.play("alice connects\nalice> REGISTER\n<alice 401 Access Token Invalid Or Expired\n", "revoke")
	alice.auth = "Bearer " + token("alice", func(c *claims.SIP) { c.Pseudonym = "p-alice-2" }) // logged in anew
	h.play("alice> REGISTER\n<alice 200 OK\nbob> REGISTER\n<bob 200 OK\nalice> INVITE bob\n<bob INVITE\nbob> 180\n<alice 180\n", "revoke")
	// The session of who is called ends before the answer.
	mu.Lock()
	gone["p-bob"] = true
	mu.Unlock()
	if n := h.edge.Revoke("p-bob", "logout"); n != 1 {
		t.Errorf("%d registrations", n)
	}
	h.play("<alice 403 Logged Out\n", "revoke")
	h.settled()
	if n := h.edge.Revoke("p-bob", "logout") + h.edge.Revoke("nobody", "revoked"); n != 0 {
		t.Errorf("%d registrations of nobody", n)
	}
	if st := h.edge.Stats(); st.Revoked != 2 || st.Bindings != 1 {
		t.Errorf("%+v", st)
	}
}

// TestRevokedWhileRegistering: the core's 200 comes after the revocation.
func TestRevokedWhileRegistering(t *testing.T) {
	var mu sync.Mutex
	asked := 0
	h := newHouse(t, func(c *Config) {
		c.Revoked = func(string) bool { // good when the token comes, revoked when the core has answered
			mu.Lock()
			defer mu.Unlock()
			asked++
			return asked > 1
		}
	})
	t.Cleanup(func() { h.over(); goleak.VerifyNone(t) })
	h.play("alice connects\nalice> REGISTER\n<alice 401 Access Token Invalid Or Expired\n", "revoked-late")
	h.wait("the core is told", func() bool { return strings.Contains(h.toCore.sent(), "Expires: 0") })
	if st := h.edge.Stats(); st.Bindings != 0 || st.Registers != 0 {
		t.Errorf("%+v", st)
	}
}

// TestRevokedWhileRenewing: a newer session of the same user takes the registration over and is revoked before the core
// has answered. The call of before has no registration any more, so it ends as well.
func TestRevokedWhileRenewing(t *testing.T) {
	var mu sync.Mutex
	asked := 0
	h := newHouse(t, func(c *Config) {
		c.Revoked = func(p string) bool {
			mu.Lock()
			defer mu.Unlock()
			if p == "p-alice-2" {
				asked++
			}
			return asked > 1
		}
	})
	t.Cleanup(func() { h.over(); goleak.VerifyNone(t) })
	h.play(talking, "revoked-renewing")
	h.ua("alice").auth = "Bearer " + token("alice", func(c *claims.SIP) { c.Pseudonym = "p-alice-2" })
	h.play("alice> REGISTER\n<alice BYE\n<alice 401 Access Token Invalid Or Expired\n<bob BYE\nbob> 200 BYE\n", "revoked-renewing")
	h.settled()
	if st := h.edge.Stats(); st.Bindings != 1 {
		t.Errorf("%+v", st)
	}
}
