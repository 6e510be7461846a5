package turn

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"wicgate/internal/keyring"
	"wicgate/internal/listen"
	"wicgate/internal/secret"
	"wicgate/internal/turnclient"
	"wicgate/internal/wire/stun"
	"wicgate/turn/internal/core"
)

// streamed lets a server listen on TCP and TLS, and returns how to dial it with TLS.
func streamed(t testing.TB) (func(*Config), *tls.Config) {
	t.Helper()
	ca, err := listen.DevelopmentCA(filepath.Join(t.TempDir(), "ca"), []string{"localhost"})
	if err != nil {
		t.Fatal(err)
	}
	return func(c *Config) {
		c.TCP, c.Certificate = []netip.AddrPort{netip.AddrPortFrom(loopback, 0)}, ca.GetCertificate
	}, &tls.Config{RootCAs: ca.Pool(), ServerName: "localhost", MinVersion: tls.VersionTLS12}
}

func (b *bench) stream(network string, trust *tls.Config, cr turnclient.Credential) *turnclient.Client {
	b.t.Helper()
	c, err := turnclient.Dial(turnclient.Config{Server: b.s.TCPAddrs()[0], Network: network, TLS: trust, Credential: cr, RTO: 300 * time.Millisecond, Tries: 4})
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = c.Close() }) // the server may have reset it
	return c
}

func (b *bench) eventually(what string, ok func(Stats) bool) {
	b.t.Helper()
	for end := time.Now().Add(5 * time.Second); !ok(b.s.Stats()); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			b.t.Fatalf("%s: not after 5 s: %+v\n%s", what, b.s.Stats(), b.log)
		}
	}
}

func TestStreamEcho(t *testing.T) {
	for network, credential := range map[string]func(string, []byte, secret.Bytes) turnclient.Credential{
		"tcp": turnclient.AccessToken, "tls": turnclient.TokenUsername,
	} {
		t.Run(network, func(t *testing.T) {
			t.Cleanup(func() { goleak.VerifyNone(t) })
			listening, trust := streamed(t)
			b := start(t, listening)
			peer := echo(t)
			ctx := timeout(t)
			c := b.stream(network, trust, credential(b.issue("p1", time.Hour)))
			a, err := c.Allocate(ctx, 0)
			if err != nil {
				t.Fatal(err)
			}
			if a.Mapped != c.LocalAddr() || a.Relayed.Addr() != loopback {
				t.Errorf("%+v, local %v", a, c.LocalAddr())
			}
			if got, err := c.Binding(ctx); err != nil || got != c.LocalAddr() {
				t.Errorf("Binding: %v, %v", got, err)
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
				for _, n := range []int{0, 1, 2, 3, 4, 5, 1200, 4096} { // padding of each size
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
			st := b.s.Stats()
			if st.Ended["deleted"] != 1 || st.Allocations != 0 || st.Connections != 1 || st.TCP+st.TLS != 1 || (st.TLS == 1) != (network == "tls") {
				t.Errorf("%+v", st)
			}
			b.stop()
			if st := b.s.Stats(); st.ConnectionsEnded["shutdown"] != 1 || st.Connections != 0 {
				t.Errorf("%+v", st)
			}
			if strings.Contains(b.log.String(), "WARN") {
				t.Error(b.log)
			}
		})
	}
}

// TestConnectionEndsItsAllocation: and neither another's nor its pseudonym's others.
// TestTenantOfAClient: whose client one is says the listener, then the name that it asks for in TLS, and who
// challenges it, then who takes its token, is that tenant.
func TestTenantOfAClient(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	listening, trust := streamed(t)
	at := func(last byte) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, last}), 0)
	}
	b := start(t, listening, func(c *Config) {
		c.Listen, c.TCP = []netip.AddrPort{at(1), at(2)}, []netip.AddrPort{at(1), at(2)}
		of := func(name string) Tenant { return Tenant{Name: name, Keys: keyring.New(name), Peers: c.Peers} }
		c.Tenants = []Other{{Tenant: of("listener.test"), Listen: []netip.AddrPort{at(2)}}, {Tenant: of("sni.test"), ServerNames: []string{"LocalHost"}}}
	})
	unknown := trust.Clone()
	unknown.ServerName, unknown.InsecureSkipVerify = "unknown.test", true
	for _, c := range []struct {
		network  string
		listener int
		tls      *tls.Config
		want     string
	}{
		{"udp", 0, nil, name}, {"udp", 1, nil, "listener.test"},
		{"tcp", 0, nil, name}, {"tcp", 1, nil, "listener.test"},
		{"tls", 0, trust, "sni.test"}, {"tls", 1, trust, "listener.test"}, {"tls", 0, unknown, name},
	} {
		servers := b.s.TCPAddrs()
		if c.network == "udp" {
			servers = b.s.Addrs()
		}
		client, err := turnclient.Dial(turnclient.Config{Server: servers[c.listener], Network: c.network, TLS: c.tls, Credential: turnclient.AccessToken(b.issue("p1", time.Hour))})
		if err != nil {
			t.Fatal(err)
		}
		_, err = client.Allocate(timeout(t), 0)
		if got := client.ThirdPartyAuthorization(); got != c.want || (err == nil) != (c.want == name) {
			t.Errorf("%s, listener %d, %+v: challenged by %q, %v, want %s", c.network, c.listener, c.tls, got, err, c.want)
		}
		closed(t, client)
	}
}

