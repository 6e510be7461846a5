package waf

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"

	"wicgate/internal/claims"
	"wicgate/internal/keyring"
	"wicgate/internal/store"
)

func (l *lab) dump(bucket string) map[string]string {
	out := map[string]string{}
	if err := l.store.Scan(l.Context(), bucket, func(e store.Entry) bool { out[e.Key] = string(e.Value); return true }); err != nil {
		l.Fatal(err)
	}
	return out
}

func TestTokenRefuses(t *testing.T) {
	l := newLab(t)
	code, _ := l.login("alice")
	fresh := func() string { c, _ := l.login("alice"); return c }
	for _, c := range []struct {
		name   string
		cause  Cause
		status int
		code   string
		do     func() *answer
	}{
		{"nothing", BadParameter, 400, "invalid_request", func() *answer { return l.request("POST", "/oauth/token", url.Values{}) }},
		{"password grant", BadGrantType, 400, "unsupported_grant_type", func() *answer {
			return l.request("POST", "/oauth/token", url.Values{"grant_type": {"password"}, "username": {"alice"}, "password": {password}})
		}},
		{"implicit as RFC 7635 prints it", BadGrantType, 400, "unsupported_grant_type", func() *answer {
			return l.request("POST", "/oauth/token", url.Values{"grant_type": {"implicit"}, "token_type": {"pop"}})
		}},
		{"GET", BadMethod, 405, "invalid_request", func() *answer { return l.request("GET", "/oauth/token?"+codeOf(code).Encode(), nil) }},
		{"HEAD", BadMethod, 405, "", func() *answer { return l.request("HEAD", "/oauth/token", nil) }},
		{"parameters in the query", BadParameter, 400, "invalid_request", func() *answer { return l.request("POST", "/oauth/token?"+codeOf(code).Encode(), url.Values{}) }},
		{"too large", TooLarge, 413, "invalid_request", func() *answer {
			return l.request("POST", "/oauth/token", codeOf(code, "x", strings.Repeat("x", maxForm)))
		}},
		{"one parameter too large", TooLarge, 400, "invalid_request", func() *answer {
			return l.request("POST", "/oauth/token", codeOf(code, "x", strings.Repeat("x", claims.MaxSize+1)))
		}},
		{"JSON", BadParameter, 415, "invalid_request", func() *answer {
			return l.request("POST", "/oauth/token", codeOf(code), with("Content-Type", "application/json"))
		}},
		{"no content type", BadParameter, 415, "invalid_request", func() *answer {
			return l.request("POST", "/oauth/token", codeOf(code), func(r *http.Request) { r.Header.Del("Content-Type") })
		}},
		{"twice", BadParameter, 400, "invalid_request", func() *answer {
			f := codeOf(code)
			f.Add("code", code)
			return l.request("POST", "/oauth/token", f)
		}},
		{"HTTP Basic", ClientSecret, 401, "invalid_client", func() *answer {
			return l.request("POST", "/oauth/token", codeOf(code), func(r *http.Request) { r.SetBasicAuth("wic", "") })
		}},
		{"client_secret", ClientSecret, 400, "invalid_client", func() *answer {
			return l.request("POST", "/oauth/token", codeOf(code, "client_secret", "s"))
		}},
		{"no client", UnknownClient, 400, "invalid_client", func() *answer { return l.request("POST", "/oauth/token", codeOf(code, "client_id", "")) }},
		{"unknown client", UnknownClient, 400, "invalid_client", func() *answer { return l.request("POST", "/oauth/token", codeOf(code, "client_id", "evil")) }},
		{"no code", BadParameter, 400, "invalid_request", func() *answer { return l.request("POST", "/oauth/token", codeOf("")) }},
		{"no redirect URI", BadParameter, 400, "invalid_request", func() *answer {
			return l.request("POST", "/oauth/token", codeOf(code, "redirect_uri", ""))
		}},
		{"no verifier", BadPKCE, 400, "invalid_request", func() *answer {
			return l.request("POST", "/oauth/token", codeOf(code, "code_verifier", ""))
		}},
		{"garbage code", UnknownCode, 400, "invalid_grant", func() *answer { return l.request("POST", "/oauth/token", codeOf("x\x00")) }},
		{"guessed code", UnknownCode, 400, "invalid_grant", func() *answer { return l.request("POST", "/oauth/token", codeOf(strings.Repeat("A", 43))) }},
		{"code of another client", ForeignCode, 400, "invalid_grant", func() *answer {
			return l.request("POST", "/oauth/token", codeOf(fresh(), "client_id", "other"))
		}},
		{"another redirect URI", BadRedirect, 400, "invalid_grant", func() *answer {
			return l.request("POST", "/oauth/token", codeOf(fresh(), "redirect_uri", redirect+"?view=call"))
		}},
		{"wrong verifier", WrongVerifier, 400, "invalid_grant", func() *answer {
			return l.request("POST", "/oauth/token", codeOf(fresh(), "code_verifier", strings.Repeat("v", 43)))
		}},
		{"challenge as verifier", WrongVerifier, 400, "invalid_grant", func() *answer {
			return l.request("POST", "/oauth/token", codeOf(fresh(), "code_verifier", challenge))
		}},
		{"short verifier", WrongVerifier, 400, "invalid_grant", func() *answer {
			return l.request("POST", "/oauth/token", codeOf(fresh(), "code_verifier", "v"))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l.refusedFor(c.cause, func() {
				r := c.do()
				if r.StatusCode != c.status || r.Header.Get("Content-Type") != "application/json" || r.Header.Get("Cache-Control") != "no-store" {
					t.Errorf("%d %v", r.StatusCode, r.Header)
				}
				if c.status == 401 && !strings.HasPrefix(r.Header.Get("WWW-Authenticate"), "Basic ") {
					t.Error("401 without WWW-Authenticate")
				}
				if c.status == 405 && r.Header.Get("Allow") != "POST, OPTIONS" {
					t.Errorf("Allow %q", r.Header.Get("Allow"))
				}
				b := body(t, r)
				var e errorBody
				if c.code == "" {
					return
				}
				if err := json.Unmarshal([]byte(b), &e); err != nil || e.Error != c.code || e.Description == "" || strings.ContainsAny(e.Description, `"\`) {
					t.Errorf("%s", b)
				}
			})
		})
	}
	// After all that the first code still serves, once.
	if status, m := l.tokens(codeOf(code)); status != 200 {
		t.Errorf("%d %v", status, m)
	}
	l.noSecrets(code, verifier, password)
}

// A wrong verifier costs the code.
func TestWrongVerifierSpendsTheCode(t *testing.T) {
	l := newLab(t)
	code, _ := l.login("alice")
	if status, _ := l.tokens(codeOf(code, "code_verifier", strings.Repeat("v", 43))); status != 400 {
		t.Fatal(status)
	}
	l.refusedFor(CodeReplayed, func() {
		if status, m := l.tokens(codeOf(code)); status != 400 || m["error"] != "invalid_grant" {
			t.Errorf("%d %v", status, m)
		}
	})
}

// A code that comes a second time is refused, told apart in the log, and ends the session.
func TestReplay(t *testing.T) {
	l := newLab(t)
	code, cookie := l.login("alice")
	status, m := l.tokens(codeOf(code))
	if status != 200 {
		t.Fatal(m)
	}
	tok := m["access_token"].(string)
	other, _ := l.sipToken("alice")
	if status, m := l.tokens(exchangeOf(tok)); status != 200 {
		t.Fatalf("%d %v", status, m)
	}
	l.refusedFor(CodeReplayed, func() {
		if status, m := l.tokens(codeOf(code)); status != 400 || m["error"] != "invalid_grant" || m["access_token"] != nil {
			t.Errorf("%d %v", status, m)
		}
	})
	if !strings.Contains(l.log.String(), `"level":"WARN","msg":"refused","cause":"code_replayed"`) {
		t.Error("the replay is not in the log")
	}
	l.refusedFor(SessionEnded, func() { l.tokens(exchangeOf(tok)) })
	if r := l.request("GET", "/oauth/authorize?"+asked().Encode(), nil, withCookie(cookie)); r.StatusCode != 200 {
		t.Errorf("the session lives on: %d", r.StatusCode)
	}
	if status, m := l.tokens(exchangeOf(other)); status != 200 {
		t.Errorf("another session of the user ended too: %v", m)
	}
	l.noSecrets(code, tok, other)
}

// Of many that bring one code at once, one gets a token.
func TestCodeIsTakenOnce(t *testing.T) {
	l := newLab(t)
	for range 10 {
		code, _ := l.login("alice")
		const n = 8
		got := make([]int, n)
		var wg sync.WaitGroup
		for i := range n {
			wg.Go(func() { got[i] = l.request("POST", "/oauth/token", codeOf(code)).StatusCode })
		}
		wg.Wait()
		slices.Sort(got)
		// Never two; and none at all where a loser has ended the session before the winner's token.
		if got[1] != 400 {
			t.Fatalf("answers %v", got)
		}
	}
	// One that comes between the taking and its mark cannot be told from a guess.
	st := l.s.Stats()
	if n := st.Refused["code_replayed"] + st.Refused["unknown_code"]; n != 70 || st.SIPTokens+st.Refused["session_ended"] != 10 {
		t.Errorf("%+v", st)
	}
}

func TestExchangeRefuses(t *testing.T) {
	l := newLab(t)
	tok, _ := l.sipToken("alice")
	parts := strings.Split(tok, ".")
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	var good claims.SIP
	if err := json.Unmarshal(payload, &good); err != nil {
		t.Fatal(err)
	}
	// sign signs changed claims with the WAF's own key.
	sign := func(change func(*claims.SIP)) string {
		c := good
		change(&c)
		out, err := l.s.signSIP(c)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	// forge signs the good claims in another way.
	forge := func(alg jose.SignatureAlgorithm, key any, kid, typ string) string {
		js, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: jose.JSONWebKey{Key: key, KeyID: kid}}, (&jose.SignerOptions{}).WithType(jose.ContentType(typ)))
		if err != nil {
			t.Fatal(err)
		}
		sig, err := js.Sign(payload)
		if err != nil {
			t.Fatal(err)
		}
		out, err := sig.CompactSerialize()
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	foreign, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	own, err := readKey(l.s.cfg.SigningKeyFile)
	if err != nil {
		t.Fatal(err)
	}
	none := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none","typ":"at+jwt","kid":"` + l.s.signer.kid + `"}`))
	pub, err := own.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		form  url.Values
		cause Cause
		code  string
	}{
		{"no subject", exchangeOf(""), BadParameter, "invalid_request"},
		{"no type", exchangeOf(tok, "subject_token_type", ""), BadParameter, "invalid_request"},
		{"other type", exchangeOf(tok, "subject_token_type", "urn:ietf:params:oauth:token-type:saml2"), BadParameter, "invalid_request"},
		{"actor", exchangeOf(tok, "actor_token", tok), BadParameter, "invalid_request"},
		{"requested type", exchangeOf(tok, "requested_token_type", "urn:ietf:params:oauth:token-type:refresh_token"), BadParameter, "invalid_request"},
		{"alg", exchangeOf(tok, "alg", "HMAC-MD5"), BadParameter, "invalid_request"},
		{"garbage", exchangeOf("garbage"), SubjectGarbage, "invalid_request"},
		{"three dots", exchangeOf("a.b.c"), SubjectGarbage, "invalid_request"},
		{"cut", exchangeOf(tok[:len(tok)-1]), SubjectGarbage, "invalid_request"},
		{"signature changed", exchangeOf(parts[0] + "." + parts[1] + "." + strings.Repeat("A", 86)), SubjectForeign, "invalid_request"},
		{"payload changed", exchangeOf(parts[0] + "." + base64.RawURLEncoding.EncodeToString([]byte(strings.Replace(string(payload), "alice", "bobby", 1))) + "." + parts[2]), SubjectForeign, "invalid_request"},
		{"alg none", exchangeOf(none + "." + parts[1] + "."), SubjectGarbage, "invalid_request"},
		{"HMAC with the public key", exchangeOf(forge(jose.HS256, pub, l.s.signer.kid, claims.Type)), SubjectGarbage, "invalid_request"},
		{"foreign key", exchangeOf(forge(jose.ES256, foreign, "theirs", claims.Type)), SubjectForeign, "invalid_request"},
		{"foreign key under our kid", exchangeOf(forge(jose.ES256, foreign, l.s.signer.kid, claims.Type)), SubjectForeign, "invalid_request"},
		{"own key, plain JWT", exchangeOf(forge(jose.ES256, own, l.s.signer.kid, "JWT")), SubjectGarbage, "invalid_request"},
		{"expired", exchangeOf(sign(func(c *claims.SIP) { c.Expiry = time.Now().Unix() - 1 })), SubjectExpired, "invalid_request"},
		{"other issuer", exchangeOf(sign(func(c *claims.SIP) { c.Issuer = "https://evil.test" })), SubjectForeign, "invalid_request"},
		{"other audience", exchangeOf(sign(func(c *claims.SIP) { c.Audience = "x" })), SubjectForeign, "invalid_request"},
		{"other scope", exchangeOf(sign(func(c *claims.SIP) { c.Scope = "x" })), SubjectGarbage, "invalid_request"},
		{"no pseudonym", exchangeOf(sign(func(c *claims.SIP) { c.Pseudonym = "" })), SubjectGarbage, "invalid_request"},
		{"client gone", exchangeOf(sign(func(c *claims.SIP) { c.ClientID = "gone" })), UnknownClient, "invalid_client"},
		{"another client", exchangeOf(tok, "client_id", "other"), UnknownClient, "invalid_client"},
		{"unknown audience", exchangeOf(tok, "audience", "turn.evil.test"), UnknownAudience, "invalid_target"},
		{"audience in capitals", exchangeOf(tok, "audience", strings.ToUpper(turnName)), UnknownAudience, "invalid_target"},
		{"two audiences", exchangeOf(tok, "audience", turnName, "aud", "x"), UnknownAudience, "invalid_target"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l.refusedFor(c.cause, func() {
				if status, m := l.tokens(c.form); status != 400 || m["error"] != c.code || m["access_token"] != nil {
					t.Errorf("%d %v", status, m)
				}
			})
		})
	}
	l.noSecrets(tok, parts[2])
	if st := l.s.Stats(); st.TURNTokens != 0 {
		t.Errorf("%+v", st)
	}
}

func TestExchange(t *testing.T) {
	second := keyring.New("turn2.ims.test")
	l := newLab(t, func(c *Config) {
		c.Rings = append(c.Rings, second)
		c.TURNURLs = map[string][]string{turnName: {"turn:a:3478"}, "turn2.ims.test": {"turn:b:3478", "turns:b:5349?transport=tcp"}}
		c.TURNTokenLife = 10 * time.Minute
	})
	tok, _ := l.sipToken("alice")
	claimsOf, err := l.s.signer.verify(tok)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, c := range []struct {
		name string
		form url.Values
		ring *keyring.Ring
		size int
		alg  string
		url  string
	}{
		{"default", exchangeOf(tok), l.ring, 20, "HMAC-SHA-1", "turn:a:3478"},
		{"again", exchangeOf(tok), l.ring, 20, "HMAC-SHA-1", "turn:a:3478"},
		{"by audience", exchangeOf(tok, "audience", "turn2.ims.test", "client_id", "wic"), second, 20, "HMAC-SHA-1", "turn:b:3478"},
		{"by aud, as the TR has it", exchangeOf(tok, "aud", "turn2.ims.test"), second, 20, "HMAC-SHA-1", "turn:b:3478"},
		{"by resource", exchangeOf(tok, "resource", turnName, "audience", turnName), l.ring, 20, "HMAC-SHA-1", "turn:a:3478"},
		{"JWT type", exchangeOf(tok, "subject_token_type", typeJWT, "requested_token_type", typeAccessToken), l.ring, 20, "HMAC-SHA-1", "turn:a:3478"},
		{"SHA-1", exchangeOf(tok, "alg", "HMAC-SHA-1"), l.ring, 20, "HMAC-SHA-1", "turn:a:3478"},
		{"SHA-256", exchangeOf(tok, "alg", "HMAC-SHA-256"), l.ring, 32, "HMAC-SHA-256", "turn:a:3478"},
		{"SHA-256 as RFC 7635 has it", exchangeOf(tok, "alg", "HMAC-SHA-256-128"), l.ring, 32, "HMAC-SHA-256-128", "turn:a:3478"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := l.request("POST", "/oauth/token", c.form)
			var got turnToken
			if err := json.NewDecoder(r.Body).Decode(&got); err != nil || r.StatusCode != 200 {
				t.Fatalf("%d %v", r.StatusCode, err)
			}
			checkTURN(t, got, c.ring, claimsOf.Pseudonym, c.size)
			if got.Alg != c.alg || got.ICEServers[0].URLs[0] != c.url || got.ExpiresIn != 600 {
				t.Errorf("%+v", got)
			}
			if seen[got.Key] || seen[got.AccessToken] {
				t.Error("a token is issued twice")
			}
			seen[got.Key], seen[got.AccessToken] = true, true
		})
	}
}

func TestExchangeRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		alice, _ := l.sipToken("alice")
		bob, _ := l.sipToken("bob")
		for i := range 60 {
			if status, m := l.tokens(exchangeOf(alice)); status != 200 {
				t.Fatalf("%d: %v", i, m)
			}
		}
		l.refusedFor(TooManyTokens, func() {
			r := l.request("POST", "/oauth/token", exchangeOf(alice))
			if r.StatusCode != 429 || r.Header.Get("Retry-After") != "1" {
				t.Errorf("%d %v", r.StatusCode, r.Header)
			}
		})
		if status, _ := l.tokens(exchangeOf(bob)); status != 200 {
			t.Error("bob pays for alice")
		}
		time.Sleep(time.Second)
		if status, _ := l.tokens(exchangeOf(alice)); status != 200 {
			t.Error("nothing after a second")
		}
	})
}

