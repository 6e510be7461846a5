package waf

import (
	"bytes"
	"crypto/sha256"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"

	"wicgate/internal/claims"
	"wicgate/internal/keyring"
	"wicgate/internal/store"
)

func fuzzServer(f *testing.F) *Server {
	cfg := testConfig(f, store.NewMemory(), keyring.New(turnName))
	guests(1)(&cfg)
	s, err := New(cfg)
	if err != nil {
		f.Fatal(err)
	}
	return s
}

// checkAnswer holds for every input: no failure of ours, and no way to an address that is not
// registered.
func checkAnswer(t *testing.T, s *Server, r *httptest.ResponseRecorder) {
	t.Helper()
	if r.Code >= 500 {
		t.Fatalf("%d", r.Code)
	}
	loc := r.Header().Get("Location")
	if loc == "" {
		return
	}
	for _, c := range s.cfg.Clients {
		for _, uri := range c.RedirectURIs {
			rest, ok := strings.CutPrefix(loc, uri)
			if ok && (strings.HasPrefix(rest, "?") || strings.HasPrefix(rest, "&") && strings.Contains(uri, "?")) && strings.Contains(rest, "iss=") {
				u, err := url.Parse(loc)
				if err != nil || u.User != nil || u.Fragment != "" {
					t.Fatalf("Location %q", loc)
				}
				return
			}
		}
	}
	t.Fatalf("redirected to %q", loc)
}

func FuzzAuthorize(f *testing.F) {
	s := fuzzServer(f)
	_, cookie, err := s.newSession(f.Context(), "alice", "wic")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(asked().Encode(), true)
	f.Add(asked().Encode(), false)
	f.Add(asked("prompt", "none").Encode(), false)
	f.Add(asked("redirect_uri", "https://evil.test/").Encode(), true)
	f.Add(asked("redirect_uri", redirect+"?view=call").Encode(), true)
	f.Add(asked("redirect_uri", "https://portal.ims.test@evil.test/").Encode(), true)
	f.Add(asked("state", "a\r\nLocation: https://evil.test/").Encode(), true)
	f.Add(asked("response_type", "token").Encode()+"&state=2", true)
	f.Add("client_id=wic&redirect_uri=https%3A%2F%2Fportal.ims.test%2F&redirect_uri=https://evil.test", true)
	f.Add("%zz&;=&&==&client_id", false)
	f.Fuzz(func(t *testing.T, query string, session bool) {
		r := httptest.NewRequest("GET", "/oauth/authorize", nil)
		r.URL.RawQuery = query
		if session {
			r.AddCookie(&http.Cookie{Name: cookieName, Value: cookie})
		}
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, r)
		checkAnswer(t, s, w)
		if !session && strings.Contains(w.Header().Get("Location"), "code=") {
			q, err := url.Parse(w.Header().Get("Location"))
			if err != nil || q.Query().Has("code") {
				t.Fatal("a code without a session")
			}
		}
	})
}

func FuzzToken(f *testing.F) {
	s := fuzzServer(f)
	c := claims.SIP{Issuer: issuer, Subject: "alice", Audience: audience, ClientID: "wic", IssuedAt: 1, NotBefore: 1, Expiry: 1 << 40,
		ID: "j", Scope: claims.Scope, Pseudonym: "p", IMS: claims.IMS{IMPI: "alice@ims.test", IMPU: []string{"sip:alice@ims.test"}}}
	tok, err := s.signSIP(c)
	if err != nil {
		f.Fatal(err)
	}
	const form = "application/x-www-form-urlencoded"
	f.Add([]byte(codeOf(strings.Repeat("A", 43)).Encode()), form, "")
	f.Add([]byte(exchangeOf(tok).Encode()), form, "")
	f.Add([]byte(exchangeOf(tok, "audience", "x", "alg", "HMAC-SHA-256").Encode()), form, "")
	f.Add([]byte(exchangeOf("a.b.c").Encode()), form, "")
	f.Add([]byte("grant_type=authorization_code&grant_type=x"), form, "")
	f.Add([]byte("grant_type=%zz"), form, "")
	f.Add([]byte(refreshOf(refreshToken(strings.Repeat("A", 43), strings.Repeat("B", 22), strings.Repeat("A", 43))).Encode()), form, "")
	f.Add([]byte(refreshOf(refreshToken("guest-01", strings.Repeat("B", 22), strings.Repeat("A", 43))).Encode()), form, "")
	f.Add([]byte(asGuest.Encode()), form, "Basic cG9ydGFsOnB3")
	f.Add([]byte("{}"), "application/json", "")
	f.Add([]byte{}, "multipart/form-data; boundary=x", "Basic d2ljOg==")
	f.Add(bytes.Repeat([]byte("a"), maxForm+1), form, "")
	f.Fuzz(func(t *testing.T, body []byte, contentType, authorization string) {
		r := httptest.NewRequest("POST", "/oauth/token", bytes.NewReader(body))
		r.Header.Set("Content-Type", contentType)
		if authorization != "" {
			r.Header.Set("Authorization", authorization)
		}
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, r)
		checkAnswer(t, s, w)
		if ct := w.Header().Get("Content-Type"); ct != "application/json" {
			t.Fatalf("Content-Type %q", ct)
		}
		if w.Code == 200 && !bytes.Contains(body, []byte(grantExchangeEscaped)) && !bytes.Contains(body, []byte("token-exchange")) {
			t.Fatalf("a token for %q", body)
		}
	})
}

var grantExchangeEscaped = url.QueryEscape(grantExchange)

func FuzzLoginForm(f *testing.F) {
	s := fuzzServer(f)
	f.Add("alice", "wrong")
	f.Add("ALICE ", "")
	f.Add("\"><script>alert(1)</script>", "x")
	f.Add("\xff\x00", "\xff")
	f.Fuzz(func(t *testing.T, user, pass string) {
		if pass == password {
			return
		}
		r := httptest.NewRequest("POST", "/oauth/login?"+asked().Encode(), strings.NewReader(url.Values{"username": {user}, "password": {pass}}.Encode()))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		sum := sha256.Sum256([]byte(user + "\x00" + pass)) // each from elsewhere, or the rate limit is all that is met
		r.RemoteAddr = netip.AddrPortFrom(netip.AddrFrom4([4]byte(sum[:4])), 1).String()
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, r)
		checkAnswer(t, s, w)
		if w.Header().Get("Set-Cookie") != "" || w.Code < 400 || bytes.Contains(w.Body.Bytes(), []byte("<script")) {
			t.Fatalf("%d %s", w.Code, w.Body)
		}
	})
}
