package interop

import (
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"wicgate/internal/keyring"
	"wicgate/internal/listen"
	"wicgate/internal/peerpolicy"
	"wicgate/internal/secret"
	"wicgate/internal/wire/stun"
	"wicgate/turn"
)

// This file lets Debian's coturn tools be the clients of our TURN server.

const turnName = "turn.example.org"

var lo = netip.MustParseAddr("127.0.0.1")

// users are static users by their passwords.
type users map[string]string

func (u users) Key(name string, alg stun.Algorithm) (secret.Bytes, bool) {
	p, ok := u[name]
	return secret.New(alg.Key([]byte(name), []byte(turnName), []byte(p))), ok
}
func (users) Userhash([sha256.Size]byte) (string, bool) { return "", false }
func (users) SHA256() bool                              { return true }

// startTURN runs a server on loopback for clients of older habits: channel numbers of RFC 5766, loopback
// peers. It ends with the test.
func startTURN(t *testing.T, change ...func(*turn.Config)) *turn.Server {
	t.Helper()
	ca, err := listen.DevelopmentCA(filepath.Join(t.TempDir(), "ca"), []string{"localhost", "127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	cfg := turn.Config{
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
		Tenant: turn.Tenant{
			Name: turnName, Keys: keyring.New(turnName), Users: users{"anna": "TheMatrIX"},
			Secrets: func() []secret.Bytes { return []secret.Bytes{secret.New([]byte("a secret of sixteen"))} },
			Peers: peerpolicy.IMS(
				peerpolicy.Range{Prefix: netip.MustParsePrefix("127.0.0.0/8"), MinPort: 1024, MaxPort: 65535},
				peerpolicy.Range{Prefix: netip.MustParsePrefix("::1/128"), MinPort: 1024, MaxPort: 65535}),
		},
		Listen: []netip.AddrPort{netip.AddrPortFrom(lo, 0)}, TCP: []netip.AddrPort{netip.AddrPortFrom(lo, 0)}, Certificate: ca.GetCertificate,
		Relays: []turn.Relay{{Bind: lo}, {Bind: netip.IPv6Loopback()}}, DTLS: true, ChannelNumbers5766: true, TCPRelay: true, Mobility: true, Drain: time.Millisecond,
	}
	for _, f := range change {
		f(&cfg)
	}
	s, err := turn.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.Serve(ctx); err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	t.Cleanup(func() { stop(); wg.Wait() })
	return s
}

// turnutils runs one of the tools, for a minute at most.
func turnutils(t *testing.T, tool string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "turnutils_"+tool, args...).CombinedOutput()
	if err != nil {
		t.Errorf("turnutils_%s %s: %v", tool, strings.Join(args, " "), err)
	}
	return string(out)
}

// TestUclient: coturn's client relays between two of its own through our server, by each transport, kind of
// credential and way of sending.
func TestUclient(t *testing.T) {
	static, rest := []string{"-u", "anna", "-w", "TheMatrIX"}, []string{"-u", "ben", "-W", "a secret of sixteen"}
	for _, c := range []struct {
		name string
		args []string
		tcp  bool
		// unread: the client counts what it has read when it ends; what counts here is what was relayed. Over
		// TLS, and with mobility, where data goes to the old address until some has come from the new one
		// (RFC 8016 §3.2.2).
		unread bool
		half   bool // of each two one waits for a peer
	}{
		{"UDP, static user", static, false, false, false},
		{"UDP, ephemeral credential", rest, false, false, false},
		{"UDP, Send indications", append([]string{"-s"}, static...), false, false, false},
		{"UDP, padded ChannelData", append([]string{"-D"}, static...), false, false, false},
		{"UDP, mobility", append([]string{"-M"}, static...), false, true, false},
		{"TCP, mobility", append([]string{"-M", "-t"}, static...), true, false, false},
		{"TCP, static user", append([]string{"-t"}, static...), true, false, false},
		{"TCP, ephemeral credential, Send indications", append([]string{"-t", "-s"}, rest...), true, false, false},
		{"TLS", append([]string{"-t", "-S"}, static...), true, true, false},
		{"UDP, DONT-FRAGMENT", append([]string{"-g", "-s"}, static...), false, false, false},
		{"UDP, IPv6 relay", append([]string{"-x"}, static...), false, false, false},
		{"UDP, both families", append([]string{"-Z"}, static...), false, false, false},
		{"TCP, both families", append([]string{"-Z", "-t"}, static...), true, false, false},
		{"DTLS", append([]string{"-S"}, static...), false, true, false},
		{"TCP relay", append([]string{"-T"}, static...), true, false, false},
		{"TCP relay over TLS", append([]string{"-T", "-S"}, static...), true, false, false},
		{"TCP relay, peers that connect", append([]string{"-T", "-P"}, static...), true, true, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel() // they wait, mostly
			s := startTURN(t)
			port := s.Addrs()[0].Port()
			if c.tcp {
				port = s.TCPAddrs()[0].Port()
			}
			const packets, clients = 10, 2
			out := turnutils(t, "uclient", append(c.args, "-y", "-c", "-n", fmt.Sprint(packets), "-m", fmt.Sprint(clients), "-l", "160", "-p", fmt.Sprint(port), lo.String())...)
			all := uint64(packets * clients)
			if c.half {
				all /= 2
			} else if !c.unread && !strings.Contains(out, "Total lost packets 0 (0.000000%)") {
				t.Errorf("packets were lost:\n%s", out)
			}
			n := s.Stats()
			if n.ToPeerBytes < all*160 || n.ToClientBytes < all*160 || n.QueueDropped+n.SendErrors != 0 || n.AllocationsTotal < clients {
				t.Errorf("of %d packets of 160 bytes %d bytes to peers and %d to clients, %d dropped, of %d allocations", all, n.ToPeerBytes, n.ToClientBytes, n.QueueDropped+n.SendErrors, n.AllocationsTotal)
			}
		})
	}
}

