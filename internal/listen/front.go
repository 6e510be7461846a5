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
		Handler: h, TLSConfig: t,
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
