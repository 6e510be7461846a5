package epcscf

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/go-jose/go-jose/v4"

	"wicgate/democore"
	"wicgate/internal/claims"
	"wicgate/internal/iq"
	"wicgate/internal/siptx"
)

const (
	testDomain = "ims.test"
	testOrigin = "https://portal.test"
	patience   = 5 * time.Second
)

// house is an edge with a democore, a fake gateway, and recorders on every byte between edge and core.
type house struct {
	t       *testing.T
	edge    *Edge
	core    *democore.Core
	gateway *fakeGateway
	web     *httptest.Server
	toCore  *recorder // the edge's connections to the core
	toEdge  *recorder // the core's connections to the edge
	log     *safeBuffer
	uas     map[string]*ua
	stop    func()
}

var (
	wafKey, _   = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	otherKey, _ = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
)

type staticKeys map[string]crypto.PublicKey

func (s staticKeys) Key(_ context.Context, kid string) (crypto.PublicKey, error) {
	if k := s[kid]; k != nil {
		return k, nil
	}
	return nil, ErrUnknownKey
}

func newHouse(t *testing.T, change ...func(*Config)) *house {
	t.Helper()
	h := &house{t: t, gateway: newFakeGateway(), log: &safeBuffer{}, uas: map[string]*ua{}}
	lo, lo2 := netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.2")
	log := slog.New(slog.NewTextHandler(h.log, nil))
	core, err := democore.New(democore.Config{
		Log: log.With("role", "democore"), Listen: netip.AddrPortFrom(lo2, 0), Domain: testDomain, Edges: []netip.Prefix{netip.PrefixFrom(lo, 32)}, VisitedNetwork: "webrtc.ims.test",
		Users: []string{"sip:alice@ims.test", "sip:bob@ims.test", "sip:carol@ims.test"},
	})
	if err != nil {
		t.Fatal(err)
	}
	h.core = core
	h.toCore, h.toEdge = newRecorder(t), newRecorder(t)
	h.toCore.target = core.Addr()
	cfg := Config{
		Log: log.With("role", "epcscf"), Name: "edge1", Domain: testDomain, Audience: "epcscf.ims.test", Issuers: []string{"https://waf.ims.test"},
		Keys: staticKeys{"k1": wafKey.Public()}, AuthzServer: "https://waf.ims.test", Origins: []string{testOrigin}, Gateway: h.gateway,
		Core: CoreConfig{
			Listen: netip.AddrPortFrom(lo, 0), Advertise: h.toEdge.addr(), NextHop: h.toCore.addr(), Peers: []netip.Prefix{netip.PrefixFrom(lo, 32)},
			VisitedNetwork: "webrtc.ims.test", AccessNetwork: "IEEE-802.11;network-provided", Trusted: true,
		},
	}
	for _, c := range change {
		c(&cfg)
	}
	h.edge, err = New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	h.toEdge.target = h.edge.Addr()
	h.web = httptest.NewServer(h.edge.Handler())
	ctx, cancel := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	for _, r := range []*recorder{h.toCore, h.toEdge} {
		serving.Go(r.serve)
	}
	coreCtx, stopCore := context.WithCancel(context.Background())
	serving.Go(func() { _ = core.Serve(coreCtx) })
	edgeDone := make(chan struct{})
	go func() {
		defer close(edgeDone)
		if err := h.edge.Serve(ctx); err != nil {
			t.Errorf("Serve: %v", err)
		}
	}()
	h.wait("the edge serves", func() bool { h.edge.mu.Lock(); defer h.edge.mu.Unlock(); return h.edge.serving })
	var once sync.Once
	h.stop = func() {
		once.Do(func() {
			begun := time.Now()
			cancel()
			<-edgeDone
			if d := time.Since(begun); d > 5*time.Second {
				t.Errorf("Serve took %v to end", d)
			}
			stopCore()
			h.toCore.close()
			h.toEdge.close()
			serving.Wait()
			h.web.Close()
			for _, u := range h.uas {
				u.vanish()
			}
			http.DefaultClient.CloseIdleConnections()
		})
	}
	t.Cleanup(func() {
		h.stop()
		if t.Failed() {
			t.Logf("log:\n%s", h.log.String())
		}
	})
	return h
}

