package turn

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"wicgate/internal/wire/stun"
	"wicgate/turn/internal/core"
)

const (
	// maxFromPeer is the longest packet of a peer that is relayed. Media and data channels stay
	// below 1500 bytes.
	maxFromPeer = 4096
	// bindTries is how many ports are tried for a relay socket. Only another program on this
	// machine makes one fail.
	bindTries = 64
	// pause keeps a socket that fails at each read from spinning.
	pause = 10 * time.Millisecond
)

// worker is what one goroutine needs to call the core and act on the answer.
type worker struct {
	s           *Server
	out, opened core.Outbox // opened: of the calls that acting on out leads to
}

func newWorker(s *Server) *worker { return &worker{s: s} }

// serveListener reads a listening socket until it is closed.
func (s *Server) serveListener(number uint16, c *net.UDPConn) {
	d := newDesk(s, 0, 1<<16, 0)
	s.serve(c, "clients", reader{
		take: func() *desk { return d },
		give: func(*desk) {},
		packet: func(d *desk, room []byte, n int, from netip.AddrPort) bool {
			t := core.Tuple{Client: from, Listener: number, Transport: stun.ProtocolUDP}
			s.fromClient(&d.worker, time.Now(), t, room[:n])
			return true
		},
	})
}

// serve reads a socket until it is closed.
func (s *Server) serve(c *net.UDPConn, whose string, r reader) {
	for {
		err := read(c, r)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		s.log.Warn("turn: read from "+whose, "socket", c.LocalAddr(), "error", err)
		time.Sleep(pause)
	}
}

// fromClient hands a client's packet to the core and does what it asks for. It reports whether the
// client now has an allocation.
func (s *Server) fromClient(w *worker, now time.Time, t core.Tuple, packet []byte) (holds bool) {
	s.mu.Lock()
	s.core.FromClient(now, t, packet, &w.out)
	if t.Transport == stun.ProtocolTCP { // nobody else asks
		holds = s.core.Holds(t)
	}
	s.mu.Unlock()
	if w.out.Cause != core.CauseNone {
		s.refusals.note(s.log, now, &w.out, t.Client, true)
	}
	w.act(&w.out)
	if m := w.out.Method; m == stun.Allocate || m == stun.Refresh {
		select {
		case s.kick <- struct{}{}:
		default: // it is awake already
		}
	}
	return holds
}

// act does what the core asks for.
func (w *worker) act(out *core.Outbox) {
	s := w.s
	for i := range out.Actions {
		a := &out.Actions[i]
		switch a.Kind {
		case core.ToClient:
			if a.Tuple.Transport == stun.ProtocolTCP {
				s.toStream(a)
				continue
			}
			if _, err := s.listeners[a.Tuple.Listener].WriteToUDPAddrPort(a.Data, a.Tuple.Client); err != nil {
				s.sendErrors.Add(1) // UDP: it may get lost anyway
			}
		case core.ToPeer:
			if _, err := a.Relay.(*relay).conn.WriteToUDPAddrPort(a.Data, a.Peer); err != nil {
				s.sendErrors.Add(1)
			}
		case core.Open:
			w.open(a)
		case core.Close:
			s.close(a)
		}
	}
}

// relay is a relay socket.
type relay struct {
	id   core.ID
	conn *net.UDPConn
	port uint16
}

// open opens a relay socket for a and tells the core.
func (w *worker) open(a *core.Action) {
	s := w.s
	r, err := s.openRelay(a.ID, a.Even)
	if err != nil {
		s.log.Error("turn: no relay socket", "client", a.Tuple.Client, "error", err)
		s.mu.Lock()
		s.core.OpenFailed(time.Now(), a.ID, &w.opened)
		s.mu.Unlock()
		w.act(&w.opened)
		return
	}
	relayed := netip.AddrPortFrom(s.cfg.Relay.Advertise, r.port)
	s.mu.Lock()
	s.core.Opened(time.Now(), a.ID, r, relayed, &w.opened)
	s.mu.Unlock()
	s.relays.Go(func() { s.serveRelay(r) })
	s.log.Debug("turn: allocation", "client", a.Tuple.Client, "relayed", relayed)
	w.act(&w.opened)
}

