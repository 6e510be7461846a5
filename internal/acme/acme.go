// Package acme gets the certificates of the configured names from a CA by ACME (RFC 8555), renews them,
// and shows them in TLS. All nodes that share a store share account, certificates and work: one of
// them gets a certificate, whichever the CA then asks proves the name (tls-alpn-01, RFC 8737; http-01,
// RFC 8555 §8.3), and all serve it.
//
// Only configured names are ever asked for: what a client names in SNI decides which certificate it
// sees and nothing else. While the CA cannot be reached or refuses, the last certificate is shown, and
// the log and [Client.Err] say why; where there is none yet, handshakes fail. No other certificate
// takes its place: one that browsers warn of teaches people to ignore the warning.
//
// The protocol is certmagic's. When to ask, how often after a failure, and what to show is decided
// here, by the one goroutine of [Client.Serve].
package acme

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3/acme"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"wicgate/internal/listen"
	"wicgate/internal/secret"
	"wicgate/internal/store"
)

const (
	loadTime    = 10 * time.Second // for what is stored, at the start
	attemptTime = 5 * time.Minute  // for one certificate, waiting for another node too

	// A certificate is looked at 60 times in its life, within these bounds. It is renewed when a third of
	// its life is left, or when the CA says so.
	minLook, maxLook = time.Second, time.Hour
	looksInALife     = 60

	// Who may not ask again yet looks so often whether another node has been luckier.
	lookAround = 10 * time.Second

	// How long the CA's renewal information (RFC 9773) is good if the CA does not say.
	suggestionLife = 6 * time.Hour
)

// backoff is how long nobody asks for a name after its first, second... failure in a row. Let's Encrypt
// allows 5 failed validations of a name in an hour.
var backoff = []time.Duration{time.Minute, 2 * time.Minute, 5 * time.Minute, 10 * time.Minute, 30 * time.Minute, time.Hour}

// Config is how a [Client] is. All but Log, Email, Roots and HTTP is required.
type Config struct {
	Log *slog.Logger // nil = discard
	// Names are DNS names in lower case. Each has a certificate of its own; the first is shown to
	// clients that name none of them.
	Names     []string
	Directory string         // URL of the CA's directory (RFC 8555 §7.1.1)
	Email     string         // where the CA writes to; "" = nowhere
	Roots     *x509.CertPool // that the directory's own certificate is checked by; nil = the system's
	Store     store.Store
	// Secrets seal what is in the store: the first seals, all open.
	Secrets []secret.Bytes
	// Listen is an address of this process where TLS is served with GetCertificate.
	Listen netip.AddrPort
	// HTTP is where http-01 is answered; zero = tls-alpn-01 alone.
	HTTP netip.AddrPort
}

// Client keeps the certificates.
type Client struct {
	cfg    Config
	vault  *vault
	magic  *certmagic.Config
	issuer *certmagic.ACMEIssuer
	cache  *certmagic.Cache
	http   net.Listener // nil = no http-01

	// Owned by New, then by the goroutine of Serve.
	pace map[string]*pace
	now  attempt // the one under way

	mu     sync.RWMutex // guards the following fields
	certs  map[string]*tls.Certificate
	faults map[string]error // by name, of the last attempt
}

// pace is when to look at a name again.
type pace struct {
	look     time.Time // when to look at the name again
	ask      time.Time // not before may the CA be asked
	failures int       // in a row, of this node

	asked     string    // hash of the certificate for which the CA was asked when to renew it
	askAgain  time.Time // when to ask again
	suggested time.Time // zero = no suggestion
}

// attempt is one call of certmagic, which tells by events how it goes.
type attempt struct {
	leaf   *x509.Certificate // to renew; nil = there is none
	cancel func()
	err    error
}

// failure is what nodes tell each other by the store when the CA refuses, so that together they do not ask more often than
// one would.
type failure struct {
	Count int       `json:"count"` // in a row
	Next  time.Time `json:"next"`
	Cause string    `json:"cause"`
}