func TestConnectionEndsItsAllocation(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	listening, trust := streamed(t)
	b := start(t, listening)
	ctx := timeout(t)
	for _, network := range []string{"tcp", "tls"} {
		cr := turnclient.TokenUsername(b.issue("p1", time.Hour))
		gone, stays := b.stream(network, trust, cr), b.stream(network, trust, cr)
		for _, c := range []*turnclient.Client{gone, stays} {
			if _, err := c.Allocate(ctx, 0); err != nil {
				t.Fatal(err)
			}
		}
		before := b.s.Stats()
		if err := gone.Close(); err != nil {
			t.Fatal(err)
		}
		b.eventually("end of the allocation", func(st Stats) bool {
			return st.Ended["disconnected"] == before.Ended["disconnected"]+1 && st.Allocations == before.Allocations-1 &&
				st.ConnectionsEnded["client"] == before.ConnectionsEnded["client"]+1
		})
		if _, err := stays.Refresh(ctx, time.Hour); err != nil {
			t.Errorf("the other: %v", err)
		}
	}
	if !strings.Contains(b.log.String(), "cause=disconnected pseudonym=p1") {
		t.Error(b.log)
	}
	b.stop()
	if st := b.s.Stats(); st.Ended["shutdown"] != 2 {
		t.Errorf("%+v", st)
	}
}

// TestClientBehindProxy: what is told to the client, logged and counted is the address in the header.
func TestClientBehindProxy(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	listening, trust := streamed(t)
	b := start(t, listening, func(c *Config) { c.Proxies = []netip.Prefix{netip.PrefixFrom(loopback, 32)} })
	ctx := timeout(t)
	for network, client := range map[string]string{"tcp": "192.0.2.7:4711", "tls": "192.0.2.8:4711"} {
		conn, err := net.Dial("tcp", b.s.TCPAddrs()[0].String())
		if err != nil {
			t.Fatal(err)
		}
		at := netip.MustParseAddrPort(client)
		if _, err := fmt.Fprintf(conn, "PROXY TCP4 %v 198.51.100.1 %d 443\r\n", at.Addr(), at.Port()); err != nil {
			t.Fatal(err)
		}
		if network == "tls" {
			conn = tls.Client(conn, trust)
		}
		c, err := turnclient.Dial(turnclient.Config{Server: b.s.TCPAddrs()[0], Network: network, Conn: conn, Credential: turnclient.TokenUsername(b.issue("p1", time.Hour))})
		if err != nil {
			t.Fatal(err)
		}
		a, err := c.Allocate(ctx, 0)
		if err != nil || a.Mapped != at {
			t.Errorf("%s: %+v, %v", network, a, err)
		}
		closed(t, c)
		b.eventually("end of the allocation", func(st Stats) bool { return st.Allocations == 0 })
		if want := "client=" + client; !strings.Contains(b.log.String(), want) {
			t.Errorf("no %s in %s", want, b.log)
		}
	}
}

