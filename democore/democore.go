// Package democore stands in for the S-CSCF and the HSS of an operator, so that a first call needs
// nobody else's core: a registrar behind the gate of Trusted Node Authentication (TS 33.203 Annex U), and a
// stateful proxy that routes by registered Path (RFC 3327, RFC 3608). It authenticates nobody by itself
// and therefore refuses to listen anywhere but on loopback. It keeps everything in memory, and bills, screens,
// and filters nothing.
//
// It stands on internal/siptx, as the edge does, and not on sipgo's transaction layer: that one starts
// goroutines which nobody can wait for (there is no WaitGroup in sipgo v1.7.2/sip), where Serve promises to
// return once all has ended; and it has no bound on connections and transactions.
package democore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"wicgate/internal/listen"
	"wicgate/internal/siptx"
)

// Config of a core.
type Config struct {
	Log *slog.Logger // nil: none
	// Listen for SIP over TCP; loopback only.
	Listen netip.AddrPort
	// Domain that is home here, "ims.test".
	Domain string
	// Edges may connect, and may send Trusted Node Authentication.
	Edges []netip.Prefix
	// VisitedNetwork that a trusted node must name in P-Visited-Network-ID.
	VisitedNetwork string
	// Users are the public identities that exist, SIP URIs. None: every user of Domain exists.
	Users []string
	// Private are private identities by public identity. A public identity that is not named takes any
	// private one but that of another user, where sip:alice@ims.test has alice@ims.test.
	Private map[string]string
}

const (
	minExpires    = 10 * time.Second
	maxExpires    = time.Hour
	maxContacts   = 4              // of one identity; the oldest goes
	maxIdentities = 4096           // registered at once
	maxCalls      = 4096           // asked for or answered, at once
	maxTalk       = 12 * time.Hour // after which a call without BYE counts as over
	drainTime     = time.Second
)

// Core is a running core.
type Core struct {
	cfg      Config
	log      *slog.Logger
	listener net.Listener
	sentBy   string
	users    map[string]bool // nil: all

	mu      sync.Mutex // guards the following fields
	layer   siptx.Layer
	tcp     *siptx.TCP
	serving bool
	homes   map[string][]*contact // by address of record, oldest first
	calls   map[string]dialog     // by Call-ID, from INVITE to BYE or refusal
	stats   Stats
}

// dialog is a call that was asked for. It is kept from the INVITE on: a BYE that overtakes the 200 on
// another connection must find it.
type dialog struct {
	since    time.Time
	answered bool
}

// contact is one registered contact.
type contact struct {
	uri      string
	instance string
	field    string   // as registered, without expires
	path     []string // URIs
	callID   string   // of its REGISTER
	seq      uint32
	timer    *time.Timer
	until    time.Time
}

// Stats are gauges and counters.
type Stats struct {
	Registrations int // contacts alive
	Calls         int // answered, no BYE yet
	Connections   int // to and from edges

	Registers uint64 // accepted
	Refused   uint64 // REGISTER refused by the gate
	Routed    uint64 // requests sent on
	Leaks     uint64 // messages in which an edge let a bearer token through
}

