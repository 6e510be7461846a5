//go:build !linux

package turn

import "net"

// openLane is there on Linux alone; elsewhere data and requests share a queue.
func openLane(*net.UDPConn) (*net.UDPConn, error) { return nil, nil }
