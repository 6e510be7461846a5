package stunkey

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"wicgate/internal/keyring"
	"wicgate/internal/listen"
	"wicgate/internal/secret"
	"wicgate/internal/token"
)

const (
	one = "turn1.ims.test"
	two = "turn2.ims.test"
)

// authority is a private CA.
type authority struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
	last int64
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := &authority{t: t, pool: x509.NewCertPool()}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), KeyUsage: x509.KeyUsageCertSign}
	var err error
	if a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &a.key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.pool.AddCert(a.cert)
	return a
}

// issue makes a client's certificate for the given names, changed by change.
func (a *authority) issue(names []string, change ...func(*x509.Certificate)) *tls.Certificate {
	a.t.Helper()
	a.last++
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(100 + a.last), Subject: pkix.Name{CommonName: one}, DNSNames: names,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	for _, f := range change {
		f(tmpl)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, &key.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// journal is a log that can be read.
type journal struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (j *journal) Write(b []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.Write(b)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.String()
}

func (j *journal) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(j, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// bench is a WAF that serves keys over TLS on loopback.
type bench struct {
	*authority
	log  journal
	ring *keyring.Ring // of one
	url  string
	stop func()
}

func newBench(t *testing.T) *bench {
	t.Helper()
	t.Cleanup(func() { goleak.VerifyNone(t) })
	b := &bench{authority: newAuthority(t)}
	var rings []*keyring.Ring
	for _, name := range []string{one, two} {
		r, err := keyring.NewPlain(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Renew(time.Now(), token.A256GCM, time.Hour); err != nil {
			t.Fatal(err)
		}
		rings = append(rings, r)
	}
	b.ring = rings[0]
	rings = append(rings, keyring.New("derived.ims.test"))
	b.serve(NewServer(b.log.logger(), rings...))
	return b
}

func (b *bench) serve(h http.Handler) {
	b.t.Helper()
	own := b.issue(nil, func(c *x509.Certificate) {
		c.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	})
	f, err := listen.NewMutualFront("waf.stun_key.listen", netip.MustParseAddrPort("127.0.0.1:0"),
		func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return own, nil }, b.pool, h, b.log.logger())
	if err != nil {
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.Serve(ctx) }()
	b.url = "https://" + f.Addr().String()
	b.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			b.t.Error(err)
		}
	})
	b.t.Cleanup(b.stop)
}

func (b *bench) puller(ring *keyring.Ring, cert *tls.Certificate) *Puller {
	b.t.Helper()
	p, err := NewPuller(PullerConfig{Log: b.log.logger(), URL: b.url, Ring: ring, CA: b.pool,
		Certificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }})
	if err != nil {
		b.t.Fatal(err)
	}
	return p
}

// ask is a request as any program would make it.
func (b *bench) ask(method, path string, cert *tls.Certificate) (int, http.Header, []byte, error) {
	conf := &tls.Config{RootCAs: b.pool}
	if cert != nil {
		conf.Certificates = []tls.Certificate{*cert}
	}
	tr := &http.Transport{TLSClientConfig: conf, DisableKeepAlives: true}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(b.t.(*testing.T).Context(), method, b.url+path, nil)
	if err != nil {
		return 0, nil, nil, err
	}
	resp, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		return 0, nil, nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, resp.Header, body, err
}

