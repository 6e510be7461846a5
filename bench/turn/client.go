package main

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha1"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"wicgate/internal/wire/stun"
)

// client is one TURN client. Its requests wait for their answer; a server that loses one gets it
// again. Asking and taking the answer are two calls, so that one thread can have many requests
// under way.
type client struct {
	sock   *socket
	stream io.ReadWriter // the same or TLS over it; nil for UDP
	in     []byte        // of the stream: read, not taken yet
	out    []byte        // the request under way
	buf    []byte

	id             stun.TransactionID
	method         stun.Method
	username       string
	password       string
	realm          string
	nonce          []byte
	key            []byte
	relayed        netip.AddrPort
	hash           *stun.Hasher
	credentialled  bool
	channelMessage []byte // what traffic sends
	pending        int    // bytes that traffic has read of a message
}

// legs are the ways from the client to the server.
const (
	legUDP = "udp"
	legTCP = "tcp"
	legTLS = "tls"
)

// dial makes a client of the server s.
func dial(s *process, leg string, from netip.AddrPort, number int) (*client, error) {
	kind, port := unix.SOCK_STREAM, s.server.tcpPort
	switch leg {
	case legUDP:
		kind, port = unix.SOCK_DGRAM, s.server.udpPort
	case legTLS:
		port = s.server.tlsPort
	}
	sock, err := newSocket(kind, from, netip.AddrPortFrom(netip.MustParseAddr(serverAddress), port))
	if err != nil {
		return nil, err
	}
	c := &client{sock: sock, buf: make([]byte, 2048)}
	switch leg {
	case legTCP:
		c.stream = sock
	case legTLS:
		t := tls.Client(sock, clientTLS)
		if err := t.Handshake(); err != nil {
			return nil, errors.Join(fmt.Errorf("TLS handshake: %w", err), sock.Close())
		}
		c.stream = t
	}
	// coturn's REST scheme: the user name is when it ends and who it is for.
	c.username = strconv.FormatInt(time.Now().Add(time.Hour).Unix(), 10) + ":bench" + strconv.Itoa(number)
	mac := hmac.New(sha1.New, []byte(s.server.secret))
	mac.Write([]byte(c.username))
	c.password = base64.StdEncoding.EncodeToString(mac.Sum(nil))
	return c, nil
}

// clientTLS offers every server the same, which is what coturn 4.6.1 of Debian takes: TLS 1.2, P-256, no
// resumption. The certificate is the bench's own, and no part of what is measured.
var clientTLS = &tls.Config{
	InsecureSkipVerify: true, MinVersion: tls.VersionTLS12, MaxVersion: tls.VersionTLS12, CurvePreferences: []tls.CurveID{tls.CurveP256},
	SessionTicketsDisabled: true, DynamicRecordSizingDisabled: true,
	CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256},
}

func (c *client) close() error {
	if t, ok := c.stream.(*tls.Conn); ok {
		_ = t.CloseWrite() // the server may have gone
	}
	return c.sock.Close()
}

func (c *client) write(b []byte) error {
	var err error
	if c.stream != nil {
		_, err = c.stream.Write(b)
	} else {
		_, err = c.sock.Write(b)
	}
	return err
}

// ask sends a request.
func (c *client) ask(method stun.Method, body func(b []byte) []byte) error {
	rand.Read(c.id[:])
	c.method = method
	b := stun.AppendHeader(c.out[:0], stun.NewType(method, stun.Request), c.id)
	if body != nil {
		b = body(b)
	}
	c.credentialled = c.nonce != nil && method != stun.Binding
	if c.credentialled {
		b = stun.AppendText(b, stun.AttrUsername, c.username)
		b = stun.AppendText(b, stun.AttrRealm, c.realm)
		b = stun.AppendAttr(b, stun.AttrNonce, c.nonce)
		b = c.hash.AppendIntegrity(b, c.key)
	}
	c.out = b
	return c.write(b)
}

// read returns the next message of the server.
func (c *client) read() ([]byte, error) {
	if c.stream == nil {
		n, err := c.sock.Read(c.buf)
		return c.buf[:n], err
	}
	for {
		size, err := stun.StreamSize(c.in, false)
		if err != nil {
			return nil, err
		}
		if size > 0 && len(c.in) >= size {
			m := c.in[:size]
			c.in = c.in[size:]
			return m, nil
		}
		n, err := c.stream.Read(c.buf)
		if err != nil {
			return nil, err
		}
		c.in = append(c.in, c.buf[:n]...)
	}
}

