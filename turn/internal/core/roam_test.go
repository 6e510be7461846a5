package core

import (
	"bytes"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"wicgate/internal/keyring"
	"wicgate/internal/peerpolicy"
	"wicgate/internal/wire/stun"
)

// FuzzRoam is FuzzClient for what that leaves out: allocations that move, TCP relays and their connections,
// tenants, lost connections, new settings. Its tables agree after each step, and no connection is lost or
// closed twice.
func FuzzRoam(f *testing.F) {
	// An allocation that moves, comes back, and goes to another tenant's listener; time.
	f.Add([]byte{0, 0, 0, 4, 3, 0, 0, 0, 1, 1, 0, 0, 10, 1, 0, 0, 1, 0, 0, 0, 7, 1, 0, 0, 1, 5, 4, 0, 1, 6, 4, 0, 6, 0, 0, 200})
	f.Add([]byte{0, 5, 5, 4, 3, 5, 5, 0, 1, 1, 21, 0, 1, 1, 53, 0, 10, 1, 0, 0, 12, 0, 0, 15, 15, 0, 0, 0, 1, 6, 5, 0, 7, 6, 0, 0})
	// TCP relays: a peer that is connected to, one that connects, both joined; the end of one, and of all.
	f.Add([]byte{0, 2, 0, 2, 3, 2, 0, 0, 2, 2, 0, 0, 5, 2, 0, 0, 8, 2, 0, 1, 9, 3, 0, 0, 14, 3, 0, 0, 9, 3, 0, 1, 2, 2, 0, 0, 11, 0, 0, 0})
	f.Add([]byte{0, 2, 0, 2, 2, 2, 0, 0, 5, 2, 8, 0, 2, 2, 0, 0, 5, 2, 0, 1, 6, 0, 0, 11, 2, 2, 0, 1, 12, 0, 0, 1, 13, 0, 0, 0, 5, 0, 0, 2})
	blue := keyring.New("blue.example")
	closed := peerpolicy.IMS(peerpolicy.Range{Prefix: netip.PrefixFrom(stranger.Addr(), 32)})
	udp6 := Tuple{Client: ap("[2001:db8::1]:9"), Transport: stun.ProtocolUDP}
	clients := []Tuple{alice, bob, aliceTCP, dataTCP, udp6}
	for _, t := range clients[:4] {
		t.Tenant = 2
		clients = append(clients, t)
	}
	peers := []netip.AddrPort{gateway, netip.AddrPortFrom(gateway.Addr(), 40001), stranger, gateway6}
	f.Fuzz(func(t *testing.T, input []byte) {
		w := newWorld(t, func(c *Config) {
			c.Mobility, c.TCPRelay, c.Families, c.ReplyBurst = true, true, bothFamilies, 1<<30
			c.Policy = CredentialPolicy(len(input) % 3)
			c.GraceMax, c.Quota, c.MaxAllocations, c.MaxPermissions, c.MaxChannels = 20*time.Minute, 2, 4, 2, 2
			other := c.Tenant
			other.Name, other.Keys = "blue.example", blue
			c.Others = []Tenant{other}
		})
		settings := []Tenant{w.core.tenants[0].Tenant, w.core.tenants[1].Tenant}
		var tickets [][]byte
		var conns []Conn
		creds := map[[4]string]cred{}
		serial := 0
		live := map[Conn]bool{} // peers' connections that are open
		act := func(to Tuple) response {
			for _, a := range w.out.Actions {
				switch a.Kind {
				case Dial:
					conns = append(conns, a.Conn)
				case CloseConn:
					if id, ok := a.Relay.(Conn); ok {
						if !live[id] {
							t.Fatal("a connection is closed twice")
						}
						delete(live, id)
					}
				case ToClient:
					to = a.Tuple
					m, err := stun.Parse(a.Data)
					if v, ok := m.Get(stun.AttrConnectionID); err == nil && ok {
						if id, err := stun.ParseUint32(v); err == nil {
							conns = append(conns, Conn(id))
						}
					}
				}
			}
			return w.act(to)
		}
		check := func() {
			held := 0
			for id, n := range w.core.conns {
				if n.id != id || n.a.conns[n.peer] != n || n.a.state != open || w.core.ids[n.a.id] != n.a || !n.a.half(n.peer.Addr()).open() {
					t.Fatal("a connection is not in order")
				}
				if n.relay != nil {
					held++
				}
			}
			if held != len(live) {
				t.Fatalf("%d connections, %d open", held, len(live))
			}
			for k, a := range w.core.tickets {
				if w.core.ids[a.id] != a || k != a.mobile.ticket && k != a.mobile.old {
					t.Fatal("a ticket is not in order")
				}
			}
			for tu, a := range w.core.tuples {
				if tu.Tenant != 0 && int(tu.Tenant-1) < len(w.core.tenants) && w.core.tenants[tu.Tenant-1] != a.cur.tenant {
					t.Fatalf("an allocation of %s on a listener of %s", a.cur.tenant.Name, w.core.tenants[tu.Tenant-1].Name)
				}
			}
			w.invariants()
			w.sockets()
		}
		one := func(choice byte) ID { // or none, which is 0
			if len(w.core.ids) == 0 {
				return 0
			}
			return slices.Sorted(maps.Keys(w.core.ids))[int(choice)%len(w.core.ids)]
		}
		p := &program{input}
		for steps := 0; len(p.b) > 0 && steps < 200; steps++ {
			op, tu, x, y := p.byte()%16, clients[int(p.byte())%len(clients)], p.byte(), p.byte()
			ring, name, owner := w.ring, realm, "p1"
			if x&1 != 0 {
				ring, name = blue, "blue.example"
			}
			if x&2 != 0 {
				owner = "p2"
			}
			challenged := realm
			if tu.Tenant == 2 {
				challenged = "blue.example"
			}
			key := [4]string{name, challenged, owner, shape(x >> 2 & 1).String()}
			c, ok := creds[key]
			if !ok {
				c = w.issueFor(name, challenged, ring, shape(x>>2&1), ring.KID(owner), w.now, 10*time.Minute)
				creds[key] = c
			}
			if x&16 != 0 {
				c.token = nil // of RFC 7635's shape, by the key that the allocation has
			}
			if x&32 != 0 && c.token != nil {
				c.realm = ""
			}
			ask := func(m stun.Method, adds ...add) response {
				w.core.FromClient(w.now, tu, w.sign(w.build(m, stun.Request, adds...), c, w.core.makeNonce(nil, w.now, tu, 0)), &w.out)
				r := act(tu)
				if v := r.get(stun.AttrMobilityTicket); len(v) > 0 {
					tickets = append(tickets, bytes.Clone(v))
				}
				return r
			}
			to := peers[int(y)%len(peers)]
			switch op {
			case 0:
				adds := []add{transport([]byte{17, 17, 6, 17}[y&3])}
				if y&4 != 0 {
					adds = append(adds, withTicket(nil))
				}
				if y&8 != 0 {
					adds = append(adds, also(stun.FamilyIPv6))
				} else if y&16 != 0 {
					adds = append(adds, pair)
				}
				ask(stun.Allocate, adds...)
			case 1:
				adds := []add{}
				if len(tickets) > 0 {
					adds = append(adds, withTicket(tickets[len(tickets)-1-int(y>>2)%len(tickets)]))
				}
				switch y & 3 {
				case 1:
					adds = append(adds, lifetime(0))
				case 2:
					adds = append(adds, only(1))
				case 3:
					adds = append(adds, only(2), lifetime(0))
				}
				ask(stun.Refresh, adds...)
			case 2:
				ask(stun.Connect, peer(to))
			case 3:
				ask(stun.CreatePermission, peer(to))
			case 4:
				ask(stun.ChannelBind, channelNumber(0x4000+uint16(y&3)), peer(to))
			case 5:
				if len(conns) > 0 {
					id := conns[int(y)%len(conns)]
					if n := w.core.conns[id]; n == nil || n.relay == nil { // also of an allocation that has ended
						var relay any
						if x&8 == 0 {
							serial++
							relay = Conn(serial)
							live[Conn(serial)] = true
						}
						w.core.Connected(w.now, id, relay, &w.out)
						act(tu)
					}
				}
			case 6: // time, as w.sleep has it
				end := w.now.Add(time.Duration(y) * 3 * time.Second)
				for n := 0; ; n++ {
					at, ok := w.core.NextTimeout()
					if !ok || at.After(end) {
						break
					}
					if n == 1000 {
						t.Fatal("the time is up, and nothing ends")
					}
					if at.After(w.now) {
						w.now = at
					}
					w.core.Timeout(w.now, &w.out)
					act(Tuple{})
				}
				w.now = end
			case 7:
				w.core.Disconnected(w.now, tu, &w.out)
				act(tu)
			case 8:
				serial++
				live[Conn(serial)] = true
				w.core.Accepted(w.now, one(x), to, Conn(serial), &w.out)
				act(tu)
			case 9:
				if len(conns) > 0 {
					ask(stun.ConnectionBind, connection(conns[int(y)%len(conns)]))
				}
			case 10:
				w.core.FromClient(w.now, tu, w.build(stun.Send, stun.Indication, peer(to), data("x")), &w.out)
				act(tu)
			case 11:
				w.core.Revoke(w.now, owner, &w.out)
				act(tu)
			case 12:
				next := []Tenant{settings[0], settings[1]}
				if y&1 != 0 {
					next[0].Peers = closed
				}
				if y&4 != 0 {
					next[1].RatePseudonym = 1000
				}
				w.core.Reconfigure(next, y&8 != 0)
			case 13:
				w.core.Kill(w.now, one(y), &w.out)
				act(tu)
			case 14:
				if len(conns) > 0 {
					id := conns[int(y)%len(conns)]
					if n := w.core.conns[id]; n != nil && n.bound {
						delete(live, n.relay.(Conn))
						w.core.Gone(id, &w.out)
						act(tu)
					}
				}
			case 15:
				clear(creds)
			}
			check()
		}
		w.core.EndAll(w.now, &w.out)
		act(Tuple{})
		c := w.core
		if n := len(c.ids) + len(c.tuples) + len(c.relays) + len(c.queue) + len(c.tickets) + len(c.conns) + len(c.reserved) + len(live); n != 0 {
			t.Fatalf("%d entries stay", n)
		}
	})
}
