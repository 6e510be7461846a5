//go:build !linux

package turn

import (
	"errors"
	"net"
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
