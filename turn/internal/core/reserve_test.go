package core

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"wicgate/internal/wire/stun"
)

var (
	pair    = attr(stun.AttrEvenPort, []byte{0x80})
	another = Tuple{Client: netip.MustParseAddrPort("[2001:db8::77]:7"), Listener: 3, Transport: 6}
)

func reserved(token []byte) add { return attr(stun.AttrReservationToken, token) }

// TestReservation: N is even, N+1 is held for 30 s and given to its owner alone, from any 5-tuple, once
// (RFC 8656 §7.2).
func TestReservation(t *testing.T) {
	for _, family := range []byte{stun.FamilyIPv4, stun.FamilyIPv6} {
		w := newWorld(t, families(bothFamilies))
		c := w.issue(inUsername, "p1", w.now, time.Hour)
		b := w.sign(w.build(stun.Allocate, stun.Request, transport(17), pair, only(family)), c, w.nonce(alice))
		r := w.packet(alice, b)
		first, _ := relayedOf(t, r)
		token := r.get(stun.AttrReservationToken)
		if r.code != 0 || len(first) != 1 || first[0].Port()&1 != 0 || len(token) != 8 {
			t.Fatalf("%v: %v, token %x", r, first, token)
		}
		// The retransmission gets the same, and reserves nothing more.
		if again := w.packet(alice, b); string(again.get(stun.AttrReservationToken)) != string(token) || len(w.core.reserved) != 1 {
			t.Errorf("retransmission: token %x, want %x; %d reserved", again.get(stun.AttrReservationToken), token, len(w.core.reserved))
		}
		w.invariants()
		w.want(w.ask(mallory, w.issue(inUsername, "p2", w.now, time.Hour), stun.Allocate, transport(17), reserved(token)), 508)
		w.sleep(ReservationLifetime - time.Second)
		w.want(w.ask(another, w.issue(inToken, "p1", w.now, time.Hour), stun.Allocate, transport(17), reserved([]byte("12345678"))), 508)
		// A new token of the same owner, another transport and family of the client.
		r = w.want(w.ask(another, w.issue(inToken, "p1", w.now, time.Hour), stun.Allocate, transport(17), reserved(token)), 0)
		second, _ := relayedOf(t, r)
		w.sockets()
		if len(second) != 1 || second[0] != netip.AddrPortFrom(first[0].Addr(), first[0].Port()+1) || r.get(stun.AttrReservationToken) != nil {
			t.Errorf("%v after %v", second, first)
		}
		w.invariants()
		w.want(w.ask(mallory, c, stun.Allocate, transport(17), reserved(token)), 508) // once
		w.sleep(time.Hour)
		if w.core.Allocations() != 0 || w.opened != 2 || w.closed != 2 || len(w.ended) != 2 {
			t.Errorf("%d allocations, %d opened, %d closed", w.core.Allocations(), w.opened, w.closed)
		}
		w.invariants()
	}
}

// TestReservationEnds: with its time, its owner's revocation and the server, and leaves nothing.
func TestReservationEnds(t *testing.T) {
	for name, end := range map[string]func(*world){
		"time":       func(w *world) { w.sleep(ReservationLifetime) },
		"revocation": func(w *world) { w.core.Revoke(w.now, "p1", &w.out); w.act(Tuple{}) },
		"shutdown":   func(w *world) { w.core.EndAll(w.now, &w.out); w.act(Tuple{}) },
		"time, at the request": func(w *world) {
			w.now = w.now.Add(ReservationLifetime) // the timer is late
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			c := w.issue(inUsername, "p1", w.now, time.Hour)
			token := w.want(w.ask(alice, c, stun.Allocate, transport(17), pair), 0).get(stun.AttrReservationToken)
			w.want(w.ask(alice, c, stun.Refresh, lifetime(0)), 0) // the reservation stays
			if len(w.core.reserved) != 1 || w.core.Allocations() != 0 {
				t.Fatalf("%d reserved", len(w.core.reserved))
			}
			w.invariants()
			end(w)
			w.want(w.ask(another, c, stun.Allocate, transport(17), reserved(token)), 508)
			if w.opened != 2 || w.closed != 2 || len(w.core.reserved) != 0 {
				t.Errorf("%d opened, %d closed, %d reserved", w.opened, w.closed, len(w.core.reserved))
			}
			if _, waiting := w.core.NextTimeout(); waiting {
				t.Error("a timer is left")
			}
			w.invariants()
		})
	}
}

