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
	"os"
	"strings"
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
	out, opened core.Outbox // opened: of the calls that acting on out leads to, and of reports of the network
}

func newWorker(s *Server) *worker { return &worker{s: s} }

// serveListener reads a listening socket until it is closed.
func (s *Server) serveListener(number uint16, c *net.UDPConn) {
	d := newDesk(s, 0, 1<<16, 0)
	s.serve(c, "clients", reader{
		take: func() *desk { return d },
		give: func(*desk) {},
		packet: func(d *desk, room []byte, n int, from netip.AddrPort) bool {
			if s.dtls != nil && isDTLS(room[:n]) {
				if !s.dtls.Packet(int(number), from, room[:n]) {
					s.forward(number, from, room[:n])
				}
				return true
			}
			t := core.Tuple{Client: from, Listener: number, Transport: stun.ProtocolUDP, Tenant: s.chosen.by(number, "")}
			s.fromClient(&d.worker, time.Now(), t, room[:n])
			return true
		},
	})
}

// serve reads a socket until it is closed or Pause comes.
func (s *Server) serve(c *net.UDPConn, whose string, r reader) {
	for {
		err := read(c, r)
		if errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded) { // Pause sets one
			return
		}
		if r.failed != nil && r.failed(err) {
			continue
		}
		s.log.Warn("turn: read from "+whose, "socket", c.LocalAddr(), "error", err)
		time.Sleep(pause)
	}
}

// fromClient hands a client's packet to the core and does what it asks for. It reports whether the
// client now has an allocation.
func (s *Server) fromClient(w *worker, now time.Time, t core.Tuple, packet []byte) (holds bool) {
	if t.Transport != stun.ProtocolUDP { // Pause has ended the readers of UDP itself
		s.moving.RLock()
		defer s.moving.RUnlock()
	}
	s.mu.Lock()
	s.core.FromClient(now, t, packet, &w.out)
	if t.Transport != stun.ProtocolUDP { // nobody else asks
		holds = s.core.Holds(t)
	}
	s.mu.Unlock()
	if w.out.Cause != core.CauseNone {
		s.refusals.note(s.log, now, &w.out, t.Client, true)
	}
	w.act(&w.out)
	if m := w.out.Method; m == stun.Allocate || m == stun.Refresh {
		s.wakeTimer()
	}
	return holds
}

// disconnected tells the core that the connection or association t is gone.
func (s *Server) disconnected(w *worker, t core.Tuple) {
	s.moving.RLock()
	defer s.moving.RUnlock()
	s.mu.Lock()
	s.core.Disconnected(time.Now(), t, &w.out)
	s.mu.Unlock()
	w.act(&w.out)
	s.wakeTimer() // an allocation that can move has less time now
}

// wakeTimer tells that a deadline may have come nearer.
func (s *Server) wakeTimer() {
	select {
	case s.kick <- struct{}{}:
	default: // it is awake already
	}
}

// act does what the core asks for.
func (w *worker) act(out *core.Outbox) {
	s := w.s
	for i := range out.Actions {
		a := &out.Actions[i]
		switch a.Kind {
		case core.ToClient:
			switch a.Tuple.Transport {
			case stun.ProtocolTCP:
				s.toStream(a)
				continue
			case core.TransportDTLS:
				s.toAssociation(a)
				continue
			}
			if _, err := s.listeners[a.Tuple.Listener].WriteToUDPAddrPort(a.Data, a.Tuple.Client); err != nil {
				s.sendErrors.Add(1) // UDP: it may get lost anyway
			}
		case core.ToPeer:
			r := a.Relay.(*relay)
			reports, err := r.send(a.Data, a.Peer, a.Whole)
			if err != nil {
				s.sendErrors.Add(1)
			}
			if reports {
				w.fromNetwork(r)
			}
		case core.Open:
			w.open(a)
		case core.Close:
			s.close(a)
		case core.Dial:
			do := *a
			s.relays.Go(func() { s.dial(do) })
		case core.Splice:
			if c := s.streams.get(a.Tuple); c != nil {
				c.peer, c.peerID = a.Relay.(*peerConn), a.Conn // its own goroutine is here, and goes on with it
			}
		case core.CloseConn:
			_ = a.Relay.(*peerConn).Close() // what is on its way is lost
		}
	}
}

// relay is a relay socket.
type relay struct {
	id   core.ID
	conn *net.UDPConn
	pool *pool
	port uint16
	done chan struct{} // closed when it is read no more; nil = it never was

	mu sync.Mutex // held around each send: with and without DF are settings of the socket
	platform
}

