package epcscf

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"time"

	"wicgate/internal/iq"
	"wicgate/internal/siptx"
)

const (
	maxWork       = 32 // pieces of work that wait in one call
	maxCallRoutes = 16
	maxFlowCalls  = 8 // of one WebSocket
	maxRinging    = 4 // of them, not answered yet, towards its browser
	iqTime        = iq.Deadline + 100*time.Millisecond
)

// call is one call leg of a browser, from its INVITE until its gateway session is released. A
// call between two browsers of one edge is two of them, joined by the core. Fields are guarded by Edge.mu.
type call struct {
	e       *Edge
	f       *flow
	id      string // Iq session; also in the log
	impu    string
	subject string
	alias   string
	out     bool // from the browser
	callID  string

	browser, core party

	invite *siptx.ServerTx // the first one
	branch *siptx.ClientTx // of the first one; nil until the gateway has answered
	answer answerState

	confirmed bool // a 2xx has been passed on
	ended     bool
	ending    ending
	guest     bool        // begun by a guest
	longest   *time.Timer // of a guest's call; nil until it is answered
	begun     time.Time
	answered  time.Time

	seq     uint32      // of Iq
	numbers []int       // of the gateway's streams, by m-line; -1: none yet
	media   []string    // of the streams, by number
	open    bool        // the gateway has, or may have, a session
	streams []iq.Stream // as last agreed, to go back to when a renegotiation fails

	agreed *agreement // with streams; see restart
	ownSeq uint32     // CSeq of the browser's newest INVITE that the edge itself has answered with 200: its ACK goes nowhere

	pending map[*siptx.ServerTx]struct{} // INVITEs and UPDATEs inside the dialog; some may have been answered

	work []func() // in order, by one goroutine while there is any
	busy bool
}

// party is what is known of the user agent on one side.
type party struct {
	tag     string
	uri     string   // of its From or To
	contact string   // its remote target
	route   []string // towards it; the core's only
	seq     uint32   // highest CSeq that it has sent
	origin  *origin  // of what is written to it
}

// answerState remembers an answer that has gone out early (RFC 3261 §13.2.1): the 2xx repeats it.
type answerState struct {
	done     bool
	raw, tag string // as it came
	body     []byte // as it went out
}

// ending is why a call ends.
type ending struct {
	cause  string // one of few words, for the log
	detail string
	status int // what a call without an answer is answered with; also in Reason of a BYE
	phrase string
	failed bool // ended by the edge, not by a user
}

