package democore

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"wicgate/internal/siptx"
)

const patience = 5 * time.Second

func start(t *testing.T) *Core {
	t.Helper()
	c, err := New(Config{
		Listen: netip.MustParseAddrPort("127.0.0.1:0"), Domain: "ims.test", Edges: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}, VisitedNetwork: "webrtc.ims.test",
		Users: []string{"sip:alice@ims.test", "sip:bob@ims.test"},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := c.Serve(ctx); err != nil {
			t.Errorf("Serve: %v", err)
		}
	}()
	t.Cleanup(func() { cancel(); <-done; goleak.VerifyNone(t) })
	return c
}

// edge is an edge's side of it: a listener for what the core sends, and a connection to the core.
type edge struct {
	t    *testing.T
	l    net.Listener
	conn net.Conn
	in   *bufio.Reader // answers
	from *bufio.Reader // requests, once the core has connected
	back net.Conn
}

func newEdge(t *testing.T, c *Core) *edge {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", c.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.SetDeadline(time.Now().Add(patience))
	t.Cleanup(func() { l.Close(); conn.Close() })
	return &edge{t: t, l: l, conn: conn, in: bufio.NewReaderSize(conn, 16<<10)}
}

func (e *edge) read(r *bufio.Reader) *siptx.Message {
	e.t.Helper()
	for {
		b, err := siptx.ReadMessage(r, func() {})
		if err != nil {
			e.t.Fatal(err)
		}
		m, err := siptx.Parse(b, true)
		if err != nil {
			e.t.Fatal(err)
		}
		if m.Status != 100 {
			return m
		}
	}
}

func (e *edge) put(m string) {
	e.t.Helper()
	if _, err := io.WriteString(e.conn, m); err != nil {
		e.t.Fatal(err)
	}
}

// request is the next that the core sends to the edge.
func (e *edge) request() *siptx.Message {
	e.t.Helper()
	if e.from == nil {
		_ = e.l.(*net.TCPListener).SetDeadline(time.Now().Add(patience))
		c, err := e.l.Accept()
		if err != nil {
			e.t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(patience))
		e.t.Cleanup(func() { c.Close() })
		e.back, e.from = c, bufio.NewReaderSize(c, 16<<10)
	}
	return e.read(e.from)
}

func (e *edge) answer(m *siptx.Message, status int, fields ...siptx.Header) {
	e.t.Helper()
	r := m.Response(status, "Answer")
	if m.ToTag() == "" {
		r.Set("To", m.Get("To")+";tag=callee")
	}
	for _, v := range m.All("Record-Route") {
		r.Add("Record-Route", v)
	}
	r.Headers = append(r.Headers, fields...)
	if _, err := e.back.Write(r.Append(nil)); err != nil {
		e.t.Fatal(err)
	}
}

var n int

func message(method, uri, to string, fields ...string) string {
	n++
	m := fmt.Sprintf("%s %s SIP/2.0\r\nVia: SIP/2.0/TCP edge.test:5060;branch=z9hG4bK%d\r\nMax-Forwards: 60\r\nFrom: <sip:alice@ims.test>;tag=caller\r\nTo: %s\r\nCSeq: %d %s\r\n", method, uri, n, to, n, method)
	if !strings.Contains(strings.Join(fields, "\n"), "Call-ID") {
		m += fmt.Sprintf("Call-ID: c%d\r\n", n)
	}
	for _, f := range fields {
		m += f + "\r\n"
	}
	return m + "Content-Length: 0\r\n\r\n"
}

// register is what an edge sends; each field given takes the place of the one with its name, and "-Name" leaves it out.
func (e *edge) register(user string, change ...string) string {
	fields := []string{
		"Call-ID: reg-" + user,
		"Contact: <sip:" + user + "@x.invalid;transport=ws>;+sip.instance=\"<urn:uuid:" + user + ">\";reg-id=1;expires=600",
		`Authorization: Digest username="` + user + `@ims.test",realm="ims.test",uri="sip:ims.test",nonce="",response="",integrity-protected="auth-done"`,
		"Path: <sip:tok-" + user + "@" + e.l.Addr().String() + ";lr;ob>",
		"Require: path", "Supported: path, outbound",
		`P-Visited-Network-ID: "webrtc.ims.test"`,
	}
	for _, c := range change {
		name, _, _ := strings.Cut(strings.TrimPrefix(c, "-"), ":")
		kept := fields[:0:0]
		for _, f := range fields {
			if !strings.HasPrefix(f, name+":") {
				kept = append(kept, f)
			}
		}
		fields = kept
		if !strings.HasPrefix(c, "-") {
			fields = append(fields, c)
		}
	}
	m := message("REGISTER", "sip:ims.test", "<sip:"+user+"@ims.test>", fields...)
	return strings.Replace(m, "From: <sip:alice@", "From: <sip:"+user+"@", 1)
}

