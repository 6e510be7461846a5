package turn

import (
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"wicgate/internal/listen"
	"wicgate/internal/wire/stun"
	"wicgate/turn/internal/core"
)

// This file is the way of clients on TCP and TLS (RFC 8656 §3.1). A connection has two goroutines:
// its handler reads, a second one writes, and relays only put into its queue:
//
//	connection ─► framer ─► core        relay socket ─► core ─► queue ─► connection
//
// A packet of a peer for which there is no room in the queue is dropped, as a network does with a
// packet that comes too fast. An answer is not, for nobody would ask again (RFC 8489 §6.2.2): the
// client that leaves no room for one, or takes nothing for writeTimeout, loses its connection.

const (
	// strangerFrame is the longest message, in bytes, of a client without an allocation: what needs
	// more carries data for a peer.
	strangerFrame = 4096
	// bufferFirst is what a connection's buffers begin with, and come back to.
	bufferFirst = 4096
	// queuePackets and queueAll bound what waits to be written, in bytes: up to the first, packets
	// of peers are taken too, up to the second, answers. 128 KiB are half a second at 2 Mbit/s.
	queuePackets = 128 << 10
	queueAll     = queuePackets + 32<<10
	// streamBuffer is the kernel's buffer for sending. More would hold media until it is stale.
	streamBuffer = 128 << 10
	// malformedMax is how many messages in a row may be malformed, before the two sides are held to
	// have lost each other (RFC 8656 §5).
	malformedMax = 8
	// defaultIdle is Config.Idle.
	defaultIdle = 30 * time.Second
)

// writeTimeout is how long one write, of at most queueAll bytes, may take. A test shortens it.
var writeTimeout = 10 * time.Second

// streamEnd is why a connection was closed: a closed set, fit for a metric's label.
type streamEnd uint8

const (
	endClient    streamEnd = iota // the client closed it, or it broke
	endIdle                       // no allocation for Config.Idle
	endFraming                    // bytes that begin no message, or many malformed ones
	endTooLong                    // a longer message than the client may send
	endSlow                       // a write took longer than writeTimeout
	endQueue                      // no room for an answer
	endShutdown                   // the server ends
	endDuplicate                  // its 5-tuple is there already
	numStreamEnds
)

var streamEnds = [numStreamEnds]string{"client", "idle", "framing", "too_long", "slow", "queue", "shutdown", "duplicate"}

// streams are the connections by 5-tuple.
type streams struct {
	ends    [numStreamEnds]atomic.Uint64
	dropped atomic.Uint64 // packets of peers without room in a queue

	mu   sync.RWMutex // guards open
	open map[core.Tuple]*stream
}

func (l *streams) get(t core.Tuple) *stream {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.open[t]
}

func (l *streams) add(c *stream) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[c.tuple] != nil {
		return false
	}
	l.open[c.tuple] = c
	return true
}

func (l *streams) remove(c *stream) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.open, c.tuple)
}

// stream is a client's connection.
type stream struct {
	tuple core.Tuple
	conn  *listen.Conn
	wake  chan struct{} // the queue is no longer empty; closed by finish

	mu    sync.Mutex // guards the following
	queue []byte
	done  bool // nothing is queued any more
	end   streamEnd
	ended bool // end is set

	// The peer's connection that this one has been joined to, by its own goroutine; nil = none.
	peer   *peerConn
	peerID core.Conn
}

// because notes why the connection ends; the first reason counts.
func (c *stream) because(why streamEnd) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.ended {
		c.end, c.ended = why, true
	}
}

// send queues the message b, which the caller may then use again. packet says that it is from a peer
// and may be lost. It reports whether there was room.
func (c *stream) send(b []byte, packet bool) bool {
	room := queueAll
	if packet {
		room = queuePackets
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.done || len(c.queue)+len(b)+3 > room {
		return false
	}
	empty := len(c.queue) == 0
	c.queue = stun.AppendStreamPadding(append(c.queue, b...))
	if empty {
		select {
		case c.wake <- struct{}{}:
		default: // the writer has not come to the last one yet
		}
	}
	return true
}

// take swaps the queue for an empty one that begins with spare.
func (c *stream) take(spare []byte) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	q := c.queue
	c.queue = spare[:0]
	return q
}

