package waf

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"wicgate/internal/claims"
	"wicgate/internal/store"
)

const (
	// The prefix makes browsers keep it to this host, this path and HTTPS (RFC 6265bis §4.1.3.2).
	cookieName = "__Host-wicgate"

	sessionBucket = "sessions"   // by the cookie's hash
	aliveBucket   = "pseudonyms" // by user: the sessions alive
	guestBucket   = "guests"     // by the name in the pool: leases
	endedBucket   = "ended"      // by pseudonym: ended before its tokens are
)

// session is one log-in in one browser, or one guest's lease of an identity of the pool. The record
// in the store is all of it: cookie, refresh tokens and lease end with it, at once.
type session struct {
	Version   int     `json:"v"`
	User      string  `json:"user"` // of a guest: the name in the pool, such as guest-07
	Pseudonym string  `json:"pseudonym"`
	Client    string  `json:"client,omitempty"` // who asked for it
	Since     int64   `json:"since,omitempty"`  // Unix seconds, as are the others
	End       int64   `json:"end"`              // no token of it lives longer
	Chains    []chain `json:"chains,omitempty"`
	Tokens    int64   `json:"tokens,omitempty"` // guests: the end of the last SIP token
	Over      bool    `json:"over,omitempty"`   // ended before its time; a guest's identity waits for Tokens

	key string         // in its bucket: hash of the cookie, or the guest's name
	rev store.Revision // as read
}

// errNoSession: there is none, or it is over.
var errNoSession = errors.New("waf: the session is over")

// bucketOf is where a session of that key is kept.
func bucketOf(key string) string {
	if isTicket(key) {
		return sessionBucket
	}
	return guestBucket
}

func (s session) guest() bool { return bucketOf(s.key) == guestBucket }

func (s session) at(now time.Time) bool { return !s.Over && now.Unix() < s.End }

// life is how long the record is kept. A guest's outlives its last SIP token by what clocks may
// differ, so that no identity is leased twice while a token of it is good anywhere.
func (s session) life(now time.Time) time.Duration {
	end := s.End
	if s.guest() {
		if s.Over {
			end = s.Tokens
		}
		end += int64(claims.MaxLeeway / time.Second)
	}
	return time.Duration(max(1, end-now.Unix())) * time.Second
}

// readSession returns errNoSession for one that is not there, over, or not readable: its user logs
// in anew. One that is over comes with it, as read.
func (s *Server) readSession(ctx context.Context, key string) (session, error) {
	e, err := s.store.Get(ctx, bucketOf(key), key)
	if errors.Is(err, store.ErrNotFound) {
		return session{}, errNoSession
	}
	if err != nil {
		return session{}, err
	}
	sess, err := parseSession(e)
	switch {
	case err != nil:
		return session{}, errNoSession
	case sess.Over:
		return sess, errNoSession
	case !sess.at(time.Now()):
		return session{}, errNoSession
	}
	return sess, nil
}

func parseSession(e store.Entry) (session, error) {
	sess := session{key: e.Key, rev: e.Revision}
	if err := json.Unmarshal(e.Value, &sess); err != nil || sess.Version != 1 {
		return session{}, errNoSession
	}
	return sess, nil
}

func (s *Server) createSession(ctx context.Context, sess session) error {
	b, err := json.Marshal(sess)
	if err == nil {
		_, err = s.store.Create(ctx, bucketOf(sess.key), sess.key, b, sess.life(time.Now()))
	}
	return err
}

// changeSession applies change to the newest record; change may be called several times. What it
// did is written where it returns nil or errReused, and its error is returned once that is done: a
// read alone may be old, and decides nothing.
func (s *Server) changeSession(ctx context.Context, key string, change func(*session) error) (session, error) {
	for range 16 { // each turn another node or page won
		sess, err := s.readSession(ctx, key)
		if err != nil {
			return session{}, err
		}
		verdict := change(&sess)
		if verdict != nil && !errors.Is(verdict, errReused) {
			return sess, verdict
		}
		b, err := json.Marshal(sess)
		if err != nil {
			return session{}, err
		}
		_, err = s.store.CompareAndSet(ctx, bucketOf(key), key, b, sess.rev, sess.life(time.Now()))
		switch {
		case err == nil:
			return sess, verdict
		case errors.Is(err, store.ErrNotFound):
			return session{}, errNoSession
		case !errors.Is(err, store.ErrConflict):
			return session{}, err
		}
	}
	return session{}, fmt.Errorf("waf: session in bucket %s: %w", bucketOf(key), store.ErrConflict)
}

type aliveForm struct {
	Version int     `json:"v"`
	Alive   []alive `json:"alive"` // oldest first
}

type alive struct {
	Pseudonym string `json:"p"`
	Session   string `json:"s"`
	End       int64  `json:"end"`
	Since     int64  `json:"since,omitempty"`
	Client    string `json:"client,omitempty"`
}

// randomName is 128 random bits, 22 characters of base64url.
func randomName() string {
	var b [16]byte
	rand.Read(b[:]) // never fails
	return base64.RawURLEncoding.EncodeToString(b[:])
}

