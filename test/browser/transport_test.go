package browser

import (
	"testing"
	"time"

	"wicgate/test/lab"
)

// What a firewall drops, in nft's words.
var (
	noUDP   = []string{"iifname e0 meta l4proto udp"}
	only443 = []string{"iifname e0 meta l4proto udp", "iifname e0 tcp dport != 443"}
)

// TestTransports: calls of two portals over the networks that people have. What is not let through
// gets no answer.
func TestTransports(t *testing.T) {
	s := newSystem(t, plan{})
	s.logIn()
	for _, c := range []struct {
		name string
		drop []string
		way  string
	}{
		{"everything passes", nil, "udp"},
		{"no UDP passes", noUDP, "tcp"},
		{"only port 443 of TCP passes", only443, "tls"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s.edge.Drop(c.drop...)
			defer s.edge.Drop()
			s.call()
			took := firstAudio(s.alice)
			lab.Figure(t, "click to first audio over "+c.way, "2 s", "%d ms", took.Milliseconds())
			if c.drop != nil && took > 2*time.Second {
				t.Errorf("first audio over %s only %v after the click", c.way, took)
			}
			s.heard(2*time.Second, c.way)
			s.bob.Click("#hangup")
			ended(s.alice, 5*time.Second)
			s.edge.Drop()
			s.quiet(15 * time.Second)
		})
	}
}
