package waf

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"wicgate/internal/claims"
	"wicgate/internal/limit"
	"wicgate/internal/secret"
)

// Client is a registered client (RFC 6749 §2.1). A public one is a page or program that can keep no
// secret; people log in through it. A confidential one has a secret and is a WWSF, which asks for
// guests by client credentials, and for nothing else.
type Client struct {
	// ID is its client_id.
	ID string
	// Name is shown on the log-in page.
	Name string
	// RedirectURIs are compared byte by byte (RFC 9700 §4.1.3). Public clients alone.
	RedirectURIs []string
	// Origins may read answers of the token endpoint from a page (CORS), such as https://portal.example.
	Origins []string
	// Secret makes the client confidential: at least MinSecret bytes, none of them guessable.
	Secret secret.Bytes
	// Page is the client_id of the public client to which tokens of its guests belong. Confidential
	// clients alone.
	Page string
}

// MinSecret is the least size of a client secret in bytes: 256 bits in hex have 64, in base64url 43.
const MinSecret = 32

func (c Config) validateClients() error {
	byID := map[string]Client{}
	for _, cl := range c.Clients {
		if _, twice := byID[cl.ID]; cl.ID == "" || len(cl.ID) > 128 || twice {
			return fmt.Errorf("client id %q: want 1 to 128 bytes, each once", cl.ID)
		}
		byID[cl.ID] = cl
		if !cl.Secret.IsZero() {
			if n := len(cl.Secret.Expose()); n < MinSecret || n > maxValue {
				return fmt.Errorf("client %q: a secret of %d bytes: want %d to %d, random", cl.ID, n, MinSecret, maxValue)
			}
			if len(cl.RedirectURIs) != 0 {
				return fmt.Errorf("client %q has a secret: it asks for guests and has no redirect URI", cl.ID)
			}
			continue
		}
		if len(cl.RedirectURIs) == 0 {
			return fmt.Errorf("client %q has no redirect URI", cl.ID)
		}
		for _, r := range cl.RedirectURIs {
			if err := checkWebURL(r); err != nil {
				return fmt.Errorf("client %q: redirect URI %q: %w", cl.ID, r, err)
			}
		}
		for _, o := range cl.Origins {
			if u, err := url.Parse(o); err != nil || checkWebURL(o) != nil || u.Scheme+"://"+u.Host != o {
				return fmt.Errorf("client %q: origin %q: want https://host[:port] and nothing more", cl.ID, o)
			}
		}
	}
	for _, cl := range c.Clients {
		if page, known := byID[cl.Page]; !cl.Secret.IsZero() && (!known || !page.Secret.IsZero()) {
			return fmt.Errorf("client %q: its guests' tokens are for the client %q, which is no public client here", cl.ID, cl.Page)
		}
	}
	if c.Guests > 0 && !hasConfidential(c.Clients) {
		return errors.New("guests, but no client with a secret that may ask for them; set wwsf.client_secret, or waf.guests to 0")
	}
	return nil
}

func hasConfidential(list []Client) bool {
	for _, c := range list {
		if !c.Secret.IsZero() {
			return true
		}
	}
	return false
}

// authenticate reads HTTP Basic (RFC 6749 §2.3.1), where it is there: a confidential client with its
// secret, or a refusal. The comparison takes the same time for every secret of one length and for
// an unknown client. Wrong ones are limited by source; the right one always passes, as it cannot be
// guessed, and a stranger behind the same address must not keep the portal out.
func (s *Server) authenticate(r *http.Request) (Client, *tokenError) {
	if r.Header.Get("Authorization") == "" {
		return Client{}, nil
	}
	id, typed, ok := r.BasicAuth()
	id, err1 := url.QueryUnescape(id)
	typed, err2 := url.QueryUnescape(typed)
	client := s.clients[id]
	want, known := client.Secret, !client.Secret.IsZero()
	if !known {
		want = s.noSecret
	}
	if right := want.Equal(secret.New([]byte(typed))); right && known && ok && err1 == nil && err2 == nil {
		return client, nil
	}
	// Before anything else about the request, so that a library that tries this first has not
	// spent its code.
	e := bad(ClientSecret, "invalid_client", "no client of that name with that secret; pages have none and send client_id in the body")
	e.status, e.basic = http.StatusUnauthorized, true
	if known {
		e.attrs = []any{"client", client.ID}
	}
	if wait, ok := s.bySecret.Take(limit.Source(r), time.Now()); !ok {
		e.cause, e.status, e.wait, e.text = TooManySecrets, http.StatusTooManyRequests, wait, "too many wrong secrets"
	}
	return Client{}, e
}

// public returns the public client that a request names.
func (s *Server) public(p values) (Client, *tokenError) {
	c, ok := s.clients[p["client_id"]]
	if !ok || !c.Secret.IsZero() {
		return Client{}, bad(UnknownClient, "invalid_client", "client_id is missing or not registered", "client", short(p["client_id"]))
	}
	return c, nil
}

// request reads a POST of a client: parameters in the body alone, each once, none over
// claims.MaxSize. What it refuses it has answered.
func (s *Server) request(w http.ResponseWriter, r *http.Request) (p values, auth Client, ok bool) {
	if r.URL.RawQuery != "" {
		s.refuseToken(w, r, bad(BadParameter, "invalid_request", "parameters belong in the body"))
		return nil, Client{}, false
	}
	auth, no := s.authenticate(r)
	if no != nil {
		s.refuseToken(w, r, no)
		return nil, Client{}, false
	}
	p, status := s.form(w, r) // logs what it refuses
	if status != 0 {
		header(w)
		writeJSON(w, status, errorBody{"invalid_request", "want one form of at most 16384 bytes, application/x-www-form-urlencoded, each parameter once"})
		return nil, Client{}, false
	}
	for _, v := range p {
		if len(v) > claims.MaxSize {
			s.refuseToken(w, r, bad(TooLarge, "invalid_request", "a parameter is too long"))
			return nil, Client{}, false
		}
	}
	switch {
	case p["client_secret"] != "" || p["client_assertion"] != "":
		no = bad(ClientSecret, "invalid_client", "a secret comes by HTTP Basic, and pages have none")
	case auth.ID != "" && p["client_id"] != "" && p["client_id"] != auth.ID:
		no = bad(BadParameter, "invalid_request", "client_id is not that of the secret", "client", auth.ID)
	}
	if no != nil {
		s.refuseToken(w, r, no)
		return nil, Client{}, false
	}
	return p, auth, true
}