func TestNewRefuses(t *testing.T) {
	for _, c := range []Config{
		{Listen: netip.MustParseAddrPort("0.0.0.0:0"), Domain: "ims.test", Edges: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}},
		{Listen: netip.MustParseAddrPort("192.0.2.1:5080"), Domain: "ims.test", Edges: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}},
		{Listen: netip.MustParseAddrPort("127.0.0.1:0"), Edges: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}},
		{Listen: netip.MustParseAddrPort("127.0.0.1:0"), Domain: "ims.test"},
		{Listen: netip.MustParseAddrPort("127.0.0.1:0"), Domain: "ims.test", Edges: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}, Users: []string{"alice"}},
	} {
		if _, err := New(c); err == nil {
			t.Errorf("%+v is taken", c)
		}
	}
}

// TestGate: only Trusted Node Authentication, whole, opens it.
func TestGate(t *testing.T) {
	c := start(t)
	e := newEdge(t, c)
	for _, tc := range []struct {
		name   string
		change []string
		status int
	}{
		{"no credentials", []string{"-Authorization"}, 403},
		{"integrity-protected no", []string{`Authorization: Digest username="alice@ims.test",integrity-protected="no"`}, 403},
		{"integrity-protected twice", []string{`Authorization: Digest username="alice@ims.test",integrity-protected="auth-done",integrity-protected="no"`}, 403},
		{"Basic", []string{`Authorization: Basic integrity-protected="auth-done"`}, 403},
		{"no user name", []string{`Authorization: Digest username="",integrity-protected="auth-done"`}, 403},
		{"a token", []string{"Authorization: Bearer x"}, 400},
		{"a token elsewhere", []string{"Proxy-Authorization: bearer x"}, 400},
		{"another network", []string{`P-Visited-Network-ID: "other.test"`}, 403},
		{"no network", []string{"-P-Visited-Network-ID"}, 403},
		{"no Path", []string{"-Path"}, 421},
		{"Path not required", []string{"Require: outbound"}, 421},
		{"Contact twice", []string{"Contact: <sip:a@b>, <sip:c@d>"}, 400},
		{"too brief", []string{"Contact: <sip:a@b>;expires=5"}, 423},
		{"Expires malformed", []string{"Expires: x"}, 400},
		{"another's private identity", []string{`Authorization: Digest username="bob@ims.test",integrity-protected="auth-done"`}, 403},
		{"Path of no edge", []string{"Path: <sip:tok@192.0.2.1:5060;lr;ob>"}, 403},
		{"Path by name", []string{"Path: <sip:tok@edge.test;lr;ob>"}, 403},
		{"another edge first", []string{"Path: <sip:tok@192.0.2.1:5060;lr>, <sip:tok@127.0.0.1:5060;lr;ob>"}, 403},
	} {
		e.put(e.register("alice", tc.change...))
		if r := e.read(e.in); r.Status != tc.status {
			t.Errorf("%s: %d %s", tc.name, r.Status, r.Reason)
		}
	}
	for what, m := range map[string]string{
		"another domain":    strings.Replace(e.register("alice"), "REGISTER sip:ims.test ", "REGISTER sip:other.test ", 1),
		"a user in the URI": strings.Replace(e.register("alice"), "REGISTER sip:ims.test ", "REGISTER sip:alice@ims.test ", 1),
		"another's From":    strings.Replace(e.register("alice"), "From: <sip:alice@", "From: <sip:bob@", 1),
	} {
		e.put(m)
		if r := e.read(e.in); r.Status != 403 {
			t.Errorf("%s: %d %s", what, r.Status, r.Reason)
		}
	}
	e.put(e.register("nobody"))
	if r := e.read(e.in); r.Status != 403 {
		t.Errorf("unknown: %d", r.Status)
	}
	if s := c.Stats(); s.Registrations != 0 || s.Leaks != 2 || s.Registers != 0 {
		t.Errorf("%+v", s)
	}
}

