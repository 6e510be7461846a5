package epcscf

import (
	"bufio"
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"
	"github.com/go-jose/go-jose/v4"
	"github.com/gobwas/ws"
	"go.uber.org/goleak"

	"wicgate/internal/siptx"
)

// TestOneBrowserEndsNoOther: whatever one browser sends, the connection that it shares with others
// towards the core lives on, and so does a call that rings.
func TestOneBrowserEndsNoOther(t *testing.T) {
	defer goleak.VerifyNone(t)
	h := newHouse(t)
	defer h.stop()
	h.play(registered+"alice> INVITE bob\n<bob INVITE\nbob> 180\n<alice 180\ncarol connects\ncarol> REGISTER\n<carol 200\n", "ringing")
	a, c := h.ua("alice"), h.ua("carol")
	message := func(fields []string, body string) {
		t.Helper()
		if c.ws == nil {
			h.play("carol connects\ncarol> REGISTER\n<carol 200\n", "again")
		}
		m := c.request("MESSAGE", "sip:bob@ims.test", newBranch(), "t", "", "sip:bob@ims.test", 1, newBranch())
		_ = c.ws.Write(t.Context(), websocket.MessageText, []byte(edit(m, append(fields, "Content-Type: text/plain"), body))) // it may be cut short
		for {                                                                                                                 // an answer, or the end of this WebSocket alone
			select {
			case _, ok := <-c.in:
				if !ok {
					c.vanish()
				}
				return
			case <-time.After(patience):
				t.Fatal("no answer")
			}
		}
	}
	x := func(n, size int) (list []string) {
		for i := range n {
			list = append(list, fmt.Sprintf("X%d: %s", i, strings.Repeat("x", size)))
		}
		return list
	}
	message(x(114, 1), "")
	message(x(4, 7780), "")
	message(x(3, 7900), "")
	message([]string{"X: " + strings.Repeat("x", 5000) + "\r\n " + strings.Repeat("y", 5000)}, "") // longer when unfolded
	message(nil, strings.Repeat("x", 65000))
	if c.ws == nil {
		h.play("carol connects\ncarol> REGISTER\n<carol 200\n", "again")
	}
	c.cseq = 1<<31 - 2
	c.register("600")
	if _, m, err := c.next(); err != nil || m.Status != 400 {
		t.Errorf("CSeq 2^31-1: %v %v", m, err)
	}
	c.cseq = 1<<31 - 1002
	c.register("600")
	if _, m, err := c.next(); err != nil || m.Status != 200 {
		t.Errorf("CSeq 2^31-1001: %v %v", m, err)
	}
	c.vanish()
	select {
	case s := <-a.in:
		t.Errorf("the ringing call got %q", strings.SplitN(s, "\r\n", 2)[0])
	case <-time.After(300 * time.Millisecond):
	}
	if s := h.log.String(); strings.Contains(s, "connection ended") {
		t.Error("the connection to the core has ended")
	}
	h.wait("carol is unregistered at the core", func() bool { return h.core.Stats().Registrations == 2 })
}

// TestStrangersHoldNothing: without a registration, INVITEs are refused and leave nothing behind,
// however many there are and although nobody acknowledges them.
func TestStrangersHoldNothing(t *testing.T) {
	defer goleak.VerifyNone(t)
	h := newHouse(t)
	defer h.stop()
	a := h.ua("alice")
	a.connect()
	for _, auth := range []string{"", "Bearer " + token("alice"), "Bearer x"} {
		for i := range 50 {
			a.auth = auth
			m := a.request("INVITE", "sip:bob@ims.test", fmt.Sprint("c", i), "t", "", "sip:bob@ims.test", 1, newBranch())
			a.raw(edit(m, nil, ""))
			want := 401
			if strings.Contains(auth, ".") {
				want = 403
			}
			select {
			case s := <-a.in:
				if !strings.HasPrefix(s, fmt.Sprint("SIP/2.0 ", want, " ")) {
					t.Fatalf("got %q", s)
				}
			case <-time.After(patience):
				t.Fatal("no answer")
			}
		}
	}
	var server int
	h.edge.locked(func() { server, _ = h.edge.layer.Live() })
	if server != 0 {
		t.Errorf("%d transactions are kept", server)
	}
	a.auth = "Bearer " + token("alice")
	h.play("alice> REGISTER\n<alice 200\n", "after that")
}

