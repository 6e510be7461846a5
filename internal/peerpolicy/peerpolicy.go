// Package peerpolicy decides whether an address may be relayed to. turn and imsagw ask it at every
// door: CreatePermission, ChannelBind, Send, and for what comes in.
//
// Deny by default (DESIGN, Not negotiable; RFC 8656 §21.4). An address is first reduced to what it
// stands for, so that no way of writing it (::ffff:127.0.0.1, 2002:7f00:1::, 64:ff9b::7f00:1,
// Teredo, ISATAP) passes where its plain form does not; then it is decided. The special-purpose
// registries stand here as data. Pure: no socket, no look-up, no state; deciding does not allocate.
package peerpolicy

import (
	"encoding/binary"
	"errors"
	"net/netip"
)

// Range is a set of addresses and the ports open on them. MinPort and MaxPort are inclusive; both
// zero means every port from 1.
type Range struct {
	Prefix           netip.Prefix
	MinPort, MaxPort uint16
}

// Profile is how a policy decides about addresses that no Range opens.
type Profile uint8

const (
	// DenyAll opens nothing. It is the zero value.
	DenyAll Profile = iota
	// ProfileIMS opens the listed ranges and nothing else.
	ProfileIMS
	// ProfileGeneral opens public addresses; everything special must be listed.
	ProfileGeneral
)

// Why an address is refused. Special addresses have an error of their own that wraps ErrSpecial and
// names the registry's entry.
var (
	ErrInvalid    = errors.New("no address that a packet can be sent to")
	ErrListener   = errors.New("one of this server's own listeners")
	ErrNotListed  = errors.New("not in a range that the policy lists")
	ErrClosed     = errors.New("in a range that the policy closes")
	ErrTranslated = errors.New("an IPv6 form that carries another address (IPv4-mapped, 6to4, Teredo, NAT64, ISATAP)")
	ErrOwnRelay   = errors.New("an address of this server, on a port that holds no relay")
	ErrSpecial    = errors.New("special-purpose address")
)

// Policy is a decision procedure; the zero value refuses everything. It is immutable: the With
// methods return a changed copy.
type Policy struct {
	profile   Profile
	open      []Range
	closed    []netip.Prefix
	nat64     []netip.Prefix
	listeners []netip.AddrPort
	relays    []netip.Addr
}

// IMS returns the policy that allows the given ranges, the gateways' media ranges, and nothing else.
func IMS(allow ...Range) Policy { return Policy{profile: ProfileIMS, open: canonicalRanges(allow)} }

// General returns the policy that allows public addresses and those that open lists.
func General(open ...Range) Policy {
	return Policy{profile: ProfileGeneral, open: canonicalRanges(open)}
}

func canonicalRanges(in []Range) []Range {
	out := make([]Range, 0, len(in))
	for _, r := range in {
		if !r.Prefix.IsValid() {
			continue // it could match nothing
		}
		r.Prefix = canonical(r.Prefix)
		if r.MinPort == 0 && r.MaxPort == 0 {
			r.MaxPort = 65535
		}
		r.MinPort = max(r.MinPort, 1)
		out = append(out, r)
	}
	return out
}

// canonical is a valid prefix without host bits, and IPv4 where it is written IPv4-mapped.
func canonical(p netip.Prefix) netip.Prefix {
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p.Masked()
}

// Profile returns the profile of p.
func (p Policy) Profile() Profile { return p.profile }

// WithClosed returns p with prefixes added that are refused whatever is open, in every form of their
// addresses.
func (p Policy) WithClosed(prefixes ...netip.Prefix) Policy {
	p.closed = append([]netip.Prefix(nil), p.closed...)
	for _, c := range prefixes {
		if c.IsValid() {
			p.closed = append(p.closed, canonical(c))
		}
	}
	return p
}

// WithNAT64 returns p with prefixes of translators added, beside 64:ff9b::/96, which each policy knows: an
// address there stands for the IPv4 address inside (RFC 6052 §2.2). What is none of [NAT64] is left out.
func (p Policy) WithNAT64(prefixes ...netip.Prefix) Policy {
	p.nat64 = append([]netip.Prefix(nil), p.nat64...)
	for _, n := range prefixes {
		if NAT64(n) {
			p.nat64 = append(p.nat64, n.Masked())
		}
	}
	return p
}

// NAT64 reports whether n can be a translator's prefix: IPv6, of 32, 40, 48, 56, 64 or 96 bits.
func NAT64(n netip.Prefix) bool {
	return n.IsValid() && n.Addr().Is6() && !n.Addr().Is4In6() && (n.Bits() == 96 || n.Bits() >= 32 && n.Bits() <= 64 && n.Bits()%8 == 0)
}

// WithListeners returns p with own listening addresses added. They are refused whatever is open, for
// a relay that sends to itself is a loop (RFC 8656 §21.3). Name addresses, not wildcards.
func (p Policy) WithListeners(own ...netip.AddrPort) Policy {
	p.listeners = append([]netip.AddrPort(nil), p.listeners...)
	for _, a := range own {
		p.listeners = append(p.listeners, netip.AddrPortFrom(a.Addr().Unmap(), a.Port()))
	}
	return p
}

