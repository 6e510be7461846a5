package turn

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"wicgate/turn/internal/core"
)

// TestRead: every datagram of a socket comes once, in order, with its sender and its size, in bursts
// of more and of fewer than a batch; and a socket that is flooded can be closed.
func TestRead(t *testing.T) {
	for _, c := range []struct{ network, address string }{{"udp4", "127.0.0.1"}, {"udp6", "::1"}, {"udp", "127.0.0.1"}} {
		t.Run(c.network, func(t *testing.T) {
			t.Cleanup(func() { goleak.VerifyNone(t) })
			address := netip.AddrPortFrom(netip.MustParseAddr(c.address), 0)
			conn, err := net.ListenUDP(c.network, net.UDPAddrFromAddrPort(address))
			if err != nil {
				t.Fatal(err)
			}
			from, err := net.DialUDP(c.network, net.UDPAddrFromAddrPort(address), conn.LocalAddr().(*net.UDPAddr))
			if err != nil {
				t.Fatal(err)
			}
			defer closed(t, from)
			if err := conn.SetReadBuffer(1 << 20); err != nil {
				t.Fatal(err)
			}
			var p desks
			type got struct {
				n, size int
				from    netip.AddrPort
			}
			packets := make(chan got, 1000)
			done := make(chan error, 1)
			go func() {
				done <- read(conn, reader{
					take: func() *desk { return p.take(nil) }, give: p.give,
					packet: func(_ *desk, room []byte, n int, from netip.AddrPort) bool {
						select {
						case packets <- got{int(binary.BigEndian.Uint32(room[core.Headroom:])), n, from}:
						default: // the flood
						}
						return true
					},
				})
			}()
			ctx := timeout(t)
			me := unmap(from.LocalAddr().(*net.UDPAddr).AddrPort())
			sent, want := 0, 0
			for _, burst := range []int{1, batch - 1, batch, batch + 1, 3 * batch, 1, 1} {
				for range burst {
					b := make([]byte, 4+sent)
					binary.BigEndian.PutUint32(b, uint32(sent))
					if _, err := from.Write(b); err != nil {
						t.Fatal(err)
					}
					sent++
				}
				for ; want < sent; want++ {
					select {
					case g := <-packets:
						if g.n != want || g.size != 4+want || g.from != me {
							t.Fatalf("got %+v, want number %d of %v", g, want, me)
						}
					case <-ctx.Done():
						t.Fatalf("packet %d does not come", want)
					}
				}
			}
			flood, stop := context.WithCancel(ctx)
			var flooding sync.WaitGroup
			flooding.Go(func() {
				for flood.Err() == nil {
					_, _ = from.Write([]byte("0123")) // refused once it is closed
				}
			})
			for range 100 * batch {
				<-packets
			}
			closed(t, conn)
			if err := <-done; !errors.Is(err, net.ErrClosed) {
				t.Error(err)
			}
			stop()
			flooding.Wait()
		})
	}
}

// TestReadStops: after packet says so, last is called where the socket can be closed.
func TestReadStops(t *testing.T) {
	conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(loopback, 0)))
	if err != nil {
		t.Fatal(err)
	}
	from, err := net.DialUDP("udp4", nil, conn.LocalAddr().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	defer closed(t, from)
	for range 3 {
		if _, err := from.Write([]byte("0123")); err != nil {
			t.Fatal(err)
		}
	}
	var p desks
	var packets, lasts int
	err = read(conn, reader{
		take: func() *desk { return p.take(nil) }, give: p.give,
		packet: func(*desk, []byte, int, netip.AddrPort) bool { packets++; return false },
		last:   func(*desk) { lasts++; closed(t, conn) },
	})
	if !errors.Is(err, net.ErrClosed) || packets != 1 || lasts != 1 {
		t.Errorf("%v after %d packets and %d times last", err, packets, lasts)
	}
}