// New checks the configuration and opens the listener.
func New(cfg Config) (*Core, error) {
	switch {
	case !cfg.Listen.Addr().IsLoopback():
		return nil, fmt.Errorf("democore: listen %v is not loopback: it authenticates nobody and serves this machine alone", cfg.Listen)
	case cfg.Domain == "" || len(cfg.Edges) == 0:
		return nil, errors.New("democore: domain and edges are needed")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	c := &Core{cfg: cfg, log: cfg.Log, homes: map[string][]*contact{}, calls: map[string]dialog{}}
	for _, u := range cfg.Users {
		p, err := siptx.ParseURI(u)
		if err != nil {
			return nil, fmt.Errorf("democore: user %q: %w", u, err)
		}
		if c.users == nil {
			c.users = map[string]bool{}
		}
		c.users[p.AOR()] = true
	}
	l, err := listen.TCP("democore.listen", cfg.Listen)
	if err != nil {
		return nil, err
	}
	c.listener, c.sentBy = l, l.Addr().String()
	c.layer = siptx.Layer{Do: c.locked, OnRequest: c.onRequest, OnAck: c.onAck}
	c.tcp = &siptx.TCP{
		Log: cfg.Log, SentBy: c.sentBy, Allow: c.isEdge,
		Receive: func(conn *siptx.TCPConn, m *siptx.Message) { c.locked(func() { c.layer.Receive(conn, m) }) },
		Lost:    func(conn *siptx.TCPConn) { c.locked(func() { c.layer.ConnLost(conn) }) },
	}
	return c, nil
}

func (c *Core) locked(work func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	work()
}

func (c *Core) isEdge(a netip.Addr) bool {
	return slices.ContainsFunc(c.cfg.Edges, func(p netip.Prefix) bool { return p.Contains(a) })
}

// Addr is where the core listens.
func (c *Core) Addr() netip.AddrPort { return c.listener.Addr().(*net.TCPAddr).AddrPort() }

// Serve runs until ctx ends, gives transactions a second to end, and returns when all that it
// started has ended.
func (c *Core) Serve(ctx context.Context) error {
	c.locked(func() { c.serving = true })
	var accept sync.WaitGroup
	accept.Go(func() { c.tcp.Serve(c.listener) })
	<-ctx.Done()
	for end := time.Now().Add(drainTime); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		c.mu.Lock()
		waiting := c.layer.Waiting()
		c.mu.Unlock()
		if waiting == 0 {
			break
		}
	}
	_ = c.listener.Close() // it ends Serve of tcp
	accept.Wait()
	c.tcp.Close()
	c.locked(func() {
		c.serving = false
		c.layer.Close()
		for _, list := range c.homes {
			for _, b := range list {
				b.timer.Stop()
			}
		}
	})
	return nil
}

// Stats returns a copy.
func (c *Core) Stats() Stats {
	open, _ := c.tcp.Connections()
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.stats
	s.Connections = open
	for _, list := range c.homes {
		s.Registrations += len(list)
	}
	for _, d := range c.calls {
		if d.answered {
			s.Calls++
		}
	}
	return s
}

// onRequest is called by the transaction layer, under the lock.
func (c *Core) onRequest(tx *siptx.ServerTx) {
	m := tx.Request
	hops, err := strconv.Atoi(m.Get("Max-Forwards"))
	switch {
	case c.leaks(m):
		tx.Reply(400, "Token leaked to core")
	case err == nil && hops == 0:
		tx.Reply(483, "Too Many Hops")
	case m.Method == "REGISTER":
		c.register(tx)
	case m.Method == "OPTIONS" && len(m.List("Route")) == 0 && userOf(m.URI) == "":
		tx.Reply(200, "OK")
	default:
		c.route(tx)
	}
}

// leaks counts and logs a bearer token in m.
func (c *Core) leaks(m *siptx.Message) bool {
	if !leaked(m) {
		return false
	}
	c.stats.Leaks++
	c.log.Error("an edge let a bearer token through", "method", m.Method)
	return true
}

func leaked(m *siptx.Message) bool {
	for _, name := range []string{"Authorization", "Proxy-Authorization"} {
		for _, v := range m.All(name) {
			if scheme, _, _ := strings.Cut(strings.TrimSpace(v), " "); strings.EqualFold(scheme, "Bearer") {
				return true
			}
		}
	}
	return false
}

func userOf(uri string) string {
	u, err := siptx.ParseURI(uri)
	if err != nil {
		return ""
	}
	return u.User
}

// digest takes the parameters of Digest credentials.
func digest(m *siptx.Message) (siptx.Params, bool) {
	v := m.All("Authorization")
	if len(v) != 1 {
		return nil, false
	}
	scheme, rest, _ := strings.Cut(strings.TrimSpace(v[0]), " ")
	if !strings.EqualFold(scheme, "Digest") {
		return nil, false
	}
	var p siptx.Params
	for _, part := range siptx.Split(rest, ',') {
		name, value, _ := strings.Cut(part, "=")
		if _, twice := p.Lookup(strings.TrimSpace(name)); twice {
			return nil, false
		}
		p = append(p, siptx.Header{Name: strings.TrimSpace(name), Value: strings.Trim(strings.TrimSpace(value), `"`)})
	}
	return p, true
}

