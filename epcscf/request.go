package epcscf

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"wicgate/internal/siptx"
)

// allowed are the methods that pass, both ways; REGISTER comes from browsers alone.
var allowed = []string{"INVITE", "ACK", "BYE", "CANCEL", "UPDATE", "INFO", "OPTIONS", "MESSAGE"}

var allow = siptx.Header{Name: "Allow", Value: strings.Join(allowed, ", ")}

// maxForwards of a message; 70 where absent (RFC 3261 §16.6 step 3).
func maxForwards(m *siptx.Message) int {
	n, err := strconv.Atoi(m.Get("Max-Forwards"))
	if err != nil {
		return 70
	}
	return n
}

// refuse answers a request with a failure of this edge, and says why in the log. Every refusal goes
// this way. cause names no secret.
func (e *Edge) refuse(tx *siptx.ServerTx, status int, phrase, cause string, fields ...siptx.Header) {
	args := []any{"method", tx.Request.Method, "status", status, "cause", cause}
	if f, ok := tx.Conn.(*flow); ok {
		args = append(args, "source", f.source)
		aor := siptx.AOROf(tx.Request.Get("From"))
		for _, b := range f.bindings {
			if b.impu == aor {
				args = append(args, "pseudonym", b.alias)
			}
		}
	} else {
		args = append(args, "source", "core")
	}
	if c := e.callOf(tx); c != nil {
		args = append(args, "call", c.id)
	}
	e.log.Info("request refused", args...)
	tx.Reply(status, phrase, fields...)
}

// callOf is the call that a request is, or begins, if there is one.
func (e *Edge) callOf(tx *siptx.ServerTx) *call {
	f, ok := tx.Conn.(*flow)
	if !ok {
		f, _, _ = e.flowOf(tx.Request)
	}
	if f == nil {
		return nil
	}
	return f.calls[tx.Request.CallID()]
}

// onRequest is called by the transaction layer, under the lock.
func (e *Edge) onRequest(tx *siptx.ServerTx) {
	m := tx.Request
	f, browser := tx.Conn.(*flow)
	switch {
	case !e.serving:
		e.refuse(tx, 503, "Edge Is Shutting Down", "shutdown", siptx.Header{Name: "Retry-After", Value: "5"})
	case maxForwards(m) == 0:
		e.refuse(tx, 483, "Too Many Hops", "Max-Forwards is 0")
	case m.Get("Proxy-Require") != "":
		e.refuse(tx, 420, "Bad Extension", "an extension is required that does not pass here", siptx.Header{Name: "Unsupported", Value: m.Get("Proxy-Require")})
	case m.Method == "INVITE" && m.Has("Require", "100rel"):
		e.refuse(tx, 420, "Bad Extension", "an extension is required that does not pass here", siptx.Header{Name: "Unsupported", Value: "100rel"})
	case browser && m.Method == "REGISTER":
		e.onRegister(tx, f)
	case !slices.Contains(allowed, m.Method):
		e.stats.Refused.Method++
		e.refuse(tx, 405, "Method Not Allowed", "the method does not pass here", allow)
	case browser:
		e.fromBrowser(tx, f)
	default:
		e.fromCore(tx)
	}
}

