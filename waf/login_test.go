package waf

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"wicgate/internal/secret"
)

func (l *lab) post(user, pass string, change ...func(*http.Request)) *answer {
	return l.request("POST", "/oauth/login?"+asked().Encode(), url.Values{"username": {user}, "password": {pass}}, change...)
}

// Nothing in the answer tells a wrong password from an unknown user.
func TestWrongPasswordAndUnknownUser(t *testing.T) {
	l := newLab(t)
	var known, unknown string
	l.refusedFor(WrongPassword, func() {
		r := l.post("alice", "wrong password!")
		known = body(t, r)
		if r.StatusCode != http.StatusForbidden || len(r.Cookies()) != 0 || r.Header.Get("Location") != "" || !strings.Contains(known, `role="alert"`) || !strings.Contains(known, wrongText) {
			t.Errorf("%d %s", r.StatusCode, known)
		}
	})
	l.refusedFor(UnknownUser, func() {
		r := l.post("alicf", "wrong password!")
		unknown = body(t, r)
		if r.StatusCode != http.StatusForbidden {
			t.Errorf("%d", r.StatusCode)
		}
	})
	if strings.ReplaceAll(unknown, "alicf", "alice") != known {
		t.Errorf("the pages differ:\n%s\n%s", known, unknown)
	}
	for _, c := range []struct{ user, pass string }{
		{"", password}, {"alice", ""}, {"", ""}, {"al ice", password}, {"alice\x00", password}, {strings.Repeat("a", 65), password},
		{"alice", password + " "}, {"alice", strings.ToUpper(password)}, {"bob", strings.Repeat("x", maxPassword+1)}, {`"><script>`, "x"}, {"\xff", "\xff"},
	} {
		r := l.post(c.user, c.pass)
		if b := body(t, r); r.StatusCode != http.StatusForbidden && r.StatusCode != http.StatusTooManyRequests || strings.Contains(b, "<script>") {
			t.Errorf("%q %q: %d %s", c.user, c.pass, r.StatusCode, b)
		}
	}
	// A password typed into the wrong field is not logged.
	l.post("hunter2-my-password", "x")
	l.noSecrets("hunter2-my-password", "wrong password!")
	if st := l.s.Stats(); st.LogIns != 0 || st.LogInsFailed != 14 {
		t.Errorf("%+v", st)
	}
}

func TestLoginRefusesForms(t *testing.T) {
	l := newLab(t)
	good := url.Values{"username": {"alice"}, "password": {password}}
	target := "/oauth/login?" + asked().Encode()
	for _, c := range []struct {
		name   string
		cause  Cause
		status int
		do     func() *answer
	}{
		{"too large", TooLarge, http.StatusRequestEntityTooLarge, func() *answer {
			return l.request("POST", target, url.Values{"username": {"alice"}, "password": {strings.Repeat("x", maxForm)}})
		}},
		{"JSON", BadParameter, http.StatusUnsupportedMediaType, func() *answer {
			return l.request("POST", target, good, with("Content-Type", "application/json"))
		}},
		{"twice", BadParameter, http.StatusBadRequest, func() *answer {
			return l.request("POST", target, url.Values{"username": {"alice", "bob"}, "password": {password}})
		}},
		{"from another site", Forged, http.StatusForbidden, func() *answer {
			return l.request("POST", target, good, with("Sec-Fetch-Site", "cross-site"), with("Origin", "https://evil.test"))
		}},
		{"from another site, by an old browser", Forged, http.StatusForbidden, func() *answer {
			return l.request("POST", target, good, with("Origin", "https://evil.test"))
		}},
		{"from a sibling", Forged, http.StatusForbidden, func() *answer {
			return l.request("POST", target, good, with("Sec-Fetch-Site", "same-site"), with("Origin", "https://x.ims.test"))
		}},
		{"foreign redirect", BadRedirect, http.StatusBadRequest, func() *answer {
			return l.request("POST", "/oauth/login?"+asked("redirect_uri", "https://evil.test/").Encode(), good)
		}},
		{"PUT", BadMethod, http.StatusMethodNotAllowed, func() *answer { return l.request("PUT", target, good) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			l.refusedFor(c.cause, func() {
				if r := c.do(); r.StatusCode != c.status || len(r.Cookies()) != 0 || r.Header.Get("Location") != "" {
					t.Errorf("%d %v", r.StatusCode, r.Header)
				}
			})
		})
	}
	// What a browser sends from the page itself.
	r := l.request("POST", target, good, with("Sec-Fetch-Site", "same-origin"), with("Origin", issuer))
	if r.StatusCode != http.StatusSeeOther {
		t.Errorf("own page: %d", r.StatusCode)
	}
	if r := l.request("GET", target, nil); r.StatusCode != http.StatusOK || !strings.Contains(body(t, r), "Log in") {
		t.Errorf("reload by address: %d", r.StatusCode)
	}
}

