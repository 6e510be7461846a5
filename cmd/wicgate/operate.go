package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"time"

	"wicgate/internal/admin"
	"wicgate/internal/life"
	"wicgate/internal/obs"
	"wicgate/turn"
	"wicgate/waf"
)

// operator is what the operator's door leads to. Its fields are filled as the roles are made.
type operator struct {
	health  admin.Health
	metrics *obs.Metrics

	turn *turn.Server // nil: does not run here
	waf  *waf.Server  // same

	drain drain
}

// openDoor makes the admin socket. It starts first and ends last, so that a drain can be watched.
func (h *house) openDoor() error {
	version, revision := build()
	h.metrics = obs.New(version, revision)
	cfg := admin.Config{
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
		Reload:  h.reload, Drainer: h, Upgrade: h,
	}
	h.parts = append(h.parts, life.Part{Name: "admin", Serve: h.onceServing(func(ctx context.Context) error {
		if h.door == nil { // told already
			<-ctx.Done()
			return nil
		}
		return h.door.Serve(ctx)
	})})
	h.begin = func() (err error) {
		h.door, err = admin.New(cfg)
		close(h.serving)
		return err
	}
	if h.taker != nil {
		return nil // the socket is another process's yet
	}
	return h.begin()
}

// gauge is a metric of a single value.
type gauge struct {
	name, help string
	value      func() float64
}

// observe makes what watches the roles, once all are made: metrics, health, and the page for both where
// admin.listen asks for it.
func (h *house) observe() error {
	for role, stats := range h.stats {
		if err := h.metrics.Role(role, stats); err != nil {
			h.log.Error("a role is without metrics; this is a bug", "role", role, "error", err) // calls matter more
		}
	}
	h.watch()
	gauges := append(h.observeReload(), gauge{"wicgate_ready", "1 while new users should be sent here, as /readyz says.", func() float64 {
		if h.health.Ready(context.Background()).Ready {
			return 1
		}
		return 0
	}})
	if h.cert != nil {
		gauges = append(gauges, gauge{"wicgate_certificate_not_after_timestamp_seconds", "When the certificate that browsers are shown ends, of several the first, in seconds since 1970; 0 = there is none.", func() float64 {
			leaf, err := h.leaf()
			if err != nil {
				return 0
			}
			return float64(leaf.NotAfter.Unix())
		}})
	}
	if h.has("turn") {
		n := float64(h.file.TURN.RelayPorts())
		gauges = append(gauges, gauge{"wicgate_turn_relay_ports", "Relay ports, the most allocations that there can be.", func() float64 { return n }})
	}
	for _, g := range gauges {
		if err := h.metrics.Gauge(g.name, g.help, g.value); err != nil {
			return err
		}
	}
	if on := h.file.Admin.Listen; on.IsValid() {
		o, err := admin.NewObserver("admin.listen", on.AddrPort, h.observerHeritage, &h.health, h.metrics.Handler(), h.log)
		if err != nil {
			return err
		}
		h.observer = o
		// After the socket, before every role: it too answers until the roles have drained.
		h.parts = append([]life.Part{h.parts[0], {Name: "observer", Serve: h.onceServing(o.Serve)}}, h.parts[1:]...)
	}
	h.parts = append(h.parts, life.Part{Name: "health", Serve: h.onceServing(h.health.Serve)})
	return nil
}

