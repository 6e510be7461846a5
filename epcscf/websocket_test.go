package epcscf

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/gobwas/ws"
	"go.uber.org/goleak"

	"wicgate/internal/siptx"
)

// dialRaw opens a WebSocket by hand and returns the connection after the 101.
func (h *house) dialRaw() (net.Conn, *bufio.Reader) {
	h.t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(h.web.URL, "http://"))
	if err != nil {
		h.t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(patience))
	fmt.Fprintf(c, "GET /sip HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: sip\r\nOrigin: %s\r\nSec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n", testOrigin)
	r := bufio.NewReader(c)
	res, err := http.ReadResponse(r, nil)
	if err != nil || res.StatusCode != 101 {
		h.t.Fatalf("no 101: %v %v", res, err)
	}
	_ = res.Body.Close()
	if res.Header.Get("Sec-WebSocket-Protocol") != "sip" || res.Header.Get("Sec-WebSocket-Extensions") != "" {
		h.t.Errorf("agreed on %v", res.Header)
	}
	return c, r
}

func masked(op ws.OpCode, fin bool, b []byte) []byte {
	return ws.MustCompileFrame(ws.MaskFrame(ws.NewFrame(op, fin, b)))
}

func TestHandshake(t *testing.T) {
	defer goleak.VerifyNone(t)
	h := newHouse(t, func(c *Config) { c.MaxFlows, c.MaxFlowsPerSource = 4, 3 })
	defer h.stop()
	for _, c := range []struct {
		name   string
		header http.Header
		status int
	}{
		{"another origin", http.Header{"Origin": {"https://evil.test"}, "Sec-Websocket-Protocol": {"sip"}}, 403},
		{"origin as a prefix", http.Header{"Origin": {testOrigin + ".evil.test"}, "Sec-Websocket-Protocol": {"sip"}}, 403},
		{"no origin", http.Header{"Sec-Websocket-Protocol": {"sip"}}, 403},
		{"two origins", http.Header{"Origin": {testOrigin, "https://evil.test"}, "Sec-Websocket-Protocol": {"sip"}}, 403},
		{"no sub-protocol", http.Header{"Origin": {testOrigin}}, 400},
		{"another sub-protocol", http.Header{"Origin": {testOrigin}, "Sec-Websocket-Protocol": {"xmpp, sipx"}}, 400},
		{"no WebSocket at all", http.Header{"Origin": {testOrigin}, "Sec-Websocket-Protocol": {"sip"}}, 400},
	} {
		req, _ := http.NewRequest("GET", h.web.URL, nil)
		req.Header = c.header
		if c.name != "no WebSocket at all" {
			req.Header.Set("Upgrade", "websocket")
			req.Header.Set("Connection", "Upgrade")
			req.Header.Set("Sec-WebSocket-Version", "13")
			req.Header.Set("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		_ = res.Body.Close()
		if res.StatusCode != c.status {
			t.Errorf("%s: %s", c.name, res.Status)
		}
	}
	if s := h.edge.Stats(); s.Refused.Origin != 4 || s.Refused.Protocol != 2 || s.FlowsTotal != 0 {
		t.Errorf("%+v", s)
	}
	noneOpen := func() bool { h.edge.mu.Lock(); defer h.edge.mu.Unlock(); return h.edge.open == 0 }
	h.wait("the refused ones are counted out", noneOpen)
	var open []net.Conn
	for range 3 {
		c, _ := h.dialRaw()
		open = append(open, c)
	}
	_, res, err := websocket.Dial(t.Context(), h.web.URL, &websocket.DialOptions{Subprotocols: []string{"sip"}, HTTPHeader: http.Header{"Origin": {testOrigin}}}) //nolint:bodyclose // "You never need to close resp.Body yourself", says Dial
	if err == nil || res.StatusCode != http.StatusTooManyRequests {
		t.Errorf("a fourth of one address: %v", err)
	}
	for _, c := range open {
		_ = c.Close()
	}
	h.wait("they are gone", noneOpen)
	h.ua("alice").connect()
}

func TestFrames(t *testing.T) {
	defer goleak.VerifyNone(t)
	h := newHouse(t)
	defer h.stop()
	c, r := h.dialRaw()
	defer c.Close()
	read := func() (ws.OpCode, string) {
		t.Helper()
		f, err := ws.ReadFrame(r) //nolint:staticcheck // SA1019: the peer is the edge of this test
		if err != nil {
			t.Fatal(err)
		}
		return f.Header.OpCode, string(f.Payload)
	}
	put := func(b ...[]byte) {
		t.Helper()
		if _, err := c.Write(bytes.Join(b, nil)); err != nil {
			t.Fatal(err)
		}
	}
	options := "OPTIONS sip:ims.test SIP/2.0\r\nVia: SIP/2.0/WSS x.invalid;branch=z9hG4bK%d\r\nMax-Forwards: 69\r\nTo: <sip:ims.test>\r\nFrom: <sip:alice@ims.test>;tag=1\r\nCall-ID: c\r\nCSeq: 1 OPTIONS\r\n\r\n"
	m := func(n int) []byte { return fmt.Appendf(nil, options, n) }
	expect401 := func() {
		t.Helper()
		if op, s := read(); op != ws.OpText || !strings.HasPrefix(s, "SIP/2.0 401 ") {
			t.Errorf("%v %q", op, s)
		}
	}
	// text, binary, in fragments with a ping in between, all in one segment and byte by byte
	put(masked(ws.OpText, true, m(1)))
	expect401()
	put(masked(ws.OpBinary, true, m(2)))
	expect401()
	ping := bytes.Repeat([]byte("p"), 125)
	put(masked(ws.OpText, false, m(3)[:10]), masked(ws.OpPing, true, ping), masked(ws.OpContinuation, false, nil), masked(ws.OpContinuation, true, m(3)[10:]))
	if op, s := read(); op != ws.OpPong || s != string(ping) {
		t.Errorf("pong %v %q", op, s)
	}
	expect401()
	for _, b := range masked(ws.OpText, true, m(4)) {
		put([]byte{b})
	}
	expect401()
	put(masked(ws.OpPing, true, nil), masked(ws.OpPong, true, []byte("unasked")))
	if op, s := read(); op != ws.OpPong || s != "" {
		t.Errorf("pong %v %q", op, s)
	}
	// keep-alive of RFC 5626
	put(masked(ws.OpText, true, []byte("\r\n\r\n")), masked(ws.OpText, true, []byte("\r\n")), masked(ws.OpText, true, nil))
	if op, s := read(); op != ws.OpText || s != "\r\n" {
		t.Errorf("keep-alive %v %q", op, s)
	}
	// a malformed message is answered, and the flow lives on
	put(masked(ws.OpText, true, bytes.Replace(m(5), []byte("CSeq: 1"), []byte("CSeq: x"), 1)))
	if op, s := read(); op != ws.OpText || !strings.HasPrefix(s, "SIP/2.0 400 Bad Request\r\n") {
		t.Errorf("malformed: %v %q", op, s)
	}
	put(masked(ws.OpText, true, m(6)))
	expect401()
	// the close handshake
	put(masked(ws.OpClose, true, ws.NewCloseFrameBody(1000, "bye")))
	if op, s := read(); op != ws.OpClose || !strings.HasPrefix(s, "\x03\xe8") {
		t.Errorf("close %v %q", op, s)
	}
	if _, err := r.ReadByte(); err != io.EOF {
		t.Errorf("after the close: %v", err)
	}
}

func TestFramesRefused(t *testing.T) {
	defer goleak.VerifyNone(t)
	h := newHouse(t)
	defer h.stop()
	long := bytes.Repeat([]byte("x"), siptx.MaxMessage+1)
	for _, c := range []struct {
		name  string
		bytes []byte
		code  ws.StatusCode
	}{
		{"not masked", ws.MustCompileFrame(ws.NewTextFrame([]byte("x"))), 1002},
		{"reserved bit", []byte{0xc1, 0x80, 0, 0, 0, 0}, 1002},
		{"reserved opcode", []byte{0x83, 0x80, 0, 0, 0, 0}, 1002},
		{"fragmented ping", masked(ws.OpPing, false, nil), 1002},
		{"long ping", masked(ws.OpPing, true, bytes.Repeat([]byte("x"), 126)), 1002},
		{"continuation of nothing", masked(ws.OpContinuation, true, nil), 1002},
		{"text inside text", append(masked(ws.OpText, false, []byte("x")), masked(ws.OpText, true, nil)...), 1002},
		{"length with the top bit", []byte{0x81, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 1002},
		{"announced too long", []byte{0x81, 0xff, 0, 0, 0, 0x7f, 0, 0, 0, 0, 0, 0, 0, 0}, 1009},
		{"70 kB", masked(ws.OpText, true, long), 1009},
		{"70 kB in fragments", append(masked(ws.OpText, false, long[:60000]), masked(ws.OpContinuation, true, long[60000:])...), 1009},
		{"text that is not UTF-8", masked(ws.OpText, true, []byte("\xff\xfe")), 1007},
		{"no SIP", masked(ws.OpText, true, []byte("hello")), 1003},
		{"bad close code", masked(ws.OpClose, true, []byte{0, 1}), 1002},
	} {
		conn, r := h.dialRaw()
		if _, err := conn.Write(c.bytes); err != nil {
			t.Fatal(err)
		}
		f, err := ws.ReadFrame(r) //nolint:staticcheck // SA1019: the peer is the edge of this test
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
		} else if code, text := ws.ParseCloseFrameData(f.Payload); f.Header.OpCode != ws.OpClose || code != c.code || text == "" {
			t.Errorf("%s: %v %d %q", c.name, f.Header.OpCode, code, text)
		}
		_ = conn.Close()
	}
	h.wait("they are gone", func() bool { return h.edge.Stats().Flows == 0 })
	if n := h.edge.Stats().Refused.Malformed; n != 14 {
		t.Errorf("%d counted", n)
	}
}

// TestManyMessages: a browser that sends more than browsers do is closed; one that reads nothing is cut.
func TestManyMessages(t *testing.T) {
	defer goleak.VerifyNone(t)
	h := newHouse(t)
	defer h.stop()
	conn, r := h.dialRaw()
	go func() {
		for range messageBump + 50 {
			if _, err := conn.Write(masked(ws.OpText, true, []byte("\r\n"))); err != nil {
				return
			}
		}
	}()
	f, err := ws.ReadFrame(r) //nolint:staticcheck // SA1019: the peer is the edge of this test
	if code, _ := ws.ParseCloseFrameData(f.Payload); err != nil || code != ws.StatusPolicyViolation {
		t.Errorf("%v %d", err, code)
	}
	_ = conn.Close()

	slow, _ := h.dialRaw()
	defer slow.Close()
	h.wait("the flow is there", func() bool { return h.edge.Stats().Flows == 1 })
	var f2 *flow
	h.edge.locked(func() {
		for _, f := range h.edge.flows {
			f2 = f
		}
	})
	begun := time.Now()
	for range 10 * queueLength {
		f2.Send(bytes.Repeat([]byte("x"), siptx.MaxMessage))
	}
	if d := time.Since(begun); d > writeTime/2 { // blocked, it would be writeTime; the race detector takes a second or two
		t.Errorf("sending to a slow browser took %v", d)
	}
	h.wait("the slow one is cut", func() bool { return h.edge.Stats().Flows == 0 })
}

// TestIdleConnections: silent TCP clients, on both sides, and silent WebSockets hold nobody up.
func TestIdleConnections(t *testing.T) {
	defer goleak.VerifyNone(t)
	h := newHouse(t, func(c *Config) { c.MaxFlowsPerSource = 1000 })
	defer h.stop()
	var idle []net.Conn
	defer func() {
		for _, c := range idle {
			_ = c.Close()
		}
	}()
	for range 100 {
		c, err := net.Dial("tcp", strings.TrimPrefix(h.web.URL, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		idle = append(idle, c)
		c, _ = h.dialRaw()
		idle = append(idle, c)
	}
	for range 20 {
		c, err := net.Dial("tcp", h.edge.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		idle = append(idle, c)
	}
	begun := time.Now()
	h.play(registered+"alice> INVITE bob\n<bob INVITE\nbob> 200\n<alice 200\nalice> ACK\n<bob ACK\nalice> BYE\n<bob BYE\nbob> 200 BYE\n<alice 200\nsettled", "idle")
	if d := time.Since(begun); d > 2*time.Second {
		t.Errorf("the call took %v", d)
	}
}

const registered = "alice connects\nalice> REGISTER\n<alice 200\nbob connects\nbob> REGISTER\n<bob 200\n"

// TestCutWebSocket cuts a message at every byte, as a whole WebSocket message and by the end of
// the connection in the middle of a frame.
func TestCutWebSocket(t *testing.T) {
	defer goleak.VerifyNone(t)
	h := newHouse(t, func(c *Config) { c.MaxFlowsPerSource = 1000 })
	defer h.stop()
	u := h.ua("alice")
	register := edit(u.request("REGISTER", "sip:ims.test", "c", "t", "", u.aor(), 1, newBranch()), []string{"Contact: <" + u.contact() + ">", "-Authorization"}, "")
	invite := edit(u.request("INVITE", "sip:bob@ims.test", "c", "t", "", u.aor(), 1, newBranch()), []string{"Contact: <" + u.contact() + ">", "-Authorization"}, u.sdp("offer.sdp"))
	for _, m := range []string{register, invite} {
		whole := masked(ws.OpText, true, []byte(m))
		for n := 1; n < len(m); n++ {
			conn, _ := h.dialRaw()
			if _, err := conn.Write(masked(ws.OpText, true, []byte(m[:n]))); err != nil {
				t.Fatal(err)
			}
			if _, err := conn.Write(whole[:n]); err != nil && !errors.Is(err, net.ErrClosed) && n < 2 {
				t.Fatal(err)
			}
			_ = conn.Close()
		}
	}
	h.wait("they are gone", func() bool { return h.edge.Stats().Flows == 0 })
	if s := h.edge.Stats(); s.Bindings != 0 || s.Calls != 0 {
		t.Errorf("%+v", s)
	}
	h.play(registered, "after the cuts")
}

// FuzzFrames: any bytes are read to their end without a panic, and no message is longer than the bound.
func FuzzFrames(f *testing.F) {
	f.Add(masked(ws.OpText, true, []byte("hello")))
	f.Add(append(masked(ws.OpBinary, false, []byte("he")), append(masked(ws.OpPing, true, []byte("x")), masked(ws.OpContinuation, true, []byte("llo"))...)...))
	f.Add(masked(ws.OpClose, true, ws.NewCloseFrameBody(1000, "bye")))
	f.Add([]byte{0x81, 0xff, 0, 0, 0, 0x7f, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		in := frames{r: bufio.NewReader(bytes.NewReader(b)), begun: func() {}, control: func(op ws.OpCode, p []byte) error {
			if len(p) > 125 || !op.IsControl() {
				t.Fatalf("control frame %v of %d bytes", op, len(p))
			}
			return nil
		}}
		for {
			m, err := in.next()
			if err != nil {
				return
			}
			if len(m) > siptx.MaxMessage {
				t.Fatalf("%d bytes", len(m))
			}
		}
	})
}

// FuzzMessage gives whatever bytes as messages of a registered browser: the edge must live on, and
// end with nothing left.
func FuzzMessage(f *testing.F) {
	seed := &ua{h: &house{}, name: "alice", host: "x.invalid", user: "u", auth: "Bearer a.b.c"}
	for _, m := range []string{"REGISTER", "INVITE", "BYE", "OPTIONS", "CANCEL", "ACK", "MESSAGE"} {
		f.Add([]byte(edit(seed.request(m, "sip:bob@ims.test", "c", "t", "", seed.aor(), 1, "z9hG4bKx"), []string{"Contact: <" + seed.contact() + ">"}, "")))
	}
	f.Add([]byte("SIP/2.0 200 OK\r\nVia: SIP/2.0/WS x;branch=z9hG4bKx\r\nTo: <sip:a@b>\r\nFrom: <sip:a@b>;tag=1\r\nCall-ID: c\r\nCSeq: 1 INVITE\r\n\r\n"))
	for _, m := range []string{"INVITE", "MESSAGE"} {
		f.Add([]byte(edit(seed.request(m, "sip:bob@ims.test", "c", "t", "", seed.aor(), 1, "z9hG4bKx"), []string{"Contact: <" + seed.contact() + ">", "-Authorization"}, sdpFile(f, "offer.sdp", "alice"))))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		e, fl := bareEdge(t)
		e.locked(func() {
			bound := &binding{flow: fl, impu: "sip:alice@ims.test", serviceRoute: []string{"sip:orig@127.0.0.1:1;lr"}, timer: time.NewTimer(time.Hour)}
			fl.bindings[bound.impu] = bound
			e.bindings[bound] = struct{}{}
		})
		_ = fl.message(context.Background(), b)
		e.locked(func() { e.flowGone(fl); e.layer.Close() })
		e.work.Wait()
		if s := e.Stats(); s.Flows != 0 || s.Bindings != 0 || s.Calls != 0 || s.Faults != 0 {
			t.Fatalf("%+v", s)
		}
	})
}
