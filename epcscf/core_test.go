package epcscf

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"
	"go.uber.org/goleak"

	"wicgate/internal/secret"
	"wicgate/internal/siptx"
)

// bareEdge is an edge without a core to speak to, with one flow whose connection leads nowhere.
func bareEdge(t testing.TB) (*Edge, *flow) {
	lo := netip.MustParseAddr("127.0.0.1")
	e, err := New(Config{
		Name: "edge1", Domain: testDomain, Audience: "a", Issuers: []string{"i"}, Keys: staticKeys{}, AuthzServer: "https://waf.test", Origins: []string{testOrigin}, Gateway: newFakeGateway(),
		Core: CoreConfig{Listen: netip.AddrPortFrom(lo, 0), NextHop: netip.AddrPortFrom(lo, 1), VisitedNetwork: "v", Trusted: true},
	})
	if err != nil {
		t.Fatal(err)
	}
	e.listener.Close()
	e.serving = true
	a, b := net.Pipe()
	b.Close()
	f := e.newFlow(a, lo, true)
	t.Cleanup(func() { a.Close(); e.tcp.Close() })
	return e, f
}

func TestNewRefuses(t *testing.T) {
	good := func() Config {
		return Config{
			Name: "edge1", Domain: testDomain, Audience: "a", Issuers: []string{"i"}, Keys: staticKeys{}, AuthzServer: "https://waf.test", Origins: []string{testOrigin}, Gateway: newFakeGateway(),
			Core: CoreConfig{Listen: netip.MustParseAddrPort("127.0.0.1:0"), NextHop: netip.MustParseAddrPort("127.0.0.1:5080")},
		}
	}
	for _, c := range []struct {
		want string
		f    func(*Config)
	}{
		{"epcscf: name", func(c *Config) { c.Name = "Edge" }},
		{"epcscf: domain", func(c *Config) { c.Domain = "" }},
		{"to check tokens", func(c *Config) { c.Keys = nil }},
		{"to check tokens", func(c *Config) { c.Issuers = nil }},
		{"no origin", func(c *Config) { c.Origins = nil }},
		{"no media gateway", func(c *Config) { c.Gateway = nil }},
		{"no next hop", func(c *Config) { c.Core.NextHop = netip.AddrPort{} }},
		{"is every address", func(c *Config) { c.Core.Listen = netip.MustParseAddrPort("0.0.0.0:0") }},
		{"no https URL", func(c *Config) { c.AuthzServer = "http://waf.test" }},
		{"must not hold quotes", func(c *Config) { c.Core.VisitedNetwork = "a\"" }},
	} {
		cfg := good()
		c.f(&cfg)
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("want %q, got %v", c.want, err)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cfg := good()
	cfg.Core.Listen = l.Addr().(*net.TCPAddr).AddrPort()
	if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), "epcscf.listen") {
		t.Errorf("a port that is taken: %v", err)
	}
}

func TestFlowToken(t *testing.T) {
	key := secret.Random(32)
	var id flowID
	copy(id[:], "twelve bytes")
	tok := sealFlow(key, "edge1", id)
	if got, ok := openFlow(key, "edge1", tok); !ok || got != id {
		t.Errorf("%v %v", got, ok)
	}
	if _, err := siptx.ParseURI("sip:" + tok + "@x"); err != nil {
		t.Errorf("not fit for a URI: %v", err)
	}
	for i := range len(tok) {
		b := []byte(tok)
		b[i] ^= 1
		if got, ok := openFlow(key, "edge1", string(b)); ok && got == id && string(b) != tok {
			t.Errorf("changed at %d, it opens", i)
		}
	}
	for _, bad := range []string{"", "edge1.", tok + "A", tok[:len(tok)-1], strings.Replace(tok, "edge1", "edge2", 1)} {
		if _, ok := openFlow(key, "edge1", bad); ok {
			t.Errorf("%q opens", bad)
		}
	}
	if _, ok := openFlow(secret.Random(32), "edge1", tok); ok {
		t.Error("another key opens it")
	}
}

// peer speaks raw SIP over TCP to the edge, as a core would.
type peer struct {
	t *testing.T
	c net.Conn
	r *bufio.Reader
}

func (h *house) peer() *peer {
	h.t.Helper()
	c, err := net.Dial("tcp", h.edge.Addr().String())
	if err != nil {
		h.t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(patience))
	h.t.Cleanup(func() { c.Close() })
	return &peer{h.t, c, bufio.NewReaderSize(c, 16<<10)}
}

