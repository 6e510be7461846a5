package wwsf

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"wicgate/web"
)

const testWAF = "https://waf.test"

// wafFunc stands in for the network: what the WAF answers.
type wafFunc func(*http.Request) (*http.Response, error)

func (f wafFunc) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func answer(status int, contentType, body string) (*http.Response, error) {
	return &http.Response{StatusCode: status, Status: http.StatusText(status), Header: http.Header{"Content-Type": {contentType}}, Body: io.NopCloser(strings.NewReader(body))}, nil
}

const goodMetadata = `{"issuer":"https://waf.test","authorization_endpoint":"https://waf.test/oauth/authorize","token_endpoint":"https://waf.test/oauth/token",
"jwks_uri":"https://waf.test/oauth/jwks","revocation_endpoint":"https://waf.test/oauth/revoke",
"grant_types_supported":["authorization_code","client_credentials","refresh_token"],"authorization_response_iss_parameter_supported":true,"code_challenge_methods_supported":["S256"]}`

func goodWAF(*http.Request) (*http.Response, error) {
	return answer(200, "application/json", goodMetadata)
}

func testConfig(waf wafFunc) Config {
	return Config{WAF: testWAF, SIPURL: "wss://edge.test:5443/sip", Domain: "ims.test", HTTP: &http.Client{Transport: waf}}
}

func newServer(t *testing.T, cfg Config) *Server {
	t.Helper()
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// replied is an answer, read to its end.
type replied struct {
	StatusCode int
	Header     http.Header
	Body       string
}

func get(s *Server, target string, change ...func(*http.Request)) replied {
	r := httptest.NewRequest(http.MethodGet, "https://portal.example.org"+target, nil)
	for _, f := range change {
		f(r)
	}
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, r)
	return replied{w.Code, w.Result().Header, w.Body.String()}
}

func asset(ext string) string {
	for name := range web.Files() {
		if strings.HasPrefix(name, web.Prefix) && strings.HasSuffix(name, ext) {
			return "/" + name
		}
	}
	return ""
}

func TestCaching(t *testing.T) {
	s := newServer(t, testConfig(goodWAF))
	for _, c := range []struct {
		target      string
		status      int
		cache       string
		contentType string
	}{
		{"/", 200, "no-store", "text/html; charset=utf-8"},
		{"/?code=c&state=s&iss=i", 200, "no-store", "text/html; charset=utf-8"},
		{"/config.json", 200, "no-store", "application/json"},
		{asset(".js"), 200, cacheForever, "text/javascript; charset=utf-8"},
		{asset(".css"), 200, cacheForever, "text/css; charset=utf-8"},
		{asset(".svg"), 200, cacheForever, "image/svg+xml"},
		{"/assets/", 404, "no-store", "text/html; charset=utf-8"},
		{"/assets/main-00000000.js", 404, "no-store", "text/html; charset=utf-8"},
		{"/index.html", 404, "no-store", "text/html; charset=utf-8"},
		{"/404.html", 404, "no-store", "text/html; charset=utf-8"},
		{"/assets/../index.html", 404, "no-store", "text/html; charset=utf-8"},
		{"/assets/%2e%2e/index.html", 404, "no-store", "text/html; charset=utf-8"},
		{"//evil.test/", 404, "no-store", "text/html; charset=utf-8"},
		{"/favicon.ico", 404, "no-store", "text/html; charset=utf-8"},
	} {
		r := get(s, c.target)
		if r.StatusCode != c.status || r.Header.Get("Cache-Control") != c.cache || r.Header.Get("Content-Type") != c.contentType {
			t.Errorf("GET %s: %d, %q, %q; want %d, %q, %q", c.target, r.StatusCode, r.Header.Get("Cache-Control"), r.Header.Get("Content-Type"), c.status, c.cache, c.contentType)
		}
	}
	if got := s.Stats(); got.Pages != 2 || got.Configs != 1 || got.Assets != 3 || got.Missing != 8 || got.Unavailable != 0 {
		t.Errorf("counters: %+v", got)
	}
}