func (h *house) wait(what string, ok func() bool) {
	h.t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			h.t.Fatalf("in vain waited until %s; edge %+v, core %+v, gateway sessions %d", what, h.edge.Stats(), h.core.Stats(), h.gateway.open())
		}
	}
}

// settled waits until no call is left anywhere.
func (h *house) settled() {
	h.t.Helper()
	h.wait("no call is left", func() bool {
		s := h.edge.Stats()
		return s.Calls == 0 && s.Dialogs == 0 && h.gateway.open() == 0 && h.core.Stats().Calls == 0
	})
}

// clean checks what must hold after every test: no secret has crossed to the core, nobody's
// fingerprint has reached anybody else, no ICID a browser, no token the log.
func (h *house) clean() {
	h.t.Helper()
	core := h.toCore.sent() + h.toEdge.answered()
	for _, bad := range []string{"Bearer", "bearer", "access_token", "eyJ", "fingerprint", "ice-ufrag", "candidate:", "UDP/TLS", "rtcp-mux", "BUNDLE"} {
		if strings.Contains(core, bad) {
			h.t.Errorf("%q reached the core", bad)
		}
	}
	for _, u := range h.uas {
		if strings.Contains(core, u.fingerprint()) {
			h.t.Errorf("the fingerprint of %s reached the core", u.name)
		}
		got := u.everything()
		for _, bad := range []string{"icid", "P-Charging", "P-Visited", "Path:", h.core.Addr().String(), h.edge.sentBy} {
			if strings.Contains(got, bad) {
				h.t.Errorf("%q reached the browser of %s:\n%s", bad, u.name, got)
			}
		}
		for _, o := range h.uas {
			if o != u && strings.Contains(got, o.fingerprint()) {
				h.t.Errorf("the fingerprint of %s reached %s", o.name, u.name)
			}
		}
	}
	if n := h.edge.Stats().Faults; n != 0 {
		h.t.Errorf("%d panics", n)
	}
	if strings.Contains(h.log.String(), "eyJ") {
		h.t.Error("a token is in the log")
	}
	if n := h.core.Stats().Leaks; n != 0 {
		h.t.Errorf("the core saw %d tokens", n)
	}
}

// token signs claims for a user; change spoils them.
func token(user string, change ...func(*claims.SIP)) string {
	c := testClaims(user)
	for _, f := range change {
		f(c)
	}
	return sign(c, wafKey, "k1", claims.Type)
}

func testClaims(user string) *claims.SIP {
	now := time.Now()
	return &claims.SIP{
		Issuer: "https://waf.ims.test", Subject: "web-" + user, Audience: "epcscf.ims.test", ClientID: "wic", IssuedAt: now.Unix(), NotBefore: now.Unix(), Expiry: now.Add(time.Hour).Unix(),
		ID: rand.Text(), Scope: "sip", IMS: claims.IMS{IMPI: user + "@ims.test", IMPU: []string{"sip:" + user + "@ims.test"}, Scenario: 2}, Pseudonym: "p-" + user,
	}
}

func sign(c any, key *ecdsa.PrivateKey, kid, typ string) string {
	opts := (&jose.SignerOptions{}).WithType(jose.ContentType(typ)).WithHeader("kid", kid)
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, opts)
	if err != nil {
		panic(err)
	}
	b, _ := json.Marshal(c)
	j, err := s.Sign(b)
	if err != nil {
		panic(err)
	}
	out, _ := j.CompactSerialize()
	return out
}

// ---- a browser, as JsSIP 3.13.8 writes

type ua struct {
	h      *house
	name   string
	ws     *websocket.Conn
	in     chan string
	host   string // random .invalid
	user   string // of the Contact
	auth   string // Authorization, "" none
	regID  string
	cseq   int
	done   chan struct{}
	mu     sync.Mutex
	ended  error // of the last connection that has
	got    strings.Builder
	dialog *dialog
	last   map[string]*siptx.Message // last request received, by method
}

