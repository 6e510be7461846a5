package listen

import (
	"container/list"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"
)

// StreamConfig is how [Streams] are. Key, Addrs and Plain are required.
type StreamConfig struct {
	Log   *slog.Logger // nil = discard
	Key   string       // configuration key that named Addrs, for errors
	Addrs []netip.AddrPort
	// Plain says whether a connection whose first byte this is speaks the role's protocol without
	// TLS. 22, which begins every TLS ClientHello, is never asked about.
	Plain func(first byte) bool
	// Certificate is a GetCertificate of [CA] or [Files]; nil = TLS is refused.
	Certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	// Protocols are those of ALPN (RFC 7301) that a client may offer. One that offers others only is
	// refused; one that offers none, as browsers do for TURN, is taken.
	Protocols []string
	// HTTPS takes the TLS connections whose client offers h2 or http/1.1 by ALPN, as every browser
	// does for pages and WebSockets, on those of Addrs that equal its address; nil = none are.
	HTTPS *Handover

	// Handshake is how long a new connection may take to its first byte and through TLS; 0 = 10 s.
	Handshake time.Duration
	// MaxOpening connections may be in that state; 0 = 512. One more, and the oldest of them is
	// closed: who is slow makes room for who is not.
	MaxOpening int
	// MaxOpeningSource of them may come from one source, an IPv4 address or an IPv6 /64; 0 = 32.
	MaxOpeningSource int
	// MaxOpen connections may be open in all, those too; 0 = 8192. One more is refused.
	MaxOpen int
	// MaxOpenSource of them may come from one source; 0 = 256.
	MaxOpenSource int
}

// Streams are listening TCP sockets that take TLS and a role's plain protocol on the same port, and
// tell them apart by the first byte:
//
//	accept ─► limits ─► first byte ─┬─ 22 ──► TLS handshake, ALPN ─┬─► the role's handler
//	                                ├─ Plain ──────────────────────┘
//	                                └─ else: closed
//
// Where HTTPS shares the port, what ALPN tells to be HTTP leaves for [Handover] after the handshake;
// from there it is the front's, and no limit here counts it any more.
type Streams struct {
	cfg       StreamConfig
	tls       *tls.Config
	web       *tls.Config // where HTTPS shares the port; nil = nowhere
	listeners []net.Listener
	work      sync.WaitGroup // a goroutine a connection

	mu      sync.Mutex // guards the following
	closed  bool
	open    map[net.Conn]struct{}
	opening *list.List // of net.Conn, the oldest first
	sources map[netip.Addr]*source
	stats   StreamStats
}

// source counts the connections of one source. It is there as long as there are any.
type source struct{ open, opening int }

// StreamStats counts since the start, except Open.
type StreamStats struct {
	Open       int // now
	Plain, TLS uint64
	// HTTPS went to the front that shares the port.
	HTTPS uint64
	// Refused are connections closed before the handler saw them, by cause; the causes are a fixed set.
	Refused map[string]uint64
}

// Why a connection does not come to the handler.
const (
	refusedOpen          = "connections"        // MaxOpen
	refusedOpenSource    = "connections_source" // MaxOpenSource
	refusedOpeningSource = "handshakes_source"  // MaxOpeningSource
	refusedOpening       = "handshakes"         // MaxOpening: closed for a newer one
	refusedSlow          = "handshake_timeout"
	refusedGone          = "gone"     // closed before its first byte
	refusedProtocol      = "protocol" // neither TLS nor plain, or TLS without a certificate
	refusedTLS           = "tls"      // handshake failed: version, ALPN, the client's trust
	refusedACME          = "acme"     // a CA's look at the certificate (RFC 8737): nothing follows the handshake
)

var refusals = []string{refusedOpen, refusedOpenSource, refusedOpeningSource, refusedOpening, refusedSlow, refusedGone, refusedProtocol, refusedTLS, refusedACME}

// Conn is a connection that has come through. Its handler owns it.
type Conn struct {
	net.Conn // *tls.Conn or plain
	TLS      bool
	Protocol string // agreed by ALPN, "" = none
	// ServerName is what the client asked for by SNI (RFC 6066 §3), "" = none.
	ServerName string
	Listener   int // index in Addrs
	Remote     netip.AddrPort

	raw net.Conn // below TLS; nil = Conn
}

