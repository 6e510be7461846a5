package siptx

import (
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// TestTCP has two transports talk, loses the connection, and finds the next one opened by itself.
func TestTCP(t *testing.T) {
	defer goleak.VerifyNone(t)
	got := make(chan *Message, 10)
	lost := make(chan *TCPConn, 10)
	lo := netip.MustParseAddr("127.0.0.1")
	server := &TCP{Log: slog.New(slog.DiscardHandler), SentBy: "b", Allow: func(a netip.Addr) bool { return a == lo },
		Receive: func(c *TCPConn, m *Message) { got <- m; c.Send(m.Response(200, "OK").Append(nil)) }, Lost: func(*TCPConn) {}}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() { server.Serve(l); close(served) }()
	client := &TCP{Log: slog.New(slog.DiscardHandler), SentBy: "a", Allow: func(netip.Addr) bool { return false },
		Receive: func(_ *TCPConn, m *Message) { got <- m }, Lost: func(c *TCPConn) { lost <- c }}
	addr := l.Addr().(*net.TCPAddr).AddrPort()
	next := func() *Message {
		t.Helper()
		select {
		case m := <-got:
			return m
		case <-time.After(5 * time.Second):
			t.Fatal("nothing came")
			return nil
		}
	}
	var first *TCPConn
	for i := range 2 {
		c, ok := client.To(addr)
		if !ok || c == first {
			t.Fatal("no connection")
		}
		first = c
		c.Send([]byte(invite))
		c.Send([]byte("\r\n\r\n")) // answered by CRLF, which is passed over
		if m := next(); m.Method != "INVITE" {
			t.Errorf("got %+v", m)
		}
		if m := next(); m.Status != 200 {
			t.Errorf("got %+v", m)
		}
		if i == 0 {
			c.Close(net.ErrClosed)
			<-lost
		}
	}
	// what cannot be answered ends the connection; what can be is answered
	raw, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := raw.Write([]byte(with("CSeq: 1 → CSeq: x") + "garbage\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	_ = raw.SetReadDeadline(time.Now().Add(5 * time.Second))
	buf := make([]byte, 4096)
	for {
		n, err := raw.Read(buf)
		b.Write(buf[:n])
		if err != nil {
			break
		}
	}
	if !strings.HasPrefix(b.String(), "SIP/2.0 400 Bad Request\r\n") {
		t.Errorf("got %q", b.String())
	}
	_ = raw.Close()
	// nobody listens: the connection is lost, and the next is not tried at once
	dead, _ := net.Listen("tcp", "127.0.0.1:0")
	nobody := dead.Addr().(*net.TCPAddr).AddrPort()
	_ = dead.Close()
	if c, ok := client.To(nobody); !ok {
		t.Error("refused before it was tried")
	} else {
		c.Send([]byte(invite))
		if <-lost != c {
			t.Error("another is lost")
		}
		if _, ok := client.To(nobody); ok {
			t.Error("tried again at once")
		}
	}
	client.Close()
	_ = l.Close()
	<-served
	server.Close()
	if _, ok := client.To(addr); ok {
		t.Error("opened after Close")
	}
}

// TestTCPPeers refuses whom Allow does not name.
func TestTCPPeers(t *testing.T) {
	defer goleak.VerifyNone(t)
	s := &TCP{Log: slog.New(slog.DiscardHandler), Allow: func(netip.Addr) bool { return false }, Receive: func(*TCPConn, *Message) { t.Error("received") }, Lost: func(*TCPConn) {}}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() { s.Serve(l); close(served) }()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("a stranger is heard")
	}
	_ = c.Close()
	_ = l.Close()
	<-served
	s.Close()
	if _, refused := s.Connections(); refused != 1 {
		t.Errorf("%d refused", refused)
	}
}

// TestTCPBadMessages: on a connection that many share, what is framed and cannot be read is passed
// over, and what a peer could not read is not sent.
func TestTCPBadMessages(t *testing.T) {
	defer goleak.VerifyNone(t)
	got := make(chan *Message, 10)
	s := &TCP{Log: slog.New(slog.DiscardHandler), SentBy: "b", Allow: func(netip.Addr) bool { return true },
		Receive: func(c *TCPConn, m *Message) {
			got <- m // before the answer, which ends the wait
			c.Send([]byte("INVITE sip:x@y SIP/2.0\r\nX: " + strings.Repeat("x", maxLine) + "\r\n\r\n"))
			c.Send(m.Response(200, "OK").Append(nil))
		}, Lost: func(*TCPConn) {}}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() { s.Serve(l); close(served) }()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_, _ = c.Write([]byte("SIP/2.0 400 Bad Request\r\nCSeq: 2147483648 BYE\r\nContent-Length: 0\r\n\r\n" + invite))
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	b := make([]byte, 64)
	if n, err := c.Read(b); err != nil || !strings.HasPrefix(string(b[:n]), "SIP/2.0 200 OK") {
		t.Errorf("read %q, %v", b[:n], err)
	}
	if len(got) != 1 {
		t.Errorf("%d messages", len(got))
	}
	_ = c.Close()
	_ = l.Close()
	<-served
	s.Close()
}