// TestAnswer: as RFC 7635 §4.1.1 shows it, and one line in the log.
func TestAnswer(t *testing.T) {
	b := newBench(t)
	status, head, body, err := b.ask("GET", Path+"?service=stun&name="+one, b.issue([]string{one}))
	if err != nil || status != 200 || head.Get("Content-Type") != "application/json" || head.Get("Cache-Control") != "no-store" {
		t.Fatal(status, head, err)
	}
	var a map[string]any
	if err := json.Unmarshal(body, &a); err != nil || len(a) != 4 {
		t.Fatalf("%s %v", body, err)
	}
	want := b.ring.Plain(time.Now())[0]
	k, err := base64.RawURLEncoding.Strict().DecodeString(a["k"].(string))
	if err != nil || !want.K.Equal(secret.New(k)) || a["kid"] != want.KID || a["enc"] != "A256GCM" || a["exp"] != float64(want.Exp.Unix()) {
		t.Errorf("%v", a)
	}
	log := b.log.String()
	if strings.Count(log, "STUN key pulled") != 1 || !strings.Contains(log, "server="+one) || !strings.Contains(log, want.KID) || !strings.Contains(log, "serial=") || !strings.Contains(log, "from=127.0.0.1") {
		t.Error(log)
	}
	if strings.Contains(log, a["k"].(string)) {
		t.Error("the log has the key")
	}
}

func TestRefusals(t *testing.T) {
	b := newBench(t)
	good := b.issue([]string{one})
	other := newAuthority(t)
	query := "?service=turn&name=" + one
	for _, c := range []struct {
		name, method, path string
		cert               *tls.Certificate
		status             int // 0: the handshake fails
	}{
		{"good", "GET", Path + query, good, 200},
		{"service in capitals", "GET", Path + "?service=TURN&name=" + one, good, 200},
		{"HEAD", "HEAD", Path + query, good, 405},
		{"POST", "POST", Path + query, good, 405},
		{"no service", "GET", Path + "?name=" + one, good, 400},
		{"other service", "GET", Path + "?service=sip&name=" + one, good, 400},
		{"no name", "GET", Path + "?service=turn", good, 400},
		{"two names", "GET", Path + query + "&name=" + two, good, 400},
		{"bad query", "GET", Path + query + "&%zz", good, 400},
		{"other path", "GET", "/" + query, good, 404},
		{"another's name", "GET", Path + "?service=turn&name=" + two, good, 403},
		{"name in capitals", "GET", Path + "?service=turn&name=" + strings.ToUpper(one), good, 403},
		{"unknown name", "GET", Path + "?service=turn&name=turn3.ims.test", b.issue([]string{"turn3.ims.test"}), 403},
		{"derived keys", "GET", Path + "?service=turn&name=derived.ims.test", b.issue([]string{"derived.ims.test"}), 403},
		{"two SANs", "GET", Path + query, b.issue([]string{one, two}), 403},
		{"the SAN twice", "GET", Path + query, b.issue([]string{one, one}), 403},
		{"wildcard", "GET", Path + query, b.issue([]string{"*.ims.test"}), 403},
		{"no SAN, only a CN", "GET", Path + query, b.issue(nil), 403},
		{"an IP SAN too", "GET", Path + query, b.issue([]string{one}, func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)} }), 403},
		{"a URI SAN too", "GET", Path + query, b.issue([]string{one}, func(c *x509.Certificate) { c.URIs = []*url.URL{{Scheme: "turn", Opaque: one}} }), 403},
		{"a mail SAN too", "GET", Path + query, b.issue([]string{one}, func(c *x509.Certificate) { c.EmailAddresses = []string{"a@" + one} }), 403},
		{"no certificate", "GET", Path + query, nil, 0},
		{"of another CA", "GET", Path + query, other.issue([]string{one}), 0},
		{"expired", "GET", Path + query, b.issue([]string{one}, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }), 0},
		{"for servers", "GET", Path + query, b.issue([]string{one}, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }), 0},
	} {
		before := strings.Count(b.log.String(), "STUN key")
		status, head, body, err := b.ask(c.method, c.path, c.cert)
		if (err == nil) != (c.status != 0) || status != c.status {
			t.Errorf("%s: %d, %v", c.name, status, err)
			continue
		}
		if c.status != 0 && head.Get("Cache-Control") != "no-store" || c.status == 405 && head.Get("Allow") != "GET" {
			t.Errorf("%s: %v", c.name, head)
		}
		if c.status != 200 && bytes.Contains(body, []byte(`"k"`)) {
			t.Errorf("%s: a key comes out: %s", c.name, body)
		}
		want := 1
		if c.status == 0 {
			want = 0
		}
		if n := strings.Count(b.log.String(), "STUN key") - before; n != want {
			t.Errorf("%s: %d lines in the log", c.name, n)
		}
	}
	// The name that is not one's own and the one that nobody has cannot be told apart.
	_, _, first, _ := b.ask("GET", Path+"?service=turn&name="+two, good)
	_, _, second, _ := b.ask("GET", Path+"?service=turn&name=nobody.test", good)
	if !bytes.Equal(first, second) {
		t.Errorf("%s and %s", first, second)
	}
	if NewServer(b.log.logger()).rate == nil {
		t.Error("no rate")
	}
}

