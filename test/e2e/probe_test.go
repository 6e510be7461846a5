package e2e_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wicgate/internal/listen"
	"wicgate/test/lab"
)

// probed is what "wicgate probe --json" found.
type probed struct {
	t     *testing.T
	Steps []struct {
		Name, State, Detail, Check string
		MS                         float64
	}
	exit           int
	stdout, stderr string
}

const portal = "https://localhost:8443"

// probe runs it on a host.
func probe(t *testing.T, h *lab.Host, env []string, args ...string) *probed {
	t.Helper()
	cmd := h.Command(lab.Binary(t), append([]string{"probe", "--json"}, args...)...)
	cmd.Env = append(os.Environ(), env...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	p := &probed{t: t, exit: exitCode(t, cmd.Run())}
	p.stdout, p.stderr = out.String(), errs.String()
	if err := json.Unmarshal(out.Bytes(), p); err != nil && p.exit != 2 {
		t.Fatalf("%v in %s%s", err, p.stdout, p.stderr)
	}
	return p
}

func exitCode(t *testing.T, err error) int {
	t.Helper()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case !errors.As(err, &exit):
		t.Fatal(err)
	}
	return exit.ExitCode()
}

// fails expects that the step of that name fails, with these words in what was found and in what to check.
func (p *probed) fails(name, detail, check string) {
	p.t.Helper()
	if p.exit != 1 {
		p.t.Errorf("exit %d", p.exit)
	}
	for _, s := range p.Steps {
		if strings.HasPrefix(s.Name, name) {
			if s.State != "failed" || !strings.Contains(s.Detail, detail) || !strings.Contains(s.Check, check) {
				p.t.Errorf("%s: %s: %s\n check: %s\nwant %q and %q", s.Name, s.State, s.Detail, s.Check, detail, check)
			}
			return
		}
	}
	p.t.Errorf("no step %q in %s%s", name, p.stdout, p.stderr)
}

// good expects that all went well, in so many steps.
func (p *probed) good(steps int) {
	p.t.Helper()
	for _, s := range p.Steps {
		if s.State != "ok" {
			p.t.Errorf("%s: %s: %s, check: %s", s.Name, s.State, s.Detail, s.Check)
		}
	}
	if p.exit != 0 || len(p.Steps) != steps {
		p.t.Errorf("exit %d, %d steps\n%s%s", p.exit, len(p.Steps), p.stdout, p.stderr)
	}
}

func (p *probed) step(name string) (state string) {
	for _, s := range p.Steps {
		if s.Name == name {
			return s.State
		}
	}
	return "none"
}

