package waf

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"wicgate/internal/claims"
	"wicgate/internal/keyring"
	"wicgate/internal/limit"
	"wicgate/internal/secret"
	"wicgate/internal/store"
	"wicgate/internal/token"
)

const (
	grantCode     = "authorization_code"
	grantExchange = "urn:ietf:params:oauth:grant-type:token-exchange" // RFC 8693

	typeAccessToken = "urn:ietf:params:oauth:token-type:access_token" // RFC 8693 §3
	typeJWT         = "urn:ietf:params:oauth:token-type:jwt"
)

// grant serves one grant_type.
type grant struct {
	// handle returns the body of a 200. p holds each parameter once, none over claims.MaxSize; auth
	// is the client that has shown its secret, where the grant is for such.
	handle func(r *http.Request, p values, auth Client) (any, *tokenError)
	// confidential: for clients with a secret, and else for those without.
	confidential bool
}

// tokenError is an error of RFC 6749 §5.2. text is a constant: no input comes back.
type tokenError struct {
	cause  Cause
	status int
	code   string
	text   string
	attrs  []any         // for the log
	wait   time.Duration // Retry-After, where there is one
	basic  bool          // WWW-Authenticate: Basic (RFC 6749 §5.2)
}

func bad(c Cause, code, text string, attrs ...any) *tokenError {
	return &tokenError{cause: c, status: http.StatusBadRequest, code: code, text: text, attrs: attrs}
}

func noStore(err error) *tokenError {
	return &tokenError{cause: StoreUnavailable, status: http.StatusServiceUnavailable, code: "temporarily_unavailable",
		text: "try again in a few seconds", attrs: []any{"error", err}, wait: 10 * time.Second}
}

// token is the token endpoint (RFC 6749 §3.2): POST alone, parameters in the body alone, each once.
func (s *Server) token(w http.ResponseWriter, r *http.Request) {
	p, auth, ok := s.request(w, r)
	if !ok {
		return
	}
	g, ok := s.grants[p["grant_type"]]
	var no *tokenError
	switch {
	case p["grant_type"] == "":
		no = bad(BadParameter, "invalid_request", "grant_type is missing")
	case !ok:
		no = bad(BadGrantType, "unsupported_grant_type", "see grant_types_supported in the metadata")
	case g.confidential && auth.ID == "":
		no = bad(ClientSecret, "invalid_client", "this grant is for clients with a secret, sent by HTTP Basic")
		no.status, no.basic = http.StatusUnauthorized, true
	case !g.confidential && auth.ID != "":
		no = bad(BadGrantType, "unauthorized_client", "a client with a secret has the grant client_credentials alone", "client", auth.ID)
	}
	var body any
	if no == nil {
		body, no = g.handle(r, p, auth)
	}
	if no != nil {
		s.refuseToken(w, r, no)
		return
	}
	header(w)
	writeJSON(w, http.StatusOK, body)
}

type errorBody struct {
	Error       string `json:"error"`
	Description string `json:"error_description,omitempty"`
}

