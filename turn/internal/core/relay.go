package core

import (
	"net/netip"
	"time"

	"wicgate/internal/wire/stun"
)

// This file is the way of a relayed packet. It allocates nothing.

const (
	// Headroom is the room before a peer's packet that FromPeer needs, and Tailroom behind it.
	Headroom = stun.DataHeadroom
	Tailroom = 3
	// maxDatagram is the longest payload of UDP over IPv4.
	maxDatagram = 65507
)

// send handles a Send indication (RFC 8656 §11.3). It is not authenticated: the permission, made by
// an authenticated request, is what lets it pass. It refreshes nothing. Refusals are silent.
func (c *Core) send(r *request, out *Outbox) {
	a := c.lookup(r.tuple, r.now, out)
	if a == nil || a.state != open {
		c.refuse(out, CauseNoAllocation, nil)
		return
	}
	if r.unknowns > 0 { // DONT-FRAGMENT too, where it cannot be honoured (§11.3)
		c.refuse(out, CauseUnknownAttribute, nil)
		return
	}
	peer, err := stun.ParseXORAddress(r.peer, r.msg.TransactionID())
	if err != nil || r.data == nil || a.tcp { // DATA of no bytes is legal, no DATA is not
		c.refuse(out, CauseBadRequest, nil)
		return
	}
	c.toPeer(a, r.tuple, r.now, peer, r.data, r.dontFragment != nil, out)
}

// channelData handles a ChannelData message from a client (RFC 8656 §12.6).
func (c *Core) channelData(now time.Time, t Tuple, packet []byte, out *Outbox) {
	number, data, err := stun.ParseChannelData(packet)
	if err != nil {
		c.refuse(out, CauseMalformed, err)
		return
	}
	a := c.lookup(t, now, out)
	if a == nil || a.state != open {
		c.refuse(out, CauseNoAllocation, nil)
		return
	}
	ch := a.channels[number]
	if ch == nil || !now.Before(ch.expires) {
		c.refuse(out, CauseChannel, nil)
		return
	}
	c.toPeer(a, t, now, ch.peer, data, false, out)
}

// toPeer relays data if there is a permission, which must live also where a channel does, and the
// policy still allows the peer with its port. whole is DONT-FRAGMENT.
func (c *Core) toPeer(a *allocation, t Tuple, now time.Time, peer netip.AddrPort, data []byte, whole bool, out *Outbox) {
	if !a.permitted(peer.Addr(), now) {
		c.refuse(out, CauseNoPermission, nil)
		return
	}
	if err := c.allow(a.cur.tenant, peer); err != nil {
		c.refuse(out, CausePeer, err)
		return
	}
	if !a.within(now, len(data)) {
		c.refuse(out, CauseRate, nil)
		return
	}
	c.arrived(a, t)
	a.traffic.SentPackets++
	a.traffic.SentBytes += uint64(len(data))
	c.stats.Traffic.SentPackets++
	c.stats.Traffic.SentBytes += uint64(len(data))
	if len(c.locals) > 0 {
		if to := c.relays[peer]; to != nil {
			peer = to.half(peer.Addr()).Local // the NAT in front might drop it
		}
	}
	out.Actions = append(out.Actions, Action{Kind: ToPeer, ID: a.id, Relay: a.half(peer.Addr()).Relay, Peer: peer, Data: data, Whole: whole})
}

// FromPeer takes a packet of n bytes from peer, unmapped, that arrived at the relay socket of id. It
// stands in buf at [Headroom]; the header for the client is written before it, and up to [Tailroom]
// bytes behind it (RFC 8656 §11.5, §12.7).
func (c *Core) FromPeer(now time.Time, id ID, peer netip.AddrPort, buf []byte, n int, out *Outbox) {
	out.reset()
	a := c.ids[id]
	if a == nil || c.expire(a, now, out) || a.state != open {
		c.refuse(out, CauseNoAllocation, nil)
		return
	}
	if len(c.locals) > 0 {
		if relayed, ok := c.locals[peer]; ok {
			peer = relayed // another client of ours, on the short way of toPeer
		}
	}
	if !a.permitted(peer.Addr(), now) {
		c.refuse(out, CauseNoPermission, nil)
		return
	}
	if err := c.allow(a.cur.tenant, peer); err != nil {
		c.refuse(out, CausePeer, err)
		return
	}
	if !a.within(now, n) {
		c.refuse(out, CauseRate, nil)
		return
	}
	var m []byte
	if ch := a.byPeer[peer]; ch != nil && now.Before(ch.expires) {
		if n > maxDatagram-stun.ChannelHeaderSize {
			c.refuse(out, CauseTooLong, nil)
			return
		}
		m = buf[Headroom-stun.ChannelHeaderSize : Headroom+n]
		stun.PutChannelHeader(m, ch.number, n)
	} else {
		if n > maxDatagram-Headroom-Tailroom {
			c.refuse(out, CauseTooLong, nil)
			return
		}
		m = stun.PutDataIndication(buf, n, c.transactionID(), peer)
	}
	a.traffic.ReceivedPackets++
	a.traffic.ReceivedBytes += uint64(n)
	c.stats.Traffic.ReceivedPackets++
	c.stats.Traffic.ReceivedBytes += uint64(n)
	out.Actions = append(out.Actions, Action{Kind: ToClient, ID: a.id, Tuple: a.tuple, Data: m})
}
