package probe

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"

	"wicgate/internal/secret"
	"wicgate/internal/turnclient"
)

const maxBody = 1 << 20 // bytes of an answer

func newWeb(cfg Config) *web {
	return &web{roots: cfg.Roots, client: &http.Client{
		Transport:     &http.Transport{TLSClientConfig: &tls.Config{RootCAs: cfg.Roots, MinVersion: tls.VersionTLS12}, ForceAttemptHTTP2: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// portalConfig is GET /config.json.
type portalConfig struct {
	Issuer        string `json:"issuer"`
	Authorization string `json:"authorization_endpoint"`
	Token         string `json:"token_endpoint"`
	Revocation    string `json:"revocation_endpoint"`
	Client        string `json:"client_id"`
	Scope         string `json:"scope"`
	SIP           string `json:"sip_url"`
	Domain        string `json:"domain"`
	Guests        bool   `json:"guests"`
	Credential    string `json:"turn_credential"` // "token" or "edge"
}

// login is a token answer.
type login struct {
	Token   string `json:"access_token"`
	Type    string `json:"token_type"`
	Expires int    `json:"expires_in"`
	Name    string `json:"name"`
	IMS     struct {
		IMPI     string   `json:"impi"`
		IMPU     []string `json:"impu"`
		Scenario int      `json:"scenario"`
	} `json:"ims"`
}

// tooFar is the difference of clocks that is named as a fault: tokens are dated.
const tooFar = time.Minute // 10 s are fine, 10 min are not

func (p *probe) portal(ctx context.Context) (string, error) {
	u, err := url.Parse(p.cfg.URL)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return "", faultf("Write the portal's address as browsers open it.", "%q is no https URL", p.cfg.URL)
	}
	if u.User != nil {
		return "", faultf("Name the user with --user; the password is asked for.", "%q names a user", u.Redacted())
	}
	begun := time.Now()
	var way wayTimes
	res, err := p.get(httptrace.WithClientTrace(ctx, way.trace()), strings.TrimSuffix(p.cfg.URL, "/")+"/config.json")
	if err != nil {
		return "", webFault(err, u.Host)
	}
	if at, err := http.ParseTime(res.Header.Get("Date")); err == nil {
		// The header has whole seconds, and was written between the question and now.
		if off := time.Until(at).Round(time.Second); off > tooFar || off < -tooFar-time.Since(begun) {
			return "", faultf("Set this machine's clock, or the server's, by NTP: tokens are dated, and certificates too.", "the clocks differ: the server's is %v from this machine's", off)
		}
	}
	if res.StatusCode == http.StatusServiceUnavailable {
		return "", faultf("See that the role waf runs, and that https.url of the portal's configuration names it.", "the portal runs, but does not reach its authorization server (waf)")
	}
	if err := json.Unmarshal(res.body, &p.config); err != nil || res.StatusCode != http.StatusOK || p.config.Token == "" || p.config.SIP == "" {
		return "", faultf("See that the address is that of wicgate's portal (wwsf).", "%s/config.json answers %s, which is no portal of wicgate", p.cfg.URL, res.Status)
	}
	leaf := res.TLS.PeerCertificates[0]
	return fmt.Sprintf("%s%s, %s, certificate until %s", way.String(), res.Proto, tls.VersionName(res.TLS.Version), leaf.NotAfter.Format(time.DateOnly)), nil
}

// wayTimes are how long a connection took, part by part.
type wayTimes struct {
	mu    sync.Mutex // guards all: two addresses may be tried at once
	begun map[string]time.Time
	took  map[string]time.Duration
}

func (w *wayTimes) begin(part string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.begun == nil {
		w.begun, w.took = map[string]time.Time{}, map[string]time.Duration{}
	}
	w.begun[part] = time.Now()
}

func (w *wayTimes) end(part string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if b, ok := w.begun[part]; ok && err == nil {
		w.took[part] = time.Since(b)
	}
}

func (w *wayTimes) trace() *httptrace.ClientTrace {
	return &httptrace.ClientTrace{
		DNSStart:          func(httptrace.DNSStartInfo) { w.begin("name") },
		DNSDone:           func(d httptrace.DNSDoneInfo) { w.end("name", d.Err) },
		ConnectStart:      func(string, string) { w.begin("TCP") },
		ConnectDone:       func(_, _ string, err error) { w.end("TCP", err) },
		TLSHandshakeStart: func() { w.begin("TLS") },
		TLSHandshakeDone:  func(_ tls.ConnectionState, err error) { w.end("TLS", err) },
	}
}

// String is "name 0.3 ms, TCP 0.1 ms, TLS 5.2 ms, ", without what there was not.
func (w *wayTimes) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var b strings.Builder
	for _, part := range []string{"name", "TCP", "TLS"} {
		if d, ok := w.took[part]; ok {
			fmt.Fprintf(&b, "%s %.1f ms, ", part, float64(d.Microseconds())/1000)
		}
	}
	return b.String()
}

// webFault names what is wrong between here and a web server.
func webFault(err error, host string) error {
	var dns *net.DNSError
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	var invalid x509.CertificateInvalidError
	var alien tls.RecordHeaderError
	var named fault
	switch {
	case errors.As(err, &named):
		return named
	case errors.As(err, &dns):
		return fault{err, "Set the name in DNS, or use the address."}
	case errors.As(err, &unknown):
		return faultf("Give the CA with --ca FILE (of a first call: ca/ca.pem in the data folder), or use a certificate that everybody trusts.", "the certificate of %s is signed by a CA that is not trusted here%s", host, issuedBy(unknown.Cert))
	case errors.As(err, &name):
		return faultf("Use a name that is in the certificate, or a certificate with this name (https.certificate).", "the certificate of %s is for other names: %w", host, name)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		now := time.Now()
		if now.Before(invalid.Cert.NotBefore) {
			return faultf("Set the clock of this machine by NTP; if it is right, the certificate is not to be used yet.", "the certificate of %s is good from %s on, and this machine's clock says %s", host, stamp(invalid.Cert.NotBefore), stamp(now))
		}
		return faultf("Renew the certificate, or set the clock of this machine if it is wrong.", "the certificate of %s was good until %s, and this machine's clock says %s", host, stamp(invalid.Cert.NotAfter), stamp(now))
	case errors.As(err, &invalid):
		return faultf("Use a certificate for servers of a CA that may sign one: browsers refuse this one too.", "the certificate of %s is not good: %w", host, invalid)
	case errors.As(err, &alien), errors.Is(err, http.ErrSchemeMismatch):
		return faultf("See that the port is that of https.listen.", "%s does not speak TLS", host)
	case errors.Is(err, syscall.ECONNREFUSED):
		return faultf("See that wicgate runs there and listens on this address (https.listen).", "nobody listens at %s", host)
	case errors.Is(err, context.DeadlineExceeded):
		return faultf("A firewall may drop the packets: see that the port is open from here.", "%s does not answer", host)
	}
	return fault{err, "See that wicgate runs there and listens on this address (https.listen), and that no firewall is between."}
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 UTC") }

func issuedBy(c *x509.Certificate) string {
	if c == nil {
		return ""
	}
	return fmt.Sprintf(": %q", c.Issuer.String())
}

// reply is an answer that has been read.
type reply struct {
	*http.Response
	body []byte
}

func (p *probe) get(ctx context.Context, u string) (reply, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
	if err != nil {
		return reply{}, err
	}
	return p.do(req)
}

func (p *probe) post(ctx context.Context, u string, form url.Values) (reply, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u, strings.NewReader(form.Encode()))
	if err != nil {
		return reply{}, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return p.do(req)
}

// do asks, by TLS alone: the addresses are a server's words, and a password or a token may be in the request.
func (p *probe) do(req *http.Request) (reply, error) {
	if req.URL.Scheme != "https" {
		return reply{}, faultf("Set https.url of the portal, and the addresses of its authorization server, to https URLs.", "%q is no https URL: nothing is sent there", req.URL.Redacted())
	}
	res, err := p.web.client.Do(req)
	if err != nil {
		return reply{}, err
	}
	defer func() { _ = res.Body.Close() }() // only read from
	body, err := io.ReadAll(io.LimitReader(res.Body, maxBody))
	return reply{res, body}, err
}

func (p *probe) metadata(ctx context.Context) (string, error) {
	res, err := p.get(ctx, p.config.Issuer+"/.well-known/oauth-authorization-server")
	if err != nil {
		return "", webFault(err, p.config.Issuer)
	}
	if res.StatusCode != http.StatusOK {
		return "", faultf("See that the role waf runs behind https.url: the portal knows it from before.", "the authorization server does not answer: %s is %s", p.config.Issuer, res.Status)
	}
	var m struct {
		Issuer string `json:"issuer"`
	}
	if json.Unmarshal(res.body, &m) != nil || m.Issuer != p.config.Issuer {
		return "", faultf("https.url must be the same in the configuration of waf, wwsf and epcscf.", "%s answers as issuer %q", p.config.Issuer, m.Issuer)
	}
	return m.Issuer, nil
}

var formAction = regexp.MustCompile(`<form method="post" action="([^"]*)"`)

// logIn is the authorization code grant with PKCE (RFC 7636), the form filled in.
func (p *probe) logIn(ctx context.Context) (string, error) {
	verifier, state := random(32), random(16)
	sum := sha256.Sum256([]byte(verifier))
	back := strings.TrimSuffix(p.cfg.URL, "/") + "/"
	q := url.Values{
		"response_type": {"code"}, "client_id": {p.config.Client}, "redirect_uri": {back}, "scope": {p.config.Scope}, "state": {state},
		"code_challenge": {base64.RawURLEncoding.EncodeToString(sum[:])}, "code_challenge_method": {"S256"},
	}
	res, err := p.get(ctx, p.config.Authorization+"?"+q.Encode())
	if err != nil {
		return "", webFault(err, p.config.Issuer)
	}
	form := formAction.FindSubmatch(res.body)
	if form == nil {
		return "", faultf("The portal's address must be a redirect URI of the client: use https.url as it is configured.", "the log-in page answers %s without a form", res.Status)
	}
	at, err := url.Parse(p.config.Authorization)
	if err != nil {
		return "", err
	}
	if at, err = at.Parse(html.UnescapeString(string(form[1]))); err != nil {
		return "", err
	}
	res, err = p.post(ctx, at.String(), url.Values{"username": {p.cfg.User}, "password": {string(p.cfg.Password.Expose())}})
	if err != nil {
		return "", webFault(err, p.config.Issuer)
	}
	switch res.StatusCode {
	case http.StatusForbidden:
		return "", faultf("Try the same in the browser; democore's passwords are new at each start of wicgate.", "user name or password of %q is wrong", p.cfg.User)
	case http.StatusTooManyRequests:
		return "", faultf("Wait for "+res.Header.Get("Retry-After")+" s.", "too many attempts to log in")
	}
	to, err := res.Location()
	if err != nil {
		return "", faultf("Look into the log of waf.", "the log-in answers %s", res.Status)
	}
	a := to.Query()
	if a.Get("state") != state || a.Get("iss") != p.config.Issuer || a.Get("code") == "" {
		return "", faultf("Look into the log of waf.", "the log-in answers with error %q", a.Get("error"))
	}
	res, err = p.post(ctx, p.config.Token, url.Values{
		"grant_type": {"authorization_code"}, "code": {a.Get("code")}, "redirect_uri": {back}, "client_id": {p.config.Client}, "code_verifier": {verifier},
	})
	if err != nil {
		return "", webFault(err, p.config.Issuer)
	}
	return p.entered(res)
}

func random(n int) string {
	b := make([]byte, n)
	rand.Read(b)
	return base64.RawURLEncoding.EncodeToString(b)
}

func (p *probe) guest(ctx context.Context) (string, error) {
	if !p.config.Guests {
		return "", faultf("Set waf.guests, or probe with --user.", "the portal lets no guests in")
	}
	res, err := p.post(ctx, strings.TrimSuffix(p.cfg.URL, "/")+"/guest", nil)
	if err != nil {
		return "", webFault(err, p.cfg.URL)
	}
	return p.entered(res)
}

// entered takes a token answer.
func (p *probe) entered(res reply) (string, error) {
	if err := refusal(res); err != nil {
		return "", err
	}
	if err := json.Unmarshal(res.body, &p.login); err != nil || p.login.Token == "" || len(p.login.IMS.IMPU) == 0 {
		return "", faultf("Look into the log of waf.", "the token answer holds no token, or no identity")
	}
	return fmt.Sprintf("%s, private %s, scenario %d, token for %v%s", p.login.IMS.IMPU[0], p.login.IMS.IMPI, p.login.IMS.Scenario, time.Duration(p.login.Expires)*time.Second, shownClaims(p.login.Token)), nil
}

// shownClaims says who issued a SIP token (RFC 9068), for whom and until when: the edge reads the same. It is
// not verified here, which is the edge's to do.
func shownClaims(token string) string {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return ", opaque"
	}
	var c struct {
		Issuer   string `json:"iss"`
		Audience any    `json:"aud"`
		Expires  int64  `json:"exp"`
	}
	b, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil || json.Unmarshal(b, &c) != nil {
		return ", unreadable"
	}
	return fmt.Sprintf(" until %s, of %s for %v", time.Unix(c.Expires, 0).UTC().Format("15:04:05 UTC"), c.Issuer, c.Audience)
}

// refused is an OAuth error (RFC 6749 §5.2).
type refused struct{ status, code, text string }

func (r refused) Error() string { return strings.TrimSpace(r.status + ": " + r.code + " " + r.text) }

// refusal reads an OAuth error, or that of POST /guest.
func refusal(res reply) error {
	if res.StatusCode == http.StatusOK {
		return nil
	}
	var e struct {
		Error       string `json:"error"`
		Description string `json:"error_description"`
		Message     string `json:"message"`
	}
	_ = json.Unmarshal(res.body, &e) // what is not JSON has no words
	check := "Look into the log of waf for the line with this moment's time."
	if res.StatusCode == http.StatusServiceUnavailable || res.StatusCode == http.StatusTooManyRequests {
		check = "Try again later: all guests' identities are taken (waf.guests), or one asks too often."
	}
	return fault{refused{res.Status, e.Error, e.Description + e.Message}, check}
}

// iceServer is an RTCIceServer.
type iceServer struct {
	URLs       []string `json:"urls"`
	Username   string   `json:"username"`
	Credential string   `json:"credential"`
}

// exchange gets a TURN token for the SIP token (RFC 8693, RFC 7635), for a TURN server's name; "" is the
// first that the WAF has.
func (p *probe) exchange(ctx context.Context, audience string) (list []iceServer, life time.Duration, err error) {
	form := url.Values{
		"grant_type": {"urn:ietf:params:oauth:grant-type:token-exchange"}, "client_id": {p.config.Client},
		"subject_token": {p.login.Token}, "subject_token_type": {"urn:ietf:params:oauth:token-type:access_token"},
	}
	if audience != "" {
		form.Set("audience", audience)
	}
	res, err := p.post(ctx, p.config.Token, form)
	if err != nil {
		return nil, 0, webFault(err, p.config.Issuer)
	}
	if err := refusal(res); err != nil {
		return nil, 0, err
	}
	var a struct {
		Expires int         `json:"expires_in"`
		Servers []iceServer `json:"ice_servers"`
	}
	if err := json.Unmarshal(res.body, &a); err != nil {
		return nil, 0, faultf("Look into the log of waf.", "the answer is no JSON")
	}
	return a.Servers, time.Duration(a.Expires) * time.Second, nil
}

// turnToken is approach 2 of TR 33.872 (6.3.2): a token of the WAF.
func (p *probe) turnToken(ctx context.Context) (string, error) {
	servers, life, err := p.exchange(ctx, "")
	if err != nil {
		return "", err
	}
	if err := p.take(servers); err != nil {
		return "", err
	}
	return fmt.Sprintf("%d URLs, token for %v", len(p.relays), life), nil
}

// take makes relays of what a browser is told.
func (p *probe) take(servers []iceServer) error {
	for _, s := range servers {
		for _, u := range s.URLs {
			t, err := newRelay(u, s.Username, secret.New([]byte(s.Credential)), p.web.roots)
			if err != nil {
				return err
			}
			if p.relays = append(p.relays, t); len(p.relays) > 8 {
				return faultf("Shorten turn.urls.", "more than 8 TURN URLs")
			}
		}
	}
	if len(p.relays) == 0 {
		return faultf("Set turn.urls.", "the answer names no TURN server")
	}
	return nil
}

// allocate is the relay's, with the reason why a TURN server refuses a credential.
func (p *probe) allocate(ctx context.Context, t *relay) (string, error) {
	detail, err := t.allocate(ctx)
	if turnclient.Code(err) != 401 {
		return detail, err
	}
	switch {
	case p.fromEdge():
		return "", fault{err, "The TURN server does not know the edge's secret: turn and epcscf must share the file turn.secrets. Or their clocks differ by more than epcscf.turn_credential_life."}
	case t.calls == "":
		return "", faultf("The TURN server takes no tokens (RFC 7635): is turn.urls that of wicgate's turn?", "%w", err)
	}
	var no refused
	switch _, _, asked := p.exchange(ctx, t.calls); {
	case errors.As(asked, &no) && no.code == "invalid_target":
		return "", faultf("waf and turn must have the same turn.name and share the file turn.keys; or turn.urls points at a TURN server of somebody else.",
			"token of another TURN server: the one at %s calls itself %q, for which the WAF seals no tokens: %w", net.JoinHostPort(t.host, t.port), t.calls, err)
	case asked != nil:
		return "", fault{err, "The TURN server's log names the cause."}
	}
	return "", faultf("The names agree, so the keys or the clocks do not: waf and turn must share one file turn.keys, and their clocks may differ by the token's life at most. The TURN server's log names the cause.",
		"the TURN server %q refuses the token that the WAF sealed for it: %w", t.calls, err)
}

// fromEdge: the edge gives TURN credentials, not the WAF.
func (p *probe) fromEdge() bool {
	return cmp.Or(p.cfg.TURNCredential, p.config.Credential) == "edge"
}

func (p *probe) logOut(ctx context.Context) (string, error) {
	if p.config.Revocation == "" {
		return "the authorization server offers no revocation; the session ends by its time", nil
	}
	res, err := p.post(ctx, p.config.Revocation, url.Values{"token": {p.login.Token}, "client_id": {p.config.Client}})
	if err != nil {
		return "", webFault(err, p.config.Issuer)
	}
	return "session revoked", refusal(res)
}
