package listen

import (
	"crypto/tls"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// streamBench are Streams whose handler answers each byte b with b+1.
type streamBench struct {
	*Streams
	t  *testing.T
	ca *CA
}

func streams(t *testing.T, change func(*StreamConfig)) *streamBench {
	t.Helper()
	ca, err := DevelopmentCA(filepath.Join(t.TempDir(), "ca"), []string{"localhost", "127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	cfg := StreamConfig{
		Key: "x.listen", Addrs: []netip.AddrPort{loopback, loopback}, Plain: func(b byte) bool { return b < 4 },
		Certificate: ca.GetCertificate, Protocols: []string{"stun.turn", "stun.nat-discovery"},
	}
	if change != nil {
		change(&cfg)
	}
	s, err := NewStreams(cfg)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Serve(func(c *Conn) {
			if c.Remote != netip.MustParseAddrPort(c.RemoteAddr().String()) || s.Addrs()[c.Listener].String() != c.LocalAddr().String() {
				t.Errorf("connection %+v", c)
			}
			b := make([]byte, 1)
			for {
				if _, err := io.ReadFull(c, b); err != nil {
					return
				}
				b[0]++
				if _, err := c.Write(b); err != nil {
					return
				}
			}
		})
	}()
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		select {
		case <-done:
		case <-time.After(5 * time.Second):
			t.Error("Serve does not return")
		}
		if st := s.Stats(); st.Open != 0 || len(s.gate.sources) != 0 || s.gate.opening.Len() != 0 {
			t.Errorf("left over: %+v, %d sources, %d opening", st, len(s.gate.sources), s.gate.opening.Len())
		}
	})
	return &streamBench{s, t, ca}
}

func (s *streamBench) dial(listener int) net.Conn {
	s.t.Helper()
	c, err := net.Dial("tcp", s.Addrs()[listener].String())
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = c.Close() }) // a test may have closed it
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		s.t.Fatal(err)
	}
	return c
}

// works says whether the handler answers.
func works(c net.Conn) error {
	if _, err := c.Write([]byte{1}); err != nil {
		return err
	}
	b := make([]byte, 1)
	if _, err := io.ReadFull(c, b); err != nil {
		return err
	}
	if b[0] != 2 {
		return io.ErrUnexpectedEOF
	}
	return nil
}

// refused waits until the count of a cause is n.
func (s *streamBench) refused(why string, n uint64) {
	s.t.Helper()
	for end := time.Now().Add(5 * time.Second); s.Stats().Refused[why] != n; time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			s.t.Fatalf("%s: want %d in %+v", why, n, s.Stats())
		}
	}
}

func TestStreamsTellTLSFromPlain(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	s := streams(t, nil)
	for i := range 2 {
		if err := works(s.dial(i)); err != nil {
			t.Errorf("plain: %v", err)
		}
	}
	for _, c := range []struct {
		offer []string
		want  string
		fails bool
	}{
		{nil, "", false}, // browsers
		{[]string{"stun.turn"}, "stun.turn", false},
		{[]string{"h2", "stun.nat-discovery"}, "stun.nat-discovery", false},
		{[]string{"h2", "http/1.1"}, "", true},
	} {
		tc := tls.Client(s.dial(0), &tls.Config{RootCAs: s.ca.Pool(), ServerName: "localhost", NextProtos: c.offer})
		err := tc.Handshake()
		if c.fails {
			if err == nil || !strings.Contains(err.Error(), "no application protocol") {
				t.Errorf("ALPN %v: %v", c.offer, err)
			}
			continue
		}
		if err == nil {
			err = works(tc)
		}
		if got := tc.ConnectionState().NegotiatedProtocol; err != nil || got != c.want {
			t.Errorf("ALPN %v: %q, %v", c.offer, got, err)
		}
	}
	old := tls.Client(s.dial(0), &tls.Config{RootCAs: s.ca.Pool(), ServerName: "localhost", MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11})
	if err := old.Handshake(); err == nil {
		t.Error("TLS 1.1 is taken")
	}
	for _, v := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		if err := works(tls.Client(s.dial(0), &tls.Config{RootCAs: s.ca.Pool(), ServerName: "localhost", MinVersion: v, MaxVersion: v})); err != nil {
			t.Errorf("%s: %v", tls.VersionName(v), err)
		}
	}
	if st := s.Stats(); st.Plain != 2 || st.TLS != 5 {
		t.Errorf("%+v", st)
	}
	s.refused(refusedTLS, 2)
	for n, first := range []string{"GET / HTTP/1.1\r\n", "\x14", "\xff"} {
		c := s.dial(0)
		if _, err := io.WriteString(c, first); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Errorf("%q was answered", first)
		}
		s.refused(refusedProtocol, uint64(n+1))
	}
	if err := s.dial(0).Close(); err != nil {
		t.Fatal(err)
	}
	s.refused(refusedGone, 1)
}

func TestStreamsWithoutCertificate(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	s := streams(t, func(c *StreamConfig) { c.Certificate = nil; c.Plain = func(byte) bool { return true } })
	if err := tls.Client(s.dial(0), &tls.Config{RootCAs: s.ca.Pool(), ServerName: "localhost"}).Handshake(); err == nil {
		t.Error("TLS without a certificate")
	}
	s.refused(refusedProtocol, 1)
	if err := works(s.dial(0)); err != nil {
		t.Errorf("plain: %v", err)
	}
}

