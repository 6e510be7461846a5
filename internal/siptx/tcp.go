package siptx

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"
)

const (
	dialTime     = 3 * time.Second
	dialPause    = 250 * time.Millisecond // between a failed dial and the next to the same address
	messageTime  = 20 * time.Second       // from a message's first byte to its last
	writeTime    = 10 * time.Second
	flushTime    = time.Second // for what waits when a connection ends
	queueLength  = 256         // messages that wait for a slow reader
	maxAccepted  = 64          // connections that peers have opened
	maxDialled   = 16          // addresses that we keep a connection to
	acceptPause  = 50 * time.Millisecond
	streamBuffer = maxLine + 2
)

// TCP is the transport to trusted peers: connections that they open, and one to each address that
// we send to, opened when first needed and again when lost.
type TCP struct {
	Log *slog.Logger
	// SentBy is the host:port that this side writes into Via: where it listens.
	SentBy string
	// Allow says who may connect.
	Allow func(netip.Addr) bool
	// Receive is given each message, on the connection's own goroutine.
	Receive func(c *TCPConn, m *Message)
	// Lost is told when a connection has ended, once.
	Lost func(c *TCPConn)

	mu       sync.Mutex // guards the following fields
	closed   bool
	accepted map[*TCPConn]struct{}
	dialled  map[netip.AddrPort]*TCPConn
	failed   map[netip.AddrPort]time.Time
	refused  uint64
	wg       sync.WaitGroup
}

// TCPConn is one connection. It implements [Conn].
type TCPConn struct {
	// Peer is the other side's address; of a connection that we opened, the one that we asked for.
	Peer netip.AddrPort

	t     *TCP
	queue chan []byte // never closed; the writer leaves by done
	done  chan struct{}
	end   sync.Once
	mu    sync.Mutex // guards conn and cause
	conn  net.Conn
	cause error
}

// Send implements [Conn]. A message over the peer's bounds is dropped: the peer could only end the
// connection, which others share. [Layer] does not send one.
func (c *TCPConn) Send(m []byte) {
	if err := fits(m); err != nil && len(m) > len("\r\n\r\n") {
		c.t.Log.Error("message not sent: please report it", "peer", c.Peer, "error", err)
		return
	}
	select {
	case c.queue <- m:
	case <-c.done:
	default:
		c.Close(fmt.Errorf("%d messages wait for a peer that does not read", queueLength))
	}
}

// Via implements [Conn].
func (c *TCPConn) Via() (transport, sentBy string) { return "TCP", c.t.SentBy }

// Trusted implements [Conn].
func (c *TCPConn) Trusted() bool { return true }

// Close ends the connection, once what waits has been written, or cannot be within a second. It
// does not wait for that. cause is for the log.
func (c *TCPConn) Close(cause error) {
	c.end.Do(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.cause = cause
		close(c.done)
		if c.conn != nil { // its reader ends now, its writer soon; errors only if it is gone already
			_ = c.conn.SetReadDeadline(time.Unix(1, 0))
			_ = c.conn.SetWriteDeadline(time.Now().Add(flushTime))
		}
	})
}

// Serve accepts connections until Close.
func (t *TCP) Serve(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			t.Log.Warn("accept failed", "listen", l.Addr().String(), "error", err)
			time.Sleep(acceptPause) // out of descriptors, most likely: let some be closed
			continue
		}
		t.accept(conn)
	}
}

func (t *TCP) accept(conn net.Conn) {
	peer := conn.RemoteAddr().(*net.TCPAddr).AddrPort()
	peer = netip.AddrPortFrom(peer.Addr().Unmap(), peer.Port())
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed || !t.Allow(peer.Addr()) || len(t.accepted) >= maxAccepted {
		t.refused++
		_ = conn.Close() // nothing was said on it
		t.Log.Warn("connection refused: not a configured peer, or too many", "peer", peer)
		return
	}
	c := t.newConn(peer)
	c.conn = conn
	if t.accepted == nil {
		t.accepted = map[*TCPConn]struct{}{}
	}
	t.accepted[c] = struct{}{}
	t.wg.Go(func() {
		t.run(c, conn)
		t.mu.Lock()
		delete(t.accepted, c)
		t.mu.Unlock()
	})
}

func (t *TCP) newConn(peer netip.AddrPort) *TCPConn {
	return &TCPConn{Peer: peer, t: t, queue: make(chan []byte, queueLength), done: make(chan struct{})}
}

