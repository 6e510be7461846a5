package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// answerTime is how long a blocking read waits.
const answerTime = 3 * time.Second

// again is what a read says when there is nothing to read. crypto/tls goes on after an error that
// is temporary.
type again struct{}

func (again) Error() string   { return "nothing to read" }
func (again) Timeout() bool   { return true }
func (again) Temporary() bool { return true }

// socket is a bare socket of the kernel: no poller, no goroutine, so that one thread can be the
// whole load. It is a net.Conn as far as crypto/tls needs one.
type socket struct{ fd int }

// newSocket makes a socket, bound to from and connected to to where these are valid. Its reads wait
// for answerTime until [socket.noWait].
func newSocket(kind int, from, to netip.AddrPort) (*socket, error) {
	fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	s := &socket{fd}
	wait := unix.NsecToTimeval(answerTime.Nanoseconds())
	err = errors.Join(
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &wait))
	if kind == unix.SOCK_STREAM {
		err = errors.Join(err, unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1))
	}
	if err == nil && from.IsValid() {
		err = unix.Bind(fd, address(from))
	}
	if err == nil && to.IsValid() {
		err = s.connect(to)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("socket from %v to %v: %w", from, to, err), s.Close())
	}
	return s, nil
}

// connect goes on where a signal of Go's runtime has interrupted it, as connect(2) says.
func (s *socket) connect(to netip.AddrPort) error {
	err := unix.Connect(s.fd, address(to))
	if !errors.Is(err, unix.EINTR) {
		return err
	}
	if err := s.poll(unix.POLLOUT); err != nil {
		return err
	}
	code, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err == nil && code != 0 {
		err = unix.Errno(code)
	}
	return err
}

// poll waits for an event, at most answerTime.
func (s *socket) poll(event int16) error {
	for end := time.Now().Add(answerTime); time.Now().Before(end); {
		ready, err := unix.Poll([]unix.PollFd{{Fd: int32(s.fd), Events: event}}, int(answerTime.Milliseconds()))
		if ready > 0 || err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
	return fmt.Errorf("nothing for %v", answerTime)
}

func address(a netip.AddrPort) unix.Sockaddr {
	return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
}

// buffer sets the kernel's buffer for receiving, in bytes, above the machine's limit too.
func (s *socket) buffer(n int) error {
	return unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, n)
}

// noWait makes reads return [again] at once.
func (s *socket) noWait() error { return unix.SetNonblock(s.fd, true) }

// port is the local one.
func (s *socket) port() (uint16, error) {
	a, err := unix.Getsockname(s.fd)
	if err != nil {
		return 0, err
	}
	return uint16(a.(*unix.SockaddrInet4).Port), nil
}

// Read implements net.Conn.
func (s *socket) Read(b []byte) (int, error) {
	for {
		n, err := unix.Read(s.fd, b)
		switch {
		case err == nil && n == 0:
			return 0, net.ErrClosed // of a stream; no datagram here is empty
		case err == nil:
			return n, nil
		case errors.Is(err, unix.EAGAIN):
			return 0, again{}
		case !errors.Is(err, unix.EINTR):
			return 0, err
		}
	}
}

// Write implements net.Conn: all of b, also when reads do not wait.
func (s *socket) Write(b []byte) (int, error) {
	for done := 0; ; {
		n, err := unix.Write(s.fd, b[done:])
		if n > 0 {
			done += n
		}
		switch {
		case done == len(b):
			return done, nil
		case err == nil, errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			if err := s.poll(unix.POLLOUT); err != nil {
				return done, fmt.Errorf("the server takes nothing more: %w", err)
			}
		default:
			return done, err
		}
	}
}

// Close implements net.Conn.
func (s *socket) Close() error { return unix.Close(s.fd) }

// What crypto/tls does not need.

// LocalAddr implements net.Conn.
func (s *socket) LocalAddr() net.Addr { return nil }

// RemoteAddr implements net.Conn.
func (s *socket) RemoteAddr() net.Addr { return nil }

// SetDeadline implements net.Conn.
func (s *socket) SetDeadline(time.Time) error { return nil }

// SetReadDeadline implements net.Conn.
func (s *socket) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline implements net.Conn.
func (s *socket) SetWriteDeadline(time.Time) error { return nil }

// sources hands out addresses of the load's prefix and ports, one after the other: each address has
// few clients, and no two clients are alike, for a server may remember one that is gone.
type sources struct{ n int }

func (s *sources) next() netip.AddrPort {
	const addresses, firstPort = 250, 20_000
	a := [4]byte{10, 31}
	binary.BigEndian.PutUint16(a[2:], uint16(256+s.n%addresses))
	port := firstPort + s.n/addresses
	s.n++
	return netip.AddrPortFrom(netip.AddrFrom4(a), uint16(port))
}
