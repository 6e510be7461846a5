package keyring

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"wicgate/internal/secret"
	"wicgate/internal/token"
)

// In plain mode a kid names a key, and nobody: USERNAME is the same for all clients, so a token does
// not say whose it is, and quota, revocation and "only its owner refreshes an allocation" go by kid.
// That is RFC 7635 as it is printed, and what other people's servers can do.
//
// The life of a key:
//
//	 made           from                      exp                     exp + MinOverlap
//	  |--- known ----|--- seals, and opens ----|--- opens what it has sealed ---|
//	  '- life / 4    '- exp of the one before
//
// It is made before it seals, so that a server that asks for keys from time to time has it when it is
// first used; and it opens as long as a token that it sealed in its last moment can live.

const (
	// MaxPlain bounds the plain keys of a ring, those that only open included.
	MaxPlain = 64
	// MinKeyLife is the shortest life of a key: of keys that short, 27 are there at once.
	MinKeyLife = time.Hour
	// maxKID bounds a kid in bytes, as coturn's table of keys does.
	maxKID = 128
	// keepEvery is how often Keep looks whether a key is needed, and what others wrote to the file.
	keepEvery = time.Minute
)

// ErrKID means that a kid that is there already came with another key.
var ErrKID = errors.New("one kid with two keys")

// PlainKey is a key as RFC 7635 §4.1.1 has it. From is ours: before, it seals nothing. A zero From or
// Exp is none: a key that was put into the file by hand needs neither.
type PlainKey struct {
	// KID is 1 to 128 characters of printable ASCII. Those that Renew makes have 8 of the base64url
	// alphabet; only that alphabet can be carried in a browser's USERNAME (token.ParseUsername).
	KID       string
	Enc       token.Format
	K         secret.Bytes
	From, Exp time.Time
}

func (p PlainKey) opens(now time.Time) bool {
	return p.Exp.IsZero() || now.Before(p.Exp.Add(MinOverlap))
}

func (p PlainKey) seals(now time.Time) bool {
	return !now.Before(p.From) && (p.Exp.IsZero() || now.Before(p.Exp))
}

func (p PlainKey) check() error {
	for _, c := range []byte(p.KID) {
		if c <= ' ' || c > '~' {
			return errors.New("a kid is not printable ASCII")
		}
	}
	switch n := len(p.K.Expose()); {
	case p.KID == "" || len(p.KID) > maxKID:
		return fmt.Errorf("a kid has %d characters, want 1 to %d", len(p.KID), maxKID)
	case !p.Enc.Fits(n):
		return fmt.Errorf("key %q has %d bytes, %v wants %d", p.KID, n, p.Enc, p.Enc.KeySize())
	case !p.Exp.IsZero() && !p.From.Before(p.Exp):
		return fmt.Errorf("key %q ends before it begins", p.KID)
	}
	return nil
}

// checkPlain looks at all keys of a ring.
func checkPlain(list []PlainKey) error {
	if len(list) > MaxPlain {
		return fmt.Errorf("%w: %d keys, at most %d", ErrTooMany, len(list), MaxPlain)
	}
	seen := map[string]bool{}
	for _, p := range list {
		if err := p.check(); err != nil {
			return err
		}
		if seen[p.KID] {
			return fmt.Errorf("key %q is there twice", p.KID)
		}
		seen[p.KID] = true
	}
	return nil
}

// NewPlain returns a plain ring in memory with the given keys, newest first.
func NewPlain(server string, list ...PlainKey) (*Ring, error) {
	if err := checkPlain(list); err != nil {
		return nil, fmt.Errorf("keyring: plain keys of %q: %w", server, err)
	}
	r := &Ring{server: server, plain: true}
	k := r.fresh()
	k.plain = slices.Clone(list)
	r.keys.Store(k)
	return r, nil
}

// OpenPlain is OpenFile for a plain ring. A file that it makes has no key yet: see Renew and Learn.
func OpenPlain(path, server string) (*Ring, error) {
	return openFile(&Ring{server: server, path: path, plain: true})
}

func (r *Ring) mode() string {
	if r.plain {
		return "plain keys"
	}
	return "masters"
}

// IsPlain says whether the ring is in plain mode.
func (r *Ring) IsPlain() bool { return r.plain }

// Plain returns the keys that open tokens, newest first; the first may not seal yet.
func (r *Ring) Plain(now time.Time) (list []PlainKey) {
	for _, p := range r.keys.Load().plain {
		if p.opens(now) {
			list = append(list, p)
		}
	}
	return list
}

