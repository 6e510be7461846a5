package acme

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"

	"wicgate/internal/secret"
	"wicgate/internal/store"
)

// In the store a value is kept under the SHA-256 of its path, as
//
//	0          1               13                              n-16        n
//	┌──────────┬───────────────┬───────────────────────────────┬───────────┐
//	│ format 1 │ nonce, random │ sealed: time, path, value     │ tag       │
//	└──────────┴───────────────┴───────────────────────────────┴───────────┘
//
// sealed by AES-256-GCM with the store's key as associated data, so that neither the bus nor its disk
// holds a private key or an account, and nobody without the secret can put one there or swap two. The
// time is 8 bytes of nanoseconds since 1970, the path has its length before it in 2 bytes.
const (
	bucket     = "acme"
	format     = 1
	keyContext = "wicgate acme store 1"
	maxPath    = 1024 // bytes

	storeTime = 10 * time.Second // for one operation
	lockLife  = 30 * time.Second // a lock whose holder is gone ends after it
	lockPoll  = 2 * time.Second  // who waits for a lock looks so often
	maxTries  = 8                // of a write that others get in the way of
)

// errSealed: a value that none of this node's secrets opens.
var errSealed = errors.New("acme: the store holds a value that was sealed under another secret, or was changed\n  hint: nodes that share a bus share the file https.acme.secrets")

// vault is the certmagic.Storage of all nodes that share a store.
type vault struct {
	store store.Store
	log   *slog.Logger
	seals []cipher.AEAD // the first seals, all open

	mu   sync.Mutex // guards the following field
	held map[string]*lease
}

var _ certmagic.Storage = (*vault)(nil)

// lease is a lock that this node holds; its goroutine writes it anew until stop is closed.
type lease struct {
	revision store.Revision // the goroutine's, and after done the unlocker's
	stop     chan struct{}
	done     chan struct{}
}

func newVault(st store.Store, secrets []secret.Bytes, log *slog.Logger) (*vault, error) {
	v := &vault{store: st, log: log, held: map[string]*lease{}}
	for _, s := range secrets {
		key, err := hkdf.Key(sha256.New, s.Expose(), nil, keyContext, 32)
		if err != nil {
			return nil, err
		}
		block, err := aes.NewCipher(key)
		if err != nil {
			return nil, err
		}
		seal, err := cipher.NewGCM(block)
		if err != nil {
			return nil, err
		}
		v.seals = append(v.seals, seal)
	}
	if len(v.seals) == 0 {
		return nil, errors.New("acme: no secret to seal private keys with")
	}
	return v, nil
}

func keyOf(path string) string {
	sum := sha256.Sum256([]byte(path))
	return hex.EncodeToString(sum[:])
}

func lockOf(name string) string { return "lock " + keyOf(name) }

// item is an opened value.
type item struct {
	path     string
	value    []byte
	modified time.Time
}

func (v *vault) seal(key string, it item) []byte {
	plain := binary.BigEndian.AppendUint64(nil, uint64(it.modified.UnixNano()))
	plain = binary.BigEndian.AppendUint16(plain, uint16(len(it.path)))
	plain = append(append(plain, it.path...), it.value...)
	out := make([]byte, 1+v.seals[0].NonceSize(), 1+v.seals[0].NonceSize()+len(plain)+v.seals[0].Overhead())
	out[0] = format
	rand.Read(out[1:]) // never fails since Go 1.24
	return v.seals[0].Seal(out, out[1:], plain, []byte(key))
}

func (v *vault) open(key string, b []byte) (item, error) {
	for _, s := range v.seals {
		if len(b) < 1+s.NonceSize() || b[0] != format {
			break
		}
		plain, err := s.Open(nil, b[1:1+s.NonceSize()], b[1+s.NonceSize():], []byte(key))
		if err != nil {
			continue
		}
		if len(plain) < 10 || len(plain) < 10+int(binary.BigEndian.Uint16(plain[8:])) {
			break
		}
		n := 10 + int(binary.BigEndian.Uint16(plain[8:]))
		it := item{string(plain[10:n]), plain[n:], time.Unix(0, int64(binary.BigEndian.Uint64(plain)))}
		if keyOf(it.path) != key {
			break
		}
		return it, nil
	}
	return item{}, errSealed
}

