// Package token seals and opens the self-contained TURN token of RFC 7635 §6.2, and gives it the
// shape in which unmodified browsers can carry it.
//
//	AEAD (A256GCM, A128GCM)                    CBC (A256CBC-HS512, draft13-A256CBC-HS256)
//	+-----------------------------------+      +-----------------------------------------+
//	| uint16 nonce_length = 12 | nonce  |      | S: AES-256-CBC, PKCS #7, IV = 0 of block |
//	| block, sealed under K, with tag   |      | T: HMAC over server name and S, 32 bytes |
//	+-----------------------------------+      +-----------------------------------------+
//	block = uint16 key_length (20 or 32) | mac_key | uint64 timestamp | uint32 lifetime
//
// The associated data of AEAD is the TURN server name. An AEAD token with a 20-byte mac_key has 64
// bytes, with a 32-byte one 76; a CBC token has 80 with either. There are no other lengths. See
// cbc.go for what the texts leave open about CBC, and how it is read here.
//
// The package is pure: no clock, no state, no log. Which key belongs to a kid is the business of
// internal/keyring.
package token

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"wicgate/internal/secret"
)

// Format is how a token is sealed (RFC 7635 §6.2). It is bound to the kid when the key is
// provisioned and never taken from the wire.
type Format uint8

const (
	// A256GCM is AES-256-GCM (RFC 7518 §5.3), which every server must support. K has 32 bytes.
	A256GCM Format = iota + 1
	// A128GCM is AES-128-GCM. K has 16 bytes, or 32 of which the first 16 are used: the text does
	// not say so, the second sample of RFC 7635 appendix A does.
	A128GCM
	// A256CBCHS512 is AES-256-CBC with HMAC-SHA-512 (RFC 7518 §5.2.5), the second of RFC 7635. K has
	// 64 bytes: AUTH, then AS-RS.
	A256CBCHS512
	// Draft13 is the encrypt-then-MAC of TR 33.872 §6.3.2, which follows draft 13 of RFC 7635. K has 32
	// bytes. No text with its bytes is to be had: the reading is ours, and so is the name.
	Draft13
)

var formats = map[Format]struct {
	enc  string
	size int // of K, in bytes
}{
	A256GCM: {"A256GCM", 32}, A128GCM: {"A128GCM", 16}, A256CBCHS512: {"A256CBC-HS512", 64}, Draft13: {"draft13-A256CBC-HS256", 32},
}

// String returns the "enc" name of RFC 7518 §5.1, or our own for Draft13.
func (f Format) String() string {
	if k, ok := formats[f]; ok {
		return k.enc
	}
	return fmt.Sprintf("Format(%d)", uint8(f))
}

// ParseFormat reads an "enc" name. ok is false for every other text.
func ParseFormat(enc string) (f Format, ok bool) {
	for f, k := range formats {
		if k.enc == enc {
			return f, true
		}
	}
	return 0, false
}

// Formats are all there are, in words.
const Formats = "A256GCM, A128GCM, A256CBC-HS512 or draft13-A256CBC-HS256"

// KeySize is how many bytes K has: 32, 16, 64, 32; 0 for no format.
func (f Format) KeySize() int { return formats[f].size }

// Fits says whether a K of n bytes can be used. A128GCM also takes 32.
func (f Format) Fits(n int) bool {
	return n > 0 && (n == f.KeySize() || f == A128GCM && n == 32)
}

const (
	// Delta is the clock difference and network delay that Check forgives (RFC 7635 §9).
	Delta = 5 * time.Second
	// MaxLifetime is the longest life that Seal writes and Open accepts. RFC 7635 sets no limit.
	MaxLifetime = 24 * time.Hour
	// MaxServer bounds a server name in bytes; STUN's own texts are bounded alike.
	MaxServer = 763

	nonceSize = 12 // RFC 5116 §5.1, N_MAX of AEAD_AES_*_GCM; we take no other
	tagSize   = 16
	fixedSize = 2 + 8 + 4 // key_length, timestamp, lifetime

	shortKey = 20 // HMAC-SHA1, must be supported
	longKey  = 32 // HMAC-SHA-256
)

