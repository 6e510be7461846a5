package stunkey

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"math/rand/v2"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"wicgate/internal/keyring"
	"wicgate/internal/secret"
	"wicgate/internal/token"
)

const (
	pullTime = 10 * time.Second // bounds one pull
	maxBody  = 64 << 10         // MaxPlain keys need 16 KiB
	// The next pull comes after a quarter of what is left of the newest key's life. The WAF makes the
	// next key a quarter of a life before the first use.
	soonest = time.Second
	latest  = 6 * time.Hour
	// After a failure, doubled each time.
	firstRetry = time.Second
	lastRetry  = time.Minute
	// A kid that is not known may be one of a key made out of turn: but not more often than this.
	kickEvery = 30 * time.Second
)

// PullerConfig is how a [Puller] is. All fields but CA are required.
type PullerConfig struct {
	Log *slog.Logger
	// URL of the WAF's listener, https. Without a path, it is [Path].
	URL string
	// Ring takes the keys: a plain one, whose file makes a start without the WAF possible.
	Ring *keyring.Ring
	// Certificate is the client's, whose only DNS SAN is the ring's server.
	Certificate func(*tls.CertificateRequestInfo) (*tls.Certificate, error)
	// CA signed the WAF's certificate; nil: the system's.
	CA *x509.CertPool
}

// Puller is the TURN server's side: it keeps a ring supplied. It is the Keys of the server.
type Puller struct {
	log    *slog.Logger
	url    string
	ring   *keyring.Ring
	client *http.Client
	kick   chan struct{} // of one: a kid was not known; never closed
	tried  atomic.Int64  // Unix nanoseconds of the last pull's begin
}

// NewPuller pulls nothing yet: see Serve.
func NewPuller(cfg PullerConfig) (*Puller, error) {
	u, err := url.Parse(cfg.URL)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("stunkey: %q is no URL such as https://waf.example.org:8444; set turn.key_pull.url", cfg.URL)
	}
	if !cfg.Ring.IsPlain() {
		return nil, errors.New("stunkey: keys that are pulled are plain; set turn.oauth.kid_mode: plain")
	}
	if u.Path == "" || u.Path == "/" {
		u.Path = Path
	}
	u.RawQuery = url.Values{"service": {"turn"}, "name": {cfg.Ring.Server()}}.Encode()
	return &Puller{
		log: cfg.Log, url: u.String(), ring: cfg.Ring, kick: make(chan struct{}, 1),
		client: &http.Client{
			Timeout:       pullTime,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
			Transport: &http.Transport{ // no proxy: a key goes to nobody else
				TLSClientConfig:   &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: cfg.CA, GetClientCertificate: cfg.Certificate},
				DisableKeepAlives: true, TLSHandshakeTimeout: pullTime, ForceAttemptHTTP2: true,
				MaxResponseHeaderBytes: 16 << 10,
			},
		},
	}, nil
}

// Key returns the key of a kid, see [keyring.Ring.Key]. It does not wait: for a kid that is not known
// a pull begins, at most one in 30 s, from which later requests have the key.
func (p *Puller) Key(kid string) (secret.Bytes, token.Format, string, bool) {
	k, f, who, ok := p.ring.Key(kid)
	if !ok && time.Now().UnixNano()-p.tried.Load() >= int64(kickEvery) {
		select {
		case p.kick <- struct{}{}:
		default:
		}
	}
	return k, f, who, ok
}

// NonceSecrets returns the secrets of the server's nonces, which are its own.
func (p *Puller) NonceSecrets() []secret.Bytes { return p.ring.NonceSecrets() }