// A bounded number of sessions of a user is alive; the oldest ends. Each has its own pseudonym.
func TestSessionsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, func(c *Config) { c.MaxSessions = 3; c.SessionLife = 2 * time.Hour })
		var toks []string
		var cookies []*http.Cookie
		pseudonyms := map[string]bool{}
		for range 5 {
			tok, cookie := l.sipToken("alice")
			toks, cookies = append(toks, tok), append(cookies, cookie)
			c, err := l.s.signer.verify(tok)
			if err != nil {
				t.Fatal(err)
			}
			pseudonyms[c.Pseudonym] = true
		}
		bob, _ := l.sipToken("bob")
		if len(pseudonyms) != 5 {
			t.Errorf("%d pseudonyms for 5 log-ins", len(pseudonyms))
		}
		for i, tok := range toks {
			status, m := l.tokens(exchangeOf(tok))
			r := l.request("GET", "/oauth/authorize?"+asked().Encode(), nil, withCookie(cookies[i]))
			if alive := i >= 2; alive != (status == 200) || alive != (r.StatusCode == http.StatusSeeOther) {
				t.Errorf("session %d: %d %v, %d", i, status, m, r.StatusCode)
			}
		}
		if status, _ := l.tokens(exchangeOf(bob)); status != 200 {
			t.Error("bob's session ended")
		}
		// Of those whose time has passed none is left, here and in the store.
		time.Sleep(3 * time.Hour)
		l.login("alice")
		if list := l.dump(aliveBucket)["alice"]; strings.Count(list, `"p"`) != 1 {
			t.Errorf("list %s", list)
		}
		if n := len(l.dump(sessionBucket)); n != 1 {
			t.Errorf("%d sessions in the store", n)
		}
		if n := len(l.dump(endedBucket)); n != 0 {
			t.Errorf("%d ended pseudonyms in the store", n)
		}
		if n := len(l.dump(codeBucket)); n != 1 {
			t.Errorf("%d codes in the store", n)
		}
	})
}

