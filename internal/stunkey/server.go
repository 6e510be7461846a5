// Package stunkey carries the keys of a plain ring from the issuer of tokens to TURN servers, by the
// HTTP interaction of RFC 7635 §4.1.1 over mutual TLS:
//
//	TURN server ── GET /.well-known/stun-key?service=turn&name=<its name> ──► WAF, a listener of its own
//	            ◄─ {"k": "<base64url>", "exp": 1300819380, "kid": "...", "enc": "A256GCM", "keys": [...]} ──
//
// k, exp, kid and enc are those of the newest key, which may be a key that seals nothing yet: the
// WAF makes one a quarter of its life before its first use. "keys" is ours: the other keys of which
// tokens may be about, so that a server that starts anew opens those too; a client by the RFC alone
// passes over it.
//
// A K is symmetric: who has it can mint tokens. So a client gets the keys of one name, the only one
// in its certificate.
package stunkey

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"wicgate/internal/keyring"
	"wicgate/internal/limit"
)

// Path is registered with IANA (RFC 7635 §10).
const Path = "/.well-known/stun-key"

// endless is the exp that is told of a key without one: ask again until then.
const endless = 24 * time.Hour

// key is what RFC 7635 §4.1.1 says of one.
type key struct {
	K   string  `json:"k"`   // RFC 7518 §6.4.1: base64url
	Exp float64 `json:"exp"` // RFC 7519 §4.1.4: NumericDate, which may have a fraction
	KID string  `json:"kid"`
	Enc string  `json:"enc"`
}

type answer struct {
	key
	Keys []key `json:"keys,omitempty"`
}

// Server is the WAF's side. It must stand behind a listener that verifies client certificates.
type Server struct {
	log   *slog.Logger
	rings map[string]*keyring.Ring
	rate  *limit.Limiter // by certificate
}

// NewServer serves the keys of plain rings, each to the servers of its name.
func NewServer(log *slog.Logger, rings ...*keyring.Ring) *Server {
	s := &Server{log: log, rings: map[string]*keyring.Ring{}, rate: limit.New(30, 2*time.Second)}
	for _, r := range rings {
		if r.IsPlain() { // masters never leave wicgate
			s.rings[r.Server()] = r
		}
	}
	return s
}

// ServeHTTP answers and logs one pull. A name that is not the client's own and one that is not known
// get the same 403.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	cert := verified(r)
	if cert == nil {
		http.Error(w, "a client certificate is needed", http.StatusForbidden)
		return
	}
	print := sha256.Sum256(cert.Raw)
	log := s.log.With("certificate", hex.EncodeToString(print[:8]), "serial", cert.SerialNumber.Text(16), "from", limit.Source(r))
	now := time.Now()
	if wait, ok := s.rate.Take(string(print[:]), now); !ok { // before the log: lines are bounded too
		w.Header().Set("Retry-After", strconv.Itoa(int(wait/time.Second)+1))
		http.Error(w, "too many pulls", http.StatusTooManyRequests)
		return
	}
	refuse := func(status int, text, cause string) {
		log.Warn("STUN key refused", "cause", cause, "status", status)
		http.Error(w, text, status)
	}
	q, err := url.ParseQuery(r.URL.RawQuery)
	switch {
	case r.URL.Path != Path:
		refuse(http.StatusNotFound, "only "+Path+" is here", "another path")
		return
	case r.Method != http.MethodGet:
		w.Header().Set("Allow", http.MethodGet)
		refuse(http.StatusMethodNotAllowed, "GET is the way", "method")
		return
	case err != nil || len(q["service"]) != 1 || len(q["name"]) != 1:
		refuse(http.StatusBadRequest, "service and name are needed, once each", "parameters")
		return
	case !strings.EqualFold(q.Get("service"), "turn") && !strings.EqualFold(q.Get("service"), "stun"): // the text says TURN, its example stun
		refuse(http.StatusBadRequest, "service must be turn or stun", "service")
		return
	}
	name := q.Get("name")
	ring := s.rings[name]
	switch own, ok := onlyName(cert); {
	case !ok:
		refuse(http.StatusForbidden, "not for this certificate", "the certificate has not exactly one DNS SAN, and nothing else")
		return
	case own != name:
		refuse(http.StatusForbidden, "not for this certificate", "the certificate is of "+own+" and asks for another")
		return
	case ring == nil:
		refuse(http.StatusForbidden, "not for this certificate", "no plain keys are kept for "+own+"; see waf.stun_key.servers")
		return
	}
	list := ring.Plain(now)
	if len(list) == 0 {
		refuse(http.StatusServiceUnavailable, "no key yet", "the keyring is empty")
		return
	}
	var a answer
	kids := make([]string, 0, len(list))
	for i, p := range list {
		exp := p.Exp
		if exp.IsZero() {
			exp = now.Add(endless)
		}
		k := key{base64.RawURLEncoding.EncodeToString(p.K.Expose()), float64(exp.Unix()), p.KID, p.Enc.String()}
		if i == 0 {
			a.key = k
		} else {
			a.Keys = append(a.Keys, k)
		}
		kids = append(kids, p.KID)
	}
	body, err := json.Marshal(a)
	if err != nil {
		refuse(http.StatusInternalServerError, "no answer", err.Error())
		return
	}
	log.Info("STUN key pulled", "server", name, "kids", kids, "exp", list[0].Exp)
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(body) // who has gone asks again
}

// verified is the client's certificate if the listener has verified it.
func verified(r *http.Request) *x509.Certificate {
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
		return nil
	}
	return r.TLS.VerifiedChains[0][0]
}

// onlyName is the one name of a certificate that has one.
func onlyName(c *x509.Certificate) (string, bool) {
	if len(c.DNSNames) != 1 || len(c.IPAddresses)+len(c.URIs)+len(c.EmailAddresses) > 0 {
		return "", false
	}
	return c.DNSNames[0], true
}
