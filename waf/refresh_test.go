package waf

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"wicgate/internal/store"
)

// news records what the enforcers are told.
type news struct {
	mu       sync.Mutex
	extended map[string]time.Time
	revoked  []string // "pseudonym reason"
	until    time.Time
	fail     error
}

func (n *news) Extend(pseudonym string, until time.Time) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.extended == nil {
		n.extended = map[string]time.Time{}
	}
	n.extended[pseudonym] = until
	return n.fail
}

func (n *news) Revoke(_ context.Context, pseudonym, reason string, until time.Time) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.fail == nil {
		n.revoked, n.until = append(n.revoked, pseudonym+" "+reason), until
	}
	return n.fail
}

func (n *news) told() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.revoked)
}

func newsLab(t *testing.T, change ...func(*Config)) (*lab, *news) {
	n := &news{}
	return newLab(t, append([]func(*Config){func(c *Config) { c.News = n }}, change...)...), n
}

func refreshOf(tok string, change ...string) url.Values {
	return with2(url.Values{"grant_type": {grantRefresh}, "refresh_token": {tok}, "client_id": {"wic"}}, change...)
}

// page is what a page has after a log-in.
type pageState struct {
	access, refresh, pseudonym string
	cookie                     *http.Cookie
}

// logIn logs in and redeems.
func (l *lab) logIn(name string) pageState {
	l.Helper()
	code, cookie := l.login(name)
	p := l.redeem(codeOf(code))
	p.cookie = cookie
	return p
}

// redeem gets tokens for a form, or fails.
func (l *lab) redeem(form url.Values, change ...func(*http.Request)) pageState {
	l.Helper()
	status, m := l.tokens(form, change...)
	if status != http.StatusOK {
		l.Fatalf("token: %d %v", status, m)
	}
	return pageState{access: m["access_token"].(string), refresh: m["refresh_token"].(string), pseudonym: m["pseudonym"].(string)}
}

// dead checks that nothing of a page's is good any more.
func (l *lab) dead(name string, p pageState) {
	l.Helper()
	if status, m := l.tokens(refreshOf(p.refresh)); status != 400 || m["error"] != "invalid_grant" {
		l.Errorf("%s: refresh token: %d %v", name, status, m)
	}
	if status, m := l.tokens(exchangeOf(p.access)); status != 400 || m["error"] != "invalid_request" {
		l.Errorf("%s: SIP token: %d %v", name, status, m)
	}
	if p.cookie != nil {
		if r := l.request("GET", "/oauth/authorize?"+asked().Encode(), nil, withCookie(p.cookie)); r.StatusCode != 200 {
			l.Errorf("%s: cookie: %d", name, r.StatusCode)
		}
	}
}

func (l *lab) alive(name string, p pageState) {
	l.Helper()
	if status, m := l.tokens(exchangeOf(p.access)); status != 200 {
		l.Errorf("%s: SIP token: %d %v", name, status, m)
	}
	if status, m := l.tokens(refreshOf(p.refresh)); status != 200 {
		l.Errorf("%s: refresh token: %d %v", name, status, m)
	}
}

func TestRefresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, told := newsLab(t)
		first := l.logIn("alice")
		if got := told.extended[first.pseudonym]; !got.Equal(time.Now().Add(time.Hour).Truncate(time.Second)) {
			t.Errorf("extended until %v", got)
		}
		seen := map[string]bool{first.refresh: true, first.access: true}
		p := first
		for range 10 {
			time.Sleep(50 * time.Minute)
			status, m := l.tokens(refreshOf(p.refresh))
			if status != 200 || m["token_type"] != "Bearer" || m["expires_in"] != 3600.0 || m["scope"] != "sip" || m["name"] != "Alice" || m["pseudonym"] != first.pseudonym {
				t.Fatalf("%d %v", status, m)
			}
			ims := m["ims"].(map[string]any)
			if ims["impi"] != "alice@ims.test" || ims["scenario"] != 2.0 || ims["domain"] != "ims.test" || len(ims["impu"].([]any)) != 2 {
				t.Errorf("ims %v", ims)
			}
			p.access, p.refresh = m["access_token"].(string), m["refresh_token"].(string)
			if seen[p.refresh] || seen[p.access] {
				t.Error("a token comes twice")
			}
			seen[p.refresh], seen[p.access] = true, true
			if got := told.extended[first.pseudonym]; !got.Equal(time.Now().Add(time.Hour).Truncate(time.Second)) {
				t.Errorf("extended until %v", got)
			}
			if status, m := l.tokens(exchangeOf(p.access)); status != 200 {
				t.Errorf("TURN token: %d %v", status, m)
			}
		}
		if n := len(l.dump(sessionBucket)); n != 1 {
			t.Errorf("%d records for one session", n)
		}
		if st := l.s.Stats(); st.Refreshes != 10 || st.SIPTokens != 11 {
			t.Errorf("%+v", st)
		}
		for k, v := range l.dump(sessionBucket) {
			if secret := p.refresh[strings.LastIndex(p.refresh, ".")+1:]; strings.Contains(k+v, secret) {
				t.Error("the store holds a refresh token")
			}
		}
		l.noSecrets(p.refresh, p.access, p.refresh[strings.LastIndex(p.refresh, ".")+1:])
		if len(told.told()) != 0 {
			t.Errorf("revoked %v", told.told())
		}
	})
}

