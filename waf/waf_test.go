package waf

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"io"
	"log/slog"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"go.uber.org/goleak"
	"golang.org/x/oauth2"

	"wicgate/internal/claims"
	"wicgate/internal/keyring"
	"wicgate/internal/secret"
	"wicgate/internal/store"
	"wicgate/internal/token"
)

const (
	issuer   = "https://waf.ims.test"
	redirect = "https://portal.ims.test/"
	turnName = "turn.ims.test"
	password = "correct horse battery"
	audience = "epcscf.ims.test"
)

// cheap makes tests fast; the default cost is tested by itself.
var cheap = argonCost{memory: 64, time: 1, lanes: 1}

// lab is a Server with its surroundings in sight.
type lab struct {
	*testing.T
	s     *Server
	store *flaky
	ring  *keyring.Ring
	log   *logBuffer
}

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// flaky is a store that can be made to fail.
type flaky struct {
	*store.Memory
	mu   sync.Mutex
	fail map[string]bool // by method, or method and bucket
}

var errFlaky = errors.New("the store is away")

func (f *flaky) broken(method, bucket string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail[method] || f.fail[method+" "+bucket] {
		return errFlaky
	}
	return nil
}

func (f *flaky) set(what string, fail bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail[what] = fail
}

func (f *flaky) Create(ctx context.Context, bucket, key string, value []byte, ttl time.Duration) (store.Revision, error) {
	if err := f.broken("create", bucket); err != nil {
		return 0, err
	}
	return f.Memory.Create(ctx, bucket, key, value, ttl)
}

func (f *flaky) Get(ctx context.Context, bucket, key string) (store.Entry, error) {
	if err := f.broken("get", bucket); err != nil {
		return store.Entry{}, err
	}
	return f.Memory.Get(ctx, bucket, key)
}

func (f *flaky) CompareAndSet(ctx context.Context, bucket, key string, value []byte, old store.Revision, ttl time.Duration) (store.Revision, error) {
	if err := f.broken("set", bucket); err != nil {
		return 0, err
	}
	rev, err := f.Memory.CompareAndSet(ctx, bucket, key, value, old, ttl)
	if lost := f.broken("set, answer lost", bucket); lost != nil {
		return 0, lost
	}
	return rev, err
}

func (f *flaky) Scan(ctx context.Context, bucket string, each func(store.Entry) bool) error {
	if err := f.broken("scan", bucket); err != nil {
		return err
	}
	return f.Memory.Scan(ctx, bucket, each)
}

func (f *flaky) Delete(ctx context.Context, bucket, key string, old store.Revision) error {
	if err := f.broken("delete", bucket); err != nil {
		return err
	}
	return f.Memory.Delete(ctx, bucket, key, old)
}

func testConfig(t testing.TB, st store.Store, ring *keyring.Ring) Config {
	user := func(name, display string) User {
		return User{Name: name, Display: display, Password: secret.New([]byte(password)), IMPI: name + "@ims.test",
			IMPU: []string{"sip:" + name + "@ims.test", "sip:" + name + ".mobile@ims.test"}}
	}
	return Config{
		Issuer: issuer, Domain: "ims.test", Audience: audience, Store: st,
		Rings: []*keyring.Ring{ring}, TURNURLs: map[string][]string{turnName: {"turn:127.0.0.1:3478?transport=udp"}},
		SigningKeyFile: filepath.Join(t.TempDir(), "waf-key.pem"),
		Clients: []Client{
			{ID: "wic", Name: "The <portal>", RedirectURIs: []string{redirect, "https://portal.ims.test/?view=call"}, Origins: []string{"https://portal.ims.test"}},
			{ID: "other", RedirectURIs: []string{"https://other.test/cb"}},
		},
		Users: []User{user("alice", "Alice"), user("bob", "Bob")},
		argon: cheap,
	}
}