// TestRate: a server that runs wild is slowed down, in the log too, and nobody else is.
func TestRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ring, err := keyring.NewPlain(one, keyring.PlainKey{KID: "k", Enc: token.A256GCM, K: secret.Random(32)})
		if err != nil {
			t.Fatal(err)
		}
		var log journal
		s := NewServer(log.logger(), ring)
		ca := newAuthority(t)
		pull := func(cert *tls.Certificate) *httptest.ResponseRecorder {
			leaf, err := x509.ParseCertificate(cert.Certificate[0])
			if err != nil {
				t.Fatal(err)
			}
			r := httptest.NewRequest("GET", Path+"?service=turn&name="+one, nil)
			r.TLS = &tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{leaf}}}
			w := httptest.NewRecorder()
			s.ServeHTTP(w, r)
			return w
		}
		wild, calm := ca.issue([]string{one}), ca.issue([]string{one})
		codes := map[int]int{}
		for range 1000 {
			w := pull(wild)
			codes[w.Code]++
			if w.Code == 429 && w.Header().Get("Retry-After") == "" {
				t.Fatal("no Retry-After")
			}
		}
		if codes[200] != 30 || codes[429] != 970 || strings.Count(log.String(), "\n") != 30 {
			t.Errorf("%v, %d lines", codes, strings.Count(log.String(), "\n"))
		}
		if w := pull(calm); w.Code != 200 {
			t.Errorf("another server gets %d", w.Code)
		}
		time.Sleep(3 * time.Second)
		if w := pull(wild); w.Code != 200 {
			t.Errorf("later: %d", w.Code)
		}
		// A request that no listener has verified.
		w := httptest.NewRecorder()
		s.ServeHTTP(w, httptest.NewRequest("GET", Path+"?service=turn&name="+one, nil))
		if w.Code != 403 {
			t.Errorf("without TLS: %d", w.Code)
		}
	})
}