// Log-ins of one user at the same time are all counted.
func TestSessionsAtOnce(t *testing.T) {
	l := newLab(t, func(c *Config) { c.MaxSessions = 4 })
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			if _, _, err := l.s.newSession(t.Context(), "alice", "wic"); err != nil {
				t.Errorf("%d: %v", i, err)
			}
		})
	}
	wg.Wait()
	if n := strings.Count(l.dump(aliveBucket)["alice"], `"p"`); n != 4 {
		t.Errorf("%d on the list", n)
	}
	if n := len(l.dump(sessionBucket)); n != 4 {
		t.Errorf("%d sessions", n)
	}
}

func TestSubjectExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		tok, _ := l.sipToken("alice")
		time.Sleep(time.Hour)
		if status, m := l.tokens(exchangeOf(tok)); status != 200 {
			t.Errorf("in the last second: %v", m)
		}
		time.Sleep(time.Second)
		l.refusedFor(SubjectExpired, func() { l.tokens(exchangeOf(tok)) })
	})
}

func TestCodeOfEndedSession(t *testing.T) {
	l := newLab(t)
	code, cookie := l.login("alice")
	l.request("POST", "/oauth/logout", url.Values{}, withCookie(cookie))
	l.refusedFor(SessionEnded, func() {
		if status, m := l.tokens(codeOf(code)); status != 400 || m["error"] != "invalid_grant" {
			t.Errorf("%d %v", status, m)
		}
	})
	code, _ = l.login("alice")
	e, err := l.store.Get(t.Context(), userBucket, "alice")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.store.Delete(t.Context(), userBucket, "alice", e.Revision); err != nil {
		t.Fatal(err)
	}
	l.refusedFor(UnknownUser, func() {
		if status, m := l.tokens(codeOf(code)); status != 400 || m["error"] != "invalid_grant" {
			t.Errorf("user gone: %d %v", status, m)
		}
	})
}