// To returns the connection to addr and opens it if need be, without waiting: what is sent
// before it is open waits in its queue. ok is false while addr has just refused, or too many addresses are in use.
func (t *TCP) To(addr netip.AddrPort) (c *TCPConn, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if c := t.dialled[addr]; c != nil {
		return c, true
	}
	if t.closed || len(t.dialled) >= maxDialled || time.Since(t.failed[addr]) < dialPause {
		return nil, false
	}
	if t.dialled == nil {
		t.dialled, t.failed = map[netip.AddrPort]*TCPConn{}, map[netip.AddrPort]time.Time{}
	}
	c = t.newConn(addr)
	t.dialled[addr] = c
	t.wg.Go(func() { t.dial(c) })
	return c, true
}

func (t *TCP) dial(c *TCPConn) {
	ctx, cancel := context.WithTimeout(context.Background(), dialTime)
	defer cancel()
	t.wg.Go(func() { // ends with the dial
		select {
		case <-c.done:
			cancel()
		case <-ctx.Done():
		}
	})
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", c.Peer.String())
	if err == nil {
		c.mu.Lock()
		select {
		case <-c.done: // closed meanwhile
			_ = conn.Close() // nothing was said on it
			err = c.cause
		default:
			c.conn = conn
		}
		c.mu.Unlock()
	}
	cancel()
	if err != nil {
		c.Close(err)
		t.mu.Lock()
		if !t.closed {
			clear(t.failed) // of other addresses: the map stays small, the pause short
			t.failed[c.Peer] = time.Now()
		}
		t.forgetLocked(c)
		t.mu.Unlock()
		t.Log.Warn("cannot connect to the next hop", "peer", c.Peer, "error", err)
		t.Lost(c)
		return
	}
	t.Log.Info("connected", "peer", c.Peer)
	t.run(c, conn)
}

func (t *TCP) forgetLocked(c *TCPConn) {
	if t.dialled[c.Peer] == c {
		delete(t.dialled, c.Peer)
	}
}

// run reads and writes until one of the two fails, then tells Lost.
func (t *TCP) run(c *TCPConn, conn net.Conn) {
	t.wg.Go(func() {
		c.Close(write(conn, c.queue, c.done))
		_ = conn.Close() // nothing is left to be written
	})
	c.Close(t.read(c, conn))
	t.mu.Lock()
	t.forgetLocked(c)
	closed := t.closed
	t.mu.Unlock()
	c.mu.Lock()
	cause := c.cause
	c.mu.Unlock()
	if !closed {
		t.Log.Info("connection ended", "peer", c.Peer, "cause", cause)
	}
	t.Lost(c)
}

// within sets how long the reader waits, 0 for ever, unless the connection is being closed.
func (c *TCPConn) within(conn net.Conn, d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var at time.Time
	if d > 0 {
		at = time.Now().Add(d)
	}
	select {
	case <-c.done:
	default:
		_ = conn.SetReadDeadline(at) // a failure shows in the read
	}
}

func write(conn net.Conn, queue <-chan []byte, done <-chan struct{}) error {
	for {
		select {
		case m := <-queue:
			if err := conn.SetWriteDeadline(time.Now().Add(writeTime)); err != nil {
				return err
			}
			if _, err := conn.Write(m); err != nil {
				return err
			}
		case <-done:
			return flush(conn, queue)
		}
	}
}

// flush writes what waits.
func flush(conn net.Conn, queue <-chan []byte) error {
	if err := conn.SetWriteDeadline(time.Now().Add(flushTime)); err != nil {
		return err
	}
	for {
		select {
		case m := <-queue:
			if _, err := conn.Write(m); err != nil {
				return err
			}
		default:
			return nil
		}
	}
}

func (t *TCP) read(c *TCPConn, conn net.Conn) error {
	r := bufio.NewReaderSize(conn, streamBuffer)
	for {
		c.within(conn, 0)
		b, err := ReadMessage(r, func() { c.within(conn, messageTime) })
		switch {
		case errors.Is(err, io.EOF):
			return errors.New("closed by the peer")
		case err != nil:
			return err
		case len(b) == 0:
			c.Send([]byte("\r\n"))
			continue
		}
		m, err := Parse(b, true)
		if err != nil {
			t.Log.Warn("message refused", "peer", c.Peer, "error", err)
			if answer, ok := Refuse(b, 400, "Bad Request"); ok {
				c.Send(answer)
			} // else it is passed over: its end is known, and the connection is many users'
			continue
		}
		t.Receive(c, m)
	}
}

// Close ends all connections and waits. The listener given to Serve is closed by its owner, before.
func (t *TCP) Close() {
	t.mu.Lock()
	t.closed = true
	var all []*TCPConn
	for c := range t.accepted {
		all = append(all, c)
	}
	for _, c := range t.dialled {
		all = append(all, c)
	}
	t.mu.Unlock()
	for _, c := range all {
		c.Close(errors.New("shutting down"))
	}
	t.wg.Wait()
}

// Connections counts those open or being opened, and those refused so far.
func (t *TCP) Connections() (open int, refused uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.accepted) + len(t.dialled), t.refused
}
