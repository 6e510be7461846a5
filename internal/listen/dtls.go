package listen

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pion/dtls/v3"
	"github.com/pion/logging"
	"github.com/pion/transport/v5/deadline"
)

const (
	// associationQueue is how many datagrams of a client may wait to be decrypted.
	associationQueue = 64
	// associationDatagram is the longest datagram that is taken, in bytes: what pion reads at once.
	associationDatagram = 8192
	// handshakeBytes is how much a client may send in its life that is neither data nor an alert. A
	// handshake needs 1 kB; pion alone would hold 2 MB of fragments for each client.
	handshakeBytes = 32 << 10
)

// DTLSConfig is how a [DTLS] is. All but Log and Limits is required.
type DTLSConfig struct {
	Log *slog.Logger // nil = discard
	// Certificate is a GetCertificate of [CA] or [Files].
	Certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	Protocols   []string // as in StreamConfig
	// Send sends a datagram from a listener of the role's. It must not keep b.
	Send func(listener int, b []byte, to netip.AddrPort) error
	// Handle serves an association, on a goroutine of its own.
	Handle func(*Association)
	Limits
}

// DTLS is the server's side of DTLS 1.2 on the UDP sockets of a role (RFC 7350), which gives it what
// RFC 7983 tells to be DTLS:
//
//	Packet ─┬─ ClientHello without cookie ─► HelloVerifyRequest, and nothing is remembered
//	        ├─ ClientHello with our cookie ─► limits ─► handshake ─► Handle
//	        └─ else ─► the client's association, if it has one
//
// pion/dtls does the handshake and the records. It would begin an association for each ClientHello and
// draw a cookie for it, so that forged senders could fill its memory. So an association begins here
// with a client that has returned our cookie: pion is shown the ClientHello before that, which we make
// from this one, its cookie is exchanged for ours, and its HelloVerifyRequest goes nowhere.
type DTLS struct {
	cfg     DTLSConfig
	gate    *gate
	cookies *cookies
	begun   atomic.Uint64
	work    sync.WaitGroup // a goroutine an association

	mu   sync.RWMutex // guards open
	open map[clientAt]*Association
}

// clientAt is a client of a listener.
type clientAt struct {
	listener int
	client   netip.AddrPort
}

// Association is a client whose handshake is done; Read and Write are of whole datagrams. Its handler
// owns it.
type Association struct {
	net.Conn
	Protocol   string // agreed by ALPN, "" = none
	ServerName string // as in Conn
	Listener   int
	Remote     netip.AddrPort

	server  *DTLS
	random  [randomSize]byte // of its ClientHello, which tells it from the client's next
	visitor visitor
	in      chan []byte // datagrams; never closed
	asked   chan []byte // second, once
	end     chan struct{}
	once    sync.Once // closes end
	read    *deadline.Deadline
	second  []byte // the ClientHello with the cookie, until pion has asked for it
	cookie  []byte // in it
	shift   uint64 // what is added to pion's numbers of records, so that they follow those of the client
	secured atomic.Bool
	shook   atomic.Int64 // bytes that count for handshakeBytes
	conn    *dtls.Conn
}

// DTLSStats counts since the start, except Open.
type DTLSStats struct {
	Open    int    // now
	Begun   uint64 // came to the handler
	Refused map[string]uint64
}

// NewDTLS returns a DTLS. It starts nothing.
func NewDTLS(cfg DTLSConfig) *DTLS {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &DTLS{cfg: cfg, gate: newGate(cfg.Limits, refusedCookie), cookies: newCookies(), open: map[clientAt]*Association{}}
}

// Packet takes a datagram from a client, which it does not keep. It reports whether it may be anybody's
// here: not if it is of an association that is unknown.
func (d *DTLS) Packet(listener int, client netip.AddrPort, b []byte) bool {
	at := clientAt{listener, client}
	d.mu.RLock()
	a := d.open[at]
	d.mu.RUnlock()
	if h, ok := parseHello(b); ok && (a == nil || a.random != h.random) {
		d.hello(at, &h, a)
		return true
	}
	if a != nil {
		a.push(b)
	}
	return a != nil
}