// dialog is what a user agent keeps of the call at hand.
type dialog struct {
	callID, local, remote string // tags
	localURI, remoteURI   string
	target                string
	cseq                  int
	inviteBranch          string
	invite                *siptx.Message // received
}

func (h *house) ua(name string) *ua {
	if h.uas[name] == nil {
		h.uas[name] = &ua{h: h, name: name, host: strings.ToLower(rand.Text()[:12]) + ".invalid", user: strings.ToLower(rand.Text()[:8]), auth: "Bearer " + token(name), regID: rand.Text(), cseq: 0}
	}
	return h.uas[name]
}

func (u *ua) connect() {
	u.h.t.Helper()
	ws, _, err := websocket.Dial(context.Background(), "ws"+strings.TrimPrefix(u.h.web.URL, "http"), &websocket.DialOptions{HTTPClient: u.h.web.Client(), Subprotocols: []string{"sip"}, HTTPHeader: http.Header{"Origin": {testOrigin}}}) //nolint:bodyclose // "You never need to close resp.Body yourself", says Dial
	if err != nil {
		u.h.t.Fatalf("%s connects: %v", u.name, err)
	}
	if ws.Subprotocol() != "sip" {
		u.h.t.Errorf("sub-protocol %q", ws.Subprotocol())
	}
	ws.SetReadLimit(1 << 20)
	u.ws, u.in, u.last, u.dialog, u.done = ws, make(chan string, 100), map[string]*siptx.Message{}, nil, make(chan struct{})
	go func() {
		defer close(u.done)
		defer close(u.in)
		for {
			_, b, err := ws.Read(context.Background())
			if err != nil {
				u.mu.Lock()
				u.ended = err
				u.mu.Unlock()
				return
			}
			u.mu.Lock()
			u.got.Write(b)
			u.mu.Unlock()
			u.in <- string(b)
		}
	}()
}

// vanish cuts the connection as a lost network does.
func (u *ua) vanish() {
	if u.ws != nil {
		_ = u.ws.CloseNow()
		<-u.done
		u.ws = nil
	}
}

// leave closes the WebSocket properly.
func (u *ua) leave() {
	_ = u.ws.Close(websocket.StatusNormalClosure, "bye")
	<-u.done
	u.ws = nil
}

func (u *ua) everything() string { u.mu.Lock(); defer u.mu.Unlock(); return u.got.String() }

func (u *ua) aor() string         { return "sip:" + u.name + "@" + testDomain }
func (u *ua) contact() string     { return "sip:" + u.user + "@" + u.host + ";transport=ws" }
func (u *ua) fingerprint() string { return fingerprintOf(u.name) }

func fingerprintOf(name string) string {
	return strings.TrimSuffix(strings.Repeat(fmt.Sprintf("%02X:", name[0]), 32), ":")
}

func (u *ua) sdp(file string) string {
	b, err := os.ReadFile("testdata/" + file)
	if err != nil {
		u.h.t.Fatal(err)
	}
	return strings.NewReplacer("\r\n", "\r\n", "\n", "\r\n", "{fingerprint}", u.fingerprint(), "{user}", u.name).Replace(string(b))
}

// raw sends bytes as they are.
func (u *ua) raw(s string) {
	u.h.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := u.ws.Write(ctx, websocket.MessageText, []byte(s)); err != nil {
		u.h.t.Fatalf("%s writes: %v", u.name, err)
	}
}

// fields apply to a message: "Name: value" replaces or adds, "+Name: value" adds, "-Name" removes.
func edit(m string, fields []string, body string) string {
	head := strings.Split(strings.TrimSuffix(m, "\r\n\r\n"), "\r\n")
	for _, f := range fields {
		name, _, _ := strings.Cut(strings.TrimLeft(f, "+-"), ":")
		if !strings.HasPrefix(f, "+") {
			kept := head[:1:1]
			for _, l := range head[1:] {
				if !strings.HasPrefix(strings.ToLower(l), strings.ToLower(name)+":") {
					kept = append(kept, l)
				}
			}
			head = kept
		}
		if !strings.HasPrefix(f, "-") {
			head = append(head, strings.TrimPrefix(f, "+"))
		}
	}
	if body != "" && !strings.Contains(strings.Join(fields, "\n"), "Content-Type:") {
		head = append(head, "Content-Type: application/sdp")
	}
	head = append(head, fmt.Sprintf("Content-Length: %d", len(body)))
	return strings.Join(head, "\r\n") + "\r\n\r\n" + body
}

