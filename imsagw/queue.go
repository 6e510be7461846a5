package imsagw

import (
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/pion/transport/v5/deadline"
)

// queueLength bounds the packets that wait for an ICE or a DTLS agent.
const queueLength = 64

type queued struct {
	b    []byte
	from netip.AddrPort
}

// queue is the net.PacketConn that an agent of pion takes for its socket: what the stream sorts out for
// it comes in by push, and what it writes goes to write. Its Close closes nothing but itself.
type queue struct {
	in     chan queued // never closed
	closed chan struct{}
	once   sync.Once
	read   *deadline.Deadline
	local  net.Addr
	write  func(b []byte, to netip.AddrPort) (int, error)
}

func newQueue(local netip.AddrPort, write func([]byte, netip.AddrPort) (int, error)) *queue {
	return &queue{
		in: make(chan queued, queueLength), closed: make(chan struct{}),
		read: deadline.New(), local: net.UDPAddrFromAddrPort(local), write: write,
	}
}

// push copies a packet into the queue; false if it is full or closed.
func (q *queue) push(b []byte, from netip.AddrPort) bool {
	select {
	case <-q.closed:
		return false
	default:
	}
	if len(q.in) == cap(q.in) {
		return false // before the copy: a flood costs nothing
	}
	select {
	case q.in <- queued{append([]byte(nil), b...), from}:
		return true
	default:
		return false
	}
}

// ReadFromAddrPort implements pion/ice's AddrPortReaderWriter.
func (q *queue) ReadFromAddrPort(b []byte) (int, netip.AddrPort, error) {
	select {
	case <-q.read.Done():
		return 0, netip.AddrPort{}, os.ErrDeadlineExceeded
	case <-q.closed:
		return 0, netip.AddrPort{}, net.ErrClosed
	default:
	}
	select {
	case p := <-q.in:
		return copy(b, p.b), p.from, nil
	case <-q.read.Done():
		return 0, netip.AddrPort{}, os.ErrDeadlineExceeded
	case <-q.closed:
		return 0, netip.AddrPort{}, net.ErrClosed
	}
}

// WriteToAddrPort implements pion/ice's AddrPortReaderWriter.
func (q *queue) WriteToAddrPort(b []byte, to netip.AddrPort) (int, error) {
	select {
	case <-q.closed:
		return 0, net.ErrClosed
	default:
		return q.write(b, to)
	}
}

func (q *queue) ReadFrom(b []byte) (int, net.Addr, error) {
	n, from, err := q.ReadFromAddrPort(b)
	if err != nil {
		return 0, nil, err
	}
	return n, net.UDPAddrFromAddrPort(from), nil
}

func (q *queue) WriteTo(b []byte, to net.Addr) (int, error) {
	u, ok := to.(*net.UDPAddr)
	if !ok {
		return 0, net.InvalidAddrError("not a UDP address")
	}
	return q.WriteToAddrPort(b, u.AddrPort())
}

func (q *queue) Close() error {
	q.once.Do(func() { close(q.closed) })
	return nil
}

func (q *queue) LocalAddr() net.Addr { return q.local }

func (q *queue) SetDeadline(t time.Time) error { return q.SetReadDeadline(t) }

func (q *queue) SetReadDeadline(t time.Time) error {
	q.read.Set(t)
	return nil
}

// SetWriteDeadline does nothing: a write to a UDP socket does not wait.
func (q *queue) SetWriteDeadline(time.Time) error { return nil }
