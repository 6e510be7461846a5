package core

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"time"

	"wicgate/internal/secret"
	"wicgate/internal/token"
	"wicgate/internal/wire/stun"
)

// CredentialKind is the kind of a credential, as an operator is told.
type CredentialKind string

// The kinds of credentials.
const (
	KindToken     CredentialKind = "token"     // RFC 7635's own shape: USERNAME = kid, key = mac_key
	KindUsername  CredentialKind = "username"  // the same token in USERNAME
	KindEphemeral CredentialKind = "ephemeral" // derived from a shared secret
	KindPushed    CredentialKind = "pushed"    // random, told by the eP-CSCF
	KindStatic    CredentialKind = "static"    // a user of a file
)

// credential is what a client has authenticated with.
type credential struct {
	kind     CredentialKind
	tenant   *tenant // whose it is
	username string
	owner    string         // pseudonym: for quota, revocation, and who may refresh
	alg      stun.Algorithm // that made key of a password; not of KindToken
	key      secret.Bytes   // of the integrity
	mac      secret.Bytes   // of KindToken: the mac_key, of which key may be the beginning (Tenant.OAuthMAC16)
	plain    bool           // the kid names nobody: owner is the kid, see Tenant.OAuthLoose
	ends     time.Time      // token's expiry, Delta included; zero = never
}

