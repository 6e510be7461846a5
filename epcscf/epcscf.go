// Package epcscf is the eP-CSCF (TS 23.228 Annex U, TS 24.371): the SIP edge of WebRTC access to
// IMS, P-CSCF and IMS-ALG in one. Browsers speak SIP over WebSocket to it (RFC 7118); the core hears SIP
// over TCP. It checks access tokens, registers by Trusted Node Authentication (TS 33.203 Annex U), screens
// header fields both ways, rewrites session descriptions and controls the media gateway through [Gateway].
//
//	WIC ── WSS ──► flow ──► screen, token, binding ──► transactions ── TCP ──► core
//	                              │
//	                        call ─┴─ offer, answer ── Gateway (Iq)
//
// It routes by flow token (RFC 5626) and keeps no state that outlives the process. It carries no media
// and knows no TURN. Calls hold their place under one lock; only token checks and gateway requests, which may
// wait, happen outside of it.
package epcscf

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"wicgate/internal/iq"
	"wicgate/internal/limit"
	"wicgate/internal/listen"
	"wicgate/internal/secret"
	"wicgate/internal/siptx"
)

// Gateway is the media gateway over Iq; iq.Client satisfies it.
type Gateway interface {
	Set(context.Context, iq.Set) (iq.Local, error)
	Release(context.Context, iq.Release) (iq.Report, error)
	Events(func(iq.Event)) (stop func(), err error)
}

// Config of an edge. Zero limits stand for their defaults.
type Config struct {
	Log *slog.Logger // nil: none
	// Name of this edge on Iq and in flow tokens: a-z 0-9 -, at most 32.
	Name string
	// Domain is the home domain, "ims.test".
	Domain string
	// Audience that a token must be for (aud), and Issuers that it may be from (iss).
	Audience string
	Issuers  []string
	// Keys that tokens are signed with: [JWKS].
	Keys KeySource
	// AuthzServer is the WAF's https URL, told in a 401 (RFC 8898 §4).
	AuthzServer string
	// Origins of pages that may open a WebSocket, exactly as browsers write them.
	Origins []string
	Core    CoreConfig
	Gateway Gateway
	// Guests bounds what guests may do.
	Guests GuestConfig
	// TURN is for the credentials that WICs ask for (TURN-Credential).
	TURN TURNConfig
	// Revoked says whether the session of a pseudonym has been revoked, so that its tokens are
	// refused; nil: none has. Who hears of a revocation calls [Edge.Revoke] besides.
	Revoked func(pseudonym string) bool
	// Extend is told how long the session of a pseudonym is registered, at each REGISTER that the core
	// has granted; nil: nobody is told. It must not wait.
	Extend func(pseudonym string, until time.Time) error
	// FlowKey protects flow tokens; zero: random, so that none outlives the process.
	FlowKey secret.Bytes

	MaxFlows          int // WebSockets in all; default 10000
	MaxFlowsPerSource int // of one IPv4 address or IPv6 /64; default 64
	MaxCalls          int // default 5000
	// RegisterWithin is how long a WebSocket may go without a registration before it is closed; default 30 s.
	RegisterWithin time.Duration
	// MaxExpires bounds a registration; default 1 h. The token's life bounds it too.
	MaxExpires time.Duration
}

// CoreConfig is the Mw side.
type CoreConfig struct {
	// Listen for SIP over TCP. The core reaches it by what Path and Record-Route say: Listen itself, or Advertise where set.
	Listen    netip.AddrPort
	Advertise netip.AddrPort
	// NextHop for REGISTER, and for whatever a route names that is no address among Peers.
	NextHop netip.AddrPort
	// Peers may connect to Listen. NextHop's address need not be among them.
	Peers []netip.Prefix
	// VisitedNetwork is the P-Visited-Network-ID by which the core knows the trusted node.
	VisitedNetwork string
	// AccessNetwork is sent as P-Access-Network-Info, "IEEE-802.11;network-provided"; empty: not sent.
	AccessNetwork string
	// Trusted: Trusted Node Authentication may be sent to NextHop. Without it nobody registers.
	Trusted bool
}