func TestCookie(t *testing.T) {
	l := newLab(t)
	r := l.post("alice", password)
	line := r.Header.Get("Set-Cookie")
	for _, want := range []string{"__Host-wicgate=", "; Path=/", "; HttpOnly", "; Secure", "; SameSite=Lax"} {
		if !strings.Contains(line, want) {
			t.Errorf("cookie %q has no %q", line, want)
		}
	}
	if strings.Contains(line, "Domain") || strings.Contains(line, "Expires") || strings.Contains(line, "Max-Age") {
		t.Errorf("cookie %q", line)
	}
	cookie := r.Cookies()[0]
	// The store has neither cookie nor code.
	code := l.redirected(r).Get("code")
	for _, bucket := range []string{sessionBucket, codeBucket, aliveBucket} {
		n := 0
		for k, v := range l.dump(bucket) {
			n++
			if s := k + v; strings.Contains(s, cookie.Value) || strings.Contains(s, code) {
				t.Errorf("bucket %s holds a bearer value: %s", bucket, s)
			}
		}
		if n == 0 {
			t.Errorf("bucket %s is empty", bucket)
		}
	}
	l.noSecrets(cookie.Value, code)
	// A log-in never continues a session that was there.
	r = l.post("bob", password, withCookie(cookie))
	if next := r.Cookies()[0]; next.Value == cookie.Value {
		t.Error("the cookie stays over a log-in")
	}
}

// Somebody who has a password cannot fill the store and the enforcers' memory with sessions and their ends.
func TestLogInsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		in := 0
		for i := range 300 {
			if r := l.post("alice", password, func(r *http.Request) { r.RemoteAddr = "192.0.2." + strconv.Itoa(i%250) + ":1" }); r.StatusCode == http.StatusSeeOther {
				in++
			} else if r.StatusCode != http.StatusTooManyRequests || r.Header.Get("Retry-After") == "" || len(r.Cookies()) != 0 {
				t.Fatalf("%d", r.StatusCode)
			}
		}
		if in != 100 {
			t.Errorf("%d log-ins at once", in)
		}
		if r := l.post("bob", password); r.StatusCode != http.StatusSeeOther {
			t.Errorf("bob is kept out: %d", r.StatusCode)
		}
		time.Sleep(10 * time.Second)
		if r := l.post("alice", password); r.StatusCode != http.StatusSeeOther {
			t.Errorf("alice is kept out for long: %d", r.StatusCode)
		}
	})
}

func TestRateLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		from := func(addr string) func(*http.Request) {
			return func(r *http.Request) { r.RemoteAddr = addr }
		}
		const home, evil = "192.0.2.1:1", "198.51.100.7:1"
		// Right passwords do not use it up.
		for range 50 {
			if r := l.post("alice", password, from(home)); r.StatusCode != http.StatusSeeOther {
				t.Fatalf("%d", r.StatusCode)
			}
		}
		// A stranger at one address gets six guesses at alice ...
		for i := range 6 {
			if r := l.post("alice", "wrong", from(evil)); r.StatusCode != http.StatusForbidden {
				t.Fatalf("guess %d: %d", i, r.StatusCode)
			}
		}
		l.refusedFor(TooManyLogins, func() {
			r := l.post("alice", password, from(evil))
			wait, err := strconv.Atoi(r.Header.Get("Retry-After"))
			if r.StatusCode != http.StatusTooManyRequests || err != nil || wait < 1 || wait > 15 || !strings.Contains(body(t, r), "Too many attempts") || len(r.Cookies()) != 0 {
				t.Errorf("%d, Retry-After %v %v", r.StatusCode, wait, err)
			}
		})
		// ... and does not keep her out.
		if r := l.post("alice", password, from(home)); r.StatusCode != http.StatusSeeOther {
			t.Errorf("alice is kept out: %d", r.StatusCode)
		}
		// Other names from there go on until the address is used up: as many names that nobody has.
		refused := 0
		for i := range 40 {
			if r := l.post("nobody"+strconv.Itoa(i), "wrong", from(evil)); r.StatusCode == http.StatusTooManyRequests {
				refused++
			}
		}
		if refused < 10 {
			t.Errorf("only %d of 40 refused", refused)
		}
		// Many addresses together are held by the user's own limit.
		allowed := 0
		for i := range 100 {
			if r := l.post("bob", "wrong", from("203.0.113."+strconv.Itoa(i)+":1")); r.StatusCode == http.StatusForbidden {
				allowed++
			}
		}
		if allowed != 30 {
			t.Errorf("%d guesses at bob from many addresses", allowed)
		}
		// An IPv6 subscriber is one source.
		allowed = 0
		for i := range 50 {
			if r := l.post("x"+strconv.Itoa(i), "wrong", from("[2001:db8:1:2::"+strconv.Itoa(i)+"]:1")); r.StatusCode == http.StatusForbidden {
				allowed++
			}
		}
		if allowed != 30 {
			t.Errorf("%d guesses from one /64", allowed)
		}
		time.Sleep(30 * time.Second)
		if r := l.post("bob", password, from(home)); r.StatusCode != http.StatusSeeOther {
			t.Errorf("bob is kept out for long: %d", r.StatusCode)
		}
		time.Sleep(15 * time.Second)
		if r := l.post("alice", "wrong", from(evil)); r.StatusCode != http.StatusForbidden {
			t.Errorf("no guess after 15 s: %d", r.StatusCode)
		}
	})
}

func TestPassword(t *testing.T) {
	h := newHasher(argonDefault)
	phc, err := h.hash(t.Context(), secret.New([]byte(password)))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(string(phc.Expose()), "$argon2id$v=19$m=19456,t=2,p=1$") {
		t.Errorf("%s", phc.Expose())
	}
	// From test.c of the reference implementation; its program makes it too:
	//	printf password | argon2 somesalt -id -t 2 -m 8 -p 1 -l 32 -e
	known := "$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4"
	for _, c := range []struct {
		name, password string
		phc            secret.Bytes
		right          bool
	}{
		{"right", password, phc, true},
		{"wrong", password + "x", phc, false},
		{"empty", "", phc, false},
		{"nobody", password, secret.Bytes{}, false},
		{"too long", strings.Repeat("x", maxPassword+1), phc, false},
		{"reference program", "password", secret.New([]byte(known)), true},
		{"reference program, wrong", "Password", secret.New([]byte(known)), false},
	} {
		if ok, err := h.check(t.Context(), secret.New([]byte(c.password)), c.phc); ok != c.right || err != nil {
			t.Errorf("%s: %v %v", c.name, ok, err)
		}
	}
	for _, bad := range []string{"x", "$argon2i$v=19$m=64,t=1,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc", known[:40], known + "A",
		strings.Replace(known, "v=19", "v=16", 1), strings.Replace(known, "m=256", "m=99999999", 1), strings.Replace(known, "t=2", "t=0", 1),
		strings.Replace(known, "p=1", "p=0", 1), strings.Replace(known, "c29tZXNhbHQ", "!", 1)} {
		if ok, err := h.check(t.Context(), secret.New([]byte("password")), secret.New([]byte(bad))); ok || !errors.Is(err, errPHC) {
			t.Errorf("%q: %v %v", bad, ok, err)
		}
	}
}

