package browser

import (
	"testing"
	"time"
)

// TestFirefoxAndChromium: Firefox ESR takes a call of Chromium, and makes one to it, through the
// whole system.
func TestFirefoxAndChromium(t *testing.T) {
	s := newSystem(t, plan{bob: NewFirefox})
	s.logIn()
	for _, c := range []struct {
		name     string
		from, to *Page
	}{
		{"Firefox takes a call", s.alice, s.bob},
		{"Firefox makes a call", s.bob, s.alice},
	} {
		t.Run(c.name, func(t *testing.T) {
			connect(c.from, c.to)
			t.Logf("click to first audio: %v", firstAudio(c.from).Round(time.Millisecond))
			s.heard(3*time.Second, "udp")
			s.alice.Show("firefox")
			s.bob.Show("firefox")
			c.to.Click("#hangup")
			ended(c.from, 5*time.Second)
			s.quiet(10 * time.Second)
		})
		if t.Failed() {
			return
		}
	}
}
