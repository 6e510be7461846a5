package turn

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// packets are the arguments of recvmmsg(2), laid out once.
type packets struct {
	messages [batch]message
	vectors  [batch]unix.Iovec
	names    [batch]unix.RawSockaddrInet6 // the larger one of the two families
}

// message is the kernel's struct mmsghdr.
type message struct {
	head unix.Msghdr
	size uint32
}

// lay points the arguments at the desk's rooms.
func (d *desk) lay(headroom, size int) {
	for i := range d.messages {
		d.vectors[i].Base = &d.rooms[i][headroom]
		d.vectors[i].SetLen(size)
		h := &d.messages[i].head
		h.Name, h.Iov = (*byte)(unsafe.Pointer(&d.names[i])), &d.vectors[i]
		h.SetIovlen(1)
	}
}

// receive brings up to batch datagrams; none if there is none.
func (d *desk) receive(fd uintptr) (int, error) {
	for i := range d.messages {
		d.messages[i].head.Namelen = unix.SizeofSockaddrInet6
	}
	for {
		n, _, err := syscall.Syscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&d.messages[0])), batch, unix.MSG_DONTWAIT, 0, 0)
		switch err {
		case 0:
			return int(n), nil
		case unix.EAGAIN:
			return 0, nil
		case unix.EINTR:
		default:
			return 0, fmt.Errorf("recvmmsg: %w", err)
		}
	}
}

// from is the sender of datagram i.
func (d *desk) from(i int) netip.AddrPort {
	name := &d.names[i]
	port := (*[2]byte)(unsafe.Pointer(&name.Port)) // the same place in both families
	p := uint16(port[0])<<8 | uint16(port[1])
	if name.Family == unix.AF_INET {
		return netip.AddrPortFrom(netip.AddrFrom4((*unix.RawSockaddrInet4)(unsafe.Pointer(name)).Addr), p)
	}
	a := netip.AddrFrom16(name.Addr).Unmap()
	if name.Scope_id != 0 && a.Is6() { // link-local
		a = a.WithZone(strconv.FormatUint(uint64(name.Scope_id), 10))
	}
	return netip.AddrPortFrom(a, p)
}

// read hands the datagrams of c to r until it is closed, which is the error that it returns, as is
// any other of the socket.
//
// Datagrams are dealt with inside raw.Read's function, which returns false to wait. A batch that is
// not full says that the socket was empty, and whatever comes after it wakes us, so no call has to
// fail first to tell so.
func read(c *net.UDPConn, r reader) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	var d *desk
	more := func(fd uintptr) (stop bool) {
		d = r.take()
		n, err := d.receive(fd)
		for i := range n {
			if !r.packet(d, d.rooms[i], int(d.messages[i].size), d.from(i)) {
				return true
			}
		}
		r.give(d)
		d, failed = nil, err
		// After a full batch raw.Read is called again, which sees whether the socket was closed
		// meanwhile: who closes it waits for us.
		return err != nil || n == batch
	}
	for {
		if err := raw.Read(more); err != nil {
			return err
		}
		if d != nil {
			r.last(d)
			r.give(d)
			d = nil
		}
		if failed != nil {
			return failed
		}
	}
}
