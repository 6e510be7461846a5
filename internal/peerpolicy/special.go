package peerpolicy

import (
	"fmt"
	"net/netip"
)

// entry is a line of the IANA special-purpose address registries (RFC 6890), or of the multicast
// and reserved space beside them, with the error made once.
type entry struct {
	prefix netip.Prefix
	err    error
}

func line(prefix, what string) entry {
	return entry{netip.MustParsePrefix(prefix), fmt.Errorf("%w: %s, %s", ErrSpecial, what, prefix)}
}

// special4 is denied in IPv4; what it does not name is public.
var special4 = []entry{
	line("0.0.0.0/8", "this network (RFC 791)"),
	line("10.0.0.0/8", "private (RFC 1918)"),
	line("100.64.0.0/10", "shared address space (RFC 6598)"),
	line("127.0.0.0/8", "loopback (RFC 1122)"),
	line("169.254.0.0/16", "link-local, cloud metadata (RFC 3927)"),
	line("172.16.0.0/12", "private (RFC 1918)"),
	line("192.0.0.0/24", "IETF protocol assignments (RFC 6890)"),
	line("192.0.2.0/24", "documentation (RFC 5737)"),
	line("192.88.99.0/24", "6to4 relay anycast (RFC 7526)"),
	line("192.168.0.0/16", "private (RFC 1918)"),
	line("198.18.0.0/15", "benchmarking (RFC 2544)"),
	line("198.51.100.0/24", "documentation (RFC 5737)"),
	line("203.0.113.0/24", "documentation (RFC 5737)"),
	line("224.0.0.0/4", "multicast (RFC 1112)"),
	line("240.0.0.0/4", "reserved, broadcast (RFC 1112)"),
}

// special6 is denied in IPv6, for its name or inside global unicast; what lies outside of
// 2000::/3 and is not named is denied too.
var special6 = []entry{
	line("::1/128", "loopback (RFC 4291)"),
	line("100::/64", "discard-only (RFC 6666)"),
	line("fc00::/7", "unique local (RFC 4193)"),
	line("fe80::/10", "link-local (RFC 4291)"),
	line("fec0::/10", "site-local (RFC 3879)"),
	line("ff00::/8", "multicast (RFC 4291)"),
	line("2001::/23", "IETF protocol assignments (RFC 2928)"),
	line("2001:db8::/32", "documentation (RFC 3849)"),
	line("3fff::/20", "documentation (RFC 9637)"),
}

var (
	globalUnicast  = netip.MustParsePrefix("2000::/3")
	errUnallocated = fmt.Errorf("%w: outside of global unicast, 2000::/3 (RFC 4291)", ErrSpecial)
)

// Special says whether the general profile, with nothing opened, refuses all addresses of a prefix, and
// whether it refuses some. ISATAP forms, which no prefix names, are not counted.
func Special(p netip.Prefix) (all, some bool) {
	if !p.IsValid() {
		return true, false
	}
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		return true, true // IPv4-mapped
	}
	table := special4
	if p = p.Masked(); p.Addr().Is6() {
		table = special6
		some = !covers(globalUnicast, p) || sixToFour.Overlaps(p) || teredo.Overlaps(p)
		if !globalUnicast.Overlaps(p) || covers(sixToFour, p) || covers(teredo, p) {
			return true, true
		}
	}
	for _, e := range table {
		if covers(e.prefix, p) {
			return true, true
		}
		some = some || e.prefix.Overlaps(p)
	}
	if !some {
		return false, false
	}
	low := netip.PrefixFrom(p.Addr(), p.Bits()+1)
	b := p.Addr().AsSlice()
	b[p.Bits()/8] |= 0x80 >> (p.Bits() % 8)
	high, _ := netip.AddrFromSlice(b)
	if all, _ = Special(low); all {
		all, _ = Special(netip.PrefixFrom(high, low.Bits()))
	}
	return all, true
}

// covers says whether p lies within all of outer.
func covers(outer, p netip.Prefix) bool { return outer.Bits() <= p.Bits() && outer.Contains(p.Addr()) }

// special returns nil for a public address, else why it is none. addr carries no other address.
func special(addr netip.Addr) error {
	table := special6
	if addr.Is4() {
		table = special4
	}
	for i := range table {
		if table[i].prefix.Contains(addr) {
			return table[i].err
		}
	}
	if addr.Is6() && !globalUnicast.Contains(addr) {
		return errUnallocated
	}
	return nil
}
