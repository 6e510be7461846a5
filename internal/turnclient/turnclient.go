// Package turnclient is a TURN client over UDP, TCP and TLS (RFC 8656) for the probe and for tests. It
// authenticates in each way that our server knows: RFC 7635's ACCESS-TOKEN, the same token in
// USERNAME as browsers send it, and any plain long-term credential.
//
// It checks what a client must: that answers come from the server and, once it has authenticated,
// carry the integrity of its key. An Allocate follows a 300 to another server (RFC 8489 §10). It renews nothing by itself: a test wants to see things expire.
package turnclient

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"wicgate/internal/secret"
	"wicgate/internal/token"
	"wicgate/internal/wire/stun"
)

// Credential is what the client authenticates with. Make it with [AccessToken], [TokenUsername] or
// [LongTerm].
type Credential struct {
	username string
	password secret.Bytes // of the long-term mechanism
	mac      secret.Bytes // RFC 7635: the key itself
	token    []byte
	sha256   bool
}

// AccessToken is RFC 7635's own shape: ACCESS-TOKEN in Allocate and Refresh, USERNAME = kid, and the
// integrity under the mac_key. A mac_key of 32 bytes means MESSAGE-INTEGRITY-SHA256.
func AccessToken(kid string, tok []byte, mac secret.Bytes) Credential {
	return Credential{username: kid, mac: mac, token: tok, sha256: len(mac.Expose()) == 32}
}

// TokenUsername is the shape for browsers: the token in USERNAME.
func TokenUsername(kid string, tok []byte, mac secret.Bytes) Credential {
	return LongTerm(string(token.AppendUsername(nil, kid, tok)), token.Credential(mac))
}

// LongTerm is a user name and a password (RFC 8489 §9.2).
func LongTerm(username string, password secret.Bytes) Credential {
	return Credential{username: username, password: password}
}

// Config is how a [Client] is. Server is required.
type Config struct {
	Server netip.AddrPort
	// Network is how to reach it: "udp", which is the default, "dtls", "tcp" or "tls".
	Network string
	// Conn is used where it is not nil, in place of dialling Server: messages are framed in it for
	// tcp and tls, and each is one Write for udp and dtls.
	Conn net.Conn
	// TLS is for the networks tls and dtls: RootCAs, and ServerName, which is verified.
	TLS        *tls.Config
	Local      netip.AddrPort // to send from; zero = any
	Credential Credential
	// RTO is the first wait for an answer; it doubles. 0 = 500 ms (RFC 8489 §6.2.1).
	RTO time.Duration
	// Tries is how many times a request is sent; 0 = 7. Over TCP and TLS it is sent once, and
	// waited for as long as all tries would take (RFC 8489 §6.2.2).
	Tries int
}

// Error is an error response.
type Error struct {
	Method stun.Method
	Code   int
	Reason string
	// Unknown are the types of UNKNOWN-ATTRIBUTES, with code 420.
	Unknown []stun.Attr
	// Alternate is the first ALTERNATE-SERVER, with code 300, and Domain ALTERNATE-DOMAIN.
	Alternate netip.AddrPort
	Domain    string
}

// Error implements error.
func (e *Error) Error() string {
	s := fmt.Sprintf("turn: %v refused with %d", e.Method, e.Code)
	if e.Reason != "" {
		s += fmt.Sprintf(" %q", e.Reason)
	}
	if len(e.Unknown) > 0 {
		s += fmt.Sprintf(", unknown attributes %v", e.Unknown)
	}
	return s
}

// Code returns the code of the [Error] in err, 0 if there is none.
func Code(err error) int {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return 0
}

var (
	// ErrTimeout: the server has not answered any of the tries.
	ErrTimeout = errors.New("turn: no answer")
	// ErrClosed: the connection was closed, by the client, or by the server, which the text says then.
	ErrClosed = errors.New("turn: connection closed")
	// ErrChallenge: the server asks for credentials in a way that cannot be followed.
	ErrChallenge = errors.New("turn: challenge without REALM or NONCE")
	// ErrAlternate: the server sends us where we cannot go, or have been just before.
	ErrAlternate = errors.New("turn: sent to another server in vain")
)

// Packet is what came from a peer.
type Packet struct {
	Peer    netip.AddrPort
	Channel uint16 // 0 = by Data indication
	Data    []byte
	// ICMP is not nil where the packet tells of an ICMP error about one to Peer, and has no Data.
	ICMP *stun.ICMP
}

