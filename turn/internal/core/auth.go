package core

import (
	"crypto/subtle"
	"errors"
	"time"

	"wicgate/internal/secret"
	"wicgate/internal/token"
	"wicgate/internal/wire/stun"
)

// credential is what a client has authenticated with.
type credential struct {
	username string
	owner    string       // pseudonym: for quota, revocation, and who may refresh
	mac      secret.Bytes // the token's mac_key
	key      secret.Bytes // of the integrity: mac_key, or MD5(username:realm:credential)
	token    bool         // RFC 7635's own shape: USERNAME = kid, key = mac_key
	// ephemeral: mac is the password
	ephemeral bool
	ends      time.Time // token's expiry, Delta included
}

// kind is what an operator is told that it is.
func (c *credential) kind() string {
	switch {
	case c.token:
		return "token"
	case c.ephemeral:
		return "ephemeral"
	}
	return "username"
}

// same reports whether both come from the same token.
func (c *credential) same(o *credential) bool {
	return c != nil && o != nil && c.username == o.username && c.token == o.token && c.mac.Equal(o.mac)
}

// authenticate runs RFC 8489 §9.2.4 in the order nonce, token, MAC, and answers if it fails. a is
// the allocation of the 5-tuple, or nil. On success r.cred and r.key are set.
//
// Unknown kid, bad tag, expired, future and bad MAC get one and the same 401 with REALM and NONCE:
// never 400 (browsers take only 401 for "try again") and never 438 (fatal to them on Allocate).
func (c *Core) authenticate(r *request, a *allocation, out *Outbox) bool {
	if !r.msg.HasIntegrity() && !r.msg.HasIntegritySHA256() {
		if c.spend(r, out) {
			c.fail(r, out, 401, CauseChallenge, nil)
		}
		return false
	}
	// RFC 7635 §7 runs with REALM although RFC 8656 §21.1.6 says that it does not use it: we send
	// it, and take requests of that shape with and without it.
	withToken := r.token != nil && (r.method == stun.Allocate || r.method == stun.Refresh)
	ownToken := withToken || a != nil && a.cur.token
	if r.username == nil && !r.hasUserhash || r.nonce == nil || r.realm == nil && !ownToken {
		if c.spend(r, out) {
			c.fail(r, out, 400, CauseIncomplete, nil) // without NONCE and REALM
		}
		return false
	}
	if !c.checkNonce(r.nonce, r.now, r.tuple) {
		if c.spend(r, out) {
			c.fail(r, out, 438, CauseStaleNonce, nil)
		}
		return false
	}
	// From here on the source is known to receive what we send: the budget is left alone.
	if c.cfg.NoAccessToken && r.token != nil {
		// Comprehension-required, and not comprehended here. RFC 8489 §6.3.1 would authenticate
		// first, but this request carries its key in the attribute that we do not take.
		r.unknown[0], r.unknowns = stun.AttrAccessToken, 1
		c.fail(r, out, 420, CauseUnknownAttribute, nil)
		return false
	}
	cause, detail := c.credentials(r, a, withToken)
	if cause != CauseNone {
		r.cred, r.key = nil, nil
		c.fail(r, out, 401, cause, detail)
		return false
	}
	return true
}

// spend draws a reply on the source's budget. Who has a connection, or an association, has shown by its handshake that
// it receives what is sent to it, and owes none.
func (c *Core) spend(r *request, out *Outbox) bool {
	if r.tuple.Transport != stun.ProtocolUDP || c.budget.Take(r.now, r.tuple.Client.Addr()) {
		return true
	}
	c.refuse(out, CauseBudget, nil)
	return false
}

