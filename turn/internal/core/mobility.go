package core

import (
	"crypto/rand"
	"time"

	"wicgate/internal/wire/stun"
)

// This file is RFC 8016: an allocation whose client comes from another address keeps its relayed address,
// permissions and channels. The client shows a ticket, and authenticates as the allocation's owner.
//
//	old path ──► data both ways ──┐
//	Refresh + ticket on the new path: answered with the next ticket, and data may come on both
//	first data on the new path ──► data goes there alone

const (
	// TicketSize is the length of a MOBILITY-TICKET, in bytes: a random handle in letters and digits, of 130
	// bits. RFC 8016 leaves its form open; a client that keeps it as a C string loses one with a zero byte.
	TicketSize = 26
	// OldTicketLife is how long a ticket that has been replaced is known, for retransmissions (§3.2.2: at
	// least 30 s).
	OldTicketLife = 40 * time.Second
	// Unreachable is how long an allocation waits for its client once its connection is gone.
	Unreachable = 2 * time.Minute
)

type ticket [TicketSize]byte

// mobility is what an allocation has that can move.
type mobility struct {
	ticket ticket
	next   Tuple // the new path, until data has come on it; zero = none
	lost   bool  // the path is a connection that is gone, and there is no next

	// The last move, to answer its retransmissions.
	old   ticket
	until time.Time
	id    stun.TransactionID
	life  time.Duration
}

// newTicket gives a its next ticket.
func (c *Core) newTicket(a *allocation) {
	copy(a.mobile.ticket[:], rand.Text())
	c.tickets[a.mobile.ticket] = a
}

// ticketed returns the allocation that the ticket of a Refresh names, nil if there is none.
func (c *Core) ticketed(r *request, out *Outbox) *allocation {
	if len(r.ticket) != TicketSize {
		return nil
	}
	a := c.tickets[ticket(r.ticket)]
	if a == nil || a.state != open || c.expire(a, r.now, out) {
		return nil
	}
	return a
}

// move handles an authenticated Refresh with a ticket (§3.2.2). a is the allocation that it names, or nil.
func (c *Core) move(r *request, a *allocation, out *Outbox) {
	switch {
	case !c.cfg.Mobility:
		c.fail(r, out, 405, CauseMobility, nil)
		return
	case len(r.ticket) != TicketSize:
		c.fail(r, out, 400, CauseBadRequest, nil)
		return
	case a == nil:
		c.fail(r, out, 437, CauseNoAllocation, nil)
		return
	case a.owner != r.cred.owner || a.cur.tenant != r.cred.tenant: // as its owner, not as who resumes
		c.fail(r, out, 441, CauseWrongCredentials, nil)
		return
	}
	m := a.mobile
	if ticket(r.ticket) != m.ticket { // a retransmission, or nothing
		if c.tuples[r.tuple] == a && m.id == r.msg.TransactionID() && r.now.Before(m.until) {
			c.moved(r, a, m.life, out)
		} else {
			c.fail(r, out, 437, CauseNoAllocation, nil)
		}
		return
	}
	if r.tuple == a.tuple && !m.lost {
		c.fail(r, out, 400, CauseBadRequest, nil)
		return
	}
	if o := c.tuples[r.tuple]; o != nil && o != a {
		c.fail(r, out, 437, CauseMismatch, nil)
		return
	}
	life, ok := c.refreshed(r, a, out)
	if !ok || life == 0 {
		return // refused, or deleted
	}
	if m.next != (Tuple{}) {
		delete(c.tuples, m.next)
	}
	delete(c.tickets, m.old)
	m.old, m.until, m.id, m.life = m.ticket, r.now.Add(OldTicketLife), r.msg.TransactionID(), life
	c.newTicket(a)
	c.tuples[r.tuple] = a
	m.next = r.tuple
	if m.lost {
		c.arrived(a, r.tuple)
	}
	c.moved(r, a, life, out)
}

// moved answers a move.
func (c *Core) moved(r *request, a *allocation, life time.Duration, out *Outbox) {
	m := stun.AppendUint32(r.begin(out, stun.Success), stun.AttrLifetime, uint32(life/time.Second))
	c.reply(r, out, stun.AppendAttr(m, stun.AttrMobilityTicket, a.mobile.ticket[:]))
}

// arrived tells that data of a has come from t: if that is its new path, it is its only one now.
func (c *Core) arrived(a *allocation, t Tuple) {
	if m := a.mobile; m != nil && m.next == t {
		if c.tuples[a.tuple] == a && a.tuple != t {
			delete(c.tuples, a.tuple)
		}
		a.tuple, m.next, m.lost = t, Tuple{}, false
	}
}

// detach tells that the connection t of a is gone, and reports whether a lives on.
func (c *Core) detach(a *allocation, t Tuple, now time.Time) bool {
	m := a.mobile
	switch {
	case m == nil || a.state != open:
		return false
	case m.next == t: // the old path is still there
		delete(c.tuples, t)
		m.next = Tuple{}
	case m.next != (Tuple{}): // §3.2.2: data goes by the new path then
		c.arrived(a, m.next)
	default:
		m.lost = true
		delete(c.tuples, t)
		for i := range a.halves {
			if h := &a.halves[i]; h.open() && h.expires.After(now.Add(Unreachable)) {
				h.expires = now.Add(Unreachable)
			}
		}
		c.reschedule(a)
	}
	return true
}

// forgetMobile takes a's tickets and its new path out.
func (c *Core) forgetMobile(a *allocation) {
	if m := a.mobile; m != nil {
		delete(c.tickets, m.ticket)
		if c.tickets[m.old] == a {
			delete(c.tickets, m.old)
		}
		if m.next != (Tuple{}) {
			delete(c.tuples, m.next)
		}
	}
}
