package token

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"

	"wicgate/internal/secret"
)

// Browsers know no ACCESS-TOKEN: the W3C removed it. They carry the same token in USERNAME,
//
//	o1.<kid>.<base64url of the token, without padding>
//
// and authenticate by the ordinary long-term mechanism (RFC 8489 §9.2) with the password that
// Credential derives from the mac_key.
const usernamePrefix = "o1."

// MaxUsername is the longest USERNAME in bytes (RFC 8489 §14.3: fewer than 509).
const MaxUsername = 508

// credentialLabel keeps the password apart from the mac_key: who learns the one does not hold
// the other.
const credentialLabel = "wicgate turn credential"

// ErrUsername means that a USERNAME begins as a token's, but is none.
var ErrUsername = errors.New("token: malformed USERNAME")

// AppendUsername appends the USERNAME that carries tok. kid is what the keyring gave for sealing.
func AppendUsername(dst []byte, kid string, tok []byte) []byte {
	dst = append(dst, usernamePrefix...)
	dst = append(dst, kid...)
	dst = append(dst, '.')
	return base64.RawURLEncoding.AppendEncode(dst, tok)
}

// ParseUsername takes apart what AppendUsername made. ok is false when username does not begin as
// one of ours and so may be meant for another mechanism; err is ErrUsername when it does, and is wrong.
//
// A token has exactly one USERNAME: padding, line breaks and non-zero trailing bits are refused.
// Otherwise one token could appear as many users. kid has one or two parts of the base64url
// alphabet, separated by a dot. tok is fresh memory.
func ParseUsername(username []byte) (kid string, tok []byte, ok bool, err error) {
	rest, ok := bytes.CutPrefix(username, []byte(usernamePrefix))
	if !ok {
		return "", nil, false, nil
	}
	if len(username) > MaxUsername {
		return "", nil, true, fmt.Errorf("%w: %d bytes, at most %d", ErrUsername, len(username), MaxUsername)
	}
	dot := bytes.LastIndexByte(rest, '.')
	if dot < 0 {
		return "", nil, true, fmt.Errorf("%w: no kid", ErrUsername)
	}
	kidBytes, text := rest[:dot], rest[dot+1:]
	first, second, two := bytes.Cut(kidBytes, []byte{'.'})
	if !isBase64URL(first) || two && !isBase64URL(second) {
		return "", nil, true, fmt.Errorf("%w: bad kid", ErrUsername)
	}
	// The decoder skips line breaks, so the alphabet is checked here; Strict refuses trailing bits.
	if !isBase64URL(text) {
		return "", nil, true, fmt.Errorf("%w: not base64url", ErrUsername)
	}
	tok, err = base64.RawURLEncoding.Strict().AppendDecode(nil, text)
	if err != nil {
		return "", nil, true, fmt.Errorf("%w: base64url is not canonical", ErrUsername)
	}
	return string(kidBytes), tok, true, nil
}

// isBase64URL reports whether b is not empty and all of the alphabet of RFC 4648 §5, unpadded.
func isBase64URL(b []byte) bool {
	for _, c := range b {
		switch {
		case 'A' <= c && c <= 'Z', 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-', c == '_':
		default:
			return false
		}
	}
	return len(b) > 0
}

// Credential returns the password that belongs to the USERNAME shape of a token:
// base64url(HMAC-SHA256(mac_key, "wicgate turn credential")), 43 characters.
func Credential(macKey secret.Bytes) secret.Bytes {
	h := hmac.New(sha256.New, macKey.Expose())
	h.Write([]byte(credentialLabel)) // a hash never fails to write
	return secret.New(base64.RawURLEncoding.AppendEncode(nil, h.Sum(nil)))
}