// fromBrowser takes a request after registration: the token, if there is one, the identity, then
// dialog or no dialog.
func (e *Edge) fromBrowser(tx *siptx.ServerTx, f *flow) {
	m, cred := tx.Request, f.presented
	if cred.found && cred.claims == nil && !(m.Method == "BYE" && m.ToTag() != "") { // a call may be ended also with a token that has run out meanwhile
		e.challenge(tx, f, cred)
		return
	}
	if m.ToTag() != "" {
		e.inDialog(tx, f, true, cred)
		return
	}
	aor := siptx.AOROf(m.Get("From"))
	b := f.bindings[aor]
	switch {
	case b == nil && len(f.bindings) > 0:
		e.stats.Refused.Identity++
		e.refuse(tx, 403, "Identity Is Not Yours", "From is not registered on this WebSocket")
		return
	case b == nil && !cred.found:
		e.challenge(tx, f, cred)
		return
	case b == nil:
		e.stats.Refused.Unregistered++
		e.refuse(tx, 403, "Not Registered", "not registered")
		return
	case cred.found && !sameSubject(b, cred):
		e.stats.Refused.Identity++
		e.refuse(tx, 403, "Token Is Not Yours", "the token is another subject's")
		return
	}
	if u, err := siptx.ParseURI(m.URI); m.Method == "OPTIONS" && err == nil && u.User == "" && (u.Host == e.host || u.Host == e.domain) {
		e.withCredential(m, b, func(credential ...siptx.Header) {
			tx.Reply(200, "OK", append(credential, allow)...)
		})
		return
	}
	if b.guest && !e.guestMay(tx, b) {
		return
	}
	switch m.Method {
	case "INVITE":
		e.startCall(tx, f, b, true)
	case "OPTIONS", "MESSAGE":
		conn, ok := e.coreConn(b.serviceRoute)
		if !ok {
			e.noCore(tx)
			return
		}
		e.relay(tx, conn, e.toCore(m, b.serviceRoute, b.impu))
	default:
		e.noDialog(tx)
	}
}

func sameSubject(b *binding, cred credential) bool {
	return cred.claims != nil && cred.claims.Subject == b.subject && cred.claims.IMS.IMPI == b.impi
}

func (e *Edge) noDialog(tx *siptx.ServerTx) {
	e.stats.Refused.NoDialog++
	e.refuse(tx, 481, "Call/Transaction Does Not Exist", "no such call on this WebSocket")
}

func (e *Edge) noCore(tx *siptx.ServerTx) {
	e.stats.Refused.Core++
	e.refuse(tx, 503, "Core Cannot Be Reached", "no connection to the core", siptx.Header{Name: "Retry-After", Value: "2"})
}

// coreConn is the connection for a route set: to the first hop where that is an address of a
// configured peer, else to the next hop, which shall follow the route.
func (e *Edge) coreConn(route []string) (*siptx.TCPConn, bool) {
	to := e.cfg.Core.NextHop
	if len(route) > 0 {
		if u, err := siptx.ParseURI(route[0]); err == nil {
			if at, ok := u.AddrPort(); ok && e.isPeer(at.Addr()) {
				to = at
			}
		}
	}
	return e.tcp.To(netip.AddrPortFrom(to.Addr().Unmap(), to.Port()))
}

// toCore makes a browser's request ready for the core: screened, asserted, routed, charged.
func (e *Edge) toCore(m *siptx.Message, route []string, impu string) *siptx.Message {
	c := screenBrowser(m)
	if c.ToTag() == "" { // of inside a dialog, the call writes both
		c.Set("From", "<"+impu+">;tag="+m.FromTag())
		c.Set("To", "<"+uriOf(m.Get("To"))+">")
	}
	for i := len(route) - 1; i >= 0; i-- {
		c.Push("Route", "<"+route[i]+">")
	}
	c.Push("Max-Forwards", strconv.Itoa(maxForwards(m)-1))
	c.Add("P-Asserted-Identity", "<"+impu+">")
	e.charge(c)
	return c
}

// toBrowser makes a request of the core ready for the browser: screened, no hop to be seen.
func (e *Edge) toBrowser(m *siptx.Message) *siptx.Message {
	c := screenCore(m)
	c.Push("Max-Forwards", strconv.Itoa(maxForwards(m)-1))
	return c
}