// lifeOf is how long a value stays after its last writing, so that a store does not fill with what
// nobody asks for any more: names given up, and what a process that was killed left. 0 = for ever.
func lifeOf(path string) time.Duration {
	const day = 24 * time.Hour
	switch {
	case strings.HasPrefix(path, "rw_test_"), strings.Contains(path, "/challenge_tokens/"):
		return time.Hour
	case strings.HasPrefix(path, "certificates/"):
		return 400 * day // public CAs issue for 398 at most
	case strings.HasPrefix(path, failures):
		return 30 * day
	}
	return 0
}

func (v *vault) get(ctx context.Context, path string) (it item, rev store.Revision, err error) {
	e, err := v.store.Get(ctx, bucket, keyOf(path))
	if errors.Is(err, store.ErrNotFound) {
		return it, 0, fmt.Errorf("acme: %s: %w", path, fs.ErrNotExist)
	}
	if err != nil {
		return it, 0, fmt.Errorf("acme: read %s: %w", path, err)
	}
	it, err = v.open(e.Key, e.Value)
	if err != nil {
		return it, e.Revision, fmt.Errorf("%s: %w", path, err)
	}
	return it, e.Revision, nil
}

// Store implements certmagic.Storage.
func (v *vault) Store(ctx context.Context, path string, value []byte) (err error) {
	ctx, cancel := context.WithTimeout(ctx, storeTime)
	defer cancel()
	if path == "" || len(path) > maxPath {
		return fmt.Errorf("acme: write: path of %d bytes, want 1 to %d", len(path), maxPath)
	}
	key := keyOf(path)
	sealed := v.seal(key, item{path, value, time.Now()})
	for range maxTries {
		var e store.Entry
		e, err = v.store.Get(ctx, bucket, key)
		switch {
		case errors.Is(err, store.ErrNotFound):
			_, err = v.store.Create(ctx, bucket, key, sealed, lifeOf(path))
		case err == nil:
			_, err = v.store.CompareAndSet(ctx, bucket, key, sealed, e.Revision, lifeOf(path))
		}
		if !errors.Is(err, store.ErrExists) && !errors.Is(err, store.ErrConflict) && !errors.Is(err, store.ErrNotFound) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("acme: write %s: %w", path, err)
	}
	return nil
}

// Load implements certmagic.Storage.
func (v *vault) Load(ctx context.Context, path string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, storeTime)
	defer cancel()
	it, _, err := v.get(ctx, path)
	return it.value, err
}

// below calls each for what is stored at path or below it, "" being everything.
func (v *vault) below(ctx context.Context, path string, each func(store.Entry, item)) error {
	var bad error
	err := v.store.Scan(ctx, bucket, func(e store.Entry) bool {
		if strings.HasPrefix(e.Key, "lock ") {
			return true
		}
		it, err := v.open(e.Key, e.Value)
		if err != nil {
			bad = err
			return false
		}
		if path == "" || it.path == path || strings.HasPrefix(it.path, path+"/") {
			each(e, it)
		}
		return true
	})
	return errors.Join(err, bad)
}

// Delete implements certmagic.Storage.
func (v *vault) Delete(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, storeTime)
	defer cancel()
	var found []store.Entry
	e, err := v.store.Get(ctx, bucket, keyOf(path))
	switch {
	case err == nil:
		found = append(found, e)
	case !errors.Is(err, store.ErrNotFound):
		return fmt.Errorf("acme: delete %s: %w", path, err)
	default:
		if err := v.below(ctx, path, func(e store.Entry, _ item) { found = append(found, e) }); err != nil {
			return fmt.Errorf("acme: delete %s: %w", path, err)
		}
	}
	for _, e := range found {
		if err := v.store.Delete(ctx, bucket, e.Key, e.Revision); err != nil && !errors.Is(err, store.ErrNotFound) {
			return fmt.Errorf("acme: delete %s: %w", path, err)
		}
	}
	return nil
}

