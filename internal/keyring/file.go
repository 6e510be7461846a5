package keyring

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"wicgate/internal/secret"
	"wicgate/internal/token"
)

// The file is JSON, for its owner alone (0600):
//
//	{"version": 1, "server": "turn.example.org",
//	 "masters": [{"id": "b3Jv-_8x", "enc": "A256GCM", "key": "<base64>", "created": "2026-...", "retire": "2026-..."}],
//	 "nonce_secrets": [{"key": "<base64>", "created": "..."}]}
//
// In place of masters, plain mode has keys as RFC 7635 prints them, "k" in base64url:
//
//	 "kid_mode": "plain",
//	 "keys": [{"kid": "k2", "enc": "A256GCM", "k": "<base64url>", "from": "2026-...", "exp": "2026-..."}],
//
// Newest first; "retire" is absent in the first of each, and "from" and "exp" may be absent anywhere. A
// file is replaced whole and never written in place. One that cannot be understood is never replaced.

const (
	fileVersion = 1
	maxFile     = 64 << 10 // 64 keys and 16 nonce secrets need at most 25 KiB
)

type fileForm struct {
	Version      int          `json:"version"`
	Server       string       `json:"server"`
	KIDMode      string       `json:"kid_mode,omitempty"`
	Masters      []masterForm `json:"masters,omitempty"`
	Keys         []plainForm  `json:"keys,omitempty"`
	NonceSecrets []nonceForm  `json:"nonce_secrets"`
}

type masterForm struct {
	ID      string    `json:"id"`
	Enc     string    `json:"enc"`
	Key     []byte    `json:"key"`
	Created time.Time `json:"created"`
	Retire  time.Time `json:"retire,omitzero"`
}

type nonceForm struct {
	Key     []byte    `json:"key"`
	Created time.Time `json:"created"`
	Retire  time.Time `json:"retire,omitzero"`
}

// OpenFile reads the ring of server from path, or makes it there with one master and one nonce
// secret. Several processes may do so at once and get the same ring. It refuses a file that others
// than its owner may read or write, one of another server or mode, and one that it does not
// understand wholly; such a file is left as it is.
func OpenFile(path, server string) (*Ring, error) {
	return openFile(&Ring{server: server, path: path})
}

func openFile(r *Ring) (*Ring, error) {
	if r.server == "" {
		return nil, fmt.Errorf("keyring: %s: no TURN server name", r.path)
	}
	k, err := r.readFile()
	if errors.Is(err, fs.ErrNotExist) {
		err = r.writeFile(r.fresh(), true)
		if err == nil || errors.Is(err, fs.ErrExist) { // made here, or by another a moment before
			k, err = r.readFile()
		}
	}
	if err != nil {
		return nil, err
	}
	r.keys.Store(k)
	return r, nil
}

// Reload reads the file again. On an error the ring stays as it is. A ring in memory has nothing
// to read.
func (r *Ring) Reload() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.reloadLocked()
}

// Check says whether Reload would succeed now, and changes nothing.
func (r *Ring) Check() error {
	if r.path == "" {
		return nil
	}
	_, err := r.readFile()
	return err
}

func (r *Ring) reloadLocked() error {
	if r.path == "" {
		return nil
	}
	r.lastLook = time.Now()
	k, err := r.readFile()
	r.err = err
	if err != nil {
		return err
	}
	r.keys.Store(k)
	return nil
}

// Err returns why the last look at the file failed, nil if it did not. The ring goes on with what
// it has; this is for a health check.
func (r *Ring) Err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// look reloads, unless that has been done within lookEvery or is being done. It reports success.
func (r *Ring) look() bool {
	if r.path == "" || !r.mu.TryLock() {
		return false
	}
	defer r.mu.Unlock()
	if since := time.Since(r.lastLook); 0 <= since && since < lookEvery {
		return false
	}
	return r.reloadLocked() == nil
}

