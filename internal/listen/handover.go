package listen

import (
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
)

// httpProtocols are the names of HTTP over TLS in ALPN (RFC 7301, RFC 9113 §3.2).
var httpProtocols = []string{"h2", "http/1.1"}

// Handover is where [Streams] and a [Front] share one TCP port, so that a network which lets only
// port 443 through is enough for the page, for SIP over WebSocket and for TURN over TLS. Streams owns
// the socket and does TLS; it gives away the connections on which HTTP was agreed.
type Handover struct {
	addr  netip.AddrPort
	conns chan net.Conn
	end   chan struct{}
	once  sync.Once
}

// NewHandover returns the Handover of the address addr, as it is in StreamConfig.Addrs.
func NewHandover(addr netip.AddrPort) *Handover {
	return &Handover{addr: addr, conns: make(chan net.Conn), end: make(chan struct{})}
}

// give hands c, whose handshake is done, to the front, or closes it where that has ended.
func (h *Handover) give(c net.Conn) {
	select {
	case h.conns <- c:
	case <-h.end:
		_ = c.Close() // there is nobody to speak to
	}
}

// Accept implements net.Listener.
func (h *Handover) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.end:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener. The socket is not the front's to close.
func (h *Handover) Close() error {
	h.once.Do(func() { close(h.end) })
	return nil
}

// Addr implements net.Listener.
func (h *Handover) Addr() net.Addr { return net.TCPAddrFromAddrPort(h.addr) }

// NewSharedFront is a [NewFront] that is given its connections.
func NewSharedFront(from *Handover, handler http.Handler, log *slog.Logger) *Front {
	// Certificates are the Streams' matter; the protocol is what tells net/http to take h2.
	f := &Front{l: from, srv: server(&tls.Config{MinVersion: tls.VersionTLS12, NextProtos: httpProtocols}, handler, log)}
	f.serve = func() error { return f.srv.Serve(from) }
	return f
}
