package listen

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

const (
	caLife   = 2 * 365 * 24 * time.Hour
	caRenew  = 60 * 24 * time.Hour // a CA with less left is made anew at the start
	leafLife = 90 * 24 * time.Hour
)

// CA is the development certificate authority: made on the first start, kept in a folder, and
// constrained by its own certificate to the hosts it was made for (RFC 5280 §4.2.1.10), so that
// trusting it opens no other name.
type CA struct {
	// File is the certificate, PEM, for people and browsers to trust.
	File string

	cert  *x509.Certificate
	key   crypto.Signer
	hosts []string

	mu   sync.Mutex // guards the following field
	leaf *tls.Certificate
}

// DevelopmentCA opens the CA in dir, or makes one. hosts are the DNS names and IP addresses that
// it may speak for; if they are not those of the CA in dir, or it ends soon, a new one replaces it.
func DevelopmentCA(dir string, hosts []string) (*CA, error) {
	certFile, keyFile := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "ca-key.pem")
	hosts = slices.Compact(slices.Sorted(slices.Values(hosts)))
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("listen: development CA in %s: %w\n  hint: remove %s and %s, and a new one is made", dir, err, certFile, keyFile)
	case slices.Equal(permitted(pair.Leaf), hosts) && time.Until(pair.Leaf.NotAfter) > caRenew:
		return &CA{File: certFile, cert: pair.Leaf, key: pair.PrivateKey.(crypto.Signer), hosts: hosts}, nil
	}

	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	name, _ := os.Hostname() // only for people: an empty name serves as well
	tmpl := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "wicgate development CA on " + name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(caLife),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign, PermittedDNSDomainsCritical: true,
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			tmpl.PermittedIPRanges = append(tmpl.PermittedIPRanges, exactly(ip))
		} else {
			tmpl.PermittedDNSDomains = append(tmpl.PermittedDNSDomains, h)
		}
	}
	if tmpl.PermittedDNSDomains == nil {
		tmpl.ExcludedDNSDomains = []string{""} // no list at all would permit every name
	}
	if tmpl.PermittedIPRanges == nil {
		tmpl.ExcludedIPRanges = []*net.IPNet{{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}, {IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("listen: make the development CA: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("listen: folder of the development CA: %w", err)
	}
	if err := os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), 0o600); err != nil {
		return nil, fmt.Errorf("listen: key of the development CA: %w", err)
	}
	if err := os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644); err != nil {
		return nil, fmt.Errorf("listen: certificate of the development CA: %w", err)
	}
	return &CA{File: certFile, cert: cert, key: key, hosts: hosts}, nil
}

// permitted lists the hosts that a CA certificate may speak for.
func permitted(c *x509.Certificate) []string {
	hosts := slices.Clone(c.PermittedDNSDomains)
	for _, n := range c.PermittedIPRanges {
		hosts = append(hosts, n.IP.String())
	}
	slices.Sort(hosts)
	return hosts
}

func exactly(ip net.IP) *net.IPNet {
	if v4 := ip.To4(); v4 != nil {
		return &net.IPNet{IP: v4, Mask: net.CIDRMask(32, 32)}
	}
	return &net.IPNet{IP: ip, Mask: net.CIDRMask(128, 128)}
}

func serial() *big.Int {
	b := make([]byte, 16)
	rand.Read(b)
	return new(big.Int).SetBytes(b)
}

// Pool holds the CA alone.
func (ca *CA) Pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(ca.cert)
	return p
}

// GetCertificate serves a leaf for all hosts of the CA, renewed when a third of its life is left.
// For [tls.Config].
func (ca *CA) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	if ca.leaf != nil && time.Until(ca.leaf.Leaf.NotAfter) > leafLife/3 {
		return ca.leaf, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	tmpl := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "wicgate"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(leafLife),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, h := range ca.hosts {
		if ip := net.ParseIP(h); ip != nil {
			tmpl.IPAddresses = append(tmpl.IPAddresses, ip)
		} else {
			tmpl.DNSNames = append(tmpl.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca.cert, key.Public(), ca.key)
	if err != nil {
		return nil, fmt.Errorf("listen: certificate from the development CA: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	ca.leaf = &tls.Certificate{Certificate: [][]byte{der, ca.cert.Raw}, PrivateKey: key, Leaf: leaf}
	return ca.leaf, nil
}

// Files serves a certificate and key from two PEM files and reads them again when one changes, for
// whoever connects then. A change that cannot be used is reported to complain, once, and the pair in
// use stays.
type Files struct {
	certFile, keyFile string
	complain          func(error)

	mu      sync.Mutex // guards the following fields
	pair    *tls.Certificate
	err     error // what is wrong with the files now
	seen    [2]time.Time
	checked time.Time
}

// reloadEvery is how often Files looks whether its files changed.
const reloadEvery = 5 * time.Second

// CertificateFiles reads the pair once, so that a wrong one is refused at the start.
func CertificateFiles(certFile, keyFile string, complain func(error)) (*Files, error) {
	f := &Files{certFile: certFile, keyFile: keyFile, complain: complain}
	if f.err = f.readLocked(); f.err != nil {
		return nil, f.err
	}
	return f, nil
}

func (f *Files) readLocked() error {
	f.checked = time.Now()
	var seen [2]time.Time
	for i, name := range []string{f.certFile, f.keyFile} {
		st, err := os.Stat(name)
		if err != nil {
			f.seen = seen // whatever comes back is read
			return fmt.Errorf("listen: certificate: %w", err)
		}
		seen[i] = st.ModTime()
	}
	if f.pair != nil && seen == f.seen {
		return f.err
	}
	f.seen = seen
	pair, err := tls.LoadX509KeyPair(f.certFile, f.keyFile)
	if err != nil {
		return fmt.Errorf("listen: certificate %s with key %s: %w", f.certFile, f.keyFile, err)
	}
	if end := pair.Leaf.NotAfter; f.pair != nil && f.checked.After(end) && end.Before(f.pair.Leaf.NotAfter) {
		return fmt.Errorf("listen: certificate %s expired on %s, and the one in use later", f.certFile, end.UTC().Format(time.DateTime))
	}
	f.pair = &pair
	return nil
}

func (f *Files) lookLocked() {
	if time.Since(f.checked) < reloadEvery {
		return
	}
	before := f.err
	if f.err = f.readLocked(); f.err != nil && (before == nil || before.Error() != f.err.Error()) {
		f.complain(f.err)
	}
}

// GetCertificate serves the newest usable pair. For [tls.Config].
func (f *Files) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lookLocked()
	return f.pair, nil
}

// Err says what is wrong with the files, while an older pair is in use.
func (f *Files) Err() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lookLocked()
	return f.err
}

// PoolFile reads the CAs of a PEM file.
func PoolFile(name string) (*x509.CertPool, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("listen: CA file: %w", err)
	}
	p := x509.NewCertPool()
	if !p.AppendCertsFromPEM(bytes.TrimSpace(b)) {
		return nil, fmt.Errorf("listen: CA file %s holds no PEM certificate", name)
	}
	return p, nil
}
