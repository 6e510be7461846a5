package core

import (
	"container/heap"
	"net/netip"
	"time"

	"wicgate/internal/wire/stun"
)

// openTimeout ends an allocation whose relay socket never came, should the owner lose an Open.
const openTimeout = 30 * time.Second

// allocate handles an authenticated Allocate request, in the order of RFC 8656 §7.2.
func (c *Core) allocate(r *request, a *allocation, out *Outbox) {
	// 2. The 5-tuple is in use: 437, unless this is the same request again (§7.2, RFC 8489 §6.3.1).
	if a != nil {
		switch {
		case a.created.id != r.msg.TransactionID() || !r.cred.same(a.cur) && !r.cred.same(a.previous(r.now)):
			c.fail(r, out, 437, CauseMismatch, nil)
		case a.state == open:
			c.allocated(a, r.key, out)
		}
		return // still opening: the answer is on its way
	}
	// 3. REQUESTED-TRANSPORT.
	if proto, err := stun.ParseByte(r.transport); err != nil {
		c.fail(r, out, 400, CauseBadRequest, nil)
		return
	} else if proto != stun.ProtocolUDP {
		c.fail(r, out, 442, CauseTransport, nil)
		return
	}
	// 4. DONT-FRAGMENT is an unknown attribute here and has been answered with 420.
	// 5. RESERVATION-TOKEN excludes the three that would choose another address. We hand out no
	// reservations (EVEN-PORT with R below), so every token is one that we do not know: 508.
	if r.reservation != nil {
		if len(r.reservation) != 8 || r.evenPort != nil || r.family != nil || r.additional != nil {
			c.fail(r, out, 400, CauseBadRequest, nil)
		} else {
			c.fail(r, out, 508, CauseCapacity, nil)
		}
		return
	}
	// 6.–8. Address families. The relay has one.
	ours, other := byte(stun.FamilyIPv4), byte(stun.FamilyIPv6)
	if c.cfg.RelayIPv6 {
		ours, other = other, ours
	}
	create := answer{id: r.msg.TransactionID(), sha256: r.msg.HasIntegritySHA256(), fingerprint: r.msg.HasFingerprint(), counter: r.echo()}
	switch {
	case r.family != nil && r.additional != nil:
		c.fail(r, out, 400, CauseBadRequest, nil)
		return
	case r.family != nil:
		want, err := stun.ParseByte(r.family)
		if err != nil {
			c.fail(r, out, 400, CauseBadRequest, nil)
			return
		}
		if want != ours {
			c.fail(r, out, 440, CauseFamily, nil)
			return
		}
	case r.additional != nil:
		want, err := stun.ParseByte(r.additional)
		if err != nil || want != stun.FamilyIPv6 { // §7.2: IPv4 as an addition is 400
			c.fail(r, out, 400, CauseBadRequest, nil)
			return
		}
		// One of the two is possible: success, with ADDRESS-ERROR-CODE for the other.
		create.otherFamily = other
	case c.cfg.RelayIPv6:
		c.fail(r, out, 440, CauseFamily, nil) // nothing asked means IPv4
		return
	}
	// 9. EVEN-PORT: R asks to hold the next port too. We do not, and say so with the clause's 508.
	even := false
	if r.evenPort != nil {
		if len(r.evenPort) != 1 {
			c.fail(r, out, 400, CauseBadRequest, nil)
			return
		}
		if r.evenPort[0]&0x80 != 0 {
			if r.additional != nil {
				c.fail(r, out, 400, CauseBadRequest, nil)
			} else {
				c.fail(r, out, 508, CauseCapacity, nil)
			}
			return
		}
		even = true
	}
	if r.lifetime != nil && len(r.lifetime) != 4 {
		c.fail(r, out, 400, CauseBadRequest, nil)
		return
	}
	// 10. Quota, by the pseudonym and not by USERNAME, of which each token is a new one.
	if r.tenant.count(r.cred.owner) >= r.tenant.Quota {
		c.fail(r, out, 486, CauseQuota, nil)
		return
	}
	if c.draining {
		c.fail(r, out, 508, CauseDraining, nil)
		return
	}
	if c.blind && c.cfg.BlindClosed {
		c.fail(r, out, 508, CauseBlind, nil)
		return
	}
	if len(c.ids) >= c.cfg.MaxAllocations || r.tenant.allocations >= r.tenant.QuotaTenant {
		c.fail(r, out, 508, CauseCapacity, nil)
		return
	}
	extended := c.living[r.cred.owner]
	create.lifetime = c.grant(r.lifetime, r.cred, extended, r.now)
	if create.lifetime <= 0 { // less than a second left
		r.key = nil
		c.fail(r, out, 401, CauseExpiredToken, nil)
		return
	}
	c.lastID++
	a = &allocation{
		id: c.lastID, tuple: r.tuple, owner: r.cred.owner, created: create, cur: r.cred, extended: extended,
		born: r.now, expires: r.now.Add(min(openTimeout, create.lifetime)),
	}
	c.tuples[a.tuple] = a
	c.ids[a.id] = a
	r.tenant.add(a)
	heap.Push(&c.queue, a)
	out.Actions = append(out.Actions, Action{Kind: Open, ID: a.id, Even: even, Tuple: a.tuple})
}