func newLab(t *testing.T, change ...func(*Config)) *lab {
	t.Helper()
	l := &lab{T: t, store: &flaky{Memory: store.NewMemory(), fail: map[string]bool{}}, ring: keyring.New(turnName), log: &logBuffer{}}
	cfg := testConfig(t, l.store, l.ring)
	cfg.Log = slog.New(slog.NewJSONHandler(l.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	for _, c := range change {
		c(&cfg)
	}
	var err error
	if l.s, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	return l
}

// answer is a response whose body is in memory, so that nobody has to close it.
type answer struct {
	StatusCode int
	Header     http.Header
	Body       *bytes.Buffer
	cookies    []*http.Cookie
}

func (a *answer) Cookies() []*http.Cookie { return a.cookies }

func (a *answer) Location() (*url.URL, error) {
	if a.Header.Get("Location") == "" {
		return nil, http.ErrNoLocation
	}
	return url.Parse(a.Header.Get("Location"))
}

// request runs one request. body nil is a GET.
func (l *lab) request(method, target string, body url.Values, change ...func(*http.Request)) *answer {
	var b io.Reader
	if body != nil {
		b = strings.NewReader(body.Encode())
	}
	r := httptest.NewRequest(method, target, b)
	if body != nil {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	for _, c := range change {
		c(r)
	}
	w := httptest.NewRecorder()
	l.s.Handler().ServeHTTP(w, r)
	res := w.Result()
	defer res.Body.Close()
	return &answer{res.StatusCode, res.Header, w.Body, res.Cookies()}
}

func withCookie(c *http.Cookie) func(*http.Request) {
	return func(r *http.Request) {
		if c != nil {
			r.AddCookie(c)
		}
	}
}

func with(name, value string) func(*http.Request) {
	return func(r *http.Request) { r.Header.Set(name, value) }
}

func body(t testing.TB, r *answer) string {
	t.Helper()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

const verifier = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk" // RFC 7636 appendix B
const challenge = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"

// asked are the parameters of a good authorization request.
func asked(change ...string) url.Values {
	q := url.Values{"response_type": {"code"}, "client_id": {"wic"}, "redirect_uri": {redirect}, "scope": {"sip"}, "state": {"st&te=1 "},
		"code_challenge": {challenge}, "code_challenge_method": {"S256"}}
	return with2(q, change...)
}

// with2 sets or, with "", deletes parameters.
func with2(q url.Values, change ...string) url.Values {
	for i := 0; i < len(change); i += 2 {
		if change[i+1] == "" {
			q.Del(change[i])
		} else {
			q.Set(change[i], change[i+1])
		}
	}
	return q
}

func exchangeOf(subject string, change ...string) url.Values {
	return with2(url.Values{"grant_type": {grantExchange}, "subject_token": {subject}, "subject_token_type": {typeAccessToken}}, change...)
}

func codeOf(code string, change ...string) url.Values {
	return with2(url.Values{"grant_type": {grantCode}, "client_id": {"wic"}, "redirect_uri": {redirect}, "code": {code}, "code_verifier": {verifier}}, change...)
}

// login posts the form of a good request and returns the code and the cookie.
func (l *lab) login(user string) (code string, cookie *http.Cookie) {
	l.Helper()
	r := l.request("POST", "/oauth/login?"+asked().Encode(), url.Values{"username": {user}, "password": {password}})
	if r.StatusCode != http.StatusSeeOther {
		l.Fatalf("log-in of %s: %d %s", user, r.StatusCode, body(l, r))
	}
	for _, c := range r.Cookies() {
		if c.Name == cookieName {
			cookie = c
		}
	}
	return l.redirected(r).Get("code"), cookie
}

// redirected returns the parameters that the client gets, after looking at where they go.
func (l *lab) redirected(r *answer) url.Values {
	l.Helper()
	u, err := r.Location()
	if err != nil {
		l.Fatalf("no redirect: %d %s", r.StatusCode, body(l, r))
	}
	if got := u.Scheme + "://" + u.Host + u.Path; got != redirect {
		l.Fatalf("redirected to %s", got)
	}
	q := u.Query()
	if q.Get("state") != asked().Get("state") || q.Get("iss") != issuer {
		l.Errorf("state %q, iss %q", q.Get("state"), q.Get("iss"))
	}
	return q
}

// tokens posts to the token endpoint and reads the JSON.
func (l *lab) tokens(form url.Values, change ...func(*http.Request)) (int, map[string]any) {
	l.Helper()
	r := l.request("POST", "/oauth/token", form, change...)
	if ct := r.Header.Get("Content-Type"); ct != "application/json" || r.Header.Get("Cache-Control") != "no-store" || r.Header.Get("X-Content-Type-Options") != "nosniff" {
		l.Errorf("headers of the token endpoint: %v", r.Header)
	}
	var m map[string]any
	if err := json.NewDecoder(r.Body).Decode(&m); err != nil {
		l.Fatal(err)
	}
	return r.StatusCode, m
}

// sipToken logs in and redeems.
func (l *lab) sipToken(user string) (tok string, cookie *http.Cookie) {
	l.Helper()
	code, cookie := l.login(user)
	status, m := l.tokens(codeOf(code))
	if status != http.StatusOK {
		l.Fatalf("token: %d %v", status, m)
	}
	return m["access_token"].(string), cookie
}

func (l *lab) count(c Cause) uint64 { return l.s.Stats().Refused[c.String()] }

// refusedFor runs do and checks that it was refused for one cause, in counter and log.
func (l *lab) refusedFor(c Cause, do func()) {
	l.Helper()
	before, logBefore := l.count(c), len(l.log.String())
	do()
	if n := l.count(c) - before; n != 1 {
		l.Errorf("refused %d times for %v", n, c)
	}
	if line := l.log.String()[logBefore:]; !strings.Contains(line, `"cause":"`+c.String()+`"`) {
		l.Errorf("the log does not name %v: %s", c, line)
	}
}

var formAction = regexp.MustCompile(`<form method="post" action="([^"]+)">`)

// TestFlow is the whole way with golang.org/x/oauth2 as the client and a cookie jar as the browser,
// over TLS, and reads the tokens with what their readers use.
func TestFlow(t *testing.T) {
	defer goleak.VerifyNone(t)
	var h http.Handler
	web := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { h.ServeHTTP(w, r) }))
	defer web.Close()
	l := newLab(t, func(c *Config) { c.Issuer = web.URL })
	h = l.s.Handler()

	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error)
	go func() { served <- l.s.Serve(ctx) }()
	defer func() {
		cancel()
		if err := <-served; err != nil {
			t.Errorf("Serve = %v", err)
		}
	}()

	browser := web.Client()
	browser.Jar, _ = cookiejar.New(nil)
	browser.CheckRedirect = func(r *http.Request, _ []*http.Request) error {
		if r.URL.Host == "portal.ims.test" {
			return http.ErrUseLastResponse
		}
		return nil
	}

	// Metadata tells the client everything.
	var meta struct {
		Issuer string   `json:"issuer"`
		Auth   string   `json:"authorization_endpoint"`
		Token  string   `json:"token_endpoint"`
		JWKS   string   `json:"jwks_uri"`
		PKCE   []string `json:"code_challenge_methods_supported"`
		Grants []string `json:"grant_types_supported"`
		ISS    bool     `json:"authorization_response_iss_parameter_supported"`
		Logout string   `json:"end_session_endpoint"`
	}
	getJSON(t, browser, web.URL+"/.well-known/oauth-authorization-server", &meta)
	if meta.Issuer != web.URL || !slices.Equal(meta.PKCE, []string{"S256"}) || !meta.ISS || meta.Logout != web.URL+"/oauth/logout" || !slices.Contains(meta.Grants, grantExchange) {
		t.Errorf("metadata %+v", meta)
	}
	// AuthStyleAutoDetect tries HTTP Basic first: that must not cost the code.
	conf := oauth2.Config{ClientID: "wic", RedirectURL: redirect, Scopes: []string{"sip"}, Endpoint: oauth2.Endpoint{AuthURL: meta.Auth, TokenURL: meta.Token}}
	verifier := oauth2.GenerateVerifier()
	resp, err := browser.Get(conf.AuthCodeURL("xyz", oauth2.S256ChallengeOption(verifier)))
	if err != nil {
		t.Fatal(err)
	}
	form, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil {
		t.Fatal(err)
	}
	action := formAction.FindStringSubmatch(string(form))
	if resp.StatusCode != http.StatusOK || action == nil {
		t.Fatalf("%d %s", resp.StatusCode, form)
	}
	resp, err = browser.PostForm(web.URL+html.UnescapeString(action[1]), url.Values{"username": {" Alice"}, "password": {password}})
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	back, err := resp.Location()
	if err != nil {
		t.Fatalf("%d: %v", resp.StatusCode, err)
	}
	if q := back.Query(); q.Get("state") != "xyz" || q.Get("iss") != web.URL || resp.StatusCode != http.StatusSeeOther {
		t.Errorf("%d %v", resp.StatusCode, q)
	}
	tok, err := conf.Exchange(context.WithValue(ctx, oauth2.HTTPClient, web.Client()), back.Query().Get("code"), oauth2.VerifierOption(verifier))
	if err != nil {
		t.Fatal(err)
	}
	ims, _ := tok.Extra("ims").(map[string]any)
	if tok.Type() != "Bearer" || tok.ExpiresIn != 3600 || tok.Extra("scope") != "sip" || tok.Extra("name") != "Alice" ||
		ims["impi"] != "alice@ims.test" || ims["domain"] != "ims.test" || fmt.Sprint(ims["impu"]) != "[sip:alice@ims.test sip:alice.mobile@ims.test]" {
		t.Errorf("token response: %s %v %v %v %v", tok.Type(), tok.ExpiresIn, tok.Extra("scope"), tok.Extra("name"), ims)
	}

	// The SIP token, as the edge reads it.
	var keys jose.JSONWebKeySet
	getJSON(t, browser, meta.JWKS, &keys)
	jws, err := jose.ParseSignedCompact(tok.AccessToken, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		t.Fatal(err)
	}
	head := jws.Signatures[0].Protected
	if head.ExtraHeaders[jose.HeaderType] != claims.Type || len(keys.Key(head.KeyID)) != 1 || !keys.Keys[0].IsPublic() {
		t.Fatalf("header %+v, keys %v", head, keys)
	}
	payload, err := jws.Verify(keys.Key(head.KeyID)[0])
	if err != nil {
		t.Fatal(err)
	}
	var c claims.SIP
	if err := json.Unmarshal(payload, &c); err != nil {
		t.Fatal(err)
	}
	if err := c.Check(time.Now(), []string{web.URL}, audience); err != nil {
		t.Error(err)
	}
	if c.Subject != "alice" || c.ClientID != "wic" || len(c.Pseudonym) != 22 || c.IMS.IMPI != "alice@ims.test" || c.IMS.Scenario != 2 || c.Expiry-c.IssuedAt != 3600 {
		t.Errorf("claims %+v", c)
	}

	// The second time the session does it without a form.
	resp, err = browser.Get(conf.AuthCodeURL("abc", oauth2.S256ChallengeOption(verifier)))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if back, err := resp.Location(); err != nil || back.Query().Get("code") == "" || back.Query().Get("state") != "abc" {
		t.Errorf("session: %d %v", resp.StatusCode, err)
	}

	// The TURN token, as the TURN server reads it.
	var turn turnToken
	resp, err = browser.PostForm(meta.Token, exchangeOf(tok.AccessToken, "audience", turnName, "client_id", "wic"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.NewDecoder(resp.Body).Decode(&turn); err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	checkTURN(t, turn, l.ring, c.Pseudonym, 20)
	if turn.Alg != "HMAC-SHA-1" || turn.ExpiresIn != 3600 || !slices.Equal(turn.ICEServers[0].URLs, []string{"turn:127.0.0.1:3478?transport=udp"}) {
		t.Errorf("%+v", turn)
	}

	if st := l.s.Stats(); st.LogIns != 1 || st.Codes != 2 || st.SIPTokens != 1 || st.TURNTokens != 1 || st.LogInsFailed != 0 || st.Refused["client_secret"] != 1 {
		t.Errorf("%+v", st)
	}
	l.noSecrets(password, back.Query().Get("code"), verifier, tok.AccessToken, turn.AccessToken, turn.Key, turn.ICEServers[0].Credential, turn.ICEServers[0].Username)
}

// noSecrets checks that the log holds none of them.
func (l *lab) noSecrets(secrets ...string) {
	l.Helper()
	out := l.log.String()
	for _, s := range secrets {
		if len(s) < 8 {
			l.Fatalf("%q is no secret", s)
		}
		if strings.Contains(out, s) {
			l.Errorf("the log shows %.12s...", s)
		}
	}
	if !strings.Contains(out, `"msg"`) {
		l.Error("the log is empty")
	}
}

func getJSON(t *testing.T, c *http.Client, u string, v any) {
	t.Helper()
	r, err := c.Get(u)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	if err := json.NewDecoder(r.Body).Decode(v); err != nil || r.StatusCode != http.StatusOK {
		t.Fatalf("%s: %d %v", u, r.StatusCode, err)
	}
}

// checkTURN opens a token in both shapes as a TURN server does.
func checkTURN(t testing.TB, got turnToken, ring *keyring.Ring, pseudonym string, keySize int) {
	t.Helper()
	raw, err := base64.StdEncoding.DecodeString(got.AccessToken)
	if err != nil {
		t.Fatal(err)
	}
	key, format, who, ok := ring.Key(got.KID)
	if !ok || who != pseudonym || got.KID != ring.KID(pseudonym) {
		t.Fatalf("kid %q is of %q", got.KID, who)
	}
	p, err := token.Open(format, key, ring.Server(), raw)
	if err != nil {
		t.Fatal(err)
	}
	if left, err := p.Check(time.Now()); err != nil || left < time.Duration(got.ExpiresIn)*time.Second {
		t.Errorf("left %v, %v", left, err)
	}
	mac := p.MACKey.Expose()
	if base64.StdEncoding.EncodeToString(mac) != got.Key || len(mac) != keySize || keySize == 20 && !bytes.Equal(mac[16:], make([]byte, 4)) {
		t.Errorf("mac_key % x", mac)
	}
	if got.TokenType != "pop" || got.IssuedTokenType != typeAccessToken || len(got.ICEServers) != 1 {
		t.Fatalf("%+v", got)
	}
	ice := got.ICEServers[0]
	kid, again, ok, err := token.ParseUsername([]byte(ice.Username))
	if !ok || err != nil || kid != got.KID || !bytes.Equal(again, raw) {
		t.Errorf("username %q: %v", ice.Username, err)
	}
	if ice.Credential != string(token.Credential(p.MACKey).Expose()) {
		t.Error("the credential is not that of the mac_key")
	}
}

func TestChallengeIsRFC7636(t *testing.T) {
	sum := sha256.Sum256([]byte(verifier))
	if base64.RawURLEncoding.EncodeToString(sum[:]) != challenge || !verifierFits(verifier, challenge) {
		t.Error("appendix B does not come out")
	}
	for _, v := range []string{"", verifier[:42], verifier + "!", strings.Repeat("a", 129), "x" + verifier[1:]} {
		if verifierFits(v, challenge) {
			t.Errorf("%q fits", v)
		}
	}
}

func TestConfig(t *testing.T) {
	ring := keyring.New(turnName)
	for _, c := range []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{"good", func(*Config) {}, ""},
		{"http issuer", func(c *Config) { c.Issuer = "http://waf.ims.test" }, "set https.url"},
		{"issuer with a path", func(c *Config) { c.Issuer = issuer + "/" }, "set https.url"},
		{"issuer with a query", func(c *Config) { c.Issuer = issuer + "?x" }, "set https.url"},
		{"no issuer", func(c *Config) { c.Issuer = "" }, "set https.url"},
		{"no audience", func(c *Config) { c.Audience = "" }, "set domain and epcscf.audience"},
		{"no store", func(c *Config) { c.Store = nil }, "no store"},
		{"no ring", func(c *Config) { c.Rings = nil }, "set turn.name"},
		{"ring twice", func(c *Config) { c.Rings = append(c.Rings, c.Rings[0]) }, "two keyrings"},
		{"no URL", func(c *Config) { c.TURNURLs = nil }, "set turn.urls"},
		{"other URL", func(c *Config) { c.TURNURLs = map[string][]string{turnName: {"stun:x"}} }, "change turn.urls"},
		{"SIP life", func(c *Config) { c.SIPTokenLife = 25 * time.Hour }, "waf.sip_token_life of 25h0m0s"},
		{"TURN life", func(c *Config) { c.TURNTokenLife = 1500 * time.Millisecond }, "waf.turn_token_life"},
		{"code life", func(c *Config) { c.CodeLife = time.Hour }, "code life"},
		{"session life", func(c *Config) { c.SessionLife = -time.Hour }, "session life"},
		{"sessions", func(c *Config) { c.MaxSessions = 65 }, "1 to 64"},
		{"client twice", func(c *Config) { c.Clients = append(c.Clients, c.Clients[0]) }, `client id "wic"`},
		{"client without redirect", func(c *Config) { c.Clients[0].RedirectURIs = nil }, "has no redirect URI"},
		{"http redirect", func(c *Config) { c.Clients[0].RedirectURIs[0] = "http://portal.test/" }, "want https"},
		{"http redirect to loopback", func(c *Config) { c.Clients[0].RedirectURIs[0] = "http://127.0.0.1:8080/cb" }, ""},
		{"http redirect to localhost", func(c *Config) { c.Clients[0].RedirectURIs[0] = "http://localhost/cb" }, ""},
		{"redirect with fragment", func(c *Config) { c.Clients[0].RedirectURIs[0] = "https://a.test/#x" }, "no fragment"},
		{"redirect with user", func(c *Config) { c.Clients[0].RedirectURIs[0] = "https://u@a.test/" }, "user information"},
		{"redirect to script", func(c *Config) { c.Clients[0].RedirectURIs[0] = "javascript:alert(1)" }, "absolute URL"},
		{"redirect that breaks the CSP", func(c *Config) { c.Clients[0].RedirectURIs[0] = "https://a;b/" }, "ASCII host"},
		{"relative redirect", func(c *Config) { c.Clients[0].RedirectURIs[0] = "/cb" }, "absolute URL"},
		{"origin with path", func(c *Config) { c.Clients[0].Origins[0] += "/" }, "origin"},
		{"any origin", func(c *Config) { c.Clients[0].Origins[0] = "*" }, "origin"},
		{"no key file", func(c *Config) { c.SigningKeyFile = "" }, "set waf.signing_key"},
		{"user in capitals", func(c *Config) { c.Users[0].Name = "Alice" }, `user "Alice"`},
		{"user with a space", func(c *Config) { c.Users[0].Name = "a b" }, `user "a b"`},
		{"no password", func(c *Config) { c.Users[0].Password = secret.Bytes{} }, "want a password"},
		{"no IMPI", func(c *Config) { c.Users[0].IMPI = "" }, "private identity"},
		{"no IMPU", func(c *Config) { c.Users[0].IMPU = nil }, "public identities"},
		{"wildcarded IMPU", func(c *Config) { c.Users[0].IMPU[0] = "sip:!.*!@ims.test" }, "no wildcard"},
		{"tel IMPU", func(c *Config) { c.Users[0].IMPU[0] = "tel:+1" }, "SIP URI"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := testConfig(t, store.NewMemory(), ring)
			c.change(&cfg)
			_, err := New(cfg)
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("New = %v, want %q", err, c.want)
			}
			if err != nil && strings.Contains(err.Error(), password) {
				t.Error("the error shows the password")
			}
		})
	}
}

