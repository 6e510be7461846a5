//go:build !linux

package turn

import (
	"errors"
	"net"
	"net/netip"

	"wicgate/internal/wire/stun"
)

// dontFragment: DF cannot be chosen for each packet; DONT-FRAGMENT is an unknown attribute.
const dontFragment = false

// platform is what a relay socket has of Linux: nothing here.
type platform struct{}

func (*platform) prepare(*net.UDPConn, bool) error { return nil }

// setWhole fails for what nobody can ask for.
func (*platform) setWhole(whole bool) error {
	if whole {
		return errors.ErrUnsupported
	}
	return nil
}

// isReport: no other system tells of ICMP errors in this way.
func isReport(error) bool { return false }

func (*platform) reports(func(netip.AddrPort, stun.ICMP)) {}
