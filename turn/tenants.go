package turn

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"

	"wicgate/internal/peerpolicy"
)

// completeTenants fills in defaults and says what is wrong.
func (c *Config) completeTenants() error {
	if len(c.Tenants) > maxTenants {
		return fmt.Errorf("turn: %d tenants, at most %d", len(c.Tenants), maxTenants)
	}
	if err := completeTenant(&c.Tenant); err != nil {
		return err
	}
	names := []string{c.Name}
	var listeners []netip.AddrPort
	var serverNames []string
	for i := range c.Tenants {
		t := &c.Tenants[i]
		if err := completeTenant(&t.Tenant); err != nil {
			return err
		}
		if slices.Contains(names, t.Name) {
			return fmt.Errorf("turn: two tenants are named %q", t.Name)
		}
		names = append(names, t.Name)
		for _, a := range t.Listen {
			if !slices.Contains(c.Listen, a) && !slices.Contains(c.TCP, a) {
				return fmt.Errorf("turn: tenant %q: %v is no address to listen on; add it to turn.listen or turn.listen_tcp", t.Name, a)
			}
			if slices.Contains(listeners, a) {
				return fmt.Errorf("turn: tenant %q: listener %v is another tenant's", t.Name, a)
			}
		}
		listeners = append(listeners, t.Listen...)
		for _, n := range t.ServerNames {
			if n = strings.ToLower(n); n == "" || slices.Contains(serverNames, n) {
				return fmt.Errorf("turn: tenant %q: server name %q is empty or named twice", t.Name, n)
			}
			serverNames = append(serverNames, strings.ToLower(n))
		}
	}
	return nil
}

// maxTenants bounds the look for a kid on a listener of all.
const maxTenants = 1024

func completeTenant(t *Tenant) error {
	switch {
	case t.Name == "" || len(t.Name) > 127 || strings.ContainsFunc(t.Name, func(r rune) bool { return r <= ' ' || r > '~' || r == '"' || r == '\\' }):
		return fmt.Errorf("turn: name %q: want 1 to 127 printable ASCII characters without space, quote or backslash; set turn.name", t.Name)
	case t.Peers.Profile() == peerpolicy.DenyAll:
		return errors.New("turn: no peer may be relayed to; set turn.peers to the gateways' media ranges or to the general profile")
	case t.Keys == nil:
		return errors.New("turn: no keys")
	case t.Policy > Strict:
		return fmt.Errorf("turn: credential policy %d is unknown", t.Policy)
	case t.GraceMax < 0 || t.Quota < 0 || t.QuotaTenant < 0 || t.Rate < 0 || t.RatePseudonym < 0 || t.RateTenant < 0:
		return fmt.Errorf("turn: a limit of %q is negative", t.Name)
	}
	setDefault(&t.GraceMax, 12*time.Hour)
	setDefault(&t.Quota, 32)
	setDefault(&t.QuotaTenant, math.MaxInt)
	return nil
}

// choices say which tenant a client has chosen by where, and under what name, it came: 1 = the first,
// 0 = none.
type choices struct {
	listeners []uint16 // by the number of the listener, as in core.Tuple
	names     map[string]uint16
}

func (s *Server) choices() choices {
	c := choices{names: map[string]uint16{}}
	for _, a := range slices.Concat(s.cfg.Listen, s.cfg.TCP) {
		i := slices.IndexFunc(s.cfg.Tenants, func(t Other) bool { return slices.Contains(t.Listen, a) })
		if i >= 0 {
			i++ // 0 is the first tenant
		}
		c.listeners = append(c.listeners, uint16(i+1))
	}
	for i, t := range s.cfg.Tenants {
		for _, n := range t.ServerNames {
			c.names[strings.ToLower(n)] = uint16(i + 2)
		}
	}
	return c
}

// by returns the tenant of a client on a listener who asked for a name in TLS, "" = none. The listener
// goes before the name, which anybody may send.
func (c *choices) by(listener uint16, name string) uint16 {
	if t := c.listeners[listener]; t != 0 {
		return t
	}
	return c.names[strings.ToLower(name)]
}
