package core

import (
	"net/netip"
	"time"

	"wicgate/internal/wire/stun"
)

// FromNetwork takes an ICMP error about a packet that the relay socket of id has sent to peer, its inner
// destination; port 0 where that is not known. The client gets a Data indication with it, also where a
// channel is bound (RFC 8656 §11.5). Whose router it comes from does not matter, and cannot be known;
// the permission is for whom the packet was sent to.
func (c *Core) FromNetwork(now time.Time, id ID, peer netip.AddrPort, icmp stun.ICMP, out *Outbox) {
	out.reset()
	a := c.ids[id]
	if a == nil || c.expire(a, now, out) || a.state != open {
		c.refuse(out, CauseNoAllocation, nil)
		return
	}
	if relayed, ok := c.locals[peer]; ok {
		peer = relayed // as in FromPeer
	}
	data, told := icmpData(peer.Addr().Is4(), icmp)
	if !told {
		c.refuse(out, CauseICMP, nil)
		return
	}
	if !a.permitted(peer.Addr(), now) {
		c.refuse(out, CauseNoPermission, nil)
		return
	}
	icmp.Data = data
	m := stun.AppendHeader(out.scratch[:0], stun.NewType(stun.Data, stun.Indication), c.transactionID())
	m = stun.AppendXORAddress(m, stun.AttrXORPeerAddress, peer)
	m = stun.AppendICMP(m, icmp)
	c.stats.ICMP++
	out.Actions = append(out.Actions, Action{Kind: ToClient, ID: a.id, Tuple: a.tuple, Data: m})
}

// icmpData says whether clients are told of errors of that type, and what the error's data are: only
// those of "too big" have a meaning, the MTU.
func icmpData(v4 bool, icmp stun.ICMP) (data uint32, told bool) {
	switch {
	case v4 && icmp.Type == 3 && icmp.Code == 4, !v4 && icmp.Type == 2: // fragmentation needed; packet too big
		return icmp.Data, true
	case v4 && (icmp.Type == 3 || icmp.Type == 11), !v4 && (icmp.Type == 1 || icmp.Type == 3): // unreachable, time exceeded
		return 0, true
	}
	return 0, false
}