func (r *Ring) plainKey(kid string) (secret.Bytes, token.Format, bool) {
	p, found := r.keys.Load().named(kid)
	if !found && r.look() {
		p, found = r.keys.Load().named(kid)
	}
	if !found || !p.opens(time.Now()) {
		return secret.Bytes{}, 0, false
	}
	return p.K, p.Enc, true
}

func (k *keys) named(kid string) (PlainKey, bool) {
	i := slices.IndexFunc(k.plain, func(p PlainKey) bool { return p.KID == kid })
	if i < 0 {
		return PlainKey{}, false
	}
	return k.plain[i], true
}

// sealing is the kid of the newest key that seals, or "".
func (k *keys) sealing(now time.Time) string {
	for _, p := range k.plain {
		if p.seals(now) {
			return p.KID
		}
	}
	return ""
}

// Renew makes a key of format f and the given life where there is none, and the next one in the last
// quarter of the newest one's life. It drops what opens nothing any more. Several processes may do so
// with one file. It is for the issuer.
func (r *Ring) Renew(now time.Time, f token.Format, life time.Duration) error {
	return r.change("renew the keys of", func(k *keys) (*keys, error) { return k.renewed(now, f, life) })
}

func (k *keys) renewed(now time.Time, f token.Format, life time.Duration) (*keys, error) {
	now = now.UTC().Truncate(time.Second) // as exp is told
	from := now
	if len(k.plain) > 0 {
		end := k.plain[0].Exp
		if end.IsZero() || end.Sub(now) > life/4 {
			return k, nil
		}
		if end.After(now) {
			from = end
		}
	}
	return k.with(now, PlainKey{newID(), f, secret.Random(f.KeySize()), from, from.Add(life)})
}

// with returns k with more keys in front, without those that open nothing any more.
func (k *keys) with(now time.Time, more ...PlainKey) (*keys, error) {
	next := &keys{masters: k.masters, nonces: k.nonces}
	for _, p := range slices.Concat(more, k.plain) {
		if p.opens(now) {
			next.plain = append(next.plain, p)
		}
	}
	return next, checkPlain(next.plain)
}

// Keep renews the ring's keys until ctx ends. What fails is logged, and tried again a minute later.
func (r *Ring) Keep(ctx context.Context, f token.Format, life time.Duration, log *slog.Logger) error {
	tick := time.NewTicker(keepEvery)
	defer tick.Stop()
	for {
		if err := r.Renew(time.Now(), f, life); err != nil {
			log.Error("the next key of a TURN server was not made; no token is issued for it once its last key has ended", "server", r.server, "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Learn puts in what the issuer has given, newest first, and returns the kids that were not there. A
// kid that is there keeps its key and takes the new From and Exp; with another key, all is refused with
// ErrKID. Keys that the issuer no longer names stay until they open nothing.
func (r *Ring) Learn(now time.Time, given ...PlainKey) (fresh []string, err error) {
	err = r.change("learn the keys of", func(k *keys) (*keys, error) {
		fresh = nil
		same := true
		rest := &keys{nonces: k.nonces, plain: slices.Clone(k.plain)}
		for _, p := range given {
			old, found := k.named(p.KID)
			switch {
			case !found:
				fresh = append(fresh, p.KID)
			case !old.K.Equal(p.K) || old.Enc != p.Enc:
				return nil, fmt.Errorf("%w: %q", ErrKID, p.KID)
			}
			same = same && found && old.From.Equal(p.From) && old.Exp.Equal(p.Exp)
			rest.plain = slices.DeleteFunc(rest.plain, func(q PlainKey) bool { return q.KID == p.KID })
		}
		if same {
			return k, nil
		}
		return rest.with(now, given...)
	})
	if err != nil {
		return nil, err
	}
	return fresh, nil
}

type plainForm struct {
	KID  string    `json:"kid"`
	Enc  string    `json:"enc"`
	K    base64URL `json:"k"`
	From time.Time `json:"from,omitzero"`
	Exp  time.Time `json:"exp,omitzero"`
}

// base64URL is written as RFC 7518 §6.4.1 writes "k".
type base64URL []byte

// MarshalText implements [encoding.TextMarshaler].
func (b base64URL) MarshalText() ([]byte, error) {
	return base64.RawURLEncoding.AppendEncode(nil, b), nil
}

// UnmarshalText implements [encoding.TextUnmarshaler].
func (b *base64URL) UnmarshalText(text []byte) (err error) {
	*b, err = base64.RawURLEncoding.Strict().AppendDecode(nil, text)
	return err
}
