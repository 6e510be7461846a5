package e2e_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"wicgate/internal/admin"
	"wicgate/internal/secret"
	"wicgate/internal/token"
	"wicgate/internal/turnclient"
	"wicgate/test/lab"
)

// wicgate runs a command against a data folder, and returns what it printed.
func wicgate(t *testing.T, data string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	b, err := exec.CommandContext(ctx, lab.Binary(t), append(args, "--data", data)...).CombinedOutput()
	return string(b), err
}

// TestOperator: a TURN session is listed, shown and ended, a log-in revoked, and a drain seen, with the
// commands against a running process.
func TestOperator(t *testing.T) {
	data := lab.DataFolder(t)
	const sec = "an operator's shared secret"
	secrets := filepath.Join(data, "secrets.txt")
	if err := os.WriteFile(secrets, []byte(sec+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.MustParseAddrPort(l.LocalAddr().String())
	_ = l.Close() // for its number alone
	cfg := filepath.Join(data, "wicgate.yaml")
	text := fmt.Sprintf("turn: {listen: ['%v'], listen_tcp: [], urls: ['turn:%v'], secrets: %s}\n", addr, addr, secrets)
	if err := os.WriteFile(cfg, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p := lab.Start(t, nil, data, "--config", cfg, "turn")

	allocate := func(pseudonym string) (*turnclient.Client, error) {
		t.Helper()
		name := token.EphemeralUsername(time.Now().Add(time.Hour), pseudonym)
		c, err := turnclient.Dial(turnclient.Config{Server: addr, Credential: turnclient.LongTerm(name, token.EphemeralPassword(secret.New([]byte(sec)), name))})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() }) // its allocation has been ended
		_, err = c.Allocate(t.Context(), 0)
		return c, err
	}
	alice, err := allocate("alice-1")
	if err != nil {
		t.Fatal(err)
	}
	if err := alice.CreatePermission(t.Context(), netip.MustParseAddrPort("127.0.0.1:40000")); err != nil {
		t.Fatal(err)
	}
	if _, err := allocate("bob-1"); err != nil {
		t.Fatal(err)
	}

	out, err := wicgate(t, data, "turn", "sessions")
	if err != nil || strings.Count(out, "\n") != 3 || !strings.Contains(out, alice.LocalAddr().String()) {
		t.Fatalf("sessions: %v\n%s", err, out)
	}
	if out, err := wicgate(t, data, "turn", "sessions", "--pseudonym", "bob-1"); err != nil || strings.Contains(out, "alice") || !strings.Contains(out, "bob-1") {
		t.Errorf("of bob: %v\n%s", err, out)
	}
	id := regexp.MustCompile(`(?m)^(\d+) +alice-1 `).FindStringSubmatch(out)
	if id == nil {
		t.Fatalf("no ID of alice in\n%s", out)
	}
	out, err = wicgate(t, data, "turn", "show", id[1])
	for _, want := range []string{"pseudonym    alice-1\n", "tenant       turn.ims.test\n", "credential   ephemeral, until ", " over udp\n", "permissions  127.0.0.1\n"} {
		if err != nil || !strings.Contains(out, want) {
			t.Errorf("show: no %q, %v in\n%s", want, err, out)
		}
	}
	if strings.Contains(out, sec) {
		t.Error("a secret is shown")
	}

	// Killed: the credential stays good.
	if out, err := wicgate(t, data, "turn", "kill", id[1]); err != nil || !strings.HasPrefix(out, "Ended TURN session "+id[1]+" of alice-1") {
		t.Errorf("kill: %v\n%s", err, out)
	}
	if _, err := alice.Refresh(t.Context(), 0); turnclient.Code(err) != 437 {
		t.Errorf("refresh of what was killed: %v", err)
	}
	if out, err := wicgate(t, data, "turn", "kill", id[1]); err == nil || !strings.Contains(out, "no TURN session") {
		t.Errorf("killed twice: %v\n%s", err, out)
	}
	if alice, err = allocate("alice-1"); err != nil {
		t.Errorf("after kill: %v", err)
	}

	// Revoked: it does not.
	if out, err := wicgate(t, data, "turn", "revoke", "alice-1"); err != nil || out != "Revoked alice-1: 0 log-ins ended, and 1 TURN session here at once.\n" {
		t.Errorf("revoke: %v\n%s", err, out)
	}
	if _, err := alice.Refresh(t.Context(), 0); err == nil {
		t.Error("a revoked session is refreshed")
	}
	lab.Eventually(t, time.Second, "the revoked credential is refused", func() bool {
		_, err := allocate("alice-1")
		return turnclient.Code(err) == 401
	})
	if n := p.Count("turn", "Ended", "revoked"); n < 1 {
		t.Errorf("%v allocations ended as revoked", n)
	}

	// A drain is seen at the door, which ends last.
	if err := syscall.Kill(p.PID(), syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	lab.Eventually(t, 2*time.Second, "readiness says that it drains", func() bool {
		var b []byte
		err := admin.Client{Dir: data}.Do(t.Context(), "GET", "/readyz", nil, &b)
		return err != nil && strings.Contains(err.Error(), "503")
	})
	lab.Eventually(t, 20*time.Second, "it ends", p.Ended) // a second signal would end it at once
	if err := p.Stop(); err != nil {
		t.Errorf("end: %v", err)
	}
}
