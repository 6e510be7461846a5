package core

import (
	"crypto/rand"
	"slices"
	"time"
)

const (
	// ReservationLifetime is how long the port behind an even one is held (RFC 8656 §7.2: at least 30 s).
	ReservationLifetime = 30 * time.Second
	// maxReservations bounds those of all clients: each is a socket and a port. Above it: 508.
	maxReservations = 256
)

// reservation is the relay socket behind one on an even port, held for who asked for that one. It
// counts as an allocation of its owner.
type reservation struct {
	token   [8]byte // RESERVATION-TOKEN: random, since it is good from any 5-tuple
	tenant  *tenant
	owner   string
	socket  Socket
	expires time.Time
}

// reserve holds s for the owner of a.
func (c *Core) reserve(s Socket, a *allocation, now time.Time) (token [8]byte) {
	rand.Read(token[:]) // never fails
	// All live equally long: the oldest, the first to expire, stays in front.
	c.reserved = append(c.reserved, reservation{token, a.cur.tenant, a.owner, s, now.Add(ReservationLifetime)})
	return token
}

// reservation returns the place of the one that token names, -1 if there is none of owner.
func (c *Core) reservation(token []byte, owner *credential) int {
	return slices.IndexFunc(c.reserved, func(r reservation) bool {
		return string(r.token[:]) == string(token) && r.tenant == owner.tenant && r.owner == owner.owner
	})
}

// release closes the reservations that over says.
func (c *Core) release(over func(r *reservation) bool, out *Outbox) {
	c.reserved = slices.DeleteFunc(c.reserved, func(r reservation) bool {
		if !over(&r) {
			return false
		}
		out.Actions = append(out.Actions, Action{Kind: Close, Relay: r.socket.Relay})
		return true
	})
}

// releaseExpired closes those whose time is over.
func (c *Core) releaseExpired(now time.Time, out *Outbox) {
	if len(c.reserved) > 0 && !now.Before(c.reserved[0].expires) {
		c.release(func(r *reservation) bool { return !now.Before(r.expires) }, out)
	}
}

// reservedOf counts the reservations of a tenant: of one owner, or of all for "".
func (c *Core) reservedOf(t *tenant, owner string) (n int) {
	for i := range c.reserved {
		if r := &c.reserved[i]; r.tenant == t && (owner == "" || r.owner == owner) {
			n++
		}
	}
	return n
}

// held returns how many relay sockets owner's quota counts: allocations, and ports that are reserved
// or about to be.
func (c *Core) held(t *tenant, owner string) int {
	n := c.reservedOf(t, owner)
	if o := t.owners[owner]; o != nil {
		n += len(o.allocations)
		for _, a := range o.allocations {
			if a.state == opening && a.next {
				n++
			}
		}
	}
	return n
}