// A start with the same users keeps nothing of the old passwords, and no user that others wrote.
func TestUsersAreWritten(t *testing.T) {
	l := newLab(t)
	if _, err := l.store.Create(t.Context(), userBucket, "carol", []byte(`{"v":1}`), 0); err != nil {
		t.Fatal(err)
	}
	cfg := testConfig(t, l.store, l.ring)
	cfg.Users = cfg.Users[:1]
	cfg.Users[0].Password = secret.New([]byte("another password"))
	again, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		user, password string
		right          bool
	}{{"alice", password, false}, {"alice", "another password", true}, {"bob", password, true}} {
		_, _, _, err := again.checkLogin(t.Context(), "test", c.user, secret.New([]byte(c.password)))
		if (err == nil) != c.right {
			t.Errorf("%s: %v", c.user, err)
		}
	}
	if _, err := l.store.Get(t.Context(), userBucket, "carol"); err != nil {
		t.Errorf("a user of the store is gone: %v", err)
	}
	e, err := l.store.Get(t.Context(), userBucket, "alice")
	if err != nil || bytes.Contains(e.Value, []byte("another")) || !bytes.Contains(e.Value, []byte("$argon2id$v=19$m=64,t=1,p=1$")) {
		t.Errorf("%s %v", e.Value, err)
	}
}