// errChallenge is the answer to a request without a credential.
var errChallenge = errors.New("challenge")

// answer waits for the answer of the request under way.
func (c *client) answer() (stun.Message, error) {
	for tries := 1; ; {
		b, err := c.read()
		if errors.As(err, &again{}) && c.stream == nil && tries < 3 {
			tries++
			if err := c.write(c.out); err != nil {
				return stun.Message{}, err
			}
			continue
		}
		if err != nil {
			return stun.Message{}, fmt.Errorf("answer of %v: %w", c.method, err)
		}
		m, err := stun.Parse(b)
		if err != nil || m.TransactionID() != c.id {
			continue // an answer to a try before
		}
		if m.Class() == stun.Success {
			return m, nil
		}
		v, _ := m.Get(stun.AttrErrorCode)
		code, reason, err := stun.ParseErrorCode(v)
		if err != nil {
			return stun.Message{}, fmt.Errorf("answer of %v: %w", c.method, err)
		}
		if code == 401 && !c.credentialled {
			return m, errChallenge
		}
		return stun.Message{}, fmt.Errorf("%v refused: %d %s", c.method, code, reason)
	}
}

// challenged takes the challenge, which a first Allocate must have got.
func (c *client) challenged() error {
	m, err := c.answer()
	if !errors.Is(err, errChallenge) {
		return fmt.Errorf("the first %v brought no challenge: %w", c.method, err)
	}
	realm, _ := m.Get(stun.AttrRealm)
	nonce, ok := m.Get(stun.AttrNonce)
	if !ok {
		return errors.New("challenge without NONCE")
	}
	c.realm, c.nonce = string(realm), append([]byte(nil), nonce...)
	c.key = stun.MD5.Key([]byte(c.username), realm, []byte(c.password))
	if c.hash == nil {
		c.hash = stun.NewHasher()
	}
	return nil
}

func (c *client) done() error {
	_, err := c.answer()
	return err
}

// The requests. Each is sent; the answer is for challenged, allocated or done.

func (c *client) askAllocate() error {
	return c.ask(stun.Allocate, func(b []byte) []byte {
		return stun.AppendByte(b, stun.AttrRequestedTransport, stun.ProtocolUDP)
	})
}

func (c *client) allocated() error {
	m, err := c.answer()
	if err != nil {
		return err
	}
	v, _ := m.Get(stun.AttrXORRelayedAddress)
	c.relayed, err = stun.ParseXORAddress(v, m.TransactionID())
	return err
}

func (c *client) askDelete() error {
	return c.ask(stun.Refresh, func(b []byte) []byte { return stun.AppendUint32(b, stun.AttrLifetime, 0) })
}

func (c *client) askChannel(peer netip.AddrPort) error {
	return c.ask(stun.ChannelBind, func(b []byte) []byte {
		return stun.AppendXORAddress(stun.AppendChannelNumber(b, stun.MinChannel), stun.AttrXORPeerAddress, peer)
	})
}

func (c *client) binding() error {
	if err := c.ask(stun.Binding, nil); err != nil {
		return err
	}
	return c.done()
}

// wave makes each step of all clients before the next: it sends for all, then takes the answer of all.
func wave(clients []*client, steps ...func(c *client) error) error {
	for _, step := range steps {
		for i, c := range clients {
			if err := step(c); err != nil {
				return fmt.Errorf("client %d of %d: %w", i+1, len(clients), err)
			}
		}
	}
	return nil
}

// allocate gets each client an allocation with a channel to peer.
func allocate(clients []*client, peer netip.AddrPort) error {
	return wave(clients, (*client).askAllocate, (*client).challenged, (*client).askAllocate, (*client).allocated,
		func(c *client) error { return c.askChannel(peer) }, (*client).done)
}

// closeAll closes the clients' sockets.
func closeAll(clients []*client) error {
	var errs []error
	for _, c := range clients {
		errs = append(errs, c.close())
	}
	return errors.Join(errs...)
}
