// Package wwsf is the WebRTC Web Server Function (TR 33.872 §4, TS 23.228 Annex U): it serves the WIC,
// the page that registers and calls, and tells it where to log in.
//
// It may belong to a third party, so it reaches the operator by HTTPS to the WAF and by nothing else: no
// bus, no store, no key. It sees neither passwords nor users' tokens: the page is itself the public OAuth
// client and talks to the WAF directly. For guests, who have no password, the portal is a confidential
// client: it asks for their first token and hands it on. Four kinds of answer:
//
//	GET /             the page, or the WAF's redirect back to it (?code=…&state=…&iss=…)
//	GET /assets/…     its files, each with a content hash in the name
//	GET /config.json  {issuer, authorization_endpoint, token_endpoint, …, client_id, sip_url, domain, guests}
//	POST /guest       a guest's token response, as the WAF gave it
package wwsf

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync/atomic"

	"wicgate/internal/limit"
	"wicgate/internal/secret"
	"wicgate/web"
)

// Config of the role.
type Config struct {
	Log *slog.Logger // nil: discard

	// WAF is the issuer, an https origin such as "https://waf.example.org". Its metadata (RFC 8414) is
	// read from there. Required.
	WAF string
	// ClientID is the page's registration at the WAF. Default "wic".
	ClientID string
	// Scope that the page asks for. Default "sip".
	Scope string
	// SIPURL is the eP-CSCF's WebSocket, "wss://host[:port]/path" (RFC 7118). Required.
	SIPURL string
	// ClientSecret is the portal's at the WAF, for guests. Absent: no guests here.
	ClientSecret secret.Bytes
	// GuestClient is the portal's client_id for that. Default "portal".
	GuestClient string
	// TURNCredential is where the page gets its TURN credentials: "token", from the WAF (TR 33.872 6.3.2),
	// or "edge", from the eP-CSCF in REGISTER (6.3.3). Default "token".
	TURNCredential string
	// Domain is the home domain, which completes a name that is called without one. Required.
	Domain string
	// HTTP reaches the WAF; it has to trust the WAF's certificate. nil: a client with the system's roots.
	// Redirects are not followed whatever it says.
	HTTP *http.Client
}

// Server serves the portal.
type Server struct {
	log   *slog.Logger
	cfg   Config
	waf   *discovery
	files map[string]*web.File
	csp   string

	forgery  *http.CrossOriginProtection
	bySource *limit.Limiter // guests
	asking   chan struct{}  // holds one for each guest that the WAF is asked for

	pages, assets, configs, joined, unavailable, missing, refused atomic.Uint64
}

// Stats counts answers since the start.
type Stats struct {
	Pages       uint64 // of "/"
	Assets      uint64 // of "/assets/…"
	Configs     uint64 // of "/config.json", with the WAF known
	Guests      uint64 // of "/guest", with a token
	Unavailable uint64 // of "/config.json" and "/guest", with 503: the WAF not reached, or no place left
	Missing     uint64 // 404
	Refused     uint64 // other methods; of "/guest", also another origin, too long, too many
}

var domainName = regexp.MustCompile(`^[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?$`)

// New checks cfg. It opens no socket: the portal shares an HTTPS origin with others, see Handler.
func New(cfg Config) (*Server, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.ClientID == "" {
		cfg.ClientID = "wic"
	}
	if cfg.Scope == "" {
		cfg.Scope = "sip"
	}
	if cfg.GuestClient == "" {
		cfg.GuestClient = "portal"
	}
	if cfg.TURNCredential == "" {
		cfg.TURNCredential = "token"
	}
	if cfg.TURNCredential != "token" && cfg.TURNCredential != "edge" {
		return nil, fmt.Errorf("wwsf: TURN credentials by %q: want token or edge; change wwsf.turn_credential", cfg.TURNCredential)
	}
	issuer, err := origin("the WAF's URL", cfg.WAF, "https")
	if err != nil {
		return nil, err
	}
	if issuer != cfg.WAF {
		return nil, fmt.Errorf("wwsf: the WAF's URL is %q: the issuer is an origin alone, write %q", cfg.WAF, issuer)
	}
	edge, err := origin("the WebSocket's URL", cfg.SIPURL, "wss")
	if err != nil {
		return nil, err
	}
	if !domainName.MatchString(cfg.Domain) {
		return nil, fmt.Errorf("wwsf: the home domain is %q: write one such as \"ims.test\"", cfg.Domain)
	}
	return &Server{
		log:   cfg.Log,
		cfg:   cfg,
		waf:   newDiscovery(issuer, cfg.HTTP, cfg.Log),
		files: web.Files(),
		csp:   policy(issuer, edge),

		forgery:  http.NewCrossOriginProtection(),
		bySource: limit.New(guestsBurst, guestsPer),
		asking:   make(chan struct{}, guestsOnce),
	}, nil
}

// origin returns scheme://host[:port] of raw, which what names in errors.
func origin(what, raw, scheme string) (string, error) {
	u, err := url.Parse(raw)
	switch {
	case raw == "":
		err = errors.New("is missing")
	case err != nil:
		err = fmt.Errorf("is %q, which is no URL", raw)
	case u.User != nil:
		err = fmt.Errorf("is %q: it must not hold a user name or password", u.Redacted())
	case u.Scheme != scheme:
		err = fmt.Errorf("is %q: its scheme has to be %s", raw, scheme)
	case u.Host == "" || u.Fragment != "" || u.RawQuery != "" || strings.ContainsAny(u.Host, " ;,'\"*"):
		err = fmt.Errorf("is %q: write %s://host[:port] and at most a path", raw, scheme)
	}
	if err != nil {
		return "", fmt.Errorf("wwsf: %s %w", what, err)
	}
	return scheme + "://" + strings.ToLower(u.Host), nil
}

// Serve keeps the WAF's metadata at hand until ctx ends, so that the first visitor does not wait for it.
// Handler works without, more slowly. It starts no goroutine.
func (s *Server) Serve(ctx context.Context) error {
	s.waf.keep(ctx)
	return nil
}

// Stats returns the counters of now.
func (s *Server) Stats() Stats {
	return Stats{
		Pages: s.pages.Load(), Assets: s.assets.Load(), Configs: s.configs.Load(), Guests: s.joined.Load(),
		Unavailable: s.unavailable.Load(), Missing: s.missing.Load(), Refused: s.refused.Load(),
	}
}
