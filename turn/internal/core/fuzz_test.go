package core

import (
	"bytes"
	"net/netip"
	"testing"
	"time"

	"wicgate/internal/wire/stun"
)

// program reads a fuzz input as a sequence of choices.
type program struct{ b []byte }

func (p *program) byte() byte {
	if len(p.b) == 0 {
		return 0
	}
	c := p.b[0]
	p.b = p.b[1:]
	return c
}

func (p *program) bytes(n int) []byte {
	n = min(n, len(p.b))
	c := p.b[:n:n]
	p.b = p.b[n:]
	return c
}

// FuzzClient runs any sequence of packets, authenticated and not, with the clock, peers and
// revocation between them. The Core never panics, its tables agree after each step, nothing is kept
// for who has not authenticated, and nothing leaves for a peer that policy and permission refuse.
func FuzzClient(f *testing.F) {
	// Raw packets: a bare Allocate, each vector of a request, ChannelData.
	bare := stun.AppendByte(stun.AppendHeader(nil, stun.NewType(stun.Allocate, stun.Request), stun.TransactionID{1}), stun.AttrRequestedTransport, 17)
	raw := func(b []byte) []byte { return append([]byte{0, 0, byte(len(b))}, b...) }
	f.Add(raw(bare))
	f.Add(append(raw(bare), raw(stun.AppendChannelData(nil, 0x4000, []byte("x")))...))
	f.Add(raw(stun.NewHasher().AppendIntegrity(stun.AppendText(bytes.Clone(bare), stun.AttrUsername, "o1.a.b.AAAA"), []byte("k"))))
	// A call: Allocate, CreatePermission, ChannelBind, packets both ways, time, Refresh, end.
	f.Add([]byte{1, 0, 0, 0, 1, 1, 0, 2, 0, 1, 2, 0, 3, 0, 2, 1, 0, 4, 1, 0, 'h', 'i', 5, 0, 0, 2, 'h', 'i', 3, 10, 1, 0, 1, 1, 6, 0, 3, 255})
	f.Add([]byte{1, 0, 0, 0, 1, 1, 1, 1, 0, 1, 1, 2, 2, 0, 1, 1, 0, 1, 0x80, 1, 7, 0, 3, 50, 1, 1, 0, 1, 3})
	f.Add([]byte{1, 0, 1, 0, 1, 2, 0, 0, 12, 0x00, 0x12, 0x00, 0x08, 0x00, 0x01, 1, 2, 3, 4, 5, 6, 8, 0, 1, 99})
	// A dual allocation: permission, channel, packets both ways, one half deleted, time.
	f.Add([]byte{1, 0, 0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 2, 0, 0, 6, 0, 1, 0, 0, 0, 3, 0, 0, 1, 0, 0, 4, 0, 1, 2, 'h', 'i', 5, 0, 6, 2, 'h', 'i', 1, 0, 0, 0, 1, 0, 10, 0, 3, 0, 10})
	// An even port and the next, which another 5-tuple redeems, time, and another that comes too late.
	f.Add([]byte{1, 0, 0, 0, 0, 0, 4, 0, 1, 1, 0, 0, 0, 0, 3, 0, 3, 0, 5, 1, 2, 0, 0, 0, 0, 4, 0, 3, 0, 6, 1, 0, 1, 0, 0, 0, 3, 0})

	clients := []Tuple{alice, mallory, {Client: ap("[2001:db8::1]:9"), Listener: 1, Transport: 17}}
	peers := []netip.AddrPort{gateway, netip.AddrPortFrom(gateway.Addr(), 40001), netip.AddrPortFrom(gateway.Addr(), 22), stranger, ap("127.0.0.1:80"), ap("[2001:db8::7]:1"), gateway6}
	owners := []string{"p1", "p2"}
	methods := []stun.Method{stun.Allocate, stun.Refresh, stun.CreatePermission, stun.ChannelBind, stun.Send, stun.Binding}

	f.Fuzz(func(t *testing.T, input []byte) {
		p := &program{input}
		w := newWorld(t, func(c *Config) {
			c.Policy = CredentialPolicy(len(input) % 3)
			c.Families = []byte{stun.FamilyIPv4, stun.FamilyIPv6, bothFamilies}[len(input)/3%3]
			c.GraceMax, c.Quota, c.MaxAllocations, c.MaxPermissions, c.MaxChannels, c.ReplyBurst = 20*time.Minute, 2, 3, 2, 2, 1<<30
		})
		creds := map[[2]int]cred{}
		credential := func(s shape, owner int) cred {
			k := [2]int{int(s), owner}
			if _, ok := creds[k]; !ok {
				creds[k] = w.issue(s, owners[owner], w.now, 10*time.Minute)
			}
			return creds[k]
		}
		proven := map[string]bool{} // owners that have shown a credential
		check := func() {
			w.invariants()
			w.sockets()
			for o := range w.core.tenants[0].owners {
				if !proven[o] {
					t.Fatalf("state for %q, who has not authenticated", o)
				}
			}
			for _, a := range w.core.ids {
				for addr := range a.permissions {
					if w.core.allowAddr(w.core.tenants[0], addr) != nil {
						t.Fatalf("permission for %v", addr)
					}
				}
				for _, ch := range a.channels {
					if w.core.allow(w.core.tenants[0], ch.peer) != nil {
						t.Fatalf("channel for %v", ch.peer)
					}
				}
			}
			for _, a := range w.out.Actions {
				if a.Kind != ToPeer {
					continue
				}
				al := w.core.ids[a.ID]
				if al == nil || !al.permitted(a.Peer.Addr(), w.now) || w.core.allow(w.core.tenants[0], a.Peer) != nil {
					t.Fatalf("a packet leaves for %v", a.Peer)
				}
			}
		}
		give := func(tu Tuple, b []byte) {
			before := bytes.Clone(b)
			w.packet(tu, b)
			if !bytes.Equal(before, b) {
				t.Fatal("the client's packet was changed")
			}
			check()
		}
		for steps := 0; len(p.b) > 0 && steps < 200; steps++ {
			op := p.byte() % 8
			tu := clients[int(p.byte())%len(clients)]
			switch op {
			case 0: // anything
				give(tu, p.bytes(int(p.byte())))
			case 1, 2: // an authenticated request with chosen or with any attributes
				s, owner := shape(p.byte()&1), int(p.byte()&1)
				c := credential(s, owner)
				m := methods[int(p.byte())%len(methods)]
				b := w.build(m, stun.Request)
				if m == stun.Send {
					b = w.build(m, stun.Indication)
				}
				if op == 2 {
					any := p.bytes(int(p.byte()) &^ 3)
					b = append(b, any[:len(any)&^3]...)
					b[2], b[3] = byte((len(b)-20)>>8), byte(len(b)-20)
				} else {
					if x := p.byte(); x&1 != 0 || m == stun.Allocate {
						b = transport(17)(b)
					} else if x&2 != 0 {
						b = lifetime(uint32(x) * 40)(b)
					} else if x == 0 && m == stun.Refresh {
						b = lifetime(0)(b)
					}
					switch x := p.byte(); {
					case m == stun.Allocate && x&3 == 3: // the second half of a reservation, or one that is none
						if n := len(w.core.reserved); n > 0 {
							b = reserved(w.core.reserved[n-1].token[:])(b)
						}
					case m == stun.Allocate && x&4 != 0:
						b = pair(b)
					case m == stun.Allocate && x&1 != 0:
						b = also(stun.FamilyIPv6)(b)
					case (m == stun.Allocate || m == stun.Refresh) && x&2 != 0:
						b = only(x >> 2 & 3)(b)
					}
					if m == stun.ChannelBind {
						b = channelNumber(0x3fff + uint16(p.byte()%4))(b)
					}
					if m != stun.Allocate && m != stun.Refresh {
						b = peer(peers[int(p.byte())%len(peers)])(b)
						b = data("x")(b)
					}
				}
				b = w.sign(b, c, w.nonce(tu))
				if x := p.byte(); x&0x80 != 0 { // spoiled
					b[int(x&0x7f)%len(b)] ^= 1 << (x & 7)
				} else {
					proven[owners[owner]] = true
				}
				give(tu, b)
			case 3: // time
				w.sleep(time.Duration(p.byte()) * 5 * time.Second)
				check()
			case 4: // ChannelData
				give(tu, stun.AppendChannelData(nil, 0x3fff+uint16(p.byte()%4), p.bytes(int(p.byte()))))
			case 5: // a peer
				from := peers[int(p.byte())%len(peers)]
				w.fromPeer(tu, from, string(p.bytes(int(p.byte()))))
				check()
			case 6: // revocation
				o := owners[p.byte()&1]
				w.core.Revoke(w.now, o, &w.out)
				w.act(Tuple{})
				if w.core.held(w.core.tenants[0], o) != 0 {
					t.Fatal("revoked, and still there")
				}
				check()
			case 7: // news of the session, or a fresh token
				if x := p.byte(); x&1 != 0 {
					w.core.Extend(w.now, owners[x>>1&1], w.now.Add(time.Duration(x)*time.Minute))
				} else {
					clear(creds)
				}
			}
		}
		w.sleep(48 * time.Hour)
		check()
		if w.core.Allocations() != 0 || w.opened != w.closed {
			t.Fatalf("%d allocations live for ever; %d sockets opened, %d closed", w.core.Allocations(), w.opened, w.closed)
		}
	})
}