func (u *ua) request(method, uri, callID, fromTag, toTag, to string, cseq int, branch string) string {
	lines := []string{
		method + " " + uri + " SIP/2.0",
		"Via: SIP/2.0/WSS " + u.host + ";branch=" + branch,
		"Max-Forwards: 69",
		"To: <" + to + ">" + tagged(toTag),
		"From: <" + u.aor() + ">;tag=" + fromTag,
		"Call-ID: " + callID,
		fmt.Sprintf("CSeq: %d %s", cseq, method),
	}
	if u.auth != "" && method != "ACK" && method != "CANCEL" {
		lines = append(lines, "Authorization: "+u.auth)
	}
	lines = append(lines, "Allow: INVITE,ACK,CANCEL,BYE,UPDATE,MESSAGE,OPTIONS,REFER,INFO,NOTIFY,SUBSCRIBE", "Supported: path,gruu,outbound", "User-Agent: JsSIP 3.13.8")
	return strings.Join(lines, "\r\n") + "\r\n\r\n"
}

func tagged(tag string) string {
	if tag == "" {
		return ""
	}
	return ";tag=" + tag
}

func newBranch() string { return "z9hG4bK" + rand.Text()[:12] }

func (u *ua) register(expires string, fields ...string) {
	u.h.t.Helper()
	u.cseq++
	m := u.request("REGISTER", "sip:"+testDomain, u.regID, "r"+u.regID[:8], "", u.aor(), u.cseq, newBranch())
	fields = append([]string{
		"Contact: <" + u.contact() + `>;+sip.ice;reg-id=1;+sip.instance="<urn:uuid:7ca7f58d-ab3c-4356-a944-dac39383d47e-` + u.name + `>";expires=` + expires,
		"Expires: " + expires,
	}, fields...)
	u.raw(edit(m, fields, ""))
}

// invite begins a call.
func (u *ua) invite(to, body string, fields ...string) {
	u.h.t.Helper()
	u.dialog = &dialog{callID: rand.Text(), local: rand.Text()[:10], localURI: u.aor(), remoteURI: to, target: to, cseq: 1, inviteBranch: newBranch()}
	d := u.dialog
	m := u.request("INVITE", to, d.callID, d.local, "", to, d.cseq, d.inviteBranch)
	u.raw(edit(m, append([]string{"Contact: <" + u.contact() + ";ob>", "Supported: ice,replaces,outbound"}, fields...), body))
}

// within sends a request inside the dialog.
func (u *ua) within(method, body string, fields ...string) {
	u.h.t.Helper()
	d := u.dialog
	branch := newBranch()
	switch method {
	case "ACK":
	case "CANCEL":
		branch = d.inviteBranch
	default:
		d.cseq++
	}
	if method == "INVITE" {
		d.inviteBranch = branch
	}
	uri, tag := d.target, d.remote
	if method == "CANCEL" {
		uri, tag = d.remoteURI, ""
	}
	m := u.request(method, uri, d.callID, d.local, tag, d.remoteURI, d.cseq, branch)
	if method == "INVITE" || method == "UPDATE" {
		fields = append([]string{"Contact: <" + u.contact() + ";ob>"}, fields...)
	}
	u.raw(edit(m, fields, body))
}

