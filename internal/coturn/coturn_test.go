package coturn

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"wicgate/internal/config"
	"wicgate/internal/keyring"
	"wicgate/internal/peerpolicy"
	"wicgate/internal/secret"
)

var update = flag.Bool("update", false, "write the golden files")

var place = Place{Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.10"), netip.MustParseAddr("2001:db8::10")}, Dir: "/etc/wicgate"}

func convert(t testing.TB, conf string, db Database, at Place) Result {
	t.Helper()
	o, err := Parse([]byte(conf))
	if err != nil {
		t.Fatal(err)
	}
	return Convert(o, db, at)
}

// text is a result as golden files hold it.
func (r Result) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "-- %s --\n%s", FileYAML, r.YAML)
	if !r.Users.IsZero() {
		fmt.Fprintf(&b, "-- %s --\n%s", FileUsers, r.Users.Expose())
	}
	if !r.Secrets.IsZero() {
		fmt.Fprintf(&b, "-- %s --\n%s", FileSecrets, r.Secrets.Expose())
	}
	b.WriteString("-- report --\n")
	for _, n := range r.Notes {
		fmt.Fprintf(&b, "%-14s %v\n", n.Kind, n)
	}
	return b.String()
}

// TestGuides converts configurations as known guides have them.
func TestGuides(t *testing.T) {
	files, err := filepath.Glob("testdata/*.conf")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, name := range files {
		t.Run(filepath.Base(name), func(t *testing.T) {
			conf, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			r := convert(t, string(conf), Database{}, place)
			golden := strings.TrimSuffix(name, ".conf") + ".golden"
			if *update {
				if err := os.WriteFile(golden, []byte(r.text()), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got := r.text(); got != string(want) {
				t.Errorf("got\n%s\nwant\n%s\n(-update writes it)", got, want)
			}
			f := accepted(t, r)
			for _, found := range f.Review([]string{"turn"}) {
				if found.Severity == config.Error {
					t.Errorf("check refuses it: %v", found)
				}
			}
			for _, s := range []string{"mistyped", "hunter2", "opensesame", "s3cret", "correct horse"} {
				if strings.Contains(r.YAML, s) || slices.ContainsFunc(r.Notes, func(n Note) bool { return strings.Contains(n.String(), s) }) {
					t.Errorf("%q is shown", s)
				}
			}
		})
	}
}

// accepted puts a result's files where it says, and reads them as wicgate does.
func accepted(t testing.TB, r Result) *config.File {
	t.Helper()
	dir := t.TempDir()
	write := func(name, text string) string {
		full := filepath.Join(dir, name)
		if err := os.WriteFile(full, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return full
	}
	f, err := config.Load(write(FileYAML, r.YAML))
	if err != nil {
		t.Fatalf("%v in\n%s", err, r.YAML)
	}
	if !r.Secrets.IsZero() {
		if _, err := keyring.OpenSecrets(write(FileSecrets, string(r.Secrets.Expose())), false); err != nil {
			t.Errorf("secrets: %v", err)
		}
	}
	if !r.Users.IsZero() {
		if _, err := keyring.OpenUsers(write(FileUsers, string(r.Users.Expose())), f.TURN.Name); err != nil {
			t.Errorf("users: %v", err)
		}
	}
	return f
}

// TestEachOptionIsAnswered: of each option of the committed list a report says what became of it.
func TestEachOptionIsAnswered(t *testing.T) {
	b, err := os.ReadFile("testdata/options.txt")
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]string{
		"listening-ip": "192.0.2.1", "relay-ip": "192.0.2.1", "external-ip": "192.0.2.1", "aux-server": "192.0.2.1:3000", "alt-listening-port": "3002", "listening-port": "3000", "tls-listening-port": "3001",
		"min-port": "5000", "max-port": "6000", "denied-peer-ip": "45.0.0.1", "allowed-peer-ip": "10.0.0.1", "user": "a:b", "user-quota": "9", "total-quota": "9", "max-bps": "9", "bps-capacity": "9",
		"static-auth-secret": "0123456789abcdef", "prometheus-port": "9000", "prometheus-address": "127.0.0.1", "max-allocate-lifetime": "9", "log-min-level": "warn",
	}
	// What an option is read with.
	with := map[string]string{
		"tls-listening-port": "cert=/c\npkey=/k", "cert": "pkey=/k", "pkey": "cert=/c", "no-tls": "cert=/c\npkey=/k", "dtls": "cert=/c\npkey=/k",
		"prometheus-port": "prometheus", "prometheus-address": "prometheus", "rest-api-separator": "use-auth-secret",
	}
	known := map[string]bool{}
	for _, name := range strings.Fields(comments(string(b))) {
		known[name] = true
		if _, ok := options[name]; !ok {
			t.Errorf("%s: not in the table", name)
			continue
		}
		value := values[name]
		if value == "" && options[name].kind != toggle {
			value = "x"
		}
		r := convert(t, with[name]+"\n"+strings.TrimSuffix(name+"="+value, "=")+"\n", Database{}, place)
		if !slices.ContainsFunc(r.Notes, func(n Note) bool {
			return slices.Contains(strings.Split(n.Option, ", "), name) && n.Text != "" && (n.Line > 0 || options[name].kind == text)
		}) {
			t.Errorf("%s: the report says nothing of it:\n%s", name, r.text())
		}
		if o := options[name]; (o.fate == taken) != (o.why == "") {
			t.Errorf("%s: taken, or a reason", name)
		}
	}
	for _, name := range Names() {
		if !known[name] {
			t.Errorf("%s is in the table and not in testdata/options.txt", name)
		}
	}
}

// comments takes them out.
func comments(s string) (out string) {
	for line := range strings.Lines(s) {
		if line[0] != '#' {
			out += line
		}
	}
	return out
}

func TestParse(t *testing.T) {
	o, err := Parse([]byte("  realm \t=  a b  \r\n#x\n;\nno-udp=0\nno-tcp off\nno-cli=no\nuser=\"a:b\"\nrealm=c\nnot-an-option=secret\nstatic-auth-secret:secret\n" +
		"cert=" + strings.Repeat("x", 2000) + "\nfingerprint\nstale-nonce\nmin-port=5"))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range o.settings {
		got = append(got, fmt.Sprintf("%d %s=%s%s", s.line, s.name, s.value, s.hidden.Expose()))
	}
	if want := []string{"1 realm=a b", "4 no-udp=0", "5 no-tcp=off", "7 user=a:b", "8 realm=c", "12 fingerprint=", "13 stale-nonce=", "14 min-port=5"}; !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	if o.is("no-udp") || o.is("no-tcp") || !o.is("fingerprint") {
		t.Error("flags")
	}
	if s, _ := o.last("realm"); s.value != "c" {
		t.Errorf("the last holds, not %v", s)
	}
	var bad []string
	for _, n := range o.bad {
		bad = append(bad, n.String())
	}
	if all := strings.Join(bad, "\n"); len(bad) != 4 || !strings.Contains(all, "9: not-an-option: ") || !strings.Contains(all, "10: static-auth-secret…: ") || !strings.Contains(all, "11: cert: ") || strings.Contains(all, "=secret") {
		t.Errorf("%s", all)
	}
	for _, c := range [][]byte{make([]byte, MaxSize+1), []byte("realm=\x00")} {
		if _, err := Parse(c); err == nil {
			t.Error("taken")
		}
	}
}

// TestSource: the database that holds, and where it is.
func TestSource(t *testing.T) {
	for conf, want := range map[string]string{
		"":                                 "",
		"userdb=/x":                        "sqlite /x",
		"db /x\npsql-userdb=\"host=y p=\"": "postgresql host=y p=",
		"redis-userdb=\"ip=1 dbname=2\"":   "redis ip=1 dbname=2",
		"userdb=/x\nmysql-userdb=\"h\"":    "",
	} {
		o, err := Parse([]byte(conf))
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		if s, ok := o.Source(); ok {
			got = s.Kind + " " + string(s.Where.Expose())
		}
		if got != want {
			t.Errorf("%q: %q, want %q", conf, got, want)
		}
	}
}

func TestRanges(t *testing.T) {
	for _, c := range []struct{ spans, holes, want string }{
		{"10.0.0.0-10.255.255.255", "", "10.0.0.0/8"},
		{"0.0.0.0-255.255.255.255", "", "0.0.0.0/0"},
		{"::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "", "::/0"},
		{"192.0.2.1", "", "192.0.2.1/32"},
		{"172.17.13.133-172.17.14.56", "", "172.17.13.133/32 172.17.13.134/31 172.17.13.136/29 172.17.13.144/28 172.17.13.160/27 172.17.13.192/26 172.17.14.0/27 172.17.14.32/28 172.17.14.48/29 172.17.14.56/32"},
		{"255.255.255.254-255.255.255.255", "", "255.255.255.254/31"},
		{"10.0.0.0-10.0.0.9 10.0.0.5-10.0.0.15", "", "10.0.0.0/28"},
		{"10.0.0.8-10.0.0.15 10.0.0.0-10.0.0.7", "", "10.0.0.0/28"},
		{"10.0.0.0-10.0.0.7", "10.0.0.3", "10.0.0.0/31 10.0.0.2/32 10.0.0.4/30"},
		{"10.0.0.0-10.0.0.7", "10.0.0.0 10.0.0.7", "10.0.0.1/32 10.0.0.2/31 10.0.0.4/31 10.0.0.6/32"},
		{"10.0.0.0-10.0.0.7", "9.0.0.0-11.0.0.0", ""},
		{"0.0.0.0-255.255.255.255", "255.255.255.255 ::", "0.0.0.0/1 128.0.0.0/2 192.0.0.0/3 224.0.0.0/4 240.0.0.0/5 248.0.0.0/6 252.0.0.0/7 254.0.0.0/8 255.0.0.0/9 255.128.0.0/10 255.192.0.0/11 255.224.0.0/12 255.240.0.0/13 255.248.0.0/14 255.252.0.0/15 255.254.0.0/16 255.255.0.0/17 255.255.128.0/18 255.255.192.0/19 255.255.224.0/20 255.255.240.0/21 255.255.248.0/22 255.255.252.0/23 255.255.254.0/24 255.255.255.0/25 255.255.255.128/26 255.255.255.192/27 255.255.255.224/28 255.255.255.240/29 255.255.255.248/30 255.255.255.252/31 255.255.255.254/32"},
		{"::ffff:0.0.0.0-::ffff:255.255.255.255", "", "::ffff:0.0.0.0/96"},
		{"2001:db8::-2001:db8::2", "2001:db8::1", "2001:db8::/128 2001:db8::2/128"},
	} {
		read := func(s string) (out []span) {
			for _, f := range strings.Fields(s) {
				r, _, err := parseSpan(f)
				if err != nil {
					t.Fatal(err)
				}
				out = append(out, r)
			}
			return union(out)
		}
		var got []string
		for _, p := range prefixesOf(without(read(c.spans), read(c.holes))) {
			got = append(got, p.String())
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s without %s: %v, want %s", c.spans, c.holes, got, c.want)
		}
	}
	for _, bad := range []string{"", "-", "10.0.0.2-10.0.0.1", "10.0.0.1-::1", "x", "fe80::1%eth0", "10.0.0.0/33", "10.0.0.1-10.0.0.2-10.0.0.3"} {
		if _, _, err := parseSpan(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

// TestPeersAreNoMoreThanCoturns: whatever its lists say, a peer that coturn refuses is refused; and a
// public one that it allows is allowed.
func TestPeersAreNoMoreThanCoturns(t *testing.T) {
	conf := "denied-peer-ip=45.0.0.0-45.0.3.255\ndenied-peer-ip=10.0.0.0-10.255.255.255\nallowed-peer-ip=45.0.1.7\nallowed-peer-ip=10.1.1.1-10.1.1.2\ndenied-peer-ip=2a00::-2a00::f\nallowed-peer-ip=127.0.0.1\n"
	r := convert(t, conf, Database{}, place)
	f := accepted(t, r)
	var open []peerpolicy.Range
	for _, o := range f.TURN.Open {
		open = append(open, peerpolicy.Range{Prefix: o.Prefix, MinPort: o.Ports.First, MaxPort: o.Ports.Last})
	}
	p := peerpolicy.General(open...)
	for _, c := range f.TURN.Closed {
		p = p.WithClosed(c.Prefix)
	}
	for addr, want := range map[string]bool{
		"45.0.0.0": false, "45.0.3.255": false, "45.0.1.7": true, "45.0.1.6": false, "45.0.1.8": false, "45.0.4.0": true, "44.255.255.255": true,
		"10.1.1.1": true, "10.1.1.2": true, "10.1.1.3": false, "10.1.1.0": false, "2a00::f": false, "2a00::10": true, "127.0.0.1": false,
	} {
		if got := p.Allow(netip.AddrPortFrom(netip.MustParseAddr(addr), 5000)) == nil; got != want {
			t.Errorf("%s: %v, want %v in\n%s", addr, got, want, r.YAML)
		}
	}
}

// TestWildcards: turnserver listens on wildcards of both families and on addresses beside them; here a
// wildcard takes all, and what cannot be listened on beside it is left out.
func TestWildcards(t *testing.T) {
	for conf, want := range map[string]string{
		"listening-ip=0.0.0.0\nlistening-ip=::\n":                                        "[0.0.0.0:3478]",
		"listening-ip=::\nlistening-ip=192.0.2.10\n":                                     "[[::]:3478]",
		"listening-ip=192.0.2.10\nlistening-ip=0.0.0.0\naux-server=192.0.2.10:3479\n":    "[0.0.0.0:3478 192.0.2.10:3479]",
		"listening-ip=192.0.2.10\naux-server=0.0.0.0:3478\naux-server=192.0.2.10:3478\n": "[0.0.0.0:3478]",
	} {
		r := convert(t, conf, Database{}, place)
		f := accepted(t, r)
		for _, found := range f.Review([]string{"turn"}) {
			if found.Severity == config.Error {
				t.Errorf("%q: %v", conf, found)
			}
		}
		if got := fmt.Sprint(f.TURN.Listen); got != want || fmt.Sprint(f.TURN.ListenTCP) != want {
			t.Errorf("%q: listens on %v, %v, want %s", conf, got, f.TURN.ListenTCP, want)
		}
		if !slices.ContainsFunc(r.Notes, func(n Note) bool { return n.Kind == Differs && strings.Contains(n.Text, "of IPv4 and IPv6") }) {
			t.Errorf("%q: the report says nothing of it:\n%s", conf, r.text())
		}
	}
}

// TestScalars: what is a text in turnserver.conf is the same text in YAML, whatever it looks like there.
func TestScalars(t *testing.T) {
	for _, s := range []string{"1.50", "1.0", "1.e5", "0.1", "12:30:45", "2001-01-01", "null", "~", "yes", "/a b", "/a: b", "/a #b", "-x", "{a}", "*x", "'x", `/\n`, "/é", "/\x1b[31m", "/a\u2028b", "/a\ufeffb"} {
		r := convert(t, "realm=a.test\ncert="+s+"\npkey=/k\n", Database{}, place)
		if got := accepted(t, r).HTTPS.Certificate; got != s {
			t.Errorf("%q became %q", s, got)
		}
	}
	if got := accepted(t, convert(t, "realm=1.50\n", Database{}, place)).TURN.Name; got != "1.50" {
		t.Errorf("the realm 1.50 became %s", got)
	}
}

// TestTooMuch: lists without end make no server without end, and do not open what they close.
func TestTooMuch(t *testing.T) {
	var conf strings.Builder
	for i := range 3000 {
		fmt.Fprintf(&conf, "listening-ip=10.0.%d.%d\nrelay-ip=10.1.%d.%d\ndenied-peer-ip=45.%d.%d.1-45.%d.%d.200\n", i/256, i%256, i/256, i%256, i/256, i%256, i/256, i%256)
	}
	r := convert(t, conf.String(), Database{}, place)
	f := accepted(t, r)
	if f.TURN.Profile != "ims" || len(f.TURN.Listen) != maxAddresses || strings.Count(r.YAML, "bind:") != maxAddresses {
		t.Errorf("%s, %d, %d", f.TURN.Profile, len(f.TURN.Listen), strings.Count(r.YAML, "bind:"))
	}
}

// database is one of two realms.
func database() Database {
	s := func(t string) secret.Bytes { return secret.New([]byte(t)) }
	return Database{
		From: "a test",
		Users: []Credential{
			{"north.gov", "ninefingers", s("BC807EE29DF3C9FFA736523FB2C4E8EE")}, {"north.gov", "gorst", s("7da2270ccfa49786e0115366d3a3d14d")},
			{"north.gov", "broken", s("7da2")}, {"north.gov", "line\nbreak", s("7da2270ccfa49786e0115366d3a3d14d")}, {"crinna.org", "whirrun", s("6972e85e51f36e53b0b61759c5a5219a")},
		},
		Secrets: []Credential{{"north.gov", "", s("a secret of the north")}, {"north.gov", "", s("short")}, {"crinna.org", "", s("a secret of the south")}},
		Keys: []OAuthKey{
			{"north.gov", "union", "A128GCM", s("MTIzNDU2Nzg5MDEyMzQ1Ngo="), "", ""}, {"", "oldempire", "", s("MTIzNDU2Nzg5MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIK"), "1767225600", "3600"},
			{"crinna.org", "north", "A256GCM", s("MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDEK"), "0", "0"}, {"", "short", "A256GCM", s("MTIzNDU2Nzg5MDEyMzQ1Ngo="), "0", "0"},
			{"", "a b", "", s(""), "", ""}, {"", "cbc", "A256CBC", s(""), "", ""}, {"", "text", "", s("%"), "", ""}, {"", "when", "A128GCM", s("MTIzNDU2Nzg5MDEyMzQ1Ngo="), "x", "1"},
		},
		Allowed: []Record{{"", "", "172.17.13.200"}, {"crinna.org", "", "172.17.13.202"}},
		Denied:  []Record{{"north.gov", "", "45.1.0.0-45.1.255.255"}, {"crinna.org", "", "45.2.0.0-45.2.255.255"}},
		Limits:  []Record{{"north.gov", "user-quota", "50"}, {"north.gov", "total-quota", "12000"}, {"crinna.org", "user-quota", "7"}, {"north.gov", "max-bps", "500000"}},
		Origins: 2, Admins: 1,
	}
}

// TestDatabase: what coturn has in its database, of the realm alone.
func TestDatabase(t *testing.T) {
	for _, c := range []struct {
		name, conf string
		place      Place
		have, lack []string
	}{
		{"users", "realm=north.gov\nlt-cred-mech\nuserdb=/x\n", place,
			[]string{"bc807ee29df3c9ffa736523fb2c4e8ee - ninefingers\n", "7da2270ccfa49786e0115366d3a3d14d - gorst\n", `"broken": a key is 32`, "a name of 10 bytes", "172.17.13.200/32 1024-65535", "45.1.0.0/16", "quota: 50",
				"quota_total: 12000", "allocation: 8000000", `another realm, "crinna.org"`, "8 keys: turnserver does not look at them without oauth", "taken over     3: userdb: read: a test", "2 users without a password that is known", "2 rows"},
			[]string{"whirrun", "172.17.13.202", "45.2", "secret of"}},
		{"secrets", "realm=north.gov\nuse-auth-secret\n", place, []string{"\na secret of the north\n", "a secret of 5 bytes is left out", "4 users: turnserver does not look at users"}, []string{"ninefingers", "secret of the south", "-- turn-users"}},
		{"the other realm", "realm=north.gov\n", Place{Realm: "crinna.org", Dir: "/etc"}, []string{"name: crinna.org", "6972e85e51f36e53b0b61759c5a5219a - whirrun", "45.2.0.0/16", "quota: 7"}, []string{"gorst", "45.1."}},
		{"lists left alone", "realm=north.gov\nno-dynamic-ip-list\nno-dynamic-realms\n", place, nil, []string{"45.1", "172.17.13.200", "quota: 50"}},
		{"tokens", "realm=north.gov\noauth\nlt-cred-mech\n", place,
			[]string{"keys: /etc/wicgate/turn-plain-keys.json", "kid_mode: plain", "mac16: true", "with 2 keys", `"north" moves its clients into another realm`, `"short" is left out: its key has 17 bytes, A256GCM wants 32`, `"a b" is left out`,
				`not "A256CBC"`, "not base64", "no numbers of seconds"}, []string{"MTIzNDU2"}},
		{"a realm in upper case", "realm=North.gov\n", place, nil, []string{"ninefingers"}},
		{"file over database", "realm=north.gov\nuser=gorst:hero\nuser=gorst2:0x7da2270ccfa49786e0115366d3a3d14d\n", place,
			[]string{"7da2270ccfa49786e0115366d3a3d14d 09d34a27958c1a248939ee283773900b10eb8e49ddbaab29c9306f0e2ec01e5c gorst\n"}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := convert(t, c.conf, database(), c.place)
			accepted(t, r)
			text := r.text()
			for _, s := range c.have {
				if !strings.Contains(text, s) {
					t.Errorf("lacks %q", s)
				}
			}
			for _, s := range c.lack {
				if strings.Contains(text, s) {
					t.Errorf("has %q", s)
				}
			}
			if t.Failed() {
				t.Log(text)
			}
		})
	}
	odd := database()
	odd.Limits = []Record{{"north.gov", "max-bps", "1152921504606846976"}, {"north.gov", "user-quota", "-1"}, {"north.gov", "total-quota", "many\x1b"}, {"crinna.org", "total-quota", "x"}}
	if r := convert(t, "realm=north.gov\nuser-quota=9\n", odd, place); strings.Count(r.text(), "of the database is no number from 0 to 2147483647") != 3 || !strings.Contains(r.YAML, "quota: 9\n") || strings.Contains(r.text(), "rates.allocation:") || strings.Contains(r.text(), "\x1b") {
		t.Errorf("limits that are none:\n%s", r.text())
	}
	one := database()
	one.Users, one.Secrets = one.Users[:2], nil
	if r := convert(t, "", one, place); !strings.Contains(r.YAML, "name: north.gov") {
		t.Errorf("the only realm of a database is not taken:\n%s", r.text())
	}
}

// FuzzConvert: whatever the file says, what comes of it is a configuration, and shows no secret.
func FuzzConvert(f *testing.F) {
	files, err := filepath.Glob("testdata/*.conf")
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte("listening-ip=0.0.0.0\nlistening-ip=::\nexternal-ip=1.2.3.4\naux-server=[::1]:5\nrealm=\"\n"))
	f.Add([]byte("denied-peer-ip=0.0.0.0-255.255.255.255\nallowed-peer-ip=::-ffff::\nuser=\":x\"\nuser=a:0x\nmin-port=99999999999\n"))
	f.Add([]byte("cert=a: b # c\npkey=- x\nno-tls\ndtls\nrealm=-.\nno-udp\nlistening-ip=fe80::1%1"))
	f.Fuzz(func(t *testing.T, b []byte) {
		o, err := Parse(b)
		if err != nil {
			return
		}
		r := Convert(o, database(), place)
		accepted(t, r)
		for _, s := range o.settings {
			if h := string(s.hidden.Expose()); len(h) > 12 && !strings.Contains(strings.ReplaceAll(string(b), h, ""), h) && strings.Contains(r.YAML, h) {
				t.Errorf("%s is shown", s.name)
			}
		}
	})
}
