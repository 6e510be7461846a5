package epcscf

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"wicgate/internal/claims"
	"wicgate/internal/siptx"
)

const (
	maxBindings = 4 // of one flow
	maxRoutes   = 8 // of a Service-Route
)

// binding is one registered identity on one flow. Its fields are guarded by Edge.mu.
type binding struct {
	flow    *flow
	impu    string // the address of record that To named
	impi    string
	subject string // of the token: later tokens on this flow must have the same
	alias   string // pseudonym, for the log
	guest   bool

	contact  siptx.NameAddr // as the browser gave it, without expires
	instance string         // +sip.instance and reg-id: what a later flow replaces (RFC 5626 §6)

	// The last REGISTER towards the core, for the edge's own.
	from, to, callID string
	seq              uint32

	serviceRoute []string // URIs, in order
	associated   []string // P-Associated-URI, distinct identities alone
	until        time.Time
	timer        *time.Timer

	orphans []*binding // while it is being registered: what it replaces, whose WebSocket has ended meanwhile
}

// challenge answers 401 as RFC 8898 §2.2 wants it.
func (e *Edge) challenge(tx *siptx.ServerTx, f *flow, cred credential) {
	e.stats.Refused.Token++
	v := fmt.Sprintf(`Bearer realm="%s", scope="%s", authz_server="%s"`, e.cfg.Domain, claims.Scope, e.cfg.AuthzServer)
	phrase := "Access Token Required"
	if cred.found {
		v += `, error="invalid_token"`
		phrase = "Access Token Invalid Or Expired"
	}
	e.refuse(tx, 401, phrase, "access token: "+causeOf(cred), siptx.Header{Name: "WWW-Authenticate", Value: v})
}

func causeOf(cred credential) string {
	if !cred.found {
		return "none given"
	}
	return cred.err.Error()
}

// onRegister takes a REGISTER off a flow: token, identity, then Trusted Node Authentication.
func (e *Edge) onRegister(tx *siptx.ServerTx, f *flow) {
	m, cred := tx.Request, f.presented
	if cred.claims == nil {
		e.challenge(tx, f, cred)
		return
	}
	c := cred.claims
	forbid := func(phrase, cause string) {
		e.stats.Refused.Identity++
		e.refuse(tx, 403, phrase, cause)
	}
	for _, v := range m.All("Authorization") {
		if strings.Contains(strings.ToLower(v), "integrity-protected") {
			e.log.Warn("a browser sent integrity-protected; it is not passed on", "source", f.source, "pseudonym", c.Pseudonym)
		}
	}
	impu := siptx.AOROf(m.Get("To"))
	if !owns(c, impu) || siptx.AOROf(m.Get("From")) != impu {
		forbid("Identity Is Not Yours", "To or From is not among the token's public identities")
		return
	}
	if u, err := siptx.ParseURI(m.URI); err != nil || u.User != "" || u.Host != e.domain {
		forbid("Wrong Domain", "the Request-URI is not the home domain")
		return
	}
	if strings.ContainsAny(c.IMS.IMPI, "\"\\ <>") || m.ToTag() != "" {
		forbid("Identity Malformed", "the private identity cannot be written into a Digest, or To has a tag")
		return
	}
	if !e.cfg.Core.Trusted {
		e.stats.Refused.Core++
		e.log.Warn("registration refused: core_trusted is false, so that no Trusted Node Authentication may be sent to the next hop", "next hop", e.cfg.Core.NextHop)
		tx.Reply(503, "Next Hop Is Not Trusted")
		return
	}
	old := f.bindings[impu]
	if old != nil && old.subject != c.Subject {
		forbid("Identity Is Not Yours", "the flow is registered for another subject")
		return
	}
	if old == nil && len(f.bindings) >= maxBindings {
		e.stats.Refused.TooMany++
		e.refuse(tx, 403, "Too Many Identities On One WebSocket", "the WebSocket has as many identities as it may")
		return
	}
	for o := range e.registering {
		if o.flow == f && (o.impu == impu || old == nil && len(f.bindings) >= maxBindings-1) { // one at a time, so that each sees what it replaces
			e.stats.Refused.TooMany++
			e.refuse(tx, 500, "Registration Is Under Way", "the REGISTER before is not answered yet", siptx.Header{Name: "Retry-After", Value: "1"})
			return
		}
	}
	b, expires, problem := e.readContact(m, f, old, c)
	if problem != "" {
		e.refuse(tx, 400, problem, problem)
		return
	}
	conn, ok := e.tcp.To(e.cfg.Core.NextHop)
	if !ok {
		e.noCore(tx)
		return
	}
	if e.registering == nil {
		e.registering = map[*binding]struct{}{}
	}
	e.registering[b] = struct{}{}
	e.layer.Request(conn, e.register(b, f.token, expires, m), func(res *siptx.Message) {
		if res.Status < 200 {
			return
		}
		delete(e.registering, b)
		e.registered(tx, b, expires, c, res)
		if f.bindings[b.impu] != b { // it came to nothing
			for _, o := range b.orphans {
				e.deregister(o)
			}
		}
		b.orphans = nil
	})
}

