// Package check says before a start whether wicgate would run well with a configuration on this
// machine: what the file means, what in it is dangerous, and whether ports, files, capabilities and
// limits are there. It starts nothing and writes nothing; a port that it tests is released at once.
//
// What is found is a config.Finding: an error is refused by "wicgate run" too, in the same words, where
// it is cheap to find out (see [Cheap]); a warning is told.
package check

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"wicgate/internal/config"
	"wicgate/internal/keyring"
	"wicgate/internal/listen"
	"wicgate/internal/peerpolicy"
)

// Input is what to check.
type Input struct {
	File  *config.File
	Data  string   // data folder
	Roles []string // that would run
	// Running says that a wicgate uses the data folder now; then its own ports are no finding.
	Running bool
}

func (in Input) has(roles ...string) bool {
	return slices.ContainsFunc(roles, func(r string) bool { return slices.Contains(in.Roles, r) })
}

func (in Input) path(configured, name string) string {
	if configured != "" {
		return configured
	}
	return filepath.Join(in.Data, name)
}

// Report is the answer.
type Report struct {
	OK       bool             `json:"ok"` // no error among the findings
	Roles    []string         `json:"roles"`
	Settings []config.Setting `json:"settings"`
	Findings []config.Finding `json:"findings"`
	Tested   []string         `json:"tested"` // what was looked at and is well
	Capacity Capacity         `json:"capacity"`
}

// Cheap looks at the file and at what it names, in milliseconds and without a socket.
func Cheap(in Input) []config.Finding {
	c := &checker{Input: in}
	c.cheap()
	return c.found
}

// All looks at everything.
func All(in Input) Report {
	c := &checker{Input: in}
	c.cheap()
	c.folder()
	c.sockets()
	c.machine()
	slices.SortStableFunc(c.found, func(a, b config.Finding) int { return rank(a) - rank(b) })
	r := Report{OK: !HasErrors(c.found), Roles: in.Roles, Settings: in.File.Settings(), Findings: c.found, Tested: c.well, Capacity: capacity(in, readMachine())}
	if r.Findings == nil {
		r.Findings = []config.Finding{}
	}
	return r
}

func rank(f config.Finding) int {
	if f.Severity == config.Error {
		return 0
	}
	return 1
}

// HasErrors says whether one of the findings is refused.
func HasErrors(found []config.Finding) bool {
	return slices.ContainsFunc(found, func(f config.Finding) bool { return f.Severity == config.Error })
}

type checker struct {
	Input
	found []config.Finding
	well  []string
}

func (c *checker) error(key, reason, hint string) {
	c.found = append(c.found, c.File.Find(config.Error, key, reason, hint))
}

func (c *checker) warn(key, reason, hint string) {
	c.found = append(c.found, c.File.Find(config.Warning, key, reason, hint))
}

// fails takes an error of another room, with its hint.
func (c *checker) fails(key string, err error) {
	reason, hint, _ := strings.Cut(err.Error(), "\n  hint: ")
	c.error(key, reason, hint)
}

func (c *checker) ok(format string, args ...any) {
	c.well = append(c.well, fmt.Sprintf(format, args...))
}

func (c *checker) cheap() {
	c.found = append(c.found, c.File.Review(c.Roles)...)
	c.certificate(time.Now())
	c.files()
}

// certificateSoon is how early an end is told.
const certificateSoon = 14 * 24 * time.Hour

