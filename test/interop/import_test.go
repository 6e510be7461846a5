package interop

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	conv "wicgate/internal/coturn"
	"wicgate/test/lab"
)

// schema of coturn's SQL tables, from Debian's package.
const schema = "/usr/share/coturn/schema.sql"

// rows are what the databases hold. A name has what could end a string, a query, a line or a word.
const (
	oddName = `o'neil "x"; drop table turnusers_lt; -- |,$(id)` + "\\n"
	rows    = `
insert into turnusers_lt (realm, name, hmackey) values('north.gov','ninefingers','bc807ee29df3c9ffa736523fb2c4e8ee');
insert into turnusers_lt (realm, name, hmackey) values('north.gov','ODD','7da2270ccfa49786e0115366d3a3d14d');
insert into turnusers_lt (realm, name, hmackey) values('crinna.org','whirrun','6972e85e51f36e53b0b61759c5a5219a');
insert into turn_secret (realm, value) values('crinna.org','a secret of Crinna''s');
insert into oauth_key (kid, ikm_key, as_rs_alg, realm) values('union','MTIzNDU2Nzg5MDEyMzQ1Ngo=','A128GCM','north.gov');
insert into allowed_peer_ip (ip_range) values('172.17.13.200');
insert into allowed_peer_ip (realm, ip_range) values('crinna.org','172.17.13.202');
insert into denied_peer_ip (realm, ip_range) values('north.gov','45.1.0.0-45.1.255.255');
insert into turn_origin_to_realm (origin, realm) values('http://crinna.org:80','crinna.org');
insert into turn_realm_option (realm, opt, value) values('north.gov','user-quota','50');
insert into admin_user (name, realm, password) values('skarling','north.gov','$5$6fc35c3b');
`
)

func insertRows() string {
	return strings.Replace(rows, "ODD", strings.ReplaceAll(oddName, "'", "''"), 1)
}

// imports imports a configuration with a database, for both of its realms, and looks at what came of it.
func imports(t *testing.T, conf string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "turnserver.conf")
	if err := os.WriteFile(file, []byte("listening-ip=192.0.2.1\noauth\n"+conf+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(realm string, want map[string][]string) {
		t.Helper()
		dir := filepath.Join(t.TempDir(), "out")
		out, err := exec.CommandContext(t.Context(), lab.Binary(t), "import", "coturn", file, "--out", dir, "--realm", realm).CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		for name, parts := range want {
			b := out
			if name != "report" {
				if b, err = os.ReadFile(filepath.Join(dir, name)); err != nil {
					t.Fatal(err)
				}
			}
			for _, part := range parts {
				if !strings.Contains(string(b), part) {
					t.Errorf("%s of %s lacks %q:\n%s", name, realm, part, b)
				}
			}
			if bytes.Contains(b, []byte("hunter2")) {
				t.Errorf("%s shows the database's password", name)
			}
		}
		if st, err := os.Stat(filepath.Join(dir, conv.FileUsers)); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%v, %v", st, err)
		}
	}
	run("north.gov", map[string][]string{
		conv.FileUsers: {"bc807ee29df3c9ffa736523fb2c4e8ee - ninefingers\n", "7da2270ccfa49786e0115366d3a3d14d - " + oddName + "\n"},
		conv.FileYAML:  {"name: north.gov", `"172.17.13.200/32 1024-65535"`, `"45.1.0.0/16"`, "quota: 50", "kid_mode: plain"},
		conv.FileKeys:  {`"kid": "union"`, `"enc": "A128GCM"`, `"k": "` + base64.RawURLEncoding.EncodeToString([]byte("1234567890123456")) + `"`},
		"report":       {"3 users, 1 secrets, 1 keys, 3 lists of peers", "with 1 key in turn.keys", "turn_origin_to_realm: 1 row:", "admin_user: 1 row:", `"crinna.org", left out`},
	})
	run("crinna.org", map[string][]string{conv.FileUsers: {"6972e85e51f36e53b0b61759c5a5219a - whirrun\n"}, conv.FileYAML: {"172.17.13.202/32"}})
	if err := os.WriteFile(file, []byte("use-auth-secret\nlistening-ip=192.0.2.1\n"+conf+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "out")
	if out, err := exec.CommandContext(t.Context(), lab.Binary(t), "import", "coturn", file, "--out", dir, "--realm", "crinna.org").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if b, err := os.ReadFile(filepath.Join(dir, conv.FileSecrets)); err != nil || !strings.Contains(string(b), "\na secret of Crinna's\n") {
		t.Errorf("%s, %v", b, err)
	}
}

// refuses wants an import to fail, with words.
func refuses(t *testing.T, env []string, conf string, words ...string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "turnserver.conf")
	if err := os.WriteFile(file, []byte(conf+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "out")
	cmd := exec.CommandContext(t.Context(), lab.Binary(t), "import", "coturn", file, "--out", dir)
	if env != nil {
		cmd.Env = env
	}
	out, err := cmd.CombinedOutput()
	for _, w := range append(words, "--no-database imports without it") {
		if err == nil || !strings.Contains(string(out), w) {
			t.Errorf("want %q, got %v\n%s", w, err, out)
		}
	}
	if strings.Contains(string(out), "hunter2") {
		t.Errorf("the password is shown:\n%s", out)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("something was written")
	}
}

// TestImportSQLite reads a file with Debian's schema, and leaves it as it was.
func TestImportSQLite(t *testing.T) {
	file := filepath.Join(t.TempDir(), "-turn db")
	tables, err := os.ReadFile(schema)
	if err != nil {
		t.Fatalf("coturn is missing: run test/setup.sh (%v)", err)
	}
	fill := exec.CommandContext(t.Context(), "sqlite3", "-bail", "./"+filepath.Base(file))
	fill.Dir, fill.Stdin = filepath.Dir(file), strings.NewReader(string(tables)+insertRows())
	if out, err := fill.CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	imports(t, "userdb="+file)
	if after, err := os.ReadFile(file); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the database has changed (%v)", err)
	}
	refuses(t, nil, "userdb="+file+".not", "no such file")
	refuses(t, nil, "userdb=/etc/passwd", "sqlite3: ", "not a database")
	refuses(t, []string{"PATH=/nowhere"}, "userdb="+file, "the program sqlite3 is not there", "apt-get install sqlite3")
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	refuses(t, nil, "userdb="+empty, "none of coturn's tables is there")
}

