package wwsf

import (
	"encoding/json"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"

	"wicgate/web"
)

const (
	cacheForever = "public, max-age=31536000, immutable" // RFC 8246
	cacheNever   = "no-store"
	hsts         = "max-age=31536000" // a year; subdomains and preloading are the operator's decision
	retryAfter   = "2"                // s, with 503
)

// policy is the page's Content-Security-Policy (CSP3). Nothing inline, nothing foreign, no string becomes
// script (Trusted Types); connections to the portal, the WAF and the edge alone. WebRTC media is outside
// of CSP's connect-src.
func policy(waf, edge string) string {
	return strings.Join([]string{
		"default-src 'none'",
		"script-src 'self'",
		"style-src 'self'",
		"img-src 'self' data:",
		"media-src blob:",
		"connect-src 'self' " + edge + " " + waf,
		"base-uri 'none'",
		"form-action 'none'",
		"frame-ancestors 'none'",
		"require-trusted-types-for 'script'",
		"trusted-types 'none'",
	}, "; ")
}

// permissions is the Permissions-Policy: microphone, camera and sound for this page, and nothing else that asks.
const permissions = "microphone=(self), camera=(self), autoplay=(self), display-capture=(), geolocation=(), " +
	"usb=(), serial=(), hid=(), midi=(), payment=(), publickey-credentials-get=(), browsing-topics=()"

// Handler serves the portal on "/", "/assets/", "/config.json" and "/guest", and a 404 page elsewhere.
func (s *Server) Handler() http.Handler { return http.HandlerFunc(s.serve) }

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Security-Policy", s.csp)
	h.Set("Permissions-Policy", permissions)
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Origin-Agent-Cluster", "?1")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Referrer-Policy", "no-referrer") // the WAF's redirect has the code in its query
	if r.TLS != nil && !isLocal(r.Host) {
		h.Set("Strict-Transport-Security", hsts)
	}
	if r.URL.Path == "/guest" {
		s.guest(w, r)
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		s.refused.Add(1)
		h.Set("Allow", "GET, HEAD")
		h.Set("Cache-Control", cacheNever)
		http.Error(w, "The portal is read with GET and HEAD alone.", http.StatusMethodNotAllowed)
		return
	}
	name := strings.TrimPrefix(r.URL.Path, "/")
	switch {
	case r.URL.Path == "/":
		s.pages.Add(1)
		h.Set("Cache-Control", cacheNever)
		send(w, r, s.files[web.Index], http.StatusOK)
	case r.URL.Path == "/config.json":
		s.config(w)
	case strings.HasPrefix(name, web.Prefix) && s.files[name] != nil:
		s.assets.Add(1)
		h.Set("Cache-Control", cacheForever)
		send(w, r, s.files[name], http.StatusOK)
	default:
		s.missing.Add(1)
		h.Set("Cache-Control", cacheNever)
		send(w, r, s.files[web.Missing], http.StatusNotFound)
	}
}

// isLocal: on localhost and on bare addresses, which are for development, HSTS would bind the browser to
// HTTPS for every other program on the same name (and browsers ignore it for addresses, RFC 6797 §8.1.1).
func isLocal(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.ToLower(strings.TrimSuffix(strings.Trim(host, "[]"), "."))
	_, err := netip.ParseAddr(host)
	return err == nil || host == "localhost" || strings.HasSuffix(host, ".localhost")
}

func send(w http.ResponseWriter, r *http.Request, f *web.File, status int) {
	h := w.Header()
	h.Set("Content-Type", f.Type)
	body := f.Body
	if z := f.Gzip(); z != nil {
		h.Set("Vary", "Accept-Encoding")
		if takesGzip(r.Header.Values("Accept-Encoding")) {
			h.Set("Content-Encoding", "gzip")
			body = z
		}
	}
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	if r.Method == http.MethodGet {
		_, _ = w.Write(body) // an error here is the visitor having gone
	}
}

// takesGzip reads Accept-Encoding (RFC 9110 §12.5.3) as far as it matters: gzip named and not refused.
func takesGzip(values []string) bool {
	for _, v := range values {
		for part := range strings.SplitSeq(v, ",") {
			coding, params, _ := strings.Cut(part, ";")
			if !strings.EqualFold(strings.TrimSpace(coding), "gzip") {
				continue
			}
			q, found := strings.CutPrefix(strings.TrimSpace(params), "q=")
			n, err := strconv.ParseFloat(q, 64)
			return !found || err == nil && n > 0
		}
	}
	return false
}

// pageConfig is the body of /config.json.
type pageConfig struct {
	metadata
	ClientID string `json:"client_id"`
	Scope    string `json:"scope"`
	SIPURL   string `json:"sip_url"`
	Domain   string `json:"domain"`
	// Guests: somebody may join without a log-in, by POST /guest.
	Guests bool `json:"guests"`
	// TURNCredential is where credentials for TURN come from: "token" or "edge".
	TURNCredential string `json:"turn_credential"`
}

func (s *Server) config(w http.ResponseWriter) {
	w.Header().Set("Cache-Control", cacheNever)
	m, err := s.waf.get()
	if err != nil {
		s.unavailable.Add(1)
		w.Header().Set("Retry-After", retryAfter)
		reply(w, http.StatusServiceUnavailable, struct {
			Error   string `json:"error"`
			Message string `json:"message"` // for the person; the cause is in the log
		}{"temporarily_unavailable", "The operator’s log-in service is not to be reached at the moment. Try again in a little while."})
		return
	}
	s.configs.Add(1)
	c := pageConfig{metadata: *m, ClientID: s.cfg.ClientID, Scope: s.cfg.Scope, SIPURL: s.cfg.SIPURL, Domain: s.cfg.Domain,
		Guests: s.guests(m), TURNCredential: s.cfg.TURNCredential}
	c.PKCE, c.Grants = nil, nil // looked at here, of no use to the page
	reply(w, http.StatusOK, c)
}

func reply(w http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil { // of strings and booleans: cannot be
		http.Error(w, "internal error", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write(body) // an error here is the visitor having gone
}
