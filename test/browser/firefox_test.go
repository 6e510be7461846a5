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
		drop     []string
		ways     []string
	}{
		{"Firefox takes a call", s.alice, s.bob, nil, anyWay},
		{"Firefox makes a call", s.bob, s.alice, nil, anyWay},
		{"Firefox makes a call where no UDP passes", s.bob, s.alice, noUDP, []string{"tcp"}},
		{"Firefox makes a call where only port 443 passes", s.bob, s.alice, only443, []string{"tls"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s.edge.Drop(c.drop...)
			defer s.edge.Drop()
			connect(c.from, c.to)
			t.Logf("click to first audio: %v", firstAudio(c.from).Round(time.Millisecond))
			s.heard(3*time.Second, c.ways...)
			s.alice.Show("firefox")
			s.bob.Show("firefox")
			c.to.Click("#hangup")
			ended(c.from, 5*time.Second)
			s.edge.Drop()
			s.quiet(10 * time.Second)
		})
		if t.Failed() {
			return
		}
	}
}