func TestCORS(t *testing.T) {
	l := newLab(t)
	for _, c := range []struct {
		path, method, origin string
		allowed              bool
	}{
		{"/oauth/token", "POST", "https://portal.ims.test", true},
		{"/oauth/token", "POST", "https://portal.ims.test.evil.test", false},
		{"/oauth/token", "POST", "https://evil.test", false},
		{"/oauth/token", "POST", "null", false},
		{"/oauth/token", "POST", "http://portal.ims.test", false},
		{"/oauth/revoke", "POST", "https://portal.ims.test", true},
		{"/oauth/revoke", "POST", "https://evil.test", false},
		{"/oauth/jwks", "GET", "https://portal.ims.test", true},
		{"/oauth/jwks", "GET", "https://evil.test", false},
		{"/.well-known/oauth-authorization-server", "GET", "https://portal.ims.test", true},
		{"/oauth/authorize", "GET", "https://portal.ims.test", false},
		{"/oauth/login", "POST", "https://portal.ims.test", false},
		{"/oauth/logout", "POST", "https://portal.ims.test", false},
	} {
		pre := l.request("OPTIONS", c.path, nil, with("Origin", c.origin), with("Access-Control-Request-Method", c.method), with("Access-Control-Request-Headers", "content-type"))
		real := l.request(c.method, c.path, nil, with("Origin", c.origin))
		want := ""
		if c.allowed {
			want = c.origin
			if got := real.Header.Get("Access-Control-Expose-Headers"); got != "Date, Retry-After" {
				t.Errorf("%s exposes %q", c.path, got)
			}
			if pre.StatusCode != http.StatusNoContent || pre.Header.Get("Access-Control-Allow-Methods") != c.method || pre.Header.Get("Access-Control-Allow-Headers") != "Content-Type" {
				t.Errorf("%s: preflight %d %v", c.path, pre.StatusCode, pre.Header)
			}
		}
		for _, r := range []*answer{pre, real} {
			if got := r.Header.Get("Access-Control-Allow-Origin"); got != want || r.Header.Get("Access-Control-Allow-Credentials") != "" {
				t.Errorf("%d %s from %s: %q", r.StatusCode, c.path, c.origin, got)
			}
		}
		if real.Header.Get("Vary") != "Origin" && c.path != "/oauth/authorize" && !strings.HasPrefix(c.path, "/oauth/log") {
			t.Errorf("%s: Vary %q", c.path, real.Header.Get("Vary"))
		}
	}
	for _, m := range []string{"POST", "DELETE"} {
		if r := l.request(m, "/oauth/jwks", nil); r.StatusCode != 405 || r.Header.Get("Allow") != "GET, OPTIONS" {
			t.Errorf("%s: %d", m, r.StatusCode)
		}
	}
}