// WithRelays returns p with own addresses added, those of relays among them. In [ProfileGeneral]
// ports on them that no Range opens are refused with [ErrOwnRelay], which the relay overrules for a
// port that it holds.
func (p Policy) WithRelays(own ...netip.Addr) Policy {
	p.relays = append([]netip.Addr(nil), p.relays...)
	for _, a := range own {
		p.relays = append(p.relays, a.Unmap())
	}
	return p
}

// Allow returns nil if peer may be relayed to and from, else why not.
func (p Policy) Allow(peer netip.AddrPort) error {
	if peer.Port() == 0 {
		return ErrInvalid
	}
	return p.decide(peer.Addr(), peer.Port())
}

// AllowAddr decides about an address without its port, as CreatePermission needs it: allowed if any
// port of it may be. Packets are decided again, with their port.
func (p Policy) AllowAddr(addr netip.Addr) error { return p.decide(addr, 0) }

// decide takes port 0 for any.
func (p Policy) decide(addr netip.Addr, port uint16) error {
	if !addr.IsValid() || addr.Zone() != "" || addr.IsUnspecified() {
		return ErrInvalid
	}
	for _, l := range p.listeners {
		if port != 0 && l.Port() == port && l.Addr() == addr.Unmap() {
			return ErrListener
		}
	}
	// IPv4-mapped addresses are never on a wire (RFC 4038 §4.2), so nobody honest asks for one, and
	// a socket would send to the IPv4 address inside (CVE-2026-27624).
	if addr.Is4In6() {
		return ErrTranslated
	}
	for _, c := range p.closed {
		if c.Contains(addr) {
			return ErrClosed
		}
	}
	if inner, ok := p.embedded(addr); ok {
		// A translator is reachable only where the range is opened as written and the address
		// inside is allowed by itself. Teredo hides its client address; it is never allowed.
		if !p.opens(addr, port) || !inner.IsValid() {
			return ErrTranslated
		}
		return p.decide(inner, port)
	}
	if p.opens(addr, port) {
		return nil
	}
	if p.profile != ProfileGeneral {
		return ErrNotListed
	}
	for _, r := range p.relays {
		if r == addr {
			return ErrOwnRelay
		}
	}
	return special(addr)
}

func (p Policy) opens(addr netip.Addr, port uint16) bool {
	if p.profile == DenyAll {
		return false
	}
	for _, r := range p.open {
		if r.Prefix.Contains(addr) && (port == 0 || r.MinPort <= port && port <= r.MaxPort) {
			return true
		}
	}
	return false
}

var (
	compatible = netip.MustParsePrefix("::/96")           // RFC 4291 §2.5.5.1
	nat64      = netip.MustParsePrefix("64:ff9b::/96")    // RFC 6052
	nat64Local = netip.MustParsePrefix("64:ff9b:1::/48")  // RFC 8215
	sixToFour  = netip.MustParsePrefix("2002::/16")       // RFC 3056; RFC 8656 §21.4 MUST
	teredo     = netip.MustParsePrefix("2001::/32")       // RFC 4380; RFC 8656 §21.4 MUST
	mappedTr   = netip.MustParsePrefix("::ffff:0:0:0/96") // RFC 7915 §1.5, IPv4-translated
	loopback6  = netip.IPv6Loopback()
)

// embedded reports whether addr is an IPv6 form that carries an IPv4 address, and returns that
// address, or the zero Addr where it cannot be told.
func (p Policy) embedded(addr netip.Addr) (inner netip.Addr, ok bool) {
	if addr.Is4() {
		return netip.Addr{}, false
	}
	b := addr.As16()
	for _, n := range p.nat64 {
		if n.Contains(addr) {
			var v4 [4]byte
			at := n.Bits() / 8
			for i := range v4 {
				if at == 8 {
					at++ // bits 64 to 71 are none of the address's
				}
				v4[i] = b[at]
				at++
			}
			return netip.AddrFrom4(v4), true
		}
	}
	switch {
	case addr == loopback6:
		return netip.Addr{}, false
	case compatible.Contains(addr), nat64.Contains(addr), mappedTr.Contains(addr):
		return netip.AddrFrom4([4]byte(b[12:])), true
	case sixToFour.Contains(addr):
		return netip.AddrFrom4([4]byte(b[2:])), true
	case teredo.Contains(addr), nat64Local.Contains(addr):
		return netip.Addr{}, true
	}
	// ISATAP interface identifiers, with and without the universal bit (RFC 5214 §6.1).
	if iid := binary.BigEndian.Uint32(b[8:]); iid == 0x00005efe || iid == 0x02005efe {
		return netip.AddrFrom4([4]byte(b[12:])), true
	}
	return netip.Addr{}, false
}