// leaf is the certificate that browsers are shown.
func (h *house) leaf() (*x509.Certificate, error) {
	if h.acme != nil {
		return h.acme.Leaf()
	}
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
		h.health.Watch("bus", func(context.Context) error {
			if err := h.bus.Ready(); err != nil && !h.has("waf") && !h.has("epcscf") && !h.has("imsagw") {
				return admin.Degraded(err) // turn needs it for news alone, and media go on
			}
			return h.bus.Ready()
		})
	}
	if f := h.news.follower; f != nil {
		h.health.Watch("news", func(context.Context) error {
			if err := f.Ready(); h.reloader.now.Load().TURN.Blind == "closed" {
				return err
			} else {
				return admin.Degraded(err)
			}
		})
	}
	if h.rings != nil {
		h.health.Watch("keys", func(context.Context) error { return admin.Degraded(h.rings.Err()) })
	}
	if h.cert != nil {
		h.health.Watch("certificate", func(context.Context) error {
			leaf, err := h.leaf()
			if err != nil && h.acme != nil {
				return err // there is none: nobody can connect here
			}
			if err == nil && h.acme != nil {
				err = h.acme.Err()
			}
			if err == nil && time.Now().After(leaf.NotAfter) {
				err = fmt.Errorf("expired on %s; renew it", leaf.NotAfter.UTC().Format(time.DateTime))
			}
			if err == nil && h.files != nil {
				err = h.files.Err()
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
	stay, err := h.staying()
	if err != nil {
		return done, err
	}
	defer stay()
	if kind != admin.KindPseudonym {
		done, err = h.revokeUser(ctx, name)
		if err == nil || kind == admin.KindUser || !errors.Is(err, admin.ErrNotFound) {
			return done, err
		}
	}
	done = admin.Revoked{As: admin.KindPseudonym, Allocations: h.allocations(name)}
	found := done.Allocations > 0
	switch {
	case h.operator.waf != nil:
		var alive bool
		if alive, err = h.operator.waf.RevokeSession(ctx, name, waf.ReasonRevoked); alive {
			done.LogIns, found = 1, true
		}
	case h.news.issuer != nil:
		// Whether there is such a session only the WAF can tell; its end is noted all the same.
		err = h.news.issuer.Revoke(ctx, name, waf.ReasonRevoked, time.Now().Add(revocationLife))
		found = true
	}
	if t := h.operator.turn; t != nil {
		t.Revoke(name) // at once: the news of it may take a moment, or be lost
	}
	n, failed := h.revokeWithElders(ctx, name)
	done.Allocations += n
	if err = errors.Join(err, failed); err == nil && !found {
		err = fmt.Errorf("%q is the pseudonym of no log-in here, and no user's name: %w", name, admin.ErrNotFound)
	}
	return done, err
}

// revokeUser ends what a user or guest holds.
func (h *house) revokeUser(ctx context.Context, name string) (done admin.Revoked, err error) {
	done.As = admin.KindUser
	w := h.operator.waf
	if w == nil {
		return done, fmt.Errorf("user %q: the WAF, which knows users, does not run in this process: %w", name, admin.ErrNotFound)
	}
	if list, err := w.Sessions(ctx); err == nil { // for the count alone
		for _, s := range list {
			if s.User == name {
				done.Allocations += h.allocations(s.Pseudonym)
			}
		}
	}
	done.LogIns, err = w.RevokeUser(ctx, name, waf.ReasonRevoked)
	if errors.Is(err, waf.ErrNoUser) {
		err = fmt.Errorf("user %q: %w", name, admin.ErrNotFound)
	}
	return done, err
}

// allocations is how many a pseudonym has here.
func (h *house) allocations(pseudonym string) int {
	if h.operator.turn == nil || pseudonym == "" {
		return 0
	}
	return len(h.operator.turn.Sessions(pseudonym))
}

// sessions is the TURN server as the operator's door sees it, nil where none runs.
func (h *house) sessions() admin.TURN {
	if h.operator.turn == nil {
		return nil
	}
	return turnSessions{h, h.operator.turn}
}

type turnSessions struct {
	h *house
	s *turn.Server
}

// Sessions implements [admin.TURN].
func (t turnSessions) Sessions() (out []admin.Session) {
	for _, a := range t.s.Sessions("") {
		x := admin.Session{
			ID: strconv.FormatUint(a.ID, 10), Pseudonym: a.Pseudonym, Tenant: a.Tenant, Client: a.Client.String(), Transport: a.Transport, Relayed: []string{},
			Since: a.Since, Expires: a.Expires, Credential: a.Credential, CredentialEnds: a.CredentialEnds, Permissions: []string{}, Channels: []string{},
			ToPeerPackets: a.ToPeerPackets, ToPeerBytes: a.ToPeerBytes, ToClientPackets: a.ToClientPackets, ToClientBytes: a.ToClientBytes,
		}
		for _, r := range a.Relayed {
			x.Relayed = append(x.Relayed, r.String())
		}
		for _, p := range a.Permissions {
			x.Permissions = append(x.Permissions, p.String())
		}
		for _, c := range a.Channels {
			x.Channels = append(x.Channels, c.String())
		}
		out = append(out, x)
	}
	return append(out, t.h.eldersSessions()...)
}

// Kill implements [admin.TURN].
func (t turnSessions) Kill(id string) bool {
	n, err := strconv.ParseUint(id, 10, 64)
	return err == nil && (t.s.Kill(n) || t.h.killWithElders(id))
}
