package token

import (
	"strings"
	"testing"
	"time"

	"wicgate/internal/secret"
)

// TestEphemeralVectors were made with
//
//	printf '1795496400:k3v9t2' | openssl dgst -sha1 -hmac north -binary | base64
//	printf '1795496400:s2.k3v9t2' | openssl dgst -sha256 -hmac north -binary | base64
func TestEphemeralVectors(t *testing.T) {
	for _, c := range []struct {
		name           func(time.Time, string) string
		want, password string
	}{
		{EphemeralUsername, "1795496400:k3v9t2", "gc6O4cnNk/e92Vpl87wuiTWDw2w="},
		{EphemeralUsernameSHA256, "1795496400:s2.k3v9t2", "VTKE67QmDZJsl0KvZluT68Od8YnpDJIqEtEIVrx6YNw="},
	} {
		name := c.name(time.Unix(1795496400, 0), "k3v9t2")
		if name != c.want {
			t.Error(name)
		}
		if got := string(EphemeralPassword(secret.New([]byte("north")), name).Expose()); got != c.password {
			t.Errorf("%s: %s", name, got)
		}
		at, p, ok, err := ParseEphemeral([]byte(name))
		if at.Unix() != 1795496400 || p != "k3v9t2" || !ok || err != nil {
			t.Error(at, p, ok, err)
		}
	}
}

func TestParseEphemeralRefuses(t *testing.T) {
	for _, c := range []struct {
		in string
		ok bool // it begins as one
	}{
		{"", false}, {":", false}, {":x", false}, {"alice", false}, {"o1.a.b.c", false}, {"12a:x", false}, {"-5:x", false}, {"1795496400", false},
		{"1795496400:", true}, {"01795496400:x", true}, {"0:x", true}, {"99999999999999999999:x", true}, {"1099511627777:x", true},
		{"1795496400:a b", true}, {"1795496400:\x00", true}, {"1795496400:ä", true}, {"1795496400:s2.", true}, {"1795496400:" + strings.Repeat("x", 129), true},
	} {
		_, _, ok, err := ParseEphemeral([]byte(c.in))
		if ok != c.ok || ok && err == nil {
			t.Errorf("%.30q: ok %v, %v", c.in, ok, err)
		}
	}
}

func FuzzParseEphemeral(f *testing.F) {
	f.Add([]byte("1795496400:k3v9t2"))
	f.Add([]byte("0:"))
	f.Add([]byte("1795496400:s2.k3v9t2"))
	f.Add([]byte("1795496400:s2.s2."))
	f.Fuzz(func(t *testing.T, b []byte) {
		at, p, ok, err := ParseEphemeral(b)
		if ok && err == nil && EphemeralUsername(at, p) != string(b) && EphemeralUsernameSHA256(at, p) != string(b) {
			t.Errorf("%q is read as %v %q", b, at, p)
		}
	})
}
