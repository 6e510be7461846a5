package config

import (
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

const shipped = "../../wicgate.yaml"

var compareFields = cmp.Options{cmpopts.EquateComparable(AddrPort{}, Addr{}, Prefix{}, Range{}), cmpopts.IgnoreUnexported(File{})}

func TestShippedFileEqualsDefaults(t *testing.T) {
	got, err := Load(shipped)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(Default(), got, compareFields); d != "" {
		t.Errorf("wicgate.yaml differs from Default (-default +file):\n%s", d)
	}
}

// Each key of the struct must stand in the file, with a comment of its own above it or above its section.
func TestShippedFileExplainsEachKey(t *testing.T) {
	b, err := os.ReadFile(shipped)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(b), "\n")
	var walk func(typ reflect.Type, path []string)
	walk = func(typ reflect.Type, path []string) {
		for i := range typ.NumField() {
			if !typ.Field(i).IsExported() {
				continue
			}
			key := append(path[:len(path):len(path)], typ.Field(i).Tag.Get("yaml"))
			at := find(lines, key)
			if at < 0 {
				t.Errorf("wicgate.yaml lacks %s", strings.Join(key, "."))
				continue
			}
			section := typ.Field(i).Type.Kind() == reflect.Struct && typ.Field(i).Type.Field(0).Tag.Get("yaml") != ""
			if section {
				walk(typ.Field(i).Type, key)
				continue
			}
			// A key without its own comment follows one that speaks for both, directly above.
			above := at - 1
			for above > 0 && lines[above] != "" && !strings.HasPrefix(strings.TrimSpace(lines[above]), "#") && at-above < 2 {
				above--
			}
			if !strings.HasPrefix(strings.TrimSpace(lines[above]), "#") && len(path) < 2 && !explainedBySection(lines, key) {
				t.Errorf("wicgate.yaml does not explain %s", strings.Join(key, "."))
			}
		}
	}
	walk(reflect.TypeFor[File](), nil)
}

// explainedBySection: the first key of a section may be what the comment above the section speaks of.
func explainedBySection(lines []string, key []string) bool {
	at := find(lines, key[:len(key)-1])
	return at > 0 && strings.HasPrefix(lines[at-1], "#") && find(lines, key) == at+1
}

// find returns the index of the line of a nested key, by indentation.
func find(lines []string, key []string) int {
	depth := 0
	for i, l := range lines {
		if depth > 0 && l != "" && !strings.HasPrefix(l, strings.Repeat("  ", depth)) && !strings.HasPrefix(strings.TrimSpace(l), "#") {
			return -1
		}
		if strings.HasPrefix(l, strings.Repeat("  ", depth)+key[depth]+":") {
			if depth++; depth == len(key) {
				return i
			}
		}
	}
	return -1
}

