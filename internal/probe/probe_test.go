package probe

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

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
		if c.fault != "" && (!strings.Contains(s.Check, "NTP") || r.Count(Failed) != 1 || r.Steps[1].State != Skipped) {
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

// core answers each REGISTER with what f says, on any connection, and counts the identities that are
// registered.
func core(t *testing.T, f func(m *siptx.Message) *siptx.Message) (at netip.AddrPort, registered func() int) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex // guards the following
	homes := map[string]bool{}
	serve := func(c net.Conn) {
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
			res := f(m)
			if res == nil {
				return
			}
			mu.Lock()
			if res.Status == 200 {
				home := siptx.AOROf(m.Get("To"))
				if delete(homes, home); m.Get("Expires") != "0" {
					homes[home] = true
				}
			}
			mu.Unlock()
			if _, err := c.Write(res.Append(nil)); err != nil {
				return
			}
		}
	}
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { serve(c) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close() // it ends Accept
		wg.Wait()
		goleak.VerifyNone(t)
	})
	return netip.MustParseAddrPort(l.Addr().String()), func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(homes)
	}
}

func granted(m *siptx.Message) *siptx.Message {
	return m.Response(200, "OK", siptx.Header{Name: "Path", Value: m.Get("Path")}, siptx.Header{Name: "Service-Route", Value: "<sip:s;lr>"}, siptx.Header{Name: "P-Associated-URI", Value: "<sip:alice@ims.test>, <sip:w-!.*!@ims.test>"})
}

func coreConfig(at netip.AddrPort) CoreConfig {
	return CoreConfig{NextHop: at, Listen: netip.MustParseAddrPort("127.0.0.1:5060"), Domain: "ims.test", VisitedNetwork: "webrtc.ims.test", IMPI: "alice@ims.test", IMPU: "sip:alice@ims.test", OtherIMPI: "bob@ims.test"}
}

// TestCoreThatTakesEverything: a core that registers whoever comes fails each negative case, and no
// positive one; whoever was registered is taken away again.
func TestCoreThatTakesEverything(t *testing.T) {
	at, registered := core(t, granted)
	r := Core(t.Context(), coreConfig(at))
	if n := registered(); n != 0 {
		t.Errorf("%d identities are registered at the end", n)
	}
	if len(r.Steps) != 15 || r.Count(Failed) != 11 {
		t.Errorf("%d of %d failed: %+v", r.Count(Failed), len(r.Steps), r.Steps)
	}
	for _, s := range r.Steps {
		good := s.Name == "core" || strings.HasPrefix(s.Name, "trusted registration") || strings.HasPrefix(s.Name, "the same again") || strings.HasPrefix(s.Name, "de-registration")
		if (s.State == OK) != good || !good && s.Check == "" {
			t.Errorf("%+v", s)
		}
	}
}

// TestCoreAnswers: what a core may answer to the good case and to bad ones.
func TestCoreAnswers(t *testing.T) {
	without := func(name string) func(*siptx.Message) *siptx.Message {
		return func(m *siptx.Message) *siptx.Message { r := granted(m); r.Del(name); return r }
	}
	status := func(n int) func(*siptx.Message) *siptx.Message {
		return func(m *siptx.Message) *siptx.Message { return m.Response(n, "Reason") }
	}
	trusted := func(m *siptx.Message) bool {
		return strings.Contains(m.Get("Authorization"), `"alice@ims.test"`) && strings.Contains(m.Get("Authorization"), "auth-done")
	}
	onlyAlice := func(n int) func(*siptx.Message) *siptx.Message { // n: status of others
		return func(m *siptx.Message) *siptx.Message {
			if trusted(m) {
				return granted(m)
			}
			return m.Response(n, "Reason")
		}
	}
	hangUp := func(m *siptx.Message) *siptx.Message {
		if trusted(m) {
			return granted(m)
		}
		return nil
	}
	const good, bad = "trusted registration", "unknown private identity"
	for name, k := range map[string]struct {
		f            func(*siptx.Message) *siptx.Message
		step         string
		state        State
		detail, hint string
	}{
		"no Path":             {without("Path"), good, Failed, "without Path", "RFC 3327"},
		"no Service-Route":    {without("Service-Route"), good, Failed, "without Service-Route", "TS 24.229"},
		"no P-Associated-URI": {without("P-Associated-URI"), good, Failed, "without P-Associated-URI", "TS 24.229"},
		"another's P-Associated-URI": {func(m *siptx.Message) *siptx.Message {
			r := granted(m)
			r.Set("P-Associated-URI", "<sip:bob@ims.test>")
			return r
		}, good, Failed, "lacks sip:alice@ims.test", "implicit registration set"},
		"a challenge":                 {status(401), good, Failed, "answered 401 Reason where 200 is right", "does not take this edge for a trusted node"},
		"nobody is registered":        {status(403), bad, OK, "403 Reason", ""},
		"a core that fails":           {status(500), bad, Failed, "answered 500 Reason where 403 is right", "by failing"},
		"a core that refuses by 500":  {onlyAlice(500), bad, OK, "refused, though 403 is usual", ""},
		"a redirection is no refusal": {onlyAlice(302), bad, Failed, "302", "by failing"},
		"a connection closed":         {hangUp, bad, Failed, "the core closed the connection", "log of the core"},
		"and opened again":            {hangUp, "de-registration", OK, "200 OK", ""},
	} {
		t.Run(name, func(t *testing.T) {
			at, _ := core(t, k.f)
			for _, s := range Core(t.Context(), coreConfig(at)).Steps {
				if strings.HasPrefix(s.Name, k.step) && (s.State != k.state || !strings.Contains(s.Detail, k.detail) || !strings.Contains(s.Check, k.hint)) {
					t.Errorf("%+v", s)
				}
			}
		})
	}
}