// Serve pulls at once, then each time that a quarter of the newest key's remaining life has gone, and
// after a failure with growing waits. It ends with ctx. What it has, it keeps: a key opens tokens until
// the last that it can have sealed has ended, whatever the WAF does.
func (p *Puller) Serve(ctx context.Context) error {
	var retry time.Duration
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		case <-p.kick:
		}
		exp, err := p.pull(ctx)
		if ctx.Err() != nil {
			return nil
		}
		var wait time.Duration
		if err == nil {
			wait, retry = min(max(time.Until(exp)/4, soonest), latest), 0
		} else {
			retry = min(max(2*retry, firstRetry), lastRetry)
			wait = retry/2 + rand.N(retry/2+1) // many servers, one WAF that comes back
			p.log.Warn("keys not pulled; those that are here stay", "url", p.url, "keys", len(p.ring.Plain(time.Now())), "again_in", wait.Round(time.Millisecond), "error", err)
		}
		timer.Reset(wait)
	}
}

// pull asks once, and returns the exp of the newest key.
func (p *Puller) pull(ctx context.Context) (exp time.Time, err error) {
	p.tried.Store(time.Now().UnixNano())
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url, nil)
	if err != nil {
		return exp, fmt.Errorf("stunkey: %w", err)
	}
	req.Header.Set("Accept", "application/json")
	resp, err := p.client.Do(req)
	if err != nil {
		return exp, fmt.Errorf("stunkey: %w", err)
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusForbidden:
		return exp, fmt.Errorf("stunkey: the WAF refuses (403): the only DNS SAN of turn.key_pull.certificate must be %s, and waf.stun_key.servers must name it", p.ring.Server())
	case resp.StatusCode != http.StatusOK:
		return exp, fmt.Errorf("stunkey: the WAF answers %d", resp.StatusCode)
	}
	if kind, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type")); err != nil || kind != "application/json" {
		return exp, fmt.Errorf("stunkey: the answer is %.40q, not application/json; is turn.key_pull.url that of waf.stun_key.listen?", resp.Header.Get("Content-Type"))
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody+1))
	if err != nil {
		return exp, fmt.Errorf("stunkey: read the answer: %w", err)
	}
	now := time.Now()
	list, err := parse(body, now)
	if err != nil {
		return exp, fmt.Errorf("stunkey: %w", err)
	}
	fresh, err := p.ring.Learn(now, list...)
	if err != nil {
		return exp, fmt.Errorf("stunkey: %w", err)
	}
	if len(fresh) > 0 {
		p.log.Info("keys pulled", "kids", fresh, "exp", list[0].Exp)
	}
	return list[0].Exp, nil
}

// parse reads an answer: the newest key, which must not have ended, and then the others. Its errors
// quote nothing of it.
func parse(b []byte, now time.Time) ([]keyring.PlainKey, error) {
	if len(b) > maxBody {
		return nil, fmt.Errorf("the answer has more than %d bytes", maxBody)
	}
	var a answer
	if err := json.Unmarshal(b, &a); err != nil {
		return nil, errors.New("the answer is not the JSON of RFC 7635 §4.1.1")
	}
	if len(a.Keys) > keyring.MaxPlain {
		return nil, fmt.Errorf("the answer has more than %d keys", keyring.MaxPlain)
	}
	var list []keyring.PlainKey
	for i, k := range append([]key{a.key}, a.Keys...) {
		f, ok := token.ParseFormat(k.Enc)
		if !ok {
			return nil, fmt.Errorf("key %d of the answer is for an enc that is not %s", i+1, token.Formats)
		}
		raw, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(k.K, "="))
		if err != nil || !f.Fits(len(raw)) {
			return nil, fmt.Errorf("k of key %d of the answer is not %d bytes in base64url, as %v wants", i+1, f.KeySize(), f)
		}
		// A century ahead is no date, and 0 is a key without one.
		sec, _ := math.Modf(k.Exp)
		if !(sec > 0 && sec < float64(now.AddDate(100, 0, 0).Unix())) {
			return nil, fmt.Errorf("exp of key %d of the answer is no NumericDate", i+1)
		}
		p := keyring.PlainKey{KID: k.KID, Enc: f, K: secret.New(raw), Exp: time.Unix(int64(sec), 0).UTC()}
		if i == 0 && !now.Before(p.Exp) {
			return nil, fmt.Errorf("the newest key of the answer has ended at %v; compare the clocks", p.Exp.Format(time.RFC3339))
		}
		list = append(list, p)
	}
	return list, nil
}
