package epcscf

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"wicgate/internal/claims"
	"wicgate/internal/iq"
)

// TestFlows runs the call flows of testdata/*.flow, which read like a specification's figures:
//
//	alice connects                a WebSocket opens
//	alice> REGISTER               she sends; the lines below change fields ("Name: value", "+Name: value", "-Name")
//	<alice 200 OK                 she gets; the lines below are looked for, with "!" in front must not be there
//	bob> 180                      he answers the last INVITE; "bob> 200 BYE" another method
//	alice vanishes, alice leaves  the WebSocket is cut, or closed
//	gateway: consent-lost bob     the gateway publishes an event of his session
//	gateway: streams bob audio -  what his session has; "-": stopped
//	gateway: ufrag bob Zx1bob     the browser's ufrag that it knows
//	gateway: fails | works        its answers to Set
//	gateway: asked 3              wait until the third Set has come to it
//	core is lost                  the connections between edge and core are cut
//	settled                       no call, no dialog, no gateway session is left
//
// After each file: no token and no fingerprint at the core, no ICID at a browser (house.clean).
func TestFlows(t *testing.T) {
	files, err := filepath.Glob("testdata/*.flow")
	if err != nil || len(files) == 0 {
		t.Fatal("no flows", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".flow"), func(t *testing.T) {
			defer goleak.VerifyNone(t)
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			h := newHouse(t)
			defer h.stop()
			h.play(string(b), file)
			h.clean()
		})
	}
}

type step struct {
	n      int
	text   string
	fields []string
}

func (h *house) play(script, file string) {
	h.t.Helper()
	var steps []step
	for n, l := range strings.Split(script, "\n") {
		switch {
		case strings.TrimSpace(l) == "", strings.HasPrefix(l, "#"):
		case strings.HasPrefix(l, "  "):
			s := &steps[len(steps)-1]
			s.fields = append(s.fields, strings.TrimSpace(l))
		default:
			steps = append(steps, step{n: n + 1, text: strings.TrimSpace(l)})
		}
	}
	for _, s := range steps {
		h.step(s, fmt.Sprintf("%s:%d: %s", file, s.n, s.text))
		if h.t.Failed() {
			h.t.FailNow()
		}
	}
}

func (h *house) step(s step, at string) {
	t := h.t
	t.Helper()
	words := strings.Fields(s.text)
	switch {
	case s.text == "settled":
		h.settled()
	case s.text == "core is lost":
		h.toCore.cut()
		h.toEdge.cut()
		h.wait(at, func() bool { return h.edge.Stats().CoreConnections == 0 && h.core.Stats().Connections == 0 })
	case words[0] == "gateway:" && words[1] == "fails":
		h.gateway.mu.Lock()
		h.gateway.setErr = map[string]error{"capacity": iq.ErrCapacity, "invalid": iq.ErrInvalid, "silent": context.DeadlineExceeded}[words[2]]
		h.gateway.mu.Unlock()
	case words[0] == "gateway:" && words[1] == "works":
		h.gateway.mu.Lock()
		h.gateway.setErr = nil
		h.gateway.mu.Unlock()
	case words[0] == "gateway:" && words[1] == "late":
		h.gateway.mu.Lock()
		h.gateway.late = true
		h.gateway.mu.Unlock()
	case words[0] == "gateway:" && words[1] == "asked":
		n, err := strconv.Atoi(words[2])
		if err != nil {
			h.t.Fatalf("%s: %v", at, err)
		}
		h.wait(at, func() bool {
			h.gateway.mu.Lock()
			defer h.gateway.mu.Unlock()
			return h.gateway.asked >= n
		})
	case words[0] == "gateway:" && words[1] == "slow":
		h.gateway.mu.Lock()
		h.gateway.delay = 50 * time.Millisecond
		h.gateway.mu.Unlock()
	case words[0] == "gateway:" && words[1] == "streams":
		h.wait(at, func() bool {
			var got []string
			for _, s := range h.gateway.of(words[2]).Streams {
				if s.Stopped {
					s.Media = "-"
				}
				got = append(got, s.Media)
			}
			return slices.Equal(got, words[3:])
		})
	case words[0] == "gateway:" && words[1] == "ufrag":
		h.wait(at, func() bool {
			s := h.gateway.of(words[2])
			return len(s.Streams) > 0 && s.Streams[0].Access.Ufrag == words[3]
		})
	case words[0] == "gateway:":
		if !h.gateway.event(iq.EventKind(words[1]), words[2]) {
			t.Errorf("%s: the gateway has no session of %s", at, words[2])
		}
	case words[0] == "edge:":
		for _, want := range words[1:] {
			name, value, _ := strings.Cut(want, "=")
			h.wait(at, func() bool {
				s := h.edge.Stats()
				got := map[string]int{"flows": s.Flows, "bindings": s.Bindings, "calls": s.Calls, "dialogs": s.Dialogs, "restarts": int(s.Restarts)}[name]
				return fmt.Sprint(got) == value
			})
		}
	case words[0] == "core:":
		for _, want := range words[1:] {
			name, value, _ := strings.Cut(want, "=")
			h.wait(at, func() bool {
				s := h.core.Stats()
				return fmt.Sprint(map[string]int{"registrations": s.Registrations, "calls": s.Calls}[name]) == value
			})
		}
	case words[0] == "core-bytes":
		for _, f := range s.fields {
			all := h.toCore.sent() + h.toEdge.answered()
			want, not := strings.CutPrefix(f, "!")
			if strings.Contains(all, want) == not {
				t.Errorf("%s: %q in what the core was sent: %v\n%s", at, want, !not, all)
			}
		}
	case strings.HasPrefix(s.text, "<"):
		h.expect(h.ua(words[0][1:]), words[1:], s.fields, at)
	case strings.HasSuffix(words[0], ">"):
		h.act(h.ua(strings.TrimSuffix(words[0], ">")), words[1:], s.fields, at)
	case len(words) >= 2 && words[1] == "connects":
		h.ua(words[0]).connect()
	case len(words) == 2 && words[1] == "vanishes":
		h.ua(words[0]).vanish()
	case len(words) == 2 && words[1] == "leaves":
		h.ua(words[0]).leave()
	case len(words) == 2 && words[1] == "reloads": // a page loaded anew: same instance, other names
		u := h.ua(words[0])
		u.host, u.user, u.cseq, u.regID = "r"+u.host, "r"+u.user, 0, "r"+u.regID
	case len(words) == 3 && words[1] == "token":
		h.ua(words[0]).auth = authOf(words[0], words[2])
	default:
		t.Fatalf("%s: not understood", at)
	}
}