// same reports whether both are one credential.
func (c *credential) same(o *credential) bool {
	return c != nil && o != nil && c.kind == o.kind && c.tenant == o.tenant && c.username == o.username && c.mac.Equal(o.mac) && (c.kind == KindToken || c.key.Equal(o.key))
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
	ownToken := withToken || a != nil && a.cur.kind == KindToken
	if r.username == nil && r.userhash == nil || r.nonce == nil || r.realm == nil && !ownToken {
		if c.spend(r, out) {
			c.fail(r, out, 400, CauseIncomplete, nil) // without NONCE and REALM
		}
		return false
	}
	features, ok := c.checkNonce(r.nonce, r.now, r.tuple)
	if !ok && r.method == stun.ConnectionBind && r.tuple.Transport == stun.ProtocolTCP && a != nil {
		// RFC 6062 clients bring the nonce of the control connection along. That both receive what is
		// sent to them their handshakes have shown.
		features, ok = c.checkNonce(r.nonce, r.now, a.tuple)
	}
	if !ok {
		if c.spend(r, out) {
			c.fail(r, out, 438, CauseStaleNonce, nil)
		}
		return false
	}
	// From here on the source is known to receive what we send: the budget is left alone.
	if r.tenant.NoAccessToken && r.token != nil {
		// Comprehension-required, and not comprehended here. RFC 8489 §6.3.1 would authenticate
		// first, but this request carries its key in the attribute that we do not take.
		r.unknown[0], r.unknowns = stun.AttrAccessToken, 1
		c.fail(r, out, 420, CauseUnknownAttribute, nil)
		return false
	}
	if !r.readAlgorithm(features) {
		c.fail(r, out, 400, CauseBadRequest, nil)
		return false
	}
	cause, detail := c.credentials(r, a, withToken)
	if cause != CauseNone {
		r.cred, r.key = nil, nil
		switch cause {
		case CausePending:
			c.refuse(out, cause, nil)
			return false
		case CauseStaleNonce:
			c.fail(r, out, 438, cause, nil)
			return false
		}
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

// readAlgorithm reads with which algorithm the client makes its key (RFC 8489 §9.2.4, step 3). features
// are what its nonce announces: its integrity covers NONCE and PASSWORD-ALGORITHMS, so that nobody on
// the way can take the offer of the better algorithm away unseen.
func (r *request) readAlgorithm(features stun.Features) bool {
	r.alg, r.features = stun.MD5, features
	if features&stun.PasswordAlgorithms == 0 || r.algorithm == nil && r.algorithms == nil {
		return true // browsers know none of this
	}
	alg, err := stun.ParsePasswordAlgorithm(r.algorithm)
	if err != nil || !bytes.Equal(r.algorithms, offer) || alg != stun.SHA256 && alg != stun.MD5 {
		return false
	}
	r.alg = alg
	return true
}

// offer is the value of PASSWORD-ALGORITHMS.
var offer = stun.AppendPasswordAlgorithms(make([]byte, stun.HeaderSize), stun.SHA256, stun.MD5)[stun.HeaderSize+4:]

// credentials finds the credential that r claims and verifies the integrity under it.
func (c *Core) credentials(r *request, a *allocation, withToken bool) (Cause, error) {
	if withToken {
		cred, _, cause, err := c.openToken(r, string(r.username), r.token, a)
		if cause != CauseNone {
			return cause, err
		}
		if cred.tenant.NoAccessToken { // not the challenger, who takes them
			return CauseUnknownKey, nil
		}
		return c.verifyMAC16(r, cred)
	}
	if r.username == nil {
		if r.tenant.Users == nil || len(r.userhash) != sha256.Size {
			return CauseUsername, nil // no stateless server can invert a hash
		}
		name, ok := r.tenant.Users.Userhash([sha256.Size]byte(r.userhash))
		if !ok {
			return CauseUnknownUser, nil
		}
		r.username = []byte(name)
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
			if cause, _ = c.verifyMAC16(r, cred); cause == CauseNone {
				return CauseNone, nil
			}
		}
		if tried {
			return cause, nil
		}
	}
	kid, tok, ok, err := token.ParseUsername(r.username)
	if err != nil {
		return CauseUsername, err
	}
	if ok {
		cred, mac, cause, err := c.openToken(r, kid, tok, nil)
		if cause != CauseNone {
			return cause, err
		}
		cred.kind, cred.username, cred.mac = KindUsername, string(r.username), secret.Bytes{}
		return c.password(r, cred, token.Credential(mac))
	}
	if t := r.tenant; t.Secrets != nil {
		ends, pseudonym, ok, err := token.ParseEphemeral(r.username)
		if err != nil {
			return CauseUsername, err
		}
		if ok {
			return c.ephemeral(r, ends, pseudonym)
		}
	}
	return c.listed(r)
}

// ephemeral verifies a credential that the issuer derived from a secret shared with us.
func (c *Core) ephemeral(r *request, ends time.Time, pseudonym string) (Cause, error) {
	switch {
	case !ends.After(r.now):
		return CauseExpiredToken, nil
	case ends.After(r.now.Add(token.MaxAhead)):
		return CauseFutureToken, nil
	case c.revoked(pseudonym):
		return CauseRevoked, nil
	}
	username := string(r.username)
	for _, sec := range r.tenant.Secrets() {
		cred := &credential{kind: KindEphemeral, tenant: r.tenant, username: username, owner: pseudonym, ends: ends}
		if cause, _ := c.password(r, cred, token.EphemeralPassword(sec, username)); cause == CauseNone {
			return CauseNone, nil
		}
	}
	return CauseBadMAC, nil
}

// listed verifies a credential that is kept here: one pushed to us, or a static user's.
func (c *Core) listed(r *request) (Cause, error) {
	t, username := r.tenant, string(r.username)
	if t.Pushed != nil {
		if p, ok := t.Pushed(username); ok {
			switch {
			case p.Pending:
				return CausePending, nil
			case !p.Ends.After(r.now):
				return CauseExpiredToken, nil
			case c.revoked(p.Pseudonym):
				return CauseRevoked, nil
			}
			return c.password(r, &credential{kind: KindPushed, tenant: t, username: username, owner: p.Pseudonym, ends: p.Ends}, p.Password)
		}
	}
	if t.Users == nil {
		return CauseUsername, nil
	}
	if t.features()&^r.features != 0 {
		return CauseStaleNonce, nil // made by another tenant, or before there were users: it hides the offer
	}
	key, ok := t.Users.Key(username, r.alg)
	if !ok {
		return CauseUnknownUser, nil
	}
	if c.revoked(username) {
		return CauseRevoked, nil
	}
	return c.verify(r, &credential{kind: KindStatic, tenant: t, username: username, owner: username, alg: r.alg, key: key})
}

// password verifies cred, whose key is made of a password.
func (c *Core) password(r *request, cred *credential, password secret.Bytes) (Cause, error) {
	cred.alg = r.alg
	cred.key = secret.New(r.alg.Key(r.username, []byte(c.challenger(r.tuple).Name), password.Expose()))
	return c.verify(r, cred)
}

func (c *Core) revoked(pseudonym string) bool {
	return c.cfg.Revoked != nil && c.cfg.Revoked(pseudonym)
}

// openToken opens tok, sealed under kid for this server, and returns its mac_key besides. If it is the
// token that allocation a lives by, or lived by until just now, its age does not count here: the
// policy decides about that.
func (c *Core) openToken(r *request, kid string, tok []byte, a *allocation) (*credential, secret.Bytes, Cause, error) {
	t, key, format, owner := c.kid(r, kid)
	if t == nil {
		return nil, secret.Bytes{}, CauseUnknownKey, nil
	}
	p, err := token.Open(format, key, t.Name, tok)
	if err != nil {
		return nil, secret.Bytes{}, CauseBadToken, err
	}
	plain := owner == ""
	if plain {
		owner = kid
	}
	r.tenant = t
	cred := &credential{kind: KindToken, tenant: t, username: kid, owner: owner, key: p.MACKey, mac: p.MACKey, plain: plain}
	left, err := p.Check(r.now)
	if a != nil && r.method == stun.Refresh {
		for _, known := range []*credential{a.cur, a.previous(r.now)} {
			if cred.same(known) {
				return known, p.MACKey, CauseNone, nil
			}
		}
	}
	switch {
	case errors.Is(err, token.ErrFuture):
		return nil, secret.Bytes{}, CauseFutureToken, err
	case err != nil:
		return nil, secret.Bytes{}, CauseExpiredToken, err
	case c.revoked(owner):
		return nil, secret.Bytes{}, CauseRevoked, nil
	}
	cred.ends = r.now.Add(left)
	if t.OAuthLoose && plain && a != nil && r.method == stun.Refresh && a.cur.plain && a.cur.tenant == t {
		cred.owner = a.owner // stays booked to the kid that it was allocated under
	}
	return cred, p.MACKey, CauseNone, nil
}

// kid finds the tenant whose key kid names: the one that the listener or the name in TLS has chosen
// and no other, or on a listener of all, any (RFC 7376 §4, concern 6: nothing else tells realms on one
// address apart before the challenge).
func (c *Core) kid(r *request, kid string) (*tenant, secret.Bytes, token.Format, string) {
	for _, t := range c.tenants {
		if r.tuple.Tenant != 0 && t != r.tenant {
			continue
		}
		if key, format, owner, ok := t.Keys.Key(kid); ok {
			return t, key, format, owner
		}
	}
	return nil, secret.Bytes{}, 0, ""
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
	if r.realm != nil && subtle.ConstantTimeCompare(r.realm, []byte(c.challenger(r.tuple).Name)) != 1 {
		good = false // the MAC covers REALM; this is the only one that we have challenged with
	}
	if r.tuple.Tenant != 0 && cred.tenant != c.challenger(r.tuple) {
		good = false // an allocation's own credential, brought to a listener that is another tenant's
	}
	if cred.kind != KindToken && cred.alg != r.alg {
		good = false // the key is of the other algorithm
	}
	if !good {
		return CauseBadMAC, nil
	}
	r.cred, r.key, r.tenant = cred, key, cred.tenant
	return CauseNone, nil
}

// verifyMAC16 is verify for clients that use the first 16 bytes of the mac_key, as coturn's do
// (Tenant.OAuthMAC16): whichever of the two keys has made the integrity is the credential's.
func (c *Core) verifyMAC16(r *request, cred *credential) (Cause, error) {
	cause, err := c.verify(r, cred)
	if cause == CauseNone || !cred.tenant.OAuthMAC16 || cred.kind != KindToken {
		return cause, err
	}
	had := cred.key
	for _, key := range []secret.Bytes{cred.mac, secret.New(cred.mac.Expose()[:16])} {
		if cred.key = key; !key.Equal(had) {
			if cause, err = c.verify(r, cred); cause == CauseNone {
				return CauseNone, nil
			}
		}
	}
	cred.key = had
	return cause, err
}
