package waf

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"wicgate/internal/claims"
	"wicgate/internal/limit"
	"wicgate/internal/store"
)

// News tells those who enforce log-in sessions, the TURN servers and the edge, how long one lives
// and when it has ended. A session is known to them by its pseudonym.
type News interface {
	// Extend says that credentials of the session were issued that live until then. It must not
	// wait for a store.
	Extend(pseudonym string, until time.Time) error
	// Revoke says that the session has ended; until is when no credential of it can be alive any
	// more. It returns once the news cannot be lost. To tell the same twice does no harm.
	Revoke(ctx context.Context, pseudonym, reason string, until time.Time) error
}

// The reasons that News.Revoke is given.
const (
	ReasonLogout   = "logout"   // by the user, or by the page with a token
	ReasonRevoked  = "revoked"  // by the operator, or because a code or refresh token was stolen
	ReasonKilled   = "killed"   // by the operator, a single call or registration
	ReasonReplaced = "replaced" // by a newer session of the user
	ReasonExpired  = "expired"  // a guest's lease was not renewed
)

// endedForm is the mark that a session has ended.
type endedForm struct {
	Version int  `json:"v"`
	Told    bool `json:"told,omitempty"` // News knows
}

// end makes everything that was issued for a session worthless: no token is issued for it from the
// mark on, then the enforcers are told, then cookie and refresh tokens go. What fails on the way can
// be tried again, as the record goes last.
func (s *Server) end(ctx context.Context, key, pseudonym, reason string) error {
	// Once begun it does not stop because a browser has gone.
	ctx, cancel := inStore(context.WithoutCancel(ctx))
	defer cancel()
	if err := s.mark(ctx, pseudonym, reason); err != nil {
		return err
	}
	return s.drop(ctx, key, pseudonym)
}

// mark notes that the session has ended, for as long as anything issued for it may live, and tells
// News, once.
func (s *Server) mark(ctx context.Context, pseudonym, reason string) error {
	rev, err := s.store.Create(ctx, endedBucket, pseudonym, []byte(`{"v":1}`), s.markLife())
	if errors.Is(err, store.ErrExists) {
		var e store.Entry
		if e, err = s.store.Get(ctx, endedBucket, pseudonym); err == nil {
			var f endedForm
			if json.Unmarshal(e.Value, &f) == nil && f.Told {
				return nil
			}
			rev = e.Revision
		}
	}
	if err != nil || s.cfg.News == nil {
		return err
	}
	// The last SIP token may be exchanged for a TURN credential in its last second.
	until := time.Now().Add(s.cfg.SIPTokenLife + max(s.cfg.TURNTokenLife, s.cfg.EdgeCredentialLife) + 2*claims.MaxLeeway)
	if err := s.cfg.News.Revoke(ctx, pseudonym, reason, until); err != nil {
		return fmt.Errorf("waf: telling that session %s has ended: %w", pseudonym, err)
	}
	_, err = s.store.CompareAndSet(ctx, endedBucket, pseudonym, []byte(`{"v":1,"told":true}`), rev, s.markLife())
	if errors.Is(err, store.ErrConflict) || errors.Is(err, store.ErrNotFound) {
		return nil // another told too
	}
	return err
}

// markLife outlasts codes, refresh tokens and SIP tokens: none outlives its session.
func (s *Server) markLife() time.Duration {
	return max(s.cfg.SessionLife, s.cfg.GuestLife, s.cfg.SIPTokenLife) + s.cfg.CodeLife + claims.MaxLeeway
}

// drop takes the record away. A guest's stays until its tokens have expired, so that nobody else is
// given the identity before.
func (s *Server) drop(ctx context.Context, key, pseudonym string) error {
	bucket := bucketOf(key)
	for range 16 { // a page that refreshes at the same time changes the record
		e, err := s.store.Get(ctx, bucket, key)
		if err == nil && bucket == guestBucket {
			var sess session
			if sess, err = parseSession(e); err != nil {
				return err
			}
			if sess.Pseudonym != pseudonym || sess.Over {
				return nil // leased anew since, or over already
			}
			err = s.retire(ctx, sess)
		} else if err == nil {
			err = s.store.Delete(ctx, bucket, key, e.Revision)
		}
		switch {
		case err == nil, errors.Is(err, store.ErrNotFound):
			return nil
		case !errors.Is(err, store.ErrConflict):
			return err
		}
	}
	return fmt.Errorf("waf: session of %s: %w", pseudonym, store.ErrConflict)
}

// retire writes that a guest's lease is over. store.ErrConflict where it has changed since it was read.
func (s *Server) retire(ctx context.Context, sess session) error {
	sess.Over, sess.Chains = true, nil
	b, err := json.Marshal(sess)
	if err == nil {
		_, err = s.store.CompareAndSet(ctx, guestBucket, sess.key, b, sess.rev, sess.life(time.Now()))
	}
	return err
}