// Exists implements certmagic.Storage.
func (v *vault) Exists(ctx context.Context, path string) bool {
	_, err := v.Stat(ctx, path)
	return err == nil || !errors.Is(err, fs.ErrNotExist) // what cannot be read is not to be made anew
}

// List implements certmagic.Storage.
func (v *vault) List(ctx context.Context, path string, recursive bool) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, storeTime)
	defer cancel()
	seen := map[string]bool{}
	err := v.below(ctx, path, func(_ store.Entry, it item) {
		rest := strings.TrimPrefix(strings.TrimPrefix(it.path, path), "/")
		for i, c := range rest + "/" {
			if c == '/' && i > 0 {
				seen[strings.TrimPrefix(path+"/"+rest[:i], "/")] = true
				if !recursive {
					return
				}
			}
		}
	})
	switch {
	case err != nil:
		return nil, fmt.Errorf("acme: list %s: %w", path, err)
	case len(seen) == 0:
		return nil, fmt.Errorf("acme: list %s: %w", path, fs.ErrNotExist)
	}
	var out []string
	for p := range seen {
		out = append(out, p)
	}
	slices.Sort(out)
	return out, nil
}

// Stat implements certmagic.Storage.
func (v *vault) Stat(ctx context.Context, path string) (certmagic.KeyInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, storeTime)
	defer cancel()
	it, _, err := v.get(ctx, path)
	if err == nil {
		return certmagic.KeyInfo{Key: path, Modified: it.modified, Size: int64(len(it.value)), IsTerminal: true}, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return certmagic.KeyInfo{}, err
	}
	folder := certmagic.KeyInfo{Key: path}
	found := false
	if e := v.below(ctx, path, func(_ store.Entry, it item) {
		found = true
		if it.modified.After(folder.Modified) {
			folder.Modified = it.modified
		}
	}); e != nil {
		return certmagic.KeyInfo{}, fmt.Errorf("acme: look for %s: %w", path, e)
	}
	if !found {
		return certmagic.KeyInfo{}, err
	}
	return folder, nil
}

// Lock implements certmagic.Storage: one node of all that share the store gets it. It ends with
// Unlock, or lockLife after this process has ended or lost the store.
func (v *vault) Lock(ctx context.Context, name string) error {
	for {
		try, cancel := context.WithTimeout(ctx, storeTime)
		rev, err := v.store.Create(try, bucket, lockOf(name), []byte{format}, lockLife)
		cancel()
		if err == nil {
			l := &lease{rev, make(chan struct{}), make(chan struct{})}
			v.mu.Lock()
			v.held[name] = l
			v.mu.Unlock()
			go v.keep(name, l)
			return nil
		}
		if !errors.Is(err, store.ErrExists) {
			return fmt.Errorf("acme: lock %s: %w", name, err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("acme: lock %s, which another node holds: %w", name, ctx.Err())
		case <-time.After(lockPoll):
		}
	}
}

// keep renews a lock until it is to stop.
func (v *vault) keep(name string, l *lease) {
	defer close(l.done)
	for {
		select {
		case <-l.stop:
			return
		case <-time.After(lockLife / 3):
		}
		ctx, cancel := context.WithTimeout(context.Background(), lockLife/3)
		rev, err := v.store.CompareAndSet(ctx, bucket, lockOf(name), []byte{format}, l.revision, lockLife)
		cancel()
		switch {
		case err == nil:
			l.revision = rev
		case errors.Is(err, store.ErrConflict), errors.Is(err, store.ErrNotFound):
			v.log.Warn("acme: a lock was lost; another node may do the same work", "lock", name)
			return
		}
	}
}

// Unlock implements certmagic.Storage.
func (v *vault) Unlock(ctx context.Context, name string) error {
	v.mu.Lock()
	l := v.held[name]
	delete(v.held, name)
	v.mu.Unlock()
	if l == nil {
		return fmt.Errorf("acme: unlock %s, which this node does not hold", name)
	}
	close(l.stop)
	<-l.done
	ctx, cancel := context.WithTimeout(ctx, storeTime)
	defer cancel()
	err := v.store.Delete(ctx, bucket, lockOf(name), l.revision)
	if errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrConflict) {
		return nil // its time had passed
	}
	return err
}
