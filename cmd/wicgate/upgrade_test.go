package main

import (
	"bytes"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"wicgate/internal/config"
)

func TestTakeoverArgs(t *testing.T) {
	for _, q := range []struct{ args, want string }{
		{"run turn", "run turn --takeover --within=1h0m0s"},
		{"run turn --takeover --within=12h0m0s", "run turn --takeover --within=1h0m0s"},
		{"run --within 12h --takeover turn --data d", "run turn --data d --takeover --within=1h0m0s"},
	} {
		args := strings.Fields(q.args)
		before := slices.Clone(args)
		if got := strings.Join(takeoverArgs(args, time.Hour), " "); got != q.want || !slices.Equal(args, before) {
			t.Errorf("%q: %q", q.args, got)
		}
	}
}

// TestNotify: a service manager is told who is the main process.
func TestNotify(t *testing.T) {
	name := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // of the test's own folder
	t.Setenv("NOTIFY_SOCKET", name)
	if err := notify(); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 100)
	if n, err := l.Read(b); err != nil || string(b[:n]) != fmt.Sprintf("MAINPID=%d\nREADY=1", os.Getpid()) {
		t.Errorf("%q, %v", b[:n], err)
	}
	t.Setenv("NOTIFY_SOCKET", "")
	if err := notify(); err != nil {
		t.Error(err)
	}
}

func TestJoinedState(t *testing.T) {
	revoked := map[string]time.Time{"p": time.Unix(1_900_000_000, 0).UTC()}
	b := joinState(revoked, []byte("state"))
	got, state, err := splitState(b)
	if d := cmp.Diff(revoked, got); d != "" || string(state) != "state" || err != nil {
		t.Errorf("%s%q, %v", d, state, err)
	}
	if got, state, err := splitState(joinState(nil, nil)); got != nil || len(state) > 0 || err != nil {
		t.Errorf("%v, %q, %v", got, state, err)
	}
	for _, b := range [][]byte{nil, {0, 0, 0}, {255, 255, 255, 255}, {0, 0, 0, 9, '{', '}'}, {0, 0, 0, 1, '{'}, bytes.Repeat([]byte{'1'}, 20)} {
		if _, _, err := splitState(b); err == nil {
			t.Errorf("%q is taken", b)
		}
	}
}

// TestUpgradeUnderSystemd: a service manager that would end the new process with the old one.
func TestUpgradeUnderSystemd(t *testing.T) {
	h := &house{roles: []string{"turn"}, file: config.Default()}
	t.Setenv("SYSTEMD_EXEC_PID", strconv.Itoa(os.Getpid()))
	t.Setenv("NOTIFY_SOCKET", "")
	if _, err := h.Upgrade("/nowhere/wicgate", time.Hour); err == nil || !strings.Contains(err.Error(), "Type=notify") {
		t.Errorf("%v", err)
	}
	t.Setenv("NOTIFY_SOCKET", "/nowhere/notify")
	if _, err := h.Upgrade("/nowhere/wicgate", time.Hour); err == nil || !strings.Contains(err.Error(), "start the new process") {
		t.Errorf("told who is the main one: %v", err)
	}
}

// TestReloadInTakeover: the new process may have read the files already.
func TestReloadInTakeover(t *testing.T) {
	h := &house{roles: []string{"turn"}, file: config.Default(), data: t.TempDir(), log: slog.New(slog.DiscardHandler)}
	h.reloader.begin("", h.file)
	defer h.reloader.end()
	h.giving.Lock()
	if _, err := h.reload(false); err == nil || !strings.Contains(err.Error(), "about to take over") {
		t.Errorf("%v", err)
	}
	if _, err := h.reload(true); err != nil {
		t.Errorf("a dry run: %v", err)
	}
	h.giving.Unlock()
	if _, err := h.reload(false); err != nil {
		t.Error(err)
	}
}