// reason is the Reason field (RFC 3326) that tells the other side why.
func (w ending) reason() siptx.Header {
	text := strings.NewReplacer(`"`, "'", `\`, "/").Replace(w.phrase) // a peer's phrase may be in it
	return siptx.Header{Name: "Reason", Value: fmt.Sprintf(`SIP;cause=%d;text="%s"`, w.status, text)}
}

// party and other of the side that a message came from.
func (c *call) sides(browser bool) (from, to *party) {
	if browser {
		return &c.browser, &c.core
	}
	return &c.core, &c.browser
}

// startCall takes an INVITE without a dialog.
func (e *Edge) startCall(tx *siptx.ServerTx, f *flow, b *binding, out bool) {
	m := tx.Request
	if len(e.calls) >= e.cfg.MaxCalls {
		e.stats.Refused.TooMany++
		e.refuse(tx, 503, "Too Many Calls", "the edge has as many calls as it may", siptx.Header{Name: "Retry-After", Value: "10"})
		return
	}
	if f.calls[m.CallID()] != nil {
		e.refuse(tx, 482, "Loop Detected", "the WebSocket has a call of this Call-ID") // or a call to oneself on the same WebSocket
		return
	}
	ringing := 0
	for _, c := range f.calls {
		if !c.out && !c.confirmed {
			ringing++
		}
	}
	switch {
	case !out && (len(f.calls) >= maxFlowCalls || ringing >= maxRinging):
		e.stats.Refused.TooMany++
		e.refuse(tx, 486, "Busy Here", "the browser has as many calls as it may")
		return
	case len(f.calls) >= maxFlowCalls:
		e.stats.Refused.TooMany++
		e.refuse(tx, 503, "Too Many Calls", "the browser has as many calls as it may", siptx.Header{Name: "Retry-After", Value: "10"})
		return
	}
	c := &call{
		e: e, f: f, id: rand.Text(), impu: b.impu, subject: b.subject, alias: b.alias, out: out, callID: m.CallID(),
		invite: tx, guest: out && b.guest, begun: time.Now(),
	}
	c.browser.origin, c.core.origin = newOrigin(), newOrigin()
	from, to := c.sides(out)
	from.tag, from.uri, to.uri = m.FromTag(), uriOf(m.Get("From")), uriOf(m.Get("To"))
	if out {
		from.uri = b.impu // as toCore writes it
	}
	from.contact = contactOf(m)
	if from.contact == "" {
		e.refuse(tx, 400, "Contact Is Required", "no Contact, or several, in an INVITE")
		return
	}
	c.count(m, out)
	if out {
		c.core.route = b.serviceRoute
	} else {
		c.core.route = recordRoute(m, false)
		c.browser.contact = b.contact.URI
	}
	f.calls[c.callID] = c
	e.calls[c.id] = c
	e.stats.CallsTotal++
	e.log.Info("call begins", "call", c.id, "pseudonym", c.alias, "from browser", out)
	tx.Reply(100, "Trying")
	tx.OnCancel = func(m *siptx.Message) {
		// The CANCEL goes on; the answer that it brings forth, mostly 487, comes back by the INVITE's way.
		w := ending{cause: "cancelled", status: 487, phrase: "Request Terminated"}
		if c.branch == nil {
			c.end(w, true, true)
			return
		}
		c.branch.Cancel(keepReason(m)...)
	}
	tx.OnGone = func() { // the core's connection; a lost flow ends its calls by itself
		c.end(ending{cause: "core-gone", status: 503, phrase: "Core Connection Lost", failed: true}, true, false)
	}
	c.offer(&exchange{tx: tx, browser: out, first: true})
}

func keepReason(m *siptx.Message) []siptx.Header {
	var list []siptx.Header
	for _, v := range m.All("Reason") {
		list = append(list, siptx.Header{Name: "Reason", Value: v})
	}
	return list
}

func uriOf(field string) string {
	a, err := siptx.ParseNameAddr(field)
	if err != nil {
		return ""
	}
	return a.URI
}

func aorOf(uri string) string {
	u, err := siptx.ParseURI(uri)
	if err != nil {
		return ""
	}
	return u.AOR()
}

func contactOf(m *siptx.Message) string {
	list := m.List("Contact")
	if len(list) != 1 {
		return ""
	}
	return uriOf(list[0])
}

// recordRoute is the route set of a message: in order for who is called, reversed for who calls
// (RFC 3261 §12.1).
func recordRoute(m *siptx.Message, reversed bool) []string {
	var list []string
	for _, v := range m.List("Record-Route") {
		if u := uriOf(v); u != "" && len(list) < maxCallRoutes {
			list = append(list, u)
		}
	}
	if reversed {
		slices.Reverse(list)
	}
	return list
}

// ownRoute is what this edge writes into Record-Route towards the core.
func (c *call) ownRoute() string { return "sip:" + c.f.token + "@" + c.e.sentBy + ";transport=tcp;lr" }

// knows says whether a request inside a dialog is of this one.
func (c *call) knows(m *siptx.Message, browser bool) bool {
	from, to := c.sides(browser)
	return m.FromTag() == from.tag && m.ToTag() == to.tag && to.tag != ""
}

// hangsUpEarly says whether m is a BYE of who is called before anything that names his tag has come:
// it has overtaken the 200 on another connection.
func (c *call) hangsUpEarly(m *siptx.Message, browser bool) bool {
	from, to := c.sides(browser)
	return m.Method == "BYE" && !c.confirmed && browser != c.out && from.tag == "" && m.ToTag() == to.tag
}

// maxSeq is the highest CSeq that a request may have (RFC 3261 §8.1.1.5). siptx takes none from a
// browser that leaves no room for the edge to go on counting in its name.
const maxSeq = 1<<31 - 1

func nextSeq(n uint32) uint32 { return min(n+1, maxSeq) }

// count keeps the CSeq of a side, so that the edge can go on counting in its name.
func (c *call) count(m *siptx.Message, browser bool) {
	from, _ := c.sides(browser)
	seq, _, _ := m.CSeq()
	from.seq = max(from.seq, seq)
}

// onward makes a request inside the dialog ready for the other side.
func (c *call) onward(m *siptx.Message, browser bool) (siptx.Conn, *siptx.Message, bool) {
	if !browser {
		next := c.e.toBrowser(m)
		next.URI = c.browser.contact
		c.name(next, browser)
		return c.f, next, !c.f.gone
	}
	conn, ok := c.e.coreConn(c.core.route)
	if !ok {
		return nil, nil, false
	}
	next := c.e.toCore(m, c.core.route, c.impu)
	next.URI = c.core.contact
	c.name(next, browser)
	return conn, next, true
}

// name writes From and To of a request inside the dialog from what the dialog began with: what stands
// in the request itself names nobody (RFC 3261 §12.2.1.1), but would be shown.
func (c *call) name(next *siptx.Message, browser bool) {
	from, to := c.sides(browser)
	if next.ToTag() == "" {
		return
	}
	next.Set("From", "<"+from.uri+">;tag="+from.tag)
	next.Set("To", "<"+to.uri+">;tag="+next.ToTag())
}

// exchange is one offer and its answer: the first INVITE, a later one, or an UPDATE.
type exchange struct {
	tx      *siptx.ServerTx
	browser bool // the offer is the browser's
	first   bool
	offer   description
	streams []iq.Stream
	local   iq.Local
}

// renegotiate takes an INVITE or UPDATE inside a dialog.
func (c *call) renegotiate(tx *siptx.ServerTx, browser bool) {
	m := tx.Request
	if !c.confirmed && m.Method == "INVITE" {
		c.e.refuse(tx, 491, "Request Pending", "the call has no answer yet")
		return
	}
	from, _ := c.sides(browser)
	if u := contactOf(m); u != "" {
		from.contact = u // target refresh (RFC 3261 §12.2.2)
	}
	if m.Method == "INVITE" {
		tx.Reply(100, "Trying")
	}
	if len(m.Body) == 0 && m.Method == "UPDATE" {
		to, next, ok := c.onward(m, browser)
		if !ok {
			c.e.noCore(tx)
			return
		}
		c.e.relay(tx, to, next)
		return
	}
	for old := range c.pending {
		if !old.Open() {
			delete(c.pending, old)
		}
	}
	if c.pending == nil {
		c.pending = map[*siptx.ServerTx]struct{}{}
	}
	c.pending[tx] = struct{}{}
	c.offer(&exchange{tx: tx, browser: browser})
}

// offer reads the offer of x, has the gateway reserve, and sends the request on.
func (c *call) offer(x *exchange) {
	m := x.tx.Request
	var err error
	switch {
	case len(m.Body) > 0 && !isSDP(m):
		c.e.refuse(x.tx, 415, "Unsupported Media Type", "the body is no session description", siptx.Header{Name: "Accept", Value: "application/sdp"})
		c.firstFailed(x, ending{cause: "unsupported-body", status: 415, phrase: "Unsupported Media Type"})
		return
	case x.browser:
		x.offer, err = parseBrowser(m.Body, true)
	default:
		x.offer, err = parseCore(m.Body)
	}
	if err != nil {
		c.e.stats.Refused.Description++
		c.e.refuse(x.tx, 488, "Not Acceptable Here: "+err.Error(), err.Error())
		c.firstFailed(x, ending{cause: "description", detail: err.Error(), status: 488, phrase: "Not Acceptable Here"})
		return
	}
	c.numbers, _ = x.offer.number(c.numbers, len(c.media))
	if c.restarts(x) {
		c.restart(x)
		return
	}
	index, n := x.offer.streams()
	for i, l := range x.offer.Lines {
		if index[i] >= len(c.media) {
			c.media = append(c.media, l.Kind)
		}
	}
	x.streams = make([]iq.Stream, n)
	for i, kind := range c.media {
		x.streams[i].Media = kind
		x.streams[i].Stopped = i < len(c.streams) && c.streams[i].Stopped
	}
	for i, l := range x.offer.Lines {
		if index[i] >= 0 {
			x.streams[index[i]] = iq.Stream{Media: l.Kind, Access: l.Access, Core: l.Core}
		}
	}
	c.do(func() {
		err := c.set(x)
		c.e.mu.Lock()
		defer c.e.mu.Unlock()
		if c.ended || err != nil {
			c.gatewayFailed(x, err)
			return
		}
		c.forward(x)
	})
}

// firstFailed ends a call whose first INVITE has been answered with a failure by the edge.
func (c *call) firstFailed(x *exchange, w ending) {
	if x.first {
		c.end(w, false, false)
	}
}

func isSDP(m *siptx.Message) bool {
	return mediaType(m) == "application/sdp" && m.Get("Content-Encoding") == ""
}

// set tells the gateway the streams of x. It runs without the lock.
func (c *call) set(x *exchange) error {
	c.e.mu.Lock()
	if c.ended {
		c.e.mu.Unlock()
		return nil
	}
	c.seq++
	c.open = true
	s := iq.Set{Ref: c.ref(), Offerer: !c.out, Streams: x.streams}
	c.e.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), iqTime)
	defer cancel()
	local, err := c.e.cfg.Gateway.Set(ctx, s)
	if err == nil && len(local.Streams) != len(s.Streams) {
		err = fmt.Errorf("gateway answered for %d streams of %d", len(local.Streams), len(s.Streams))
	}
	if err == nil {
		x.local = local
	}
	return err
}

func (c *call) ref() iq.Ref {
	return iq.Ref{Epoch: c.e.epoch, Edge: c.e.cfg.Name, Session: c.id, Seq: c.seq}
}

// gatewayFailed answers x after a Set that failed, or that came back to a call that has ended.
func (c *call) gatewayFailed(x *exchange, err error) {
	w := ending{cause: "gateway", status: 503, phrase: "Media Gateway Unavailable", failed: true}
	if err == nil {
		w = ending{status: 487, phrase: "Request Terminated"}
	} else {
		c.e.stats.Refused.Gateway++
		w.detail = err.Error()
		switch {
		case errors.Is(err, iq.ErrCapacity):
			w.phrase = "Media Gateway Has No Capacity"
		case errors.Is(err, iq.ErrInvalid), errors.Is(err, iq.ErrVersion), errors.Is(err, iq.ErrStale):
			w.status, w.phrase = 500, "Media Gateway Refused"
		}
		c.e.log.Warn("media gateway failed", "call", c.id, "error", err)
	}
	if x.tx.Open() {
		x.tx.Reply(w.status, w.phrase, w.reason())
	}
	c.firstFailed(x, w)
	c.goBack() // it may have obeyed, and its answer be late
}

// forward sends the offer on to the other side.
func (c *call) forward(x *exchange) {
	m := x.tx.Request
	to, next, ok := c.onward(m, x.browser)
	if x.first && x.browser && ok {
		next.URI = m.URI // onward wrote the remote target, which a first INVITE has yet to learn
	}
	if !ok {
		if x.browser {
			c.e.noCore(x.tx)
		} else {
			c.e.refuse(x.tx, 430, "Flow Failed", "the WebSocket has ended")
		}
		c.firstFailed(x, ending{cause: "no-way", status: 503, phrase: "Cannot Be Reached", failed: true})
		c.goBack()
		return
	}
	var err error
	if x.browser {
		next.Body, err = writeCore(&x.offer, nil, x.local, c.core.origin)
		if x.first {
			next.Push("Record-Route", "<"+c.ownRoute()+">")
		}
	} else {
		next.Body, err = writeBrowser(&x.offer, nil, x.local, c.browser.origin)
		if x.first {
			next.Push("Record-Route", "<sip:"+c.e.host+";transport=ws;lr>")
		}
	}
	if err != nil {
		c.gatewayFailed(x, err)
		return
	}
	next.Keep(notOfBody)
	next.Set("Content-Type", "application/sdp")
	drop100rel(next)
	branch := c.e.layer.Request(to, next, func(res *siptx.Message) {
		if res.Status > 100 {
			c.do(func() { c.onAnswer(x, res) })
		}
	})
	if x.first {
		c.branch = branch
	} else if m.Method == "INVITE" {
		x.tx.OnCancel = func(m *siptx.Message) { branch.Cancel(keepReason(m)...) }
	}
}

// drop100rel takes the offer of reliable provisional answers (RFC 3262) back: PRACK does not pass.
func drop100rel(m *siptx.Message) {
	if !m.Has("Supported", "100rel") {
		return
	}
	tags := slices.DeleteFunc(m.List("Supported"), func(t string) bool { return strings.EqualFold(t, "100rel") })
	m.Del("Supported")
	if len(tags) > 0 {
		m.Add("Supported", strings.Join(tags, ", "))
	}
}

// onAnswer takes an answer to the request of x, in order, without the lock.
func (c *call) onAnswer(x *exchange, res *siptx.Message) {
	c.e.mu.Lock()
	defer c.e.mu.Unlock()
	success := res.Status >= 200 && res.Status < 300
	_, to := c.sides(x.browser)
	switch {
	case c.ended && success && x.tx.Request.Method == "INVITE":
		c.dismiss(x, res, c.ending) // it crossed the end
		refuseOpen(x.tx)
		return
	case c.ended && success:
		refuseOpen(x.tx)
		return
	case c.ended && res.Status < 200:
		return
	case success && x.first && c.confirmed:
		if res.ToTag() != to.tag { // another fork has answered too: the first has it
			c.dismiss(x, res, ending{status: 487, phrase: "Answered Elsewhere"})
			return
		}
		r := c.e.answer(x.tx, res, c.answer.body) // sent again, as its ACK is late
		c.finish(x, r, res)
		x.tx.Respond(r)
		return
	case res.Status >= 300:
		c.failed(x, res)
		return
	}
	if x.first && res.ToTag() != "" {
		to.tag = res.ToTag()
		if u := contactOf(res); u != "" {
			to.contact = u
		}
		if c.out {
			c.core.route = slices.DeleteFunc(recordRoute(res, true), func(u string) bool { return u == c.ownRoute() })
		}
	} else if u := contactOf(res); u != "" && success {
		to.contact = u
	}
	body, err := c.answerBody(x, res)
	if c.ended { // while the gateway was asked
		if success && x.tx.Request.Method == "INVITE" {
			c.dismiss(x, res, c.ending)
		}
		if success {
			refuseOpen(x.tx)
		}
		return
	}
	if err != nil {
		c.refuseAnswer(x, res, err)
		return
	}
	if success && x.first {
		c.confirmed, c.answered = true, time.Now()
		c.e.stats.CallsAnswered++
		c.boundGuest()
	}
	r := c.e.answer(x.tx, res, body)
	c.finish(x, r, res)
	x.tx.Respond(r)
}

// finish writes what an answer needs beside the screened fields.
func (c *call) finish(x *exchange, r, res *siptx.Message) {
	if len(r.Body) > 0 {
		r.Set("Content-Type", "application/sdp")
	}
	if !x.first || res.ToTag() == "" {
		return
	}
	if x.browser {
		r.Add("Record-Route", "<sip:"+c.e.host+";transport=ws;lr>")
		return
	}
	r.Add("Record-Route", "<"+c.ownRoute()+">")
	for _, u := range c.core.route {
		r.Add("Record-Route", "<"+u+">")
	}
}

// answerBody turns the session description of an answer, if there is one, into the other side's.
// The lock is given up while the gateway is asked.
func (c *call) answerBody(x *exchange, res *siptx.Message) ([]byte, error) {
	success := res.Status >= 200
	if len(res.Body) == 0 || !isSDP(res) {
		switch {
		case !success:
			return nil, nil
		case x.first && c.answer.done:
			return c.answer.body, nil
		}
		return nil, unacceptable("no session description in the answer")
	}
	if x.first && c.answer.done && string(res.Body) == c.answer.raw && res.ToTag() == c.answer.tag {
		return c.answer.body, nil // said before: the gateway knows it
	}
	var d description
	var err error
	if x.browser {
		d, err = parseCore(res.Body)
	} else {
		d, err = parseBrowser(res.Body, false)
	}
	if err == nil {
		err = match(&x.offer, &d)
	}
	if err != nil {
		return nil, err
	}
	index, _ := x.offer.streams()
	taken := make([]bool, len(x.streams))
	for i, l := range d.Lines {
		if index[i] >= 0 && !l.Rejected {
			taken[index[i]] = true
			if x.browser {
				x.streams[index[i]].Core = l.Core
			} else {
				x.streams[index[i]].Access = l.Access
			}
		}
	}
	streams := x.streams // of the offer, for another answer
	x.streams = slices.Clone(streams)
	for i := range x.streams {
		if !taken[i] { // given up by the offer, or not taken
			x.streams[i] = iq.Stream{Media: x.streams[i].Media, Stopped: true}
		}
	}
	c.e.mu.Unlock()
	err = c.set(x)
	c.e.mu.Lock()
	agreed := x.streams
	x.streams = streams
	if err != nil || c.ended {
		return nil, err
	}
	var body []byte
	if x.browser {
		body, err = writeBrowser(&d, &x.offer, x.local, c.browser.origin)
	} else {
		body, err = writeCore(&d, &x.offer, x.local, c.core.origin)
	}
	if err != nil {
		return nil, err
	}
	c.streams = agreed
	c.agreed = &agreement{browser: x.offer, core: d}
	if !x.browser {
		c.agreed = &agreement{browser: d, core: x.offer}
	}
	if x.first {
		c.answer = answerState{true, string(res.Body), res.ToTag(), body}
	}
	return body, nil
}

// dismiss ends a dialog that a late or second 2xx has made: ACK, then BYE (RFC 3261 §13.2.2.4).
func (c *call) dismiss(x *exchange, res *siptx.Message, w ending) {
	_, to := c.sides(x.browser)
	p := *to
	p.tag, p.contact = res.ToTag(), contactOf(res)
	if x.browser && x.first {
		p.route = slices.DeleteFunc(recordRoute(res, true), func(u string) bool { return u == c.ownRoute() })
	}
	seq, _, _ := x.tx.Request.CSeq()
	c.send(!x.browser, p, "ACK", seq)
	if x.first { // of a later INVITE, the dialog's own BYE is on its way
		from, _ := c.sides(x.browser)
		from.seq = nextSeq(max(from.seq, seq))
		c.send(!x.browser, p, "BYE", from.seq, w.reason())
	}
}

// refuseAnswer ends a call whose answer cannot be used: the answerer hears BYE, the offerer 488.
func (c *call) refuseAnswer(x *exchange, res *siptx.Message, err error) {
	w := ending{cause: "description", detail: err.Error(), status: 488, phrase: "Not Acceptable Here", failed: true}
	var u unacceptable
	if errors.As(err, &u) {
		c.e.stats.Refused.Description++
		w.phrase += ": " + u.Error()
	} else {
		c.e.stats.Refused.Gateway++
		w.cause, w.status, w.phrase = "gateway", 503, "Media Gateway Unavailable"
		c.e.log.Warn("media gateway failed", "call", c.id, "error", err)
	}
	success := res.Status >= 200
	if x.tx.Open() {
		x.tx.Reply(w.status, w.phrase, w.reason())
	}
	if x.first {
		if success {
			c.dismiss(x, res, w)
			c.end(w, false, false)
			return
		}
		c.branch.Cancel(w.reason())
		c.end(w, false, false)
		return
	}
	if success && x.tx.Request.Method == "INVITE" {
		c.dismiss(x, res, w)
	}
	c.end(w, true, true) // the two sides no longer agree on what is sent
}

// failed passes a failure on. A first INVITE ends the call; a later one goes back to what was agreed.
func (c *call) failed(x *exchange, res *siptx.Message) {
	if x.tx.Open() {
		r := c.e.answer(x.tx, res, nil)
		if res.Local && x.browser {
			c.e.stats.Refused.Core++
			if r.Status == 503 {
				r.Reason = "Core Cannot Be Reached"
			}
		}
		x.tx.Respond(r)
	}
	if c.ended {
		return
	}
	if x.first {
		c.end(ending{cause: "failed", detail: res.Reason, status: res.Status, phrase: res.Reason}, false, false)
		return
	}
	if res.Status == 408 || res.Status == 481 { // RFC 5057 §5.1: the dialog itself is gone
		c.end(ending{cause: "dialog-gone", status: res.Status, phrase: res.Reason, failed: true}, true, true)
		return
	}
	c.goBack()
}

// goBack has the gateway go back to what was agreed, after an offer that has come to nothing.
func (c *call) goBack() {
	if c.ended || c.streams == nil { // nothing has been agreed yet: an UPDATE before the first answer
		return
	}
	back := &exchange{streams: slices.Clone(c.streams)}
	for i := len(back.streams); i < len(c.media); i++ { // the gateway does not forget a stream
		back.streams = append(back.streams, iq.Stream{Media: c.media[i], Stopped: true})
	}
	c.do(func() {
		if err := c.set(back); err != nil {
			c.e.log.Warn("media gateway did not go back to what was agreed", "call", c.id, "error", err)
		}
	})
}

// bye passes a BYE on and ends the call.
func (c *call) bye(tx *siptx.ServerTx, browser bool) {
	if to, next, ok := c.onward(tx.Request, browser); ok && c.confirmed {
		c.e.relay(tx, to, next)
	} else {
		tx.Reply(200, "OK") // nobody is left to tell, or an early dialog, which its INVITE's answer and CANCEL end
	}
	cause := "bye-by-core"
	if browser {
		cause = "bye-by-browser"
	}
	c.end(ending{cause: cause, status: 200, phrase: "Call Ended"}, !c.confirmed, !c.confirmed)
}

// end ends the call once: it tells the sides that are named, and has the gateway release.
func (c *call) end(w ending, tellBrowser, tellCore bool) {
	if c.ended {
		return
	}
	c.ended, c.ending = true, w
	if c.longest != nil {
		c.longest.Stop()
	}
	delete(c.f.calls, c.callID)
	for tx := range c.pending {
		refuseOpen(tx)
	}
	c.pending = nil
	if w.failed {
		c.e.stats.CallsFailed++
	}
	if tellCore {
		c.tell(false, w)
	}
	if tellBrowser {
		c.tell(true, w)
	}
	c.do(c.release)
}

// tell ends the dialog on one side: by BYE when it is answered, else by a failure to who called, by CANCEL
// to who is called.
func (c *call) tell(browser bool, w ending) {
	_, to := c.sides(!browser)
	switch {
	case c.confirmed:
		from, _ := c.sides(!browser)
		from.seq = nextSeq(from.seq)
		c.send(browser, *to, "BYE", from.seq, w.reason())
	case browser == c.out:
		c.refuseInvite(w)
	case c.branch != nil:
		c.branch.Cancel(w.reason())
	}
}

// refuseInvite answers the first INVITE of a call that has ended without an answer. Never is that a
// 2xx, whatever ended the call: a 2xx without a session description would make a dialog.
func (c *call) refuseInvite(w ending) {
	if !c.invite.Open() {
		return
	}
	status, phrase := w.status, w.phrase
	if status < 300 {
		status, phrase = 487, "Request Terminated"
	}
	c.invite.Reply(status, phrase, w.reason())
}

// refuseOpen answers the INVITE or UPDATE inside the dialog whose answer nobody waits for any more.
func refuseOpen(tx *siptx.ServerTx) {
	switch {
	case !tx.Open():
	case tx.Request.Method == "INVITE":
		tx.Reply(487, "Request Terminated")
	default:
		tx.Reply(481, "Call/Transaction Does Not Exist")
	}
}

// send writes a request of the edge's own, in the name of the other side, to a party.
func (c *call) send(browser bool, to party, method string, seq uint32, fields ...siptx.Header) {
	if to.contact == "" || to.tag == "" {
		return
	}
	from, _ := c.sides(!browser)
	m := &siptx.Message{Method: method, URI: to.contact}
	var conn siptx.Conn = c.f
	if browser {
		if c.f.gone {
			return
		}
	} else {
		core, ok := c.e.coreConn(to.route)
		if !ok {
			c.e.log.Warn("cannot tell the core that a call has ended: no connection", "call", c.id)
			return
		}
		conn = core
		for _, u := range to.route {
			m.Add("Route", "<"+u+">")
		}
	}
	m.Add("Max-Forwards", "70")
	m.Add("From", "<"+from.uri+">;tag="+from.tag)
	m.Add("To", "<"+to.uri+">;tag="+to.tag)
	m.Add("Call-ID", c.callID)
	m.Add("CSeq", strconv.FormatUint(uint64(seq), 10)+" "+method)
	if !browser {
		m.Add("P-Asserted-Identity", "<"+c.impu+">")
		c.e.charge(m)
	}
	m.Headers = append(m.Headers, fields...)
	if method == "ACK" {
		transport, sentBy := conn.Via()
		m.Push("Via", "SIP/2.0/"+transport+" "+sentBy+";branch=z9hG4bK"+siptx.NewTag())
		conn.Send(m.Append(nil))
		return
	}
	c.e.layer.Request(conn, m, func(*siptx.Message) {}) // whatever the answer, the call is over
}

// do queues work that may wait for the gateway. One goroutine does it, in order, while there is any.
func (c *call) do(work func()) {
	if len(c.work) >= maxWork && !c.ended { // what waits is still done, as each piece may have a transaction to answer; without the gateway it is quick
		c.end(ending{cause: "overload", status: 503, phrase: "Too Many Requests In One Call", failed: true}, true, true)
		return
	}
	c.work = append(c.work, work)
	if !c.busy && !c.e.stopped {
		c.busy = true
		c.e.work.Go(c.labour)
	}
}

func (c *call) labour() {
	for {
		c.e.mu.Lock()
		if len(c.work) == 0 {
			c.busy = false
			c.e.mu.Unlock()
			return
		}
		work := c.work[0]
		c.work = c.work[1:]
		c.e.mu.Unlock()
		if c.e.fault("call", work) {
			c.e.locked(func() {
				w := ending{cause: "fault", status: 500, phrase: "Internal Error", failed: true}
				c.end(w, true, true)
				c.refuseInvite(w)
			})
		}
	}
}

// release ends the gateway's session, and writes the call's line into the log. It runs without the lock.
func (c *call) release() {
	c.e.mu.Lock()
	open := c.open
	c.open = false
	c.seq++
	ref := c.ref()
	c.e.mu.Unlock()
	var report iq.Report
	var err error
	if open {
		ctx, cancel := context.WithTimeout(context.Background(), iqTime)
		defer cancel()
		report, err = c.e.cfg.Gateway.Release(ctx, iq.Release{Ref: ref})
	}
	c.e.mu.Lock()
	delete(c.e.calls, c.id)
	w := c.ending
	var talk time.Duration
	if !c.answered.IsZero() {
		talk = time.Since(c.answered).Round(time.Millisecond)
	}
	c.e.mu.Unlock()
	args := []any{"call", c.id, "pseudonym", c.alias, "from browser", c.out, "cause", w.cause, "status", w.status, "talk", talk}
	if w.detail != "" {
		args = append(args, "detail", w.detail)
	}
	for i, s := range report.Streams {
		args = append(args, slog.Group(fmt.Sprintf("stream%d", i), "media", s.Media, "profile", s.Profile,
			"access_rx", s.AccessRx.Packets, "access_tx", s.AccessTx.Packets, "core_rx", s.CoreRx.Packets, "core_tx", s.CoreTx.Packets, "discarded", s.Discarded))
	}
	if err != nil && !errors.Is(err, iq.ErrUnknownSession) {
		args = append(args, "release", err.Error())
	}
	c.e.log.Info("call ended", args...)
}

// onEvent takes what the gateway says of itself.
func (e *Edge) onEvent(ev iq.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	c := e.calls[ev.Ref.Session]
	if c == nil || ev.Ref.Epoch != e.epoch {
		return
	}
	w := ending{status: 503, detail: ev.Detail, failed: true}
	switch ev.Kind {
	case iq.Connected:
		e.log.Info("media connected", "call", c.id)
		return
	case iq.ConsentLost:
		w.cause, w.phrase = "consent-lost", "Media Lost"
	case iq.DTLSFailed:
		w.cause, w.phrase = "dtls-failed", "Media Encryption Failed"
	case iq.ICEFailed:
		w.cause, w.phrase = "ice-failed", "No Media Path"
	default:
		return
	}
	c.end(w, true, true)
}