// A stranger cannot fill the log.
func TestLogIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		before := strings.Count(l.log.String(), "\n")
		for range 1000 {
			l.request("GET", "/oauth/authorize", nil)
		}
		if n := strings.Count(l.log.String(), "\n") - before; n != 100 {
			t.Errorf("%d lines for 1000 refusals", n)
		}
		if l.count(UnknownClient) != 1000 {
			t.Errorf("%d counted", l.count(UnknownClient))
		}
		time.Sleep(time.Minute)
		l.request("GET", "/oauth/authorize", nil)
		if !strings.Contains(l.log.String(), `"lines_dropped_before":900`) {
			t.Error("the log does not say what it left out")
		}
	})
}

func TestTwoNodes(t *testing.T) {
	mem := store.NewMemory()
	ring := keyring.New(turnName)
	cfg := testConfig(t, mem, ring)
	cfg.SigningKeyFile = filepath.Join(t.TempDir(), "shared.pem")
	var nodes []*lab
	for range 2 {
		s, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		nodes = append(nodes, &lab{T: t, s: s, ring: ring, log: &logBuffer{}})
	}
	code, cookie := nodes[0].login("alice")
	status, m := nodes[1].tokens(codeOf(code))
	if status != 200 {
		t.Fatalf("%d %v", status, m)
	}
	if status, m := nodes[0].tokens(exchangeOf(m["access_token"].(string))); status != 200 {
		t.Errorf("%d %v", status, m)
	}
	if r := nodes[1].request("GET", "/oauth/authorize?"+asked().Encode(), nil, withCookie(cookie)); r.StatusCode != http.StatusSeeOther {
		t.Errorf("%d", r.StatusCode)
	}
	if status, _ := nodes[0].tokens(codeOf(code)); status != 400 {
		t.Errorf("the code serves on both: %d", status)
	}
}