// No token outlives its session.
func TestRefreshEndsWithTheSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, func(c *Config) { c.SessionLife = 2 * time.Hour })
		p := l.logIn("alice")
		time.Sleep(90 * time.Minute)
		status, m := l.tokens(refreshOf(p.refresh))
		if status != 200 || m["expires_in"] != 1800.0 {
			t.Fatalf("%d %v", status, m)
		}
		time.Sleep(30 * time.Minute)
		l.refusedFor(SessionEnded, func() {
			if status, m := l.tokens(refreshOf(m["refresh_token"].(string))); status != 400 || m["error"] != "invalid_grant" {
				t.Errorf("%d %v", status, m)
			}
		})
	})
}

func TestChain(t *testing.T) {
	at := func(s int) time.Time { return time.Unix(1_800_000_000+int64(s), 0) }
	type step struct {
		tok, next string
		at        int // s
		good      bool
	}
	for _, c := range []struct {
		name  string
		steps []step
	}{
		{"one after the other", []step{{"a", "b", 0, true}, {"b", "c", 1, true}, {"c", "d", 1000, true}}},
		{"spent one, when the next has been used", []step{{"a", "b", 0, true}, {"b", "c", 1, true}, {"a", "x", 2, false}}},
		{"lost answer, at once", []step{{"a", "b", 0, true}, {"a", "c", 0, true}, {"c", "d", 1, true}}},
		{"lost answer, in the last second", []step{{"a", "b", 0, true}, {"a", "c", 59, true}}},
		{"too late", []step{{"a", "b", 0, true}, {"a", "c", 60, false}}},
		{"a retry moves nothing", []step{{"a", "b", 0, true}, {"a", "c", 50, true}, {"a", "d", 70, false}}},
		{"the first answer after all", []step{{"a", "b", 0, true}, {"a", "c", 1, true}, {"b", "d", 2, true}}},
		{"thief and page, page first", []step{{"a", "b", 0, true}, {"a", "thief", 1, true}, {"b", "c", 2, true}, {"thief", "x", 3, false}}},
		{"thief and page, thief first", []step{{"a", "b", 0, true}, {"a", "thief", 1, true}, {"thief", "x", 2, true}, {"b", "c", 3, false}}},
		{"never issued", []step{{"z", "b", 0, false}}},
		{"many retries", []step{{"a", "b", 0, true}, {"a", "c", 1, true}, {"a", "d", 2, true}, {"a", "e", 3, true}, {"a", "f", 4, true}, {"a", "g", 5, true}, {"g", "h", 6, true}}},
		{"an answer forgotten over many retries", []step{{"a", "b", 0, true}, {"a", "c", 1, true}, {"a", "d", 2, true}, {"a", "e", 3, true}, {"a", "f", 4, true}, {"b", "x", 5, false}}},
		{"a clock that goes back", []step{{"a", "b", 100, true}, {"a", "c", 0, true}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			ch := chain{Next: []string{"a"}}
			for i, s := range c.steps {
				err := ch.take(s.tok, s.next, at(s.at))
				if (err == nil) != s.good || err != nil && !errors.Is(err, errReused) {
					t.Fatalf("step %d: %v", i, err)
				}
				if len(ch.Next) > maxAnswers {
					t.Fatalf("%d answers", len(ch.Next))
				}
			}
		})
	}
}

