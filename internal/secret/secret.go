// Package secret holds bytes that cannot be printed: keys, passwords, tokens.
//
// A Bytes keeps its value behind a function. fmt, log/slog, encoding/json and a debugger's %#v
// follow pointers and unexported fields, and ignore methods there; none of them can look into a
// closure. To find out where secrets go, search for calls of Expose.
package secret

import (
	"crypto/rand"
	"crypto/subtle"
	"fmt"
	"io"
	"log/slog"
)

// Redacted is what every printing of a Bytes shows.
const Redacted = "[secret]"

// Bytes is a secret of any length. The zero value is the absent secret.
type Bytes struct {
	reveal func() []byte
}

// New returns b as a secret. It keeps a copy.
func New(b []byte) Bytes {
	c := append([]byte(nil), b...)
	return Bytes{func() []byte { return c }}
}

// Random returns n fresh random bytes as a secret.
func Random(n int) Bytes {
	b := make([]byte, n)
	rand.Read(b) // never fails since Go 1.24: it ends the program instead
	return Bytes{func() []byte { return b }}
}

// Expose returns the secret itself. The caller must not change it, keep it longer than needed,
// or let it reach a log, an error or a metric.
func (s Bytes) Expose() []byte {
	if s.reveal == nil {
		return nil
	}
	return s.reveal()
}

// IsZero reports whether there is no secret, or an empty one.
func (s Bytes) IsZero() bool { return len(s.Expose()) == 0 }

// Equal compares in constant time. Lengths are not hidden.
func (s Bytes) Equal(o Bytes) bool { return subtle.ConstantTimeCompare(s.Expose(), o.Expose()) == 1 }

// Format implements [fmt.Formatter], for every verb.
func (s Bytes) Format(w fmt.State, _ rune) { io.WriteString(w, Redacted) }

// String implements [fmt.Stringer].
func (s Bytes) String() string { return Redacted }

// LogValue implements [slog.LogValuer].
func (s Bytes) LogValue() slog.Value { return slog.StringValue(Redacted) }

// MarshalText implements [encoding.TextMarshaler], and so covers JSON and YAML.
func (s Bytes) MarshalText() ([]byte, error) { return []byte(Redacted), nil }
