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
		{"Firefox makes a call where no UDP passes", s.bob, s.alice, noUDP, anyWay[1:]},
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
	t.Run("Firefox takes a video call", func(t *testing.T) {
		connectVideo(s.alice, s.bob)
		s.seen(3*time.Second, "video/VP8")
		s.bob.Show("firefox-video")
		s.alice.Click("#hangup")
		ended(s.bob, 5*time.Second)
		s.quiet(10 * time.Second)
	})
	t.Run("Firefox makes a video call, and restarts ICE in it", func(t *testing.T) {
		connectVideo(s.bob, s.alice)
		s.seen(3*time.Second, "video/VP8")
		for _, p := range []*Page{s.bob, s.alice} {
			p.Eval("wicgate.renew()", nil)
			if n := restarts(p); n < 1 {
				t.Errorf("%s restarted ICE %d times", p.Name, n)
			}
			moves(s.alice)
			moves(s.bob)
			s.seen(3*time.Second, "video/VP8")
		}
		for i, m := range over(2*time.Second, s.alice, s.bob) {
			if m.Packets < 40 || m.Energy < 0.001 {
				t.Errorf("page %d hears %+v", i, m)
			}
		}
		s.bob.Click("#hangup")
		ended(s.alice, 5*time.Second)
		s.quiet(10 * time.Second)
	})
}
