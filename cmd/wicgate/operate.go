package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"wicgate/internal/admin"
	"wicgate/internal/life"
	"wicgate/internal/obs"
	"wicgate/internal/session"
	"wicgate/turn"
	"wicgate/waf"
)

// operator is what the operator's door leads to. Its fields are filled as the roles are made.
type operator struct {
	health  admin.Health
	metrics *obs.Metrics

	turn *turn.Server // nil: does not run here
	waf  *waf.Server  // same
}

// openDoor makes the admin socket. It starts first and ends last, so that a drain can be watched.
func (h *house) openDoor() error {
	version, revision := build()
	h.metrics = obs.New(version, revision)
	a, err := admin.New(admin.Config{
		Dir: h.data, Log: h.log, Health: &h.health, Metrics: h.metrics.Handler(),
		Stats: func() map[string]any {
			all := map[string]any{}
			for role, stats := range h.stats {
				all[role] = stats()
			}
			return all
		},
		TURN:    h.sessions,
		Revoker: func() admin.Revoker { return h },
	})
	if err != nil {
		return err
	}
	h.parts = append(h.parts, life.Part{Name: "admin", Serve: a.Serve})
	return nil
}

// observe makes what watches the roles, once all are made: metrics, health, and the page for both where
// admin.listen asks for it.
func (h *house) observe() error {
	for role, stats := range h.stats {
		if err := h.metrics.Role(role, stats); err != nil {
			return err
		}
	}
	h.watch()
	type gauge struct {
		name, help string
		value      func() float64
	}
	gauges := []gauge{{"wicgate_ready", "1 while new users should be sent here, as /readyz says.", func() float64 {
		if h.health.Ready(context.Background()).Ready {
			return 1
		}
		return 0
	}}}
	if h.cert != nil {
		gauges = append(gauges, gauge{"wicgate_certificate_not_after_timestamp_seconds", "When the certificate that browsers are shown ends, in seconds since 1970.", func() float64 {
			leaf, err := h.leaf()
			if err != nil {
				return 0
			}
			return float64(leaf.NotAfter.Unix())
		}})
	}
	if h.has("turn") {
		n := float64(h.file.TURN.Relay.Ports.Count())
		gauges = append(gauges, gauge{"wicgate_turn_relay_ports", "Relay ports, the most allocations that there can be.", func() float64 { return n }})
	}
	for _, g := range gauges {
		if err := h.metrics.Gauge(g.name, g.help, g.value); err != nil {
			return err
		}
	}
	if on := h.file.Admin.Listen; on.IsValid() {
		o, err := admin.NewObserver("admin.listen", on.AddrPort, &h.health, h.metrics.Handler(), h.log)
		if err != nil {
			return err
		}
		// After the socket, before every role: it too answers until the roles have drained.
		h.parts = append([]life.Part{h.parts[0], {Name: "observer", Serve: o.Serve}}, h.parts[1:]...)
	}
	h.parts = append(h.parts, life.Part{Name: "health", Serve: h.health.Serve})
	return nil
}

// leaf is the certificate that browsers are shown.
func (h *house) leaf() (*x509.Certificate, error) {
	c, err := h.cert(&tls.ClientHelloInfo{})
	if err != nil {
		return nil, err
	}
	if c.Leaf != nil {
		return c.Leaf, nil
	}
	return x509.ParseCertificate(c.Certificate[0])
}

// watch tells health what the roles depend on. What makes every node unready at once, and the users no
// better off, is told as degraded.
func (h *house) watch() {
	if h.bus != nil {
		h.health.Watch("bus", func(context.Context) error { return h.bus.Ready() })
	}
	if h.rings != nil {
		h.health.Watch("keys", func(context.Context) error { return admin.Degraded(h.rings.Err()) })
	}
	if h.cert != nil {
		h.health.Watch("certificate", func(context.Context) error {
			leaf, err := h.leaf()
			if err == nil && time.Now().After(leaf.NotAfter) {
				err = fmt.Errorf("expired on %s; renew it", leaf.NotAfter.UTC().Format(time.DateTime))
			}
			return admin.Degraded(err)
		})
	}
	if h.has("epcscf") {
		core := h.file.EPCSCF.Core.String()
		h.health.Watch("core", func(ctx context.Context) error {
			c, err := (&net.Dialer{}).DialContext(ctx, "tcp", core)
			if err != nil {
				return fmt.Errorf("no connection with the core: %w; nobody can register or call", err)
			}
			return c.Close()
		})
	}
	if h.has("wwsf") && !h.has("waf") {
		url := string(h.file.HTTPS.URL) + "/.well-known/oauth-authorization-server"
		h.health.Watch("waf", func(ctx context.Context) error {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
			if err != nil {
				return err
			}
			res, err := h.client.Do(req)
			if err != nil {
				return fmt.Errorf("the WAF is not reached: %w; nobody can log in", err)
			}
			res.Body.Close()
			if res.StatusCode != http.StatusOK {
				return fmt.Errorf("the WAF answers %s to GET %s; nobody can log in", res.Status, url)
			}
			return nil
		})
	}
}

// revocationLife is how long a revocation is remembered where the WAF, which knows better, does not
// run: longer than any credential and its grace.
const revocationLife = 3 * 24 * time.Hour

// Revoke implements [admin.Revoker].
func (h *house) Revoke(ctx context.Context, kind, name string) (done admin.Revoked, err error) {
	if kind != admin.KindPseudonym {
		done, err = h.revokeUser(ctx, name)
		if err == nil || kind == admin.KindUser || !errors.Is(err, admin.ErrNotFound) {
			return done, err
		}
	}
	found := false
	switch {
	case h.operator.waf != nil:
		if found, err = h.operator.waf.RevokeSession(ctx, name, waf.ReasonRevoked); found {
			done.LogIns = 1
		}
	case h.bus != nil:
		// Whether there is such a session only the WAF can tell; its end is noted all the same.
		err = session.NewIssuer(h.bus, h.bus, h.log).Revoke(ctx, name, waf.ReasonRevoked, time.Now().Add(revocationLife))
		found = err == nil
	}
	if t := h.operator.turn; t != nil {
		done.Allocations = t.Revoke(name)
	}
	if err == nil && !found && done.Allocations == 0 {
		err = fmt.Errorf("%q is the pseudonym of no log-in here, and no user's name: %w", name, admin.ErrNotFound)
	}
	return done, err
}

func (h *house) revokeUser(ctx context.Context, name string) (admin.Revoked, error) {
	if h.operator.waf == nil {
		return admin.Revoked{}, fmt.Errorf("user %q: the WAF, which knows users, does not run in this process: %w", name, admin.ErrNotFound)
	}
	n, err := h.operator.waf.RevokeUser(ctx, name, waf.ReasonRevoked)
	if errors.Is(err, waf.ErrNoUser) {
		err = fmt.Errorf("user %q: %w", name, admin.ErrNotFound)
	}
	return admin.Revoked{LogIns: n}, err
}

// sessions is the TURN server as the operator's door sees it, nil where none runs.
func (h *house) sessions() admin.TURN { return nil }