// certificate looks at the certificate that browsers are shown, where one is configured.
func (c *checker) certificate(now time.Time) {
	h := c.File.HTTPS
	front := c.has("waf", "wwsf", "epcscf")
	if h.Certificate == "" || !front && (!c.has("turn") || !c.File.TURN.Secure()) {
		return
	}
	if h.CA != "" {
		if _, err := listen.PoolFile(h.CA); err != nil {
			c.error("https.ca", err.Error(), "name the PEM file of the CA that signed https.certificate")
		}
	}
	if st, err := os.Stat(h.Key); err == nil {
		switch perm := st.Mode().Perm(); {
		case perm&0o007 != 0:
			c.error("https.key", fmt.Sprintf("%s has mode %04o: every user of this machine can read the key", h.Key, perm), "chmod 600 "+h.Key+"; if others had access, get a new certificate")
		case perm&0o070 != 0:
			c.warn("https.key", fmt.Sprintf("%s has mode %04o: its group can read the key", h.Key, perm), "chmod 600 "+h.Key+", unless the group is wicgate's own")
		}
	}
	pair, err := tls.LoadX509KeyPair(h.Certificate, h.Key)
	if err != nil {
		key := "https.certificate"
		var path *fs.PathError
		if errors.As(err, &path) && path.Path == h.Key || strings.Contains(err.Error(), "private key") {
			key = "https.key"
		}
		c.error(key, fmt.Sprintf("certificate %s with key %s: %v", h.Certificate, h.Key, err), "name a PEM certificate with its chain and the PEM key that belongs to it, readable by the user that wicgate runs as")
		return
	}
	leaf := pair.Leaf
	const day = "2006-01-02 15:04 MST"
	switch {
	case now.After(leaf.NotAfter):
		c.error("https.certificate", fmt.Sprintf("%s expired on %s", h.Certificate, leaf.NotAfter.UTC().Format(day)), "renew it; a new file is picked up without a restart")
	case now.Before(leaf.NotBefore):
		c.error("https.certificate", fmt.Sprintf("%s is not valid before %s", h.Certificate, leaf.NotBefore.UTC().Format(day)), "is this machine's clock right? it says "+now.UTC().Format(day))
	case leaf.NotAfter.Sub(now) < certificateSoon:
		c.warn("https.certificate", fmt.Sprintf("%s expires on %s", h.Certificate, leaf.NotAfter.UTC().Format(day)), "renew it; a new file is picked up without a restart")
	}
	if front {
		c.covers(leaf, "https.url", c.File.HTTPS.URL.Host())
	}
	if c.has("turn") && c.File.TURN.Secure() {
		for i, host := range c.File.TURN.SecureURLs() {
			c.covers(leaf, fmt.Sprintf("turn.urls[%d]", i), host)
		}
		for i, t := range c.File.TURN.Tenants {
			for j, name := range t.ServerNames {
				if leaf.VerifyHostname(name) != nil {
					c.warn(fmt.Sprintf("turn.tenants[%d].server_names[%d]", i, j), fmt.Sprintf("clients ask for %s, and the certificate %s is for %s", name, h.Certificate, strings.Join(names(leaf), ", ")),
						"get a certificate that names "+name+" too: clients that verify it end in the handshake")
				}
			}
		}
	}
	if !HasErrors(c.found) {
		c.ok("certificate %s: until %s, for %s", h.Certificate, leaf.NotAfter.UTC().Format(time.DateOnly), strings.Join(names(leaf), ", "))
	}
}

func names(leaf *x509.Certificate) []string {
	out := slices.Clone(leaf.DNSNames)
	for _, ip := range leaf.IPAddresses {
		out = append(out, ip.String())
	}
	return out
}

func (c *checker) covers(leaf *x509.Certificate, key, host string) {
	if err := leaf.VerifyHostname(host); err != nil {
		c.error(key, fmt.Sprintf("browsers go to %s, and the certificate %s is for %s", host, c.File.HTTPS.Certificate, strings.Join(names(leaf), ", ")),
			"get a certificate that names "+host+" too, or tell browsers another name")
	}
}

