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
	endedBucket   = "ended"      // by pseudonym: ended before its tokens are
)

// session is one log-in in one browser.
type session struct {
	key       string // in the store: hash of the cookie
	user      string
	pseudonym string
	end       time.Time
}

type sessionForm struct {
	Version   int    `json:"v"`
	User      string `json:"user"`
	Pseudonym string `json:"pseudonym"`
	End       int64  `json:"end"` // Unix seconds
}

type aliveForm struct {
	Version int     `json:"v"`
	Alive   []alive `json:"alive"` // oldest first
}

type alive struct {
	Pseudonym string `json:"p"`
	Session   string `json:"s"`
	End       int64  `json:"end"`
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
func (s *Server) newSession(ctx context.Context, name string) (sess session, cookie string, err error) {
	ctx, cancel := inStore(ctx)
	defer cancel()
	cookie = randomTicket()
	sess = session{key: hashTicket(cookie), user: name, pseudonym: randomName(), end: time.Now().Add(s.cfg.SessionLife).Truncate(time.Second)}
	b, err := json.Marshal(sessionForm{1, name, sess.pseudonym, sess.end.Unix()})
	if err != nil {
		return session{}, "", err
	}
	if _, err := s.store.Create(ctx, sessionBucket, sess.key, b, s.cfg.SessionLife); err != nil {
		return session{}, "", err
	}
	over, err := s.changeAlive(ctx, name, func(list []alive) (keep, over []alive) {
		list = append(list, alive{sess.pseudonym, sess.key, sess.end.Unix()})
		n := max(0, len(list)-s.cfg.MaxSessions)
		return list[n:], list[:n]
	})
	if err != nil {
		_ = s.deleteSession(ctx, sess.key) // the first error is the one to tell; the TTL ends the session
		return session{}, "", err
	}
	for _, a := range over {
		s.log.Info("session ended", "cause", "too many sessions", "user", name, "pseudonym", a.Pseudonym)
		if err := s.endSession(ctx, a.Session, a.Pseudonym); err != nil {
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

// session returns the session of a request; ok is false without one.
func (s *Server) session(r *http.Request) (sess session, ok bool, err error) {
	c, err := r.Cookie(cookieName)
	if err != nil || !isTicket(c.Value) {
		return session{}, false, nil // no cookie is no error
	}
	ctx, cancel := inStore(r.Context())
	defer cancel()
	key := hashTicket(c.Value)
	e, err := s.store.Get(ctx, sessionBucket, key)
	if errors.Is(err, store.ErrNotFound) {
		return session{}, false, nil
	}
	if err != nil {
		return session{}, false, err
	}
	var f sessionForm
	if err := json.Unmarshal(e.Value, &f); err != nil || f.Version != 1 || time.Now().Unix() >= f.End {
		return session{}, false, nil // one that cannot be read is none: the user logs in anew
	}
	return session{key, f.User, f.Pseudonym, time.Unix(f.End, 0)}, true, nil
}

// logOut ends a session and takes it off the user's list.
func (s *Server) logOut(ctx context.Context, sess session) error {
	ctx, cancel := inStore(ctx)
	defer cancel()
	err := s.endSession(ctx, sess.key, sess.pseudonym)
	_, err2 := s.changeAlive(ctx, sess.user, func(list []alive) (keep, over []alive) {
		return slices.DeleteFunc(list, func(a alive) bool { return a.Pseudonym == sess.pseudonym }), nil
	})
	return errors.Join(err, err2)
}

// endSession makes a pseudonym's tokens worthless here: no further TURN token is issued for it.
// The mark stays as long as a SIP token of it may live.
func (s *Server) endSession(ctx context.Context, key, pseudonym string) error {
	_, err := s.store.Create(ctx, endedBucket, pseudonym, []byte(`{"v":1}`), s.cfg.SIPTokenLife+s.cfg.CodeLife+claims.MaxLeeway)
	if errors.Is(err, store.ErrExists) {
		err = nil
	}
	return errors.Join(err, s.deleteSession(ctx, key))
}

func (s *Server) deleteSession(ctx context.Context, key string) error {
	e, err := s.store.Get(ctx, sessionBucket, key)
	if err == nil {
		err = s.store.Delete(ctx, sessionBucket, key, e.Revision)
	}
	if errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrConflict) {
		return nil // gone already
	}
	return err
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
