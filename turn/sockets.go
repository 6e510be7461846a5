package turn

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"wicgate/internal/wire/stun"
	"wicgate/turn/internal/core"
)

const (
	// maxFromPeer is the longest packet of a peer that is relayed. Media and data channels stay
	// below 1500 bytes; a buffer of the full 65507 for each allocation would be a gigabyte for
	// 16 000 of them.
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
	w := newWorker(s)
	buf := make([]byte, 1<<16)
	for {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			s.log.Warn("turn: read from clients", "listen", c.LocalAddr(), "error", err)
			time.Sleep(pause)
			continue
		}
		t := core.Tuple{Client: unmap(from), Listener: number, Transport: stun.ProtocolUDP, Tenant: s.chosen.by(number, "")}
		s.fromClient(w, time.Now(), t, buf[:n])
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
	via  string // the client's transport; its connection is gone before the allocation
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
	r.via = s.transport(a.Tuple)
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
	w := newWorker(s)
	b := s.buffers.take()
	defer s.buffers.give(b)
	room := b.bytes[core.Headroom : core.Headroom+maxFromPeer+1]
	for {
		n, from, err := r.conn.ReadFromUDPAddrPort(room)
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			s.log.Warn("turn: read from peers", "relay", r.conn.LocalAddr(), "error", err)
			time.Sleep(pause)
			continue
		}
		if n > maxFromPeer { // and perhaps cut by the kernel
			s.tooLong.Add(1)
			continue
		}
		now := time.Now()
		from = unmap(from)
		s.mu.Lock()
		s.core.FromPeer(now, r.id, from, b.bytes[:], n, &w.out)
		s.mu.Unlock()
		if w.out.Cause != core.CauseNone {
			s.refusals.note(s.log, now, &w.out, from, false)
		}
		w.act(&w.out)
	}
}

// close closes a relay socket, frees its port, and logs the allocation's end.
func (s *Server) close(a *core.Action) {
	r := a.Relay.(*relay)
	_ = r.conn.Close() // nothing of a UDP socket can be lost by it
	s.ports.give(r.port)
	if e := a.Ended; e != nil {
		s.sessionEnded(r, e)
	}
}

// sessionEnded writes the one line there is about each TURN session. Its fields are a contract with
// whoever reads logs by program (docs/ops/operating.md): all are there each time.
func (s *Server) sessionEnded(r *relay, e *core.Ended) {
	s.log.LogAttrs(context.Background(), slog.LevelInfo, "turn: session ended",
		slog.String("cause", e.Cause.String()), slog.String("pseudonym", e.Owner), slog.String("client", e.Tuple.Client.String()), slog.String("transport", r.via),
		slog.String("relayed", e.Relayed.String()), slog.Uint64("id", uint64(r.id)), slog.String("tenant", e.Tenant), slog.String("credential", string(e.Credential)),
		slog.Int64("age_ms", e.Age.Milliseconds()), slog.Int("peers", e.Peers),
		slog.Uint64("to_peer_packets", e.Traffic.SentPackets), slog.Uint64("to_peer_bytes", e.Traffic.SentBytes),
		slog.Uint64("to_client_packets", e.Traffic.ReceivedPackets), slog.Uint64("to_client_bytes", e.Traffic.ReceivedBytes))
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

// buffer is room for a peer's packet. One goroutine holds it.
type buffer struct {
	bytes [core.Headroom + maxFromPeer + 1 + core.Tailroom]byte
	held  atomic.Bool
}

// bufferPool lends buffers.
type bufferPool struct{ pool sync.Pool }

func (p *bufferPool) take() *buffer {
	b, ok := p.pool.Get().(*buffer)
	if !ok {
		b = new(buffer)
	}
	if !b.held.CompareAndSwap(false, true) {
		panic("turn: a buffer has two holders")
	}
	return b
}

func (p *bufferPool) give(b *buffer) {
	if !b.held.CompareAndSwap(true, false) {
		panic("turn: a buffer is given back twice")
	}
	p.pool.Put(b)
}