// Each answer, of whatever kind, carries the policies.
func TestSecurityHeaders(t *testing.T) {
	s := newServer(t, testConfig(goodWAF))
	for _, target := range []string{"/", "/config.json", asset(".js"), "/nothing"} {
		h := get(s, target).Header
		csp := h.Get("Content-Security-Policy")
		for _, want := range []string{
			"default-src 'none'", "script-src 'self'", "style-src 'self'", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'",
			"connect-src 'self' wss://edge.test:5443 https://waf.test", "require-trusted-types-for 'script'",
		} {
			if !strings.Contains("; "+csp+";", "; "+want+";") {
				t.Errorf("GET %s: policy lacks %q: %s", target, want, csp)
			}
		}
		for _, bad := range []string{"unsafe-", "*", "http:", "blob: 'self'", "data: 'self'"} {
			if strings.Contains(csp, bad) {
				t.Errorf("GET %s: policy holds %q: %s", target, bad, csp)
			}
		}
		for name, want := range map[string]string{
			"X-Content-Type-Options":     "nosniff",
			"X-Frame-Options":            "DENY",
			"Referrer-Policy":            "no-referrer",
			"Cross-Origin-Opener-Policy": "same-origin",
			"Strict-Transport-Security":  hsts,
		} {
			if got := h.Get(name); got != want {
				t.Errorf("GET %s: %s is %q, want %q", target, name, got, want)
			}
		}
		if got := h.Get("Permissions-Policy"); !strings.Contains(got, "microphone=(self)") || !strings.Contains(got, "camera=(self)") {
			t.Errorf("GET %s: Permissions-Policy is %q", target, got)
		}
	}
}

func TestHSTS(t *testing.T) {
	s := newServer(t, testConfig(goodWAF))
	for host, want := range map[string]bool{
		"portal.example.org": true, "portal.example.org:8443": true,
		"localhost": false, "localhost:8443": false, "LOCALHOST.:8443": false, "a.localhost": false,
		"127.0.0.1:8443": false, "[::1]:8443": false, "192.0.2.1": false,
	} {
		if got := get(s, "/", func(r *http.Request) { r.Host = host }).Header.Get("Strict-Transport-Security") != ""; got != want {
			t.Errorf("Host %s: HSTS sent: %v, want %v", host, got, want)
		}
	}
	if get(s, "/", func(r *http.Request) { r.TLS = nil }).Header.Get("Strict-Transport-Security") != "" {
		t.Error("HSTS sent over plain HTTP (RFC 6797 §7.2)")
	}
}

func TestMethods(t *testing.T) {
	s := newServer(t, testConfig(goodWAF))
	for _, method := range []string{"POST", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT", "X"} {
		r := get(s, "/", func(r *http.Request) { r.Method = method })
		if r.StatusCode != 405 || r.Header.Get("Allow") != "GET, HEAD" {
			t.Errorf("%s: %d, Allow %q", method, r.StatusCode, r.Header.Get("Allow"))
		}
	}
	full := get(s, "/")
	head := get(s, "/", func(r *http.Request) { r.Method = "HEAD" })
	if head.StatusCode != 200 || head.Body != "" || head.Header.Get("Content-Length") != full.Header.Get("Content-Length") {
		t.Errorf("HEAD: %d, Content-Length %q and a body, want as GET without one", head.StatusCode, head.Header.Get("Content-Length"))
	}
}

// What the page refers to is there when it is asked for as the page asks.
func TestPageIsWhole(t *testing.T) {
	s := newServer(t, testConfig(goodWAF))
	refs := regexp.MustCompile(`(?:href|src)="(/assets/[^"]+)"`).FindAllStringSubmatch(get(s, "/").Body, -1)
	if len(refs) < 4 {
		t.Fatalf("page refers to %d assets", len(refs))
	}
	for _, m := range refs {
		if r := get(s, m[1]); r.StatusCode != 200 {
			t.Errorf("GET %s: %d", m[1], r.StatusCode)
		}
	}
}

func TestGzip(t *testing.T) {
	s := newServer(t, testConfig(goodWAF))
	plain := get(s, asset(".js")).Body
	for accept, want := range map[string]bool{
		"gzip": true, "gzip, deflate, br": true, "br;q=1.0, GZIP;q=0.5": true,
		"": false, "br": false, "gzip;q=0": false, "gzip;q=0.0": false, "gzip;q=x": false, "xgzip": false,
	} {
		r := get(s, asset(".js"), func(r *http.Request) { r.Header.Set("Accept-Encoding", accept) })
		if got := r.Header.Get("Content-Encoding") == "gzip"; got != want {
			t.Errorf("Accept-Encoding %q: compressed %v, want %v", accept, got, want)
			continue
		}
		if r.Header.Get("Vary") != "Accept-Encoding" {
			t.Errorf("Accept-Encoding %q: Vary is %q", accept, r.Header.Get("Vary"))
		}
		if !want {
			continue
		}
		z, err := gzip.NewReader(strings.NewReader(r.Body))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(z); err != nil || string(got) != plain {
			t.Errorf("Accept-Encoding %q: not the same after decompression (%v)", accept, err)
		}
	}
}