const failures = "wicgate/failures/" // path of a name's failure

// later is the error of an attempt that another's failure forbids.
type later struct{ failure }

func (l later) Error() string {
	return fmt.Sprintf("the next attempt is at %s UTC; the last of a node failed: %s", l.Next.UTC().Format(time.TimeOnly), l.Cause)
}

// errRenewed ends an attempt that another node was faster with.
var errRenewed = errors.New("acme: renewed by another node")

// New opens the HTTP socket, if there is to be one, and reads the certificates that are stored. Nothing
// of the CA or the store's content is an error here: only the configuration can be.
func New(cfg Config) (*Client, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	v, err := newVault(cfg.Store, cfg.Secrets, cfg.Log)
	if err != nil {
		return nil, err
	}
	c := &Client{cfg: cfg, vault: v, pace: map[string]*pace{}, certs: map[string]*tls.Certificate{}, faults: map[string]error{}}
	if cfg.HTTP.IsValid() {
		if c.http, err = listen.TCP("https.acme.http", cfg.HTTP); err != nil {
			return nil, err
		}
	}
	log := zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(zapcore.EncoderConfig{MessageKey: "msg", NameKey: "from"}), debugLog{cfg.Log}, debugLevel{cfg.Log}))
	c.cache = certmagic.NewCache(certmagic.CacheOptions{
		GetConfigForCert:   func(certmagic.Certificate) (*certmagic.Config, error) { return c.magic, nil },
		RenewCheckInterval: minLook, // it renews that much earlier than the CA suggests
		Logger:             log,
	})
	c.cache.Stop() // its upkeep, which nobody could wait for; Serve does it
	c.magic = certmagic.New(c.cache, certmagic.Config{
		Storage: v, Logger: log, OnEvent: c.event,
		// A request to the CA for each certificate at each look, without a bound in time. Let's Encrypt has
		// had no OCSP since 2025; with a CA that has, clients do as with certificates from files.
		OCSP:           certmagic.OCSPConfig{DisableStapling: true},
		ShouldEmitFunc: func(event string) bool { return strings.HasPrefix(event, "cert_") },
	})
	c.issuer = certmagic.NewACMEIssuer(c.magic, certmagic.ACMEIssuer{
		CA: cfg.Directory, Email: cfg.Email, Agreed: true, TrustedRoots: cfg.Roots, Logger: log,
		// The library looks whether these sockets are open, and would open them if they were not.
		ListenHost: cfg.Listen.Addr().String(), AltTLSALPNPort: int(cfg.Listen.Port()),
		DisableHTTPChallenge: c.http == nil, AltHTTPPort: int(cfg.HTTP.Port()),
	})
	c.magic.Issuers = []certmagic.Issuer{c.issuer}

	ctx, cancel := context.WithTimeout(context.Background(), loadTime)
	defer cancel()
	for _, name := range cfg.Names {
		c.pace[name] = new(pace)
		if _, err := c.load(ctx, name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			c.fault(name, err)
		}
	}
	return c, nil
}

// Serve gets and renews certificates until ctx ends.
func (c *Client) Serve(ctx context.Context) error {
	if c.http != nil {
		srv := listen.Plain(http.HandlerFunc(c.challenge), c.cfg.Log)
		served := make(chan struct{})
		go func() {
			defer close(served)
			_ = srv.Serve(c.http) // ends by Close, below
		}()
		defer func() {
			_ = srv.Close() // nobody waits for an answer any more
			<-served
		}()
	}
	for {
		soonest := time.Now().Add(maxLook)
		for _, name := range c.cfg.Names {
			p := c.pace[name]
			if !time.Now().Before(p.look) {
				p.look = time.Now().Add(c.tend(ctx, name))
			}
			if p.look.Before(soonest) {
				soonest = p.look
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Until(soonest)):
		}
	}
}

