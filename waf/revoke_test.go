package waf

import (
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func revokeOf(tok string, change ...string) url.Values {
	return with2(url.Values{"token": {tok}, "client_id": {"wic"}}, change...)
}

func TestRevocationEndpoint(t *testing.T) {
	l, told := newsLab(t)
	post := func(form url.Values, change ...func(*http.Request)) (int, string) {
		r := l.request("POST", "/oauth/revoke", form, change...)
		if r.Header.Get("Cache-Control") != "no-store" || r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("headers %v", r.Header)
		}
		return r.StatusCode, body(t, r)
	}
	p := l.logIn("alice")
	spent := l.logIn("bob")
	after := l.redeem(refreshOf(spent.refresh))
	after.cookie = spent.cookie
	bySIP := l.logIn("alice")
	for _, c := range []struct {
		name   string
		form   url.Values
		cause  Cause
		status int
		code   string
		change []func(*http.Request)
	}{
		{"no token", revokeOf(""), BadParameter, 400, "invalid_request", nil},
		{"no client", revokeOf(p.refresh, "client_id", ""), UnknownClient, 400, "invalid_client", nil},
		{"another client", revokeOf(p.refresh, "client_id", "other"), ForeignCode, 400, "invalid_grant", nil},
		{"SIP token of another client", revokeOf(p.access, "client_id", "other"), ForeignCode, 400, "invalid_grant", nil},
		{"wrong secret", revokeOf(p.refresh), ClientSecret, 401, "invalid_client", []func(*http.Request){portal}},
		{"JSON", revokeOf(p.refresh), BadParameter, 415, "invalid_request", []func(*http.Request){with("Content-Type", "application/json")}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l.refusedFor(c.cause, func() {
				if status, b := post(c.form, c.change...); status != c.status || !strings.Contains(b, `"`+c.code+`"`) {
					t.Errorf("%d %s", status, b)
				}
			})
		})
	}
	if r := l.request("GET", "/oauth/revoke?token="+p.refresh, nil); r.StatusCode != 405 {
		t.Errorf("GET: %d", r.StatusCode)
	}
	// What means nothing is no error (§2.2).
	key, id, ticket, _ := parseRefresh(p.refresh)
	for _, tok := range []string{"x", "\x00", strings.Repeat("A", 4000), "a.b.c", refreshToken(strings.Repeat("A", 43), id, ticket),
		refreshToken(key, strings.Repeat("A", 22), ticket), refreshToken("guest-01", id, ticket), p.access[:len(p.access)-4] + "AAAA"} {
		if status, b := post(revokeOf(tok)); status != 200 {
			t.Errorf("%.20q: %d %s", tok, status, b)
		}
	}
	if len(told.told()) != 0 {
		t.Fatalf("told %v", told.told())
	}
	l.store.set("create "+endedBucket, true)
	if status, b := post(revokeOf(p.refresh)); status != 503 || !strings.Contains(b, "temporarily_unavailable") {
		t.Errorf("store away: %d %s", status, b)
	}
	l.store.set("create "+endedBucket, false)

	for _, c := range []struct {
		name, token string
		dead        pageState
	}{
		{"refresh token", p.refresh, p},
		{"SIP token", bySIP.access, bySIP},
		{"spent refresh token, as the answer was lost", spent.refresh, after},
	} {
		if status, b := post(revokeOf(c.token, "token_type_hint", "access_token")); status != 200 { // a wrong hint does no harm
			t.Errorf("%s: %d %s", c.name, status, b)
		}
		l.dead(c.name, c.dead)
		if status, _ := post(revokeOf(c.token)); status != 200 {
			t.Errorf("%s again: %d", c.name, status)
		}
	}
	if got, want := told.told(), []string{p.pseudonym + " logout", bySIP.pseudonym + " logout", spent.pseudonym + " logout"}; !slices.Equal(got, want) {
		t.Errorf("told %v, want %v", got, want)
	}
	if list := l.dump(aliveBucket)["alice"] + l.dump(aliveBucket)["bob"]; strings.Contains(list, `"p"`) {
		t.Errorf("still listed: %s", list)
	}
	l.noSecrets(p.refresh, p.access, bySIP.access)
}

// An expired SIP token, found somewhere, logs nobody out.
func TestRevokeWithExpiredToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, told := newsLab(t)
		p := l.logIn("alice")
		time.Sleep(61 * time.Minute)
		if r := l.request("POST", "/oauth/revoke", revokeOf(p.access)); r.StatusCode != 200 || len(told.told()) != 0 {
			t.Errorf("%d, told %v", r.StatusCode, told.told())
		}
		l.redeem(refreshOf(p.refresh))
	})
}

