package turn

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"wicgate/internal/listen"
	"wicgate/internal/wire/stun"
)

// TestLane: each packet comes to the socket that it is for, and nobody else can have the address.
func TestLane(t *testing.T) {
	for _, at := range []string{"127.0.0.1", "0.0.0.0", "::1", "::"} {
		c, err := listen.UDP("turn.listen", netip.AddrPortFrom(netip.MustParseAddr(at), 0))
		if err != nil {
			t.Fatal(err)
		}
		defer closed(t, c)
		lane, err := openLane(c)
		if err != nil {
			t.Fatal(err)
		}
		defer closed(t, lane)
		addr := c.LocalAddr().(*net.UDPAddr).AddrPort()
		if other, err := listen.UDP("turn.listen", addr); err == nil {
			t.Errorf("%v can be opened again", addr)
			closed(t, other)
		}
		to := addr
		if to.Addr().IsUnspecified() {
			to = netip.AddrPortFrom(netip.IPv6Loopback(), to.Port())
		}
		clients := []netip.AddrPort{to}
		if at == "0.0.0.0" { // both families, as Go opens it
			clients = append(clients, netip.AddrPortFrom(loopback, to.Port()))
		}
		message := func(m stun.Method, cl stun.Class) []byte {
			return stun.AppendHeader(nil, stun.NewType(m, cl), stun.TransactionID{1})
		}
		for what, x := range map[string]struct {
			packet []byte
			lane   bool
		}{
			"nothing": {nil, false}, "0x40": {[]byte{0x40}, false}, "0x16": {[]byte{0, 0x16}, true}, "DTLS": {[]byte{22, 254, 253, 0}, false}, "DTLS application data": {[]byte{23, 254, 253, 0}, true},
			"ChannelData": {stun.AppendChannelData(nil, 0x4000, []byte("x")), true}, "the last channel": {[]byte{0x7f, 0xff, 0, 0}, true}, "beyond": {[]byte{0x80, 0, 0, 0}, false},
			"Send": {message(stun.Send, stun.Indication), true}, "Binding": {message(stun.Binding, stun.Request), false}, "Allocate": {message(stun.Allocate, stun.Request), false},
			"Refresh": {message(stun.Refresh, stun.Request), false}, "Data": {message(stun.Data, stun.Indication), false},
		} {
			for _, to := range clients {
				client, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
				if err != nil {
					t.Fatal(err)
				}
				if _, err := client.Write(x.packet); err != nil {
					t.Fatal(err)
				}
				closed(t, client)
				got := c
				if x.lane {
					got = lane
				}
				if err := got.SetReadDeadline(time.Now().Add(3 * time.Second)); err != nil {
					t.Fatal(err)
				}
				if n, err := got.Read(make([]byte, 100)); err != nil || n != len(x.packet) {
					t.Errorf("%s to %v: %d bytes, %v; expected in the lane: %v", what, to, n, err, x.lane)
				}
			}
		}
	}
}