// Client is one 5-tuple. Its methods may be called by several goroutines.
type Client struct {
	cfg Config

	packets chan Packet   // from read to Receive; full = newest dropped; closed by read
	done    chan struct{} // closed by read when it returns
	lost    error         // why read returned; set before done and packets are closed

	mu       sync.Mutex // guards the following
	conn     transport
	server   netip.AddrPort
	sent     map[netip.AddrPort]time.Time // when servers have sent us away
	closed   bool
	cred     Credential
	realm    string
	nonce    []byte
	third    string // THIRD-PARTY-AUTHORIZATION of the last challenge
	waiting  map[stun.TransactionID]chan []byte
	channels map[netip.AddrPort]uint16
	peers    map[uint16]netip.AddrPort
	dropped  uint64 // answers refused: integrity missing or wrong
}

// Dial is [DialContext] without a context.
func Dial(cfg Config) (*Client, error) { return DialContext(context.Background(), cfg) }

// DialContext opens a socket. Over UDP it sends nothing; a connection, it makes, within 10 s and as long as ctx lasts.
func DialContext(ctx context.Context, cfg Config) (*Client, error) {
	if cfg.Network == "" {
		cfg.Network = "udp"
	}
	if cfg.RTO == 0 {
		cfg.RTO = 500 * time.Millisecond
	}
	if cfg.Tries == 0 {
		cfg.Tries = 7
	}
	cfg.Server = netip.AddrPortFrom(cfg.Server.Addr().Unmap(), cfg.Server.Port())
	conn, err := connect(ctx, cfg)
	if err != nil {
		return nil, err
	}
	c := &Client{
		cfg: cfg, conn: conn, server: cfg.Server, sent: map[netip.AddrPort]time.Time{}, cred: cfg.Credential, packets: make(chan Packet, 256), done: make(chan struct{}),
		waiting: map[stun.TransactionID]chan []byte{}, channels: map[netip.AddrPort]uint16{}, peers: map[uint16]netip.AddrPort{},
	}
	go c.read()
	return c, nil
}

// local chooses loopback for a server on loopback, so that a test's socket has one address.
func local(cfg Config) netip.AddrPort {
	switch {
	case cfg.Local.IsValid():
		return cfg.Local
	case cfg.Server.Addr().IsLoopback():
		return netip.AddrPortFrom(cfg.Server.Addr(), 0)
	case cfg.Server.Addr().Is4():
		return netip.AddrPortFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.AddrPortFrom(netip.IPv6Unspecified(), 0)
}

// Close closes the socket and waits for the reader. The allocation is left to its time.
func (c *Client) Close() error {
	c.mu.Lock()
	c.closed = true
	conn := c.conn
	c.mu.Unlock()
	err := conn.close()
	<-c.done
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// LocalAddr returns the address of the client's socket.
func (c *Client) LocalAddr() netip.AddrPort {
	return c.link().local()
}

// Server returns the address of the server in use: after a 300, not the one that was dialled.
func (c *Client) Server() netip.AddrPort {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.server
}

// link is the way to the server in use.
func (c *Client) link() transport {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.conn
}

// SetCredential makes cr the credential of the following requests. A Refresh with it renews the
// allocation if the server lets it.
func (c *Client) SetCredential(cr Credential) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cred = cr
}

// ThirdPartyAuthorization returns the server name that the last challenge offered (RFC 7635 §6.1).
func (c *Client) ThirdPartyAuthorization() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.third
}

// Dropped returns how many answers were refused for their integrity.
func (c *Client) Dropped() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.dropped
}

// Attribute appends one attribute to a request; see the stun package's Append functions.
type Attribute func(m []byte) []byte

// Allocation is what the server has granted.
type Allocation struct {
	Relayed, Mapped netip.AddrPort
	Second          netip.AddrPort // relayed too, of the other family, where ADDITIONAL-ADDRESS-FAMILY was granted
	Lifetime        time.Duration
	Reservation     []byte // RESERVATION-TOKEN, nil = none
}

// Allocate asks for a relayed address over UDP. extra are further attributes.
func (c *Client) Allocate(ctx context.Context, lifetime time.Duration, extra ...Attribute) (Allocation, error) {
	m, err := c.request(ctx, stun.Allocate, func(b []byte) []byte {
		b = stun.AppendByte(b, stun.AttrRequestedTransport, stun.ProtocolUDP)
		if lifetime > 0 {
			b = stun.AppendUint32(b, stun.AttrLifetime, uint32(lifetime/time.Second))
		}
		for _, f := range extra {
			b = f(b)
		}
		return b
	})
	if err != nil {
		return Allocation{}, err
	}
	a := Allocation{}
	if a.Relayed, err = address(m, stun.AttrXORRelayedAddress); err != nil {
		return Allocation{}, err
	}
	for t, v := range m.All() {
		if p, err := stun.ParseXORAddress(v, m.TransactionID()); t == stun.AttrXORRelayedAddress && err == nil && p != a.Relayed {
			a.Second = p
		}
	}
	if v, ok := m.Get(stun.AttrReservationToken); ok {
		a.Reservation = slices.Clone(v)
	}
	if a.Mapped, err = address(m, stun.AttrXORMappedAddress); err != nil {
		return Allocation{}, err
	}
	a.Lifetime, err = lifetimeOf(m)
	return a, err
}

