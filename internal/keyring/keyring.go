// Package keyring holds, for one TURN server name, the keys K by kid that WAF and TURN server share,
// and the secrets of the server's nonces. A ring has one of two modes.
//
// Derived: the ring has master keys, kid = <master>.<pseudonym>, and
//
//	K(kid) = HKDF-SHA256(master, no salt, "wicgate stun-key" 0x00 kid, size of K)   RFC 5869
//
// so that a token sealed for one pseudonym opens under no other. Masters never leave wicgate.
//
// Plain, see plain.go: K by kid as RFC 7635 prints it, for servers and issuers that are not wicgate.
//
// Whoever has a master or a K can mint tokens for its server: hence one ring for each server name.
// A ring lives in a file, see file.go, or in memory. A derived one does not decide when to rotate.
package keyring

import (
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"wicgate/internal/secret"
	"wicgate/internal/token"
)

const (
	// MinOverlap is the shortest overlap that Rotate takes: the longest life of a token, so that
	// no token outlives its master.
	MinOverlap = token.MaxLifetime + token.Delta
	// MaxMasters bounds the masters, and the nonce secrets, that are alive together.
	MaxMasters = 16
	// MaxPseudonym bounds a pseudonym in bytes. The WAF's have 22.
	MaxPseudonym = 64

	masterSize = 32
	label      = "wicgate stun-key\x00"
	lookEvery  = time.Second // least time between two looks at the file for an unknown master
	// lookAgain is after how long a ring that is asked for nonce secrets looks at its file again.
	lookAgain = time.Minute
	// nonceSettle is how old a nonce secret is before nonces are made with it, where there is an older one: by
	// then all nodes that share the file have looked, and take them.
	nonceSettle = 5 * time.Minute
)

var (
	// ErrOverlap: Rotate with less than MinOverlap.
	ErrOverlap = errors.New("overlap too short")
	// ErrTooMany: more than MaxMasters, or MaxPlain, alive.
	ErrTooMany = errors.New("too many keys alive")
)

// Ring is safe for concurrent use. Readers never wait for a file.
type Ring struct {
	server string
	path   string // empty: in memory
	plain  bool   // the mode

	keys  atomic.Pointer[keys] // replaced whole, never changed
	asked atomic.Int64         // when NonceSecrets last looked at the file, in ns since 1970

	// mu is held by whoever reads the file or replaces keys. It guards the following.
	mu       sync.Mutex
	lastLook time.Time
	err      error
}

// keys is what a ring holds, newest first. There is always one nonce secret without an end, and in
// derived mode one such master.
type keys struct {
	masters []master
	plain   []PlainKey
	nonces  []nonceSecret
}

type master struct {
	id      string // 8 characters of the base64url alphabet when made here; no dot
	key     secret.Bytes
	format  token.Format
	created time.Time
	retire  time.Time // zero: not yet known
}

type nonceSecret struct {
	key     secret.Bytes
	created time.Time
	retire  time.Time
}

func alive(retire, now time.Time) bool { return retire.IsZero() || now.Before(retire) }

// New returns a ring in memory with one master and one nonce secret, for tests and for a process
// that may forget.
func New(server string) *Ring {
	r := &Ring{server: server}
	r.keys.Store(r.fresh())
	return r
}

// fresh is what a new ring holds: in plain mode no key yet.
func (r *Ring) fresh() *keys {
	now := time.Now()
	k := &keys{nonces: []nonceSecret{newNonceSecret(now)}}
	if !r.plain {
		k.masters = []master{newMaster(now)}
	}
	return k
}

func newMaster(now time.Time) master {
	return master{id: newID(), key: secret.Random(masterSize), format: token.A256GCM, created: now}
}

// newID returns 8 random characters of the base64url alphabet.
func newID() string {
	var id [6]byte
	rand.Read(id[:]) // never fails
	return base64.RawURLEncoding.EncodeToString(id[:])
}

func newNonceSecret(now time.Time) nonceSecret {
	return nonceSecret{key: secret.Random(masterSize), created: now}
}

// Server returns the TURN server name: REALM, THIRD-PARTY-AUTHORIZATION and associated data.
func (r *Ring) Server() string { return r.server }

// Current returns the id of the newest master, with which new tokens are sealed; in plain mode the
// kid of the key that is.
func (r *Ring) Current() string {
	if r.plain {
		return r.keys.Load().sealing(time.Now())
	}
	return r.keys.Load().masters[0].id
}

// KID returns the kid of pseudonym under the newest master. In plain mode it is the same for all
// pseudonyms, and empty, which no key has, while there is no key to seal with.
func (r *Ring) KID(pseudonym string) string {
	if r.plain {
		return r.Current()
	}
	return r.Current() + "." + pseudonym
}

