// Package core is a TURN server without sockets and without a clock: a state machine (RFC 8656,
// RFC 8489 §9.2, RFC 7635) that is handed packets and the time, and returns what to do.
//
//	client packet ──► FromClient ─┐                 ┌─► ToClient: send to a client
//	peer packet ────► FromPeer ───┤                 ├─► ToPeer:   send from a relay socket
//	the time ───────► Timeout ────┼──► Core ──► Outbox ─► Open:   open a relay socket, then Opened
//	a relay opened ─► Opened ─────┤                 └─► Close:    close it; an allocation has ended
//	revocation ─────► Revoke ─────┤
//	a lost client ──► Disconnected┘
//
// What it never does: keep anything for a source that has not authenticated, except the fixed-size
// [Budget]; allocate memory for a relayed packet; block. A Core serves one goroutine at a time; its
// owner holds a lock around each call and acts on the Outbox without it.
//
// The order of checks is nonce, token, MAC: a source that spoofs its address costs one HMAC and
// never reaches the token's cipher. RFC 8489 §9.2.4 checks the nonce last; the difference shows
// only in requests with both a stale nonce and a bad MAC.
package core

import (
	"container/heap"
	"crypto/rand"
	"errors"
	"net/netip"
	"time"

	"wicgate/internal/secret"
	"wicgate/internal/token"
	"wicgate/internal/wire/stun"
)

// Limits and times of RFC 8656 (§3.2, §7.2, §9, §12) that are no configuration.
const (
	DefaultLifetime    = 600 * time.Second  // granted when nothing or less is asked for
	MaxLifetime        = 3600 * time.Second // granted at most
	PermissionLifetime = 300 * time.Second  // exactly (§9)
	ChannelLifetime    = 600 * time.Second
	// ChannelQuarantine is how long after its expiry a channel's number and peer may only be bound
	// to one another again (§12).
	ChannelQuarantine = 300 * time.Second
	// OldKeyLife is how long a replaced key still verifies, for requests and retransmissions that
	// were on their way: the length of a transaction (RFC 8489 §6.2.1).
	OldKeyLife = 40 * time.Second
	// SessionSlack is for the next extension to be on its way, and for a client that is late.
	SessionSlack = 60 * time.Second
	// maxLiving bounds the sessions of which it is known how long they live, some 100 bytes each.
	// Those beyond are treated as if nothing had been said.
	maxLiving = 200_000
	// sweepEvery is how often they are looked through for those that are over, at most: when they are
	// twice as many as were left the last time, and sweepFrom or more.
	sweepEvery = time.Minute
	sweepFrom  = 1024
)

// Keys are the keys of one TURN server name; *keyring.Ring is one.
type Keys interface {
	// Key returns the key and format of tokens under kid, and whose they are: "" where a kid names a
	// key and nobody (RFC 7635 as it is printed), and stands for its owner itself.
	Key(kid string) (key secret.Bytes, f token.Format, pseudonym string, ok bool)
	// NonceSecrets returns the secrets of nonces: they are made with the first, and all are taken.
	NonceSecrets() []secret.Bytes
}

// CredentialPolicy says what happens to an allocation whose credential ends (DESIGN, Credentials).
type CredentialPolicy uint8

const (
	// Session grants Refresh while the issuer says that the session lives ([Core.Extend]) and
	// SessionSlack longer, and as CallGrace where there is no such news, or some may have been lost
	// ([Core.Missed], [Core.Blind]).
	Session CredentialPolicy = iota
	// CallGrace grants Refresh until the token's expiry plus GraceMax.
	CallGrace
	// Strict ends the allocation at the token's expiry (RFC 7635 §4.1.1: LIFETIME capped by it).
	Strict
)

// Config is what a Core needs. All fields but the noted ones are required. The Tenant in it is the
// first, by whom clients on a listener of all are challenged; its Keys' nonce secrets are those of all.
type Config struct {
	Tenant
	Others []Tenant // 0 to 65534 more

	Families byte // of the relay addresses: stun.FamilyIPv4, stun.FamilyIPv6 or both, ored
	// DontFragment says that relay sockets can send single packets that no router takes apart.
	DontFragment bool

	MaxAllocations int
	MaxPermissions int // per allocation
	MaxChannels    int // per allocation
	// ChannelNumbers5766 takes the channel numbers up to 0x7FFF of RFC 5766 too.
	ChannelNumbers5766 bool

	TCPRelay     bool          // RFC 6062
	Mobility     bool          // RFC 8016
	NATDiscovery *NATDiscovery // nil = off

	// Budget of replies to sources without a valid nonce. Zero values: see [NewBudget].
	ReplyBurst int
	ReplyRate  float64 // per second

	// Siblings are where clients are sent while draining or full; none = they are told 508.
	Siblings []Sibling

	// Revoked says whether the session of a pseudonym has been revoked; nil = none ever is.
	Revoked func(pseudonym string) bool
	// BlindClosed refuses new allocations while nothing is known of revocations ([Core.Blind]).
	BlindClosed bool
}

