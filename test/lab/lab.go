// Package lab makes the hosts that end-to-end tests run on: network namespaces on this machine,
// joined by veth pairs, with no way out. It also builds and starts the wicgate binary in them.
//
//	wic 10.10.1.2 ────────── 10.10.1.1 edge, 10.10.1.3 for a TURN of its own
//	(browser)                10.10.2.1 relayed addresses   } on the edge's loopback: from wic
//	                         10.10.2.2 gateway, access side } 10.10.2.0/24 is unreachable
//
// As root it uses the machine's own namespaces; as an ordinary user, Main starts the test again in
// a user namespace, where that user may make them.
package lab

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Addresses of the picture above.
const (
	WIC     = "10.10.1.2"
	Edge    = "10.10.1.1"
	TURN    = "10.10.1.3" // the edge's second address, for a TURN server that does not share the portal's port 443
	Relay   = "10.10.2.1"
	Gateway = "10.10.2.2"

	// Names that resolve on wic. Firefox does not try a turns: URL without one.
	EdgeName = "edge.ims.test"
	TURNName = "turn.ims.test"
)

// inside holds the binary for the tests in the user namespace, which cannot fetch modules to build one.
const inside = "WICGATE_LAB_INSIDE"

// Main runs the tests of a package that uses namespaces. Call it from TestMain.
func Main(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if os.Getenv(inside) != "" {
		return m.Run()
	}
	bin, err := build()
	if err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		return 1
	}
	defer os.RemoveAll(filepath.Dir(bin)) //nolint:errcheck // in the temporary folder
	if os.Geteuid() == 0 {
		return m.Run()
	}
	// ip-netns keeps its namespaces in /run/netns, so the user namespace gets a /run of its own.
	cmd := exec.Command("unshare", append([]string{"--user", "--map-root-user", "--net", "--mount", "--",
		"sh", "-c", `mount -t tmpfs tmpfs /run && ip link set lo up && exec "$0" "$@"`}, os.Args...)...)
	cmd.Env = append(os.Environ(), inside+"="+bin)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		return exit.ExitCode()
	case err != nil:
		fmt.Fprintf(os.Stderr, "lab: %v\nlab: these tests make network namespaces: run them as root, or allow user namespaces (sysctl user.max_user_namespaces)\n", err)
		return 1
	}
	return 0
}

// Host is a network namespace.
type Host struct {
	t     testing.TB
	Name  string
	hosts string // file in place of /etc/hosts, "" for that
}

// Lone makes a host with loopback and nothing else: every port is free on it.
func Lone(t testing.TB) *Host {
	t.Helper()
	h := &Host{t: t, Name: fmt.Sprintf("lone%d", os.Getpid())}
	do(t, "ip", "netns", "add", h.Name)
	t.Cleanup(func() { do(t, "ip", "netns", "del", h.Name) })
	do(t, "ip", "-n", h.Name, "link", "set", "lo", "up")
	return h
}

