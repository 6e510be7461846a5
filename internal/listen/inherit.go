package listen

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
)

// Inherited is a listening socket of another process. The receiver of a list of them owns the files.
type Inherited struct {
	Network string         // udp, lane or tcp
	Addr    netip.AddrPort // as that process was configured, which may be port 0
	Number  int            // of that process, among those of the network
	File    *os.File
}

// Heritage is a list of sockets from which each is taken once. A nil one is empty.
type Heritage struct{ left []Inherited }

// NewHeritage returns a Heritage of list.
func NewHeritage(list []Inherited) *Heritage { return &Heritage{slices.Clone(list)} }

func (h *Heritage) take(network string, addr netip.AddrPort) (s Inherited) {
	if h == nil {
		return s
	}
	i := slices.IndexFunc(h.left, func(s Inherited) bool { return s.Network == network && s.Addr == addr })
	if i < 0 {
		return s
	}
	s = h.left[i]
	h.left = slices.Delete(h.left, i, i+1)
	return s
}

// Left are the addresses of those that nobody has taken.
func (h *Heritage) Left() (out []string) {
	if h == nil {
		return nil
	}
	for _, s := range h.left {
		out = append(out, fmt.Sprintf("%s %v", s.Network, s.Addr))
	}
	return out
}

// Close closes those that nobody has taken.
func (h *Heritage) Close() {
	if h == nil {
		return
	}
	for _, s := range h.left {
		_ = s.File.Close() // the other process has it still
	}
	h.left = nil
}

// UDP is the function [UDP], but for a socket of h where there is one; was is its number then, else -1.
func (h *Heritage) UDP(key string, addr netip.AddrPort) (c *net.UDPConn, was int, err error) {
	s := h.take("udp", addr)
	if s.File == nil {
		c, err = UDP(key, addr)
		return c, -1, err
	}
	c, err = UDPFile(s.File)
	return c, s.Number, err
}

// Lane is the second socket at an address that belongs to one of UDP; nil if there is none in h.
func (h *Heritage) Lane(addr netip.AddrPort) (*net.UDPConn, error) {
	s := h.take("lane", addr)
	if s.File == nil {
		return nil, nil
	}
	return UDPFile(s.File)
}

// UDPFile makes a UDP socket of f, which it closes.
func UDPFile(f *os.File) (*net.UDPConn, error) {
	c, err := net.FilePacketConn(f)
	_ = f.Close() // c has a descriptor of its own
	if err != nil {
		return nil, fmt.Errorf("listen: inherited UDP socket: %w", err)
	}
	u, ok := c.(*net.UDPConn)
	if !ok {
		_ = c.Close() // it is of no use
		return nil, fmt.Errorf("listen: inherited socket is %T and not UDP", c)
	}
	return u, nil
}

// TCP is the function [TCP], in the same manner.
func (h *Heritage) TCP(key string, addr netip.AddrPort) (net.Listener, error) {
	s := h.take("tcp", addr)
	if s.File == nil {
		return TCP(key, addr)
	}
	l, err := net.FileListener(s.File)
	_ = s.File.Close() // l has a descriptor of its own
	if err != nil {
		return nil, fmt.Errorf("listen: inherited TCP socket: %w", err)
	}
	t, ok := l.(*net.TCPListener)
	if !ok {
		_ = l.Close() // it is of no use
		return nil, fmt.Errorf("listen: inherited socket is %T and not TCP", l)
	}
	return t, nil
}
