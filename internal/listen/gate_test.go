package listen

import (
	"crypto/tls"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// Handshakes of TLS are paced for each source; plain connections, which cost nothing, are not.
func TestHandshakeRate(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	s := streams(t, func(c *StreamConfig) { trusting(c); c.HandshakeBurst, c.HandshakeEvery = 2, time.Hour })
	secure := func(client string) error {
		return works(tls.Client(s.sent("PROXY TCP4 "+client+" 198.51.100.1 12345 443\r\n"), &tls.Config{RootCAs: s.ca.Pool(), ServerName: "localhost"}))
	}
	for range 2 {
		if err := secure("192.0.2.7"); err != nil {
			t.Error(err)
		}
	}
	if secure("192.0.2.7") == nil {
		t.Error("a third handshake at once")
	}
	s.refused(refusedRate, 1)
	if err := secure("192.0.2.8"); err != nil {
		t.Errorf("another source: %v", err)
	}
	if err := works(s.sent("PROXY TCP4 192.0.2.7 198.51.100.1 12345 443\r\n")); err != nil {
		t.Errorf("without TLS: %v", err)
	}
	for range 4 {
		if err := works(tls.Client(s.sent("PROXY UNKNOWN\r\n"), &tls.Config{RootCAs: s.ca.Pool(), ServerName: "localhost"})); err != nil {
			t.Errorf("the proxy itself: %v", err)
		}
	}
}
