package probe

import (
	"bufio"
	"context"
	"crypto/x509"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"wicgate/internal/secret"
	"wicgate/internal/siptx"
)

// TestClock: ten seconds of difference are fine, ten minutes are named as the cause.
func TestClock(t *testing.T) {
	defer goleak.VerifyNone(t)
	for _, c := range []struct {
		off   time.Duration
		fault string
	}{{0, ""}, {10 * time.Second, ""}, {-10 * time.Second, ""}, {10 * time.Minute, "clocks differ: the server"}, {-10 * time.Minute, "clocks differ: the server"}} {
		web := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Date", time.Now().Add(c.off).UTC().Format(http.TimeFormat))
			_, _ = w.Write([]byte(`{"issuer":"https://x","token_endpoint":"https://x/t","sip_url":"wss://x/sip"}`)) // to a test
		}))
		roots := x509.NewCertPool()
		roots.AddCert(web.Certificate())
		r := Run(t.Context(), Config{URL: web.URL, Guest: true, Roots: roots})
		web.Close()
		s := r.Steps[0]
		if (c.fault == "") != (s.State == OK) || !strings.Contains(s.Detail, c.fault) {
			t.Errorf("%v: %+v", c.off, s)
		}
		if c.fault != "" && (!strings.Contains(s.Check, "NTP") || r.Failed() != 1 || r.Steps[1].State != Skipped) {
			t.Errorf("%v: %+v", c.off, r)
		}
	}
}

// TestInterrupted: what has not begun is skipped.
func TestInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r := Run(ctx, Config{URL: "https://127.0.0.1:1", Guest: true})
	for _, s := range r.Steps {
		if s.State != Skipped {
			t.Errorf("%+v", s)
		}
	}
	if r.Steps[0].Detail != "interrupted" {
		t.Errorf("%+v", r.Steps[0])
	}
}

// TestCoreThatTakesEverything: a core that registers whoever comes fails each negative case, and no
// positive one.
func TestCoreThatTakesEverything(t *testing.T) {
	defer goleak.VerifyNone(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	var ended bool
	go func() {
		defer close(done)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer func() { _ = c.Close() }() // the other side has gone
		r := bufio.NewReader(c)
		for {
			b, err := siptx.ReadMessage(r, func() {})
			if err != nil {
				return
			}
			m, err := siptx.Parse(b, true)
			if err != nil {
				t.Error(err)
				return
			}
			ended = m.Get("Expires") == "0"
			res := m.Response(200, "OK", siptx.Header{Name: "Service-Route", Value: "<sip:s;lr>"}, siptx.Header{Name: "P-Associated-URI", Value: "<sip:alice@ims.test>"})
			if _, err := c.Write(res.Append(nil)); err != nil {
				return
			}
		}
	}()
	r := Core(t.Context(), CoreConfig{
		NextHop: netip.MustParseAddrPort(l.Addr().String()), Listen: netip.MustParseAddrPort("127.0.0.1:5060"), Domain: "ims.test", VisitedNetwork: "webrtc.ims.test", IMPI: "alice@ims.test", IMPU: "sip:alice@ims.test",
	})
	_ = l.Close() // served once
	<-done
	if !ended {
		t.Error("what was registered is not taken away at the end")
	}
	if len(r.Steps) != 10 || r.Failed() != 7 {
		t.Errorf("%d of %d failed: %+v", r.Failed(), len(r.Steps), r.Steps)
	}
	for _, s := range r.Steps {
		good := s.Name == "core" || strings.HasPrefix(s.Name, "trusted registration") || strings.HasPrefix(s.Name, "de-registration")
		if (s.State == OK) != good || !good && s.Check == "" {
			t.Errorf("%+v", s)
		}
	}
}

func TestCoreIsNotThere(t *testing.T) {
	r := Core(t.Context(), CoreConfig{NextHop: netip.MustParseAddrPort("127.0.0.1:1"), Listen: netip.MustParseAddrPort("127.0.0.1:5060"), Domain: "ims.test", IMPI: "a@ims.test", IMPU: "sip:a@ims.test"})
	if r.Failed() != 1 || r.Steps[0].State != Failed || !strings.Contains(r.Steps[0].Check, "epcscf.core") || r.Steps[1].State != Skipped {
		t.Errorf("%+v", r.Steps)
	}
}

func TestTURNURLs(t *testing.T) {
	for raw, want := range map[string]string{
		"turn:turn.example.org": "udp turn.example.org:3478", "turn:192.0.2.1:3479?transport=tcp": "tcp 192.0.2.1:3479",
		"turns:turn.example.org?transport=tcp": "tls turn.example.org:5349", "turn:[2001:db8::1]:3478?transport=udp": "udp [2001:db8::1]:3478",
		"": "", "turn:": "", "http://x": "", "turn": "", "turn:x?%zz": "",
	} {
		r, err := newRelay(raw, "", secret.Bytes{}, nil)
		if got := ""; err == nil {
			got = r.name
			if got != want {
				t.Errorf("%q: %q", raw, got)
			}
		} else if want != "" {
			t.Errorf("%q: %v", raw, err)
		}
	}
}

func FuzzReadAnswer(f *testing.F) {
	f.Add("v=0\r\na=ice-ufrag:x\r\na=ice-pwd:y\r\na=candidate:1 1 udp 1 192.0.2.1 40000 typ host\r\n")
	f.Fuzz(func(t *testing.T, sdp string) {
		ufrag, pwd, at, err := readAnswer(sdp)
		if err == nil && (ufrag == "" || pwd == "" || !at.IsValid()) {
			t.Errorf("%q: %q %q %v", sdp, ufrag, pwd, at)
		}
	})
}
