package core

import (
	"net/netip"
	"slices"
	"time"
)

// Allocation is one as an operator sees it.
type Allocation struct {
	ID             ID
	Pseudonym      string
	Tenant         string // its name
	Credential     CredentialKind
	Tuple          Tuple
	Relayed        []netip.AddrPort // IPv4 first
	Since, Expires time.Time        // of the allocation; Refresh moves Expires
	CredentialEnds time.Time
	Permissions    []netip.Addr // in force
	Channels       []netip.AddrPort
	Traffic        Traffic
}

// List returns the allocations that are open, oldest first: all, or those for which want is true.
func (c *Core) List(now time.Time, want func(id ID, pseudonym string) bool) (list []Allocation) {
	for id, a := range c.ids {
		if a.state != open || a.expired(now) || want != nil && !want(id, a.owner) {
			continue
		}
		s := Allocation{
			ID: id, Pseudonym: a.owner, Tenant: a.cur.tenant.Name, Credential: a.cur.kind, Tuple: a.tuple, Relayed: a.relayed(),
			Since: a.born, Expires: a.latest(), CredentialEnds: a.cur.ends, Traffic: a.traffic,
		}
		for addr, until := range a.permissions {
			if now.Before(until) {
				s.Permissions = append(s.Permissions, addr)
			}
		}
		for _, ch := range a.channels {
			if now.Before(ch.expires) {
				s.Channels = append(s.Channels, ch.peer)
			}
		}
		slices.SortFunc(s.Permissions, netip.Addr.Compare)
		slices.SortFunc(s.Channels, netip.AddrPort.Compare)
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b Allocation) int { return int(a.ID) - int(b.ID) })
	return list
}
