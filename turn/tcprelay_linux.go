package turn

import (
	"errors"
	"syscall"

	"golang.org/x/sys/unix"
)

// sharePort lets a listening socket and connections to peers have one address (RFC 6062 §5.2). Only
// programs of the same user can share it.
func sharePort(_, _ string, c syscall.RawConn) error {
	var err error
	e := c.Control(func(fd uintptr) {
		err = errors.Join(unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1), unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
	})
	return errors.Join(e, err)
}
