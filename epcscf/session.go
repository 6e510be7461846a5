package epcscf

import (
	"errors"

	"github.com/gobwas/ws"
)

// errRevoked refuses a token whose session has been revoked.
var errRevoked = errors.New("its session has been revoked")

// revocations are the words in which both sides of a call, and the page, are told why a session has
// ended.
var revocations = map[string]string{
	"logout":   "Logged Out",
	"revoked":  "Log-in Revoked By The Operator",
	"killed":   "Ended By The Operator",
	"replaced": "Replaced By A Newer Log-in",
	"expired":  "Guest Time Is Over",
}

// revoked says whether the session of a pseudonym has been.
func (e *Edge) revoked(pseudonym string) bool {
	return e.cfg.Revoked != nil && e.cfg.Revoked(pseudonym)
}

// Revoke ends what hangs on the session of pseudonym, and returns how many registrations that were:
// calls by BYE to both sides, with the reason; registrations at the core; WebSockets that have no
// other registration, with the reason as their close text. reason is a word of internal/session. That
// the session's tokens are refused from then on is for Config.Revoked to say.
func (e *Edge) Revoke(pseudonym, reason string) (registrations int) {
	e.locked(func() {
		phrase := revocations[reason]
		if phrase == "" {
			phrase = revocations["revoked"]
		}
		for b := range e.bindings {
			if b.alias != pseudonym {
				continue
			}
			for _, c := range b.flow.calls {
				if c.impu == b.impu {
					c.end(ending{cause: reason, status: 403, phrase: phrase}, true, true)
				}
			}
			e.unbind(b, true)
			e.stats.Revoked++
			registrations++
			if len(b.flow.bindings) == 0 {
				b.flow.close(ws.StatusPolicyViolation, phrase)
			}
		}
	})
	return registrations
}