// TestRegisterWithin: a WebSocket that does not register is closed; one that does stays.
func TestRegisterWithin(t *testing.T) {
	defer goleak.VerifyNone(t)
	h := newHouse(t, func(c *Config) { c.RegisterWithin = 200 * time.Millisecond })
	defer h.stop()
	h.play("alice connects\nalice> REGISTER\n<alice 200\nbob connects\nedge: flows=2\n", "before")
	if _, _, err := h.ua("bob").next(); err == nil {
		t.Error("bob stays")
	}
	h.wait("it is logged", func() bool { return strings.Contains(h.log.String(), "no registration in time") })
	time.Sleep(100 * time.Millisecond)
	h.play("edge: flows=1 bindings=1\n", "after")
}

func TestCountedAs(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.7": "192.0.2.7", "2001:db8:1:2:3:4:5:6": "2001:db8:1:2::", "2001:db8:1:2::1": "2001:db8:1:2::", "2001:db8:1:3::1": "2001:db8:1:3::", "fe80::1%eth0": "fe80::",
	} {
		if got := countedAs(netip.MustParseAddr(in)); got != netip.MustParseAddr(want) {
			t.Errorf("%s: %v", in, got)
		}
	}
}

// TestStuckBrowser: one that does not read is let wait for no longer than the close handshake at
// shutdown, and does not make the edge keep more than the bound.
func TestStuckBrowser(t *testing.T) {
	defer goleak.VerifyNone(t)
	h := newHouse(t)
	defer h.stop()
	c, _ := h.dialRaw()
	defer c.Close()
	h.wait("the flow is there", func() bool { return h.edge.Stats().Flows == 1 })
	var f *flow
	h.edge.locked(func() {
		for _, f = range h.edge.flows {
		}
	})
	chunk := []byte(strings.Repeat("x", 60<<10))
	stuck := func() bool {
		was := f.waiting.Load()
		time.Sleep(50 * time.Millisecond)
		return was > 0 && f.waiting.Load() == was
	}
	for !stuck() {
		for f.waiting.Load() < queueBytes-2*int64(len(chunk)) {
			f.Send(chunk)
		}
	}
	if n := f.waiting.Load(); n > queueBytes {
		t.Errorf("%d bytes wait", n)
	}
	begun := time.Now()
	h.stop()
	if d := time.Since(begun); d > closeTime+drainTime/2 {
		t.Errorf("shutdown took %v", d)
	}
}

// TestQueueBytes: the queue is bounded in bytes, and a single message may always wait.
func TestQueueBytes(t *testing.T) {
	e, f := bareEdge(t)
	f.Send(make([]byte, 2*queueBytes))
	select {
	case <-f.done:
		t.Error("a single message ends the flow")
	default:
	}
	f.Send([]byte("x"))
	select {
	case <-f.done:
	default:
		t.Error("more than the bound waits")
	}
	e.locked(func() { e.flowGone(f); e.layer.Close() })
}

// TestManyVias: a browser writes one Via; what has many is refused, and not with all of them.
func TestManyVias(t *testing.T) {
	defer goleak.VerifyNone(t)
	h := newHouse(t)
	defer h.stop()
	a := h.ua("alice")
	a.connect()
	m := a.request("OPTIONS", "sip:ims.test", "c", "t", "", a.aor(), 1, newBranch())
	var vias []string
	for i := range 6 {
		vias = append(vias, fmt.Sprintf("+Via: SIP/2.0/WSS a.invalid;branch=z9hG4bK%d", i))
	}
	a.raw(edit(m, vias, ""))
	if _, m, err := a.next(); err != nil || m.Status != 400 {
		t.Errorf("7 Vias: %v %v", m, err)
	}
	for range 10 {
		vias = append(vias, vias[:6]...)
	}
	a.raw(edit(m, vias[:40], ""))
	if _, _, err := a.next(); err == nil {
		t.Error("41 Vias are answered")
	}
}

