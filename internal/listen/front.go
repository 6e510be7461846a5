package listen

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	drainTime   = 5 * time.Second
	headerTime  = 10 * time.Second
	requestTime = 30 * time.Second
	idleTime    = 2 * time.Minute
	headerSize  = 16 << 10
)

// ACMEProtocol is the name in ALPN by which a CA looks whether a certificate proves a name (RFC 8737
// §3). Nothing follows the handshake. Every listener here takes it; where no such proof is due,
// GetCertificate has none.
const ACMEProtocol = "acme-tls/1"

// frontLimits bound the connections of a [Front]. For one source they are wide: a load balancer that
// hides its clients is one source. A WebSocket is not counted, once it is one: its handler counts it.
var frontLimits = Limits{MaxOpen: 8192, MaxOpenSource: 1024, MaxOpening: 1024, MaxOpeningSource: 256, HandshakeBurst: 1024, HandshakeEvery: time.Second / 64}

// Front is the HTTPS origin that roles share.
type Front struct {
	srv   *http.Server
	l     net.Listener
	serve func() error
}

// NewFront opens the port. cert is a GetCertificate, of [CA], [Files] or package acme.
func NewFront(key string, addr netip.AddrPort, cert func(*tls.ClientHelloInfo) (*tls.Certificate, error), h http.Handler, log *slog.Logger) (*Front, error) {
	l, err := TCP(key, addr)
	if err != nil {
		return nil, err
	}
	// net/http closes a connection on which it knows no protocol, which is right for a CA's look.
	protocols := append(slices.Clone(httpProtocols), ACMEProtocol)
	f := &Front{l: l, srv: server(&tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: cert, NextProtos: protocols}, h, log)}
	f.serve = func() error { return f.srv.ServeTLS(l, "", "") }
	return f, nil
}

func server(t *tls.Config, h http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler: h, TLSConfig: t, ConnState: newDoor(frontLimits, log).state,
		ReadHeaderTimeout: headerTime, ReadTimeout: requestTime, WriteTimeout: requestTime, IdleTimeout: idleTime,
		MaxHeaderBytes: headerSize,
		ErrorLog:       slog.NewLogLogger(handshakes{log.Handler()}, slog.LevelWarn),
	}
}

// Plain is a server of h for HTTP without TLS, with the limits of a [Front].
func Plain(h http.Handler, log *slog.Logger) *http.Server { return server(nil, h, log) }

// Addr is the address that the front listens on.
func (f *Front) Addr() netip.AddrPort { return f.l.Addr().(*net.TCPAddr).AddrPort() }

// Serve runs until ctx ends, then lets requests under way finish for up to 5 s. Connections that
// a handler has hijacked, WebSockets, are that handler's to end.
func (f *Front) Serve(ctx context.Context) error {
	done := make(chan error, 1)
	go func() { done <- f.serve() }()
	select {
	case err := <-done:
		return fmt.Errorf("listen: HTTPS on %v: %w", f.Addr(), err)
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.Background(), drainTime)
	defer cancel()
	err := f.srv.Shutdown(grace)
	if errors.Is(err, context.DeadlineExceeded) {
		err = f.srv.Close()
	}
	if served := <-done; err == nil && !errors.Is(served, http.ErrServerClosed) {
		err = served
	}
	return err
}

// door keeps the connections of a server within limits.
type door struct {
	gate *gate
	log  *slog.Logger

	mu sync.Mutex // guards the following
	in map[net.Conn]*visitor
}

func newDoor(l Limits, log *slog.Logger) *door {
	return &door{gate: newGate(l, refusedGone), log: log, in: map[net.Conn]*visitor{}}
}

// state is the server's ConnState. A connection that may not come in is closed, and the server, which sees
// that as its client's doing, forgets it.
func (d *door) state(c net.Conn, to http.ConnState) {
	switch to {
	case http.StateNew:
		a, ok := c.RemoteAddr().(*net.TCPAddr)
		if !ok {
			return // no network's: a Unix socket
		}
		// Closing what lies below TLS waits for nobody; a tls.Conn would try to say goodbye.
		raw := c
		if t, ok := c.(*tls.Conn); ok {
			raw = t.NetConn()
		}
		v := &visitor{close: func() { _ = raw.Close() }}
		from := unmap(a.AddrPort()).Addr()
		why := d.gate.enter(v, from)
		if why == "" && !d.gate.mayHandshake(v.source) {
			why = refusedRate
			d.gate.opened(v, why)
			d.gate.leave(v)
		}
		if why != "" {
			d.log.Debug("listen: connection refused", "client", a, "cause", why)
			v.close()
			return
		}
		d.mu.Lock()
		d.in[c] = v
		d.mu.Unlock()
	case http.StateActive:
		d.mu.Lock()
		v := d.in[c]
		d.mu.Unlock()
		if v != nil {
			d.gate.opened(v, "")
		}
	case http.StateClosed, http.StateHijacked:
		d.mu.Lock()
		v := d.in[c]
		delete(d.in, c)
		d.mu.Unlock()
		if v != nil {
			d.gate.opened(v, "")
			d.gate.leave(v)
		}
	}
}

// handshakes lowers the level of what a stranger can cause by connecting: one log line at debug
// level per failed TLS handshake, no more.
type handshakes struct{ slog.Handler }

func (h handshakes) Handle(ctx context.Context, r slog.Record) error {
	if strings.Contains(r.Message, "TLS handshake error") {
		r.Level = slog.LevelDebug
		if !h.Enabled(ctx, r.Level) {
			return nil
		}
	}
	return h.Handler.Handle(ctx, r)
}
