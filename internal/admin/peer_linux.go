package admin

import (
	"net"

	"golang.org/x/sys/unix"
)

// peer asks the kernel who connected: the credentials at the time of connect (unix(7), SO_PEERCRED).
func peer(c *net.UnixConn) (who caller) {
	raw, err := c.SyscallConn()
	if err != nil {
		return caller{err: err}
	}
	err = raw.Control(func(fd uintptr) {
		var cred *unix.Ucred
		if cred, who.err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); who.err == nil {
			who = caller{uid: int(cred.Uid), pid: int(cred.Pid), known: true}
		}
	})
	if err != nil {
		who.err = err
	}
	return who
}
