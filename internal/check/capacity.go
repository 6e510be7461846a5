package check

import (
	"fmt"
	"slices"
	"strings"
)

// What one of each takes. Descriptors and ports are exact. Bytes are estimates with room to spare; they
// say when memory is the first bound, not how much will be used.
const (
	reservedDescriptors = 128 // listeners, log, store, connections to core and bus

	allocationBytes = 24 << 10 // a relay socket with its goroutine, permissions and channels
	webSocketBytes  = 96 << 10 // TLS, WebSocket, flow, registration, and what a call adds
	sessionBytes    = 256 << 10

	// udpQueue is what a relay socket holds in the kernel while it works: 50 ms of video at 2 Mbit/s.
	udpQueue = 16 << 10

	edgeWebSockets  = 10000 // epcscf.Config.MaxFlows
	turnConnections = 8192  // turn.Config.MaxConnections

	gatewayAccessPorts = 1 // of one stream
	gatewayCorePorts   = 2 // RTP and RTCP
)

// Bound is a limit and what it comes from.
type Bound struct {
	Count int    `json:"count"`
	By    string `json:"by"`
}

// Resource is a kind of thing with its bounds, the least first. Each is reckoned as if the others took
// nothing.
type Resource struct {
	Name   string  `json:"name"`
	Bounds []Bound `json:"bounds"`
}

// Capacity is what this machine can carry with the configuration.
type Capacity []Resource

func capacity(in Input, m machine) (out Capacity) {
	f := in.File
	descriptors := func(each int) Bound {
		return Bound{max(0, int(m.descriptors)-reservedDescriptors) / each, fmt.Sprintf("open files (RLIMIT_NOFILE %d)", m.descriptors)}
	}
	memory := func(each uint64) Bound {
		return Bound{int(m.memory / each), fmt.Sprintf("memory (%d MiB free, %d KiB each)", m.memory>>20, each>>10)}
	}
	buffers := func(sockets int) Bound {
		return Bound{int(m.udpMemory/udpQueue) / sockets, fmt.Sprintf("UDP buffers (net.ipv4.udp_mem, %d MiB)", m.udpMemory>>20)}
	}
	add := func(name string, bounds ...Bound) {
		bounds = slices.DeleteFunc(bounds, func(b Bound) bool {
			return m.descriptors == 0 && b.By == descriptors(1).By || m.memory == 0 && b.Count == 0 || m.udpMemory == 0 && b.By == buffers(1).By
		})
		slices.SortStableFunc(bounds, func(a, b Bound) int { return a.Count - b.Count })
		out = append(out, Resource{name, bounds})
	}
	if in.has("turn") {
		var ports []string
		for _, s := range f.TURN.Relay {
			ports = append(ports, s.Ports.String())
		}
		add("TURN allocations", Bound{f.TURN.RelayPorts(), fmt.Sprintf("turn.relay (ports %s)", strings.Join(ports, ", "))}, descriptors(1), buffers(1), memory(allocationBytes))
		if len(f.TURN.ListenTCP) > 0 {
			add("of them over TCP, TLS", Bound{turnConnections, "the server's own bound"}, descriptors(2), memory(allocationBytes+webSocketBytes))
		}
	}
	if in.has("imsagw") {
		g := f.IMSAGW
		for _, media := range []struct {
			name    string
			streams int
		}{{"audio call legs", 1}, {"audio and video call legs", 2}} {
			n := media.streams
			add(media.name,
				Bound{g.MaxSessions, "imsagw.max_sessions"},
				Bound{g.Access.Ports.Count() / (n * gatewayAccessPorts), fmt.Sprintf("imsagw.access.ports (%v, %d a leg)", g.Access.Ports, n*gatewayAccessPorts)},
				Bound{g.Core.Ports.Count() / (n * gatewayCorePorts), fmt.Sprintf("imsagw.core.ports (%v, %d a leg)", g.Core.Ports, n*gatewayCorePorts)},
				descriptors(n*(gatewayAccessPorts+gatewayCorePorts)), buffers(n*(gatewayAccessPorts+gatewayCorePorts)), memory(uint64(n)*sessionBytes))
		}
	}
	if in.has("epcscf") {
		add("WebSockets", Bound{edgeWebSockets, "the edge's own bound"}, descriptors(1), memory(webSocketBytes))
	}
	return out
}
