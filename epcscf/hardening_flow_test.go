package epcscf

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"go.uber.org/goleak"
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
		for { // an answer, or the end of this WebSocket alone
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
