package userdb

import (
	"context"
	"strings"
	"testing"
	"time"

	"wicgate/internal/coturn"
	"wicgate/internal/secret"
)

// TestPasswordsStayOutOfArguments: a list of processes shows arguments to everybody.
func TestPasswordsStayOutOfArguments(t *testing.T) {
	for conn, want := range map[string]string{
		"host=db dbname=turn user=u password=hunter2 connect_timeout=30": "host='db' dbname='turn' user='u' connect_timeout='30'|hunter2",
		" host = 'a b'  password = 'it\\'s' user=o\\'n\\\\ ":             `host='a b' user='o\'n\\'|it's`,
		"":        "|",
		"host=''": "host=''|",
		"postgresql://u:hunter2@db:5432/turn?sslmode=require": "postgresql://u@db:5432/turn?sslmode=require|hunter2",
		"postgres://u@/turn?host=/run&password=hunter2":       "postgres://u@/turn?host=%2Frun|hunter2",
		"postgresql://u:hunter2@[bad/turn":                    "error",
		"host":                                                "error",
		"host=a password='open":                               "error",
		"--file=/etc/passwd":                                  "error",
		"hunter2 x=y":                                         "error",
	} {
		rest, password, err := splitPassword(conn)
		got := rest + "|" + password
		if err != nil {
			if got = "error"; strings.Contains(err.Error(), "hunter2") {
				t.Errorf("%q: %v", conn, err)
			}
		}
		if got != want {
			t.Errorf("%q: %s, want %s", conn, got, want)
		}
	}
	for conn, want := range map[string]string{
		"": "--csv -h 127.0.0.1 -p 6379 -n 0|",
		"ip=192.0.2.1 dbname=2 password=hunter2 port=7 connect_timeout=30":          "--csv -h 192.0.2.1 -p 7 -n 2|REDISCLI_AUTH=hunter2",
		"host=r user=u password=hunter2 tls=1 tls-ca=/ca tls-verify=none sni=redis": "--csv -h r -p 6379 -n 0 --tls --cacert /ca --sni redis --insecure --user u|REDISCLI_AUTH=hunter2",
		"ip=a port=x": "error", "dbname=--x": "error", "hunter2": "error", "eval=x": "error",
	} {
		p, err := redisProgram(conn)
		got := strings.Join(p.args, " ") + "|" + strings.Join(p.env, " ")
		if err != nil {
			got = "error"
		}
		if got != want {
			t.Errorf("%q: %s, want %s", conn, got, want)
		}
	}
}

func TestParseCSV(t *testing.T) {
	const null = "\x00null"
	for in, want := range map[string][]string{
		"": nil, "\n": nil, `"a"` + "\n": {"a"}, `"a","b\"c","d,e",NULL,12` + "\n": {"a", `b"c`, "d,e", null, "12"}, `"\x00\xff\n\\"`: {"\x00\xff\n\\"}, `""`: {""},
	} {
		got, err := parseCSV(in)
		if err != nil || len(got) != len(want) {
			t.Errorf("%q: %d, %v", in, len(got), err)
			continue
		}
		for i, v := range got {
			if v == nil && want[i] != null || v != nil && *v != want[i] {
				t.Errorf("%q: %d is not %q", in, i, want[i])
			}
		}
	}
	for _, in := range []string{`"a`, `"a"b`, `"a",`, `"\q"`, `ERROR,"NOAUTH Authentication required."`, `,`} {
		if _, err := parseCSV(in); err == nil {
			t.Errorf("%q is taken", in)
		}
	}
	if _, err := parseCSV(`ERROR,"NOAUTH\n\x1b[2J"`); err == nil || err.Error() != "NOAUTH [2J" {
		t.Errorf("%v", err)
	}
}

// TestBounds: neither a program without end nor one that says nothing holds the import.
func TestBounds(t *testing.T) {
	if _, err := (program{name: "yes", most: 1000}).run(t.Context()); err == nil || !strings.Contains(err.Error(), "more than 1000 bytes") {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond) // of another program
	defer cancel()
	if _, err := (program{name: "sleep"}).run(ctx, "60"); err == nil || !strings.Contains(err.Error(), "has not answered in time") {
		t.Errorf("%v", err)
	}
	if _, err := (program{name: "sh"}).run(t.Context(), "-c", `printf 'no\033[2J such\n table' >&2; exit 3`); err == nil || err.Error() != "sh: exit status 3: no [2J such table" {
		t.Errorf("%v", err)
	}
	if _, err := Read(t.Context(), coturn.Source{Kind: "mysql", Where: secret.New([]byte("hunter2"))}); err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("%v", err)
	}
}

// FuzzParseCSV: what is read was written.
func FuzzParseCSV(f *testing.F) {
	for _, s := range []string{`"a","b"`, "NULL,1", `ERROR,"x"`, `"\x00"`, `"a",`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		values, err := parseCSV(s)
		if err == nil && len(values) > len(s) {
			t.Fatalf("%d values of %d bytes", len(values), len(s))
		}
	})
}

// FuzzSplitPassword: what is left of a connection string gives the same once more, and no password.
func FuzzSplitPassword(f *testing.F) {
	for _, s := range []string{"host=a password=b", "a = 'b\\'c' d=e\\ f", "postgresql://u:p@h/d?password=x", "postgresql://"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		rest, _, err := splitPassword(s)
		if err != nil {
			return
		}
		again, password, err := splitPassword(rest)
		if err != nil || password != "" || again != rest {
			t.Fatalf("%q: %q, %q, %v", rest, again, password, err)
		}
	})
}
