package epcscf

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gobwas/ws"
	"golang.org/x/time/rate"

	"wicgate/internal/claims"
	"wicgate/internal/siptx"
)

const (
	upgradeTime = 5 * time.Second  // to write the 101
	idleTime    = 60 * time.Second // without a frame: two pings unanswered
	frameTime   = 20 * time.Second // from a message's first byte to its last
	writeTime   = 10 * time.Second
	closeTime   = 2 * time.Second // of the close handshake
	queueLength = 64              // messages that wait for a slow browser
	queueBytes  = 256 << 10       // of them, but a single one may always wait
	maxBad      = 8               // malformed messages that are answered before the flow is closed
	messageRate = 50              // per second, lasting
	messageBump = 200             // at once
)

// flow is one WebSocket (RFC 5626 §2). It implements siptx.Conn.
type flow struct {
	e         *Edge
	id        flowID
	token     string
	source    netip.Addr
	transport string // "WSS" or "WS", for Via
	conn      net.Conn
	queue     chan []byte   // frames; never closed, the writer leaves by done
	waiting   atomic.Int64  // bytes in the queue
	done      chan struct{} // closed by close or abort
	once      sync.Once
	last      []byte // the close frame; set before done is closed
	cause     string // why it ended; set before done is closed

	deadline sync.Mutex // orders those who set the connection's deadlines
	leaving  bool       // guarded by deadline: the close handshake runs, and nobody else sets them

	// Of the reader alone: the last token that was good.
	seen      [sha256.Size]byte
	seenGood  *claims.SIP
	seenBy    signer
	malformed int

	unregistered *time.Timer // closes the flow unless it has registered

	// Guarded by Edge.mu.
	gone      bool
	presented credential // of the request that is being received
	bindings  map[string]*binding
	calls     map[string]*call // by Call-ID
}

// credential is what a request brought.
type credential struct {
	found  bool
	claims *claims.SIP // nil where it is not good
	err    error       // why not
}

// Handler is the WebSocket endpoint.
func (e *Edge) Handler() http.Handler { return http.HandlerFunc(e.upgrade) }

func (e *Edge) upgrade(w http.ResponseWriter, r *http.Request) {
	source := sourceOf(r)
	refuse := func(counter *uint64, status int, text string) {
		e.locked(func() { *counter++ })
		e.log.Info("WebSocket refused", "source", source, "cause", text)
		http.Error(w, text, status)
	}
	if origin := r.Header.Values("Origin"); len(origin) != 1 || !slices.Contains(e.cfg.Origins, origin[0]) {
		refuse(&e.stats.Refused.Origin, http.StatusForbidden, "this origin may not open a WebSocket here")
		return
	}
	if !offersSIP(r) {
		refuse(&e.stats.Refused.Protocol, http.StatusBadRequest, "sub-protocol sip is required (RFC 7118 §3)")
		return
	}
	if !strings.EqualFold(r.Header.Get("Upgrade"), "websocket") { // it need not be counted in to be told
		http.Error(w, "this is a WebSocket endpoint", http.StatusBadRequest)
		return
	}
	counted := countedAs(source)
	if status, text := e.admit(counted); status != 0 {
		refuse(&e.stats.Refused.TooMany, status, text)
		return
	}
	defer e.wg.Done()
	defer e.leave(counted)
	u := ws.HTTPUpgrader{Timeout: upgradeTime, Protocol: func(p string) bool { return p == "sip" }}
	conn, rw, _, err := u.Upgrade(r, w)
	if err != nil {
		if conn != nil {
			_ = conn.Close() // the refusal has been written
		}
		e.log.Info("WebSocket refused", "source", source, "cause", err)
		return
	}
	f := e.newFlow(conn, source, r.TLS != nil)
	if f == nil {
		_ = conn.Close() // the edge began to shut down this very moment
		return
	}
	f.run(rw.Reader)
}

func sourceOf(r *http.Request) netip.Addr {
	a, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return a.Addr().Unmap()
}

