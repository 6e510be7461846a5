package waf

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"wicgate/internal/keyring"
	"wicgate/internal/secret"
	"wicgate/internal/store"
)

const portalSecret = "an-example-of-a-client-secret-+%&:"

// guests makes a WAF with a pool and a portal.
func guests(n int) func(*Config) {
	return func(c *Config) {
		c.Guests = n
		c.Clients = append(c.Clients, Client{ID: "portal", Secret: secret.New([]byte(portalSecret)), Page: "wic"})
	}
}

// portal shows the portal's secret, in the form of RFC 6749 §2.3.1.
func portal(r *http.Request) { r.SetBasicAuth("portal", url.QueryEscape(portalSecret)) }

var asGuest = url.Values{"grant_type": {grantClient}, "scope": {"sip"}}

func (l *lab) join() pageState {
	l.Helper()
	return l.redeem(asGuest, portal)
}

// name is whom a SIP token is for.
func (l *lab) name(p pageState) string {
	l.Helper()
	c, err := l.s.signer.verify(p.access)
	if err != nil {
		l.Fatal(err)
	}
	return c.Subject
}

func TestGuest(t *testing.T) {
	l, told := newsLab(t, guests(1))
	status, m := l.tokens(asGuest, portal)
	ims, _ := m["ims"].(map[string]any)
	if status != 200 || m["token_type"] != "Bearer" || m["expires_in"] != 600.0 || m["name"] != "Guest 1" || m["scope"] != "sip" ||
		ims["impi"] != "guest-01@ims.test" || fmt.Sprint(ims["impu"]) != "[sip:guest-01@ims.test]" || ims["scenario"] != 3.0 {
		t.Fatalf("%d %v", status, m)
	}
	p := pageState{access: m["access_token"].(string), refresh: m["refresh_token"].(string), pseudonym: m["pseudonym"].(string)}
	c, err := l.s.signer.verify(p.access)
	if err != nil || c.Check(time.Now(), []string{issuer}, audience) != nil || c.ClientID != "wic" || c.IMS.Scenario != 3 || c.Subject != "guest-01" || c.Pseudonym != p.pseudonym {
		t.Errorf("claims %+v %v", c, err)
	}
	if until := told.extended[p.pseudonym]; until.Unix() != c.Expiry {
		t.Errorf("extended until %v", until)
	}
	// The page goes on as client wic: a TURN token, a new SIP token, and good-bye.
	if status, m := l.tokens(exchangeOf(p.access, "client_id", "wic")); status != 200 || m["token_type"] != "pop" {
		t.Errorf("exchange: %d %v", status, m)
	}
	next := l.redeem(refreshOf(p.refresh))
	if next.pseudonym != p.pseudonym || l.name(next) != "guest-01" {
		t.Errorf("renewed as %s", l.name(next))
	}
	if r := l.request("POST", "/oauth/revoke", url.Values{"token": {next.refresh}, "client_id": {"wic"}}); r.StatusCode != 200 {
		t.Errorf("revoke: %d", r.StatusCode)
	}
	l.dead("after leaving", next)
	if got := told.told(); !slices.Equal(got, []string{p.pseudonym + " logout"}) {
		t.Errorf("told %v", got)
	}
	l.noSecrets(portalSecret, p.refresh, p.access)
	if st := l.s.Stats(); st.Leases != 1 || st.Refreshes != 1 {
		t.Errorf("%+v", st)
	}
}

// A stolen refresh token of a guest ends the lease, too.
func TestGuestRefreshReuse(t *testing.T) {
	l, told := newsLab(t, guests(1))
	p := l.join()
	second := l.redeem(refreshOf(p.refresh))
	third := l.redeem(refreshOf(second.refresh))
	l.refusedFor(RefreshReused, func() { l.tokens(refreshOf(p.refresh)) })
	l.dead("after the theft", third)
	if got := told.told(); !slices.Equal(got, []string{p.pseudonym + " revoked"}) {
		t.Errorf("told %v", got)
	}
}

func basic(id, pass string) func(*http.Request) {
	return func(r *http.Request) { r.SetBasicAuth(id, pass) }
}

