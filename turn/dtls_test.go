package turn

import (
	"bytes"
	"context"
	"crypto/tls"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pion/dtls/v3"
	"go.uber.org/goleak"

	"wicgate/internal/keyring"
	"wicgate/internal/secret"
	"wicgate/internal/turnclient"
)

// secured lets a server listen on DTLS too.
func secured(t testing.TB) (func(*Config), *tls.Config) {
	t.Helper()
	listening, trust := streamed(t)
	return func(c *Config) { listening(c); c.DTLS = true }, trust
}

// toServer is a socket of which only some packets are read.
type toServer struct {
	*net.UDPConn
	only func([]byte) bool
}

func (c toServer) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		n, from, err := c.UDPConn.ReadFrom(b)
		if err != nil || c.only(b[:n]) {
			return n, from, err
		}
	}
}

// associateFrom makes an association with the server from a socket.
func (b *bench) associateFrom(socket net.PacketConn, trust *tls.Config) *dtls.Conn {
	b.t.Helper()
	c, err := dtls.ClientWithOptions(socket, net.UDPAddrFromAddrPort(b.s.Addrs()[0]),
		dtls.WithRootCAs(trust.RootCAs), dtls.WithServerName(trust.ServerName), dtls.WithSupportedProtocols("stun.turn"))
	if err != nil {
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(b.t.Context(), 5*time.Second)
	defer cancel()
	if err := c.HandshakeContext(ctx); err != nil {
		b.t.Fatal(err)
	}
	return c
}

// secure is a client over DTLS.
func (b *bench) secure(trust *tls.Config, cr turnclient.Credential) *turnclient.Client {
	b.t.Helper()
	c, err := turnclient.Dial(turnclient.Config{Server: b.s.Addrs()[0], Network: "dtls", TLS: trust, Credential: cr, RTO: 300 * time.Millisecond, Tries: 4})
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = c.Close() }) // the association may have ended
	return c
}

func TestDTLSEcho(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	listening, trust := secured(t)
	b := start(t, listening)
	peer := echo(t)
	ctx := timeout(t)
	for _, credential := range []func(string, []byte, secret.Bytes) turnclient.Credential{turnclient.AccessToken, turnclient.TokenUsername} {
		c := b.secure(trust, credential(b.issue("p1", time.Hour)))
		a, err := c.Allocate(ctx, 0)
		if err != nil {
			t.Fatal(err)
		}
		if a.Mapped != c.LocalAddr() || a.Relayed.Addr() != loopback {
			t.Errorf("%+v, local %v", a, c.LocalAddr())
		}
		if list := b.s.Sessions("p1"); len(list) != 1 || list[0].Transport != "dtls" {
			t.Errorf("%+v", list)
		}
		if err := c.CreatePermission(ctx, peer); err != nil {
			t.Fatal(err)
		}
		for _, channel := range []bool{false, true} {
			if channel {
				if _, err := c.ChannelBind(ctx, peer); err != nil {
					t.Fatal(err)
				}
			}
			for _, n := range []int{0, 1, 2, 3, 4, 5, 1200, 4096} {
				data := bytes.Repeat([]byte{byte(n)}, n)
				if err := c.Send(peer, data); err != nil {
					t.Fatal(err)
				}
				p, err := c.Receive(ctx)
				if err != nil || p.Peer != peer || !bytes.Equal(p.Data, data) || (p.Channel != 0) != channel {
					t.Fatalf("%d bytes, channel %v: %d bytes from %v, %v", n, channel, len(p.Data), p.Peer, err)
				}
			}
		}
		if _, err := c.Refresh(ctx, 0); err != nil {
			t.Error(err)
		}
	}
	if st := b.s.Stats(); st.DTLS != 2 || st.Associations != 2 || st.Ended["deleted"] != 2 {
		t.Errorf("%+v", st)
	}
	b.stop()
	if st := b.s.Stats(); st.AssociationsEnded["shutdown"] != 2 || st.Associations != 0 {
		t.Errorf("%+v", st)
	}
	if strings.Contains(b.log.String(), "WARN") {
		t.Error(b.log)
	}
}