// countedAs is the address that a source's WebSockets are counted under: of IPv6 the /64, of which
// one host may take as many addresses as it likes.
func countedAs(a netip.Addr) netip.Addr {
	if a.Is6() {
		return netip.PrefixFrom(a.WithZone(""), 64).Masked().Addr()
	}
	return a
}

func offersSIP(r *http.Request) bool {
	for _, v := range r.Header.Values("Sec-WebSocket-Protocol") {
		for p := range strings.SplitSeq(v, ",") {
			if strings.TrimSpace(p) == "sip" {
				return true
			}
		}
	}
	return false
}

// admit counts a connection in, or says why not. What it admits calls leave and wg.Done.
func (e *Edge) admit(source netip.Addr) (status int, text string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case !e.serving:
		return http.StatusServiceUnavailable, "the edge is not serving"
	case e.open >= e.cfg.MaxFlows:
		return http.StatusServiceUnavailable, "the edge has as many WebSockets as it may"
	case e.sources[source] >= e.cfg.MaxFlowsPerSource:
		return http.StatusTooManyRequests, "too many WebSockets of this address"
	}
	e.sources[source]++
	e.open++
	e.wg.Add(1)
	return 0, ""
}

func (e *Edge) leave(source netip.Addr) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.open--
	if e.sources[source]--; e.sources[source] == 0 {
		delete(e.sources, source)
	}
}

func (e *Edge) newFlow(conn net.Conn, source netip.Addr, secure bool) *flow {
	f := &flow{
		e: e, source: source, transport: "WS", conn: conn,
		queue: make(chan []byte, queueLength), done: make(chan struct{}),
		bindings: map[string]*binding{}, calls: map[string]*call{},
	}
	if secure {
		f.transport = "WSS"
	}
	rand.Read(f.id[:])
	f.token = sealFlow(e.cfg.FlowKey, e.cfg.Name, f.id)
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.serving {
		return nil
	}
	e.flows[f.id] = f
	e.stats.FlowsTotal++
	f.unregistered = time.AfterFunc(e.cfg.RegisterWithin, func() {
		e.locked(func() {
			if !f.gone && isStranger(f) {
				f.close(ws.StatusPolicyViolation, "no registration in time")
			}
		})
	})
	return f
}

// isStranger says whether nothing hangs on the connection yet that took a good token.
func isStranger(c siptx.Conn) bool {
	f, browser := c.(*flow)
	return browser && len(f.bindings) == 0 && len(f.calls) == 0
}

// Send implements siptx.Conn.
func (f *flow) Send(m []byte) {
	select {
	case <-f.done:
	default:
		f.enqueue(dataFrame(m))
	}
}

func (f *flow) enqueue(frame []byte) {
	n := int64(len(frame))
	if all := f.waiting.Add(n); all > max(n, queueBytes) {
		f.abort(fmt.Sprintf("%d bytes wait for a browser that does not read", all))
		return
	}
	select {
	case <-f.done:
	case f.queue <- frame:
	default:
		f.abort(fmt.Sprintf("%d messages wait for a browser that does not read", queueLength))
	}
}

// Room implements siptx.Narrow: requests of others fill half of the queue, so that they do not end
// the flow; answers and what the edge says itself have the rest.
func (f *flow) Room(n int) bool {
	return len(f.queue) < queueLength/2 && (f.waiting.Load() == 0 || f.waiting.Load()+int64(n) <= queueBytes/2)
}

// Via implements siptx.Conn.
func (f *flow) Via() (transport, sentBy string) { return f.transport, f.e.host }

// Trusted implements siptx.Conn.
func (f *flow) Trusted() bool { return false }