// After the operator's revocation everything that was issued before is dead, for as long as it
// could live, and the password makes all anew.
func TestRevokeUser(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, told := newsLab(t)
		one, two := l.logIn("alice"), l.logIn("alice")
		one = pageState{one.access, l.redeem(refreshOf(one.refresh)).refresh, one.pseudonym, one.cookie}
		code, _ := l.login("alice") // a third session, its code not redeemed
		r := l.request("GET", "/oauth/authorize?"+asked().Encode(), nil, withCookie(two.cookie))
		second := l.redirected(r).Get("code") // and one of a session with tokens
		bob := l.logIn("bob")
		n, err := l.s.RevokeUser(t.Context(), " Alice", ReasonRevoked)
		if n != 3 || err != nil {
			t.Fatalf("%d %v", n, err)
		}
		l.dead("one", one)
		l.dead("two", two)
		for _, c := range []string{code, second} {
			l.refusedFor(SessionEnded, func() {
				if status, m := l.tokens(codeOf(c)); status != 400 || m["error"] != "invalid_grant" {
					t.Errorf("code: %d %v", status, m)
				}
			})
		}
		if got := told.told(); len(got) != 3 || !slices.Contains(got, one.pseudonym+" revoked") || !slices.Contains(got, two.pseudonym+" revoked") {
			t.Errorf("told %v", got)
		}
		l.alive("bob", bob)
		if n, err := l.s.RevokeUser(t.Context(), "alice", ReasonRevoked); n != 0 || err != nil {
			t.Errorf("again: %d %v", n, err)
		}
		anew := l.logIn("alice")
		l.alive("the password serves", anew)
		if anew.pseudonym == one.pseudonym || anew.pseudonym == two.pseudonym {
			t.Error("an ended pseudonym comes back")
		}
		for range 13 {
			time.Sleep(time.Hour)
			if status, _ := l.tokens(refreshOf(one.refresh)); status != 400 {
				t.Fatal("a refresh token comes back to life")
			}
		}
		for _, name := range []string{"nobody", "no body", "", "guest-1", strings.Repeat("a", 65)} {
			if n, err := l.s.RevokeUser(t.Context(), name, ReasonRevoked); n != 0 || !errors.Is(err, ErrNoUser) {
				t.Errorf("%q: %d %v", name, n, err)
			}
		}
		if n := len(l.dump(aliveBucket)); n > 1 {
			t.Errorf("%d lists: names of nobody leave one", n)
		}
	})
}

func TestRevokeGuest(t *testing.T) {
	l, told := newsLab(t, guests(1))
	if n, err := l.s.RevokeUser(t.Context(), "guest-01", ReasonRevoked); n != 0 || err != nil {
		t.Errorf("free identity: %d %v", n, err)
	}
	p := l.join()
	if n, err := l.s.RevokeUser(t.Context(), "guest-01", ReasonRevoked); n != 1 || err != nil {
		t.Errorf("%d %v", n, err)
	}
	l.dead("guest", p)
	if got := told.told(); !slices.Equal(got, []string{p.pseudonym + " revoked"}) {
		t.Errorf("told %v", got)
	}
}

// What could not be told is told by the next try; what was told is not told twice.
func TestRevokeUserAgain(t *testing.T) {
	for _, what := range []string{"news", "create " + endedBucket, "get " + sessionBucket, "delete " + sessionBucket, "set " + aliveBucket, "set, answer lost " + aliveBucket, "set " + endedBucket} {
		t.Run(what, func(t *testing.T) {
			l, told := newsLab(t)
			one, two := l.logIn("alice"), l.logIn("alice")
			if what == "news" {
				told.fail = errFlaky
			} else {
				l.store.set(what, true)
			}
			if _, err := l.s.RevokeUser(t.Context(), "alice", ReasonRevoked); !errors.Is(err, errFlaky) {
				t.Fatalf("%v", err)
			}
			told.fail = nil
			l.store.set(what, false)
			if _, err := l.s.RevokeUser(t.Context(), "alice", ReasonRevoked); err != nil {
				t.Fatal(err)
			}
			l.dead("one", one)
			l.dead("two", two)
			got := told.told()
			slices.Sort(got)
			want := []string{one.pseudonym + " revoked", two.pseudonym + " revoked"}
			slices.Sort(want)
			if what == "set "+endedBucket { // it is not noted that it was told, so it is told again
				got = slices.Compact(got)
			}
			if !slices.Equal(got, want) {
				t.Errorf("told %v, want %v", got, want)
			}
		})
	}
}

