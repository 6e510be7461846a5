package core

import (
	"bytes"
	"fmt"
	"iter"
	"net/netip"
	"testing"
	"time"

	"wicgate/internal/keyring"
	"wicgate/internal/peerpolicy"
	"wicgate/internal/secret"
	"wicgate/internal/token"
	"wicgate/internal/wire/stun"
)

const realm = "turn.ims.test"

var (
	relayIP   = netip.MustParseAddr("203.0.113.9") // special-purpose, so that no policy lets it pass by chance
	insideIP  = netip.MustParseAddr("10.0.0.9")
	relayIP6  = netip.MustParseAddr("2001:db8::9")
	insideIP6 = netip.MustParseAddr("fd00::9")
	gateway6  = netip.MustParseAddrPort("[2001:db8:1::10]:40000")
	gateway   = netip.MustParseAddrPort("192.0.2.10:40000")
	stranger  = netip.MustParseAddrPort("192.0.2.11:40000")
	alice     = Tuple{Client: netip.MustParseAddrPort("198.51.100.1:5000"), Transport: 17}
	mallory   = Tuple{Client: netip.MustParseAddrPort("198.51.100.66:6666"), Transport: 17}
)

// world is a Core with a clock, a keyring, and relay sockets that open when asked.
type world struct {
	t              testing.TB
	core           *Core
	now            time.Time
	ring           *keyring.Ring
	out            Outbox
	h              *stun.Hasher
	port           uint16
	ended          []*Ended
	opened, closed int    // relay sockets
	last           Outbox // what the last packet led to, before any opening
	seq            byte
	from           Tuple // of the last answer
	fails          byte  // families whose relay sockets do not open
	behindNAT      bool  // they are on insideIP, and on relayIP to others
}

func newWorld(t testing.TB, change ...func(*Config)) *world {
	w := &world{t: t, now: time.Now().Round(time.Second), ring: keyring.New(realm), h: stun.NewHasher(), port: 49152}
	cfg := Config{
		Tenant: Tenant{
			Name: realm, Keys: w.ring, Policy: CallGrace, GraceMax: 12 * time.Hour, Quota: 32, QuotaTenant: 1000,
			Peers: peerpolicy.IMS(peerpolicy.Range{Prefix: netip.MustParsePrefix("192.0.2.10/32"), MinPort: 40000, MaxPort: 40999},
				peerpolicy.Range{Prefix: netip.MustParsePrefix("2001:db8:1::10/128"), MinPort: 40000, MaxPort: 40999}),
		},
		Families: stun.FamilyIPv4, MaxAllocations: 1000, MaxPermissions: 16, MaxChannels: 8,
	}
	for _, f := range change {
		f(&cfg)
	}
	w.core = New(cfg)
	return w
}

// shape is how a token travels.
type shape int

const (
	inUsername shape = iota // o1.
	inToken                 // ACCESS-TOKEN, RFC 7635
)

func (s shape) String() string { return [...]string{"o1", "ACCESS-TOKEN"}[s] }

// cred is a client's credential.
type cred struct {
	username string
	realm    string
	key      []byte
	token    []byte // of ACCESS-TOKEN
	sha256   bool
}

// issue makes a token as the WAF does.
func (w *world) issue(s shape, pseudonym string, at time.Time, life time.Duration) cred {
	return w.issueUnder(w.ring, s, w.ring.KID(pseudonym), at, life)
}

func (w *world) issueUnder(ring *keyring.Ring, s shape, kid string, at time.Time, life time.Duration) cred {
	w.t.Helper()
	return w.issueFor(realm, realm, ring, s, kid, at, life)
}

// issueFor makes a token for the server name, for a client that is challenged with REALM asked.
func (w *world) issueFor(name, asked string, ring *keyring.Ring, s shape, kid string, at time.Time, life time.Duration) cred {
	w.t.Helper()
	k, f, _, ok := ring.Key(kid)
	if !ok {
		w.t.Fatalf("no key for kid %q", kid)
	}
	mac := token.NewMACKey()
	tok, err := token.Seal(f, k, name, token.Payload{MACKey: mac, Timestamp: token.NewTimestamp(at), Lifetime: life})
	if err != nil {
		w.t.Fatal(err)
	}
	return shaped(s, asked, kid, tok, mac)
}

func shaped(s shape, realm, kid string, tok []byte, mac secret.Bytes) cred {
	if s == inToken {
		return cred{username: kid, realm: realm, key: mac.Expose(), token: tok}
	}
	user := token.AppendUsername(nil, kid, tok)
	key := stun.MD5.Key(user, []byte(realm), token.Credential(mac).Expose())
	return cred{username: string(user), realm: realm, key: key[:]}
}

