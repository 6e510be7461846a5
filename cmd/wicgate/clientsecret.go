package main

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"wicgate/internal/secret"
	"wicgate/waf"
)

// readClientSecret reads the portal's secret, a line of waf.MinSecret to 256 bytes.
func readClientSecret(path string) (secret.Bytes, error) {
	f, err := os.Open(path)
	if err != nil {
		return secret.Bytes{}, fmt.Errorf("client secret: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return secret.Bytes{}, fmt.Errorf("client secret: %w", err)
	}
	if perm := info.Mode().Perm(); !info.Mode().IsRegular() || perm&0o077 != 0 {
		return secret.Bytes{}, fmt.Errorf("client secret %s has mode %v, others than its owner can reach it\n  hint: chmod 600 %s; if others had access, replace it", path, info.Mode(), path)
	}
	b, err := io.ReadAll(io.LimitReader(f, 512))
	if err != nil {
		return secret.Bytes{}, fmt.Errorf("client secret: %w", err)
	}
	b = bytes.TrimSpace(b)
	if len(b) < waf.MinSecret || len(b) > 256 || bytes.ContainsAny(b, " \r\n\t") {
		return secret.Bytes{}, fmt.Errorf("client secret %s: want one line of %d to 256 random bytes without spaces\n  hint: move it away, and the WAF makes a new one; the portal needs the same file", path, waf.MinSecret)
	}
	return secret.New(b), nil
}

// makeClientSecret reads the portal's secret, and makes it where there is none.
func makeClientSecret(path string) (secret.Bytes, error) {
	s, err := readClientSecret(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return s, err
	}
	var key [32]byte
	rand.Read(key[:]) // never fails
	// Whole or not at all; another process that was faster wins.
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // made with 0600
	if err != nil {
		return secret.Bytes{}, fmt.Errorf("client secret: make %s: %w", path, err)
	}
	defer os.Remove(tmp.Name()) //nolint:errcheck // nothing depends on it
	_, err = fmt.Fprintln(tmp, base64.RawURLEncoding.EncodeToString(key[:]))
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err == nil {
		err = os.Link(tmp.Name(), path) // unlike Rename it does not replace
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return secret.Bytes{}, fmt.Errorf("client secret: make %s: %w", path, err)
	}
	return readClientSecret(path)
}

// portalSecret is what the portal shows the WAF for guests; absent where there are to be none.
func (h *house) portalSecret() (secret.Bytes, error) {
	configured := h.file.WWSF.ClientSecret
	path := h.path(configured, "wwsf-client.secret")
	if h.has("waf") {
		if h.file.WAF.Guests == 0 {
			return secret.Bytes{}, nil
		}
		return makeClientSecret(path)
	}
	s, err := readClientSecret(path)
	if configured == "" && errors.Is(err, fs.ErrNotExist) {
		h.log.Info("no guests: there is no client secret", "file", path)
		return secret.Bytes{}, nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w\n  hint: copy it from the WAF, which makes it; it is the WAF's wwsf.client_secret", err)
	}
	return s, err
}