func TestConfigJSON(t *testing.T) {
	s := newServer(t, testConfig(goodWAF))
	var got map[string]any
	if err := json.Unmarshal([]byte(get(s, "/config.json").Body), &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"issuer": testWAF, "authorization_endpoint": testWAF + "/oauth/authorize", "token_endpoint": testWAF + "/oauth/token",
		"authorization_response_iss_parameter_supported": true,
		"client_id": "wic", "scope": "sip", "sip_url": "wss://edge.test:5443/sip", "domain": "ims.test",
		"revocation_endpoint": testWAF + "/oauth/revoke", "guests": false, "turn_credential": "token",
	}
	for k, v := range want {
		if got[k] != v {
			t.Errorf("%s is %v, want %v", k, got[k], v)
		}
	}
	if len(got) != len(want) {
		t.Errorf("config.json has %d members, want %d: %v", len(got), len(want), got)
	}
}

// A WAF that cannot be reached or used is a 503 in words, with the cause in the log alone, until it is back.
func TestWAFDownAndBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		var waf atomic.Pointer[wafFunc]
		asked := 0
		set := func(f wafFunc) { waf.Store(&f) }
		cfg := testConfig(func(r *http.Request) (*http.Response, error) { asked++; return (*waf.Load())(r) })
		cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
		s := newServer(t, cfg)

		set(func(*http.Request) (*http.Response, error) { return nil, io.ErrUnexpectedEOF })
		r := get(s, "/config.json")
		if r.StatusCode != 503 || r.Header.Get("Retry-After") == "" || r.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("WAF down: %d, %v", r.StatusCode, r.Header)
		}
		text := r.Body
		if !strings.Contains(text, "log-in service is not to be reached") || strings.Contains(text, "EOF") || strings.Contains(text, "waf.test") {
			t.Errorf("WAF down: body is %s", text)
		}
		if !strings.Contains(log.String(), "unexpected EOF") || !strings.Contains(log.String(), testWAF) {
			t.Errorf("the log does not name the cause: %s", &log)
		}
		if get(s, "/").StatusCode != 200 {
			t.Error("without the WAF the page itself does not come")
		}
		for range 50 {
			get(s, "/config.json")
		}
		if asked != 1 {
			t.Errorf("51 visitors in a second made %d questions to the WAF, want 1", asked)
		}

		set(goodWAF)
		time.Sleep(failureHold)
		if r := get(s, "/config.json"); r.StatusCode != 200 {
			t.Errorf("WAF back: %d", r.StatusCode)
		}

		// Known metadata outlives the WAF for a day, and no longer.
		set(func(*http.Request) (*http.Response, error) { return answer(500, "text/plain", "boom") })
		time.Sleep(fresh)
		if r := get(s, "/config.json"); r.StatusCode != 200 {
			t.Errorf("WAF away for a moment: %d", r.StatusCode)
		}
		time.Sleep(stale)
		if r := get(s, "/config.json"); r.StatusCode != 503 {
			t.Errorf("WAF away for a day: %d", r.StatusCode)
		}
		if got := s.Stats(); got.Unavailable != 52 || got.Configs != 2 {
			t.Errorf("counters: %+v", got)
		}
	})
}