// finish ends the writer, which first writes what is queued.
func (c *stream) finish() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.done = true
	close(c.wake)
}

// write writes the queue until finish.
func (c *stream) write() {
	var spare []byte
	for open := true; open; {
		_, open = <-c.wake
		for {
			b := c.take(spare)
			spare = b // the queue has the old one
			if len(b) == 0 {
				break
			}
			if err := c.writeOnce(b); err != nil {
				if errors.Is(err, os.ErrDeadlineExceeded) {
					c.because(endSlow)
				}
				c.conn.Abort() // the reader sees it
				for range c.wake {
				}
				return
			}
			if cap(spare) > 4*bufferFirst {
				spare = nil
			}
		}
	}
}

func (c *stream) writeOnce(b []byte) error {
	if err := c.conn.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	_, err := c.conn.Write(b)
	return err
}

// toStream queues a message for a client's connection.
func (s *Server) toStream(a *core.Action) {
	c := s.streams.get(a.Tuple)
	packet := a.ID != 0 // answers bear none
	switch {
	case c == nil:
		s.sendErrors.Add(1) // it went away meanwhile
	case c.send(a.Data, packet):
	case packet:
		s.streams.dropped.Add(1)
	default:
		c.because(endQueue)
		c.conn.Abort()
	}
}

// serveStream serves one connection until it ends, and its allocation with it.
func (s *Server) serveStream(conn *listen.Conn) {
	number := uint16(len(s.listeners) + conn.Listener)
	c := &stream{
		conn: conn, wake: make(chan struct{}, 1),
		tuple: core.Tuple{Client: conn.Remote, Listener: number, Transport: stun.ProtocolTCP, TLS: conn.TLS, Tenant: s.chosen.by(number, conn.ServerName)},
	}
	conn.SetWriteBuffer(streamBuffer)
	if !s.streams.add(c) {
		// The client opened the same 5-tuple anew before we saw the old one end.
		s.streams.ends[endDuplicate].Add(1)
		conn.Abort()
		return
	}
	s.log.Debug("turn: connection", "client", conn.Remote, "tls", conn.TLS, "alpn", conn.Protocol)
	var writer sync.WaitGroup
	writer.Go(c.write)
	w := newWorker(s)
	rest, err := s.readStream(c, w)
	if s.stopping.Load() {
		c.because(endShutdown)
	}
	c.because(endClient)

	s.streams.remove(c)
	s.disconnected(w, c.tuple)
	c.finish()
	if c.end == endSlow || c.end == endQueue {
		conn.Abort()
	}
	writer.Wait()
	if c.peer != nil {
		s.splice(conn, rest, c.peer, c.peerID)
	}
	s.streams.ends[c.end].Add(1)
	s.log.Debug("turn: connection ended", "client", conn.Remote, "cause", streamEnds[c.end], "error", err)
}

