package e2e_test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"wicgate/test/lab"
)

// probed runs wicgate probe on h and returns what it printed, and its exit code.
func probed(t *testing.T, h *lab.Host, env []string, args ...string) (out string, code int) {
	t.Helper()
	cmd := h.Command(lab.Binary(t), append([]string{"probe"}, args...)...)
	cmd.Env = append(os.Environ(), env...)
	var b bytes.Buffer
	cmd.Stdout, cmd.Stderr = &b, &b
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(90*time.Second, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	_ = cmd.Wait() // the code says it
	return b.String(), cmd.ProcessState.ExitCode()
}

// TestProbe: the whole way as user and as guest, with each role that may be missing named in words.
func TestProbe(t *testing.T) {
	h := lab.Lone(t)
	const portal = "https://localhost:8443"
	want := func(t *testing.T, out string, code, wantCode int, texts ...string) {
		t.Helper()
		if code != wantCode {
			t.Errorf("exit %d, want %d", code, wantCode)
		}
		for _, w := range texts {
			if !strings.Contains(out, w) {
				t.Errorf("lacks %q", w)
			}
		}
		if t.Failed() {
			t.Logf("output:\n%s", out)
		}
	}
	all := []string{"turn", "waf", "wwsf", "epcscf", "imsagw", "democore"}

	t.Run("everything runs", func(t *testing.T) {
		data := lab.DataFolder(t)
		p := lab.Start(t, h, data)
		ca := filepath.Join(data, "ca", "ca.pem")
		password := []string{"WICGATE_PASSWORD=" + p.Password("alice")}

		out, code := probed(t, h, password, portal, "--user", "alice", "--ca", ca, "--json")
		want(t, out, code, 0)
		var r struct {
			Steps []struct {
				Name, State, Detail string
				MS                  float64 `json:"ms"`
			}
		}
		if err := json.Unmarshal([]byte(out), &r); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		var names []string
		for _, s := range r.Steps {
			names = append(names, s.Name)
			if s.State != "ok" || s.MS <= 0 {
				t.Errorf("%+v", s)
			}
			if strings.HasPrefix(s.Name, "echo") && !strings.HasPrefix(s.Detail, "20 of 20 back") {
				t.Errorf("%+v", s)
			}
		}
		for _, n := range []string{"portal", "log-in", "TURN token", "allocate udp 127.0.0.1:3478", "allocate tcp 127.0.0.1:3478", "allocate tls localhost:3478", "register", "call",
			"echo udp 127.0.0.1:3478", "echo tcp 127.0.0.1:3478", "echo tls localhost:3478", "hang up", "de-register", "log out"} {
			if !slices.Contains(names, n) {
				t.Errorf("no step %q in %q", n, names)
			}
		}
		for what, secret := range map[string]string{"password": p.Password("alice"), "token": "eyJ"} {
			if strings.Contains(out, secret) {
				t.Errorf("a %s is printed", what)
			}
		}
		// Nothing is left behind.
		lab.Eventually(t, 5*time.Second, "nothing left", func() bool {
			return p.Count("turn", "Allocations") == 0 && p.Count("imsagw", "Sessions") == 0 && p.Count("epcscf", "Flows") == 0 && p.Count("democore", "Registrations") == 0
		})

		out, code = probed(t, h, nil, portal, "--guest", "--ca", ca)
		want(t, out, code, 0, "sip:guest-", "scenario 3", "ok       echo tls")
		out, code = probed(t, h, []string{"WICGATE_PASSWORD=wrong"}, portal, "--user", "alice", "--ca", ca)
		want(t, out, code, 1, "FAILED   log-in", `user name or password of "alice" is wrong`, "check: Try the same in the browser")
		out, code = probed(t, h, nil, portal, "--guest")
		want(t, out, code, 1, "FAILED   portal", "a CA that is not trusted here", "--ca FILE")
		out, code = probed(t, h, nil, "https://localhost:9", "--guest", "--ca", ca)
		want(t, out, code, 1, "connection refused", "See that wicgate runs there")
		out, code = probed(t, h, nil, "--core")
		want(t, out, code, 0, "ok       trusted registration", "403 Unknown Visited Network", "421 Extension Required", "must be provisioned with", "webrtc.ims.test")
		for _, wrong := range [][]string{{}, {portal}, {"--core", "--impi", "alice@ims.test"}} {
			out, code = probed(t, h, nil, wrong...)
			want(t, out, code, 1, "hint: ")
		}
		out, code = probed(t, h, nil, portal, "--guest", "--user", "alice")
		want(t, out, code, 2)
	})

	for _, c := range []struct {
		missing string
		texts   []string
	}{
		{"turn", []string{"FAILED   allocate udp 127.0.0.1:3478", "or turn does not listen there (turn.listen)", "FAILED   allocate tcp", "See that the role turn runs", "ok       register", "skipped  call"}},
		{"waf", []string{"FAILED   portal", "does not reach its authorization server (waf)", "See that the role waf runs"}},
		{"epcscf", []string{"FAILED   register", "no SIP edge", "See that the role epcscf runs", "ok       allocate udp"}},
		{"imsagw", []string{"FAILED   call", "See that the role imsagw runs", "ok       register", "ok       de-register"}},
		{"democore", []string{"FAILED   register", "The core is not reached", "epcscf.core"}},
		{"wwsf", []string{"FAILED   portal", "which is no portal of wicgate"}},
	} {
		t.Run("without "+c.missing, func(t *testing.T) {
			data := lab.DataFolder(t)
			lab.Start(t, h, data, slices.DeleteFunc(slices.Clone(all), func(r string) bool { return r == c.missing })...)
			out, code := probed(t, h, nil, portal, "--guest", "--ca", filepath.Join(data, "ca", "ca.pem"))
			want(t, out, code, 1, c.texts...)
		})
	}

	t.Run("token of another TURN server", func(t *testing.T) {
		data, other := lab.DataFolder(t), lab.DataFolder(t)
		lab.Start(t, h, data, "waf", "wwsf", "epcscf", "imsagw", "democore")
		lab.Start(t, h, other, "turn") // of the same name, with keys of its own
		out, code := probed(t, h, nil, portal, "--guest", "--ca", filepath.Join(data, "ca", "ca.pem"))
		want(t, out, code, 1, "FAILED   allocate udp", "refused with 401", "turn.name, turn.keys and turn.urls belong together")
	})
}