// credentials finds the credential that r claims and verifies the integrity under it.
func (c *Core) credentials(r *request, a *allocation, withToken bool) (Cause, error) {
	if withToken {
		cred, cause, err := c.openToken(r, string(r.username), r.token, a)
		if cause != CauseNone {
			return cause, err
		}
		return c.verify(r, cred)
	}
	// The allocation's own credential, whatever its age: requests of a live allocation are not
	// refused because its token has expired. Allocate is about a new one, so it is not among them.
	if a != nil && r.method != stun.Allocate {
		cause := CauseNone
		tried := false
		for _, cred := range []*credential{a.cur, a.previous(r.now)} {
			if cred == nil || cred.username != string(r.username) {
				continue
			}
			tried = true
			if cause, _ = c.verify(r, cred); cause == CauseNone {
				return CauseNone, nil
			}
		}
		if tried {
			return cause, nil
		}
	}
	kid, tok, ok, err := token.ParseUsername(r.username)
	if !ok && c.cfg.Secrets != nil {
		return c.ephemeral(r)
	}
	if !ok {
		return CauseUsername, nil // also USERHASH, which no stateless server can invert
	}
	if err != nil {
		return CauseUsername, err
	}
	cred, cause, err := c.openToken(r, kid, tok, nil)
	if cause != CauseNone {
		return cause, err
	}
	cred.token = false
	cred.username = string(r.username)
	key := stun.LongTermKey(r.username, []byte(c.cfg.Name), token.Credential(cred.mac).Expose())
	cred.key = secret.New(key[:])
	return c.verify(r, cred)
}

// ephemeral verifies a credential that the issuer derived from a secret shared with us.
func (c *Core) ephemeral(r *request) (Cause, error) {
	ends, pseudonym, ok, err := token.ParseEphemeral(r.username)
	switch {
	case !ok || err != nil:
		return CauseUsername, err
	case !ends.After(r.now):
		return CauseExpiredToken, nil
	case ends.After(r.now.Add(token.MaxAhead)):
		return CauseFutureToken, nil
	case c.revoked(pseudonym):
		return CauseRevoked, nil
	}
	username := string(r.username)
	for _, sec := range c.cfg.Secrets() {
		password := token.EphemeralPassword(sec, username)
		key := stun.LongTermKey(r.username, []byte(c.cfg.Name), password.Expose())
		cred := &credential{username: username, owner: pseudonym, mac: password, key: secret.New(key[:]), ends: ends, ephemeral: true}
		if cause, _ := c.verify(r, cred); cause == CauseNone {
			return CauseNone, nil
		}
	}
	return CauseBadMAC, nil
}

func (c *Core) revoked(pseudonym string) bool {
	return c.cfg.Revoked != nil && c.cfg.Revoked(pseudonym)
}

// openToken opens tok, sealed under kid for this server. If it is the token that allocation a lives
// by, or lived by until just now, its age does not count here: the policy decides about that.
func (c *Core) openToken(r *request, kid string, tok []byte, a *allocation) (*credential, Cause, error) {
	key, format, owner, ok := c.cfg.Keys.Key(kid)
	if !ok {
		return nil, CauseUnknownKey, nil
	}
	p, err := token.Open(format, key, c.cfg.Name, tok)
	if err != nil {
		return nil, CauseBadToken, err
	}
	if owner == "" {
		owner = kid
	}
	cred := &credential{username: kid, owner: owner, mac: p.MACKey, key: p.MACKey, token: true}
	left, err := p.Check(r.now)
	if a != nil && r.method == stun.Refresh {
		for _, known := range []*credential{a.cur, a.previous(r.now)} {
			if cred.same(known) {
				return known, CauseNone, nil
			}
		}
	}
	switch {
	case errors.Is(err, token.ErrFuture):
		return nil, CauseFutureToken, err
	case err != nil:
		return nil, CauseExpiredToken, err
	case c.revoked(owner):
		return nil, CauseRevoked, nil
	}
	cred.ends = r.now.Add(left)
	return cred, CauseNone, nil
}

// verify checks REALM and the integrity under cred. MESSAGE-INTEGRITY-SHA256 is used if it is there
// (RFC 8489 §9.2.4), and never asked for: browsers send SHA-1.
func (c *Core) verify(r *request, cred *credential) (Cause, error) {
	key := cred.key.Expose()
	var good bool
	if r.msg.HasIntegritySHA256() {
		good = c.hasher.CheckIntegritySHA256(r.msg, key)
	} else {
		good = c.hasher.CheckIntegrity(r.msg, key)
	}
	if r.realm != nil && subtle.ConstantTimeCompare(r.realm, []byte(c.cfg.Name)) != 1 {
		good = false // the MAC covers REALM; ours is the only one that we have challenged with
	}
	if !good {
		return CauseBadMAC, nil
	}
	r.cred, r.key = cred, key
	return CauseNone, nil
}