func (p *peer) ask(m string) *siptx.Message {
	p.t.Helper()
	if _, err := io.WriteString(p.c, m); err != nil {
		p.t.Fatal(err)
	}
	for {
		b, err := siptx.ReadMessage(p.r, func() {})
		if err != nil {
			p.t.Fatal(err)
		}
		m, err := siptx.Parse(b, true)
		if err != nil {
			p.t.Fatal(err)
		}
		if m.Status != 100 {
			return m
		}
	}
}

func fromFar(method, uri string, fields ...string) string {
	m := method + " " + uri + " SIP/2.0\r\nVia: SIP/2.0/TCP far.test:5060;branch=" + newBranch() + "\r\nMax-Forwards: 60\r\nTo: <sip:alice@ims.test>\r\nFrom: <sip:far@ims.test>;tag=far\r\nCall-ID: " + newBranch() + "\r\nCSeq: 1 " + method + "\r\nContact: <sip:far@198.51.100.1>\r\n\r\n"
	body := ""
	if method == "INVITE" {
		body = coreOffer
	}
	return edit(m, fields, body)
}

// TestFromCore: a request of the core goes where its flow token says, and nowhere else.
func TestFromCore(t *testing.T) {
	defer goleak.VerifyNone(t)
	h := newHouse(t)
	defer h.stop()
	h.play(registered, "from core")
	u := h.ua("alice")
	var token string
	h.edge.locked(func() {
		for b := range h.edge.bindings {
			if b.impu == u.aor() {
				token = b.flow.token
			}
		}
	})
	route := func(user string) string { return "Route: <sip:" + user + "@" + h.edge.sentBy + ";lr;ob>" }
	p := h.peer()
	defer p.c.Close()
	for _, c := range []struct {
		name, m string
		status  int
	}{
		{"no route", fromFar("INVITE", u.contact()), 404},
		{"no route, keep-alive", fromFar("OPTIONS", "sip:"+h.edge.sentBy), 200},
		{"forged", fromFar("INVITE", u.contact(), route("edge1.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")), 403},
		{"token of another edge", fromFar("INVITE", u.contact(), route("edge2"+token[5:])), 403},
		{"no token", fromFar("MESSAGE", u.contact(), "Route: <sip:"+h.edge.sentBy+";lr>"), 403},
		{"dead flow", fromFar("INVITE", u.contact(), route(sealFlow(h.edge.cfg.FlowKey, "edge1", flowID{1}))), 430},
		{"unknown dialog", fromFar("BYE", u.contact(), route(token), "To: <sip:alice@ims.test>;tag=x"), 481},
		{"BYE without dialog", fromFar("BYE", u.contact(), route(token)), 481},
		{"REGISTER", fromFar("REGISTER", "sip:ims.test", route(token)), 405},
		{"no hops", fromFar("MESSAGE", u.contact(), route(token), "Max-Forwards: 0"), 483},
		{"extension", fromFar("MESSAGE", u.contact(), route(token), "Proxy-Require: foo"), 420},
		{"reliable provisional answers", fromFar("INVITE", u.contact(), route(token), "Require: 100rel"), 420},
		{"no Contact", fromFar("INVITE", u.contact(), route(token), "-Contact"), 400},
	} {
		if r := p.ask(c.m); r.Status != c.status {
			t.Errorf("%s: %d %s", c.name, r.Status, r.Reason)
		}
	}
	// by the token, whatever host the Request-URI names
	if _, err := io.WriteString(p.c, fromFar("INVITE", "sip:"+u.user+"@elsewhere.invalid;transport=ws", route(token))); err != nil {
		t.Fatal(err)
	}
	h.play(`<alice INVITE
  INVITE {instance} SIP/2.0
  !198.51.100.77
alice> 486
<alice ACK
settled`, "by token")
	h.play("alice> REGISTER 0\n<alice 200", "gone")
	if r := p.ask(fromFar("INVITE", u.contact(), route(token))); r.Status != 486 {
		t.Errorf("the INVITE's answer: %d", r.Status)
	}
	s := h.edge.Stats()
	if s.Refused.FlowToken != 4 || s.Refused.FlowFailed != 1 {
		t.Errorf("%+v", s.Refused)
	}
}

// TestCutTCP cuts an INVITE of the core at every byte.
func TestCutTCP(t *testing.T) {
	defer goleak.VerifyNone(t)
	h := newHouse(t)
	defer h.stop()
	m := fromFar("INVITE", "sip:x@y.invalid", "Route: <sip:edge1.AAAA@"+h.edge.sentBy+";lr>")
	for n := range len(m) {
		c, err := net.Dial("tcp", h.edge.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, m[:n]); err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
	}
	h.wait("they are gone", func() bool { return h.edge.Stats().CoreConnections <= 1 })
	if s := h.edge.Stats(); s.Calls != 0 || s.Refused.FlowToken != 0 {
		t.Errorf("a cut message was taken for a whole one: %+v", s)
	}
	h.play(registered, "after the cuts")
}

