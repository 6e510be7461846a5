package check

import (
	"crypto/tls"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"wicgate/internal/config"
	"wicgate/internal/keyring"
	"wicgate/internal/listen"
)

// keys looks at the keys of TURN servers that are there, and at what pulling them needs.
func (c *checker) keys() {
	c.keysOf("turn", c.File.TURN.First(), func(base string) string { return base })
	if c.has("turn") {
		for i, t := range c.File.TURN.Others() {
			c.keysOf(fmt.Sprintf("turn.tenants[%d]", i), t, t.File)
		}
	}
	if !c.has("waf") {
		return
	}
	k := c.File.WAF.STUNKey
	if k.Listen.IsValid() {
		if _, err := listen.PoolFile(k.ClientCA); err != nil {
			c.error("waf.stun_key.client_ca", err.Error(), "name the PEM file of the private CA that signs the TURN servers' certificates")
		}
	}
	for i, server := range k.Servers {
		file := filepath.Join(c.Data, "stun-key-"+server+".json")
		if _, err := os.Lstat(file); server != c.File.TURN.Name && err == nil {
			if _, err := keyring.OpenPlain(file, server); err != nil {
				c.fails(fmt.Sprintf("waf.stun_key.servers[%d]", i), err)
			}
		}
	}
}

// keysOf looks at those of one tenant, whose settings begin with prefix.
func (c *checker) keysOf(prefix string, t config.Tenant, file func(base string) string) {
	name, open := c.path(t.Keys, file("turn-keys.json")), keyring.OpenFile
	if t.Plain() {
		name, open = c.path(t.Keys, file("turn-plain-keys.json")), keyring.OpenPlain
	}
	if _, err := os.Lstat(name); err == nil { // only then does open not make one
		if _, err := open(name, t.Name); err != nil {
			c.fails(prefix+".keys", err)
		} else {
			c.ok("keys of TURN server %s: %s", t.Name, name)
		}
	} else if t.Keys != "" {
		c.willMake(prefix+".keys", name)
	}
	if p := t.KeyPull; p.URL != "" && c.has("turn") && !c.has("waf") {
		c.clientCertificate(prefix+".key_pull.certificate", t, time.Now())
		if p.CA != "" {
			if _, err := listen.PoolFile(p.CA); err != nil {
				c.error(prefix+".key_pull.ca", err.Error(), "name the PEM file of the CA that signed the WAF's https.certificate")
			}
		}
	}
}

// clientCertificate looks at that by which this TURN server is known to the WAF.
func (c *checker) clientCertificate(key string, t config.Tenant, now time.Time) {
	p := t.KeyPull
	pair, err := tls.LoadX509KeyPair(p.Certificate, p.Key)
	if err != nil {
		c.error(key, fmt.Sprintf("certificate %s with key %s: %v", p.Certificate, p.Key, err), "name a PEM certificate and the PEM key that belongs to it, readable by the user that wicgate runs as")
		return
	}
	leaf := pair.Leaf
	if len(leaf.DNSNames) != 1 || leaf.DNSNames[0] != t.Name || len(leaf.IPAddresses)+len(leaf.URIs)+len(leaf.EmailAddresses) > 0 {
		c.error(key, fmt.Sprintf("%s is for %s, and the WAF gives the keys of %s to a certificate with that one name", p.Certificate, strings.Join(names(leaf), ", "), t.Name),
			"get one whose only SAN is DNS:"+t.Name)
	}
	if now.After(leaf.NotAfter) {
		c.error(key, fmt.Sprintf("%s expired on %s", p.Certificate, leaf.NotAfter.UTC().Format(time.DateOnly)), "renew it; a new file is picked up without a restart")
	} else if leaf.NotAfter.Sub(now) < certificateSoon {
		c.warn(key, fmt.Sprintf("%s expires on %s", p.Certificate, leaf.NotAfter.UTC().Format(time.DateOnly)), "renew it; a new file is picked up without a restart")
	}
}
