//go:build !linux

package turn

import (
	"errors"
	"syscall"
)

// sharePort is there on Linux alone.
func sharePort(_, _ string, _ syscall.RawConn) error {
	return errors.New("turn: TCP relays (RFC 6062) are there on Linux alone; unset turn.tcp_relay")
}
