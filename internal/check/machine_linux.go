package check

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"wicgate/internal/config"
)

// readMachine asks the kernel. What it does not tell stays unknown.
func readMachine() (m machine) {
	if f := fields("/proc/sys/net/ipv4/ip_local_port_range"); len(f) == 2 {
		m.ephemeral = config.Ports{First: uint16(f[0]), Last: uint16(f[1])}
	}
	b, _ := os.ReadFile("/proc/sys/net/ipv4/ip_local_reserved_ports") // unknown is none
	for _, r := range strings.Split(strings.TrimSpace(string(b)), ",") {
		var p config.Ports
		if n, _ := fmt.Sscanf(r, "%d-%d", &p.First, &p.Last); n == 2 {
			m.kept = append(m.kept, p)
		}
	}
	if f := fields("/proc/sys/net/core/rmem_max"); len(f) == 1 {
		m.rmemMax = f[0]
	}
	if f := fields("/proc/sys/net/ipv4/udp_mem"); len(f) == 3 {
		m.udpMemory = f[2] * uint64(os.Getpagesize())
	}
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) == nil {
		m.descriptors = limit.Max // Go raises its own limit to this one
	}
	m.memory = available()
	var clock unix.Timex // asked, not set
	if state, err := unix.Adjtimex(&clock); err == nil {
		m.unsynchronised = state == unix.TIME_ERROR
	}
	return m
}

// fields are the numbers of a file, none if there are others in it.
func fields(name string) (out []uint64) {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil
	}
	for _, f := range strings.Fields(string(b)) {
		n, err := strconv.ParseUint(f, 10, 64)
		if err != nil {
			return nil
		}
		out = append(out, n)
	}
	return out
}

// available is the memory that this process may still take: what the machine has left, or its control
// group allows if that is less.
func available() (bytes uint64) {
	b, _ := os.ReadFile("/proc/meminfo") // unknown is 0
	for line := range strings.Lines(string(b)) {
		var kb uint64
		if n, _ := fmt.Sscanf(line, "MemAvailable: %d kB", &kb); n == 1 {
			bytes = kb << 10
		}
	}
	for _, name := range []string{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"} {
		if f := fields(name); len(f) == 1 && f[0] > 0 && (bytes == 0 || f[0] < bytes) {
			bytes = f[0]
		}
	}
	return bytes
}

func writable(dir string) bool { return unix.Access(dir, unix.W_OK|unix.X_OK) == nil }
