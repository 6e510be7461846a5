package core

import (
	"errors"
	"net/netip"

	"wicgate/internal/peerpolicy"
	"wicgate/internal/wire/stun"
)

// allowAddr asks the tenant's policy about an address for CreatePermission.
func (c *Core) allowAddr(t *tenant, addr netip.Addr) error {
	err := t.Peers.AllowAddr(addr)
	if errors.Is(err, peerpolicy.ErrOwnRelay) {
		return nil // a relay address is in use: the asker's own. Each packet is asked about with its port.
	}
	return err
}

// allow asks the tenant's policy about a peer. A relay address of our own is one while it is allocated; the
// permission of its own client is asked for where the packet arrives.
func (c *Core) allow(t *tenant, peer netip.AddrPort) error {
	return c.allowRelay(t, peer, false)
}

// allowRelay is allow for a peer on UDP or TCP.
func (c *Core) allowRelay(t *tenant, peer netip.AddrPort, tcp bool) error {
	err := t.Peers.Allow(peer)
	if err != nil && errors.Is(err, peerpolicy.ErrOwnRelay) {
		if o := c.relays[peer]; o != nil && o.tcp == tcp {
			return nil
		}
	}
	return err
}

// createPermission handles an authenticated CreatePermission request (RFC 8656 §9.2): all of its
// addresses or none.
func (c *Core) createPermission(r *request, a *allocation, out *Outbox) {
	a.sweep(r.now)
	peers, fresh := 0, 0
	for typ, v := range r.msg.All() {
		if typ != stun.AttrXORPeerAddress {
			continue
		}
		peer, err := stun.ParseXORAddress(v, r.msg.TransactionID())
		if err != nil {
			c.fail(r, out, 400, CauseBadRequest, nil)
			return
		}
		if !a.half(peer.Addr()).open() {
			c.fail(r, out, 443, CauseFamily, nil)
			return
		}
		if err := c.allowAddr(r.tenant, peer.Addr()); err != nil {
			c.refusedPeer(r, out, peer, err)
			return
		}
		peers++
		if _, ok := a.permissions[peer.Addr()]; !ok {
			fresh++ // an address named twice counts twice: a bound, not an account
		}
	}
	if peers == 0 {
		c.fail(r, out, 400, CauseBadRequest, nil)
		return
	}
	if len(a.permissions)+fresh > c.cfg.MaxPermissions {
		c.fail(r, out, 508, CauseCapacity, nil)
		return
	}
	for typ, v := range r.msg.All() {
		if typ != stun.AttrXORPeerAddress {
			continue
		}
		if peer, err := stun.ParseXORAddress(v, r.msg.TransactionID()); err == nil { // it was read before
			a.permit(peer.Addr(), r.now)
		}
	}
	c.reply(r, out, r.begin(out, stun.Success))
}

// channelBind handles an authenticated ChannelBind request (RFC 8656 §12.2).
func (c *Core) channelBind(r *request, a *allocation, out *Outbox) {
	highest := uint16(stun.MaxChannel)
	if c.cfg.ChannelNumbers5766 {
		highest = stun.MaxChannel5766
	}
	number, err := stun.ParseChannelNumber(r.channel)
	// RFC 6062 §3: there are no channels on TCP allocations.
	if a.tcp || err != nil || number < stun.MinChannel || number > highest {
		c.fail(r, out, 400, CauseBadRequest, nil)
		return
	}
	peer, err := stun.ParseXORAddress(r.peer, r.msg.TransactionID())
	if err != nil || peer.Port() == 0 {
		c.fail(r, out, 400, CauseBadRequest, nil)
		return
	}
	if !a.half(peer.Addr()).open() {
		c.fail(r, out, 443, CauseFamily, nil)
		return
	}
	if err := c.allow(r.tenant, peer); err != nil {
		c.refusedPeer(r, out, peer, err)
		return
	}
	a.sweep(r.now)
	// One number, one peer, both ways, until the quarantine is over.
	byNumber, byPeer := a.channels[number], a.byPeer[peer]
	if byNumber != byPeer {
		c.fail(r, out, 400, CauseBadRequest, nil)
		return
	}
	fresh := 0
	if _, ok := a.permissions[peer.Addr()]; !ok {
		fresh = 1
	}
	if byNumber == nil && len(a.channels) >= c.cfg.MaxChannels || len(a.permissions)+fresh > c.cfg.MaxPermissions {
		c.fail(r, out, 508, CauseCapacity, nil)
		return
	}
	ch := byNumber
	if ch == nil {
		ch = &channel{number: number, peer: peer}
		if a.channels == nil {
			a.channels, a.byPeer = map[uint16]*channel{}, map[netip.AddrPort]*channel{}
		}
		a.channels[number], a.byPeer[peer] = ch, ch
	}
	ch.expires = r.now.Add(ChannelLifetime)
	a.permit(peer.Addr(), r.now) // §12.2: binding also installs or refreshes the permission
	c.reply(r, out, r.begin(out, stun.Success))
}

// refusedPeer answers 403 and names the peer for the log.
func (c *Core) refusedPeer(r *request, out *Outbox, peer netip.AddrPort, why error) {
	c.fail(r, out, 403, CausePeer, &PeerError{peer, why})
}

// PeerError names a peer that the policy refused.
type PeerError struct {
	Peer netip.AddrPort
	Err  error
}

// Error implements error.
func (e *PeerError) Error() string { return "peer " + e.Peer.String() + ": " + e.Err.Error() }

// Unwrap returns the policy's verdict.
func (e *PeerError) Unwrap() error { return e.Err }
