package browser

import (
	"testing"
	"time"

	"wicgate/test/lab"
)

// What a firewall drops, in nft's words.
const (
	noUDP   = "meta l4proto udp"
	only443 = "meta l4proto { tcp, udp } meta l4proto . th dport != { tcp . 443 }"
)

// TestTransports: calls of two portals over the networks that people have. What is not let through
// gets no answer.
func TestTransports(t *testing.T) {
	s := newSystem(t, plan{})
	s.logIn()
	for _, c := range []struct{ name, drop, way string }{
		{"everything passes", "", "udp"},
		{"no UDP passes", noUDP, "tcp"},
		{"only port 443 of TCP passes", only443, "tls"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s.edge.Firewall(c.drop, "")
			defer s.edge.Firewall("", "")
			s.call()
			took := firstAudio(s.alice)
			lab.Figure(t, "click to first audio over "+c.way, "2 s", "%d ms", took.Milliseconds())
			if c.drop != "" && took > 2*time.Second {
				t.Errorf("first audio over %s only %v after the click", c.way, took)
			}
			s.heard(2*time.Second, c.way)
			s.bob.Click("#hangup")
			ended(s.alice, 5*time.Second)
			s.edge.Firewall("", "")
			s.quiet(15 * time.Second)
		})
	}
}