func TestSigningKey(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "key.pem")
	a, err := openSigner(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	if files, _ := os.ReadDir(dir); len(files) != 1 {
		t.Errorf("files left over: %v", files)
	}
	b, err := openSigner(path)
	if err != nil || a.kid != b.kid {
		t.Errorf("a restart makes another key: %v", err)
	}
	tok, err := a.sign([]byte(`{"sub":"x"}`))
	if err != nil {
		t.Fatal(err)
	}
	if c, err := b.verify(tok); err != nil || c.Subject != "x" {
		t.Errorf("%+v %v", c, err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, want string
		file       []byte
		mode       os.FileMode
	}{
		{"group may read", "hint: chmod 600", good, 0o640},
		{"empty", "no PEM block", nil, 0o600},
		{"cut", "no PEM block", good[:len(good)/2], 0o600},
		{"damaged", "damaged", bytes.Replace(good, good[40:60], good[60:80], 1), 0o600},
		{"certificate", `holds a "CERTIFICATE"`, []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), 0o600},
		// openssl genpkey -algorithm ed25519
		{"Ed25519", "P-256", []byte("-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g\n-----END PRIVATE KEY-----\n"), 0o600},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := filepath.Join(t.TempDir(), "k")
			if err := os.WriteFile(p, c.file, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(p, c.mode); err != nil {
				t.Fatal(err)
			}
			if _, err := openSigner(p); err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), p) {
				t.Errorf("%v, want %q", err, c.want)
			}
			if now, err := os.ReadFile(p); err != nil || !bytes.Equal(now, c.file) {
				t.Error("the file was changed")
			}
		})
	}
}