// TestStrangers: nobody but configured peers may speak for the core.
func TestStrangers(t *testing.T) {
	defer goleak.VerifyNone(t)
	h := newHouse(t, func(c *Config) {
		c.Core.Peers = nil
		c.Core.NextHop = netip.AddrPortFrom(netip.MustParseAddr("127.0.0.3"), 1)
	})
	defer h.stop()
	p := h.peer()
	if _, err := p.r.ReadByte(); err == nil {
		t.Error("a stranger is heard")
	}
	if n := h.edge.Stats().Refused.Peer; n != 1 {
		t.Errorf("%d refused", n)
	}
}

// TestUntrusted: no registration goes to a next hop that is not trusted.
func TestUntrusted(t *testing.T) {
	defer goleak.VerifyNone(t)
	h := newHouse(t, func(c *Config) { c.Core.Trusted = false })
	defer h.stop()
	h.play("alice connects\nalice> REGISTER\n<alice 503 Next Hop Is Not Trusted\ncore-bytes\n  !auth-done", "untrusted")
}

// TestNoCore: nobody answers at the next hop.
func TestNoCore(t *testing.T) {
	defer goleak.VerifyNone(t)
	l, _ := net.Listen("tcp", "127.0.0.1:0")
	nobody := l.Addr().(*net.TCPAddr).AddrPort()
	_ = l.Close()
	h := newHouse(t, func(c *Config) { c.Core.NextHop = nobody })
	defer h.stop()
	h.play("alice connects\nalice> REGISTER\n<alice 503 Core Cannot Be Reached\nedge: bindings=0", "no core")
}

// TestShutdown ends calls and registrations, both ways, with the edge.
func TestShutdown(t *testing.T) {
	defer goleak.VerifyNone(t)
	h := newHouse(t)
	defer h.stop()
	h.play(registered+"alice> INVITE bob\n<bob INVITE\nbob> 200\n<alice 200\nalice> ACK\n<bob ACK", "before")
	done := make(chan struct{})
	go func() { h.stop(); close(done) }()
	h.play(`<alice BYE
  Reason: SIP;cause=503;text="Edge Is Shutting Down"
<bob BYE
  Reason: SIP;cause=503;text="Edge Is Shutting Down"
alice> 200 BYE
bob> 200 BYE
<alice closed
<bob closed`, "shutdown")
	<-done
	if n := h.gateway.open(); n != 0 {
		t.Errorf("%d gateway sessions are left", n)
	}
	if s := h.core.Stats(); s.Registrations != 0 {
		t.Errorf("at the core %+v", s)
	}
	h.clean()
}

// TestCrossings: what is slow is crossed by what is quick, and nothing is left over.
func TestCrossings(t *testing.T) {
	for _, c := range []struct{ name, script string }{
		{"the caller goes while the gateway reserves", "alice> INVITE bob\nalice vanishes\nsettled"},
		{"the caller cancels while the gateway reserves", "alice> INVITE bob\nalice> CANCEL\n<alice 200\n<alice 487\nsettled"},
		{"the callee goes while the gateway reserves", "alice> INVITE bob\n<bob INVITE\nbob> 200\nbob vanishes\n<alice 480\nsettled"},
		{"the caller goes while the callee answers", "alice> INVITE bob\n<bob INVITE\nbob> 200\nalice vanishes\n<bob ACK\n<bob BYE\nbob> 200 BYE\nsettled"},
		{"BYE while a change is under way", "alice> INVITE bob\n<bob INVITE\nbob> 200\n<alice 200\nalice> ACK\n<bob ACK\nalice> INVITE\nbob> BYE\n<alice BYE\nalice> 200 BYE\n<bob 200\n<alice 4\nsettled"}, // 487, or 481 where the BYE was first
		{"CANCEL crosses the answer", "alice> INVITE bob\n<bob INVITE\nbob> 180\n<alice 180\nbob> 200\ngateway: asked 3\nalice> CANCEL\n<alice 200\n<alice 200\nalice> ACK\n<bob ACK\nalice> BYE\n<bob BYE\nbob> 200 BYE\n<alice 200\nsettled"},
	} {
		t.Run(c.name, func(t *testing.T) {
			defer goleak.VerifyNone(t)
			h := newHouse(t)
			defer h.stop()
			h.play(registered+"gateway: slow\n"+c.script, c.name)
			h.clean()
		})
	}
}

