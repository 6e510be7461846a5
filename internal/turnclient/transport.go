package turnclient

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pion/dtls/v3"

	"wicgate/internal/wire/stun"
)

// dialTimeout bounds connecting and the TLS handshake.
const dialTimeout = 10 * time.Second

// transport carries whole messages to and from the server.
type transport interface {
	write(b []byte) error
	read(b []byte) (int, error) // the next message, which b must have room for
	local() netip.AddrPort
	close() error
}

func connect(ctx context.Context, cfg Config) (transport, error) {
	switch {
	case cfg.Conn == nil:
	case cfg.Network == "udp", cfg.Network == "dtls":
		return &association{cfg.Conn}, nil
	default:
		return &connection{conn: cfg.Conn, r: bufio.NewReader(cfg.Conn)}, nil
	}
	switch cfg.Network {
	case "udp":
		c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(local(cfg)))
		if err != nil {
			return nil, fmt.Errorf("turn: open a socket towards %v: %w", cfg.Server, err)
		}
		d := &datagrams{conn: c}
		d.redirect(cfg.Server)
		return d, nil
	case "tcp", "tls":
		ctx, cancel := context.WithTimeout(ctx, dialTimeout)
		defer cancel()
		d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(local(cfg))}
		c, err := d.DialContext(ctx, "tcp", cfg.Server.String())
		if err != nil {
			return nil, fmt.Errorf("turn: connect: %w", err)
		}
		if cfg.Network == "tls" {
			t := tls.Client(c, cfg.TLS)
			if err := t.HandshakeContext(ctx); err != nil {
				_ = c.Close() // the handshake has said what is wrong
				return nil, fmt.Errorf("turn: TLS with %v: %w", cfg.Server, err)
			}
			c = t
		}
		return &connection{conn: c, r: bufio.NewReader(c)}, nil
	case "dtls":
		socket, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(local(cfg)))
		if err != nil {
			return nil, fmt.Errorf("turn: open a socket towards %v: %w", cfg.Server, err)
		}
		c, err := dtls.ClientWithOptions(socket, net.UDPAddrFromAddrPort(cfg.Server),
			dtls.WithRootCAs(cfg.TLS.RootCAs), dtls.WithServerName(cfg.TLS.ServerName), dtls.WithSupportedProtocols("stun.turn"))
		if err == nil {
			ctx, cancel := context.WithTimeout(context.Background(), dialTimeout)
			defer cancel()
			err = c.HandshakeContext(ctx)
		}
		if err != nil {
			_ = socket.Close() // the handshake has said what is wrong
			return nil, fmt.Errorf("turn: DTLS with %v: %w", cfg.Server, err)
		}
		return &association{c}, nil
	}
	return nil, fmt.Errorf("turn: network %q: want udp, dtls, tcp or tls", cfg.Network)
}

// datagrams is UDP.
type datagrams struct {
	conn   *net.UDPConn
	server atomic.Pointer[netip.AddrPort]
}

func (d *datagrams) redirect(server netip.AddrPort) { d.server.Store(&server) }

func (d *datagrams) write(b []byte) error {
	_, err := d.conn.WriteToUDPAddrPort(b, *d.server.Load())
	return err
}

func (d *datagrams) read(b []byte) (int, error) {
	for {
		n, from, err := d.conn.ReadFromUDPAddrPort(b)
		if err != nil || unmap(from) == *d.server.Load() {
			return n, err
		}
	}
}

func (d *datagrams) local() netip.AddrPort {
	return unmap(d.conn.LocalAddr().(*net.UDPAddr).AddrPort())
}

func (d *datagrams) close() error { return d.conn.Close() }

// association is a connection that keeps messages apart, as DTLS does.
type association struct{ net.Conn }

func (a *association) write(b []byte) error {
	_, err := a.Write(b)
	return err
}

func (a *association) read(b []byte) (int, error) { return a.Read(b) }

func (a *association) local() netip.AddrPort {
	return unmap(a.LocalAddr().(*net.UDPAddr).AddrPort())
}

func (a *association) close() error { return a.Close() }

// connection is TCP or TLS, where messages are framed (RFC 8656 §12.5).
type connection struct {
	conn net.Conn
	r    *bufio.Reader

	mu sync.Mutex // one writer at a time, so that messages stay whole
}

func (c *connection) write(b []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, err := c.conn.Write(stun.AppendStreamPadding(b[:len(b):len(b)]))
	return err
}

func (c *connection) read(b []byte) (int, error) {
	head, err := c.r.Peek(stun.StreamHeaderSize)
	if err != nil {
		return 0, err
	}
	size, err := stun.StreamSize(head, false)
	if err != nil {
		return 0, err
	}
	return io.ReadFull(c.r, b[:size])
}

func (c *connection) local() netip.AddrPort {
	return unmap(c.conn.LocalAddr().(*net.TCPAddr).AddrPort())
}

func (c *connection) close() error { return c.conn.Close() }

func unmap(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }
