package browser

import (
	"testing"
	"time"

	"wicgate/test/lab"
)

// TestGuest: somebody without a log-in joins, calls whom guests may call, and nobody else.
func TestGuest(t *testing.T) {
	s := newSystem(t, plan{keys: keys{"epcscf": {"guests": map[string]any{"destinations": []string{"alice"}, "calls": 1}}}})
	logIn(s.alice, "alice", s.core.Password("alice"))
	guest := s.bob
	guest.Name = "guest"
	guest.Open(portal)
	guest.Click("#guest")
	registration(guest, 15*time.Second, "registered")
	guest.Show("joined")

	t.Run("has an identity of the pool", func(t *testing.T) {
		guest.Wait(time.Second, `/Registered as Guest \d+/.test(document.querySelector("#registration").innerText)`)
		if n := s.core.Count("epcscf", "Bindings"); n != 2 {
			t.Errorf("%v bindings, want alice's and the guest's", n)
		}
	})

	t.Run("calls whom guests may call", func(t *testing.T) {
		connect(guest, s.alice)
		s.alice.Wait(time.Second, `/^Guest|guest-/i.test(document.querySelector("#peer").innerText)`)
		firstAudio(guest)
		s.heard(2*time.Second, anyWay...)
		s.alice.Click("#hangup")
		ended(guest, 5*time.Second)
		s.quiet(10 * time.Second)
	})

	t.Run("is refused anybody else", func(t *testing.T) {
		for _, callee := range []string{"bob", "sip:alice@elsewhere.test"} {
			dial(guest, callee)
			told(guest, 10*time.Second, `(?i)guests may not call`)
			ended(guest, time.Second)
			s.quiet(10 * time.Second)
		}
		if n := s.core.Count("democore", "Calls"); n != 0 {
			t.Errorf("%v calls reached the core", n)
		}
	})

	t.Run("is called", func(t *testing.T) {
		var uri string
		guest.Eval(`document.querySelector("#registration").innerText.match(/Guest (\d+)/)[1].padStart(2, "0")`, &uri)
		dial(s.alice, "guest-"+uri)
		callState(guest, 10*time.Second, "incoming")
		guest.Click("#decline")
		ended(s.alice, 5*time.Second)
		s.quiet(10 * time.Second)
	})

	t.Run("leaves", func(t *testing.T) {
		guest.Click("#logout")
		guest.Wait(5*time.Second, `document.body.dataset.view === "landing"`)
		lab.Eventually(t, 10*time.Second, "alice's binding alone", func() bool {
			return s.core.Count("epcscf", "Bindings") == 1 && s.core.Count("democore", "Registrations") == 1
		})
	})
}
