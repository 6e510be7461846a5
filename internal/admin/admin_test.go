package admin

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestStatsOverTheSocket(t *testing.T) {
	defer goleak.VerifyNone(t)
	dir := t.TempDir()
	// What a killed process leaves must not be in the way.
	if err := os.WriteFile(filepath.Join(dir, SocketName), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	n := 0
	s, err := New(dir, func() map[string]any { n++; return map[string]any{"turn": map[string]int{"allocations": n}} })
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(filepath.Join(dir, SocketName)); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("socket mode %v, %v", st.Mode(), err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Serve(ctx) }()
	for _, want := range []string{`{"turn":{"allocations":1}}`, `{"turn":{"allocations":2}}`} {
		if b, err := Get(t.Context(), dir, "/v1/stats"); err != nil || strings.TrimSpace(string(b)) != want {
			t.Errorf("Get = %s, %v, want %s", b, err, want)
		}
	}
	if _, err := Get(t.Context(), dir, "/v1/other"); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("unknown path: %v", err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Serve = %v", err)
	}
	if _, err := Get(t.Context(), dir, "/v1/stats"); err == nil || !strings.Contains(err.Error(), "hint: is wicgate running") {
		t.Errorf("after the end: %v", err)
	}
}

func TestLongPathIsExplained(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("d", 120))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := New(dir, nil); err == nil || !strings.Contains(err.Error(), "shorter name") {
		t.Errorf("New = %v", err)
	}
}