var (
	// ErrMalformed: the bytes cannot be a token, or what was sealed in them cannot be a payload.
	ErrMalformed = errors.New("token: malformed")
	// ErrSealed: the tag does not match. Another key, another server name, or altered bytes:
	// these cannot be told apart.
	ErrSealed = errors.New("token: not sealed with this key for this server")
	// ErrKey: the key does not fit the format, a mistake of the caller and not of the peer.
	ErrKey = errors.New("token: unusable key")
	// ErrPayload: Seal was asked to write what Open would refuse.
	ErrPayload = errors.New("token: unusable payload")
	// ErrExpired: the life of the token has passed.
	ErrExpired = errors.New("token: expired")
	// ErrFuture: the token is dated more than Delta after now.
	ErrFuture = errors.New("token: dated in the future")
)

// Payload is what a token seals.
type Payload struct {
	// MACKey is the key of MESSAGE-INTEGRITY, 20 or 32 bytes.
	MACKey secret.Bytes
	// Timestamp is the instant of issue.
	Timestamp Timestamp
	// Lifetime counts from Timestamp: whole seconds, 1 s to [MaxLifetime].
	Lifetime time.Duration
}

// NewMACKey returns 16 random bytes followed by 4 zero bytes. RFC 7635 wants 20 bytes; coturn, as
// server and as client, uses the first 16 of them only. HMAC pads a key with zeros, so of this key
// both readings make the same MAC, at the price of 32 of 160 bits.
func NewMACKey() secret.Bytes {
	var k [shortKey]byte
	rand.Read(k[:16]) // never fails: it ends the program instead
	return secret.New(k[:])
}

// Seal returns the token of p for the TURN server named server, under key. The nonce is random, so
// a key should be replaced well before it has sealed 2^32 tokens. The CBC formats have no nonce: their
// IV is zero, and it is the mac_key that must be fresh.
// It returns ErrKey or ErrPayload, wrapped with the cause.
func Seal(f Format, key secret.Bytes, server string, p Payload) ([]byte, error) {
	var nonce [nonceSize]byte
	rand.Read(nonce[:]) // never fails
	return sealNonce(f, key, server, p, nonce)
}

// sealNonce is Seal with the nonce given, for vectors.
func sealNonce(f Format, key secret.Bytes, server string, p Payload, nonce [nonceSize]byte) ([]byte, error) {
	if !f.Fits(len(key.Expose())) {
		return nil, fmt.Errorf("%w: %v with %d bytes", ErrKey, f, len(key.Expose()))
	}
	mac := p.MACKey.Expose()
	switch {
	case server == "" || len(server) > MaxServer:
		return nil, fmt.Errorf("%w: server name of %d bytes, want 1 to %d", ErrPayload, len(server), MaxServer)
	case len(mac) != shortKey && len(mac) != longKey:
		return nil, fmt.Errorf("%w: mac_key of %d bytes, want %d or %d", ErrPayload, len(mac), shortKey, longKey)
	case !p.Timestamp.Valid():
		return nil, fmt.Errorf("%w: timestamp %#x has a fraction of 64000 or more", ErrPayload, uint64(p.Timestamp))
	case p.Lifetime < time.Second || p.Lifetime > MaxLifetime || p.Lifetime%time.Second != 0:
		return nil, fmt.Errorf("%w: lifetime %v, want whole seconds from 1s to %v", ErrPayload, p.Lifetime, MaxLifetime)
	}
	plain := make([]byte, 0, fixedSize+longKey)
	plain = binary.BigEndian.AppendUint16(plain, uint16(len(mac)))
	plain = append(plain, mac...)
	plain = binary.BigEndian.AppendUint64(plain, uint64(p.Timestamp))
	plain = binary.BigEndian.AppendUint32(plain, uint32(p.Lifetime/time.Second))

	if f == A256CBCHS512 || f == Draft13 {
		return f.sealCBC(key, server, plain)
	}
	aead, err := f.aead(key)
	if err != nil {
		return nil, err
	}
	out := make([]byte, 0, 2+nonceSize+len(plain)+tagSize)
	out = binary.BigEndian.AppendUint16(out, nonceSize)
	out = append(out, nonce[:]...)
	return aead.Seal(out, nonce[:], plain, []byte(server)), nil
}