// Tuple is a client's side of the 5-tuple: the server's is its listener's number.
type Tuple struct {
	Client    netip.AddrPort // unmapped
	Listener  uint16
	Transport uint8 // IANA protocol number: 17 UDP; 6 TCP, with TLS or without; or TransportDTLS
	TLS       bool  // on TCP
	// Tenant is the one that the listener or the name in TLS has chosen: 1 = the first, 0 = none.
	Tenant uint16
}

// TransportDTLS is the Transport of a client on DTLS, which may share its address with one on plain
// UDP. IANA has reserved the number.
const TransportDTLS uint8 = 255

// ID names an allocation for the life of a Core. Zero is none.
type ID uint64

// Core is the state of one TURN server. Make it with [New].
type Core struct {
	cfg    Config
	hasher *stun.Hasher
	budget *Budget

	tuples   map[Tuple]*allocation
	ids      map[ID]*allocation
	relays   map[netip.AddrPort]*allocation    // by relayed address
	locals   map[netip.AddrPort]netip.AddrPort // relayed addresses by the socket's own, where that is another
	tenants  []*tenant
	reserved []reservation // oldest first; bounded
	queue    expiryQueue
	lastID   ID
	tickets  map[ticket]*allocation
	conns    map[Conn]*conn // of TCP allocations
	waiting  []*conn        // for ConnectionBind, in the order of expiry; ended and bound ones too

	living   map[string]time.Time // how long sessions live, as the issuer has said; bounded
	swept    time.Time            // when living was last looked through for what is over
	kept     int                  // how many were left
	draining bool
	drained  time.Time // when draining ends the rest; zero = never
	blind    bool
	random   [64 * 12]byte // transaction ids of indications, used from the end
	left     int           // unused bytes of random
	stats    Stats
	req      request // scratch of the request being handled
}

// New returns a Core without allocations.
func New(cfg Config) *Core {
	c := &Core{
		cfg: cfg, hasher: stun.NewHasher(), budget: NewBudget(cfg.ReplyBurst, cfg.ReplyRate), tenants: []*tenant{newTenant(cfg.Tenant)},
		tuples: map[Tuple]*allocation{}, ids: map[ID]*allocation{}, relays: map[netip.AddrPort]*allocation{}, locals: map[netip.AddrPort]netip.AddrPort{},
		living: map[string]time.Time{}, conns: map[Conn]*conn{}, tickets: map[ticket]*allocation{},
	}
	for _, t := range cfg.Others {
		c.tenants = append(c.tenants, newTenant(t))
	}
	return c
}

// FromClient takes a packet from a client. packet is read, and views of it go into out; it must
// stay as it is until out has been acted on.
func (c *Core) FromClient(now time.Time, t Tuple, packet []byte, out *Outbox) {
	out.reset()
	kind := stun.Classify(packet)
	if kind == stun.ProtocolChannel5766 && c.cfg.ChannelNumbers5766 {
		kind = stun.ProtocolChannel
	}
	switch kind {
	case stun.ProtocolChannel:
		c.channelData(now, t, packet, out)
	case stun.ProtocolSTUN:
		c.message(now, t, packet, out)
	default:
		c.refuse(out, CauseNotSTUN, nil)
	}
}