// TestImportPostgreSQL asks a server on a Unix socket, with a password.
func TestImportPostgreSQL(t *testing.T) {
	dir := postgres(t)
	conn := "host=" + dir + " dbname=postgres user=turn"
	tables, err := os.ReadFile(schema)
	if err != nil {
		t.Fatalf("coturn is missing: run test/setup.sh (%v)", err)
	}
	fill := exec.CommandContext(t.Context(), "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", conn)
	fill.Env = append(os.Environ(), "PGPASSWORD=hunter2")
	fill.Stdin = strings.NewReader(string(tables) + insertRows())
	if out, err := fill.CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	imports(t, `psql-userdb="`+conn+` password='hunter2' connect_timeout=30"`)
	imports(t, `psql-userdb="postgresql://turn:hunter2@/postgres?host=`+dir+`"`)
	refuses(t, nil, `psql-userdb="`+conn+` password=hunter2x"`, "psql: ", "password authentication failed")
	refuses(t, nil, `psql-userdb="host=/nowhere dbname=x password=hunter2"`, "psql: ")
	refuses(t, nil, `psql-userdb="hunter2"`, "no key = value")
	refuses(t, []string{"PATH=/nowhere"}, `psql-userdb="`+conn+`"`, "apt-get install postgresql-client")
}

// postgres starts a server whose files and socket are in the folder that it returns.
func postgres(t *testing.T) string {
	t.Helper()
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if err != nil || len(found) == 0 {
		t.Fatalf("PostgreSQL is missing: run test/setup.sh (%v)", err)
	}
	bin := filepath.Dir(found[len(found)-1])
	dir, err := os.MkdirTemp("/tmp", "wicgate-pg") // a short name, for the socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	password := filepath.Join(dir, "password")
	if err := os.WriteFile(password, []byte("hunter2\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	// It refuses to run as root.
	attr := &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if os.Getuid() == 0 {
		u, err := user.Lookup("postgres")
		if err != nil {
			t.Fatal(err)
		}
		uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
		if err1 != nil || err2 != nil {
			t.Fatal(err1, err2)
		}
		attr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		if err := os.Chown(dir, int(uid), int(gid)); err != nil {
			t.Fatal(err)
		}
	}
	data := filepath.Join(dir, "data")
	init := exec.Command(filepath.Join(bin, "initdb"), "-D", data, "-U", "turn", "-A", "scram-sha-256", "--pwfile="+password, "-E", "UTF8", "--no-locale", "--no-sync")
	init.SysProcAttr, init.Dir = attr, "/"
	if out, err := init.CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	var log bytes.Buffer
	server := exec.Command(found[len(found)-1], "-D", data, "-k", dir, "-c", "listen_addresses=", "-c", "fsync=off", "-c", "shared_buffers=16MB")
	server.SysProcAttr, server.Dir, server.Stdout, server.Stderr = attr, "/", &log, &log
	serve(t, server, syscall.SIGINT, &log)
	until(t, func() bool {
		ask := exec.Command("psql", "-X", "-w", "-q", "-c", "select 1", "-d", "host="+dir+" dbname=postgres user=turn")
		ask.Env = append(os.Environ(), "PGPASSWORD=hunter2")
		return ask.Run() == nil
	})
	return dir
}

// serve starts a server, which the test's end ends with a signal.
func serve(t *testing.T, server *exec.Cmd, end os.Signal, log *bytes.Buffer) {
	t.Helper()
	server.WaitDelay = 5 * time.Second
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Process.Signal(end); err != nil {
			t.Errorf("it has ended before: %v", err)
		}
		kill := time.AfterFunc(20*time.Second, func() { _ = server.Process.Kill() })
		_ = server.Wait() // its log says how
		kill.Stop()
		if t.Failed() {
			t.Logf("%s", log)
		}
	})
}

