// Package coturn reads configurations of coturn's turnserver and says what they are in wicgate's words:
// a wicgate.yaml, a file of users, a file of secrets, and a report of what differs.
//
// [Parse] reads turnserver.conf as turnserver 4.5 to 4.17 do, and [Convert] makes the files. Both are
// pure: no file, no look-up, no database; users, secrets and lists that coturn keeps in a database come
// in as a [Database], which package userdb reads. What a file asks for and wicgate refuses on purpose is
// never opened to be equivalent: it is told.
package coturn

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"wicgate/internal/secret"
)

// MaxSize bounds a configuration, in bytes.
const MaxSize = 1 << 20

// maxLine is how much of a line turnserver reads at once, in bytes; what follows it takes for another.
const maxLine = 1023

// setting is one line of the file.
type setting struct {
	line   int
	name   string
	value  string       // "" for one that holds a secret
	hidden secret.Bytes // the value of one that does
}

// on says whether a flag is set, as turnserver reads it.
func (s setting) on() bool {
	if s.value == "" {
		return true
	}
	switch s.value[0] {
	case '0', 'n', 'N', 'f', 'F':
		return false
	}
	return !strings.EqualFold(s.value, "off")
}

// Options is a configuration as it stands: settings in their order.
type Options struct {
	settings []setting
	bad      []Note
}

// Parse reads a turnserver.conf: a name and a value a line, parted by =, blanks or both; # begins a
// comment line. As turnserver it passes over what it does not know, and tells of it.
func Parse(conf []byte) (Options, error) {
	var o Options
	if len(conf) > MaxSize {
		return o, fmt.Errorf("coturn: the configuration has %d bytes, at most %d are read", len(conf), MaxSize)
	}
	if bytes.IndexByte(conf, 0) >= 0 {
		return o, errors.New("coturn: the configuration holds a byte 0; name the file turnserver.conf, which is text")
	}
	n := 0
	for line := range strings.Lines(string(conf)) {
		n++
		l := strings.Trim(line, " \t\r\n\v\f")
		if l == "" || l[0] == '#' {
			continue
		}
		s := setting{line: n, name: l}
		if i := strings.IndexAny(l, " =\t"); i >= 0 {
			s.name, s.value = l[:i], strings.TrimLeft(l[i:], " =\t")
		}
		if strings.HasPrefix(s.value, `"`) {
			s.value = strings.TrimSuffix(s.value[1:], `"`)
		}
		switch known, ok := options[s.name]; {
		case !ok:
			o.bad = append(o.bad, Note{Decide, n, printable(s.name), "is no option of coturn's that is known here; turnserver passes over such a line"})
			continue
		case len(line) > maxLine:
			o.bad = append(o.bad, Note{Decide, n, s.name, fmt.Sprintf("turnserver reads %d bytes of a line, and takes what follows for another; the line is left out", maxLine)})
			continue
		case known.kind == hidden:
			s.hidden, s.value = secret.New([]byte(s.value)), ""
		case known.kind == toggle && !s.on():
			if known.fate != taken {
				continue // as if it were not there
			}
		}
		o.settings = append(o.settings, s)
	}
	return o, nil
}

// printable is the word of an unknown option as a report may show it: a mistyped line may hold a secret,
// so it ends where an option's name would, and control characters do not reach a terminal.
func printable(s string) string {
	const most = 32
	end := strings.IndexFunc(s, func(r rune) bool {
		return r != '-' && r != '_' && (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z')
	})
	if end < 0 && len(s) <= most {
		return s
	}
	if end < 0 || end > most {
		end = most
	}
	return s[:end] + "…"
}

// maxAddresses bounds how often an address may be given by one option, which each packet or start pays for.
const maxAddresses = 64

// addresses are the settings of an option that names an address, as many as are taken.
func (c *converter) addresses(name string) []setting {
	found := c.o.all(name)
	if len(found) > maxAddresses {
		c.note(Decide, found[maxAddresses].line, name, "more than %d of them; this one and what follows are left out", maxAddresses)
		found = found[:maxAddresses]
	}
	return found
}

// all are the settings of the names.
func (o Options) all(names ...string) (found []setting) {
	for _, s := range o.settings {
		for _, n := range names {
			if s.name == n {
				found = append(found, s)
			}
		}
	}
	return found
}

// last is the one that holds where an option may be given once: turnserver takes the last.
func (o Options) last(names ...string) (setting, bool) {
	found := o.all(names...)
	if len(found) == 0 {
		return setting{}, false
	}
	return found[len(found)-1], true
}

// is says whether a flag is on.
func (o Options) is(name string) bool {
	s, ok := o.last(name)
	return ok && s.on()
}

// Source is a database that a configuration names.
type Source struct {
	Kind string // sqlite, postgresql or redis
	// Where is a file's name, or a connection string, which may hold a password.
	Where secret.Bytes
	Line  int
}

// Source is the database that turnserver would use: the last that is named. It takes none for MySQL and
// MongoDB, which are not read.
func (o Options) Source() (s Source, ok bool) {
	from, ok := o.last("userdb", "db", "psql-userdb", "sql-userdb", "redis-userdb", "mysql-userdb", "mongo-userdb")
	if !ok {
		return s, false
	}
	s = Source{Line: from.line, Where: from.hidden}
	switch from.name {
	case "userdb", "db":
		s.Kind, s.Where = "sqlite", secret.New([]byte(from.value))
	case "psql-userdb", "sql-userdb":
		s.Kind = "postgresql"
	case "redis-userdb":
		s.Kind = "redis"
	default:
		return s, false
	}
	return s, true
}

// Database is what coturn keeps in one, of all realms.
type Database struct {
	From            string       // what was read, for the report; empty: none was
	Users           []Credential // Value: the key, hexadecimal
	Secrets         []Credential // Value: a secret of ephemeral credentials; no Name
	Keys            []OAuthKey   // keys of RFC 7635
	Allowed, Denied []Record     // Value: an address or a range
	Limits          []Record     // Name: max-bps, total-quota or user-quota
	Origins, Admins int          // how many there are
}

// Credential is a secret of a realm.
type Credential struct {
	Realm, Name string
	Value       secret.Bytes
}

// OAuthKey is a row of oauth_key.
type OAuthKey struct {
	Realm, KID, Algorithm string
	Value                 secret.Bytes // base64
	Begin, Life           string       // s since 1970, s; Life 0 or empty: for ever
}

// Record is something open about a realm.
type Record struct{ Realm, Name, Value string }

// Kind is what a note is about.
type Kind string

// The kinds of notes, in a report's order.
const (
	Took    Kind = "taken over"
	Differs Kind = "differs"
	Lost    Kind = "no equivalent"
	Moot    Kind = "not needed"
	Decide  Kind = "to decide"
)

// Kinds are all of them, in a report's order.
var Kinds = []Kind{Took, Differs, Lost, Moot, Decide}

// Note is a line of the report.
type Note struct {
	Kind   Kind
	Line   int    // of the configuration; 0: of no line
	Option string // coturn's name, or ours for a default
	Text   string
}

func (n Note) String() string {
	at := ""
	if n.Line > 0 {
		at = fmt.Sprintf("%d: ", n.Line)
	}
	return at + n.Option + ": " + n.Text
}
