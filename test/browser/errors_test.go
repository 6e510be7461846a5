package browser

import (
	"fmt"
	"regexp"
	"testing"
	"time"

	"wicgate/test/lab"
)

// told waits for an error on the page, and checks that it says what it should.
func told(p *Page, limit time.Duration, want string) {
	p.t.Helper()
	p.Wait(limit, `document.querySelector("#error").innerText !== ""`)
	var got string
	p.Eval(`document.querySelector("#error").innerText`, &got)
	p.t.Logf("%s is told: %s", p.Name, got)
	if !regexp.MustCompile(want).MatchString(got) {
		p.t.Errorf("%s is told %q, want words like %q", p.Name, got, want)
	}
}

func registration(p *Page, limit time.Duration, state string) {
	p.t.Helper()
	p.Wait(limit, fmt.Sprintf(`document.body.dataset.registration === %q`, state))
}

// reload loads a registered page again. The WAF's session lets the person in without a question.
func reload(p *Page) {
	p.t.Helper()
	p.Eval("(window.before = true, location.reload())", nil)
	p.Wait(20*time.Second, `!window.before && document.body.dataset.registration === "registered"`)
}

// TestBadDay: what goes wrong on a person's side, and the words for it.
func TestBadDay(t *testing.T) {
	s := newSystem(t, plan{keys: keys{"democore": {"users": []string{"alice", "bob", "carol"}}}})

	t.Run("the certificate is not trusted", func(t *testing.T) {
		p := NewChromium(t, s.wic, "").Page("stranger")
		if err := p.TryOpen(portal); err == nil || !regexp.MustCompile("ERR_CERT_AUTHORITY_INVALID").MatchString(err.Error()) {
			t.Errorf("open %s with an unknown CA: %v", portal, err)
		}
	})
	s.logIn()

	t.Run("the callee is busy", func(t *testing.T) {
		carol := NewChromium(t, s.wic, s.ca).Page("carol")
		logIn(carol, "carol", s.core.Password("carol"))
		s.call()
		dial(carol, "bob")
		told(carol, 10*time.Second, `(?i)bob is busy`)
		callState(s.bob, time.Second, "active")
		s.alice.Click("#hangup")
		s.quiet(10 * time.Second)
	})

	t.Run("the page is loaded again in a call, and calls again", func(t *testing.T) {
		s.call()
		reload(s.bob)
		ended(s.alice, 10*time.Second)
		s.quiet(15 * time.Second)
		for _, c := range [][2]*Page{{s.alice, s.bob}, {s.bob, s.alice}} {
			connect(c[0], c[1])
			firstAudio(c[0])
			c[0].Click("#hangup")
			ended(c[1], 5*time.Second)
			s.quiet(10 * time.Second)
		}
	})

	t.Run("the WebSocket is cut while registering", func(t *testing.T) {
		lab.Eventually(t, 5*time.Second, "two bindings", func() bool { return s.core.Count("epcscf", "Bindings") == 2 })
		toCore := "iifname lo tcp dport 5080"
		cut := `sport = :443 dst ` + lab.WIC
		s.edge.Drop(toCore) // the core says nothing
		s.edge.Reset(cut)
		s.bob.Wait(10*time.Second, `document.body.dataset.registration !== "registered"`)
		s.bob.Wait(10*time.Second, `/Registering/.test(document.querySelector("#registration").innerText)`)
		s.edge.Reset(cut)
		s.bob.Wait(10*time.Second, `/lost|reconnecting/i.test(document.querySelector("#registration").innerText)`)
		s.edge.Drop()
		for _, p := range []*Page{s.alice, s.bob} {
			registration(p, 30*time.Second, "registered")
		}
		lab.Eventually(t, 40*time.Second, "two bindings, two registrations", func() bool {
			return s.core.Count("epcscf", "Bindings") == 2 && s.core.Count("democore", "Registrations") == 2
		})
		s.call()
		firstAudio(s.alice)
		s.alice.Click("#hangup")
		s.quiet(10 * time.Second)
	})

	t.Run("the microphone is denied", func(t *testing.T) {
		s.alice.Deny("microphone")
		dial(s.alice, "bob")
		told(s.alice, 10*time.Second, `(?i)microphone.*allow it`)
		ended(s.alice, time.Second)
		s.quiet(10 * time.Second)
	})
}

// TestForeignTURN: the server at the URLs is another than the one that tokens are for, under a
// certificate of another CA.
func TestForeignTURN(t *testing.T) {
	s := newSystem(t, plan{turn: keys{"turn": {"name": "other.ims.test", "keys": ""}}})
	s.logIn()
	t.Run("it refuses the token", func(t *testing.T) {
		dial(s.alice, "bob")
		told(s.alice, 10*time.Second, `(?i)relay (did not accept|refused)`)
		ended(s.alice, time.Second)
	})
	t.Run("its certificate is not trusted", func(t *testing.T) {
		s.edge.Drop(only443...)
		defer s.edge.Drop()
		dial(s.alice, "bob")
		told(s.alice, 15*time.Second, `(?i)relay .* not to be reached`)
		ended(s.alice, time.Second)
	})
	s.quiet(10 * time.Second)
	if n := s.turn.Count("turn", "Allocations"); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// ahead sets a page's clock.
func ahead(p *Page, by time.Duration) {
	p.t.Helper()
	p.Before(fmt.Sprintf(`{ const real = Date, by = %d;
window.Date = class extends real { constructor(...a) { a.length ? super(...a) : super(real.now() + by); } static now() { return real.now() + by; } }; }`, by.Milliseconds()))
}

// TestWrongClock: a computer's clock that is wrong does not keep a person from calling; by minutes it
// is named, since it can make certificates and log-ins fail.
func TestWrongClock(t *testing.T) {
	s := newSystem(t, plan{})
	ahead(s.alice, 10*time.Second)
	ahead(s.bob, -10*time.Minute)
	s.logIn()
	s.bob.Wait(5*time.Second, `/clock is 10 minutes slow/.test(document.body.innerText)`)
	s.bob.Show("clock")
	s.call()
	firstAudio(s.alice)
	s.heard(2*time.Second, anyWay...)
	s.bob.Click("#hangup")
	ended(s.alice, 5*time.Second)
	s.quiet(10 * time.Second)
	var text string
	s.alice.Eval("document.body.innerText", &text)
	if regexp.MustCompile(`(?i)clock`).MatchString(text) {
		t.Errorf("10 s are nobody's trouble, but alice reads %s", text)
	}

	fast := NewChromium(t, s.wic, s.ca).Page("alice")
	ahead(fast, 10*time.Minute)
	logIn(fast, "alice", s.core.Password("alice"))
	fast.Wait(5*time.Second, `/clock is 10 minutes fast/.test(document.body.innerText)`)
	fast.Eval("wicgate.renew()", nil) // by what the token says of its life, not by the clock
	registration(fast, 5*time.Second, "registered")
}