// RFC 7638 §3.1 gives the thumbprint of an RSA key; the input for an EC key by §3.2 is written here.
func TestKIDIsThumbprint(t *testing.T) {
	s, err := openSigner(filepath.Join(t.TempDir(), "k"))
	if err != nil {
		t.Fatal(err)
	}
	var set struct{ Keys []map[string]string }
	if err := json.Unmarshal(s.jwks, &set); err != nil || len(set.Keys) != 1 {
		t.Fatalf("%s %v", s.jwks, err)
	}
	k := set.Keys[0]
	sum := sha256.Sum256([]byte(`{"crv":"P-256","kty":"EC","x":"` + k["x"] + `","y":"` + k["y"] + `"}`))
	if want := base64.RawURLEncoding.EncodeToString(sum[:]); k["kid"] != want || s.kid != want {
		t.Errorf("kid %s, want %s", k["kid"], want)
	}
	if k["use"] != "sig" || k["alg"] != "ES256" || k["d"] != "" || len(k) != 7 {
		t.Errorf("JWK %v", k)
	}
}

// Printing a Server shows no key and no password.
func TestNothingPrintsAServer(t *testing.T) {
	l := newLab(t, guests(1))
	pem, err := os.ReadFile(l.s.cfg.SigningKeyFile)
	if err != nil {
		t.Fatal(err)
	}
	key, err := parseKey(pem)
	if err != nil {
		t.Fatal(err)
	}
	d, err := key.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	leaks := []string{password, portalSecret, fmt.Sprintf("%x", portalSecret), fmt.Sprintf("%x", d), strings.Trim(fmt.Sprint(d), "[]"), fmt.Sprintf("%d", key.D), //nolint:staticcheck // D is what must not appear
		fmt.Sprintf("%x", password), strings.Trim(fmt.Sprintf("%d", []byte(password)), "[]")}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d"} {
		for _, v := range []any{l.s.signer, l.s.cfg, &l.s.cfg} {
			out := fmt.Sprintf(verb, v)
			for _, leak := range leaks {
				if strings.Contains(out, leak) {
					t.Errorf("%s of %T shows %.8s...", verb, v, leak)
				}
			}
		}
	}
}
