package turn

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	pion "github.com/pion/turn/v5"
	"go.uber.org/goleak"

	"wicgate/internal/token"
	"wicgate/internal/wire/stun"
)

// tcpEcho is a peer that sends back what it gets, until its end.
func tcpEcho(t *testing.T) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = io.Copy(c, c)
			_ = c.Close()
		}
	}()
	t.Cleanup(func() { _ = ln.Close(); <-done })
	return ln
}

// TestTCPRelay: pion's client reaches a peer over TCP and is reached by one, a megabyte each way, with
// half-closing. test/interop does it over TLS.
func TestTCPRelay(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	listening, _ := streamed(t)
	b := start(t, listening, func(c *Config) { c.TCPRelay = true })
	server := b.s.TCPAddrs()[0].String()
	dial := func() net.Conn {
		t.Helper()
		c, err := net.Dial("tcp", server)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	kid, tok, mac := b.issue("p1", time.Hour)
	control := dial()
	defer closed(t, control)
	c, err := pion.NewClient(&pion.ClientConfig{
		STUNServerAddr: server, TURNServerAddr: server, Conn: pion.NewSTUNConn(control),
		Username: string(token.AppendUsername(nil, kid, tok)), Password: string(token.Credential(mac).Expose()),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Listen(); err != nil {
		t.Fatal(err)
	}
	a, err := c.AllocateTCP()
	if err != nil {
		t.Fatal(err)
	}

	defer func() { _ = a.Close() }() // ends its timers; the allocation is gone by then

	// To a peer.
	peer := tcpEcho(t)
	data := dial()
	out, err := a.DialWithConn(data, "tcp4", peer.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	want := make([]byte, 1<<20)
	rand.Read(want)
	go func() {
		_, _ = out.Write(want)
		if h, ok := data.(interface{ CloseWrite() error }); ok {
			_ = h.CloseWrite()
		}
	}()
	if got, err := io.ReadAll(data); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d of %d bytes came back, %v", len(got), len(want), err)
	}
	_ = data.Close()

	// From a peer: permitted first.
	if err := c.CreatePermission(&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 9}); err != nil {
		t.Fatal(err)
	}
	in, err := net.Dial("tcp4", a.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := in.Write([]byte("early")); err != nil { // before anybody has claimed it
		t.Fatal(err)
	}
	data = dial()
	if err := a.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	accepted, err := a.AcceptTCPWithConn(data)
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 5)
	if _, err := io.ReadFull(accepted, buf); err != nil || string(buf) != "early" {
		t.Errorf("read %q, %v", buf, err)
	}
	if _, err := accepted.Write([]byte("reply")); err != nil {
		t.Error(err)
	}
	if _, err := io.ReadFull(in, buf); err != nil || string(buf) != "reply" {
		t.Errorf("peer read %q, %v", buf, err)
	}
	// The end of the allocation ends its connections.
	if n := b.s.Revoke("p1"); n != 1 {
		t.Errorf("%d revoked", n)
	}
	for name, end := range map[string]net.Conn{"client": data, "peer": in} {
		_ = end.SetReadDeadline(time.Now().Add(3 * time.Second))
		if n, err := end.Read(buf); err == nil || isTimeout(err) {
			t.Errorf("%s after the end of the allocation: %d bytes, %v", name, n, err)
		}
		_ = end.Close()
	}
	if st := b.s.Stats(); st.ToPeerBytes < 1<<20+5 || st.ToClientBytes < 1<<20+5 {
		t.Errorf("stats %+v", st)
	}
}

func isTimeout(err error) bool {
	return errors.Is(err, os.ErrDeadlineExceeded)
}

// spliced returns a client's connection that is joined to a peer's, and the peer's end. network is that of
// the client's: tcp or tls.
func spliced(t *testing.T, network string) (b *bench, client, peer net.Conn) {
	t.Helper()
	listening, trust := streamed(t)
	b = start(t, listening, func(c *Config) { c.TCPRelay = true })
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	var trusted *tls.Config
	if network == "tls" {
		trusted = trust
	}
	c := dialBare(t, b, trusted)
	kid, tok, mac := b.issue("p1", time.Hour)
	user := token.AppendUsername(nil, kid, tok)
	c.key = stun.MD5.Key(user, []byte(name), token.Credential(mac).Expose())
	c.user = string(user)
	c.ask(stun.Allocate, func(m []byte) []byte { return m }) // the challenge
	c.ask(stun.Allocate, func(m []byte) []byte { return stun.AppendByte(m, stun.AttrRequestedTransport, stun.ProtocolTCP) })
	m := c.ask(stun.Connect, func(m []byte) []byte {
		return stun.AppendXORAddress(m, stun.AttrXORPeerAddress, ln.Addr().(*net.TCPAddr).AddrPort())
	})
	v, _ := m.Get(stun.AttrConnectionID)
	id, err := stun.ParseUint32(v)
	if err != nil {
		t.Fatalf("Connect: %v", m.Type())
	}
	if peer, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = peer.Close() })
	data := dialBare(t, b, trusted)
	data.key, data.user, data.nonce = c.key, c.user, c.nonce
	data.ask(stun.ConnectionBind, func(m []byte) []byte { return stun.AppendUint32(m, stun.AttrConnectionID, id) })
	return b, data.Conn, peer
}