// owns says whether the token lets its bearer use the address of record.
func owns(c *claims.SIP, aor string) bool {
	return aor != "" && slices.ContainsFunc(c.IMS.IMPU, func(u string) bool {
		p, err := siptx.ParseURI(u)
		return err == nil && p.AOR() == aor
	})
}

// readContact makes the binding that m asks for, and the seconds that it may last: what is asked,
// the configured most and the token's life, whichever is least. problem is the phrase of a 400.
func (e *Edge) readContact(m *siptx.Message, f *flow, old *binding, c *claims.SIP) (b *binding, expires int, problem string) {
	expires = int(defaultExpires / time.Second)
	if v := m.Get("Expires"); v != "" {
		n, err := strconv.ParseUint(v, 10, 32)
		if err != nil {
			return nil, 0, "Malformed Expires"
		}
		expires = int(n)
	}
	list := m.List("Contact")
	if len(list) != 1 {
		return nil, 0, "One Contact Is Required"
	}
	seq, _, _ := m.CSeq()
	b = &binding{
		flow: f, impu: siptx.AOROf(m.Get("To")), impi: c.IMS.IMPI, subject: c.Subject, alias: c.Pseudonym, guest: isGuest(c),
		from: m.Get("From"), to: m.Get("To"), callID: m.CallID(), seq: seq,
	}
	if list[0] == "*" { // RFC 3261 §10.2.2; here it means this flow's own contact, not those of other devices
		if expires != 0 || old == nil {
			return nil, 0, "Contact * Needs Expires 0 And A Registration"
		}
		b.contact, b.instance = old.contact, old.instance
		return b, 0, ""
	}
	a, err := siptx.ParseNameAddr(list[0])
	if err != nil {
		return nil, 0, "Malformed Contact"
	}
	if v, ok := a.Params.Lookup("expires"); ok {
		n, err := strconv.ParseUint(v, 10, 32)
		if err != nil {
			return nil, 0, "Malformed Contact"
		}
		expires = int(n)
	}
	a.Params.Del("expires")
	b.contact = a
	if i := a.Params.Get("+sip.instance"); i != "" {
		b.instance = i + ";" + a.Params.Get("reg-id")
	}
	left := int(time.Until(time.Unix(c.Expiry, 0)) / time.Second)
	return b, max(0, min(expires, int(e.cfg.MaxExpires/time.Second), left)), ""
}

// register writes the REGISTER of Trusted Node Authentication (TS 33.203 Annex U). It is built anew:
// of the browser's message m, which is nil in the edge's own, only what it supports is taken.
func (e *Edge) register(b *binding, token string, expires int, m *siptx.Message) *siptx.Message {
	r := &siptx.Message{Method: "REGISTER", URI: "sip:" + e.cfg.Domain}
	hops := 70
	supported := "path"
	if m != nil {
		hops = maxForwards(m) - 1
		for _, tag := range []string{"gruu", "outbound"} {
			if m.Has("Supported", tag) {
				supported += ", " + tag
			}
		}
	}
	contact := b.contact
	contact.Params = append(slices.Clone(contact.Params), siptx.Header{Name: "expires", Value: strconv.Itoa(expires)})
	r.Add("Max-Forwards", strconv.Itoa(max(hops, 0)))
	r.Add("From", b.from)
	r.Add("To", b.to)
	r.Add("Call-ID", b.callID)
	r.Add("CSeq", fmt.Sprintf("%d REGISTER", b.seq))
	r.Add("Contact", contact.String())
	r.Add("Expires", strconv.Itoa(expires))
	r.Add("Authorization", fmt.Sprintf(`Digest username="%s",realm="%s",uri="sip:%s",nonce="",response="",integrity-protected="auth-done"`, b.impi, e.cfg.Domain, e.cfg.Domain))
	r.Add("Path", "<sip:"+token+"@"+e.sentBy+";transport=tcp;lr;ob>")
	r.Add("Require", "path")
	r.Add("Supported", supported)
	r.Add("P-Visited-Network-ID", `"`+e.cfg.Core.VisitedNetwork+`"`)
	e.charge(r)
	return r
}

