package keyring

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"wicgate/internal/secret"
	"wicgate/internal/wire/stun"
)

func TestUsers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "users")
	write := func(s string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	line, err := AppendUser(nil, "Anna Bo", "example.org", secret.New([]byte("TheMatrIX")))
	if err != nil {
		t.Fatal(err)
	}
	// RFC 8489 §9.2.2's own: user:realm:pass.
	write("# ours\n\n8493fbc53ba582fb4c044c456bdc40eb - user\r\n" + string(line))
	u, err := OpenUsers(path, "example.org")
	if err != nil {
		t.Fatal(err)
	}
	if u.Len() != 2 || u.SHA256() {
		t.Errorf("%d users, SHA-256 for all: %v; want 2, false", u.Len(), u.SHA256())
	}
	want := secret.New(stun.SHA256.Key([]byte("Anna Bo"), []byte("example.org"), []byte("TheMatrIX")))
	if k, ok := u.Key("Anna Bo", stun.SHA256); !ok || !k.Equal(want) {
		t.Error("a key by SHA-256 is lost")
	}
	if _, ok := u.Key("user", stun.SHA256); ok {
		t.Error("a user without a key by SHA-256 has one")
	}
	if k, ok := u.Key("user", stun.MD5); !ok || !k.Equal(secret.New(stun.MD5.Key([]byte("user"), []byte("realm"), []byte("pass")))) {
		t.Error("a key by MD5 is lost")
	}
	if name, ok := u.Userhash(stun.Userhash([]byte("Anna Bo"), []byte("example.org"))); !ok || name != "Anna Bo" {
		t.Errorf("USERHASH is of %q, %v", name, ok)
	}

	// A bad file changes nothing, and says where.
	for bad, text := range map[string]string{
		"8493fbc53ba582fb4c044c456bdc40eb user\n": ":1: want a key",
		"x - user\n": ":1: a key of 1 characters",
		"- - user\n": ":1: a user without a key",
		"8493fbc53ba582fb4c044c456bdc40eb - a\n8493fbc53ba582fb4c044c456bdc40eb - a\n":    `:2: user "a" is there twice`,
		"8493fbc53ba582fb4c044c456bdc40eb - " + strings.Repeat("u", maxUsername+1) + "\n": ":1: want a key",
		"8493fbc53ba582fb4c044c456bdc40eb - \xff\n":                                       ":1: want a key",
	} {
		write(bad)
		if err := u.Reload(); err == nil || !strings.Contains(err.Error(), text) || strings.Contains(err.Error(), "8493") {
			t.Errorf("%q: %v, want %q and no key", bad, err, text)
		}
		if u.Len() != 2 {
			t.Fatalf("%q: %d users left", bad, u.Len())
		}
	}
	write(string(line))
	if err := u.Reload(); err != nil || u.Len() != 1 || !u.SHA256() {
		t.Errorf("reload: %v, %d users, SHA-256 %v", err, u.Len(), u.SHA256())
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := u.Reload(); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("a file for all to read: %v", err)
	}
}

func TestAppendUserRefuses(t *testing.T) {
	if b, err := AppendUser(nil, "anna", "r", secret.Bytes{}); err == nil || b != nil {
		t.Errorf("no password: %q, %v", b, err)
	}
	for _, name := range []string{"", "a\nb", "a\rb", "\xff", strings.Repeat("a", maxUsername+1)} {
		if b, err := AppendUser([]byte("x"), name, "r", secret.New([]byte("p"))); err == nil || string(b) != "x" {
			t.Errorf("%q: %q, %v", name, b, err)
		}
	}
}

func FuzzParseUsers(f *testing.F) {
	f.Add([]byte("# x\n8493fbc53ba582fb4c044c456bdc40eb - user\n"))
	f.Add([]byte("- " + strings.Repeat("0f", 32) + " a b\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		u, err := parseUsers(b, "r")
		if err == nil && len(u.keys) != len(u.hashes) {
			t.Errorf("%d users, %d hashes", len(u.keys), len(u.hashes))
		}
	})
}