// logOut ends a session and takes it off the user's list.
func (s *Server) logOut(ctx context.Context, sess session, reason string) error {
	err := s.end(ctx, sess.key, sess.Pseudonym, reason)
	if sess.guest() || err != nil {
		return err
	}
	ctx, cancel := inStore(context.WithoutCancel(ctx))
	defer cancel()
	_, err = s.changeAlive(ctx, sess.User, func(list []alive) (keep, over []alive) {
		return slices.DeleteFunc(list, func(a alive) bool { return a.Pseudonym == sess.Pseudonym }), nil
	})
	return err
}

// Session is a log-in, or a guest's lease, as an operator sees it.
type Session struct {
	User      string // or the guest's name in the pool, such as guest-07
	Pseudonym string
	Client    string // client_id of the application; empty where an older version wrote it
	Guest     bool
	Since     time.Time // zero where an older version wrote it
	Until     time.Time // its end, unless a guest renews the lease
}

// Sessions returns the sessions alive, oldest first, at most 10,000.
func (s *Server) Sessions(ctx context.Context) (list []Session, err error) {
	now := time.Now().Unix()
	add := func(user, pseudonym, client string, guest bool, since, end int64) bool {
		x := Session{User: user, Pseudonym: pseudonym, Client: client, Guest: guest, Until: time.Unix(end, 0)}
		if since > 0 {
			x.Since = time.Unix(since, 0)
		}
		if end > now {
			list = append(list, x)
		}
		return len(list) < 10_000
	}
	err = s.store.Scan(ctx, aliveBucket, func(e store.Entry) bool {
		var f aliveForm
		if err := json.Unmarshal(e.Value, &f); err != nil || f.Version != 1 {
			s.log.Warn("the list of sessions of a user is of another version or damaged", "user", e.Key)
			return true
		}
		for _, a := range f.Alive {
			if !add(e.Key, a.Pseudonym, a.Client, false, a.Since, a.End) {
				return false
			}
		}
		return true
	})
	if err != nil {
		return nil, fmt.Errorf("waf: list of sessions: %w", err)
	}
	err = s.store.Scan(ctx, guestBucket, func(e store.Entry) bool {
		sess, err := parseSession(e)
		if err != nil || sess.Over {
			return true
		}
		return add(sess.User, sess.Pseudonym, sess.Client, true, sess.Since, sess.End)
	})
	if err != nil {
		return nil, fmt.Errorf("waf: list of guests: %w", err)
	}
	slices.SortStableFunc(list, func(a, b Session) int {
		if c := a.Since.Compare(b.Since); c != 0 {
			return c
		}
		return strings.Compare(a.User, b.User)
	})
	return list, nil
}

// ErrNoUser says that RevokeUser was given a name that is neither a user's nor a guest's.
var ErrNoUser = errors.New("no such user")

// RevokeUser ends every session of a user, or the lease of a guest such as "guest-07", and returns
// how many. Every code, token, refresh token and cookie issued before is dead then; the user may
// log in anew. After an error some may still be alive: call it again.
func (s *Server) RevokeUser(ctx context.Context, name, reason string) (sessions int, err error) {
	name, ok := userName(name)
	if !ok {
		return 0, fmt.Errorf("waf: %w of that name", ErrNoUser)
	}
	if _, isGuest := guestNumber(name); isGuest {
		return s.revokeGuest(ctx, name, reason)
	}
	done := map[string]bool{}
	for range 16 { // each turn the user logged in at the same time
		// A session leaves the list after it has ended, so that nothing is forgotten on the way.
		var left []alive
		storeCtx, cancel := inStore(ctx)
		_, err := s.changeAlive(storeCtx, name, func(list []alive) (keep, over []alive) {
			left = slices.DeleteFunc(list, func(a alive) bool { return done[a.Pseudonym] })
			return left, nil
		})
		cancel()
		if err != nil {
			return len(done), fmt.Errorf("waf: sessions of user %q: %w", name, err)
		}
		if len(left) == 0 {
			break
		}
		for _, a := range left {
			if err := s.end(ctx, a.Session, a.Pseudonym, reason); err != nil {
				return len(done), fmt.Errorf("waf: sessions of user %q: %w", name, err)
			}
			done[a.Pseudonym] = true
			s.log.Info("session ended", "cause", "operator", "reason", reason, "user", name, "pseudonym", a.Pseudonym)
		}
	}
	if len(done) == 0 {
		if _, err := s.readUser(ctx, name); errors.Is(err, store.ErrNotFound) {
			return 0, fmt.Errorf("waf: %w: %q", ErrNoUser, name)
		} else if err != nil {
			return 0, err
		}
	}
	return len(done), nil
}

func (s *Server) revokeGuest(ctx context.Context, name, reason string) (int, error) {
	storeCtx, cancel := inStore(ctx)
	sess, err := s.readSession(storeCtx, name)
	cancel()
	if errors.Is(err, errNoSession) {
		return 0, nil
	}
	if err == nil {
		err = s.end(ctx, sess.key, sess.Pseudonym, reason)
	}
	if err != nil {
		return 0, fmt.Errorf("waf: lease of %s: %w", name, err)
	}
	s.log.Info("session ended", "cause", "operator", "reason", reason, "user", name, "pseudonym", sess.Pseudonym)
	return 1, nil
}

