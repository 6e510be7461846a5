// Package waf is the WebRTC Authorisation Function of TS 23.228 annex U: an OAuth 2.0 authorization
// server (RFC 6749, by the advice of RFC 9700) that logs users in and issues
//
//   - SIP access tokens, JWTs with the claims of internal/claims, for the eP-CSCF;
//   - TURN tokens (RFC 7635), sealed under the keyring of a TURN server, in both shapes of internal/token.
//
// The ways through it:
//
//	browser                                   waf                                        store
//	  GET  /oauth/authorize?...S256...  ──►   session? else the log-in page
//	  POST /oauth/login                 ──►   argon2id; session cookie, code       ──►   sessions, codes
//	  POST /oauth/token (code, verifier) ─►   code taken once; SIP token           ──►   codes
//	  POST /oauth/token (token-exchange) ─►   TURN token; by signature alone, the
//	                                          store is asked for ended sessions only
//	POST /oauth/revoke (token)         ─►   session ended; enforcers told        ──►   ended, sessions
//
//	wwsf
//	  POST /oauth/token (client cred.)   ─►   identity leased; SIP and refresh token ─►  guests
//
// It holds no TLS and no socket: cmd/wicgate mounts Handler on the shared HTTPS origin. It keeps
// nothing in memory but rate limits, so several of them may serve one issuer.
package waf

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"html/template"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"wicgate/internal/claims"
	"wicgate/internal/keyring"
	"wicgate/internal/limit"
	"wicgate/internal/secret"
	"wicgate/internal/store"
	"wicgate/internal/token"
)

// Config is what a WAF needs to know. Lives are whole seconds.
type Config struct {
	// Log receives one line for each log-in, token and refusal. Nil discards.
	Log *slog.Logger
	// Issuer is the issuer identifier (RFC 8414 §2) and the origin at which Handler is reached:
	// https, no path.
	Issuer string
	// Domain is the home domain, for the WIC and for the log-in page.
	Domain string
	// Audience is the aud of SIP tokens: the eP-CSCF's name.
	Audience string
	// Store holds users, sessions, codes and ended pseudonyms.
	Store store.Store
	// Rings are the keys of each TURN server that tokens are issued for. The first is the default.
	Rings []*keyring.Ring
	// TURNURLs are the ICE server URLs (RFC 7065) of each TURN server, by its name. Tokens for a server
	// without are not told to browsers in ice_servers; the first has some.
	TURNURLs map[string][]string
	// SigningKeyFile holds the ES256 key of SIP tokens, PEM, 0600. It is made when absent.
	SigningKeyFile string
	// Clients are the registered clients.
	Clients []Client
	// Users are written to the store by New; others there are kept.
	Users []User
	// SIPTokenLife is the life of a SIP token: 1 s to 24 h, default 1 h. It ends with its session, if
	// that is earlier, and guests' after 10 min.
	SIPTokenLife time.Duration
	// TURNTokenLife is the life of a TURN token: 1 s to 24 h, default 1 h. Below 3 min browsers
	// refresh their allocations without pause.
	TURNTokenLife time.Duration
	// EdgeCredentialLife is the life of TURN credentials that the edge gives for a SIP token (TR 33.872
	// 6.3.3), default 1 h: so long is a revocation to be remembered.
	EdgeCredentialLife time.Duration
	// CodeLife is the life of an authorization code: 1 s to 10 min (RFC 6749 §4.1.2), default 60 s.
	CodeLife time.Duration
	// SessionLife is how long after the log-in a session ends whatever happens: 1 s to 30 days,
	// default 12 h.
	SessionLife time.Duration
	// MaxSessions is how many sessions, and so pseudonyms, of one user may be alive: the oldest
	// ends for a new one. 1 to 64, default 16.
	MaxSessions int
	// Guests is the size of the pool of identities for guests, 0 to 1000. They are
	// sip:guest-01@Domain and so on; no user may have one of them. Default 0: no guests.
	Guests int
	// GuestLife is how long after its last renewal a guest's lease ends: 1 s to 24 h, default 30 min.
	GuestLife time.Duration
	// News is told how long sessions live and when they end. Nil: nobody is.
	News News
	// Note is a sentence shown below the log-in form. Empty: none.
	Note string

	argon argonCost // zero: the default; tests take less
}

