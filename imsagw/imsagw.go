// Package imsagw is the eIMS-AGW of TS 23.334: the media edge under the edge's control over Iq.
//
// A session is one call leg, a stream one of its m-lines. A stream stands between a browser and the
// IMS core and changes the protection of each packet, never its content:
//
//	browser ── ICE, DTLS-SRTP, rtcp-mux ──► access socket ─┐ SRTP in place ┌─► RTP socket  ── RTP/AVP ──► core
//	                                                       └───────────────┴─► RTCP socket
//
// The gateway owns its sockets and sorts what arrives by RFC 7983. Only STUN and DTLS reach pion's
// agents, through small queues; SRTP is decrypted and encrypted in place by the goroutine that read
// it. Every packet of a browser leaves by the core-facing sockets, also where the far end is another
// session of this gateway: there is no local short cut (TR 33.872 §6.1, hop by hop).
//
// It follows RFC 8445 (full ICE, one component), RFC 7675 (consent), RFC 5763/5764 (DTLS-SRTP, always
// the server), RFC 8122 (fingerprints), RFC 3711/7714 (SRTP), RFC 5761 (rtcp-mux on the access side).
// It reads no SDP, decides no policy, transcodes nothing and records nothing: that is the edge's, or
// an operator's own function behind the core-facing side.
package imsagw

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"wicgate/internal/iq"
	"wicgate/internal/store"
)

// Config of a gateway.
type Config struct {
	// Log; nil: none.
	Log *slog.Logger
	// Name of the gateway on the bus, 1 to 32 of a-z 0-9 -, e.g. "agw1". The edge asks it by this name.
	Name string
	// Access faces the browsers, and the TURN servers that relay for them. Each stream takes one port.
	Access Side
	// Core faces the IMS. Each stream takes an even port and the odd one above it (RFC 3550 §11).
	Core Side
	// CorePeers are the addresses that the core's media may have; empty: any unicast address. Loopback
	// is a peer only where Core itself is bound to loopback.
	CorePeers []netip.Prefix
	// Bus carries Iq.
	Bus store.Bus
	// MaxSessions bounds the sessions alive at once; default 1000. The next one is refused.
	MaxSessions int
}

// Side is a range of UDP ports on one address.
type Side struct {
	// Bind is the local address of the sockets.
	Bind netip.Addr
	// Advertise is the address that the other side is told, where a NAT stands between; default Bind.
	// Required where Bind is unspecified.
	Advertise netip.Addr
	// MinPort and MaxPort bound the ports, both included. Both 0: any free port, for tests.
	MinPort, MaxPort uint16
}

// timing is what tests shorten. Nothing outside the package sets it.
type timing struct {
	reserve       time.Duration // a session with no remote side at all ends after this
	answer        time.Duration // a session whose browser never answered ends after this
	linger        time.Duration // a session that failed ends after this, if the edge does not end it
	ice           time.Duration // from the browser's description to a nominated pair
	handshake     time.Duration // from the pair, or the first DTLS packet, to the keys
	consentPeriod time.Duration // between two consent checks, before randomising; RFC 7675 §5.1
	consentExpiry time.Duration // without an answer before sending stops; RFC 7675 §5.1
	oldChecks     time.Duration // from an ICE restart's nomination until the old checks are answered no more
	sweep         time.Duration // between two looks for abandoned sessions
}

// defaultTiming: answer is longer than SIP's timer C (RFC 3261 §16.6, over 3 minutes), so that the
// gateway is never the one that stops a phone ringing.
var defaultTiming = timing{
	reserve: time.Minute, answer: 4 * time.Minute, linger: time.Minute,
	ice: 30 * time.Second, handshake: 30 * time.Second,
	consentPeriod: 5 * time.Second, consentExpiry: 30 * time.Second,
	oldChecks: 5 * time.Second,
	sweep:     5 * time.Second,
}

