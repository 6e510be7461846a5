package browser

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"wicgate/test/lab"
)

// noRestart keeps a page from restarting ICE: its relay lives by the session policy of TURN alone.
const noRestart = `{ const real = RTCPeerConnection.prototype.createOffer;
RTCPeerConnection.prototype.createOffer = function (o, ...a) {
  return o?.iceRestart ? Promise.reject(new DOMException("not in this test", "OperationError")) : real.call(this, o, ...a);
}; }`

type credentials struct {
	SIP  float64 `json:"sip_expires"` // ms since 1970
	TURN float64 `json:"turn_expires"`
}

func credentialsOf(p *Page) (c credentials) {
	p.t.Helper()
	p.Eval("wicgate.credentials()", &c)
	return c
}

func restarts(p *Page) (n int) {
	p.t.Helper()
	p.Eval("wicgate.restarts()", &n)
	return n
}

// TestCredentialLives: a call outlives three lives of the credentials that began it: alice's by ICE
// restarts under new ones, bob's by the session policy without any.
func TestCredentialLives(t *testing.T) {
	const life = 20 * time.Second
	s := newSystem(t, plan{keys: keys{"waf": {"sip_token_life": life.String(), "turn_token_life": life.String()}}})
	s.bob.Before(noRestart)
	s.logIn()
	s.call()
	firstAudio(s.alice)
	began := time.Now()
	first := credentialsOf(s.alice)
	var last credentials
	renewals := 0
	for time.Since(began) < 3*life+5*time.Second {
		diff := over(4*time.Second, s.alice, s.bob)
		for i, p := range []*Page{s.alice, s.bob} {
			least := 100.0
			if diff[i].anew {
				least = 10 // what was heard before is not in the count
			}
			if diff[i].Packets < least {
				t.Fatalf("%s hears %v packets over 4 s, %v into the call; restarts: %d", p.Name, diff[i].Packets, time.Since(began).Round(time.Second), restarts(p))
			}
			callState(p, time.Second, "active")
		}
		if c := credentialsOf(s.alice); c != last {
			last = c
			renewals++
		}
	}
	t.Logf("after %v: alice's credentials changed %d times, ICE restarts: alice %d, bob %d", time.Since(began).Round(time.Second), renewals, restarts(s.alice), restarts(s.bob))
	if last.SIP < first.SIP+float64(2*life.Milliseconds()) || last.TURN < first.TURN+float64(2*life.Milliseconds()) {
		t.Errorf("alice's credentials end at %+v, at the call's start %+v", last, first)
	}
	if n := restarts(s.alice); n < 2 {
		t.Errorf("alice restarted ICE %d times", n)
	}
	if n := restarts(s.bob); n != 0 {
		t.Errorf("bob restarted ICE %d times", n)
	}
	if n := s.core.Count("epcscf", "Bindings"); n != 2 {
		t.Errorf("%v bindings", n)
	}
	s.heard(3*time.Second, anyWay...)

	t.Run("a renewal by hand restarts ICE", func(t *testing.T) {
		// Two at once are one, and each of them is done when the media has moved.
		var moved bool
		s.alice.Eval(`(() => {
			const before = wicgate.restarts();
			wicgate.renew().catch(() => {});
			return wicgate.renew().then(() => wicgate.restarts() > before);
		})()`, &moved)
		if !moved {
			t.Error("a renewal is done before the media has moved")
		}
		s.heard(3*time.Second, anyWay...)
	})
	s.alice.Click("#hangup")
	ended(s.bob, 5*time.Second)
	s.quiet(15 * time.Second)
}

// revoke ends all log-ins of a user as an operator does, and returns when that began.
func (s *system) revoke(who string) time.Time {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	begin := time.Now()
	out, err := exec.CommandContext(ctx, lab.Binary(s.t), "turn", "revoke", "--data", s.core.Data, who).CombinedOutput()
	if err != nil {
		s.t.Fatalf("wicgate turn revoke %s: %v: %s", who, err, out)
	}
	s.t.Logf("wicgate turn revoke %s: %s", who, bytes.TrimSpace(out))
	return begin
}

