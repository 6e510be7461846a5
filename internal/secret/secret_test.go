package secret

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

func TestNothingPrintsASecret(t *testing.T) {
	const value = "hunter2hunter2"
	type nested struct {
		hidden Bytes
		Shown  *Bytes
	}
	s := New([]byte(value))
	in := map[string]any{"plain": s, "pointer": &s, "nested": nested{s, &s}, "slice": []Bytes{s}, "error": fmt.Errorf("x %w %v", errors.New("y"), s)}

	leaks := []string{value, fmt.Sprintf("%x", value), fmt.Sprintf("%X", value), strings.Trim(fmt.Sprintf("%v", []byte(value)), "[]")}
	check := func(how, out string) {
		t.Helper()
		for _, l := range leaks {
			if strings.Contains(out, l) {
				t.Errorf("%s prints the secret: %s", how, out)
			}
		}
	}
	for name, v := range in {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%b", "%o", "%c", "%U", "%t", "%p", "%T"} {
			check(name+" "+verb, fmt.Sprintf(verb, v))
		}
		for _, h := range []func(*bytes.Buffer) slog.Handler{
			func(b *bytes.Buffer) slog.Handler { return slog.NewTextHandler(b, nil) },
			func(b *bytes.Buffer) slog.Handler { return slog.NewJSONHandler(b, nil) },
		} {
			var b bytes.Buffer
			slog.New(h(&b)).Info("m", "v", v)
			check(name+" slog", b.String())
		}
		j, err := json.Marshal(v)
		if err == nil {
			check(name+" json", string(j))
		}
	}
	// The detector must be able to see: an ordinary []byte does leak, in each of these forms.
	for i, out := range []string{fmt.Sprintf("%v", value), fmt.Sprintf("%x", value), fmt.Sprintf("%X", value), fmt.Sprintf("%v", []byte(value))} {
		if !strings.Contains(out, leaks[i]) {
			t.Errorf("the leak detector does not know %s", out)
		}
	}
}

func TestEqualAndZero(t *testing.T) {
	a, b := New([]byte("a")), New([]byte("b"))
	if a.Equal(b) || !a.Equal(New([]byte("a"))) || a.Equal(Bytes{}) {
		t.Error("Equal is wrong")
	}
	if !(Bytes{}).IsZero() || !New(nil).IsZero() || a.IsZero() {
		t.Error("IsZero is wrong")
	}
	if len(Random(20).Expose()) != 20 || Random(16).Equal(Random(16)) {
		t.Error("Random is wrong")
	}
	src := []byte("mutable")
	s := New(src)
	src[0] = 'X'
	if string(s.Expose()) != "mutable" {
		t.Error("New must copy")
	}
}