func TestJWKS(t *testing.T) {
	var reads atomic.Int32
	var mu sync.Mutex
	keys := map[string]*ecdsa.PrivateKey{"k1": wafKey}
	broken := false
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		reads.Add(1)
		mu.Lock()
		defer mu.Unlock()
		if broken {
			_, _ = io.WriteString(w, strings.Repeat(" ", jwksBody+1))
			return
		}
		set := jose.JSONWebKeySet{}
		for kid, k := range keys {
			set.Keys = append(set.Keys, jose.JSONWebKey{Key: k.Public(), KeyID: kid, Algorithm: "ES256", Use: "sig"})
		}
		_ = json.NewEncoder(w).Encode(set)
	}))
	defer srv.Close()
	s := JWKS(srv.URL, srv.Client())
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if k, err := s.Key(t.Context(), "k1"); err != nil || k == nil {
				t.Errorf("%v %v", k, err)
			}
		})
	}
	wg.Wait()
	for range 20 {
		if _, err := s.Key(t.Context(), "k2"); !errors.Is(err, ErrUnknownKey) {
			t.Errorf("unknown: %v", err)
		}
	}
	if n := reads.Load(); n != 1 {
		t.Errorf("read %d times within 10 s", n)
	}
	past := func() { s.(*jwks).mu.Lock(); s.(*jwks).fetched = time.Now().Add(-jwksPause); s.(*jwks).mu.Unlock() }
	mu.Lock()
	keys["k2"] = otherKey
	mu.Unlock()
	past()
	if k, err := s.Key(t.Context(), "k2"); err != nil || k == nil {
		t.Errorf("after a rotation: %v", err)
	}
	mu.Lock()
	broken = true
	mu.Unlock()
	past()
	if _, err := s.Key(t.Context(), "k3"); !errors.Is(err, errNoKeys) {
		t.Errorf("broken: %v", err)
	}
	if _, err := s.Key(t.Context(), "k1"); err != nil {
		t.Errorf("what is known is lost: %v", err)
	}
	// the first who asks leaves: the others get their answer all the same
	mu.Lock()
	broken = false
	mu.Unlock()
	past()
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	_, _ = s.Key(gone, "k4")
	if _, err := s.Key(t.Context(), "k4"); !errors.Is(err, ErrUnknownKey) {
		t.Errorf("spoilt by who left: %v", err)
	}
}

// TestExpiry: a registration that is not renewed ends, and its call with it.
func TestExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, f := bareEdge(t)
		b := &binding{flow: f, impu: "sip:alice@ims.test", contact: siptx.NameAddr{URI: "sip:x@y.invalid"}, from: "<sip:alice@ims.test>;tag=1", to: "<sip:alice@ims.test>", callID: "c"}
		tx := &siptx.ServerTx{}
		e.locked(func() {
			e.layer.OnRequest = func(got *siptx.ServerTx) { tx = got }
			m, err := siptx.Parse([]byte(edit("REGISTER sip:ims.test SIP/2.0\r\nVia: SIP/2.0/WSS x;branch=z9hG4bKx\r\nTo: <sip:alice@ims.test>\r\nFrom: <sip:alice@ims.test>;tag=1\r\nCall-ID: c\r\nCSeq: 1 REGISTER\r\n\r\n", nil, "")), true)
			if err != nil {
				t.Fatal(err)
			}
			e.layer.Receive(f, m)
			res := m.Response(200, "OK", siptx.Header{Name: "Contact", Value: "<sip:x@y.invalid>;expires=60"}, siptx.Header{Name: "To", Value: "<sip:alice@ims.test>;tag=2"})
			c := testClaims("alice")
			e.registered(tx, b, 600, c, res)
		})
		if s := e.Stats(); s.Bindings != 1 {
			t.Fatalf("%+v", s)
		}
		time.Sleep(61 * time.Second)
		synctest.Wait()
		if s := e.Stats(); s.Bindings != 0 {
			t.Errorf("after its time: %+v", s)
		}
		e.locked(func() { e.layer.Close() })
	})
}

// TestFault: a bug that one message meets is counted, closes that flow, and leaves the edge alive and unlocked.
func TestFault(t *testing.T) {
	e, f := bareEdge(t)
	e.layer.OnRequest = func(*siptx.ServerTx) { panic("a bug") }
	err := f.message(t.Context(), []byte("OPTIONS sip:ims.test SIP/2.0\r\nVia: SIP/2.0/WSS x.invalid;branch=z9hG4bK1\r\nTo: <sip:ims.test>\r\nFrom: <sip:alice@ims.test>;tag=1\r\nCall-ID: c\r\nCSeq: 1 OPTIONS\r\n\r\n"))
	if c := (closing{}); !errors.As(err, &c) || c.code != 1011 {
		t.Errorf("%v", err)
	}
	if s := e.Stats(); s.Faults != 1 || s.Flows != 1 {
		t.Errorf("%+v", s)
	}
}
