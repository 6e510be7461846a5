package stun

import (
	"crypto/md5"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
)

// Algorithm makes the key of the long-term credential mechanism from a password (RFC 8489 §18.5).
type Algorithm uint16

// The registered algorithms. None takes parameters.
const (
	MD5    Algorithm = 0x0001
	SHA256 Algorithm = 0x0002
)

// AppendPasswordAlgorithms appends PASSWORD-ALGORITHMS, first the one that is liked best (RFC 8489
// §14.11).
func AppendPasswordAlgorithms(m []byte, list ...Algorithm) []byte {
	m = appendAttrHeader(m, AttrPasswordAlgorithms, 4*len(list))
	for _, a := range list {
		m = binary.BigEndian.AppendUint16(m, uint16(a))
		m = append(m, 0, 0) // length of the parameters
	}
	setLength(m)
	return m
}

// AppendPasswordAlgorithm appends PASSWORD-ALGORITHM (RFC 8489 §14.12).
func AppendPasswordAlgorithm(m []byte, a Algorithm) []byte {
	return AppendUint32(m, AttrPasswordAlgorithm, uint32(a)<<16)
}

// ParsePasswordAlgorithm reads PASSWORD-ALGORITHM. An algorithm with parameters is none that is
// registered, and so [ErrValue].
func ParsePasswordAlgorithm(v []byte) (Algorithm, error) {
	if len(v) != 4 || v[2] != 0 || v[3] != 0 {
		return 0, ErrValue
	}
	return Algorithm(binary.BigEndian.Uint16(v)), nil
}

// Key returns the key of the long-term credential mechanism (RFC 8489 §9.2.2): the digest of
// username ":" realm ":" password, 16 bytes by MD5, 32 by SHA-256. The three are taken as bytes:
// ours are ASCII, for which the OpaqueString profile is the identity.
func (a Algorithm) Key(username, realm, password []byte) []byte {
	b := joined(username, realm, password)
	defer clear(b)
	if a == SHA256 {
		key := sha256.Sum256(b)
		return key[:]
	}
	key := md5.Sum(b)
	return key[:]
}

// Userhash returns the value of USERHASH (RFC 8489 §14.4): SHA-256 of username ":" realm.
func Userhash(username, realm []byte) [sha256.Size]byte {
	return sha256.Sum256(joined(username, realm))
}

func joined(parts ...[]byte) []byte {
	n := len(parts)
	for _, p := range parts {
		n += len(p)
	}
	b := make([]byte, 0, n) // grown, it would leave copies of the password
	for i, p := range parts {
		if i > 0 {
			b = append(b, ':')
		}
		b = append(b, p...)
	}
	return b
}

// Features are the bits that a nonce cookie announces (RFC 8489 §9.2, §18.1), 24 of them.
type Features uint32

// The features. Bit 0 is the most significant of the first byte, as §9.2 says; the vector of appendix
// B.1 has it at the other end.
const (
	PasswordAlgorithms Features = 1 << 23
	UsernameAnonymity  Features = 1 << 22
)

// CookieSize is the length of a nonce cookie in bytes.
const CookieSize = len(cookie) + 4

const cookie = "obMatJos2"

// AppendCookie appends the nonce cookie that announces f: the beginning of a nonce.
func AppendCookie(dst []byte, f Features) []byte {
	dst = append(dst, cookie...)
	return base64.StdEncoding.AppendEncode(dst, []byte{byte(f >> 16), byte(f >> 8), byte(f)})
}

// ParseCookie returns what nonce announces; ok is false if it does not begin with a nonce cookie.
func ParseCookie(nonce []byte) (f Features, ok bool) {
	if len(nonce) < CookieSize || string(nonce[:len(cookie)]) != cookie {
		return 0, false
	}
	var bits [3]byte
	if _, err := base64.StdEncoding.Decode(bits[:], nonce[len(cookie):CookieSize]); err != nil {
		return 0, false
	}
	return Features(bits[0])<<16 | Features(bits[1])<<8 | Features(bits[2]), true
}