// id returns a transaction id not used before.
func (w *world) id() stun.TransactionID {
	w.seq++
	return stun.TransactionID{1, 2, 3, w.seq, byte(w.now.UnixNano())}
}

type add func(m []byte) []byte

func attr(t stun.Attr, v []byte) add {
	return func(m []byte) []byte { return stun.AppendAttr(m, t, v) }
}
func lifetime(s uint32) add {
	return func(m []byte) []byte { return stun.AppendUint32(m, stun.AttrLifetime, s) }
}
func small(t stun.Attr, v byte) add { return func(m []byte) []byte { return stun.AppendByte(m, t, v) } }
func channelNumber(n uint16) add {
	return func(m []byte) []byte { return stun.AppendChannelNumber(m, n) }
}
func peer(a netip.AddrPort) add {
	return func(m []byte) []byte { return stun.AppendXORAddress(m, stun.AttrXORPeerAddress, a) }
}
func data(s string) add    { return attr(stun.AttrData, []byte(s)) }
func transport(p byte) add { return small(stun.AttrRequestedTransport, p) }

// build returns an unauthenticated message.
func (w *world) build(m stun.Method, cl stun.Class, adds ...add) []byte {
	b := stun.AppendHeader(nil, stun.NewType(m, cl), w.id())
	for _, f := range adds {
		b = f(b)
	}
	return b
}

// sign appends the credential, a nonce and the integrity.
func (w *world) sign(b []byte, c cred, nonce []byte) []byte {
	b = stun.AppendText(b, stun.AttrUsername, c.username)
	if c.realm != "" {
		b = stun.AppendText(b, stun.AttrRealm, c.realm)
	}
	b = stun.AppendAttr(b, stun.AttrNonce, nonce)
	typ := stun.Type(uint16(b[0])<<8 | uint16(b[1]))
	if m := typ.Method(); c.token != nil && (m == stun.Allocate || m == stun.Refresh) {
		b = stun.AppendAttr(b, stun.AttrAccessToken, c.token)
	}
	if c.sha256 {
		return w.h.AppendIntegritySHA256(b, c.key)
	}
	return w.h.AppendIntegrity(b, c.key)
}

// nonce asks for one as a client does.
func (w *world) nonce(t Tuple) []byte {
	w.t.Helper()
	r := w.packet(t, w.build(stun.Allocate, stun.Request, transport(17)))
	n := r.get(stun.AttrNonce)
	if r.code != 401 || n == nil {
		w.t.Fatalf("bare Allocate: %v", r)
	}
	return bytes.Clone(n)
}

// response is the answer to a client, or none.
type response struct {
	msg  stun.Message
	code int  // of the error, 0 = success
	ok   bool // there is one
	mac  bool // integrity under the request's key
	size int
}

func (r response) get(t stun.Attr) []byte {
	if !r.ok {
		return nil
	}
	v, _ := r.msg.Get(t)
	return v
}

func (r response) lifetime() int {
	v, ok := seconds(r.get(stun.AttrLifetime))
	if !ok {
		return -1
	}
	return int(v / time.Second)
}

func (r response) String() string {
	switch {
	case !r.ok:
		return "silence"
	case r.code != 0:
		return fmt.Sprintf("%d, mac %v", r.code, r.mac)
	}
	return fmt.Sprintf("success, LIFETIME %d, mac %v", r.lifetime(), r.mac)
}

// packet gives the Core a packet, opens and closes what it asks for, and returns the answer.
func (w *world) packet(t Tuple, b []byte) response {
	w.t.Helper()
	w.core.FromClient(w.now, t, b, &w.out)
	w.last = w.out
	w.last.Actions = append([]Action(nil), w.out.Actions...)
	return w.act(t)
}

