package token

import (
	"strings"
	"testing"
	"time"

	"wicgate/internal/secret"
)

// TestEphemeralVector was made with
//
//	printf '1795496400:k3v9t2' | openssl dgst -sha1 -hmac north -binary | base64
func TestEphemeralVector(t *testing.T) {
	name := EphemeralUsername(time.Unix(1795496400, 0), "k3v9t2")
	if name != "1795496400:k3v9t2" {
		t.Fatal(name)
	}
	if got := string(EphemeralPassword(secret.New([]byte("north")), name).Expose()); got != "gc6O4cnNk/e92Vpl87wuiTWDw2w=" {
		t.Error(got)
	}
	at, p, ok, err := ParseEphemeral([]byte(name))
	if at.Unix() != 1795496400 || p != "k3v9t2" || !ok || err != nil {
		t.Error(at, p, ok, err)
	}
}

func TestParseEphemeralRefuses(t *testing.T) {
	for _, c := range []struct {
		in string
		ok bool // it begins as one
	}{
		{"", false}, {":", false}, {":x", false}, {"alice", false}, {"o1.a.b.c", false}, {"12a:x", false}, {"-5:x", false}, {"1795496400", false},
		{"1795496400:", true}, {"01795496400:x", true}, {"0:x", true}, {"99999999999999999999:x", true}, {"1099511627777:x", true},
		{"1795496400:a b", true}, {"1795496400:\x00", true}, {"1795496400:ä", true}, {"1795496400:" + strings.Repeat("x", 129), true},
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
	f.Fuzz(func(t *testing.T, b []byte) {
		at, p, ok, err := ParseEphemeral(b)
		if ok && err == nil && EphemeralUsername(at, p) != string(b) {
			t.Errorf("%q is read as %v %q", b, at, p)
		}
	})
}