// An unknown user costs the work of a known one: the same function with the same cost. Counted and
// not measured, so that a busy machine changes nothing.
func TestUnknownUserCostsTheSame(t *testing.T) {
	h := newHasher(cheap)
	phc, err := h.hash(t.Context(), secret.New([]byte(password)))
	if err != nil {
		t.Fatal(err)
	}
	var done []argonCost
	argon := h.key
	h.key = func(password, salt []byte, time, memory uint32, threads uint8, keyLen uint32) []byte {
		done = append(done, argonCost{memory, time, threads})
		return argon(password, salt, time, memory, threads, keyLen)
	}
	for _, c := range []struct {
		name, password string
		phc            secret.Bytes
	}{{"wrong password", "wrong", phc}, {"unknown user", "wrong", secret.Bytes{}}, {"long password", strings.Repeat("x", maxPassword+1), phc}, {"no password", "", secret.Bytes{}}} {
		done = nil
		if ok, err := h.check(t.Context(), secret.New([]byte(c.password)), c.phc); ok || err != nil || !slices.Equal(done, []argonCost{cheap}) {
			t.Errorf("%s: %v %v, work %v", c.name, ok, err, done)
		}
	}
	// And so through the log-in, also for a name that nobody can have.
	l := newLab(t)
	l.s.hasher.key = h.key
	for _, user := range []string{"alice", "nobody", "no body", ""} {
		done = nil
		l.post(user, "wrong")
		if !slices.Equal(done, []argonCost{cheap}) {
			t.Errorf("log-in of %q: work %v", user, done)
		}
	}
}

// As many checks at once as CPUs, a bounded number waits, and a browser that goes does not wait on.
func TestHasherIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHasher(cheap)
		var leaves []func()
		for range cap(h.turns) {
			leave, err := h.enter(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			leaves = append(leaves, leave)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		errs := make(chan error, hashWaiting)
		for i := range hashWaiting {
			wg.Go(func() {
				c := t.Context()
				if i == 0 {
					c = ctx
				}
				_, err := h.enter(c)
				errs <- err
			})
		}
		synctest.Wait()
		if _, err := h.enter(t.Context()); !errors.Is(err, errBusy) {
			t.Errorf("one too many: %v", err)
		}
		cancel()
		if err := <-errs; !errors.Is(err, context.Canceled) {
			t.Errorf("gone: %v", err)
		}
		wg.Wait() // hashWaitTime passes
		for range hashWaiting - 1 {
			if err := <-errs; !errors.Is(err, errBusy) {
				t.Errorf("waited: %v", err)
			}
		}
		for _, leave := range leaves {
			leave()
		}
		if leave, err := h.enter(t.Context()); err != nil {
			t.Error(err)
		} else {
			leave()
		}
	})
}

func TestBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		for range cap(l.s.hasher.turns) {
			leave, err := l.s.hasher.enter(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer leave()
		}
		l.refusedFor(Busy, func() {
			if r := l.post("alice", password); r.StatusCode != http.StatusTooManyRequests || r.Header.Get("Retry-After") != "5" {
				t.Errorf("%d", r.StatusCode)
			}
		})
	})
}