// until waits for a server.
func until(t *testing.T, ready func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ready(); time.Sleep(50 * time.Millisecond) { // another program's start
		if time.Now().After(end) {
			t.Fatal("it does not answer; its log follows")
		}
	}
}

// TestImportRedis asks a server with a password, on a port of loopback.
func TestImportRedis(t *testing.T) {
	port := strconv.Itoa(FreePort(t))
	var log bytes.Buffer
	server := exec.Command("redis-server", "--bind", "127.0.0.1", "--port", port, "--save", "", "--dir", t.TempDir(), "--requirepass", "hunter2")
	server.SysProcAttr, server.Stdout, server.Stderr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}, &log, &log
	serve(t, server, syscall.SIGTERM, &log)
	tell := func(args ...string) error {
		cmd := exec.Command("redis-cli", append([]string{"-p", port, "-n", "2", "-e"}, args...)...)
		cmd.Env = append(os.Environ(), "REDISCLI_AUTH=hunter2")
		out, err := cmd.CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%q: %w %s", args, err, out)
		}
		return err
	}
	until(t, func() bool { return tell("PING") == nil })
	for _, command := range [][]string{
		{"SET", "turn/realm/north.gov/user/ninefingers/key", "bc807ee29df3c9ffa736523fb2c4e8ee"},
		{"SET", "turn/realm/north.gov/user/" + oddName + "/key", "7da2270ccfa49786e0115366d3a3d14d"},
		{"SET", "turn/realm/crinna.org/user/whirrun/key", "6972e85e51f36e53b0b61759c5a5219a"},
		{"SADD", "turn/realm/north.gov/user/no-string/key", "x"}, // of another type
		{"SADD", "turn/realm/crinna.org/secret", "a secret of Crinna's"},
		{"HSET", "turn/oauth/kid/union", "ikm_key", "MTIzNDU2Nzg5MDEyMzQ1Ngo=", "as_rs_alg", "A128GCM", "realm", "north.gov"},
		{"SADD", "turn/realm//allowed-peer-ip", "172.17.13.200"},
		{"SADD", "turn/realm/crinna.org/allowed-peer-ip", "172.17.13.202"},
		{"SADD", "turn/realm/north.gov/denied-peer-ip", "45.1.0.0-45.1.255.255"},
		{"SET", "turn/origin/http://crinna.org:80", "crinna.org"},
		{"SET", "turn/realm/north.gov/user-quota", "50"},
		{"HSET", "turn/admin_user/skarling", "realm", "north.gov", "password", "x"},
		{"SET", "turn/realm/north.gov/user/ninefingers/allocation/001000000000000001/status", "new lifetime=600"},
	} {
		if err := tell(command...); err != nil {
			t.Fatal(err)
		}
	}
	imports(t, `redis-userdb="ip=127.0.0.1 dbname=2 password=hunter2 port=`+port+` connect_timeout=30"`)
	refuses(t, nil, `redis-userdb="ip=127.0.0.1 dbname=2 port=`+port+`"`, "redis-cli, KEYS: NOAUTH")
	refuses(t, nil, `redis-userdb="ip=127.0.0.1 dbname=2 password=hunter2x port=`+port+`"`, "redis-cli")
	refuses(t, nil, `redis-userdb="ip=127.0.0.1 dbname=2 password=hunter2 port=1"`, "redis-cli: ", "Connection refused")
	refuses(t, []string{"PATH=/nowhere"}, `redis-userdb="ip=127.0.0.1"`, "apt-get install redis-tools")
}

