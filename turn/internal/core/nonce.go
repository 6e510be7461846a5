package core

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"time"

	"wicgate/internal/secret"
	"wicgate/internal/wire/stun"
)

// A nonce is stateless and bound to the client's address:
//
//	base64url( uint32 seconds since 1970 | HMAC-SHA256(secret, label | seconds | transport | ip, 16 bytes | port | cookie)[:8] )
//
// 16 characters. Every node that shares the nonce secrets takes it, also after a restart. Before it
// stands the nonce cookie of RFC 8489 §9.2, 13 characters, where there are static users, for whom its
// features are; elsewhere it would only lengthen each 401. What 64 bits of MAC protect is that a reply
// goes where packets can return from, and the cookie; guessing takes 2^63 requests within an hour.

const (
	// NonceLife is how long a nonce is valid (RFC 8656 §5: at most an hour). 438 on Allocate is
	// fatal in browsers, so it is not shorter.
	NonceLife = time.Hour
	// nonceSkew is how far ahead a sibling's clock may be.
	nonceSkew = 30 * time.Second

	nonceLen   = 16
	nonceMAC   = 8
	nonceLabel = "wicgate nonce v1\x00"
)

// makeNonce appends a nonce for t that announces f, under the newest secret.
func (c *Core) makeNonce(dst []byte, now time.Time, t Tuple, f stun.Features) []byte {
	var raw [4 + nonceMAC]byte
	binary.BigEndian.PutUint32(raw[:], uint32(now.Unix()))
	var cookie []byte
	if f != 0 {
		dst = stun.AppendCookie(dst, f)
		cookie = dst[len(dst)-stun.CookieSize:]
	}
	if s := c.cfg.Keys.NonceSecrets(); len(s) > 0 {
		mac := sealNonce(s[0], raw[:4], t, cookie)
		copy(raw[4:], mac[:nonceMAC])
	}
	return base64.RawURLEncoding.AppendEncode(dst, raw[:])
}

// checkNonce reports whether one of the siblings made nonce for t within the last hour, and what it
// announced by it.
func (c *Core) checkNonce(nonce []byte, now time.Time, t Tuple) (f stun.Features, ok bool) {
	var cookie []byte
	if len(nonce) == stun.CookieSize+nonceLen {
		if f, ok = stun.ParseCookie(nonce); !ok {
			return 0, false
		}
		cookie, nonce = nonce[:stun.CookieSize], nonce[stun.CookieSize:]
	}
	var raw [4 + nonceMAC]byte
	if len(nonce) != nonceLen {
		return 0, false
	}
	if n, err := base64.RawURLEncoding.Strict().Decode(raw[:], nonce); err != nil || n != len(raw) {
		return 0, false
	}
	made := time.Unix(int64(binary.BigEndian.Uint32(raw[:])), 0)
	if age := now.Sub(made); age > NonceLife || age < -nonceSkew {
		return 0, false
	}
	for _, s := range c.cfg.Keys.NonceSecrets() {
		mac := sealNonce(s, raw[:4], t, cookie)
		if subtle.ConstantTimeCompare(mac[:nonceMAC], raw[4:]) == 1 {
			return f, true
		}
	}
	return 0, false
}

func sealNonce(s secret.Bytes, stamp []byte, t Tuple, cookie []byte) [sha256.Size]byte {
	h := hmac.New(sha256.New, s.Expose())
	var in [4 + 1 + 16 + 2]byte
	copy(in[:4], stamp)
	in[4] = t.Transport
	ip := t.Client.Addr().As16()
	copy(in[5:], ip[:])
	binary.BigEndian.PutUint16(in[21:], t.Client.Port())
	h.Write([]byte(nonceLabel)) // a hash never fails to write
	h.Write(in[:])
	h.Write(cookie)
	return [sha256.Size]byte(h.Sum(nil))
}