func TestLogout(t *testing.T) {
	l := newLab(t)
	tok, cookie := l.sipToken("alice")
	loggedIn := func() bool {
		return l.request("GET", "/oauth/authorize?"+asked().Encode(), nil, withCookie(cookie)).StatusCode == http.StatusSeeOther
	}
	r := l.request("GET", "/oauth/logout?client_id=wic&post_logout_redirect_uri="+url.QueryEscape(redirect), nil, withCookie(cookie))
	if b := body(t, r); r.StatusCode != http.StatusOK || !strings.Contains(b, "Log out?") || !strings.Contains(b, "alice") || !loggedIn() ||
		!strings.Contains(r.Header.Get("Content-Security-Policy"), "form-action 'self' https://portal.ims.test;") {
		t.Errorf("GET: %d %s", r.StatusCode, b)
	}
	l.refusedFor(Forged, func() {
		r := l.request("POST", "/oauth/logout", url.Values{}, withCookie(cookie), with("Sec-Fetch-Site", "cross-site"))
		if r.StatusCode != http.StatusForbidden || !loggedIn() {
			t.Errorf("another site logs out: %d", r.StatusCode)
		}
	})
	r = l.request("POST", "/oauth/logout?client_id=wic&post_logout_redirect_uri="+url.QueryEscape(redirect), url.Values{}, withCookie(cookie))
	if r.StatusCode != http.StatusSeeOther || r.Header.Get("Location") != redirect || len(r.Cookies()) != 1 || r.Cookies()[0].MaxAge >= 0 {
		t.Errorf("POST: %d %v", r.StatusCode, r.Header)
	}
	if loggedIn() {
		t.Error("the session lives on")
	}
	l.refusedFor(SessionEnded, func() {
		if status, m := l.tokens(exchangeOf(tok)); status != http.StatusBadRequest || m["error"] != "invalid_request" {
			t.Errorf("TURN token after the log-out: %d %v", status, m)
		}
	})
	for _, q := range []string{"client_id=wic&post_logout_redirect_uri=https%3A%2F%2Fevil.test%2F", "post_logout_redirect_uri=" + url.QueryEscape(redirect),
		"client_id=other&post_logout_redirect_uri=" + url.QueryEscape(redirect)} {
		r := l.request("POST", "/oauth/logout?"+q, url.Values{})
		if r.StatusCode != http.StatusOK || r.Header.Get("Location") != "" {
			t.Errorf("%s: %d %s", q, r.StatusCode, r.Header.Get("Location"))
		}
	}
	if st := l.s.Stats(); st.LogOuts != 1 {
		t.Errorf("%+v", st)
	}
	if list := l.dump(aliveBucket)["alice"]; strings.Contains(list, `"p"`) {
		t.Errorf("still on the list: %s", list)
	}
}

func TestStoreAway(t *testing.T) {
	l := newLab(t)
	tok, cookie := l.sipToken("alice")
	code, _ := l.login("bob")
	page := func(name string, r *answer) {
		t.Helper()
		if r.StatusCode != http.StatusServiceUnavailable || r.Header.Get("Retry-After") == "" || len(r.Cookies()) != 0 || !strings.Contains(body(t, r), "Not possible just now") {
			t.Errorf("%s: %d", name, r.StatusCode)
		}
	}
	for _, what := range []string{"get " + userBucket, "create " + sessionBucket, "get " + aliveBucket} {
		l.store.set(what, true)
		page("log-in without "+what, l.post("alice", password))
		l.store.set(what, false)
	}
	l.store.set("create "+codeBucket, true)
	if r := l.post("alice", password); r.StatusCode != http.StatusServiceUnavailable || len(r.Cookies()) != 1 {
		t.Errorf("log-in without codes: %d; the session is good, the next try needs no password", r.StatusCode)
	}
	l.store.set("create "+codeBucket, false)
	l.store.set("get", true)
	page("authorize", l.request("GET", "/oauth/authorize?"+asked().Encode(), nil, withCookie(cookie)))
	page("logout", l.request("POST", "/oauth/logout", url.Values{}, withCookie(cookie)))
	if status, m := l.tokens(codeOf(code)); status != http.StatusServiceUnavailable || m["error"] != "temporarily_unavailable" {
		t.Errorf("code: %d %v", status, m)
	}
	// Calls go on: a TURN token needs no store.
	if status, m := l.tokens(exchangeOf(tok)); status != http.StatusOK || m["token_type"] != "pop" {
		t.Errorf("exchange: %d %v", status, m)
	}
	if st := l.s.Stats(); st.Unchecked != 1 || st.TURNTokens != 1 {
		t.Errorf("%+v", st)
	}
	l.store.set("get", false)
	l.store.set("delete", true)
	if status, m := l.tokens(codeOf(code)); status != http.StatusServiceUnavailable {
		t.Errorf("code without delete: %d %v", status, m)
	}
	l.store.set("delete", false)
	if status, m := l.tokens(codeOf(code)); status != http.StatusOK {
		t.Errorf("the code was lost: %d %v", status, m)
	}
}
