// Package listen opens sockets and certificates for the roles, so that no role owns a port.
package listen

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
)

// UDP opens a UDP socket. key is the configuration key that named addr, for the error.
func UDP(key string, addr netip.AddrPort) (*net.UDPConn, error) {
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(addr))
	if err != nil {
		return nil, explain("UDP", key, addr, err)
	}
	return c, nil
}

// TCP opens a listening TCP socket, in the manner of [UDP].
func TCP(key string, addr netip.AddrPort) (net.Listener, error) {
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(addr))
	if err != nil {
		return nil, explain("TCP", key, addr, err)
	}
	return l, nil
}

// explain says which port, by which key, and what to do.
func explain(proto, key string, addr netip.AddrPort, err error) error {
	next := fmt.Sprintf("set %s in wicgate.yaml to an address that this machine has", key)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		next = fmt.Sprintf("another program has %s port %d; stop it (ss -lnp shows its name) or set %s in wicgate.yaml to another port", proto, addr.Port(), key)
	case errors.Is(err, syscall.EACCES):
		next = fmt.Sprintf("ports below 1024 need the capability CAP_NET_BIND_SERVICE, or set %s in wicgate.yaml to a higher port", key)
	}
	return fmt.Errorf("listen on %s %v: %w\n  hint: %s", proto, addr, err, next)
}
