// Package session carries the news of log-in sessions from who issues credentials, the WAF and the
// edge, to who enforces them, the TURN servers and the edge: that a session lives on, and that it
// has been revoked (DESIGN, "What happens when a credential ends"). A session is known by its
// pseudonym.
//
//	Issuer.Extend ──────────────── bus ──► Follower ──► Handler.Extended
//	Issuer.Revoke ── bus, then store ────► Follower ──► Handler.Revoked, and remembered
//	Issuer.Serve  ── head, 500 ms ─ bus ──► Follower: a gap? read the store
//
// Revocations are numbered without holes, in the store. What the bus loses is seen by the next head
// and read from the store, so that a revocation cannot be missed. Each is told at once, and again when it is stored.
// Extensions are not stored. Where heads were missed, extensions may have been: see Handler.Missed. One that is
// lost alone, between heads that were heard, is not noticed.
package session

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
)

const (
	bucket  = "revocations"
	headKey = "head" // of the bucket: the highest number; the others are numbers

	subjectExtended = "wicgate.session.extended"
	subjectRevoked  = "wicgate.session.revoked"
	subjectHead     = "wicgate.session.head"

	version = 1

	// headEvery is how often the head is told. A follower that hears nothing for silence looks
	// into the store, and is blind when that fails for blindAfter.
	headEvery  = 500 * time.Millisecond
	silence    = 2 * time.Second
	blindAfter = 60 * time.Second

	storeTime = 3 * time.Second // for one access
	// settle is how long a number that the store, answering, does not have may still come: a node that is
	// asked may be behind the one that was written to.
	settle  = 10 * time.Second
	maxText = 128 // bytes of a pseudonym and of a reason
	maxLife = 31 * 24 * time.Hour
	// maxRevoked bounds the revocations that are remembered at once, some 100 bytes each.
	maxRevoked = 200_000
	// sweepEvery is how often they are looked through, at most, while there is no room: who asks for one
	// waits for that.
	sweepEvery = time.Minute
)

// Revocation says that a session has ended.
type Revocation struct {
	Version int `json:"v"`
	// Number in the store; 0: told at once, and not stored yet.
	Number    uint64 `json:"n"`
	Pseudonym string `json:"pseudonym"`
	// Reason is a word for logs, metrics and the words that people see: logout, revoked, killed,
	// replaced or expired.
	Reason string    `json:"reason"`
	At     time.Time `json:"at"`
	// Until is when no credential of the session can be alive any more.
	Until time.Time `json:"until"`
}

type extension struct {
	Version   int       `json:"v"`
	Pseudonym string    `json:"pseudonym"`
	Until     time.Time `json:"until"`
}

type head struct {
	Version int    `json:"v"`
	Number  uint64 `json:"n"`
}

var errMalformed = errors.New("session: malformed news")

func (r *Revocation) check() error {
	if r.Version != version || !isName(r.Pseudonym) || !isName(r.Reason) || r.Until.IsZero() {
		return errMalformed
	}
	return nil
}

// isName takes 1 to 128 printable ASCII characters.
func isName(s string) bool {
	return s != "" && len(s) <= maxText && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' })
}

func parseRevocation(b []byte) (Revocation, error) {
	var r Revocation
	if err := json.Unmarshal(b, &r); err != nil {
		return r, fmt.Errorf("%w: %w", errMalformed, err)
	}
	return r, r.check()
}

func numberKey(n uint64) string { return fmt.Sprintf("%020d", n) }

// wholeSeconds is d rounded up, at least one: what a time to live may be.
func wholeSeconds(d time.Duration) time.Duration {
	return max(time.Second, (d + time.Second - 1).Truncate(time.Second))
}