// randomTicket is a bearer value of 256 bits: a cookie or a code. The store has its hash alone.
func randomTicket() string {
	var b [32]byte
	rand.Read(b[:]) // never fails
	return base64.RawURLEncoding.EncodeToString(b[:])
}

// isTicket reports whether s can be one: 43 characters of base64url.
func isTicket(s string) bool {
	if len(s) != 43 {
		return false
	}
	_, err := base64.RawURLEncoding.Strict().DecodeString(s)
	return err == nil
}

func hashTicket(t string) string {
	sum := sha256.Sum256([]byte(t))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// newSession begins a session of the user, with a pseudonym of its own, and ends the oldest where
// there are too many. It returns the cookie's value.
func (s *Server) newSession(ctx context.Context, name, client string) (sess session, cookie string, err error) {
	ctx, cancel := inStore(ctx)
	defer cancel()
	cookie = randomTicket()
	now := time.Now()
	sess = session{Version: 1, User: name, Pseudonym: randomName(), Client: client,
		Since: now.Unix(), End: now.Add(s.cfg.SessionLife).Unix(), key: hashTicket(cookie)}
	if err := s.createSession(ctx, sess); err != nil {
		return session{}, "", err
	}
	over, err := s.changeAlive(ctx, name, func(list []alive) (keep, over []alive) {
		list = append(list, alive{sess.Pseudonym, sess.key, sess.End, sess.Since, client})
		n := max(0, len(list)-s.cfg.MaxSessions)
		return list[n:], list[:n]
	})
	if err != nil {
		_ = s.drop(ctx, sess.key, sess.Pseudonym) // the first error is the one to tell; the TTL ends the session
		return session{}, "", err
	}
	for _, a := range over {
		s.log.Info("session ended", "cause", "too many sessions", "user", name, "pseudonym", a.Pseudonym)
		if err := s.end(ctx, a.Session, a.Pseudonym, ReasonReplaced); err != nil {
			s.log.Warn("ending a session", "pseudonym", a.Pseudonym, "error", err)
		}
	}
	return sess, cookie, nil
}

// changeAlive changes the list of a user's sessions. change may be called several times.
func (s *Server) changeAlive(ctx context.Context, name string, change func([]alive) (keep, over []alive)) (over []alive, err error) {
	for range 16 { // each turn another node or browser won
		var f aliveForm
		e, err := s.store.Get(ctx, aliveBucket, name)
		switch {
		case errors.Is(err, store.ErrNotFound):
		case err != nil:
			return nil, err
		default:
			if err := json.Unmarshal(e.Value, &f); err != nil || f.Version != 1 {
				return nil, fmt.Errorf("waf: the list of sessions of user %q is of another version or damaged", name)
			}
		}
		now := time.Now().Unix()
		list := slices.DeleteFunc(f.Alive, func(a alive) bool { return a.End <= now })
		keep, over := change(list)
		if err != nil && len(keep) == 0 {
			return over, nil // nothing there, and nothing to write
		}
		b, merr := json.Marshal(aliveForm{1, keep})
		if merr != nil {
			return nil, merr
		}
		if err == nil {
			_, err = s.store.CompareAndSet(ctx, aliveBucket, name, b, e.Revision, s.cfg.SessionLife)
		} else {
			_, err = s.store.Create(ctx, aliveBucket, name, b, s.cfg.SessionLife)
		}
		switch {
		case err == nil:
			return over, nil
		case errors.Is(err, store.ErrConflict), errors.Is(err, store.ErrExists), errors.Is(err, store.ErrNotFound):
		default:
			return nil, err
		}
	}
	return nil, fmt.Errorf("waf: sessions of user %q: %w", name, store.ErrConflict)
}

// session returns the session of a request's cookie; ok is false without one.
func (s *Server) session(r *http.Request) (sess session, ok bool, err error) {
	c, err := r.Cookie(cookieName)
	if err != nil || !isTicket(c.Value) {
		return session{}, false, nil // no cookie is no error
	}
	ctx, cancel := inStore(r.Context())
	defer cancel()
	sess, err = s.readSession(ctx, hashTicket(c.Value))
	if errors.Is(err, errNoSession) {
		return session{}, false, nil
	}
	return sess, err == nil, err
}

// ended reports whether the session of a pseudonym has been ended. An error means that the store
// did not say.
func (s *Server) ended(ctx context.Context, pseudonym string) (bool, error) {
	ctx, cancel := inStore(ctx)
	defer cancel()
	_, err := s.store.Get(ctx, endedBucket, pseudonym)
	if errors.Is(err, store.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// setCookie gives the browser its session, until it is closed; the store ends it earlier.
func setCookie(w http.ResponseWriter, value string) {
	http.SetCookie(w, &http.Cookie{Name: cookieName, Value: value, Path: "/", Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode})
}

func clearCookie(w http.ResponseWriter) {
	http.SetCookie(w, &http.Cookie{Name: cookieName, Path: "/", Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode, MaxAge: -1})
}
