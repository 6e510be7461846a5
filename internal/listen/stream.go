package listen

import (
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
	"sync/atomic"
	"time"
)

// StreamConfig is how [Streams] are. Key, Addrs and Plain are required.
type StreamConfig struct {
	Log   *slog.Logger // nil = discard
	Key   string       // configuration key that named Addrs, for errors
	Addrs []netip.AddrPort
	// Heritage are sockets that are open already; nil = none.
	Heritage *Heritage
	// Plain says whether a connection whose first byte this is speaks the role's protocol without
	// TLS. 22, which begins every TLS ClientHello, is never asked about.
	Plain func(first byte) bool
	// Certificate is a GetCertificate of [CA] or [Files]; nil = TLS is refused.
	Certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	// Proxies are those who must begin each connection with a header of the PROXY protocol, whose
	// address then counts as the client's. From anybody else such a header is refused.
	Proxies []netip.Prefix
	// Protocols are those of ALPN (RFC 7301) that a client may offer. One that offers others only is
	// refused; one that offers none, as browsers do for TURN, is taken.
	Protocols []string
	// HTTPS takes the TLS connections whose client offers h2 or http/1.1 by ALPN, as every browser
	// does for pages and WebSockets, on those of Addrs that equal its address; nil = none are.
	HTTPS *Handover

	Limits
}

// Streams are listening TCP sockets that take TLS and a role's plain protocol on the same port, and
// tell them apart by the first byte:
//
//	accept ─► limits ─► first byte ─┬─ 22 ──► TLS handshake, ALPN ─┬─► the role's handler
//	                                ├─ Plain ──────────────────────┘
//	                                └─ else: closed
//
// Behind one of Proxies the first byte comes after its header, and the limits for one source count
// the client that the header names; the proxy itself is bound by the limits for all.
//
// Where HTTPS shares the port, what ALPN tells to be HTTP leaves for [Handover] after the handshake;
// from there it is the front's, and within its limits.
type Streams struct {
	cfg       StreamConfig
	tls       *tls.Config
	web       *tls.Config // where HTTPS shares the port; nil = nowhere
	listeners []net.Listener
	work      sync.WaitGroup // a goroutine a connection

	gate *gate

	plain, secure, https atomic.Uint64
}

// StreamStats counts since the start, except Open.
type StreamStats struct {
	Open       int // now
	Plain, TLS uint64
	// HTTPS went to the front that shares the port.
	HTTPS uint64
	// Refused are connections closed before the handler saw them, by cause; the causes are a fixed set.
	Refused map[string]uint64
}

