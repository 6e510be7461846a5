package check

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"wicgate/internal/config"
	"wicgate/internal/keyring"
)

var roles = []string{"turn", "waf", "wwsf", "epcscf", "imsagw", "democore"}

func load(t *testing.T, text string) *config.File {
	t.Helper()
	name := filepath.Join(t.TempDir(), "wicgate.yaml")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := config.Load(name)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// ports0 lets the kernel choose each port, so that tests do not meet.
const ports0 = "https: {listen: '127.0.0.1:0'}\nturn: {listen: ['127.0.0.1:0'], listen_tcp: ['127.0.0.1:0']}\nepcscf: {listen: '127.0.0.1:0'}\ndemocore: {listen: '127.0.0.1:0'}\n"

func text(found []config.Finding) string {
	var out []string
	for _, f := range found {
		out = append(out, string(f.Severity)+" "+f.String())
	}
	return strings.Join(out, "\n")
}

// pair writes a certificate and its key, and returns their names.
func pair(t *testing.T, from, until time.Time, keyMode os.FileMode, names ...string) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "x"}, NotBefore: from, NotAfter: until, DNSNames: names}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for name, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(name, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(key, keyMode); err != nil {
		t.Fatal(err)
	}
	return cert, key
}

func TestCertificate(t *testing.T) {
	now := time.Now()
	year := now.AddDate(1, 0, 0)
	for name, c := range map[string]struct {
		from, until time.Time
		mode        os.FileMode
		names       []string
		want        string // "" = nothing
	}{
		"fine":           {now, year, 0o600, []string{"a.test", "turn.test"}, ""},
		"expired":        {now.AddDate(-1, 0, 0), now.Add(-time.Hour), 0o600, []string{"a.test", "turn.test"}, "error wicgate.yaml:1: https.certificate: CERT expired on"},
		"not yet":        {now.Add(time.Hour), year, 0o600, []string{"a.test", "turn.test"}, "error wicgate.yaml:1: https.certificate: CERT is not valid before"},
		"soon":           {now, now.Add(5 * 24 * time.Hour), 0o600, []string{"a.test", "turn.test"}, "warning wicgate.yaml:1: https.certificate: CERT expires on"},
		"another portal": {now, year, 0o600, []string{"b.test", "turn.test"}, "error wicgate.yaml:1: https.url: browsers go to a.test, and the certificate CERT is for b.test, turn.test"},
		"another TURN":   {now, year, 0o600, []string{"a.test"}, "error wicgate.yaml:2: turn.urls[1]: browsers go to turn.test, and the certificate CERT is for a.test"},
		"world":          {now, year, 0o604, []string{"a.test", "turn.test"}, "error wicgate.yaml:1: https.key: KEY has mode 0604: every user of this machine can read the key"},
		"group":          {now, year, 0o640, []string{"a.test", "turn.test"}, "warning wicgate.yaml:1: https.key: KEY has mode 0640: its group can read the key"},
	} {
		t.Run(name, func(t *testing.T) {
			cert, key := pair(t, c.from, c.until, c.mode, c.names...)
			f := load(t, fmt.Sprintf("https: {url: 'https://a.test:8443', certificate: %s, key: %s}\nturn: {urls: ['turn:127.0.0.1:3478', 'turns:turn.test:3478']}\n", cert, key))
			got := strings.NewReplacer(cert, "CERT", key, "KEY").Replace(text(Cheap(Input{File: f, Data: t.TempDir(), Roles: roles})))
			if c.want == "" && got != "" || !strings.Contains(got, c.want) {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

// Clients who ask for a tenant's name by SNI are shown the one certificate too.
func TestCertificateOfTenants(t *testing.T) {
	now := time.Now()
	cert, key := pair(t, now, now.AddDate(1, 0, 0), 0o600, "a.test", "*.b.test")
	f := load(t, fmt.Sprintf("https: {url: 'https://a.test:8443', certificate: %s, key: %s}\nturn:\n  urls: ['turn:127.0.0.1:3478']\n  tenants:\n    - {name: b.test, server_names: [turn.b.test]}\n    - {name: c.test, server_names: [turn.b.test.c.test,\n      c.test]}\n", cert, key))
	got := text(Cheap(Input{File: f, Data: t.TempDir(), Roles: roles}))
	for _, want := range []string{"warning wicgate.yaml:6: turn.tenants[1].server_names[0]: clients ask for turn.b.test.c.test, and the certificate ", "warning wicgate.yaml:7: turn.tenants[1].server_names[1]: clients ask for c.test, and the certificate "} {
		if !strings.Contains(got, want) || strings.Contains(got, "tenants[0]") {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}

func TestCertificateFiles(t *testing.T) {
	cert, _ := pair(t, time.Now(), time.Now().Add(time.Hour), 0o600, "localhost")
	_, foreign := pair(t, time.Now(), time.Now().Add(time.Hour), 0o600, "localhost")
	garbage := filepath.Join(t.TempDir(), "garbage.pem")
	if err := os.WriteFile(garbage, []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ file, want string }{
		"no certificate": {"https: {certificate: /none.pem, key: " + foreign + "}\n", "error wicgate.yaml:1: https.certificate: certificate /none.pem with key"},
		"no key":         {"https:\n  certificate: " + cert + "\n  key: /none.pem\n", "error wicgate.yaml:3: https.key: certificate"},
		"another's key":  {"https:\n  certificate: " + cert + "\n  key: " + foreign + "\n", "error wicgate.yaml:3: https.key: certificate"},
		"garbage":        {"https:\n  certificate: " + garbage + "\n  key: " + foreign + "\n", "error wicgate.yaml:2: https.certificate: certificate"},
		"CA":             {"https:\n  certificate: " + cert + "\n  key: " + foreign + "\n  ca: " + garbage + "\n", "error wicgate.yaml:4: https.ca: listen: CA file " + garbage + " holds no PEM certificate"},
	} {
		if got := text(Cheap(Input{File: load(t, c.file), Data: t.TempDir(), Roles: roles})); !strings.Contains(got, c.want) {
			t.Errorf("%s: got  %s\nwant %s", name, got, c.want)
		}
	}
}

// tree lists a folder, to show that nothing was written.
func tree(t *testing.T, dir string) (out []string) {
	t.Helper()
	err := filepath.Walk(dir, func(name string, info os.FileInfo, err error) error {
		if err == nil {
			out = append(out, fmt.Sprint(name, info.Mode(), info.ModTime()))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestWritesNothing: a data folder that is not there stays so, and one that is there is left as it was.
func TestWritesNothing(t *testing.T) {
	dir := t.TempDir()
	data := filepath.Join(dir, "a", "b")
	r := All(Input{File: load(t, ports0), Data: data, Roles: roles})
	if !r.OK || !slices.Contains(r.Tested, "data folder "+data+": will be made") {
		t.Errorf("%+v", r)
	}
	if _, err := os.Stat(filepath.Join(dir, "a")); err == nil {
		t.Error("a folder was made")
	}
	if err := os.MkdirAll(data, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := keyring.OpenFile(filepath.Join(data, "turn-keys.json"), "turn.ims.test"); err != nil {
		t.Fatal(err)
	}
	before := tree(t, dir)
	r = All(Input{File: load(t, ports0), Data: data, Roles: roles})
	if !r.OK {
		t.Errorf("%s", text(r.Findings))
	}
	if d := cmp.Diff(before, tree(t, dir)); d != "" {
		t.Error(d)
	}
}

func TestFiles(t *testing.T) {
	data := t.TempDir()
	put := func(name, text string, mode os.FileMode) string {
		t.Helper()
		name = filepath.Join(data, name)
		if err := os.WriteFile(name, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return name
	}
	if _, err := keyring.OpenFile(filepath.Join(data, "other.json"), "other.test"); err != nil {
		t.Fatal(err)
	}
	put("open.json", "{}", 0o644)
	put("waf-key.pem", "", 0o640)
	put("wwsf-client.secret", "", 0o604)
	put("turn-secrets.txt", "short", 0o600)
	nkey := put("nkey", "", 0o644)
	put("stun-key-odd.test.json", "{}", 0o600)
	for name, c := range map[string]struct{ file, want string }{
		"keys of another":            {"turn: {keys: " + filepath.Join(data, "other.json") + "}\n", `error wicgate.yaml:1: turn.keys: keyring: ` + filepath.Join(data, "other.json") + `: holds the keys of TURN server "other.test", not of "turn.ims.test"`},
		"open keys":                  {"turn: {keys: " + filepath.Join(data, "open.json") + "}\n", "has mode 0644, others than its owner can reach what is in it\n  hint: chmod 600"},
		"nowhere":                    {"turn: {keys: /nowhere/k.json}\n", "error wicgate.yaml:1: turn.keys: /nowhere/k.json is not there, and cannot be made"},
		"signing key":                {"", "error waf.signing_key: " + filepath.Join(data, "waf-key.pem") + " has mode 0640"},
		"keys of the other mode":     {"turn: {quota: 2000, keys: " + filepath.Join(data, "other.json") + ", oauth: {kid_mode: plain}}\n", "error wicgate.yaml:1: turn.keys: keyring: " + filepath.Join(data, "other.json")},
		"no client CA":               {"waf: {stun_key: {listen: '127.0.0.1:0', client_ca: /none, servers: [a.test]}}\n", "error wicgate.yaml:1: waf.stun_key.client_ca: "},
		"keys of a server elsewhere": {"waf: {stun_key: {servers: [odd.test]}}\n", "error wicgate.yaml:1: waf.stun_key.servers[0]: keyring: " + filepath.Join(data, "stun-key-odd.test.json")},
		"client secret":              {"", "error wwsf.client_secret: " + filepath.Join(data, "wwsf-client.secret") + " has mode 0604"},
		"TURN secrets":               {"", "error turn.secrets: keyring: " + filepath.Join(data, "turn-secrets.txt") + ":1: a secret of 5 bytes, want 16 to 256"},
		"nkey":                       {"bus: {url: 'nats://10.0.0.1', nkey: " + nkey + "}\n", "error wicgate.yaml:1: bus.nkey: " + nkey + " has mode 0644"},
		"no nkey":                    {"bus: {url: 'nats://10.0.0.1', nkey: /none}\n", "error wicgate.yaml:1: bus.nkey: stat /none: no such file"},
	} {
		if got := text(Cheap(Input{File: load(t, c.file), Data: data, Roles: roles})); !strings.Contains(got, c.want) {
			t.Errorf("%s: got  %s\nwant %s", name, got, c.want)
		}
	}
}

// TestKeyPull: the certificate by which a TURN server pulls its keys has its one name.
func TestKeyPull(t *testing.T) {
	dir := t.TempDir()
	for name, c := range map[string]struct {
		names []string
		days  int
		want  string
	}{
		"good":      {[]string{"turn.ims.test"}, 90, ""},
		"another's": {[]string{"turn2.ims.test"}, 90, "is for turn2.ims.test, and the WAF gives the keys of turn.ims.test to a certificate with that one name"},
		"two names": {[]string{"turn.ims.test", "turn2.ims.test"}, 90, "to a certificate with that one name"},
		"ends soon": {[]string{"turn.ims.test"}, 2, "warning wicgate.yaml:1: turn.key_pull.certificate: "},
		"has ended": {[]string{"turn.ims.test"}, -2, "expired on"},
	} {
		cert, key := pair(t, time.Now().AddDate(0, 0, -10), time.Now().AddDate(0, 0, c.days), 0o600, c.names...)
		file := fmt.Sprintf("turn: {quota: 2000, oauth: {kid_mode: plain}, key_pull: {url: 'https://waf.test', certificate: %s, key: %s}}\n", cert, key)
		got := text(Cheap(Input{File: load(t, file), Data: dir, Roles: []string{"turn"}}))
		if c.want == "" && strings.Contains(got, "key_pull") || !strings.Contains(got, c.want) {
			t.Errorf("%s: got  %s\nwant %s", name, got, c.want)
		}
	}
	file := "turn: {quota: 2000, oauth: {kid_mode: plain}, key_pull: {url: 'https://waf.test', certificate: /none, key: /none, ca: /none}}\n"
	got := text(Cheap(Input{File: load(t, file), Data: dir, Roles: []string{"turn"}}))
	for _, want := range []string{"turn.key_pull.certificate: certificate /none with key /none", "turn.key_pull.ca: "} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in %s", want, got)
		}
	}
}

// TestSecretsAreRead: what run refuses to read, check does not call well.
func TestSecretsAreRead(t *testing.T) {
	data := t.TempDir()
	put := func(name string, text []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(data, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	found := func(yaml string, roles ...string) string {
		return text(Cheap(Input{File: load(t, yaml), Data: data, Roles: roles}))
	}
	put("waf-key.pem", []byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"))
	put("wwsf-client.secret", []byte("short\n"))
	got := found("", "waf", "wwsf")
	for _, want := range []string{"error waf.signing_key: " + filepath.Join(data, "waf-key.pem") + " holds no", "error wwsf.client_secret: " + filepath.Join(data, "wwsf-client.secret") + ": want one line of 32 to 256"} {
		if !strings.Contains(got, want) {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
	gone := "wwsf: {client_secret: " + filepath.Join(data, "none") + "}\n"
	if got, want := found(gone, "wwsf"), "error wicgate.yaml:1: wwsf.client_secret: open "+filepath.Join(data, "none"); !strings.Contains(got, want) {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	put("waf-key.pem", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	put("wwsf-client.secret", []byte(strings.Repeat("x", 43)+"\n"))
	if got := found("", "waf", "wwsf"); got != "" {
		t.Errorf("good ones: %s", got)
	}
	if got := found("", "wwsf"); got != "" {
		t.Errorf("a portal: %s", got)
	}
}

func TestFolder(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	wide := filepath.Join(t.TempDir(), "wide")
	if err := os.Mkdir(wide, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(wide, 0o777); err != nil {
		t.Fatal(err)
	}
	for data, want := range map[string]string{
		file:                      "error data folder " + file + " is no folder",
		filepath.Join(file, "d"):  "error data folder: stat " + filepath.Join(file, "d") + ": not a directory",
		wide:                      "warning data folder " + wide + " has mode 0777: others can put files there",
		strings.Repeat("/dd", 40): "at most 107 are possible",
	} {
		if got := text(All(Input{File: load(t, ports0), Data: data, Roles: roles}).Findings); !strings.Contains(got, want) {
			t.Errorf("%s: got  %s\nwant %s", data, got, want)
		}
	}
}

func TestPorts(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	port := taken.Addr().(*net.TCPAddr).Port
	f := load(t, fmt.Sprintf("%sadmin:\n  listen: 127.0.0.1:%d\n", ports0, port))
	in := Input{File: f, Data: t.TempDir(), Roles: roles}
	r := All(in)
	want := fmt.Sprintf("error wicgate.yaml:6: admin.listen: listen on TCP 127.0.0.1:%d", port)
	if got := text(r.Findings); r.OK || !strings.Contains(got, want) || !strings.Contains(got, "hint: another program has TCP port") {
		t.Errorf("taken: %s", got)
	}
	in.Running = true
	if r := All(in); !r.OK || !strings.Contains(strings.Join(r.Tested, "\n"), fmt.Sprintf("TCP 127.0.0.1:%d: in use (admin.listen); by the wicgate that runs with this data folder, if by no other program", port)) {
		t.Errorf("by ourselves: %s", text(r.Findings))
	}
	taken.Close()
	in.Running = false
	for range 2 { // what was tested is released
		if r := All(in); !r.OK || !strings.Contains(strings.Join(r.Tested, "\n"), fmt.Sprintf("TCP 127.0.0.1:%d: free (admin.listen)", port)) {
			t.Errorf("free: %s", text(r.Findings))
		}
	}
	f = load(t, ports0+"imsagw: {access: {bind: 203.0.113.77}}\n")
	if got := text(All(Input{File: f, Data: t.TempDir(), Roles: roles}).Findings); !strings.Contains(got, "error wicgate.yaml:5: imsagw.access.bind: listen on UDP 203.0.113.77:0") {
		t.Errorf("no address of this machine: %s", got)
	}
}

func TestCapacity(t *testing.T) {
	f := load(t, "turn: {relay: [{bind: 127.0.0.1, ports: 50000-50499}, {bind: '::1', ports: 50000-50499}]}\nimsagw: {max_sessions: 400}\n")
	first := func(m machine, name string) string {
		t.Helper()
		for _, r := range capacity(Input{File: f, Roles: roles}, m) {
			if !slices.IsSortedFunc(r.Bounds, func(a, b Bound) int { return a.Count - b.Count }) {
				t.Errorf("%s: the least is not first: %+v", r.Name, r.Bounds)
			}
			if r.Name == name {
				return fmt.Sprint(r.Bounds[0].Count, " ", r.Bounds[0].By)
			}
		}
		return "nothing"
	}
	big := machine{descriptors: 1 << 20, memory: 64 << 30, udpMemory: 16 << 30}
	for _, c := range []struct {
		m          machine
		name, want string
	}{
		{big, "TURN allocations", "1000 turn.relay (ports 50000-50499, 50000-50499)"},
		{big, "audio call legs", "400 imsagw.max_sessions"},
		{big, "audio and video call legs", "250 imsagw.core.ports (41000-41999, 4 a leg)"},
		{big, "WebSockets", "10000 the edge's own bound"},
		{machine{descriptors: 1024, memory: 64 << 30, udpMemory: 16 << 30}, "TURN allocations", "896 open files (RLIMIT_NOFILE 1024)"},
		{machine{descriptors: 1024, memory: 64 << 30, udpMemory: 16 << 30}, "audio call legs", "298 open files (RLIMIT_NOFILE 1024)"},
		{machine{descriptors: 1 << 20, memory: 12 << 20, udpMemory: 16 << 30}, "TURN allocations", "512 memory (12 MiB free, 24 KiB each)"},
		{machine{descriptors: 1 << 20, memory: 64 << 30, udpMemory: 4 << 20}, "TURN allocations", "256 UDP buffers (net.ipv4.udp_mem, 4 MiB)"},
		{machine{}, "TURN allocations", "1000 turn.relay (ports 50000-50499, 50000-50499)"}, // a system that tells nothing
	} {
		if got := first(c.m, c.name); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
	if n := len(capacity(Input{File: f, Roles: []string{"waf"}}, big)); n != 0 {
		t.Errorf("waf alone has %d capacities", n)
	}
}

func TestMachineOfThisTest(t *testing.T) {
	m := readMachine()
	if m.descriptors == 0 || m.memory == 0 {
		t.Skipf("this system tells nothing: %+v", m)
	}
	if m.ephemeral.First == 0 || m.ephemeral.Last < m.ephemeral.First || m.rmemMax == 0 {
		t.Errorf("%+v", m)
	}
	kept := machine{kept: []config.Ports{{First: 40000, Last: 49999}}}
	if !kept.reserved(config.Ports{First: 40000, Last: 40999}) || kept.reserved(config.Ports{First: 49000, Last: 50000}) {
		t.Error("reserved")
	}
}