func seal(t *testing.T, r *keyring.Ring) (kid string, tok []byte) {
	t.Helper()
	kid = r.KID("p")
	k, f, _, ok := r.Key(kid)
	if !ok {
		t.Fatalf("no key for %q", kid)
	}
	tok, err := token.Seal(f, k, r.Server(), token.Payload{MACKey: token.NewMACKey(), Timestamp: token.NewTimestamp(time.Now()), Lifetime: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	return kid, tok
}

// TestPull goes through a rotation over TLS: the next key is there before the WAF seals with it, tokens
// of the old kid stay good, and a start without the WAF has what was pulled.
func TestPull(t *testing.T) {
	b := newBench(t)
	path := filepath.Join(t.TempDir(), "pulled.json")
	ring, err := keyring.OpenPlain(path, one)
	if err != nil {
		t.Fatal(err)
	}
	cert := b.issue([]string{one})
	p := b.puller(ring, cert)
	opens := func(kid string, tok []byte) {
		t.Helper()
		k, f, who, ok := p.Key(kid)
		if !ok || who != "" {
			t.Fatalf("%q is unknown", kid)
		}
		if _, err := token.Open(f, k, one, tok); err != nil {
			t.Error(err)
		}
	}
	kid1, tok1 := seal(t, b.ring)
	if _, _, _, ok := p.Key(kid1); ok {
		t.Fatal("a key from nowhere")
	}
	exp, err := p.pull(t.Context())
	if err != nil || time.Until(exp) > time.Hour || time.Until(exp) < 59*time.Minute {
		t.Fatal(exp, err)
	}
	opens(kid1, tok1)
	// Near the first key's end the WAF makes the second, and still seals with the first.
	if err := b.ring.Renew(time.Now().Add(50*time.Minute), token.A256CBCHS512, time.Hour); err != nil {
		t.Fatal(err)
	}
	list := b.ring.Plain(time.Now())
	if len(list) != 2 || b.ring.KID("p") != kid1 {
		t.Fatalf("%d keys, seals with %q", len(list), b.ring.KID("p"))
	}
	if exp, err = p.pull(t.Context()); err != nil || !exp.Equal(list[0].Exp) {
		t.Fatal(exp, err)
	}
	opens(kid1, tok1)
	if k, f, _, ok := p.Key(list[0].KID); !ok || !k.Equal(list[0].K) || f != token.A256CBCHS512 {
		t.Error("the next key is not there before its use")
	}
	// Another node that starts now has both, too.
	fresh, err := keyring.NewPlain(one)
	if err != nil {
		t.Fatal(err)
	}
	q := b.puller(fresh, cert)
	if _, err := q.pull(t.Context()); err != nil || len(fresh.Plain(time.Now())) != 2 {
		t.Errorf("%d keys, %v", len(fresh.Plain(time.Now())), err)
	}
	if k, _, _, ok := q.Key(kid1); !ok || !k.Equal(list[1].K) {
		t.Error("a node that starts in between cannot open the old kid's tokens")
	}
	// The WAF goes away.
	b.stop()
	if _, err := p.pull(t.Context()); err == nil {
		t.Error("pulled from nobody")
	}
	opens(kid1, tok1)
	if ring, err = keyring.OpenPlain(path, one); err != nil {
		t.Fatal(err)
	}
	p = b.puller(ring, cert)
	opens(kid1, tok1)
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Error(st.Mode(), err)
	}
	if log := b.log.String(); strings.Contains(log, base64.RawURLEncoding.EncodeToString(list[0].K.Expose())) || strings.Count(log, "STUN key pulled") != 3 {
		t.Error(log)
	}
}

// TestPullRefuses: whom the TURN server does not ask, or whose answer it does not take.
func TestPullRefuses(t *testing.T) {
	b := newBench(t)
	ring := func(name string) *keyring.Ring {
		r, err := keyring.NewPlain(name)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	if _, err := b.puller(ring(one), b.issue([]string{two})).pull(t.Context()); err == nil || !strings.Contains(err.Error(), "waf.stun_key.servers") {
		t.Errorf("another's certificate: %v", err)
	}
	if _, err := b.puller(ring(one), newAuthority(t).issue([]string{one})).pull(t.Context()); err == nil {
		t.Error("a certificate of another CA")
	}
	p := b.puller(ring(one), b.issue([]string{one}))
	p.client.Transport.(*http.Transport).TLSClientConfig.RootCAs = newAuthority(t).pool
	if _, err := p.pull(t.Context()); err == nil {
		t.Error("a WAF of another CA")
	}
	for name, c := range map[string]struct {
		handler http.HandlerFunc
		want    string
	}{
		"redirect": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://elsewhere.test/", http.StatusFound)
		}, "answers 302"},
		"HTML": {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>") }, "not application/json"},
		"garbage": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, "{")
		}, "not the JSON"},
		"endless": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write(bytes.Repeat([]byte(" "), maxBody+1))
		}, "more than 65536 bytes"},
	} {
		b.stop()
		b.serve(c.handler)
		if _, err := b.puller(ring(one), b.issue([]string{one})).pull(t.Context()); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, u := range []string{"", "http://waf.test", "https://", "https://user@waf.test", "https://waf.test/?x=1", "https://waf.test/#x", "waf.test:8444"} {
		if _, err := NewPuller(PullerConfig{Log: b.log.logger(), URL: u, Ring: ring(one)}); err == nil {
			t.Errorf("URL %q is taken", u)
		}
	}
	if _, err := NewPuller(PullerConfig{Log: b.log.logger(), URL: b.url, Ring: keyring.New(one)}); err == nil {
		t.Error("a derived ring is taken")
	}
}