// bare is a client by hand, on TCP or TLS.
type bare struct {
	net.Conn
	t     *testing.T
	user  string
	key   []byte
	nonce []byte
	seq   byte
}

func dialBare(t *testing.T, b *bench, trust *tls.Config) *bare {
	t.Helper()
	c, err := net.Dial("tcp", b.s.TCPAddrs()[0].String())
	if err != nil {
		t.Fatal(err)
	}
	if trust != nil {
		c = tls.Client(c, trust)
	}
	t.Cleanup(func() { _ = c.Close() })
	return &bare{Conn: c, t: t}
}

// ask sends a request, signed once there is a nonce, and returns the answer, which is a success or a challenge.
func (c *bare) ask(method stun.Method, body func(m []byte) []byte) stun.Message {
	c.t.Helper()
	c.seq++
	b := body(stun.AppendHeader(nil, stun.NewType(method, stun.Request), stun.TransactionID{c.seq}))
	if c.nonce != nil {
		b = stun.AppendText(b, stun.AttrUsername, c.user)
		b = stun.AppendText(b, stun.AttrRealm, name)
		b = stun.AppendAttr(b, stun.AttrNonce, c.nonce)
		b = stun.NewHasher().AppendIntegrity(b, c.key)
	}
	if _, err := c.Write(b); err != nil {
		c.t.Fatal(err)
	}
	head := make([]byte, stun.StreamHeaderSize)
	if _, err := io.ReadFull(c, head); err != nil {
		c.t.Fatal(err)
	}
	size, err := stun.StreamSize(head, false)
	if err != nil {
		c.t.Fatal(err)
	}
	all := append(head, make([]byte, size-len(head))...)
	if _, err := io.ReadFull(c, all[len(head):]); err != nil {
		c.t.Fatal(err)
	}
	m, err := stun.Parse(all)
	if err != nil {
		c.t.Fatal(err)
	}
	if n, ok := m.Get(stun.AttrNonce); ok {
		c.nonce = bytes.Clone(n)
	} else if m.Class() != stun.Success {
		v, _ := m.Get(stun.AttrErrorCode)
		c.t.Fatalf("%v: %x", method, v)
	}
	return m
}

