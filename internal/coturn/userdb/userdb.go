// Package userdb reads what coturn keeps in a database: users, secrets, keys, lists of peers, limits.
//
// It asks the database's own client program, sqlite3, psql or redis-cli, which who runs such a database
// has, and so no driver becomes part of wicgate (docs/adr/0014). A program is started with a list of
// arguments, never by a shell; the queries are fixed, and nothing from outside is put into one; passwords
// go by the environment, so that a list of processes does not show them; time and output are bounded.
// SQL answers in hexadecimal, so that no name or key can pass for something else. Nothing is written: an
// SQLite file is opened to be read only, and PostgreSQL is told that the transaction is.
package userdb

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"wicgate/internal/coturn"
	"wicgate/internal/secret"
)

const (
	// patience is how long a database may take in all.
	patience = time.Minute
	// maxOutput bounds one answer, in bytes: a user takes some 200.
	maxOutput = 256 << 20
	// maxComplaint is how much of what a program says on its standard error is shown, in bytes.
	maxComplaint = 512
)

// Read reads the database that a configuration names.
func Read(ctx context.Context, from coturn.Source) (coturn.Database, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	where := string(from.Where.Expose())
	var db coturn.Database
	var err error
	switch from.Kind {
	case "sqlite":
		db, err = sqlite(ctx, where)
	case "postgresql":
		db, err = postgres(ctx, where)
	case "redis":
		db, err = redis(ctx, where)
	default:
		err = fmt.Errorf("no reader for a database of kind %q", from.Kind)
	}
	if err != nil {
		return db, fmt.Errorf("coturn's database: %w", err)
	}
	db.From = fmt.Sprintf("%s: %d users, %d secrets, %d keys, %d lists of peers, of all realms", from.Kind, len(db.Users), len(db.Secrets), len(db.Keys), len(db.Allowed)+len(db.Denied))
	return db, nil
}

// program is a database's client, and how it is started.
type program struct {
	name, pkg string
	args      []string // before the query
	env       []string // beside that of this process
	most      int      // bytes of an answer; 0 = maxOutput
}

// run starts the program with further arguments, and returns what it prints.
func (p program) run(ctx context.Context, args ...string) ([]byte, error) {
	path, err := exec.LookPath(p.name)
	if err != nil {
		return nil, fmt.Errorf("the program %s is not there, which reads it\n  hint: install it (Debian: apt-get install %s), or import where the database is", p.name, p.pkg)
	}
	if p.most == 0 {
		p.most = maxOutput
	}
	out, said := bounded{left: p.most}, bounded{left: 64 << 10}
	cmd := exec.CommandContext(ctx, path, append(p.args[:len(p.args):len(p.args)], args...)...)
	cmd.Env = append(append(os.Environ(), "LC_ALL=C"), p.env...)
	cmd.Stdout, cmd.Stderr = &out, &said
	cmd.WaitDelay = time.Second
	err = cmd.Run()
	switch {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("%s has not answered in time (%v for a database): %w", p.name, patience, ctx.Err())
	case out.full:
		return nil, fmt.Errorf("%s prints more than %d bytes, which is no database of coturn's", p.name, p.most)
	case err != nil:
		return nil, fmt.Errorf("%s: %w: %s", p.name, err, said.text())
	}
	return out.b.Bytes(), nil
}

// bounded is a buffer that takes so much. It does not embed one, whose ReadFrom would take all.
type bounded struct {
	b    bytes.Buffer
	left int
	full bool
}

var errFull = errors.New("full")

func (b *bounded) Write(p []byte) (int, error) {
	if len(p) > b.left {
		b.full = true
		return 0, errFull
	}
	b.left -= len(p)
	return b.b.Write(p)
}

// text is what was said, in one line that a terminal can take.
func (b *bounded) text() string {
	s := strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(b.b.String(), "?"))
	s = strings.Join(strings.Fields(s), " ")
	return s[:min(len(s), maxComplaint)]
}

// table is one of coturn's: the columns that are asked for, and what a row of them is.
type table struct {
	name    string
	columns []string
	add     func(db *coturn.Database, row []string)
}

func credential(realm, name, value string) coturn.Credential {
	return coturn.Credential{Realm: realm, Name: name, Value: secret.New([]byte(value))}
}

