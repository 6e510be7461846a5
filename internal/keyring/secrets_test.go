package keyring

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func TestOpenSecrets(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "turn-secrets.txt")
	if _, err := OpenSecrets(path, false); err == nil {
		t.Error("a missing file is no error")
	}
	var wg sync.WaitGroup
	got := make([]string, 4)
	for i := range got { // several processes at once get the same
		wg.Go(func() {
			list, err := OpenSecrets(path, true)
			if err != nil || len(list) != 1 || len(list[0].Expose()) != 43 {
				t.Errorf("%v, %v", list, err)
				return
			}
			got[i] = string(list[0].Expose())
		})
	}
	wg.Wait()
	if got[0] != got[1] || got[0] != got[2] || got[0] != got[3] {
		t.Error("not one file")
	}
	if files, err := os.ReadDir(dir); err != nil || len(files) != 1 {
		t.Errorf("%v left, %v", files, err)
	}
	if _, err := OpenSecrets(dir, true); err == nil || !strings.Contains(err.Error(), "no regular file") {
		t.Errorf("a folder: %v", err)
	}
	for _, c := range []struct {
		text, fault string
		mode        os.FileMode
	}{
		{"# new\nsecret-number-two-xx\n\n  secret-number-one-xx  \n", "", 0o600},
		{"secret-number-two-xx\n", "chmod 600", 0o640},
		{"short\n", ":1: a secret of 5 bytes", 0o600},
		{"\n" + strings.Repeat("x", 257), ":2: a secret of 257 bytes", 0o600},
		{strings.Repeat("secret-number-two-xx\n", 9), ":9: more than 8", 0o600},
		{"# nothing\n", "holds no secret", 0o600},
		{strings.Repeat("#\n", 9000), "longer than", 0o600},
	} {
		if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, c.mode); err != nil {
			t.Fatal(err)
		}
		list, err := OpenSecrets(path, true)
		switch {
		case c.fault == "":
			if err != nil || len(list) != 2 || string(list[0].Expose()) != "secret-number-two-xx" || string(list[1].Expose()) != "secret-number-one-xx" {
				t.Errorf("%v, %v", list, err)
			}
		case err == nil || !strings.Contains(err.Error(), c.fault) || strings.Contains(err.Error(), "%!"):
			t.Errorf("%q: %v", c.fault, err)
		}
	}
}