// files looks at the secrets that are there. What is not is made at the start, in the data folder.
func (c *checker) files() {
	if c.has("waf", "turn") {
		c.keys()
	}
	if c.has("turn") {
		c.tenants()
	}
	if c.has("waf") {
		name := c.path(c.File.WAF.SigningKey, "waf-key.pem")
		if b := c.secret("waf.signing_key", name, c.File.WAF.SigningKey != ""); b != nil && !isSigningKey(b) {
			c.error("waf.signing_key", name+" holds no private key on the curve P-256 in PEM", "restore it, or move it away to start with a new key; SIP tokens issued so far then end")
		}
	}
	if c.has("epcscf") || c.has("turn") && c.File.TURN.Secrets != "" {
		name := c.path(c.File.TURN.Secrets, "turn-secrets.txt")
		if _, err := keyring.OpenSecrets(name, false); errors.Is(err, fs.ErrNotExist) && c.File.TURN.Secrets != "" {
			c.willMake("turn.secrets", name)
		} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
			c.fails("turn.secrets", err)
		}
	}
	if a := c.File.HTTPS.ACME; a.On() && (c.has("waf", "wwsf", "epcscf") || c.has("turn") && c.File.TURN.Secure()) {
		if _, err := keyring.OpenSecrets(c.path(a.Secrets, "acme-secrets.txt"), false); err != nil && (a.Secrets != "" || !errors.Is(err, fs.ErrNotExist)) {
			if errors.Is(err, fs.ErrNotExist) {
				err = fmt.Errorf("%w\n  hint: copy it from a node that has it; for the first: openssl rand -base64 32 > %s; chmod 600 %[2]s", err, a.Secrets)
			}
			c.fails("https.acme.secrets", err)
		}
		if a.CA != "" {
			if _, err := listen.PoolFile(a.CA); err != nil {
				c.error("https.acme.ca", err.Error(), "name the PEM file of the root that signed the certificate of https.acme.directory")
			}
		}
	}
	if c.has("waf") && c.File.WAF.Guests > 0 || c.has("wwsf") && !c.has("waf") {
		c.clientSecret(c.File.WWSF.ClientSecret)
	}
	if n := c.File.Bus.NKey; n != "" && c.has("waf", "epcscf", "imsagw") {
		if _, err := os.Stat(n); err != nil {
			c.error("bus.nkey", err.Error(), "name the file with this node's nkey seed")
		} else {
			c.secret("bus.nkey", n, false)
		}
	}
}

// clientSecret looks at the portal's secret. Where the WAF runs it is made; elsewhere a portal without one
// has no guests, unless the file is named.
func (c *checker) clientSecret(configured string) {
	const key = "wwsf.client_secret"
	name := c.path(configured, "wwsf-client.secret")
	if _, err := os.Stat(name); errors.Is(err, fs.ErrNotExist) && configured != "" && !c.has("waf") {
		c.error(key, fmt.Sprintf("open %s: no such file", name), "copy it from the WAF, which makes it; it is the WAF's wwsf.client_secret")
		return
	}
	b := c.secret(key, name, configured != "")
	if b == nil {
		return
	}
	if b = bytes.TrimSpace(b); len(b) < 32 || len(b) > 256 || bytes.ContainsAny(b, " \r\n\t") {
		c.error(key, name+": want one line of 32 to 256 random bytes without spaces", "move it away, and the WAF makes a new one; the portal needs the same file")
	}
}

// isSigningKey says whether b is a key for ES256, in PEM.
func isSigningKey(b []byte) bool {
	block, _ := pem.Decode(b)
	if block == nil {
		return false
	}
	var key any
	var err error
	if block.Type == "EC PRIVATE KEY" {
		key, err = x509.ParseECPrivateKey(block.Bytes)
	} else {
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	}
	ec, ok := key.(*ecdsa.PrivateKey)
	return err == nil && ok && ec.Curve == elliptic.P256()
}

// secret looks at a file that its owner alone may read, and returns its content, at most 16 KiB; nil where
// there is none, or it has a fault, which is told.
func (c *checker) secret(key, name string, make bool) []byte {
	f, err := os.Open(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if make {
			c.willMake(key, name)
		}
		return nil
	case err != nil:
		c.error(key, err.Error(), "let the user that wicgate runs as read it, and nobody else")
		return nil
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		c.error(key, err.Error(), "")
		return nil
	}
	if perm := st.Mode().Perm(); perm&0o077 != 0 {
		c.error(key, fmt.Sprintf("%s has mode %04o, others than its owner can reach it", name, perm), "chmod 600 "+name)
		return nil
	}
	b, err := io.ReadAll(io.LimitReader(f, 16<<10))
	if err != nil {
		c.error(key, err.Error(), "")
		return nil
	}
	return b
}