// respond answers the last request of a method.
func (u *ua) respond(status, reason, method, body string, fields ...string) {
	u.h.t.Helper()
	r := u.last[method]
	if r == nil {
		u.h.t.Fatalf("%s has no %s to answer", u.name, method)
	}
	lines := []string{"SIP/2.0 " + status + " " + reason}
	for _, v := range r.All("Via") {
		lines = append(lines, "Via: "+v)
	}
	for _, v := range r.All("Record-Route") {
		lines = append(lines, "Record-Route: "+v)
	}
	to := r.Get("To")
	if r.ToTag() == "" && u.dialog != nil {
		to += ";tag=" + u.dialog.local
	}
	lines = append(lines, "To: "+to, "From: "+r.Get("From"), "Call-ID: "+r.CallID(), "CSeq: "+r.Get("CSeq"))
	if method == "INVITE" {
		lines = append(lines, "Contact: <"+u.contact()+">")
	}
	u.raw(edit(strings.Join(lines, "\r\n")+"\r\n\r\n", fields, body))
}

// next is the next message but 100s.
func (u *ua) next() (string, *siptx.Message, error) {
	for {
		select {
		case s, ok := <-u.in:
			if !ok {
				return "", nil, errors.New("the WebSocket has ended")
			}
			if s == "\r\n" {
				return s, nil, nil
			}
			m, err := siptx.Parse([]byte(s), true)
			if err != nil {
				return s, nil, err
			}
			if m.Status == 100 {
				continue
			}
			u.learn(m)
			return s, m, nil
		case <-time.After(patience):
			return "", nil, errors.New("nothing came")
		}
	}
}

// learn keeps what a user agent keeps.
func (u *ua) learn(m *siptx.Message) {
	_, method, _ := m.CSeq()
	if m.IsRequest() {
		u.last[m.Method] = m
		if m.Method == "INVITE" && m.ToTag() == "" {
			u.dialog = &dialog{callID: m.CallID(), local: rand.Text()[:10], remote: m.FromTag(), localURI: u.aor(), remoteURI: uriOf(m.Get("From")), target: contactOf(m), invite: m}
		}
		return
	}
	if method == "INVITE" && u.dialog != nil && m.ToTag() != "" && m.Status < 300 {
		u.dialog.remote = m.ToTag()
		if c := contactOf(m); c != "" {
			u.dialog.target = c
		}
	}
	if method == "INVITE" && m.Status >= 300 && u.dialog != nil { // ACK of the hop
		d := u.dialog
		u.raw(edit(u.request("ACK", d.target, d.callID, d.local, m.ToTag(), d.remoteURI, d.cseq, d.inviteBranch), nil, ""))
	}
}

// ---- the media gateway

type fakeGateway struct {
	mu       sync.Mutex
	sessions map[string]iq.Set
	handle   func(iq.Event)
	setErr   error
	delay    time.Duration
	sets     int
	asked    int  // Sets that have begun
	late     bool // the next Set is obeyed, and its answer comes too late
}

func newFakeGateway() *fakeGateway { return &fakeGateway{sessions: map[string]iq.Set{}} }

const gatewayPrint = "0A:1B:0A:1B:0A:1B:0A:1B:0A:1B:0A:1B:0A:1B:0A:1B:0A:1B:0A:1B:0A:1B:0A:1B:0A:1B:0A:1B:0A:1B:0A:1B"

func (g *fakeGateway) Set(ctx context.Context, s iq.Set) (iq.Local, error) {
	g.mu.Lock()
	g.asked++
	delay := g.delay
	g.mu.Unlock()
	time.Sleep(delay)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.setErr != nil {
		return iq.Local{}, g.setErr
	}
	old, known := g.sessions[s.Session]
	if known && s.Seq <= old.Seq {
		return iq.Local{}, iq.ErrStale
	}
	g.sets++
	var l iq.Local
	for i := range s.Streams {
		if s.Streams[i].Stopped {
			l.Streams = append(l.Streams, iq.LocalStream{})
			continue
		}
		if known && i < len(old.Streams) { // what is nil stays
			if s.Streams[i].Access == nil {
				s.Streams[i].Access = old.Streams[i].Access
			}
			if s.Streams[i].Core == nil {
				s.Streams[i].Core = old.Streams[i].Core
			}
		}
		n := uint16(2 * i)
		l.Streams = append(l.Streams, iq.LocalStream{
			Access: iq.AccessLocal{Ufrag: "gwuf", Pwd: "gatewaypwdgatewaypwd22", Fingerprint: iq.Fingerprint{Hash: "sha-256", Value: gatewayPrint},
				Candidates: []string{fmt.Sprintf("1 1 udp 2130706431 192.0.2.10 %d typ host", 40000+n)}, Default: netip.AddrPortFrom(netip.MustParseAddr("192.0.2.10"), 40000+n)},
			Core: iq.CoreLocal{RTP: netip.AddrPortFrom(netip.MustParseAddr("198.51.100.10"), 41000+n), RTCP: netip.AddrPortFrom(netip.MustParseAddr("198.51.100.10"), 41001+n)},
		})
	}
	g.sessions[s.Session] = s
	if g.late {
		g.late = false
		return iq.Local{}, context.DeadlineExceeded
	}
	return l, nil
}

