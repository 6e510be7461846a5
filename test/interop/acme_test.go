package interop

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"wicgate/internal/listen"
	"wicgate/test/lab"
)

const sealSecret = "a secret of the test, shared by all nodes"

// fleet are nodes that share a bus, one an address of loopback, all on one port.
type fleet struct {
	t    *testing.T
	port int
	bus  string
	disk string // of the bus
	file string // with the secrets
}

func newFleet(t *testing.T) *fleet {
	t.Helper()
	f := &fleet{t: t, port: FreePort(t), disk: t.TempDir(), file: filepath.Join(t.TempDir(), "acme-secrets.txt")}
	if err := os.WriteFile(f.file, []byte(sealSecret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	srv, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: -1, JetStream: true, StoreDir: f.disk, NoSigs: true, NoLog: true})
	if err != nil {
		t.Fatal(err)
	}
	srv.Start()
	t.Cleanup(func() { srv.Shutdown(); srv.WaitForShutdown() })
	if !srv.ReadyForConnections(10 * time.Second) {
		t.Fatal("NATS is not ready")
	}
	f.bus = srv.ClientURL()
	return f
}

// addr is a node's.
func (f *fleet) addr(node int) string { return fmt.Sprintf("127.0.0.%d:%d", node, f.port) }

// start starts a node with ACME set so, in YAML.
func (f *fleet) start(node int, data, acme string, roles ...string) *lab.Process {
	f.t.Helper()
	file := filepath.Join(data, "wicgate.yaml")
	text := fmt.Sprintf(`
log: {level: debug}
bus: {url: '%[1]s'}
https: {listen: '%[2]s', url: 'https://one.test:%[3]d', acme: {agree: true, secrets: '%[4]s', %[5]s}}
turn: {listen: ['127.0.0.%[6]d:%[7]d'], listen_tcp: ['%[2]s'], urls: ['turns:one.test:%[3]d?transport=tcp'], relay: [{bind: 127.0.0.%[6]d}]}
`, f.bus, f.addr(node), f.port, f.file, acme, node, FreePort(f.t))
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		f.t.Fatal(err)
	}
	return lab.Start(f.t, nil, data, append([]string{"--config", file}, roles...)...)
}

// connect does TLS with a node. On a port that TURN and the web share, protocols tell them apart.
func (f *fleet) connect(node int, name string, roots *x509.CertPool, protocols ...string) (*tls.Conn, error) {
	d := &net.Dialer{Timeout: 5 * time.Second}
	return tls.DialWithDialer(d, "tcp", f.addr(node), &tls.Config{RootCAs: roots, ServerName: name, NextProtos: protocols})
}

// shown is the certificate that a node shows for a name, nil if it has none that roots verify.
func (f *fleet) shown(node int, name string, roots *x509.CertPool) *x509.Certificate {
	c, err := f.connect(node, name, roots)
	if err != nil {
		return nil
	}
	defer func() { _ = c.Close() }() // for its certificate alone
	return c.ConnectionState().PeerCertificates[0]
}

