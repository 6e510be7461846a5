package listen

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// v2 builds a header of version 2.
func v2(command, family byte, rest ...byte) string {
	return proxyV2 + string([]byte{command, family, byte(len(rest) >> 8), byte(len(rest))}) + string(rest)
}

var (
	v2IPv4 = []byte{192, 0, 2, 7, 198, 51, 100, 1, 0x30, 0x39, 0x01, 0xbb} // 192.0.2.7:12345 to 198.51.100.1:443
	v2IPv6 = append(append(append([]byte{0x20, 0x01, 0x0d, 0xb8}, make([]byte, 11)...), 7), append(append([]byte{0x20, 0x01, 0x0d, 0xb8}, make([]byte, 12)...), 0x30, 0x39, 0x01, 0xbb)...)
)

func TestParseProxy(t *testing.T) {
	long6 := "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
	for _, c := range []struct {
		name, header, from string
		err                error
	}{
		{"v1 TCP4", "PROXY TCP4 192.0.2.7 198.51.100.1 12345 443\r\n", "192.0.2.7:12345", nil},
		{"v1 TCP6", "PROXY TCP6 2001:db8::7 2001:db8::1 12345 443\r\n", "[2001:db8::7]:12345", nil},
		{"v1 TCP6 mapped", "PROXY TCP6 ::ffff:192.0.2.7 ::1 0 65535\r\n", "192.0.2.7:0", nil},
		{"v1 longest", "PROXY TCP6 " + long6 + " " + long6 + " 65535 65535\r\n", "[" + long6 + "]:65535", nil},
		{"v1 UNKNOWN", "PROXY UNKNOWN\r\n", "", nil},
		{"v1 UNKNOWN longest", "PROXY UNKNOWN " + long6 + " " + long6 + " 65535 65535\r\n", "", nil},
		{"v1 too long", "PROXY UNKNOWN" + strings.Repeat(" ", 93) + "\r\n", "", errBadProxyHeader},
		{"v1 no end", "PROXY TCP4 " + strings.Repeat("1", 100), "", errBadProxyHeader},
		{"v1 family", "PROXY UDP4 192.0.2.7 198.51.100.1 12345 443\r\n", "", errBadProxyHeader},
		{"v1 other family's address", "PROXY TCP4 2001:db8::7 198.51.100.1 12345 443\r\n", "", errBadProxyHeader},
		{"v1 destination", "PROXY TCP6 2001:db8::7 198.51.100.1 12345 443\r\n", "", errBadProxyHeader},
		{"v1 zone", "PROXY TCP6 fe80::1%eth0 ::1 12345 443\r\n", "", errBadProxyHeader},
		{"v1 zeros", "PROXY TCP4 192.0.2.7 198.51.100.1 012345 443\r\n", "", errBadProxyHeader},
		{"v1 port", "PROXY TCP4 192.0.2.7 198.51.100.1 12345 65536\r\n", "", errBadProxyHeader},
		{"v1 sign", "PROXY TCP4 192.0.2.7 198.51.100.1 +1234 443\r\n", "", errBadProxyHeader},
		{"v1 two spaces", "PROXY TCP4  192.0.2.7 198.51.100.1 12345 443\r\n", "", errBadProxyHeader},
		{"v1 more", "PROXY TCP4 192.0.2.7 198.51.100.1 12345 443 x\r\n", "", errBadProxyHeader},
		{"v1 nothing", "PROXY \r\n", "", errBadProxyHeader},
		{"v1 lower case", "proxy TCP4 192.0.2.7 198.51.100.1 12345 443\r\n", "", errNoProxyHeader},
		{"v2 IPv4", v2(0x21, 0x11, v2IPv4...), "192.0.2.7:12345", nil},
		{"v2 IPv6", v2(0x21, 0x21, v2IPv6...), "[2001:db8::7]:12345", nil},
		{"v2 TLVs", v2(0x21, 0x11, append(bytes.Clone(v2IPv4), make([]byte, 512)...)...), "192.0.2.7:12345", nil},
		{"v2 LOCAL", v2(0x20, 0x00), "", nil},
		{"v2 LOCAL with an address", v2(0x20, 0x11, v2IPv4...), "", nil},
		{"v2 UNSPEC", v2(0x21, 0x00, 1, 2, 3), "", nil},
		{"v2 too many TLVs", v2(0x21, 0x21, append(bytes.Clone(v2IPv6), make([]byte, 513)...)...), "", errBadProxyHeader},
		{"v2 short", v2(0x21, 0x11, v2IPv4[:11]...), "", errBadProxyHeader},
		{"v2 short IPv6", v2(0x21, 0x21, v2IPv4...), "", errBadProxyHeader},
		{"v2 datagrams", v2(0x21, 0x12, v2IPv4...), "", errBadProxyHeader},
		{"v2 UNIX", v2(0x21, 0x31, make([]byte, 216)...), "", errBadProxyHeader},
		{"v2 command", v2(0x22, 0x11, v2IPv4...), "", errBadProxyHeader},
		{"v2 version", v2(0x11, 0x11, v2IPv4...), "", errBadProxyHeader},
		{"v2 signature", "\r\n\r\n\x00\r\nQUIT\r", "", errNoProxyHeader},
		{"STUN", "\x00\x01\x00\x00\x21\x12\xa4\x42", "", errNoProxyHeader},
		{"TLS", "\x16\x03\x01\x02\x00\x01", "", errNoProxyHeader},
	} {
		// Each beginning of it wants more, or is refused as the whole is.
		for n := range len(c.header) {
			_, size, err := parseProxy([]byte(c.header[:n]))
			if err == nil && (size <= n && n > 0 || size > len(c.header) && c.err == nil) || err != nil && !errors.Is(err, c.err) {
				t.Errorf("%s: %d bytes of %d: size %d, %v", c.name, n, len(c.header), size, err)
			}
		}
		from, size, err := parseProxy([]byte(c.header + "more"))
		if !errors.Is(err, c.err) {
			t.Errorf("%s: %v, want %v", c.name, err, c.err)
			continue
		}
		if want := c.from; err == nil && (size != len(c.header) || from.IsValid() != (want != "") || want != "" && from.String() != want) {
			t.Errorf("%s: %v, size %d of %d, want %s", c.name, from, size, len(c.header), want)
		}
	}
}