// readStream hands the messages of a connection to the core until it ends, and notes why if that is
// not the client's doing. Joined to a peer's connection it returns what the client has sent beyond.
func (s *Server) readStream(c *stream, w *worker) (rest []byte, err error) {
	f := framer{r: c.conn, longest: strangerFrame, rfc5766: s.cfg.ChannelNumbers5766}
	held := time.Now() // when it last had an allocation
	var armed time.Time
	next := held.Add(s.cfg.Idle)
	malformed := 0
	for {
		if armed != next {
			if err := c.conn.SetReadDeadline(next); err != nil {
				return nil, err
			}
			armed = next
		}
		m, err := f.next()
		now := time.Now()
		switch {
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded): // Idle has gone by: is there an allocation?
			s.mu.Lock()
			holds := s.core.Holds(c.tuple)
			s.mu.Unlock()
			if holds {
				held = now
			}
			if next = held.Add(s.cfg.Idle); now.Before(next) {
				continue
			}
			c.because(endIdle)
			return nil, err
		case errors.Is(err, stun.ErrFraming):
			c.because(endFraming)
			return nil, err
		case errors.Is(err, errTooLong):
			c.because(endTooLong)
			return nil, err
		default:
			return nil, err
		}
		holds := s.fromClient(w, now, c.tuple, m)
		if c.peer != nil {
			return f.buf[f.from:f.to], nil
		}
		if holds {
			held, f.longest = now, stun.MaxStreamSize
		} else {
			f.longest = strangerFrame
		}
		if w.out.Cause != core.CauseMalformed {
			malformed = 0
		} else if malformed++; malformed == malformedMax {
			c.because(endFraming)
			return nil, stun.ErrFraming
		}
		// Under steady traffic no deadline would ever pass.
		if !holds && now.Sub(held) >= s.cfg.Idle {
			c.because(endIdle)
			return nil, os.ErrDeadlineExceeded
		}
	}
}

// errTooLong is returned for a message that is longer than the framer takes.
var errTooLong = errors.New("turn: message longer than this client may send")

// framer cuts a stream into messages. Its buffer grows to what a message says it needs, and a
// message may say no more than longest.
type framer struct {
	r       io.Reader
	longest int
	rfc5766 bool // channel numbers of RFC 5766 too
	buf     []byte
	from    int // unread bytes are buf[from:to]
	to      int
}

// next returns the next message, padding included, which is valid until the next call. After an
// error of a deadline it may be called again; nothing is lost.
func (f *framer) next() ([]byte, error) {
	for {
		size, err := stun.StreamSize(f.buf[f.from:f.to], f.rfc5766)
		switch {
		case err != nil:
			return nil, err
		case size > f.longest:
			return nil, errTooLong
		case size > 0 && f.to-f.from >= size:
			m := f.buf[f.from : f.from+size : f.from+size]
			f.from += size
			return m, nil
		}
		f.room(max(size, stun.StreamHeaderSize))
		n, err := f.r.Read(f.buf[f.to:])
		f.to += n
		if n == 0 && err != nil {
			return nil, err
		}
	}
}

// room makes place for a message of size bytes that begins at from.
func (f *framer) room(size int) {
	rest := f.buf[f.from:f.to]
	switch {
	case size > len(f.buf):
		grown := make([]byte, max(size, bufferFirst))
		copy(grown, rest)
		f.buf = grown
	case len(rest) == 0 && len(f.buf) > 4*bufferFirst && size <= bufferFirst:
		f.buf = make([]byte, bufferFirst)
	case f.from == 0:
		return
	default:
		copy(f.buf, rest)
	}
	f.from, f.to = 0, len(rest)
}

// plainFirst says whether a connection that begins with b speaks STUN or TURN without TLS.
func plainFirst(b byte) bool {
	k := stun.Classify([]byte{b})
	return k == stun.ProtocolSTUN || k == stun.ProtocolChannel
}

// protocols are those of ALPN (RFC 7443).
var protocols = []string{"stun.turn", "stun.nat-discovery"}

// newStreams opens the TCP listeners.
func (s *Server) newStreams() error {
	if len(s.cfg.TCP) == 0 {
		return nil
	}
	t, err := listen.NewStreams(listen.StreamConfig{
		Log: s.log, Key: "turn.listen_tcp", Addrs: s.cfg.TCP, Heritage: s.cfg.Heritage, Plain: plainFirst, Certificate: s.cfg.Certificate,
		Protocols: protocols,
		HTTPS:     s.cfg.HTTPS, Proxies: s.cfg.Proxies,
		Limits: s.limits(),
	})
	s.tcp = t
	return err
}

// limits are those of connections and, apart, of associations.
func (s *Server) limits() listen.Limits {
	return listen.Limits{MaxOpen: s.cfg.MaxConnections, MaxOpenSource: s.cfg.MaxConnectionsSource}
}