func TestRefusals(t *testing.T) {
	for _, c := range []struct{ name, file, want string }{
		{"unknown key", "turn:\n  naem: x\n", "2: unknown field \"naem\"; wicgate.yaml in the source has every key\n    naem: x"},
		{"key twice", "domain: a\ndomain: b\n", "2: mapping key \"domain\" already defined"},
		{"no yaml", "domain: {", "1: could not find flow mapping end token"},
		{"list for section", "turn: []\n", "1: sequence was used where mapping is expected"},
		{"address", "https:\n  listen: localhost:8443\n", "2: https.listen: want ip:port such as 127.0.0.1:3478 or [::1]:3478, not \"localhost:8443\""},
		{"port", "https:\n  listen: 127.0.0.1:99999\n", "2: https.listen: want ip:port"},
		{"address in list", "turn:\n  listen:\n    - 127.0.0.1:1\n    - nonsense\n", "4: turn.listen[1]: want ip:port"},
		{"url with path", "https:\n  url: https://localhost/x\n", "2: https.url: want an https origin"},
		{"http", "https:\n  url: http://localhost\n", "2: https.url: want an https origin"},
		{"duration without unit", "turn:\n  grace_max: 12\n", "2: turn.grace_max: want a duration with its unit"},
		{"negative duration", "turn:\n  grace_max: -1s\n", "2: turn.grace_max: want a duration"},
		{"ports", "imsagw:\n  core: {ports: 5-4}\n", "2: imsagw.core.ports: want ports first-last"},
		{"level", "log: {level: loud}\n", "1: log.level: want debug, info, warn or error"},
		{"closed", "turn:\n  closed: [10.0.0.0/8, 10.0.0.0/99]\n", "2: turn.closed[1]: want a prefix such as"},
		{"translator", "turn:\n  nat64: [64:ff9b:1::/48, 2001:db8::/97]\n", "2: turn.nat64[1]: want a prefix of IPv6 of 32, 40"},
		{"range", "turn:\n  open: [10.0.0.0/8]\n", "2: turn.open[0]: want \"prefix first-last\""},
		{"number for text", "turn:\n  quota: many\n", "2: cannot unmarshal string"},

		{"line of a check", "log:\n\n  format: xml\n", "wicgate.yaml:3: log.format: want"},
		{"lines of two checks", "log: {format: xml}\nturn:\n  quota: 0\n", "wicgate.yaml:1: log.format: want text or json, not \"xml\"\nwicgate.yaml:3: turn.quota"},
		{"no address", "https: {listen: ''}\n", "wicgate.yaml:1: https.listen: must not be empty"},
		{"format", "log: {format: xml}\n", "log.format: want text or json, not \"xml\""},
		{"sibling", "turn: {siblings: [{address: '0.0.0.0:3478', transport: tls, domain: A}]}\n", "turn.siblings[0].address: want an address and port that clients reach, not 0.0.0.0:3478\nwicgate.yaml:1: turn.siblings[0].transport: want udp, tcp or nothing for both, not \"tls\"\nwicgate.yaml:1: turn.siblings[0].domain: \"A\" is not"},
		{"certificate without key", "https: {certificate: a.pem}\n", "https: certificate and key go together"},
		{"ACME wildcard", "https: {acme: {names: ['*.example.org'], agree: true}}\n", "https.acme.names[0]: \"*.example.org\" is a wildcard, which only dns-01 proves"},
		{"ACME address", "https: {acme: {names: ['192.0.2.1'], agree: true}}\n", "https.acme.names[0]: \"192.0.2.1\" is not the full name of a host"},
		{"ACME short name", "https: {acme: {names: [localhost], agree: true}}\n", "\"localhost\" is not the full name of a host in lower case"},
		{"ACME capitals", "https: {acme: {names: [A.example.org], agree: true}}\n", "is not the full name of a host in lower case"},
		{"ACME twice", "https: {acme: {names: [a.example.org, a.example.org], agree: true}}\n", "https.acme.names[1]: \"a.example.org\" is there twice"},
		{"ACME not agreed", "https: {acme: {names: [a.example.org]}}\n", "https.acme.agree: read the CA's terms of service"},
		{"ACME and a file", "https: {certificate: a.pem, key: b.pem, acme: {names: [a.example.org], agree: true}}\n", "https.acme.names: certificates come from https.certificate already"},
		{"ACME directory", "https: {acme: {names: [a.example.org], agree: true, directory: 'http://ca.test/dir'}}\n", "https.acme.directory: want the https URL of a CA's directory"},
		{"ACME email", "https: {acme: {names: [a.example.org], agree: true, email: 'a@b, c@d'}}\n", "https.acme.email: \"a@b, c@d\" is not one address"},
		{"ACME secrets of a fleet", "bus: {url: 'nats://x'}\nhttps: {acme: {names: [a.example.org], agree: true}}\n", "https.acme.secrets: must name a file where bus.url is set"},
		{"replicas", "bus: {url: 'nats://x', replicas: 2}\n", "bus.replicas: want 1, 3 or 5, not 2"},
		{"replicas embedded", "bus: {replicas: 3}\n", "bus.replicas: 3 servers need bus.url"},
		{"profile", "turn: {profile: open}\n", "turn.profile: want ims or general"},
		{"credentials", "turn: {credentials: never}\n", "turn.credentials: want session, call-grace or strict"},
		{"quota", "turn: {quota: 0}\n", "turn.quota: want 1 to 10000, not 0"},
		{"turn url", "turn: {urls: ['https://x']}\n", "turn.urls: \"https://x\" is not a TURN URI"},
		{"turn url port", "turn: {urls: ['turn:x:0']}\n", "turn.urls: \"turn:x:0\" is not a TURN URI"},
		{"turn url transport", "turn: {urls: ['turn:x?transport=sctp']}\n", "is not a TURN URI"},
		{"turn url like http", "turn: {urls: ['turn://x']}\n", "is not a TURN URI"},
		{"turns over udp", "turn: {urls: ['turns:x?transport=udp']}\n", "asks for DTLS; set turn.dtls: true"},
		{"DTLS without an address", "turn: {listen: [], dtls: true, urls: ['turns:x']}\n", "turn.dtls: needs an address in turn.listen"},
		{"turns without listener", "turn: {listen_tcp: [], urls: ['turns:x']}\n", "\"turns:x\" needs an address in turn.listen_tcp"},
		{"turn without listener", "turn: {listen: [], urls: ['turn:x']}\n", "\"turn:x\" needs an address in turn.listen"},
		{"no listener", "turn: {listen: [], listen_tcp: []}\n", "turn.listen: names no address"},
		{"no turn url", "turn: {urls: []}\n", "turn.urls: browsers need at least one"},
		{"kid mode", "turn: {oauth: {kid_mode: odd}}\n", "turn.oauth.kid_mode: want derived or plain, not \"odd\""},
		{"enc", "turn: {oauth: {enc: A192GCM}}\n", "turn.oauth.enc: want A256GCM, A128GCM, A256CBC-HS512 or draft13-A256CBC-HS256, not \"A192GCM\""},
		{"key life", "turn: {oauth: {key_life: 59m}}\n", "turn.oauth.key_life: want 1h to 8760h, not 59m0s"},
		{"loose", "turn: {oauth: {loose: true}}\n", "turn.oauth.loose: needs kid_mode plain"},
		{"kid mode of a tenant", "turn: {tenants: [{name: a.test, kid_mode: odd}]}\n", "turn.tenants[0].kid_mode: want derived or plain, not \"odd\""},
		{"pull of a tenant", "turn: {tenants: [{name: a.test, key_pull: {url: 'https://waf.test', certificate: a, key: b}}]}\n", "turn.tenants[0].key_pull.url: needs turn.tenants[0].kid_mode plain"},
		{"pull, derived", "turn: {key_pull: {url: 'https://waf.test:8444', certificate: a, key: b}}\n", "turn.key_pull.url: needs turn.oauth.kid_mode plain"},
		{"pull without certificate", "turn: {oauth: {kid_mode: plain}, key_pull: {url: 'https://waf.test:8444', key: b}}\n", "turn.key_pull: certificate and key are needed"},
		{"pull in clear", "turn: {oauth: {kid_mode: plain}, key_pull: {url: 'http://waf.test', certificate: a, key: b}}\n", "turn.key_pull.url: want an https URL"},
		{"pull without url", "turn: {key_pull: {certificate: a, key: b}}\n", "turn.key_pull: certificate, key and ca need url"},
		{"stun key without CA", "waf: {stun_key: {listen: '127.0.0.1:8444', servers: [turn2.test]}}\n", "waf.stun_key.client_ca: must not be empty"},
		{"stun key for nobody", "waf: {stun_key: {listen: '127.0.0.1:8444', client_ca: a}}\n", "waf.stun_key.servers: names nobody"},
		{"stun key of derived keys", "waf: {stun_key: {servers: [turn.ims.test]}}\n", "\"turn.ims.test\" has derived keys"},
		{"stun key twice", "waf: {stun_key: {servers: [a.test, a.test]}}\n", "waf.stun_key.servers: \"a.test\": want different names"},
		{"stun key name", "waf: {stun_key: {servers: [../x]}}\n", "waf.stun_key.servers: \"../x\": want different names"},
		{"credential of the edge", "epcscf: {turn_credential: token}\n", "epcscf.turn_credential: want ephemeral or pushed, not \"token\""},
		{"credential MAC", "epcscf: {turn_credential_mac: md5}\n", "epcscf.turn_credential_mac: want sha1 or sha256"},
		{"low relay port", "turn: {relay: [{bind: 127.0.0.1, ports: 80-90}]}\n", "wicgate.yaml:1: turn.relay[0].ports: want ports from 1024 up, not 80"},
		{"no relay", "turn: {relay: []}\n", "turn.relay: want 1 to 64 addresses, not 0"},
		{"relay without address", "turn:\n  relay:\n    - ports: 5000-5001\n", "wicgate.yaml:2: turn.relay[0].bind: must not be empty"},
		{"relay as of one address", "turn: {relay: {bind: 127.0.0.1}}\n", "1: mapping was used where sequence is expected"},
		{"unspecified", "turn: {relay: [{bind: 0.0.0.0}]}\n", "turn.relay[0].bind: 0.0.0.0 needs advertise"},
		{"families", "turn: {relay: [{bind: 127.0.0.1, advertise: '::1'}]}\n", "of different families"},
		{"short token", "waf: {sip_token_life: 9s}\n", "waf.sip_token_life: want whole seconds, 10s to 24h, not 9s"},
		{"long token", "waf: {turn_token_life: 25h}\n", "waf.turn_token_life: want whole seconds, 10s to 24h, not 25h0m0s"},
		{"half a second", "waf: {sip_token_life: 10500ms}\n", "waf.sip_token_life: want whole seconds"},
		{"guests", "waf: {guests: 1001}\n", "waf.guests: want 0 to 1000, not 1001"},
		{"guests below none", "waf: {guests: -1}\n", "waf.guests: want 0 to 1000, not -1"},
		{"guest life", "waf: {guest_life: 1s}\n", "waf.guest_life: want whole seconds, 10s to 24h, not 1s"},
		{"credential", "wwsf: {turn_credential: both}\n", "wwsf.turn_credential: want token or edge, not \"both\""},
		{"name", "epcscf: {name: Edge}\n", "epcscf.name: want a-z 0-9 -"},
		{"no peers", "epcscf: {core_peers: []}\n", "epcscf.core_peers: nobody may send requests"},
		{"public democore", "democore: {listen: '192.0.2.1:5080'}\n", "democore.listen: 192.0.2.1:5080 is not loopback"},
		{"user twice", "democore: {users: [a, a]}\n", "democore.users: \"a\""},
		{"domain", "domain: Ims.Test\n", "domain: \"Ims.Test\" is not a domain name in lower case"},
	} {
		t.Run(c.name, func(t *testing.T) {
			name := filepath.Join(t.TempDir(), "wicgate.yaml")
			if err := os.WriteFile(name, []byte(c.file), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := Load(name)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Load = %v\nwant     %s", err, c.want)
			}
		})
	}
	if _, err := Load(filepath.Join(t.TempDir(), "none.yaml")); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("missing file: %v", err)
	}
}