func FuzzProxyHeader(f *testing.F) {
	for _, s := range []string{
		"", "PROXY ", "PROXY TCP4 192.0.2.7 198.51.100.1 12345 443\r\n\x16", "PROXY UNKNOWN\r\n", "PROXY TCP6 ::1 ::1 0 0\r\n",
		v2(0x21, 0x11, v2IPv4...), v2(0x21, 0x21, v2IPv6...), v2(0x20, 0x00), proxyV2 + "\x21\x11\xff\xff", "\x00\x01",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		from, size, err := parseProxy(b)
		if err != nil {
			if from.IsValid() || size != 0 {
				t.Errorf("%v, %d with %v", from, size, err)
			}
			return
		}
		if size > max(proxyV1Size, proxyV2Head+proxyV2Rest) || size == 0 {
			t.Errorf("size %d", size)
		}
		if size > len(b) {
			if from.IsValid() {
				t.Errorf("%v from an incomplete header", from)
			}
			return
		}
		// What follows changes nothing.
		again, n, err := parseProxy(b[:size])
		if again != from || n != size || err != nil {
			t.Errorf("%v %d %v, with more behind it %v %d", again, n, err, from, size)
		}
	})
}

// trusting has the loopback as a trusted proxy.
func trusting(c *StreamConfig) {
	c.Proxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
}

// sent writes s to a new connection to listener 0.
func (s *streamBench) sent(text string) net.Conn {
	s.t.Helper()
	c := s.dial(0)
	if _, err := io.WriteString(c, text); err != nil {
		s.t.Fatal(err)
	}
	return c
}

func TestStreamsBehindProxy(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	s := streams(t, trusting)
	header := "PROXY TCP4 192.0.2.7 198.51.100.1 12345 443\r\n"
	for _, h := range []string{header, "PROXY TCP6 2001:db8::7 ::1 1 2\r\n", v2(0x21, 0x11, v2IPv4...), v2(0x21, 0x21, append(bytes.Clone(v2IPv6), make([]byte, 512)...)...), v2(0x20, 0), "PROXY UNKNOWN\r\n"} {
		if err := works(s.sent(h)); err != nil { // the handler compares Remote with RemoteAddr
			t.Errorf("%q: %v", h, err)
		}
		c := s.sent(h)
		if err := works(tls.Client(c, &tls.Config{RootCAs: s.ca.Pool(), ServerName: "localhost"})); err != nil {
			t.Errorf("%q, TLS: %v", h, err)
		}
	}
	// Cut everywhere, and what follows in the same segment as the end.
	for _, h := range []string{header, v2(0x21, 0x11, v2IPv4...)} {
		for n := range len(h) {
			c := s.sent(h[:n])
			time.Sleep(time.Millisecond)
			if _, err := io.WriteString(c, h[n:]+"\x01"); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
				t.Errorf("%q cut at %d: %v", h, n, err)
			}
		}
	}
	for n, h := range []string{"\x00\x01\x00\x00", "\x16\x03\x01\x02\x00", "PROXY TCP4 x\r\n", v2(0x21, 0x12, v2IPv4...)} {
		if _, err := s.sent(h).Read(make([]byte, 1)); err == nil {
			t.Errorf("%q was answered", h)
		}
		s.refused(refusedProxyHeader, uint64(n+1))
	}
	if _, err := s.sent(header + header).Read(make([]byte, 1)); err == nil {
		t.Error("two headers")
	}
	s.refused(refusedProtocol, 1)
	if err := s.sent(header[:20]).Close(); err != nil {
		t.Fatal(err)
	}
	s.refused(refusedGone, 1)
}