// willMake looks whether a file that is not there can be made.
func (c *checker) willMake(key, name string) {
	if dir := filepath.Dir(name); !writable(dir) {
		c.error(key, fmt.Sprintf("%s is not there, and cannot be made: no writable folder %s", name, dir), "make the folder, owned by the user that wicgate runs as, with mode 0700")
	}
}

// folder looks at the data folder.
func (c *checker) folder() {
	st, err := os.Stat(c.Data)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		parent := c.Data
		for errors.Is(err, fs.ErrNotExist) && parent != filepath.Dir(parent) {
			parent = filepath.Dir(parent)
			_, err = os.Stat(parent)
		}
		if err != nil || !writable(parent) {
			c.error("", fmt.Sprintf("data folder %s is not there and cannot be made in %s", c.Data, parent), "name another with --data")
			return
		}
		c.ok("data folder %s: will be made", c.Data)
	case err != nil:
		c.error("", fmt.Sprintf("data folder: %v", err), "name another with --data")
	case !st.IsDir():
		c.error("", fmt.Sprintf("data folder %s is no folder", c.Data), "name another with --data")
	case !writable(c.Data):
		c.error("", fmt.Sprintf("data folder %s is not writable", c.Data), "let the user that wicgate runs as own it")
	default:
		if perm := st.Mode().Perm(); perm&0o022 != 0 {
			c.warn("", fmt.Sprintf("data folder %s has mode %04o: others can put files there", c.Data, perm), "chmod 700 "+c.Data)
		}
		c.ok("data folder %s: writable", c.Data)
	}
	if n := len(filepath.Join(c.Data, "admin.sock")); n > 107 {
		c.error("", fmt.Sprintf("data folder %s: the path of its socket has %d bytes, at most 107 are possible", c.Data, n), "name one with a shorter path")
	}
}

// sockets opens each port and closes it again.
func (c *checker) sockets() {
	f, seen := c.File, map[string]bool{}
	tcp := func(when bool, key string, a netip.AddrPort) {
		if when && !seen["tcp"+a.String()] {
			seen["tcp"+a.String()] = true
			l, err := listen.TCP(key, a)
			c.opened("TCP", key, a, err)
			if err == nil {
				l.Close()
			}
		}
	}
	udp := func(when bool, key string, a netip.AddrPort) {
		if when && !seen["udp"+a.String()] {
			seen["udp"+a.String()] = true
			l, err := listen.UDP(key, a)
			c.opened("UDP", key, a, err)
			if err == nil {
				_ = l.Close() // it served its purpose
			}
		}
	}
	for i, a := range f.TURN.Listen {
		udp(c.has("turn"), fmt.Sprintf("turn.listen[%d]", i), a.AddrPort)
	}
	for i, a := range f.TURN.ListenTCP {
		tcp(c.has("turn"), fmt.Sprintf("turn.listen_tcp[%d]", i), a.AddrPort)
	}
	tcp(c.has("waf", "wwsf", "epcscf"), "https.listen", f.HTTPS.Listen.AddrPort)
	tcp(c.has("waf") && f.WAF.STUNKey.Listen.IsValid(), "waf.stun_key.listen", f.WAF.STUNKey.Listen.AddrPort)
	tcp(c.has("epcscf"), "epcscf.listen", f.EPCSCF.Listen.AddrPort)
	tcp(c.has("democore"), "democore.listen", f.DemoCore.Listen.AddrPort)
	tcp(f.HTTPS.ACME.On() && f.HTTPS.ACME.HTTP.IsValid(), "https.acme.http", f.HTTPS.ACME.HTTP.AddrPort)
	tcp(f.Admin.Listen.IsValid(), "admin.listen", f.Admin.Listen.AddrPort)
	// Ranges are tested by their address alone: port 0 is any that is free.
	for i, s := range f.TURN.Relay {
		udp(c.has("turn"), fmt.Sprintf("turn.relay[%d].bind", i), netip.AddrPortFrom(s.Bind.Addr, 0))
	}
	udp(c.has("imsagw"), "imsagw.access.bind", netip.AddrPortFrom(f.IMSAGW.Access.Bind.Addr, 0))
	udp(c.has("imsagw"), "imsagw.core.bind", netip.AddrPortFrom(f.IMSAGW.Core.Bind.Addr, 0))
}

