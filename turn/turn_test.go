package turn

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"wicgate/internal/keyring"
	"wicgate/internal/peerpolicy"
	"wicgate/internal/secret"
	"wicgate/internal/token"
	"wicgate/internal/turnclient"
	"wicgate/internal/wire/stun"
)

const name = "turn.ims.test"

var loopback = netip.MustParseAddr("127.0.0.1")

// journal is a log that a test can read.
type journal struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.Write(p)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.String()
}

// bench is a running server and what is around it.
type bench struct {
	t    testing.TB
	s    *Server
	ring *keyring.Ring
	log  *journal
	stop func() // ends the server and waits

	fails bool // Serve is to return an error
}

func start(t testing.TB, change ...func(*Config)) *bench {
	t.Helper()
	b := &bench{t: t, ring: keyring.New(name), log: new(journal)}
	cfg := Config{
		Log:    slog.New(slog.NewTextHandler(b.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Listen: []netip.AddrPort{netip.AddrPortFrom(loopback, 0)}, Relays: []Relay{{Bind: loopback, MinPort: 50000, MaxPort: 59999}},
		Tenant: Tenant{Name: name, Keys: b.ring, Peers: peerpolicy.IMS(peerpolicy.Range{Prefix: netip.PrefixFrom(loopback, 32), MinPort: 1024, MaxPort: 65535})},
		Drain:  time.Millisecond,
	}
	for _, f := range change {
		f(&cfg)
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	b.serve(s)
	return b
}

// serve runs s until the test ends.
func (b *bench) serve(s *Server) {
	b.s = s
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	b.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil != b.fails {
				b.t.Errorf("Serve: %v", err)
			}
		case <-time.After(5 * time.Second):
			b.t.Error("Serve does not return")
		}
	})
	b.t.Cleanup(b.stop)
}

// issue makes a token as the WAF does.
func (b *bench) issue(pseudonym string, life time.Duration) (kid string, tok []byte, mac secret.Bytes) {
	b.t.Helper()
	kid = b.ring.KID(pseudonym)
	k, f, _, ok := b.ring.Key(kid)
	if !ok {
		b.t.Fatal("no key")
	}
	mac = token.NewMACKey()
	tok, err := token.Seal(f, k, name, token.Payload{MACKey: mac, Timestamp: token.NewTimestamp(time.Now()), Lifetime: life})
	if err != nil {
		b.t.Fatal(err)
	}
	return kid, tok, mac
}

func (b *bench) client(cr turnclient.Credential) *turnclient.Client {
	b.t.Helper()
	c, err := turnclient.Dial(turnclient.Config{Server: b.s.Addrs()[0], Credential: cr, RTO: 300 * time.Millisecond, Tries: 4})
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() {
		if err := c.Close(); err != nil {
			b.t.Error(err)
		}
	})
	return c
}

// echo is a peer that sends back what it gets.
func echo(t testing.TB) netip.AddrPort { return echoOn(t, loopback) }

func echoOn(t testing.TB, at netip.Addr) netip.AddrPort {
	t.Helper()
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: at.AsSlice()})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		<-done
	})
	go func() {
		defer close(done)
		buf := make([]byte, 1<<16)
		for {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			if _, err := c.WriteToUDPAddrPort(buf[:n], from); err != nil && !errors.Is(err, net.ErrClosed) {
				t.Error(err)
			}
		}
	}()
	return c.LocalAddr().(*net.UDPAddr).AddrPort()
}

