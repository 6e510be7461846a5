package waf

import (
	"context"
	"errors"
	"fmt"
	"math"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"time"

	"wicgate/internal/limit"
	"wicgate/internal/secret"
	"wicgate/internal/store"
)

// The words for a wrong password and an unknown user are the same.
const wrongText = "User name or password is wrong."

// login takes the form of the log-in page. The authorization request comes with it, in the query,
// and is checked again. GET is for a reader who reloads the page by its address.
func (s *Server) login(w http.ResponseWriter, r *http.Request) {
	switch r.Method {
	case http.MethodGet:
		s.authorize(w, r)
		return
	case http.MethodPost:
	default:
		s.wrongMethod(w, r, http.MethodGet, http.MethodPost)
		return
	}
	a, no := s.parseAuthorization(r)
	if no != nil {
		s.refuseAuthorization(w, r, a, no)
		return
	}
	form, status := s.form(w, r)
	if status != 0 {
		s.page(w, status, page{Title: "This form does not work", Text: "What was sent is not what the sign-in page sends. Go back and try again."})
		return
	}
	typed := form["username"]
	password := secret.New([]byte(form["password"]))
	name, cause, wait, err := s.checkLogin(r.Context(), limit.Source(r), typed, password)
	switch {
	case err == nil:
	case errors.Is(err, errRefused):
		s.stats.logInsFailed.Add(1)
		// What was typed as a name of nobody may be a password: it is not logged.
		s.refused(r, cause, "client", a.client.ID, "user", name)
		if cause == WrongPassword || cause == UnknownUser {
			s.loginPage(w, http.StatusForbidden, a, typed, wrongText)
			return
		}
		seconds := int(math.Ceil(wait.Seconds()))
		w.Header().Set("Retry-After", fmt.Sprint(seconds))
		s.loginPage(w, http.StatusTooManyRequests, a, typed, fmt.Sprintf("Too many attempts. Try again in %d seconds.", seconds))
		return
	default:
		s.unavailable(w, r, err)
		return
	}
	// Always a new session: a cookie that somebody else put there is worth nothing. The session
	// before, if any, keeps its pseudonym for the calls of other tabs, until its time is up.
	sess, cookie, err := s.newSession(r.Context(), name, a.client.ID)
	if err != nil {
		s.unavailable(w, r, err)
		return
	}
	s.stats.logIns.Add(1)
	s.log.Info("logged in", "user", name, "pseudonym", sess.Pseudonym, "client", a.client.ID, "from", limit.Source(r))
	setCookie(w, cookie)
	s.sendCode(w, r, a, sess)
}

// errRefused: the log-in is refused, for the cause that goes with it.
var errRefused = errors.New("refused")

// checkLogin returns the user's name if the password is right. With errRefused, name is that of a
// user that exists, or empty. Every attempt counts for its source, for the user, and for both
// together, whether the user exists or not; one that succeeds is taken off again, and counts for the user
// in a limit of its own. The limit for both is the lowest, so that one stranger cannot keep a user out.
func (s *Server) checkLogin(ctx context.Context, from, typed string, password secret.Bytes) (name string, c Cause, wait time.Duration, err error) {
	name, possible := userName(typed)
	now := time.Now()
	who := hashTicket(name) // a fixed size, whatever was typed
	if !possible {
		who = hashTicket(typed)
	}
	for _, l := range []struct {
		*limit.Limiter
		key string
	}{{s.bySource, from}, {s.byBoth, from + " " + who}, {s.byUser, who}} {
		if wait, ok := l.Take(l.key, now); !ok {
			return "", TooManyLogins, wait, errRefused
		}
	}
	var u user
	if possible {
		if u, err = s.readUser(ctx, name); err != nil && !errors.Is(err, store.ErrNotFound) {
			return "", 0, 0, err
		}
	}
	right, err := s.hasher.check(ctx, password, u.password)
	switch {
	case errors.Is(err, errBusy):
		return "", Busy, 5 * time.Second, errRefused
	case err != nil:
		return "", 0, 0, err
	case right:
		now = time.Now()
		s.bySource.GiveBack(from, now)
		s.byBoth.GiveBack(from+" "+who, now)
		s.byUser.GiveBack(who, now)
		// Each session beyond the most ends another, and its end is kept and told for hours.
		if wait, ok := s.byRight.Take(who, now); !ok {
			return u.name, TooManyLogins, wait, errRefused
		}
		return u.name, 0, 0, nil
	case u.name == "":
		return "", UnknownUser, 0, errRefused
	}
	return u.name, WrongPassword, 0, errRefused
}

// form reads the body of a POST. status is 0, or what to answer; the refusal is logged.
func (s *Server) form(w http.ResponseWriter, r *http.Request) (v values, status int) {
	if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != "application/x-www-form-urlencoded" {
		s.refused(r, BadParameter, "detail", "the body is no form")
		return nil, http.StatusUnsupportedMediaType
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	if err := r.ParseForm(); err != nil {
		var big *http.MaxBytesError
		if errors.As(err, &big) {
			s.refused(r, TooLarge, "limit", big.Limit)
			return nil, http.StatusRequestEntityTooLarge
		}
		s.refused(r, BadParameter, "detail", "the body cannot be read")
		return nil, http.StatusBadRequest
	}
	v, err := single(r.PostForm)
	if err != nil {
		s.refused(r, BadParameter, "detail", err.Error())
		return nil, http.StatusBadRequest
	}
	return v, 0
}

// logout shows a question, and on POST ends the session. With client_id and a
// post_logout_redirect_uri that is registered for it the browser goes on there.
func (s *Server) logout(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodPost {
		s.wrongMethod(w, r, http.MethodGet, http.MethodPost)
		return
	}
	sess, ok, err := s.session(r)
	if err != nil {
		s.unavailable(w, r, err)
		return
	}
	q := r.URL.Query()
	to := q.Get("post_logout_redirect_uri")
	if c, known := s.clients[q.Get("client_id")]; to != "" && (!known || !slices.Contains(c.RedirectURIs, to)) {
		s.refused(r, BadRedirect, "redirect_uri", short(to))
		to = ""
	}
	if ok && r.Method == http.MethodGet {
		p := page{Title: "Log out?", Text: "You are logged in as " + sess.User + ".", Action: "/oauth/logout", Button: "Log out"}
		if to != "" {
			p.Action += "?" + url.Values{"client_id": {q.Get("client_id")}, "post_logout_redirect_uri": {to}}.Encode()
			p.formTo = originOf(to)
		}
		s.page(w, http.StatusOK, p)
		return
	}
	if ok {
		if err := s.logOut(r.Context(), sess, ReasonLogout); err != nil {
			s.unavailable(w, r, err)
			return
		}
		s.stats.logOuts.Add(1)
		s.log.Info("logged out", "user", sess.User, "pseudonym", sess.Pseudonym, "from", limit.Source(r))
	}
	clearCookie(w)
	if to != "" {
		header(w)
		w.Header().Set("Location", to)
		w.WriteHeader(http.StatusSeeOther)
		return
	}
	s.page(w, http.StatusOK, page{Title: "Logged out", Text: "You are logged out. You can close this window."})
}

// refuseForgery answers a form that a page of another origin sent.
func (s *Server) refuseForgery(w http.ResponseWriter, r *http.Request) {
	s.refused(r, Forged, "origin", short(r.Header.Get("Origin")))
	s.page(w, http.StatusForbidden, page{Title: "Not from here", Text: "This request came from a page of another site and was not carried out."})
}