func authOf(user, kind string) string {
	switch kind {
	case "good":
		return "Bearer " + token(user)
	case "other-form":
		return `Bearer access_token="` + token(user) + `"`
	case "none":
		return ""
	case "expired":
		return "Bearer " + token(user, func(c *claims.SIP) { c.Expiry = time.Now().Add(-time.Second).Unix() })
	case "short":
		return "Bearer " + token(user, func(c *claims.SIP) { c.Expiry = time.Now().Add(100 * time.Second).Unix() })
	case "foreign-issuer":
		return "Bearer " + token(user, func(c *claims.SIP) { c.Issuer = "https://waf.example" })
	case "foreign-audience":
		return "Bearer " + token(user, func(c *claims.SIP) { c.Audience = "epcscf.example" })
	case "foreign-key":
		return "Bearer " + sign(&claims.SIP{}, otherKey, "k1", claims.Type)
	case "unknown-key":
		return "Bearer " + sign(&claims.SIP{}, wafKey, "k9", claims.Type)
	case "wrong-typ":
		return "Bearer " + sign(&claims.SIP{}, wafKey, "k1", "JWT")
	case "alg-none":
		return "Bearer eyJhbGciOiJub25lIiwidHlwIjoiYXQrand0Iiwia2lkIjoiazEifQ.e30."
	case "garbage":
		return "Bearer a.b.c"
	case "empty":
		return "Bearer "
	case "other-user":
		return "Bearer " + token("mallory")
	}
	panic(kind)
}

func (h *house) act(u *ua, words, fields []string, at string) {
	h.t.Helper()
	body := ""
	var kept []string
	for _, f := range fields {
		if v, ok := strings.CutPrefix(f, "sdp: "); ok {
			body = v
			continue
		}
		if u.dialog != nil {
			f = strings.ReplaceAll(f, "{local}", u.dialog.local)
		}
		kept = append(kept, f)
	}
	fields = kept
	description := func(def string) string {
		name, rest, _ := strings.Cut(body, " ")
		switch name {
		case "":
			name = def
		case "none":
			return ""
		}
		s := u.sdp(name)
		// "sdp: offer.sdp a=setup:actpass => a=setup:passive | more => less"
		for rest := range strings.SplitSeq(rest, " | ") {
			from, to, ok := strings.Cut(rest+" ", " => ")
			if !ok {
				break
			}
			to = strings.TrimSuffix(to, " ")
			if !strings.Contains(s, from) {
				h.t.Fatalf("%s: %q is not in %s", at, from, name)
			}
			if to == "" {
				from += "\r\n"
			}
			s = strings.ReplaceAll(s, from, strings.ReplaceAll(to, `\n`, "\r\n"))
		}
		return s
	}
	switch what := words[0]; {
	case what == "REGISTER":
		expires := "600"
		if len(words) > 1 {
			expires = words[1]
		}
		u.register(expires, fields...)
	case what == "INVITE" && len(words) > 1:
		u.invite("sip:"+words[1]+"@"+testDomain, description("offer.sdp"), fields...)
	case what == "INVITE" || what == "UPDATE":
		u.within(what, description("offer.sdp"), fields...)
	case what == "MESSAGE" || what == "OPTIONS" && len(words) > 1 || what == "SUBSCRIBE":
		to := "sip:" + words[1] + "@" + testDomain
		m := u.request(what, to, newBranch(), "t"+u.name, "", to, 1, newBranch())
		if body != "" {
			body = description("")
		}
		u.raw(edit(m, fields, body))
	case what >= "A":
		u.within(what, "", fields...)
	default:
		method, reason := "INVITE", "Whatever"
		if len(words) > 1 {
			method = words[1]
		}
		if method == "INVITE" && what[0] == '2' || body != "" {
			u.respond(what, reason, method, description("answer.sdp"), fields...)
			return
		}
		u.respond(what, reason, method, "", fields...)
	}
}

func (h *house) expect(u *ua, words, fields []string, at string) {
	t := h.t
	t.Helper()
	raw, m, err := u.next()
	if words[0] == "closed" {
		if err == nil {
			t.Errorf("%s: got\n%s", at, raw)
		}
		return
	}
	if err != nil {
		t.Errorf("%s: %v %s", at, err, raw)
		return
	}
	first, _, _ := strings.Cut(raw, "\r\n")
	want := strings.Join(words, " ")
	if m.IsRequest() && m.Method != words[0] || !m.IsRequest() && !strings.HasPrefix(strings.TrimPrefix(first, "SIP/2.0 "), want) {
		t.Errorf("%s: got\n%s", at, raw)
		return
	}
	for _, f := range fields {
		f = strings.ReplaceAll(f, "{instance}", u.contact())
		text, not := strings.CutPrefix(f, "!")
		if strings.Contains(raw, text) == not {
			t.Errorf("%s: %q is there: %v\n%s", at, text, !not, raw)
		}
	}
}
