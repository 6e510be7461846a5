package epcscf

import (
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"wicgate/internal/siptx"
)

const (
	registeredBoth = "alice connects\nalice> REGISTER\n<alice 200 OK\nbob connects\nbob> REGISTER\n<bob 200 OK\n"
	talking        = registeredBoth + "alice> INVITE bob\n<bob INVITE\nbob> 200\n<alice 200\nalice> ACK\n<bob ACK\n"
)

// hardened begins a house whose leaks are checked after it has stopped.
func hardened(t *testing.T) *house {
	t.Helper()
	h := newHouse(t)
	t.Cleanup(func() { h.stop(); goleak.VerifyNone(t) })
	return h
}

// answers waits until no server transaction of the edge waits for its final answer.
func (h *house) answers() {
	h.t.Helper()
	h.wait("no request waits for its answer", func() bool {
		h.edge.mu.Lock()
		defer h.edge.mu.Unlock()
		n, _ := h.edge.layer.Live()
		return n == 0
	})
}

// answersToInvite are the status lines of the final answers to INVITEs in what a recorder or a browser took.
func answersToInvite(all string) (lines []string) {
	for _, l := range strings.Split(all, "SIP/2.0 ") {
		status, _, _ := strings.Cut(l, "\r\n")
		if len(status) > 4 && status[0] >= '2' && status[0] <= '6' && status[3] == ' ' && strings.Contains(l, " INVITE\r\n") {
			lines = append(lines, status)
		}
	}
	return lines
}

// A BYE that overtakes the answer, or has none, never makes a 2xx without a description.
func TestByeBeforeAnswerIsPassedOn(t *testing.T) {
	for _, early := range []bool{true, false} {
		h := hardened(t)
		script := registeredBoth + "alice> INVITE bob\n<bob INVITE\n"
		if early {
			script += "bob> 180\n<alice 180\n"
		}
		h.play(script, "bye-crosses")
		h.gateway.mu.Lock()
		h.gateway.delay = 100 * time.Millisecond
		h.gateway.mu.Unlock()
		b := h.ua("bob")
		b.respond("200", "OK", "INVITE", b.sdp("answer.sdp"))
		b.within("BYE", "")
		_, m, err := h.ua("alice").next() // between core and edge the BYE may overtake on another connection
		if err != nil {
			t.Fatal(err)
		}
		if m.Status == 200 && len(m.Body) > 0 {
			h.play("alice> ACK\n<alice BYE\nalice> 200 BYE\n", "bye-crosses")
		} else if m.Status != 487 {
			t.Errorf("alice got %d", m.Status)
		}
		h.settled()
		if all := h.ua("alice").everything() + h.toEdge.answered(); strings.Contains(all, "200 Call Ended") {
			t.Error("an INVITE was answered with 200 Call Ended")
		}
		h.clean()
		h.stop()
	}
}

func TestEarlyBye(t *testing.T) {
	for _, by := range []string{"alice", "bob"} {
		h := hardened(t)
		h.play(registeredBoth+"alice> INVITE bob\n<bob INVITE\nbob> 180\n<alice 180\n", "early-bye")
		h.ua(by).within("BYE", "")
		h.wait("the INVITE is answered", func() bool { return len(answersToInvite(h.ua("alice").everything())) > 0 })
		for _, l := range append(answersToInvite(h.ua("alice").everything()), answersToInvite(h.toEdge.answered())...) {
			if l < "300" {
				t.Errorf("by %s: an INVITE was answered %q", by, l)
			}
		}
		if by == "alice" {
			h.play("<bob CANCEL\nbob> 200 CANCEL\nbob> 487 INVITE\n", "early-bye")
		}
		h.settled()
		h.stop()
	}
}

// What waits for its answer when the call ends is answered.
func TestEndAnswersUpdates(t *testing.T) {
	h := hardened(t)
	h.play(talking, "updates")
	a, b := h.ua("alice"), h.ua("bob")
	const n = 20
	for range n {
		a.within("UPDATE", a.sdp("offer.sdp"))
	}
	var requests []*siptx.Message
	for len(requests) < n {
		_, m, err := b.next()
		if err != nil {
			t.Fatal(err)
		}
		requests = append(requests, m)
	}
	a.within("BYE", "")
	if _, m, err := b.next(); err != nil || m.Method != "BYE" {
		t.Fatal(err, m)
	}
	b.respond("200", "OK", "BYE", "")
	for _, r := range requests {
		b.last["UPDATE"] = r
		b.respond("200", "OK", "UPDATE", b.sdp("answer.sdp"))
	}
	h.settled()
	answered := 0
	for answered < n+1 {
		_, m, err := a.next()
		if err != nil {
			t.Fatalf("alice got %d answers: %v", answered, err)
		}
		answered++
		if _, method, _ := m.CSeq(); method == "UPDATE" && m.Status != 481 {
			t.Errorf("UPDATE was answered %d", m.Status)
		}
	}
}

func TestEndAnswersReinvite(t *testing.T) {
	h := hardened(t)
	h.play(talking+"alice> INVITE\n<bob INVITE\nalice> BYE\n<alice 487\n<bob BYE\nbob> 200 BYE\n<alice 200\nbob> 200 INVITE\n<bob ACK\nsettled\n", "reinvite")
}

// A browser cannot drive the counting of its own requests over the bound.
func TestHighCSeq(t *testing.T) {
	h := hardened(t)
	h.play(talking+"alice> INFO\n  CSeq: 2147483647 INFO\n<alice 400\nalice> INFO\n  CSeq: 2147482623 INFO\n<bob INFO\nbob> 200 INFO\n<alice 200\nalice vanishes\n<bob BYE\n  CSeq: 2147482624 BYE\nbob> 200 BYE\nsettled\n", "cseq")
	if got := nextSeq(maxSeq); got != maxSeq {
		t.Errorf("next of the highest is %d", got)
	}
}