func (c *Core) message(now time.Time, t Tuple, packet []byte, out *Outbox) {
	m, err := stun.Parse(packet)
	if errors.Is(err, stun.ErrCookie) && c.classic(now, t, packet, out) {
		return
	}
	if err != nil {
		c.refuse(out, CauseMalformed, err)
		return
	}
	if m.HasFingerprint() && !m.FingerprintOK() {
		c.refuse(out, CauseMalformed, stun.ErrFingerprint) // RFC 8489 §6.3: silently
		return
	}
	out.Method = m.Method()
	r := &c.req
	r.read(m, t, now)
	if r.dontFragment != nil && !c.cfg.DontFragment {
		r.unknownAttr(stun.AttrDontFragment) // RFC 8656 §7.2
	}
	r.tenant = c.challenger(t)
	c.unread(r)
	defer r.forget()
	switch m.Type() {
	case stun.NewType(stun.Binding, stun.Request):
		c.binding(r, out)
	case stun.NewType(stun.Allocate, stun.Request), stun.NewType(stun.Refresh, stun.Request),
		stun.NewType(stun.CreatePermission, stun.Request), stun.NewType(stun.ChannelBind, stun.Request):
		c.request(r, out)
	case stun.NewType(stun.Connect, stun.Request), stun.NewType(stun.ConnectionBind, stun.Request):
		if !c.cfg.TCPRelay {
			c.refuse(out, CauseMethod, nil)
			return
		}
		c.request(r, out)
	case stun.NewType(stun.Send, stun.Indication):
		c.send(r, out)
	case stun.NewType(stun.Binding, stun.Indication): // a keep-alive (RFC 8489 §7.3.2, ICE)
	default:
		// RFC 8489 §6.3: an unknown method, or an answer to nothing we asked, is dropped.
		c.refuse(out, CauseMethod, nil)
	}
}

// request handles the methods that need authentication.
func (c *Core) request(r *request, out *Outbox) {
	a := c.lookup(r.tuple, r.now, out)
	var n *conn
	if r.method == stun.ConnectionBind {
		// It comes on a connection of its own, and is verified under the allocation's credential.
		if n = c.bindable(r); n != nil {
			a = n.a
		}
	}
	byTicket := r.method == stun.Refresh && r.ticket != nil
	if byTicket && c.cfg.Mobility {
		a = c.ticketed(r, out)
	}
	if !c.authenticate(r, a, out) {
		return
	}
	// RFC 8489 §6.3.1: authentication comes before unknown attributes.
	if r.unknowns > 0 {
		c.fail(r, out, 420, CauseUnknownAttribute, nil)
		return
	}
	if r.method == stun.Allocate {
		c.allocate(r, a, out)
		return
	}
	if r.method == stun.ConnectionBind {
		c.connectionBind(r, n, out)
		return
	}
	if byTicket {
		c.move(r, a, out)
		return
	}
	// RFC 8656 §5: the 5-tuple must have an allocation, else 437, and it must be the client's who
	// asks, else 441. Both are told only to those who have authenticated.
	switch {
	case a == nil || a.state == opening:
		c.fail(r, out, 437, CauseNoAllocation, nil)
	case a.owner != r.cred.owner || a.cur.tenant != r.cred.tenant:
		c.fail(r, out, 441, CauseWrongCredentials, nil)
	case r.method == stun.Refresh:
		c.refresh(r, a, out)
	case !a.knows(r.cred, r.now):
		// A new credential of the same owner enters by Refresh, nowhere else.
		c.fail(r, out, 441, CauseWrongCredentials, nil)
	case r.method == stun.CreatePermission:
		c.createPermission(r, a, out)
	case r.method == stun.Connect:
		c.connect(r, a, out)
	default:
		c.channelBind(r, a, out)
	}
}

// binding answers a Binding request (RFC 8489 §12). It needs no credential, and draws on the budget.
func (c *Core) binding(r *request, out *Outbox) {
	if !c.spend(r, out) {
		return
	}
	if r.unknowns > 0 {
		c.fail(r, out, 420, CauseUnknownAttribute, nil)
		return
	}
	m := stun.AppendXORAddress(r.begin(out, stun.Success), stun.AttrXORMappedAddress, r.tuple.Client)
	if ip, port, ok := c.cfg.NATDiscovery.place(r.tuple.Listener); ok && r.tuple.Transport == stun.ProtocolUDP {
		if m, r.tuple, ok = c.discover(r, out, ip, port, m); !ok {
			return
		}
	}
	c.stats.Bindings++
	c.reply(r, out, m)
}

// lookup returns the allocation of t, ending it if its time has come.
func (c *Core) lookup(t Tuple, now time.Time, out *Outbox) *allocation {
	a := c.tuples[t]
	if a != nil && c.expire(a, now, out) {
		return nil
	}
	return a
}