// register is the gate, then the registrar (TS 33.203 P.4, U.1; RFC 3261 §10.3).
func (c *Core) register(tx *siptx.ServerTx) {
	m := tx.Request
	refuse := func(status int, phrase string, fields ...siptx.Header) {
		c.stats.Refused++
		c.log.Info("registration refused", "status", status, "cause", phrase)
		tx.Reply(status, phrase, fields...)
	}
	cred, ok := digest(m)
	switch {
	case !c.isEdge(tx.Conn.(*siptx.TCPConn).Peer.Addr()):
		refuse(403, "Not A Trusted Node")
		return
	case !ok || cred.Get("integrity-protected") != "auth-done":
		refuse(403, "Trusted Node Authentication Required")
		return
	case strings.Trim(m.Get("P-Visited-Network-ID"), `"`) != c.cfg.VisitedNetwork:
		refuse(403, "Unknown Visited Network")
		return
	case !strings.EqualFold(hostOf(m.URI), c.cfg.Domain) || userOf(m.URI) != "":
		refuse(403, "Wrong Domain")
		return
	case len(m.List("Path")) == 0 || !m.Has("Require", "path"):
		refuse(421, "Extension Required", siptx.Header{Name: "Require", Value: "path"})
		return
	}
	impu := siptx.AOROf(m.Get("To"))
	switch path := uris(m, "Path"); {
	case !c.exists(impu) || cred.Get("username") == "":
		refuse(403, "Unknown Identity")
		return
	case siptx.AOROf(m.Get("From")) != impu: // a third party's
		refuse(403, "From Is Not To")
		return
	case !c.belongs(cred.Get("username"), impu):
		refuse(403, "Private Identity Is Another's")
		return
	case len(path) != len(m.List("Path")) || !c.namesEdge(path[0]):
		refuse(403, "Path Names No Edge")
		return
	}
	list := m.List("Contact")
	expires, err := expiresOf(m)
	if err != nil || len(list) > 1 {
		refuse(400, "Malformed Contact Or Expires")
		return
	}
	if len(list) == 1 {
		a, err := siptx.ParseNameAddr(list[0])
		if err != nil {
			refuse(400, "Malformed Contact")
			return
		}
		if v, ok := a.Params.Lookup("expires"); ok {
			n, err := strconv.ParseUint(v, 10, 32)
			if err != nil {
				refuse(400, "Malformed Contact")
				return
			}
			expires = time.Duration(n) * time.Second
		}
		if expires > 0 && expires < minExpires {
			refuse(423, "Interval Too Brief", siptx.Header{Name: "Min-Expires", Value: strconv.Itoa(int(minExpires / time.Second))})
			return
		}
		if len(c.homes) >= maxIdentities && c.homes[impu] == nil {
			refuse(503, "Too Many Registrations")
			return
		}
		seq, _, _ := m.CSeq()
		for _, b := range c.homes[impu] { // RFC 3261 §10.3 step 7
			if b.uri == a.URI && b.callID == m.CallID() && seq <= b.seq {
				refuse(500, "Out Of Order")
				return
			}
		}
		c.store(impu, a, m, min(expires, maxExpires))
	}
	c.stats.Registers++
	r := m.Response(200, "OK")
	for _, b := range c.homes[impu] {
		r.Add("Contact", b.field+";expires="+strconv.Itoa(int(time.Until(b.until).Round(time.Second)/time.Second)))
	}
	for _, p := range m.All("Path") {
		r.Add("Path", p)
	}
	r.Add("Service-Route", "<sip:orig@"+c.sentBy+";lr>")
	r.Add("P-Associated-URI", "<"+impu+">")
	if m.Has("Supported", "outbound") {
		r.Add("Require", "outbound")
	}
	tx.Respond(r)
}

// belongs says whether a private identity may register a public one.
func (c *Core) belongs(impi, impu string) bool {
	if p := c.cfg.Private[impu]; p != "" {
		return p == impi
	}
	return "sip:"+impi == impu || !c.exists("sip:"+impi)
}

