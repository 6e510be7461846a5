package core

import (
	"crypto/sha256"
	"time"

	"wicgate/internal/peerpolicy"
	"wicgate/internal/secret"
	"wicgate/internal/wire/stun"
)

// Tenant is one TURN server name, with what is its own. A server can hold several: the listener says
// which, or the name in TLS, or on a listener of all the kid of the token.
type Tenant struct {
	Name   string // REALM, THIRD-PARTY-AUTHORIZATION, and associated data of tokens
	Keys   Keys
	Peers  peerpolicy.Policy // with own listeners and relays added
	Policy CredentialPolicy
	// GraceMax is ignored under Strict.
	GraceMax time.Duration

	// Secrets returns those of ephemeral credentials, newest first; nil = none are taken.
	Secrets func() []secret.Bytes
	// Pushed returns the credential of that USERNAME that the eP-CSCF has told us; nil = none are taken. It
	// must not wait: see [Pushed].Pending.
	Pushed func(username string) (Pushed, bool)
	// Users are the static ones; nil = none.
	Users Users
	// NoAccessToken switches RFC 7635's own shape off: no THIRD-PARTY-AUTHORIZATION, and
	// ACCESS-TOKEN is an unknown attribute.
	NoAccessToken bool
	// OAuthLoose lets a Refresh bring a token of another kid, where neither kid says whose it is. Who
	// has any token of this server can then take over an allocation whose 5-tuple is his. Off as
	// RFC 8656 §5 has it; coturn's client takes another kid each time.
	OAuthLoose bool
	// OAuthMAC16 also takes the first 16 bytes of a mac_key for the key of the integrity, as coturn's
	// client does. Tokens of wicgate do not need it.
	OAuthMAC16 bool

	Quota       int // allocations per pseudonym
	QuotaTenant int // of all its pseudonyms together
	// Rates bound the relayed payload of both directions together, in bits a second; what is beyond is
	// dropped. Zeros = no bound.
	Rate, RatePseudonym, RateTenant int64
}

// Users are static users, of whom keys are kept and no passwords (RFC 8656 §6); *keyring.Users is one.
type Users interface {
	// Key returns the key of username made with alg.
	Key(username string, alg stun.Algorithm) (secret.Bytes, bool)
	// Userhash returns whose USERHASH h is (RFC 8489 §14.4).
	Userhash(h [sha256.Size]byte) (username string, ok bool)
	// SHA256 reports whether each user has a key made with SHA-256, so that it can be offered.
	SHA256() bool
}

// Pushed is a credential that the eP-CSCF has told the TURN server (TR 33.872 6.3.3, approach 2).
type Pushed struct {
	Password  secret.Bytes
	Pseudonym string
	Ends      time.Time
	// Pending: whether there is one is not known yet. The request is not answered, and the client sends it
	// again: a 401 to a request that has credentials is final in browsers.
	Pending bool
}

// tenant is a Tenant and what is counted of it.
type tenant struct {
	Tenant
	owners      map[string]*owner
	parted      parted
	allocations int
	meter       meter
}

// owner is a pseudonym that has allocations.
type owner struct {
	allocations []*allocation
	meter       meter
}

// parted are the meters of pseudonyms whose last allocation has ended: who ends it and allocates anew finds
// his own, and no full bucket each time. Kept for partedLife, and up to twice that.
type parted struct {
	meters [2]map[string]meter // of this time and of the time before
	turned time.Time
}

// partedLife is longer than a bucket takes to fill: a second, and what one long packet has overdrawn.
const partedLife = 5 * time.Second

func (p *parted) turn(now time.Time) {
	switch d := now.Sub(p.turned); {
	case d >= 2*partedLife:
		p.meters = [2]map[string]meter{}
	case d >= partedLife:
		p.meters = [2]map[string]meter{nil, p.meters[0]}
	default:
		return
	}
	p.turned = now
}

func (p *parted) put(now time.Time, pseudonym string, m meter) {
	if m.rate == 0 {
		return
	}
	p.turn(now)
	if p.meters[0] == nil {
		p.meters[0] = map[string]meter{}
	}
	p.meters[0][pseudonym] = m
}