// Key returns the key of a kid, the format that is bound to it, and whose it is: in plain mode
// nobody's, "". ok is false for a malformed kid and for a key or master that is unknown or retired; a
// peer must not learn which.
//
// An unknown one makes a ring with a file look at it, at most once a second, so that a rotation
// by another process needs no signal. Deriving is done anew on every call: about 2 us.
func (r *Ring) Key(kid string) (key secret.Bytes, f token.Format, pseudonym string, ok bool) {
	if r.plain {
		key, f, ok = r.plainKey(kid)
		return key, f, "", ok
	}
	id, pseudonym, two := strings.Cut(kid, ".")
	if !two || !validName(id, MaxPseudonym) || !validName(pseudonym, MaxPseudonym) {
		return secret.Bytes{}, 0, "", false
	}
	m, found := r.keys.Load().find(id)
	if !found && r.look() {
		m, found = r.keys.Load().find(id)
	}
	if !found || !alive(m.retire, time.Now()) {
		return secret.Bytes{}, 0, "", false
	}
	k, err := hkdf.Key(sha256.New, m.key.Expose(), nil, label+kid, m.format.KeySize())
	if err != nil { // 64 bytes are always to be had
		return secret.Bytes{}, 0, "", false
	}
	return secret.New(k), m.format, pseudonym, true
}

func (k *keys) find(id string) (master, bool) {
	for _, m := range k.masters {
		if m.id == id {
			return m, true
		}
	}
	return master{}, false
}

// NonceSecrets returns the secrets of nonces: new nonces are made with the first, all are to be accepted.
// Those of the last few minutes come behind the others, for another node may not have read them yet, and a
// nonce that it refused would be final in browsers. With a file, it is looked at once a minute.
func (r *Ring) NonceSecrets() []secret.Bytes {
	now := time.Now()
	if last := r.asked.Load(); r.path != "" && now.UnixNano()-last >= int64(lookAgain) && r.asked.CompareAndSwap(last, now.UnixNano()) {
		r.look()
	}
	all := r.keys.Load().nonces
	out := make([]secret.Bytes, 0, len(all))
	settled := func(n nonceSecret) bool { return now.Sub(n.created) >= nonceSettle }
	for _, n := range all {
		if settled(n) && alive(n.retire, now) {
			out = append(out, n.key)
		}
	}
	for _, n := range slices.Backward(all) {
		if !settled(n) && alive(n.retire, now) {
			out = append(out, n.key)
		}
	}
	return out
}

// Rotate puts a new master and a new nonce secret in front. Those before stay good until now +
// overlap, which is at least MinOverlap; those whose time has come are dropped. With a file, what
// another process wrote since is read first, and the ring changes only once the file has. The keys of
// a plain ring are renewed by [Ring.Renew], and Rotate refuses.
func (r *Ring) Rotate(now time.Time, overlap time.Duration) error {
	if r.plain {
		return fmt.Errorf("keyring: rotate %q: its keys are plain, and renewed by their exp", r.server)
	}
	if overlap < MinOverlap {
		return fmt.Errorf("keyring: rotate %q: %w: %v, tokens live up to %v; use that or more", r.server, ErrOverlap, overlap, MinOverlap)
	}
	return r.change("rotate", func(k *keys) (*keys, error) { return k.rotated(now, overlap) })
}

func (k *keys) rotated(now time.Time, overlap time.Duration) (*keys, error) {
	first := newMaster(now)
	first.format = k.masters[0].format // an operator may have set it in the file
	next := &keys{masters: []master{first}, nonces: []nonceSecret{newNonceSecret(now)}}
	end := now.Add(overlap)
	for _, m := range k.masters {
		if m.retire.IsZero() {
			m.retire = end
		}
		if alive(m.retire, now) {
			next.masters = append(next.masters, m)
		}
	}
	for _, n := range k.nonces {
		if n.retire.IsZero() {
			n.retire = end
		}
		if alive(n.retire, now) {
			next.nonces = append(next.nonces, n)
		}
	}
	if len(next.masters) > MaxMasters || len(next.nonces) > MaxMasters {
		return nil, fmt.Errorf("%w: %d; the oldest ends %v, rotate after that", ErrTooMany, len(k.masters),
			next.masters[len(next.masters)-1].retire.UTC().Format(time.RFC3339))
	}
	return next, nil
}

// validName reports whether s is 1 to most characters of the base64url alphabet.
func validName(s string, most int) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case 'A' <= c && c <= 'Z', 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-', c == '_':
		default:
			return false
		}
	}
	return 0 < len(s) && len(s) <= most
}