// change makes of what the ring holds what f makes of it, in the file too if there is one: what
// another process wrote since is read first, and the ring changes only once the file has. Nothing is
// written where f returns what it was given. Its errors name what was tried.
func (r *Ring) change(what string, f func(*keys) (*keys, error)) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.path != "" {
		unlock, err := lockDir(filepath.Dir(r.path))
		if err != nil {
			return fmt.Errorf("keyring: %s %s: lock its folder: %w", what, r.path, err)
		}
		defer unlock()
		if err := r.reloadLocked(); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
	old := r.keys.Load()
	next, err := f(old)
	if err != nil {
		return fmt.Errorf("keyring: %s %q: %w", what, r.server, err)
	}
	if next == old {
		return nil
	}
	if r.path != "" {
		if err := r.writeFile(next, false); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
	r.keys.Store(next)
	return nil
}

// readPrivate reads a regular file of at most longest bytes that its owner alone can reach.
func readPrivate(path string, longest int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() // read only: nothing can be lost
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file", path)
	}
	if perm := info.Mode().Perm(); perm&0o077 != 0 {
		return nil, fmt.Errorf("%s has mode %04o, others than its owner can reach what is in it\n  hint: chmod 600 %s; if others had access, make new keys", path, perm, path)
	}
	b, err := io.ReadAll(io.LimitReader(f, longest+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if int64(len(b)) > longest {
		return nil, fmt.Errorf("%s is longer than %d bytes", path, longest)
	}
	return b, nil
}

// readFile never returns a part of a file. Its errors name the path and quote no secret.
func (r *Ring) readFile() (*keys, error) {
	path := r.path
	b, err := readPrivate(path, maxFile)
	if err != nil {
		return nil, fmt.Errorf("keyring: %w", err)
	}
	k, err := r.parseFile(b)
	if err != nil {
		return nil, fmt.Errorf("keyring: %s: %w\n  hint: the file was left as it is; restore it from a backup, or move it away to start with new keys (tokens issued so far then end)", path, err)
	}
	return k, nil
}

func (r *Ring) parseFile(b []byte) (*keys, error) {
	var form fileForm
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&form); err != nil {
		return nil, fmt.Errorf("not a key file: %w", scrub(err))
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, errors.New("not a key file: more follows after its end")
	}
	switch {
	case form.Version != fileVersion:
		return nil, fmt.Errorf("version %d, this program knows %d", form.Version, fileVersion)
	case form.Server != r.server:
		return nil, fmt.Errorf("holds the keys of TURN server %q, not of %q", form.Server, r.server)
	case form.KIDMode != "" && form.KIDMode != "plain":
		return nil, fmt.Errorf("kid_mode %q, this program knows none and plain", form.KIDMode)
	case (form.KIDMode == "plain") != r.plain:
		return nil, fmt.Errorf("holds keys of the other kid_mode: %s are asked for", r.mode())
	case r.plain && len(form.Masters) > 0 || !r.plain && len(form.Keys) > 0:
		return nil, errors.New("holds masters and plain keys; either is used, and kid_mode says which")
	case !r.plain && len(form.Masters) == 0 || len(form.NonceSecrets) == 0:
		return nil, errors.New("holds no master or no nonce secret")
	case len(form.Masters) > MaxMasters || len(form.NonceSecrets) > MaxMasters:
		return nil, fmt.Errorf("holds more than %d masters or nonce secrets", MaxMasters)
	}
	k := &keys{}
	for i, p := range form.Keys {
		f, ok := token.ParseFormat(p.Enc)
		if !ok {
			return nil, fmt.Errorf("key %d is for %q, this program knows %s", i+1, p.Enc, token.Formats)
		}
		k.plain = append(k.plain, PlainKey{p.KID, f, secret.New(p.K), p.From, p.Exp})
		clear(p.K)
	}
	if err := checkPlain(k.plain); err != nil {
		return nil, err
	}
	for i, m := range form.Masters {
		f, ok := token.ParseFormat(m.Enc)
		_, twice := k.find(m.ID)
		switch {
		case !validName(m.ID, 16):
			return nil, fmt.Errorf("master %d has no usable id", i+1)
		case twice:
			return nil, fmt.Errorf("master %q is there twice", m.ID)
		case !ok:
			return nil, fmt.Errorf("master %q is for %q, this program knows %s", m.ID, m.Enc, token.Formats)
		case len(m.Key) != masterSize:
			return nil, fmt.Errorf("master %q has %d bytes, want %d", m.ID, len(m.Key), masterSize)
		case (i == 0) != m.Retire.IsZero():
			return nil, fmt.Errorf("master %q: the first has no end, and all others have one", m.ID)
		}
		k.masters = append(k.masters, master{m.ID, secret.New(m.Key), f, m.Created, m.Retire})
		clear(m.Key)
	}
	for i, n := range form.NonceSecrets {
		switch {
		case len(n.Key) != masterSize:
			return nil, fmt.Errorf("nonce secret %d has %d bytes, want %d", i+1, len(n.Key), masterSize)
		case (i == 0) != n.Retire.IsZero():
			return nil, fmt.Errorf("nonce secret %d: the first has no end, and all others have one", i+1)
		}
		k.nonces = append(k.nonces, nonceSecret{secret.New(n.Key), n.Created, n.Retire})
		clear(n.Key)
	}
	return k, nil
}

// scrub keeps of a JSON error the kind and the place: the package quotes what it met, which may be
// a piece of a key.
func scrub(err error) error {
	var syntax *json.SyntaxError
	var typ *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		return fmt.Errorf("no JSON at byte %d", syntax.Offset)
	case errors.As(err, &typ):
		return fmt.Errorf("wrong type at byte %d", typ.Offset)
	case errors.Is(err, io.EOF):
		return errors.New("empty")
	case errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("it ends too early")
	}
	return errors.New("unknown field, bad time or bad base64")
}

func (r *Ring) encode(k *keys) ([]byte, error) {
	form := fileForm{Version: fileVersion, Server: r.server}
	if r.plain {
		form.KIDMode = "plain"
	}
	for _, p := range k.plain {
		form.Keys = append(form.Keys, plainForm{p.KID, p.Enc.String(), p.K.Expose(), utc(p.From), utc(p.Exp)})
	}
	for _, m := range k.masters {
		form.Masters = append(form.Masters, masterForm{m.id, m.format.String(), m.key.Expose(), m.created.UTC(), utc(m.retire)})
	}
	for _, n := range k.nonces {
		form.NonceSecrets = append(form.NonceSecrets, nonceForm{n.key.Expose(), n.created.UTC(), utc(n.retire)})
	}
	return json.MarshalIndent(form, "", "  ")
}

func utc(t time.Time) time.Time {
	if t.IsZero() {
		return time.Time{}
	}
	return t.UTC()
}

// writeFile puts the keys at path at once: after a crash there is the old file or the new one.
// With first, an existing file is left alone and the error is fs.ErrExist.
func (r *Ring) writeFile(k *keys, first bool) (err error) {
	path := r.path
	defer func() {
		if err != nil {
			err = fmt.Errorf("keyring: write %s: %w", path, err)
		}
	}()
	b, err := r.encode(k)
	if err != nil {
		return err
	}
	dir := filepath.Dir(path)
	tmp, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*") // made with 0600
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(tmp.Name()) }() // gone already after a rename, which is fine
	_, err = tmp.Write(append(b, '\n'))
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	if err != nil {
		return err
	}
	if first {
		err = os.Link(tmp.Name(), path) // unlike Rename it does not replace
	} else {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