// hello takes a ClientHello that does not belong to the association that the client may have.
func (d *DTLS) hello(at clientAt, h *hello, old *Association) {
	now := time.Now()
	switch {
	case len(h.cookie) == 0:
		if h.seq == 0 {
			_ = d.cfg.Send(at.listener, h.reply(nil, d.cookies.make(now, at.listener, at.client, h)), at.client) // the client asks again
		}
		return
	case h.seq != 1, h.record.number == 0, h.record.number >= 1<<47, !d.cookies.ok(now, at.listener, at.client, h):
		d.gate.refuse(refusedCookie)
		return
	case old != nil:
		// The client has begun anew, and shown that it is there (RFC 6347 §4.2.8). This ClientHello
		// comes again, when the old association has gone.
		old.Abort()
		return
	case !d.gate.mayHandshake(sourceOf(at.client.Addr())):
		d.gate.refuse(refusedRate)
		return
	}
	a := &Association{
		Listener: at.listener, Remote: at.client, server: d, random: h.random, cookie: bytes.Clone(h.cookie),
		in: make(chan []byte, associationQueue), asked: make(chan []byte, 1), end: make(chan struct{}), read: deadline.New(),
		second: bytes.Clone(h.record.raw), shift: h.record.number - 1,
	}
	a.in <- h.first()
	conn, err := dtls.ServerWithOptions((*side)(a), net.UDPAddrFromAddrPort(at.client),
		dtls.WithGetCertificate(func(i *dtls.ClientHelloInfo) (*tls.Certificate, error) {
			a.ServerName = i.ServerName
			return d.cfg.Certificate(&tls.ClientHelloInfo{ServerName: i.ServerName, SupportedVersions: []uint16{tls.VersionTLS12}})
		}),
		dtls.WithCipherSuites(
			dtls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, dtls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
			dtls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, dtls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
		),
		dtls.WithSupportedProtocols(d.cfg.Protocols...),
		dtls.WithLoggerFactory(noLog{}),
	)
	if err != nil {
		d.cfg.Log.Error("listen: DTLS", "error", err)
		return
	}
	a.conn, a.Conn = conn, conn
	a.visitor.close = a.Abort
	d.mu.Lock() // so that Close misses none
	defer d.mu.Unlock()
	if d.gate.enter(&a.visitor, at.client.Addr()) != "" {
		return // refused; pion has started nothing
	}
	d.open[at] = a
	d.work.Go(func() { d.serve(at, a) })
}

func (d *DTLS) serve(at clientAt, a *Association) {
	defer d.gate.leave(&a.visitor)
	defer func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.open, at)
	}()
	ctx, cancel := context.WithTimeout(context.Background(), d.gate.limits.Handshake)
	defer cancel()
	why := ""
	err := a.conn.HandshakeContext(ctx)
	if err != nil {
		why = refusedTLS
		if ctx.Err() != nil {
			why = refusedSlow
		}
	}
	evicted := d.gate.opened(&a.visitor, why)
	if why != "" || evicted {
		a.Abort()
		d.cfg.Log.Debug("listen: association refused", "client", a.Remote, "cause", why, "evicted", evicted, "error", err)
		_ = a.conn.Close() // nothing is sent any more
		return
	}
	a.secured.Store(true)
	if state, ok := a.conn.ConnectionState(); ok {
		a.Protocol = state.NegotiatedProtocol
	}
	d.begun.Add(1)
	d.cfg.Handle(a)
	_ = a.Close() // says close_notify, if nobody has; pion closes side at the end of it
}

// Close ends all associations, with a close_notify, and waits for their handlers. After it Packet
// begins no more, and may still be called.
func (d *DTLS) Close() {
	d.gate.shut()
	d.mu.RLock()
	open := slices.Collect(maps.Values(d.open))
	d.mu.RUnlock()
	for _, a := range open {
		_ = a.Close() // its handler sees it
	}
	d.work.Wait()
}

// Stats returns the counters.
func (d *DTLS) Stats() DTLSStats {
	open, refused := d.gate.counts()
	return DTLSStats{Open: open, Begun: d.begun.Load(), Refused: refused}
}

// Abort ends the association at once: nothing is sent any more.
func (a *Association) Abort() { a.once.Do(func() { close(a.end) }) }

// push gives a datagram to pion, or drops it. What could only be forged, or fills pion's memory, is cut out.
func (a *Association) push(b []byte) {
	if len(b) > associationDatagram || len(a.in) == cap(a.in) {
		return
	}
	keep := make([]byte, 0, len(b))
	for {
		r, rest, ok := nextRecord(b)
		if !ok {
			break
		}
		b = rest
		if r.epoch == 0 && a.secured.Load() {
			continue // not protected, and the client's last flight ends with a record that is
		}
		if r.kind != recordData && r.kind != recordAlert && a.shook.Add(int64(len(r.raw))) > handshakeBytes {
			continue
		}
		keep = append(keep, r.raw...)
	}
	if len(keep) == 0 {
		return
	}
	select {
	case a.in <- keep:
	default:
	}
}

