package turn

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"wicgate/turn/internal/core"
)

// This file is the way of bytes between a client and a peer on TCP (RFC 6062):
//
//	peer ◄──► TCP socket of the allocation ◄── pump ──► a connection of the client's, after ConnectionBind
//
// What nobody has claimed yet is not read: it waits in the kernel.

// pumpBuffer is how much is read at once, in bytes: a record of TLS.
const pumpBuffer = 16 << 10

// tcpRelay is a relay socket that listens.
type tcpRelay struct {
	id   core.ID
	ln   *net.TCPListener
	pool *pool
	port uint16
}

func (r *tcpRelay) close() {
	_ = r.ln.Close() // nothing can be lost by it
	r.pool.give(r.port)
}

func (r *tcpRelay) own(id core.ID) { r.id = id }

// openTCP opens a listening socket on a port that was taken, or gives the port back.
func (p *pool) openTCP(port uint16) (*tcpRelay, error) {
	lc := net.ListenConfig{Control: sharePort} // connections to peers leave from the same port
	ln, err := lc.Listen(context.Background(), "tcp", netip.AddrPortFrom(p.Bind, port).String())
	if err != nil {
		p.give(port)
		return nil, err
	}
	return &tcpRelay{ln: ln.(*net.TCPListener), pool: p, port: port}, nil
}

// serve accepts peers until the socket is closed.
func (r *tcpRelay) serve(s *Server) {
	w := newWorker(s)
	for {
		c, err := r.ln.AcceptTCP()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			s.log.Warn("turn: accept peers", "relay", r.ln.Addr(), "error", err)
			time.Sleep(pause)
			continue
		}
		now, from := time.Now(), unmap(c.RemoteAddr().(*net.TCPAddr).AddrPort())
		s.mu.Lock()
		s.core.Accepted(now, r.id, from, s.peerConn(c), &w.out)
		s.mu.Unlock()
		if w.out.Cause != core.CauseNone {
			s.refusals.note(s.log, now, &w.out, from, false)
		}
		w.act(&w.out)
		s.wakeTimer()
	}
}

// dial connects to a peer and tells the core.
func (s *Server) dial(a core.Action) {
	r := a.Relay.(*tcpRelay)
	d := net.Dialer{Timeout: core.DialTimeout, Control: sharePort, LocalAddr: r.ln.Addr()}
	c, err := d.DialContext(s.serving, "tcp", a.Peer.String())
	var relay any
	if err == nil {
		relay = s.peerConn(c.(*net.TCPConn))
	} else {
		s.log.Debug("turn: connect to a peer", "relay", r.ln.Addr(), "peer", a.Peer, "error", err)
	}
	w := newWorker(s)
	s.mu.Lock()
	s.core.Connected(time.Now(), a.Conn, relay, &w.out)
	s.mu.Unlock()
	w.act(&w.out)
	s.wakeTimer()
}

// peerConn is a connection to or from a peer. lives ends when it is closed.
type peerConn struct {
	*net.TCPConn
	lives context.Context
	end   context.CancelFunc
}

func (s *Server) peerConn(c *net.TCPConn) *peerConn {
	p := &peerConn{TCPConn: c}
	p.lives, p.end = context.WithCancel(s.serving)
	return p
}

func (p *peerConn) Close() error {
	p.end()
	return p.TCPConn.Close()
}

// splice passes bytes between a client's connection and a peer's until both ways have ended. rest is what
// the client has sent already.
func (s *Server) splice(client net.Conn, rest []byte, peer *peerConn, id core.Conn) {
	_ = client.SetDeadline(time.Time{}) // those were for messages; a connection that is gone fails below
	// A client that does not read would hold what is written to it, and outlive its allocation.
	stop := context.AfterFunc(peer.lives, func() { _ = client.Close() })
	var back sync.WaitGroup
	back.Go(func() { s.pump(client, peer, nil, id, false) })
	s.pump(peer, client, rest, id, true)
	back.Wait()
	stop()
	_ = peer.Close() // it is over in both directions, or broken
	w := newWorker(s)
	s.mu.Lock()
	s.core.Gone(id, &w.out)
	s.mu.Unlock()
	w.act(&w.out)
}

// pump passes bytes one way until its end, which it passes on; what breaks ends the other way too.
func (s *Server) pump(to io.WriteCloser, from io.ReadCloser, first []byte, id core.Conn, toPeer bool) {
	buf := make([]byte, pumpBuffer)
	n := copy(buf, first)
	first = first[n:]
	for n == 0 || s.passes(id, toPeer, n) && writeAll(to, buf[:n]) {
		if n = copy(buf, first); n > 0 {
			first = first[n:]
			continue
		}
		var err error
		if n, err = from.Read(buf); n == 0 && err != nil {
			half, ok := to.(interface{ CloseWrite() error })
			if errors.Is(err, io.EOF) && ok && half.CloseWrite() == nil {
				return
			}
			break
		}
	}
	_, _ = to.Close(), from.Close() // what is on its way is lost, as where a connection breaks
}

func writeAll(to io.Writer, b []byte) bool {
	_, err := to.Write(b)
	return err == nil
}

// passes waits until n bytes may pass by the rates; false if the connection has ended.
func (s *Server) passes(id core.Conn, toPeer bool, n int) bool {
	for {
		s.mu.Lock()
		wait, ok := s.core.Passed(time.Now(), id, toPeer, n)
		s.mu.Unlock()
		if wait == 0 || !ok {
			return ok
		}
		select {
		case <-time.After(wait):
		case <-s.serving.Done():
			return false
		}
	}
}