// Opened tells that the relay socket of id is open: relay is what actions name it by, relayed its
// address as peers see it. The client is answered now.
func (c *Core) Opened(now time.Time, id ID, relay any, relayed netip.AddrPort, out *Outbox) {
	out.reset()
	a := c.ids[id]
	if a == nil || a.state != opening || c.relays[relayed] != nil {
		// It ended meanwhile. Nobody has heard of it, so there is no end to log.
		out.Actions = append(out.Actions, Action{Kind: Close, ID: id, Relay: relay})
		return
	}
	a.state, a.relay, a.relayed = open, relay, relayed
	a.expires = now.Add(a.created.lifetime)
	if end := c.hardEnd(a.cur, a.extended); end.Before(a.expires) {
		a.expires = end // opening took its time
	}
	heap.Fix(&c.queue, a.place)
	c.relays[relayed] = a
	c.stats.AllocationsTotal++
	c.allocated(a, a.cur.key.Expose(), out)
}

// OpenFailed tells that no relay socket could be opened for id: 508.
func (c *Core) OpenFailed(now time.Time, id ID, out *Outbox) {
	out.reset()
	a := c.ids[id]
	if a == nil || a.state != opening {
		return
	}
	out.Method = stun.Allocate
	c.refuse(out, CauseCapacity, nil)
	out.Code = 508
	m := stun.AppendHeader(out.scratch[:0], stun.NewType(stun.Allocate, stun.Error), a.created.id)
	m = stun.AppendErrorCode(m, 508, "")
	c.finish(out, a.tuple, m, a.cur.key.Expose(), a.created.sha256, a.created.fingerprint)
	c.end(a, now, EndDeleted, out)
}

// allocated answers an Allocate with success (RFC 8656 §7.2).
func (c *Core) allocated(a *allocation, key []byte, out *Outbox) {
	out.Method = stun.Allocate
	m := stun.AppendHeader(out.scratch[:0], stun.NewType(stun.Allocate, stun.Success), a.created.id)
	m = stun.AppendXORAddress(m, stun.AttrXORRelayedAddress, a.relayed)
	m = stun.AppendUint32(m, stun.AttrLifetime, uint32(a.created.lifetime/time.Second))
	m = stun.AppendXORAddress(m, stun.AttrXORMappedAddress, a.tuple.Client)
	if a.created.otherFamily != 0 {
		m = stun.AppendAddressErrorCode(m, a.created.otherFamily, 440)
	}
	m = appendCounter(m, a.created.counter)
	c.finish(out, a.tuple, m, key, a.created.sha256, a.created.fingerprint)
}

// refresh handles an authenticated Refresh request of the allocation's owner (RFC 8656 §8.2).
func (c *Core) refresh(r *request, a *allocation, out *Outbox) {
	if r.family != nil {
		want, err := stun.ParseByte(r.family)
		if err != nil {
			c.fail(r, out, 400, CauseBadRequest, nil)
			return
		}
		if (want == stun.FamilyIPv6) != c.cfg.RelayIPv6 || want != stun.FamilyIPv4 && want != stun.FamilyIPv6 {
			c.fail(r, out, 443, CauseFamily, nil)
			return
		}
	}
	want, ok := seconds(r.lifetime)
	if r.lifetime != nil && !ok {
		c.fail(r, out, 400, CauseBadRequest, nil)
		return
	}
	if ok && want == 0 {
		m := stun.AppendUint32(r.begin(out, stun.Success), stun.AttrLifetime, 0)
		c.reply(r, out, m)
		c.end(a, r.now, EndDeleted, out)
		return
	}
	// A token that is not the allocation's yet, of the same pseudonym (else 441, before): it takes
	// over, and the answer is under its key (RFC 7635 §9).
	cred := a.cur
	renewed := !a.knows(r.cred, r.now)
	if renewed {
		cred = r.cred
	}
	life := c.grant(r.lifetime, cred, a.extended, r.now)
	if life <= 0 {
		// The end that the policy allows has come. The sweep is about to delete the allocation.
		r.key = nil
		c.fail(r, out, 401, CauseExpiredToken, nil)
		return
	}
	if renewed {
		a.old, a.oldUntil = a.cur, r.now.Add(OldKeyLife)
		a.cur = r.cred
	}
	a.expires = r.now.Add(life)
	heap.Fix(&c.queue, a.place)
	a.sweep(r.now)
	c.reply(r, out, stun.AppendUint32(r.begin(out, stun.Success), stun.AttrLifetime, uint32(life/time.Second)))
}