// charge adds what each request towards the core carries: a new ICID (TS 24.229 §4.5), which no
// browser ever sees, and the access network by policy.
func (e *Edge) charge(m *siptx.Message) {
	if e.cfg.Core.AccessNetwork != "" {
		m.Add("P-Access-Network-Info", e.cfg.Core.AccessNetwork)
	}
	m.Add("P-Charging-Vector", fmt.Sprintf(`icid-value="%s-%s";icid-generated-at=%s`, e.cfg.Name, siptx.NewTag(), e.host))
}

// registered takes the core's answer to a browser's REGISTER.
func (e *Edge) registered(tx *siptx.ServerTx, b *binding, asked int, c *claims.SIP, res *siptx.Message) {
	f := b.flow
	old := f.bindings[b.impu]
	if res.Status >= 300 {
		status, phrase := res.Status, res.Reason
		if status == 401 || status == 407 {
			// A challenge of the core is none of the browser's: the core does not take this edge for trusted.
			status, phrase = 500, "Core Refuses Trusted Node Authentication"
		}
		if res.Local {
			e.stats.Refused.Core++
			status, phrase = 503, "Core Cannot Be Reached"
			if res.Status == 408 {
				status, phrase = 504, "Core Does Not Answer"
			}
		}
		e.log.Warn("registration failed", "pseudonym", b.alias, "status", res.Status, "reason", res.Reason)
		if status == 423 && tooShort(c, res) {
			e.challenge(tx, f, credential{found: true, err: errShort})
			return
		}
		tx.Reply(status, phrase, keepRetry(res)...)
		return
	}
	granted, known := e.granted(b, asked, res)
	if asked > 0 && !known {
		e.log.Warn("registration failed: the core's 200 does not list the contact", "pseudonym", b.alias)
		tx.Reply(500, "Core Granted No Registration")
		return
	}
	if old != nil {
		old.timer.Stop()
		delete(e.bindings, old)
		delete(f.bindings, b.impu)
		b.associated, b.serviceRoute = old.associated, old.serviceRoute
	}
	if granted == 0 {
		e.endCalls(b, ending{cause: "deregistered", status: 480, phrase: "Deregistered"})
		e.log.Info("deregistered", "pseudonym", b.alias)
		tx.Respond(e.answer(tx, res, nil))
		return
	}
	b.serviceRoute, b.associated = nil, nil // a 200 replaces both (TS 24.229 §5.2.2)
	for _, v := range res.List("Service-Route") {
		if a, err := siptx.ParseNameAddr(v); err == nil && len(b.serviceRoute) < maxRoutes {
			b.serviceRoute = append(b.serviceRoute, a.URI)
		}
	}
	for _, v := range res.List("P-Associated-URI") {
		if a, err := siptx.ParseNameAddr(v); err == nil && !strings.Contains(a.URI, "!") && len(b.associated) < maxRoutes {
			b.associated = append(b.associated, a.URI)
		}
	}
	if f.gone || !e.serving { // the browser left, or the edge began to, while the core thought
		e.deregister(b)
		return
	}
	if e.revoked(b.alias) { // in that time
		e.endCalls(b, ending{cause: "revoked", status: 403, phrase: revocations["revoked"]}) // of the registration that this one has replaced
		e.deregister(b)
		e.challenge(tx, f, credential{found: true, err: errRevoked})
		return
	}
	e.replaceElsewhere(b)
	life := min(time.Duration(granted)*time.Second, time.Until(time.Unix(c.Expiry, 0)))
	b.until = time.Now().Add(life)
	b.timer = time.AfterFunc(life, func() {
		e.locked(func() {
			if f.bindings[b.impu] == b {
				e.log.Info("registration expired", "pseudonym", b.alias)
				e.unbind(b, false)
			}
		})
	})
	f.bindings[b.impu] = b
	e.bindings[b] = struct{}{}
	e.stats.Registers++
	if e.cfg.Extend != nil {
		if err := e.cfg.Extend(b.alias, b.until); err != nil {
			e.log.Warn("the session's extension is not told; its relayed calls may end before it", "pseudonym", b.alias, "error", err)
		}
	}
	e.log.Info("registered", "pseudonym", b.alias, "source", f.source, "seconds", granted)

	contact := b.contact
	contact.Params = append(slices.Clone(contact.Params), siptx.Header{Name: "expires", Value: strconv.Itoa(granted)})
	r := e.answer(tx, res, nil)
	r.Add("Contact", contact.String())
	r.Add("Service-Route", "<sip:"+e.host+";transport=ws;lr>")
	for _, u := range b.associated {
		r.Add("P-Associated-URI", "<"+u+">")
	}
	if res.Has("Require", "outbound") && tx.Request.Has("Supported", "outbound") {
		r.Add("Require", "outbound")
	}
	r.Add("Supported", "path, outbound")
	r.Add("Flow-Timer", strconv.Itoa(int(flowTimer/time.Second)))
	e.withCredential(tx.Request, b, func(credential ...siptx.Header) {
		r.Headers = append(r.Headers, credential...)
		tx.Respond(r)
	})
}

