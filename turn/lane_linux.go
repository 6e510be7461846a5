package turn

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"wicgate/internal/wire/stun"
)

// openLane opens a second socket on the address of the listening socket c, to which the kernel gives what
// begins as ChannelData, as a Send indication or as application data of DTLS. Those have a queue and a reader of their own then: a flood
// of requests, of which each costs a MAC or a token, fills the queue of requests and loses no media.
//
//	client ──► SO_REUSEPORT, a classic BPF program ──┬─ 0: requests, handshakes, the rest ──────────► c
//	                                                 └─ 1: ChannelData, Send, DTLS application data ──► the lane
//
// c was bound alone, so that an address that another program has is still an error; no other program can
// bind it later but one of the same user that asks for a share.
func openLane(c *net.UDPConn) (*net.UDPConn, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	if err := shareUDPPort("", "", raw); err != nil {
		return nil, fmt.Errorf("share %v: %w", c.LocalAddr(), err)
	}
	l := net.ListenConfig{Control: shareUDPPort}
	lane, err := l.ListenPacket(context.Background(), "udp", c.LocalAddr().String())
	if err != nil {
		return nil, err
	}
	if err := steer(raw); err != nil {
		return nil, errors.Join(fmt.Errorf("give %v a program: %w", c.LocalAddr(), err), lane.Close())
	}
	return lane.(*net.UDPConn), nil
}

func shareUDPPort(_, _ string, c syscall.RawConn) error {
	var err error
	e := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) })
	return errors.Join(e, err)
}

// steer attaches the program: it returns which of the sockets of the address, in the order of their
// binding, gets the packet. One of less than two bytes ends the program, which is 0.
func steer(c syscall.RawConn) error {
	const (
		channelBits, mask = 0x4000, 0xc000 // the first two bits of ChannelData (RFC 8656 §12.4)
		applicationData   = 23             // the first byte of a DTLS record of that type (RFC 6347 §4.1)
	)
	program := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: 0},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: uint32(stun.NewType(stun.Send, stun.Indication)), Jt: 4},
		{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: mask},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: channelBits, Jt: 2},
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: 0},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: applicationData, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
	}
	var err error
	e := c.Control(func(fd uintptr) {
		err = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_CBPF,
			&unix.SockFprog{Len: uint16(len(program)), Filter: unsafe.SliceData(program)})
	})
	return errors.Join(e, err)
}
