package acme

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mholt/acmez/v3/acme"
	"go.uber.org/goleak"

	"wicgate/internal/listen"
	"wicgate/internal/secret"
	"wicgate/internal/store"
)

func client(t *testing.T, st store.Store) *Client {
	t.Helper()
	c, err := New(Config{
		Names: []string{"one.test", "two.test"}, Directory: "https://127.0.0.1:1/dir", Store: st, Secrets: []secret.Bytes{first},
		Listen: netip.MustParseAddrPort("127.0.0.1:8443"),
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// show puts a certificate in place.
func (c *Client) show(t *testing.T, name string) *tls.Certificate {
	t.Helper()
	ca, err := listen.DevelopmentCA(filepath.Join(t.TempDir(), "ca"), []string{name})
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.GetCertificate(nil)
	if err != nil {
		t.Fatal(err)
	}
	c.certs[name] = cert
	return cert
}

func TestGetCertificate(t *testing.T) {
	c := client(t, store.NewMemory())
	ask := func(name string, alpn ...string) (*tls.Certificate, error) {
		return c.GetCertificate(&tls.ClientHelloInfo{ServerName: name, SupportedProtos: alpn})
	}
	for _, name := range []string{"", "one.test", "two.test", "other.test"} {
		if cert, err := ask(name); err == nil || cert != nil {
			t.Errorf("%q without a certificate: %v", name, cert)
		}
	}
	if _, err := c.Leaf(); err == nil || !strings.Contains(err.Error(), "one.test") {
		t.Errorf("Leaf: %v", err)
	}
	one, two := c.show(t, "one.test"), c.show(t, "two.test")
	two.Leaf.NotAfter = one.Leaf.NotAfter.Add(-time.Hour)
	for name, want := range map[string]*tls.Certificate{"": one, "one.test": one, "ONE.test": one, "two.test": two, "other.test": one, "x.one.test": one} {
		if cert, err := ask(name, "h2", "http/1.1"); err != nil || cert != want {
			t.Errorf("%q: another certificate, %v", name, err)
		}
	}
	if leaf, err := c.Leaf(); err != nil || leaf != two.Leaf {
		t.Errorf("Leaf is not the one that ends first: %v", err)
	}
	// No challenge is under way; for an unknown name the store is not even asked.
	for _, c := range []struct{ name, want string }{{"other.test", "none of https.acme.names"}, {"", "none of https.acme.names"}} {
		if cert, err := ask(c.name, listen.ACMEProtocol); err == nil || cert != nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("challenge for %q: %v", c.name, err)
		}
	}
	if _, err := ask("one.test", "h2", listen.ACMEProtocol); err == nil {
		t.Error("a challenge beside another protocol (RFC 8737 §3)")
	}
}

// TestUnreachable: the CA is not there. The last certificate is shown; the error says what to do, the
// node tries again ever more seldom, and other nodes are not held back.
func TestUnreachable(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	st := store.NewMemory()
	c := client(t, st)
	for n, want := range backoff {
		p := c.pace["one.test"]
		p.ask = time.Time{}
		begin := time.Now()
		if look := c.tend(t.Context(), "one.test"); look != lookAround {
			t.Errorf("looks again after %v", look)
		}
		if d := p.ask.Sub(begin); d < want || d > want+time.Minute {
			t.Errorf("attempt %d: asks again after %v, want %v", n+1, d, want)
		}
	}
	if err := c.Err(); err == nil || !strings.Contains(err.Error(), "one.test") || strings.Contains(err.Error(), "two.test") {
		t.Errorf("Err: %v", err)
	}
	if err := explain(c.cfg, "one.test", c.Err()); !strings.Contains(err.Error(), "does the firewall let this machine out to https://127.0.0.1:1/dir") {
		t.Error(err)
	}
	if c.vault.Exists(t.Context(), failures+"one.test") {
		t.Error("other nodes are told not to try")
	}
	if look := c.tend(t.Context(), "one.test"); look != lookAround {
		t.Errorf("before its time: %v", look)
	}
	cert := c.show(t, "one.test")
	if got, err := c.GetCertificate(&tls.ClientHelloInfo{ServerName: "one.test"}); err != nil || got != cert {
		t.Errorf("the last certificate is not shown: %v", err)
	}
}

// TestServeEnds: nothing is left of a client whose CA does not answer, nor of its HTTP.
func TestServeEnds(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	silent, err := net.Listen("tcp", "127.0.0.1:0") // takes connections and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = silent.Close() }() // the test is over
	c, err := New(Config{
		Names: []string{"one.test"}, Directory: "https://" + silent.Addr().String(), Store: store.NewMemory(), Secrets: []secret.Bytes{first},
		Listen: netip.MustParseAddrPort("127.0.0.1:8443"), HTTP: netip.MustParseAddrPort("127.0.0.1:0"),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- c.Serve(ctx) }()
	res, err := http.Get("http://" + c.http.Addr().String() + "/.well-known/acme-challenge/x")
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close() // the status says all
	http.DefaultClient.CloseIdleConnections()
	if res.StatusCode != http.StatusNotFound {
		t.Error(res.Status)
	}
	if _, err := silent.Accept(); err != nil { // an attempt is under way
		t.Fatal(err)
	}
	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("Serve does not end")
	}
	if _, err := net.Dial("tcp", c.http.Addr().String()); err == nil {
		t.Error("HTTP is still there")
	}
}

func TestNewRefuses(t *testing.T) {
	if _, err := New(Config{Names: []string{"one.test"}, Store: store.NewMemory()}); err == nil {
		t.Error("no secret")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }() // only to have the port
	_, err = New(Config{Names: []string{"one.test"}, Store: store.NewMemory(), Secrets: []secret.Bytes{first}, HTTP: netip.MustParseAddrPort(l.Addr().String())})
	if err == nil || !strings.Contains(err.Error(), "set https.acme.http in wicgate.yaml to another port") {
		t.Errorf("a taken port: %v", err)
	}
}

func TestExplain(t *testing.T) {
	problem := func(kind string) error {
		return fmt.Errorf("[x] %w (ca=y)", acme.Problem{Type: acme.ProblemTypeNamespace + kind, Detail: "what the CA says"})
	}
	cfg := Config{Directory: "https://ca.test/dir", Listen: netip.MustParseAddrPort("192.0.2.1:8443")}
	both := cfg
	both.HTTP = netip.MustParseAddrPort("192.0.2.1:80")
	for _, c := range []struct {
		cfg  Config
		err  error
		want string
	}{
		{cfg, problem("dns"), "give the name an A or AAAA record"},
		{cfg, problem("connection"), "one.test, port 443: does the name's A or AAAA record lead here, does the firewall let the port in, is it forwarded to 192.0.2.1:8443?"},
		{both, problem("unauthorized"), "port 443 or 80"},
		{cfg, problem("tls"), "a proxy that ends TLS before wicgate"},
		{cfg, problem("caa"), "CAA record of one.test"},
		{cfg, problem("rateLimited"), "staging directory"},
		{cfg, problem("rejectedIdentifier"), "public names only"},
		{cfg, problem("externalAccountRequired"), "set https.acme.directory to another CA"},
		{cfg, problem("invalidContact"), "https.acme.email"},
		{cfg, fmt.Errorf("x: %w", x509.UnknownAuthorityError{}), "set https.acme.ca"},
		{cfg, &net.DNSError{Err: "no such host", Name: "ca.test"}, "is https.acme.directory right"},
		{cfg, fmt.Errorf("x: %w", errSealed), "nodes that share a bus share the file https.acme.secrets"},
	} {
		if got := explain(c.cfg, "one.test", c.err); !strings.Contains(got.Error(), c.want) || !errors.Is(got, c.err) {
			t.Errorf("%v: want %q in\n%v", c.err, c.want, got)
		}
	}
}
