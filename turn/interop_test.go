package turn

import (
	"crypto/tls"
	"net"
	"testing"
	"time"

	pion "github.com/pion/turn/v5"
	"go.uber.org/goleak"

	"wicgate/internal/token"
)

// TestPion lets pion's TURN client, which knows nothing of tokens, relay with the USERNAME and the
// credential that a browser would be given: over UDP, TCP and TLS.
func TestPion(t *testing.T) {
	listening, trust := streamed(t)
	for network, connect := range map[string]func(*Server) (net.PacketConn, error){
		"udp": func(*Server) (net.PacketConn, error) { return net.ListenPacket("udp4", "127.0.0.1:0") },
		"tcp": func(s *Server) (net.PacketConn, error) {
			c, err := net.Dial("tcp", s.TCPAddrs()[0].String())
			if err != nil {
				return nil, err
			}
			return pion.NewSTUNConn(c), nil
		},
		"tls": func(s *Server) (net.PacketConn, error) {
			c, err := tls.Dial("tcp", s.TCPAddrs()[0].String(), trust)
			if err != nil {
				return nil, err
			}
			return pion.NewSTUNConn(c), nil
		},
	} {
		t.Run(network, func(t *testing.T) {
			t.Cleanup(func() { goleak.VerifyNone(t) })
			b := start(t, listening)
			socket, err := connect(b.s)
			if err != nil {
				t.Fatal(err)
			}
			withPion(t, b, socket)
			if st := b.s.Stats(); (st.TCP == 1) != (network == "tcp") || (st.TLS == 1) != (network == "tls") {
				t.Errorf("connections: %+v", st)
			}
		})
	}
}

func withPion(t *testing.T, b *bench, socket net.PacketConn) {
	peer := echo(t)
	kid, tok, mac := b.issue("p1", time.Hour)
	defer closed(t, socket)
	server := b.s.Addrs()[0].String()
	if socket.LocalAddr().Network() != "udp" {
		server = b.s.TCPAddrs()[0].String()
	}
	c, err := pion.NewClient(&pion.ClientConfig{
		STUNServerAddr: server, TURNServerAddr: server, Conn: socket,
		Username: string(token.AppendUsername(nil, kid, tok)), Password: string(token.Credential(mac).Expose()),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Listen(); err != nil {
		t.Fatal(err)
	}
	mapped, err := c.SendBindingRequest()
	if err != nil || mapped.String() != socket.LocalAddr().String() {
		t.Errorf("Binding: %v, %v", mapped, err)
	}
	relayed, err := c.Allocate()
	if err != nil {
		t.Fatal(err)
	}
	to := net.UDPAddrFromAddrPort(peer)
	buf := make([]byte, 100)
	for i := range 20 { // the first by indication, and by channel as soon as pion has bound one
		// 6 bytes: pion's framing waits for a ninth byte, also where padded ChannelData has eight.
		if _, err := relayed.WriteTo([]byte{'x', byte(i), 2, 3, 4, 5}, to); err != nil {
			t.Fatal(err)
		}
		if err := relayed.SetReadDeadline(time.Now().Add(3 * time.Second)); err != nil {
			t.Fatal(err)
		}
		n, from, err := relayed.ReadFrom(buf)
		if err != nil || from.String() != to.String() || n != 6 || buf[1] != byte(i) {
			t.Fatalf("echo %d: %q from %v, %v", i, buf[:n], from, err)
		}
	}
	if err := relayed.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	// pion's Close is a Refresh with LIFETIME 0.
	for end := time.Now().Add(3 * time.Second); b.s.Stats().Allocations > 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("pion has closed, and the allocation is there")
		}
	}
	if st := b.s.Stats(); st.ToPeerPackets != 20 || st.ToClientPackets != 20 || st.ToPeerBytes != 120 || st.Ended["deleted"] != 1 {
		t.Errorf("stats %+v", st)
	}
}
