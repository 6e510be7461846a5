package admin

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/netip"

	"wicgate/internal/listen"
)

// Observer answers /metrics, /healthz and /readyz on a TCP address, in plain HTTP and to whoever
// asks. What it says names no user: counts, states, and addresses of the configuration.
type Observer struct {
	l   net.Listener
	srv *http.Server
}

// NewObserver opens the address, or takes the socket of it in heritage, which may be nil.
func NewObserver(key string, addr netip.AddrPort, heritage *listen.Heritage, health *Health, metrics http.Handler, log *slog.Logger) (*Observer, error) {
	l, err := heritage.TCP(key, addr)
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	observe(mux, health, metrics)
	return &Observer{l, server(mux, log)}, nil
}

// Addr is the address that it listens on.
func (o *Observer) Addr() netip.AddrPort { return o.l.Addr().(*net.TCPAddr).AddrPort() }

// Listener is the listening socket.
func (o *Observer) Listener() *net.TCPListener { return o.l.(*net.TCPListener) }

// Leave answers no new connection: another process has the listening socket too. Those that are there are
// answered still.
func (o *Observer) Leave() {
	_ = o.l.Close() // nothing is lost by it
	o.srv.SetKeepAlivesEnabled(false)
}

// Serve answers until ctx ends.
func (o *Observer) Serve(ctx context.Context) error { return serve(ctx, o.srv, o.l) }
