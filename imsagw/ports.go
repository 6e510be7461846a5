package imsagw

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"syscall"

	"wicgate/internal/iq"
	"wicgate/internal/listen"
)

// maxTaken bounds the ports that one reservation tries and finds taken by another program.
const maxTaken = 64

// portRange lends the UDP ports of one side: single ones, or pairs of an even port and the next.
// A port that comes back is lent again last, so that a late packet of one call seldom meets the next.
type portRange struct {
	key  string // configuration key, for errors
	side Side
	size int // ports of one loan: 1, or 2

	mu   sync.Mutex // guards the following fields
	next int        // slot to try first
	used map[int]bool
}

func newPortRange(key string, side Side, size int) (*portRange, error) {
	if !side.Advertise.IsValid() {
		side.Advertise = side.Bind
	}
	side.Bind, side.Advertise = side.Bind.Unmap(), side.Advertise.Unmap()
	switch {
	case !side.Bind.IsValid():
		return nil, fmt.Errorf("imsagw: %s.bind: no address", key)
	case side.Bind.IsMulticast() || side.Advertise.IsMulticast():
		return nil, fmt.Errorf("imsagw: %s: %v, %v: want unicast addresses", key, side.Bind, side.Advertise)
	case side.Advertise.IsUnspecified():
		return nil, fmt.Errorf("imsagw: %s.advertise: needed where bind is %v: the other side cannot send to that", key, side.Bind)
	case side.Bind.Is4() != side.Advertise.Is4() && !side.Bind.IsUnspecified():
		return nil, fmt.Errorf("imsagw: %s: bind %v and advertise %v are of two families", key, side.Bind, side.Advertise)
	}
	if side.MinPort == 0 && side.MaxPort == 0 {
		return &portRange{key: key, side: side, size: size}, nil
	}
	if size == 2 && side.MinPort%2 == 1 {
		side.MinPort++ // the even one is RTP's
	}
	r := &portRange{key: key, side: side, size: size, used: map[int]bool{}}
	if side.MinPort == 0 || r.slots() < 1 {
		return nil, fmt.Errorf("imsagw: %s.ports: %d to %d: want room for %d, from 1 up", key, side.MinPort, side.MaxPort, size)
	}
	r.next = rand.IntN(r.slots())
	return r, nil
}

func (r *portRange) slots() int { return (int(r.side.MaxPort) - int(r.side.MinPort) + 1) / r.size }

// String tells the range, for the log.
func (r *portRange) String() string {
	return fmt.Sprintf("%v:%d-%d", r.side.Advertise, r.side.MinPort, r.side.MaxPort)
}

// open lends the sockets of a loan. [iq.ErrCapacity] if no port is left.
func (r *portRange) open() ([]*net.UDPConn, error) {
	if r.used == nil {
		return r.openAny()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	n, taken := r.slots(), 0
	for i := range n {
		slot := (r.next + i) % n
		if r.used[slot] {
			continue
		}
		conns, err := r.bind(int(r.side.MinPort) + slot*r.size)
		if errors.Is(err, syscall.EADDRINUSE) && taken < maxTaken {
			taken++
			continue
		}
		if err != nil {
			return nil, err
		}
		r.used[slot] = true
		r.next = (slot + 1) % n
		return conns, nil
	}
	return nil, fmt.Errorf("%w: all %d places of %s.ports (%d to %d) are in use", iq.ErrCapacity, n, r.key, r.side.MinPort, r.side.MaxPort)
}

// openAny lends free ports that the kernel picks; a pair may take a few tries.
func (r *portRange) openAny() ([]*net.UDPConn, error) {
	var err error
	for range 100 {
		var first *net.UDPConn
		if first, err = listen.UDP(r.key, netip.AddrPortFrom(r.side.Bind, 0)); err != nil {
			return nil, err
		}
		if r.size == 1 {
			return []*net.UDPConn{first}, nil
		}
		port := portOf(first)
		var second *net.UDPConn
		if port%2 == 0 {
			if second, err = listen.UDP(r.key, netip.AddrPortFrom(r.side.Bind, port+1)); err == nil {
				return []*net.UDPConn{first, second}, nil
			}
		}
		closeAll([]*net.UDPConn{first})
	}
	return nil, fmt.Errorf("%w: no free pair of ports found: %w", iq.ErrCapacity, err)
}

func (r *portRange) bind(port int) ([]*net.UDPConn, error) {
	conns := make([]*net.UDPConn, 0, r.size)
	for i := range r.size {
		c, err := listen.UDP(r.key, netip.AddrPortFrom(r.side.Bind, uint16(port+i)))
		if err != nil {
			closeAll(conns)
			return nil, err
		}
		conns = append(conns, c)
	}
	return conns, nil
}

// release closes the sockets of a loan and takes its ports back.
func (r *portRange) release(conns []*net.UDPConn) {
	if len(conns) == 0 {
		return
	}
	port := portOf(conns[0])
	closeAll(conns)
	if r.used == nil {
		return
	}
	r.mu.Lock()
	delete(r.used, (int(port)-int(r.side.MinPort))/r.size)
	r.mu.Unlock()
}

func closeAll(conns []*net.UDPConn) {
	for _, c := range conns {
		_ = c.Close() // a UDP socket has nothing to lose
	}
}

func portOf(c *net.UDPConn) uint16 { return c.LocalAddr().(*net.UDPAddr).AddrPort().Port() }

// advertised is what the other side is told of a socket.
func (r *portRange) advertised(c *net.UDPConn) netip.AddrPort {
	return netip.AddrPortFrom(r.side.Advertise, portOf(c))
}

// reaches says whether the gateway may send to an address from this side: unicast, of a family that
// the socket has, and loopback only where the side itself is on loopback, so that nobody makes the
// gateway talk to services of its own machine.
func (r *portRange) reaches(a netip.AddrPort) bool {
	ip := a.Addr().Unmap()
	switch {
	case !ip.IsValid() || a.Port() == 0 || ip.IsUnspecified() || ip.IsMulticast() || ip == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return false
	case ip.IsLoopback() && !r.side.Bind.IsLoopback():
		return false
	}
	return ip.Is4() == r.side.Advertise.Is4()
}