// maxEvents bounds the events waiting for the bus, over all sessions.
const maxEvents = 1024

// Gateway is an eIMS-AGW. It implements [iq.Handler]; the edge reaches it over the bus.
type Gateway struct {
	cfg         Config
	log         *slog.Logger
	timing      timing
	cert        tls.Certificate
	fingerprint iq.Fingerprint
	access      *portRange
	core        *portRange

	// events waits for the one goroutine that publishes. Never closed.
	events chan iq.Event
	count  happened

	// ops makes Set and Release one at a time, whoever calls. It is taken before mu.
	ops sync.Mutex

	mu       sync.Mutex // guards the following fields; taken before a session's mu
	sessions map[sessionKey]*session
	ended    totals       // of the sessions that are no more
	swept    []sessionKey // the newest sessions that ended without the edge asking; see Set
	closed   bool
}

var _ iq.Handler = (*Gateway)(nil)

// New checks cfg, makes the gateway's certificate, and opens sockets of both ranges once to see that
// it can. It starts nothing.
func New(cfg Config) (*Gateway, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.MaxSessions == 0 {
		cfg.MaxSessions = 1000
	}
	switch {
	case cfg.Bus == nil:
		return nil, errors.New("imsagw: no bus to be reached by")
	case cfg.MaxSessions < 0:
		return nil, fmt.Errorf("imsagw: imsagw.max_sessions is %d: want 1 or more", cfg.MaxSessions)
	}
	cert, fp, err := newCertificate()
	if err != nil {
		return nil, fmt.Errorf("imsagw: make the DTLS certificate: %w", err)
	}
	g := &Gateway{
		cfg: cfg, log: cfg.Log.With("gateway", cfg.Name), timing: defaultTiming,
		cert: cert, fingerprint: fp,
		events:   make(chan iq.Event, maxEvents),
		sessions: map[sessionKey]*session{},
	}
	if g.access, err = newPortRange("imsagw.access", cfg.Access, 1); err != nil {
		return nil, err
	}
	if g.core, err = newPortRange("imsagw.core", cfg.Core, 2); err != nil {
		return nil, err
	}
	for _, r := range []*portRange{g.access, g.core} {
		conns, err := r.open()
		if err != nil {
			return nil, fmt.Errorf("imsagw: %w", err)
		}
		r.release(conns)
	}
	return g, nil
}

// Serve answers the edges until ctx ends. Then it takes no more requests, ends every session at
// once (a gateway cannot outwait a call), and returns nil once all it started has returned. It
// is called once.
func (g *Gateway) Serve(ctx context.Context) error {
	stop, err := iq.Serve(g.cfg.Bus, g.cfg.Name, g, g.log)
	if err != nil {
		return err
	}
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { g.publish(done) })
	g.log.Info("imsagw: ready", "access", g.access, "core", g.core, "fingerprint", g.fingerprint.Value)

	sweep := time.NewTicker(g.timing.sweep)
	defer sweep.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case now := <-sweep.C:
			g.sweep(now)
		}
	}

	stop()
	g.mu.Lock()
	g.closed = true
	left := make([]*session, 0, len(g.sessions))
	for _, s := range g.sessions {
		left = append(left, s)
	}
	g.mu.Unlock()
	var closing sync.WaitGroup
	for _, s := range left {
		closing.Go(func() { g.end(s) })
	}
	closing.Wait()
	close(done)
	wg.Wait()
	return nil
}

// publish carries events to the bus. It is a goroutine of its own, because an edge may answer an event
// with a Release, in the publisher's own call on a bus within one process.
func (g *Gateway) publish(done <-chan struct{}) {
	for {
		select {
		case e := <-g.events:
			if err := iq.Publish(g.cfg.Bus, e); err != nil {
				g.count.eventsLost.Add(1)
				g.log.Warn("imsagw: event not published", "kind", e.Kind, "session", e.Ref.Session, "error", err)
			}
		case <-done:
			return
		}
	}
}