const (
	maxSessionLife = 30 * 24 * time.Hour
	storeTime      = 3 * time.Second // bounds each access to the store
	maxURL         = 8 << 10         // bytes of an authorization request
	maxForm        = 16 << 10        // bytes of a body
	maxValue       = 1024            // bytes of one parameter that is no token
)

// Server is a WAF. Its methods are safe for concurrent use.
type Server struct {
	cfg     Config
	log     *slog.Logger
	store   store.Store
	signer  signer
	clients map[string]Client
	rings   map[string]*keyring.Ring
	grants  map[string]grant
	csrf    *http.CrossOriginProtection
	hasher  *hasher
	pages   *template.Template
	mux     *http.ServeMux
	stats   counters

	bySource, byUser, byBoth *limit.Limiter // log-ins
	byRight                  *limit.Limiter // log-ins with the right password, by user
	byPseudonym              *limit.Limiter // TURN tokens, refreshes
	bySecret                 *limit.Limiter // wrong client secrets, by source
	noSecret                 secret.Bytes   // to compare with where there is none
	lines                    *rate.Limiter
	dropped                  atomic.Uint64 // log lines not written since the last one that was
}

//go:embed page.html
var pageHTML string

//go:embed style.css
var styleCSS []byte

// New checks the configuration, makes the signing key on first start and writes the users.
// An error names the key of wicgate.yaml that is to be changed, where there is one.
func New(cfg Config) (*Server, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("waf: %w", err)
	}
	sig, err := openSigner(cfg.SigningKeyFile)
	if err != nil {
		return nil, fmt.Errorf("waf: %w", err)
	}
	s := &Server{
		cfg: cfg, log: cfg.Log, store: cfg.Store, signer: sig,
		clients: map[string]Client{}, rings: map[string]*keyring.Ring{},
		csrf: http.NewCrossOriginProtection(), hasher: newHasher(cfg.argon),
		bySource:    limit.New(30, 2*time.Second),
		byUser:      limit.New(30, 30*time.Second),
		byBoth:      limit.New(6, 15*time.Second),
		byRight:     limit.New(100, 10*time.Second),
		byPseudonym: limit.New(60, time.Second),
		bySecret:    limit.New(10, 10*time.Second), noSecret: secret.Random(MinSecret),
		lines: rate.NewLimiter(20, 100),
	}
	for _, c := range cfg.Clients {
		s.clients[c.ID] = c
	}
	for _, r := range cfg.Rings {
		s.rings[r.Server()] = r
	}
	s.grants = map[string]grant{
		grantCode:     {handle: s.redeemCode},
		grantRefresh:  {handle: s.refresh},
		grantExchange: {handle: s.exchange},
	}
	if cfg.Guests > 0 {
		s.grants[grantClient] = grant{handle: s.lease, confidential: true}
	}
	if err := s.csrf.AddTrustedOrigin(cfg.Issuer); err != nil {
		return nil, fmt.Errorf("waf: %w", err)
	}
	s.csrf.SetDenyHandler(http.HandlerFunc(s.refuseForgery))
	if s.pages, err = template.New("page").Parse(pageHTML); err != nil {
		return nil, fmt.Errorf("waf: log-in page: %w", err)
	}
	s.route()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := s.writeUsers(ctx, cfg.Users); err != nil {
		return nil, fmt.Errorf("waf: %w", err)
	}
	return s, nil
}