// onTerminal runs a command on a terminal of its own, types once it has asked, and returns what the
// screen was sent.
func onTerminal(t *testing.T, cmd *exec.Cmd, asked, typed string) (screen string, err error) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if cmd.Env == nil {
		cmd.Env = append(os.Environ(), "NO_COLOR=", "TERM=xterm")
	}
	err = cmd.Start()
	_ = slave.Close() // the child has its own
	if err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(60*time.Second, func() { _ = cmd.Process.Kill() }) // else the read below may wait for ever
	defer timer.Stop()
	var b strings.Builder
	buf := make([]byte, 4096)
	for told := false; ; {
		n, err := master.Read(buf)
		b.Write(buf[:n])
		if err != nil { // EIO: the last process has closed it
			return b.String(), cmd.Wait()
		}
		if !told && strings.Contains(b.String(), asked) {
			told = true
			if _, err := master.WriteString(typed); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestProbe: the ways that go well, and what a person does wrong.
func TestProbe(t *testing.T) {
	h, data := lab.Lone(t), lab.DataFolder(t)
	w := lab.Start(t, h, data)
	ca := filepath.Join(data, "ca", "ca.pem")
	password := w.Password("alice")
	file := filepath.Join(data, "password")
	if err := os.WriteFile(file, []byte(password+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	empty := func(t *testing.T) {
		t.Helper()
		for role, counter := range map[string]string{"turn": "Allocations", "imsagw": "Sessions", "epcscf": "Calls", "democore": "Registrations"} {
			lab.Eventually(t, 3*time.Second, role+" has no "+counter+" left", func() bool { return w.Count(role, counter) == 0 })
		}
	}

	t.Run("user", func(t *testing.T) {
		p := probe(t, h, []string{"WICGATE_PASSWORD=" + password}, portal, "--user", "alice", "--ca", ca)
		p.good(15)
		for _, want := range []string{"sip:alice@ims.test", "private alice@ims.test", "scenario 2", "for epcscf.ims.test", "server turn.ims.test", "20 of 20 back from 127.0.0.1:40", "TLS 1.3"} {
			if !strings.Contains(p.stdout, want) {
				t.Errorf("no %q in\n%s", want, p.stdout)
			}
		}
		if strings.Contains(p.stdout, password) || strings.Contains(p.stdout, "eyJ") {
			t.Error("a secret is shown")
		}
		empty(t)
	})
	t.Run("guest, plain lines", func(t *testing.T) {
		cmd := h.Command(lab.Binary(t), "probe", portal, "--guest", "--ca", ca)
		out, err := cmd.CombinedOutput()
		if err != nil || bytes.ContainsAny(out, "\r\x1b") || bytes.Count(out, []byte("  ok ")) != 15 || !bytes.Contains(out, []byte("scenario 3")) {
			t.Errorf("%v\n%q", err, out)
		}
		empty(t)
	})
	t.Run("credential of the edge", func(t *testing.T) {
		p := probe(t, h, nil, portal, "--user", "alice", "--password-file", file, "--ca", ca, "--turn-credential", "edge", "--packets", "5")
		p.good(15)
		if p.step("TURN credential") != "ok" || p.step("TURN token") != "none" {
			t.Error(p.stdout)
		}
		empty(t)
	})
	t.Run("callee who is not there", func(t *testing.T) {
		p := probe(t, h, nil, portal, "--user", "alice", "--password-file", file, "--ca", ca, "--callee", "sip:bob@ims.test")
		p.fails("call", "INVITE of sip:bob@ims.test is answered with 480", "--callee must be registered")
		if p.step("de-register") != "ok" || p.step("log out") != "ok" || p.step("hang up") != "skipped" {
			t.Error(p.stdout)
		}
		empty(t)
	})
	t.Run("wrong password", func(t *testing.T) {
		p := probe(t, h, []string{"WICGATE_PASSWORD=xxxx"}, portal, "--user", "alice", "--ca", ca)
		p.fails("log-in", `user name or password of "alice" is wrong`, "new at each start")
		if p.step("register") != "skipped" || p.step("allocate udp") != "none" {
			t.Error(p.stdout)
		}
	})
	t.Run("no CA", func(t *testing.T) {
		probe(t, h, nil, portal, "--guest").fails("portal", "signed by a CA that is not trusted here: ", "--ca FILE")
	})
	t.Run("another's CA", func(t *testing.T) {
		dir := t.TempDir()
		if _, err := listen.DevelopmentCA(dir, []string{"localhost"}); err != nil {
			t.Fatal(err)
		}
		pem, err := filepath.Glob(filepath.Join(dir, "*.pem"))
		if err != nil || !slices.Contains(pem, filepath.Join(dir, "ca.pem")) {
			t.Fatal(pem, err)
		}
		probe(t, h, nil, portal, "--guest", "--ca", filepath.Join(dir, "ca.pem")).fails("portal", "signed by a CA that is not trusted here", "--ca FILE")
	})
	t.Run("another address of the portal", func(t *testing.T) {
		p := probe(t, h, []string{"WICGATE_PASSWORD=" + password}, "https://127.0.0.1:8443", "--user", "alice", "--ca", ca)
		p.fails("log-in", "400 Bad Request without a form", "must be a redirect URI")
	})
	t.Run("nobody there", func(t *testing.T) {
		probe(t, h, nil, "https://localhost:8444", "--guest").fails("portal", "nobody listens at localhost:8444", "https.listen")
		probe(t, h, nil, "https://localhost:3478", "--guest", "--ca", ca).fails("portal", "", "")
		probe(t, h, nil, "https://nobody.invalid", "--guest").fails("portal", "nobody.invalid", "DNS")
	})
	t.Run("misuse", func(t *testing.T) {
		for want, args := range map[string][]string{
			"which portal?": {"--guest"}, "as whom?": {portal}, "can't be used together": {portal, "--guest", "--user", "alice"},
			"no password and no terminal": {portal, "--user", "alice"}, "unknown flag --password,": {portal, "--user", "alice", "--password", "x"},
			"must be one of": {portal, "--guest", "--turn-credential", "nobody"},
		} {
			cmd := h.Command(lab.Binary(t), append([]string{"probe"}, args...)...)
			cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // no terminal to ask at
			out, err := cmd.CombinedOutput()
			if exitCode(t, err) != 2 || !strings.Contains(string(out), want) {
				t.Errorf("%v: %v, want %q in %s", args, err, want, out)
			}
		}
	})
	t.Run("terminal", func(t *testing.T) {
		cmd := h.Command(lab.Binary(t), "probe", portal, "--user", "alice", "--ca", ca, "--packets", "5")
		screen, err := onTerminal(t, cmd, "Password of alice: ", password+"\n")
		if exitCode(t, err) != 0 || strings.Contains(screen, password) {
			t.Errorf("%v, or the password is shown:\n%q", err, screen)
		}
		for _, want := range []string{"  ..       portal\r\x1b[K  \x1b[32mok      \x1b[0m portal", "  ..       echo udp", "log out"} {
			if !strings.Contains(screen, want) {
				t.Errorf("no %q in\n%q", want, screen)
			}
		}
		cmd = h.Command(lab.Binary(t), "probe", portal, "--user", "alice", "--ca", ca, "--packets", "5")
		cmd.Env = append(os.Environ(), "NO_COLOR=1")
		if screen, err = onTerminal(t, cmd, "Password of alice: ", password+"\n"); exitCode(t, err) != 0 || !strings.Contains(screen, "  ..       portal\r\x1b[K  ok       portal") {
			t.Errorf("%v\n%q", err, screen)
		}
		cmd = h.Command(lab.Binary(t), "probe", portal, "--user", "alice", "--ca", ca)
		if screen, err = onTerminal(t, cmd, "Password of alice: ", "abc\x03"); exitCode(t, err) != 1 || !strings.Contains(screen, "interrupted: no password was given") {
			t.Errorf("%v\n%q", err, screen)
		}
		empty(t)
	})
	t.Run("Ctrl-C", func(t *testing.T) {
		cmd := h.Command(lab.Binary(t), "probe", portal, "--guest", "--ca", ca, "--packets", "500")
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lab.Eventually(t, 10*time.Second, "a call", func() bool { return w.Count("epcscf", "Calls") > 0 })
		if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		if code := exitCode(t, cmd.Wait()); code != 1 || time.Since(begun) > 5*time.Second {
			t.Errorf("exit %d after %v", code, time.Since(begun))
		}
		for _, want := range []string{"interrupted", "ok       hang up", "ok       de-register", "ok       log out"} {
			if !strings.Contains(out.String(), want) {
				t.Errorf("no %q in\n%s", want, &out)
			}
		}
		empty(t)
	})
	t.Run("core", func(t *testing.T) {
		p := probe(t, h, nil, "--core")
		p.good(15)
		if n := strings.Count(p.stdout, `"clause": `); n != 14+11 { // of cases and of needs
			t.Errorf("%d needs in\n%s", n, p.stdout)
		}
		empty(t)
	})
}

// TestProbeStopped: each role that does not run is named, and what does not need it is tried.
func TestProbeStopped(t *testing.T) {
	all := []string{"turn", "waf", "wwsf", "epcscf", "imsagw", "democore"}
	for _, k := range []struct{ role, step, detail, check string }{
		{"turn", "allocate udp", "no answer", "turn does not listen"},
		{"waf", "portal", "does not reach its authorization server (waf)", "See that the role waf runs"},
		{"wwsf", "portal", "no portal of wicgate", "(wwsf)"},
		{"epcscf", "register", "no SIP edge at wss://localhost:8443/sip", "role epcscf"},
		{"imsagw", "call", "is answered with 5", "role imsagw"},
		{"democore", "register", "REGISTER is answered with 50", "democore"},
	} {
		t.Run(k.role, func(t *testing.T) {
			h, data := lab.Lone(t), lab.DataFolder(t)
			lab.Start(t, h, data, slices.DeleteFunc(slices.Clone(all), func(r string) bool { return r == k.role })...)
			p := probe(t, h, nil, portal, "--guest", "--ca", filepath.Join(data, "ca", "ca.pem"))
			p.fails(k.step, k.detail, k.check)
			switch k.role {
			case "turn":
				p.fails("allocate tcp", "connection refused", "role turn")
				if p.step("register") != "ok" || p.step("call") != "skipped" || p.step("log out") != "ok" {
					t.Error(p.stdout)
				}
			case "epcscf", "democore":
				if p.step("allocate udp 127.0.0.1:3478") != "ok" || p.step("log out") != "ok" {
					t.Error(p.stdout)
				}
			}
			if k.role == "democore" {
				probe(t, h, nil, "--core").fails("core", "connection refused", "democore runs")
			}
		})
	}
}

// TestProbeForeignTURN: the WAF's tokens go to a TURN server of another name, and to one of the same name with
// other keys.
func TestProbeForeignTURN(t *testing.T) {
	for name, want := range map[string][2]string{
		"turn.example.org": {`token of another TURN server: the one at 127.0.0.1:3478 calls itself "turn.example.org"`, "turn.name"},
		"turn.ims.test":    {`the TURN server "turn.ims.test" refuses the token that the WAF sealed for it`, "share one file turn.keys"},
	} {
		t.Run(name, func(t *testing.T) {
			h, data, other := lab.Lone(t), lab.DataFolder(t), lab.DataFolder(t)
			lab.Start(t, h, data, "waf", "wwsf", "epcscf", "imsagw", "democore")
			file := filepath.Join(other, "wicgate.yaml")
			if err := os.WriteFile(file, []byte("turn: {name: "+name+"}\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			lab.Start(t, h, other, "--config", file, "turn")
			p := probe(t, h, nil, portal, "--guest", "--ca", filepath.Join(data, "ca", "ca.pem"))
			p.fails("allocate udp", want[0], want[1])
			p.fails("allocate tls", "signed by unknown authority", "--ca")
			q := probe(t, h, nil, portal, "--guest", "--ca", filepath.Join(data, "ca", "ca.pem"), "--turn-credential", "edge")
			q.fails("allocate udp", "401", "turn.secrets")
		})
	}
}
