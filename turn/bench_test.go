package turn

import (
	"net"
	"runtime"
	"testing"
	"time"

	"go.uber.org/goleak"

	"wicgate/internal/turnclient"
	"wicgate/internal/wire/stun"
)

// loop is a client with a bound channel whose packets an echo peer sends back. Its own side
// allocates nothing.
type loop struct {
	tb   testing.TB
	conn *net.UDPConn
	out  []byte
	in   []byte
}

// round sends a packet through the relay and back.
func (l *loop) round() {
	if _, err := l.conn.Write(l.out); err != nil {
		l.tb.Fatal(err)
	}
	n, err := l.conn.Read(l.in)
	if err != nil || n != len(l.out) {
		l.tb.Fatal(n, err)
	}
}

// newLoop runs the signalling with turnclient, on a port that the raw socket then takes over.
func newLoop(t testing.TB, b *bench) *loop {
	t.Helper()
	peer := echo(t)
	c, err := turnclient.Dial(turnclient.Config{Server: b.s.Addrs()[0], Credential: turnclient.TokenUsername(b.issue("p1", time.Hour))})
	if err != nil {
		t.Fatal(err)
	}
	ctx := timeout(t)
	if _, err := c.Allocate(ctx, time.Hour); err != nil {
		t.Fatal(err)
	}
	number, err := c.ChannelBind(ctx, peer)
	if err != nil {
		t.Fatal(err)
	}
	local := net.UDPAddrFromAddrPort(c.LocalAddr())
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	conn, err := net.DialUDP("udp4", local, net.UDPAddrFromAddrPort(b.s.Addrs()[0]))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closed(t, conn) })
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	return &loop{t, conn, stun.AppendChannelData(nil, number, make([]byte, 160)), make([]byte, 1500)}
}

// TestNoAllocationsThroughSockets: a packet that goes out by ChannelData and comes back makes no heap
// allocation, sockets, lock and goroutines included.
func TestNoAllocationsThroughSockets(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	l := newLoop(t, start(t))
	for range 100 {
		l.round()
	}
	const rounds = 2000
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range rounds {
		l.round()
	}
	runtime.ReadMemStats(&after)
	// The runtime's own work, and a timer elsewhere, may show up; one in a hundred packets would not be ours.
	if n := after.Mallocs - before.Mallocs; n > rounds/100 {
		t.Errorf("%d allocations in %d rounds of two relayed packets", n, rounds)
	}
}

// BenchmarkRound is one packet out and one back over loopback, with the echo peer and the client in
// this process: about six system calls that move a packet.
func BenchmarkRound(b *testing.B) {
	l := newLoop(b, start(b))
	b.ReportAllocs()
	for b.Loop() {
		l.round()
	}
}