// take returns the meter of pseudonym with the given rate: the one that was put, or a new one.
func (p *parted) take(now time.Time, pseudonym string, bits int64) meter {
	p.turn(now)
	for _, meters := range p.meters {
		if m, ok := meters[pseudonym]; ok {
			m.set(bits)
			return m
		}
	}
	return newMeter(bits)
}

func newTenant(t Tenant) *tenant {
	return &tenant{Tenant: t, owners: map[string]*owner{}, meter: newMeter(t.RateTenant)}
}

// Reconfigure puts tenants in place of those there are, the first and the others in their order, and
// sets Config.BlindClosed. Allocations live on: what is asked at each packet or request, peers, users,
// quotas and rates, is asked of the new settings; a changed policy counts from an allocation's next Refresh.
func (c *Core) Reconfigure(tenants []Tenant, blindClosed bool) {
	for i, t := range c.tenants {
		t.Tenant = tenants[i]
		t.meter.set(t.RateTenant)
		for _, o := range t.owners {
			o.meter.set(t.RatePseudonym)
			for _, a := range o.allocations {
				a.meter.set(t.Rate)
			}
		}
	}
	c.cfg.Tenant, c.cfg.BlindClosed = tenants[0], blindClosed
}

// features are what a challenge of t announces. Static users alone have names that hide and keys that
// no token makes stronger.
func (t *tenant) features() stun.Features {
	switch {
	case t.Users == nil:
		return 0
	case t.Users.SHA256():
		return stun.PasswordAlgorithms | stun.UsernameAnonymity
	}
	return stun.UsernameAnonymity
}

// challenger returns the tenant that a client on t is challenged by: the one chosen, or the first.
func (c *Core) challenger(t Tuple) *tenant {
	if t.Tenant == 0 || int(t.Tenant) > len(c.tenants) {
		return c.tenants[0]
	}
	return c.tenants[t.Tenant-1]
}

// add enters a into its tenant's books, and remove takes it out.
func (t *tenant) add(a *allocation) {
	o := t.owners[a.owner]
	if o == nil {
		o = &owner{meter: t.parted.take(a.born, a.owner, t.RatePseudonym)}
		t.owners[a.owner] = o
	}
	o.allocations = append(o.allocations, a)
	t.allocations++
	a.books, a.meter = o, newMeter(t.Rate)
}

func (t *tenant) remove(a *allocation, now time.Time) {
	rest := a.books.allocations
	for i, o := range rest {
		if o == a {
			rest[i] = rest[len(rest)-1]
			rest[len(rest)-1] = nil
			a.books.allocations = rest[:len(rest)-1]
			t.allocations--
			break
		}
	}
	if len(a.books.allocations) == 0 {
		delete(t.owners, a.owner)
		t.parted.put(now, a.owner, a.books.meter)
	}
}

// within draws n bytes on the rates of a, its pseudonym and its tenant, from all or from none.
func (a *allocation) within(now time.Time, n int) bool {
	three := [3]*meter{&a.meter, &a.books.meter, &a.cur.tenant.meter}
	for _, m := range three {
		if !m.has(now, n) {
			return false
		}
	}
	for _, m := range three {
		m.left -= float64(n)
	}
	return true
}

// meter is a bucket that a second fills. The zero meter bounds nothing.
type meter struct {
	rate, left float64 // bytes a second; bytes
	last       time.Time
}

func newMeter(bits int64) meter { return meter{rate: float64(bits) / 8, left: float64(bits) / 8} }

// set changes the rate, to a full bucket. A meter of that rate stays as it is.
func (m *meter) set(bits int64) {
	if next := newMeter(bits); next.rate != m.rate {
		*m = next
	}
}

func (m *meter) has(now time.Time, n int) bool {
	if m.rate == 0 {
		return true
	}
	if d := now.Sub(m.last); d > 0 {
		if !m.last.IsZero() {
			m.left = min(m.rate, m.left+m.rate*d.Seconds())
		}
		m.last = now
	}
	return m.left >= float64(n) || m.left >= m.rate // one packet may be larger than the bucket
}