// TestMuteCore: an interrupt does not wait for a core that says nothing.
func TestMuteCore(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	block := make(chan struct{})
	at, _ := core(t, func(*siptx.Message) *siptx.Message { cancel(); <-block; return nil })
	begun := time.Now()
	r := Core(ctx, coreConfig(at))
	close(block)
	if r.Steps[1].State != Failed || r.Steps[2].Detail != "interrupted" || time.Since(begun) > 5*time.Second {
		t.Errorf("after %v: %+v", time.Since(begun), r.Steps)
	}
}

func TestCoreIsNotThere(t *testing.T) {
	r := Core(t.Context(), CoreConfig{NextHop: netip.MustParseAddrPort("127.0.0.1:1"), Listen: netip.MustParseAddrPort("127.0.0.1:5060"), Domain: "ims.test", IMPI: "a@ims.test", IMPU: "sip:a@ims.test"})
	if r.Count(Failed) != 1 || r.Steps[0].State != Failed || !strings.Contains(r.Steps[0].Check, "epcscf.core") || r.Steps[1].State != Skipped {
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
		switch {
		case err != nil && want != "":
			t.Errorf("%q: %v", raw, err)
		case err == nil && r.name != want:
			t.Errorf("%q: %q", raw, r.name)
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

// TestCertificates: what is wrong with a certificate is said with its dates, names and issuer.
func TestCertificates(t *testing.T) {
	defer goleak.VerifyNone(t)
	day := 24 * time.Hour
	for name, k := range map[string]struct {
		from, until  time.Duration
		host         string
		trusted      bool
		detail, hint string
	}{
		"expired":         {-2 * day, -day, "127.0.0.1", true, "was good until", "Renew the certificate, or set the clock"},
		"from tomorrow":   {day, 2 * day, "127.0.0.1", true, "is good from", "Set the clock of this machine"},
		"for other names": {-day, day, "192.0.2.1", true, "is for other names", "Use a name"},
		"of a strange CA": {-day, day, "127.0.0.1", false, `a CA that is not trusted here: "CN=a CA of the test"`, "--ca FILE"},
	} {
		t.Run(name, func(t *testing.T) {
			key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "a CA of the test"}, IsCA: true, BasicConstraintsValid: true,
				NotBefore: time.Now().Add(k.from), NotAfter: time.Now().Add(k.until), IPAddresses: []net.IP{net.ParseIP(k.host)}}
			der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
			if err != nil {
				t.Fatal(err)
			}
			roots := x509.NewCertPool()
			if c, err = x509.ParseCertificate(der); err != nil {
				t.Fatal(err)
			} else if k.trusted {
				roots.AddCert(c)
			}
			web := httptest.NewUnstartedServer(http.NotFoundHandler())
			web.Config.ErrorLog = log.New(io.Discard, "", 0)
			web.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
			web.StartTLS()
			defer web.Close()
			s := Run(t.Context(), Config{URL: web.URL, Guest: true, Roots: roots}).Steps[0]
			if s.State != Failed || !strings.Contains(s.Detail, k.detail) || !strings.Contains(s.Check, k.hint) {
				t.Errorf("%+v", s)
			}
		})
	}
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	s := Run(t.Context(), Config{URL: strings.Replace(plain.URL, "http:", "https:", 1), Guest: true}).Steps[0]
	if s.State != Failed || !strings.Contains(s.Detail, "does not speak TLS") {
		t.Errorf("%+v", s)
	}
}

func TestTURNCredentialField(t *testing.T) {
	const good = `uri="turn:turn.ims.test:3478?transport=udp",uri="turns:turn.ims.test:443",username="1795496400:k3v9t2",password="tOntmKRcz3ebGfoCO7lormDH+sQ=",expires=1795496400`
	p := &probe{credential: good, web: &web{}}
	if detail, err := p.turnCredential(t.Context()); err != nil || detail != "2 URLs, until 2026-11-24 05:00 UTC" || len(p.relays) != 2 || p.relays[1].name != "tls turn.ims.test:443" {
		t.Errorf("%q, %v, %+v", detail, err, p.relays)
	}
	for _, bad := range []string{"", "request", `uri="turn:x"`, strings.Replace(good, "turn:", "http:", 1), `username="a",password="b",expires=1`} {
		if _, err := (&probe{credential: bad, web: &web{}}).turnCredential(t.Context()); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

// TestHostileWords: what a server says moves no cursor, and makes no line of its own.
func TestHostileWords(t *testing.T) {
	var begun string
	r := &runner{begin: func(name string) { begun = name }}
	r.step(t.Context(), "allocate udp \x1b[2Jx:1", true, func(context.Context) (string, error) {
		return "", faultf("Wait for 1\r\n s.", "no\n  ok       log out\x1b]0;\a\u202e %s", strings.Repeat("é", 1<<20))
	})
	s := r.report.Steps[0]
	if strings.ContainsAny(begun+s.Name+s.Detail+s.Check, "\r\n\x1b\a\u202e") || !strings.HasPrefix(s.Detail, "no?  ok") || len(s.Detail) > 2100 || !utf8.ValidString(s.Detail) {
		t.Errorf("%q, %q, %.200q, %q", begun, s.Name, s.Detail, s.Check)
	}
}

// TestPasswordInURL: it stands in no report.
func TestPasswordInURL(t *testing.T) {
	r := Run(t.Context(), Config{URL: "https://alice:pass%20word@127.0.0.1:1", User: "alice"})
	b, err := json.Marshal(r)
	if err != nil || strings.Contains(string(b), "word@") || r.Steps[0].State != Failed || !strings.Contains(r.Steps[0].Check, "--user") {
		t.Errorf("%s, %v", b, err)
	}
}

// TestInClear: a portal that names an authorization server without TLS gets no password to send there.
func TestInClear(t *testing.T) {
	defer goleak.VerifyNone(t)
	asked := make(chan string, 9)
	plain := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r.URL.Path + " " + r.PostFormValue("password")
		if r.URL.Path == "/.well-known/oauth-authorization-server" {
			_, _ = w.Write([]byte(`{"issuer":"http://` + r.Host + `"}`)) // to a test
			return
		}
		_, _ = w.Write([]byte(`<form method="post" action="/log-in">`)) // to a test
	}))
	defer plain.Close()
	web := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write([]byte(`{"issuer":"` + plain.URL + `","authorization_endpoint":"` + plain.URL + `/authorize","token_endpoint":"https://x/t","sip_url":"wss://x/sip"}`)) // to a test
	}))
	defer web.Close()
	roots := x509.NewCertPool()
	roots.AddCert(web.Certificate())
	r := Run(t.Context(), Config{URL: web.URL, User: "alice", Password: secret.New([]byte("pass word")), Roots: roots})
	if s := r.Steps[1]; len(asked) > 0 || s.State != Failed || !strings.Contains(s.Detail, "no https URL") {
		t.Errorf("%d requests, %+v", len(asked), r.Steps)
	}
}

// TestMuteTURN: Ctrl-C does not wait for a TLS handshake; a server that hangs up is told from a client that does.
func TestMuteTURN(t *testing.T) {
	defer goleak.VerifyNone(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	hold := make(chan bool, 2)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer func() { _ = c.Close() }() // the other side has gone, or is to see it
				if <-hold {
					_, _ = io.Copy(io.Discard, c) // until the client goes
				}
			})
		}
	})
	defer wg.Wait()
	defer func() { _ = l.Close() }() // it ends Accept
	r, err := newRelay("turns:"+l.Addr().String(), "u", secret.New([]byte("p")), nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	hold <- true
	begun := time.Now()
	if _, err := r.allocate(ctx); err == nil || time.Since(begun) > 2*time.Second {
		t.Errorf("%v after %v", err, time.Since(begun))
	}
	if r, err = newRelay("turn:"+l.Addr().String()+"?transport=tcp", "u", secret.New([]byte("p")), nil); err != nil {
		t.Fatal(err)
	}
	hold <- false
	if _, err := r.allocate(t.Context()); err == nil || !strings.Contains(err.Error(), "the server "+l.Addr().String()+" ended the connection") {
		t.Error(err)
	}
}