// TestIdleConnections: without an allocation a connection ends, whatever it says; with one it stays.
func TestIdleConnections(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	listening, trust := streamed(t)
	b := start(t, listening, func(c *Config) { c.Idle = 100 * time.Millisecond })
	ctx := timeout(t)
	busy := b.stream("tls", trust, turnclient.TokenUsername(b.issue("p1", time.Hour)))
	if _, err := busy.Allocate(ctx, 0); err != nil {
		t.Fatal(err)
	}
	silent, err := net.Dial("tcp", b.s.TCPAddrs()[0].String())
	if err != nil {
		t.Fatal(err)
	}
	defer closed(t, silent)
	if _, err := silent.Write([]byte{0}); err != nil { // through the handshake
		t.Fatal(err)
	}
	chatty := b.stream("tcp", nil, turnclient.Credential{})
	for {
		if _, err := chatty.Binding(ctx); err != nil {
			if !errors.Is(err, turnclient.ErrClosed) && !strings.Contains(err.Error(), "connection reset") && !strings.Contains(err.Error(), "broken pipe") {
				t.Error(err)
			}
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	b.eventually("two idle connections ended", func(st Stats) bool { return st.ConnectionsEnded["idle"] == 2 })
	time.Sleep(150 * time.Millisecond) // more than Idle, in which the deadline of its reads has passed
	if _, err := busy.Refresh(ctx, time.Hour); err != nil {
		t.Errorf("with an allocation: %v", err)
	}
	if _, err := busy.Refresh(ctx, 0); err != nil {
		t.Error(err)
	}
	b.eventually("the third, after its allocation", func(st Stats) bool { return st.ConnectionsEnded["idle"] == 3 })
}

// slowly writes in pieces with a pause before each.
type slowly struct {
	net.Conn
	size  int
	pause time.Duration
}

func (s slowly) Write(b []byte) (int, error) {
	for at := 0; at < len(b); at += s.size {
		time.Sleep(s.pause)
		if _, err := s.Conn.Write(b[at:min(at+s.size, len(b))]); err != nil {
			return at, err
		}
	}
	return len(b), nil
}

// TestDeadlineWithinMessage: the deadline by which an idle connection is found may pass in the
// middle of a message, and of a TLS record; nothing of it is lost.
func TestDeadlineWithinMessage(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	listening, trust := streamed(t)
	b := start(t, listening, func(c *Config) { c.Idle = 60 * time.Millisecond })
	for _, network := range []string{"tcp", "tls"} {
		ctx := timeout(t)
		var slow *slowly
		proxy := relayTo(t, b.s.TCPAddrs()[0], func(c net.Conn) net.Conn { slow = &slowly{c, 1 << 20, 0}; return slow })
		c, err := turnclient.Dial(turnclient.Config{Server: proxy, Network: network, TLS: trust, Credential: turnclient.TokenUsername(b.issue("p1", time.Hour))})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Allocate(ctx, 0); err != nil {
			t.Fatal(err)
		}
		slow.size, slow.pause = 40, 25*time.Millisecond
		if _, err := c.Refresh(ctx, time.Hour); err != nil {
			t.Errorf("%s: %v", network, err)
		}
		closed(t, c)
	}
}

// relayTo is a TCP proxy for one connection; wrap changes the side towards the server.
func relayTo(t *testing.T, server netip.AddrPort, wrap func(net.Conn) net.Conn) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	out, err := net.Dial("tcp", server.String())
	if err != nil {
		t.Fatal(err)
	}
	to := wrap(out)
	done := make(chan struct{}, 2)
	go func() {
		defer func() { done <- struct{}{}; done <- struct{}{} }()
		in, err := l.Accept()
		if err != nil {
			return
		}
		back := make(chan struct{})
		go func() {
			defer close(back)
			_, _ = io.Copy(in, out) // ends with the server's side
		}()
		_, _ = io.Copy(struct{ io.Writer }{to}, in) // ends with the client's side
		_ = out.Close()
		<-back
		_ = in.Close()
	}()
	t.Cleanup(func() {
		_ = l.Close()
		_ = out.Close()
		<-done
	})
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// TestStreamRefusals: what ends a connection, by cause.
func TestStreamRefusals(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	listening, _ := streamed(t)
	b := start(t, listening)
	binding := stun.AppendHeader(nil, stun.NewType(stun.Binding, stun.Request), stun.TransactionID{1})
	broken := bytes.Clone(binding)
	broken[4]++ // no magic cookie
	for _, c := range []struct {
		name, cause string
		send        []byte
	}{
		{"garbage behind a message", "framing", append(bytes.Clone(binding), 0x99)},
		{"HTTP", "too_long", []byte("GET / HTTP/1.1\r\n\r\n")},
		{"unaligned length", "framing", []byte{0, 1, 0, 3}},
		{"malformed in a row", "framing", bytes.Repeat(broken, malformedMax)},
		{"long message of a stranger", "too_long", []byte{0, 1, 0xf0, 0}},
		{"long ChannelData of a stranger", "too_long", []byte{0x40, 0, 0xf0, 0}},
	} {
		before := b.s.Stats().ConnectionsEnded[c.cause]
		conn, err := net.Dial("tcp", b.s.TCPAddrs()[0].String())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write(c.send); err != nil {
			t.Fatal(err)
		}
		b.eventually(c.name, func(st Stats) bool { return st.ConnectionsEnded[c.cause] == before+1 })
		closed(t, conn)
	}
	// Malformed messages with good ones between them are counted, and no more.
	conn, err := net.Dial("tcp", b.s.TCPAddrs()[0].String())
	if err != nil {
		t.Fatal(err)
	}
	defer closed(t, conn)
	mixed := append(bytes.Repeat(broken, malformedMax-1), binding...)
	if _, err := conn.Write(append(mixed, mixed...)); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, make([]byte, 2*32)); err != nil {
		t.Errorf("two Binding answers: %v", err)
	}
}

// TestNoBudgetOnStreams: who has connected is no victim of a spoofed source.
func TestNoBudgetOnStreams(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	listening, _ := streamed(t)
	b := start(t, listening, func(c *Config) { c.ReplyBurst, c.ReplyRate = 1, 0.001 })
	c := b.stream("tcp", nil, turnclient.TokenUsername(b.issue("p1", time.Hour)))
	for range 3 {
		if _, err := c.Binding(timeout(t)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.Allocate(timeout(t), 0); err != nil {
		t.Error(err)
	}
}

// TestNonceOfAnotherTransport: the nonce of a UDP client is stale on a connection from its address
// and port.
func TestNonceOfAnotherTransport(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	listening, _ := streamed(t)
	b := start(t, listening)
	var tcp net.Conn
	var udp *net.UDPConn
	for try := 0; udp == nil; try++ { // the port of one may be taken for the other
		var err error
		if tcp, err = net.Dial("tcp4", b.s.TCPAddrs()[0].String()); err != nil {
			t.Fatal(err)
		}
		defer closed(t, tcp)
		if udp, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(tcp.LocalAddr().(*net.TCPAddr).AddrPort())); err != nil && try == 10 {
			t.Fatal(err)
		}
	}
	defer closed(t, udp)
	ask := func(conn net.Conn, nonce []byte) (code int, fresh []byte) {
		t.Helper()
		m := stun.AppendHeader(nil, stun.NewType(stun.Allocate, stun.Request), stun.TransactionID{7})
		if nonce != nil {
			m = stun.AppendText(m, stun.AttrUsername, "o1.x.y")
			m = stun.AppendText(m, stun.AttrRealm, name)
			m = stun.AppendAttr(m, stun.AttrNonce, nonce)
			m = stun.NewHasher().AppendIntegrity(m, []byte("key"))
		}
		var err error
		if u, ok := conn.(*net.UDPConn); ok {
			_, err = u.WriteToUDPAddrPort(m, b.s.Addrs()[0])
		} else {
			_, err = conn.Write(m)
		}
		if err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 1500)
		if err := conn.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		a, err := stun.Parse(buf[:n])
		if err != nil {
			t.Fatal(err)
		}
		v, _ := a.Get(stun.AttrErrorCode)
		code, _, _ = stun.ParseErrorCode(v)
		fresh, _ = a.Get(stun.AttrNonce)
		return code, bytes.Clone(fresh)
	}
	_, nonce := ask(udp, nil)
	if code, _ := ask(udp, nonce); code != 401 {
		t.Errorf("on UDP: %d, want 401: the nonce is good, the user name is not", code)
	}
	code, nonce := ask(tcp, nonce)
	if code != 438 {
		t.Errorf("the same nonce on TCP: %d, want 438", code)
	}
	if code, _ := ask(tcp, nonce); code != 401 {
		t.Errorf("TCP's own: %d, want 401", code)
	}
}

// TestSlowReader: a client that takes nothing costs packets of its peers, then its connection, and
// never the relay's time.
func TestSlowReader(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	listening, _ := streamed(t)
	b := start(t, listening)
	conn, err := net.Dial("tcp", b.s.TCPAddrs()[0].String())
	if err != nil {
		t.Fatal(err)
	}
	defer closed(t, conn)
	// Requests without end, answers unread: nobody would ask again for an answer that is dropped,
	// so the connection goes.
	challenge := stun.AppendHeader(nil, stun.NewType(stun.Allocate, stun.Request), stun.TransactionID{1})
	batch := bytes.Repeat(challenge, 500)
	if err := conn.SetWriteDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = conn.Write(batch)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal("the server has stopped reading, and holds the connection")
	}
	b.eventually("the connection ends", func(st Stats) bool { return st.ConnectionsEnded["queue"] == 1 && st.Connections == 0 })
}