// TestPingInsideMessage: the time that a fragmented message may take is not made longer by pings.
func TestPingInsideMessage(t *testing.T) {
	var begun, idle int
	in := frames{begun: func() { begun++ }, idle: func() { idle++ }, control: func(ws.OpCode, []byte) error { return nil }}
	ping := masked(ws.OpPing, true, nil)
	in.r = bufio.NewReader(bytes.NewReader(bytes.Join([][]byte{ping, masked(ws.OpText, false, []byte("a")), ping, ping, masked(ws.OpContinuation, true, []byte("b")), ping, masked(ws.OpText, true, []byte("c"))}, nil)))
	for _, want := range []struct {
		message     string
		begun, idle int
	}{{"ab", 2, 1}, {"c", 4, 2}} {
		if m, err := in.next(); err != nil || string(m) != want.message || begun != want.begun || idle != want.idle {
			t.Errorf("%q, %v, begun %d, idle %d", m, err, begun, idle)
		}
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// TestWithdrawnKey: a key that the WAF no longer publishes is good for five minutes at most, without
// anybody's asking for an unknown one; an outage of the WAF shorter than that goes unnoticed.
func TestWithdrawnKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys := map[string]*ecdsa.PrivateKey{"k1": wafKey, "k2": otherKey}
		reads, down := 0, false
		s := JWKS("https://waf.test/jwks", &http.Client{Transport: roundTripper(func(*http.Request) (*http.Response, error) {
			reads++
			if down {
				return nil, errors.New("down")
			}
			set := jose.JSONWebKeySet{}
			for kid, k := range keys {
				set.Keys = append(set.Keys, jose.JSONWebKey{Key: k.Public(), KeyID: kid, Algorithm: "ES256", Use: "sig"})
			}
			b, _ := json.Marshal(set)
			return &http.Response{StatusCode: 200, Body: io.NopCloser(bytes.NewReader(b))}, nil
		})})
		check := func(what, kid string, want error, wantReads int) {
			t.Helper()
			if _, err := s.Key(t.Context(), kid); !errors.Is(err, want) || reads != wantReads {
				t.Errorf("%s: %v after %d reads", what, err, reads)
			}
		}
		check("first", "k1", nil, 1)
		delete(keys, "k1")
		time.Sleep(jwksRefresh - time.Second)
		check("not read again yet", "k1", nil, 1)
		time.Sleep(time.Second)
		check("read again: withdrawn", "k1", ErrUnknownKey, 2)
		check("the other", "k2", nil, 2)
		down = true
		time.Sleep(jwksRefresh)
		check("WAF down", "k2", nil, 3)
		check("WAF down, not asked at once again", "k2", nil, 3)
		time.Sleep(jwksAge - jwksRefresh)
		check("WAF down too long", "k2", errNoKeys, 4)
		check("WAF down too long, again", "k2", errNoKeys, 4)
		down = false
		time.Sleep(jwksPause)
		check("WAF is back", "k2", nil, 5)
	})
}

// changingKeys is a KeySource whose keys change.
type changingKeys struct {
	mu   sync.Mutex
	keys staticKeys
}

func (c *changingKeys) Key(ctx context.Context, kid string) (crypto.PublicKey, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.keys.Key(ctx, kid)
}

// TestSeenTokenOfWithdrawnKey: a token that was good on a WebSocket is not, once its key is withdrawn
// or another has taken its name.
func TestSeenTokenOfWithdrawnKey(t *testing.T) {
	defer goleak.VerifyNone(t)
	keys := &changingKeys{keys: staticKeys{"k1": wafKey.Public()}}
	h := newHouse(t, func(c *Config) { c.Keys = keys })
	defer h.stop()
	a := h.ua("alice")
	a.connect()
	for _, c := range []struct {
		key    *ecdsa.PrivateKey
		status int
	}{{wafKey, 200}, {wafKey, 200}, {nil, 401}, {wafKey, 200}, {otherKey, 401}} {
		keys.mu.Lock()
		if keys.keys = (staticKeys{}); c.key != nil {
			keys.keys["k1"] = c.key.Public()
		}
		keys.mu.Unlock()
		a.register("600")
		if _, m, err := a.next(); err != nil || m.Status != c.status {
			t.Errorf("want %d: %+v %v", c.status, m, err)
		}
	}
}

// TestOthersDoNotFill: requests of others to a browser that reads slowly are refused before they end
// its WebSocket; a BYE still goes.
func TestOthersDoNotFill(t *testing.T) {
	e, f := bareEdge(t)
	e.locked(func() {
		refused := 0
		for _, method := range append(slices.Repeat([]string{"MESSAGE"}, 200), "BYE") {
			m := &siptx.Message{Method: method, URI: "sip:bob@x.invalid", Body: make([]byte, 10000), Headers: []siptx.Header{
				{Name: "From", Value: "<sip:a@b>;tag=1"}, {Name: "To", Value: "<sip:b@b>"}, {Name: "Call-ID", Value: "c"}, {Name: "CSeq", Value: "1 " + method}}}
			before := f.waiting.Load()
			e.layer.Request(f, m, func(*siptx.Message) {})
			if f.waiting.Load() == before {
				if refused++; method == "BYE" {
					t.Error("BYE is not sent")
				}
			}
		}
		select {
		case <-f.done:
			t.Error("the flow has ended")
		default:
		}
		if refused == 0 || f.waiting.Load() > queueBytes {
			t.Errorf("%d refused, %d bytes wait", refused, f.waiting.Load())
		}
		e.flowGone(f)
		e.layer.Close()
	})
}
