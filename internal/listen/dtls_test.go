package listen

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pion/dtls/v3"
	"go.uber.org/goleak"
)

// dtlsBench is a DTLS whose handler answers each datagram with its bytes in reverse.
type dtlsBench struct {
	*DTLS
	t    *testing.T
	ca   *CA
	conn *net.UDPConn

	flood atomic.Bool // what is sent is counted and goes nowhere
	sent  atomic.Int64
}

func associations(t *testing.T, change func(*DTLSConfig)) *dtlsBench {
	t.Helper()
	ca, err := DevelopmentCA(filepath.Join(t.TempDir(), "ca"), []string{"localhost"})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := UDP("x.listen", loopback)
	if err != nil {
		t.Fatal(err)
	}
	b := &dtlsBench{t: t, ca: ca, conn: conn}
	cfg := DTLSConfig{
		Certificate: ca.GetCertificate, Protocols: []string{"stun.turn", "stun.nat-discovery"},
		Send: func(_ int, p []byte, to netip.AddrPort) error {
			b.sent.Add(1)
			if b.flood.Load() {
				return nil
			}
			_, err := conn.WriteToUDPAddrPort(p, to)
			return err
		},
		Handle: func(a *Association) {
			m := make([]byte, 2000)
			for {
				n, err := a.Read(m)
				if err != nil {
					return
				}
				for i := range n / 2 {
					m[i], m[n-1-i] = m[n-1-i], m[i]
				}
				if _, err := a.Write(m[:n]); err != nil {
					return
				}
			}
		},
	}
	if change != nil {
		change(&cfg)
	}
	b.DTLS = NewDTLS(cfg)
	done := make(chan struct{})
	go func() {
		defer close(done)
		p := make([]byte, 1<<16)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(p)
			if err != nil {
				return
			}
			b.Packet(0, unmap(from), p[:n])
		}
	}()
	t.Cleanup(func() {
		b.Close()
		closed(t, conn)
		<-done
		if st := b.Stats(); st.Open != 0 || len(b.open) != 0 || len(b.gate.sources) != 0 || b.gate.opening.Len() != 0 {
			t.Errorf("left over: %+v, %d associations, %d sources, %d opening", st, len(b.open), len(b.gate.sources), b.gate.opening.Len())
		}
	})
	return b
}

func closed(t *testing.T, c io.Closer) {
	t.Helper()
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

// socket is a client's.
func (b *dtlsBench) socket() *net.UDPConn {
	b.t.Helper()
	c, err := net.DialUDP("udp", nil, b.conn.LocalAddr().(*net.UDPAddr))
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = c.Close() }) // a test may have closed it
	return c
}

// connected is a connected UDP socket as pion wants one.
type connected struct{ net.Conn }

func (c connected) ReadFrom(b []byte) (int, net.Addr, error) {
	n, err := c.Read(b)
	return n, c.RemoteAddr(), err
}
func (c connected) WriteTo(b []byte, _ net.Addr) (int, error) { return c.Write(b) }

func (b *dtlsBench) client(over net.Conn, protocols ...string) (*dtls.Conn, error) {
	b.t.Helper()
	options := []dtls.ClientOption{dtls.WithRootCAs(b.ca.Pool()), dtls.WithServerName("localhost"), dtls.WithFlightInterval(100 * time.Millisecond), dtls.WithLoggerFactory(noLog{})}
	if len(protocols) > 0 {
		options = append(options, dtls.WithSupportedProtocols(protocols...))
	}
	c, err := dtls.ClientWithOptions(connected{over}, over.RemoteAddr(), options...)
	if err != nil {
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(b.t.Context(), 5*time.Second)
	defer cancel()
	b.t.Cleanup(func() { _ = c.Close() })
	return c, c.HandshakeContext(ctx)
}

// answers says whether the handler answers.
func answers(c net.Conn) error {
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	if _, err := c.Write([]byte("abc")); err != nil {
		return err
	}
	m := make([]byte, 100)
	n, err := c.Read(m)
	if err == nil && string(m[:n]) != "cba" {
		err = io.ErrUnexpectedEOF
	}
	return err
}

func (b *dtlsBench) refused(why string, n uint64) {
	b.t.Helper()
	for end := time.Now().Add(5 * time.Second); b.Stats().Refused[why] != n; time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			b.t.Fatalf("%s: want %d in %+v", why, n, b.Stats())
		}
	}
}

