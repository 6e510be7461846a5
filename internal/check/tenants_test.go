package check

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestTenantFiles: users, secrets and keys of tenants are read before anything starts.
func TestTenantFiles(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"good.users": "00112233445566778899aabbccddeeff - anna\n", "bad.users": "\nanna\n", "bad.secrets": "short\n", "bad.keys": "{",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	tenant := func(more string) string {
		return "turn:\n  tenants:\n    - name: a.test\n      " + strings.ReplaceAll(more, "DIR", dir) + "\n"
	}
	for _, c := range []struct{ name, file, want string }{
		{"users", "turn:\n  users: " + dir + "/good.users\n", ""},
		{"none", "turn:\n  users: " + dir + "/no.users\n", "error wicgate.yaml:2: turn.users: keyring: TURN users: open "},
		{"bad users", "turn:\n  users: " + dir + "/bad.users\n", "bad.users:2: want a key by MD5"},
		{"a tenant's users", tenant("users: DIR/bad.users"), "error wicgate.yaml:4: turn.tenants[0].users: keyring: TURN users: "},
		{"a tenant's secrets", tenant("secrets: DIR/bad.secrets"), "error wicgate.yaml:4: turn.tenants[0].secrets: keyring: "},
		{"a tenant's keys", tenant("keys: DIR/bad.keys"), "error wicgate.yaml:4: turn.tenants[0].keys: keyring: "},
		{"keys to be made", tenant("keys: DIR/new.keys"), ""},
		{"keys that cannot be made", tenant("keys: DIR/nowhere/new.keys"), "turn.tenants[0].keys: " + dir + "/nowhere/new.keys is not there, and cannot be made"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := text(Cheap(Input{File: load(t, c.file), Data: t.TempDir(), Roles: []string{"turn"}}))
			if c.want == "" && strings.Contains(got, "error") || !strings.Contains(got, c.want) {
				t.Errorf("%s, want %s", got, c.want)
			}
		})
	}
}