// TestACMEFleet: three nodes, each with another kind of listener, share a bus. One of them gets each
// certificate, the CA finds the proof at the others, all serve it. What the bus keeps has no key to read.
func TestACMEFleet(t *testing.T) {
	f := newFleet(t)
	p := StartPebble(t, 90*24*time.Hour, f.port, FreePort(t))
	names := []string{"one.test", "two.test", "three.test"}
	for i, name := range names {
		p.Resolve(name, fmt.Sprintf("127.0.0.%d", (i+1)%3+1)) // two.test at node 3, for instance
	}
	other, err := listen.DevelopmentCA(filepath.Join(t.TempDir(), "ca"), []string{"127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	acme := func(ca string) string {
		return fmt.Sprintf("names: [%s], directory: '%s', ca: '%s'", strings.Join(names, ", "), p.Directory, ca)
	}
	data := map[int]string{1: lab.DataFolder(t), 2: lab.DataFolder(t), 3: lab.DataFolder(t)}
	roles := map[int][]string{1: {"turn", "wwsf"}, 2: {"wwsf"}, 3: {"turn"}}
	nodes := map[int]*lab.Process{}
	// Nodes 2 and 3 do not trust the directory, so it is node 1 that gets the certificates.
	for _, n := range []int{2, 3} {
		nodes[n] = f.start(n, data[n], acme(other.File), roles[n]...)
		lab.Eventually(t, 10*time.Second, "the node says what is wrong", func() bool {
			return strings.Contains(nodes[n].Log(), "set https.acme.ca to the PEM file of its root")
		})
	}
	roots := p.Roots()
	if c := f.shown(2, "one.test", roots); c != nil {
		t.Error("a certificate before there is one")
	}
	nodes[1] = f.start(1, data[1], acme(p.CAFile), roles[1]...)
	serials := map[string]string{}
	for _, name := range names {
		for n := range nodes {
			lab.Eventually(t, 60*time.Second, fmt.Sprintf("node %d shows %s", n, name), func() bool { return f.shown(n, name, roots) != nil })
			serial := f.shown(n, name, roots).SerialNumber.String()
			if serials[name] == "" {
				serials[name] = serial
			}
			if serials[name] != serial {
				t.Errorf("node %d shows another certificate of %s", n, name)
			}
		}
	}
	if n := p.Issued(); n != len(names) {
		t.Errorf("%d certificates issued for %d names", n, len(names))
	}
	for n, served := range map[int]bool{1: false, 2: true, 3: true} {
		if got := strings.Contains(nodes[n].Log(), "served key authentication certificate"); served && !got {
			t.Errorf("node %d has proved no name", n)
		}
	}

	// What is on the bus's disk.
	looked := 0
	err = filepath.WalkDir(f.disk, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(name)
		looked += len(b)
		for _, bad := range []string{"PRIVATE KEY", base64.StdEncoding.EncodeToString([]byte("PRIVATE KEY"))[:14], "CERTIFICATE", "two.test", sealSecret} {
			if bytes.Contains(b, []byte(bad)) {
				t.Errorf("%s holds %q", name, bad)
			}
		}
		return err
	})
	if err != nil || looked < 4096 {
		t.Errorf("looked at %d bytes of the bus: %v", looked, err)
	}

	// A name that is not configured is shown the first, and nobody asks for it.
	orders := p.Orders()
	for n := range nodes {
		c, err := tls.Dial("tcp", f.addr(n), &tls.Config{InsecureSkipVerify: true, ServerName: "unknown.test"})
		if err != nil {
			t.Fatal(err)
		}
		if got := c.ConnectionState().PeerCertificates[0]; got.VerifyHostname("one.test") != nil {
			t.Errorf("node %d shows %v to an unknown name", n, got.DNSNames)
		}
		_ = c.Close() // for its certificate alone
		if _, err := tls.Dial("tcp", f.addr(n), &tls.Config{InsecureSkipVerify: true, ServerName: "unknown.test", NextProtos: []string{"acme-tls/1"}}); err == nil {
			t.Errorf("node %d answers a challenge for an unknown name", n)
		}
	}

	// A restart uses what is stored, although this node still cannot reach the CA.
	if err := nodes[3].Stop(); err != nil {
		t.Fatal(err)
	}
	nodes[3] = f.start(3, data[3], acme(other.File), roles[3]...)
	if c := f.shown(3, "two.test", roots); c == nil || c.SerialNumber.String() != serials["two.test"] {
		t.Error("after a restart the stored certificate is not shown at once")
	}
	if o, i := p.Orders(), p.Issued(); o != orders || i != len(names) {
		t.Errorf("%d orders more, %d certificates", o-orders, i)
	}

	// The CA wants one of them renewed; a node that asks when it starts does it.
	p.RenewNow(f.shown(2, "one.test", roots))
	if err := nodes[2].Stop(); err != nil {
		t.Fatal(err)
	}
	nodes[2] = f.start(2, data[2], acme(p.CAFile), roles[2]...)
	lab.Eventually(t, 60*time.Second, "the certificate is renewed", func() bool {
		c := f.shown(2, "one.test", roots)
		return c != nil && c.SerialNumber.String() != serials["one.test"]
	})
	if n := p.Issued(); n != len(names)+1 {
		t.Errorf("%d certificates issued, want one more", n)
	}
	for n, node := range nodes {
		if strings.Contains(node.Log(), "PRIVATE KEY") || strings.Contains(node.Log(), sealSecret) {
			t.Errorf("node %d logs secrets", n)
		}
	}
}

