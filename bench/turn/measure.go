package main

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// size is how much load is made.
type size struct {
	sessions    int           // of relay
	rate        int           // packets a second of a session, in each direction
	relay       time.Duration // of traffic at that rate, per leg, after warm
	warm        time.Duration
	flood       time.Duration
	allocations int // made and deleted
	handshakes  int
	held        int // allocations at once, for their memory
	strangers   int // sources without a credential
	connections int // TLS clients at once
	settle      time.Duration
}

var (
	full = size{
		sessions: 20, rate: 1000, relay: 3 * time.Second, warm: 500 * time.Millisecond, flood: 3 * time.Second,
		allocations: 4000, handshakes: 800, held: 2000, strangers: 20_000, connections: 1000, settle: time.Second,
	}
	quick = size{
		sessions: 20, rate: 1000, relay: time.Second, warm: 200 * time.Millisecond, flood: time.Second,
		allocations: 1000, handshakes: 200, held: 500, strangers: 5000, connections: 250, settle: 500 * time.Millisecond,
	}
)

// measure is one row of the table.
type measure struct {
	Key  string `json:"key"`
	Name string `json:"name"`
	Unit string `json:"unit"`
	// More says that more is better; otherwise less is.
	More   bool `json:"more"`
	format string
}

var measures = []measure{
	{"cpu_udp", "CPU a relayed packet, client on UDP", "µs", false, "%.2f"},
	{"loss_udp", "packets lost meanwhile", "%", false, "%.2f"},
	{"cpu_tcp", "CPU a relayed packet, client on TCP", "µs", false, "%.2f"},
	{"loss_tcp", "packets lost meanwhile", "%", false, "%.2f"},
	{"cpu_tls", "CPU a relayed packet, client on TLS", "µs", false, "%.2f"},
	{"loss_tls", "packets lost meanwhile", "%", false, "%.2f"},
	{"flood_pps", "packets relayed at saturation, UDP, one CPU", "1/s", true, "%.0f"},
	{"flood_loss", "packets lost at saturation", "%", false, "%.0f"},
	{"alloc_rate", "Allocate, challenge, Allocate, delete: one CPU", "1/s", true, "%.0f"},
	{"alloc_cpu", "CPU of the same", "µs", false, "%.0f"},
	{"tls_rate", "TLS handshakes of one CPU (1 s / the next line)", "1/s", true, "%.0f"},
	{"tls_cpu", "CPU a TLS connection: handshake, Binding, close", "µs", false, "%.0f"},
	{"mem_idle", "memory when nothing has happened yet", "MiB", false, "%.1f"},
	{"mem_own", "of it not pages of program files", "MiB", false, "%.1f"},
	{"mem_alloc", "memory an allocation with a channel that has relayed", "kB", false, "%.1f"},
	{"mem_stranger", "memory a UDP source without credential", "B", false, "%.0f"},
	{"mem_tls", "memory an idle TLS client", "kB", false, "%.1f"},
}

// group is what is measured in one life of a server.
type group struct {
	name   string
	pinned bool // the server has one CPU and the load another
	run    func(p *process, n size) (map[string]float64, error)
}

// groups: each measures all servers in turn before the next, so that those are near in time.
var groups = []group{
	{"relay UDP", false, measureRelay(legUDP)},
	{"relay TCP", false, measureRelay(legTCP)},
	{"relay TLS", false, measureRelay(legTLS)},
	{"saturation", true, measureFlood},
	{"allocations", true, measureAllocations},
	{"handshakes", true, measureHandshakes},
	{"memory of allocations", false, measureHeld},
	{"memory of strangers", false, measureStrangers},
	{"memory of TLS clients", false, measureConnections},
}

// measureRelay: CPU of relaying at a moderate rate.
func measureRelay(leg string) func(p *process, n size) (map[string]float64, error) {
	return func(p *process, n size) (map[string]float64, error) {
		perPacket, loss, err := relay(p, leg, n)
		return map[string]float64{"cpu_" + leg: perPacket, "loss_" + leg: loss}, err
	}
}