func (w *world) act(t Tuple) response {
	var r response
	for i := 0; i < len(w.out.Actions); i++ {
		a := w.out.Actions[i]
		switch a.Kind {
		case ToClient:
			w.from = a.Tuple
			if a.Tuple != t && w.core.cfg.NATDiscovery == nil {
				w.t.Fatalf("answer goes to %v, asked by %v", a.Tuple, t)
			}
			m, err := stun.Parse(bytes.Clone(a.Data))
			if err != nil {
				w.t.Fatalf("the server's own answer: %v: %x", err, a.Data)
			}
			r = response{msg: m, ok: true, size: len(a.Data)}
			if m.Class() == stun.Error {
				v, _ := m.Get(stun.AttrErrorCode)
				code, _, err := stun.ParseErrorCode(v)
				if err != nil {
					w.t.Fatal(err)
				}
				r.code = code
			}
		case Open:
			var got Sockets
			for i := range got.Family {
				if port, held := a.Relay.(uint16); held && a.Families&byte(1+i) != 0 {
					got.Family[i] = w.socket(i, port)
				} else if a.Families&^w.fails&byte(1+i) != 0 {
					w.opened++
					if w.port++; a.Even {
						w.port += w.port & 1
					}
					got.Family[i] = w.socket(i, w.port)
					if a.Next {
						w.opened++
						w.port++
						got.Next = w.socket(i, w.port)
					}
				}
			}
			w.core.Opened(w.now, a.ID, got, &w.out)
			i = -1
		case Close:
			w.closed++
			if a.Ended != nil {
				w.ended = append(w.ended, a.Ended)
			}
		}
	}
	return r
}

// socket is the relay socket of a port.
func (w *world) socket(family int, port uint16) Socket {
	at := netip.AddrPortFrom([]netip.Addr{relayIP, relayIP6}[family], port)
	if w.behindNAT {
		return Socket{port, at, netip.AddrPortFrom([]netip.Addr{insideIP, insideIP6}[family], port)}
	}
	return Socket{port, at, at}
}

// ask sends an authenticated request with a fresh nonce.
func (w *world) ask(t Tuple, c cred, m stun.Method, adds ...add) response {
	w.t.Helper()
	return w.askNonce(t, c, w.nonce(t), m, adds...)
}

func (w *world) askNonce(t Tuple, c cred, nonce []byte, m stun.Method, adds ...add) response {
	w.t.Helper()
	r := w.packet(t, w.sign(w.build(m, stun.Request, adds...), c, nonce))
	if r.ok {
		if c.sha256 {
			r.mac = w.h.CheckIntegritySHA256(r.msg, c.key)
		} else {
			r.mac = w.h.CheckIntegrity(r.msg, c.key)
		}
	}
	return r
}

// want fails the test unless r is the given code (0 = success) with the integrity it must have.
func (w *world) want(r response, code int) response {
	w.t.Helper()
	mac := code != 401 && code != 438
	if !r.ok || r.code != code || r.mac != mac {
		w.t.Fatalf("%v, want %d, mac %v (cause: %v, %v)", r, code, mac, w.last.Cause, w.last.Detail)
	}
	return r
}

// sleep moves the clock and runs the timer as the shell does.
func (w *world) sleep(d time.Duration) {
	end := w.now.Add(d)
	for {
		at, ok := w.core.NextTimeout()
		if !ok || at.After(end) {
			break
		}
		if at.After(w.now) {
			w.now = at
		}
		w.core.Timeout(w.now, &w.out)
		w.act(Tuple{})
	}
	w.now = end
}

// toPeer sends a packet of a client and returns what leaves for a peer.
func (w *world) toPeer(t Tuple, b []byte) (netip.AddrPort, string, bool) {
	w.core.FromClient(w.now, t, b, &w.out)
	for _, a := range w.out.Actions {
		if a.Kind == ToPeer {
			return a.Peer, string(a.Data), true
		}
	}
	return netip.AddrPort{}, "", false
}

// fromPeer delivers a peer's packet to the relay of t, and returns what leaves for the client.
func (w *world) fromPeer(t Tuple, from netip.AddrPort, s string) ([]byte, bool) {
	w.t.Helper()
	a := w.core.tuples[t]
	if a == nil {
		return nil, false
	}
	buf := make([]byte, Headroom+len(s)+Tailroom)
	copy(buf[Headroom:], s)
	w.core.FromPeer(w.now, a.id, from, buf, len(s), &w.out)
	for _, a := range w.out.Actions {
		if a.Kind == ToClient {
			if a.Tuple != t {
				w.t.Fatalf("packet goes to %v, want %v", a.Tuple, t)
			}
			return a.Data, true
		}
	}
	return nil, false
}

// call allocates and opens the way to the gateway.
func (w *world) call(t Tuple, c cred) {
	w.t.Helper()
	w.want(w.ask(t, c, stun.Allocate, transport(17)), 0)
	w.want(w.ask(t, c, stun.CreatePermission, peer(gateway)), 0)
}

