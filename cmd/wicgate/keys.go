package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"path/filepath"
	"time"

	"wicgate/internal/config"
	"wicgate/internal/keyring"
	"wicgate/internal/life"
	"wicgate/internal/listen"
	"wicgate/internal/stunkey"
	"wicgate/turn"
)

// openRing opens the keyring of a tenant. name is that of its file, where none is configured.
func (h *house) openRing(t config.Tenant, name func(base string) string) (*keyring.Ring, error) {
	open, base := keyring.OpenFile, "turn-keys.json"
	if t.Plain() {
		open, base = keyring.OpenPlain, "turn-plain-keys.json"
	}
	ring, err := open(h.path(t.Keys, name(base)), t.Name)
	if err == nil {
		h.reloader.rings = append(h.reloader.rings, ring)
	}
	return ring, err
}

// openKeys opens the keyring of turn.name, and where the WAF runs those of TURN servers elsewhere. The
// WAF's process renews the plain ones.
func (h *house) openKeys(*http.ServeMux) (err error) {
	c := h.file.TURN
	if h.rings, err = h.openRing(c.First(), func(base string) string { return base }); err != nil || !h.has("waf") {
		return err
	}
	for _, name := range h.file.WAF.STUNKey.Servers {
		if name == c.Name {
			continue
		}
		ring, err := keyring.OpenPlain(filepath.Join(h.data, "stun-key-"+name+".json"), name)
		if err != nil {
			return err
		}
		h.foreign = append(h.foreign, ring)
	}
	format, _ := c.OAuth.Format() // known, says config
	for _, ring := range append([]*keyring.Ring{h.rings}, h.foreign...) {
		if !ring.IsPlain() {
			continue
		}
		if err := ring.Renew(time.Now(), format, time.Duration(c.OAuth.KeyLife)); err != nil {
			return err
		}
		h.parts = append(h.parts, life.Part{Name: "keys of " + ring.Server(), Serve: func(ctx context.Context) error {
			return ring.Keep(ctx, format, time.Duration(c.OAuth.KeyLife), h.log)
		}})
	}
	return nil
}

// pulled is a tenant's ring, or the ring with who pulls its keys.
func (h *house) pulled(t config.Tenant, ring *keyring.Ring) (turn.Keys, error) {
	c := t.KeyPull
	if c.URL == "" || h.has("waf") { // the WAF of this process has the ring
		return ring, nil
	}
	log := h.log.With("role", "turn")
	files, err := listen.CertificateFiles(c.Certificate, c.Key, func(err error) {
		log.Error("key_pull.certificate not reloaded; the old one stays", "server", t.Name, "error", err)
	})
	if err != nil {
		return nil, fmt.Errorf("key_pull of %s: %w", t.Name, err)
	}
	var pool *x509.CertPool // nil: the system's
	if c.CA != "" {
		if pool, err = listen.PoolFile(c.CA); err != nil {
			return nil, fmt.Errorf("key_pull.ca of %s: %w", t.Name, err)
		}
	}
	p, err := stunkey.NewPuller(stunkey.PullerConfig{Log: log, URL: c.URL, Ring: ring, CA: pool,
		Certificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return files.GetCertificate(nil) }})
	if err != nil {
		return nil, err
	}
	h.parts = append(h.parts, life.Part{Name: "key pull of " + t.Name, Serve: p.Serve})
	return p, nil
}

// stunKey serves keys to TURN servers elsewhere (RFC 7635 §4.1.1).
func (h *house) stunKey() error {
	c := h.file.WAF.STUNKey
	if !c.Listen.IsValid() {
		return nil
	}
	pool, err := listen.PoolFile(c.ClientCA)
	if err != nil {
		return fmt.Errorf("waf.stun_key.client_ca: %w", err)
	}
	var told []*keyring.Ring
	for _, ring := range append([]*keyring.Ring{h.rings}, h.foreign...) {
		for _, name := range c.Servers {
			if name == ring.Server() {
				told = append(told, ring)
			}
		}
	}
	log := h.log.With("role", "waf")
	f, err := listen.NewMutualFront("waf.stun_key.listen", c.Listen.AddrPort, h.cert, pool, stunkey.NewServer(log, told...), log)
	if err != nil {
		return err
	}
	h.parts = append(h.parts, life.Part{Name: "stun key", Serve: f.Serve})
	return nil
}