// A refresh token that comes again ends the session: tokens, cookie, all pages; and nothing else.
func TestRefreshReuse(t *testing.T) {
	l, told := newsLab(t)
	stolen := l.logIn("alice")
	other := l.logIn("alice")
	second := l.redeem(refreshOf(stolen.refresh))
	third := l.redeem(refreshOf(second.refresh))
	third.cookie = stolen.cookie
	l.refusedFor(RefreshReused, func() {
		if status, m := l.tokens(refreshOf(stolen.refresh)); status != 400 || m["error"] != "invalid_grant" || m["refresh_token"] != nil {
			t.Errorf("%d %v", status, m)
		}
	})
	if !strings.Contains(l.log.String(), `"level":"WARN","msg":"refused","cause":"refresh_reused"`) {
		t.Error("the theft is not in the log")
	}
	l.dead("after the theft", third)
	if got, want := told.told(), []string{stolen.pseudonym + " revoked"}; !slices.Equal(got, want) {
		t.Errorf("told %v, want %v", got, want)
	}
	if until := time.Now().Add(2 * time.Hour); told.until.Before(until) || told.until.After(until.Add(5*time.Minute)) {
		t.Errorf("until %v", told.until)
	}
	// Again and again tells nobody again.
	l.tokens(refreshOf(stolen.refresh))
	l.tokens(refreshOf(second.refresh))
	if n := len(told.told()); n != 1 {
		t.Errorf("told %d times", n)
	}
	l.alive("another session of the user", other)
	if list := l.dump(aliveBucket)["alice"]; strings.Count(list, `"p"`) != 1 {
		t.Errorf("list %s", list)
	}
	l.noSecrets(stolen.refresh, second.refresh, third.refresh)
}

// The enforcers could not be told of a theft: whoever comes with a token of that session tells them.
func TestRefreshReuseToldLater(t *testing.T) {
	for name, fail := range map[string]func(*news, *flaky, bool){
		"news":  func(n *news, _ *flaky, yes bool) { n.fail = map[bool]error{true: errFlaky}[yes] },
		"store": func(_ *news, f *flaky, yes bool) { f.set("create "+endedBucket, yes) },
	} {
		l, told := newsLab(t)
		stolen := l.logIn("alice")
		second := l.redeem(refreshOf(stolen.refresh))
		third := l.redeem(refreshOf(second.refresh))
		fail(told, l.store, true)
		l.tokens(refreshOf(stolen.refresh))
		fail(told, l.store, false)
		if n := len(told.told()); n != 0 {
			t.Errorf("%s: told %d times", name, n)
		}
		if status, m := l.tokens(refreshOf(third.refresh)); status != 400 || m["error"] != "invalid_grant" {
			t.Errorf("%s: %d %v", name, status, m)
		}
		if got, want := told.told(), []string{stolen.pseudonym + " revoked"}; !slices.Equal(got, want) {
			t.Errorf("%s: told %v, want %v", name, got, want)
		}
		l.dead(name, third)
	}
}

// The answer to a refresh is lost: the page tries again with what it has, and lives on.
func TestRefreshLostAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, told := newsLab(t)
		p := l.logIn("alice")
		lost := l.redeem(refreshOf(p.refresh))
		time.Sleep(overlap - time.Second)
		again := l.redeem(refreshOf(p.refresh))
		next := l.redeem(refreshOf(again.refresh))
		if len(told.told()) != 0 {
			t.Fatalf("told %v", told.told())
		}
		// Whoever found the lost answer is one too many.
		l.refusedFor(RefreshReused, func() { l.tokens(refreshOf(lost.refresh)) })
		l.dead("after the thief", next)

		p = l.logIn("alice")
		l.redeem(refreshOf(p.refresh))
		time.Sleep(overlap)
		l.refusedFor(RefreshReused, func() { l.tokens(refreshOf(p.refresh)) })
	})
}