func TestRegistrar(t *testing.T) {
	c := start(t)
	e := newEdge(t, c)
	e.put(e.register("alice"))
	r := e.read(e.in)
	if r.Status != 200 || !strings.HasSuffix(r.Get("Contact"), ";expires=600") || r.Get("Service-Route") != "<sip:orig@"+c.Addr().String()+";lr>" || r.Get("P-Associated-URI") != "<sip:alice@ims.test>" || !r.Has("Require", "outbound") || r.Get("Path") == "" {
		t.Errorf("%s", r.Append(nil))
	}
	// the same instance with another contact replaces it; another instance joins it
	e.put(e.register("alice", "Contact: <sip:new@y.invalid>;+sip.instance=\"<urn:uuid:alice>\";reg-id=1;expires=600"))
	if r = e.read(e.in); len(r.All("Contact")) != 1 {
		t.Errorf("%v", r.All("Contact"))
	}
	e.put(e.register("alice", "Contact: <sip:tab@z.invalid>;expires=600"))
	if r = e.read(e.in); len(r.All("Contact")) != 2 {
		t.Errorf("%v", r.All("Contact"))
	}
	for i := range maxContacts + 2 {
		e.put(e.register("alice", fmt.Sprintf("Contact: <sip:t%d@z.invalid>;expires=600", i)))
		r = e.read(e.in)
	}
	if n := len(r.All("Contact")); n != maxContacts {
		t.Errorf("%d contacts", n)
	}
	e.put(e.register("alice", "-Contact"))
	if r = e.read(e.in); len(r.All("Contact")) != maxContacts {
		t.Errorf("asked: %v", r.All("Contact"))
	}
	for i := range maxContacts + 2 {
		e.put(e.register("alice", fmt.Sprintf("Contact: <sip:t%d@z.invalid>;expires=0", i)))
		r = e.read(e.in)
	}
	if s := c.Stats(); s.Registrations != 0 || len(r.All("Contact")) != 0 {
		t.Errorf("%+v", s)
	}
}