// tend does what there is to do for a name, and says when to look again.
func (c *Client) tend(ctx context.Context, name string) time.Duration {
	work, cancel := context.WithTimeout(ctx, attemptTime)
	defer cancel()
	p := c.pace[name]
	cert, err := c.load(work, name)
	missing := errors.Is(err, fs.ErrNotExist)
	if err != nil && !missing {
		return c.failed(ctx, name, err)
	}
	due := missing || cert.NeedsRenewal(c.magic)
	suggested := !due && c.suggested(work, name, cert)
	if !due && !suggested {
		return c.well(name, cert)
	}
	if wait := time.Until(p.ask); wait > 0 {
		return min(wait, lookAround)
	}

	// The library retries without an end; one attempt is enough, and event ends it.
	c.now = attempt{leaf: cert.Leaf, cancel: cancel}
	if missing {
		err = c.magic.ObtainCertAsync(work, name)
	} else {
		err = c.magic.RenewCertAsync(work, name, suggested)
	}
	if c.now.err != nil {
		err = c.now.err
	}
	if err == nil || errors.Is(err, errRenewed) {
		cert, err = c.load(ctx, name)
	}
	if err != nil {
		return c.failed(ctx, name, err)
	}
	c.cfg.Log.Info("acme: certificate", "name", name, "until", cert.Leaf.NotAfter)
	return c.well(name, cert)
}

// well notes that there is nothing to do for a name.
func (c *Client) well(name string, cert certmagic.Certificate) time.Duration {
	c.fault(name, nil)
	c.pace[name].failures, c.pace[name].ask = 0, time.Time{}
	return lookAgain(cert.Leaf)
}

func lookAgain(leaf *x509.Certificate) time.Duration {
	return min(max(leaf.NotAfter.Sub(leaf.NotBefore)/looksInALife, minLook), maxLook)
}

// load reads a name's certificate from the store and shows it from now on.
func (c *Client) load(ctx context.Context, name string) (certmagic.Certificate, error) {
	cert, err := c.magic.CacheManagedCertificate(ctx, name)
	if err != nil {
		return certmagic.Certificate{}, err
	}
	c.cache.Remove([]string{cert.Hash()}) // certs is the cache
	c.mu.Lock()
	defer c.mu.Unlock()
	c.certs[name] = &cert.Certificate
	return cert, nil
}

// suggested says whether the CA wants this certificate renewed now (RFC 9773), as it does for instance
// when it must revoke it. What it suggested when it issued the certificate is stored with that.
func (c *Client) suggested(ctx context.Context, name string, cert certmagic.Certificate) bool {
	p, now := c.pace[name], time.Now()
	if p.asked != cert.Hash() {
		p.asked, p.askAgain, p.suggested = cert.Hash(), time.Time{}, time.Time{}
	}
	if now.After(p.askAgain) {
		p.askAgain = now.Add(suggestionLife)
		info, err := c.issuer.GetRenewalInfo(ctx, cert)
		if err != nil {
			c.cfg.Log.Debug("acme: the CA does not say when to renew", "name", name, "error", err)
			return false
		}
		p.suggested = info.SelectedTime
		if info.RetryAfter != nil {
			p.askAgain = now.Add(min(max(info.RetryAfter.Sub(now), time.Minute), 4*suggestionLife))
		}
	}
	return !p.suggested.IsZero() && now.After(p.suggested)
}