func TestClientSecret(t *testing.T) {
	l := newLab(t, guests(4))
	for i, c := range []struct {
		name   string
		form   url.Values
		change func(*http.Request)
		cause  Cause
		status int
		code   string
	}{
		{"no secret", asGuest, with("X", "y"), ClientSecret, 401, "invalid_client"},
		{"wrong", asGuest, basic("portal", strings.Repeat("x", len(portalSecret))), ClientSecret, 401, "invalid_client"},
		{"cut", asGuest, basic("portal", portalSecret[:len(portalSecret)-1]), ClientSecret, 401, "invalid_client"},
		{"empty", asGuest, basic("portal", ""), ClientSecret, 401, "invalid_client"},
		{"unknown client", asGuest, basic("evil", url.QueryEscape(portalSecret)), ClientSecret, 401, "invalid_client"},
		{"unknown client, as what it is compared with", asGuest, basic("evil", url.QueryEscape(string(l.s.noSecret.Expose()))), ClientSecret, 401, "invalid_client"},
		{"public client", asGuest, basic("wic", ""), ClientSecret, 401, "invalid_client"},
		{"public client, with what it is compared with", asGuest, basic("wic", url.QueryEscape(string(l.s.noSecret.Expose()))), ClientSecret, 401, "invalid_client"},
		{"no client", asGuest, basic("", ""), ClientSecret, 401, "invalid_client"},
		{"not escaped", asGuest, basic("portal", "%zz"), ClientSecret, 401, "invalid_client"},
		{"Bearer", asGuest, with("Authorization", "Bearer "+portalSecret), ClientSecret, 401, "invalid_client"},
		{"in the body", url.Values{"grant_type": {grantClient}, "client_id": {"portal"}, "client_secret": {portalSecret}}, with("X", "y"), ClientSecret, 400, "invalid_client"},
		{"name without secret", url.Values{"grant_type": {grantClient}, "client_id": {"portal"}}, with("X", "y"), ClientSecret, 401, "invalid_client"},
		{"other scope", url.Values{"grant_type": {grantClient}, "scope": {"admin"}}, portal, BadScope, 400, "invalid_scope"},
		{"code", codeOf(strings.Repeat("A", 43), "client_id", ""), portal, BadGrantType, 400, "unauthorized_client"},
		{"exchange", exchangeOf("x"), portal, BadGrantType, 400, "unauthorized_client"},
		{"in the query", nil, nil, BadParameter, 400, "invalid_request"},
	} {
		t.Run(c.name, func(t *testing.T) {
			from := func(r *http.Request) { r.RemoteAddr = fmt.Sprintf("192.0.2.%d:1", i) } // each from elsewhere, for the limit
			l.refusedFor(c.cause, func() {
				var r *answer
				if c.form == nil {
					r = l.request("POST", "/oauth/token?"+asGuest.Encode(), url.Values{}, portal, from)
				} else {
					r = l.request("POST", "/oauth/token", c.form, c.change, from)
				}
				b := body(t, r)
				if r.StatusCode != c.status || !strings.Contains(b, `"error":"`+c.code+`"`) {
					t.Errorf("%d %s", r.StatusCode, b)
				}
				if got := r.Header.Get("WWW-Authenticate"); (got != "") != (c.status == 401) {
					t.Errorf("WWW-Authenticate %q", got)
				}
			})
		})
	}
	l.noSecrets(portalSecret)
}

// Guesses of one source are limited; the right one passes, and others pay nothing.
func TestClientSecretRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, guests(4))
		from := func(addr, pass string) int {
			return l.request("POST", "/oauth/token", asGuest, basic("portal", pass), func(r *http.Request) { r.RemoteAddr = addr }).StatusCode
		}
		for i := range 10 {
			if got := from("192.0.2.1:1", fmt.Sprint("guess ", i)); got != 401 {
				t.Fatalf("guess %d: %d", i, got)
			}
		}
		l.refusedFor(TooManySecrets, func() {
			r := l.request("POST", "/oauth/token", asGuest, basic("portal", "guess"), func(r *http.Request) { r.RemoteAddr = "192.0.2.1:2" })
			if r.StatusCode != 429 || r.Header.Get("Retry-After") != "10" {
				t.Errorf("%d %v", r.StatusCode, r.Header)
			}
		})
		if got := from("198.51.100.1:1", "guess"); got != 401 {
			t.Errorf("another source: %d", got)
		}
		if got := from("192.0.2.1:1", url.QueryEscape(portalSecret)); got != 200 {
			t.Errorf("the right secret from there: %d", got)
		}
		l.noSecrets(portalSecret)
	})
}