func (c Config) withDefaults() Config {
	set := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	set(&c.SIPTokenLife, time.Hour)
	set(&c.TURNTokenLife, time.Hour)
	set(&c.EdgeCredentialLife, time.Hour)
	set(&c.CodeLife, time.Minute)
	set(&c.SessionLife, 12*time.Hour)
	set(&c.GuestLife, 30*time.Minute)
	if c.MaxSessions == 0 {
		c.MaxSessions = 16
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.argon == (argonCost{}) {
		c.argon = argonDefault
	}
	return c
}

func (c Config) validate() error {
	if u, err := url.Parse(c.Issuer); err != nil || u.Scheme != "https" || u.Host == "" || u.Scheme+"://"+u.Host != c.Issuer {
		return fmt.Errorf("issuer %q: want https://host[:port] and nothing more; set https.url", c.Issuer)
	}
	if c.Domain == "" || c.Audience == "" {
		return errors.New("no home domain or no audience; set domain and epcscf.audience")
	}
	if c.Store == nil {
		return errors.New("no store")
	}
	if len(c.Rings) == 0 {
		return errors.New("no TURN server to issue tokens for; set turn.name")
	}
	seen := map[string]bool{}
	for _, r := range c.Rings {
		if seen[r.Server()] {
			return fmt.Errorf("two keyrings for the TURN server %q", r.Server())
		}
		seen[r.Server()] = true
		urls := c.TURNURLs[r.Server()]
		if len(urls) == 0 && r == c.Rings[0] {
			return fmt.Errorf("no URL for the TURN server %q; set turn.urls", r.Server())
		}
		for _, u := range urls {
			if !strings.HasPrefix(u, "turn:") && !strings.HasPrefix(u, "turns:") {
				return fmt.Errorf("URL %q of the TURN server %q: want turn:host:port or turns:host:port (RFC 7065); change turn.urls", u, r.Server())
			}
		}
	}
	for _, l := range []struct {
		key       string
		life, max time.Duration
	}{
		{"waf.sip_token_life", c.SIPTokenLife, 24 * time.Hour},
		{"waf.turn_token_life", c.TURNTokenLife, token.MaxLifetime},
		{"life of the edge's TURN credentials", c.EdgeCredentialLife, 48 * time.Hour},
		{"code life", c.CodeLife, 10 * time.Minute},
		{"session life", c.SessionLife, maxSessionLife},
		{"waf.guest_life", c.GuestLife, 24 * time.Hour},
	} {
		if l.life < time.Second || l.life > l.max || l.life%time.Second != 0 {
			return fmt.Errorf("%s of %v: want whole seconds, 1s to %v", l.key, l.life, l.max)
		}
	}
	if c.MaxSessions < 1 || c.MaxSessions > 64 {
		return fmt.Errorf("%d sessions per user: want 1 to 64", c.MaxSessions)
	}
	if c.Guests < 0 || c.Guests > maxGuests {
		return fmt.Errorf("waf.guests of %d: want 0 to %d", c.Guests, maxGuests)
	}
	return c.validateClients()
}

// checkWebURL takes https, and http for a program on the same machine (RFC 8252 §7.3).
func checkWebURL(s string) error {
	u, err := url.Parse(s)
	if err != nil {
		return errors.New("not a URL")
	}
	loopback := u.Hostname() == "localhost"
	if a, err := netip.ParseAddr(u.Hostname()); err == nil {
		loopback = a.IsLoopback()
	}
	switch {
	case u.Host == "" || u.Opaque != "" || u.User != nil:
		return errors.New("want an absolute URL without user information")
	case strings.Contains(s, "#"):
		return errors.New("want no fragment (RFC 6749 §3.1.2)")
	case strings.ContainsFunc(u.Host, func(r rune) bool { return strings.ContainsRune(" ;,'*\"", r) || r > '~' }):
		return errors.New("want an ASCII host without special characters")
	case u.Scheme == "https", u.Scheme == "http" && loopback:
		return nil
	}
	return errors.New("want https, or http on loopback")
}

func (s *Server) route() {
	s.mux = http.NewServeMux()
	s.mux.HandleFunc("/.well-known/oauth-authorization-server", s.cors(http.MethodGet, s.metadata))
	s.mux.HandleFunc("/oauth/jwks", s.cors(http.MethodGet, s.jwks))
	s.mux.HandleFunc("/oauth/token", s.cors(http.MethodPost, s.token))
	s.mux.HandleFunc("/oauth/revoke", s.cors(http.MethodPost, s.revoke))
	s.mux.HandleFunc("/oauth/authorize", s.authorize)
	s.mux.Handle("/oauth/login", s.csrf.Handler(http.HandlerFunc(s.login)))
	s.mux.Handle("/oauth/logout", s.csrf.Handler(http.HandlerFunc(s.logout)))
	s.mux.HandleFunc("GET "+stylePath(), s.style)
	s.mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		s.page(w, http.StatusNotFound, page{Title: "No such page", Text: "There is nothing at this address. Go back to the page you came from."})
	})
}