// TestUclientRefused: wrong credentials relay nothing, and broken requests end nothing.
func TestUclientRefused(t *testing.T) {
	t.Parallel()
	s := startTURN(t)
	port := fmt.Sprint(s.Addrs()[0].Port())
	for _, args := range [][]string{ // each is refused at once
		{"-u", "anna", "-w", "wrong"}, {"-u", "nobody", "-w", "TheMatrIX"}, {"-u", "ben", "-W", "another secret here"},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		out, err := exec.CommandContext(ctx, "turnutils_uclient", append(args, "-y", "-c", "-n", "2", "-m", "1", "-p", port, lo.String())...).CombinedOutput()
		cancel()
		if err == nil || strings.Contains(string(out), "Total lost packets 0") {
			t.Errorf("%v is served:\n%s", args, out)
		}
	}
	if n := s.Stats(); n.AllocationsTotal != 0 {
		t.Errorf("%d allocations", n.AllocationsTotal)
	}
	// -R: malformed and out-of-order requests by chance, which the client may wait long to see answered.
	for range 2 {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		_ = exec.CommandContext(ctx, "turnutils_uclient", "-R", "-u", "anna", "-w", "TheMatrIX", "-y", "-c", "-n", "5", "-m", "2", "-p", port, lo.String()).Run() // what counts is the next one
		cancel()
	}
	out := turnutils(t, "uclient", "-u", "anna", "-w", "TheMatrIX", "-y", "-c", "-n", "5", "-m", "2", "-p", port, lo.String())
	if !strings.Contains(out, "Total lost packets 0 (0.000000%)") {
		t.Errorf("after broken requests:\n%s", out)
	}
	// -I: without permissions nothing is relayed.
	before := s.Stats().ToPeerPackets
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second)
	defer cancel()
	_ = exec.CommandContext(ctx, "turnutils_uclient", "-I", "-u", "anna", "-w", "TheMatrIX", "-y", "-c", "-s", "-n", "5", "-m", "2", "-p", port, lo.String()).Run() // it loses all
	if n := s.Stats(); n.ToPeerPackets != before || n.Refused["no_permission"] == 0 {
		t.Errorf("without permissions %d packets to peers, refused %v", n.ToPeerPackets-before, n.Refused)
	}
}

// square is four addresses for NAT discovery: of 127.0.0.1 and 127.0.0.2 the same two ports, in a row, the
// first of them even.
func square(t *testing.T) (four []netip.AddrPort) {
	for four == nil {
		c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(lo, 0)))
		if err != nil {
			t.Fatal(err)
		}
		free := c.LocalAddr().(*net.UDPAddr).AddrPort().Port() &^ 1
		_ = c.Close()
		for _, ip := range []string{"127.0.0.1", "127.0.0.2"} {
			for p := range uint16(2) {
				a := netip.AddrPortFrom(netip.MustParseAddr(ip), free+p)
				if c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(a)); err == nil {
					_ = c.Close()
					four = append(four, a)
				}
			}
		}
		if len(four) < 4 {
			four = nil
		}
	}
	return four
}

// TestNATDiscovery: coturn's tool finds out what NAT is between it and us, by RFC 5780: none.
func TestNATDiscovery(t *testing.T) {
	four := square(t)
	s := startTURN(t, func(c *turn.Config) { c.Listen, c.NATDiscovery = four, true })
	out := turnutils(t, "natdiscovery", "-m", "-f", "-p", fmt.Sprint(four[0].Port()), lo.String())
	t.Log(out)
	for _, want := range []string{"Endpoint Independent Mapping!", "Endpoint Independent Filtering!"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q", want)
		}
	}
	if n := s.Stats().Bindings; n < 4 {
		t.Errorf("%d Binding requests answered", n)
	}
}

// TestClassicClient: a client of RFC 3489, which has no magic cookie, finds out the same.
func TestClassicClient(t *testing.T) {
	four := square(t)
	s := startTURN(t, func(c *turn.Config) { c.Listen, c.NATDiscovery, c.NATClassic = four, true, true })
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	// Its exit status is what it has found out, in bits.
	out, err := exec.CommandContext(ctx, "stun", four[0].String()).CombinedOutput()
	t.Logf("%s (%v)", out, err)
	if !strings.Contains(string(out), "Primary: Open") {
		t.Error("the way is open, and it has not found that")
	}
	if n := s.Stats().Bindings; n < 4 {
		t.Errorf("%d Binding requests answered", n)
	}
}
