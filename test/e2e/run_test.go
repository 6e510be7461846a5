// Package e2e_test runs the wicgate binary as a newcomer does.
package e2e_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"wicgate/internal/admin"
	"wicgate/internal/listen"
	"wicgate/internal/turnclient"
	"wicgate/test/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }

// TestNewcomer: no configuration file, loopback, all roles; Ctrl-C; again.
func TestNewcomer(t *testing.T) {
	h, data := lab.Lone(t), lab.DataFolder(t)
	first := lab.Start(t, h, data)
	for _, want := range []string{"wicgate is ready after ", ": turn, waf, wwsf, epcscf, imsagw, democore", "https://localhost:8443/", filepath.Join(data, "ca", "ca.pem"), "Ctrl-C"} {
		if !strings.Contains(first.Output(), want) {
			t.Errorf("output lacks %q:\n%s", want, first.Output())
		}
	}
	password := first.Password("alice")
	if len(password) != 14 || password == first.Password("bob") {
		t.Errorf("passwords %q and %q", password, first.Password("bob"))
	}
	if strings.Contains(first.Log(), password) {
		t.Error("the log holds a password")
	}
	for role, counter := range map[string]string{"turn": "Allocations", "imsagw": "Sessions", "epcscf": "Calls", "democore": "Registrations"} {
		if n := first.Count(role, counter); n != 0 {
			t.Errorf("%s: %s is %v at the start", role, counter, n)
		}
	}

	// The same folder, and the same ports, are taken.
	if _, err := lab.TryStart(t, h, data); err == nil || !strings.Contains(err.Error(), "is in use by process") {
		t.Errorf("second wicgate on one data folder: %v", err)
	}
	other := lab.DataFolder(t)
	if _, err := lab.TryStart(t, h, other); err == nil || !strings.Contains(err.Error(), "port 3478") || !strings.Contains(err.Error(), "set turn.listen in wicgate.yaml to another port") {
		t.Errorf("second wicgate on the same ports: %v", err)
	}

	time.Sleep(3 * time.Second) // idle, with what starting left behind collected or not
	memory := first.Memory()
	if err := first.Stop(); err != nil {
		t.Fatalf("Ctrl-C: %v\n%s", err, first.Log())
	}
	if !strings.HasSuffix(first.Output(), "wicgate has drained and ended.\n") {
		t.Errorf("last words: %s", first.Output())
	}

	var warm []time.Duration
	for range 5 {
		p := lab.Start(t, h, data)
		warm = append(warm, p.Ready)
		if p.Password("alice") == password {
			t.Error("the demo password is the same after a restart")
		}
		if err := p.Stop(); err != nil {
			t.Fatalf("Ctrl-C: %v\n%s", err, p.Log())
		}
	}
	slices.Sort(warm)
	st, err := os.Stat(lab.Binary(t))
	if err != nil {
		t.Fatal(err)
	}
	lab.Figure(t, "start to all roles ready, first", "-", "%d ms", first.Ready.Milliseconds())
	lab.Figure(t, "start to all roles ready, warm", "500 ms", "median %d ms of 5", warm[2].Milliseconds())
	lab.Figure(t, "idle memory, all roles", "80 MiB", "%.1f MiB resident", float64(memory)/(1<<20))
	lab.Figure(t, "binary size", "45 MiB", "%.1f MiB stripped", float64(st.Size())/(1<<20))
}

