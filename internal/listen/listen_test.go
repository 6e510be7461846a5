package listen

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pion/dtls/v3"
	"go.uber.org/goleak"
)

var loopback = netip.MustParseAddrPort("127.0.0.1:0")

func TestTakenPortNamesPortKeyAndRemedy(t *testing.T) {
	u, err := UDP("turn.listen", loopback)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close() //nolint:errcheck // the test is over
	l, err := TCP("https.listen", loopback)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for key, again := range map[string]func(string) error{
		"turn.listen": func(k string) error {
			_, err := UDP(k, netip.MustParseAddrPort(u.LocalAddr().String()))
			return err
		},
		"https.listen": func(k string) error {
			_, err := TCP(k, netip.MustParseAddrPort(l.Addr().String()))
			return err
		},
	} {
		err := again(key)
		if err == nil {
			t.Fatalf("%s: the port was free", key)
		}
		port := l.Addr().String()
		if key == "turn.listen" {
			port = u.LocalAddr().String()
		}
		for _, want := range []string{port, "set " + key + " in wicgate.yaml", "address already in use"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%q lacks %q", err, want)
			}
		}
	}
	if _, err := TCP("x.listen", netip.MustParseAddrPort("192.0.2.1:1")); err == nil || !strings.Contains(err.Error(), "an address that this machine has") {
		t.Errorf("foreign address: %v", err)
	}
}

func TestDevelopmentCA(t *testing.T) {
	defer goleak.VerifyNone(t)
	dir := filepath.Join(t.TempDir(), "ca")
	ca, err := DevelopmentCA(dir, []string{"localhost", "127.0.0.1", "localhost"})
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(filepath.Join(dir, "ca-key.pem")); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("key file: %v, %v", st.Mode(), err)
	}
	get := func(ca *CA, pool *x509.CertPool, url string) (string, error) {
		front, err := NewFront("https.listen", loopback, ca.GetCertificate,
			http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello") }), slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- front.Serve(ctx) }()
		c := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, DisableKeepAlives: true}}
		res, err := c.Get(strings.Replace(url, "PORT", netip.AddrPortFrom(front.Addr().Addr(), front.Addr().Port()).String()[len("127.0.0.1:"):], 1))
		var body []byte
		if err == nil {
			body, _ = io.ReadAll(res.Body)
			res.Body.Close()
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve = %v", err)
		}
		return string(body), err
	}
	for _, url := range []string{"https://localhost:PORT/", "https://127.0.0.1:PORT/"} {
		if body, err := get(ca, ca.Pool(), url); err != nil || body != "hello" {
			t.Errorf("%s: %q, %v", url, body, err)
		}
	}
	if _, err := get(ca, x509.NewCertPool(), "https://localhost:PORT/"); err == nil {
		t.Error("the certificate is trusted without the CA")
	}

	// The CA must not be able to speak for another name, whoever holds its key.
	ca.leaf, ca.hosts = nil, []string{"bank.example", "192.0.2.7"}
	leaf, err := ca.GetCertificate(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"bank.example", "192.0.2.7"} {
		if _, err := leaf.Leaf.Verify(x509.VerifyOptions{Roots: ca.Pool(), DNSName: name}); err == nil {
			t.Errorf("the CA can speak for %s", name)
		}
	}

	again, err := DevelopmentCA(dir, []string{"127.0.0.1", "localhost"})
	if err != nil || !again.cert.Equal(ca.cert) {
		t.Errorf("a second start made another CA: %v", err)
	}
	other, err := DevelopmentCA(dir, []string{"10.10.1.1"})
	if err != nil || other.cert.Equal(ca.cert) {
		t.Errorf("other hosts, same CA: %v", err)
	}
	leaf, err = other.GetCertificate(nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := leaf.Leaf.Verify(x509.VerifyOptions{Roots: other.Pool(), DNSName: "10.10.1.1"}); err != nil {
		t.Errorf("address only: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "ca-key.pem"), []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := DevelopmentCA(dir, []string{"10.10.1.1"}); err == nil || !strings.Contains(err.Error(), "hint: remove") {
		t.Errorf("damaged CA: %v", err)
	}
}

func writePair(t *testing.T, dir, name string) (certFile, keyFile string) {
	t.Helper()
	return writePairUntil(t, dir, name, time.Now().Add(time.Hour))
}

func writePairUntil(t *testing.T, dir, name string, end time.Time) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{name}, NotAfter: end}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	pk, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for f, b := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "PRIVATE KEY", Bytes: pk}} {
		if err := os.WriteFile(f, pem.EncodeToMemory(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certFile, keyFile
}

func TestCertificateFilesReload(t *testing.T) {
	dir := t.TempDir()
	certFile, keyFile := writePair(t, dir, "one.test")
	synctest.Test(t, func(t *testing.T) {
		var complaints []error
		f, err := CertificateFiles(certFile, keyFile, func(err error) { complaints = append(complaints, err) })
		if err != nil {
			t.Fatal(err)
		}
		serves := func() string {
			c, err := f.GetCertificate(nil)
			if err != nil {
				t.Fatal(err)
			}
			return c.Leaf.DNSNames[0]
		}
		if serves() != "one.test" {
			t.Fatal("first pair not served")
		}
		stamp := time.Now().Add(-time.Hour)
		writePair(t, dir, "two.test")
		touch(t, certFile, stamp)
		if serves() != "one.test" {
			t.Error("looks at the files on every handshake")
		}
		time.Sleep(reloadEvery)
		if serves() != "two.test" {
			t.Error("the new pair is not served")
		}
		if err := os.WriteFile(certFile, []byte("garbage"), 0o600); err != nil {
			t.Fatal(err)
		}
		touch(t, certFile, stamp.Add(time.Minute))
		for range 3 {
			time.Sleep(reloadEvery)
			if serves() != "two.test" {
				t.Error("a bad file took the good pair away")
			}
		}
		if len(complaints) != 1 || !strings.Contains(complaints[0].Error(), certFile) {
			t.Errorf("complaints: %v, want one that names the file", complaints)
		}
		if err := f.Err(); err == nil || len(complaints) != 1 {
			t.Errorf("%v: the alarm does not last", err)
		}
		if err := os.Remove(certFile); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			time.Sleep(reloadEvery)
			if serves() != "two.test" {
				t.Error("a missing file took the good pair away")
			}
		}
		if len(complaints) != 2 {
			t.Errorf("complaints: %v, want one more", complaints)
		}
		writePairUntil(t, dir, "expired.test", time.Now().Add(-time.Minute))
		time.Sleep(reloadEvery)
		if serves() != "two.test" || len(complaints) != 3 || f.Err() == nil {
			t.Errorf("an expired pair took the good one's place; %v", complaints)
		}
		writePair(t, dir, "three.test")
		touch(t, certFile, stamp.Add(2*time.Minute))
		time.Sleep(reloadEvery)
		if serves() != "three.test" || f.Err() != nil {
			t.Errorf("the repaired pair is not served: %v", f.Err())
		}
	})
	if _, err := CertificateFiles(filepath.Join(dir, "none.pem"), keyFile, nil); err == nil {
		t.Error("a missing file is not refused")
	}
}

// TestRenewedCertificate: who connects after the files were replaced is shown the new certificate, over
// TLS and over DTLS; who was there stays.
func TestRenewedCertificate(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	dir := t.TempDir()
	certFile, keyFile := writePair(t, dir, "one.test")
	files, err := CertificateFiles(certFile, keyFile, func(err error) { t.Error(err) })
	if err != nil {
		t.Fatal(err)
	}
	s := streams(t, func(c *StreamConfig) { c.Certificate = files.GetCertificate })
	b := associations(t, func(c *DTLSConfig) { c.Certificate = files.GetCertificate })
	overTLS := func(want string) net.Conn {
		c := tls.Client(s.dial(0), &tls.Config{InsecureSkipVerify: true})
		if err := works(c); err != nil {
			t.Fatal(err)
		}
		if got := c.ConnectionState().PeerCertificates[0].DNSNames[0]; got != want {
			t.Errorf("TLS shows %s, want %s", got, want)
		}
		return c
	}
	overDTLS := func(want string) net.Conn {
		socket := b.socket()
		c, err := dtls.ClientWithOptions(connected{socket}, socket.RemoteAddr(), dtls.WithInsecureSkipVerify(true), dtls.WithLoggerFactory(noLog{}))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { closed(t, c) })
		if err := answers(c); err != nil {
			t.Fatal(err)
		}
		st, _ := c.ConnectionState()
		leaf, err := x509.ParseCertificate(st.PeerCertificates[0])
		if err != nil || leaf.DNSNames[0] != want {
			t.Errorf("DTLS shows %+v, %v, want %s", leaf, err, want)
		}
		return c
	}
	oldTLS, oldDTLS := overTLS("one.test"), overDTLS("one.test")
	writePair(t, dir, "two.test")
	touch(t, certFile, time.Now().Add(time.Hour))
	files.mu.Lock()
	files.checked = files.checked.Add(-reloadEvery)
	files.mu.Unlock()
	overTLS("two.test")
	overDTLS("two.test")
	if err := errors.Join(works(oldTLS), answers(oldDTLS)); err != nil {
		t.Error(err)
	}
}

func touch(t *testing.T, file string, at time.Time) {
	if err := os.Chtimes(file, at, at); err != nil {
		t.Fatal(err)
	}
}

func TestHandshakeErrorsAreQuiet(t *testing.T) {
	var out bytes.Buffer
	log := slog.NewLogLogger(handshakes{slog.NewTextHandler(&out, nil)}, slog.LevelWarn)
	log.Print("http: TLS handshake error from 192.0.2.1:1: EOF")
	if out.Len() != 0 {
		t.Errorf("logged %s", &out)
	}
	log.Print("http: panic serving")
	if !strings.Contains(out.String(), "panic serving") {
		t.Error("other errors must be logged")
	}
}