// TestStreamsACME: a CA's look at the certificate ends with the handshake; nobody else is let in so.
func TestStreamsACME(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	h := NewHandover(loopback)
	s := streams(t, func(c *StreamConfig) { c.HTTPS = h })
	for n := range 2 {
		c := tls.Client(s.dial(n), &tls.Config{RootCAs: s.ca.Pool(), ServerName: "localhost", NextProtos: []string{ACMEProtocol}})
		if err := c.Handshake(); err != nil || c.ConnectionState().NegotiatedProtocol != ACMEProtocol {
			t.Errorf("%q, %v", c.ConnectionState().NegotiatedProtocol, err)
		}
		if works(c) == nil {
			t.Error("the role's handler got it")
		}
		s.refused(refusedACME, uint64(n+1))
	}
	c := tls.Client(s.dial(0), &tls.Config{RootCAs: s.ca.Pool(), ServerName: "localhost", NextProtos: []string{ACMEProtocol, "stun.turn"}})
	if err := c.Handshake(); err != nil || c.ConnectionState().NegotiatedProtocol != "stun.turn" {
		t.Errorf("beside another protocol: %q, %v", c.ConnectionState().NegotiatedProtocol, err)
	}
}

func TestStreamsHandshakeDeadline(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	s := streams(t, func(c *StreamConfig) { c.Handshake = 50 * time.Millisecond })
	for n, first := range []string{"", "\x16", "\x16\x03\x01\x00\xf0\x01"} { // silent, or slow in TLS
		c := s.dial(0)
		if _, err := io.WriteString(c, first); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(c); err != nil && strings.Contains(err.Error(), "timeout") {
			t.Errorf("%q: still open after 5 s", first)
		}
		s.refused(refusedSlow, uint64(n+1))
	}
	c := s.dial(0)
	if err := works(c); err != nil {
		t.Fatal(err)
	}
	time.Sleep(80 * time.Millisecond)
	if err := works(c); err != nil {
		t.Errorf("the deadline outlives the handshake: %v", err)
	}
}

func TestStreamsLimits(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	t.Run("source", func(t *testing.T) {
		s := streams(t, func(c *StreamConfig) { c.MaxOpeningSource = 2; c.MaxOpenSource = 4 })
		s.dial(0)
		silent := s.dial(1) // the limits are for all listeners together
		for end := time.Now().Add(5 * time.Second); s.Stats().Open < 2 && time.Now().Before(end); time.Sleep(time.Millisecond) {
		}
		if works(s.dial(0)) == nil {
			t.Error("a third handshake from one source")
		}
		s.refused(refusedOpeningSource, 1)
		if err := works(silent); err != nil {
			t.Error(err)
		}
		for range 2 { // each leaves the handshake before the next comes
			if err := works(s.dial(0)); err != nil {
				t.Error(err)
			}
		}
		if works(s.dial(0)) == nil {
			t.Error("a fifth connection from one source")
		}
		s.refused(refusedOpenSource, 1)
	})
	t.Run("total", func(t *testing.T) {
		s := streams(t, func(c *StreamConfig) { c.MaxOpen = 2 })
		keep := s.dial(0)
		if err := works(keep); err != nil {
			t.Fatal(err)
		}
		second := s.dial(0)
		if err := works(second); err != nil {
			t.Fatal(err)
		}
		if works(s.dial(0)) == nil {
			t.Error("a third connection")
		}
		s.refused(refusedOpen, 1)
		if err := second.Close(); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(5 * time.Second); s.Stats().Open > 1 && time.Now().Before(end); time.Sleep(time.Millisecond) {
		}
		if err := works(s.dial(0)); err != nil {
			t.Errorf("after one has gone: %v", err)
		}
	})
	t.Run("oldest handshake gives way", func(t *testing.T) {
		s := streams(t, func(c *StreamConfig) { c.MaxOpening = 2 })
		oldest := s.dial(0)
		for end := time.Now().Add(5 * time.Second); s.Stats().Open < 1 && time.Now().Before(end); time.Sleep(time.Millisecond) {
		}
		s.dial(0)
		for end := time.Now().Add(5 * time.Second); s.Stats().Open < 2 && time.Now().Before(end); time.Sleep(time.Millisecond) {
		}
		if err := works(s.dial(0)); err != nil {
			t.Errorf("the newest: %v", err)
		}
		if works(oldest) == nil {
			t.Error("the oldest is still there")
		}
		s.refused(refusedOpening, 1)
		if n := s.Stats().Refused[refusedGone]; n != 0 {
			t.Errorf("counted %d times more", n)
		}
	})
}

func TestStreamsSources(t *testing.T) {
	for _, c := range [][2]string{{"192.0.2.1", "192.0.2.1"}, {"2001:db8:1:2:3::4", "2001:db8:1:2::"}, {"fe80::1%eth0", "fe80::"}} {
		if got := sourceOf(netip.MustParseAddr(c[0])); got.String() != c[1] {
			t.Errorf("%s: %v, want %s", c[0], got, c[1])
		}
	}
}

func TestStreamsTakenPort(t *testing.T) {
	s := streams(t, nil)
	_, err := NewStreams(StreamConfig{Key: "turn.listen_tcp", Addrs: []netip.AddrPort{loopback, s.Addrs()[0]}, Plain: func(byte) bool { return true }})
	if err == nil || !strings.Contains(err.Error(), "set turn.listen_tcp in wicgate.yaml") {
		t.Error(err)
	}
}