// Handler serves /oauth/ and /.well-known/oauth-authorization-server.
func (s *Server) Handler() http.Handler { return s.mux }

// Serve ends leases of guests that were not renewed, until ctx ends. It starts nothing of its own:
// what goes on in Handler belongs to the HTTP server that called it.
func (s *Server) Serve(ctx context.Context) error {
	if s.cfg.Guests == 0 {
		<-ctx.Done()
		return nil
	}
	t := time.NewTicker(sweepEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
			s.sweep(ctx)
		}
	}
}

// inStore bounds an access to the store.
func inStore(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, storeTime)
}

// refused counts a refusal and logs it, the latter within a budget: strangers cause these lines.
func (s *Server) refused(r *http.Request, c Cause, attrs ...any) {
	s.stats.refused[c].Add(1)
	if !s.lines.Allow() {
		s.dropped.Add(1)
		return
	}
	level := slog.LevelInfo
	if c == CodeReplayed || c == RefreshReused || c == PoolEmpty || c == StoreUnavailable {
		level = slog.LevelWarn
	}
	attrs = append([]any{"cause", c.String(), "path", r.URL.Path, "from", limit.Source(r)}, attrs...)
	if n := s.dropped.Swap(0); n > 0 {
		attrs = append(attrs, "lines_dropped_before", n)
	}
	s.log.Log(r.Context(), level, "refused", attrs...)
}

// short is s for a log line: what a peer sent may be long.
func short(s string) string {
	if len(s) > 64 {
		return s[:64] + "..."
	}
	return s
}

// values are parameters of a request, each at most once (RFC 6749 §3.1, §3.2).
type values map[string]string

var errTwice = errors.New("a parameter is there twice")

// single refuses what comes more than once. Empty values count as absent (RFC 6749 §3.1).
func single(in url.Values) (values, error) {
	out := values{}
	for k, v := range in {
		if len(v) > 1 {
			return nil, errTwice
		}
		if v[0] != "" {
			out[k] = v[0]
		}
	}
	return out, nil
}

func (s *Server) metadata(w http.ResponseWriter, _ *http.Request) {
	at := func(p string) string { return s.cfg.Issuer + p }
	grants := make([]string, 0, len(s.grants))
	for g := range s.grants {
		grants = append(grants, g)
	}
	slices.Sort(grants)
	methods := []string{"none"}
	if s.cfg.Guests > 0 {
		methods = append(methods, "client_secret_basic")
	}
	w.Header().Set("Cache-Control", "public, max-age=300")
	header(w)
	writeJSON(w, http.StatusOK, map[string]any{ // RFC 8414 §2
		"issuer":                                         s.cfg.Issuer,
		"authorization_endpoint":                         at("/oauth/authorize"),
		"token_endpoint":                                 at("/oauth/token"),
		"revocation_endpoint":                            at("/oauth/revoke"),
		"end_session_endpoint":                           at("/oauth/logout"), // OpenID Connect RP-Initiated Logout 1.0 §2.1
		"jwks_uri":                                       at("/oauth/jwks"),
		"scopes_supported":                               []string{claims.Scope},
		"response_types_supported":                       []string{"code"},
		"response_modes_supported":                       []string{"query"},
		"grant_types_supported":                          grants,
		"token_endpoint_auth_methods_supported":          methods,
		"revocation_endpoint_auth_methods_supported":     []string{"none"},
		"code_challenge_methods_supported":               []string{"S256"},
		"authorization_response_iss_parameter_supported": true, // RFC 9207 §3
	})
}

func (s *Server) jwks(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Cache-Control", "public, max-age=300")
	w.Header().Set("Content-Type", "application/jwk-set+json")
	header(w)
	_, _ = bytes.NewReader(s.signer.jwks).WriteTo(w) // the client may have gone
}

// User is a person who may log in, with the IMS identities that the person may use.
type User struct {
	// Name is what the user types: 1 to 64 of a-z 0-9 . _ - @ +. Capitals are taken as small.
	Name string
	// Display is the name for people.
	Display string
	// Password as typed, up to 1024 bytes.
	Password secret.Bytes
	// IMPI is the private identity, user@realm.
	IMPI string
	// IMPU are the public identities, SIP URIs, 1 to 16; the first is the default.
	IMPU []string
}
