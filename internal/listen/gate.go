package listen

import (
	"container/list"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"wicgate/internal/limit"
)

// Limits bound what strangers may hold open. A source is an IPv4 address or an IPv6 /64. Zeros mean
// the defaults.
type Limits struct {
	// Handshake is how long a new connection may take to its first byte and through TLS, or an
	// association through DTLS; 0 = 10 s.
	Handshake time.Duration
	// MaxOpening may be in that state; 0 = 512. One more, and the oldest of them is closed: who is
	// slow makes room for who is not.
	MaxOpening int
	// MaxOpeningSource of them may come from one source; 0 = 32.
	MaxOpeningSource int
	// MaxOpen may be open in all, those too; 0 = 8192. One more is refused.
	MaxOpen int
	// MaxOpenSource of them may come from one source; 0 = 256.
	MaxOpenSource int
	// HandshakeBurst handshakes of TLS or DTLS may one source begin at once, and one more after each
	// HandshakeEvery; 0 = 256 and 1/16 s. Each costs the server a signature.
	HandshakeBurst int
	HandshakeEvery time.Duration
}

func (l *Limits) complete() {
	for _, d := range []struct {
		v *int
		d int
	}{{&l.MaxOpening, 512}, {&l.MaxOpeningSource, 32}, {&l.MaxOpen, 8192}, {&l.MaxOpenSource, 256}, {&l.HandshakeBurst, 256}} {
		if *d.v <= 0 {
			*d.v = d.d
		}
	}
	if l.Handshake <= 0 {
		l.Handshake = 10 * time.Second
	}
	if l.HandshakeEvery <= 0 {
		l.HandshakeEvery = time.Second / 16
	}
}

// Why a connection does not come to the handler: a closed set, fit for a metric's label.
const (
	refusedOpen          = "connections"        // MaxOpen
	refusedOpenSource    = "connections_source" // MaxOpenSource
	refusedOpeningSource = "handshakes_source"  // MaxOpeningSource
	refusedOpening       = "handshakes"         // MaxOpening: closed for a newer one
	refusedRate          = "handshake_rate"     // HandshakeBurst
	refusedSlow          = "handshake_timeout"
	refusedTLS           = "tls"             // handshake failed: version, ALPN, the client's trust
	refusedGone          = "gone"            // closed before its first byte
	refusedProtocol      = "protocol"        // neither TLS nor plain, or TLS without a certificate
	refusedACME          = "acme"            // a CA's look at the certificate (RFC 8737): nothing follows the handshake
	refusedProxyHeader   = "proxy_header"    // of a trusted proxy: missing or malformed
	refusedProxySource   = "proxy_untrusted" // a PROXY header from who is not a trusted proxy
	refusedCookie        = "cookie"          // of DTLS: not ours for this client, or too old
)

// gate counts what is open, and what of it is still in its handshake.
type gate struct {
	limits Limits
	rate   *limit.Limiter

	mu      sync.Mutex // guards the following
	closed  bool
	open    map[*visitor]struct{}
	opening *list.List // of *visitor, the oldest first
	sources map[netip.Addr]*source
	refused map[string]uint64
}

// visitor is a connection or association that a gate has let in.
type visitor struct {
	close  func()        // ends it, at once; its goroutine sees the error
	source netip.Addr    // what the limits for one source count it by; the zero Addr = they do not
	place  *list.Element // among those that open; nil = not any more
}

// source counts the visitors of one source. It is there as long as there are any.
type source struct{ open, opening int }

// newGate returns a gate that counts refusals for causes, and for its own.
func newGate(l Limits, causes ...string) *gate {
	l.complete()
	g := &gate{
		limits: l, rate: limit.New(l.HandshakeBurst, l.HandshakeEvery),
		open: map[*visitor]struct{}{}, opening: list.New(), sources: map[netip.Addr]*source{}, refused: map[string]uint64{},
	}
	for _, why := range append(causes, refusedOpen, refusedOpenSource, refusedOpeningSource, refusedOpening, refusedRate, refusedSlow, refusedTLS) {
		g.refused[why] = 0
	}
	return g
}

// sourceOf is what the limits for one source count by.
func sourceOf(a netip.Addr) netip.Addr {
	if a.Is6() {
		if p, err := a.WithZone("").Prefix(64); err == nil {
			return p.Addr()
		}
	}
	return a
}

// enter lets a visitor in, or says why it does not. The zero Addr is a source that is not known yet.
func (g *gate) enter(v *visitor, from netip.Addr) (why string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.closed:
		return refusedGone
	case len(g.open) >= g.limits.MaxOpen:
		why = refusedOpen
	case from.IsValid():
		why = g.attributeLocked(v, from)
	}
	if why != "" {
		g.refused[why]++
		return why
	}
	if g.opening.Len() >= g.limits.MaxOpening {
		oldest := g.opening.Front()
		oldest.Value.(*visitor).close()
		g.opening.Remove(oldest)
		g.refused[refusedOpening]++
	}
	g.open[v] = struct{}{}
	v.place = g.opening.PushBack(v)
	return ""
}

// attribute counts a visitor for the source that it turned out to have, or says why it may not stay.
func (g *gate) attribute(v *visitor, from netip.Addr) (why string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.attributeLocked(v, from)
}

func (g *gate) attributeLocked(v *visitor, from netip.Addr) (why string) {
	from = sourceOf(from)
	src := g.sources[from]
	switch {
	case src == nil:
		src = new(source)
		g.sources[from] = src
	case src.open >= g.limits.MaxOpenSource:
		return refusedOpenSource
	case src.opening >= g.limits.MaxOpeningSource:
		return refusedOpeningSource
	}
	src.open++
	src.opening++
	v.source = from
	return ""
}

// mayHandshake says whether a source may begin one more handshake now.
func (g *gate) mayHandshake(source netip.Addr) bool {
	_, ok := g.rate.Take(source.String(), time.Now())
	return ok
}

// opened ends the state of opening, and counts why the visitor is refused, if it is. evicted says
// that it had been ended for a newer one, which was counted then. A second call does nothing.
func (g *gate) opened(v *visitor, why string) (evicted bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if v.place == nil {
		return false
	}
	if src := g.sources[v.source]; src != nil {
		src.opening--
	}
	before := g.opening.Len()
	g.opening.Remove(v.place) // nothing, if it is not there any more
	evicted = g.opening.Len() == before
	v.place = nil
	if why != "" && !evicted {
		g.refused[why]++
	}
	return evicted
}

// leave counts a visitor out.
func (g *gate) leave(v *visitor) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if src := g.sources[v.source]; src != nil {
		if src.open--; src.open == 0 {
			delete(g.sources, v.source)
		}
	}
	delete(g.open, v)
}

// refuse counts a visitor that has not entered.
func (g *gate) refuse(why string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.refused[why]++
}

// shut lets nobody in any more, and returns who is in.
func (g *gate) shut() []*visitor {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	return slices.Collect(maps.Keys(g.open))
}

// counts returns how many are in, and the refusals.
func (g *gate) counts() (open int, refused map[string]uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	refused = make(map[string]uint64, len(g.refused))
	for why, n := range g.refused {
		refused[why] = n
	}
	return len(g.open), refused
}