func TestStatsHaveEveryCause(t *testing.T) {
	st := newLab(t).s.Stats()
	if len(st.Refused) != int(causes) {
		t.Errorf("%d of %d causes", len(st.Refused), causes)
	}
	seen := map[string]bool{}
	for c := range causes {
		if n := c.String(); n == "" || seen[n] {
			t.Errorf("cause %d is named %s", c, strconv.Quote(n))
		} else {
			seen[n] = true
		}
	}
}

// TestOnJetStream is the life of a code and a session on the engine that is used in earnest: its
// keys, times to live and compare-and-set are those of a stream.
func TestOnJetStream(t *testing.T) {
	nats, err := store.Embed(t.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer nats.Close()
	l := newLab(t, func(c *Config) { c.Store = nats; c.MaxSessions = 2 })
	code, cookie := l.login("alice")
	status, m := l.tokens(codeOf(code))
	if status != 200 {
		t.Fatalf("%d %v", status, m)
	}
	first := m["access_token"].(string)
	if status, m := l.tokens(exchangeOf(first)); status != 200 {
		t.Errorf("%d %v", status, m)
	}
	if r := l.request("GET", "/oauth/authorize?"+asked().Encode(), nil, withCookie(cookie)); r.StatusCode != http.StatusSeeOther {
		t.Errorf("session: %d", r.StatusCode)
	}
	second, cookie2 := l.sipToken("alice")
	third, _ := l.sipToken("alice") // ends the first
	l.refusedFor(SessionEnded, func() { l.tokens(exchangeOf(first)) })
	l.refusedFor(CodeReplayed, func() { l.tokens(codeOf(code)) })
	l.request("POST", "/oauth/logout", url.Values{}, withCookie(cookie2))
	l.refusedFor(SessionEnded, func() { l.tokens(exchangeOf(second)) })
	if status, m := l.tokens(exchangeOf(third)); status != 200 {
		t.Errorf("%d %v", status, m)
	}
	if st := l.s.Stats(); st.Unchecked != 0 || st.Refused["store_unavailable"] != 0 {
		t.Errorf("%+v", st)
	}
}