// TestDrainWithIdleConnections: an open connection must not hold the end back.
func TestDrainWithIdleConnections(t *testing.T) {
	data := lab.DataFolder(t)
	cfg := filepath.Join(data, "wicgate.yaml")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	if err := os.WriteFile(cfg, []byte("https: {listen: '"+addr+"'}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := lab.Start(t, nil, data, "--config", cfg, "wwsf")
	c, err := net.Dial("tcp", addr) // says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	begin := time.Now()
	if err := p.Stop(); err != nil {
		t.Errorf("Ctrl-C: %v", err)
	}
	if d := time.Since(begin); d > 8*time.Second {
		t.Errorf("took %v to end", d)
	}
}

// TestTURNOverTLS: the server's TCP port speaks TLS too, with a certificate of the development CA for
// the name in turn.urls, and a silent connection does not hold the end back.
func TestTURNOverTLS(t *testing.T) {
	data := lab.DataFolder(t)
	cfg := filepath.Join(data, "wicgate.yaml")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.MustParseAddrPort(l.Addr().String())
	l.Close()
	text := fmt.Sprintf("turn: {listen: ['127.0.0.1:0'], listen_tcp: ['%v'], urls: ['turns:turn.ims.test:%d?transport=tcp']}\n", addr, addr.Port())
	if err := os.WriteFile(cfg, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p := lab.Start(t, nil, data, "--config", cfg, "turn")
	pool, err := listen.PoolFile(filepath.Join(data, "ca", "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	for _, network := range []string{"tcp", "tls"} {
		c, err := turnclient.Dial(turnclient.Config{Server: addr, Network: network, TLS: &tls.Config{RootCAs: pool, ServerName: "turn.ims.test"}})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }() // the server has ended before
		if got, err := c.Binding(t.Context()); err != nil || got != c.LocalAddr() {
			t.Errorf("%s: %v, %v", network, got, err)
		}
	}
	silent, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	begin := time.Now()
	if err := p.Stop(); err != nil {
		t.Errorf("Ctrl-C: %v", err)
	}
	if d := time.Since(begin); d > 5*time.Second {
		t.Errorf("took %v to end", d)
	}
}

func TestScripts(t *testing.T) {
	bin := lab.Binary(t)
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(e *testscript.Env) error {
			e.Setenv("PATH", filepath.Dir(bin)+string(os.PathListSeparator)+os.Getenv("PATH"))
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"freeport": freeport, "ready": ready, "get": get, "signal": interrupt, "until": until},
	})
}

// freeport NAME sets a variable to a TCP port of loopback that was free a moment ago.
func freeport(ts *testscript.TestScript, _ bool, args []string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	ts.Check(l.Close())
	ts.Setenv(args[0], strconv.Itoa(l.Addr().(*net.TCPAddr).Port))
}

// ready DATA waits until the wicgate of a data folder is ready.
func ready(ts *testscript.TestScript, _ bool, args []string) {
	c := admin.Client{Dir: ts.MkAbs(args[0])}
	var err error
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		var b []byte
		if err = c.Do(context.Background(), "GET", "/readyz", nil, &b); err == nil {
			return
		}
	}
	ts.Fatalf("not ready: %v", err)
}

// get URL STATUS asks, and leaves the answer in stdout.
func get(ts *testscript.TestScript, _ bool, args []string) {
	client := &http.Client{Timeout: 10 * time.Second}
	res, err := client.Get(args[0])
	ts.Check(err)
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	ts.Check(err)
	fmt.Fprintf(ts.Stdout(), "%s", b)
	if strconv.Itoa(res.StatusCode) != args[1] {
		ts.Fatalf("%s: %s, want %s: %s", args[0], res.Status, args[1], b)
	}
}

// until URL TEXT asks until the answer has the text, and leaves the answer in stdout.
func until(ts *testscript.TestScript, _ bool, args []string) {
	client := &http.Client{Timeout: 10 * time.Second}
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		res, err := client.Get(args[0])
		ts.Check(err)
		b, err := io.ReadAll(res.Body)
		res.Body.Close()
		ts.Check(err)
		if strings.Contains(string(b), args[1]) {
			fmt.Fprintf(ts.Stdout(), "%s", b)
			return
		}
	}
	ts.Fatalf("%s does not say %s", args[0], args[1])
}

// interrupt NAME INT does to a command in the background what Ctrl-C does, and HUP what its name says.
func interrupt(ts *testscript.TestScript, _ bool, args []string) {
	s := os.Interrupt
	if args[1] == "HUP" {
		s = syscall.SIGHUP
	}
	for _, c := range ts.BackgroundCmds() {
		ts.Check(c.Process.Signal(s))
	}
}

// TestRolesApart: each role alone starts, says so, and ends.
func TestRolesApart(t *testing.T) {
	h := lab.Lone(t)
	for _, role := range []string{"turn", "waf", "wwsf", "epcscf", "imsagw", "democore"} {
		p := lab.Start(t, h, lab.DataFolder(t), role)
		if got := strings.SplitN(p.Output(), "\n", 2)[0]; !strings.HasSuffix(got, ": "+role) {
			t.Errorf("%s: %s", role, got)
		}
		if err := p.Stop(); err != nil {
			t.Errorf("%s: %v\n%s", role, err, p.Log())
		}
	}
}
