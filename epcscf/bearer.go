package epcscf

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"

	"wicgate/internal/claims"
	"wicgate/internal/siptx"
)

// KeySource finds the WAF's public key by the kid of a token.
type KeySource interface {
	Key(ctx context.Context, kid string) (crypto.PublicKey, error)
}

// Why a token is refused, beyond what claims.Check says. The log tells them apart; the browser is
// told invalid_token.
var (
	errTokenForm      = errors.New("not a signed JWT with alg ES256, typ at+jwt and a kid")
	errTokenSignature = errors.New("signature does not verify")
	// ErrUnknownKey is returned by a KeySource for a kid that the WAF does not publish.
	ErrUnknownKey = errors.New("signed with a key that the WAF does not publish")
	errNoKeys     = errors.New("the WAF's keys cannot be read")
)

// bearer takes the token out of Authorization fields: "Bearer <token>" (RFC 6750) or
// `Bearer access_token="<token>"` (TS 24.371 table A.3.2-1). found says whether there is a Bearer at all, so that
// an unreadable one is not taken for none.
func bearer(m *siptx.Message) (token string, found bool) {
	for _, v := range m.All("Authorization") {
		scheme, rest, _ := strings.Cut(strings.TrimSpace(v), " ")
		if !strings.EqualFold(scheme, "Bearer") {
			continue
		}
		if found {
			return "", true // two of them: neither is taken
		}
		found = true
		rest = strings.TrimSpace(rest)
		if v, ok := strings.CutPrefix(rest, "access_token="); ok {
			rest = strings.Trim(v, `"`)
		}
		token = rest
	}
	return token, found
}

// signer is the key that a token was signed with.
type signer struct {
	kid string
	key crypto.PublicKey
}

// stands says whether the key is still published under its kid.
func (s signer) stands(ctx context.Context, keys KeySource) bool {
	key, err := keys.Key(ctx, s.kid)
	if err != nil {
		return false
	}
	k, ok := key.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(s.key)
}

// verify checks a token's form, signature and claims at the instant now.
func (e *Edge) verify(ctx context.Context, token string, now time.Time) (*claims.SIP, signer, error) {
	if token == "" || len(token) > claims.MaxSize || strings.Count(token, ".") != 2 {
		return nil, signer{}, errTokenForm
	}
	j, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil || len(j.Signatures) != 1 {
		return nil, signer{}, errTokenForm
	}
	h := j.Signatures[0].Protected
	if typ, _ := h.ExtraHeaders[jose.HeaderType].(string); typ != claims.Type || h.KeyID == "" || len(h.KeyID) > 128 || h.Algorithm != claims.Algorithm {
		return nil, signer{}, errTokenForm
	}
	key, err := e.cfg.Keys.Key(ctx, h.KeyID)
	if err != nil {
		return nil, signer{}, err
	}
	payload, err := j.Verify(key)
	if err != nil {
		return nil, signer{}, errTokenSignature
	}
	c := new(claims.SIP)
	if err := json.Unmarshal(payload, c); err != nil {
		return nil, signer{}, claims.ErrMalformed
	}
	if err := c.Check(now, e.cfg.Issuers, e.cfg.Audience); err != nil {
		return nil, signer{}, err
	}
	if e.revoked(c.Pseudonym) {
		return nil, signer{}, errRevoked
	}
	return c, signer{h.KeyID, key}, nil
}

const (
	jwksBody  = 64 << 10         // bytes
	jwksKeys  = 16               // keys of one set
	jwksPause = 10 * time.Second // between two fetches
	jwksTime  = 3 * time.Second  // of one fetch

	jwksRefresh = 4 * time.Minute // keys are read again by who asks then
	jwksAge     = 5 * time.Minute // keys older than this are not used: one may have been withdrawn
)

// JWKS reads the keys that a WAF publishes (RFC 7517) and keeps them for five minutes. It reads again
// when they are four minutes old, or for a kid that is not among them, at most once in 10 s whoever asks. Who
// asks for a known key meanwhile does not wait. While the WAF cannot be read, keys are used until they are too old.
func JWKS(url string, c *http.Client) KeySource {
	return &jwks{url: url, client: c}
}

type jwks struct {
	url    string
	client *http.Client

	mu      sync.Mutex // guards the following fields
	keys    map[string]crypto.PublicKey
	good    time.Time     // when keys was read
	fetched time.Time     // when it was last tried
	busy    chan struct{} // closed by the fetch under way when it ends; nil where there is none
	err     error         // of the last fetch
}

func (s *jwks) Key(ctx context.Context, kid string) (crypto.PublicKey, error) {
	for {
		s.mu.Lock()
		k, age := s.keys[kid], time.Since(s.good)
		may := s.busy == nil && (s.fetched.IsZero() || time.Since(s.fetched) >= jwksPause)
		if k != nil && age < jwksAge && !(may && age >= jwksRefresh) {
			s.mu.Unlock()
			return k, nil
		}
		if may {
			s.busy = make(chan struct{})
			s.mu.Unlock()
			s.fetch(ctx)
			continue
		}
		busy, err := s.busy, s.err
		s.mu.Unlock()
		switch {
		case busy != nil:
			select {
			case <-busy:
			case <-ctx.Done():
				return nil, fmt.Errorf("%w: %w", errNoKeys, ctx.Err())
			}
		case err != nil:
			return nil, err
		default:
			return nil, ErrUnknownKey
		}
	}
}

// fetch is run by whoever set busy.
func (s *jwks) fetch(ctx context.Context) {
	keys, err := s.read(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fetched, s.err = time.Now(), err
	if err == nil {
		s.keys, s.good = keys, s.fetched
	}
	close(s.busy)
	s.busy = nil
}

func (s *jwks) read(ctx context.Context) (map[string]crypto.PublicKey, error) {
	// Not ended by the browser that happens to be first: its leaving must not spoil the fetch for the others.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), jwksTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url, nil)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoKeys, err)
	}
	res, err := s.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoKeys, err)
	}
	defer func() { _ = res.Body.Close() }() // only read from
	body, err := io.ReadAll(io.LimitReader(res.Body, jwksBody+1))
	if err != nil || res.StatusCode != http.StatusOK || len(body) > jwksBody {
		return nil, fmt.Errorf("%w: %s answered %s", errNoKeys, s.url, res.Status)
	}
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(body, &set); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", errNoKeys, s.url, err)
	}
	keys := map[string]crypto.PublicKey{}
	for _, k := range set.Keys {
		pub, ok := k.Key.(*ecdsa.PublicKey)
		if !ok || pub.Curve != elliptic.P256() || k.KeyID == "" || k.Use != "" && k.Use != "sig" || k.Algorithm != "" && k.Algorithm != claims.Algorithm || len(keys) >= jwksKeys {
			continue
		}
		keys[k.KeyID] = pub
	}
	return keys, nil
}