func address(m stun.Message, t stun.Attr) (netip.AddrPort, error) {
	v, _ := m.Get(t)
	a, err := stun.ParseXORAddress(v, m.TransactionID())
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("turn: %v answered without a good attribute %v: %w", m.Method(), t, err)
	}
	return a, nil
}

func lifetimeOf(m stun.Message) (time.Duration, error) {
	v, _ := m.Get(stun.AttrLifetime)
	s, err := stun.ParseUint32(v)
	if err != nil {
		return 0, fmt.Errorf("turn: %v answered without a good LIFETIME: %w", m.Method(), err)
	}
	return time.Duration(s) * time.Second, nil
}

// Refresh asks for lifetime more; 0 ends the allocation. It returns what was granted. extra are
// further attributes.
func (c *Client) Refresh(ctx context.Context, lifetime time.Duration, extra ...Attribute) (time.Duration, error) {
	m, err := c.request(ctx, stun.Refresh, func(b []byte) []byte {
		b = stun.AppendUint32(b, stun.AttrLifetime, uint32(lifetime/time.Second))
		for _, f := range extra {
			b = f(b)
		}
		return b
	})
	if err != nil {
		return 0, err
	}
	return lifetimeOf(m)
}

// CreatePermission lets the peers' addresses through for 300 s.
func (c *Client) CreatePermission(ctx context.Context, peers ...netip.AddrPort) error {
	_, err := c.request(ctx, stun.CreatePermission, func(b []byte) []byte {
		for _, p := range peers {
			b = stun.AppendXORAddress(b, stun.AttrXORPeerAddress, p)
		}
		return b
	})
	return err
}