// close sends what waits, then a close frame, and gives the peer 2 s in all to take them and to
// answer. It does not wait for that.
func (f *flow) close(code ws.StatusCode, text string) {
	f.once.Do(func() {
		f.last, f.cause = closeFrame(code, text), text
		close(f.done)
		f.deadline.Lock()
		defer f.deadline.Unlock()
		f.leaving = true
		_ = f.conn.SetDeadline(time.Now().Add(closeTime)) // also of a write that is stuck; a failure shows there
	})
}

// abort ends the connection at once. It does not wait, as Close of a TLS connection may: it lets
// the reader and the writer fail, and run closes.
func (f *flow) abort(cause string) {
	f.once.Do(func() {
		f.cause = cause
		close(f.done)
	})
	f.deadline.Lock()
	defer f.deadline.Unlock()
	f.leaving = true
	_ = f.conn.SetDeadline(time.Unix(1, 0)) // fails only where the connection has gone already
}

// run reads until the flow ends, and then takes everything away that hung on it.
func (f *flow) run(r *bufio.Reader) {
	var writer sync.WaitGroup
	clean := false
	writer.Go(func() { clean = f.write() })
	ctx, cancel := context.WithCancel(context.Background())
	err := f.read(ctx, r)
	cancel()
	var c closing
	switch {
	case errors.As(err, &c):
		if c.code == ws.StatusProtocolError || c.code == ws.StatusInvalidFramePayloadData || c.code == ws.StatusMessageTooBig {
			f.e.locked(func() { f.e.stats.Refused.Malformed++ })
		}
		f.close(c.code, c.text)
	default:
		f.abort(err.Error())
	}
	writer.Wait()
	if c, ok := f.conn.(*tls.Conn); ok && !clean {
		_ = c.NetConn().Close() // else Close would wait for a peer that does not read, 5 s, to tell it
	}
	_ = f.conn.Close() // closed by the peer, or by us
	f.e.log.Info("WebSocket ended", "source", f.source, "cause", f.cause)
	f.e.locked(func() { f.e.flowGone(f) })
}

// write sends frames and pings until the flow is done, and then the close frame. It says whether the
// peer took all that.
func (f *flow) write() (all bool) {
	ping := time.NewTicker(flowTimer)
	defer ping.Stop()
	put := func(b []byte) bool {
		f.deadline.Lock()
		if !f.leaving {
			_ = f.conn.SetWriteDeadline(time.Now().Add(writeTime)) // a failure shows in the write
		}
		f.deadline.Unlock()
		if _, err := f.conn.Write(b); err != nil {
			f.abort("write: " + err.Error())
			return false
		}
		return true
	}
	for {
		select {
		case b := <-f.queue:
			f.waiting.Add(-int64(len(b)))
			if !put(b) {
				return false
			}
		case <-ping.C:
			if !put(ws.CompiledPing) {
				return false
			}
		case <-f.done:
			return f.sayGoodbye()
		}
	}
}

// sayGoodbye writes what waits and the close frame, in what close has left of the time.
func (f *flow) sayGoodbye() (all bool) {
	if f.last == nil {
		return false
	}
	for {
		select {
		case b := <-f.queue:
			if _, err := f.conn.Write(b); err != nil {
				return false
			}
			continue
		default:
		}
		break
	}
	_, err := f.conn.Write(f.last) // if it cannot be written, the peer learns it from the end of the connection
	return err == nil
}

// within sets how long the reader waits, unless the close handshake has set it already.
func (f *flow) within(d time.Duration) {
	f.deadline.Lock()
	defer f.deadline.Unlock()
	if !f.leaving {
		_ = f.conn.SetReadDeadline(time.Now().Add(d)) // a failure shows in the read
	}
}