// left waits until n associations are open, at most.
func (b *dtlsBench) left(n int) {
	b.t.Helper()
	for end := time.Now().Add(5 * time.Second); b.Stats().Open > n && time.Now().Before(end); time.Sleep(time.Millisecond) {
	}
}

func TestDTLS(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	b := associations(t, nil)
	for _, c := range []struct {
		offer []string
		want  string
		fails bool
	}{{nil, "", false}, {[]string{"stun.turn"}, "stun.turn", false}, {[]string{"coap", "stun.nat-discovery"}, "stun.nat-discovery", false}, {[]string{"webrtc"}, "", true}} {
		conn, err := b.client(b.socket(), c.offer...)
		if c.fails {
			if err == nil {
				t.Errorf("ALPN %v is taken", c.offer)
			}
			continue
		}
		if err == nil {
			err = answers(conn)
		}
		if err != nil {
			t.Fatalf("ALPN %v: %v", c.offer, err)
		}
		if st, _ := conn.ConnectionState(); st.NegotiatedProtocol != c.want {
			t.Errorf("ALPN %v: %q", c.offer, st.NegotiatedProtocol)
		}
	}
	b.refused(refusedTLS, 1)
	b.left(3)
	if st := b.Stats(); st.Begun != 3 || st.Open != 3 {
		t.Errorf("%+v", st)
	}
}

// lossy drops those datagrams of either direction of which drop says so, by their number from 0.
type lossy struct {
	net.Conn
	drop     func(n int, in bool) bool
	in, out  int
	recorded [][]byte // what was sent
}

func (l *lossy) Read(b []byte) (int, error) {
	for {
		n, err := l.Conn.Read(b)
		l.in++
		if err != nil || !l.drop(l.in-1, true) {
			return n, err
		}
	}
}

func (l *lossy) Write(b []byte) (int, error) {
	l.recorded = append(l.recorded, bytes.Clone(b))
	l.out++
	if l.drop(l.out-1, false) {
		return len(b), nil
	}
	return l.Conn.Write(b)
}

