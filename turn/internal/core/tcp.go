package core

import (
	"crypto/rand"
	"encoding/binary"
	"net/netip"
	"time"

	"wicgate/internal/wire/stun"
)

// This file is RFC 6062: allocations whose relay is a TCP socket. What a peer and a client say to each
// other goes over a connection each, which the owner of the Core joins to one stream of bytes:
//
//	client ── Connect ──► Dial ────────► Connected ── CONNECTION-ID ─┐
//	peer ── connects ──► Accepted ── ConnectionAttempt ──────────────┤
//	client, a new connection ── ConnectionBind ──► Splice ◄──────────┘

const (
	// BindTimeout is how long a peer's connection waits for ConnectionBind (RFC 6062 §5.2, §5.3).
	BindTimeout = 30 * time.Second
	// DialTimeout is how long the way to a peer may take (§5.2: at least 30 s).
	DialTimeout = 30 * time.Second
)

// Conn names a connection to or from a peer: the value of CONNECTION-ID, random. Zero is none.
type Conn uint32

// conn is a connection to or from a peer.
type conn struct {
	id      Conn
	a       *allocation
	peer    netip.AddrPort
	relay   any // nil while it is dialed
	bound   bool
	expires time.Time // while it waits for ConnectionBind
	asked   answer    // of Connect
}

// newConn enters a connection of a.
func (c *Core) newConn(a *allocation, peer netip.AddrPort) *conn {
	var b [4]byte
	for {
		rand.Read(b[:]) // never fails
		id := Conn(binary.BigEndian.Uint32(b[:]))
		if id == 0 || c.conns[id] != nil {
			continue
		}
		n := &conn{id: id, a: a, peer: peer}
		if a.conns == nil {
			a.conns = map[netip.AddrPort]*conn{}
		}
		c.conns[id], a.conns[peer] = n, n
		return n
	}
}

// wait lets n wait for its ConnectionBind.
func (c *Core) wait(n *conn, now time.Time) {
	n.expires = now.Add(BindTimeout)
	c.waiting = append(c.waiting, n) // in the order of expiry: all wait equally long
}

// drop ends n, and its connection too if close.
func (c *Core) drop(n *conn, closing bool, out *Outbox) {
	delete(c.conns, n.id)
	delete(n.a.conns, n.peer)
	if closing && n.relay != nil {
		out.Actions = append(out.Actions, Action{Kind: CloseConn, Conn: n.id, Relay: n.relay})
	}
}

// nextWaiting returns the first connection that still waits, nil if none does.
func (c *Core) nextWaiting() *conn {
	for len(c.waiting) > 0 {
		n := c.waiting[0]
		if c.conns[n.id] == n && !n.bound {
			return n
		}
		c.waiting[0] = nil
		c.waiting = c.waiting[1:]
	}
	return nil
}

// allowConn asks the policy about a peer on TCP. A relayed address of ours is one while a TCP allocation
// has it.
func (c *Core) allowConn(t *tenant, peer netip.AddrPort) error {
	return c.allowRelay(t, peer, true)
}

// connect handles an authenticated Connect request of the allocation's owner (RFC 6062 §5.2). It needs no
// permission, so the policy decides here by itself.
func (c *Core) connect(r *request, a *allocation, out *Outbox) {
	peer, err := stun.ParseXORAddress(r.peer, r.msg.TransactionID())
	if err != nil || peer.Port() == 0 || !a.tcp {
		c.fail(r, out, 400, CauseBadRequest, nil)
		return
	}
	h := a.half(peer.Addr())
	if !h.open() {
		c.fail(r, out, 443, CauseFamily, nil)
		return
	}
	if err := c.allowConn(r.tenant, peer); err != nil {
		c.refusedPeer(r, out, peer, err)
		return
	}
	if a.conns[peer] != nil {
		c.fail(r, out, 446, CauseConnection, nil)
		return
	}
	if len(a.conns) >= c.cfg.MaxChannels {
		c.fail(r, out, 508, CauseCapacity, nil)
		return
	}
	n := c.newConn(a, peer)
	n.asked = answer{id: r.msg.TransactionID(), sha256: r.msg.HasIntegritySHA256(), fingerprint: r.msg.HasFingerprint(), counter: r.echo()}
	to := peer
	if o := c.relays[peer]; o != nil {
		to = o.half(peer.Addr()).Local // a 1:1 NAT need not send it back to us
	}
	out.Actions = append(out.Actions, Action{Kind: Dial, ID: a.id, Conn: n.id, Relay: h.Relay, Peer: to})
}