func TestFileOverDefaults(t *testing.T) {
	name := filepath.Join(t.TempDir(), "wicgate.yaml")
	for file, change := range map[string]func(*File){
		"":                      func(*File) {},
		"# nothing\n":           func(*File) {},
		"domain: example.org\n": func(f *File) { f.Domain = "example.org" },
		"log:\n":                func(*File) {},
		"turn:\n  relay: [{bind: 127.0.0.1, ports: 5000-5001}, {bind: ::1}]\n": func(f *File) {
			f.TURN.Relay[0].Ports = Ports{5000, 5001}
			f.TURN.Relay = append(f.TURN.Relay, Side{Bind: Addr{netip.IPv6Loopback()}, Ports: Ports{49152, 65535}})
		},
	} {
		if err := os.WriteFile(name, []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
		want := Default()
		change(want)
		got, err := Load(name)
		if err != nil {
			t.Errorf("%q: %v", file, err)
			continue
		}
		if d := cmp.Diff(want, got, compareFields); d != "" {
			t.Errorf("%q (-want +got):\n%s", file, d)
		}
	}
}

func TestSecureHosts(t *testing.T) {
	c := TURN{URLs: []string{"turn:a.test:3478?transport=tcp", "turns:b.test", "turns:[2001:db8::1]:5349?transport=tcp", "turns:192.0.2.1:443"}}
	if d := cmp.Diff([]string{"b.test", "2001:db8::1", "192.0.2.1"}, c.SecureHosts()); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string{"localhost"}, Default().TURN.SecureHosts()); d != "" {
		t.Error(d)
	}
}

func FuzzParse(f *testing.F) {
	b, err := os.ReadFile(shipped)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte("turn: {listen: [1.2.3.4:5], open: ['::/0 1-2']}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c := Default()
		if c.parse(b) == nil {
			_ = c.check()
			_ = c.Review([]string{"turn", "waf", "wwsf", "epcscf", "imsagw", "democore"})
			_ = c.Settings() // either answer is right; a panic is not
		}
	})
}

// TestClosedForAllTenants: what the section turn closes is closed for each tenant, and a tenant's own beside it.
func TestClosedForAllTenants(t *testing.T) {
	f := loadText(t, "turn:\n  closed: [198.51.100.0/24]\n  tenants:\n    - name: a.test\n    - name: b.test\n      closed: [203.0.113.7]\n")
	var got []string
	for _, tenant := range append(f.TURN.Others(), f.TURN.First()) {
		got = append(got, show(tenant.Closed))
	}
	if want := []string{"[198.51.100.0/24]", "[198.51.100.0/24, 203.0.113.7/32]", "[198.51.100.0/24]"}; !cmp.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