func TestStreamsRefuseProxyHeaders(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	s := streams(t, func(c *StreamConfig) { c.Proxies = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")} })
	for n, h := range []string{"PROXY TCP4 192.0.2.7 198.51.100.1 12345 443\r\n", v2(0x21, 0x11, v2IPv4...), "PROXY UNKNOWN\r\n\x01"} {
		if _, err := s.sent(h).Read(make([]byte, 1)); err == nil {
			t.Errorf("%q was answered", h)
		}
		s.refused(refusedProxySource, uint64(n+1))
	}
	if _, err := s.sent("POST / HTTP/1.1\r\n").Read(make([]byte, 1)); err == nil {
		t.Error("HTTP was answered")
	}
	s.refused(refusedProtocol, 1)
}

func TestProxyHeaderDeadline(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	s := streams(t, func(c *StreamConfig) { trusting(c); c.Handshake = 50 * time.Millisecond })
	for n, h := range []string{"", "PROXY TCP4 192.", proxyV2} {
		if _, err := io.ReadAll(s.sent(h)); err != nil && strings.Contains(err.Error(), "timeout") {
			t.Errorf("%q: still open after 5 s", h)
		}
		s.refused(refusedSlow, uint64(n+1))
	}
}

// The limits for one source count clients, not their proxy.
func TestStreamsLimitsBehindProxy(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	s := streams(t, func(c *StreamConfig) { trusting(c); c.MaxOpenSource = 2; c.MaxOpen = 7 })
	open := func(n int) { // a connection that is refused counts among the open ones until it is closed
		t.Helper()
		for end := time.Now().Add(5 * time.Second); s.Stats().Open != n; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("want %d open in %+v", n, s.Stats())
			}
		}
	}
	a, b := "PROXY TCP4 192.0.2.7 198.51.100.1 12345 443\r\n", "PROXY TCP6 2001:db8::7 ::1 12345 443\r\n"
	var first net.Conn
	for _, h := range []string{a, a, b, b} {
		c := s.sent(h)
		if err := works(c); err != nil {
			t.Errorf("%q: %v", h, err)
		}
		if first == nil {
			first = c
		}
	}
	if works(s.sent(a)) == nil {
		t.Error("a third connection of one client")
	}
	s.refused(refusedOpenSource, 1)
	open(4)
	for range 3 {
		if err := works(s.sent("PROXY UNKNOWN\r\n")); err != nil {
			t.Error(err)
		}
	}
	eighth := s.dial(0)
	if _, err := io.WriteString(eighth, a); err == nil && works(eighth) == nil { // it may be closed before it can write
		t.Error("an eighth connection")
	}
	s.refused(refusedOpen, 1)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	open(6)
	if err := works(s.sent(a)); err != nil {
		t.Errorf("after one has gone: %v", err)
	}
}

// Who shares the port with the front is told to the front's handlers too.
func TestHandoverBehindProxy(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	h := NewHandover(loopback)
	s := streams(t, func(c *StreamConfig) { trusting(c); c.Addrs, c.HTTPS = []netip.AddrPort{loopback}, h })
	f := NewSharedFront(h, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.RemoteAddr) }), slog.New(slog.DiscardHandler))
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- f.Serve(ctx) }()
	for _, h2 := range []bool{true, false} {
		tr := &http.Transport{
			ForceAttemptHTTP2: h2, TLSClientConfig: &tls.Config{RootCAs: s.ca.Pool()},
			DialContext: func(context.Context, string, string) (net.Conn, error) {
				return s.sent("PROXY TCP4 192.0.2.7 198.51.100.1 12345 443\r\n"), nil
			},
		}
		if !h2 {
			tr.TLSClientConfig.NextProtos = []string{"http/1.1"}
		}
		res, err := (&http.Client{Transport: tr, Timeout: 5 * time.Second}).Get("https://" + s.Addrs()[0].String() + "/")
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(res.Body)
		_ = res.Body.Close() // read to its end
		if err != nil || string(b) != "192.0.2.7:12345" {
			t.Errorf("%s: %q, %v", res.Proto, b, err)
		}
		tr.CloseIdleConnections()
	}
	stop()
	if err := <-served; err != nil {
		t.Error(err)
	}
}
