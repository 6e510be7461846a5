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

// anyWay to the relay: the first one that comes up carries the call. With UDP in its way that is mostly
// TCP; TLS overtakes it on a busy machine.
var anyWay = []string{"udp", "tcp", "tls"}

// TestTransports: calls of two portals over the networks that people have. What is not let through
// gets no answer.
func TestTransports(t *testing.T) {
	s := newSystem(t, plan{})
	s.logIn()
	for _, c := range []struct {
		name string
		drop []string
		ways []string
	}{
		{"everything passes", nil, anyWay},
		{"no UDP passes", noUDP, anyWay[1:]},
		{"only port 443 of TCP passes", only443, []string{"tls"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s.edge.Drop(c.drop...)
			defer s.edge.Drop()
			s.call()
			took := firstAudio(s.alice)
			if c.drop != nil { // the first call also warms up
				lab.Figure(t, "click to first audio, "+c.name, "2 s", "%d ms", took.Milliseconds())
				if took > 2*time.Second {
					t.Errorf("%s: first audio only %v after the click", c.name, took)
				}
			}
			s.heard(2*time.Second, c.ways...)
			s.bob.Click("#hangup")
			ended(s.alice, 5*time.Second)
			s.edge.Drop()
			s.quiet(15 * time.Second)
		})
	}
}
