package core

import (
	"container/heap"
	"slices"
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
		case a.tuple != r.tuple || a.created.id != r.msg.TransactionID() || !r.cred.same(a.cur) && !r.cred.same(a.previous(r.now)):
			c.fail(r, out, 437, CauseMismatch, nil)
		case a.state == open:
			c.allocated(a, r.key, out)
		}
		return // still opening: the answer is on its way
	}
	// 3. REQUESTED-TRANSPORT.
	proto, err := stun.ParseByte(r.transport)
	tcp := proto == stun.ProtocolTCP && c.cfg.TCPRelay
	switch {
	case err != nil:
		c.fail(r, out, 400, CauseBadRequest, nil)
		return
	case proto != stun.ProtocolUDP && !tcp:
		c.fail(r, out, 442, CauseTransport, nil)
		return
	case tcp && (r.tuple.Transport != stun.ProtocolTCP || r.evenPort != nil || r.reservation != nil || r.dontFragment != nil): // RFC 6062 §5.1
		c.fail(r, out, 400, CauseBadRequest, nil)
		return
	}
	// 4. DONT-FRAGMENT only asks whether it can be done. If not, it has been answered with 420.
	// 5. RESERVATION-TOKEN excludes the three that would choose another address. One that is unknown,
	// too old or somebody else's is all the same.
	redeemed := -1
	if r.reservation != nil {
		if len(r.reservation) != 8 || r.evenPort != nil || r.family != nil || r.additional != nil {
			c.fail(r, out, 400, CauseBadRequest, nil)
			return
		}
		c.releaseExpired(r.now, out)
		if redeemed = c.reservation(r.reservation, r.cred); redeemed < 0 {
			c.fail(r, out, 508, CauseCapacity, nil)
			return
		}
	}
	// 6.–8. Address families.
	families := byte(stun.FamilyIPv4) // what no attribute means
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
		if want != stun.FamilyIPv4 && want != stun.FamilyIPv6 {
			want = 0
		}
		families = want
	case r.additional != nil:
		want, err := stun.ParseByte(r.additional)
		if err != nil || want != stun.FamilyIPv6 { // §7.2: IPv4 as an addition is 400
			c.fail(r, out, 400, CauseBadRequest, nil)
			return
		}
		families = stun.FamilyIPv4 | stun.FamilyIPv6
		for i := range create.failed {
			if c.cfg.Families&byte(1+i) == 0 {
				create.failed[i] = 440 // success for the other
			}
		}
	}
	if redeemed >= 0 {
		families = 1 << familyAt(c.reserved[redeemed].socket.Relayed.Addr())
	}
	if families &= c.cfg.Families; families == 0 {
		c.fail(r, out, 440, CauseFamily, nil)
		return
	}
	// 9. EVEN-PORT: R asks to hold the next port too.
	even := r.evenPort != nil
	if even && len(r.evenPort) != 1 {
		c.fail(r, out, 400, CauseBadRequest, nil)
		return
	}
	next := even && r.evenPort[0]&0x80 != 0
	if next && r.additional != nil {
		c.fail(r, out, 400, CauseBadRequest, nil)
		return
	}
	if r.lifetime != nil && len(r.lifetime) != 4 {
		c.fail(r, out, 400, CauseBadRequest, nil)
		return
	}
	if r.ticket != nil && (len(r.ticket) > 0 || tcp) { // RFC 8016 §3.1.2
		c.fail(r, out, 400, CauseBadRequest, nil)
		return
	}
	if r.ticket != nil && !c.cfg.Mobility {
		c.fail(r, out, 405, CauseMobility, nil)
		return
	}
	if c.draining {
		c.elsewhere(r, out, CauseDraining)
		return
	}
	// 10. Quota, by the pseudonym and not by USERNAME, of which each token is a new one.
	more := 1
	switch {
	case next:
		more = 2
	case redeemed >= 0:
		more = 0 // it has been counted
	}
	if c.held(r.tenant, r.cred.owner)+more > r.tenant.Quota {
		c.fail(r, out, 486, CauseQuota, nil)
		return
	}
	if c.blind && c.cfg.BlindClosed {
		c.fail(r, out, 508, CauseBlind, nil)
		return
	}
	if len(c.ids)+len(c.reserved)+more > c.cfg.MaxAllocations || next && len(c.reserved) >= maxReservations ||
		r.tenant.allocations+c.reservedOf(r.tenant, "")+more > r.tenant.QuotaTenant {
		c.elsewhere(r, out, CauseCapacity)
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
		id: c.lastID, tuple: r.tuple, tcp: tcp, families: families, next: next, owner: r.cred.owner, created: create, cur: r.cred, extended: extended,
		born: r.now, expires: r.now.Add(min(openTimeout, create.lifetime)),
	}
	if r.ticket != nil {
		a.mobile = &mobility{}
	}
	c.tuples[a.tuple] = a
	c.ids[a.id] = a
	r.tenant.add(a)
	heap.Push(&c.queue, a)
	do := Action{Kind: Open, ID: a.id, Families: families, TCP: tcp, Even: even, Next: next, Tuple: a.tuple}
	if redeemed >= 0 {
		do.Relay = c.reserved[redeemed].socket.Relay
		c.reserved = slices.Delete(c.reserved, redeemed, redeemed+1)
	}
	out.Actions = append(out.Actions, do)
}

// Sockets are what came of an Open. A zero Socket is one that was not asked for, or could not be opened.
type Sockets struct {
	Family [2]Socket // IPv4, IPv6
	Next   Socket    // behind the even port
}