// TestSpliceHalfClosed: a peer that has said all may still be told something, and the other way round.
func TestSpliceHalfClosed(t *testing.T) {
	for _, network := range []string{"tcp", "tls"} {
		t.Run(network, func(t *testing.T) {
			t.Cleanup(func() { goleak.VerifyNone(t) })
			_, client, peer := spliced(t, network)
			if err := peer.(*net.TCPConn).CloseWrite(); err != nil {
				t.Fatal(err)
			}
			_ = client.SetDeadline(time.Now().Add(5 * time.Second))
			if n, err := client.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
				t.Fatalf("the peer's end of sending: %d bytes, %v", n, err)
			}
			if _, err := client.Write([]byte("late")); err != nil {
				t.Fatal(err)
			}
			_ = peer.SetReadDeadline(time.Now().Add(5 * time.Second))
			got := make([]byte, 4)
			if _, err := io.ReadFull(peer, got); err != nil || string(got) != "late" {
				t.Errorf("after its end of sending the peer read %q, %v", got, err)
			}
			if err := client.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if n, err := peer.Read(got); n != 0 || !errors.Is(err, io.EOF) {
				t.Errorf("the client's end of sending: %d bytes, %v", n, err)
			}
		})
	}
}

// TestSpliceOutlivesWriteTimeout: the time that an answer may take to be written bounds no relayed byte.
func TestSpliceOutlivesWriteTimeout(t *testing.T) {
	was := writeTimeout
	writeTimeout = 200 * time.Millisecond
	t.Cleanup(func() { writeTimeout = was; goleak.VerifyNone(t) })
	_, client, peer := spliced(t, "tcp")
	time.Sleep(2 * writeTimeout) // of the kernel's sockets: no virtual time
	if _, err := peer.Write([]byte("late")); err != nil {
		t.Fatal(err)
	}
	_ = client.SetReadDeadline(time.Now().Add(5 * time.Second))
	got := make([]byte, 4)
	if _, err := io.ReadFull(client, got); err != nil || string(got) != "late" {
		t.Errorf("read %q, %v", got, err)
	}
}

// TestSpliceOfRevoked: the end of an allocation ends a connection to a client that reads nothing.
func TestSpliceOfRevoked(t *testing.T) {
	for _, network := range []string{"tcp", "tls"} {
		t.Run(network, func(t *testing.T) {
			t.Cleanup(func() { goleak.VerifyNone(t) })
			b, _, peer := spliced(t, network)
			_ = peer.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
			if _, err := peer.Write(make([]byte, 64<<20)); !isTimeout(err) {
				t.Fatalf("the way to a client that does not read never fills: %v", err)
			}
			if n := b.s.Revoke("p1"); n != 1 {
				t.Fatalf("%d revoked", n)
			}
			b.eventually("its connections end", func(st Stats) bool { return st.Connections == 1 }) // the control connection stays
		})
	}
}

// TestTCPRelayUnpermitted: a peer without a permission is closed, and our own listeners are no peers.
func TestTCPRelayUnpermitted(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	listening, _ := streamed(t)
	b := start(t, listening, func(c *Config) { c.TCPRelay = true })
	server := b.s.TCPAddrs()[0]
	kid, tok, mac := b.issue("p1", time.Hour)
	control, err := net.Dial("tcp", server.String())
	if err != nil {
		t.Fatal(err)
	}
	defer closed(t, control)
	c, err := pion.NewClient(&pion.ClientConfig{
		STUNServerAddr: server.String(), TURNServerAddr: server.String(), Conn: pion.NewSTUNConn(control),
		Username: string(token.AppendUsername(nil, kid, tok)), Password: string(token.Credential(mac).Expose()),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Listen(); err != nil {
		t.Fatal(err)
	}
	a, err := c.AllocateTCP()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = a.Close() }() // ends its timers
	in, err := net.Dial("tcp4", a.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = in.Close() }()
	_ = in.SetReadDeadline(time.Now().Add(3 * time.Second))
	if _, err := in.Read(make([]byte, 1)); err == nil || isTimeout(err) {
		t.Errorf("a peer without a permission: %v", err)
	}
	for _, own := range []netip.AddrPort{server, b.s.Addrs()[0]} {
		data, err := net.Dial("tcp", server.String())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := a.DialWithConn(data, "tcp4", own.String()); err == nil {
			t.Errorf("a client is connected to our own listener %v", own)
		}
		_ = data.Close()
	}
	if n := b.s.Stats().Refused["peer"]; n != 2 {
		t.Errorf("%d peers refused, want 2: %v", n, b.s.Stats().Refused)
	}
}
