package keyring

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"sync/atomic"
	"unicode/utf8"

	"wicgate/internal/secret"
	"wicgate/internal/wire/stun"
)

// A file of static users holds one a line, for its owner alone (0600):
//
//	<key by MD5, 32 hexadecimal digits, or -> <key by SHA-256, 64 digits, or -> <username, to the line's end>
//
// A key is the digest of username ":" realm ":" password (RFC 8489 §9.2.2): no password is on the
// disk, but who reads a key can act as its user in that realm. Empty lines and those that begin with #
// do not count.

const (
	maxUsers     = 1_000_000
	maxUsersFile = 256 << 20
	maxUsername  = 508 // bytes (RFC 8489 §14.3)
)

// Users are the static users of one TURN server name. They may be asked from several goroutines.
type Users struct {
	path, realm string
	users       atomic.Pointer[users]
}

type users struct {
	keys   map[string]userKeys
	hashes map[[sha256.Size]byte]string // by USERHASH
	sha256 bool
}

type userKeys struct{ md5, sha256 secret.Bytes }

// OpenUsers reads the users of realm from path. A file that others than its owner may read or write is
// refused, and one with a line that cannot be understood, whole.
func OpenUsers(path, realm string) (*Users, error) {
	u := &Users{path: path, realm: realm}
	return u, u.Reload()
}

// Reload reads the file again. On an error the users stay as they are.
func (u *Users) Reload() error {
	b, err := readPrivate(u.path, maxUsersFile)
	if err != nil {
		return fmt.Errorf("keyring: TURN users: %w", err)
	}
	next, err := parseUsers(b, u.realm)
	if err != nil {
		return fmt.Errorf("keyring: TURN users: %s:%w\n  hint: \"wicgate turn user NAME\" prints such a line", u.path, err)
	}
	u.users.Store(next)
	return nil
}

func parseUsers(b []byte, realm string) (*users, error) {
	u := &users{keys: map[string]userKeys{}, hashes: map[[sha256.Size]byte]string{}, sha256: true}
	lines := bufio.NewScanner(bytes.NewReader(b))
	for n := 1; lines.Scan(); n++ {
		line := bytes.TrimRight(lines.Bytes(), "\r")
		if len(bytes.TrimSpace(line)) == 0 || line[0] == '#' {
			continue
		}
		md5Hex, rest, ok := bytes.Cut(line, []byte{' '})
		shaHex, name, ok2 := bytes.Cut(rest, []byte{' '})
		if !ok || !ok2 || len(name) == 0 || len(name) > maxUsername || !utf8.Valid(name) {
			return nil, fmt.Errorf("%d: want a key by MD5 or -, a key by SHA-256 or -, and a username of 1 to %d bytes", n, maxUsername)
		}
		var k userKeys
		var err1, err2 error
		k.md5, err1 = parseKey(md5Hex, 16)
		k.sha256, err2 = parseKey(shaHex, 32)
		if err := errors.Join(err1, err2); err != nil {
			return nil, fmt.Errorf("%d: %w", n, err)
		}
		switch {
		case k.md5.IsZero() && k.sha256.IsZero():
			return nil, fmt.Errorf("%d: a user without a key", n)
		case !u.keys[string(name)].md5.IsZero() || !u.keys[string(name)].sha256.IsZero():
			return nil, fmt.Errorf("%d: user %q is there twice", n, name)
		case len(u.keys) == maxUsers:
			return nil, fmt.Errorf("%d: more than %d users", n, maxUsers)
		}
		u.keys[string(name)] = k
		u.hashes[stun.Userhash(name, []byte(realm))] = string(name)
		u.sha256 = u.sha256 && !k.sha256.IsZero()
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf(" %w", err)
	}
	return u, nil
}

// parseKey reads a key of size bytes; - is none.
func parseKey(digits []byte, size int) (secret.Bytes, error) {
	if string(digits) == "-" {
		return secret.Bytes{}, nil
	}
	key, err := hex.AppendDecode(nil, digits)
	if err != nil || len(key) != size {
		return secret.Bytes{}, fmt.Errorf("a key of %d characters, want %d hexadecimal digits or -", len(digits), 2*size)
	}
	return secret.New(key), nil
}

// Key returns the key of username made with alg. A user who has only one of the two has none of the other.
func (u *Users) Key(username string, alg stun.Algorithm) (secret.Bytes, bool) {
	k := u.users.Load().keys[username]
	key := k.md5
	if alg == stun.SHA256 {
		key = k.sha256
	}
	return key, !key.IsZero()
}

// Userhash returns whose USERHASH h is (RFC 8489 §14.4).
func (u *Users) Userhash(h [sha256.Size]byte) (username string, ok bool) {
	username, ok = u.users.Load().hashes[h]
	return username, ok
}

// SHA256 reports whether each user has a key by SHA-256, so that it can be offered to all: a client
// that is offered it uses nothing else (RFC 8656 §6).
func (u *Users) SHA256() bool {
	now := u.users.Load()
	return now.sha256 && len(now.keys) > 0
}

// Len returns how many users there are.
func (u *Users) Len() int { return len(u.users.Load().keys) }

// AppendUser appends the line of a user of realm with the given password.
func AppendUser(dst []byte, username, realm string, password secret.Bytes) ([]byte, error) {
	if username == "" || len(username) > maxUsername || !utf8.ValidString(username) || bytes.ContainsAny([]byte(username), "\r\n") {
		return dst, fmt.Errorf("keyring: username %q: want 1 to %d bytes of text on one line", username, maxUsername)
	}
	if password.IsZero() {
		return dst, fmt.Errorf("keyring: user %q: the password is empty", username)
	}
	for _, alg := range []stun.Algorithm{stun.MD5, stun.SHA256} {
		dst = hex.AppendEncode(dst, alg.Key([]byte(username), []byte(realm), password.Expose()))
		dst = append(dst, ' ')
	}
	return append(append(dst, username...), '\n'), nil
}
