package turn

import (
	"net/netip"
	"sync"
	"sync/atomic"

	"wicgate/turn/internal/core"
)

// batch is how many datagrams one system call may bring.
const batch = 8

// desk is room for datagrams and for what is done about them. One goroutine holds it: a listener's for
// good, a relay's only while there are packets, for of many allocations few have one at an instant.
type desk struct {
	worker
	rooms [batch][]byte // where datagrams are put
	packets
	held atomic.Bool
}

// newDesk makes a desk for datagrams of size bytes, each with headroom and tailroom.
func newDesk(s *Server, headroom, size, tailroom int) *desk {
	d := &desk{worker: worker{s: s}}
	each := headroom + size + tailroom
	all := make([]byte, batch*each)
	for i := range d.rooms {
		d.rooms[i] = all[i*each : (i+1)*each : (i+1)*each]
	}
	d.lay(headroom, size)
	return d
}

// spareDesks are kept at most, 36 kB each: as many as goroutines run at an instant, and some.
const spareDesks = 16

// desks lends desks for packets of peers.
type desks struct {
	mu   sync.Mutex // guards free
	free []*desk
}

func (p *desks) take(s *Server) (d *desk) {
	p.mu.Lock()
	if n := len(p.free); n > 0 {
		d, p.free = p.free[n-1], p.free[:n-1]
	}
	p.mu.Unlock()
	if d == nil {
		d = newDesk(s, core.Headroom, maxFromPeer+1, core.Tailroom)
	}
	if !d.held.CompareAndSwap(false, true) {
		panic("turn: a desk has two holders")
	}
	return d
}

func (p *desks) give(d *desk) {
	if !d.held.CompareAndSwap(true, false) {
		panic("turn: a desk is given back twice")
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.free) < spareDesks {
		p.free = append(p.free, d)
	}
}

// reader says what to do with a socket's datagrams.
type reader struct {
	take func() *desk
	give func(*desk)
	// packet takes a datagram of n bytes, which stands in room behind the headroom. False: nothing
	// more is to be read for now, and last is to be called.
	packet func(d *desk, room []byte, n int, from netip.AddrPort) bool
	// last does what must not be done while the socket is being read, as closing it.
	last func(d *desk)
	// failed is told of an error of the socket, and reports whether it is no fault of the socket's; nil =
	// all are.
	failed func(err error) bool
}