func (s *Server) refuseToken(w http.ResponseWriter, r *http.Request, e *tokenError) {
	s.refused(r, e.cause, append([]any{"detail", e.text}, e.attrs...)...)
	header(w)
	if e.wait > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(e.wait.Seconds()))))
	}
	if e.basic && e.status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Basic realm="wicgate"`)
	}
	writeJSON(w, e.status, errorBody{e.code, e.text})
}

// sipToken is the answer to a code, a refresh token or client credentials.
type sipToken struct {
	AccessToken  string  `json:"access_token"`
	TokenType    string  `json:"token_type"`
	ExpiresIn    int64   `json:"expires_in"`
	RefreshToken string  `json:"refresh_token"`
	Scope        string  `json:"scope"`
	IMS          imsForm `json:"ims"`
	Name         string  `json:"name"`
	Pseudonym    string  `json:"pseudonym"`
}

type imsForm struct {
	IMPI     string   `json:"impi"`
	IMPU     []string `json:"impu"`
	Domain   string   `json:"domain"`
	Scenario int      `json:"scenario"`
}

// issue signs a SIP token for u in a session, and tells the enforcers how long that lives now.
func (s *Server) issue(r *http.Request, sess session, u user, client, scope, refresh string) (any, *tokenError) {
	who := []any{"client", client, "user", sess.User, "pseudonym", sess.Pseudonym}
	now := time.Now()
	scenario, end := claims.ScenarioWeb, min(now.Add(s.cfg.SIPTokenLife).Unix(), sess.End)
	if sess.guest() {
		scenario, end = claims.ScenarioPool, sess.Tokens
	}
	if end <= now.Unix() {
		return nil, bad(SessionEnded, "invalid_grant", "the session has ended: log in again", who...)
	}
	c := claims.SIP{
		Issuer: s.cfg.Issuer, Subject: u.name, Audience: s.cfg.Audience, ClientID: client,
		IssuedAt: now.Unix(), NotBefore: now.Unix(), Expiry: end,
		ID: randomName(), Scope: scope, Pseudonym: sess.Pseudonym,
		IMS: claims.IMS{IMPI: u.impi, IMPU: u.impu, Scenario: scenario},
	}
	tok, err := s.signSIP(c)
	if err != nil {
		return nil, noStore(err) // a record with identities too long for a token
	}
	if s.cfg.News != nil {
		if err := s.cfg.News.Extend(sess.Pseudonym, time.Unix(end, 0)); err != nil {
			s.log.Warn("telling how long a session lives", append(who, "error", err)...)
		}
	}
	s.stats.sipTokens.Add(1)
	life := end - c.IssuedAt
	s.log.Info("SIP token issued", append(who, "jti", c.ID, "life", time.Duration(life)*time.Second, "scenario", scenario, "from", limit.Source(r))...)
	return sipToken{tok, "Bearer", life, refresh, scope, imsForm{u.impi, u.impu, s.cfg.Domain, scenario}, u.display, sess.Pseudonym}, nil
}

// redeemCode is the grant authorization_code (RFC 6749 §4.1.3, RFC 7636 §4.5).
//
// The code is taken from the store before anything about the request is judged: of several that
// bring it exactly one goes on, and a wrong verifier costs the code.
func (s *Server) redeemCode(r *http.Request, p values, _ Client) (any, *tokenError) {
	client, no := s.public(p)
	if no != nil {
		return nil, no
	}
	switch {
	case p["code"] == "":
		return nil, bad(BadParameter, "invalid_request", "code is missing", "client", client.ID)
	case p["redirect_uri"] == "":
		return nil, bad(BadParameter, "invalid_request", "redirect_uri is missing", "client", client.ID)
	case p["code_verifier"] == "":
		return nil, bad(BadPKCE, "invalid_request", "code_verifier is missing", "client", client.ID)
	}
	c, no := s.takeCode(r.Context(), p["code"])
	if no != nil {
		no.attrs = append(no.attrs, "client", client.ID)
		return nil, no
	}
	who := []any{"client", client.ID, "user", c.User, "pseudonym", c.Pseudonym}
	switch {
	case c.Client != client.ID:
		return nil, bad(ForeignCode, "invalid_grant", "the code was issued to another client", who...)
	case c.Redirect != p["redirect_uri"]:
		return nil, bad(BadRedirect, "invalid_grant", "redirect_uri is not that of the authorization request", who...)
	case !verifierFits(p["code_verifier"], c.Challenge):
		return nil, bad(WrongVerifier, "invalid_grant", "code_verifier does not match", who...)
	}
	ctx, cancel := inStore(r.Context())
	defer cancel()
	u, no := s.identityOf(ctx, session{User: c.User, Pseudonym: c.Pseudonym, key: c.Session})
	if no != nil {
		no.attrs = append(no.attrs, who...)
		return nil, no
	}
	var refresh string
	sess, err := s.changeSession(ctx, c.Session, func(sess *session) error {
		refresh = sess.begin(client.ID, c.Scope, time.Now())
		return nil
	})
	if errors.Is(err, errNoSession) {
		return nil, bad(SessionEnded, "invalid_grant", "the session has ended: log in again", who...)
	} else if err != nil {
		return nil, noStore(err)
	}
	return s.issue(r, sess, u, client.ID, c.Scope, refresh)
}

func (s *Server) signSIP(c claims.SIP) (string, error) {
	b, err := json.Marshal(c)
	if err != nil {
		return "", err
	}
	tok, err := s.signer.sign(b)
	if err == nil && len(tok) > claims.MaxSize {
		err = errors.New("the identities of this user make a token over the limit")
	}
	return tok, err
}

// takeCode redeems a code: of all that ask, one gets it. A code that comes again ends the session
// that its first use gave tokens to (RFC 6749 §4.1.2): one of the two is not who it says.
func (s *Server) takeCode(ctx context.Context, ticket string) (code, *tokenError) {
	unknown := bad(UnknownCode, "invalid_grant", "the code is unknown or too old")
	if !isTicket(ticket) {
		return code{}, unknown
	}
	ctx, cancel := inStore(ctx)
	defer cancel()
	key := hashTicket(ticket)
	e, err := s.store.Get(ctx, codeBucket, key)
	if errors.Is(err, store.ErrNotFound) {
		if e, err = s.store.Get(ctx, codeBucket, "used."+key); errors.Is(err, store.ErrNotFound) {
			return code{}, unknown
		}
		if err != nil {
			return code{}, noStore(err)
		}
		return code{}, s.replayed(ctx, e.Value)
	}
	if err != nil {
		return code{}, noStore(err)
	}
	err = s.store.Delete(ctx, codeBucket, key, e.Revision)
	if errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrConflict) { // another was faster
		return code{}, s.replayed(ctx, e.Value)
	}
	if err != nil {
		return code{}, noStore(err)
	}
	// The mark serves to tell a replay from a guess; the code is spent without it as well.
	if _, err := s.store.Create(ctx, codeBucket, "used."+key, e.Value, usedLife); err != nil && !errors.Is(err, store.ErrExists) {
		s.log.Warn("marking a code as used", "error", err)
	}
	var c code
	if err := json.Unmarshal(e.Value, &c); err != nil || c.Version != 1 || time.Now().Unix() >= c.End {
		return code{}, unknown
	}
	return c, nil
}

// usedLife is how long the replay of a code is recognised as one.
const usedLife = 10 * time.Minute

func (s *Server) replayed(ctx context.Context, value []byte) *tokenError {
	e := bad(CodeReplayed, "invalid_grant", "the code has been used")
	var c code
	if err := json.Unmarshal(value, &c); err != nil || c.Version != 1 {
		return e
	}
	e.attrs = []any{"user", c.User, "pseudonym", c.Pseudonym, "issued_to", c.Client, "effect", "session ended"}
	if err := s.logOut(ctx, session{key: c.Session, User: c.User, Pseudonym: c.Pseudonym}, ReasonRevoked); err != nil {
		e.attrs = append(e.attrs, "error", err)
	}
	return e
}

// turnToken is the answer to an exchange: RFC 7635 §4.1 and appendix B, RFC 8693 §2.2.1, and the
// same token as a browser's RTCIceServer.
type turnToken struct {
	AccessToken     string      `json:"access_token"` // base64 of the token (RFC 7635 §6.2)
	IssuedTokenType string      `json:"issued_token_type"`
	TokenType       string      `json:"token_type"`
	ExpiresIn       int64       `json:"expires_in"`
	KID             string      `json:"kid"`
	Key             string      `json:"key"` // base64 of the mac_key
	Alg             string      `json:"alg"`
	ICEServers      []iceServer `json:"ice_servers,omitempty"`
}

type iceServer struct {
	URLs       []string `json:"urls"`
	Username   string   `json:"username"`
	Credential string   `json:"credential"`
}

// exchange is the grant token-exchange (RFC 8693 §2.1): a SIP token in, a TURN token out. The SIP
// token is judged by its signature and claims; the store is asked only whether its session has been
// ended before, and an answer that does not come is taken for a no, so that calls go on without it.
//
// The life of the TURN token does not end with the SIP token's: a call may outlast a registration's
// refresh. RFC 8693 §2.2.2 wants invalid_request for every fault of the subject_token.
func (s *Server) exchange(r *http.Request, p values, _ Client) (any, *tokenError) {
	c, no := s.subject(p)
	if no != nil {
		return nil, no
	}
	who := []any{"client", c.ClientID, "pseudonym", c.Pseudonym, "jti", c.ID}
	if t := p["requested_token_type"]; t != "" && t != typeAccessToken {
		return nil, bad(BadParameter, "invalid_request", "requested_token_type must be "+typeAccessToken, who...)
	}
	ring, no := s.audience(p)
	if no != nil {
		no.attrs = append(no.attrs, who...)
		return nil, no
	}
	alg, macKey := p["alg"], token.NewMACKey()
	switch alg {
	case "", "HMAC-SHA-1":
		alg = "HMAC-SHA-1"
	case "HMAC-SHA-256", "HMAC-SHA-256-128": // the latter is the name in RFC 7635's example
		macKey = secret.Random(32)
	default:
		return nil, bad(BadParameter, "invalid_request", "alg must be HMAC-SHA-1 or HMAC-SHA-256", who...)
	}
	if wait, ok := s.byPseudonym.Take(c.Pseudonym, time.Now()); !ok {
		e := bad(TooManyTokens, "temporarily_unavailable", "too many tokens for this log-in", who...)
		e.status, e.wait = http.StatusTooManyRequests, wait
		return nil, e
	}
	over, err := s.ended(r.Context(), c.Pseudonym)
	if err != nil {
		s.stats.unchecked.Add(1)
		s.log.Warn("issuing without asking whether the session has ended", append(who, "error", err)...)
	} else if over {
		return nil, bad(SessionEnded, "invalid_request", "the session has ended: log in again", who...)
	}
	kid := ring.KID(c.Pseudonym)
	key, format, _, ok := ring.Key(kid)
	if !ok { // the pseudonym is ours, so only a keyring without a key that seals gives this
		return nil, noStore(errors.New("the keyring has no key for its own kid"))
	}
	tok, err := token.Seal(format, key, ring.Server(), token.Payload{
		MACKey: macKey, Timestamp: token.NewTimestamp(time.Now()), Lifetime: s.cfg.TURNTokenLife})
	if err != nil {
		return nil, noStore(err)
	}
	s.stats.turnTokens.Add(1)
	s.log.Info("TURN token issued", append(who, "server", ring.Server(), "life", s.cfg.TURNTokenLife, "from", limit.Source(r))...)
	var ice []iceServer
	if urls := s.cfg.TURNURLs[ring.Server()]; len(urls) > 0 {
		ice = []iceServer{{URLs: urls, Username: string(token.AppendUsername(nil, kid, tok)), Credential: string(token.Credential(macKey).Expose())}}
	}
	return turnToken{
		AccessToken:     base64.StdEncoding.EncodeToString(tok),
		IssuedTokenType: typeAccessToken,
		TokenType:       "pop",
		ExpiresIn:       int64(s.cfg.TURNTokenLife / time.Second),
		KID:             kid,
		Key:             base64.StdEncoding.EncodeToString(macKey.Expose()),
		Alg:             alg,
		ICEServers:      ice,
	}, nil
}

// subject returns the claims of a good subject_token.
func (s *Server) subject(p values) (claims.SIP, *tokenError) {
	const code = "invalid_request"
	switch {
	case p["subject_token"] == "":
		return claims.SIP{}, bad(BadParameter, code, "subject_token is missing")
	case p["subject_token_type"] != typeAccessToken && p["subject_token_type"] != typeJWT:
		return claims.SIP{}, bad(BadParameter, code, "subject_token_type must be "+typeAccessToken)
	case p["actor_token"] != "" || p["actor_token_type"] != "":
		return claims.SIP{}, bad(BadParameter, code, "actor_token is not served")
	}
	c, err := s.signer.verify(p["subject_token"])
	if errors.Is(err, errForeign) {
		return claims.SIP{}, bad(SubjectForeign, code, "the subject_token was not issued here", "detail", err.Error())
	} else if err != nil {
		return claims.SIP{}, bad(SubjectGarbage, code, "the subject_token is no SIP access token", "detail", err.Error())
	}
	who := []any{"client", c.ClientID, "pseudonym", c.Pseudonym, "jti", c.ID}
	err = c.Check(time.Now(), []string{s.cfg.Issuer}, s.cfg.Audience)
	switch {
	case err == nil:
	case errors.Is(err, claims.ErrExpired):
		return claims.SIP{}, bad(SubjectExpired, code, "the subject_token has expired: log in again", append(who, "error", err)...)
	case errors.Is(err, claims.ErrIssuer), errors.Is(err, claims.ErrAudience):
		return claims.SIP{}, bad(SubjectForeign, code, "the subject_token was not issued here", append(who, "error", err)...)
	default:
		return claims.SIP{}, bad(SubjectGarbage, code, "the subject_token is no SIP access token", append(who, "error", err)...)
	}
	if _, ok := s.clients[c.ClientID]; !ok || p["client_id"] != "" && p["client_id"] != c.ClientID {
		return claims.SIP{}, bad(UnknownClient, "invalid_client", "client_id is not that of the subject_token", who...)
	}
	return c, nil
}

// audience returns the keyring of the TURN server that is asked for: by audience (RFC 8693), aud
// (TR 33.872 and RFC 7635 appendix B) or resource (RFC 8707), which must agree; the first one
// configured when none is there.
func (s *Server) audience(p values) (*keyring.Ring, *tokenError) {
	var names []string
	for _, k := range []string{"audience", "aud", "resource"} {
		if v := p[k]; v != "" && !slices.Contains(names, v) {
			names = append(names, v)
		}
	}
	if len(names) == 0 {
		return s.cfg.Rings[0], nil
	}
	ring, ok := s.rings[names[0]]
	if !ok || len(names) > 1 {
		return nil, bad(UnknownAudience, "invalid_target", "no such TURN server", "audience", short(strings.Join(names, " ")))
	}
	return ring, nil
}

// cors lets pages of registered origins read the answers, and handles the methods of an endpoint
// that is no page. There are no cookies here: Allow-Credentials is never sent.
func (s *Server) cors(method string, next http.HandlerFunc) http.HandlerFunc {
	origins := map[string]bool{}
	for _, c := range s.clients {
		for _, o := range c.Origins {
			origins[o] = true
		}
	}
	return func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Add("Vary", "Origin")
		origin := r.Header.Get("Origin")
		if origins[origin] {
			h.Set("Access-Control-Allow-Origin", origin)
			h.Set("Access-Control-Expose-Headers", "Date, Retry-After") // Date tells a page that its clock is wrong
		}
		switch {
		case r.Method == method:
			next(w, r)
		case r.Method == http.MethodOptions && r.Header.Get("Access-Control-Request-Method") != "":
			header(w)
			if origins[origin] {
				h.Set("Access-Control-Allow-Methods", method)
				h.Set("Access-Control-Allow-Headers", "Content-Type")
				h.Set("Access-Control-Max-Age", "600")
			}
			w.WriteHeader(http.StatusNoContent)
		default:
			h.Set("Allow", method+", OPTIONS")
			s.refused(r, BadMethod, "method", short(r.Method))
			header(w)
			writeJSON(w, http.StatusMethodNotAllowed, errorBody{"invalid_request", "the method must be " + method})
		}
	}
}

// writeJSON sends v. The caller has called header, where the answer is not public.
func writeJSON(w http.ResponseWriter, status int, v any) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil { // only for types that JSON has not
		status = http.StatusInternalServerError
		b.Reset()
		b.WriteString(`{"error":"server_error"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = b.WriteTo(w) // the client may have gone
}
