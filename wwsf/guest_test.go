package wwsf

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"wicgate/internal/secret"
)

const guestSecret = "an-example-of-a-client-secret-+%&:"

const guestToken = `{"access_token":"a.b.c","token_type":"Bearer","expires_in":600,"refresh_token":"r","ims":{"impu":["sip:guest-07@ims.test"]},"name":"Guest 7"}`

// guestConfig has a portal secret and a WAF that answers as given, and as goodWAF for the rest.
func guestConfig(token wafFunc) Config {
	cfg := testConfig(func(r *http.Request) (*http.Response, error) {
		if r.URL.Path == "/oauth/token" {
			return token(r)
		}
		return goodWAF(r)
	})
	cfg.ClientSecret = secret.New([]byte(guestSecret))
	return cfg
}

func goodToken(*http.Request) (*http.Response, error) {
	return answer(200, "application/json", guestToken+"\n")
}

func join(s *Server, body string, change ...func(*http.Request)) replied {
	r := httptest.NewRequest(http.MethodPost, "https://portal.example.org/guest", strings.NewReader(body))
	for _, f := range change {
		f(r)
	}
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, r)
	return replied{w.Code, w.Result().Header, w.Body.String()}
}

func header(name, value string) func(*http.Request) {
	return func(r *http.Request) { r.Header.Set(name, value) }
}

// What goes to the WAF is the grant with the secret in HTTP Basic; what comes back goes to the page.
func TestGuest(t *testing.T) {
	var log bytes.Buffer
	asked := 0
	cfg := guestConfig(func(r *http.Request) (*http.Response, error) {
		asked++
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		form, err := url.ParseQuery(string(b))
		id, pass, ok := r.BasicAuth()
		pass, _ = url.QueryUnescape(pass)
		if err != nil || form.Encode() != "grant_type=client_credentials&scope=sip" || !ok || id != "portal" || pass != guestSecret ||
			r.Method != "POST" || r.URL.String() != testWAF+"/oauth/token" || r.Header.Get("Content-Type") != "application/x-www-form-urlencoded" {
			t.Errorf("asked %s %s with %q, %q %v", r.Method, r.URL, b, id, ok)
		}
		if r.Header.Get("Cookie") != "" {
			t.Error("the visitor's cookie goes to the WAF")
		}
		return goodToken(r)
	})
	cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
	s := newServer(t, cfg)
	for _, change := range []func(*http.Request){
		func(*http.Request) {}, // a program
		header("Sec-Fetch-Site", "same-origin"),
		header("Origin", "https://portal.example.org"),
		header("Cookie", "a=b"),
	} {
		r := join(s, "", change)
		if r.StatusCode != 200 || r.Body != guestToken || r.Header.Get("Content-Type") != "application/json" || r.Header.Get("Cache-Control") != "no-store" || r.Header.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%d %v %s", r.StatusCode, r.Header, r.Body)
		}
		for name, values := range r.Header {
			if strings.Contains(strings.Join(values, " "), guestSecret) {
				t.Errorf("%s shows the secret", name)
			}
		}
	}
	if st := s.Stats(); st.Guests != 4 || asked != 4 || st.Refused != 0 {
		t.Errorf("%+v, asked %d times", st, asked)
	}
	if out := log.String(); strings.Contains(out, guestSecret) || strings.Contains(out, "a.b.c") || !strings.Contains(out, "guest joined") {
		t.Errorf("log %s", out)
	}
	if !strings.Contains(get(s, "/config.json").Body, `"guests":true`) {
		t.Error("config.json does not say that guests may join")
	}
}

func TestGuestRefused(t *testing.T) {
	asked := 0
	cfg := guestConfig(func(r *http.Request) (*http.Response, error) { asked++; return goodToken(r) })
	s := newServer(t, cfg)
	for _, c := range []struct {
		name   string
		body   string
		status int
		change func(*http.Request)
	}{
		{"another site", "", 403, header("Sec-Fetch-Site", "cross-site")},
		{"a sibling", "", 403, header("Sec-Fetch-Site", "same-site")},
		{"another origin, by an old browser", "", 403, header("Origin", "https://evil.test")},
		{"another port", "", 403, header("Origin", "https://portal.example.org:444")},
		{"no origin", "", 403, header("Origin", "null")},
		{"too long", strings.Repeat("x", guestBody+1), 413, header("Sec-Fetch-Site", "same-origin")},
		{"GET", "", 405, func(r *http.Request) { r.Method = "GET" }},
		{"OPTIONS, of CORS", "", 405, func(r *http.Request) {
			r.Method = "OPTIONS"
			r.Header.Set("Access-Control-Request-Method", "POST")
			r.Header.Set("Origin", "https://evil.test")
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := join(s, c.body, c.change)
			var e guestError
			if err := json.Unmarshal([]byte(r.Body), &e); err != nil || r.StatusCode != c.status || e.Error == "" || e.Message == "" {
				t.Errorf("%d %s", r.StatusCode, r.Body)
			}
			if r.Header.Get("Access-Control-Allow-Origin") != "" || r.Header.Get("Cache-Control") != "no-store" || !strings.Contains(r.Header.Get("Content-Security-Policy"), "default-src 'none'") {
				t.Errorf("%v", r.Header)
			}
			if c.status == 405 && r.Header.Get("Allow") != "POST" {
				t.Errorf("Allow %q", r.Header.Get("Allow"))
			}
		})
	}
	if st := s.Stats(); asked != 0 || st.Refused != 8 || st.Guests != 0 {
		t.Errorf("%+v, asked %d times", st, asked)
	}
}

