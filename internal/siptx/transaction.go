package siptx

import (
	"crypto/rand"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Timers of RFC 3261, table 4, that reliable transports leave.
const (
	// T1 is the round-trip estimate; transactions time out after 64*T1 (timers B, F, H, L, M).
	T1 = 500 * time.Millisecond
	// TimerC is how long a proxy waits for the final answer to an INVITE after each provisional
	// one (§16.6 step 11: more than 3 minutes).
	TimerC = 181 * time.Second
	// LastResort is how long an INVITE waits for its owner's next answer: longer than timer C and
	// what follows it, so that it ends only what was forgotten. Other requests wait 64*T1 + 2 s.
	LastResort = 240 * time.Second
	forgotten  = 64*T1 + 2*time.Second
)

// Bounds of the tables.
const (
	maxPerConn = 64    // live server transactions of one untrusted connection
	maxAll     = 16384 // live transactions of each kind
	reserved   = 4096  // of maxAll, server: for trusted connections alone
	maxStrange = 2048  // server transactions of strangers
)

// Conn carries messages reliably and in order. Implementations are pointers: they are compared.
type Conn interface {
	// Send queues m, never blocks and keeps m. A connection that cannot queue ends itself.
	Send(m []byte)
	// Via is what this side writes into a Via on the connection: "TCP" and host:port.
	Via() (transport, sentBy string)
	// Trusted connections have no bound of their own on transactions.
	Trusted() bool
}

// Narrow is a Conn that may be refused requests because too much waits on it already, so that others
// do not make it end. A BYE is sent all the same.
type Narrow interface {
	Conn
	Room(n int) bool // for n bytes
}

// Layer is the transaction layer of one owner. It has no lock: the owner calls it, and it calls
// the owner, under the lock that Do takes.
type Layer struct {
	// Do runs the work of a timer under the owner's lock.
	Do func(work func())
	// OnRequest is given each new request but ACK and CANCEL. It must answer t, now or later.
	OnRequest func(t *ServerTx)
	// OnAck is given an ACK that belongs to no failed INVITE: it ends a 2xx, end to end.
	OnAck func(c Conn, m *Message)
	// Stranger says whether an untrusted connection has no standing yet; nil: none is strange. An
	// INVITE of a stranger is not kept, so that nobody need acknowledge its refusal: OnRequest must give the final
	// answer before it returns.
	Stranger func(c Conn) bool

	conns   map[Conn]*tables
	server  int
	strange int // of server
	client  int
	closed  bool
}

type tables struct {
	server map[string]*ServerTx
	client map[string]*ClientTx
}

// ServerTx is a server transaction (RFC 3261 §17.2, RFC 6026 §8).
type ServerTx struct {
	Request *Message
	Conn    Conn
	// OnCancel is called once, when the client cancels an INVITE that has no final answer. The
	// CANCEL itself has been answered.
	OnCancel func(cancel *Message)
	// OnGone is called when the connection is lost before a final answer.
	OnGone func()

	l     *Layer
	key   string
	state state
	tag   string // of To, where Respond's message has none
	last  []byte // the final answer to a failed INVITE, until its ACK
	timer *time.Timer

	strange bool // counted in Layer.strange
	loose   bool // in no table: it ends with its final answer
}

// ClientTx is a client transaction (RFC 3261 §17.1, RFC 6026 §8).
type ClientTx struct {
	Request *Message // as sent, with our Via
	Conn    Conn

	l           *Layer
	key         string
	state       state
	on          func(*Message)
	timer       *time.Timer
	provisional bool
	cancel      []Header // fields for the CANCEL; not nil: to be cancelled
	cancelSent  bool
}

type state uint8

const (
	proceeding state = iota // no final answer yet
	accepted                // INVITE: 2xx seen; more may follow
	completed               // INVITE, server: failed, ACK awaited
	terminated
)

func (l *Layer) tables(c Conn) *tables {
	t := l.conns[c]
	if t == nil {
		if l.conns == nil {
			l.conns = map[Conn]*tables{}
		}
		t = &tables{map[string]*ServerTx{}, map[string]*ClientTx{}}
		l.conns[c] = t
	}
	return t
}

// Live counts transactions that wait for something.
func (l *Layer) Live() (server, client int) { return l.server, l.client }

// Waiting counts client transactions that have no final answer yet.
func (l *Layer) Waiting() int {
	n := 0
	for _, tb := range l.conns {
		for _, t := range tb.client {
			if t.state == proceeding {
				n++
			}
		}
	}
	return n
}

// after starts a timer whose work is done only while live says so.
func (l *Layer) after(d time.Duration, live func() bool, work func()) *time.Timer {
	return time.AfterFunc(d, func() {
		l.Do(func() {
			if !l.closed && live() {
				work()
			}
		})
	})
}

// Receive takes a message off a connection.
func (l *Layer) Receive(c Conn, m *Message) {
	if l.closed {
		return
	}
	if !m.IsRequest() {
		l.response(c, m)
		return
	}
	via, err := m.Via()
	if err != nil {
		return // Parse lets none through
	}
	key := via.Params.Get("branch") + " " + via.SentBy + " "
	var t *tables
	if t = l.conns[c]; t == nil {
		t = &tables{} // reads of nil maps
	}
	switch m.Method {
	case "ACK":
		tx := t.server[key+"INVITE"]
		if tx != nil && tx.state == completed {
			tx.end()
			return
		}
		if tx == nil || tx.state == accepted {
			l.OnAck(c, m)
		}
		return
	case "CANCEL":
		tx := t.server[key+"INVITE"]
		if tx == nil {
			send(c, withTag(m.Response(481, "Call/Transaction Does Not Exist")))
			return
		}
		ok := m.Response(200, "OK")
		setTag(ok, tx.tag)
		send(c, ok)
		if on := tx.OnCancel; tx.state == proceeding && on != nil {
			tx.OnCancel = nil
			on(m)
		}
		return
	}
	if tx := t.server[key+m.Method]; tx != nil {
		if tx.last != nil {
			c.Send(tx.last)
		}
		return
	}
	strange := !c.Trusted() && l.Stranger != nil && l.Stranger(c)
	tx := &ServerTx{Request: m, Conn: c, l: l, key: key + m.Method, tag: NewTag(), loose: strange && m.Method == "INVITE"}
	if tx.loose {
		l.OnRequest(tx)
		return
	}
	if l.server >= maxAll || !c.Trusted() && (len(t.server) >= maxPerConn || l.server >= maxAll-reserved) || strange && l.strange >= maxStrange {
		send(c, withTag(m.Response(503, "Too Many Transactions", Header{"Retry-After", "5"})))
		return
	}
	l.tables(c).server[tx.key] = tx
	l.server++
	if tx.strange = strange; strange {
		l.strange++
	}
	tx.wait()
	l.OnRequest(tx)
}

// wait begins the time in which the owner must answer, anew. What it forgets is answered in its
// place, and its OnGone called, so that it ends what it had begun.
func (t *ServerTx) wait() {
	if t.timer != nil {
		t.timer.Stop()
	}
	d, status := forgotten, 500 // a 408 would help nobody (RFC 4320 §4.2)
	if t.Request.Method == "INVITE" {
		d, status = LastResort, 408
	}
	t.timer = t.l.after(d, func() bool { return t.state == proceeding }, func() {
		gone := t.OnGone
		t.Reply(status, "Not Answered")
		if gone != nil {
			gone()
		}
	})
}

func send(c Conn, m *Message) { c.Send(m.Append(nil)) }

// NewTag is a random tag (RFC 3261 §19.3), also good as a Call-ID.
func NewTag() string { return rand.Text()[:16] }

func withTag(m *Message) *Message { setTag(m, NewTag()); return m }

// setTag gives To a tag where it has none.
func setTag(m *Message, tag string) {
	a, err := ParseNameAddr(m.Get("To"))
	if err != nil {
		return
	}
	if _, ok := a.Params.Lookup("tag"); !ok {
		m.Set("To", m.Get("To")+";tag="+tag)
	}
}

// Tag is what Reply writes into To.
func (t *ServerTx) Tag() string { return t.tag }

// Open says whether a final answer is still to be given.
func (t *ServerTx) Open() bool { return t.state == proceeding }

// Reply makes an answer of the request and responds with it.
func (t *ServerTx) Reply(status int, reason string, fields ...Header) {
	t.Respond(t.Request.Response(status, reason, fields...))
}

// Respond sends an answer. After a final one only further 2xx to an INVITE are sent; others are
// dropped.
func (t *ServerTx) Respond(m *Message) {
	switch {
	case t.state == terminated, t.state == completed, t.state == accepted && (m.Status < 200 || m.Status > 299):
		return
	}
	if m.Status != 100 {
		setTag(m, t.tag)
	}
	b := m.Append(nil)
	if fits(b) != nil {
		if m.Status < 200 || t.state == accepted {
			return // no more than news
		}
		m = t.Request.Response(500, "Answer Too Large")
		setTag(m, t.tag)
		b = m.Append(nil)
	}
	t.Conn.Send(b)
	if t.timer != nil && t.state == proceeding && m.Status >= 200 {
		t.timer.Stop() // of wait
	}
	switch {
	case t.state == accepted:
	case m.Status < 200:
		if !t.loose && t.Request.Method == "INVITE" {
			t.wait()
		}
	case t.loose, t.Request.Method != "INVITE":
		t.end() // timer J is 0 on reliable transports
	case m.Status < 300:
		t.state = accepted
		t.timer = t.l.after(64*T1, func() bool { return t.state == accepted }, t.end) // timer L
	default:
		t.state, t.last = completed, b
		t.timer = t.l.after(64*T1, func() bool { return t.state == completed }, t.end) // timer H
	}
}

func (t *ServerTx) end() {
	if t.state == terminated {
		return
	}
	t.state = terminated
	if t.timer != nil {
		t.timer.Stop()
	}
	if tb := t.l.conns[t.Conn]; tb != nil && tb.server[t.key] == t {
		delete(tb.server, t.key)
		t.l.server--
		if t.strange {
			t.l.strange--
		}
		t.l.tidy(t.Conn, tb)
	}
}

func (l *Layer) tidy(c Conn, tb *tables) {
	if len(tb.server) == 0 && len(tb.client) == 0 {
		delete(l.conns, c)
	}
}

// Request sends m, which has no Via of ours yet, in a new client transaction. on is given every
// answer, and at last a final one in any case: a Local 408 at a timeout, a Local 503 where the connection is lost
// or the table full, a Local 513 where m is over the peer's bounds,
// a Local 480 where c has no room. on is not called before Request returns.
func (l *Layer) Request(c Conn, m *Message, on func(*Message)) *ClientTx {
	branch := "z9hG4bK" + rand.Text()
	transport, sentBy := c.Via()
	m.Push("Via", fmt.Sprintf("SIP/2.0/%s %s;branch=%s", transport, sentBy, branch))
	t := &ClientTx{Request: m, Conn: c, l: l, key: branch + " " + m.Method, on: on}
	if l.closed || l.client >= maxAll {
		t.timer = l.after(0, func() bool { return t.state == proceeding }, func() { t.final(t.local(503, "Too Many Transactions")) })
		return t
	}
	b := m.Append(nil)
	if fits(b) != nil {
		t.timer = l.after(0, func() bool { return t.state == proceeding }, func() { t.final(t.local(513, "Message Too Large")) })
		return t
	}
	if n, ok := c.(Narrow); ok && m.Method != "BYE" && !n.Room(len(b)) {
		t.timer = l.after(0, func() bool { return t.state == proceeding }, func() { t.final(t.local(480, "Connection Is Congested")) })
		return t
	}
	l.tables(c).client[t.key] = t
	l.client++
	t.timer = l.after(64*T1, func() bool { return t.state == proceeding }, func() { // timers B and F
		t.final(t.local(408, "Request Timeout"))
	})
	c.Send(b)
	return t
}

func (t *ClientTx) local(status int, reason string) *Message {
	r := t.Request.Response(status, reason)
	r.Local = true
	setTag(r, NewTag())
	return r
}

// response matches an answer to its client transaction (RFC 3261 §17.1.3). It must come on the
// connection that the request went out on.
func (l *Layer) response(c Conn, m *Message) {
	via, err := m.Via()
	_, method, ok := m.CSeq()
	tb := l.conns[c]
	if err != nil || !ok || tb == nil {
		return
	}
	t := tb.client[via.Params.Get("branch")+" "+method]
	if t == nil {
		return
	}
	switch {
	case m.Status < 200:
		if t.state != proceeding {
			return
		}
		if method == "INVITE" {
			t.provisional = true
			if !t.cancelSent {
				t.timer.Stop()
				t.timer = l.after(TimerC, func() bool { return t.state == proceeding && !t.cancelSent }, func() { t.Cancel() })
			}
			if t.cancel != nil && !t.cancelSent {
				t.sendCancel()
			}
		}
		t.on(m)
	case method == "INVITE" && m.Status < 300:
		if t.state == proceeding {
			t.state = accepted
			t.timer.Stop()
			t.timer = l.after(64*T1, func() bool { return t.state == accepted }, t.end) // timer M
		}
		t.on(m)
	default:
		if t.state != proceeding {
			return
		}
		if method == "INVITE" {
			send(c, t.ack(m))
		}
		t.final(m)
	}
}

// ack is the ACK of a failed INVITE, hop by hop (RFC 3261 §17.1.1.3).
func (t *ClientTx) ack(m *Message) *Message {
	a := t.hop("ACK")
	a.Set("To", m.Get("To"))
	return a
}

// hop makes an ACK or CANCEL of the transaction's own hop.
func (t *ClientTx) hop(method string) *Message {
	seq, _, _ := t.Request.CSeq()
	m := &Message{Method: method, URI: t.Request.URI}
	for _, h := range t.Request.Headers {
		switch {
		case strings.EqualFold(h.Name, "Via"):
			if m.Get("Via") == "" {
				m.Add("Via", Split(h.Value, ',')[0])
			}
		case strings.EqualFold(h.Name, "Route"), strings.EqualFold(h.Name, "From"), strings.EqualFold(h.Name, "To"), strings.EqualFold(h.Name, "Call-ID"):
			m.Headers = append(m.Headers, h)
		}
	}
	m.Add("CSeq", strconv.FormatUint(uint64(seq), 10)+" "+method)
	m.Add("Max-Forwards", "70")
	return m
}

// Cancel asks the other side to give an INVITE up (RFC 3261 §9.1): at once if it has answered
// provisionally, else as soon as it does. The final answer still comes to on; if none does within
// 64*T1, a Local 487. A second call changes nothing.
func (t *ClientTx) Cancel(fields ...Header) {
	if t.state != proceeding || t.cancel != nil || t.Request.Method != "INVITE" {
		return
	}
	t.cancel = append([]Header{}, fields...)
	if t.provisional {
		t.sendCancel()
	}
}

func (t *ClientTx) sendCancel() {
	t.cancelSent = true
	m := t.hop("CANCEL")
	m.Headers = append(m.Headers, t.cancel...)
	send(t.Conn, m) // its answer says nothing that the INVITE's does not
	t.timer.Stop()
	t.timer = t.l.after(64*T1, func() bool { return t.state == proceeding }, func() {
		t.final(t.local(487, "Request Terminated"))
	})
}

// final ends the transaction with its last answer.
func (t *ClientTx) final(m *Message) {
	if t.state == terminated {
		return
	}
	t.end()
	t.on(m)
}

func (t *ClientTx) end() {
	if t.state == terminated {
		return
	}
	t.state = terminated
	t.timer.Stop()
	if tb := t.l.conns[t.Conn]; tb != nil && tb.client[t.key] == t {
		delete(tb.client, t.key)
		t.l.client--
		t.l.tidy(t.Conn, tb)
	}
}

// ConnLost ends the transactions of a connection that is gone.
func (l *Layer) ConnLost(c Conn) {
	tb := l.conns[c]
	if tb == nil {
		return
	}
	for _, t := range tb.client {
		if t.state == proceeding {
			t.final(t.local(503, "Connection Lost"))
		} else {
			t.end()
		}
	}
	for _, t := range tb.server {
		open, gone := t.state == proceeding, t.OnGone
		t.end()
		if open && gone != nil {
			gone()
		}
	}
}

// Close ends every transaction silently and stops the timers.
func (l *Layer) Close() {
	l.closed = true
	for _, tb := range l.conns {
		for _, t := range tb.client {
			t.end()
		}
		for _, t := range tb.server {
			t.end()
		}
	}
}