// errShort refuses a token that ends before the shortest interval that the core registers: no REGISTER
// under it can succeed, and a user agent that was told the interval would try at once and for ever.
var errShort = errors.New("it ends before the core's shortest registration would")

func tooShort(c *claims.SIP, res *siptx.Message) bool {
	least, err := strconv.ParseUint(res.Get("Min-Expires"), 10, 32)
	return err == nil && time.Until(time.Unix(c.Expiry, 0)) < time.Duration(least)*time.Second
}

func keepRetry(res *siptx.Message) []siptx.Header {
	var list []siptx.Header
	for _, name := range []string{"Retry-After", "Min-Expires"} { // a 423 must name the latter (RFC 3261 §21.4.17)
		if v := res.Get(name); v != "" {
			list = append(list, siptx.Header{Name: name, Value: v})
		}
	}
	return list
}

// granted finds the seconds that the core gave to the binding's own contact.
func (e *Edge) granted(b *binding, asked int, res *siptx.Message) (seconds int, known bool) {
	for _, v := range res.List("Contact") {
		a, err := siptx.ParseNameAddr(v)
		if err != nil || a.URI != b.contact.URI {
			continue
		}
		n := asked
		if v := a.Params.Get("expires"); v != "" {
			if p, err := strconv.ParseUint(v, 10, 32); err == nil {
				n = int(p)
			}
		} else if p, err := strconv.ParseUint(res.Get("Expires"), 10, 32); err == nil {
			n = int(p)
		}
		return min(n, asked), true
	}
	return 0, false
}

// replaces says whether the core takes b, on another flow, for the same contact as o.
func (b *binding) replaces(o *binding) bool {
	return o.flow != b.flow && o.impu == b.impu && (o.contact.URI == b.contact.URI || o.instance != "" && o.instance == b.instance)
}

// replaceElsewhere takes from other flows what the same instance has now registered here (RFC 5626
// §6). The core has replaced it already, so it must not be de-registered there.
func (e *Edge) replaceElsewhere(b *binding) {
	for o := range e.bindings {
		if b.replaces(o) {
			e.log.Info("registration moves to a new WebSocket", "pseudonym", b.alias)
			e.unbind(o, false)
		}
	}
}

// unbind takes a binding away and ends its calls. tell: the core is told too, by a REGISTER of the
// edge's own with expires 0.
func (e *Edge) unbind(b *binding, tell bool) {
	b.timer.Stop()
	delete(e.bindings, b)
	if b.flow.bindings[b.impu] == b {
		delete(b.flow.bindings, b.impu)
	}
	e.endCalls(b, ending{cause: "registration-ended", status: 480, phrase: "Registration Ended"})
	if !tell {
		return
	}
	for n := range e.registering {
		if n.replaces(b) { // a page loaded anew: to de-register the old now could take the new registration away
			n.orphans = append(n.orphans, b)
			return
		}
	}
	e.deregister(b)
}

func (e *Edge) deregister(b *binding) {
	conn, ok := e.tcp.To(e.cfg.Core.NextHop)
	if !ok {
		e.log.Warn("cannot de-register: no connection to the core; the registration there runs out by itself", "pseudonym", b.alias)
		return
	}
	e.stats.Deregistered++
	b.seq = nextSeq(b.seq)
	e.layer.Request(conn, e.register(b, b.flow.token, 0, nil), func(res *siptx.Message) {
		if res.Status >= 300 {
			e.log.Warn("de-registration failed", "pseudonym", b.alias, "status", res.Status, "reason", res.Reason)
		}
	})
}

func (e *Edge) endCalls(b *binding, why ending) {
	for _, c := range b.flow.calls {
		if c.impu == b.impu {
			c.end(why, !b.flow.gone, true)
		}
	}
}