// TestRouting: by Path to who is registered, by Record-Route inside the dialog.
func TestRouting(t *testing.T) {
	c := start(t)
	e := newEdge(t, c)
	for _, user := range []string{"alice", "bob"} {
		e.put(e.register(user))
		if r := e.read(e.in); r.Status != 200 {
			t.Fatal(r.Status)
		}
	}
	own := "Route: <sip:orig@" + c.Addr().String() + ";lr>"
	for _, tc := range []struct {
		m      string
		status int
	}{
		{message("INVITE", "sip:nobody@ims.test", "<sip:nobody@ims.test>", own), 404},
		{message("INVITE", "sip:bob@other.test", "<sip:bob@other.test>", own), 404},
		{message("INVITE", "tel:+1", "<tel:+1>", own), 404},
		{message("OPTIONS", "sip:"+c.Addr().String(), "<sip:ims.test>"), 200},
		{strings.Replace(message("MESSAGE", "sip:bob@ims.test", "<sip:bob@ims.test>", own), "Max-Forwards: 60", "Max-Forwards: 0", 1), 483},
		{message("BYE", "sip:x@y.invalid", "<sip:bob@ims.test>;tag=1"), 480},
		{message("BYE", "sip:x@y.invalid", "<sip:bob@ims.test>;tag=1", own, "Route: <sip:x@192.0.2.1;lr>"), 480},
		{message("MESSAGE", "sip:bob@ims.test", "<sip:bob@ims.test>", own, "Authorization: Bearer x"), 400},
	} {
		e.put(tc.m)
		if r := e.read(e.in); r.Status != tc.status {
			t.Errorf("%.60q: %d %s", tc.m, r.Status, r.Reason)
		}
	}
	e.put(message("INVITE", "sip:bob@ims.test", "<sip:bob@ims.test>", own, "Record-Route: <sip:edge@127.0.0.1:1;lr>", "Contact: <sip:alice@x.invalid>", "Call-ID: call"))
	in := e.request()
	if in.URI != "sip:bob@x.invalid;transport=ws" || strings.Join(in.List("Route"), ",") != "<sip:tok-bob@"+e.l.Addr().String()+";lr;ob>" ||
		strings.Join(in.List("Record-Route"), ",") != "<sip:"+c.Addr().String()+";lr>,<sip:edge@127.0.0.1:1;lr>" || in.Get("Max-Forwards") != "59" || len(in.List("Via")) != 2 {
		t.Errorf("%s", in.Append(nil))
	}
	e.answer(in, 180)
	if r := e.read(e.in); r.Status != 180 || len(r.List("Via")) != 1 {
		t.Errorf("%s", r.Append(nil))
	}
	e.answer(in, 200, siptx.Header{Name: "Contact", Value: "<sip:bob@x.invalid>"})
	r := e.read(e.in)
	if r.Status != 200 || c.Stats().Calls != 1 {
		t.Errorf("%s %+v", r.Append(nil), c.Stats())
	}
	inside := []string{"Route: <sip:" + c.Addr().String() + ";lr>", "Route: <sip:tok-bob@" + e.l.Addr().String() + ";lr>", "Call-ID: call"}
	e.put(message("ACK", "sip:bob@x.invalid", "<sip:bob@ims.test>;tag=callee", inside...))
	if m := e.request(); m.Method != "ACK" || m.URI != "sip:bob@x.invalid" || len(m.List("Route")) != 1 {
		t.Errorf("%s", m.Append(nil))
	}
	e.put(message("BYE", "sip:bob@x.invalid", "<sip:bob@ims.test>;tag=callee", inside...))
	bye := e.request()
	e.answer(bye, 200)
	if r := e.read(e.in); r.Status != 200 || c.Stats().Calls != 0 {
		t.Errorf("%d %+v", r.Status, c.Stats())
	}
	// a flow that has failed is a user who is not there
	e.put(message("MESSAGE", "sip:bob@ims.test", "<sip:bob@ims.test>", own))
	e.answer(e.request(), 430)
	if r := e.read(e.in); r.Status != 480 {
		t.Errorf("%d", r.Status)
	}
	// cancelled
	m := message("INVITE", "sip:bob@ims.test", "<sip:bob@ims.test>", own, "Contact: <sip:alice@x.invalid>")
	e.put(m)
	in = e.request()
	e.answer(in, 180)
	e.read(e.in)
	e.put(strings.ReplaceAll(m, "INVITE", "CANCEL"))
	if r := e.read(e.in); r.Status != 200 {
		t.Errorf("CANCEL: %d", r.Status)
	}
	if c := e.request(); c.Method != "CANCEL" {
		t.Errorf("got %s", c.Method)
	}
	e.answer(in, 487)
	if a := e.request(); a.Method != "ACK" {
		t.Errorf("got %s", a.Method)
	}
	if r := e.read(e.in); r.Status != 487 {
		t.Errorf("%d", r.Status)
	}
}

// TestOrder: a REGISTER that was overtaken changes nothing (RFC 3261 §10.3 step 7).
func TestOrder(t *testing.T) {
	c := start(t)
	e := newEdge(t, c)
	late := e.register("alice", "Contact: <sip:alice@x.invalid;transport=ws>;expires=0")
	e.put(e.register("alice"))
	if r := e.read(e.in); r.Status != 200 {
		t.Fatalf("%d", r.Status)
	}
	e.put(late)
	if r := e.read(e.in); r.Status != 500 || c.Stats().Registrations != 1 {
		t.Errorf("%d %s, %+v", r.Status, r.Reason, c.Stats())
	}
}

// TestLeakEverywhere: an ACK with a token is counted too.
func TestLeakEverywhere(t *testing.T) {
	c := start(t)
	e := newEdge(t, c)
	e.put(message("ACK", "sip:bob@ims.test", "<sip:bob@ims.test>;tag=x", "Authorization: Bearer x"))
	e.put(message("OPTIONS", "sip:ims.test", "<sip:ims.test>"))
	if e.read(e.in); c.Stats().Leaks != 1 {
		t.Errorf("%+v", c.Stats())
	}
}

// TestCallsAreBounded: what never hears BYE is forgotten in time, and no sooner.
func TestCallsAreBounded(t *testing.T) {
	c := &Core{calls: map[string]dialog{}}
	for i := range maxCalls {
		c.calls[fmt.Sprint(i)] = dialog{since: time.Now()}
	}
	if c.hasRoom() {
		t.Error("one more has room")
	}
	c.calls["0"] = dialog{since: time.Now().Add(-maxTalk - time.Minute)}
	if !c.hasRoom() || len(c.calls) != maxCalls-1 {
		t.Errorf("%d calls", len(c.calls))
	}
}
