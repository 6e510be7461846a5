package turn

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
)

// This file is the way of clients on DTLS whose association has stayed in a process before this one,
// while its listening sockets, which are UDP's too, have moved here:
//
//	client ──► listener, read here ─► unknown to listen.DTLS ─► Unix socket ─► the old process
//	client ◄──────────────────── listener, written there ◄─────────────────────────┘
//
// The old process still has the listening sockets, and reads them no more. The socket between the two keeps
// the bounds of datagrams (SOCK_SEQPACKET), has the room of one for UDP, and tells the end of either side.

// forwards are the ways to processes before this one, and from the one after it.
type forwards struct {
	mu   sync.RWMutex    // guards the following
	to   []*net.UnixConn // all of which are asked: nobody knows which has the association
	from *net.UnixConn   // nil = none
	next *net.UnixConn   // the other end of from, for the process after this one
}

// forward gives a datagram of DTLS to the processes before this one.
func (s *Server) forward(listener uint16, from netip.AddrPort, b []byte) {
	f := &s.forwards
	f.mu.RLock()
	defer f.mu.RUnlock()
	if len(f.to) == 0 {
		return
	}
	m := make([]byte, 0, len(b)+64)
	for _, a := range []netip.AddrPort{s.Addrs()[listener], from} {
		at, _ := a.MarshalBinary() // never fails
		m = append(append(m, byte(len(at))), at...)
	}
	m = append(m, b...)
	for _, c := range f.to {
		raw, err := c.SyscallConn()
		if err != nil {
			continue // closed
		}
		// Once, as on UDP: one that does not read, as it hangs, must not hold up who does.
		_ = raw.Write(func(fd uintptr) bool {
			_, _ = syscall.Write(int(fd), m)
			return true
		})
	}
}

// forwarded reads a datagram as forward has written it.
func forwarded(m []byte) (listener, from netip.AddrPort, b []byte, ok bool) {
	for _, a := range []*netip.AddrPort{&listener, &from} {
		if len(m) == 0 || len(m)-1 < int(m[0]) || a.UnmarshalBinary(m[1:1+m[0]]) != nil {
			return listener, from, nil, false
		}
		m = m[1+m[0]:]
	}
	return listener, from, m, true
}

// offerForward makes a way from the process after this one, if it will have something to send, and
// returns its end of it, with those of processes before this one.
func (s *Server) offerForward() (ways []syscall.Conn, err error) {
	f := &s.forwards
	f.mu.Lock()
	defer f.mu.Unlock()
	if s.dtls != nil && s.dtls.Stats().Open > 0 {
		syscall.ForkLock.RLock() // no child gets them; unixConn makes of them what no child gets
		defer syscall.ForkLock.RUnlock()
		fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_SEQPACKET, 0)
		if err != nil {
			return nil, fmt.Errorf("turn: a way for clients on DTLS: %w", err)
		}
		for i, c := range []**net.UnixConn{&f.from, &f.next} {
			var one error
			*c, one = unixConn(os.NewFile(uintptr(fds[i]), "forward"))
			err = errors.Join(err, one)
		}
		if err != nil {
			return nil, err
		}
		_ = f.next.SetWriteBuffer(listenBuffer) // as in New
		ways = append(ways, f.next)
	}
	for _, c := range f.to {
		ways = append(ways, c)
	}
	return ways, nil
}

func unixConn(f *os.File) (*net.UnixConn, error) {
	c, err := net.FileConn(f)
	_ = f.Close() // c has a descriptor of its own
	if err != nil {
		return nil, fmt.Errorf("turn: a way for clients on DTLS: %w", err)
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		_ = c.Close() // it is of no use
		return nil, fmt.Errorf("turn: a way for clients on DTLS: it is %T", c)
	}
	return u, nil
}

// leave returns the way from the process after this one, if there is one. The other end of it is that
// one's alone from here on.
func (f *forwards) leave() (from *net.UnixConn) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.next != nil {
		_ = f.next.Close() // the other process has it
		f.next = nil
	}
	return f.from
}

// close takes an offer back, or closes all at the end.
func (f *forwards) close(all bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	list := []*net.UnixConn{f.from, f.next}
	f.from, f.next = nil, nil
	if all {
		list = slices.Concat(list, f.to)
		f.to = nil
	}
	for _, c := range list {
		if c != nil {
			_ = c.Close() // nothing is lost
		}
	}
}

// readForwarded takes what the process after this one reads for clients who have stayed here, until the
// way is closed, or nobody is left who would write.
func (s *Server) readForwarded(c *net.UnixConn) {
	buf := make([]byte, 1<<16+64)
	for {
		n, err := c.Read(buf)
		if err != nil || n == 0 {
			// The clients cannot be heard any more; they are told. The addresses are free for who comes next.
			s.dtls.Close()
			for _, c := range s.listeners {
				_ = c.Close() // nothing is read from it
			}
			return
		}
		at, from, b, ok := forwarded(buf[:n])
		listener := slices.Index(s.Addrs(), at)
		if !ok || listener < 0 {
			continue
		}
		if !s.dtls.Packet(listener, from, b) {
			s.forward(uint16(listener), from, b)
		}
	}
}
