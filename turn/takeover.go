package turn

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"wicgate/internal/listen"
	"wicgate/turn/internal/core"
)

// This file hands a Server's clients to the Server of another process, which goes on with the same
// sockets. Clients on UDP move. Clients on connections stay, for TLS cannot move, with their
// allocations: their process drains beside the new one.

// StateVersion is of what Pause returns.
const StateVersion = core.StateVersion

// moved is what Pause has taken out.
type moved struct {
	state  *core.State
	relays []*relay
	gone   bool // Leave has been called, or the server ends
}

// ListeningSocket is one, and its address in Config.Listen or TCP.
type ListeningSocket struct {
	Network string // udp, lane (see openLane) or tcp
	Addr    netip.AddrPort
	Conn    syscall.Conn
}

// Listening are the listening sockets.
func (s *Server) Listening() (out []ListeningSocket) {
	for i, c := range s.listeners {
		out = append(out, ListeningSocket{"udp", s.cfg.Listen[i], c})
		if lane := s.lanes[i]; lane != nil {
			out = append(out, ListeningSocket{"lane", s.cfg.Listen[i], lane})
		}
	}
	if s.tcp != nil {
		for i, l := range s.tcp.Listeners() {
			out = append(out, ListeningSocket{"tcp", s.cfg.TCP[i], l.(*net.TCPListener)})
		}
	}
	return out
}

// Pause stops reading the clients on UDP and their relays; what comes meanwhile waits in the kernel. What
// clients on connections say waits too: by a ticket or a reservation they could change what moves. It
// returns their allocations, keys among that, and the relay sockets. Resume or Leave must follow.
func (s *Server) Pause() (state []byte, relays []syscall.Conn, err error) {
	s.moving.Lock()
	if s.moved.gone {
		s.moving.Unlock()
		return nil, nil, errors.New("turn: the server has ended, or handed over to another process before")
	}
	s.readUntil(past)
	s.udp.Wait()
	s.mu.Lock()
	_, list := s.core.State()
	s.mu.Unlock()
	for _, r := range list {
		_ = r.(*relay).conn.SetReadDeadline(past) // same
	}
	for _, r := range list {
		if done := r.(*relay).done; done != nil {
			<-done
		}
	}
	s.mu.Lock()
	s.moved.state, list = s.core.State() // fewer, if some have ended meanwhile
	state = s.moved.state.Append(nil)
	s.mu.Unlock()
	for _, r := range list {
		s.moved.relays = append(s.moved.relays, r.(*relay))
		relays = append(relays, r.(*relay).conn)
	}
	ways, err := s.offerForward()
	if err != nil {
		clear(state) // keys
		s.Resume()
		return nil, nil, err
	}
	return state, append(relays, ways...), nil
}

// past is a deadline that makes a read return at once.
var past = time.Unix(1, 0)

// Resume goes on after Pause as if nothing had been.
func (s *Server) Resume() {
	defer s.moving.Unlock()
	for _, r := range s.moved.relays {
		if r.done != nil {
			_ = r.conn.SetReadDeadline(time.Time{}) // what is closed says so when it is read
			s.start(r)
		}
	}
	s.moved = moved{}
	s.forwards.close(false)
	s.readUntil(time.Time{})
	s.readListeners()
}

// Leave forgets, after Pause, what another process has now, and listens no more. Allocations of clients
// on connections live on, to the end at most.
func (s *Server) Leave(end time.Time) {
	defer s.moving.Unlock()
	s.mu.Lock()
	s.core.Leave(time.Now(), s.moved.state, end)
	s.mu.Unlock()
	s.wakeTimer()
	for _, c := range s.lanes {
		if c != nil {
			_ = c.Close() // the other process has it too
		}
	}
	if from := s.forwards.leave(); from != nil {
		s.udp.Go(func() { s.readForwarded(from) }) // the listeners are still written
	} else {
		for _, c := range s.listeners {
			_ = c.Close() // same
		}
	}
	if s.tcp != nil {
		s.tcp.Leave()
	}
	for _, r := range s.moved.relays {
		_ = r.conn.Close() // same; its port is not free
	}
	s.moved = moved{gone: true}
}

// Connections is how many there are, associations of DTLS too.
func (s *Server) Connections() (n int) {
	if s.tcp != nil {
		n += s.tcp.Stats().Open
	}
	if s.dtls != nil {
		n += s.dtls.Stats().Open
	}
	return n
}

// Alone tells, after a takeover, that the processes before this one have ended: the relayed addresses
// that they kept are those of peers no more.
func (s *Server) Alone() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.core.Alone()
}