// inMemory is the WAF without a socket, for tests with a clock of their own.
type inMemory struct {
	handler http.Handler
	chain   []*x509.Certificate
	mu      sync.Mutex
	away    bool
	pulls   []time.Time
}

func (m *inMemory) RoundTrip(r *http.Request) (*http.Response, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pulls = append(m.pulls, time.Now())
	if m.away {
		return nil, errors.New("the WAF is away")
	}
	r = r.Clone(r.Context())
	r.RemoteAddr = "127.0.0.1:1"
	r.TLS = &tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{m.chain}}
	w := httptest.NewRecorder()
	m.handler.ServeHTTP(w, r)
	return w.Result(), nil
}

func (m *inMemory) set(away bool) (pulled int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := len(m.pulls)
	m.away, m.pulls = away, nil
	return n
}

// TestServe follows a TURN server for a month: each kid is there when the WAF first seals with it, also
// after the WAF was away; and a key made out of turn comes with the first kid that is not known.
func TestServe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const life = 48 * time.Hour
		waf, err := keyring.NewPlain(one)
		if err != nil {
			t.Fatal(err)
		}
		ring, err := keyring.NewPlain(one)
		if err != nil {
			t.Fatal(err)
		}
		var log journal
		m := &inMemory{handler: NewServer(log.logger(), waf), chain: []*x509.Certificate{{SerialNumber: big.NewInt(7), DNSNames: []string{one}}}, away: true}
		p, err := NewPuller(PullerConfig{Log: log.logger(), URL: "https://waf.test", Ring: ring})
		if err != nil {
			t.Fatal(err)
		}
		p.client.Transport = m
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 2)
		go func() { done <- p.Serve(ctx) }()
		go func() { done <- waf.Keep(ctx, token.A256GCM, life, log.logger()) }()

		// The WAF is away at the start: asked with growing waits, not for ever faster.
		time.Sleep(10 * time.Minute)
		if n := m.set(false); n < 10 || n > 30 {
			t.Errorf("%d pulls in 10 minutes", n)
		}
		time.Sleep(lastRetry)
		away := false
		for hour := range 30 * 24 {
			if hour%100 == 99 {
				away = hour%200 == 99 // for 100 hours, twice the life of a key
				m.set(away)
			}
			time.Sleep(time.Hour + time.Second)
			_, _, _, ok := p.Key(waf.KID("p"))
			if !ok && !away {
				t.Fatalf("hour %d: the WAF seals with a kid that is not here", hour)
			}
		}
		m.set(false)
		time.Sleep(latest)
		m.set(false)
		time.Sleep(24 * time.Hour)
		if n := m.set(false); n > 20 {
			t.Errorf("%d pulls in a day", n)
		}
		// Out of turn.
		k := keyring.PlainKey{KID: "emergency", Enc: token.A256GCM, K: secret.Random(32), Exp: time.Now().Add(life).Truncate(time.Second)}
		if _, err := waf.Learn(time.Now(), k); err != nil {
			t.Fatal(err)
		}
		if _, _, _, ok := p.Key("emergency"); ok {
			t.Fatal("there before it was pulled")
		}
		synctest.Wait()
		if _, _, _, ok := p.Key("emergency"); !ok {
			t.Error("not there after the first token under it")
		}
		// What strangers make up leads to a pull in 30 s, no more.
		m.set(false)
		for i := range 6000 {
			p.Key(fmt.Sprint("made-up-", i))
			time.Sleep(10 * time.Millisecond)
		}
		if n := m.set(false); n > 3 {
			t.Errorf("%d pulls in a minute", n)
		}
		if len(p.NonceSecrets()) == 0 {
			t.Error("no nonce secret")
		}
		cancel()
		for range 2 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	})
}

