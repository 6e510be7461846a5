package wwsf

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"
)

const (
	wellKnown    = "/.well-known/oauth-authorization-server" // RFC 8414 §3
	metadataSize = 64 << 10                                  // bytes of metadata that are read
	askTime      = 3 * time.Second                           // for one answer of the WAF
	fresh        = 10 * time.Minute                          // metadata is used unasked for so long
	stale        = 24 * time.Hour                            // and for so long when the WAF cannot be reached
	failureHold  = time.Second                               // a failure is told again for so long, without asking
	retryLeast   = 250 * time.Millisecond                    // keep: first wait after a failure, doubled up to
	retryMost    = 15 * time.Second
)

// metadata is what the page needs of the WAF's metadata (RFC 8414 §2, RFC 9207 §3).
type metadata struct {
	Issuer        string   `json:"issuer"`
	Authorization string   `json:"authorization_endpoint"`
	Token         string   `json:"token_endpoint"`
	EndSession    string   `json:"end_session_endpoint,omitempty"`
	Revocation    string   `json:"revocation_endpoint,omitempty"`
	ISS           bool     `json:"authorization_response_iss_parameter_supported"`
	PKCE          []string `json:"code_challenge_methods_supported,omitempty"`
	Grants        []string `json:"grant_types_supported,omitempty"`
}

// grants says whether the WAF has a grant.
func (m *metadata) grants(name string) bool { return slices.Contains(m.Grants, name) }

// discovery knows the WAF's metadata, or asks for it.
type discovery struct {
	issuer string
	client *http.Client
	log    *slog.Logger

	mu    sync.Mutex // guards the following fields, and is held while asking: one question at a time
	known *metadata
	at    time.Time // when known was read
	err   error     // of the last question, nil after a success
	tried time.Time // when it was asked
}

func newDiscovery(issuer string, client *http.Client, log *slog.Logger) *discovery {
	if client == nil {
		client = &http.Client{}
	}
	c := *client
	c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	c.Jar = nil
	return &discovery{issuer: issuer, client: &c, log: log}
}

// get returns metadata that is fresh, or that was read in the last day when the WAF cannot be reached.
func (d *discovery) get() (*metadata, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	if d.known != nil && now.Sub(d.at) < fresh {
		return d.known, nil
	}
	if d.err == nil || now.Sub(d.tried) >= failureHold {
		d.askLocked()
	}
	if d.err != nil && (d.known == nil || now.Sub(d.at) >= stale) {
		return nil, d.err
	}
	return d.known, nil
}

// keep asks early and again, until ctx ends.
func (d *discovery) keep(ctx context.Context) {
	wait := retryLeast
	for {
		d.mu.Lock()
		d.askLocked()
		err := d.err
		d.mu.Unlock()
		next := fresh / 2
		if err != nil {
			next, wait = wait, min(wait*2, retryMost)
		} else {
			wait = retryLeast
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(next):
		}
	}
}

// askLocked asks the WAF. Its time is bounded by its own clock, not by the visitor's patience: others wait too.
func (d *discovery) askLocked() {
	ctx, cancel := context.WithTimeout(context.Background(), askTime)
	defer cancel()
	m, err := d.ask(ctx)
	was := d.err
	d.err, d.tried = err, time.Now()
	switch {
	case err == nil:
		if was != nil || d.known == nil {
			d.log.Info("WAF found", "issuer", d.issuer)
		}
		d.known, d.at = m, d.tried
	case was == nil || was.Error() != err.Error():
		d.log.Warn("WAF not usable, trying again", "issuer", d.issuer, "cause", err, "known_from_before", d.known != nil)
	}
}

func (d *discovery) ask(ctx context.Context) (*metadata, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, d.issuer+wellKnown, nil)
	if err != nil {
		return nil, fmt.Errorf("wwsf: metadata of %s: %w", d.issuer, err)
	}
	req.Header.Set("Accept", "application/json")
	resp, err := d.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("wwsf: metadata of the WAF: %w; see that it runs and that https.url names it", err)
	}
	defer func() { _ = resp.Body.Close() }() // only read from
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("wwsf: metadata of the WAF: %s answers %s", req.URL, resp.Status)
	}
	if t, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type")); err != nil || t != "application/json" {
		return nil, fmt.Errorf("wwsf: metadata of the WAF: %s is %q, not JSON", req.URL, resp.Header.Get("Content-Type"))
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, metadataSize+1))
	if err != nil {
		return nil, fmt.Errorf("wwsf: metadata of the WAF: %w", err)
	}
	if len(body) > metadataSize {
		return nil, fmt.Errorf("wwsf: metadata of the WAF is longer than %d bytes", metadataSize)
	}
	var m metadata
	if err := json.Unmarshal(body, &m); err != nil {
		return nil, fmt.Errorf("wwsf: metadata of the WAF: %w", err)
	}
	if err := m.check(d.issuer); err != nil {
		return nil, fmt.Errorf("wwsf: metadata of the WAF: %w", err)
	}
	return &m, nil
}

// check holds the metadata against RFC 8414 §3.3 and RFC 9700 §2.1.1. The page may only talk to the WAF's
// own origin (Content-Security-Policy), so every endpoint has to be there.
func (m *metadata) check(issuer string) error {
	if m.Issuer != issuer {
		return fmt.Errorf("issuer is %q where %q was asked", m.Issuer, issuer)
	}
	for _, e := range []struct {
		name, url string
		required  bool
	}{
		{"authorization_endpoint", m.Authorization, true},
		{"token_endpoint", m.Token, true},
		{"end_session_endpoint", m.EndSession, false},
		{"revocation_endpoint", m.Revocation, false},
	} {
		if e.url == "" {
			if e.required {
				return fmt.Errorf("%s is missing", e.name)
			}
			continue
		}
		u, err := url.Parse(e.url)
		if err != nil || u.User != nil || u.Fragment != "" || u.Scheme+"://"+u.Host != issuer {
			return fmt.Errorf("%s is %q, outside %s", e.name, e.url, issuer)
		}
	}
	if len(m.PKCE) > 0 && !slices.Contains(m.PKCE, "S256") {
		return errors.New("code_challenge_methods_supported lacks S256")
	}
	return nil
}