// sockets checks that each relay socket that was opened and not closed is somebody's.
func (w *world) sockets() {
	w.t.Helper()
	halves := 0
	for _, a := range w.core.ids {
		halves += len(a.relayed())
	}
	if w.opened-w.closed != halves+len(w.core.reserved) {
		w.t.Fatalf("%d sockets opened, %d closed, %d of allocations, %d reserved", w.opened, w.closed, halves, len(w.core.reserved))
	}
}

// owned are the allocations in the books of all tenants.
func (w *world) owned() iter.Seq[*allocation] {
	return func(yield func(*allocation) bool) {
		for _, t := range w.core.tenants {
			n := 0
			for _, o := range t.owners {
				if len(o.allocations) == 0 {
					w.t.Fatal("an owner without allocations is kept")
				}
				n += len(o.allocations)
				for _, a := range o.allocations {
					if !yield(a) {
						return
					}
				}
			}
			if n != t.allocations {
				w.t.Fatalf("tenant %s counts %d allocations and has %d", t.Name, t.allocations, n)
			}
		}
	}
}

// invariants checks that the Core's tables agree.
func (w *world) invariants() {
	w.t.Helper()
	c := w.core
	owned, opened, halves, tuples := 0, 0, 0, 0
	for a := range w.owned() {
		owned++
		lost := a.mobile != nil && a.mobile.lost
		if !lost {
			tuples++
		}
		if m := a.mobile; m != nil && m.next != (Tuple{}) {
			if tuples++; c.tuples[m.next] != a || lost {
				w.t.Fatal("a new path is not in order")
			}
		}
		if o := a.cur.tenant.owners[a.owner]; o != a.books || len(o.allocations) > a.cur.tenant.Quota {
			w.t.Fatalf("owner %q is not in order", a.owner)
		}
		if c.ids[a.id] != a || (c.tuples[a.tuple] == a) == lost || a.state == ended || a.place >= len(c.queue) || c.queue[a.place] != a {
			w.t.Fatalf("allocation %d is not in order", a.id)
		}
		if len(a.permissions) > c.cfg.MaxPermissions || len(a.channels) > c.cfg.MaxChannels || len(a.channels) != len(a.byPeer) {
			w.t.Fatalf("%d permissions, %d channels, %d by peer", len(a.permissions), len(a.channels), len(a.byPeer))
		}
		for n, ch := range a.channels {
			if ch.number != n || a.byPeer[ch.peer] != ch {
				w.t.Fatalf("channel %04x is not one to one", n)
			}
		}
		// What was granted before the first news of the session came stays granted.
		end := c.hardEnd(a.cur, a.extended)
		if before := c.hardEnd(a.cur, time.Time{}); before.After(end) {
			end = before
		}
		if a.state == open && a.expires.After(end) {
			w.t.Fatalf("allocation lives %v beyond its credential's end", a.expires.Sub(end))
		}
		if a.state == open {
			opened++
			if len(a.relayed()) == 0 {
				w.t.Fatal("an allocation without a relay socket is open")
			}
			for i := range a.halves {
				h := &a.halves[i]
				if !h.open() {
					continue
				}
				halves++
				if c.relays[h.Relayed] != a || familyAt(h.Relayed.Addr()) != i {
					w.t.Fatal("relayed address is not found")
				}
				if h.expires.Before(a.expires) || h.expires.After(end) {
					w.t.Fatalf("half ends at %v, allocation at %v", h.expires, a.expires)
				}
			}
			for addr := range a.permissions {
				if !a.half(addr).open() {
					w.t.Fatalf("permission for %v, of a family without a relay socket", addr)
				}
			}
		}
	}
	for i, r := range c.reserved {
		if r.socket.Relay == nil || i > 0 && r.expires.Before(c.reserved[i-1].expires) || r.expires.After(w.now.Add(ReservationLifetime)) {
			w.t.Fatalf("reservation %+v is not in order", r)
		}
		if n := c.held(r.tenant, r.owner); n > r.tenant.Quota {
			w.t.Fatalf("owner %q has %d allocations and reservations", r.owner, n)
		}
	}
	if owned != len(c.ids) || tuples != len(c.tuples) || owned != len(c.queue) || len(c.locals) > halves || halves != len(c.relays) || opened > halves || len(c.ids)+len(c.reserved) > c.cfg.MaxAllocations || len(c.reserved) > maxReservations {
		w.t.Fatalf("%d owned, %d ids, %d tuples, %d queued, %d open, %d relays", owned, len(c.ids), len(c.tuples), len(c.queue), opened, len(c.relays))
	}
}