// namesEdge says whether a URI is of a configured edge: what is registered is where calls go.
func (c *Core) namesEdge(uri string) bool {
	u, err := siptx.ParseURI(uri)
	if err != nil {
		return false
	}
	at, ok := u.AddrPort()
	return ok && c.isEdge(at.Addr())
}

func hostOf(uri string) string {
	u, err := siptx.ParseURI(uri)
	if err != nil {
		return ""
	}
	return u.Host
}

func (c *Core) exists(aor string) bool {
	u, err := siptx.ParseURI(aor)
	if err != nil || u.User == "" || u.Host != strings.ToLower(c.cfg.Domain) {
		return false
	}
	return c.users == nil || c.users[aor]
}

func expiresOf(m *siptx.Message) (time.Duration, error) {
	v := m.Get("Expires")
	if v == "" {
		return maxExpires, nil
	}
	n, err := strconv.ParseUint(v, 10, 32)
	return time.Duration(n) * time.Second, err
}

func uris(m *siptx.Message, name string) []string {
	var list []string
	for _, v := range m.List(name) {
		if a, err := siptx.ParseNameAddr(v); err == nil {
			list = append(list, a.URI)
		}
	}
	return list
}

// store adds, refreshes or, at expires 0, removes a contact. One with the same instance and reg-id
// is the same (RFC 5626 §6).
func (c *Core) store(impu string, a siptx.NameAddr, m *siptx.Message, expires time.Duration) {
	a.Params.Del("expires")
	seq, _, _ := m.CSeq()
	b := &contact{uri: a.URI, field: a.String(), path: uris(m, "Path"), callID: m.CallID(), seq: seq, until: time.Now().Add(expires)}
	if i := a.Params.Get("+sip.instance"); i != "" {
		b.instance = i + ";" + a.Params.Get("reg-id")
	}
	list := slices.DeleteFunc(c.homes[impu], func(o *contact) bool {
		same := o.uri == b.uri || b.instance != "" && o.instance == b.instance
		if same {
			o.timer.Stop()
		}
		return same
	})
	if expires > 0 {
		if len(list) >= maxContacts {
			list[0].timer.Stop()
			list = list[1:]
		}
		b.timer = time.AfterFunc(expires, func() { c.locked(func() { c.drop(impu, b) }) })
		list = append(list, b)
	}
	if len(list) == 0 {
		delete(c.homes, impu)
	} else {
		c.homes[impu] = list
	}
	c.log.Info("registration", "identity", impu, "seconds", int(expires/time.Second), "contacts", len(list))
}

func (c *Core) drop(impu string, b *contact) {
	b.timer.Stop()
	list := slices.DeleteFunc(c.homes[impu], func(o *contact) bool { return o == b })
	if len(list) == 0 {
		delete(c.homes, impu)
		return
	}
	c.homes[impu] = list
}

// next prepares m for its next hop: our own Route is taken off (RFC 3261 §16.4), Max-Forwards
// counted down. Its Via is added by the transaction layer.
func (c *Core) next(m *siptx.Message) (n *siptx.Message, routes []string) {
	n = m.Clone()
	routes = uris(m, "Route")
	for len(routes) > 0 && c.isOwn(routes[0]) {
		routes = routes[1:]
	}
	hops, err := strconv.Atoi(m.Get("Max-Forwards"))
	if err != nil {
		hops = 70
	}
	n.Set("Max-Forwards", strconv.Itoa(max(hops-1, 0)))
	return n, routes
}

func (c *Core) isOwn(uri string) bool {
	u, err := siptx.ParseURI(uri)
	if err != nil {
		return false
	}
	at, ok := u.AddrPort()
	return ok && at.String() == c.sentBy
}

// send finds the connection for a route set and writes it into m.
func (c *Core) send(m *siptx.Message, routes []string) (siptx.Conn, bool) {
	m.Del("Route")
	if len(routes) == 0 {
		return nil, false
	}
	for i := len(routes) - 1; i >= 0; i-- {
		m.Push("Route", "<"+routes[i]+">")
	}
	u, err := siptx.ParseURI(routes[0])
	if err != nil {
		return nil, false
	}
	at, ok := u.AddrPort()
	if !ok || !c.isEdge(at.Addr()) {
		return nil, false
	}
	return c.tcp.To(at)
}

