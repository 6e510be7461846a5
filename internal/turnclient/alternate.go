package turnclient

import (
	"context"
	"fmt"
	"net/netip"
	"time"
)

const (
	// alternateLife is how long a server that has sent us away is not gone back to (RFC 8489 §10).
	alternateLife = 5 * time.Minute
	// maxAlternates bounds the servers that are remembered, and so a chain of them.
	maxAlternates = 8
)

// follow makes the server that e names the one in use (RFC 8489 §10). A UDP socket stays, so that a
// nonce which the servers share stays good; a connection is made anew.
func (c *Client) follow(ctx context.Context, e *Error) error {
	to := netip.AddrPortFrom(e.Alternate.Addr().Unmap(), e.Alternate.Port())
	cfg := c.cfg
	cfg.Server, cfg.Local = to, netip.AddrPort{}
	if cfg.TLS != nil && e.Domain != "" {
		cfg.TLS = cfg.TLS.Clone()
		cfg.TLS.ServerName = e.Domain
	}
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sent[c.server] = now
	for a, at := range c.sent {
		if now.Sub(at) >= alternateLife {
			delete(c.sent, a)
		}
	}
	_, again := c.sent[to]
	switch {
	case !to.IsValid() || to.Addr().Is4() != c.server.Addr().Is4():
		return fmt.Errorf("%w: %v names none of its own address family in ALTERNATE-SERVER", ErrAlternate, c.server)
	case again:
		return fmt.Errorf("%w: %v names %v, which has sent us away within %v", ErrAlternate, c.server, to, alternateLife)
	case len(c.sent) > maxAlternates:
		return fmt.Errorf("%w: %d servers one after the other", ErrAlternate, len(c.sent))
	case c.cfg.Conn != nil:
		return fmt.Errorf("%w: the connection to %v is not ours to leave", ErrAlternate, c.server)
	case c.closed:
		return ErrClosed
	}
	if d, ok := c.conn.(*datagrams); ok {
		d.redirect(to)
		c.server = to
		return nil
	}
	old := c.conn
	c.mu.Unlock()
	conn, err := connect(ctx, cfg)
	c.mu.Lock()
	if err != nil {
		return fmt.Errorf("%w: %v names %v: %w", ErrAlternate, c.server, to, err)
	}
	if c.closed {
		_ = conn.close() // it has carried nothing
		return ErrClosed
	}
	c.conn, c.server = conn, to
	_ = old.close() // the server has nothing of ours any more; the reader goes on with the new one
	return nil
}
