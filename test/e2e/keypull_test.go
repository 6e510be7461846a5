package e2e_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wicgate/internal/keyring"
	"wicgate/internal/token"
	"wicgate/internal/turnclient"
	"wicgate/test/lab"
)

// clientCertificate makes a private CA and a TURN server's certificate of it, as PEM files in dir.
func clientCertificate(t *testing.T, dir, name string) (ca, cert, key string) {
	t.Helper()
	put := func(file, kind string, der []byte) string {
		file = filepath.Join(dir, file)
		if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	keys := [2]*ecdsa.PrivateKey{}
	for i := range keys {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		keys[i] = k
	}
	root := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "TURN servers"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(48 * time.Hour), KeyUsage: x509.KeyUsageCertSign}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(48 * time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, root, root, &keys[0].PublicKey, keys[0])
	if err != nil {
		t.Fatal(err)
	}
	ca = put("client-ca.pem", "CERTIFICATE", der)
	if der, err = x509.CreateCertificate(rand.Reader, leaf, root, &keys[1].PublicKey, keys[0]); err != nil {
		t.Fatal(err)
	}
	cert = put("client.pem", "CERTIFICATE", der)
	if der, err = x509.MarshalPKCS8PrivateKey(keys[1]); err != nil {
		t.Fatal(err)
	}
	return ca, cert, put("client-key.pem", "PRIVATE KEY", der)
}

// TestKeyPull: a TURN server in a process of its own gets its keys from the WAF, opens tokens under
// them, and does so too after a start without the WAF.
func TestKeyPull(t *testing.T) {
	l, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.MustParseAddrPort(l.LocalAddr().String())
	_ = l.Close() // for its number alone
	var ports [2]int
	var held [2]net.Listener // both at once, so that they differ
	for i := range ports {
		if held[i], err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		ports[i] = held[i].Addr().(*net.TCPAddr).Port
	}
	for _, l := range held {
		_ = l.Close() // for its number alone
	}
	wafData, turnData := lab.DataFolder(t), lab.DataFolder(t)
	ca, cert, key := clientCertificate(t, turnData, "turn.ims.test")
	cfg := filepath.Join(turnData, "wicgate.yaml")
	text := fmt.Sprintf("https: {listen: '127.0.0.1:%[1]d', url: 'https://localhost:%[1]d'}\n", ports[0]) +
		fmt.Sprintf("waf: {stun_key: {listen: '127.0.0.1:%d', client_ca: %s, servers: [turn.ims.test, coturn.test]}}\n", ports[1], ca) +
		fmt.Sprintf("turn:\n  listen: ['%[1]v']\n  listen_tcp: []\n  urls: ['turn:%[1]v']\n  quota: 2000\n  oauth: {kid_mode: plain, enc: A256CBC-HS512}\n", addr) +
		fmt.Sprintf("  key_pull: {url: 'https://localhost:%d', certificate: %s, key: %s, ca: %s}\n", ports[1], cert, key, filepath.Join(wafData, "ca", "ca.pem"))
	if err := os.WriteFile(cfg, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	waf := lab.Start(t, nil, wafData, "--config", cfg, "waf")
	ring, err := keyring.OpenPlain(filepath.Join(wafData, "turn-plain-keys.json"), "turn.ims.test")
	if err != nil {
		t.Fatal(err)
	}
	if other, err := keyring.OpenPlain(filepath.Join(wafData, "stun-key-coturn.test.json"), "coturn.test"); err != nil || other.KID("p") == "" {
		t.Errorf("no key for coturn: %v", err)
	}
	allocate := func() error {
		kid, mac := ring.KID("p"), token.NewMACKey()
		k, f, _, ok := ring.Key(kid)
		if !ok || f != token.A256CBCHS512 {
			t.Fatalf("the WAF has no key, or one for %v", f)
		}
		tok, err := token.Seal(f, k, ring.Server(), token.Payload{MACKey: mac, Timestamp: token.NewTimestamp(time.Now()), Lifetime: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []turnclient.Credential{turnclient.AccessToken(kid, tok, mac), turnclient.TokenUsername(kid, tok, mac)} {
			cl, err := turnclient.Dial(turnclient.Config{Server: addr, Credential: c})
			if err != nil {
				t.Fatal(err)
			}
			_, err = cl.Allocate(t.Context(), 0)
			if err == nil {
				_, err = cl.Refresh(t.Context(), 0)
			}
			_ = cl.Close() // its allocation has been ended
			if err != nil {
				return err
			}
		}
		return nil
	}
	server := lab.Start(t, nil, turnData, "--config", cfg, "turn")
	lab.Eventually(t, 10*time.Second, "the key has been pulled", func() bool { return strings.Contains(server.Log(), "keys pulled") })
	if err := allocate(); err != nil {
		t.Fatal(err)
	}
	if log := waf.Log(); strings.Count(log, "STUN key pulled") != 1 || !strings.Contains(log, "server=turn.ims.test") {
		t.Error("the pull is not in the WAF's log")
	}
	for _, p := range []*lab.Process{server, waf} {
		if err := p.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	server = lab.Start(t, nil, turnData, "--config", cfg, "turn")
	if err := allocate(); err != nil {
		t.Errorf("without the WAF: %v", err)
	}
	lab.Eventually(t, 10*time.Second, "the failure is told", func() bool { return strings.Contains(server.Log(), "keys not pulled") })
}
