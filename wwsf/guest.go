package wwsf

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"wicgate/internal/limit"
)

const (
	guestBody   = 1 << 10          // bytes of a request to /guest that are read; there is nothing in them that matters
	guestAnswer = 16 << 10         // bytes of the WAF's answer that are read
	guestTime   = 5 * time.Second  // for the WAF's answer
	guestsBurst = 10               // guests of one source at once, and then
	guestsPer   = 30 * time.Second // one more after each
	guestsOnce  = 32               // requests to the WAF at once
)

// guestError is the body of an answer of /guest that is no token.
type guestError struct {
	Error   string `json:"error"`   // as in RFC 6749 §5.2 where there is such a word
	Message string `json:"message"` // for the person; the cause is in the log
}

// guest answers POST /guest: somebody joins without a log-in. The portal asks the WAF by client
// credentials (TR 33.872 6.3.2.3) and hands the answer on as it is; the page renews it at the WAF
// itself. The client secret goes to the WAF and nowhere else.
func (s *Server) guest(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", cacheNever)
	if r.Method != http.MethodPost {
		s.refused.Add(1)
		w.Header().Set("Allow", "POST")
		reply(w, http.StatusMethodNotAllowed, guestError{"invalid_request", "Guests join with POST alone."})
		return
	}
	if err := s.forgery.Check(r); err != nil {
		s.refused.Add(1)
		s.log.Info("guest refused", "cause", "a page of another site asked", "from", limit.Source(r))
		reply(w, http.StatusForbidden, guestError{"access_denied", "Guests join from the portal’s own page."})
		return
	}
	if _, err := io.Copy(io.Discard, http.MaxBytesReader(w, r.Body, guestBody)); err != nil {
		s.refused.Add(1)
		reply(w, http.StatusRequestEntityTooLarge, guestError{"invalid_request", "The request is too long, or was cut off."})
		return
	}
	m, err := s.waf.get()
	if err != nil {
		s.guestsAway(w)
		return
	}
	if !s.guests(m) {
		s.missing.Add(1)
		reply(w, http.StatusNotFound, guestError{"access_denied", "Guests are not served here. Log in instead."})
		return
	}
	if wait, ok := s.bySource.Take(limit.Source(r), time.Now()); !ok {
		s.refused.Add(1)
		s.log.Info("guest refused", "cause", "too many from one source", "from", limit.Source(r))
		w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(wait.Seconds()))))
		reply(w, http.StatusTooManyRequests, guestError{"temporarily_unavailable", "Too many guests joined from your network just now. Try again in half a minute."})
		return
	}
	select {
	case s.asking <- struct{}{}:
		defer func() { <-s.asking }()
	default:
		s.guestsAway(w)
		return
	}
	body, err := s.askForGuest(r.Context(), m.Token)
	var full *fullError
	switch {
	case err == nil:
		s.joined.Add(1)
		s.log.Info("guest joined", "from", limit.Source(r))
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		_, _ = w.Write(body) // an error here is the visitor having gone
	case errors.As(err, &full):
		s.unavailable.Add(1)
		s.log.Warn("guest refused", "cause", "the WAF has no place", "from", limit.Source(r))
		w.Header().Set("Retry-After", strconv.Itoa(full.wait))
		reply(w, http.StatusServiceUnavailable, guestError{"temporarily_unavailable", "All places for guests are taken. Try again in a few minutes."})
	case r.Context().Err() != nil: // the visitor has gone
	default:
		s.log.Warn("guest refused", "cause", err, "from", limit.Source(r))
		s.guestsAway(w)
	}
}

func (s *Server) guestsAway(w http.ResponseWriter) {
	s.unavailable.Add(1)
	w.Header().Set("Retry-After", retryAfter)
	reply(w, http.StatusServiceUnavailable, guestError{"server_error", "Joining as a guest does not work at the moment. Try again in a little while."})
}

// guests says whether they can join: there is a secret, and the WAF has the grant.
func (s *Server) guests(m *metadata) bool {
	return !s.cfg.ClientSecret.IsZero() && m.grants("client_credentials")
}

// fullError: the WAF has no identity left.
type fullError struct{ wait int } // s

func (*fullError) Error() string { return "no identity left" }

// askForGuest returns the WAF's token response (RFC 6749 §5.1) as it came. endpoint is in the WAF's
// own origin, and redirects are not followed: the secret cannot be led elsewhere.
func (s *Server) askForGuest(ctx context.Context, endpoint string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, guestTime)
	defer cancel()
	form := url.Values{"grant_type": {"client_credentials"}, "scope": {s.cfg.Scope}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, endpoint, strings.NewReader(form.Encode()))
	if err != nil {
		return nil, fmt.Errorf("wwsf: a guest's token: %w", err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Accept", "application/json")
	req.SetBasicAuth(url.QueryEscape(s.cfg.GuestClient), url.QueryEscape(string(s.cfg.ClientSecret.Expose()))) // RFC 6749 §2.3.1
	resp, err := s.waf.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("wwsf: a guest's token: %w", err)
	}
	defer func() { _ = resp.Body.Close() }() // only read from
	body, err := io.ReadAll(io.LimitReader(resp.Body, guestAnswer+1))
	if err != nil {
		return nil, fmt.Errorf("wwsf: a guest's token: %w", err)
	}
	if len(body) > guestAnswer {
		return nil, fmt.Errorf("wwsf: a guest's token: the answer is longer than %d bytes", guestAnswer)
	}
	if t, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type")); err != nil || t != "application/json" {
		return nil, fmt.Errorf("wwsf: a guest's token: %s answers %s with %q, not JSON", endpoint, resp.Status, resp.Header.Get("Content-Type"))
	}
	var a struct {
		Token       string `json:"access_token"`
		Type        string `json:"token_type"`
		Error       string `json:"error"`
		Description string `json:"error_description"`
	}
	if err := json.Unmarshal(body, &a); err != nil {
		return nil, fmt.Errorf("wwsf: a guest's token: %s answers %s: %w", endpoint, resp.Status, err)
	}
	switch {
	case resp.StatusCode == http.StatusOK && a.Token != "" && strings.EqualFold(a.Type, "Bearer"):
		return bytes.TrimSpace(body), nil
	case resp.StatusCode == http.StatusServiceUnavailable && a.Error == "temporarily_unavailable" && strings.Contains(a.Description, "taken"):
		wait, err := strconv.Atoi(resp.Header.Get("Retry-After"))
		if err != nil || wait < 1 || wait > 3600 {
			wait = 60
		}
		return nil, &fullError{wait}
	case resp.StatusCode == http.StatusUnauthorized:
		return nil, fmt.Errorf("wwsf: a guest's token: the WAF does not take the secret of client %q; compare the file of wwsf.client_secret here with the WAF's", s.cfg.GuestClient)
	}
	return nil, fmt.Errorf("wwsf: a guest's token: %s answers %s %.64q", endpoint, resp.Status, a.Error)
}