func TestPoolIsEmpty(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, _ := newsLab(t, guests(3))
		var pages []pageState
		names := map[string]bool{}
		for range 3 {
			pages = append(pages, l.join())
			names[l.name(pages[len(pages)-1])] = true
		}
		if len(names) != 3 || !names["guest-01"] || !names["guest-02"] || !names["guest-03"] {
			t.Errorf("names %v", names)
		}
		empty := func() {
			t.Helper()
			l.refusedFor(PoolEmpty, func() {
				r := l.request("POST", "/oauth/token", asGuest, portal)
				if b := body(t, r); r.StatusCode != 503 || r.Header.Get("Retry-After") != "60" || !strings.Contains(b, `"temporarily_unavailable"`) || !strings.Contains(b, "taken") {
					t.Errorf("%d %s", r.StatusCode, b)
				}
			})
		}
		empty()
		// One leaves; the identity is free when its last token has expired everywhere.
		time.Sleep(time.Minute)
		pages[1] = l.redeem(refreshOf(pages[1].refresh))
		l.request("POST", "/oauth/revoke", url.Values{"token": {pages[1].refresh}, "client_id": {"wic"}})
		time.Sleep(10*time.Minute + 29*time.Second)
		empty()
		time.Sleep(time.Second)
		if got := l.name(l.join()); got != l.name(pages[1]) {
			t.Errorf("%s, want that of the one who left", got)
		}
		l.dead("who left", pages[1])
	})
}

// A lease ends guest_life after the last renewal, the enforcers hear of it, and then it cannot be
// renewed, whether the identity is free, waits, or belongs to somebody else.
func TestLeaseEnds(t *testing.T) {
	defer goleak.VerifyNone(t)
	synctest.Test(t, func(t *testing.T) {
		l, told := newsLab(t, guests(1), func(c *Config) { c.GuestLife = 20 * time.Minute })
		ctx, cancel := context.WithCancel(t.Context())
		served := make(chan error, 1)
		go func() { served <- l.s.Serve(ctx) }()
		defer func() {
			cancel()
			if err := <-served; err != nil {
				t.Errorf("Serve = %v", err)
			}
		}()

		p := l.join()
		for range 5 {
			time.Sleep(19 * time.Minute)
			p = l.redeem(refreshOf(p.refresh))
		}
		if len(told.told()) != 0 {
			t.Fatalf("told %v", told.told())
		}
		time.Sleep(20 * time.Minute)
		l.refusedFor(SessionEnded, func() { l.tokens(refreshOf(p.refresh)) })
		time.Sleep(sweepEvery)
		synctest.Wait()
		if got := told.told(); !slices.Equal(got, []string{p.pseudonym + " expired"}) {
			t.Errorf("told %v", got)
		}
		l.refusedFor(SessionEnded, func() { l.tokens(refreshOf(p.refresh)) })
		time.Sleep(time.Minute)
		l.refusedFor(SessionEnded, func() { l.tokens(refreshOf(p.refresh)) })
		other := l.join()
		l.refusedFor(UnknownRefresh, func() { l.tokens(refreshOf(p.refresh)) })
		l.alive("who came after", other)
		if got := told.told(); len(got) != 1 {
			t.Errorf("told %v", got)
		}
	})
}

// Many at several nodes at once get each an identity of their own, and no more than there are.
func TestLeasesAtOnce(t *testing.T) {
	nodes := twoNodes(t, store.NewMemory(), 16)
	var mu sync.Mutex
	names := map[string]int{}
	full := 0
	var wg sync.WaitGroup
	for i := range 48 {
		wg.Go(func() {
			l := nodes[i%len(nodes)]
			status, m := l.tokens(asGuest, portal)
			mu.Lock()
			defer mu.Unlock()
			switch status {
			case 200:
				names[m["name"].(string)]++
			case 503:
				full++
			default:
				t.Errorf("%d %v", status, m)
			}
		})
	}
	wg.Wait()
	if away := nodes[0].count(StoreUnavailable) + nodes[1].count(StoreUnavailable); len(names) != 16 || full != 32 || away != 0 {
		t.Errorf("%d identities, %d refused, %d of them for the store: %v", len(names), full, away, names)
	}
	for name, n := range names {
		if n != 1 {
			t.Errorf("%s was given to %d", name, n)
		}
	}
}

func twoNodes(t *testing.T, st store.Store, pool int) (nodes []*lab) {
	cfg := testConfig(t, st, keyring.New(turnName))
	guests(pool)(&cfg)
	cfg.SigningKeyFile = filepath.Join(t.TempDir(), "shared.pem")
	for range 2 {
		log := &logBuffer{}
		cfg.Log = slog.New(slog.NewJSONHandler(log, nil))
		s, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		nodes = append(nodes, &lab{T: t, s: s, log: log})
	}
	return nodes
}

