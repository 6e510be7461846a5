package epcscf

import (
	"context"
	"errors"
	"fmt"
	"net/http/httptest"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"wicgate/internal/secret"
	"wicgate/internal/siptx"
	turntoken "wicgate/internal/token"
)

var credentialForm = regexp.MustCompile(`^uri="turn:turn\.ims\.test:3478\?transport=udp",uri="turns:turn\.ims\.test:443",username="(\d+):(p-alice)",password="([A-Za-z0-9+/=]{28})",expires=(\d+)$`)

// TestTURNCredentialSHA256: another USERNAME, and so another HMAC.
func TestTURNCredentialSHA256(t *testing.T) {
	sec := secret.New([]byte("shared with the TURN server"))
	e := &Edge{cfg: Config{TURN: TURNConfig{Secret: func() secret.Bytes { return sec }, Life: time.Hour, SHA256: true}}}
	var f siptx.Header
	e.withCredential(&siptx.Message{Headers: []siptx.Header{{Name: turnCredential, Value: "request"}}}, &binding{alias: "p-alice", flow: &flow{transport: "WSS"}},
		func(fields ...siptx.Header) { f = append(fields, f)[0] })
	m := regexp.MustCompile(`^username="(\d+:s2\.p-alice)",password="([A-Za-z0-9+/=]{44})",expires=\d+$`).FindStringSubmatch(f.Value)
	if m == nil || m[2] != string(turntoken.EphemeralPassword(sec, m[1]).Expose()) {
		t.Errorf("%q", f.Value)
	}
}

// TestTURNCredential: who asks over WSS gets a fresh credential in each 200 OK to REGISTER and to
// OPTIONS, and nobody else; the core sees nothing of it.
func TestTURNCredential(t *testing.T) {
	sec := secret.New([]byte("shared with the TURN server"))
	h := newHouse(t, func(c *Config) {
		c.TURN = TURNConfig{Secret: func() secret.Bytes { return sec }, URLs: []string{"turn:turn.ims.test:3478?transport=udp", "turns:turn.ims.test:443"}, Life: 20 * time.Minute}
	})
	t.Cleanup(func() { h.over(); goleak.VerifyNone(t) })
	alice := h.ua("alice")
	ask := func(method string, fields ...string) string {
		t.Helper()
		if method == "REGISTER" {
			alice.register("600", fields...)
		} else {
			alice.cseq++
			alice.raw(edit(alice.request(method, "sip:"+testDomain, "options-"+strconv.Itoa(alice.cseq), "t", "", "sip:"+testDomain, alice.cseq, newBranch()), fields, ""))
		}
		_, m, err := alice.next()
		if err != nil || m.Status != 200 {
			t.Fatalf("%v %v", m, err)
		}
		return m.Get("TURN-Credential")
	}
	const request = "TURN-Credential: request"
	alice.connect() // without TLS
	if v := ask("REGISTER", request); v != "" {
		t.Errorf("over a plain WebSocket: %q", v)
	}
	alice.vanish()

	h.web.Close()
	h.web = httptest.NewTLSServer(h.edge.Handler())
	alice.connect()
	if v := ask("REGISTER"); v != "" {
		t.Errorf("not asked for: %q", v)
	}
	if v := ask("REGISTER", "TURN-Credential: something"); v != "" {
		t.Errorf("asked for otherwise: %q", v)
	}
	seen := map[string]bool{}
	for i, method := range []string{"REGISTER", "OPTIONS", "REGISTER"} { // the second REGISTER is a refresh
		if i > 0 {
			time.Sleep(1100 * time.Millisecond) // the expiry has whole seconds, and the edge real time
		}
		v := ask(method, request)
		m := credentialForm.FindStringSubmatch(v)
		if m == nil {
			t.Fatalf("%s: %q", method, v)
		}
		at, _ := strconv.ParseInt(m[4], 10, 64)
		if left := time.Until(time.Unix(at, 0)); m[1] != m[4] || left < 19*time.Minute || left > 20*time.Minute {
			t.Errorf("%s: %v", method, left)
		}
		name := m[1] + ":" + m[2]
		if want := string(turntoken.EphemeralPassword(sec, name).Expose()); m[3] != want {
			t.Errorf("%s: password %s, want %s", method, m[3], want)
		}
		seen[m[3]] = true
	}
	if len(seen) != 3 {
		t.Errorf("%d credentials of 3", len(seen))
	}
	core := h.toCore.sent() + h.toEdge.answered()
	for p := range seen {
		if strings.Contains(core, p) || strings.Contains(h.log.String(), p) {
			t.Error("a password at the core, or in the log")
		}
	}
	if strings.Contains(core, "TURN-Credential") {
		t.Error("TURN-Credential at the core")
	}
	if st := h.edge.Stats(); st.TURNCredentials != 3 {
		t.Error(fmt.Sprint(st.TURNCredentials))
	}
}

// TestPushedCredential: the 200 OK comes after the TURN servers have been told, and comes without a
// credential where they cannot be. Meanwhile the edge serves others.
func TestPushedCredential(t *testing.T) {
	type told struct {
		pseudonym string
		ends      time.Time
	}
	tell, may := make(chan told), make(chan error)
	h := newHouse(t, func(c *Config) {
		c.TURN = TURNConfig{URLs: []string{"turn:turn.ims.test:3478?transport=udp"}, Life: 20 * time.Minute, Push: func(_ context.Context, pseudonym string, ends time.Time) (string, secret.Bytes, error) {
			tell <- told{pseudonym, ends}
			return "p1.name", secret.New([]byte("hunter2")), <-may
		}}
	})
	t.Cleanup(func() { h.over(); goleak.VerifyNone(t) })
	h.web.Close()
	h.web = httptest.NewTLSServer(h.edge.Handler())
	alice, bob := h.ua("alice"), h.ua("bob")
	alice.connect()
	bob.connect()
	for _, c := range []struct {
		method string
		err    error
	}{{"REGISTER", nil}, {"OPTIONS", nil}, {"REGISTER", errors.New("no bus")}} {
		if c.method == "REGISTER" {
			alice.register("600", "TURN-Credential: request")
		} else {
			alice.cseq++
			alice.raw(edit(alice.request("OPTIONS", "sip:"+testDomain, "options", "t", "", "sip:"+testDomain, alice.cseq, newBranch()), []string{"TURN-Credential: request"}, ""))
		}
		got := <-tell
		if left := time.Until(got.ends); got.pseudonym != "p-alice" || left < 19*time.Minute || left > 20*time.Minute || got.ends.Nanosecond() != 0 {
			t.Errorf("told: %+v", got)
		}
		bob.register("600") // does not wait for alice's
		if _, m, err := bob.next(); err != nil || m.Status != 200 || m.Get("TURN-Credential") != "" {
			t.Fatalf("%v, %v", m, err)
		}
		if len(alice.in) > 0 {
			t.Error("answered before the TURN servers were told")
		}
		may <- c.err
		want := fmt.Sprintf(`uri="turn:turn.ims.test:3478?transport=udp",username="p1.name",password="hunter2",expires=%d`, got.ends.Unix())
		if c.err != nil {
			want = ""
		}
		if _, m, err := alice.next(); err != nil || m.Status != 200 || m.Get("TURN-Credential") != want {
			t.Errorf("%s: %v, %v", c.method, m, err)
		}
	}
	alice.register("600", "TURN-Credential: request")
	<-tell
	alice.vanish() // before the answer
	may <- nil
	if st := h.edge.Stats(); st.TURNUntold != 1 || strings.Contains(h.log.String(), "hunter2") {
		t.Errorf("%+v", st)
	}
}