// ChannelBind binds a channel to peer for 600 s, or renews it, and returns its number.
func (c *Client) ChannelBind(ctx context.Context, peer netip.AddrPort) (uint16, error) {
	c.mu.Lock()
	n, ok := c.channels[peer]
	if !ok {
		for n = stun.MinChannel; c.peers[n].IsValid(); n++ {
			if n == stun.MaxChannel {
				c.mu.Unlock()
				return 0, errors.New("turn: all channel numbers are bound")
			}
		}
		c.peers[n] = peer // before the answer: the server may use it at once
	}
	c.mu.Unlock()
	_, err := c.request(ctx, stun.ChannelBind, func(b []byte) []byte {
		return stun.AppendXORAddress(stun.AppendChannelNumber(b, n), stun.AttrXORPeerAddress, peer)
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		if !ok {
			delete(c.peers, n)
		}
		return 0, err
	}
	c.channels[peer] = n
	return n, nil
}

// Binding asks the server how it sees us. It needs no credential.
func (c *Client) Binding(ctx context.Context) (netip.AddrPort, error) {
	m, _, err := c.exchange(ctx, stun.Binding, func(b []byte) []byte { return stun.AppendFingerprint(b) }, nil)
	if err != nil {
		return netip.AddrPort{}, err
	}
	if m.Class() == stun.Error {
		return netip.AddrPort{}, refusal(m)
	}
	return address(m, stun.AttrXORMappedAddress)
}

// Send sends data to peer: as ChannelData if a channel is bound, else as Send indication.
func (c *Client) Send(peer netip.AddrPort, data []byte) error {
	c.mu.Lock()
	n, ok := c.channels[peer]
	c.mu.Unlock()
	var b []byte
	if ok {
		b = stun.AppendChannelData(nil, n, data)
	} else {
		b = stun.AppendHeader(nil, stun.NewType(stun.Send, stun.Indication), newID())
		b = stun.AppendXORAddress(b, stun.AttrXORPeerAddress, peer)
		b = stun.AppendAttr(b, stun.AttrData, data)
	}
	return c.link().write(b)
}

// Receive returns the next packet of a peer.
func (c *Client) Receive(ctx context.Context) (Packet, error) {
	select {
	case p, ok := <-c.packets:
		if !ok {
			return Packet{}, c.lost
		}
		return p, nil
	case <-ctx.Done():
		return Packet{}, fmt.Errorf("turn: wait for a peer's packet: %w", ctx.Err())
	}
}

// Raw sends b to the server as it is, for tests of bad input.
func (c *Client) Raw(b []byte) error {
	return c.link().write(b)
}

func newID() (id stun.TransactionID) {
	rand.Read(id[:]) // never fails
	return id
}

// request runs an authenticated request: challenge, credential, and once more for each new nonce.
func (c *Client) request(ctx context.Context, method stun.Method, body Attribute) (stun.Message, error) {
	for tries := 0; tries < 4; tries++ {
		c.mu.Lock()
		auth := c.authenticator(method)
		c.mu.Unlock()
		m, sent, err := c.exchange(ctx, method, body, auth)
		if err != nil {
			return stun.Message{}, err
		}
		if m.Class() == stun.Success {
			return m, nil
		}
		e := refusal(m)
		if e.Code == 438 || e.Code == 401 && !sent {
			if err := c.challenge(m); err != nil {
				return stun.Message{}, err
			}
			continue
		}
		// One that has shown our key by its integrity may send us away; exchange has seen to that.
		if e.Code == 300 && sent && method == stun.Allocate {
			if err := c.follow(ctx, e); err != nil {
				return stun.Message{}, err
			}
			tries = -1 // the next one has its own nonces; follow bounds how many there are
			continue
		}
		return stun.Message{}, e
	}
	return stun.Message{}, fmt.Errorf("turn: %v: the server refuses each nonce that it gives", method)
}

// challenge keeps REALM and NONCE of an answer.
func (c *Client) challenge(m stun.Message) error {
	realm, ok := m.Get(stun.AttrRealm)
	nonce, ok2 := m.Get(stun.AttrNonce)
	if !ok || !ok2 {
		return ErrChallenge
	}
	third, _ := m.Get(stun.AttrThirdPartyAuthorization)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.realm, c.nonce, c.third = string(realm), append([]byte(nil), nonce...), string(third)
	return nil
}

// authenticator is how a request is signed and its answer checked.
type authenticator struct {
	attrs  Attribute
	key    []byte
	sha256 bool
}

// authenticator returns how to sign, nil before the first challenge. c.mu is held.
func (c *Client) authenticator(method stun.Method) *authenticator {
	if c.nonce == nil || c.cred.username == "" {
		return nil
	}
	cr, realm, nonce := c.cred, c.realm, c.nonce
	a := &authenticator{sha256: cr.sha256}
	if cr.token != nil {
		a.key = cr.mac.Expose()
	} else {
		k := stun.MD5.Key([]byte(cr.username), []byte(realm), cr.password.Expose())
		a.key = k[:]
	}
	a.attrs = func(b []byte) []byte {
		b = stun.AppendText(b, stun.AttrUsername, cr.username)
		b = stun.AppendText(b, stun.AttrRealm, realm) // spec: send it when the challenge carried one
		b = stun.AppendAttr(b, stun.AttrNonce, nonce)
		if cr.token != nil && (method == stun.Allocate || method == stun.Refresh) {
			b = stun.AppendAttr(b, stun.AttrAccessToken, cr.token)
		}
		h := stun.NewHasher()
		if a.sha256 {
			return h.AppendIntegritySHA256(b, a.key)
		}
		return h.AppendIntegrity(b, a.key)
	}
	return a
}

// refusal reads an error response.
func refusal(m stun.Message) *Error {
	e := &Error{Method: m.Method()}
	if v, ok := m.Get(stun.AttrErrorCode); ok {
		if code, reason, err := stun.ParseErrorCode(v); err == nil {
			e.Code, e.Reason = code, string(reason)
		}
	}
	if v, ok := m.Get(stun.AttrAlternateServer); ok {
		e.Alternate, _ = stun.ParseAddress(v) // a bad one is none
		domain, _ := m.Get(stun.AttrAlternateDomain)
		e.Domain = string(domain)
	}
	v, _ := m.Get(stun.AttrUnknownAttributes)
	for i := 0; i+1 < len(v); i += 2 {
		e.Unknown = append(e.Unknown, stun.Attr(uint16(v[i])<<8|uint16(v[i+1])))
	}
	return e
}

// exchange sends a request until it is answered. signed tells whether it carried a credential.
func (c *Client) exchange(ctx context.Context, method stun.Method, body Attribute, auth *authenticator) (m stun.Message, signed bool, err error) {
	id := newID()
	b := body(stun.AppendHeader(nil, stun.NewType(method, stun.Request), id))
	if auth != nil {
		b = auth.attrs(b)
	}
	answers := make(chan []byte, 4)
	c.mu.Lock()
	c.waiting[id] = answers
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.waiting, id)
		c.mu.Unlock()
	}()
	rto := c.cfg.RTO
	for try := range c.cfg.Tries {
		if err := c.resend(try, b); err != nil {
			if errors.Is(err, net.ErrClosed) {
				return stun.Message{}, false, ErrClosed
			}
			return stun.Message{}, false, fmt.Errorf("turn: send %v to %v: %w", method, c.Server(), err)
		}
		timer := time.NewTimer(rto)
		for waiting := true; waiting; {
			select {
			case raw := <-answers:
				m, err := stun.Parse(raw)
				if err != nil || m.Method() != method || m.Class() != stun.Success && m.Class() != stun.Error {
					continue
				}
				if auth != nil && !auth.accepts(m) {
					c.mu.Lock()
					c.dropped++
					c.mu.Unlock()
					continue
				}
				timer.Stop()
				return m, auth != nil, nil
			case <-timer.C:
				waiting = false
			case <-c.done:
				timer.Stop()
				return stun.Message{}, false, c.lost
			case <-ctx.Done():
				timer.Stop()
				return stun.Message{}, false, fmt.Errorf("turn: wait for the answer of %v to %v: %w", c.Server(), method, ctx.Err())
			}
		}
		rto *= 2
	}
	return stun.Message{}, false, fmt.Errorf("%w of %v to %v in %d tries", ErrTimeout, c.Server(), method, c.cfg.Tries)
}