// TestOptionsOfDebiansCoturn: each option that turnserver's help names is known to the import.
func TestOptionsOfDebiansCoturn(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "turnserver", "-h").CombinedOutput()
	if len(out) == 0 {
		t.Fatalf("coturn is missing: run test/setup.sh (%v)", err)
	}
	found := regexp.MustCompile(`(?m)^[ \t]*(?:-[A-Za-z],?[ \t]+)?--([A-Za-z][A-Za-z0-9_-]+)`).FindAllSubmatch(out, -1)
	if len(found) < 80 {
		t.Fatalf("%d options in\n%s", len(found), out)
	}
	for _, f := range found {
		if name := string(f[1]); !slices.Contains(conv.Names(), name) {
			t.Errorf("--%s is not known", name)
		}
	}
}

// TestImportServesTheSameClients: who is served by Debian's turnserver is served by wicgate with what was
// imported, on the same port, with the same credentials; and who is not, is not.
func TestImportServesTheSameClients(t *testing.T) {
	key, err := exec.CommandContext(t.Context(), "turnadmin", "-k", "-u", "ninefingers", "-r", "north.gov", "-p", "youhavetoberealistic").Output()
	if err != nil {
		t.Fatalf("coturn is missing: run test/setup.sh (%v)", err)
	}
	for name, c := range map[string]struct {
		conf      string
		good, bad [][]string // arguments of turnutils_uclient
	}{
		"users": {"lt-cred-mech\nuser=gorst:hero\nuser=ninefingers:" + strings.TrimSpace(string(key)),
			[][]string{{"-u", "gorst", "-w", "hero"}, {"-u", "ninefingers", "-w", "youhavetoberealistic", "-t"}}, [][]string{{"-u", "gorst", "-w", "youhavetoberealistic"}}},
		"secret": {"use-auth-secret\nstatic-auth-secret=the first of two secrets\nstatic-auth-secret=the second of two secrets",
			[][]string{{"-u", "gorst", "-W", "the first of two secrets"}, {"-u", "gorst", "-W", "the second of two secrets", "-t"}}, [][]string{{"-u", "gorst", "-W", "a third that nobody has"}}},
	} {
		t.Run(name, func(t *testing.T) {
			dir, port := lab.DataFolder(t), strconv.Itoa(FreePort(t))
			file := filepath.Join(dir, "turnserver.conf")
			conf := "listening-ip=127.0.0.1\nlistening-port=" + port + "\nrealm=north.gov\nmin-port=30000\nmax-port=30999\nno-tls\nno-dtls\nno-cli\nallow-loopback-peers\nno-rfc5780\n" + c.conf + "\n"
			if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
				t.Fatal(err)
			}
			serves := func(who string, args []string, want bool) {
				t.Helper()
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
				defer cancel()
				out, err := exec.CommandContext(ctx, "turnutils_uclient", append(args, "-y", "-c", "-n", "5", "-m", "1", "-p", port, "127.0.0.1")...).CombinedOutput()
				if got := err == nil && strings.Contains(string(out), "Total lost packets 0 (0.000000%)"); got != want {
					t.Errorf("%s, %v: served %v, want %v: %v\n%s", who, args, got, want, err, out)
				}
			}
			all := func(who string) {
				t.Helper()
				for _, args := range c.good {
					serves(who, args, true)
				}
				for _, args := range c.bad {
					serves(who, args, false)
				}
			}
			t.Run("turnserver", func(t *testing.T) {
				var log bytes.Buffer
				server := exec.Command("turnserver", "-c", file, "--log-file=stdout", "--pidfile="+filepath.Join(dir, "pid"), "--userdb="+filepath.Join(dir, "turndb"))
				server.SysProcAttr, server.Stdout, server.Stderr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}, &log, &log
				serve(t, server, syscall.SIGTERM, &log)
				until(t, func() bool {
					c, err := net.Dial("tcp", "127.0.0.1:"+port)
					if err == nil {
						_ = c.Close()
					}
					return err == nil
				})
				all("turnserver")
			})
			out := filepath.Join(dir, "out")
			if said, err := exec.CommandContext(t.Context(), lab.Binary(t), "import", "coturn", file, "--out", out).CombinedOutput(); err != nil {
				t.Fatalf("%v %s", err, said)
			}
			lab.Start(t, nil, filepath.Join(dir, "data"), "--config", filepath.Join(out, conv.FileYAML), "turn")
			all("wicgate")
		})
	}
}
