// Package pushed carries credentials that the eP-CSCF makes at random to the TURN servers (TR 33.872
// §6.3.3, approach 2), so that a WIC can use one as soon as it has it.
//
//	Issuer.Push ─── bus, flushed ──────────► Book, bounded, in memory ◄── Get, by the TURN server
//	      └─ queue ── Issuer.Serve ── store ──┘ at the start, and for a username that it does not know
//
// The bus loses what it cannot deliver, so a credential is stored too, until it ends; nothing that a
// client waits for waits for the store. On the bus and in the store a credential is sealed under a secret
// that edge and TURN servers share.
package pushed

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"wicgate/internal/secret"
)

const (
	bucket  = "pushed-credentials" // by username
	subject = "wicgate.pushed.credential"
	version = 1

	// prefix tells a pushed username from a token's (o1.), an ephemeral one (digits and a colon), and
	// from later versions of itself.
	prefix      = "p1."
	randomName  = 16 // bytes
	usernameLen = len(prefix) + 22
	randomPass  = 24 // bytes; 32 characters

	// label begins the info of the key derivation, as that of the keys of tokens begins with its own.
	label = "wicgate pushed credential"

	maxText = 128                // bytes of a pseudonym
	maxLife = 25 * time.Hour     // of a credential: a day, and clocks that differ
	maxSeal = 1024               // bytes of a sealed credential
	minSeal = sealNonce + 16 + 2 // nonce, tag, {}

	sealNonce = 12 // bytes
)

// Credential is one of a WIC.
type Credential struct {
	Username  string
	Password  secret.Bytes
	Pseudonym string
	Ends      time.Time // in whole seconds
}

// news is a credential on the bus and in the store.
type news struct {
	Version  int    `json:"v"`
	Username string `json:"username"`
	// Sealed is the nonce, then the contents under AES-256-GCM, the username being the associated data.
	Sealed []byte `json:"sealed"`
}

type contents struct {
	Password  []byte `json:"password"` // base64 in base64, but a password is not text to us
	Pseudonym string `json:"pseudonym"`
	Ends      int64  `json:"ends"` // Unix seconds
}

var errMalformed = errors.New("pushed: malformed credential")

// generate makes a credential of pseudonym.
func generate(pseudonym string, ends time.Time) Credential {
	b := make([]byte, randomName)
	rand.Read(b)
	pass := base64.RawURLEncoding.AppendEncode(nil, secret.Random(randomPass).Expose())
	return Credential{
		Username: prefix + base64.RawURLEncoding.EncodeToString(b), Password: secret.New(pass),
		Pseudonym: pseudonym, Ends: ends.Truncate(time.Second),
	}
}

// IsUsername says whether s has the shape of a pushed username; nothing else is ever looked up.
func IsUsername(s string) bool {
	if len(s) != usernameLen || !strings.HasPrefix(s, prefix) {
		return false
	}
	var b [randomName + 2]byte
	_, err := base64.RawURLEncoding.Strict().Decode(b[:], []byte(s[len(prefix):]))
	return err == nil
}

// aead is the cipher of one username under a secret: HKDF-SHA256 without salt, info = label 0x00
// username. So each key seals one credential, and no nonce can meet another.
func aead(sec secret.Bytes, username string) (cipher.AEAD, error) {
	key, err := hkdf.Key(sha256.New, sec.Expose(), nil, label+"\x00"+username, 32)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// seal writes c as it goes over the bus.
func seal(sec secret.Bytes, c Credential, nonce [sealNonce]byte) ([]byte, error) {
	plain, err := json.Marshal(contents{c.Password.Expose(), c.Pseudonym, c.Ends.Unix()})
	if err != nil {
		return nil, err
	}
	defer clear(plain)
	g, err := aead(sec, c.Username)
	if err != nil {
		return nil, err
	}
	return json.Marshal(news{version, c.Username, g.Seal(nonce[:], nonce[:], plain, []byte(c.Username))})
}

// open reads what seal wrote, by whichever of the secrets opens it.
func open(secrets []secret.Bytes, b []byte) (Credential, error) {
	var n news
	if err := json.Unmarshal(b, &n); err != nil || n.Version != version || !IsUsername(n.Username) {
		return Credential{}, errMalformed
	}
	if len(n.Sealed) < minSeal || len(n.Sealed) > maxSeal {
		return Credential{}, fmt.Errorf("%w: %d bytes sealed", errMalformed, len(n.Sealed))
	}
	for _, sec := range secrets {
		g, err := aead(sec, n.Username)
		if err != nil {
			return Credential{}, err
		}
		plain, err := g.Open(nil, n.Sealed[:sealNonce], n.Sealed[sealNonce:], []byte(n.Username))
		if err != nil {
			continue
		}
		defer clear(plain)
		var c contents
		if err := json.Unmarshal(plain, &c); err != nil || len(c.Password) == 0 || len(c.Password) > maxText || !isName(c.Pseudonym) {
			return Credential{}, fmt.Errorf("%w: contents", errMalformed)
		}
		defer clear(c.Password)
		return Credential{n.Username, secret.New(c.Password), c.Pseudonym, time.Unix(c.Ends, 0)}, nil
	}
	return Credential{}, fmt.Errorf("%w: none of %d secrets opens it; edge and TURN servers need one turn.secrets", errMalformed, len(secrets))
}

// isName takes 1 to 128 printable ASCII characters.
func isName(s string) bool {
	return s != "" && len(s) <= maxText && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' })
}
