package coturn

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
)

// span is a range of addresses of one family, both included.
type span struct{ first, last netip.Addr }

// errBackwards is of a range that no address lies in.
var errBackwards = errors.New("the first address is after the last: no peer lies in it")

// parseSpan reads "address" or "address-address". prefix tells that it was written as a prefix, which
// turnserver does not read.
func parseSpan(s string) (r span, prefix bool, err error) {
	if strings.Contains(s, "/") {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return r, true, err
		}
		p = p.Masked()
		return span{p.Addr(), lastOf(p)}, true, nil
	}
	a, b, two := strings.Cut(s, "-")
	if !two {
		b = a
	}
	parse := func(s string) (netip.Addr, error) {
		a, err := netip.ParseAddr(strings.Trim(strings.TrimSpace(s), "[]"))
		if err == nil && a.Zone() != "" {
			err = errors.New("an address with a zone")
		}
		return a, err
	}
	if r.first, err = parse(a); err != nil {
		return r, false, err
	}
	if r.last, err = parse(b); err != nil {
		return r, false, err
	}
	switch {
	case r.first.BitLen() != r.last.BitLen():
		err = errors.New("two families in one range")
	case r.last.Less(r.first):
		err = errBackwards
	}
	return r, false, err
}

// lastOf is the last address of a prefix.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// union joins what overlaps or touches, in order.
func union(spans []span) (out []span) {
	spans = slices.Clone(spans)
	slices.SortFunc(spans, func(a, b span) int { return a.first.Compare(b.first) })
	for _, s := range spans {
		if n := len(out) - 1; n >= 0 && out[n].first.BitLen() == s.first.BitLen() &&
			(!out[n].last.Less(s.first) || out[n].last.Next() == s.first) {
			if out[n].last.Less(s.last) {
				out[n].last = s.last
			}
			continue
		}
		out = append(out, s)
	}
	return out
}

// without takes the addresses of holes, which are a union, out of spans.
func without(spans, holes []span) (out []span) {
	for _, s := range spans {
		open := true
		for _, h := range holes {
			if h.first.BitLen() != s.first.BitLen() || h.last.Less(s.first) || s.last.Less(h.first) {
				continue
			}
			if s.first.Less(h.first) {
				out = append(out, span{s.first, h.first.Prev()})
			}
			if !h.last.Less(s.last) {
				open = false
				break
			}
			s.first = h.last.Next()
		}
		if open {
			out = append(out, s)
		}
	}
	return out
}

// prefixes are the fewest that hold the addresses of a span and no others.
func (s span) prefixes() (out []netip.Prefix) {
	for first := s.first; ; {
		// The widest that begins with first and ends with or before last.
		p := netip.PrefixFrom(first, first.BitLen())
		for p.Bits() > 0 {
			wider := netip.PrefixFrom(first, p.Bits()-1)
			if wider.Masked().Addr() != first || s.last.Less(lastOf(wider)) {
				break
			}
			p = wider
		}
		out = append(out, p)
		end := lastOf(p)
		if end == s.last {
			return out
		}
		first = end.Next()
	}
}

// prefixesOf are those of all spans.
func prefixesOf(spans []span) (out []netip.Prefix) {
	for _, s := range spans {
		out = append(out, s.prefixes()...)
	}
	return out
}