func TestParse(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	k := base64.RawURLEncoding.EncodeToString(make([]byte, 32))
	good := `{"k":"` + k + `","exp":1800000060,"kid":"22BIjxU93h/IgwEb","enc":"A256GCM"}`
	for _, c := range []struct {
		name, in string
		keys     int // 0: refused
	}{
		{"good", good, 1},
		{"fraction", strings.Replace(good, "060", "060.5", 1), 1},
		{"padded", strings.Replace(good, k, k+"=", 1), 1},
		{"other members", strings.Replace(good, "{", `{"alg":"x","kty":"oct",`, 1), 1},
		{"more keys", strings.Replace(good, "{", `{"keys":[`+good+`],`, 1), 2},
		{"ended", strings.Replace(good, "060", "000", 1), 0},
		{"no exp", strings.Replace(good, "exp", "nbf", 1), 0},
		{"exp as text", strings.Replace(good, "1800000060", `"1800000060"`, 1), 0},
		{"exp below zero", strings.Replace(good, "1800000060", "-1", 1), 0},
		{"exp without end", strings.Replace(good, "1800000060", "1e300", 1), 0},
		{"milliseconds", strings.Replace(good, "060", "060000", 1), 0},
		{"short", strings.Replace(good, "AAAA", "", 1), 0},
		{"base64", strings.Replace(good, "AAAA", "AA/+", 1), 0},
		{"enc without quotes, as the RFC prints it", strings.Replace(good, `"A256GCM"`, "A256GCM", 1), 0},
		{"other enc", strings.Replace(good, "A256GCM", "A192GCM", 1), 0},
		{"another size", strings.Replace(good, "A256GCM", "A256CBC-HS512", 1), 0},
		{"more keys, one bad", strings.Replace(good, "{", `{"keys":[{}],`, 1), 0},
		{"very many keys", strings.Replace(good, "{", `{"keys":[`+strings.Repeat(`{},`, 64)+`{}],`, 1), 0},
		{"nothing", "", 0},
		{"list", "[]", 0},
		{"trailing", good + "x", 0},
	} {
		list, err := parse([]byte(c.in), now)
		if len(list) != c.keys || (err == nil) != (c.keys > 0) {
			t.Errorf("%s: %d keys, %v", c.name, len(list), err)
		}
		if err != nil && strings.Contains(err.Error(), "AAAA") {
			t.Errorf("%s: the error shows a key: %v", c.name, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	k := base64.RawURLEncoding.EncodeToString(make([]byte, 32))
	f.Add([]byte(`{"k":"` + k + `","exp":1800000060,"kid":"k1","enc":"A256GCM","keys":[{"k":"` + k + k + `","exp":1800000060.25,"kid":"k0","enc":"draft13-A256CBC-HS256"}]}`))
	f.Add([]byte(`{"k":"","exp":1e308}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		now := time.Unix(1_800_000_000, 0)
		list, err := parse(b, now)
		if (err == nil) != (len(list) > 0) || len(list) > 1+keyring.MaxPlain {
			t.Fatalf("%d keys, %v", len(list), err)
		}
		if err != nil {
			return
		}
		r, err := keyring.NewPlain(one)
		if err != nil {
			t.Fatal(err)
		}
		if fresh, err := r.Learn(now, list...); err == nil {
			for _, kid := range fresh {
				if _, f, _, ok := r.Key(kid); ok && f.KeySize() == 0 {
					t.Fatalf("%q has no format", kid)
				}
			}
		}
	})
}
