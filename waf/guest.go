package waf

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"time"

	"wicgate/internal/store"
)

const (
	grantClient = "client_credentials"

	maxGuests = 1000
	// guestTokenLife bounds the life of a guest's SIP token, so that the identity of one who has
	// left is soon free again. The page renews it in time.
	guestTokenLife = 10 * time.Minute
	// sweepEvery is how often leases are looked through for those that were not renewed. It is
	// less than claims.MaxLeeway, for which such a lease is still in the store.
	sweepEvery = 10 * time.Second
)

// guestName is an identity's name in the pool, the user part of IMPI and IMPU.
func guestName(n int) string { return fmt.Sprintf("guest-%02d", n) }

// guestNumber reads a guestName.
func guestNumber(name string) (n int, ok bool) {
	digits, found := strings.CutPrefix(name, "guest-")
	if !found || len(digits) > 4 {
		return 0, false
	}
	n, err := strconv.Atoi(digits)
	return n, err == nil && 0 < n && n <= maxGuests && guestName(n) == name
}

// guest is an identity of the pool.
func (s *Server) guest(n int) user {
	name := guestName(n)
	return user{name: name, display: fmt.Sprintf("Guest %d", n), impi: name + "@" + s.cfg.Domain, impu: []string{"sip:" + name + "@" + s.cfg.Domain}}
}

// lease is the grant client_credentials (RFC 6749 §4.4): an identity of the pool for one guest of a
// WWSF (TS 24.371 scenario 3, TR 33.872 6.3.2.3), with its tokens. These belong to the WWSF's page,
// a public client, which renews them itself; that is why there is a refresh token in spite of
// RFC 6749 §4.4.3.
//
// The lease is a record that Create makes under the identity's name: of several WAFs one gets it.
// It ends with the record's time to live, which outlasts every SIP token of it, whoever crashes.
func (s *Server) lease(r *http.Request, p values, portal Client) (any, *tokenError) {
	scope, ok := grantedScope(p["scope"])
	if !ok {
		return nil, bad(BadScope, "invalid_scope", "the scope must hold sip", "client", portal.ID)
	}
	ctx, cancel := inStore(r.Context())
	defer cancel()
	taken := map[string]bool{}
	if err := s.store.Scan(ctx, guestBucket, func(e store.Entry) bool { taken[e.Key] = true; return true }); err != nil {
		return nil, noStore(err)
	}
	now := time.Now()
	for _, i := range rand.Perm(s.cfg.Guests) { // not always the same: a guest who left is not at once followed by another
		name := guestName(i + 1)
		if taken[name] {
			continue
		}
		sess := session{Version: 1, User: name, Pseudonym: randomName(), Client: portal.ID, Since: now.Unix(), key: name}
		s.renew(&sess, now)
		refresh := sess.begin(portal.Page, scope, now)
		err := s.createSession(ctx, sess)
		if errors.Is(err, store.ErrExists) {
			continue // another was faster
		}
		if err != nil {
			return nil, noStore(err)
		}
		s.stats.leases.Add(1)
		return s.issue(r, sess, s.guest(i+1), portal.Page, scope, refresh)
	}
	e := bad(PoolEmpty, "temporarily_unavailable", "all identities for guests are taken: try again in a few minutes", "client", portal.ID, "guests", s.cfg.Guests)
	e.status, e.wait = http.StatusServiceUnavailable, time.Minute
	return nil, e
}

// renew moves the end of a guest's lease, and of the SIP token that is to be issued.
func (s *Server) renew(sess *session, now time.Time) {
	if !sess.guest() {
		return
	}
	sess.End = min(now.Add(s.cfg.GuestLife).Unix(), sess.Since+int64(s.cfg.SessionLife/time.Second))
	sess.Tokens = min(now.Add(min(s.cfg.SIPTokenLife, guestTokenLife)).Unix(), sess.End)
}

// sweep ends leases that were not renewed, so that the enforcers hear of it. Without it they end
// too, by the lives of their tokens.
func (s *Server) sweep(ctx context.Context) {
	ctx, cancel := inStore(ctx)
	defer cancel()
	var over []session
	now := time.Now().Unix()
	err := s.store.Scan(ctx, guestBucket, func(e store.Entry) bool {
		if sess, err := parseSession(e); err == nil && !sess.Over && sess.End <= now {
			over = append(over, sess)
		}
		return true
	})
	if err != nil {
		s.log.Warn("looking for leases that have ended", "error", err)
		return
	}
	for _, sess := range over {
		// The read may be old: the lease is over once this is written, and then never renewed.
		err := s.retire(ctx, sess)
		if errors.Is(err, store.ErrConflict) || errors.Is(err, store.ErrNotFound) {
			continue // renewed, or another WAF was first
		}
		if err == nil {
			s.log.Info("session ended", "cause", "lease not renewed", "user", sess.User, "pseudonym", sess.Pseudonym)
			err = s.mark(ctx, sess.Pseudonym, ReasonExpired)
		}
		if err != nil {
			s.log.Warn("ending a lease", "user", sess.User, "pseudonym", sess.Pseudonym, "error", err)
		}
	}
}
