package token

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"wicgate/internal/secret"
)

// The ephemeral credential is derived by whoever shares a secret with the TURN server: TR 33.872
// §6.3.3 approach 1, in the shape of draft-uberti-behave-turn-rest that coturn's use-auth-secret takes,
//
//	USERNAME = <expiry, Unix seconds>:<pseudonym>      password = base64(HMAC-SHA1(secret, USERNAME))
//	USERNAME = <expiry, Unix seconds>:s2.<pseudonym>   password = base64(HMAC-SHA256(secret, USERNAME))
//
// HMAC-SHA1 is what is in the wild; its weakness in collisions is none here. The second form is ours,
// for those whose rules have no SHA-1. The version stands in the USERNAME, so one credential has one
// MAC and neither can be passed off as the other; a foreign user whose own name begins with s2. cannot
// be served by the first.

// sha256Prefix begins the user part of a credential by HMAC-SHA256.
const sha256Prefix = "s2."

// MaxAhead is how far ahead the expiry of an ephemeral credential may lie.
const MaxAhead = 48 * time.Hour

// ErrEphemeral means that a USERNAME begins as an ephemeral credential's, but is none.
var ErrEphemeral = errors.New("token: malformed ephemeral USERNAME")

// EphemeralUsername returns the USERNAME of a credential of pseudonym that is good until expiry.
func EphemeralUsername(expiry time.Time, pseudonym string) string {
	return strconv.FormatInt(expiry.Unix(), 10) + ":" + pseudonym
}

// EphemeralUsernameSHA256 returns the USERNAME of a credential by HMAC-SHA256.
func EphemeralUsernameSHA256(expiry time.Time, pseudonym string) string {
	return EphemeralUsername(expiry, sha256Prefix+pseudonym)
}

// EphemeralPassword returns the password that belongs to username under the shared secret sec: 28
// characters, or 44 by HMAC-SHA256.
func EphemeralPassword(sec secret.Bytes, username string) secret.Bytes {
	hash := sha1.New
	if _, user, _ := strings.Cut(username, ":"); strings.HasPrefix(user, sha256Prefix) {
		hash = sha256.New
	}
	h := hmac.New(hash, sec.Expose())
	h.Write([]byte(username)) // a hash never fails to write
	return secret.New(base64.StdEncoding.AppendEncode(nil, h.Sum(nil)))
}

// ParseEphemeral takes apart what EphemeralUsername or EphemeralUsernameSHA256 made. ok is false when
// username does not begin with digits and a colon. The pseudonym is without the version: it is the same
// person. With it the user part is 1 to 128 bytes of printable ASCII, and the digits have
// no leading zero: one credential is one USERNAME.
func ParseEphemeral(username []byte) (expiry time.Time, pseudonym string, ok bool, err error) {
	digits, rest, found := bytes.Cut(username, []byte{':'})
	if !found || len(digits) == 0 || len(bytes.Trim(digits, "0123456789")) > 0 {
		return time.Time{}, "", false, nil
	}
	n, err := strconv.ParseInt(string(digits), 10, 64)
	if err != nil || digits[0] == '0' || n > 1<<40 {
		return time.Time{}, "", true, fmt.Errorf("%w: expiry", ErrEphemeral)
	}
	if len(rest) == 0 || len(rest) > 128 || bytes.ContainsFunc(rest, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return time.Time{}, "", true, fmt.Errorf("%w: pseudonym", ErrEphemeral)
	}
	rest = bytes.TrimPrefix(rest, []byte(sha256Prefix))
	if len(rest) == 0 {
		return time.Time{}, "", true, fmt.Errorf("%w: no pseudonym after %s", ErrEphemeral, sha256Prefix)
	}
	return time.Unix(n, 0), string(rest), true, nil
}