// Records of the server follow the number of the ClientHello that it answers, so that they are new
// to a client that has sent some before.
func TestDTLSLoss(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	b := associations(t, nil)
	var all sync.WaitGroup
	defer all.Wait()
	for name, drop := range map[string]func(int, bool) bool{
		"first reply":          func(n int, in bool) bool { return in && n == 0 },
		"three replies":        func(n int, in bool) bool { return in && n < 3 },
		"the server's flight":  func(n int, in bool) bool { return in && n == 1 },
		"the last flight":      func(n int, in bool) bool { return in && n == 2 },
		"second ClientHello":   func(n int, in bool) bool { return !in && n == 1 },
		"the client's flight":  func(n int, in bool) bool { return !in && n == 2 },
		"two of each":          func(n int, _ bool) bool { return n < 2 },
		"every second of both": func(n int, _ bool) bool { return n < 6 && n%2 == 0 },
	} {
		all.Go(func() {
			conn, err := b.client(&lossy{Conn: b.socket(), drop: drop})
			if err == nil {
				err = answers(conn)
			}
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
}

// recordedHellos are the two ClientHellos of a client.
func (b *dtlsBench) recordedHellos() (first, second []byte, conn *dtls.Conn, over *lossy) {
	b.t.Helper()
	over = &lossy{Conn: b.socket(), drop: func(int, bool) bool { return false }}
	conn, err := b.client(over)
	if err != nil {
		b.t.Fatal(err)
	}
	return over.recorded[0], over.recorded[1], conn, over
}

// A flood from forged senders leaves nothing behind: neither an association nor a goroutine.
func TestDTLSFlood(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	b := associations(t, nil)
	first, second, conn, _ := b.recordedHellos()
	var memory [2]runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&memory[0])
	goroutines := runtime.NumGoroutine()
	b.flood.Store(true)
	const n = 10_000
	before := b.sent.Load()
	for i := range n {
		client := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 4711)
		b.Packet(0, client, first)
		b.Packet(0, client, second) // with another's cookie
		b.Packet(0, client, first[:40])
		b.Packet(0, client, append([]byte{recordData}, first[1:]...))
	}
	runtime.GC()
	runtime.ReadMemStats(&memory[1])
	sent := b.sent.Load() - before
	if st := b.Stats(); sent != n || st.Open != 1 || st.Refused[refusedCookie] != n || len(b.open) != 1 || runtime.NumGoroutine() > goroutines {
		t.Errorf("%d replies, %+v, %d goroutines before, %d after", sent, st, goroutines, runtime.NumGoroutine())
	}
	if grown := int64(memory[1].HeapAlloc) - int64(memory[0].HeapAlloc); grown > 1<<20 {
		t.Errorf("%d bytes more", grown)
	}
	b.flood.Store(false)
	if err := answers(conn); err != nil {
		t.Errorf("who was there before: %v", err)
	}
}

// What anybody can send who knows a client's address does not end its association.
func TestDTLSForged(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	b := associations(t, nil)
	first, second, conn, over := b.recordedHellos()
	if err := answers(conn); err != nil { // the server's handshake is done too
		t.Fatal(err)
	}
	record := func(kind byte, epoch uint16, number uint64, body ...byte) []byte {
		p := append([]byte{kind, 0xfe, 0xfd}, make([]byte, 10)...)
		renumber(p, uint64(epoch)<<48|number)
		p[12] = byte(len(body))
		return append(p, body...)
	}
	other := bytes.Clone(first)
	other[40] ^= 1 // another random
	for _, p := range [][]byte{
		record(recordData, 0, 1000, 1, 2, 3), record(recordAlert, 0, 1001, 2, 0), record(recordAlert, 0, 1002, 2, 40), record(20, 0, 1003, 1), record(20, 0, 1004, 7),
		record(recordHandshake, 0, 1005, 20, 0, 0), record(63, 0, 1006, 1), record(recordData, 1, 1007, make([]byte, 40)...), record(recordAlert, 1, 1008, make([]byte, 40)...),
		record(recordData, 2, 1), {22}, first, second, other, append(bytes.Clone(second), record(recordAlert, 0, 1010, 2, 0)...), make([]byte, 9000), record(recordData, 1, 1009),
	} {
		if _, err := over.Conn.Write(p); err != nil {
			t.Fatal(err)
		}
	}
	if err := answers(conn); err != nil {
		t.Error(err)
	}
	if st := b.Stats(); st.Open != 1 || st.Begun != 1 {
		t.Errorf("%+v", st)
	}
}

// A client that begins anew from the same port gets a new association, and the old one ends.
func TestDTLSBeginsAnew(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	b := associations(t, nil)
	_, _, old, over := b.recordedHellos()
	if err := answers(old); err != nil {
		t.Fatal(err)
	}
	// It vanishes without a word, so its socket is taken over.
	again := b.again(old, over)
	conn, err := b.client(again)
	if err == nil {
		err = answers(conn)
	}
	if st := b.Stats(); err != nil || st.Open != 1 || st.Begun != 2 {
		t.Errorf("%v, %+v", err, st)
	}
}

// again returns a new socket on the port of a client that has been made to vanish.
func (b *dtlsBench) again(old *dtls.Conn, over *lossy) net.Conn {
	b.t.Helper()
	local := over.LocalAddr().(*net.UDPAddr)
	over.drop = func(int, bool) bool { return true } // its close_notify
	closed(b.t, old)
	c, err := net.DialUDP("udp", local, b.conn.LocalAddr().(*net.UDPAddr))
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = c.Close() }) // the client may have closed it
	return c
}

