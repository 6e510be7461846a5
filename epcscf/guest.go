package epcscf

import (
	"strings"
	"time"

	"wicgate/internal/claims"
	"wicgate/internal/limit"
	"wicgate/internal/policy"
	"wicgate/internal/siptx"
)

// GuestConfig is what guests may do: those whose token names an identity from a pool (TS 24.371 §6.1
// scenario 3).
type GuestConfig struct {
	// Destinations are whom they may call, and send messages to, beside themselves; the zero value is nobody.
	Destinations policy.Destinations
	Calls        int           // of one guest at once; 0 = 1
	Rate         int           // calls and messages a minute of one guest; 0 = 6
	Duration     time.Duration // of one call; 0 = 30 min
}

func (g *GuestConfig) complete() {
	if g.Calls <= 0 {
		g.Calls = 1
	}
	if g.Rate <= 0 {
		g.Rate = 6
	}
	if g.Duration <= 0 {
		g.Duration = 30 * time.Minute
	}
}

func isGuest(c *claims.SIP) bool { return c.IMS.Scenario == claims.ScenarioPool }

// guestMay holds a request of a guest, outside of any dialog, against the policy, and refuses what it
// does not allow.
func (e *Edge) guestMay(tx *siptx.ServerTx, b *binding) bool {
	g := e.cfg.Guests
	refuse := func(phrase, cause string) bool {
		e.stats.Refused.Guest++
		e.refuse(tx, 403, phrase, cause)
		return false
	}
	// The Request-URI is what the core routes by, and goes on as it is.
	// What it has beyond the address of record (a port, maddr, a password) might lead elsewhere than that says.
	u, err := siptx.ParseURI(tx.Request.URI)
	if err != nil || !strings.EqualFold(tx.Request.URI, u.AOR()) || u.AOR() != b.impu && !g.Destinations.Allows(u.AOR()) {
		return refuse("Destination Not Allowed For Guests", "the destination policy for guests does not name the destination")
	}
	calls := 0
	for _, c := range e.calls {
		if c.out && !c.ended && c.subject == b.subject {
			calls++
		}
	}
	if tx.Request.Method == "INVITE" && calls >= g.Calls {
		return refuse("Too Many Calls For A Guest", "the guest has as many calls as guests may")
	}
	if _, ok := e.guests.Take(b.subject, time.Now()); !ok {
		return refuse("Too Many Calls For A Guest", "the guest calls or writes more often than guests may")
	}
	return true
}

// newGuestLimiter bounds how often a guest calls.
func newGuestLimiter(rate int) *limit.Limiter {
	return limit.New(rate, time.Minute/time.Duration(rate))
}

// boundGuest ends a guest's call, now answered, when its longest time is over.
func (c *call) boundGuest() {
	if !c.guest {
		return
	}
	c.longest = time.AfterFunc(c.e.cfg.Guests.Duration, func() {
		c.e.locked(func() { c.end(ending{cause: "guest-duration", status: 403, phrase: "Longest Guest Call"}, true, true) })
	})
}