// side is an Association as the socket of pion.
type side Association

// ReadFrom implements net.PacketConn.
func (a *side) ReadFrom(b []byte) (int, net.Addr, error) {
	select {
	case <-a.end:
		return 0, nil, net.ErrClosed
	case <-a.read.Done():
		return 0, nil, os.ErrDeadlineExceeded
	default:
	}
	select {
	case in := <-a.in:
		return copy(b, in), a.conn.RemoteAddr(), nil
	case in := <-a.asked:
		return copy(b, in), a.conn.RemoteAddr(), nil
	case <-a.end:
		return 0, nil, net.ErrClosed
	case <-a.read.Done():
		return 0, nil, os.ErrDeadlineExceeded
	}
}

// WriteTo implements net.PacketConn.
func (a *side) WriteTo(b []byte, _ net.Addr) (int, error) {
	select {
	case <-a.end:
		return 0, net.ErrClosed
	default:
	}
	if a.second != nil {
		theirs := cookieOf(b)
		if theirs == nil {
			return len(b), a.send(b) // an alert to a ClientHello that it does not like
		}
		return len(b), a.exchange(theirs)
	}
	return len(b), a.send(b)
}

// exchange makes pion expect the cookie that the client has, in place of the one that it has drawn,
// and gives it the ClientHello that bears it. pion has no option for that; it runs in this goroutine
// now and compares the cookie later, so that nothing races with it. Were the field another, or of
// another meaning, the handshake would fail: what is proven by the cookie, we have seen proven.
func (a *side) exchange(theirs []byte) error {
	state := reflect.ValueOf(a.conn).Elem().FieldByName("state")
	if !state.IsValid() {
		return errForeignDTLS
	}
	field := state.FieldByName("cookie")
	if !field.IsValid() || field.Kind() != reflect.Slice || field.Type().Elem().Kind() != reflect.Uint8 || !bytes.Equal(field.Bytes(), theirs) {
		return errForeignDTLS
	}
	copy(field.Bytes(), a.cookie)
	a.asked <- a.second
	a.second = nil
	return nil
}

var errForeignDTLS = errors.New("this version of pion/dtls keeps its cookie elsewhere")

// send sends a datagram of pion's. The numbers of its unprotected records follow that of the
// ClientHello (RFC 6347 §4.2.1); pion counts from its own HelloVerifyRequest.
func (a *side) send(b []byte) error {
	for rest := b; a.shift > 0; {
		r, more, ok := nextRecord(rest)
		if !ok {
			break
		}
		if r.epoch == 0 {
			renumber(rest, r.number+a.shift)
		}
		rest = more
	}
	return a.server.cfg.Send(a.Listener, b, a.Remote)
}

// Close implements net.PacketConn.
func (a *side) Close() error {
	(*Association)(a).Abort()
	return nil
}

// LocalAddr implements net.PacketConn.
func (a *side) LocalAddr() net.Addr { return new(net.UDPAddr) }

// SetDeadline implements net.PacketConn.
func (a *side) SetDeadline(t time.Time) error { return a.SetReadDeadline(t) }

// SetReadDeadline implements net.PacketConn.
func (a *side) SetReadDeadline(t time.Time) error {
	a.read.Set(t)
	return nil
}

// SetWriteDeadline implements net.PacketConn: a write to a UDP socket does not wait.
func (a *side) SetWriteDeadline(time.Time) error { return nil }

// noLog silences pion: what happens is said here, once and by its cause.
type noLog struct{}

func (noLog) NewLogger(string) logging.LeveledLogger { return noLog{} }
func (noLog) Trace(string)                           {}
func (noLog) Tracef(string, ...any)                  {}
func (noLog) Debug(string)                           {}
func (noLog) Debugf(string, ...any)                  {}
func (noLog) Info(string)                            {}
func (noLog) Infof(string, ...any)                   {}
func (noLog) Warn(string)                            {}
func (noLog) Warnf(string, ...any)                   {}
func (noLog) Error(string)                           {}
func (noLog) Errorf(string, ...any)                  {}