// relay forwards a request that makes no dialog and may carry no session description, and its
// answers. A description would go unread, and with it a fingerprint or an address.
func (e *Edge) relay(tx *siptx.ServerTx, to siptx.Conn, m *siptx.Message) {
	if m.Method == "BYE" || m.Method == "OPTIONS" { // nothing in them that a user would miss
		m.Body = nil
		m.Keep(notOfBody)
	}
	if describes(m) || m.Method == "INFO" && len(m.Body) > 0 && !slices.Contains(infoTypes, mediaType(m)) {
		e.stats.Refused.Description++
		e.refuse(tx, 415, "Unsupported Media Type", "the body may hold a session description, or its type does not pass in "+m.Method)
		return
	}
	e.layer.Request(to, m, func(res *siptx.Message) {
		switch {
		case res.Status <= 100:
		case describes(res), m.Method == "BYE", m.Method == "INFO":
			tx.Respond(e.answer(tx, res, nil))
		default:
			tx.Respond(e.answer(tx, res, res.Body))
		}
	})
}

// infoTypes may stand in an INFO: tones and requests for a key frame.
var infoTypes = []string{"application/dtmf-relay", "application/dtmf", "application/media_control+xml"}

// describes says whether a body is, or may hold, a session description or a piece of one (RFC 8840).
func describes(m *siptx.Message) bool {
	if len(m.Body) == 0 {
		return false
	}
	t := mediaType(m)
	return t == "" || t == "application/sdp" || t == "application/trickle-ice-sdpfrag" || strings.HasPrefix(t, "multipart/") || m.Get("Content-Encoding") != ""
}

// mediaType is the type of the body, in lower case, without parameters.
func mediaType(m *siptx.Message) string {
	t, _, _ := strings.Cut(m.Get("Content-Type"), ";")
	return strings.ToLower(strings.TrimSpace(t))
}

// answer makes, for the side that sent tx, what the other side's answer res says: the hops of tx,
// the screened fields of res, and body. A REGISTER's answer takes no field of res but To.
func (e *Edge) answer(tx *siptx.ServerTx, res *siptx.Message, body []byte) *siptx.Message {
	status, reason := res.Status, res.Reason
	_, browser := tx.Conn.(*flow)
	if res.Local && !browser && status == 503 {
		status, reason = 430, "Flow Failed" // RFC 5626 §5.3
	}
	r := tx.Request.Response(status, reason)
	if tag := res.ToTag(); tag != "" && tx.Request.ToTag() == "" {
		r.Set("To", r.Get("To")+";tag="+tag) // no more than the tag of what the answerer says
	}
	if tx.Request.Method == "REGISTER" {
		return r
	}
	screened := screenBrowser
	if browser {
		screened = screenCore
	}
	for _, h := range screened(res).Headers {
		switch strings.ToLower(h.Name) {
		case "from", "to", "call-id", "cseq":
		case "content-type", "content-disposition", "content-language":
			if len(body) > 0 {
				r.Headers = append(r.Headers, h)
			}
		default:
			r.Headers = append(r.Headers, h)
		}
	}
	r.Body = body
	return r
}

// flowOf finds the flow that the topmost Route names. status is 0, or why there is none.
func (e *Edge) flowOf(m *siptx.Message) (f *flow, status int, phrase string) {
	routes := m.List("Route")
	if len(routes) == 0 {
		return nil, 404, "No Flow Is Named"
	}
	a, err := siptx.ParseNameAddr(routes[0])
	if err != nil {
		return nil, 400, "Malformed Route"
	}
	u, err := siptx.ParseURI(a.URI)
	if err != nil {
		return nil, 400, "Malformed Route"
	}
	id, ok := openFlow(e.cfg.FlowKey, e.cfg.Name, u.User)
	if !ok {
		return nil, 403, "Flow Token Is Not Of This Edge"
	}
	f = e.flows[id]
	if f == nil || f.gone {
		return nil, 430, "Flow Failed"
	}
	return f, 0, ""
}