func relay(p *process, leg string, n size) (perPacket, loss float64, err error) {
	t, err := newTraffic(p, leg, n.sessions)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, t.close()) }()
	rate := 2 * n.sessions * n.rate
	if _, err := t.pace(int(n.warm.Seconds()*float64(rate)), rate); err != nil {
		return 0, 0, err
	}
	t.toPeer, t.toClient = 0, 0
	before, err := p.cpu()
	if err != nil {
		return 0, 0, err
	}
	total := int(n.relay.Seconds() * float64(rate))
	took, err := t.pace(total, rate)
	if err != nil {
		return 0, 0, err
	}
	after, err := p.cpu()
	if err != nil {
		return 0, 0, err
	}
	got := t.toPeer + t.toClient
	if t.toPeer < total/4 || t.toClient < total/4 {
		return 0, 0, fmt.Errorf("of %d packets each way %d reached the peer and %d the clients", total/2, t.toPeer, t.toClient)
	}
	if took > 3*n.relay {
		return 0, 0, fmt.Errorf("the machine is too busy: %d packets took %v instead of %v", total, took, n.relay)
	}
	return float64((after - before).Nanoseconds()) / 1000 / float64(got), 100 * (1 - float64(got)/float64(total)), nil
}

// measureFlood: what one CPU relays when more is offered.
func measureFlood(p *process, n size) (out map[string]float64, err error) {
	t, err := newTraffic(p, legUDP, n.sessions)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, t.close()) }()
	if _, err := t.flood(n.warm); err != nil {
		return nil, err
	}
	t.toPeer, t.toClient = 0, 0
	start := time.Now()
	sent, err := t.flood(n.flood)
	if err != nil {
		return nil, err
	}
	took, got := time.Since(start), t.toPeer+t.toClient
	return map[string]float64{"flood_pps": float64(got) / took.Seconds(), "flood_loss": 100 * (1 - float64(got)/float64(sent))}, nil
}

// wavefront is how many clients are under way at once.
const wavefront = 50

// waves runs the steps for total clients on UDP, wavefront at a time, and closes them.
func waves(p *process, from *sources, total int, steps ...func(c *client) error) error {
	for done := 0; done < total; done += wavefront {
		clients := make([]*client, 0, wavefront)
		for i := range min(wavefront, total-done) {
			c, err := dial(p, legUDP, from.next(), done+i)
			if err != nil {
				return err
			}
			clients = append(clients, c)
		}
		if err := errors.Join(wave(clients, steps...), closeAll(clients)); err != nil {
			return err
		}
	}
	return nil
}

// measureAllocations: how fast allocations come and go.
func measureAllocations(p *process, n size) (map[string]float64, error) {
	var from sources
	steps := []func(c *client) error{(*client).askAllocate, (*client).challenged, (*client).askAllocate, (*client).allocated, (*client).askDelete, (*client).done}
	if err := waves(p, &from, wavefront, steps...); err != nil { // warm
		return nil, err
	}
	before, err := p.cpu()
	if err != nil {
		return nil, err
	}
	start := time.Now()
	if err := waves(p, &from, n.allocations, steps...); err != nil {
		return nil, err
	}
	took := time.Since(start)
	after, err := p.cpu()
	if err != nil {
		return nil, err
	}
	return map[string]float64{
		"alloc_rate": float64(n.allocations) / took.Seconds(),
		"alloc_cpu":  float64((after - before).Microseconds()) / float64(n.allocations),
	}, nil
}

// measureHandshakes: what TLS connections cost.
func measureHandshakes(p *process, n size) (map[string]float64, error) {
	var from sources
	several := func(many int) error {
		for i := range many {
			c, err := dial(p, legTLS, from.next(), i)
			if err != nil {
				return err
			}
			if err := errors.Join(c.binding(), c.close()); err != nil {
				return err
			}
		}
		time.Sleep(100 * time.Millisecond) // for the server's side of the last close
		return nil
	}
	if err := several(20); err != nil { // warm
		return nil, err
	}
	before, err := p.cpu()
	if err != nil {
		return nil, err
	}
	if err := several(n.handshakes); err != nil {
		return nil, err
	}
	after, err := p.cpu()
	if err != nil {
		return nil, err
	}
	each := float64((after - before).Microseconds()) / float64(n.handshakes)
	return map[string]float64{"tls_cpu": each, "tls_rate": 1e6 / each}, nil
}