func (s *Server) readListeners() {
	for i, c := range s.listeners {
		s.udp.Go(func() { s.serveListener(uint16(i), c) })
		if lane := s.lanes[i]; lane != nil {
			s.udp.Go(func() { s.serveListener(uint16(i), lane) })
		}
	}
}

// readUntil sets when reading the listeners ends; the zero Time is never.
func (s *Server) readUntil(t time.Time) {
	for _, c := range slices.Concat(s.listeners, s.lanes) {
		if c != nil {
			_ = c.SetReadDeadline(t) // what is closed says so when it is read
		}
	}
}

// heirless says which sockets of another process are none of ours, whose clients would be lost.
func (s *Server) heirless() error {
	left := s.cfg.Heritage.Left()
	if len(left) == 0 {
		return nil
	}
	s.cfg.Heritage.Close()
	return fmt.Errorf("turn: the running process listens on %s, which this one would not; add it to turn.listen or turn.listen_tcp, or restart", strings.Join(left, " and "))
}

// takeOver is the other side: it restores, and starts to read the relays once the other process does not.
func (s *Server) takeOver(ctx context.Context) error {
	var relays []*relay
	err := s.cfg.Takeover(ctx, func(state []byte, files []*os.File) (err error) {
		relays, err = s.restore(state, files)
		return err
	})
	if err != nil {
		for _, r := range relays {
			_ = r.conn.Close() // the other process has it still
		}
		return err
	}
	for _, r := range relays {
		// Not before: the other process knows what it has set.
		if err := r.prepare(r.conn, family(r.pool.Advertise) == 1); err != nil && !errors.Is(err, net.ErrClosed) { // revoked meanwhile
			s.log.Error("turn: a relay socket of another process", "socket", r.conn.LocalAddr(), "error", err)
		}
		if r.id != 0 { // not that of a reservation
			s.start(r)
		}
	}
	return nil
}

func (s *Server) restore(state []byte, files []*os.File) (relays []*relay, err error) {
	defer func() {
		for _, f := range files {
			_ = f.Close() // those that no relay is made of
		}
	}()
	st, err := core.ParseState(state)
	if err != nil {
		return nil, err
	}
	n := st.Sockets()
	if n > len(files) {
		return nil, fmt.Errorf("%d relay sockets for %d allocated addresses", len(files), n)
	}
	for _, f := range files[n:] {
		c, err := unixConn(f)
		if err != nil {
			return nil, err
		}
		s.forwards.to = append(s.forwards.to, c)
	}
	w := newWorker(s)
	s.mu.Lock()
	err = s.core.Restore(time.Now(), st, func(t core.Tuple) (core.Tuple, error) {
		number, ok := s.numbers[int(t.Listener)]
		if !ok {
			return t, fmt.Errorf("a client on UDP listener %d, which has not come", t.Listener)
		}
		t.Listener = number
		t.Tenant = s.chosen.by(t.Listener, "")
		return t, nil
	}, func(i int, id core.ID, was core.Socket) (core.Socket, error) {
		c, err := listen.UDPFile(files[i])
		if err != nil {
			return core.Socket{}, err
		}
		bound := unmap(c.LocalAddr().(*net.UDPAddr).AddrPort())
		if bound.Port() != was.Relayed.Port() || bound.Port() != was.Local.Port() || bound.Addr().Is4() != was.Relayed.Addr().Is4() {
			return core.Socket{}, errors.Join(fmt.Errorf("a relay socket on %v for the relayed address %v", bound, was.Relayed), c.Close())
		}
		r := &relay{id: id, conn: c, pool: s.poolOf(was.Relayed, bound.Addr()), port: bound.Port()}
		relays = append(relays, r)
		was.Relay = r
		return was, nil
	}, &w.out)
	s.mu.Unlock()
	if err == nil {
		w.act(&w.out) // of those that have been revoked meanwhile
	}
	return relays, err
}

// poolOf marks the port of a relay socket as used, in the pool that has it, or else in one of its own.
func (s *Server) poolOf(relayed netip.AddrPort, bound netip.Addr) *pool {
	f, port := family(relayed.Addr()), relayed.Port()
	for _, p := range s.pools[f] {
		if p.Advertise == relayed.Addr() && p.Bind == bound && p.hold(port) {
			return p
		}
	}
	p := newPool(Relay{Bind: bound, Advertise: relayed.Addr(), MinPort: port, MaxPort: port})
	p.hold(port)
	return p
}

// hold marks a port as used, and reports whether it is of the pool and was free.
func (p *pool) hold(port uint16) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if port < p.MinPort || port > p.MaxPort || p.used[port-p.MinPort] {
		return false
	}
	p.used[port-p.MinPort] = true
	return true
}