// send sends a packet: if whole, so that no router takes it apart (RFC 8656 §11.3, §14). reports says
// that the socket has an ICMP error to tell of, perhaps.
func (r *relay) send(data []byte, peer netip.AddrPort, whole bool) (reports bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.setWhole(whole); err != nil {
		return false, err
	}
	_, err = r.conn.WriteToUDPAddrPort(data, peer)
	if reports = isReport(err); reports {
		// The error is that of a packet before, and said once. This packet has not been sent.
		_, err = r.conn.WriteToUDPAddrPort(data, peer)
	}
	return reports, err
}

// fromNetwork tells the client of r what the network says about packets to its peers.
func (w *worker) fromNetwork(r *relay) {
	s := w.s
	r.reports(func(peer netip.AddrPort, icmp stun.ICMP) {
		now := time.Now()
		s.mu.Lock()
		s.core.FromNetwork(now, r.id, peer, icmp, &w.opened)
		s.mu.Unlock()
		if w.opened.Cause != core.CauseNone {
			s.refusals.note(s.log, now, &w.opened, peer, false)
		}
		w.act(&w.opened)
	})
}

// relaySocket is a relay or a tcpRelay.
type relaySocket interface {
	own(id core.ID) // notes whose it is
	close()         // closes it and frees its port
	serve(s *Server)
}

func (r *relay) own(id core.ID) { r.id = id }

// socket is a relay socket as the core knows it.
func (p *pool) socket(r relaySocket, port uint16) core.Socket {
	local := p.Bind
	switch {
	case local == netip.IPv4Unspecified():
		local = loopback4
	case local == netip.IPv6Unspecified():
		local = netip.IPv6Loopback()
	}
	return core.Socket{Relay: r, Relayed: netip.AddrPortFrom(p.Advertise, port), Local: netip.AddrPortFrom(local, port)}
}

var loopback4 = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// close closes r and frees its port.
func (r *relay) close() {
	_ = r.conn.Close() // nothing of a UDP socket can be lost by it
	r.pool.give(r.port)
}

// family is 0 for IPv4, 1 for IPv6.
func family(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

// open opens the relay sockets for a and tells the core.
func (w *worker) open(a *core.Action) {
	s := w.s
	var opened []relaySocket
	var got core.Sockets
	for f := range got.Family {
		if a.Families&(1<<f) == 0 {
			continue
		}
		var err error
		if r, held := a.Relay.(*relay); held {
			got.Family[f] = r.pool.socket(r, r.port)
		} else if a.TCP {
			got.Family[f], err = s.openTCPRelay(f)
		} else {
			got.Family[f], got.Next, err = s.openRelay(f, a.Even, a.Next) // nobody reads the second until it is an allocation's
		}
		if err != nil {
			s.log.Error("turn: no relay socket", "client", a.Tuple.Client, "family", []string{"IPv4", "IPv6"}[f], "error", err)
			continue
		}
		r := got.Family[f].Relay.(relaySocket)
		r.own(a.ID)
		opened = append(opened, r)
		s.log.Debug("turn: allocation", "client", a.Tuple.Client, "relayed", got.Family[f].Relayed)
	}
	s.mu.Lock()
	s.core.Opened(time.Now(), a.ID, got, &w.opened)
	s.mu.Unlock()
	for _, r := range opened {
		s.start(r)
	}
	w.act(&w.opened)
}

// start serves r on a goroutine of its own.
func (s *Server) start(r relaySocket) {
	done := make(chan struct{})
	if u, ok := r.(*relay); ok {
		u.done = done
	}
	s.relays.Go(func() {
		defer close(done)
		r.serve(s)
	})
}

// openRelay opens a socket on a free port of a relay address of family f, and one on the next port if that
// is asked for too.
func (s *Server) openRelay(f int, even, pair bool) (got, next core.Socket, err error) {
	err = s.onPort(f, even, pair, func(p *pool, port uint16) error {
		r, err := p.open(port)
		if !pair {
			if err == nil {
				got = p.socket(r, port)
			}
			return err
		}
		n, err2 := p.open(port + 1)
		switch {
		case err == nil && err2 == nil:
			got, next = p.socket(r, port), p.socket(n, port+1)
		case err == nil:
			r.close()
		case err2 == nil:
			n.close()
		}
		return errors.Join(err, err2)
	})
	return got, next, err
}

// openTCPRelay is openRelay for TCP.
func (s *Server) openTCPRelay(f int) (got core.Socket, err error) {
	err = s.onPort(f, false, false, func(p *pool, port uint16) error {
		r, err := p.openTCP(port)
		if err == nil {
			got = p.socket(r, port)
		}
		return err
	})
	return got, err
}

// onPort calls open with a free port of a relay address of family f, both chosen at random (RFC 8656 §7.2,
// RFC 6056; CVE-2025-69217), until it succeeds. A pair is that port and the next.
func (s *Server) onPort(f int, even, pair bool, open func(p *pool, port uint16) error) error {
	var last error
	pools := s.pools[f]
	for range bindTries {
		p, port := pools[0], uint16(0)
		ok := false
		for i, start := 0, random(len(pools)); i < len(pools) && !ok; i++ {
			p = pools[(start+i)%len(pools)]
			port, ok = p.take(even, pair)
		}
		if !ok {
			return errors.New("no relay port is free on any address of this family; widen the ports in turn.relay, or add an address")
		}
		if last = open(p, port); last == nil {
			return nil
		}
	}
	return fmt.Errorf("%d relay ports tried, the last said: %w; see whether each bind in turn.relay is an address of this machine and who else uses its ports", bindTries, last)
}

// open opens the socket on a port that was taken, or gives the port back.
func (p *pool) open(port uint16) (*relay, error) {
	network := "udp4"
	if p.Bind.Is6() {
		network = "udp6"
	}
	c, err := net.ListenUDP(network, net.UDPAddrFromAddrPort(netip.AddrPortFrom(p.Bind, port)))
	if err != nil {
		p.give(port)
		return nil, err
	}
	_ = c.SetReadBuffer(relayBuffer) // as in New
	r := &relay{conn: c, pool: p, port: port}
	if err := r.prepare(c, p.Bind.Is6()); err != nil {
		r.close()
		return nil, err
	}
	return r, nil
}

// serve reads a relay socket until it is closed.
func (r *relay) serve(s *Server) {
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
		failed: func(err error) bool {
			newWorker(s).fromNetwork(r)
			return isReport(err) // said once for each
		},
	})
}

