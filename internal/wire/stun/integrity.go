package stun

import (
	"crypto/sha1"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"hash"
	"hash/crc32"
)

const (
	sha1Size   = 20
	sha256Size = 32
	hmacBlock  = 64 // of both hashes

	fingerprintXOR = 0x5354554e // RFC 8489 §14.7
)

// Hasher computes message integrity. It keeps its digests and scratch space between calls, so that
// no call allocates; it serves one goroutine at a time. Make it with [NewHasher].
type Hasher struct {
	sha1, sha256 hash.Hash
	key          [hmacBlock]byte
	head         [4]byte
	sum          [sha256Size]byte
}

// NewHasher returns a Hasher, about 600 bytes.
func NewHasher() *Hasher {
	return &Hasher{sha1: sha1.New(), sha256: sha256.New()}
}

// mac leaves in h.sum the HMAC (RFC 2104) of the message's first end bytes under key, with a length
// field that says the message ends size bytes after end (RFC 8489 §14.5). Padding is hashed as it
// was received.
func (h *Hasher) mac(d hash.Hash, key, msg []byte, end, size int) []byte {
	if len(key) > hmacBlock {
		d.Reset()
		d.Write(key)
		key = d.Sum(h.sum[:0])
	}
	clear(h.key[:])
	copy(h.key[:], key)
	for i := range h.key {
		h.key[i] ^= 0x36
	}
	copy(h.head[:], msg)
	binary.BigEndian.PutUint16(h.head[2:], uint16(end+4+size-HeaderSize))
	d.Reset()
	d.Write(h.key[:])
	d.Write(h.head[:])
	d.Write(msg[4:end])
	inner := d.Sum(h.sum[:0])
	for i := range h.key {
		h.key[i] ^= 0x36 ^ 0x5c
	}
	d.Reset()
	d.Write(h.key[:])
	d.Write(inner)
	sum := d.Sum(h.sum[:0])
	clear(h.key[:])
	return sum
}

// AppendIntegrity appends MESSAGE-INTEGRITY, HMAC-SHA1 under key.
func (h *Hasher) AppendIntegrity(m, key []byte) []byte {
	sum := h.mac(h.sha1, key, m, len(m), sha1Size)
	return AppendAttr(m, AttrMessageIntegrity, sum)
}

// AppendIntegritySHA256 appends MESSAGE-INTEGRITY-SHA256 of 32 bytes, HMAC-SHA256 under key.
func (h *Hasher) AppendIntegritySHA256(m, key []byte) []byte {
	sum := h.mac(h.sha256, key, m, len(m), sha256Size)
	return AppendAttr(m, AttrMessageIntegritySHA256, sum)
}

// CheckIntegrity reports, in constant time, whether m carries MESSAGE-INTEGRITY and it was made
// under key.
func (h *Hasher) CheckIntegrity(m Message, key []byte) bool {
	if m.mi == 0 {
		return false
	}
	return subtle.ConstantTimeCompare(h.mac(h.sha1, key, m.raw, m.mi, sha1Size), m.raw[m.mi+4:m.mi+4+sha1Size]) == 1
}

// CheckIntegritySHA256 is [Hasher.CheckIntegrity] for MESSAGE-INTEGRITY-SHA256.
func (h *Hasher) CheckIntegritySHA256(m Message, key []byte) bool {
	if m.mi256 == 0 {
		return false
	}
	return subtle.ConstantTimeCompare(h.mac(h.sha256, key, m.raw, m.mi256, sha256Size), m.raw[m.mi256+4:m.mi256+4+sha256Size]) == 1
}

// AppendFingerprint appends FINGERPRINT, the last attribute of a message.
func AppendFingerprint(m []byte) []byte {
	m = AppendUint32(m, AttrFingerprint, 0) // the length is hashed with the attribute in it
	binary.BigEndian.PutUint32(m[len(m)-4:], crc32.ChecksumIEEE(m[:len(m)-8])^fingerprintXOR)
	return m
}

// FingerprintOK reports whether m carries FINGERPRINT with the right value.
func (m Message) FingerprintOK() bool {
	return m.fp != 0 && binary.BigEndian.Uint32(m.raw[m.fp+4:]) == crc32.ChecksumIEEE(m.raw[:m.fp])^fingerprintXOR
}
