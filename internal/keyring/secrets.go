package keyring

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"wicgate/internal/secret"
)

const (
	maxSecrets    = 8
	minSecret     = 16 // bytes
	maxSecret     = 256
	maxSecretFile = 16 << 10
)

// OpenSecrets reads a list of secrets, such as those of ephemeral TURN credentials, from path: one a line, used as it is
// written, newest first; empty lines and those that begin with # do not count. The first is what
// things are made with, all are taken: so one is replaced by another without a break. With
// make, a file that is not there is made with one of 256 random bits. A file that others than its
// owner may read or write is refused.
func OpenSecrets(path string, make bool) ([]secret.Bytes, error) {
	b, err := readPrivate(path, maxSecretFile)
	if errors.Is(err, fs.ErrNotExist) && make {
		if err := makeSecrets(path); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("keyring: secrets: %w", err)
		}
		b, err = readPrivate(path, maxSecretFile)
	}
	if err != nil {
		return nil, fmt.Errorf("keyring: secrets: %w", err)
	}
	var list []secret.Bytes
	for i, line := range bytes.Split(b, []byte{'\n'}) {
		line = bytes.TrimSpace(line)
		switch {
		case len(line) == 0 || line[0] == '#':
			continue
		case len(line) < minSecret || len(line) > maxSecret:
			return nil, fmt.Errorf("keyring: %s:%d: a secret of %d bytes, want %d to %d", path, i+1, len(line), minSecret, maxSecret)
		case len(list) == maxSecrets:
			return nil, fmt.Errorf("keyring: %s:%d: more than %d secrets", path, i+1, maxSecrets)
		}
		list = append(list, secret.New(bytes.Clone(line)))
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("keyring: %s holds no secret\n  hint: openssl rand -base64 32 >> %s", path, path)
	}
	return list, nil
}

// makeSecrets writes a new file whole, or fails with fs.ErrExist.
func makeSecrets(path string) error {
	b := []byte("# Secrets, one a line, newest first: the first is used, all are taken.\n")
	b = base64.RawURLEncoding.AppendEncode(b, secret.Random(32).Expose())
	f, err := os.CreateTemp(filepath.Dir(path), ".secrets-*") // 0600
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }() // the link is what stays
	_, err = f.Write(append(b, '\n'))
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Link(f.Name(), path)
}