// The store wrote, and its answer was lost: the page gets 503 and may try again.
func TestRefreshWithoutStore(t *testing.T) {
	l := newLab(t)
	p := l.logIn("alice")
	for _, what := range []string{"get " + sessionBucket, "get " + endedBucket, "get " + userBucket, "set " + sessionBucket, "set, answer lost " + sessionBucket} {
		l.store.set(what, true)
		r := l.request("POST", "/oauth/token", refreshOf(p.refresh))
		if r.StatusCode != 503 || r.Header.Get("Retry-After") == "" || !strings.Contains(body(t, r), "temporarily_unavailable") {
			t.Errorf("%s: %d", what, r.StatusCode)
		}
		l.store.set(what, false)
	}
	l.alive("after the store is back", p)
}

// late is a store of several nodes: one read comes from a node that lags behind.
type late struct {
	store.Store
	mu  sync.Mutex
	old *store.Entry
}

func (s *late) Get(ctx context.Context, bucket, key string) (store.Entry, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if bucket == sessionBucket && s.old != nil {
		e := *s.old
		s.old = nil
		return e, nil
	}
	return s.Store.Get(ctx, bucket, key)
}

// A read that is old makes no thief of an honest page: what follows from it has to be written first.
func TestRefreshAfterAnOldRead(t *testing.T) {
	lagging := &late{Store: store.NewMemory()}
	l, told := newsLab(t, func(c *Config) { c.Store = lagging })
	p := l.logIn("alice")
	key, _, _, _ := parseRefresh(p.refresh)
	old, err := lagging.Store.Get(t.Context(), sessionBucket, key)
	if err != nil {
		t.Fatal(err)
	}
	p = l.redeem(refreshOf(p.refresh))
	p = l.redeem(refreshOf(p.refresh))
	sess, err := parseSession(old)
	if err != nil {
		t.Fatal(err)
	}
	now := 0
	lagging.old = &old
	// The first read of a refresh looks for the chain; the second, in the change, is the one.
	_, err = l.s.changeSession(t.Context(), key, func(got *session) error {
		now++
		_, id, ticket, _ := parseRefresh(p.refresh)
		return got.chain(id).take(hashTicket(ticket), "next", time.Now())
	})
	if err != nil || now != 2 || sess.Pseudonym != p.pseudonym || len(told.told()) != 0 {
		t.Errorf("%v after %d reads, told %v", err, now, told.told())
	}
}

func TestRefreshRefuses(t *testing.T) {
	l, told := newsLab(t, guests(2))
	p := l.logIn("alice")
	key, id, ticket, ok := parseRefresh(p.refresh)
	if !ok {
		t.Fatalf("%q", p.refresh)
	}
	other := strings.Repeat("A", 43)
	for _, c := range []struct {
		name   string
		form   url.Values
		cause  Cause
		status int
		code   string
		change []func(*http.Request)
	}{
		{"no token", refreshOf(""), BadParameter, 400, "invalid_request", nil},
		{"no client", refreshOf(p.refresh, "client_id", ""), UnknownClient, 400, "invalid_client", nil},
		{"unknown client", refreshOf(p.refresh, "client_id", "evil"), UnknownClient, 400, "invalid_client", nil},
		{"another client", refreshOf(p.refresh, "client_id", "other"), ForeignCode, 400, "invalid_grant", nil},
		{"the confidential client, without its secret", refreshOf(p.refresh, "client_id", "portal"), UnknownClient, 400, "invalid_client", nil},
		{"the confidential client", refreshOf(p.refresh, "client_id", ""), BadGrantType, 400, "unauthorized_client", []func(*http.Request){portal}},
		{"secret of one, name of another", refreshOf(p.refresh), BadParameter, 400, "invalid_request", []func(*http.Request){portal}},
		{"garbage", refreshOf("x\x00"), UnknownRefresh, 400, "invalid_grant", nil},
		{"SIP token", refreshOf(p.access), UnknownRefresh, 400, "invalid_grant", nil},
		{"cookie", refreshOf(p.cookie.Value), UnknownRefresh, 400, "invalid_grant", nil},
		{"long", refreshOf(strings.Repeat("A", 257)), UnknownRefresh, 400, "invalid_grant", nil},
		{"session that never was", refreshOf(refreshToken(other, id, ticket)), SessionEnded, 400, "invalid_grant", nil},
		{"lease that never was", refreshOf(refreshToken("guest-01", id, ticket)), SessionEnded, 400, "invalid_grant", nil},
		{"chain that never was", refreshOf(refreshToken(key, other[:22], ticket)), UnknownRefresh, 400, "invalid_grant", nil},
		{"other scope", refreshOf(p.refresh, "scope", "admin"), BadScope, 400, "invalid_scope", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			l.refusedFor(c.cause, func() {
				if status, m := l.tokens(c.form, c.change...); status != c.status || m["error"] != c.code || m["access_token"] != nil {
					t.Errorf("%d %v", status, m)
				}
			})
		})
	}
	if len(told.told()) != 0 {
		t.Errorf("told %v", told.told())
	}
	l.alive("after all that", p)
}

func TestRefreshRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		p := l.logIn("alice")
		for range 60 {
			p = l.redeem(refreshOf(p.refresh))
		}
		l.refusedFor(TooManyTokens, func() {
			if r := l.request("POST", "/oauth/token", refreshOf(p.refresh)); r.StatusCode != 429 || r.Header.Get("Retry-After") != "1" {
				t.Errorf("%d %v", r.StatusCode, r.Header)
			}
		})
		time.Sleep(time.Second)
		l.redeem(refreshOf(p.refresh)) // the token was not spent on the refusal
	})
}

// Pages of one session refresh each for themselves; a bounded number of them, and the one that was
// silent longest gives way without harm to the others.
func TestChainsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, told := newsLab(t)
		pages := []pageState{l.logIn("alice")}
		cookie := pages[0].cookie
		for range maxChains {
			time.Sleep(time.Second)
			r := l.request("GET", "/oauth/authorize?"+asked().Encode(), nil, withCookie(cookie))
			pages = append(pages, l.redeem(codeOf(l.redirected(r).Get("code"))))
		}
		l.refusedFor(UnknownRefresh, func() {
			if status, m := l.tokens(refreshOf(pages[0].refresh)); status != 400 || m["error"] != "invalid_grant" {
				t.Errorf("%d %v", status, m)
			}
		})
		for i, p := range pages[1:] {
			l.alive(fmt.Sprint("page ", i+1), p)
		}
		if len(told.told()) != 0 {
			t.Errorf("told %v", told.told())
		}
		for _, v := range l.dump(sessionBucket) {
			if len(v) > 4096 {
				t.Errorf("a record of %d bytes", len(v))
			}
		}
	})
}

// One token at many nodes at the same time: a page that repeats itself is no thief, all answers
// differ, and of them one chain goes on.
func TestRefreshAtOnce(t *testing.T) {
	l, told := newsLab(t)
	p := l.logIn("alice")
	const n = 8
	got := make([]string, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			status, m := l.tokens(refreshOf(p.refresh))
			if status == 200 {
				got[i] = m["refresh_token"].(string)
			}
		})
	}
	wg.Wait()
	slices.Sort(got)
	if got[0] == "" || len(slices.Compact(slices.Clone(got))) != n || len(told.told()) != 0 {
		t.Fatalf("answers %v, told %v", got, told.told())
	}
	good := 0
	for _, tok := range got {
		if status, _ := l.tokens(refreshOf(tok)); status == 200 {
			good++
		}
		if len(told.told()) > 0 {
			break
		}
	}
	if good > 1 {
		t.Errorf("%d of the answers went on", good)
	}
}

func FuzzRefreshToken(f *testing.F) {
	f.Add(refreshToken(strings.Repeat("A", 43), strings.Repeat("B", 22), strings.Repeat("C", 42)+"A"))
	f.Add(refreshToken("guest-07", strings.Repeat("B", 22), strings.Repeat("C", 42)+"A"))
	f.Add("guest-007.x.y")
	f.Add("..")
	f.Add("guest-1001." + strings.Repeat("B", 22) + "." + strings.Repeat("C", 43))
	f.Fuzz(func(t *testing.T, tok string) {
		key, id, ticket, ok := parseRefresh(tok)
		if !ok {
			return
		}
		if refreshToken(key, id, ticket) != tok || len(key) > 43 || bucketOf(key) != sessionBucket && bucketOf(key) != guestBucket {
			t.Fatalf("%q: %q %q %q", tok, key, id, ticket)
		}
		if n, guest := guestNumber(key); guest != (bucketOf(key) == guestBucket) || guest && GuestName(n) != key {
			t.Fatalf("%q: key %q", tok, key)
		}
	})
}