// Over hours of guests who come, renew, leave or fall silent at two nodes, one of which crashes and
// sweeps never, no identity has good tokens of two people at one instant.
func TestNoIdentityTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes := twoNodes(t, store.NewMemory(), 3)
		for _, l := range nodes {
			l.s.cfg.GuestLife = 15 * time.Minute
		}
		type holder struct {
			pseudonym string
			until     time.Time
		}
		held := map[string]holder{}
		// issued notes that a token naming the identity is good at an edge whose clock lags.
		issued := func(l *lab, p pageState) {
			c, err := l.s.signer.verify(p.access)
			if err != nil {
				t.Fatal(err)
			}
			if h, ok := held[c.Subject]; ok && h.pseudonym != c.Pseudonym && time.Now().Before(h.until) {
				t.Fatalf("%s is given away %v before its last token has ended", c.Subject, time.Until(h.until))
			}
			held[c.Subject] = holder{c.Pseudonym, time.Unix(c.Expiry, 0).Add(29 * time.Second)}
		}
		rnd := rand.New(rand.NewPCG(1, 2))
		var pages []pageState
		given := 0
		for range 4000 {
			time.Sleep(time.Duration(rnd.IntN(60_000)) * time.Millisecond)
			l := nodes[rnd.IntN(2)]
			if rnd.IntN(10) == 0 {
				nodes[0].s.sweep(t.Context())
			}
			switch {
			case len(pages) == 0 || rnd.IntN(3) == 0:
				if status, m := l.tokens(asGuest, portal); status == 200 {
					p := pageState{access: m["access_token"].(string), refresh: m["refresh_token"].(string)}
					issued(l, p)
					pages = append(pages, p)
					given++
				}
			default:
				i := rnd.IntN(len(pages))
				switch rnd.IntN(6) {
				case 0: // leaves
					l.request("POST", "/oauth/revoke", url.Values{"token": {pages[i].refresh}, "client_id": {"wic"}})
					pages = slices.Delete(pages, i, i+1)
				case 1: // falls silent
					pages = slices.Delete(pages, i, i+1)
				default:
					status, m := l.tokens(refreshOf(pages[i].refresh))
					if status != 200 {
						pages = slices.Delete(pages, i, i+1)
						continue
					}
					pages[i] = pageState{access: m["access_token"].(string), refresh: m["refresh_token"].(string)}
					issued(l, pages[i])
				}
			}
		}
		if given < 100 {
			t.Errorf("only %d leases in all that time", given)
		}
	})
}

func TestGuestStoreAway(t *testing.T) {
	l, _ := newsLab(t, guests(2))
	for _, what := range []string{"scan " + guestBucket, "create " + guestBucket} {
		l.store.set(what, true)
		if status, m := l.tokens(asGuest, portal); status != 503 || m["error"] != "temporarily_unavailable" || strings.Contains(fmt.Sprint(m), "taken") {
			t.Errorf("%s: %d %v", what, status, m)
		}
		l.store.set(what, false)
	}
	l.join()
}

func TestGuestNumber(t *testing.T) {
	for name, want := range map[string]int{
		"guest-01": 1, "guest-99": 99, "guest-100": 100, "guest-1000": 1000,
		"guest-1": 0, "guest-00": 0, "guest-001": 0, "guest-1001": 0, "guest--1": 0, "guest-+1": 0, "guest-": 0, "guest": 0, "Guest-01": 0, "guest-0x": 0, "": 0,
	} {
		if n, ok := guestNumber(name); ok != (want > 0) || ok && n != want {
			t.Errorf("%q: %d %v", name, n, ok)
		}
	}
}

// Without a pool nothing is said or served of guests.
func TestNoGuests(t *testing.T) {
	l := newLab(t)
	if status, m := l.tokens(asGuest); status != 400 || m["error"] != "unsupported_grant_type" {
		t.Errorf("%d %v", status, m)
	}
	for _, on := range []bool{false, true} {
		if on {
			l = newLab(t, guests(1))
		}
		b := body(t, l.request("GET", "/.well-known/oauth-authorization-server", nil))
		for _, word := range []string{`"client_credentials"`, `"client_secret_basic"`} {
			if strings.Contains(b, word) != on {
				t.Errorf("guests %v: metadata %s", on, b)
			}
		}
		for _, word := range []string{`"refresh_token"`, `"revocation_endpoint":"` + issuer + `/oauth/revoke"`} {
			if !strings.Contains(b, word) {
				t.Errorf("metadata lacks %s: %s", word, b)
			}
		}
	}
}

