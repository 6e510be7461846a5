package waf

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/url"
	"strings"
)

// page is what page.html shows: a message, with a button where there is an Action, or the log-in.
type page struct {
	Title  string
	Text   string
	Action string // of the form
	Button string

	Login  bool
	Client string // name of the application
	User   string // as typed before
	Error  string // above the form
	Note   string // below the form

	Domain, Style string // filled in by page

	formTo string // origin that the form's answer may redirect to, for the CSP
}

// header sets what all answers have that are not public: nothing is kept, framed, sniffed or
// told to the next page.
func header(w http.ResponseWriter) {
	h := w.Header()
	if h.Get("Cache-Control") == "" {
		h.Set("Cache-Control", "no-store")
		h.Set("Pragma", "no-cache") // RFC 6749 §5.1
	}
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	if h.Get("Content-Security-Policy") == "" {
		h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	}
}

// page sends a page. There is no script on any.
func (s *Server) page(w http.ResponseWriter, status int, p page) {
	p.Domain, p.Style = s.cfg.Domain, stylePath()
	var b bytes.Buffer
	if err := s.pages.Execute(&b, p); err != nil { // a mistake in page.html
		s.log.Error("page", "title", p.Title, "error", err)
		http.Error(w, "internal error", http.StatusInternalServerError)
		return
	}
	form := "'none'"
	if p.Action != "" {
		// Chromium applies form-action to the redirects that answer a form, too.
		form = strings.TrimSpace("'self' " + p.formTo)
	}
	h := w.Header()
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; form-action "+form+"; base-uri 'none'; frame-ancestors 'none'")
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	header(w)
	w.WriteHeader(status)
	_, _ = b.WriteTo(w) // the browser may have gone
}

func (s *Server) loginPage(w http.ResponseWriter, status int, a authorization, typed, problem string) {
	p := page{Title: "Log in", Login: true, Action: "/oauth/login?" + a.query(), Button: "Log in",
		Client: a.client.Name, User: typed, Error: problem, Note: s.cfg.Note}
	if len(typed) > maxValue {
		p.User = ""
	}
	p.formTo = originOf(a.redirect)
	s.page(w, status, p)
}

// originOf returns the origin of a registered URI.
func originOf(uri string) string {
	u, err := url.Parse(uri)
	if err != nil { // New has checked it
		return ""
	}
	return u.Scheme + "://" + u.Host
}

func (s *Server) wrongMethod(w http.ResponseWriter, r *http.Request, allowed ...string) {
	s.refused(r, BadMethod, "method", short(r.Method))
	w.Header().Set("Allow", strings.Join(allowed, ", "))
	s.page(w, http.StatusMethodNotAllowed, page{Title: "This does not work", Text: "This address cannot be used in this way."})
}

// stylePath names the style sheet by its content, so that it may be kept for ever.
func stylePath() string {
	sum := sha256.Sum256(styleCSS)
	return "/oauth/style." + hex.EncodeToString(sum[:6]) + ".css"
}

func (s *Server) style(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
	w.Header().Set("Content-Type", "text/css; charset=utf-8")
	header(w)
	_, _ = w.Write(styleCSS) // the browser may have gone
}
