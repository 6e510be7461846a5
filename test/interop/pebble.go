package interop

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"wicgate/internal/listen"
	"wicgate/test/lab"
)

// pebbleVersion is that of tools/go.mod and test/setup.sh.
const pebbleVersion = "v2.10.1"

// Pebble is Let's Encrypt's ACME server for tests, with a DNS of its own. It validates for real.
type Pebble struct {
	Directory string
	CAFile    string // of the root of the directory's own certificate

	t          testing.TB
	log        *output
	client     *http.Client
	dns        string // management of the DNS
	management string
}

// output collects what a process writes.
type output struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// start starts a program from bin/tools, which the test's end ends.
func start(t testing.TB, env []string, name string, args ...string) *output {
	t.Helper()
	bin := filepath.Join(lab.Root(), "bin", "tools", name+"-"+pebbleVersion)
	if _, err := os.Stat(bin); err != nil {
		t.Fatalf("%v: run test/setup.sh", err)
	}
	out := new(output)
	cmd := exec.Command(bin, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it has nothing to keep
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("%s:\n%s", name, out)
		}
	})
	return out
}

// StartPebble starts it. Certificates live for validity; the CA looks for proof on these ports.
func StartPebble(t testing.TB, validity time.Duration, tlsPort, httpPort int) *Pebble {
	t.Helper()
	dir := t.TempDir()
	ca, err := listen.DevelopmentCA(filepath.Join(dir, "ca"), []string{"127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	pair, err := ca.GetCertificate(nil)
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name string, b []byte) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	api, management, dns, dnsManagement := FreePort(t), FreePort(t), FreePort(t), FreePort(t)
	config, err := json.Marshal(map[string]any{"pebble": map[string]any{
		"listenAddress": fmt.Sprintf("127.0.0.1:%d", api), "managementListenAddress": fmt.Sprintf("127.0.0.1:%d", management),
		"certificate": write("cert.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: pair.Certificate[0]})),
		"privateKey":  write("key.pem", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})),
		"httpPort":    httpPort, "tlsPort": tlsPort, "keyAlgorithm": "ecdsa",
		"retryAfter": map[string]int{"authz": 1, "order": 1},
		"profiles":   map[string]any{"default": map[string]any{"description": "for a test", "validityPeriod": int(validity.Seconds())}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	start(t, nil, "pebble-challtestsrv", "-http01", "", "-https01", "", "-doh", "", "-tlsalpn01", "", "-defaultIPv4", "", "-defaultIPv6", "",
		"-dnsserver", fmt.Sprintf("127.0.0.1:%d", dns), "-management", fmt.Sprintf("127.0.0.1:%d", dnsManagement))
	p := &Pebble{
		Directory: fmt.Sprintf("https://127.0.0.1:%d/dir", api), CAFile: ca.File, t: t,
		client: &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: ca.Pool()}, DisableKeepAlives: true}},
		dns:    fmt.Sprintf("http://127.0.0.1:%d", dnsManagement), management: fmt.Sprintf("https://127.0.0.1:%d", management),
	}
	p.log = start(t, []string{"PEBBLE_VA_NOSLEEP=1"}, "pebble", "-strict", "-config", write("pebble.json", config), "-dnsserver", fmt.Sprintf("127.0.0.1:%d", dns))
	lab.Eventually(t, 20*time.Second, "Pebble serves", func() bool {
		_, err := p.get(p.Directory)
		if err == nil {
			_, err = p.get(p.dns)
		}
		return err == nil
	})
	return p
}

func (p *Pebble) get(url string) ([]byte, error) {
	res, err := p.client.Get(url)
	if err != nil {
		return nil, err
	}
	defer func() { _ = res.Body.Close() }() // read to its end
	return io.ReadAll(res.Body)
}

func (p *Pebble) post(url string, body any) {
	p.t.Helper()
	b, err := json.Marshal(body)
	if err != nil {
		p.t.Fatal(err)
	}
	res, err := p.client.Post(url, "application/json", bytes.NewReader(b))
	if err != nil {
		p.t.Fatal(err)
	}
	_ = res.Body.Close() // the status says all
	if res.StatusCode != http.StatusOK {
		p.t.Fatalf("POST %s: %s", url, res.Status)
	}
}

// Resolve gives a name an address.
func (p *Pebble) Resolve(name, addr string) {
	p.t.Helper()
	p.post(p.dns+"/add-a", map[string]any{"host": name, "addresses": []string{addr}})
}

// RenewNow makes the CA suggest that a certificate is renewed at once (RFC 9773).
func (p *Pebble) RenewNow(leaf *x509.Certificate) {
	p.t.Helper()
	past := func(d time.Duration) string { return time.Now().Add(-d).UTC().Format(time.RFC3339) }
	response, err := json.Marshal(map[string]any{"suggestedWindow": map[string]string{"start": past(2 * time.Hour), "end": past(time.Hour)}})
	if err != nil {
		p.t.Fatal(err)
	}
	p.post(p.management+"/set-renewal-info/", map[string]string{
		"certificate": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Raw})), "ariResponse": string(response),
	})
}

// Roots are those of the certificates that it issues.
func (p *Pebble) Roots() *x509.CertPool {
	p.t.Helper()
	b, err := p.get(p.management + "/roots/0")
	if err != nil {
		p.t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(b) {
		p.t.Fatalf("no root in %q", b)
	}
	return pool
}

// Issued counts the certificates.
func (p *Pebble) Issued() int { return strings.Count(p.log.String(), "Issued certificate serial") }

// Orders counts what it was asked for.
func (p *Pebble) Orders() int { return strings.Count(p.log.String(), "orders in the db") }