// tables are those of coturn's schema, which SQLite and PostgreSQL share.
var tables = []table{
	{"turnusers_lt", []string{"realm", "name", "hmackey"}, func(db *coturn.Database, r []string) {
		db.Users = append(db.Users, credential(r[0], r[1], strings.TrimRight(r[2], " "))) // char(128) is padded
	}},
	{"turn_secret", []string{"realm", "value"}, func(db *coturn.Database, r []string) {
		db.Secrets = append(db.Secrets, credential(r[0], "", r[1]))
	}},
	{"oauth_key", []string{"realm", "kid", "as_rs_alg", "timestamp", "lifetime", "ikm_key"}, func(db *coturn.Database, r []string) {
		db.Keys = append(db.Keys, coturn.OAuthKey{Realm: r[0], KID: r[1], Algorithm: r[2], Begin: r[3], Life: r[4], Value: secret.New([]byte(r[5]))})
	}},
	{"allowed_peer_ip", []string{"realm", "ip_range"}, func(db *coturn.Database, r []string) {
		db.Allowed = append(db.Allowed, coturn.Record{Realm: r[0], Value: r[1]})
	}},
	{"denied_peer_ip", []string{"realm", "ip_range"}, func(db *coturn.Database, r []string) {
		db.Denied = append(db.Denied, coturn.Record{Realm: r[0], Value: r[1]})
	}},
	{"turn_realm_option", []string{"realm", "opt", "value"}, func(db *coturn.Database, r []string) {
		db.Limits = append(db.Limits, coturn.Record{Realm: r[0], Name: r[1], Value: r[2]})
	}},
	{"turn_origin_to_realm", []string{"origin"}, func(db *coturn.Database, _ []string) { db.Origins++ }},
	{"admin_user", []string{"name"}, func(db *coturn.Database, _ []string) { db.Admins++ }},
}

// sql reads the tables that are there: old schemas lack some. names is the query for those, and column
// the expression for a column in hexadecimal.
func (p program) sql(ctx context.Context, names string, column func(string) string) (db coturn.Database, err error) {
	ask := func(query string, columns int, add func([]string)) error {
		b, err := p.run(ctx, query)
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(b)) {
			row := strings.Split(strings.TrimRight(line, "\r\n"), "|")
			if len(row) != columns {
				return fmt.Errorf("%s answers %d columns, want %d", p.name, len(row), columns)
			}
			for i, f := range row {
				v, err := hex.DecodeString(f)
				if err != nil {
					return fmt.Errorf("%s: the answer is not hexadecimal", p.name)
				}
				row[i] = string(v)
			}
			add(row)
		}
		return nil
	}
	there := map[string]bool{}
	if err := ask(names, 1, func(r []string) { there[r[0]] = true }); err != nil {
		return db, err
	}
	if len(there) == 0 {
		return db, errors.New("none of coturn's tables is there; is it coturn's?")
	}
	for _, t := range tables {
		if !there[t.name] {
			continue
		}
		var columns []string
		for _, c := range t.columns {
			columns = append(columns, column(c))
		}
		query := "select " + strings.Join(columns, ",") + " from " + t.name + " order by " + strings.Join(t.columns, ",")
		if err := ask(query, len(columns), func(r []string) { t.add(&db, r) }); err != nil {
			return db, fmt.Errorf("table %s: %w", t.name, err)
		}
	}
	return db, nil
}

// list is the names of the tables as SQL has them.
func list() string {
	var names []string
	for _, t := range tables {
		names = append(names, "'"+t.name+"'")
	}
	return strings.Join(names, ",")
}

// sqlite reads a file.
func sqlite(ctx context.Context, file string) (coturn.Database, error) {
	file, err := filepath.Abs(file) // so that it is not taken for an option
	if err != nil {
		return coturn.Database{}, err
	}
	if _, err := os.Stat(file); err != nil {
		return coturn.Database{}, err
	}
	p := program{name: "sqlite3", pkg: "sqlite3", args: []string{"-init", os.DevNull, "-batch", "-bail", "-readonly", "-noheader", "-list", "-separator", "|", file}}
	return p.sql(ctx, "select hex(name) from sqlite_master where type='table' and name in ("+list()+")",
		func(c string) string { return "hex(coalesce(cast(" + c + " as text),''))" })
}