// close closes a relay socket, frees its port, and logs the allocation's end.
func (s *Server) close(a *core.Action) {
	a.Relay.(relaySocket).close()
	if e := a.Ended; e != nil {
		s.sessionEnded(a.ID, e)
	}
}

// sessionEnded writes the one line there is about each TURN session. Its fields are a contract with
// whoever reads logs by program (docs/ops/operating.md): all are there each time.
func (s *Server) sessionEnded(id core.ID, e *core.Ended) {
	relayed := make([]string, 0, 2)
	for _, r := range e.Relayed {
		relayed = append(relayed, r.String())
	}
	s.log.LogAttrs(context.Background(), slog.LevelInfo, "turn: session ended",
		slog.String("cause", e.Cause.String()), slog.String("pseudonym", e.Owner), slog.String("client", e.Tuple.Client.String()), slog.String("transport", transport(e.Tuple)),
		slog.String("relayed", strings.Join(relayed, ",")), slog.Uint64("id", uint64(id)), slog.String("tenant", e.Tenant), slog.String("credential", string(e.Credential)),
		slog.Int64("age_ms", e.Age.Milliseconds()), slog.Int("peers", e.Peers),
		slog.Uint64("to_peer_packets", e.Traffic.SentPackets), slog.Uint64("to_peer_bytes", e.Traffic.SentBytes),
		slog.Uint64("to_client_packets", e.Traffic.ReceivedPackets), slog.Uint64("to_client_bytes", e.Traffic.ReceivedBytes))
}

// pool is a relay address and which of its ports are in use.
type pool struct {
	Relay

	mu   sync.Mutex // guards used
	used []bool     // by port - MinPort
}

func newPool(r Relay) *pool {
	return &pool{Relay: r, used: make([]bool, int(r.MaxPort)-int(r.MinPort)+1)}
}

// random returns a number below n, which is not secret but not to be guessed.
func random(n int) int {
	var b [4]byte
	rand.Read(b[:]) // never fails
	return int(binary.BigEndian.Uint32(b[:]) % uint32(n))
}

// take returns a port that is free, an even one if asked, the first of two if asked, and marks it as
// used, or both. It starts looking at a random place.
func (p *pool) take(even, pair bool) (port uint16, ok bool) {
	start := random(len(p.used))
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range p.used {
		at := (start + i) % len(p.used)
		if port = p.MinPort + uint16(at); !p.used[at] && (!even || port&1 == 0) && (!pair || at+1 < len(p.used) && !p.used[at+1]) {
			p.used[at] = true
			if pair {
				p.used[at+1] = true
			}
			return port, true
		}
	}
	return 0, false
}

// give frees a port.
func (p *pool) give(port uint16) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.used[port-p.MinPort] {
		panic(fmt.Sprintf("turn: relay port %d freed twice", port))
	}
	p.used[port-p.MinPort] = false
}
