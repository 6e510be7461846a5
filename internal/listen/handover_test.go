package listen

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// TestSharedPort: one port serves pages over HTTP/2 and HTTP/1.1 and the role's protocol over TLS
// and plain; an address that HTTPS does not share refuses HTTP.
func TestSharedPort(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	other := netip.MustParseAddrPort("[::1]:0")
	h := NewHandover(loopback)
	s := streams(t, func(c *StreamConfig) { c.Addrs, c.HTTPS = []netip.AddrPort{loopback, other}, h })
	f := NewSharedFront(h, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %v", r.Proto, r.TLS != nil)
	}), slog.New(slog.DiscardHandler))
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	served := make(chan error, 1)
	go func() { served <- f.Serve(ctx) }()

	for _, c := range []struct {
		h2   bool
		want string
	}{{true, "HTTP/2.0 true"}, {false, "HTTP/1.1 true"}} {
		tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: s.ca.Pool(), NextProtos: []string{"http/1.1"}}, ForceAttemptHTTP2: c.h2}
		if c.h2 {
			tr.TLSClientConfig.NextProtos = nil
		}
		res, err := (&http.Client{Transport: tr, Timeout: 5 * time.Second}).Get("https://" + s.Addrs()[0].String() + "/")
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(res.Body)
		_ = res.Body.Close() // read to its end
		if err != nil || string(b) != c.want {
			t.Errorf("%q, %v; want %q", b, err, c.want)
		}
		tr.CloseIdleConnections()
	}
	if err := works(s.dial(0)); err != nil {
		t.Errorf("plain: %v", err)
	}
	for _, offer := range [][]string{nil, {"stun.turn"}} {
		if err := works(tls.Client(s.dial(0), &tls.Config{RootCAs: s.ca.Pool(), ServerName: "localhost", NextProtos: offer})); err != nil {
			t.Errorf("TLS, ALPN %v: %v", offer, err)
		}
	}
	if err := tls.Client(s.dial(1), &tls.Config{RootCAs: s.ca.Pool(), ServerName: "localhost", NextProtos: httpProtocols}).Handshake(); err == nil {
		t.Error("HTTP at an address that is not shared")
	}
	if st := s.Stats(); st.HTTPS != 2 || st.TLS != 2 || st.Plain != 1 {
		t.Errorf("%+v", st)
	}

	stop()
	if err := <-served; err != nil {
		t.Error(err)
	}
	// The front has ended, the role's protocol goes on.
	if err := works(s.dial(0)); err != nil {
		t.Errorf("plain, without the front: %v", err)
	}
	late := tls.Client(s.dial(0), &tls.Config{RootCAs: s.ca.Pool(), ServerName: "localhost", NextProtos: httpProtocols})
	if _, err := late.Write([]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n")); err == nil {
		_, err = late.Read(make([]byte, 1))
		if err == nil {
			t.Error("HTTP is answered after the front has ended")
		}
	}
}
