package core

import (
	"net/netip"
	"testing"
	"time"

	"wicgate/internal/wire/stun"
)

const bothFamilies = stun.FamilyIPv4 | stun.FamilyIPv6

func families(f byte) func(*Config) { return func(c *Config) { c.Families = f } }

func also(f byte) add { return small(stun.AttrAdditionalAddressFamily, f) }
func only(f byte) add { return small(stun.AttrRequestedAddressFamily, f) }

// relayedOf reads the addresses of an answer, and ADDRESS-ERROR-CODE as family and code.
func relayedOf(t *testing.T, r response) (relayed []netip.AddrPort, failed [][2]int) {
	t.Helper()
	for typ, v := range r.msg.All() {
		switch typ {
		case stun.AttrXORRelayedAddress:
			a, err := stun.ParseXORAddress(v, r.msg.TransactionID())
			if err != nil {
				t.Fatal(err)
			}
			relayed = append(relayed, a)
		case stun.AttrAddressErrorCode:
			failed = append(failed, [2]int{int(v[0]), int(v[2])*100 + int(v[3])})
		}
	}
	return relayed, failed
}

// TestDualAllocation: two relayed addresses, or one and why there is no other (RFC 8656 §7.2).
func TestDualAllocation(t *testing.T) {
	for _, x := range []struct {
		name            string
		families, fails byte
		adds            []add
		code            int
		relayed         []netip.Addr
		failed          [][2]int
	}{
		{"both", bothFamilies, 0, []add{also(2)}, 0, []netip.Addr{relayIP, relayIP6}, nil},
		{"nothing asked", bothFamilies, 0, nil, 0, []netip.Addr{relayIP}, nil},
		{"IPv4 asked", bothFamilies, 0, []add{only(1)}, 0, []netip.Addr{relayIP}, nil},
		{"IPv6 asked", bothFamilies, 0, []add{only(2)}, 0, []netip.Addr{relayIP6}, nil},
		{"both, even", bothFamilies, 0, []add{also(2), attr(stun.AttrEvenPort, []byte{0})}, 0, []netip.Addr{relayIP, relayIP6}, nil},
		{"IPv6 not served", stun.FamilyIPv4, 0, []add{also(2)}, 0, []netip.Addr{relayIP}, [][2]int{{2, 440}}},
		{"IPv4 not served", stun.FamilyIPv6, 0, []add{also(2)}, 0, []netip.Addr{relayIP6}, [][2]int{{1, 440}}},
		{"no port on IPv6", bothFamilies, stun.FamilyIPv6, []add{also(2)}, 0, []netip.Addr{relayIP}, [][2]int{{2, 508}}},
		{"no port on IPv4", bothFamilies, stun.FamilyIPv4, []add{also(2)}, 0, []netip.Addr{relayIP6}, [][2]int{{1, 508}}},
		{"no port at all", bothFamilies, bothFamilies, []add{also(2)}, 508, nil, nil},
		{"no port, and IPv6 not served", stun.FamilyIPv4, stun.FamilyIPv4, []add{also(2)}, 508, nil, nil},
		{"IPv4 in addition", bothFamilies, 0, []add{also(1)}, 400, nil, nil},
		{"of no family", bothFamilies, 0, []add{only(3)}, 440, nil, nil},
		{"both attributes", bothFamilies, 0, []add{also(2), only(2)}, 400, nil, nil},
		{"IPv6 alone served, nothing asked", stun.FamilyIPv6, 0, nil, 440, nil, nil},
	} {
		t.Run(x.name, func(t *testing.T) {
			w := newWorld(t, families(x.families))
			w.fails = x.fails
			c := w.issue(inUsername, "p1", w.now, time.Hour)
			b := w.sign(w.build(stun.Allocate, stun.Request, append([]add{transport(17)}, x.adds...)...), c, w.nonce(alice))
			for range 2 { // the second is the retransmission of RFC 8489 §6.3.1
				r := w.packet(alice, b)
				if r.code != x.code {
					t.Fatalf("%v, want %d", r, x.code)
				}
				relayed, failed := relayedOf(t, r)
				if len(relayed) != len(x.relayed) || len(failed) != len(x.failed) {
					t.Fatalf("relayed %v, failed %v", relayed, failed)
				}
				for i := range relayed {
					if relayed[i].Addr() != x.relayed[i] {
						t.Errorf("relayed %v, want %v", relayed, x.relayed)
					}
				}
				for i := range failed {
					if failed[i] != x.failed[i] {
						t.Errorf("failed %v, want %v", failed, x.failed)
					}
				}
				w.invariants()
			}
			if x.code == 0 {
				w.want(w.ask(alice, c, stun.Allocate, append([]add{transport(17)}, x.adds...)...), 437)
			}
			w.core.EndAll(w.now, &w.out)
			w.act(alice)
			if w.opened != w.closed {
				t.Errorf("%d sockets opened, %d closed", w.opened, w.closed)
			}
		})
	}
}