func TestGuestsNotServed(t *testing.T) {
	for name, cfg := range map[string]Config{
		"no secret": func() Config { c := guestConfig(goodToken); c.ClientSecret = secret.Bytes{}; return c }(),
		"no such grant at the WAF": func() Config {
			c := testConfig(func(*http.Request) (*http.Response, error) {
				return answer(200, "application/json", strings.Replace(goodMetadata, `"client_credentials",`, "", 1))
			})
			c.ClientSecret = secret.New([]byte(guestSecret))
			return c
		}(),
	} {
		s := newServer(t, cfg)
		if r := join(s, ""); r.StatusCode != 404 || !strings.Contains(r.Body, "Log in instead") {
			t.Errorf("%s: %d %s", name, r.StatusCode, r.Body)
		}
		if r := get(s, "/config.json"); !strings.Contains(r.Body, `"guests":false`) || strings.Contains(r.Body, "grant_types") {
			t.Errorf("%s: %s", name, r.Body)
		}
	}
}

// Each failure of the WAF is an answer in words; the cause is in the log alone.
func TestGuestWithoutWAF(t *testing.T) {
	const away, full = "does not work at the moment", "All places for guests are taken"
	wait := func(r *http.Response, seconds string) *http.Response { r.Header.Set("Retry-After", seconds); return r }
	for _, c := range []struct {
		name, words, log, retry string
		waf                     wafFunc
	}{
		{"not there", away, "unexpected EOF", retryAfter, func(*http.Request) (*http.Response, error) { return nil, io.ErrUnexpectedEOF }},
		{"no place left", full, "no place", "42", func(*http.Request) (*http.Response, error) {
			r, err := answer(503, "application/json", `{"error":"temporarily_unavailable","error_description":"all identities for guests are taken: try again in a few minutes"}`)
			return wait(r, "42"), err
		}},
		{"no place left, without a time", full, "no place", "60", func(*http.Request) (*http.Response, error) {
			r, err := answer(503, "application/json", `{"error":"temporarily_unavailable","error_description":"all identities for guests are taken: try again in a few minutes"}`)
			return wait(r, "x"), err
		}},
		{"its store away", away, "temporarily_unavailable", retryAfter, func(*http.Request) (*http.Response, error) {
			return answer(503, "application/json", `{"error":"temporarily_unavailable","error_description":"try again in a few seconds"}`)
		}},
		{"wrong secret", away, "compare the file of wwsf.client_secret", retryAfter, func(*http.Request) (*http.Response, error) {
			return answer(401, "application/json", `{"error":"invalid_client"}`)
		}},
		{"not JSON", away, "not JSON", retryAfter, func(*http.Request) (*http.Response, error) { return answer(200, "text/html", guestToken) }},
		{"broken JSON", away, "unexpected end", retryAfter, func(*http.Request) (*http.Response, error) { return answer(200, "application/json", `{"access_`) }},
		{"no token", away, "answers OK", retryAfter, func(*http.Request) (*http.Response, error) { return answer(200, "application/json", `{}`) }},
		{"TURN token", away, "answers OK", retryAfter, func(*http.Request) (*http.Response, error) {
			return answer(200, "application/json", `{"access_token":"x","token_type":"pop"}`)
		}},
		{"too long", away, "longer than", retryAfter, func(*http.Request) (*http.Response, error) {
			return answer(200, "application/json", guestToken+strings.Repeat(" ", guestAnswer))
		}},
		{"redirect", away, "not JSON", retryAfter, func(*http.Request) (*http.Response, error) {
			r, err := answer(307, "text/plain", "")
			r.Header.Set("Location", "https://evil.test/")
			return r, err
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var log bytes.Buffer
			asked := 0
			cfg := guestConfig(func(r *http.Request) (*http.Response, error) {
				asked++
				if r.URL.Host != "waf.test" {
					t.Errorf("the secret goes to %s", r.URL)
				}
				return c.waf(r)
			})
			cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
			r := join(newServer(t, cfg), "")
			if r.StatusCode != 503 || !strings.Contains(r.Body, c.words) || r.Header.Get("Retry-After") != c.retry {
				t.Errorf("%d %v %s", r.StatusCode, r.Header, r.Body)
			}
			if !strings.Contains(log.String(), c.log) || strings.Contains(r.Body, c.log) && c.log != "temporarily_unavailable" || strings.Contains(log.String(), guestSecret) {
				t.Errorf("log %s", &log)
			}
			if asked != 1 {
				t.Errorf("asked %d times", asked)
			}
		})
	}
	s := newServer(t, func() Config {
		c := testConfig(func(*http.Request) (*http.Response, error) { return nil, io.ErrUnexpectedEOF })
		c.ClientSecret = secret.New([]byte(guestSecret))
		return c
	}())
	if r := join(s, ""); r.StatusCode != 503 || !strings.Contains(r.Body, away) {
		t.Errorf("metadata away: %d %s", r.StatusCode, r.Body)
	}
}

func TestGuestRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, guestConfig(goodToken))
		from := func(addr string) replied {
			return join(s, "", func(r *http.Request) { r.RemoteAddr = addr })
		}
		for i := range guestsBurst {
			if r := from("192.0.2.1:1"); r.StatusCode != 200 {
				t.Fatalf("guest %d: %d", i, r.StatusCode)
			}
		}
		if r := from("192.0.2.1:2"); r.StatusCode != 429 || r.Header.Get("Retry-After") != "30" || !strings.Contains(r.Body, "Too many guests") {
			t.Errorf("%d %v %s", r.StatusCode, r.Header, r.Body)
		}
		if r := from("192.0.2.2:1"); r.StatusCode != 200 {
			t.Errorf("another source: %d", r.StatusCode)
		}
		// A subscriber's IPv6 addresses are one source.
		allowed := 0
		for i := range 20 {
			if from("[2001:db8:1:2::"+string(rune('1'+i%9))+"]:1").StatusCode == 200 {
				allowed++
			}
		}
		if allowed != guestsBurst {
			t.Errorf("%d guests from one /64", allowed)
		}
		time.Sleep(guestsPer)
		if r := from("192.0.2.1:1"); r.StatusCode != 200 {
			t.Errorf("after %v: %d", guestsPer, r.StatusCode)
		}
	})
}

// A WAF that hangs is asked by a bounded number, and not for longer than its time.
func TestGuestsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, guestConfig(func(r *http.Request) (*http.Response, error) {
			<-r.Context().Done()
			return nil, context.Cause(r.Context())
		}))
		start := time.Now()
		var wg sync.WaitGroup
		for i := range guestsOnce {
			wg.Go(func() {
				if r := join(s, "", func(r *http.Request) { r.RemoteAddr = "192.0.2." + string(rune('0'+i%8)) + ":1" }); r.StatusCode != 503 {
					t.Errorf("%d %s", r.StatusCode, r.Body)
				}
			})
		}
		synctest.Wait()
		if r := join(s, "", func(r *http.Request) { r.RemoteAddr = "198.51.100.1:1" }); r.StatusCode != 503 || time.Since(start) != 0 {
			t.Errorf("one too many: %d after %v", r.StatusCode, time.Since(start))
		}
		wg.Wait()
		if d := time.Since(start); d != guestTime {
			t.Errorf("waited %v", d)
		}
	})
}

func FuzzGuestAnswer(f *testing.F) {
	f.Add(200, "application/json", []byte(guestToken))
	f.Add(503, "application/json", []byte(`{"error":"temporarily_unavailable","error_description":"taken"}`))
	f.Add(200, "application/json", []byte(`{"access_token":1}`))
	f.Add(200, "application/json;;", []byte(`[]`))
	f.Add(101, "", []byte{0xff})
	f.Fuzz(func(t *testing.T, status int, contentType string, body []byte) {
		if status < 100 || status > 599 {
			return
		}
		s, err := New(guestConfig(func(*http.Request) (*http.Response, error) { return answer(status, contentType, string(body)) }))
		if err != nil {
			t.Fatal(err)
		}
		r := join(s, "")
		var m map[string]any
		if err := json.Unmarshal([]byte(r.Body), &m); err != nil || r.StatusCode != 200 && r.StatusCode != 503 {
			t.Fatalf("%d %q", r.StatusCode, r.Body)
		}
		if (r.StatusCode == 200) != (m["access_token"] != nil && m["error"] == nil) && status != 200 {
			t.Fatalf("%d %q", r.StatusCode, r.Body)
		}
	})
}
