package core

import (
	"net/netip"
	"testing"
	"time"

	"wicgate/internal/wire/stun"
)

// TestSentToSibling: RFC 8489 §10. While draining, a client who has authenticated is sent to a sibling
// that suits it, under integrity; who has not, learns nothing.
func TestSentToSibling(t *testing.T) {
	v4, other4 := netip.MustParseAddrPort("192.0.2.1:3478"), netip.MustParseAddrPort("192.0.2.2:443")
	v6 := netip.MustParseAddrPort("[2001:db8::1]:3478")
	six := Tuple{Client: netip.MustParseAddrPort("[2001:db8::99]:5000"), Transport: stun.ProtocolUDP}
	tcp := Tuple{Client: alice.Client, Transport: stun.ProtocolTCP}
	for _, q := range []struct {
		name     string
		siblings []Sibling
		client   Tuple
		code     int
		want     netip.AddrPort // zero: no ALTERNATE-SERVER
		domain   string
	}{
		{"none", nil, alice, 508, netip.AddrPort{}, ""},
		{"one", []Sibling{{Address: v4}}, alice, 300, v4, ""},
		{"of the client's family first", []Sibling{{Address: v6}, {Address: v4}}, alice, 300, v4, ""},
		{"IPv6", []Sibling{{Address: v6}, {Address: v4}}, six, 300, v6, ""},
		{"of the other family alone", []Sibling{{Address: v6}}, alice, 508, netip.AddrPort{}, ""},
		{"for TCP", []Sibling{{Address: v4, Transport: stun.ProtocolUDP}, {Address: other4, Transport: stun.ProtocolTCP, Domain: "turn2.ims.test"}}, tcp, 300, other4, "turn2.ims.test"},
		{"for TCP alone", []Sibling{{Address: other4, Transport: stun.ProtocolTCP}}, alice, 508, netip.AddrPort{}, ""},
	} {
		t.Run(q.name, func(t *testing.T) {
			w := newWorld(t, func(c *Config) { c.Siblings = q.siblings })
			c := w.issue(inUsername, "p1", w.now, time.Hour)
			w.core.Drain(true, time.Time{})
			for range 4 { // the choice is random
				r := w.want(w.ask(q.client, c, stun.Allocate, transport(17)), q.code)
				got, err := stun.ParseAddress(r.get(stun.AttrAlternateServer))
				if q.want.IsValid() && (err != nil || got != q.want) || !q.want.IsValid() && r.get(stun.AttrAlternateServer) != nil {
					t.Errorf("ALTERNATE-SERVER %v, %v, want %v", got, err, q.want)
				}
				if d := string(r.get(stun.AttrAlternateDomain)); d != q.domain {
					t.Errorf("ALTERNATE-DOMAIN %q, want %q", d, q.domain)
				}
			}
			forged := c
			forged.key = []byte("another key")
			if r := w.ask(q.client, forged, stun.Allocate, transport(17)); r.code != 401 || r.get(stun.AttrAlternateServer) != nil {
				t.Errorf("without a credential: %v", r)
			}
			w.core.Drain(false, time.Time{})
			w.want(w.ask(q.client, c, stun.Allocate, transport(17)), 0)
			w.invariants()
		})
	}
}

// TestFull: who finds no place here is sent to a sibling; who has used up his own places is not.
func TestFull(t *testing.T) {
	v4 := netip.MustParseAddrPort("192.0.2.1:3478")
	w := newWorld(t, func(c *Config) { c.Siblings, c.MaxAllocations, c.Quota = []Sibling{{Address: v4}}, 2, 1 })
	p1, p2, p3 := w.issue(inUsername, "p1", w.now, time.Hour), w.issue(inUsername, "p2", w.now, time.Hour), w.issue(inUsername, "p3", w.now, time.Hour)
	w.want(w.ask(alice, p1, stun.Allocate, transport(17)), 0)
	w.want(w.ask(bob, p1, stun.Allocate, transport(17)), 486)
	w.want(w.ask(bob, p2, stun.Allocate, transport(17)), 0)
	r := w.want(w.ask(carol, p3, stun.Allocate, transport(17)), 300)
	if got, err := stun.ParseAddress(r.get(stun.AttrAlternateServer)); err != nil || got != v4 {
		t.Errorf("ALTERNATE-SERVER %v, %v", got, err)
	}
	w.want(w.ask(bob, p2, stun.Refresh), 0) // who is here stays
	w.want(w.ask(bob, p2, stun.Refresh, lifetime(0)), 0)
	w.want(w.ask(carol, p3, stun.Allocate, transport(17)), 0)
	w.invariants()
}

// TestBothFamilies: with the sibling's address of the client's family goes one of the other (RFC 8489 §10).
func TestBothFamilies(t *testing.T) {
	siblings := []Sibling{{Address: netip.MustParseAddrPort("[2001:db8::1]:3478"), Domain: "a.test"}, {Address: netip.MustParseAddrPort("192.0.2.1:3478"), Domain: "a.test"}}
	w := newWorld(t, func(c *Config) { c.Siblings = siblings })
	w.core.Drain(true, time.Time{})
	r := w.want(w.ask(alice, w.issue(inToken, "p1", w.now, time.Hour), stun.Allocate, transport(17)), 300)
	var got []netip.AddrPort
	for typ, v := range r.msg.All() {
		if typ == stun.AttrAlternateServer {
			a, err := stun.ParseAddress(v)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, a)
		}
	}
	if len(got) != 2 || got[0] != siblings[1].Address || got[1] != siblings[0].Address {
		t.Errorf("ALTERNATE-SERVER %v", got)
	}
}

// TestNodeChanges: the challenge is one node's, the answer comes to another.
func TestNodeChanges(t *testing.T) {
	a := newWorld(t)
	b := newWorld(t, func(c *Config) { c.Keys = a.ring })
	for i, s := range []shape{inUsername, inToken} {
		tu := Tuple{Client: netip.AddrPortFrom(alice.Client.Addr(), 6000+uint16(i)), Transport: 17}
		c := a.issue(s, "p1", a.now, time.Hour)
		b.want(b.askNonce(tu, c, a.nonce(tu), stun.Allocate, transport(17)), 0)
		b.want(b.askNonce(alice, c, a.nonce(tu), stun.Allocate, transport(17)), 438)
	}
	b.invariants()
}

// TestDrainEnds: the rest ends at the time that was given, and not if the drain is taken back.
func TestDrainEnds(t *testing.T) {
	w := newWorld(t)
	w.call(alice, w.issue(inUsername, "p1", w.now, time.Hour))
	born := w.now
	w.core.Drain(true, w.now.Add(100*time.Second))
	w.sleep(99 * time.Second)
	if at, ok := w.core.Oldest(); !ok || !at.Equal(born) || w.core.Allocations() != 1 {
		t.Errorf("oldest %v, %v", at, ok)
	}
	w.core.Drain(false, time.Time{})
	w.sleep(9 * time.Second)
	if w.core.Allocations() != 1 {
		t.Fatal("ended although taken back")
	}
	w.core.Drain(true, w.now.Add(time.Second))
	w.sleep(time.Second)
	if _, ok := w.core.Oldest(); ok || len(w.ended) != 1 || w.ended[0].Cause != EndDrained {
		t.Errorf("ended %+v", w.ended)
	}
	w.invariants()
}