// emit hands an event to publish. It never waits.
func (g *Gateway) emit(e iq.Event) {
	select {
	case g.events <- e:
	default:
		g.count.eventsLost.Add(1)
		g.log.Error("imsagw: event lost: the bus takes none", "kind", e.Kind, "session", e.Ref.Session)
	}
}

type sessionKey struct{ edge, session string }

func keyOf(r iq.Ref) sessionKey { return sessionKey{r.Edge, r.Session} }

// Set reserves or modifies a session. It implements [iq.Handler]: requests come valid and in order.
// What it refuses leaves the session as it was.
func (g *Gateway) Set(req iq.Set) (iq.Local, error) {
	g.ops.Lock()
	defer g.ops.Unlock()
	key := keyOf(req.Ref)
	g.mu.Lock()
	s, n, closed := g.sessions[key], len(g.sessions), g.closed
	gone := slices.Contains(g.swept, key)
	g.mu.Unlock()
	switch {
	case gone:
		return iq.Local{}, fmt.Errorf("%w: the gateway ended it as abandoned", iq.ErrUnknownSession)
	case s != nil:
		return s.set(req)
	case closed:
		return iq.Local{}, fmt.Errorf("%w: the gateway is stopping", iq.ErrCapacity)
	case n >= g.cfg.MaxSessions:
		return iq.Local{}, fmt.Errorf("%w: %d sessions, the limit is imsagw.max_sessions", iq.ErrCapacity, n)
	}
	s = newSession(g, req)
	l, err := s.set(req)
	if err != nil {
		s.close()
		return iq.Local{}, err
	}
	g.mu.Lock()
	if closed = g.closed; !closed {
		g.sessions[key] = s
		g.ended.sessions++
	}
	g.mu.Unlock()
	if closed { // Serve has counted its sessions, and this one was not among them
		s.close()
		return iq.Local{}, fmt.Errorf("%w: the gateway is stopping", iq.ErrCapacity)
	}
	return l, nil
}

// Release ends a session, frees its ports, and reports what it carried. It implements [iq.Handler].
func (g *Gateway) Release(req iq.Release) (iq.Report, error) {
	g.ops.Lock()
	defer g.ops.Unlock()
	g.mu.Lock()
	s := g.sessions[keyOf(req.Ref)]
	g.mu.Unlock()
	if s == nil {
		return iq.Report{}, iq.ErrUnknownSession
	}
	return g.end(s), nil
}

// end closes a session and moves its counters to the totals, in one step for Stats.
func (g *Gateway) end(s *session) iq.Report {
	s.close()
	r := s.report()
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.sessions[s.key] == s {
		delete(g.sessions, s.key)
		g.ended.add(s)
	}
	return r
}

// maxSwept bounds the abandoned sessions remembered.
const maxSwept = 1024

// sweep ends the sessions that nobody wants any more: see [timing].
func (g *Gateway) sweep(now time.Time) {
	g.ops.Lock()
	defer g.ops.Unlock()
	g.mu.Lock()
	var gone []*session
	for _, s := range g.sessions {
		if s.abandoned(now) {
			gone = append(gone, s)
		}
	}
	g.mu.Unlock()
	for _, s := range gone {
		g.log.Warn("imsagw: session abandoned by its edge, released", "edge", s.key.edge, "session", s.key.session)
		g.end(s)
		g.count.abandoned.Add(1)
		g.mu.Lock()
		if g.swept = append(g.swept, s.key); len(g.swept) > maxSwept {
			g.swept = g.swept[1:]
		}
		g.mu.Unlock()
	}
}

// peer says whether an address of the core may send and get media.
func (g *Gateway) peer(ip netip.Addr) bool {
	if len(g.cfg.CorePeers) == 0 {
		return true
	}
	for _, p := range g.cfg.CorePeers {
		if p.Contains(ip) {
			return true
		}
	}
	return false
}