func TestMetadataRefused(t *testing.T) {
	for name, c := range map[string]struct {
		waf  wafFunc
		want string
	}{
		"another issuer": {func(*http.Request) (*http.Response, error) {
			return answer(200, "application/json", strings.Replace(goodMetadata, `"https://waf.test"`, `"https://evil.test"`, 1))
		}, `issuer is "https://evil.test" where "https://waf.test" was asked`},
		"a token endpoint elsewhere": {func(*http.Request) (*http.Response, error) {
			return answer(200, "application/json", strings.Replace(goodMetadata, "https://waf.test/oauth/token", "https://evil.test/token", 1))
		}, "token_endpoint is \"https://evil.test/token\", outside https://waf.test"},
		"an origin that only begins alike": {func(*http.Request) (*http.Response, error) {
			return answer(200, "application/json", strings.Replace(goodMetadata, "https://waf.test/oauth/token", "https://waf.test@evil.test/token", 1))
		}, "outside https://waf.test"},
		"plain http": {func(*http.Request) (*http.Response, error) {
			return answer(200, "application/json", strings.Replace(goodMetadata, "https://waf.test/oauth/authorize", "http://waf.test/oauth/authorize", 1))
		}, "outside https://waf.test"},
		"no token endpoint": {func(*http.Request) (*http.Response, error) {
			return answer(200, "application/json", strings.Replace(goodMetadata, `"token_endpoint"`, `"x"`, 1))
		}, "token_endpoint is missing"},
		"no S256": {func(*http.Request) (*http.Response, error) {
			return answer(200, "application/json", strings.Replace(goodMetadata, "S256", "plain", 1))
		}, "lacks S256"},
		"not JSON by type": {func(*http.Request) (*http.Response, error) {
			return answer(200, "text/html", goodMetadata)
		}, "not JSON"},
		"not JSON at all": {func(*http.Request) (*http.Response, error) {
			return answer(200, "application/json", "<html>")
		}, "invalid character"},
		"too long": {func(*http.Request) (*http.Response, error) {
			return answer(200, "application/json", strings.Repeat(" ", metadataSize)+goodMetadata)
		}, "longer than"},
		"redirect": {func(*http.Request) (*http.Response, error) {
			r, _ := answer(302, "text/plain", "")
			r.Header.Set("Location", "https://evil.test/")
			return r, nil
		}, "answers Found"},
	} {
		t.Run(name, func(t *testing.T) {
			var log bytes.Buffer
			asked := 0
			cfg := testConfig(func(r *http.Request) (*http.Response, error) {
				asked++
				if r.URL.String() != testWAF+wellKnown {
					t.Errorf("asked %s", r.URL)
				}
				return c.waf(r)
			})
			cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
			s := newServer(t, cfg)
			if r := get(s, "/config.json"); r.StatusCode != 503 {
				t.Errorf("answer %d: %s", r.StatusCode, r.Body)
			}
			if got := strings.ReplaceAll(log.String(), `\"`, `"`); !strings.Contains(got, c.want) {
				t.Errorf("log is %s; want it to say %s", got, c.want)
			}
			if asked != 1 {
				t.Errorf("%d questions, want 1", asked)
			}
		})
	}
}

// Serve asks before anybody visits, again after failures, and ends with its context.
func TestServe(t *testing.T) {
	defer goleak.VerifyNone(t)
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int64
		s := newServer(t, testConfig(func(r *http.Request) (*http.Response, error) {
			if asked.Add(1) < 4 {
				return nil, io.ErrUnexpectedEOF
			}
			return goodWAF(r)
		}))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Serve(ctx) }()
		time.Sleep(2 * time.Second) // tries at 0, 0.25, 0.75 and 1.75 s
		synctest.Wait()
		if asked.Load() != 4 {
			t.Errorf("asked %d times in 2 s, want 4", asked.Load())
		}
		if r := get(s, "/config.json"); r.StatusCode != 200 || asked.Load() != 4 {
			t.Errorf("first visitor: %d after %d questions", r.StatusCode, asked.Load())
		}
		time.Sleep(time.Hour)
		if r := get(s, "/config.json"); r.StatusCode != 200 {
			t.Errorf("after an hour: %d", r.StatusCode)
		}
		if asked.Load() > 20 {
			t.Errorf("asked %d times in an hour", asked.Load())
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
}

func TestNewRefuses(t *testing.T) {
	good := testConfig(goodWAF)
	for _, c := range []struct {
		change func(*Config)
		want   string
	}{
		{func(c *Config) { c.WAF = "" }, "wwsf: the WAF's URL is missing"},
		{func(c *Config) { c.WAF = "http://waf.test" }, `wwsf: the WAF's URL is "http://waf.test": its scheme has to be https`},
		{func(c *Config) { c.WAF = "https://waf.test/x" }, `wwsf: the WAF's URL is "https://waf.test/x": the issuer is an origin alone, write "https://waf.test"`},
		{func(c *Config) { c.WAF = "https://waf.test/" }, `wwsf: the WAF's URL is "https://waf.test/": the issuer is an origin alone, write "https://waf.test"`},
		{func(c *Config) { c.WAF = "https://u:p@waf.test" }, `is "https://u:xxxxx@waf.test": it must not hold`},
		{func(c *Config) { c.WAF = "https://waf.test; script-src *" }, "the WAF's URL is"},
		{func(c *Config) { c.SIPURL = "" }, "wwsf: the WebSocket's URL is missing"},
		{func(c *Config) { c.SIPURL = "ws://edge.test/sip" }, `wwsf: the WebSocket's URL is "ws://edge.test/sip": its scheme has to be wss`},
		{func(c *Config) { c.Domain = "" }, `wwsf: the home domain is "": write one such as "ims.test"`},
		{func(c *Config) { c.Domain = "ims test" }, "the home domain"},
	} {
		cfg := good
		c.change(&cfg)
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("New: %v; want %s", err, c.want)
		}
	}
}
