package main

import (
	"fmt"

	"wicgate/internal/acme"
	"wicgate/internal/keyring"
	"wicgate/internal/life"
	"wicgate/internal/listen"
)

// usesTLS says whether a role of this process needs a certificate.
func (h *house) usesTLS() bool {
	return h.has("waf") || h.has("wwsf") || h.has("epcscf") || h.has("turn") && h.file.TURN.Secure()
}

// usesACME says whether certificates are got by ACME here; then there is a store, embedded where no bus is configured.
func (h *house) usesACME() bool { return h.usesTLS() && h.file.HTTPS.ACME.On() }

// openACME makes the client that gets and shows the certificates.
func (h *house) openACME() error {
	c := h.file.HTTPS.ACME
	secrets, err := keyring.OpenSecrets(h.path(c.Secrets, "acme-secrets.txt"), c.Secrets == "")
	if err != nil {
		return fmt.Errorf("https.acme.secrets: %w", err)
	}
	cfg := acme.Config{
		Log: h.log, Names: c.Names, Directory: c.Directory, Email: c.Email, Store: h.bus, Secrets: secrets,
		Listen: h.file.HTTPS.Listen.AddrPort, HTTP: c.HTTP.AddrPort,
	}
	if !h.has("waf") && !h.has("wwsf") && !h.has("epcscf") {
		cfg.Listen = h.file.TURN.ListenTCP[0].AddrPort
	}
	if c.CA != "" {
		if cfg.Roots, err = listen.PoolFile(c.CA); err != nil {
			return err
		}
	}
	if h.acme, err = acme.New(cfg); err != nil {
		return err
	}
	h.cert = h.acme.GetCertificate
	h.parts = append(h.parts, life.Part{Name: "acme", Serve: h.acme.Serve})
	return nil
}