// event hears from certmagic, on the goroutine of Serve, while this node holds the name's lock.
func (c *Client) event(ctx context.Context, event string, data map[string]any) error {
	name, _ := data["identifier"].(string)
	switch event {
	case "cert_obtaining":
		if b, err := c.vault.Load(ctx, failures+name); err == nil {
			var f failure
			if json.Unmarshal(b, &f) == nil && time.Now().Before(f.Next) {
				return c.end(later{f})
			}
		}
		if c.now.leaf != nil {
			b, err := c.vault.Load(ctx, certmagic.StorageKeys.SiteCert(c.issuer.IssuerKey(), name))
			if p, _ := pem.Decode(b); err == nil && p != nil && !bytes.Equal(p.Bytes, c.now.leaf.Raw) {
				return c.end(errRenewed)
			}
		}
	case "cert_failed":
		err, _ := data["error"].(error)
		if !errors.As(err, new(acme.Problem)) {
			return c.end(err) // this node does not get through to the CA; another may
		}
		var f failure
		if b, err := c.vault.Load(ctx, failures+name); err == nil {
			_ = json.Unmarshal(b, &f) // what cannot be read counts as none
		}
		f = failure{f.Count + 1, time.Now().Add(backoff[min(f.Count, len(backoff)-1)]), err.Error()}
		if b, e := json.Marshal(f); e == nil {
			if e = c.vault.Store(ctx, failures+name, b); e != nil {
				c.cfg.Log.Debug("acme: other nodes do not hear of the failure", "error", e)
			}
		}
		_ = c.end(err)
	case "cert_obtained":
		if err := c.vault.Delete(ctx, failures+name); err != nil {
			c.cfg.Log.Debug("acme: an old failure stays", "error", err)
		}
	}
	return nil
}

// end ends the attempt under way with err.
func (c *Client) end(err error) error {
	c.now.err = err
	c.now.cancel()
	return certmagic.ErrNoRetry{Err: err}
}

// failed notes and tells why there is no new certificate, and says when to try again.
func (c *Client) failed(ctx context.Context, name string, err error) time.Duration {
	if ctx.Err() != nil {
		return maxLook // this process ends
	}
	c.fault(name, err)
	p := c.pace[name]
	var other later
	if errors.As(err, &other) {
		c.cfg.Log.Debug("acme: waiting", "name", name, "error", err)
		p.ask = other.Next.Add(rand.N(lookAround)) // one of the nodes is first
		return lookAround
	}
	wait := backoff[min(p.failures, len(backoff)-1)]
	p.failures++
	p.ask = time.Now().Add(wait)
	shown := "none: handshakes for it fail"
	if leaf, err := c.leaf(name); err == nil {
		shown = "the last, until " + leaf.NotAfter.UTC().Format(time.DateTime)
	}
	c.cfg.Log.Error("acme: no new certificate", "name", name, "error", explain(c.cfg, name, err), "shown", shown, "again_in", wait)
	return lookAround
}

func (c *Client) fault(name string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.faults[name] = err
}

// explain adds to an error what to do next.
func explain(cfg Config, name string, err error) error {
	port := "443"
	if cfg.HTTP.IsValid() {
		port = "443 or 80"
	}
	hint := ""
	var problem acme.Problem
	var unknown x509.UnknownAuthorityError
	var host x509.HostnameError
	var netErr net.Error
	switch {
	case errors.As(err, &problem):
		switch problem.Type {
		case acme.ProblemTypeDNS:
			hint = fmt.Sprintf("the CA finds no address of %s: give the name an A or AAAA record with this node's public address", name)
		case acme.ProblemTypeConnection, acme.ProblemTypeTLS, acme.ProblemTypeUnauthorized, acme.ProblemTypeIncorrectResponse:
			hint = fmt.Sprintf("the CA does not find the proof at %s, port %s: does the name's A or AAAA record lead here, does the firewall let the port in, is it forwarded to %v? If something answers there, it is a machine that does not share this node's bus, or a proxy that ends TLS before wicgate", name, port, cfg.Listen)
		case acme.ProblemTypeCAA:
			hint = fmt.Sprintf("a CAA record of %s or above it lets other CAs only: add this one", name)
		case acme.ProblemTypeRateLimited:
			hint = "the CA wants less to do; wait, or try with its staging directory first"
		case acme.ProblemTypeRejectedIdentifier, acme.ProblemTypeUnsupportedIdentifier:
			hint = "this CA issues nothing for that name: public CAs take public names only"
		case acme.ProblemTypeExternalAccountRequired:
			hint = "this CA wants accounts bound to a contract (RFC 8555 §7.3.4), which wicgate does not do: set https.acme.directory to another CA"
		case acme.ProblemTypeInvalidContact, acme.ProblemTypeUnsupportedContact:
			hint = "correct https.acme.email"
		}
	case errors.Is(err, errSealed):
	case errors.As(err, &unknown), errors.As(err, &host):
		hint = fmt.Sprintf("the certificate of %s itself is not trusted: set https.acme.ca to the PEM file of its root", cfg.Directory)
	case errors.As(err, &netErr):
		hint = fmt.Sprintf("is https.acme.directory right, and does the firewall let this machine out to %s?", cfg.Directory)
	}
	if hint != "" {
		err = fmt.Errorf("%w\n  hint: %s", err, hint)
	}
	return err
}