// fromCore takes a request of the core. It goes where its flow token says, never where a .invalid
// host would.
func (e *Edge) fromCore(tx *siptx.ServerTx) {
	m := tx.Request
	f, status, phrase := e.flowOf(m)
	if f == nil {
		switch {
		case status == 404 && m.Method == "OPTIONS":
			tx.Reply(200, "OK", allow)
			return
		case status == 430:
			e.stats.Refused.FlowFailed++
		default:
			e.stats.Refused.FlowToken++
		}
		e.refuse(tx, status, phrase, phrase)
		return
	}
	if m.ToTag() != "" {
		e.inDialog(tx, f, false, credential{})
		return
	}
	b := f.bindingFor(m.URI)
	if b == nil {
		e.stats.Refused.Unregistered++
		e.refuse(tx, 480, "Not Registered", "the contact is not registered on the WebSocket that the flow token names")
		return
	}
	switch m.Method {
	case "INVITE":
		e.startCall(tx, f, b, false)
	case "OPTIONS", "MESSAGE":
		e.relay(tx, f, e.toBrowser(m))
	default:
		e.noDialog(tx)
	}
}

// bindingFor finds the binding whose contact is asked for; with a single one, that.
func (f *flow) bindingFor(uri string) *binding {
	var any *binding
	for _, b := range f.bindings {
		if b.contact.URI == uri {
			return b
		}
		any = b
	}
	if len(f.bindings) == 1 {
		return any
	}
	return nil
}

// inDialog takes a request inside a dialog. Its call must be on this flow and know both tags.
func (e *Edge) inDialog(tx *siptx.ServerTx, f *flow, browser bool, cred credential) {
	m := tx.Request
	if c := f.calls[m.CallID()]; c != nil && m.Method == "BYE" && !c.confirmed && c.busy {
		c.do(func() { // an answer may wait to be done, which the BYE must not overtake
			e.locked(func() { e.dialogRequest(tx, f, browser, cred) })
		})
		return
	}
	e.dialogRequest(tx, f, browser, cred)
}

func (e *Edge) dialogRequest(tx *siptx.ServerTx, f *flow, browser bool, cred credential) {
	m := tx.Request
	c := f.calls[m.CallID()]
	if c == nil || !c.knows(m, browser) && !c.hangsUpEarly(m, browser) {
		e.noDialog(tx)
		return
	}
	switch {
	case browser && cred.claims != nil && cred.claims.Subject != c.subject:
		e.stats.Refused.Identity++
		e.refuse(tx, 403, "Token Is Not Yours", "the token is not of the subject that began the call")
		return
	case browser && siptx.AOROf(m.Get("From")) != aorOf(c.browser.uri):
		e.stats.Refused.Identity++
		e.refuse(tx, 403, "Identity Is Not Yours", "From is not the identity that the call is of")
		return
	}
	c.count(m, browser)
	switch m.Method {
	case "BYE":
		c.bye(tx, browser)
	case "INVITE", "UPDATE":
		c.renegotiate(tx, browser)
	case "INFO", "OPTIONS", "MESSAGE":
		to, next, ok := c.onward(m, browser)
		if !ok {
			e.noCore(tx)
			return
		}
		e.relay(tx, to, next)
	default:
		e.noDialog(tx)
	}
}

// onAck takes an ACK of a 2xx, end to end.
func (e *Edge) onAck(conn siptx.Conn, m *siptx.Message) {
	f, browser := conn.(*flow)
	if !browser {
		if f, _, _ = e.flowOf(m); f == nil {
			return
		}
	}
	c := f.calls[m.CallID()]
	if c == nil || !c.knows(m, browser) {
		return // an ACK is never answered
	}
	if seq, _, _ := m.CSeq(); browser && c.ownSeq > 0 && seq == c.ownSeq {
		return // of a 200 of this edge's own
	}
	m = m.Clone()
	m.Body = nil // an answer would have to be in it only after a 2xx with an offer, which this edge makes nobody send
	m.Keep(notOfBody)
	if to, next, ok := c.onward(m, browser); ok {
		transport, sentBy := to.Via()
		next.Push("Via", "SIP/2.0/"+transport+" "+sentBy+";branch=z9hG4bK"+siptx.NewTag())
		to.Send(next.Append(nil))
	}
}