func TestQueue(t *testing.T) {
	c := &stream{wake: make(chan struct{}, 1)}
	packet, answer := make([]byte, 1021), make([]byte, 1024)
	n := 0
	for c.send(packet, true) {
		n++
	}
	if n != queuePackets/1024 {
		t.Errorf("%d packets of 1024 with padding", n)
	}
	k := 0
	for c.send(answer, false) {
		k++
	}
	if want := (queueAll - queuePackets) / 1024; k < want-1 || k > want {
		t.Errorf("%d answers behind them, want %d", k, want)
	}
	if got := len(c.take(nil)); got != 1024*(n+k) {
		t.Errorf("%d bytes", got)
	}
	if !c.send(packet, true) {
		t.Error("no room after it was taken")
	}
	c.because(endSlow)
	c.because(endClient)
	if c.end != endSlow {
		t.Error("the first reason must count")
	}
	c.finish()
	if c.send(answer, false) {
		t.Error("queued after the end")
	}
}

// TestWriteTimeout: a client whose window stays shut loses its connection.
func TestWriteTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		defer closed(t, far)
		c := &stream{conn: &listen.Conn{Conn: near}, wake: make(chan struct{}, 1)}
		done := make(chan struct{})
		go func() { defer close(done); c.write() }()
		c.send([]byte("taken"), false)
		if _, err := io.ReadFull(far, make([]byte, 8)); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		c.send([]byte("left"), false)
		if _, err := near.Read(make([]byte, 1)); err == nil {
			t.Error("the reader is not woken")
		}
		if d := time.Since(begin); d != writeTimeout || c.end != endSlow || !c.ended {
			t.Errorf("ended after %v as %q", d, streamEnds[c.end])
		}
		c.finish()
		<-done
	})
}

