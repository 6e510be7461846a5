package core

import (
	"testing"
	"time"

	"wicgate/internal/wire/stun"
)

// relayed prepares a call and returns, by name, the ways of a packet of 160 bytes (G.711, 20 ms).
func relayed(tb testing.TB) map[string]func() bool {
	w := newWorld(tb)
	c := w.issue(inUsername, "p1", w.now, time.Hour)
	w.want(w.ask(alice, c, stun.Allocate, transport(17), lifetime(3600)), 0)
	w.want(w.ask(alice, c, stun.ChannelBind, channelNumber(0x4000), peer(gateway)), 0)
	other := ap("192.0.2.10:40500")
	id := w.core.tuples[alice].id
	payload := string(make([]byte, 160))
	channelData := stun.AppendChannelData(nil, 0x4000, []byte(payload))
	send := w.build(stun.Send, stun.Indication, peer(gateway), data(payload))
	buf := make([]byte, Headroom+len(payload)+Tailroom)
	return map[string]func() bool{
		"ChannelData-out": func() bool {
			w.core.FromClient(w.now, alice, channelData, &w.out)
			return w.out.Actions[0].Kind == ToPeer
		},
		"ChannelData-in": func() bool {
			w.core.FromPeer(w.now, id, gateway, buf, len(payload), &w.out)
			return w.out.Actions[0].Kind == ToClient
		},
		"Send": func() bool {
			w.core.FromClient(w.now, alice, send, &w.out)
			return w.out.Actions[0].Kind == ToPeer
		},
		"Data": func() bool {
			w.core.FromPeer(w.now, id, other, buf, len(payload), &w.out)
			return w.out.Actions[0].Kind == ToClient
		},
		"ICMP": func() bool {
			w.core.FromNetwork(w.now, id, gateway, stun.ICMP{Type: 3, Code: 3}, &w.out)
			return w.out.Actions[0].Kind == ToClient
		},
		"refused-peer": func() bool {
			w.core.FromPeer(w.now, id, stranger, buf, len(payload), &w.out)
			return w.out.Cause == CauseNoPermission
		},
		"refused-client": func() bool {
			w.core.FromClient(w.now, mallory, channelData, &w.out)
			return w.out.Cause == CauseNoAllocation
		},
	}
}

func TestRelayingDoesNotAllocate(t *testing.T) {
	for name, f := range relayed(t) {
		if n := testing.AllocsPerRun(1000, func() {
			if !f() {
				t.Fatalf("%s: not as expected", name)
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations a packet", name, n)
		}
	}
}

func BenchmarkRelay(b *testing.B) {
	for name, f := range relayed(b) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				f()
			}
		})
	}
}

// BenchmarkAuthenticate is the price of a request with a live allocation, of one that brings a new
// token, and of a challenge.
func BenchmarkAuthenticate(b *testing.B) {
	w := newWorld(b, func(c *Config) { c.ReplyBurst = 1 << 40 })
	c := w.issue(inUsername, "p1", w.now, time.Hour)
	w.call(alice, c)
	n := w.nonce(alice)
	for name, msg := range map[string][]byte{
		"known-credential": w.sign(w.build(stun.CreatePermission, stun.Request, peer(gateway)), c, n),
		"new-o1":           w.sign(w.build(stun.CreatePermission, stun.Request, peer(gateway)), w.issue(inUsername, "p1", w.now, time.Hour), n),
		"new-ACCESS-TOKEN": w.sign(w.build(stun.Allocate, stun.Request), w.issue(inToken, "p1", w.now, time.Hour), n),
		"challenge":        w.build(stun.Allocate, stun.Request, transport(17)),
		"stale-nonce":      w.sign(w.build(stun.Allocate, stun.Request), c, []byte("AAAAAAAAAAAAAAAA")),
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				w.core.FromClient(w.now, alice, msg, &w.out)
			}
		})
	}
}