// closed closes c and reports an error.
func closed(t testing.TB, c io.Closer) {
	t.Helper()
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

func timeout(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestRelayedEcho(t *testing.T) {
	for shape, credential := range map[string]func(string, []byte, secret.Bytes) turnclient.Credential{
		"ACCESS-TOKEN": turnclient.AccessToken, "o1": turnclient.TokenUsername,
	} {
		t.Run(shape, func(t *testing.T) {
			t.Cleanup(func() { goleak.VerifyNone(t) })
			b := start(t)
			peer := echo(t)
			ctx := timeout(t)
			c := b.client(credential(b.issue("p1", time.Hour)))
			a, err := c.Allocate(ctx, 0)
			if err != nil {
				t.Fatal(err)
			}
			if a.Mapped != c.LocalAddr() || a.Lifetime != 600*time.Second || a.Relayed.Addr() != loopback || a.Relayed.Port() < 50000 || a.Relayed.Port() > 59999 {
				t.Errorf("%+v, local %v", a, c.LocalAddr())
			}
			if c.ThirdPartyAuthorization() != name {
				t.Errorf("THIRD-PARTY-AUTHORIZATION %q", c.ThirdPartyAuthorization())
			}
			if got, err := c.Binding(ctx); err != nil || got != c.LocalAddr() {
				t.Errorf("Binding: %v, %v", got, err)
			}
			if err := c.CreatePermission(ctx, peer); err != nil {
				t.Fatal(err)
			}
			round := func(channel bool, data string) {
				t.Helper()
				if err := c.Send(peer, []byte(data)); err != nil {
					t.Fatal(err)
				}
				p, err := c.Receive(ctx)
				if err != nil || p.Peer != peer || string(p.Data) != data || (p.Channel != 0) != channel {
					t.Fatalf("%+v, %v; channel expected: %v", p, err, channel)
				}
			}
			round(false, "by indication")
			round(false, "")
			if _, err := c.ChannelBind(ctx, peer); err != nil {
				t.Fatal(err)
			}
			round(true, "by channel")
			round(true, strings.Repeat("x", maxFromPeer))
			if life, err := c.Refresh(ctx, 20*time.Minute); err != nil || life != 20*time.Minute {
				t.Errorf("Refresh: %v, %v", life, err)
			}
			// A fresh token of the same pseudonym, in the same shape.
			c.SetCredential(credential(b.issue("p1", time.Hour)))
			if _, err := c.Refresh(ctx, 10*time.Minute); err != nil {
				t.Errorf("Refresh with a new token: %v", err)
			}
			round(true, "still here")
			// Someone else's is 441.
			c.SetCredential(credential(b.issue("p2", time.Hour)))
			if _, err := c.Refresh(ctx, 0); turnclient.Code(err) != 441 {
				t.Errorf("Refresh by another: %v", err)
			}
			if n := b.s.Revoke("p1"); n != 1 {
				t.Errorf("revoked %d", n)
			}
			st := b.s.Stats()
			if st.Allocations != 0 || st.AllocationsTotal != 1 || st.ToPeerPackets != 5 || st.ToClientPackets != 5 || st.ToPeerBytes != st.ToClientBytes || st.Ended["revoked"] != 1 || st.Bindings != 1 || c.Dropped() != 0 {
				t.Errorf("stats %+v, %d dropped", st, c.Dropped())
			}
			if l := b.log.String(); !strings.Contains(l, `msg="turn: session ended" cause=revoked pseudonym=p1 client=`+c.LocalAddr().String()) || !strings.Contains(l, "to_peer_packets=5") {
				t.Errorf("log:\n%s", l)
			}
			b.stop()
		})
	}
}

// TestSessions: what an operator sees of allocations over each transport, and ends one by one or by
// pseudonym; the revoked session's credentials open nothing more.
func TestSessions(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	sec := secret.New([]byte("a secret shared with an edge"))
	var mu sync.Mutex
	revoked := map[string]bool{}
	change, trust := streamed(t)
	b := start(t, change, func(c *Config) {
		c.Secrets = func() []secret.Bytes { return []secret.Bytes{sec} }
		c.Revoked = func(p string) bool { mu.Lock(); defer mu.Unlock(); return revoked[p] }
	})
	ctx := timeout(t)
	ephemeral := func(p string) turnclient.Credential {
		name := token.EphemeralUsername(time.Now().Add(time.Hour), p)
		return turnclient.LongTerm(name, token.EphemeralPassword(sec, name))
	}
	clients := []*turnclient.Client{
		b.client(turnclient.AccessToken(b.issue("p1", time.Hour))), b.stream("tcp", nil, turnclient.TokenUsername(b.issue("p2", time.Hour))),
		b.stream("tls", trust, ephemeral("p2")),
	}
	for _, c := range clients {
		if _, err := c.Allocate(ctx, 0); err != nil {
			t.Fatal(err)
		}
	}
	list := b.s.Sessions("")
	if len(list) != 3 || len(b.s.Sessions("p2")) != 2 || len(b.s.Sessions("nobody")) != 0 {
		t.Fatalf("%+v", list)
	}
	for i, want := range []struct{ pseudonym, credential, transport string }{{"p1", "token", "udp"}, {"p2", "username", "tcp"}, {"p2", "ephemeral", "tls"}} {
		a := list[i]
		if a.Pseudonym != want.pseudonym || a.Credential != want.credential || a.Transport != want.transport || a.Client != clients[i].LocalAddr() {
			t.Errorf("%+v, want %v", a, want)
		}
		if one, ok := b.s.Session(a.ID); !ok || !slices.Equal(one.Relayed, a.Relayed) || len(a.Relayed) != 1 || !one.Expires.After(time.Now()) {
			t.Errorf("%+v, %v", one, ok)
		}
	}
	if !b.s.Kill(list[0].ID) || b.s.Kill(list[0].ID) || b.s.Kill(12345) {
		t.Error("Kill")
	}
	mu.Lock()
	revoked["p2"] = true
	mu.Unlock()
	if n := b.s.Revoke("p2"); n != 2 {
		t.Errorf("%d revoked", n)
	}
	for _, cr := range []turnclient.Credential{ephemeral("p2"), turnclient.TokenUsername(b.issue("p2", time.Hour)), turnclient.AccessToken(b.issue("p2", time.Hour))} {
		if _, err := b.client(cr).Allocate(ctx, 0); turnclient.Code(err) != 401 {
			t.Errorf("a revoked session allocates: %v", err)
		}
	}
	if st := b.s.Stats(); st.Allocations != 0 || st.Ended["killed"] != 1 || st.Ended["revoked"] != 2 || st.Refused["revoked"] != 3 {
		t.Errorf("%+v", st)
	}
}

// TestOnlyPermittedPeers: a relay socket takes packets of permitted addresses alone, and nothing
// leaves for others.
func TestOnlyPermittedPeers(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	peer := echo(t)
	b := start(t, func(c *Config) {
		c.Peers = peerpolicy.IMS(peerpolicy.Range{Prefix: netip.PrefixFrom(loopback, 32), MinPort: peer.Port(), MaxPort: peer.Port()})
	})
	stranger := echo(t)
	ctx := timeout(t)
	c := b.client(turnclient.TokenUsername(b.issue("p1", time.Hour)))
	a, err := c.Allocate(ctx, 0)
	if err != nil {
		t.Fatal(err)
	}
	hit := func(from netip.AddrPort) {
		t.Helper()
		s, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(a.Relayed))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Write([]byte("stranger")); err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	hit(stranger) // no permission yet
	for _, p := range []string{"10.0.0.1:80", "169.254.169.254:80", "127.0.0.2:80", "8.8.8.8:53"} {
		if err := c.CreatePermission(ctx, netip.MustParseAddrPort(p)); turnclient.Code(err) != 403 {
			t.Errorf("CreatePermission %s: %v", p, err)
		}
	}
	if err := c.CreatePermission(ctx, peer); err != nil {
		t.Fatal(err)
	}
	hit(stranger) // the address has a permission, the port is outside of the policy
	if _, err := c.ChannelBind(ctx, stranger); turnclient.Code(err) != 403 {
		t.Errorf("ChannelBind to another port: %v", err)
	}
	if _, err := c.ChannelBind(ctx, b.s.Addrs()[0]); turnclient.Code(err) != 403 {
		t.Errorf("ChannelBind to the server's own listener: %v", err)
	}
	if err := c.Send(stranger, []byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := c.Send(peer, []byte("good")); err != nil {
		t.Fatal(err)
	}
	p, err := c.Receive(ctx)
	if err != nil || string(p.Data) != "good" || p.Peer != peer {
		t.Errorf("first packet through: %+v, %v", p, err)
	}
	// The first stranger's packet may be read after the permission is there.
	if st := b.s.Stats(); st.ToPeerPackets != 1 || st.ToClientPackets != 1 || st.Refused["no_permission"] > 1 || st.Refused["no_permission"]+st.Refused["peer"] != 9 {
		t.Errorf("stats %+v", st)
	}
}

// TestRealTimer: strict ends the allocation at the token's end by itself.
func TestRealTimer(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	b := start(t, func(c *Config) { c.Policy = Strict })
	k, f, _, _ := b.ring.Key(b.ring.KID("p1"))
	mac := token.NewMACKey()
	// Issued so that with Delta two seconds are left.
	tok, err := token.Seal(f, k, name, token.Payload{MACKey: mac, Timestamp: token.NewTimestamp(time.Now().Add(-13 * time.Second)), Lifetime: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	c := b.client(turnclient.AccessToken(b.ring.KID("p1"), tok, mac))
	a, err := c.Allocate(timeout(t), 0)
	if err != nil || a.Lifetime != time.Second {
		t.Fatalf("%+v, %v", a, err)
	}
	// The line comes last, when the socket is closed.
	for end := time.Now().Add(3 * time.Second); !strings.Contains(b.log.String(), "cause=expired pseudonym=p1"); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the allocation outlives its token; log:\n%s", b.log)
		}
	}
	if n := b.s.Stats().Allocations; n != 0 {
		t.Errorf("%d allocations", n)
	}
}

// TestBadInput: rubbish, wrong credentials and cut messages get the clause's answer and a line in
// the log that names the cause and no secret; nothing is kept.
func TestBadInput(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	b := start(t)
	ctx := timeout(t)
	kid, tok, mac := b.issue("p1", time.Hour)
	c := b.client(turnclient.LongTerm("alice", secret.New([]byte("hunter2hunter2"))))
	if _, err := c.Allocate(ctx, 0); turnclient.Code(err) != 401 {
		t.Errorf("plain user: %v", err)
	}
	c.SetCredential(turnclient.AccessToken(kid, tok, token.NewMACKey()))
	if _, err := c.Allocate(ctx, 0); turnclient.Code(err) != 401 {
		t.Errorf("wrong mac_key: %v", err)
	}
	c.SetCredential(turnclient.TokenUsername("nobody.p1", tok, mac))
	if _, err := c.Allocate(ctx, 0); turnclient.Code(err) != 401 {
		t.Errorf("unknown kid: %v", err)
	}
	whole := stun.AppendText(stun.AppendHeader(nil, stun.NewType(stun.Allocate, stun.Request), stun.TransactionID{1}), stun.AttrUsername, "x")
	for n := range len(whole) {
		if err := c.Raw(whole[:n]); err != nil {
			t.Fatal(err)
		}
	}
	for _, raw := range [][]byte{{0x40}, {0x80, 0, 0, 1}, bytes.Repeat([]byte{0xff}, 2000), stun.AppendChannelData(nil, 0x4000, []byte("x"))} {
		if err := c.Raw(raw); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.Binding(ctx); err != nil {
		t.Errorf("the server does not answer any more: %v", err)
	}
	if st := b.s.Stats(); st.Allocations != 0 || st.AllocationsTotal != 0 || st.Refused["malformed"] < 20 {
		t.Errorf("stats %+v", st)
	}
	l := b.log.String()
	for _, want := range []string{"cause=\"USERNAME is of no kind", "cause=\"message integrity is wrong\"", "cause=\"kid is not known\"", "cause=\"malformed message\"", "cause=\"neither STUN nor ChannelData\"", "client=" + c.LocalAddr().String()} {
		if !strings.Contains(l, want) {
			t.Errorf("log does not say %s:\n%s", want, l)
		}
	}
	for _, s := range []string{"hunter2", string(mac.Expose()), fmt.Sprintf("%x", mac.Expose()), string(token.Credential(mac).Expose()), string(token.AppendUsername(nil, kid, tok))} {
		if strings.Contains(l, s) {
			t.Errorf("the log tells a secret:\n%s", l)
		}
	}
	if n := strings.Count(l, "malformed message"); n > 2 {
		t.Errorf("%d lines about malformed messages within a second", n)
	}
}

// TestShutdown: Serve drains, ends what is left, and says so.
func TestShutdown(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	b := start(t, func(c *Config) { c.Drain = time.Second })
	ctx := timeout(t)
	stays := b.client(turnclient.TokenUsername(b.issue("p1", time.Hour)))
	leaves := b.client(turnclient.TokenUsername(b.issue("p2", time.Hour)))
	late := b.client(turnclient.TokenUsername(b.issue("p3", time.Hour)))
	for _, c := range []*turnclient.Client{stays, leaves} {
		if _, err := c.Allocate(ctx, 0); err != nil {
			t.Fatal(err)
		}
	}
	stopped := make(chan struct{})
	go func() { defer close(stopped); b.stop() }()
	for end := time.Now().Add(900 * time.Millisecond); ; {
		_, err := late.Allocate(ctx, 0)
		if turnclient.Code(err) == 508 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("Allocate while draining: %v", err)
		}
		if err == nil { // it came before the drain
			if _, err := late.Refresh(ctx, 0); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := leaves.Refresh(ctx, 0); err != nil {
		t.Errorf("Refresh while draining: %v", err)
	}
	<-stopped
	st := b.s.Stats()
	if st.Allocations != 0 || st.Ended["shutdown"] != 1 || st.Ended["deleted"] < 1 {
		t.Errorf("ended %v", st.Ended)
	}
	if !strings.Contains(b.log.String(), "cause=shutdown pseudonym=p1") {
		t.Errorf("log:\n%s", b.log)
	}
}

// TestPorts: relay ports come from the range, run out with 508, and come back.
func TestPorts(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	// A range of four ports that are free now.
	probe, err := net.ListenUDP("udp4", &net.UDPAddr{IP: loopback.AsSlice()})
	if err != nil {
		t.Fatal(err)
	}
	lo := probe.LocalAddr().(*net.UDPAddr).AddrPort().Port() &^ 3
	defer closed(t, probe) // one of the four is another program's
	b := start(t, func(c *Config) {
		c.Relays[0].MinPort, c.Relays[0].MaxPort, c.Quota, c.MaxAllocations = lo, lo+3, 10, 10
	})
	ctx := timeout(t)
	var open []*turnclient.Client
	for {
		c := b.client(turnclient.TokenUsername(b.issue("p1", time.Hour)))
		a, err := c.Allocate(ctx, 0)
		if err != nil {
			if turnclient.Code(err) != 508 {
				t.Error(err)
			}
			break
		}
		if a.Relayed.Port() < lo || a.Relayed.Port() > lo+3 || a.Relayed.Port() == probe.LocalAddr().(*net.UDPAddr).AddrPort().Port() {
			t.Errorf("relayed address %v outside of %d to %d", a.Relayed, lo, lo+3)
		}
		open = append(open, c)
	}
	if len(open) == 0 || len(open) > 3 {
		t.Fatalf("%d allocations on 3 ports", len(open))
	}
	for _, c := range open {
		if _, err := c.Refresh(ctx, 0); err != nil {
			t.Error(err)
		}
	}
	c := b.client(turnclient.TokenUsername(b.issue("p1", time.Hour)))
	even := func(m []byte) []byte { return stun.AppendAttr(m, stun.AttrEvenPort, []byte{0}) }
	if a, err := c.Allocate(ctx, 0, even); err == nil && a.Relayed.Port()&1 != 0 {
		t.Errorf("EVEN-PORT: %v", a.Relayed)
	}
	if !strings.Contains(b.log.String(), "turn: no relay socket") {
		t.Errorf("no word about the ports in the log:\n%s", b.log)
	}
}

// TestHairpin: two clients of a server behind a one-to-one NAT that sends nothing back reach one
// another by their relayed addresses.
func TestHairpin(t *testing.T) {
	public := netip.MustParseAddr("203.0.113.9") // no address of this machine
	for _, bind := range []netip.Addr{loopback, netip.IPv4Unspecified()} {
		t.Run(bind.String(), func(t *testing.T) {
			t.Cleanup(func() { goleak.VerifyNone(t) })
			b := start(t, func(c *Config) {
				c.Relays = []Relay{{Bind: bind, Advertise: public, MinPort: 50000, MaxPort: 59999}}
				c.Peers = peerpolicy.General()
			})
			ctx := timeout(t)
			var clients [2]*turnclient.Client
			var relayed [2]netip.AddrPort
			for i := range clients {
				clients[i] = b.client(turnclient.TokenUsername(b.issue(fmt.Sprint("p", i), time.Hour)))
				a, err := clients[i].Allocate(ctx, 0)
				if err != nil || a.Relayed.Addr() != public {
					t.Fatalf("%+v, %v", a, err)
				}
				relayed[i] = a.Relayed
			}
			for i, c := range clients {
				if err := c.CreatePermission(ctx, relayed[1-i]); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := clients[1].ChannelBind(ctx, relayed[0]); err != nil {
				t.Fatal(err)
			}
			for i, c := range clients {
				if err := c.Send(relayed[1-i], []byte("across")); err != nil {
					t.Fatal(err)
				}
				if p, err := clients[1-i].Receive(ctx); err != nil || p.Peer != relayed[i] || string(p.Data) != "across" {
					t.Errorf("%+v, %v", p, err)
				}
			}
		})
	}
}

// TestRelayAddresses: allocations spread over the addresses, and all ports of all are used.
func TestRelayAddresses(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	second := netip.MustParseAddr("127.0.0.2") // Linux has all of 127.0.0.0/8
	if c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: second.AsSlice()}); err != nil {
		t.Skipf("needs a second address of the loopback: %v", err)
	} else {
		closed(t, c)
	}
	b := start(t, func(c *Config) {
		c.Relays = []Relay{{Bind: loopback, MinPort: 50000, MaxPort: 50009}, {Bind: second, MinPort: 50000, MaxPort: 50009}}
	})
	ctx := timeout(t)
	used := map[netip.Addr]int{}
	for {
		a, err := b.client(turnclient.TokenUsername(b.issue("p1", time.Hour))).Allocate(ctx, 0)
		if err != nil {
			if turnclient.Code(err) != 508 {
				t.Error(err)
			}
			break
		}
		used[a.Relayed.Addr()]++
	}
	// Another program may have some of them.
	if used[loopback] < 5 || used[second] < 5 || used[loopback]+used[second] > 20 || b.s.cfg.MaxAllocations != 20 {
		t.Errorf("allocations by address: %v", used)
	}
}

// TestFamilies: clients of IPv4 and IPv6 reach peers of IPv4 and IPv6 by one allocation of both, and
// keep one when the other is deleted.
func TestFamilies(t *testing.T) {
	six := netip.IPv6Loopback()
	peers := []netip.AddrPort{echo(t), echoOn(t, six)}
	for i, client := range []string{"IPv4 client", "IPv6 client"} {
		t.Run(client, func(t *testing.T) {
			t.Cleanup(func() { goleak.VerifyNone(t, goleak.IgnoreCurrent()) })
			b := start(t, func(c *Config) {
				c.Listen = append(c.Listen, netip.AddrPortFrom(six, 0))
				c.Relays = append(c.Relays, Relay{Bind: six, MinPort: 50000, MaxPort: 59999})
				c.Peers = peerpolicy.IMS(peerpolicy.Range{Prefix: netip.PrefixFrom(loopback, 32)}, peerpolicy.Range{Prefix: netip.PrefixFrom(six, 128)})
			})
			ctx := timeout(t)
			c, err := turnclient.Dial(turnclient.Config{Server: b.s.Addrs()[i], Credential: turnclient.TokenUsername(b.issue("p1", time.Hour))})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { closed(t, c) })
			small := func(typ stun.Attr, v byte) turnclient.Attribute {
				return func(m []byte) []byte { return stun.AppendByte(m, typ, v) }
			}
			a, err := c.Allocate(ctx, 0, small(stun.AttrAdditionalAddressFamily, stun.FamilyIPv6))
			if err != nil || a.Relayed.Addr() != loopback || a.Second.Addr() != six || a.Mapped != c.LocalAddr() {
				t.Fatalf("%+v, %v", a, err)
			}
			if err := c.CreatePermission(ctx, peers...); err != nil {
				t.Fatal(err)
			}
			round := func(peer netip.AddrPort) {
				t.Helper()
				if err := c.Send(peer, []byte("there and back")); err != nil {
					t.Fatal(err)
				}
				if p, err := c.Receive(ctx); err != nil || p.Peer != peer || string(p.Data) != "there and back" {
					t.Fatalf("%+v, %v", p, err)
				}
			}
			for _, p := range peers {
				round(p)
				if _, err := c.ChannelBind(ctx, p); err != nil {
					t.Fatal(err)
				}
				round(p)
			}
			if l := b.s.Sessions(""); len(l) != 1 || !slices.Equal(l[0].Relayed, []netip.AddrPort{a.Relayed, a.Second}) {
				t.Errorf("%+v", l)
			}
			if _, err := c.Refresh(ctx, 0, small(stun.AttrRequestedAddressFamily, stun.FamilyIPv4)); err != nil {
				t.Fatal(err)
			}
			if err := c.CreatePermission(ctx, peers[0]); turnclient.Code(err) != 443 {
				t.Errorf("permission of a deleted family: %v", err)
			}
			round(peers[1])
			// The relay port of the half is free again.
			free, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(a.Relayed))
			if err != nil {
				t.Fatal(err)
			}
			closed(t, free)
			b.stop()
		})
	}
}

// portsInUse counts the relay ports that the server holds.
func (b *bench) portsInUse() (n int) {
	for _, p := range slices.Concat(b.s.pools[:]...) {
		p.mu.Lock()
		for _, used := range p.used {
			if used {
				n++
			}
		}
		p.mu.Unlock()
	}
	return n
}

// TestReservation: the port behind an even one is held, by a socket, for another client of the owner.
func TestReservation(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	peer := echo(t)
	b := start(t)
	ctx := timeout(t)
	even := func(m []byte) []byte { return stun.AppendAttr(m, stun.AttrEvenPort, []byte{0x80}) }
	rtp, rtcp, stranger := b.client(turnclient.TokenUsername(b.issue("p1", time.Hour))), b.client(turnclient.AccessToken(b.issue("p1", time.Hour))), b.client(turnclient.AccessToken(b.issue("p2", time.Hour)))
	first, err := rtp.Allocate(ctx, 0, even)
	if err != nil || first.Relayed.Port()&1 != 0 || len(first.Reservation) != 8 {
		t.Fatalf("%+v, %v", first, err)
	}
	next := netip.AddrPortFrom(first.Relayed.Addr(), first.Relayed.Port()+1)
	if c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(next)); err == nil {
		closed(t, c)
		t.Error("the port behind is free to others")
	}
	token := func(m []byte) []byte { return stun.AppendAttr(m, stun.AttrReservationToken, first.Reservation) }
	if _, err := stranger.Allocate(ctx, 0, token); turnclient.Code(err) != 508 {
		t.Errorf("somebody else redeems: %v", err)
	}
	second, err := rtcp.Allocate(ctx, 0, token)
	if err != nil || second.Relayed != next {
		t.Fatalf("%+v, %v, want %v", second, err, next)
	}
	if err := rtcp.CreatePermission(ctx, peer); err != nil {
		t.Fatal(err)
	}
	if err := rtcp.Send(peer, []byte("RTCP")); err != nil {
		t.Fatal(err)
	}
	if p, err := rtcp.Receive(ctx); err != nil || string(p.Data) != "RTCP" {
		t.Errorf("%+v, %v", p, err)
	}
	if n := b.portsInUse(); n != 2 {
		t.Errorf("%d relay ports in use, want 2", n)
	}
	// One that is never redeemed ends with the server at the latest; 30 s are the core's test.
	if _, err := stranger.Allocate(ctx, 0, even); err != nil {
		t.Fatal(err)
	}
	if n := b.portsInUse(); n != 4 {
		t.Errorf("%d relay ports in use, want 4", n)
	}
	b.stop()
	if n := b.portsInUse(); n != 0 {
		t.Errorf("%d relay ports in use after the end", n)
	}
}

func TestConfig(t *testing.T) {
	good := func() Config {
		return Config{Listen: []netip.AddrPort{netip.AddrPortFrom(loopback, 0)}, Relays: []Relay{{Bind: loopback}}, Tenant: Tenant{Name: name, Peers: peerpolicy.General(), Keys: keyring.New(name)}}
	}
	for what, change := range map[string]func(*Config){
		"name":                 func(c *Config) { c.Name = "" },
		"quote":                func(c *Config) { c.Name = `a"b` },
		"long name":            func(c *Config) { c.Name = strings.Repeat("a", 128) },
		"listen":               func(c *Config) { c.Listen = nil },
		"relay":                func(c *Config) { c.Relays = nil },
		"relay.bind":           func(c *Config) { c.Relays[0].Bind = netip.Addr{} },
		"one port, two relays": func(c *Config) { c.Relays = append(c.Relays, Relay{Bind: loopback, MinPort: 65535, MaxPort: 65535}) },
		"one address, two relays": func(c *Config) {
			c.Relays = append(c.Relays, Relay{Bind: netip.MustParseAddr("127.0.0.2"), Advertise: loopback})
		},
		"any address, two relays": func(c *Config) {
			c.Relays = append(c.Relays, Relay{Bind: netip.IPv4Unspecified(), Advertise: netip.MustParseAddr("192.0.2.1")})
		},
		"advertise":     func(c *Config) { c.Relays[0].Bind = netip.IPv4Unspecified() },
		"families":      func(c *Config) { c.Relays[0].Advertise = netip.IPv6Loopback() },
		"relay ports":   func(c *Config) { c.Relays[0].MinPort, c.Relays[0].MaxPort = 100, 200 },
		"ports swapped": func(c *Config) { c.Relays[0].MinPort, c.Relays[0].MaxPort = 50000, 40000 },
		"peers":         func(c *Config) { c.Peers = peerpolicy.Policy{} },
		"keys":          func(c *Config) { c.Keys = nil },
		"policy":        func(c *Config) { c.Policy = 9 },
		"quota":         func(c *Config) { c.Quota = -1 },
		"drain":         func(c *Config) { c.Drain = time.Minute },
	} {
		cfg := good()
		change(&cfg)
		if s, err := New(cfg); err == nil {
			t.Errorf("%s: accepted, %v", what, s.Close())
		} else if !strings.HasPrefix(err.Error(), "turn: ") {
			t.Errorf("%s: %v", what, err)
		}
	}
	s, err := New(good())
	if err != nil {
		t.Fatal(err)
	}
	// A port that is taken fails in New, with its name and key.
	taken := good()
	taken.Listen = []netip.AddrPort{netip.AddrPortFrom(loopback, 0), s.Addrs()[0]}
	if _, err := New(taken); err == nil || !strings.Contains(err.Error(), "turn.listen") || !strings.Contains(err.Error(), fmt.Sprint(s.Addrs()[0].Port())) {
		t.Errorf("taken port: %v", err)
	}
	if s.cfg.Quota != 32 || s.cfg.GraceMax != 12*time.Hour || s.cfg.MaxAllocations != 16384 || s.cfg.Policy != Session {
		t.Errorf("defaults %+v", s.cfg)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func TestDesksHaveOneHolder(t *testing.T) {
	var p desks
	d := p.take(nil)
	p.give(d)
	defer func() {
		if recover() == nil {
			t.Error("giving back twice is silent")
		}
	}()
	p.give(d)
}

// nodes starts servers that share a file of keys, as the nodes of one name do.
func nodes(t *testing.T) (node func(more ...func(*Config)) *bench) {
	file := filepath.Join(t.TempDir(), "keys.json")
	return func(more ...func(*Config)) *bench {
		t.Helper()
		ring, err := keyring.OpenFile(file, name)
		if err != nil {
			t.Fatal(err)
		}
		b := start(t, append(more, func(c *Config) { c.Keys = ring })...)
		b.ring = ring
		return b
	}
}

// TestNodeChanges: a load balancer sends the answer to a challenge to another node than the one that asked.
func TestNodeChanges(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	node := nodes(t)
	a, b := node(), node(func(c *Config) { c.Relays = []Relay{{Bind: loopback, MinPort: 40000, MaxPort: 49999}} })
	front, err := net.ListenUDP("udp4", &net.UDPAddr{IP: loopback.AsSlice()})
	if err != nil {
		t.Fatal(err)
	}
	var balancer sync.WaitGroup
	defer balancer.Wait()
	defer closed(t, front)
	balancer.Go(func() {
		var client netip.AddrPort
		m := make([]byte, 1500)
		for to := a.s.Addrs()[0]; ; {
			n, from, err := front.ReadFromUDPAddrPort(m)
			if err != nil {
				return
			}
			if from = unmap(from); from == a.s.Addrs()[0] || from == b.s.Addrs()[0] {
				_, _ = front.WriteToUDPAddrPort(m[:n], client) // as on UDP
				continue
			}
			client = from
			_, _ = front.WriteToUDPAddrPort(m[:n], to) // same
			to = b.s.Addrs()[0]
		}
	})
	ctx := timeout(t)
	c, err := turnclient.Dial(turnclient.Config{Server: front.LocalAddr().(*net.UDPAddr).AddrPort(), Credential: turnclient.TokenUsername(a.issue("p1", time.Hour))})
	if err != nil {
		t.Fatal(err)
	}
	defer closed(t, c)
	if at, err := c.Allocate(ctx, 0); err != nil || at.Relayed.Port() >= 50000 {
		t.Errorf("%v, %v", at, err)
	}
	if n, m := a.s.Stats().Refused["challenge"], b.s.Stats().Refused["challenge"]; n != 1 || m != 0 {
		t.Errorf("%d and %d challenges", n, m)
	}
}

// TestSibling: a client that a draining server sends away arrives at the other, by UDP, TCP and TLS; over UDP
// with the first one's nonce.
func TestSibling(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	tcp, trust := streamed(t)
	node := nodes(t)
	b := node(tcp)
	a := node(tcp, func(c *Config) {
		c.Relays = []Relay{{Bind: loopback, MinPort: 40000, MaxPort: 49999}}
		c.Siblings = []Sibling{
			{Address: b.s.Addrs()[0], Transport: stun.ProtocolUDP},
			{Address: b.s.TCPAddrs()[0], Transport: stun.ProtocolTCP, Domain: "localhost"},
		}
	})
	ctx := timeout(t)

	a.s.Drain(time.Time{})
	for _, network := range []string{"udp", "tcp", "tls"} {
		server := a.s.Addrs()[0]
		want := b.s.Addrs()[0]
		if network != "udp" {
			server, want = a.s.TCPAddrs()[0], b.s.TCPAddrs()[0]
		}
		c, err := turnclient.Dial(turnclient.Config{Server: server, Network: network, TLS: trust, Credential: turnclient.TokenUsername(a.issue("p2", time.Hour))})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Allocate(ctx, 0); err != nil || c.Server() != want {
			t.Errorf("%s: %v, at %v, want %v", network, err, c.Server(), want)
		}
		if _, err := c.Refresh(ctx, 0); err != nil {
			t.Errorf("%s: Refresh: %v", network, err)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	if n := a.s.Stats().Refused["draining"]; n != 3 {
		t.Errorf("%d sent away", n)
	}
	if r := b.s.Stats().Refused; r["stale_nonce"] != 2 || r["challenge"] != 0 { // TCP and TLS came from new ports
		t.Errorf("the sibling refused %v", r)
	}
	a.s.Undrain()
	if _, err := a.client(turnclient.TokenUsername(a.issue("p3", time.Hour))).Allocate(ctx, 0); err != nil {
		t.Errorf("taken back: %v", err)
	}
}