// grown returns by how many bytes the server's memory grows with f, once it has settled.
func grown(p *process, n size, f func() error) (int, error) {
	before, _, err := p.memory()
	if err != nil {
		return 0, err
	}
	if err := f(); err != nil {
		return 0, err
	}
	time.Sleep(n.settle)
	after, _, err := p.memory()
	return after - before, err
}

// measureHeld: memory of allocations that are in use.
func measureHeld(p *process, n size) (out map[string]float64, err error) {
	out = map[string]float64{}
	idle, own, err := p.memory()
	if err != nil {
		return nil, err
	}
	out["mem_idle"], out["mem_own"] = float64(idle)/(1<<20), float64(own)/(1<<20)
	peer, err := newSocket(unix.SOCK_DGRAM, netip.AddrPortFrom(netip.MustParseAddr(peerAddress), 0), netip.AddrPort{})
	if err != nil {
		return nil, err
	}
	var clients []*client
	defer func() { err = errors.Join(err, closeAll(clients), peer.Close()) }()
	port, err := peer.port()
	if err != nil {
		return nil, err
	}
	to := netip.AddrPortFrom(netip.MustParseAddr(peerAddress), port)
	var from sources
	buf := make([]byte, 2048)
	// Each gets an allocation and a channel, and relays one packet each way.
	several := func(many int) error {
		for done := 0; done < many; done += wavefront {
			var some []*client
			for range min(wavefront, many-done) {
				c, err := dial(p, legUDP, from.next(), len(clients))
				if err != nil {
					return err
				}
				clients, some = append(clients, c), append(some, c)
			}
			if err := allocate(some, to); err != nil {
				return err
			}
			for _, c := range some {
				m := make([]byte, frame)
				m[0], m[3] = 0x40, payload
				if err := c.write(m); err != nil {
					return err
				}
				if _, err := peer.Read(buf); err != nil {
					return fmt.Errorf("a client's packet at the peer: %w", err)
				}
				if err := unix.Sendto(peer.fd, m[4:], 0, address(c.relayed)); err != nil {
					return err
				}
				if n, err := c.sock.Read(buf); err != nil || n != frame {
					return fmt.Errorf("a peer's packet at the client: %d bytes, %w", n, err)
				}
			}
		}
		return nil
	}
	if err := several(wavefront); err != nil { // warm
		return nil, err
	}
	bytes, err := grown(p, n, func() error { return several(n.held) })
	out["mem_alloc"] = float64(bytes) / 1000 / float64(n.held)
	return out, err
}

// measureStrangers: memory of sources that send an Allocate without a credential and go away.
func measureStrangers(p *process, n size) (map[string]float64, error) {
	var from sources
	steps := []func(c *client) error{(*client).askAllocate, (*client).challenged}
	if err := waves(p, &from, 4*wavefront, steps...); err != nil { // warm
		return nil, err
	}
	bytes, err := grown(p, n, func() error { return waves(p, &from, n.strangers, steps...) })
	return map[string]float64{"mem_stranger": float64(bytes) / float64(n.strangers)}, err
}

// measureConnections: memory of TLS clients that have said something and wait.
func measureConnections(p *process, n size) (out map[string]float64, err error) {
	var from sources
	var clients []*client
	defer func() { err = errors.Join(err, closeAll(clients)) }()
	several := func(many int) error {
		for range many {
			c, err := dial(p, legTLS, from.next(), len(clients))
			if err != nil {
				return err
			}
			clients = append(clients, c)
			if err := c.binding(); err != nil {
				return err
			}
		}
		return nil
	}
	if err := several(20); err != nil { // warm
		return nil, err
	}
	bytes, err := grown(p, n, func() error { return several(n.connections) })
	return map[string]float64{"mem_tls": float64(bytes) / 1000 / float64(n.connections)}, err
}
