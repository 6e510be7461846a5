// Package interop runs wicgate against other people's programs: Kamailio as the S-CSCF, with a small
// HSS behind it, and coturn with its tools.
package interop

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"wicgate/test/lab"
)

// kamailioBinary of Debian's package, which is in no user's PATH.
const kamailioBinary = "/usr/sbin/kamailio"

// SCSCF is a Kamailio that runs as S-CSCF.
type SCSCF struct {
	Port int
	HSS  *HSS

	mu  sync.Mutex // guards log
	log bytes.Buffer
}

// Log is what it has written so far.
func (s *SCSCF) Log() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.String()
}

// Write implements io.Writer, for the log.
func (s *SCSCF) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.Write(b)
}

// StartSCSCF starts Kamailio and its HSS on loopback, and waits until they have found each other. The
// test's end ends them.
func StartSCSCF(t testing.TB, subscribers map[string][]string) *SCSCF {
	t.Helper()
	modules, err := filepath.Glob("/usr/lib/*/kamailio/modules/ims_registrar_scscf.so")
	if err != nil || len(modules) == 0 {
		t.Fatalf("Kamailio with its IMS modules is missing: run test/setup.sh (%v)", err)
	}
	hss, err := NewHSS(subscribers)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(hss.Close)
	s := &SCSCF{Port: FreePort(t), HSS: hss}
	dir := lab.DataFolder(t)
	fill := strings.NewReplacer("SIPPORT", strconv.Itoa(s.Port), "HSSPORT", strconv.Itoa(hss.Port()), "CXPORT", strconv.Itoa(FreePort(t)), "DIR", dir, "MODULES", filepath.Dir(modules[0])+"/")
	for _, name := range []string{"scscf.cfg", "scscf.xml"} {
		_, file, _, _ := runtime.Caller(0)
		b, err := os.ReadFile(filepath.Join(filepath.Dir(file), "testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(fill.Replace(string(b))), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(kamailioBinary, "-DD", "-E", "-m", "64", "-M", "8", "-f", "scscf.cfg", "-Y", dir, "-P", filepath.Join(dir, "pid"))
	cmd.Dir = dir
	cmd.Stdout, cmd.Stderr = io.Discard, s
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait() // its log says how it ended
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended, which is looked at below
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // its whole group
			<-ended
			t.Error("Kamailio did not end within 10 s")
		}
		if t.Failed() {
			t.Logf("Kamailio:\n%s", s.Log())
		}
	})
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		select {
		case <-ended:
			t.Fatalf("Kamailio has ended: %v\n%s", cmd.ProcessState, s.Log())
		default:
		}
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", s.Port))
		if err == nil {
			_ = c.Close() // for its answer alone
			if hss.Connected() {
				return s
			}
			err = errors.New("no watchdog of its Diameter peer")
		}
		if time.Now().After(end) {
			t.Fatalf("Kamailio is not ready after 30 s: %v\n%s", err, s.Log())
		}
	}
}

// FreePort is a TCP port of loopback that the kernel chose a moment ago.
func FreePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }() // for its number alone
	return l.Addr().(*net.TCPAddr).Port
}
