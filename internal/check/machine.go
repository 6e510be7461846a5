package check

import (
	"errors"
	"syscall"

	"wicgate/internal/config"
)

// listenBuffer is what a TURN listener asks the kernel for, in bytes; turn has the same number.
const listenBuffer = 4 << 20

// machine is what this machine allows. Zeros are unknown.
type machine struct {
	ephemeral      config.Ports   // of outgoing connections
	kept           []config.Ports // that the kernel does not give away
	rmemMax        uint64         // bytes
	udpMemory      uint64         // bytes that all UDP sockets together may hold
	descriptors    uint64         // of this process at most
	memory         uint64         // bytes free for this process
	unsynchronised bool           // the clock
}

// reserved says whether the kernel leaves a range alone.
func (m machine) reserved(p config.Ports) bool {
	for _, k := range m.kept {
		if k.First <= p.First && p.Last <= k.Last {
			return true
		}
	}
	return false
}

func inUse(err error) bool { return errors.Is(err, syscall.EADDRINUSE) }
