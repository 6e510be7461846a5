package core

import (
	"net/netip"
	"time"

	"wicgate/internal/wire/stun"
)

// NATDiscovery is what a client finds out by it how its NAT behaves (RFC 5780): four UDP listeners, of two
// addresses with the same two ports.
type NATDiscovery struct {
	// Listeners are their numbers, and Addrs where they are, by address and by port.
	Listeners [2][2]uint16
	Addrs     [2][2]netip.AddrPort
	// Reflect takes RESPONSE-PORT and PADDING too: an answer to another port of the client's address, and
	// one that is padded to paddingSize. Both make a server a better reflector.
	Reflect bool
	// Classic answers clients of RFC 3489 too, which send no magic cookie.
	Classic bool
}

// paddingSize is the value of PADDING, in bytes: with it an answer is longer than the MTU of an Ethernet,
// so that it is fragmented (RFC 5780 §7.6).
const paddingSize = 1500

// place finds a listener among the four.
func (n *NATDiscovery) place(listener uint16) (ip, port int, ok bool) {
	if n == nil {
		return 0, 0, false
	}
	for ip := range n.Listeners {
		for port := range n.Listeners[ip] {
			if n.Listeners[ip][port] == listener {
				return ip, port, true
			}
		}
	}
	return 0, 0, false
}

// discover answers a Binding request on one of the four listeners (RFC 5780 §6.1). ok is false where it has
// been answered with an error.
func (c *Core) discover(r *request, out *Outbox, ip, port int, m []byte) (answer []byte, from Tuple, ok bool) {
	n, from := c.cfg.NATDiscovery, r.tuple
	m = stun.AppendAddress(m, stun.AttrMappedAddress, r.tuple.Client) // §6.1: both forms
	m = stun.AppendAddress(m, stun.AttrOtherAddress, n.Addrs[ip^1][port^1])
	if r.change != nil {
		flags, err := stun.ParseUint32(r.change)
		if err != nil {
			c.fail(r, out, 400, CauseBadRequest, nil)
			return nil, from, false
		}
		ip, port, from.Listener = n.change(ip, port, flags)
	}
	m = stun.AppendAddress(m, stun.AttrResponseOrigin, n.Addrs[ip][port])
	if r.responsePort != nil {
		to, err := stun.ParseChannelNumber(r.responsePort) // the same form: two bytes and two reserved
		if err != nil || to == 0 || r.padding != nil {     // §7.5: not with PADDING
			c.fail(r, out, 400, CauseBadRequest, nil)
			return nil, from, false
		}
		from.Client = netip.AddrPortFrom(from.Client.Addr(), to)
	}
	if r.padding != nil {
		var zeros [paddingSize]byte
		m = stun.AppendAttr(m, stun.AttrPadding, zeros[:])
	}
	return m, from, true
}

// classic answers a Binding request of RFC 3489 on one of the four listeners. ok is false where there is no
// such client to answer.
func (c *Core) classic(now time.Time, t Tuple, packet []byte, out *Outbox) (ok bool) {
	n := c.cfg.NATDiscovery
	ip, port, ok := n.place(t.Listener)
	if !ok || !n.Classic || t.Transport != stun.ProtocolUDP {
		return false
	}
	id, flags, err := stun.ParseClassic(packet)
	if err != nil {
		return false
	}
	if !c.budget.Take(now, t.Client.Addr()) {
		c.refuse(out, CauseBudget, nil)
		return true
	}
	m := stun.AppendAddress(stun.AppendClassicHeader(out.scratch[:0], id), stun.AttrMappedAddress, t.Client)
	changed := n.Addrs[ip^1][port^1]
	ip, port, t.Listener = n.change(ip, port, flags)
	m = stun.AppendAddress(m, stun.AttrSourceAddress, n.Addrs[ip][port])
	m = stun.AppendAddress(m, stun.AttrChangedAddress, changed)
	c.stats.Bindings++
	out.Method = stun.Binding
	c.finish(out, t, m, nil, false, false)
	return true
}

// change is where an answer comes from by the flags of CHANGE-REQUEST.
func (n *NATDiscovery) change(ip, port int, flags uint32) (toIP, toPort int, listener uint16) {
	if flags&stun.ChangeIP != 0 {
		ip ^= 1
	}
	if flags&stun.ChangePort != 0 {
		port ^= 1
	}
	return ip, port, n.Listeners[ip][port]
}

// unread adds the attributes of RFC 5780 to the unknown ones where they are not taken: on a listener that
// is none of the four, with other methods, on connections (§4.5).
func (c *Core) unread(r *request) {
	n := c.cfg.NATDiscovery
	_, _, ok := n.place(r.tuple.Listener)
	ok = ok && r.method == stun.Binding && r.tuple.Transport == stun.ProtocolUDP
	if r.change != nil && !ok {
		r.unknownAttr(stun.AttrChangeRequest)
	}
	if r.responsePort != nil && !(ok && n.Reflect) {
		r.unknownAttr(stun.AttrResponsePort)
	}
	if r.padding != nil && !(ok && n.Reflect) {
		r.unknownAttr(stun.AttrPadding)
	}
}