// Pair makes the two hosts of the picture; the test's end removes them.
func Pair(t testing.TB) (wic, edge *Host) {
	t.Helper()
	id := fmt.Sprintf("%d", os.Getpid())
	wic, edge = &Host{t: t, Name: "wic" + id}, &Host{t: t, Name: "edge" + id}
	for _, h := range []*Host{wic, edge} {
		do(t, "ip", "netns", "add", h.Name)
		t.Cleanup(func() { do(t, "ip", "netns", "del", h.Name) })
	}
	do(t, "ip", "-n", wic.Name, "link", "add", "w0", "type", "veth", "peer", "name", "e0", "netns", edge.Name)
	for _, args := range []string{
		wic.Name + " addr add " + WIC + "/24 dev w0", wic.Name + " link set w0 up", wic.Name + " link set lo up",
		// Firefox finds its address by a default route, and takes no other.
		wic.Name + " route add default via " + Edge, wic.Name + " route add unreachable 10.10.2.0/24",
		edge.Name + " addr add " + Edge + "/24 dev e0", edge.Name + " addr add " + TURN + "/24 dev e0", edge.Name + " link set e0 up", edge.Name + " link set lo up",
		edge.Name + " addr add " + Relay + "/32 dev lo", edge.Name + " addr add " + Gateway + "/32 dev lo",
	} {
		do(t, "ip", append([]string{"-n"}, strings.Fields(args)...)...)
	}
	wic.hosts = filepath.Join(t.TempDir(), "hosts")
	name, err := os.Hostname() // Firefox asks for it, and waits 20 s where nobody knows
	if err != nil {
		t.Fatal(err)
	}
	// WebRTC asks for names with the root's dot.
	text := fmt.Appendf(nil, "127.0.0.1 localhost %[1]s\n%[2]s %[3]s %[3]s.\n%[4]s %[5]s %[5]s.\n", name, Edge, EdgeName, TURN, TURNName)
	if err := os.WriteFile(wic.hosts, text, 0o644); err != nil {
		t.Fatal(err)
	}
	return wic, edge
}

func do(t testing.TB, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
}

// Root is the folder of go.mod.
func Root() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(file), "..", "..")
}

var build = sync.OnceValues(func() (string, error) {
	if bin := os.Getenv(inside); bin != "" {
		return bin, nil
	}
	dir, err := os.MkdirTemp("", "wicgate-lab-")
	if err != nil {
		return "", err
	}
	bin := filepath.Join(dir, "wicgate")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", bin, "./cmd/wicgate")
	cmd.Dir = Root()
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build wicgate: %w: %s", err, out)
	}
	return bin, nil
})

// Binary is wicgate as it is released: built once for all tests of a run.
func Binary(t testing.TB) string {
	t.Helper()
	bin, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return bin
}

// Process is a wicgate that runs.
type Process struct {
	t     testing.TB
	cmd   *exec.Cmd
	Data  string
	Ready time.Duration // from the start of the process to the line that says so

	mu     sync.Mutex // guards the following fields
	stdout bytes.Buffer
	stderr bytes.Buffer

	done chan struct{} // closed when the process has ended
	err  error         // of Wait, once done
}

// Start starts wicgate on a host (nil: this one) and waits until it is ready. The test's end ends
// it as Ctrl-C does, and expects exit 0.
func Start(t testing.TB, h *Host, data string, args ...string) *Process {
	t.Helper()
	p, err := TryStart(t, h, data, args...)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TryStart is Start that returns why wicgate did not become ready.
func TryStart(t testing.TB, h *Host, data string, args ...string) (*Process, error) {
	t.Helper()
	args = append([]string{"run", "--data", data}, args...)
	cmd := exec.Command(Binary(t), args...)
	if h != nil {
		cmd = h.Command(Binary(t), args...)
	}
	p := &Process{t: t, cmd: cmd, Data: data, done: make(chan struct{})}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	cmd.Stderr = writer(func(b []byte) { p.mu.Lock(); p.stderr.Write(b); p.mu.Unlock() })
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	ready := make(chan struct{})
	read := make(chan struct{})
	go func() {
		defer close(read)
		r := bufio.NewReader(out)
		var once sync.Once
		for first := true; ; first = false {
			line, err := r.ReadString('\n')
			p.mu.Lock()
			p.stdout.WriteString(line)
			p.mu.Unlock()
			if err != nil {
				return
			}
			if first {
				p.Ready = time.Since(begin)
			}
			if strings.Contains(line, "Ctrl-C") { // the last line of what it says when ready
				once.Do(func() { close(ready) }) // a process that takes over has the same output
			}
		}
	}()
	go func() {
		<-read
		p.err = cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		if err := p.Stop(); err != nil {
			t.Errorf("wicgate %s: %v\n%s", strings.Join(args, " "), err, p.Log())
		}
		if t.Failed() {
			t.Logf("log of wicgate %s:\n%s", strings.Join(args, " "), tail(p.Log(), 60))
		}
	})
	select {
	case <-ready:
		return p, nil
	case <-p.done:
		return nil, fmt.Errorf("wicgate %s: %w: %s", strings.Join(args, " "), p.err, p.Log())
	case <-time.After(20 * time.Second):
		return nil, fmt.Errorf("wicgate %s: not ready after 20 s: %s", strings.Join(args, " "), p.Log())
	}
}