// TestRevocation: the operator ends a user's log-in, and with it the call, at once and in words.
func TestRevocation(t *testing.T) {
	s := newSystem(t, plan{})
	s.logIn()
	s.call()
	firstAudio(s.alice)
	// The pages note when their call is over: asking them from here takes its time.
	for _, p := range []*Page{s.alice, s.bob} {
		p.Eval(`new MutationObserver(() => { if (document.body.dataset.call !== "active") window.over ??= Date.now(); }).observe(document.body, {attributes: true}), null`, nil)
	}
	begin := s.revoke("bob")
	for _, p := range []*Page{s.alice, s.bob} {
		p.Wait(5*time.Second, "window.over")
		var at float64
		p.Eval("window.over", &at)
		took := time.UnixMilli(int64(at)).Sub(begin)
		lab.Figure(t, fmt.Sprintf("revocation to %s's end of call", p.Name), "1 s", "%d ms", took.Milliseconds())
		if took > time.Second {
			t.Errorf("%s's call ended %v after the revocation began", p.Name, took)
		}
	}
	told(s.bob, 5*time.Second, `(?i)log-in was ended by the operator`)
	told(s.alice, 5*time.Second, `(?i)ended by the operator`)
	s.bob.Wait(5*time.Second, `document.body.dataset.view === "landing"`)
	s.bob.Show("revoked")
	s.quiet(5 * time.Second)
	if n := s.core.Count("epcscf", "Bindings"); n != 1 {
		t.Errorf("%v bindings, want alice's alone", n)
	}

	t.Run("bob logs in again and calls", func(t *testing.T) {
		logIn(s.bob, "bob", s.core.Password("bob"))
		connect(s.bob, s.alice)
		firstAudio(s.bob)
		s.bob.Click("#hangup")
		ended(s.alice, 5*time.Second)
		s.quiet(10 * time.Second)
	})
}

// TestEdgeCredential: TURN credentials from the eP-CSCF (TR 33.872 6.3.3), of both its approaches, in each 200 OK to
// REGISTER.
func TestEdgeCredential(t *testing.T) {
	t.Run("ephemeral", func(t *testing.T) { testEdgeCredential(t, "ephemeral") })
	t.Run("pushed", func(t *testing.T) { testEdgeCredential(t, "pushed") })
}

func testEdgeCredential(t *testing.T, kind string) {
	s := newSystem(t, plan{keys: keys{"wwsf": {"turn_credential": "edge"}, "epcscf": {"turn_credential": kind}}})
	s.logIn()
	s.call()
	firstAudio(s.alice)
	s.heard(3*time.Second, anyWay...)
	user := func() (u string) {
		s.alice.Eval(`wicgate.pc().getConfiguration().iceServers[0].username`, &u)
		return u
	}
	before := user()
	var expiry int64
	var pseudonym string
	if kind == "pushed" {
		if !strings.HasPrefix(before, "p1.") {
			t.Errorf("USERNAME %q", before)
		}
	} else if n, err := fmt.Sscanf(before, "%d:%s", &expiry, &pseudonym); n != 2 || time.Until(time.Unix(expiry, 0)) < time.Minute {
		t.Errorf("USERNAME %q: %v", before, err)
	}
	s.alice.Eval("wicgate.renew()", nil)
	if after := user(); after == before {
		t.Errorf("USERNAME is %q after a renewal too", after)
	}
	if n := restarts(s.alice); n != 1 {
		t.Errorf("%d restarts", n)
	}
	s.heard(3*time.Second, anyWay...)
	s.alice.Click("#hangup")
	ended(s.bob, 5*time.Second)
	s.quiet(10 * time.Second)
}