func TestDTLSLimits(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	t.Run("source", func(t *testing.T) {
		b := associations(t, func(c *DTLSConfig) { c.MaxOpenSource = 2 })
		for range 2 {
			if _, err := b.client(b.socket()); err != nil {
				t.Fatal(err)
			}
		}
		b.refusesOne()
		if b.Stats().Refused[refusedOpenSource] == 0 {
			t.Errorf("%+v", b.Stats())
		}
	})
	t.Run("total", func(t *testing.T) {
		b := associations(t, func(c *DTLSConfig) { c.MaxOpen = 1 })
		conn, err := b.client(b.socket())
		if err != nil {
			t.Fatal(err)
		}
		b.refusesOne()
		if b.Stats().Refused[refusedOpen] == 0 {
			t.Errorf("%+v", b.Stats())
		}
		closed(t, conn)
		b.left(0)
		if _, err := b.client(b.socket()); err != nil {
			t.Errorf("after one has gone: %v", err)
		}
	})
	t.Run("rate", func(t *testing.T) {
		b := associations(t, func(c *DTLSConfig) { c.HandshakeBurst, c.HandshakeEvery = 1, time.Hour })
		if _, err := b.client(b.socket()); err != nil {
			t.Fatal(err)
		}
		b.refusesOne()
		if b.Stats().Refused[refusedRate] == 0 {
			t.Errorf("%+v", b.Stats())
		}
	})
	// A client that is deaf after its second ClientHello.
	deaf := func(b *dtlsBench) {
		c := &lossy{Conn: b.socket(), drop: func(n int, in bool) bool { return in && n > 0 }}
		go func() {
			ctx, cancel := context.WithTimeout(b.t.Context(), 50*time.Millisecond)
			defer cancel()
			conn, err := dtls.ClientWithOptions(connected{c}, c.RemoteAddr(), dtls.WithInsecureSkipVerify(true), dtls.WithLoggerFactory(noLog{}))
			if err != nil {
				b.t.Error(err)
				return
			}
			_ = conn.HandshakeContext(ctx) // fails
			_ = conn.Close()
		}()
	}
	t.Run("deadline", func(t *testing.T) {
		b := associations(t, func(c *DTLSConfig) { c.Handshake = 100 * time.Millisecond })
		deaf(b)
		b.refused(refusedSlow, 1)
	})
	t.Run("oldest handshake gives way", func(t *testing.T) {
		b := associations(t, func(c *DTLSConfig) { c.MaxOpening = 1 })
		deaf(b)
		for end := time.Now().Add(5 * time.Second); b.Stats().Open < 1 && time.Now().Before(end); time.Sleep(time.Millisecond) {
		}
		conn, err := b.client(b.socket())
		if err == nil {
			err = answers(conn)
		}
		if err != nil {
			t.Error(err)
		}
		b.refused(refusedOpening, 1)
	})
	t.Run("handshake bytes", func(t *testing.T) {
		a := &Association{in: make(chan []byte, associationQueue)}
		p := make([]byte, recordHead+1000)
		copy(p, []byte{recordHandshake, 0xfe, 0xfd})
		p[11], p[12] = 1000>>8, 1000&0xff
		for range 60 {
			a.push(p)
		}
		got := 0
		for len(a.in) > 0 {
			got += len(<-a.in)
		}
		if got > handshakeBytes || got < handshakeBytes-2000 {
			t.Errorf("%d bytes", got)
		}
	})
}

// refusesOne says whether one more client comes through within the time of some tries.
func (b *dtlsBench) refusesOne() {
	b.t.Helper()
	c := b.socket()
	conn, err := dtls.ClientWithOptions(connected{c}, c.RemoteAddr(), dtls.WithRootCAs(b.ca.Pool()), dtls.WithServerName("localhost"), dtls.WithFlightInterval(20*time.Millisecond), dtls.WithLoggerFactory(noLog{}))
	if err != nil {
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(b.t.Context(), 100*time.Millisecond)
	defer cancel()
	if conn.HandshakeContext(ctx) == nil {
		b.t.Error("one more association")
	}
	_ = conn.Close() // the socket may be closed by the failed handshake
}

// The server's end is told to its clients.
func TestDTLSClose(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	b := associations(t, nil)
	conn, err := b.client(b.socket())
	if err == nil {
		err = answers(conn)
	}
	if err != nil {
		t.Fatal(err)
	}
	b.Close()
	if _, err := conn.Read(make([]byte, 10)); !errors.Is(err, io.EOF) {
		t.Errorf("%v, want EOF", err)
	}
	b.refusesOne()
}