func (g *fakeGateway) Release(_ context.Context, r iq.Release) (iq.Report, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, ok := g.sessions[r.Session]; !ok {
		return iq.Report{}, iq.ErrUnknownSession
	}
	delete(g.sessions, r.Session)
	return iq.Report{Streams: []iq.StreamReport{{Media: "audio", Profile: "SRTP_AEAD_AES_256_GCM", AccessRx: iq.Counter{Packets: 1, Bytes: 172}}}}, nil
}

func (g *fakeGateway) Events(f func(iq.Event)) (func(), error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.handle = f
	return func() {}, nil
}

func (g *fakeGateway) open() int { g.mu.Lock(); defer g.mu.Unlock(); return len(g.sessions) }

// of is the session whose browser has the fingerprint of name.
func (g *fakeGateway) of(name string) (found iq.Set) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, s := range g.sessions {
		if a := s.Streams[0].Access; a != nil && a.Fingerprint.Value == fingerprintOf(name) {
			found = s
			found.Streams = slices.Clone(s.Streams)
		}
	}
	return found
}

// event happens to the session whose browser has the fingerprint of name.
func (g *fakeGateway) event(kind iq.EventKind, name string) bool {
	ref := g.of(name).Ref
	g.mu.Lock()
	handle := g.handle
	g.mu.Unlock()
	if ref.Session == "" {
		return false
	}
	handle(iq.Event{V: iq.Version, Ref: ref, Kind: kind, Detail: "by the test"})
	return true
}

// ---- recorders of bytes

type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}
func (s *safeBuffer) String() string { s.mu.Lock(); defer s.mu.Unlock(); return s.b.String() }

// recorder is a TCP proxy that keeps what it passes.
type recorder struct {
	l        net.Listener
	target   netip.AddrPort
	out, in  safeBuffer
	mu       sync.Mutex
	conns    map[net.Conn]bool
	wg       sync.WaitGroup
	isClosed bool
}

func newRecorder(t *testing.T) *recorder {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return &recorder{l: l, conns: map[net.Conn]bool{}}
}

func (r *recorder) addr() netip.AddrPort { return r.l.Addr().(*net.TCPAddr).AddrPort() }
func (r *recorder) sent() string         { return r.out.String() }
func (r *recorder) answered() string     { return r.in.String() }

func (r *recorder) serve() {
	for {
		a, err := r.l.Accept()
		if err != nil {
			return
		}
		b, err := net.Dial("tcp", r.target.String())
		if err != nil {
			_ = a.Close()
			continue
		}
		r.mu.Lock()
		r.conns[a], r.conns[b] = true, true
		if r.isClosed {
			_, _ = a.Close(), b.Close()
		}
		r.wg.Add(2)
		r.mu.Unlock()
		pump := func(dst, src net.Conn, keep io.Writer) {
			defer r.wg.Done()
			_, _ = io.Copy(io.MultiWriter(keep, dst), src)
			_, _ = dst.Close(), src.Close()
		}
		go pump(b, a, &r.out)
		go pump(a, b, &r.in)
	}
}

// cut ends the connections, not the recorder.
func (r *recorder) cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := range r.conns {
		_ = c.Close()
	}
	clear(r.conns)
}

func (r *recorder) close() {
	r.mu.Lock()
	r.isClosed = true
	r.mu.Unlock()
	_ = r.l.Close()
	r.cut()
	r.wg.Wait()
}