// TestACMERenewal: certificates of a minute are renewed while a connection is open, which goes on.
func TestACMERenewal(t *testing.T) {
	f := newFleet(t)
	p := StartPebble(t, time.Minute, f.port, FreePort(t))
	p.Resolve("one.test", "127.0.0.1")
	acme := fmt.Sprintf("names: [one.test], directory: '%s', ca: '%s'", p.Directory, p.CAFile)
	f.start(1, lab.DataFolder(t), acme, "turn", "wwsf")
	f.start(2, lab.DataFolder(t), acme, "wwsf")
	roots := p.Roots()
	open := map[int]*tls.Conn{}
	for n := 1; n <= 2; n++ {
		lab.Eventually(t, 60*time.Second, fmt.Sprintf("node %d has a certificate", n), func() bool {
			c, err := f.connect(n, "one.test", roots, "http/1.1")
			if err != nil {
				return false
			}
			open[n] = c
			t.Cleanup(func() { _ = c.Close() }) // the test is over
			return true
		})
		if err := asks(open[n]); err != nil {
			t.Fatal(err)
		}
	}
	for n := 1; n <= 2; n++ {
		old := open[n].ConnectionState().PeerCertificates[0].SerialNumber
		lab.Eventually(t, 90*time.Second, fmt.Sprintf("node %d shows a new certificate", n), func() bool {
			if err := asks(open[n]); err != nil {
				t.Fatalf("the open connection with node %d: %v", n, err)
			}
			c := f.shown(n, "one.test", roots)
			if c == nil {
				t.Fatalf("node %d shows no valid certificate", n)
			}
			return c.SerialNumber.Cmp(old) != 0
		})
		if err := asks(open[n]); err != nil {
			t.Errorf("the open connection with node %d: %v", n, err)
		}
	}
}

// asks does a request on a connection that stays open. (One of turn without an allocation would not.)
func asks(c net.Conn) error {
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	if _, err := io.WriteString(c, "HEAD /none HTTP/1.1\r\nHost: one.test\r\n\r\n"); err != nil {
		return err
	}
	res, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: http.MethodHead})
	if err != nil {
		return err
	}
	_ = res.Body.Close() // a HEAD has none
	if res.StatusCode != http.StatusNotFound || res.Close {
		return fmt.Errorf("answer %s, last: %v", res.Status, res.Close)
	}
	return nil
}

// TestACMEOverHTTP: the CA does not get through to the TLS port; http-01 proves the name.
func TestACMEOverHTTP(t *testing.T) {
	f := newFleet(t)
	web := FreePort(t)
	p := StartPebble(t, 24*time.Hour, FreePort(t), web)
	p.Resolve("one.test", "127.0.0.1")
	f.start(1, lab.DataFolder(t), fmt.Sprintf("names: [one.test], directory: '%s', ca: '%s', http: '127.0.0.1:%d'", p.Directory, p.CAFile, web), "wwsf")
	roots := p.Roots()
	lab.Eventually(t, 60*time.Second, "the certificate is there", func() bool { return f.shown(1, "one.test", roots) != nil })
	for _, req := range []string{"GET / HTTP/1.1\r\nHost: one.test\r\n\r\n", "GET /.well-known/acme-challenge/x HTTP/1.1\r\nHost: other.test\r\n\r\n"} {
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", web))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, req); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 12)
		if _, err := io.ReadFull(c, b); err != nil || string(b) != "HTTP/1.1 404" {
			t.Errorf("%q: %q, %v", req, b, err)
		}
		_ = c.Close() // answered
	}
}

// TestACMERefused: what cannot succeed is told with what to do, once, and other nodes do not repeat it.
func TestACMERefused(t *testing.T) {
	f := newFleet(t)
	p := StartPebble(t, 24*time.Hour, FreePort(t), FreePort(t)) // where it looks, nobody listens
	p.Resolve("one.test", "127.0.0.1")
	acme := fmt.Sprintf("names: [one.test, nowhere.test], directory: '%s', ca: '%s'", p.Directory, p.CAFile)
	first := f.start(1, lab.DataFolder(t), acme, "wwsf")
	for _, want := range []string{"the CA does not find the proof at one.test, port 443", `Could not resolve URL`} { // Pebble says malformed where others say dns
		lab.Eventually(t, 60*time.Second, want, func() bool { return strings.Contains(first.Log(), want) })
	}
	door := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(first.Data, "admin.sock"))
	}}}
	lab.Eventually(t, 10*time.Second, "not ready, with the reason", func() bool {
		res, err := door.Get("http://x/readyz")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = res.Body.Close() }() // read to its end
		b, err := io.ReadAll(res.Body)
		return err == nil && res.StatusCode == http.StatusServiceUnavailable && strings.Contains(string(b), "certificate: acme: no certificate for one.test: ")
	})
	orders := p.Orders()
	second := f.start(2, lab.DataFolder(t), acme, "turn")
	lab.Eventually(t, 20*time.Second, "the second node waits", func() bool { return strings.Count(second.Log(), "acme: waiting") == 2 })
	if n := p.Orders(); n != orders {
		t.Errorf("the second node asked %d times", n-orders)
	}
	if _, err := f.connect(2, "one.test", nil); err == nil {
		t.Error("a handshake without a certificate")
	}
}