// TestReservationLimits: reservations count to the quota and to the allocations, and are bounded.
func TestReservationLimits(t *testing.T) {
	at := func(i int) Tuple {
		return Tuple{Client: netip.AddrPortFrom(alice.Client.Addr(), uint16(7000+i)), Transport: 17}
	}
	t.Run("quota", func(t *testing.T) {
		w := newWorld(t, func(c *Config) { c.Quota = 3 })
		c := w.issue(inUsername, "p1", w.now, time.Hour)
		token := w.want(w.ask(at(0), c, stun.Allocate, transport(17), pair), 0).get(stun.AttrReservationToken)
		w.want(w.ask(at(1), c, stun.Allocate, transport(17), pair), 486)
		w.want(w.ask(at(1), c, stun.Allocate, transport(17)), 0)
		w.want(w.ask(at(2), c, stun.Allocate, transport(17)), 486)
		w.want(w.ask(at(2), c, stun.Allocate, transport(17), reserved(token)), 0) // was counted
		w.want(w.ask(at(3), c, stun.Allocate, transport(17)), 486)
		w.invariants()
	})
	t.Run("allocations", func(t *testing.T) {
		w := newWorld(t, func(c *Config) { c.MaxAllocations = 3 })
		c := w.issue(inUsername, "p1", w.now, time.Hour)
		token := w.want(w.ask(at(0), c, stun.Allocate, transport(17), pair), 0).get(stun.AttrReservationToken)
		w.want(w.ask(at(1), c, stun.Allocate, transport(17), pair), 508)
		w.want(w.ask(at(1), c, stun.Allocate, transport(17)), 0)
		w.want(w.ask(at(2), c, stun.Allocate, transport(17), reserved(token)), 0)
		w.want(w.ask(at(3), c, stun.Allocate, transport(17)), 508)
		w.invariants()
	})
	t.Run("reservations", func(t *testing.T) {
		w := newWorld(t, func(c *Config) { c.ReplyBurst = 1 << 30 })
		for i := range maxReservations {
			w.want(w.ask(at(i), w.issue(inUsername, fmt.Sprint("p", i), w.now, time.Hour), stun.Allocate, transport(17), pair), 0)
		}
		c := w.issue(inUsername, "p", w.now, time.Hour)
		w.want(w.ask(alice, c, stun.Allocate, transport(17), pair), 508)
		w.want(w.ask(alice, c, stun.Allocate, transport(17)), 0)
		w.invariants()
		w.sleep(ReservationLifetime)
		w.want(w.ask(mallory, c, stun.Allocate, transport(17), pair), 0)
	})
	t.Run("two at once", func(t *testing.T) { // both are being opened
		w := newWorld(t, func(c *Config) { c.Quota = 3 })
		c := w.issue(inUsername, "p1", w.now, time.Hour)
		var first Outbox
		w.core.FromClient(w.now, at(0), w.sign(w.build(stun.Allocate, stun.Request, transport(17), pair), c, w.nonce(at(0))), &first)
		w.want(w.ask(at(1), c, stun.Allocate, transport(17), pair), 486)
		w.core.Opened(w.now, first.Actions[0].ID, Sockets{Family: [2]Socket{w.socket(0, 60000)}}, &w.out) // without the second
		if r := w.act(at(0)); r.code != 508 || w.closed != 1 || w.core.Allocations() != 0 {
			t.Errorf("%v, %d closed, %d allocations", r, w.closed, w.core.Allocations())
		}
	})
}

func TestReservationRules(t *testing.T) {
	w := newWorld(t, families(bothFamilies))
	c := w.issue(inUsername, "p1", w.now, time.Hour)
	token := w.want(w.ask(alice, c, stun.Allocate, transport(17), pair), 0).get(stun.AttrReservationToken)
	for _, x := range []struct {
		name string
		adds []add
		code int
	}{
		{"short token", []add{reserved(token[:7])}, 400},
		{"with EVEN-PORT", []add{reserved(token), attr(stun.AttrEvenPort, []byte{0})}, 400},
		{"with a family", []add{reserved(token), only(1)}, 400},
		{"with another family", []add{reserved(token), also(2)}, 400},
		{"a pair and another family", []add{pair, also(2)}, 400},
		{"EVEN-PORT of two bytes", []add{attr(stun.AttrEvenPort, []byte{0x80, 0})}, 400},
	} {
		w.want(w.ask(another, c, stun.Allocate, append([]add{transport(17)}, x.adds...)...), x.code)
	}
	// A pseudonym of the same name in another tenant is somebody else.
	if w.core.reservation(token, &credential{owner: "p1", tenant: newTenant(Tenant{})}) >= 0 || w.core.reservation(token, &credential{owner: "p1", tenant: w.core.tenants[0]}) != 0 {
		t.Error("a reservation is not its tenant's")
	}
	w.core.Drain(true, time.Time{})
	w.want(w.ask(another, c, stun.Allocate, transport(17), reserved(token)), 508)
	if len(w.core.reserved) != 1 {
		t.Error("a refusal has used the reservation up")
	}
	w.invariants()
	w.sockets()
}
