package waf

import (
	"html"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// Until client and redirect URI belong together, nobody is sent anywhere.
func TestAuthorizeNeverRedirectsTo(t *testing.T) {
	l := newLab(t)
	_, cookie := l.login("alice")
	for _, c := range []struct {
		name  string
		query string
		cause Cause
	}{
		{"nothing", "", UnknownClient},
		{"no client", asked("client_id", "").Encode(), UnknownClient},
		{"unknown client", asked("client_id", "evil").Encode(), UnknownClient},
		{"client twice", asked().Encode() + "&client_id=wic", UnknownClient},
		{"no redirect URI", asked("redirect_uri", "").Encode(), BadRedirect},
		{"foreign host", asked("redirect_uri", "https://evil.test/").Encode(), BadRedirect},
		{"that of another client", asked("redirect_uri", "https://other.test/cb").Encode(), BadRedirect},
		{"longer path", asked("redirect_uri", redirect+"x").Encode(), BadRedirect},
		{"shorter", asked("redirect_uri", strings.TrimSuffix(redirect, "/")).Encode(), BadRedirect},
		{"by prefix", asked("redirect_uri", "https://portal.ims.test.evil.test/").Encode(), BadRedirect},
		{"other port", asked("redirect_uri", "https://portal.ims.test:444/").Encode(), BadRedirect},
		{"other case", asked("redirect_uri", "https://Portal.ims.test/").Encode(), BadRedirect},
		{"user information", asked("redirect_uri", "https://portal.ims.test@evil.test/").Encode(), BadRedirect},
		{"with a query", asked("redirect_uri", redirect+"?a=b").Encode(), BadRedirect},
		{"with a fragment", asked("redirect_uri", redirect+"#").Encode(), BadRedirect},
		{"script", asked("redirect_uri", "javascript:alert(1)").Encode(), BadRedirect},
		{"twice", asked().Encode() + "&redirect_uri=" + url.QueryEscape(redirect), BadRedirect},
		{"bad escape", asked().Encode() + "&x=%zz", BadParameter},
		{"semicolon", asked().Encode() + ";x=1", BadParameter},
		{"too long", asked().Encode() + "&x=" + strings.Repeat("x", maxURL), TooLarge},
	} {
		t.Run(c.name, func(t *testing.T) {
			l.refusedFor(c.cause, func() {
				r := l.request("GET", "/oauth/authorize?"+c.query, nil, withCookie(cookie))
				if r.StatusCode != http.StatusBadRequest || r.Header.Get("Location") != "" || !strings.Contains(body(t, r), "This link does not work") {
					t.Errorf("%d, Location %q", r.StatusCode, r.Header.Get("Location"))
				}
			})
		})
	}
}

// The client hears of its own mistakes.
func TestAuthorizeTellsTheClient(t *testing.T) {
	l := newLab(t)
	_, cookie := l.login("alice")
	for _, c := range []struct {
		name, query, code string
		cause             Cause
	}{
		{"no response_type", asked("response_type", "").Encode(), "invalid_request", BadResponseType},
		{"implicit", asked("response_type", "token").Encode(), "unsupported_response_type", BadResponseType},
		{"hybrid", asked("response_type", "code token").Encode(), "unsupported_response_type", BadResponseType},
		{"no PKCE", asked("code_challenge", "", "code_challenge_method", "").Encode(), "invalid_request", BadPKCE},
		{"no challenge", asked("code_challenge", "").Encode(), "invalid_request", BadPKCE},
		{"plain", asked("code_challenge_method", "plain").Encode(), "invalid_request", BadPKCE},
		{"plain by default", asked("code_challenge_method", "").Encode(), "invalid_request", BadPKCE},
		{"s256 in small letters", asked("code_challenge_method", "s256").Encode(), "invalid_request", BadPKCE},
		{"short challenge", asked("code_challenge", challenge[:42]).Encode(), "invalid_request", BadPKCE},
		{"padded challenge", asked("code_challenge", challenge+"=").Encode(), "invalid_request", BadPKCE},
		{"challenge in base64", asked("code_challenge", "+"+challenge[1:]).Encode(), "invalid_request", BadPKCE},
		{"scope", asked("scope", "openid profile").Encode(), "invalid_scope", BadScope},
		{"scope by prefix", asked("scope", "sips").Encode(), "invalid_scope", BadScope},
		{"response_mode", asked("response_mode", "fragment").Encode(), "invalid_request", BadParameter},
		{"request object", asked("request", "x").Encode(), "request_not_supported", BadParameter},
		{"request_uri", asked("request_uri", "https://evil.test/").Encode(), "request_uri_not_supported", BadParameter},
		{"prompt", asked("prompt", "consent").Encode(), "invalid_request", BadParameter},
		{"scope twice", asked().Encode() + "&scope=sip", "invalid_request", BadParameter},
		{"unknown parameter twice", asked().Encode() + "&x=1&x=1", "invalid_request", BadParameter},
		{"long parameter", asked("nonce", strings.Repeat("n", maxValue+1)).Encode(), "invalid_request", BadParameter},
	} {
		t.Run(c.name, func(t *testing.T) {
			l.refusedFor(c.cause, func() {
				r := l.request("GET", "/oauth/authorize?"+c.query, nil, withCookie(cookie))
				q := l.redirected(r)
				if q.Get("error") != c.code || q.Get("error_description") == "" || q.Has("code") || r.StatusCode != http.StatusSeeOther {
					t.Errorf("%d %v", r.StatusCode, q)
				}
			})
		})
	}
	t.Run("state twice", func(t *testing.T) {
		r := l.request("GET", "/oauth/authorize?"+asked().Encode()+"&state=2", nil, withCookie(cookie))
		u, err := r.Location()
		if err != nil || u.Query().Has("state") || u.Query().Get("error") != "invalid_request" {
			t.Errorf("%v %v", u, err)
		}
	})
}

func TestAuthorize(t *testing.T) {
	l := newLab(t)
	_, cookie := l.login("alice")
	get := func(cookie *http.Cookie, change ...string) *answer {
		return l.request("GET", "/oauth/authorize?"+asked(change...).Encode(), nil, withCookie(cookie))
	}
	if q := l.redirected(get(cookie)); !isTicket(q.Get("code")) {
		t.Errorf("with a session: %v", q)
	}
	if q := l.redirected(get(cookie, "scope", "openid sip")); !isTicket(q.Get("code")) {
		t.Errorf("with another scope beside: %v", q)
	}
	if q := l.redirected(get(cookie, "scope", "", "prompt", "none")); !isTicket(q.Get("code")) {
		t.Errorf("prompt=none with a session: %v", q)
	}
	if r := get(cookie, "prompt", "login"); r.StatusCode != http.StatusOK || strings.Contains(body(t, r), "prompt") {
		t.Errorf("prompt=login with a session: %d", r.StatusCode)
	}
	l.refusedFor(LoginRequired, func() {
		if q := l.redirected(get(nil, "prompt", "none")); q.Get("error") != "login_required" {
			t.Errorf("prompt=none: %v", q)
		}
	})
	for _, value := range []string{"", "x", cookie.Value[:42], cookie.Value + "A", strings.Repeat("A", 43), "B" + cookie.Value[1:]} {
		if r := get(&http.Cookie{Name: cookieName, Value: value}); r.StatusCode != http.StatusOK {
			t.Errorf("cookie %q: %d", value, r.StatusCode)
		}
	}
	// A registered query stays, and comes first.
	r := get(cookie, "redirect_uri", redirect+"?view=call")
	if loc := r.Header.Get("Location"); !strings.HasPrefix(loc, redirect+"?view=call&") {
		t.Errorf("Location %q", loc)
	}
	for _, method := range []string{"POST", "HEAD", "PUT", "OPTIONS"} {
		r := l.request(method, "/oauth/authorize?"+asked().Encode(), nil, withCookie(cookie), with("Origin", "https://portal.ims.test"))
		if r.StatusCode != http.StatusMethodNotAllowed || r.Header.Get("Allow") != "GET" || r.Header.Get("Location") != "" {
			t.Errorf("%s: %d", method, r.StatusCode)
		}
	}
	r = l.request("GET", "/oauth/authorize?"+asked().Encode(), nil, withCookie(cookie), with("Origin", "https://portal.ims.test"))
	for h := range r.Header {
		if strings.HasPrefix(h, "Access-Control-") {
			t.Errorf("CORS on the authorization endpoint: %s", h)
		}
	}
}

func TestPagesAreGuarded(t *testing.T) {
	l := newLab(t, func(c *Config) { c.Note = "Names & passwords are in the terminal." })
	check := func(r *answer, form string) string {
		t.Helper()
		want := "default-src 'none'; style-src 'self'; form-action " + form + "; base-uri 'none'; frame-ancestors 'none'"
		if got := r.Header.Get("Content-Security-Policy"); got != want {
			t.Errorf("CSP %q\nwant %q", got, want)
		}
		for k, v := range map[string]string{"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Content-Type": "text/html; charset=utf-8"} {
			if r.Header.Get(k) != v {
				t.Errorf("%s: %q", k, r.Header.Get(k))
			}
		}
		b := body(t, r)
		for _, not := range []string{"<script", "style=", "javascript:", "onload"} {
			if strings.Contains(b, not) {
				t.Errorf("the page has %q", not)
			}
		}
		return b
	}
	b := check(l.request("GET", "/oauth/authorize?"+asked("state", `"><script>alert(1)</script>`).Encode(), nil), "'self' https://portal.ims.test")
	for _, want := range []string{"The &lt;portal&gt;", `lang="en"`, `<label for="username">`, `<label for="password">`, `autocomplete="current-password"`, `name="viewport"`,
		"<main>", "<h1>Log in</h1>", stylePath(), "Names &amp; passwords"} {
		if !strings.Contains(b, want) {
			t.Errorf("the page has no %s", want)
		}
	}
	action := formAction.FindStringSubmatch(b)
	u, err := url.Parse(html.UnescapeString(action[1]))
	if err != nil || u.Query().Get("state") != `"><script>alert(1)</script>` || u.Path != "/oauth/login" || u.Host != "" {
		t.Errorf("action %q", action[1])
	}
	check(l.request("GET", "/oauth/authorize", nil), "'none'")
	check(l.request("GET", "/oauth/nothing", nil), "'none'")
	check(l.request("GET", "/oauth/logout", nil), "'none'")

	r := l.request("GET", stylePath(), nil)
	if css := body(t, r); r.StatusCode != http.StatusOK || r.Header.Get("Content-Type") != "text/css; charset=utf-8" || !strings.Contains(r.Header.Get("Cache-Control"), "immutable") ||
		!strings.Contains(css, "prefers-color-scheme: dark") || !strings.Contains(css, "max-width: 26rem") {
		t.Errorf("style sheet: %d %v", r.StatusCode, r.Header)
	}
}

// A code has its time, and a session too, whatever the store does.
func TestTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		code, cookie := l.login("alice")
		time.Sleep(59 * time.Second)
		if status, m := l.tokens(codeOf(code)); status != http.StatusOK {
			t.Errorf("after 59 s: %v", m)
		}
		q := l.redirected(l.request("GET", "/oauth/authorize?"+asked().Encode(), nil, withCookie(cookie)))
		time.Sleep(time.Minute)
		l.refusedFor(UnknownCode, func() {
			if status, m := l.tokens(codeOf(q.Get("code"))); status != http.StatusBadRequest || m["error"] != "invalid_grant" {
				t.Errorf("after 60 s: %v", m)
			}
		})
		time.Sleep(12*time.Hour - 2*time.Minute)
		if r := l.request("GET", "/oauth/authorize?"+asked().Encode(), nil, withCookie(cookie)); r.StatusCode != http.StatusSeeOther {
			t.Errorf("before 12 h: %d", r.StatusCode)
		}
		time.Sleep(time.Minute)
		if r := l.request("GET", "/oauth/authorize?"+asked().Encode(), nil, withCookie(cookie)); r.StatusCode != http.StatusOK {
			t.Errorf("after 12 h: %d", r.StatusCode)
		}
	})
}
