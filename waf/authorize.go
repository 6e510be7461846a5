package waf

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"wicgate/internal/claims"
	"wicgate/internal/limit"
)

const codeBucket = "codes" // by the code's hash; a code that was used leaves a mark under "used."

// authorization is a valid authorization request (RFC 6749 §4.1.1, RFC 7636 §4.3).
type authorization struct {
	client    Client
	redirect  string
	state     string
	scope     string // what was asked for and is served
	challenge string
	prompt    string
}

// refusal is what is wrong with an authorization request.
type refusal struct {
	cause Cause
	code  string // RFC 6749 §4.1.2.1; empty: tell the user, do not redirect
	text  string // for people, a constant
}

// parseAuthorization reads a request in two halves: until client and redirect URI are known to
// belong together every error goes to the user (RFC 6749 §4.1.2.1), after that to the client.
func (s *Server) parseAuthorization(r *http.Request) (a authorization, no *refusal) {
	if len(r.URL.RawQuery) > maxURL {
		return a, &refusal{TooLarge, "", "The request is too long."}
	}
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return a, &refusal{BadParameter, "", "The request cannot be read."}
	}
	// The two that decide where an answer may go come first, and strictly once.
	if id := q["client_id"]; len(id) == 1 {
		a.client = s.clients[id[0]]
	}
	if a.client.ID == "" {
		return a, &refusal{UnknownClient, "", "The application that sent you here is not registered."}
	}
	uri := q["redirect_uri"]
	if len(uri) != 1 || !slices.Contains(a.client.RedirectURIs, uri[0]) {
		return a, &refusal{BadRedirect, "", "The application that sent you here asks to send you on to an address that is not registered for it."}
	}
	a.redirect = uri[0]
	if st := q["state"]; len(st) == 1 && len(st[0]) <= maxValue {
		a.state = st[0]
	} else if len(st) != 0 {
		return a, &refusal{BadParameter, "invalid_request", "state is there twice or too long"}
	}
	p, err := single(q)
	if err != nil {
		return a, &refusal{BadParameter, "invalid_request", "a parameter is there twice"}
	}
	for _, v := range p {
		if len(v) > maxValue {
			return a, &refusal{BadParameter, "invalid_request", "a parameter is too long"}
		}
	}
	switch {
	case p["request"] != "":
		return a, &refusal{BadParameter, "request_not_supported", "request objects are not served"}
	case p["request_uri"] != "":
		return a, &refusal{BadParameter, "request_uri_not_supported", "request objects are not served"}
	case p["response_type"] == "":
		return a, &refusal{BadResponseType, "invalid_request", "response_type is missing"}
	case p["response_type"] != "code":
		return a, &refusal{BadResponseType, "unsupported_response_type", "response_type must be code"}
	case p["response_mode"] != "" && p["response_mode"] != "query":
		return a, &refusal{BadParameter, "invalid_request", "response_mode must be query"}
	case p["code_challenge"] == "":
		return a, &refusal{BadPKCE, "invalid_request", "code_challenge is missing: PKCE is required"}
	case p["code_challenge_method"] != "S256": // absent means plain, RFC 7636 §4.3
		return a, &refusal{BadPKCE, "invalid_request", "code_challenge_method must be S256"}
	case !isTicket(p["code_challenge"]): // a SHA-256, in the same form
		return a, &refusal{BadPKCE, "invalid_request", "code_challenge is no SHA-256 in base64url"}
	case p["prompt"] != "" && p["prompt"] != "none" && p["prompt"] != "login":
		return a, &refusal{BadParameter, "invalid_request", "prompt must be none or login"}
	}
	a.challenge, a.prompt = p["code_challenge"], p["prompt"]
	var ok bool
	if a.scope, ok = grantedScope(p["scope"]); !ok {
		return a, &refusal{BadScope, "invalid_scope", "the scope must hold " + claims.Scope}
	}
	return a, nil
}

// grantedScope is what of the scope asked for is served: RFC 6749 §3.3 lets us leave out the rest,
// and the token response says so.
func grantedScope(asked string) (granted string, ok bool) {
	if asked == "" || slices.Contains(strings.Split(asked, " "), claims.Scope) {
		return claims.Scope, true
	}
	return "", false
}

// query is the request again, for the log-in form. prompt=login is done by then.
func (a authorization) query() string {
	q := url.Values{"response_type": {"code"}, "client_id": {a.client.ID}, "redirect_uri": {a.redirect}, "scope": {a.scope},
		"code_challenge": {a.challenge}, "code_challenge_method": {"S256"}}
	if a.state != "" {
		q.Set("state", a.state)
	}
	return q.Encode()
}