const (
	defaultExpires = 600 * time.Second // of a REGISTER that asks for none
	flowTimer      = 25 * time.Second  // between the server's pings; told in Flow-Timer (RFC 5626)
	drainTime      = 3 * time.Second
)

// Edge is a running eP-CSCF.
type Edge struct {
	cfg      Config
	log      *slog.Logger
	host     string // this edge's name towards browsers
	sentBy   string // host:port towards the core
	listener net.Listener
	epoch    string
	domain   string

	wg   sync.WaitGroup // flows; added to only while serving
	work sync.WaitGroup // workers of calls; added to only until stopped

	mu       sync.Mutex // guards what follows, and the fields of flow, binding and call that say so
	layer    siptx.Layer
	tcp      *siptx.TCP
	serving  bool
	stopped  bool
	flows    map[flowID]*flow
	sources  map[netip.Addr]int // WebSockets by address, of IPv6 by /64
	open     int                // in all
	bindings map[*binding]struct{}
	calls    map[string]*call // by Iq session
	stats    Stats
	guests   *limit.Limiter // calls of guests, by subject

	registering map[*binding]struct{} // REGISTERs of browsers that the core has not answered; guarded by mu
}

// New checks the configuration and opens the listener towards the core.
func New(cfg Config) (*Edge, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.FlowKey.IsZero() {
		cfg.FlowKey = secret.Random(32)
	}
	l, err := listen.TCP("epcscf.listen", cfg.Core.Listen)
	if err != nil {
		return nil, err
	}
	at := l.Addr().(*net.TCPAddr).AddrPort()
	if cfg.Core.Advertise.IsValid() {
		at = cfg.Core.Advertise
	}
	e := &Edge{
		cfg: cfg, log: cfg.Log, listener: l, epoch: rand.Text(), domain: strings.ToLower(cfg.Domain),
		host: cfg.Name + "." + cfg.Domain, sentBy: netip.AddrPortFrom(at.Addr().Unmap(), at.Port()).String(),
		flows: map[flowID]*flow{}, sources: map[netip.Addr]int{}, bindings: map[*binding]struct{}{}, calls: map[string]*call{},
		guests: newGuestLimiter(cfg.Guests.Rate),
	}
	e.layer = siptx.Layer{Do: e.locked, OnRequest: e.onRequest, OnAck: e.onAck, Stranger: isStranger}
	e.tcp = &siptx.TCP{
		Log: cfg.Log, SentBy: e.sentBy, Allow: e.isPeer,
		Receive: func(c *siptx.TCPConn, m *siptx.Message) {
			if e.fault("message of the core", func() { e.locked(func() { e.layer.Receive(c, m) }) }) {
				c.Close(errors.New("internal error"))
			}
		},
		Lost: func(c *siptx.TCPConn) { e.locked(func() { e.layer.ConnLost(c) }) },
	}
	return e, nil
}

func (c *Config) check() error {
	def := func(n *int, d int) {
		if *n == 0 {
			*n = d
		}
	}
	def(&c.MaxFlows, 10000)
	def(&c.MaxFlowsPerSource, 64)
	def(&c.MaxCalls, 5000)
	if c.MaxExpires == 0 {
		c.MaxExpires = time.Hour
	}
	if c.RegisterWithin == 0 {
		c.RegisterWithin = 30 * time.Second
	}
	c.Guests.complete()
	if err := c.TURN.complete(); err != nil {
		return err
	}
	switch {
	case c.Name == "" || len(c.Name) > 32 || strings.Trim(c.Name, "abcdefghijklmnopqrstuvwxyz0123456789-") != "":
		return fmt.Errorf("epcscf: name %q: want 1 to 32 of a-z 0-9 -", c.Name)
	case c.Domain == "" || strings.ContainsAny(c.Domain, " \"<>@;,"):
		return fmt.Errorf("epcscf: domain %q is no host name", c.Domain)
	case c.Audience == "" || len(c.Issuers) == 0 || c.Keys == nil:
		return errors.New("epcscf: audience, issuers and keys are needed to check tokens")
	case len(c.Origins) == 0:
		return errors.New("epcscf: no origin: no page could open a WebSocket")
	case c.Gateway == nil:
		return errors.New("epcscf: no media gateway")
	case !c.Core.NextHop.IsValid():
		return errors.New("epcscf: core: no next hop")
	case c.Core.Listen.Addr().IsUnspecified() && !c.Core.Advertise.IsValid():
		return fmt.Errorf("epcscf: listen %v is every address: say which one the core shall use (advertise)", c.Core.Listen)
	case strings.ContainsAny(c.Core.VisitedNetwork+c.Core.AccessNetwork, "\"\r\n"):
		return errors.New("epcscf: visited network and access network must not hold quotes or line ends")
	}
	if u, err := url.Parse(c.AuthzServer); err != nil || u.Scheme != "https" || strings.ContainsAny(c.AuthzServer, "\" ") {
		return fmt.Errorf("epcscf: authorization server %q is no https URL (RFC 8898 §4)", c.AuthzServer)
	}
	return nil
}