// Where the record stays in the store, the mark alone keeps everything dead, for the session's life.
func TestMarkOutlivesTheSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, _ := newsLab(t)
		p := l.logIn("alice")
		l.store.set("delete "+sessionBucket, true)
		if _, err := l.s.RevokeUser(t.Context(), "alice", ReasonRevoked); err == nil {
			t.Fatal("no error")
		}
		for range 12 {
			l.dead("marked", p)
			time.Sleep(time.Hour)
		}
	})
}

// A revocation is remembered until the longest credential that was issued or may be has ended.
func TestRevocationIsLongEnough(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for edge, want := range map[time.Duration]time.Duration{0: 71 * time.Minute, 24 * time.Hour: 24*time.Hour + 11*time.Minute, time.Second: 12 * time.Minute} {
			l, told := newsLab(t, func(c *Config) {
				c.SIPTokenLife, c.TURNTokenLife, c.EdgeCredentialLife = 10*time.Minute, time.Minute, edge
			})
			l.logIn("alice")
			if _, err := l.s.RevokeUser(t.Context(), "alice", ReasonRevoked); err != nil || time.Until(told.until) != want {
				t.Errorf("edge %v: %v %v, want %v", edge, time.Until(told.until), err, want)
			}
		}
	})
}

// Each end of a session is told, with its reason, once.
func TestNewsOfEveryEnd(t *testing.T) {
	l, told := newsLab(t, func(c *Config) { c.MaxSessions = 1 })
	first := l.logIn("alice")
	second := l.logIn("alice")
	l.dead("the oldest", first)
	l.request("POST", "/oauth/logout", url.Values{}, withCookie(second.cookie))
	l.dead("logged out", second)
	code, _ := l.login("alice")
	third := l.redeem(codeOf(code))
	for range 3 {
		l.refusedFor(CodeReplayed, func() { l.tokens(codeOf(code)) })
	}
	l.dead("stolen code", third)
	if got, want := told.told(), []string{first.pseudonym + " replaced", second.pseudonym + " logout", third.pseudonym + " revoked"}; !slices.Equal(got, want) {
		t.Errorf("told %v, want %v", got, want)
	}
	// A browser gets no code for a session that has ended but is still in the store.
	told.fail = errFlaky
	fourth := l.logIn("alice")
	if _, err := l.s.RevokeUser(t.Context(), "alice", ReasonRevoked); err == nil {
		t.Error("no error")
	}
	l.dead("ended, and not told", fourth)
}

func TestSessions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, _ := newsLab(t, guests(2))
		start := time.Now().Truncate(time.Second)
		alice := l.logIn("alice")
		time.Sleep(time.Minute)
		bob := l.logIn("bob")
		time.Sleep(time.Minute)
		guest := l.join()
		gone := l.join()
		if found, err := l.s.RevokeSession(t.Context(), gone.pseudonym, ReasonRevoked); !found || err != nil {
			t.Errorf("%v %v", found, err)
		}
		list, err := l.s.Sessions(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		want := []Session{
			{"alice", alice.pseudonym, "wic", false, start, start.Add(12 * time.Hour)},
			{"bob", bob.pseudonym, "wic", false, start.Add(time.Minute), start.Add(12*time.Hour + time.Minute)},
			{l.name(guest), guest.pseudonym, "portal", true, start.Add(2 * time.Minute), start.Add(32 * time.Minute)},
		}
		if !slices.EqualFunc(list, want, func(a, b Session) bool {
			return a.User == b.User && a.Pseudonym == b.Pseudonym && a.Client == b.Client && a.Guest == b.Guest && a.Since.Equal(b.Since) && a.Until.Equal(b.Until)
		}) {
			t.Errorf("got  %+v\nwant %+v", list, want)
		}
		if found, err := l.s.RevokeSession(t.Context(), bob.pseudonym, ReasonKilled); !found || err != nil {
			t.Errorf("%v %v", found, err)
		}
		l.dead("bob", bob)
		for _, p := range []string{bob.pseudonym, strings.Repeat("A", 22), "x", ""} {
			if found, err := l.s.RevokeSession(t.Context(), p, ReasonKilled); found || err != nil {
				t.Errorf("%q: %v %v", p, found, err)
			}
		}
		if list, err = l.s.Sessions(t.Context()); err != nil || len(list) != 2 {
			t.Errorf("%v %v", list, err)
		}
		time.Sleep(13 * time.Hour)
		if list, err = l.s.Sessions(t.Context()); err != nil || len(list) != 0 {
			t.Errorf("%v %v", list, err)
		}
		for _, what := range []string{"scan " + aliveBucket, "scan " + guestBucket} {
			l.store.set(what, true)
			if _, err := l.s.Sessions(t.Context()); !errors.Is(err, errFlaky) {
				t.Errorf("%v", err)
			}
			l.store.set(what, false)
		}
	})
}