// NextTimeout returns when [Core.Timeout] is next needed; ok is false if nothing is waiting.
func (c *Core) NextTimeout() (at time.Time, ok bool) {
	if len(c.queue) > 0 {
		at, ok = c.queue[0].expires, true
	}
	if len(c.reserved) > 0 && (!ok || c.reserved[0].expires.Before(at)) {
		at, ok = c.reserved[0].expires, true
	}
	if n := c.nextWaiting(); n != nil && (!ok || n.expires.Before(at)) {
		at, ok = n.expires, true
	}
	if !c.drained.IsZero() && ok && c.drained.Before(at) {
		at = c.drained
	}
	return at, ok
}

// Timeout ends the allocations, reservations and waiting connections whose time has come.
func (c *Core) Timeout(now time.Time, out *Outbox) {
	out.reset()
	if !c.drained.IsZero() && !now.Before(c.drained) {
		c.endAll(now, EndDrained, out)
	}
	for len(c.queue) > 0 && c.queue[0].expired(now) {
		c.expire(c.queue[0], now, out)
	}
	c.releaseExpired(now, out)
	for n := c.nextWaiting(); n != nil && !now.Before(n.expires); n = c.nextWaiting() {
		c.drop(n, true, out)
	}
}

// Revoke ends all allocations of pseudonym and returns how many they were. It keeps nothing: that
// the pseudonym's credentials open no new allocation is what Config.Revoked is for.
func (c *Core) Revoke(now time.Time, pseudonym string, out *Outbox) int {
	out.reset()
	n := 0
	for _, t := range c.tenants {
		for t.owners[pseudonym] != nil {
			c.end(t.owners[pseudonym].allocations[0], now, EndRevoked, out)
			n++
		}
	}
	c.release(func(r *reservation) bool { return r.owner == pseudonym }, out)
	return n
}

// Recheck ends the allocations of static users who are no longer there with the key that they
// authenticated with, and returns how many they were.
func (c *Core) Recheck(now time.Time, out *Outbox) int {
	out.reset()
	n := 0
	for _, a := range c.ids {
		if a.cur.kind != KindStatic {
			continue
		}
		if users := a.cur.tenant.Users; users != nil {
			if key, ok := users.Key(a.cur.username, a.cur.alg); ok && key.Equal(a.cur.key) {
				continue
			}
		}
		c.end(a, now, EndRevoked, out)
		n++
	}
	return n
}

// Holds reports whether t has an allocation, one still being opened too.
func (c *Core) Holds(t Tuple) bool { return c.tuples[t] != nil }

// Disconnected tells that the connection t is gone. Its allocation ends with it: no other connection
// can ever be of the same 5-tuple (RFC 8656 §3.2). One with a ticket waits for its client for
// [Unreachable].
func (c *Core) Disconnected(now time.Time, t Tuple, out *Outbox) {
	out.reset()
	if a := c.tuples[t]; a != nil && !c.detach(a, t, now) {
		c.end(a, now, EndDisconnected, out)
	}
}

// Kill ends one allocation and reports whether it was there.
func (c *Core) Kill(now time.Time, id ID, out *Outbox) bool {
	out.reset()
	a := c.ids[id]
	if a == nil {
		return false
	}
	c.end(a, now, EndKilled, out)
	return true
}

// Missed tells that extensions may have been lost: those known count no more, so that no session is
// held to have ended because its last extension did not come.
func (c *Core) Missed() {
	clear(c.living)
	for _, a := range c.ids {
		a.extended = time.Time{}
	}
}

// Blind tells that nothing is heard of extensions and revocations, or again something is.
func (c *Core) Blind(blind bool) { c.blind = blind }

// Extend is the issuer's news that the session of pseudonym lives until the given time. Under the
// policy Session its allocations may be refreshed until then; old news shorten nothing.
func (c *Core) Extend(now time.Time, pseudonym string, until time.Time) {
	// The map is as large as the log-ins of hours, and a look through it holds up packets.
	if len(c.living) >= min(max(2*c.kept, sweepFrom), maxLiving) && now.Sub(c.swept) > sweepEvery {
		for p, end := range c.living {
			if !now.Before(end) {
				delete(c.living, p)
			}
		}
		c.swept, c.kept = now, len(c.living)
	}
	if _, known := c.living[pseudonym]; (known || len(c.living) < maxLiving) && until.After(c.living[pseudonym]) {
		c.living[pseudonym] = until // mostly said before the session allocates
	}
	for _, t := range c.tenants {
		if t.owners[pseudonym] == nil {
			continue
		}
		for _, a := range t.owners[pseudonym].allocations {
			if until.After(a.extended) {
				a.extended = until
			}
		}
	}
}

