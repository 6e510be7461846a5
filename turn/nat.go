package turn

import (
	"errors"
	"net/netip"
	"slices"

	"wicgate/turn/internal/core"
)

// natDiscovery finds the four listeners of RFC 5780: two addresses that both have the same two ports. nil,
// nil: it is off.
func (s *Server) natDiscovery() (*core.NATDiscovery, error) {
	if !s.cfg.NATDiscovery {
		return nil, nil
	}
	addrs := s.Addrs()
	at := func(ip netip.Addr, port uint16) int { return slices.Index(addrs, netip.AddrPortFrom(ip, port)) }
	for _, a := range addrs {
		for _, b := range addrs {
			if a.Addr().Compare(b.Addr()) >= 0 || a.Port() >= b.Port() || a.Addr().Is4() != b.Addr().Is4() || a.Addr().IsUnspecified() {
				continue
			}
			// a and b are two corners of the square.
			if at(a.Addr(), b.Port()) < 0 || at(b.Addr(), a.Port()) < 0 {
				continue
			}
			n := &core.NATDiscovery{Reflect: s.cfg.NATReflect, Classic: s.cfg.NATClassic}
			for i, ip := range []netip.Addr{a.Addr(), b.Addr()} {
				for p, port := range []uint16{a.Port(), b.Port()} {
					n.Addrs[i][p], n.Listeners[i][p] = netip.AddrPortFrom(ip, port), uint16(at(ip, port))
				}
			}
			return n, nil
		}
	}
	return nil, errors.New("turn: NAT discovery (RFC 5780) needs two addresses of this machine with the same two ports each; add them to turn.listen, such as 192.0.2.1:3478, 192.0.2.1:3479, 192.0.2.2:3478, 192.0.2.2:3479")
}
