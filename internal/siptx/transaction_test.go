package siptx

import (
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// wire is a connection that keeps what is sent.
type wire struct {
	sent    []*Message
	t       *testing.T
	trusted bool
}

func (w *wire) Send(b []byte) {
	m, err := Parse(b, true)
	if err != nil {
		w.t.Errorf("sent a message that does not parse: %v\n%s", err, b)
		return
	}
	w.sent = append(w.sent, m)
}
func (w *wire) Via() (string, string) { return "TCP", "edge.test:5060" }
func (w *wire) Trusted() bool         { return w.trusted }

// take removes what was sent, as "180", "INVITE", ….
func (w *wire) take() string {
	var list []string
	for _, m := range w.sent {
		if m.IsRequest() {
			list = append(list, m.Method)
		} else {
			list = append(list, m.Reason)
		}
	}
	w.sent = nil
	return strings.Join(list, " ")
}

type owner struct {
	Layer
	mu   sync.Mutex
	txs  []*ServerTx
	acks int
}

func newOwner() *owner {
	o := &owner{}
	o.Layer = Layer{
		Do:        func(f func()) { o.mu.Lock(); defer o.mu.Unlock(); f() },
		OnRequest: func(tx *ServerTx) { o.txs = append(o.txs, tx) },
		OnAck:     func(Conn, *Message) { o.acks++ },
	}
	return o
}

func parsed(t *testing.T, s string) *Message {
	t.Helper()
	m, err := Parse([]byte(s), true)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// bare is a request without a Via, as Layer.Request wants it.
func bare(t *testing.T, method string) *Message {
	m := parsed(t, with("INVITE → "+method))
	m.Del("Via")
	m.Add("Route", "<sip:scscf.test;lr>")
	return m
}

func TestServerInvite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, w := newOwner(), &wire{t: t}
		in := func(s string) { o.Do(func() { o.Receive(w, parsed(t, s)) }) }
		ack := with("INVITE → ACK", "<sip:bob@ims.test>\\r\\nFrom → <sip:bob@ims.test>;tag=z\\r\\nFrom")

		in(invite)
		in(invite) // absorbed
		if len(o.txs) != 1 {
			t.Fatalf("%d transactions", len(o.txs))
		}
		tx := o.txs[0]
		o.Do(func() { tx.Reply(100, "100"); tx.Reply(180, "180"); tx.Reply(486, "486") })
		if got := w.take(); got != "100 180 486" {
			t.Errorf("sent %s", got)
		}
		in(invite) // completed: the final answer again
		o.Do(func() { tx.Reply(200, "200") })
		if got := w.take(); got != "486" {
			t.Errorf("sent %s", got)
		}
		in(ack)
		if s, _ := o.Live(); s != 0 || o.acks != 0 {
			t.Errorf("after the ACK %d live, %d ACKs handed on", s, o.acks)
		}
		in(ack) // of no failed INVITE
		if o.acks != 1 {
			t.Error("an ACK of a 2xx is not handed on")
		}

		// Without an ACK, timer H ends it; a 2xx is kept for timer L.
		in(with("4108163 → two"))
		in(with("4108163 → three"))
		o.Do(func() {
			o.txs[1].Reply(603, "603")
			o.txs[2].Reply(200, "200")
			o.txs[2].Reply(200, "200")
			o.txs[2].Reply(180, "180")
		})
		if got := w.take(); got != "603 200 200" {
			t.Errorf("sent %s", got)
		}
		time.Sleep(64*T1 + time.Millisecond)
		synctest.Wait()
		if s, _ := o.Live(); s != 0 {
			t.Errorf("%d live after 64*T1", s)
		}
	})
}

func TestServerCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, w := newOwner(), &wire{t: t}
		cancel := with("INVITE → CANCEL")
		o.Do(func() { o.Receive(w, parsed(t, cancel)) })
		if got := w.take(); got != "Call/Transaction Does Not Exist" {
			t.Errorf("sent %s", got)
		}
		n := 0
		o.Do(func() {
			o.Receive(w, parsed(t, invite))
			o.txs[0].OnCancel = func(*Message) { n++ }
			o.Receive(w, parsed(t, cancel))
			o.Receive(w, parsed(t, cancel))
			o.txs[0].Reply(487, "487")
		})
		if n != 1 {
			t.Errorf("cancelled %d times", n)
		}
		if tag := w.sent[0].ToTag(); tag == "" || tag != w.sent[2].ToTag() {
			t.Error("CANCEL and INVITE are answered with different tags (RFC 3261 §9.2)")
		}
		// Another connection with the same branch is another transaction: nobody cancels a stranger's call.
		o.Do(func() { o.Receive(&wire{t: t}, parsed(t, cancel)) })
		if n != 1 {
			t.Error("cancelled by a stranger")
		}
		o.Do(o.Close)
	})
}