// unwanted closes them. Nobody has heard of them, so there is no end to log.
func (got *Sockets) unwanted(out *Outbox) {
	for _, s := range []Socket{got.Family[0], got.Family[1], got.Next} {
		if s.Relay != nil {
			out.Actions = append(out.Actions, Action{Kind: Close, Relay: s.Relay})
		}
	}
}

// Opened tells what came of the Open of id. The client is answered now: with 508 if there is no relay
// socket at all, and with ADDRESS-ERROR-CODE if there is one of two.
func (c *Core) Opened(now time.Time, id ID, got Sockets, out *Outbox) {
	out.reset()
	a := c.ids[id]
	if a == nil || a.state != opening { // it ended meanwhile
		got.unwanted(out)
		return
	}
	if got == (Sockets{}) || a.next && (got.Next.Relay == nil || len(c.reserved) >= maxReservations) {
		c.openFailed(a, now, out)
		got.unwanted(out)
		return
	}
	expires := now.Add(a.created.lifetime)
	if end := c.hardEnd(a.cur, a.extended); end.Before(expires) {
		expires = end // opening took its time
	}
	a.state = open
	for i, s := range got.Family {
		if s.Relay == nil {
			if a.families&byte(1+i) != 0 {
				a.created.failed[i] = 508
			}
			continue
		}
		a.halves[i] = half{s, expires}
		c.address(s, a)
	}
	c.reschedule(a)
	if a.next {
		token := c.reserve(got.Next, a, now)
		a.created.reservation = token[:]
	}
	if a.mobile != nil {
		c.newTicket(a)
		a.created.ticket = slices.Clone(a.mobile.ticket[:])
	}
	c.stats.AllocationsTotal++
	c.allocated(a, a.cur.key.Expose(), out)
}

// openFailed answers 508: there is no relay socket, or not the two that EVEN-PORT asks for.
func (c *Core) openFailed(a *allocation, now time.Time, out *Outbox) {
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
	for i := range a.halves {
		if a.halves[i].open() {
			m = stun.AppendXORAddress(m, stun.AttrXORRelayedAddress, a.halves[i].Relayed)
		}
	}
	m = stun.AppendUint32(m, stun.AttrLifetime, uint32(a.created.lifetime/time.Second))
	m = stun.AppendXORAddress(m, stun.AttrXORMappedAddress, a.tuple.Client)
	if a.created.reservation != nil {
		m = stun.AppendAttr(m, stun.AttrReservationToken, a.created.reservation)
	}
	if a.created.ticket != nil {
		m = stun.AppendAttr(m, stun.AttrMobilityTicket, a.created.ticket)
	}
	for i, code := range a.created.failed {
		if code != 0 {
			m = stun.AppendAddressErrorCode(m, byte(1+i), code)
		}
	}
	m = appendCounter(m, a.created.counter)
	c.finish(out, a.tuple, m, key, a.created.sha256, a.created.fingerprint)
}

// refresh handles an authenticated Refresh request of the allocation's owner (RFC 8656 §8.2).
func (c *Core) refresh(r *request, a *allocation, out *Outbox) {
	if life, ok := c.refreshed(r, a, out); ok && life > 0 {
		c.reply(r, out, stun.AppendUint32(r.begin(out, stun.Success), stun.AttrLifetime, uint32(life/time.Second)))
	}
}

// refreshed refreshes a and returns its new lifetime. Of a refusal, and of a deletion, which is life 0, the
// client has been told.
func (c *Core) refreshed(r *request, a *allocation, out *Outbox) (life time.Duration, ok bool) {
	scope := a.halves[:]
	if r.family != nil {
		want, err := stun.ParseByte(r.family)
		if err != nil {
			c.fail(r, out, 400, CauseBadRequest, nil)
			return 0, false
		}
		if want != stun.FamilyIPv4 && want != stun.FamilyIPv6 || !a.halves[want-1].open() {
			c.fail(r, out, 443, CauseFamily, nil)
			return 0, false
		}
		scope = a.halves[want-1 : want]
	}
	want, ok := seconds(r.lifetime)
	if r.lifetime != nil && !ok {
		c.fail(r, out, 400, CauseBadRequest, nil)
		return 0, false
	}
	if ok && want == 0 {
		m := stun.AppendUint32(r.begin(out, stun.Success), stun.AttrLifetime, 0)
		c.reply(r, out, m)
		if len(scope) == 1 && len(a.relayed()) > 1 {
			c.endHalf(a, &scope[0], nil, out)
			c.reschedule(a)
		} else {
			c.end(a, r.now, EndDeleted, out)
		}
		return 0, true
	}
	// A token that is not the allocation's yet, of the same pseudonym (else 441, before): it takes
	// over, and the answer is under its key (RFC 7635 §9).
	cred := a.cur
	renewed := !a.knows(r.cred, r.now)
	if renewed {
		cred = r.cred
	}
	life = c.grant(r.lifetime, cred, a.extended, r.now)
	if life <= 0 {
		// The end that the policy allows has come. The sweep is about to delete the allocation.
		r.key = nil
		c.fail(r, out, 401, CauseExpiredToken, nil)
		return 0, false
	}
	if renewed {
		a.old, a.oldUntil = a.cur, r.now.Add(OldKeyLife)
		a.cur = r.cred
		end := c.hardEnd(a.cur, a.extended)
		for i := range a.halves { // the one that is not refreshed too
			if h := &a.halves[i]; h.open() && end.Before(h.expires) {
				h.expires = end
			}
		}
	}
	for i := range scope {
		if scope[i].open() {
			scope[i].expires = r.now.Add(life)
		}
	}
	c.reschedule(a)
	a.sweep(r.now)
	return life, true
}