// Drain refuses new allocations from now on, with 300 to a sibling or with 508, or again takes them.
// Timeout ends those that there are at end; the zero Time is never.
func (c *Core) Drain(on bool, end time.Time) { c.draining, c.drained = on, end }

// Oldest returns when the oldest allocation began; ok is false if there is none.
func (c *Core) Oldest() (born time.Time, ok bool) {
	for _, a := range c.ids {
		if !ok || a.born.Before(born) {
			born, ok = a.born, true
		}
	}
	return born, ok
}

// EndAll ends all allocations and reservations, for a shutdown.
func (c *Core) EndAll(now time.Time, out *Outbox) {
	out.reset()
	c.endAll(now, EndShutdown, out)
}

func (c *Core) endAll(now time.Time, why EndCause, out *Outbox) {
	for len(c.queue) > 0 {
		c.end(c.queue[0], now, why, out)
	}
	c.release(func(*reservation) bool { return true }, out)
}

// Allocations returns how many allocations there are, those still being opened among them.
func (c *Core) Allocations() int { return len(c.ids) }

// end is the only exit of an allocation.
func (c *Core) end(a *allocation, now time.Time, why EndCause, out *Outbox) {
	if c.tuples[a.tuple] == a { // it is not, where its connection is gone
		delete(c.tuples, a.tuple)
	}
	c.forgetMobile(a)
	delete(c.ids, a.id)
	a.cur.tenant.remove(a, now)
	heap.Remove(&c.queue, a.place)
	if a.state == open {
		e := &Ended{
			Cause: why, Owner: a.owner, Tenant: a.cur.tenant.Name, Credential: a.cur.kind, Tuple: a.tuple, Relayed: a.relayed(),
			Age: now.Sub(a.born), Peers: a.peers, Traffic: a.traffic,
		}
		for i := range a.halves {
			if a.halves[i].open() {
				c.endHalf(a, &a.halves[i], e, out)
				e = nil // one line in the log
			}
		}
	}
	a.state = ended
	c.stats.Ended[why]++
}

// endHalf closes a relay socket of a, with the permissions and channels that were its (RFC 8656 §8.2).
func (c *Core) endHalf(a *allocation, h *half, e *Ended, out *Outbox) {
	for addr := range a.permissions {
		if a.half(addr) == h {
			delete(a.permissions, addr)
		}
	}
	for n, ch := range a.channels {
		if a.half(ch.peer.Addr()) == h {
			delete(a.channels, n)
			delete(a.byPeer, ch.peer)
		}
	}
	for peer, n := range a.conns {
		if a.half(peer.Addr()) == h {
			c.drop(n, true, out)
		}
	}
	delete(c.relays, h.Relayed)
	delete(c.locals, h.Local)
	out.Actions = append(out.Actions, Action{Kind: Close, ID: a.id, Relay: h.Relay, Ended: e})
	*h = half{}
}

// expire ends what of a has come to its time, and reports whether that is all of it.
func (c *Core) expire(a *allocation, now time.Time, out *Outbox) bool {
	if !a.expired(now) {
		return false
	}
	if !now.Before(a.latest()) {
		c.end(a, now, EndExpired, out)
		return true
	}
	for i := range a.halves { // each has been refreshed by itself
		if h := &a.halves[i]; h.open() && !now.Before(h.expires) {
			c.endHalf(a, h, nil, out)
		}
	}
	c.reschedule(a)
	return false
}

// reschedule puts a where the first of its halves to expire says.
func (c *Core) reschedule(a *allocation) {
	a.expires = a.latest()
	for i := range a.halves {
		if h := &a.halves[i]; h.open() && h.expires.Before(a.expires) {
			a.expires = h.expires
		}
	}
	heap.Fix(&c.queue, a.place)
}

// transactionID returns a fresh random id (RFC 8489 §5).
func (c *Core) transactionID() (id stun.TransactionID) {
	if c.left == 0 {
		rand.Read(c.random[:]) // never fails
		c.left = len(c.random)
	}
	copy(id[:], c.random[c.left-len(id):c.left])
	c.left -= len(id)
	return id
}