// RevokeSession ends the session of a pseudonym. found is false where none is alive; its tokens are
// refused all the same.
func (s *Server) RevokeSession(ctx context.Context, pseudonym, reason string) (found bool, err error) {
	if len(pseudonym) != len(randomName()) {
		return false, nil
	}
	sess, err := s.find(ctx, pseudonym)
	if errors.Is(err, errNoSession) {
		ctx, cancel := inStore(ctx)
		defer cancel()
		return false, s.mark(ctx, pseudonym, reason)
	}
	if err != nil {
		return false, err
	}
	s.log.Info("session ended", "cause", "operator", "reason", reason, "user", sess.User, "pseudonym", pseudonym)
	return true, s.logOut(ctx, sess, reason)
}

// find looks for the session of a pseudonym through all lists.
func (s *Server) find(ctx context.Context, pseudonym string) (found session, err error) {
	err = s.store.Scan(ctx, aliveBucket, func(e store.Entry) bool {
		var f aliveForm
		if json.Unmarshal(e.Value, &f) != nil {
			return true
		}
		for _, a := range f.Alive {
			if a.Pseudonym == pseudonym {
				found = session{User: e.Key, Pseudonym: pseudonym, key: a.Session}
			}
		}
		return found.key == ""
	})
	if err == nil && found.key == "" {
		err = s.store.Scan(ctx, guestBucket, func(e store.Entry) bool {
			if sess, err := parseSession(e); err == nil && !sess.Over && sess.Pseudonym == pseudonym {
				found = sess
			}
			return found.key == ""
		})
	}
	if err == nil && found.key == "" {
		err = errNoSession
	}
	return found, err
}

// revoke is the revocation endpoint (RFC 7009): a refresh token or a SIP token ends its session. A
// token that means nothing here is no error (§2.2). TURN tokens end with their session.
func (s *Server) revoke(w http.ResponseWriter, r *http.Request) {
	p, auth, ok := s.request(w, r)
	if !ok {
		return
	}
	if auth.ID != "" { // its tokens belong to its page
		p["client_id"] = auth.ID
	}
	if no := s.revokeToken(r, p); no != nil {
		s.refuseToken(w, r, no)
		return
	}
	header(w)
	writeJSON(w, http.StatusOK, struct{}{})
}

func (s *Server) revokeToken(r *http.Request, p values) *tokenError {
	client, no := s.public(p)
	if no != nil {
		return no
	}
	if p["token"] == "" {
		return bad(BadParameter, "invalid_request", "token is missing", "client", client.ID)
	}
	ctx, cancel := inStore(r.Context())
	defer cancel()
	sess, no := s.sessionOf(ctx, client, p["token"])
	if no != nil || sess.key == "" {
		return no
	}
	if err := s.logOut(ctx, sess, ReasonLogout); err != nil {
		return noStore(err)
	}
	s.stats.logOuts.Add(1)
	s.log.Info("logged out", "user", sess.User, "pseudonym", sess.Pseudonym, "client", client.ID, "from", limit.Source(r))
	return nil
}

// sessionOf returns the session that a token of client was issued for; none, without an error, for
// what is no token that is good here.
func (s *Server) sessionOf(ctx context.Context, client Client, tok string) (session, *tokenError) {
	foreign := bad(ForeignCode, "invalid_grant", "the token was issued to another client", "client", client.ID)
	if key, id, _, ok := parseRefresh(tok); ok {
		sess, err := s.readSession(ctx, key)
		if errors.Is(err, errNoSession) {
			return session{}, nil
		} else if err != nil {
			return session{}, noStore(err)
		}
		// A spent token of a page whose answer was lost logs out too, and a stolen one may.
		switch c := sess.chain(id); {
		case c == nil:
			return session{}, nil
		case c.Client != client.ID:
			return session{}, foreign
		}
		return sess, nil
	}
	c, err := s.signer.verify(tok)
	if err != nil || c.Check(time.Now(), []string{s.cfg.Issuer}, s.cfg.Audience) != nil {
		return session{}, nil
	}
	if c.ClientID != client.ID {
		return session{}, foreign
	}
	if c.IMS.Scenario == claims.ScenarioPool {
		sess, err := s.readSession(ctx, c.Subject)
		switch {
		case errors.Is(err, errNoSession), err == nil && sess.Pseudonym != c.Pseudonym:
			return session{}, nil
		case err != nil:
			return session{}, noStore(err)
		}
		return sess, nil
	}
	e, err := s.store.Get(ctx, aliveBucket, c.Subject)
	if errors.Is(err, store.ErrNotFound) {
		return session{}, nil
	}
	var f aliveForm
	if err != nil || json.Unmarshal(e.Value, &f) != nil {
		return session{}, noStore(fmt.Errorf("waf: list of sessions of user %q: %w", c.Subject, err))
	}
	for _, a := range f.Alive {
		if a.Pseudonym == c.Pseudonym {
			return session{User: c.Subject, Pseudonym: a.Pseudonym, key: a.Session}, nil
		}
	}
	return session{}, nil
}
