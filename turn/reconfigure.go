package turn

import (
	"fmt"
	"time"
)

// Reconfigure puts new settings in place of the tenants', the first and those of Config.Tenants in their
// order; their names stay, and how clients choose them. Either all are taken or, with an error, none.
// Allocations live on: peers, users, quotas and rates are asked of the new settings from the next packet
// on, and a credential policy from the next Refresh. Those of static users who are no longer there end;
// it returns how many.
func (s *Server) Reconfigure(tenants []Tenant, blindClosed bool) (ended int, err error) {
	names := []string{s.cfg.Name}
	for _, t := range s.cfg.Tenants {
		names = append(names, t.Name)
	}
	if len(tenants) != len(names) {
		return 0, fmt.Errorf("turn: %d tenants in place of %d; that needs a restart", len(tenants), len(names))
	}
	next := make([]Tenant, len(tenants))
	for i, t := range tenants {
		if t.Name != names[i] {
			return 0, fmt.Errorf("turn: tenant %q in place of %q; that needs a restart", t.Name, names[i])
		}
		if err := completeTenant(&t); err != nil {
			return 0, err
		}
		s.refuseOwn(&t)
		next[i] = t
	}
	w := newWorker(s)
	s.mu.Lock()
	s.core.Reconfigure(next, blindClosed)
	ended = s.core.Recheck(time.Now(), &w.out)
	s.mu.Unlock()
	w.act(&w.out)
	return ended, nil
}
