package epcscf

import (
	"testing"
	"time"

	"go.uber.org/goleak"

	"wicgate/internal/claims"
)

// A token that ends before the shortest interval that the core registers is refused as one that has
// ended: a 423 would name an interval that no REGISTER under this token can have, and JsSIP sends the
// next one at once, and so on.
func TestTokenTooShortToRegister(t *testing.T) {
	defer goleak.VerifyNone(t)
	h := newHouse(t)
	defer h.stop()
	alice := h.ua("alice")
	alice.auth = "Bearer " + token("alice", func(c *claims.SIP) { c.Expiry = time.Now().Add(5 * time.Second).Unix() })
	h.play("alice connects\nalice> REGISTER\n<alice 401 Access Token Invalid Or Expired\n  error=\"invalid_token\"\n  !Min-Expires\nedge: bindings=0\n", "short")
	alice.auth = "Bearer " + token("alice")
	h.play("alice> REGISTER 5\n<alice 423 Interval Too Brief\n  Min-Expires: 10\nalice> REGISTER\n<alice 200 OK\nalice> REGISTER 0\n<alice 200 OK\n", "long")
	h.clean()
}