// TestDTLSBesideUDP: one client address may have an allocation over each, and a nonce of one is none of the other.
func TestDTLSBesideUDP(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	listening, trust := secured(t)
	b := start(t, listening)
	ctx := timeout(t)
	socket, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(loopback, 0)))
	if err != nil {
		t.Fatal(err)
	}
	conn := b.associateFrom(toServer{socket, isDTLS}, trust)
	secure, err := turnclient.Dial(turnclient.Config{Server: b.s.Addrs()[0], Conn: conn, Credential: turnclient.TokenUsername(b.issue("p1", time.Hour))})
	if err != nil {
		t.Fatal(err)
	}
	defer closed(t, secure)
	if _, err := secure.Allocate(ctx, 0); err != nil {
		t.Fatal(err)
	}
	// An Allocate over plain UDP from the same address is challenged: its 5-tuple has no allocation.
	request := []byte{0, 3, 0, 0, 0x21, 0x12, 0xa4, 0x42, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}
	challenges := b.s.Stats().Refused401
	if _, err := socket.WriteToUDPAddrPort(request, b.s.Addrs()[0]); err != nil {
		t.Fatal(err)
	}
	b.eventually("challenge", func(st Stats) bool { return st.Refused401 == challenges+1 })
	if _, err := secure.Refresh(ctx, time.Hour); err != nil {
		t.Error(err)
	}
	if list := b.s.Sessions("p1"); len(list) != 1 {
		t.Errorf("%+v", list)
	}
}

// TestAssociationEndsItsAllocation, when the client says so.
func TestAssociationEndsItsAllocation(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	listening, trust := secured(t)
	b := start(t, listening)
	ctx := timeout(t)
	cr := turnclient.TokenUsername(b.issue("p1", time.Hour))
	gone, stays := b.secure(trust, cr), b.secure(trust, cr)
	for _, c := range []*turnclient.Client{gone, stays} {
		if _, err := c.Allocate(ctx, 0); err != nil {
			t.Fatal(err)
		}
	}
	closed(t, gone)
	b.eventually("end of the allocation", func(st Stats) bool {
		return st.Ended["disconnected"] == 1 && st.Allocations == 1 && st.AssociationsEnded["client"] == 1
	})
	if _, err := stays.Refresh(ctx, time.Hour); err != nil {
		t.Errorf("the other: %v", err)
	}
}

// TestIdleAssociations: without an allocation an association ends, whatever it says; with one it stays.
func TestIdleAssociations(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	listening, trust := secured(t)
	b := start(t, listening, func(c *Config) { c.Idle = 100 * time.Millisecond })
	ctx := timeout(t)
	busy := b.secure(trust, turnclient.TokenUsername(b.issue("p1", time.Hour)))
	if _, err := busy.Allocate(ctx, 0); err != nil {
		t.Fatal(err)
	}
	b.secure(trust, turnclient.Credential{}) // silent
	chatty := b.secure(trust, turnclient.Credential{})
	for {
		if _, err := chatty.Binding(ctx); err != nil {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	b.eventually("two idle associations ended", func(st Stats) bool { return st.AssociationsEnded["idle"] == 2 })
	time.Sleep(150 * time.Millisecond) // more than Idle, in which the deadline of its reads has passed
	if _, err := busy.Refresh(ctx, time.Hour); err != nil {
		t.Errorf("with an allocation: %v", err)
	}
	if _, err := busy.Refresh(ctx, 0); err != nil {
		t.Error(err)
	}
	b.eventually("the third, after its allocation", func(st Stats) bool { return st.AssociationsEnded["idle"] == 3 })
}

// TestDTLSTenant: the name that the client asks for chooses the tenant, as in TLS.
func TestDTLSTenant(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	listening, trust := secured(t)
	b := start(t, listening, func(c *Config) {
		other := Tenant{Name: "other.test", Keys: keyring.New("other.test"), Peers: c.Peers}
		c.Tenants = []Other{{Tenant: other, ServerNames: []string{"localhost"}}}
	})
	c := b.secure(trust, turnclient.Credential{})
	if _, err := c.Allocate(timeout(t), 0); err == nil {
		t.Error("an allocation without a credential")
	}
	if got := c.ThirdPartyAuthorization(); got != "other.test" {
		t.Errorf("challenged by %q", got)
	}
}

// TestDTLSOff: without DTLS its packets are nobody's.
func TestDTLSOff(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	b := start(t)
	c, err := net.Dial("udp", b.s.Addrs()[0].String())
	if err != nil {
		t.Fatal(err)
	}
	defer closed(t, c)
	if _, err := c.Write([]byte{22, 0xfe, 0xfd, 0}); err != nil {
		t.Fatal(err)
	}
	b.eventually("refusal", func(st Stats) bool { return st.Refused["not_stun"] == 1 })
}

// A server that is to speak DTLS needs what for.
func TestDTLSConfig(t *testing.T) {
	listening, _ := secured(t)
	for want, change := range map[string]func(*Config){
		"DTLS without a certificate": func(c *Config) { c.Certificate = nil },
		"set turn.listen":            func(c *Config) { c.Listen = nil },
	} {
		good := start(t, listening)
		cfg := good.s.cfg
		good.stop()
		cfg.Listen, cfg.TCP = slices.Clone(cfg.Listen), nil
		change(&cfg)
		if cfg.Listen == nil {
			cfg.TCP = []netip.AddrPort{netip.AddrPortFrom(loopback, 0)}
		}
		if s, err := New(cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
			if err == nil {
				closed(t, s)
			}
		}
	}
}
