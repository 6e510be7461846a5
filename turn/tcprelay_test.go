package turn

import (
	"bytes"
	"crypto/rand"
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