// TestHalvesUnderOneCredential: a Refresh of one family changes the credential of both, and under strict none
// outlives it.
func TestHalvesUnderOneCredential(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.Families, c.Policy = bothFamilies, Strict })
	long, short := w.issue(inUsername, "p1", w.now, time.Hour), w.issue(inUsername, "p1", w.now, 5*time.Minute)
	w.want(w.ask(alice, long, stun.Allocate, transport(17), also(2)), 0)
	if r := w.want(w.ask(alice, short, stun.Refresh, only(1)), 0); r.lifetime() != 305 {
		t.Errorf("LIFETIME %d, want 305", r.lifetime())
	}
	w.invariants()
	w.sleep(305 * time.Second)
	if w.core.Holds(alice) {
		t.Error("the other family outlives the credential")
	}
}

// TestHalves: each family has its own lifetime, permissions and channels; deleting one leaves the other
// (RFC 8656 §8.2).
func TestHalves(t *testing.T) {
	dual := func(t *testing.T) (*world, cred) {
		w := newWorld(t, families(bothFamilies))
		c := w.issue(inUsername, "p1", w.now, time.Hour)
		w.want(w.ask(alice, c, stun.Allocate, transport(17), also(2)), 0)
		w.want(w.ask(alice, c, stun.CreatePermission, peer(gateway), peer(gateway6)), 0)
		w.want(w.ask(alice, c, stun.ChannelBind, channelNumber(0x4000), peer(gateway)), 0)
		w.want(w.ask(alice, c, stun.ChannelBind, channelNumber(0x4001), peer(gateway6)), 0)
		return w, c
	}
	// reaches tells which families relay, by channel and by indication, out and in.
	reaches := func(w *world) (got byte) {
		w.t.Helper()
		for i, p := range []netip.AddrPort{gateway, gateway6} {
			_, _, ok := w.toPeer(alice, stun.AppendChannelData(nil, 0x4000+uint16(i), []byte("x")))
			_, _, ok2 := w.toPeer(alice, w.build(stun.Send, stun.Indication, peer(p), data("x")))
			_, ok3 := w.fromPeer(alice, p, "x")
			if ok != ok2 || ok != ok3 {
				w.t.Errorf("%v: ChannelData %v, Send %v, in %v", p, ok, ok2, ok3)
			}
			if ok {
				got |= 1 << i
			}
		}
		return got
	}
	t.Run("the relay of the peer's family", func(t *testing.T) {
		w, _ := dual(t)
		for i, p := range []netip.AddrPort{gateway, gateway6} {
			w.core.FromClient(w.now, alice, w.build(stun.Send, stun.Indication, peer(p), data("x")), &w.out)
			if a := w.out.Actions[0]; a.Relay != w.core.tuples[alice].halves[i].Relay || a.Peer != p {
				t.Errorf("%v: by %v", p, a.Relay)
			}
		}
	})
	for f := byte(stun.FamilyIPv4); f <= stun.FamilyIPv6; f++ {
		t.Run([]string{"", "delete IPv4", "delete IPv6"}[f], func(t *testing.T) {
			w, c := dual(t)
			gone, stays := []netip.AddrPort{gateway, gateway6}[f-1], []netip.AddrPort{gateway6, gateway}[f-1]
			if r := w.want(w.ask(alice, c, stun.Refresh, lifetime(0), only(f)), 0); r.lifetime() != 0 || w.closed != 1 || len(w.ended) != 0 {
				t.Errorf("%v, %d closed, %d ended", r, w.closed, len(w.ended))
			}
			if got := reaches(w); got != bothFamilies&^f {
				t.Errorf("reaches %d", got)
			}
			w.invariants()
			w.want(w.ask(alice, c, stun.Refresh, lifetime(0), only(f)), 443)
			w.want(w.ask(alice, c, stun.Refresh, lifetime(600), only(f)), 443)
			w.want(w.ask(alice, c, stun.CreatePermission, peer(gone)), 443)
			w.want(w.ask(alice, c, stun.CreatePermission, peer(stays), peer(gone)), 443)
			w.want(w.ask(alice, c, stun.ChannelBind, channelNumber(0x4000+uint16(f-1)), peer(gone)), 443)
			// What was the half's is destroyed: its channel's number is free again.
			w.want(w.ask(alice, c, stun.ChannelBind, channelNumber(0x4000+uint16(f-1)), peer(netip.AddrPortFrom(stays.Addr(), 40001))), 0)
			w.want(w.ask(alice, c, stun.Refresh, lifetime(0), only(bothFamilies&^f)), 0)
			if w.core.Allocations() != 0 || len(w.ended) != 1 || w.closed != 2 || len(w.ended[0].Relayed) != 1 {
				t.Errorf("%d allocations, ended %+v", w.core.Allocations(), w.ended)
			}
			w.invariants()
		})
	}
	t.Run("delete both", func(t *testing.T) {
		w, c := dual(t)
		w.want(w.ask(alice, c, stun.Refresh, lifetime(0)), 0)
		if w.core.Allocations() != 0 || len(w.ended) != 1 || w.closed != 2 || len(w.ended[0].Relayed) != 2 || len(w.core.relays) != 0 {
			t.Errorf("%d allocations, %d closed, ended %+v", w.core.Allocations(), w.closed, w.ended)
		}
		w.want(w.ask(alice, c, stun.Refresh, lifetime(0), only(2)), 437)
	})
	t.Run("of no family", func(t *testing.T) {
		w, c := dual(t)
		w.want(w.ask(alice, c, stun.Refresh, only(3)), 443)
		w.want(w.ask(alice, c, stun.Refresh, attr(stun.AttrRequestedAddressFamily, []byte{2})), 400)
	})
	t.Run("each lives as long as it is refreshed", func(t *testing.T) {
		w, c := dual(t)
		w.sleep(200 * time.Second)
		w.want(w.ask(alice, c, stun.Refresh, lifetime(1200), only(2)), 0) // IPv6 until 1400 s
		w.want(w.ask(alice, c, stun.CreatePermission, peer(gateway), peer(gateway6)), 0)
		w.sleep(200 * time.Second)
		w.want(w.ask(alice, c, stun.CreatePermission, peer(gateway), peer(gateway6)), 0)
		w.want(w.ask(alice, c, stun.ChannelBind, channelNumber(0x4001), peer(gateway6)), 0)
		w.sleep(199 * time.Second)
		if got := reaches(w); got != bothFamilies {
			t.Errorf("at 599 s: %d", got)
		}
		w.sleep(time.Second)
		if got := reaches(w); got != stun.FamilyIPv6 || w.closed != 1 || len(w.ended) != 0 {
			t.Errorf("at 600 s: %d, %d closed", got, w.closed)
		}
		w.invariants()
		w.want(w.ask(alice, c, stun.CreatePermission, peer(gateway)), 443)
		// Without an attribute: all that there is.
		if r := w.want(w.ask(alice, c, stun.Refresh, lifetime(1500)), 0); r.lifetime() != 1500 {
			t.Error(r)
		}
		w.sleep(1500 * time.Second)
		if w.core.Allocations() != 0 || w.closed != 2 || len(w.ended) != 1 {
			t.Errorf("%d allocations, %d closed, %d ended", w.core.Allocations(), w.closed, len(w.ended))
		}
	})
	t.Run("permissions last 300 s in each", func(t *testing.T) {
		w, _ := dual(t)
		w.sleep(300*time.Second - time.Nanosecond)
		if got := reaches(w); got != bothFamilies {
			t.Errorf("before 300 s: %d", got)
		}
		w.sleep(time.Nanosecond)
		if got := reaches(w); got != 0 {
			t.Errorf("at 300 s: %d", got)
		}
	})
	t.Run("ended while opening", func(t *testing.T) {
		w, c := dual(t)
		var out Outbox
		w.core.FromClient(w.now, mallory, w.sign(w.build(stun.Allocate, stun.Request, transport(17), also(2)), c, w.nonce(mallory)), &out)
		id := out.Actions[0].ID
		w.core.Revoke(w.now, "p1", &w.out)
		w.act(Tuple{})
		w.core.Opened(w.now, id, Sockets{Family: [2]Socket{w.socket(0, 1), w.socket(1, 2)}}, &out)
		if len(out.Actions) != 2 || out.Actions[0].Kind != Close || out.Actions[1].Kind != Close {
			t.Errorf("%+v", out.Actions)
		}
		w.invariants()
	})
}
