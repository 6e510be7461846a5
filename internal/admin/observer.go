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

// NewObserver opens the address.
func NewObserver(key string, addr netip.AddrPort, health *Health, metrics http.Handler, log *slog.Logger) (*Observer, error) {
	l, err := listen.TCP(key, addr)
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	observe(mux, health, metrics)
	return &Observer{l, server(mux, log)}, nil
}

// Addr is the address that it listens on.
func (o *Observer) Addr() netip.AddrPort { return o.l.Addr().(*net.TCPAddr).AddrPort() }

// Serve answers until ctx ends.
func (o *Observer) Serve(ctx context.Context) error { return serve(ctx, o.srv, o.l) }
