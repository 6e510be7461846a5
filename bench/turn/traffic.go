package main

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"wicgate/internal/wire/stun"
)

const (
	payload = 160     // bytes: 20 ms of G.711
	frame   = 4 + 160 // with the header of ChannelData; a multiple of 4, so the same on a stream
	// drainEach is how often the load empties its sockets: nobody waits at them, as nobody waits at a
	// network card, so a server's sends wake no thread of the load.
	drainEach = 4 * time.Millisecond
	// drainLast is how long packets may be on their way after the last was sent.
	drainLast = 300 * time.Millisecond
	// burst is how many packets one send hands to the kernel at saturation.
	burst = 8
	// socketBuffer is that of the load's sockets, in bytes.
	socketBuffer = 8 << 20
)

// traffic is media through the server: each client sends to one peer, which sends to each relayed
// address. One thread does all of it.
type traffic struct {
	clients []*client
	peer    *socket
	relays  []unix.Sockaddr
	data    []byte
	buf     []byte

	toPeer, toClient int // packets received
}

// newTraffic makes sessions clients with an allocation and a channel each.
func newTraffic(s *process, leg string, sessions int) (*traffic, error) {
	t := &traffic{data: make([]byte, payload*burst), buf: make([]byte, 64<<10)}
	if err := t.open(s, leg, sessions); err != nil {
		return nil, errors.Join(err, t.close())
	}
	return t, nil
}

func (t *traffic) open(s *process, leg string, sessions int) (err error) {
	if t.peer, err = newSocket(unix.SOCK_DGRAM, netip.AddrPortFrom(netip.MustParseAddr(peerAddress), 0), netip.AddrPort{}); err != nil {
		return err
	}
	if err := t.peer.buffer(socketBuffer); err != nil {
		return err
	}
	port, err := t.peer.port()
	if err != nil {
		return err
	}
	var from sources
	for i := range sessions {
		c, err := dial(s, leg, from.next(), i)
		if err != nil {
			return err
		}
		t.clients = append(t.clients, c)
	}
	if err := allocate(t.clients, netip.AddrPortFrom(netip.MustParseAddr(peerAddress), port)); err != nil {
		return err
	}
	for _, c := range t.clients {
		t.relays = append(t.relays, address(c.relayed))
		for range burst {
			c.channelMessage = stun.AppendChannelData(c.channelMessage, stun.MinChannel, t.data[:payload])
		}
		if err := errors.Join(c.sock.buffer(socketBuffer), c.sock.noWait()); err != nil {
			return err
		}
	}
	return t.peer.noWait()
}

func (t *traffic) close() error {
	err := closeAll(t.clients)
	if t.peer != nil {
		err = errors.Join(err, t.peer.Close())
	}
	return err
}

// drain takes what has arrived.
func (t *traffic) drain() error {
	n, err := t.take(t.peer, payload)
	if t.toPeer += n; err != nil {
		return fmt.Errorf("at the peer: %w", err)
	}
	for _, c := range t.clients {
		if c.stream == nil {
			n, err = t.take(c.sock, frame)
		} else {
			n, err = c.takeStream(t.buf)
		}
		if t.toClient += n; err != nil {
			return fmt.Errorf("at a client: %w", err)
		}
	}
	return nil
}

// take counts the datagrams of the right size.
func (t *traffic) take(s *socket, size int) (packets int, err error) {
	for {
		n, err := s.Read(t.buf)
		switch {
		case err == nil && n == size:
			packets++
		case err == nil:
			return packets, fmt.Errorf("a packet of %d bytes, want %d", n, size)
		case errors.As(err, &again{}):
			return packets, nil
		default:
			return packets, err
		}
	}
}

// takeStream counts the messages, of which the first may have begun at an earlier call.
func (c *client) takeStream(buf []byte) (packets int, err error) {
	for {
		n, err := c.stream.Read(buf)
		switch {
		case err == nil:
			c.pending += n
		case errors.As(err, &again{}):
			packets, c.pending = c.pending/frame, c.pending%frame
			return packets, nil
		default:
			return 0, err
		}
	}
}

// pace sends total packets, both directions in turn, rate of them a second over all, each by itself.
// When the machine lets the load sleep too long it is late, and goes on from there: it does not
// hurry after. It returns how long it took.
func (t *traffic) pace(total, rate int) (time.Duration, error) {
	each := time.Second / time.Duration(rate)
	start := time.Now()
	due, drained := start, start
	for i := 0; i < total; {
		now := time.Now()
		if wait := due.Sub(now); wait > 0 {
			nap := unix.NsecToTimespec(wait.Nanoseconds())
			_ = unix.Nanosleep(&nap, nil) // cut short: the loop comes back
			continue
		}
		if now.Sub(due) > 2*time.Millisecond {
			due = now
		}
		if now.Sub(drained) >= drainEach {
			drained = now
			if err := t.drain(); err != nil {
				return 0, err
			}
		}
		c := i / 2 % len(t.clients)
		if i%2 == 0 {
			if err := t.clients[c].write(t.clients[c].channelMessage[:frame]); err != nil {
				return 0, fmt.Errorf("send to the server: %w", err)
			}
		} else if err := unix.Sendto(t.peer.fd, t.data[:payload], 0, t.relays[c]); err != nil {
			return 0, fmt.Errorf("send to the relay: %w", err)
		}
		i++
		due = due.Add(each)
	}
	took := time.Since(start)
	return took, t.settle()
}

// settle takes what is still on its way.
func (t *traffic) settle() error {
	for end := time.Now().Add(drainLast); time.Now().Before(end); time.Sleep(drainEach) {
		if err := t.drain(); err != nil {
			return err
		}
	}
	return nil
}

// flood sends as much as the thread can for so long, over UDP: bursts that the kernel cuts into
// packets (UDP_SEGMENT), which costs the load a fraction of what it costs the server. It returns
// how many packets it sent.
func (t *traffic) flood(d time.Duration) (sent int, err error) {
	const segment = 103 // UDP_SEGMENT of linux/udp.h
	for _, c := range t.clients {
		if err := unix.SetsockoptInt(c.sock.fd, unix.IPPROTO_UDP, segment, frame); err != nil {
			return 0, err
		}
	}
	if err := unix.SetsockoptInt(t.peer.fd, unix.IPPROTO_UDP, segment, payload); err != nil {
		return 0, err
	}
	for end := time.Now().Add(d); time.Now().Before(end); {
		for i, c := range t.clients {
			_, err := unix.Write(c.sock.fd, c.channelMessage)
			if err == nil {
				err = unix.Sendto(t.peer.fd, t.data, 0, t.relays[i])
			}
			if err != nil && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.ENOBUFS) {
				return 0, err
			}
			sent += 2 * burst
		}
		if err := t.drain(); err != nil {
			return 0, err
		}
	}
	return sent, nil
}