// A guest of a pool that was made smaller, or taken away, is renewed no more.
func TestPoolShrinks(t *testing.T) {
	l, _ := newsLab(t, guests(3))
	var in []pageState
	for range 3 {
		in = append(in, l.join())
	}
	for _, left := range []int{2, 0} {
		small := newLab(t, guests(left), func(c *Config) { c.Store, c.Rings, c.SigningKeyFile = l.store, l.s.cfg.Rings, l.s.cfg.SigningKeyFile })
		for i, p := range in {
			n, _ := guestNumber(l.name(p))
			status, m := small.tokens(refreshOf(p.refresh))
			if n <= left {
				if status != 200 {
					t.Errorf("%d of %d: %d %v", n, left, status, m)
					continue
				}
				in[i].refresh = m["refresh_token"].(string)
			} else if status != 400 || m["error"] != "invalid_grant" {
				t.Errorf("%d of %d: %d %v", n, left, status, m["error"])
			}
		}
	}
}

func TestGuestConfig(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{"good", guests(16), ""},
		{"too many", guests(1001), "waf.guests of 1001"},
		{"below none", guests(-1), "waf.guests of -1"},
		{"no client", func(c *Config) { c.Guests = 1 }, "set wwsf.client_secret"},
		{"life", func(c *Config) { guests(1)(c); c.GuestLife = 25 * time.Hour }, "waf.guest_life"},
		{"short secret", func(c *Config) { guests(1)(c); c.Clients[2].Secret = secret.New([]byte("hunter2hunter2")) }, "a secret of 14 bytes: want 32"},
		{"secret and redirect", func(c *Config) { guests(1)(c); c.Clients[2].RedirectURIs = []string{redirect} }, "has no redirect URI"},
		{"no page", func(c *Config) { guests(1)(c); c.Clients[2].Page = "" }, "no public client"},
		{"its own page", func(c *Config) { guests(1)(c); c.Clients[2].Page = "portal" }, "no public client"},
		{"user with a guest's name", func(c *Config) { c.Users[0].Name = "guest-01" }, "the pool's"},
		{"user with a guest's IMPI", func(c *Config) { c.Users[0].IMPI = "guest-01@ims.test" }, "the pool's"},
		{"user with a guest's IMPU", func(c *Config) { c.Users[0].IMPU[1] = "sip:Guest-02@ims.test" }, "the pool's"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := testConfig(t, store.NewMemory(), keyring.New(turnName))
			c.change(&cfg)
			_, err := New(cfg)
			if (err == nil) != (c.want == "") || err != nil && (!strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "hunter2")) {
				t.Errorf("New = %v, want %q", err, c.want)
			}
		})
	}
}

// The life of a lease on the engine that is used in earnest.
func TestGuestOnJetStream(t *testing.T) {
	nats, err := store.Embed(t.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer nats.Close()
	l, told := newsLab(t, guests(2), func(c *Config) { c.Store = nats })
	a, b := l.join(), l.join()
	if l.name(a) == l.name(b) {
		t.Errorf("two guests are %s", l.name(a))
	}
	l.refusedFor(PoolEmpty, func() { l.tokens(asGuest, portal) })
	a2 := l.redeem(refreshOf(a.refresh))
	a3 := l.redeem(refreshOf(a2.refresh))
	l.alive("the other", b)
	l.refusedFor(RefreshReused, func() { l.tokens(refreshOf(a.refresh)) })
	l.dead("after the theft", a3)
	if n, err := l.s.RevokeUser(t.Context(), l.name(b), ReasonRevoked); n != 1 || err != nil {
		t.Errorf("%d %v", n, err)
	}
	if got, want := told.told(), []string{a.pseudonym + " revoked", b.pseudonym + " revoked"}; !slices.Equal(got, want) {
		t.Errorf("told %v, want %v", got, want)
	}
	u := l.logIn("alice")
	u = l.redeem(refreshOf(u.refresh))
	if n, err := l.s.RevokeUser(t.Context(), "alice", ReasonKilled); n != 1 || err != nil {
		t.Errorf("%d %v", n, err)
	}
	l.dead("alice", u)
}
