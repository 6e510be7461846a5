package waf

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/go-jose/go-jose/v4"

	"wicgate/internal/claims"
)

const maxKeyFile = 16 << 10

var (
	errGarbage = errors.New("no JWT of type " + claims.Type + " with " + claims.Algorithm)
	errForeign = errors.New("signed with another key")
)

// signer signs SIP tokens and reads them back. The private key lies behind a function, where
// printing a Server cannot reach it.
type signer struct {
	kid  string // RFC 7638 thumbprint, SHA-256, base64url
	sign func(payload []byte) (string, error)
	pub  *ecdsa.PublicKey
	jwks []byte // the JWK set (RFC 7517 §5)
}

// openSigner reads the key file, or makes it.
func openSigner(path string) (signer, error) {
	if path == "" {
		return signer{}, errors.New("no file for the signing key; set waf.signing_key")
	}
	key, err := readKey(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err = makeKey(path); err == nil || errors.Is(err, fs.ErrExist) {
			key, err = readKey(path)
		}
	}
	if err != nil {
		return signer{}, err
	}
	jwk := jose.JSONWebKey{Key: key.Public(), Algorithm: claims.Algorithm, Use: "sig"}
	thumb, err := jwk.Thumbprint(crypto.SHA256)
	if err != nil {
		return signer{}, fmt.Errorf("signing key %s: %w", path, err)
	}
	jwk.KeyID = base64.RawURLEncoding.EncodeToString(thumb)
	set, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{jwk}})
	if err != nil {
		return signer{}, fmt.Errorf("signing key %s: %w", path, err)
	}
	js, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: jwk.KeyID}},
		(&jose.SignerOptions{}).WithType(claims.Type))
	if err != nil {
		return signer{}, fmt.Errorf("signing key %s: %w", path, err)
	}
	return signer{kid: jwk.KeyID, pub: &key.PublicKey, jwks: set, sign: func(payload []byte) (string, error) {
		sig, err := js.Sign(payload)
		if err != nil {
			return "", err
		}
		return sig.CompactSerialize()
	}}, nil
}

// verify returns the claims of a token that this key has signed. The claims are not checked.
func (s signer) verify(tok string) (claims.SIP, error) {
	if len(tok) > claims.MaxSize {
		return claims.SIP{}, errGarbage
	}
	sig, err := jose.ParseSignedCompact(tok, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		return claims.SIP{}, errGarbage
	}
	h := sig.Signatures[0].Protected
	if typ, _ := h.ExtraHeaders[jose.HeaderType].(string); typ != claims.Type {
		return claims.SIP{}, errGarbage
	}
	if h.KeyID != s.kid {
		return claims.SIP{}, errForeign
	}
	payload, err := sig.Verify(s.pub)
	if err != nil {
		return claims.SIP{}, errForeign
	}
	var c claims.SIP
	if err := json.Unmarshal(payload, &c); err != nil {
		return claims.SIP{}, errGarbage
	}
	return c, nil
}

func readKey(path string) (*ecdsa.PrivateKey, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("signing key: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("signing key: %w", err)
	}
	if perm := info.Mode().Perm(); !info.Mode().IsRegular() || perm&0o077 != 0 {
		return nil, fmt.Errorf("signing key %s has mode %v, others than its owner can reach it\n  hint: chmod 600 %s; if others had access, replace it", path, info.Mode(), path)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxKeyFile))
	if err != nil {
		return nil, fmt.Errorf("signing key: %w", err)
	}
	key, err := parseKey(b)
	if err != nil {
		return nil, fmt.Errorf("signing key %s: %w\n  hint: the file was left as it is; restore it, or move it away to start with a new key (SIP tokens issued so far then end)", path, err)
	}
	return key, nil
}

func parseKey(b []byte) (*ecdsa.PrivateKey, error) {
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, errors.New("holds no PEM block")
	}
	var key any
	var err error
	switch block.Type {
	case "PRIVATE KEY":
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(block.Bytes)
	default:
		return nil, fmt.Errorf("holds a %q, want a PRIVATE KEY", short(block.Type))
	}
	if err != nil {
		return nil, errors.New("the private key is damaged") // the cause may quote it
	}
	ec, ok := key.(*ecdsa.PrivateKey)
	if !ok || ec.Curve != elliptic.P256() {
		return nil, errors.New("want a key on the curve P-256, for ES256")
	}
	return ec, nil
}

// makeKey puts a new key at path, whole or not at all; fs.ErrExist when another was faster.
func makeKey(path string) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("signing key: make %s: %w", path, err)
		}
	}()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	dir := filepath.Dir(path)
	tmp, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*") // made with 0600
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(tmp.Name())) }()
	err = errors.Join(pem.Encode(tmp, &pem.Block{Type: "PRIVATE KEY", Bytes: der}), tmp.Sync(), tmp.Close())
	if err != nil {
		return err
	}
	if err := os.Link(tmp.Name(), path); err != nil { // unlike Rename it does not replace
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
