//go:build !linux

package turn

import (
	"net"
)

// packets is how many bytes of a room are headroom, and how many are a datagram's.
type packets struct{ headroom, size int }

func (d *desk) lay(headroom, size int) { d.packets = packets{headroom, size} }

// read hands the datagrams of c to r, one by one, until it is closed.
func read(c *net.UDPConn, r reader) error {
	d := r.take()
	defer r.give(d)
	for {
		room := d.rooms[0]
		n, from, err := c.ReadFromUDPAddrPort(room[d.headroom : d.headroom+d.size])
		if err != nil {
			return err
		}
		if !r.packet(d, room, n, unmap(from)) {
			r.last(d)
		}
	}
}