// openRelay opens a socket on a free port of the relay range, chosen at random (RFC 8656 §7.2, RFC
// 6056; CVE-2025-69217).
func (s *Server) openRelay(id core.ID, even bool) (*relay, error) {
	network := "udp4"
	if s.cfg.Relay.Bind.Is6() {
		network = "udp6"
	}
	var last error
	for range bindTries {
		port, ok := s.ports.take(even)
		if !ok {
			return nil, fmt.Errorf("relay ports %d to %d are all in use; widen turn.relay", s.cfg.Relay.MinPort, s.cfg.Relay.MaxPort)
		}
		c, err := net.ListenUDP(network, net.UDPAddrFromAddrPort(netip.AddrPortFrom(s.cfg.Relay.Bind, port)))
		if err == nil {
			_ = c.SetReadBuffer(relayBuffer) // as in New
			return &relay{id: id, conn: c, port: port}, nil
		}
		s.ports.give(port)
		last = err
	}
	return nil, fmt.Errorf("%d relay ports tried on %v, the last said: %w; see whether turn.relay.bind is an address of this machine and who else uses its ports", bindTries, s.cfg.Relay.Bind, last)
}

// serveRelay reads a relay socket until it is closed.
func (s *Server) serveRelay(r *relay) {
	s.serve(r.conn, "peers", reader{
		take: func() *desk { return s.desks.take(s) },
		give: s.desks.give,
		packet: func(d *desk, room []byte, n int, from netip.AddrPort) bool {
			if n > maxFromPeer { // and perhaps cut by the kernel
				s.tooLong.Add(1)
				return true
			}
			now := time.Now()
			s.mu.Lock()
			s.core.FromPeer(now, r.id, from, room, n, &d.out)
			s.mu.Unlock()
			if d.out.Cause != core.CauseNone {
				s.refusals.note(s.log, now, &d.out, from, false)
			}
			for i := range d.out.Actions {
				if d.out.Actions[i].Kind == core.Close { // of this socket
					return false
				}
			}
			d.act(&d.out)
			return true
		},
		last: func(d *desk) { d.act(&d.out) },
	})
}

// close closes a relay socket, frees its port, and logs the allocation's end.
func (s *Server) close(a *core.Action) {
	r := a.Relay.(*relay)
	_ = r.conn.Close() // nothing of a UDP socket can be lost by it
	s.ports.give(r.port)
	if e := a.Ended; e != nil {
		s.log.Info("turn: allocation ended", "cause", e.Cause.String(), "pseudonym", e.Owner, "client", e.Tuple.Client, "relayed", e.Relayed,
			"age", e.Age.Round(time.Millisecond), "to_peer_packets", e.Traffic.SentPackets, "to_peer_bytes", e.Traffic.SentBytes,
			"to_client_packets", e.Traffic.ReceivedPackets, "to_client_bytes", e.Traffic.ReceivedBytes)
	}
}

// ports are the relay ports in use.
type ports struct {
	min, max uint16

	mu   sync.Mutex // guards used
	used []bool     // by port - min
}

func newPorts(lo, hi uint16) *ports {
	return &ports{min: lo, max: hi, used: make([]bool, int(hi)-int(lo)+1)}
}

// take returns a port that is free, an even one if asked, and marks it as used. It starts looking at
// a random place.
func (p *ports) take(even bool) (port uint16, ok bool) {
	var b [4]byte
	rand.Read(b[:]) // never fails
	p.mu.Lock()
	defer p.mu.Unlock()
	start := int(binary.BigEndian.Uint32(b[:]) % uint32(len(p.used)))
	for i := range p.used {
		at := (start + i) % len(p.used)
		if port = p.min + uint16(at); !p.used[at] && (!even || port&1 == 0) {
			p.used[at] = true
			return port, true
		}
	}
	return 0, false
}

// give frees a port.
func (p *ports) give(port uint16) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.used[port-p.min] {
		panic(fmt.Sprintf("turn: relay port %d freed twice", port))
	}
	p.used[port-p.min] = false
}