// Connected tells what came of a Dial: relay is what actions name the connection by, nil if the peer could
// not be reached. The client is answered now.
func (c *Core) Connected(now time.Time, id Conn, relay any, out *Outbox) {
	out.reset()
	n := c.conns[id]
	if n == nil { // its allocation has ended meanwhile
		if relay != nil {
			out.Actions = append(out.Actions, Action{Kind: CloseConn, Conn: id, Relay: relay})
		}
		return
	}
	out.Method = stun.Connect
	class := stun.Success
	if relay == nil {
		class = stun.Error
	}
	m := stun.AppendHeader(out.scratch[:0], stun.NewType(stun.Connect, class), n.asked.id)
	if relay == nil {
		c.refuse(out, CauseConnection, nil)
		out.Code = 447
		m = stun.AppendErrorCode(m, 447, "")
		c.drop(n, false, out)
	} else {
		n.relay = relay
		c.wait(n, now)
		m = stun.AppendUint32(m, stun.AttrConnectionID, uint32(id))
	}
	m = appendCounter(m, n.asked.counter)
	c.finish(out, n.a.tuple, m, n.a.cur.key.Expose(), n.asked.sha256, n.asked.fingerprint)
}

// Accepted tells of a connection from peer, unmapped, at the relay socket of id. It is closed at once unless
// the peer has a permission; else the client is told (RFC 6062 §5.3). Nothing is to be read from it before
// Splice: what the peer sends waits in the kernel.
func (c *Core) Accepted(now time.Time, id ID, peer netip.AddrPort, relay any, out *Outbox) {
	out.reset()
	refuse := func(why Cause, err error) {
		c.refuse(out, why, err)
		out.Actions = append(out.Actions, Action{Kind: CloseConn, Relay: relay})
	}
	if relayed, ok := c.locals[peer]; ok {
		peer = relayed // a client of ours, from inside
	}
	a := c.ids[id]
	switch {
	case a == nil || a.state != open || a.expired(now):
		refuse(CauseNoAllocation, nil)
		return
	case !a.permitted(peer.Addr(), now):
		refuse(CauseNoPermission, nil)
		return
	case a.conns[peer] != nil:
		refuse(CauseConnection, nil)
		return
	case len(a.conns) >= c.cfg.MaxChannels:
		refuse(CauseCapacity, nil)
		return
	}
	if err := c.allowConn(a.cur.tenant, peer); err != nil {
		refuse(CausePeer, err)
		return
	}
	n := c.newConn(a, peer)
	n.relay = relay
	c.wait(n, now)
	m := stun.AppendHeader(out.scratch[:0], stun.NewType(stun.ConnectionAttempt, stun.Indication), c.transactionID())
	m = stun.AppendUint32(m, stun.AttrConnectionID, uint32(n.id))
	m = stun.AppendXORAddress(m, stun.AttrXORPeerAddress, peer)
	out.Actions = append(out.Actions, Action{Kind: ToClient, Tuple: a.tuple, Data: m})
}

// bindable returns the connection that a ConnectionBind names, nil if there is none that waits for one.
func (c *Core) bindable(r *request) *conn {
	id, err := stun.ParseUint32(r.connection)
	if err != nil {
		return nil
	}
	n := c.conns[Conn(id)]
	if n == nil || n.relay == nil || n.bound || !r.now.Before(n.expires) {
		return nil
	}
	return n
}

// connectionBind handles an authenticated ConnectionBind request (RFC 6062 §5.4), which comes on a
// connection of its own. One that is unknown and one that is another's are alike.
func (c *Core) connectionBind(r *request, n *conn, out *Outbox) {
	if n == nil || n.a.owner != r.cred.owner || n.a.cur.tenant != r.cred.tenant || r.tuple.Transport != stun.ProtocolTCP || c.tuples[r.tuple] != nil {
		c.fail(r, out, 400, CauseBadRequest, nil)
		return
	}
	n.bound = true
	c.reply(r, out, r.begin(out, stun.Success))
	out.Actions = append(out.Actions, Action{Kind: Splice, Conn: n.id, Relay: n.relay, Tuple: r.tuple})
}

// Passed tells that n bytes are about to pass on a connection, to its peer or from it. ok is false if the
// connection has ended, or its peer has been closed by [Core.Reconfigure]; wait is how long the bytes have to wait by the rates, after which it is to be
// called again, 0 = not at all.
func (c *Core) Passed(now time.Time, id Conn, toPeer bool, n int) (wait time.Duration, ok bool) {
	k := c.conns[id]
	if k == nil {
		return 0, false
	}
	if c.allowConn(k.a.cur.tenant, k.peer) != nil {
		c.stats.Refused[CausePeer]++
		return 0, false
	}
	if !k.a.within(now, n) {
		return 20 * time.Millisecond, true
	}
	for _, t := range []*Traffic{&k.a.traffic, &c.stats.Traffic} {
		if toPeer {
			t.SentPackets++
			t.SentBytes += uint64(n)
		} else {
			t.ReceivedPackets++
			t.ReceivedBytes += uint64(n)
		}
	}
	return 0, true
}

// Gone tells that a connection has ended by itself.
func (c *Core) Gone(id Conn, out *Outbox) {
	out.reset()
	if n := c.conns[id]; n != nil {
		c.drop(n, false, out)
	}
}