// resend sends a request for the first time, and again where packets get lost.
func (c *Client) resend(try int, b []byte) error {
	if try > 0 && (c.cfg.Network == "tcp" || c.cfg.Network == "tls") {
		return nil
	}
	return c.link().write(b)
}

// accepts reports whether m carries the integrity that it must (RFC 8489 §9.2.5): all but those
// errors that say that the server does not know our key.
func (a *authenticator) accepts(m stun.Message) bool {
	if m.Class() == stun.Error && !m.HasIntegrity() && !m.HasIntegritySHA256() {
		switch refusal(m).Code {
		case 400, 401, 420, 438:
			return true
		}
		return false
	}
	h := stun.NewHasher()
	if a.sha256 {
		return h.CheckIntegritySHA256(m, a.key)
	}
	return h.CheckIntegrity(m, a.key)
}

// read takes packets apart until the socket is closed.
func (c *Client) read() {
	defer close(c.done)
	defer close(c.packets)
	buf := make([]byte, stun.MaxStreamSize)
	conn := c.link()
	for {
		n, err := conn.read(buf)
		if err != nil {
			if next := c.link(); next != conn {
				conn = next // follow has closed the old one
				continue
			}
			if c.lost = ErrClosed; !errors.Is(err, net.ErrClosed) {
				c.lost = fmt.Errorf("%w: the server %v ended the connection: %w", ErrClosed, c.Server(), err)
			}
			return
		}
		switch stun.Classify(buf[:n]) {
		case stun.ProtocolChannel:
			number, data, err := stun.ParseChannelData(buf[:n])
			if err != nil {
				continue
			}
			c.mu.Lock()
			peer, ok := c.peers[number]
			c.mu.Unlock()
			if ok {
				c.deliver(Packet{Peer: peer, Channel: number, Data: append([]byte{}, data...)})
			}
		case stun.ProtocolSTUN:
			m, err := stun.Parse(buf[:n])
			if err != nil {
				continue
			}
			if m.Type() == stun.NewType(stun.Data, stun.Indication) {
				a, _ := m.Get(stun.AttrXORPeerAddress)
				peer, err := stun.ParseXORAddress(a, m.TransactionID())
				data, ok := m.Get(stun.AttrData)
				v, told := m.Get(stun.AttrICMP)
				icmp, errICMP := stun.ParseICMP(v)
				switch {
				case err != nil:
				case told && errICMP == nil:
					c.deliver(Packet{Peer: peer, ICMP: &icmp})
				case ok:
					c.deliver(Packet{Peer: peer, Data: append([]byte{}, data...)})
				}
				continue
			}
			c.mu.Lock()
			answers := c.waiting[m.TransactionID()]
			c.mu.Unlock()
			if answers != nil {
				select {
				case answers <- append([]byte(nil), buf[:n]...):
				default: // a flood of answers to one request
				}
			}
		}
	}
}

func (c *Client) deliver(p Packet) {
	select {
	case c.packets <- p:
	default: // nobody receives: as a full socket would
	}
}