// messages is a stream of each kind and padding.
func messages() (whole []byte, each [][]byte) {
	for n := range 6 {
		m := stun.AppendHeader(nil, stun.NewType(stun.Send, stun.Indication), stun.TransactionID{byte(n)})
		m = stun.AppendAttr(m, stun.AttrData, bytes.Repeat([]byte{byte(n)}, n))
		ch := stun.AppendStreamPadding(stun.AppendChannelData(nil, stun.MinChannel, bytes.Repeat([]byte{0xff}, n)))
		each = append(each, m, ch)
		whole = append(append(whole, m...), ch...)
	}
	return whole, each
}

// readAll takes a stream apart, to its end.
func readAll(t *testing.T, r io.Reader) (out [][]byte, err error) {
	t.Helper()
	f := framer{r: r, longest: strangerFrame}
	for {
		m, err := f.next()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			continue
		}
		if err != nil {
			return out, err
		}
		out = append(out, bytes.Clone(m))
	}
}

// deadline is a reader that always times out once.
type deadline struct{ passed bool }

func (d *deadline) Read([]byte) (int, error) {
	if d.passed {
		return 0, io.EOF
	}
	d.passed = true
	return 0, os.ErrDeadlineExceeded
}

func TestFramerSplitAtEveryByte(t *testing.T) {
	whole, want := messages()
	check := func(what string, r io.Reader) {
		t.Helper()
		got, err := readAll(t, r)
		if !errors.Is(err, io.EOF) || len(got) != len(want) {
			t.Fatalf("%s: %d messages, %v, want %d", what, len(got), err, len(want))
		}
		for i := range want {
			if !bytes.Equal(got[i], want[i]) {
				t.Errorf("%s: message %d is %x, want %x", what, i, got[i], want[i])
			}
		}
	}
	check("at once", bytes.NewReader(whole))
	check("by bytes", iotest.OneByteReader(bytes.NewReader(whole)))
	check("data with its error", iotest.DataErrReader(bytes.NewReader(whole)))
	for at := range len(whole) + 1 {
		check("split", &chain{bytes.NewReader(whole[:at]), &deadline{}, bytes.NewReader(whole[at:])})
	}
	for at := range len(want[0]) {
		if got, err := readAll(t, bytes.NewReader(whole[:at])); len(got) != 0 || !errors.Is(err, io.EOF) {
			t.Errorf("cut at %d: %d messages, %v", at, len(got), err)
		}
	}
}