func (c *checker) opened(proto, key string, a netip.AddrPort, err error) {
	switch {
	case err == nil && a.Port() == 0:
		c.ok("%s on %v: possible (%s)", proto, a.Addr(), key)
	case err == nil:
		c.ok("%s %v: free (%s)", proto, a, key)
	case c.Running && inUse(err):
		c.ok("%s %v: in use (%s); by the wicgate that runs with this data folder, if by no other program", proto, a, key)
	default:
		c.fails(key, err)
	}
}

// machine looks at limits and clock of this machine.
func (c *checker) machine() {
	m := readMachine()
	foreign := slices.ContainsFunc(c.File.TURN.Relay, func(s config.Side) bool { return !s.Bind.IsLoopback() })
	if !foreign && c.File.IMSAGW.Access.Bind.IsLoopback() && c.File.HTTPS.Listen.Addr().IsLoopback() {
		return // a try on one machine: nothing of this matters
	}
	if m.ephemeral.First != 0 {
		type use struct {
			role, key string
			ports     config.Ports
		}
		ranges := []use{{"imsagw", "imsagw.access.ports", c.File.IMSAGW.Access.Ports}, {"imsagw", "imsagw.core.ports", c.File.IMSAGW.Core.Ports}}
		for i, s := range c.File.TURN.Relay {
			ranges = append(ranges, use{"turn", fmt.Sprintf("turn.relay[%d].ports", i), s.Ports})
		}
		for _, r := range ranges {
			if c.has(r.role) && r.ports.First <= m.ephemeral.Last && m.ephemeral.First <= r.ports.Last && !m.reserved(r.ports) {
				c.warn(r.key, fmt.Sprintf("%v overlap with the ports %v that the kernel gives to outgoing connections: some will be taken", r.ports, m.ephemeral),
					fmt.Sprintf("sysctl -w net.ipv4.ip_local_reserved_ports=%v", r.ports))
			}
		}
	}
	if c.has("turn") && m.rmemMax > 0 && m.rmemMax < listenBuffer {
		c.warn("", fmt.Sprintf("net.core.rmem_max is %d bytes: a TURN listener asks for %d, and loses packets in bursts with less", m.rmemMax, listenBuffer),
			fmt.Sprintf("sysctl -w net.core.rmem_max=%d", listenBuffer))
	}
	if n := c.File.TURN.RelayPorts(); c.has("turn") && m.descriptors > 0 && m.descriptors < uint64(n+reservedDescriptors) {
		c.warn("turn.relay", fmt.Sprintf("its ports hold %d allocations, and this process may open %d files", n, m.descriptors),
			fmt.Sprintf("raise the limit: ulimit -n %d, or LimitNOFILE=%d in the systemd unit", n+2*reservedDescriptors, n+2*reservedDescriptors))
	}
	if m.unsynchronised {
		c.warn("", "this machine's clock is not synchronised: tokens of another machine are refused from 5 s difference", "run an NTP client, such as chrony or systemd-timesyncd")
	}
	if c.File.Admin.Listen.Addr().IsUnspecified() {
		if a := publicAddress(); a.IsValid() {
			c.warn("admin.listen", fmt.Sprintf("%v includes this machine's public address %v: whoever asks sees the counters", c.File.Admin.Listen, a), "name a private address, or let only the monitoring through")
		}
	}
}

// publicAddress is one of this machine's, if it has any.
func publicAddress() netip.Addr {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return netip.Addr{} // then nothing can be said
	}
	for _, i := range all {
		if p, err := netip.ParsePrefix(i.String()); err == nil && peerpolicy.General().AllowAddr(p.Addr().Unmap()) == nil {
			return p.Addr().Unmap()
		}
	}
	return netip.Addr{}
}
