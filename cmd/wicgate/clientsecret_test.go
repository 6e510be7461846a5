package main

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func TestClientSecretFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	got := make([]string, 8)
	var wg sync.WaitGroup
	for i := range got { // several processes at first start
		wg.Go(func() {
			s, err := makeClientSecret(path)
			if err != nil {
				t.Error(err)
			}
			got[i] = string(s.Expose())
		})
	}
	wg.Wait()
	for _, s := range got {
		if len(s) != 43 || s != got[0] {
			t.Errorf("secrets %q and %q", s, got[0])
		}
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info, err)
	}
	if files, err := os.ReadDir(dir); err != nil || len(files) != 1 {
		t.Errorf("files left over: %v, %v", files, err)
	}
	if s, err := readClientSecret(path); err != nil || string(s.Expose()) != got[0] {
		t.Errorf("%v", err)
	}
	for _, c := range []struct {
		name, file, want string
		mode             os.FileMode
	}{
		{"group may read", got[0], "hint: chmod 600", 0o640},
		{"short", "hunter2", "want one line of 32 to 256", 0o600},
		{"empty", "", "want one line", 0o600},
		{"two lines", got[0] + "\n" + got[0], "want one line", 0o600},
		{"long", strings.Repeat("x", 600), "want one line", 0o600},
	} {
		p := filepath.Join(t.TempDir(), "s")
		if err := os.WriteFile(p, []byte(c.file), c.mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(p, c.mode); err != nil {
			t.Fatal(err)
		}
		for _, open := range []func() error{
			func() error { _, err := readClientSecret(p); return err },
			func() error { _, err := makeClientSecret(p); return err },
		} {
			if err := open(); err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), p) || c.file != "" && strings.Contains(err.Error(), c.file) {
				t.Errorf("%s: %v", c.name, err)
			}
		}
		if b, err := os.ReadFile(p); err != nil || string(b) != c.file {
			t.Errorf("%s: the file was changed", c.name)
		}
	}
}