func TestClient(t *testing.T) {
	for _, c := range []struct {
		name, method string
		play         func(o *owner, tx *ClientTx, answer func(status int, reason string))
		sent         string // after the request itself
		got          string
		after        time.Duration
	}{
		{"non-INVITE answered", "MESSAGE", func(o *owner, tx *ClientTx, a func(int, string)) { a(200, "200"); a(200, "200") }, "", "200", 0},
		{"non-INVITE silent", "MESSAGE", func(*owner, *ClientTx, func(int, string)) {}, "", "local Request Timeout", 64 * T1},
		{"INVITE silent", "INVITE", func(*owner, *ClientTx, func(int, string)) {}, "", "local Request Timeout", 64 * T1},
		{"INVITE failed", "INVITE", func(o *owner, tx *ClientTx, a func(int, string)) {
			a(100, "100")
			a(180, "180")
			a(486, "486")
			a(486, "486")
		}, "ACK", "100 180 486", 0},
		{"INVITE answered, twice", "INVITE", func(o *owner, tx *ClientTx, a func(int, string)) {
			a(200, "200")
			a(200, "200")
			a(486, "486")
			time.Sleep(64*T1 + time.Second)
			a(200, "200")
		}, "", "200 200", 0},
		{"cancelled while ringing", "INVITE", func(o *owner, tx *ClientTx, a func(int, string)) {
			a(180, "180")
			o.Do(func() { tx.Cancel(Header{"Reason", "SIP;cause=200"}); tx.Cancel() })
			a(487, "487")
		}, "CANCEL ACK", "180 487", 0},
		{"cancelled before anything came", "INVITE", func(o *owner, tx *ClientTx, a func(int, string)) {
			o.Do(func() { tx.Cancel() })
			a(100, "100")
			a(487, "487")
		}, "CANCEL ACK", "100 487", 0},
		{"cancelled, and no answer", "INVITE", func(o *owner, tx *ClientTx, a func(int, string)) { a(180, "180"); o.Do(func() { tx.Cancel() }) }, "CANCEL", "180 local Request Terminated", 64 * T1},
		{"timer C", "INVITE", func(o *owner, tx *ClientTx, a func(int, string)) {
			a(180, "180")
			time.Sleep(TimerC - time.Second)
			a(180, "180")
		}, "CANCEL", "180 180 local Request Terminated", TimerC + 64*T1},
		{"connection lost", "INVITE", func(o *owner, tx *ClientTx, a func(int, string)) { a(180, "180"); o.Do(func() { o.ConnLost(tx.Conn) }) }, "", "180 local Connection Lost", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o, w := newOwner(), &wire{t: t}
				var got []string
				var tx *ClientTx
				o.Do(func() {
					tx = o.Request(w, bare(t, c.method), func(m *Message) {
						if m.Local {
							got = append(got, "local")
						}
						got = append(got, m.Reason)
					})
				})
				request := w.sent[0]
				w.sent = nil
				answer := func(status int, reason string) {
					r := request.Response(status, reason)
					setTag(r, "far")
					o.Do(func() { o.Receive(&wire{t: t}, r); o.Receive(w, r) }) // from another connection: dropped
				}
				c.play(o, tx, answer)
				time.Sleep(c.after + time.Millisecond)
				synctest.Wait()
				for _, m := range w.sent {
					if m.Get("Via") != request.Get("Via") || m.Get("Route") != "<sip:scscf.test;lr>" || m.URI != request.URI {
						t.Errorf("%s does not go the INVITE's way:\n%s", m.Method, m.Append(nil))
					}
				}
				if sent := w.take(); sent != c.sent {
					t.Errorf("sent %q, want %q", sent, c.sent)
				}
				if g := strings.Join(got, " "); g != c.got {
					t.Errorf("got %q, want %q", g, c.got)
				}
				if _, live := o.Live(); live != 0 {
					t.Errorf("%d live", live)
				}
				if len(o.conns) != 0 {
					t.Error("a table is left")
				}
			})
		})
	}
}

func TestBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, w := newOwner(), &wire{t: t}
		for i := range maxPerConn + 1 {
			o.Do(func() { o.Receive(w, parsed(t, with("4108163 → b"+strings.Repeat("x", i)))) })
		}
		if len(o.txs) != maxPerConn || w.take() != "Too Many Transactions" {
			t.Errorf("%d transactions", len(o.txs))
		}
		gone := 0
		for _, tx := range o.txs {
			tx.OnGone = func() { gone++ }
		}
		o.Do(func() { o.ConnLost(w) })
		if s, _ := o.Live(); s != 0 || gone != maxPerConn {
			t.Errorf("%d live, %d told", s, gone)
		}
		o.Do(o.Close)
		o.Do(func() {
			o.Receive(w, parsed(t, invite))
			o.Request(w, bare(t, "MESSAGE"), func(*Message) { t.Error("called after Close") })
		})
		time.Sleep(time.Minute)
	})
}

// TestStrangers: an INVITE of a stranger is answered and nothing is kept; strangers together leave
// room for others, and clients for the core.
func TestStrangers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOwner()
		strange := map[Conn]bool{}
		o.Stranger = func(c Conn) bool { return strange[c] }
		w := &wire{t: t}
		strange[w] = true
		o.Do(func() {
			o.Receive(w, parsed(t, invite))
			if s, _ := o.Live(); s != 0 {
				t.Errorf("%d kept for an INVITE that is not answered yet", s)
			}
			o.txs[0].Reply(401, "401")
			o.txs[0].Reply(200, "200")
		})
		if got := w.take(); got != "401" || o.txs[0].Open() {
			t.Errorf("sent %s", got)
		}
		if s, _ := o.Live(); s != 0 {
			t.Errorf("%d kept", s)
		}
		register := with("INVITE → REGISTER")
		fill := func(stranger, trusted bool) (n int) {
			for {
				c := &wire{t: t, trusted: trusted}
				strange[c] = stranger
				for i := range maxPerConn {
					o.Do(func() {
						m := parsed(t, register)
						m.Set("Via", m.Get("Via")+"x"+NewTag())
						o.Receive(c, m)
					})
					if len(c.sent) > 0 { // refused
						return n + i
					}
				}
				n += maxPerConn
			}
		}
		if n := fill(true, false); n != maxStrange {
			t.Errorf("%d of strangers", n)
		}
		if n := fill(false, false); n != maxAll-reserved-maxStrange {
			t.Errorf("%d of clients", n)
		}
		if n := fill(false, true); n != reserved {
			t.Errorf("%d of the core", n)
		}
		time.Sleep(LastResort + time.Second)
		synctest.Wait()
		if s, _ := o.Live(); s != 0 || o.strange != 0 {
			t.Errorf("%d live, %d strange", s, o.strange)
		}
	})
}

// TestLastResort: a request that its owner forgets is answered in the end and kept no longer.
func TestLastResort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, w := newOwner(), &wire{t: t}
		gone := 0
		take := func() (sent string, n int) { o.Do(func() { sent, n = w.take(), gone }); return sent, n }
		o.Do(func() {
			o.Receive(w, parsed(t, invite))
			o.txs[0].OnGone = func() { gone++ }
			o.Receive(w, parsed(t, with("INVITE → UPDATE")))
		})
		time.Sleep(64*T1 + 3*time.Second)
		synctest.Wait()
		if got, n := take(); got != "Not Answered" || n != 0 {
			t.Errorf("UPDATE: sent %s, gone %d", got, n)
		}
		time.Sleep(LastResort - 40*time.Second)
		o.Do(func() { o.txs[0].Reply(180, "180") }) // it still rings: the time begins anew
		time.Sleep(LastResort - time.Second)
		if got, n := take(); got != "180" || n != 0 {
			t.Errorf("sent %s, gone %d", got, n)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if got, n := take(); got != "Not Answered" || n != 1 {
			t.Errorf("INVITE: sent %s, gone %d", got, n)
		}
		time.Sleep(64*T1 + time.Second) // no ACK
		synctest.Wait()
		if s, _ := o.Live(); s != 0 {
			t.Errorf("%d live", s)
		}
	})
}

type narrowWire struct{ wire }

func (*narrowWire) Room(int) bool { return false }

func TestNoRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, w := newOwner(), &narrowWire{wire{t: t}}
		var got []int
		o.Do(func() {
			for _, method := range []string{"MESSAGE", "BYE"} {
				o.Request(w, bare(t, method), func(r *Message) { got = append(got, r.Status) })
			}
		})
		synctest.Wait()
		if sent := w.take(); sent != "BYE" || len(got) != 1 || got[0] != 480 {
			t.Errorf("sent %s, answered %v", sent, got)
		}
		o.Do(func() { o.ConnLost(w) })
	})
}
