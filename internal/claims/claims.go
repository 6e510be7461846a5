// Package claims is the vocabulary of the SIP access token: a JWT (RFC 7519, profile of RFC 9068)
// that the WAF writes and the eP-CSCF reads. It holds no signature and no clock of its own.
//
// What the token must say follows from TS 33.203 Annex X and TS 24.371: which WAF authorised which
// web identity to use which IMS identities, for whom, until when.
package claims

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

const (
	// Type is the exact "typ" header of the token (RFC 9068 §2.1).
	Type = "at+jwt"
	// Algorithm is the only "alg" that is written or accepted (RFC 7518 §3.4).
	Algorithm = "ES256"
	// Scope that a token must hold to be used for SIP registration and calls.
	Scope = "sip"
	// MaxSize bounds a token on the wire, in bytes of its compact form.
	MaxSize = 4096
	// ScenarioWeb is scenario 2 of TS 24.371 §6.1: an individual IMPU by web authentication.
	ScenarioWeb = 2
	// ScenarioPool is scenario 3: an individual IMPU from a pool, here of a guest.
	ScenarioPool = 3
	// MaxLeeway is the clock difference that Check forgives between WAF and edge.
	MaxLeeway = 30 * time.Second
)

// Why Check refuses a token. Each is answered with 401 and error="invalid_token" (RFC 8898 §2.2);
// the difference is for the log alone.
var (
	ErrIssuer    = errors.New("issued by a WAF that is not configured here")
	ErrAudience  = errors.New("issued for another eP-CSCF")
	ErrExpired   = errors.New("expired")
	ErrNotYet    = errors.New("not valid yet")
	ErrScope     = errors.New("lacks the scope " + Scope)
	ErrIdentity  = errors.New("names no usable IMS identity")
	ErrMalformed = errors.New("lacks a required claim")
)

// SIP is the payload of the token. Times are seconds since 1970-01-01 UTC (RFC 7519 §2, NumericDate).
type SIP struct {
	Issuer    string `json:"iss"`       // the WAF, its https URL
	Subject   string `json:"sub"`       // web identity, as the WAF knows it; never sent to the core
	Audience  string `json:"aud"`       // the eP-CSCF's name
	ClientID  string `json:"client_id"` // the WIC's or WWSF's registration (RFC 9068 §2.2)
	IssuedAt  int64  `json:"iat"`
	NotBefore int64  `json:"nbf"`
	Expiry    int64  `json:"exp"`
	ID        string `json:"jti"`
	Scope     string `json:"scope"`
	IMS       IMS    `json:"ims"`
	// Pseudonym stands for the subject in TURN usernames, logs and quotas: random, one per log-in.
	Pseudonym string `json:"pseudonym"`
}

// IMS holds the identities that the bearer may use.
type IMS struct {
	// IMPI is the private identity, user@realm without a scheme (TS 23.003 §13.3).
	IMPI string `json:"impi"`
	// IMPU are distinct public identities, SIP URIs; the first is the default. Never a wildcard.
	IMPU []string `json:"impu"`
	// Scenario of TS 24.371 §6.1: ScenarioWeb or ScenarioPool.
	Scenario int `json:"scenario"`
}

// Check says whether the claims are good at the instant now for the eP-CSCF named audience.
// The signature, typ and alg have been checked before.
func (c *SIP) Check(now time.Time, issuers []string, audience string) error {
	switch {
	case c.Subject == "" || c.ID == "" || c.Expiry == 0 || c.IssuedAt == 0 || c.Pseudonym == "" || c.ClientID == "":
		return ErrMalformed
	case !slices.Contains(issuers, c.Issuer):
		return fmt.Errorf("%w (%q)", ErrIssuer, c.Issuer)
	case c.Audience != audience:
		return fmt.Errorf("%w (%q)", ErrAudience, c.Audience)
	case !hasScope(c.Scope):
		return ErrScope
	case now.After(time.Unix(c.Expiry, 0)):
		return fmt.Errorf("%w %v ago", ErrExpired, now.Sub(time.Unix(c.Expiry, 0)).Round(time.Second))
	case now.Add(MaxLeeway).Before(time.Unix(max(c.NotBefore, c.IssuedAt), 0)):
		return fmt.Errorf("%w, for %v more: compare the clocks of WAF and edge", ErrNotYet,
			time.Unix(max(c.NotBefore, c.IssuedAt), 0).Sub(now).Round(time.Second))
	case c.IMS.IMPI == "" || len(c.IMS.IMPU) == 0 || slices.Contains(c.IMS.IMPU, ""):
		return ErrIdentity
	}
	return nil
}

func hasScope(list string) bool {
	for len(list) > 0 {
		i := 0
		for i < len(list) && list[i] != ' ' {
			i++
		}
		if list[:i] == Scope {
			return true
		}
		list = list[min(i+1, len(list)):]
	}
	return false
}
