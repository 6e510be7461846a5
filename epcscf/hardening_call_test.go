package epcscf

import (
	"net/netip"
	"slices"
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
	t.Cleanup(func() { h.over(); goleak.VerifyNone(t) })
	return h
}

// over ends the house without waiting for browsers that answer no BYE.
func (h *house) over() {
	for _, u := range h.uas {
		u.vanish()
	}
	h.stop()
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
		if got := answersToInvite(h.toEdge.answered()); len(got) == 0 || !strings.HasPrefix(got[0], "200") {
			t.Errorf("the BYE has overtaken the answer on bob's side: %q", got)
		}
		if all := h.ua("alice").everything() + h.toEdge.answered(); strings.Contains(all, "200 Call Ended") {
			t.Error("an INVITE was answered with 200 Call Ended")
		}
		h.clean()
		h.over()
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
		h.over()
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

// One REGISTER of an identity at a time: nothing of a pipeline outlives its WebSocket.
func TestPipelinedRegister(t *testing.T) {
	h := hardened(t)
	a := h.ua("alice")
	a.connect()
	for range 40 {
		a.register("600")
	}
	good := 0
	for range 40 {
		_, m, err := a.next()
		if err != nil {
			t.Fatal(err)
		}
		switch m.Status {
		case 200:
			good++
		case 500:
		default:
			t.Errorf("a REGISTER was answered %d", m.Status)
		}
	}
	if n := h.edge.Stats().Bindings; good == 0 || n != 1 {
		t.Errorf("%d REGISTERs accepted, %d bindings", good, n)
	}
	h.play("alice leaves\nedge: flows=0 bindings=0 calls=0\ncore: registrations=0\n", "pipelined")
}

// A page loaded anew registers before its old WebSocket is found dead: the old registration's end
// must not take the new one away at the core.
func TestReloadKeepsTheNewRegistration(t *testing.T) {
	defer goleak.VerifyNone(t)
	for _, stays := range []bool{true, false} { // where the new WebSocket is lost too, nothing stays at the core
		var core *slowCore
		h := newHouse(t, func(c *Config) {
			core = newSlowCore(t, c.Core.NextHop.String())
			c.Core.NextHop = core.addr()
		})
		h.play("alice connects\nalice> REGISTER\n<alice 200 OK\n", "reload")
		a := h.ua("alice")
		old, done := a.ws, a.done
		h.play("alice reloads\nalice connects\n", "reload")
		core.hold()
		a.register("600")
		h.wait("the REGISTER is on its way", func() bool { h.edge.mu.Lock(); defer h.edge.mu.Unlock(); return len(h.edge.registering) == 1 })
		_ = old.CloseNow()
		<-done
		h.wait("the old WebSocket is gone", func() bool { return h.edge.Stats().Flows == 1 })
		if !stays {
			h.play("alice vanishes\nedge: flows=0\n", "reload")
		}
		core.release()
		if stays {
			h.play("<alice 200\nedge: bindings=1\ncore: registrations=1\n", "reload")
			if n := h.edge.Stats().Deregistered; n != 0 {
				t.Errorf("%d de-registrations", n)
			}
		} else {
			h.play("edge: bindings=0\ncore: registrations=0\n", "reload")
			h.wait("both are de-registered", func() bool { return h.edge.Stats().Deregistered == 2 })
		}
		h.over()
		core.close()
	}
}

// slowCore passes bytes between the edge and a core, and can hold back those to the edge.
type slowCore struct {
	*recorder
}

func newSlowCore(t *testing.T, target string) *slowCore {
	s := &slowCore{recorder: newRecorder(t)}
	s.target = netip.MustParseAddrPort(target)
	go s.serve()
	return s
}

func (s *slowCore) hold()    { s.in.mu.Lock() } // the recorder keeps a byte before it passes it
func (s *slowCore) release() { s.in.mu.Unlock() }

// What a browser writes about itself or about the far side's behaviour ends at the edge.
func TestScreenAllows(t *testing.T) {
	h := hardened(t)
	bad := []string{"Remote-Party-ID: <sip:ceo@ims.test>;party=calling;screen=yes", "Diversion: <sip:ceo@ims.test>;reason=unconditional", "Priv-Answer-Mode: Auto", "Answer-Mode: Auto",
		"Alert-Info: <http://x.test>;info=alert-autoanswer", "Call-Info: <http://x.test>", "Replaces: abc;from-tag=a;to-tag=b", "Join: abc;from-tag=a;to-tag=b", "Content-Encoding: gzip",
		"Referred-By: <sip:ceo@ims.test>", "Reply-To: <sip:ceo@ims.test>", "Organization: Ceo", "Contact: \"The Ceo\" <sip:a@b.invalid>", "X-Anything: y", "From: \"The Ceo\" <sip:alice@ims.test>;tag={tag}"}
	good := []string{"Session-Expires: 90", "Min-SE: 90", "Subject: weather", "Accept: application/sdp"}
	a := h.ua("alice")
	h.play(registeredBoth, "screen")
	var fields []string
	for _, f := range append(bad[:len(bad):len(bad)], good...) {
		if strings.HasPrefix(f, "Contact") {
			fields = append(fields, strings.Replace("Contact: \"The Ceo\" <C>", "C", a.contact(), 1))
		} else if !strings.HasPrefix(f, "From:") && !strings.HasPrefix(f, "Content-Encoding") {
			fields = append(fields, "+"+f)
		}
	}
	a.invite("sip:bob@ims.test", a.sdp("offer.sdp"), fields...)
	h.play("<bob INVITE\nbob> 200\n<alice 200\nalice> ACK\n<bob ACK\n", "screen")
	all := h.toCore.sent() + h.ua("bob").everything()
	for _, f := range bad {
		if name, _, _ := strings.Cut(f, ":"); name != "From" && name != "Contact" && strings.Contains(all, "\r\n"+name+":") {
			t.Errorf("%s has passed", name)
		}
	}
	if strings.Contains(all, "The Ceo") {
		t.Error("a display name has passed")
	}
	for _, f := range good {
		if !strings.Contains(h.ua("bob").everything(), f) {
			t.Errorf("%s has not passed", f)
		}
	}
	h.clean()
}

// From and To of a dialog are what it began with.
func TestDialogNamesAreKept(t *testing.T) {
	h := hardened(t)
	h.play(registeredBoth+"alice> INVITE bob\n  From: \"The Ceo\" <sip:alice@ims.test>;tag=nine\n", "names")
	h.ua("alice").dialog.local = "nine"
	h.play("<bob INVITE\n  !The Ceo\nbob> 200\n<alice 200\nalice> ACK\n<bob ACK\n", "names")
	a, b := h.ua("alice"), h.ua("bob")
	a.within("INFO", "", `From: "The Ceo" <sip:alice@ims.test>;tag=nine`, `To: "The Ceo" <sip:ceo@ims.test>;tag=`+a.dialog.remote)
	raw, m, err := b.next()
	if err != nil || m.Method != "INFO" || strings.Contains(strings.ToLower(raw), "ceo") {
		t.Errorf("bob got %v\n%s", err, raw)
	}
	if strings.Contains(strings.ToLower(h.toCore.sent()), "ceo") {
		t.Error("the name has reached the core")
	}
}

// INFO carries tones and key frames, BYE nothing.
func TestBodiesInADialog(t *testing.T) {
	h := hardened(t)
	h.play(talking, "bodies")
	a, b := h.ua("alice"), h.ua("bob")
	a.within("INFO", "Signal=1\r\n", "Content-Type: application/dtmf-relay")
	if raw, m, err := b.next(); err != nil || m.Method != "INFO" || !strings.Contains(raw, "Signal=1") {
		t.Fatal(err, raw)
	}
	h.play("bob> 200 INFO\n<alice 200\n", "bodies")
	a.within("INFO", a.sdp("offer.sdp"), "Content-Type: text/plain")
	h.play("<alice 415\n", "bodies")
	a.within("BYE", a.sdp("offer.sdp"), "Content-Type: text/plain")
	if raw, m, err := b.next(); err != nil || m.Method != "BYE" || len(m.Body) > 0 || strings.Contains(raw, "Content-Type") {
		t.Fatal(err, raw)
	}
	h.play("bob> 200 BYE\n<alice 200\nsettled\n", "bodies")
	h.clean()
}

// The calls of one browser, and what rings at one, are bounded.
func TestCallsOfOneBrowser(t *testing.T) {
	h := hardened(t)
	h.play(registeredBoth, "many")
	a := h.ua("alice")
	for range 20 {
		a.invite("sip:bob@ims.test", a.sdp("offer.sdp"))
	}
	got := map[int]int{}
	for range 20 - maxRinging {
		_, m, err := a.next()
		if err != nil {
			t.Fatal(err)
		}
		got[m.Status]++
	}
	if n := h.gateway.open(); n > 2*maxFlowCalls || got[486]+got[503] != 20-maxRinging {
		t.Errorf("%d gateway sessions, answers %v", n, got)
	}
	h.play("alice vanishes\nbob vanishes\nsettled\n", "many")
}

// Each refusal has a line in the log that names its cause.
func TestRefusalsAreLogged(t *testing.T) {
	digest := `Digest username="bob@ims.test",realm="ims.test",uri="sip:ims.test",nonce="",response="",integrity-protected="auth-done"`
	for _, c := range []struct{ name, script, want string }{
		{"integrity-protected", "alice connects\nalice> REGISTER\n  +Authorization: " + digest + "\n<alice 200 OK\n", "integrity-protected"},
		{"foreign token in a dialog", talking + "alice token other-user\nalice> INFO\n<alice 403\n", "the token is not of the subject"},
		{"bad description in a re-INVITE", talking + "alice> INVITE\n  sdp: offer.sdp a=setup:actpass => a=setup:passive\n<alice 488\n", "cause=\"a=setup does not let"},
		{"method", registeredBoth + "alice> SUBSCRIBE bob\n<alice 405\n", "method=SUBSCRIBE"},
		{"no call", talking + "alice> BYE\n<bob BYE\nbob> 200 BYE\n<alice 200\nalice> INFO\n<alice 481\n", "no such call"},
		{"no Contact", registeredBoth + "alice> INVITE bob\n  -Contact\n<alice 400\n", "no Contact"},
		{"no Contact in REGISTER", "alice connects\nalice> REGISTER\n  -Contact\n<alice 400\n", "One Contact Is Required"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := hardened(t)
			h.play(c.script, c.name)
			if log := h.log.String(); !strings.Contains(log, c.want) || strings.Contains(log, "eyJ") {
				t.Errorf("no line has %q", c.want)
			}
		})
	}
}

// A line keeps its stream while another is given up and comes back; beyond the gateway's bound there is none.
func TestStreamsKeepTheirNumbers(t *testing.T) {
	d := func(rejected ...bool) *description {
		var d description
		for _, r := range rejected {
			d.Lines = append(d.Lines, line{Rejected: r})
		}
		return &d
	}
	var known []int
	n := 0
	for _, c := range []struct {
		d    *description
		want []int
		n    int
	}{
		{d(false, false), []int{0, 1}, 2},
		{d(true, false), []int{-1, 1}, 2},
		{d(true, false, true, false), []int{-1, 1, -1, 2}, 3},
		{d(false, true, false, true), []int{0, -1, 3, -1}, 4},
		{d(false, true, false, true, false), []int{0, -1, 3, -1, -1}, 4},
	} {
		known, n = c.d.number(known, n)
		if index, count := c.d.streams(); !slices.Equal(index, c.want) || count != c.n || n != c.n {
			t.Errorf("%v %d, not %v %d", index, count, c.want, c.n)
		}
	}
}