// Abort closes the connection at once: nothing is sent any more, nothing waited for.
func (c *Conn) Abort() {
	raw := c.raw
	if raw == nil {
		raw = c.Conn
	}
	if t, ok := raw.(*net.TCPConn); ok {
		_ = t.SetLinger(0) // what fails here fails because it is closed
	}
	_ = raw.Close()
}

// SetWriteBuffer sets the size of the kernel's buffer for sending, in bytes.
func (c *Conn) SetWriteBuffer(n int) {
	if t, ok := c.raw.(*net.TCPConn); ok {
		_ = t.SetWriteBuffer(n) // the default one works too
	}
}

// NewStreams opens the sockets.
func NewStreams(cfg StreamConfig) (*Streams, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	for _, d := range []struct {
		v *int
		d int
	}{{&cfg.MaxOpening, 512}, {&cfg.MaxOpeningSource, 32}, {&cfg.MaxOpen, 8192}, {&cfg.MaxOpenSource, 256}} {
		if *d.v <= 0 {
			*d.v = d.d
		}
	}
	if cfg.Handshake <= 0 {
		cfg.Handshake = 10 * time.Second
	}
	s := &Streams{cfg: cfg, open: map[net.Conn]struct{}{}, opening: list.New(), sources: map[netip.Addr]*source{}}
	s.stats.Refused = make(map[string]uint64, len(refusals))
	for _, why := range refusals {
		s.stats.Refused[why] = 0
	}
	if cfg.Certificate != nil {
		s.tls = &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: cfg.Certificate, NextProtos: append(slices.Clone(cfg.Protocols), ACMEProtocol)}
		if cfg.HTTPS != nil {
			s.web = s.tls.Clone()
			s.web.NextProtos = append(slices.Clone(httpProtocols), s.tls.NextProtos...)
		}
	}
	for _, a := range cfg.Addrs {
		l, err := TCP(cfg.Key, a)
		if err != nil {
			return nil, errors.Join(err, s.Close())
		}
		s.listeners = append(s.listeners, l)
	}
	return s, nil
}

// Addrs returns the addresses listened on, ports filled in.
func (s *Streams) Addrs() []netip.AddrPort {
	var out []netip.AddrPort
	for _, l := range s.listeners {
		out = append(out, unmap(l.Addr().(*net.TCPAddr).AddrPort()))
	}
	return out
}