// authorize is the authorization endpoint. A browser with a session gets its code at once, others
// the log-in page. It has no CORS: pages navigate here and do not fetch (RFC 9700 §2.6).
func (s *Server) authorize(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet {
		s.wrongMethod(w, r, http.MethodGet)
		return
	}
	a, no := s.parseAuthorization(r)
	if no != nil {
		s.refuseAuthorization(w, r, a, no)
		return
	}
	if a.prompt != "login" {
		sess, ok, err := s.session(r)
		if ok && err == nil {
			var over bool
			over, err = s.ended(r.Context(), sess.Pseudonym) // its record may still be there
			ok = !over
		}
		if err != nil {
			s.unavailable(w, r, err)
			return
		}
		if ok {
			s.sendCode(w, r, a, sess)
			return
		}
	}
	if a.prompt == "none" {
		s.refuseAuthorization(w, r, a, &refusal{LoginRequired, "login_required", "the user is not logged in"})
		return
	}
	s.loginPage(w, http.StatusOK, a, "", "")
}

// refuseAuthorization tells the user, or the client where the redirect URI is its own.
func (s *Server) refuseAuthorization(w http.ResponseWriter, r *http.Request, a authorization, no *refusal) {
	s.refused(r, no.cause, "client", a.client.ID, "detail", no.text, "redirect_uri", short(r.URL.Query().Get("redirect_uri")))
	if no.code == "" {
		s.page(w, http.StatusBadRequest, page{Title: "This link does not work", Text: no.text +
			" You were not sent on, for your safety. Go back and try again; if it happens again, tell whoever runs the application."})
		return
	}
	s.redirect(w, a, url.Values{"error": {no.code}, "error_description": {no.text}})
}

// redirect answers the client at its registered URI, with state and iss (RFC 9207 §2).
func (s *Server) redirect(w http.ResponseWriter, a authorization, q url.Values) {
	if a.state != "" {
		q.Set("state", a.state)
	}
	q.Set("iss", s.cfg.Issuer)
	to, sep := a.redirect, "?"
	if strings.Contains(to, "?") { // a query that is registered stays (RFC 6749 §3.1.2)
		sep = "&"
	}
	header(w)
	w.Header().Set("Location", to+sep+q.Encode())
	w.WriteHeader(http.StatusSeeOther) // 303: a form's password never travels on (RFC 9700 §4.12)
}

// code is what the store keeps of an authorization code.
type code struct {
	Version   int    `json:"v"`
	Client    string `json:"client"`
	Redirect  string `json:"redirect"`
	Challenge string `json:"challenge"`
	Scope     string `json:"scope"`
	User      string `json:"user"`
	Pseudonym string `json:"pseudonym"`
	Session   string `json:"session"`
	End       int64  `json:"end"` // Unix seconds
}

// sendCode issues a code and returns to the client.
func (s *Server) sendCode(w http.ResponseWriter, r *http.Request, a authorization, sess session) {
	ticket := randomTicket()
	b, err := json.Marshal(code{1, a.client.ID, a.redirect, a.challenge, a.scope, sess.User, sess.Pseudonym, sess.key, time.Now().Add(s.cfg.CodeLife).Unix()})
	if err != nil {
		s.unavailable(w, r, err)
		return
	}
	ctx, cancel := inStore(r.Context())
	defer cancel()
	if _, err := s.store.Create(ctx, codeBucket, hashTicket(ticket), b, s.cfg.CodeLife); err != nil {
		s.unavailable(w, r, err)
		return
	}
	s.stats.codes.Add(1)
	s.log.Info("code issued", "client", a.client.ID, "user", sess.User, "pseudonym", sess.Pseudonym, "from", limit.Source(r))
	s.redirect(w, a, url.Values{"code": {ticket}})
}

// verifierFits checks a code_verifier (RFC 7636 §4.1, §4.6).
func verifierFits(verifier, challenge string) bool {
	if len(verifier) < 43 || len(verifier) > 128 {
		return false
	}
	for i := range len(verifier) {
		switch c := verifier[i]; {
		case 'A' <= c && c <= 'Z', 'a' <= c && c <= 'z', '0' <= c && c <= '9', strings.IndexByte("-._~", c) >= 0:
		default:
			return false
		}
	}
	sum := sha256.Sum256([]byte(verifier))
	return base64.RawURLEncoding.EncodeToString(sum[:]) == challenge // both are public once compared
}

// unavailable is the answer to a person while the store does not answer.
func (s *Server) unavailable(w http.ResponseWriter, r *http.Request, err error) {
	if errors.Is(err, context.Canceled) && r.Context().Err() != nil {
		return // the browser has gone
	}
	s.refused(r, StoreUnavailable, "error", err)
	w.Header().Set("Retry-After", "10")
	s.page(w, http.StatusServiceUnavailable, page{Title: "Not possible just now", Text: "Signing in does not work at this moment. Try again in a few seconds."})
}