// Addr is where the edge listens for the core.
func (e *Edge) Addr() netip.AddrPort { return e.listener.Addr().(*net.TCPAddr).AddrPort() }

// locked runs work under the lock.
func (e *Edge) locked(work func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	work()
}

// fault runs work and says whether it panicked. A bug met by one message, or one call, must not end
// the others; it is counted and logged with its stack.
func (e *Edge) fault(what string, work func()) (panicked bool) {
	defer func() {
		if r := recover(); r != nil {
			panicked = true
			e.log.Error("internal error: please report it", "in", what, "panic", fmt.Sprint(r), "stack", string(debug.Stack()))
			e.locked(func() { e.stats.Faults++ })
		}
	}()
	work()
	return false
}

func (e *Edge) isPeer(a netip.Addr) bool {
	return a == e.cfg.Core.NextHop.Addr().Unmap() || slices.ContainsFunc(e.cfg.Core.Peers, func(p netip.Prefix) bool { return p.Contains(a) })
}

// Serve runs the edge until ctx ends. It then ends calls and registrations, both ways, within 3 s,
// closes every connection, and returns when all that it started has ended.
func (e *Edge) Serve(ctx context.Context) error {
	stop, err := e.cfg.Gateway.Events(e.onEvent)
	if err != nil {
		_ = e.listener.Close() // the error to tell is the other one
		return fmt.Errorf("epcscf: events of the media gateway: %w", err)
	}
	e.locked(func() { e.serving = true })
	var accept sync.WaitGroup
	accept.Go(func() { e.tcp.Serve(e.listener) })
	e.tcp.To(e.cfg.Core.NextHop) // so that the first caller need not wait
	e.log.Info("edge is serving", "name", e.cfg.Name, "core side", e.sentBy, "next hop", e.cfg.Core.NextHop, "trusted", e.cfg.Core.Trusted)

	<-ctx.Done()
	e.locked(e.drainLocked)
	for end := time.Now().Add(drainTime); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		e.mu.Lock()
		busy := e.layer.Waiting() > 0 || len(e.calls) > 0
		e.mu.Unlock()
		if !busy {
			break
		}
	}
	e.mu.Lock()
	flows := make([]*flow, 0, len(e.flows))
	for _, f := range e.flows {
		flows = append(flows, f)
	}
	e.mu.Unlock()
	for _, f := range flows {
		f.close(1001, "edge is shutting down")
	}
	_ = e.listener.Close() // it ends Serve of tcp
	accept.Wait()
	e.wg.Wait()
	e.tcp.Close()
	stop()
	e.locked(func() {
		e.layer.Close()
		e.stopped = true
	})
	e.work.Wait()
	return nil
}

func (e *Edge) drainLocked() {
	e.serving = false
	for _, c := range e.calls {
		c.end(ending{cause: "shutdown", status: 503, phrase: "Edge Is Shutting Down", failed: true}, true, true)
	}
	for b := range e.bindings {
		e.unbind(b, true)
	}
}