// Conn is a connection that has come through. Its handler owns it.
type Conn struct {
	net.Conn // *tls.Conn or plain
	TLS      bool
	Protocol string // agreed by ALPN, "" = none
	// ServerName is what the client asked for by SNI (RFC 6066 §3), "" = none.
	ServerName string
	Listener   int            // index in Addrs
	Remote     netip.AddrPort // the client's; behind a proxy, as its header says

	raw     net.Conn // below TLS; nil = Conn
	visitor visitor
	proxied bool
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

// CloseWrite ends what is sent, and leaves what is received: close_notify over TLS (RFC 8446 §6.1), FIN without.
func (c *Conn) CloseWrite() error {
	if t, ok := c.Conn.(*tls.Conn); ok {
		return t.CloseWrite()
	}
	if t, ok := c.raw.(*net.TCPConn); ok {
		return t.CloseWrite()
	}
	return errors.ErrUnsupported
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
	s := &Streams{cfg: cfg, gate: newGate(cfg.Limits, refusedGone, refusedProtocol, refusedACME, refusedProxyHeader, refusedProxySource)}
	if cfg.Certificate != nil {
		s.tls = &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: cfg.Certificate, NextProtos: append(slices.Clone(cfg.Protocols), ACMEProtocol)}
		if cfg.HTTPS != nil {
			s.web = s.tls.Clone()
			s.web.NextProtos = append(slices.Clone(httpProtocols), s.tls.NextProtos...)
		}
	}
	for _, a := range cfg.Addrs {
		l, err := cfg.Heritage.TCP(cfg.Key, a)
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

// Listeners are the listening sockets, in the order of Addrs.
func (s *Streams) Listeners() []net.Listener { return slices.Clone(s.listeners) }

// Leave closes the listening sockets, which another process has too, and goes on with the connections.
func (s *Streams) Leave() {
	for _, l := range s.listeners {
		_ = l.Close() // nothing of it is lost
	}
}

// Close closes the sockets and every connection.
func (s *Streams) Close() error {
	var errs []error
	for _, l := range s.listeners {
		if err := l.Close(); !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	for _, v := range s.gate.shut() {
		v.close()
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
		conn := &Conn{Conn: c, Listener: number, Remote: unmap(c.RemoteAddr().(*net.TCPAddr).AddrPort()), raw: c}
		conn.proxied = slices.ContainsFunc(s.cfg.Proxies, func(p netip.Prefix) bool { return p.Contains(conn.Remote.Addr().WithZone("")) })
		conn.visitor.close = func() { _ = c.Close() }
		from := conn.Remote.Addr()
		if conn.proxied {
			from = netip.Addr{} // the header will say
		}
		if why := s.gate.enter(&conn.visitor, from); why != "" {
			_ = c.Close() // refused
			continue
		}
		s.work.Go(func() { s.serve(conn, handle) })
	}
}

func (s *Streams) serve(c *Conn, handle func(*Conn)) {
	defer s.gate.leave(&c.visitor)
	why, err := s.handshake(c)
	evicted := s.gate.opened(&c.visitor, why)
	if why != "" || evicted {
		s.cfg.Log.Debug("listen: connection refused", "client", c.Remote, "listen", c.raw.LocalAddr(), "cause", why, "evicted", evicted, "error", err)
		_ = c.raw.Close()
		return
	}
	switch {
	case slices.Contains(httpProtocols, c.Protocol):
		s.https.Add(1)
		s.cfg.HTTPS.give(c.Conn)
		return
	case c.TLS:
		s.secure.Add(1)
	default:
		s.plain.Add(1)
	}
	handle(c)
	_ = c.Close() // the handler has said what there was to say
}

// handshake reads the first byte and does TLS where it is due.
func (s *Streams) handshake(c *Conn) (why string, err error) {
	end := time.Now().Add(s.gate.limits.Handshake)
	if err := c.raw.SetDeadline(end); err != nil {
		return refusedGone, err
	}
	p := &peeked{Conn: c.raw}
	if c.proxied {
		from, err := p.proxyHeader()
		switch {
		case errors.Is(err, errNoProxyHeader), errors.Is(err, errBadProxyHeader):
			return refusedProxyHeader, err
		case err != nil:
			return refusedRead(err), err
		case from.IsValid():
			c.Remote = from
			if why := s.gate.attribute(&c.visitor, from.Addr()); why != "" {
				return why, nil
			}
		}
	}
	if err := p.more(1, 1); err != nil {
		return refusedRead(err), err
	}
	switch first := p.first[0]; {
	case first == 22 && s.tls != nil:
		if c.visitor.source.IsValid() && !s.gate.mayHandshake(c.visitor.source) {
			return refusedRate, nil
		}
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
	case !c.proxied && p.posesAsProxy():
		return refusedProxySource, fmt.Errorf("a PROXY header from %v, who is no trusted proxy", c.Remote.Addr())
	default:
		return refusedProtocol, fmt.Errorf("first byte %d", first)
	}
	if err := c.raw.SetDeadline(time.Time{}); err != nil {
		return refusedGone, err
	}
	return "", nil
}

// refusedRead is why a connection is refused whose first bytes did not come.
func refusedRead(err error) string {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return refusedSlow
	}
	return refusedGone
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
	open, refused := s.gate.counts()
	return StreamStats{Open: open, Plain: s.plain.Load(), TLS: s.secure.Load(), HTTPS: s.https.Load(), Refused: refused}
}
