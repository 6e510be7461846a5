package listen

import (
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net/http"
	"net/netip"
)

// NewMutualFront is NewFront for programs alone: who has no certificate of one of clients, for TLS
// clients and valid now, ends in the handshake. Each connection shows it anew: nothing is resumed.
func NewMutualFront(key string, addr netip.AddrPort, cert func(*tls.ClientHelloInfo) (*tls.Certificate, error), clients *x509.CertPool, h http.Handler, log *slog.Logger) (*Front, error) {
	l, err := TCP(key, addr)
	if err != nil {
		return nil, err
	}
	f := &Front{l: l, srv: server(&tls.Config{
		MinVersion: tls.VersionTLS12, GetCertificate: cert,
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: clients, SessionTicketsDisabled: true,
	}, h, log)}
	f.serve = func() error { return f.srv.ServeTLS(l, "", "") }
	return f, nil
}