// GetCertificate serves the newest certificate of the name that the client asks for, the first name's
// where it asks for none or an unknown one, and the CA's proof where that asks. For [tls.Config].
func (c *Client) GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	name := strings.ToLower(hello.ServerName)
	known := slices.Contains(c.cfg.Names, name)
	if slices.Contains(hello.SupportedProtos, listen.ACMEProtocol) {
		if !known || len(hello.SupportedProtos) != 1 {
			return nil, fmt.Errorf("acme: challenge for %q, which is none of https.acme.names", hello.ServerName)
		}
		return c.magic.GetCertificate(hello)
	}
	if !known {
		name = c.cfg.Names[0]
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	if cert := c.certs[name]; cert != nil {
		return cert, nil
	}
	return nil, fmt.Errorf("acme: no certificate for %s yet", name)
}

// challenge answers http-01, and nothing else.
func (c *Client) challenge(w http.ResponseWriter, r *http.Request) {
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	if !slices.Contains(c.cfg.Names, strings.ToLower(host)) || !c.issuer.HandleHTTPChallenge(w, r) {
		http.NotFound(w, r)
	}
}

func (c *Client) leaf(name string) (*x509.Certificate, error) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	cert := c.certs[name]
	if cert == nil {
		if err := c.faults[name]; err != nil {
			return nil, fmt.Errorf("acme: no certificate for %s: %w", name, err)
		}
		return nil, fmt.Errorf("acme: no certificate for %s yet", name)
	}
	return cert.Leaf, nil
}

// Leaf is of all certificates shown the one that ends first; an error where a name has none.
func (c *Client) Leaf() (first *x509.Certificate, err error) {
	for _, name := range c.cfg.Names {
		leaf, err := c.leaf(name)
		if err != nil {
			return nil, err
		}
		if first == nil || leaf.NotAfter.Before(first.NotAfter) {
			first = leaf
		}
	}
	return first, nil
}

// Err says why there are no new certificates where there should be, nil if all is well.
func (c *Client) Err() error {
	c.mu.RLock()
	defer c.mu.RUnlock()
	var errs []error
	for _, name := range c.cfg.Names {
		if err := c.faults[name]; err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

// debugLog takes certmagic's log, whose errors come out by [Client.failed] in our words.
type debugLog struct{ log *slog.Logger }

func (d debugLog) Write(b []byte) (int, error) {
	d.log.Debug("acme: certmagic", "entry", string(bytes.TrimSpace(b)))
	return len(b), nil
}

// Sync implements zapcore.WriteSyncer.
func (debugLog) Sync() error { return nil }

type debugLevel struct{ log *slog.Logger }

// Enabled implements zapcore.LevelEnabler.
func (d debugLevel) Enabled(zapcore.Level) bool {
	return d.log.Enabled(context.Background(), slog.LevelDebug)
}
