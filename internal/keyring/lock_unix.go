//go:build linux || darwin || freebsd

package keyring

import (
	"errors"
	"os"
	"syscall"
)

// lockDir keeps other processes from rotating a ring in the same folder until unlock. The kernel
// lifts the lock of a process that dies.
func lockDir(dir string) (unlock func(), err error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for {
		err = syscall.Flock(int(d.Fd()), syscall.LOCK_EX)
		if !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if err != nil {
		_ = d.Close() // the lock's error is the one to tell
		return nil, err
	}
	return func() { _ = d.Close() }, nil // closing unlocks; a folder holds nothing to flush
}