func (f *flow) read(ctx context.Context, r *bufio.Reader) error {
	limit := rate.NewLimiter(messageRate, messageBump)
	in := frames{r: r, begun: func() { f.within(frameTime) }, idle: func() { f.within(idleTime) }}
	in.control = func(op ws.OpCode, payload []byte) error {
		switch op {
		case ws.OpPing:
			f.enqueue(ws.MustCompileFrame(ws.NewPongFrame(payload)))
		case ws.OpClose:
			code, text := ws.ParseCloseFrameData(payload)
			if code == 0 {
				code = ws.StatusNormalClosure
			}
			if err := ws.CheckCloseFrameData(code, text); err != nil {
				return closing{ws.StatusProtocolError, "malformed close frame"}
			}
			return closing{code, "closed by the browser"}
		}
		if !limit.Allow() {
			return closing{ws.StatusPolicyViolation, "too many frames"}
		}
		return nil
	}
	for {
		f.within(idleTime)
		b, err := in.next()
		if err != nil {
			select {
			case <-f.done: // the peer's answer to our close frame, or its absence
				return closing{}
			default:
				return err
			}
		}
		if !limit.Allow() {
			f.e.locked(func() { f.e.stats.Refused.Rate++ })
			return closing{ws.StatusPolicyViolation, "too many messages"}
		}
		if err := f.message(ctx, b); err != nil {
			return err
		}
	}
}

// message takes one WebSocket message: a SIP message, or a keep-alive (RFC 5626 §3.5.1).
func (f *flow) message(ctx context.Context, b []byte) error {
	switch string(b) {
	case "\r\n\r\n":
		f.Send([]byte("\r\n"))
		return nil
	case "\r\n", "":
		return nil
	}
	e := f.e
	m, err := siptx.ParseClient(b, false)
	if err != nil {
		e.locked(func() { e.stats.Refused.Malformed++ })
		e.log.Info("message refused", "source", f.source, "cause", err)
		answer, ok := siptx.Refuse(b, 400, "Bad Request")
		// An ACK is never answered; one of a refused INVITE has the same faults.
		if f.malformed++; !ok && !bytes.HasPrefix(b, []byte("ACK ")) || f.malformed > maxBad {
			return closing{ws.StatusUnsupportedData, "malformed SIP message"}
		}
		if ok {
			f.Send(answer)
		}
		return nil
	}
	var cred credential
	if m.IsRequest() {
		cred = f.credential(ctx, m)
	}
	receive := func() {
		if f.gone {
			return
		}
		f.presented = cred
		e.layer.Receive(f, m)
		f.presented = credential{}
	}
	if e.fault("message of a browser", func() { e.locked(receive) }) {
		return closing{ws.StatusInternalServerError, "internal error"}
	}
	return nil
}

// credential checks the bearer token of a request. It runs outside of the lock, as it may have to
// fetch keys. A token that was good on this flow is not verified again, only its time and its key's place.
func (f *flow) credential(ctx context.Context, m *siptx.Message) credential {
	token, found := bearer(m)
	if !found {
		return credential{}
	}
	now := time.Now()
	sum := sha256.Sum256([]byte(token))
	if f.seenGood != nil && sum == f.seen && f.seenBy.stands(ctx, f.e.cfg.Keys) {
		if err := f.seenGood.Check(now, f.e.cfg.Issuers, f.e.cfg.Audience); err != nil {
			return credential{found: true, err: err}
		}
		if f.e.revoked(f.seenGood.Pseudonym) {
			return credential{found: true, err: errRevoked}
		}
		return credential{found: true, claims: f.seenGood}
	}
	c, by, err := f.e.verify(ctx, token, now)
	if err != nil {
		return credential{found: true, err: err}
	}
	f.seen, f.seenGood, f.seenBy = sum, c, by
	return credential{found: true, claims: c}
}

// flowGone ends what hung on the flow: calls, towards the core; bindings, at the core.
func (e *Edge) flowGone(f *flow) {
	if f.gone {
		return
	}
	f.gone = true
	f.unregistered.Stop()
	delete(e.flows, f.id)
	for _, c := range f.calls {
		c.end(ending{cause: "websocket-gone", status: 430, phrase: "Flow Failed", failed: true}, false, true)
	}
	for _, b := range f.bindings {
		e.unbind(b, true)
	}
	e.layer.ConnLost(f)
}