// Open returns what tok seals. It takes exactly the lengths that exist, a nonce of 12 bytes and no
// trailing bytes, also not inside the seal. It does not look at the time: see [Payload.Check].
//
// Errors are ErrMalformed and ErrSealed from the peer's doing, ErrKey from the caller's. Of an AEAD
// token it makes 6 allocations (the AES schedule, its GCM, the associated data, the payload, the
// secret and its closure), none of them before the length and the nonce length have been checked.
func Open(f Format, key secret.Bytes, server string, tok []byte) (Payload, error) {
	plain, err := f.open(key, server, tok)
	if err != nil {
		return Payload{}, err
	}
	if len(plain) < fixedSize {
		return Payload{}, ErrMalformed
	}
	keyLen := int(binary.BigEndian.Uint16(plain))
	if keyLen != len(plain)-fixedSize || keyLen != shortKey && keyLen != longKey {
		return Payload{}, ErrMalformed
	}
	rest := plain[2+keyLen:]
	ts := Timestamp(binary.BigEndian.Uint64(rest))
	life := binary.BigEndian.Uint32(rest[8:])
	if !ts.Valid() || life == 0 || life > uint32(MaxLifetime/time.Second) {
		return Payload{}, ErrMalformed
	}
	return Payload{
		MACKey:    secret.New(plain[2 : 2+keyLen]),
		Timestamp: ts,
		Lifetime:  time.Duration(life) * time.Second,
	}, nil
}

// open returns the block.
func (f Format) open(key secret.Bytes, server string, tok []byte) ([]byte, error) {
	if f == A256CBCHS512 || f == Draft13 {
		return f.openCBC(key, server, tok)
	}
	const overhead = 2 + nonceSize + fixedSize + tagSize
	if len(tok) != overhead+shortKey && len(tok) != overhead+longKey {
		return nil, ErrMalformed
	}
	if binary.BigEndian.Uint16(tok) != nonceSize {
		return nil, ErrMalformed
	}
	aead, err := f.aead(key)
	if err != nil {
		return nil, err
	}
	nonce, sealed := tok[2:2+nonceSize], tok[2+nonceSize:]
	plain, err := aead.Open(make([]byte, 0, fixedSize+longKey), nonce, sealed, []byte(server))
	if err != nil {
		return nil, ErrSealed
	}
	return plain, nil
}

// aead returns the cipher of an AEAD format under key.
func (f Format) aead(key secret.Bytes) (cipher.AEAD, error) {
	k := key.Expose()
	if !f.Fits(len(k)) {
		return nil, fmt.Errorf("%w: %v with %d bytes", ErrKey, f, len(k))
	}
	k = k[:f.KeySize()]
	block, err := aes.NewCipher(k)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKey, err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKey, err)
	}
	return aead, nil
}

// Check says whether the token is good at the instant now, and for how long from then on
// (RFC 7635 §4.1.1): lifetime + Delta > abs(now - timestamp), and left is the difference, the most
// that an allocation's lifetime may be. We are stricter in one point: the clause lets a token dated
// up to its lifetime in the future live twice as long; here one dated after now + Delta is refused.
func (p Payload) Check(now time.Time) (left time.Duration, err error) {
	age := now.Sub(p.Timestamp.Time())
	if age < -Delta {
		return 0, fmt.Errorf("%w: %v, now %v; compare the clocks of WAF and TURN server", ErrFuture,
			p.Timestamp.Time().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	left = p.Lifetime + Delta - max(age, -age)
	if left <= 0 {
		return 0, fmt.Errorf("%w %v ago", ErrExpired, age-p.Lifetime)
	}
	return left, nil
}

// Timestamp is an instant as RFC 7635 §6.2 writes it: whole seconds since 1970-01-01 UTC in the
// high 48 bits, units of 1/64000 s in the low 16. Low parts from 64000 up are malformed.
type Timestamp uint64

const perSecond = 64000

// NewTimestamp returns t, rounded down to 1/64000 s. Instants before 1970 become the zero Timestamp,
// those past the 48 bits the last one.
func NewTimestamp(t time.Time) Timestamp {
	sec := t.Unix()
	switch {
	case sec < 0:
		return 0
	case sec >= 1<<48:
		return (1<<48-1)<<16 | (perSecond - 1)
	}
	return Timestamp(uint64(sec)<<16 | uint64(t.Nanosecond())*perSecond/uint64(time.Second))
}

// Valid reports whether the fraction is below one second.
func (t Timestamp) Valid() bool { return t&0xffff < perSecond }

// Time returns the instant, in UTC.
func (t Timestamp) Time() time.Time {
	// 1/64000 s is 15625 ns exactly.
	return time.Unix(int64(t>>16), int64(t&0xffff)*(int64(time.Second)/perSecond)).UTC()
}