type writer func([]byte)

var _ io.Writer = writer(nil)

func (w writer) Write(b []byte) (int, error) { w(b); return len(b), nil }

func tail(s string, lines int) string {
	all := strings.Split(s, "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// PID of the process.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Output is what it printed so far.
func (p *Process) Output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stdout.String()
}

// Log is what it logged so far.
func (p *Process) Log() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stderr.String()
}

// Ended says whether the process has ended.
func (p *Process) Ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// Stop does what Ctrl-C does, and waits. A second call does nothing.
func (p *Process) Stop() error {
	if !p.Ended() {
		if err := p.cmd.Process.Signal(syscall.SIGINT); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return err
		}
	}
	select {
	case <-p.done:
	case <-time.After(30 * time.Second):
		p.cmd.Process.Kill() //nolint:errcheck // it has hung, which is what gets reported
		<-p.done
		return errors.New("did not end within 30 s of an interrupt")
	}
	var exit *exec.ExitError
	if errors.As(p.err, &exit) && exit.Exited() && strings.Contains(p.Log(), "wicgate: error:") && p.Output() == "" {
		return nil // it refused to start, and said why: TryStart's caller has that
	}
	return p.err
}

// Kill ends it without a word, as a kernel does that is out of memory.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill() // it may have ended
	<-p.done
	p.err = nil
}

// Password of a demo user, as printed for the person who started wicgate.
func (p *Process) Password(user string) string {
	for line := range strings.Lines(p.Output()) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == user && f[1] == "password" {
			return f[2]
		}
	}
	p.t.Fatalf("no password of %s in:\n%s", user, p.Output())
	return ""
}

// Stats reads the counters of the roles into a nested map of JSON values.
func (p *Process) Stats() map[string]any {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, Binary(p.t), "stats", "--data", p.Data).Output()
	if err != nil {
		p.t.Fatalf("wicgate stats: %v", err)
	}
	var v map[string]any
	if err := json.Unmarshal(out, &v); err != nil {
		p.t.Fatalf("wicgate stats: %v in %s", err, out)
	}
	return v
}

// DataFolder is a folder with a short name: a Unix socket's path may not be long.
func DataFolder(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "wg")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// Count is one number of Stats, by role and path, such as Count("turn", "Allocations").
func (p *Process) Count(path ...string) float64 {
	p.t.Helper()
	var v any = p.Stats()
	for _, key := range path {
		m, ok := v.(map[string]any)
		if !ok {
			p.t.Fatalf("stats: no %s", strings.Join(path, "."))
		}
		v, ok = m[key]
		if !ok {
			p.t.Fatalf("stats: no %s among %v", strings.Join(path, "."), m)
		}
	}
	n, ok := v.(float64)
	if !ok {
		p.t.Fatalf("stats: %s is %v", strings.Join(path, "."), v)
	}
	return n
}

// Memory of the process: resident set, in bytes.
func (p *Process) Memory() int64 {
	p.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID()))
	if err != nil {
		p.t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		var kb int64
		if n, _ := fmt.Sscanf(line, "VmRSS: %d kB", &kb); n == 1 {
			return kb << 10
		}
	}
	p.t.Fatal("no VmRSS")
	return 0
}

// Eventually waits until ok, for at most limit.
func Eventually(t testing.TB, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not after %v: %s", limit, what)
		}
	}
}