func unmap(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

// Close closes the sockets and every connection.
func (s *Streams) Close() error {
	var errs []error
	for _, l := range s.listeners {
		if err := l.Close(); !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for c := range s.open {
		_ = c.Close() // its goroutine sees the error
	}
	return errors.Join(errs...)
}

// Serve hands each connection that comes through to handle, on a goroutine of its own, and closes
// it when handle returns. Serve itself returns when Close was called and every handler has returned.
func (s *Streams) Serve(handle func(*Conn)) {
	var accepting sync.WaitGroup
	for i, l := range s.listeners {
		accepting.Go(func() { s.accept(i, l, handle) })
	}
	accepting.Wait()
	s.work.Wait()
}

// acceptPause keeps a socket that fails at each accept (no file descriptors) from spinning.
const acceptPause = 50 * time.Millisecond

func (s *Streams) accept(number int, l net.Listener, handle func(*Conn)) {
	for {
		c, err := l.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			s.cfg.Log.Warn("listen: accept", "listen", l.Addr(), "error", err)
			time.Sleep(acceptPause)
			continue
		}
		remote := unmap(c.RemoteAddr().(*net.TCPAddr).AddrPort())
		place, why := s.enter(c, remote.Addr())
		if why != "" {
			_ = c.Close() // refused
			continue
		}
		s.work.Go(func() { s.serve(&Conn{Conn: c, Listener: number, Remote: remote, raw: c}, place, handle) })
	}
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

// enter counts a new connection in, or says why it is refused.
func (s *Streams) enter(c net.Conn, from netip.Addr) (place *list.Element, why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	from = sourceOf(from)
	src := s.sources[from]
	switch {
	case s.closed:
		return nil, refusedGone
	case len(s.open) >= s.cfg.MaxOpen:
		why = refusedOpen
	case src != nil && src.open >= s.cfg.MaxOpenSource:
		why = refusedOpenSource
	case src != nil && src.opening >= s.cfg.MaxOpeningSource:
		why = refusedOpeningSource
	}
	if why != "" {
		s.stats.Refused[why]++
		return nil, why
	}
	if s.opening.Len() >= s.cfg.MaxOpening {
		oldest := s.opening.Front()
		_ = oldest.Value.(net.Conn).Close() // its goroutine sees the error and leaves
		s.opening.Remove(oldest)
		s.stats.Refused[refusedOpening]++
	}
	if src == nil {
		src = new(source)
		s.sources[from] = src
	}
	src.open++
	src.opening++
	s.open[c] = struct{}{}
	return s.opening.PushBack(c), ""
}

// opened ends the state of opening; evicted says that it was ended for a newer connection.
func (s *Streams) opened(place *list.Element, from netip.Addr) (evicted bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sources[sourceOf(from)].opening--
	before := s.opening.Len()
	s.opening.Remove(place) // nothing, if it is not there any more
	return s.opening.Len() == before
}

// leave counts a connection out.
func (s *Streams) leave(c net.Conn, from netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	from = sourceOf(from)
	if src := s.sources[from]; src.open == 1 {
		delete(s.sources, from)
	} else {
		src.open--
	}
	delete(s.open, c)
}

func (s *Streams) serve(c *Conn, place *list.Element, handle func(*Conn)) {
	from := c.Remote.Addr()
	defer s.leave(c.raw, from)
	why, err := s.handshake(c)
	evicted := s.opened(place, from)
	s.mu.Lock()
	switch {
	case why != "" && !evicted:
		s.stats.Refused[why]++
	case why == "" && slices.Contains(httpProtocols, c.Protocol):
		s.stats.HTTPS++
	case why == "" && c.TLS:
		s.stats.TLS++
	case why == "":
		s.stats.Plain++
	}
	s.mu.Unlock()
	if why != "" || evicted {
		s.cfg.Log.Debug("listen: connection refused", "client", c.Remote, "listen", c.raw.LocalAddr(), "cause", why, "evicted", evicted, "error", err)
		_ = c.raw.Close()
		return
	}
	if slices.Contains(httpProtocols, c.Protocol) {
		s.cfg.HTTPS.give(c.Conn)
		return
	}
	handle(c)
	_ = c.Close() // the handler has said what there was to say
}

// handshake reads the first byte and does TLS where it is due.
func (s *Streams) handshake(c *Conn) (why string, err error) {
	end := time.Now().Add(s.cfg.Handshake)
	if err := c.raw.SetDeadline(end); err != nil {
		return refusedGone, err
	}
	p := &peeked{Conn: c.raw}
	if err := p.peek(); err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return refusedSlow, err
		}
		return refusedGone, err
	}
	switch first := p.first[0]; {
	case first == 22 && s.tls != nil:
		t := tls.Server(p, s.tlsOf(c))
		// The deadline of the socket bounds it.
		if err := t.HandshakeContext(context.Background()); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return refusedSlow, err
			}
			return refusedTLS, err
		}
		state := t.ConnectionState()
		c.Conn, c.TLS, c.Protocol, c.ServerName = t, true, state.NegotiatedProtocol, state.ServerName
		if c.Protocol == ACMEProtocol {
			return refusedACME, nil
		}
	case first != 22 && s.cfg.Plain(first):
		c.Conn = p
	default:
		return refusedProtocol, fmt.Errorf("first byte %d", first)
	}
	if err := c.raw.SetDeadline(time.Time{}); err != nil {
		return refusedGone, err
	}
	return "", nil
}

// tlsOf is the configuration of TLS at the address that c came to.
func (s *Streams) tlsOf(c *Conn) *tls.Config {
	if s.web != nil && s.cfg.Addrs[c.Listener] == s.cfg.HTTPS.addr {
		return s.web
	}
	return s.tls
}

// Stats returns the counters.
func (s *Streams) Stats() StreamStats {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.stats
	out.Open = len(s.open)
	out.Refused = make(map[string]uint64, len(s.stats.Refused))
	for why, n := range s.stats.Refused {
		out.Refused[why] = n
	}
	return out
}

// peeked is a connection of which the first byte was read.
type peeked struct {
	net.Conn
	first [1]byte
	given bool // first was read by peek and not yet by Read
}

func (p *peeked) peek() error {
	_, err := p.Conn.Read(p.first[:])
	p.given = err == nil
	return err
}

// Read implements net.Conn.
func (p *peeked) Read(b []byte) (int, error) {
	if p.given && len(b) > 0 {
		p.given = false
		b[0] = p.first[0]
		return 1, nil
	}
	return p.Conn.Read(b)
}