// chain reads one after another, an error of a deadline in between too.
type chain []io.Reader

func (c *chain) Read(b []byte) (int, error) {
	for len(*c) > 0 {
		n, err := (*c)[0].Read(b)
		if n > 0 || err != nil && !errors.Is(err, io.EOF) {
			return n, err
		}
		*c = (*c)[1:]
	}
	return 0, io.EOF
}

func TestFramerBuffer(t *testing.T) {
	big := stun.AppendChannelData(nil, stun.MinChannel, make([]byte, 65532))
	small := stun.AppendChannelData(nil, stun.MinChannel, make([]byte, 100))
	f := framer{r: bytes.NewReader(bytes.Join([][]byte{small, big, small, small}, nil)), longest: stun.MaxStreamSize}
	for i, want := range []int{104, 65536, 104, 104} {
		m, err := f.next()
		if err != nil || len(m) != want {
			t.Fatalf("message %d: %d bytes, %v", i, len(m), err)
		}
		if i == 0 && len(f.buf) != bufferFirst {
			t.Errorf("begins with %d bytes", len(f.buf))
		}
	}
	if _, err := f.next(); !errors.Is(err, io.EOF) || len(f.buf) != bufferFirst {
		t.Errorf("%v; the buffer stays at %d bytes", err, len(f.buf))
	}
	f = framer{r: bytes.NewReader(big), longest: strangerFrame}
	if _, err := f.next(); !errors.Is(err, errTooLong) || len(f.buf) != bufferFirst {
		t.Errorf("%v, buffer of %d", err, len(f.buf))
	}
}

// FuzzFramer: however a stream is cut, the same messages come out, none longer than allowed, and
// together they are the stream.
func FuzzFramer(f *testing.F) {
	whole, _ := messages()
	f.Add(whole, uint8(1))
	f.Add(whole, uint8(7))
	f.Add([]byte{0x40, 0, 0xff, 0xff, 1}, uint8(3))
	f.Add([]byte{0, 1, 0, 3}, uint8(1))
	f.Fuzz(func(t *testing.T, b []byte, size uint8) {
		want, wantErr := readAll(t, bytes.NewReader(b))
		got, gotErr := readAll(t, &chunks{b, int(size)%16 + 1})
		if !errors.Is(gotErr, wantErr) || len(got) != len(want) {
			t.Fatalf("%d messages, %v; in pieces %d, %v", len(want), wantErr, len(got), gotErr)
		}
		if joined := bytes.Join(want, nil); !bytes.HasPrefix(b, joined) || !bytes.Equal(joined, bytes.Join(got, nil)) {
			t.Error("the messages are not the stream")
		}
		for _, m := range got {
			if n, err := stun.StreamSize(m, false); err != nil || n != len(m) || n > strangerFrame {
				t.Errorf("message of %d bytes says %d, %v", len(m), n, err)
			}
		}
	})
}

// chunks gives b in pieces of size bytes.
type chunks struct {
	b    []byte
	size int
}

func (c *chunks) Read(b []byte) (int, error) {
	if len(c.b) == 0 {
		return 0, io.EOF
	}
	n := copy(b, c.b[:min(c.size, len(c.b))])
	c.b = c.b[n:]
	return n, nil
}

// TestConnectionLimits: of one source, through the server's own configuration.
func TestConnectionLimits(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	listening, trust := streamed(t)
	b := start(t, listening, func(c *Config) { c.MaxConnectionsSource = 1 })
	c := b.stream("tls", trust, turnclient.TokenUsername(b.issue("p1", time.Hour)))
	if _, err := c.Allocate(timeout(t), 0); err != nil {
		t.Fatal(err)
	}
	if c, err := turnclient.Dial(turnclient.Config{Server: b.s.TCPAddrs()[0], Network: "tls", TLS: trust}); err == nil {
		t.Error("a second connection from one source")
		closed(t, c)
	}
	b.eventually("counted", func(st Stats) bool { return st.ConnectionsRefused["connections_source"] == 1 })
}

// TestPacketsOfPeersGiveWay: a flood from a peer to a client that reads nothing.
func TestPacketsOfPeersGiveWay(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	listening, _ := streamed(t)
	b := start(t, listening)
	conn, err := net.Dial("tcp", b.s.TCPAddrs()[0].String())
	if err != nil {
		t.Fatal(err)
	}
	defer closed(t, conn)
	if _, err := conn.Write([]byte{0}); err != nil {
		t.Fatal(err)
	}
	local := netip.MustParseAddrPort(conn.LocalAddr().String())
	b.eventually("the connection is there", func(st Stats) bool { return st.TCP == 1 })
	tuple := core.Tuple{Client: local, Listener: 1, Transport: stun.ProtocolTCP}
	for end := time.Now().Add(5 * time.Second); b.s.streams.get(tuple) == nil && time.Now().Before(end); time.Sleep(time.Millisecond) {
	}
	m := make([]byte, 1204)
	binary.BigEndian.PutUint16(m, stun.MinChannel)
	binary.BigEndian.PutUint16(m[2:], 1200)
	for range 20000 { // 24 MB: more than the kernel takes
		b.s.toStream(&core.Action{Kind: core.ToClient, ID: 1, Tuple: tuple, Data: m})
	}
	st := b.s.Stats()
	if st.QueueDropped == 0 || st.Connections != 1 {
		t.Errorf("%+v", st)
	}
	begin := time.Now()
	b.stop() // with a writer that is stuck
	if d := time.Since(begin); d > 3*time.Second {
		t.Errorf("took %v to end", d)
	}
}