// route sends a request on: inside a dialog by its route set, else to where the identity in the
// Request-URI is registered, newest first and alone.
func (c *Core) route(tx *siptx.ServerTx) {
	m := tx.Request
	n, routes := c.next(m)
	if m.ToTag() == "" {
		u, err := siptx.ParseURI(m.URI)
		if err != nil || !c.exists(u.AOR()) {
			tx.Reply(404, "Not Found")
			return
		}
		home := c.homes[u.AOR()]
		if len(home) == 0 {
			tx.Reply(480, "Temporarily Unavailable")
			return
		}
		to := home[len(home)-1]
		if m.Method == "INVITE" && !c.hasRoom() {
			tx.Reply(503, "Too Many Calls", siptx.Header{Name: "Retry-After", Value: "10"})
			return
		}
		n.URI, routes = to.uri, to.path
		if m.Method == "INVITE" {
			n.Push("Record-Route", "<sip:"+c.sentBy+";lr>")
		}
	}
	conn, ok := c.send(n, routes)
	if !ok {
		tx.Reply(480, "Temporarily Unavailable")
		return
	}
	c.stats.Routed++
	if m.Method == "INVITE" {
		tx.Reply(100, "Trying")
	}
	switch {
	case m.Method == "BYE":
		delete(c.calls, m.CallID())
	case m.Method == "INVITE" && m.ToTag() == "":
		c.calls[m.CallID()] = dialog{since: time.Now()}
	}
	branch := c.layer.Request(conn, n, func(res *siptx.Message) { c.onResponse(tx, res) })
	tx.OnCancel = func(cancel *siptx.Message) {
		c.leaks(cancel) // its answer has been given
		var fields []siptx.Header
		for _, v := range cancel.All("Reason") {
			fields = append(fields, siptx.Header{Name: "Reason", Value: v})
		}
		branch.Cancel(fields...)
	}
	tx.OnGone = func() { branch.Cancel() }
}

// hasRoom says whether one more call may be answered. Calls whose BYE was lost are forgotten in time.
func (c *Core) hasRoom() bool {
	if len(c.calls) < maxCalls {
		return true
	}
	for id, d := range c.calls {
		if time.Since(d.since) > maxTalk {
			delete(c.calls, id)
		}
	}
	return len(c.calls) < maxCalls
}

func (c *Core) onResponse(tx *siptx.ServerTx, res *siptx.Message) {
	if res.Status <= 100 {
		return
	}
	r := res.Clone()
	if res.Local {
		r = tx.Request.Response(res.Status, res.Reason)
	} else {
		vias := r.List("Via")
		r.Del("Via")
		for i := len(vias) - 1; i >= 1; i-- { // ours is the first (RFC 3261 §16.7 step 3)
			r.Push("Via", vias[i])
		}
	}
	if res.Status == 430 || res.Local && res.Status == 503 {
		r.Status, r.Reason = 480, "Temporarily Unavailable" // no other flow to try (RFC 5626 §6)
	}
	if d, ok := c.calls[res.CallID()]; ok && tx.Request.Method == "INVITE" && tx.Request.ToTag() == "" {
		switch {
		case res.Status >= 300 && !d.answered:
			delete(c.calls, res.CallID())
		case res.Status >= 200 && res.Status < 300:
			d.answered = true
			c.calls[res.CallID()] = d
		}
	}
	tx.Respond(r)
}

// onAck sends the ACK of a 2xx on, end to end.
func (c *Core) onAck(_ siptx.Conn, m *siptx.Message) {
	if c.leaks(m) {
		return // an ACK is never answered
	}
	n, routes := c.next(m)
	conn, ok := c.send(n, routes)
	if !ok {
		return
	}
	transport, sentBy := conn.Via()
	n.Push("Via", "SIP/2.0/"+transport+" "+sentBy+";branch=z9hG4bK"+siptx.NewTag())
	conn.Send(n.Append(nil))
}
