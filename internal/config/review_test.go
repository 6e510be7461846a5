package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var allRoles = []string{"turn", "waf", "wwsf", "epcscf", "imsagw", "democore"}

func loadText(t *testing.T, text string) *File {
	t.Helper()
	name := filepath.Join(t.TempDir(), "wicgate.yaml")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := Load(name)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// TestDefaultsAreFine: a newcomer is not told off.
func TestDefaultsAreFine(t *testing.T) {
	for _, f := range Default().Review(allRoles) {
		t.Errorf("%s: %v", f.Severity, f)
	}
}

// open is a TURN server that the world can reach.
const open = "turn: {listen: ['198.51.100.1:3478'], urls: ['turn:turn.example.org'], relay: [{bind: 198.51.100.1}], "

func TestReview(t *testing.T) {
	for _, c := range []struct{ name, file, want string }{
		// What clients may reach.
		{"general, a private network", open + "profile: general, open: ['10.0.0.0/8 1024-65535']}\n",
			"error wicgate.yaml:1: turn.open[0]: 10.0.0.0/8 1024-65535 opens a private network to every client, with a relay that is open to the world"},
		{"general, private low ports", open + "profile: general, open: ['10.0.0.7 22-22']}\n", "error wicgate.yaml:1: turn.open[0]: 10.0.0.7/32 22-22 opens a private network"},
		{"general, one private host", open + "profile: general, open: ['10.0.0.7 5000-5001']}\n", "warning wicgate.yaml:1: turn.open[0]: every client reaches the private addresses 10.0.0.7/32"},
		{"ims, a private network", open + "open: ['10.0.0.0/8 40000-41000']}\n", "warning wicgate.yaml:1: turn.open[0]: 10.0.0.0/8 40000-41000 is a wide door"},
		{"loopback", open + "open: ['127.0.0.1 40000-40999']}\n", "error wicgate.yaml:1: turn.open[0]: 127.0.0.1/32 lets clients reach services on this machine's loopback"},
		{"mapped loopback", open + "open: ['::ffff:127.0.0.1 40000-40999']}\n", "lets clients reach services on this machine's loopback"},
		{"metadata", open + "open: ['169.254.169.254 80-80']}\n", "error wicgate.yaml:1: turn.open[0]: 169.254.169.254/32 lets clients reach link-local"},
		{"open and closed", open + "open: ['203.0.113.0/28 40000-40999'], closed: [203.0.113.0/24]}\n", "warning wicgate.yaml:1: turn.open[0]: has no effect: turn.closed holds 203.0.113.0/24"},
		{"multicast", open + "open: ['239.0.0.0/8 5000-5001']}\n", "error wicgate.yaml:1: turn.open[0]: 239.0.0.0/8 is multicast"},
		{"everything", open + "open: ['0.0.0.0/0 1-65535']}\n", "error wicgate.yaml:1: turn.open[0]: 0.0.0.0/0 opens every address"},
		{"the second", open + "\n  open: [\n  '203.0.113.0/28 40000-40999',\n  '127.0.0.0/8 1-2']}\n", "error wicgate.yaml:4: turn.open[1]: 127.0.0.0/8"},

		// TURN.
		{"plain quota", "turn: {oauth: {kid_mode: plain}}\n", "warning turn.quota: with turn.oauth.kid_mode plain it counts all tokens of one kid together, and 32 are soon used up"},
		{"loose", "turn: {quota: 2000, oauth: {kid_mode: plain, loose: true}}\n", "warning wicgate.yaml:1: turn.oauth.loose: who sends from a client's address"},
		{"stun key on the web's port", "waf: {stun_key: {listen: '127.0.0.1:8443', client_ca: a, servers: [a.test]}}\n", "error wicgate.yaml:1: waf.stun_key.listen: 127.0.0.1:8443 is https.listen already"},
		{"quota", "turn: {quota: 33, relay: [{bind: 127.0.0.1, ports: 50000-50015}, {bind: '::1', ports: 50000-50015}]}\n", "error wicgate.yaml:1: turn.quota: one pseudonym may have 33 allocations, and turn.relay holds 32 in all"},
		{"wildcard", "turn: {listen: ['0.0.0.0:3478'], relay: [{bind: 198.51.100.1}]}\n", "warning wicgate.yaml:1: turn.listen[0]: 0.0.0.0:3478: on a machine with several addresses"},
		{"relay on loopback", "turn:\n  listen: ['198.51.100.1:3478']\n", "error turn.relay[0].bind: clients elsewhere are given relayed addresses on 127.0.0.1"},
		{"UDP only", open + "listen_tcp: []}\n", "warning wicgate.yaml:1: turn.listen_tcp: is empty: browsers behind firewalls"},
		{"strict", "turn: {credentials: strict}\n", "warning wicgate.yaml:1: turn.credentials: strict cuts each call at the end of its token, at most 1h after"},
		{"strict and grace", "turn:\n  credentials: strict\n  grace_max: 1h\n", "warning wicgate.yaml:3: turn.grace_max: has no effect with turn.credentials: strict"},
		{"short grace", "turn: {grace_max: 10m}\n", "warning wicgate.yaml:1: turn.grace_max: 10m after its token's end a call is cut"},

		// Certificates by ACME.
		{"ACME for another name", "https: {listen: '198.51.100.1:443', url: 'https://b.example.org', acme: {names: [a.example.org], agree: true}}\n", "error wicgate.yaml:1: https.url: browsers go to b.example.org, and https.acme.names has a.example.org"},
		{"ACME without turns", "https: {listen: '198.51.100.1:443', url: 'https://a.example.org', acme: {names: [a.example.org], agree: true}}\nturn: {urls: ['turns:t.example.org']}\n", "error wicgate.yaml:2: turn.urls[0]: browsers go to t.example.org"},
		{"ACME without a tenant", "https: {listen: '127.0.0.1:443', url: 'https://a.example.org', acme: {names: [a.example.org], agree: true}}\nturn:\n  urls: ['turn:127.0.0.1:3478']\n  tenants: [{name: b.test, server_names: [a.example.org, b.example.org]}]\n", "warning wicgate.yaml:4: turn.tenants[0].server_names[1]: clients ask for b.example.org, and https.acme.names has a.example.org"},
		{"ACME on another port", "https: {url: 'https://a.example.org:8443', acme: {names: [a.example.org], agree: true}}\n", "warning wicgate.yaml:1: https.acme.names: the CA looks for proof on port 443 of each name, and nothing here listens on it"},
		{"ACME plain HTTP on the front", "https: {acme: {http: '127.0.0.1:8443'}}\n", "error wicgate.yaml:1: https.acme.http: 127.0.0.1:8443 is https.listen already"},

		// What browsers are told.
		{"portal on loopback's name", "https: {listen: '198.51.100.1:8443'}\n", "warning https.url: https://localhost:8443 is what browsers are told, and it means their own machine"},
		{"TURN on loopback's name", "turn: {listen: ['198.51.100.1:3478'], relay: [{bind: 198.51.100.1}]}\n", `warning turn.urls[0]: "turn:127.0.0.1:3478?transport=udp" is what browsers are told, and it means their own machine`},
		{"port of the portal", "https: {url: 'https://localhost'}\n", "warning wicgate.yaml:1: https.url: browsers are sent to port 443, https.listen is on port 8443"},
		{"port of TURN", "turn: {urls: ['turn:127.0.0.1:5000']}\n", `warning wicgate.yaml:1: turn.urls[0]: "turn:127.0.0.1:5000": no listener has port 5000`},
		{"port that Chromium refuses", "turn: {urls: ['turn:127.0.0.1:53'], listen: ['127.0.0.1:53']}\n", "warning wicgate.yaml:1: turn.urls[0]: Chromium does not connect to TURN servers on port 53"},

		{"anybody a proxy", "turn: {trusted_proxies: [10.0.0.0/8, 0.0.0.0/0]}\n", "error wicgate.yaml:1: turn.trusted_proxies[1]: 0.0.0.0/0: anybody may say whose a connection is"},

		// Ports.
		{"relay and gateway", "turn: {relay: [{bind: 127.0.0.1, ports: 40500-50000}]}\n", "error imsagw.access.ports: 40000-40999 overlap with turn.relay[0].ports 40500-50000 on the same address"},
		{"relay and gateway, wildcard", "turn: {relay: [{bind: 0.0.0.0, advertise: 198.51.100.1, ports: 40500-50000}]}\n", "error imsagw.access.ports: 40000-40999 overlap"},
		{"two relays", "turn: {relay: [{bind: 127.0.0.1}, {bind: 127.0.0.1, ports: 60000-60001}]}\n", "error wicgate.yaml:1: turn.relay[1].ports: 60000-60001 overlap with turn.relay[0].ports 49152-65535 on the same address"},
		{"two relays behind one address", "turn: {relay: [{bind: 127.0.0.1, advertise: 198.51.100.1}, {bind: 127.0.0.2, advertise: 198.51.100.1}]}\n", "error wicgate.yaml:1: turn.relay[1].ports: 49152-65535 overlap with turn.relay[0].ports 49152-65535, and both are 198.51.100.1 to clients"},
		{"both sides of the gateway", "imsagw:\n  core:\n    ports: 40900-42000\n", "error wicgate.yaml:3: imsagw.core.ports: 40900-42000 overlap with imsagw.access.ports"},
		{"listener in the relay's ports", "turn: {listen: ['127.0.0.1:50000'], urls: ['turn:127.0.0.1:50000']}\n", "warning wicgate.yaml:1: turn.listen[0]: port 50000 lies in turn.relay[0].ports"},
		{"two listeners", "https: {listen: '127.0.0.1:5060', url: 'https://localhost:5060'}\n", "error epcscf.listen: 127.0.0.1:5060 is https.listen already"},
		{"the same listener twice", "turn: {listen: ['127.0.0.1:3478', '[::1]:3478', '127.0.0.1:3478']}\n", "error wicgate.yaml:1: turn.listen[2]: 127.0.0.1:3478 is turn.listen[0] already"},
		{"two wildcards", "turn:\n  listen: ['0.0.0.0:3478', '[::]:3478']\n", "error wicgate.yaml:2: turn.listen[1]: [::]:3478 cannot be listened on beside turn.listen[0] 0.0.0.0:3478: a wildcard is every address, of IPv4 and IPv6"},
		{"a wildcard beside the web", "turn:\n  listen_tcp: ['0.0.0.0:8443']\n", "error wicgate.yaml:2: turn.listen_tcp[0]: 0.0.0.0:8443 cannot be listened on beside https.listen 127.0.0.1:8443"},
		{"observer", "admin:\n  listen: 127.0.0.1:8443\n", "error wicgate.yaml:2: admin.listen: 127.0.0.1:8443 is https.listen already"},

		// Core.
		{"public core", "epcscf: {core: '8.8.8.8:5060', core_peers: [8.8.8.8]}\n", "error wicgate.yaml:1: epcscf.core: 8.8.8.8:5060 is a public address, and SIP to it is plain TCP"},
		{"public side", "epcscf: {listen: '8.8.4.4:5060'}\n", "error wicgate.yaml:1: epcscf.listen: 8.8.4.4:5060 is a public address"},
		{"trusted stranger", "epcscf:\n  core: 10.0.0.1:5060\n", "error epcscf.core_trusted: the next hop 10.0.0.1 is trusted with identities, and is none of epcscf.core_peers"},
		{"anybody", "epcscf: {core_peers: [0.0.0.0/0]}\n", "error wicgate.yaml:1: epcscf.core_peers[0]: 0.0.0.0/0: anybody may send requests as the core"},
		{"many", "epcscf: {core_peers: [127.0.0.0/8]}\n", "warning wicgate.yaml:1: epcscf.core_peers[0]: 127.0.0.0/8 is a wide range"},
		{"not trusted", "epcscf: {core_trusted: false}\n", "warning wicgate.yaml:1: epcscf.core_trusted: is false: nobody can register"},
		{"wildcard to the core", "epcscf: {listen: '0.0.0.0:5060'}\n", "warning wicgate.yaml:1: epcscf.listen: 0.0.0.0:5060: the core is told in Via"},
		{"democore for others", "https: {listen: '198.51.100.1:8443', url: 'https://a.example:8443'}\n", "warning democore.listen: the stand-in for a core serves a portal that others can reach"},

		// Guests.
		{"guests anywhere", "epcscf:\n  guests:\n    destinations: [alice, '*@other.test']\n", `error wicgate.yaml:3: epcscf.guests.destinations[1]: "*@other.test": whoever opens the portal may call everybody in another network`},
		{"guests anywhere, as a URI", "epcscf: {guests: {destinations: ['sip:*@other.test']}}\n", `error wicgate.yaml:1: epcscf.guests.destinations[0]: "sip:*@other.test": whoever opens the portal may call everybody in another network`},
		{"guests at home, in capitals", "epcscf: {guests: {destinations: ['sip:*@IMS.test']}}\n", `warning wicgate.yaml:1: epcscf.guests.destinations[0]: "sip:*@IMS.test": whoever opens the portal may call every user`},
		{"no guests, nonsense all the same", "waf: {guests: 0}\nepcscf: {guests: {destinations: ['a b']}}\n", `error wicgate.yaml:2: epcscf.guests.destinations: destination "a b": want a user`},
		{"guests at home", "epcscf: {guests: {destinations: ['*@ims.test']}}\n", `warning wicgate.yaml:1: epcscf.guests.destinations[0]: "*@ims.test": whoever opens the portal may call every user`},
		{"guests to nobody", "epcscf: {guests: {destinations: []}}\n", "warning wicgate.yaml:1: epcscf.guests.destinations: is empty"},
		{"guests to nonsense", "epcscf: {guests: {destinations: ['a b']}}\n", `error wicgate.yaml:1: epcscf.guests.destinations: destination "a b": want a user`},

		// Gateway, bus, observer.
		{"plain media", "imsagw: {core: {bind: 8.8.8.8}}\n", "warning wicgate.yaml:1: imsagw.core.bind: 8.8.8.8 is a public address, and media to the core are plain RTP"},
		{"gateway out of the relay's reach", open + "listen_tcp: []}\n", "error imsagw.access.bind: the gateway's media are on loopback (127.0.0.1) and relayed addresses are on 198.51.100.1"},
		{"plain bus", "bus: {url: 'nats://8.8.8.8:4222'}\n", "error wicgate.yaml:1: bus.url: nats://8.8.8.8:4222 is plain NATS across a public address"},
		{"one plain bus of several", "bus: {url: 'tls://10.0.0.1:4222, nats://8.8.8.8:4222'}\n", "error wicgate.yaml:1: bus.url: nats://8.8.8.8:4222 is plain NATS across a public address"},
		{"buses for everybody", "bus: {url: 'nats://10.0.0.1:4222,nats://10.0.0.2:4222'}\n", "warning bus.nkey: is empty"},
		{"bus for everybody", "bus: {url: 'nats://10.0.0.1:4222'}\n", "warning bus.nkey: is empty"},
		{"public observer", "admin: {listen: '8.8.8.8:9090'}\n", "warning wicgate.yaml:1: admin.listen: 8.8.8.8:9090 is a public address"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var all []string
			for _, f := range loadText(t, c.file).Review(allRoles) {
				all = append(all, string(f.Severity)+" "+f.String())
				if f.Hint == "" {
					t.Errorf("no hint in %v", f)
				}
			}
			if got := strings.Join(all, "\n"); !strings.Contains(got, c.want) {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

// TestListenersTogether: of one port TCP and UDP are two, TURN and the web share one, port 0 is any that is free.
func TestListenersTogether(t *testing.T) {
	f := loadText(t, "turn: {listen: ['127.0.0.1:8443', '127.0.0.1:0', '127.0.0.1:0'], listen_tcp: ['127.0.0.1:8443', '[::1]:8443'], urls: ['turn:127.0.0.1:8443']}\nadmin: {listen: '127.0.0.1:9090'}\n")
	for _, found := range f.Review(allRoles) {
		t.Error(found)
	}
}

// TestReviewGoesByRoles: what does not run here is not looked at.
func TestReviewGoesByRoles(t *testing.T) {
	f := loadText(t, "epcscf: {core: '8.8.8.8:5060'}\nturn: {relay: [{bind: 127.0.0.1, ports: 40500-50000}]}\n")
	if got := f.Review([]string{"turn", "waf"}); len(got) != 0 {
		t.Errorf("%v", got)
	}
	for _, one := range []string{"epcscf", "imsagw"} {
		if got := Default().Review([]string{one}); len(got) != 1 || got[0].Key != "bus.url" || got[0].Severity != Warning {
			t.Errorf("%s alone: %v", one, got)
		}
	}
	for _, c := range []struct {
		file, key string
		roles     []string
	}{
		{"{turn_credential: pushed}", "turn.secrets", []string{"turn"}},
		{"{turn_credential: pushed}\nturn: {secrets: /etc/wicgate/turn-secrets.txt}", "bus.url", []string{"turn"}},
		{"{turn_credential: pushed}", "bus.url", []string{"epcscf", "imsagw"}},
		{"{turn_credential: pushed}", "", []string{"turn", "epcscf", "imsagw"}},
		{"{turn_credential: ephemeral}", "", []string{"turn"}},
	} {
		key := ""
		for _, f := range loadText(t, "epcscf: "+c.file+"\n").Review(c.roles) {
			if f.Severity == Error {
				key = f.Key
			}
		}
		if key != c.key {
			t.Errorf("%s, %v: %q, want %q", c.file, c.roles, key, c.key)
		}
	}
	lone := loadText(t, "turn: {listen: ['198.51.100.1:3478'], urls: ['turn:turn.example.org'], relay: [{bind: 198.51.100.1}]}\n").Review([]string{"turn"})
	if len(lone) != 1 || lone[0].Key != "turn.profile" {
		t.Errorf("turn alone in profile ims: %v", lone)
	}
}

// A password in the address of the bus is shown nowhere, however the address is written.
func TestSettingsHidePasswords(t *testing.T) {
	for _, url := range []string{"nats://node:hunter2@10.0.0.1:4222,nats://node:hunter2@10.0.0.2:4222", "nats://node:hunter2@10.0.0.1:x", "nats://hunter2@10.0.0.1"} {
		f := loadText(t, "bus: {url: '"+url+"'}\n")
		for _, s := range f.Settings() {
			if strings.Contains(s.Value, "hunter2") {
				t.Errorf("%s shows the password of %s: %s", s.Key, url, s.Value)
			}
		}
		for _, r := range f.Review(allRoles) {
			if strings.Contains(r.String(), "hunter2") {
				t.Errorf("%v", r)
			}
		}
	}
}

// Nor where the file is refused for it, or for something else in its line: the log keeps what a reload says.
func TestRefusalsHidePasswords(t *testing.T) {
	for _, text := range []string{
		"bus:\n  ulr: nats://node:hunter2@10.0.0.1:4222\n",
		"bus: {url: 'nats://node:hunter2@10.0.0.1:4222', replicas: three}\n",
		"https: {listen: 'nats://node:hunter2@10.0.0.1:4222'}\n",
		"https:\n  url: https://node:hunter2@a.test\n",
		"https: {acme: {names: [a.example.org], agree: true, directory: 'http://node:hunter2@ca.test'}}\n",
		"turn: {oauth: {kid_mode: plain}, key_pull: {url: 'https://node:hunter2@waf.test', certificate: a, key: b}}\n",
		"turn: {urls: ['turn://node:hunter2@turn.test']}\n",
	} {
		name := filepath.Join(t.TempDir(), "wicgate.yaml")
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Load(name); err == nil || strings.Contains(err.Error(), "hunter2") || !strings.Contains(err.Error(), "xxxxx@") {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestSettings(t *testing.T) {
	f := loadText(t, "bus:\n  url: nats://node:hunter2@10.0.0.1:4222\nturn:\n  open: [192.0.2.0/24 1024-2048]\n")
	got := map[string]Setting{}
	for _, s := range f.Settings() {
		got[s.Key] = s
		if strings.Contains(s.Value, "hunter2") {
			t.Errorf("%s shows a password", s.Key)
		}
	}
	for _, want := range []Setting{
		{"bus.url", "nats://xxxxx@10.0.0.1:4222", 2}, {"turn.open", "[192.0.2.0/24 1024-2048]", 4}, {"turn.grace_max", "12h", 0},
		{"turn.relay", "[{bind: 127.0.0.1, ports: 49152-65535}]", 0}, {"log.level", "info", 0}, {"admin.listen", `""`, 0},
		{"turn.listen", "[127.0.0.1:3478]", 0}, {"epcscf.core_trusted", "true", 0}, {"https.certificate", `""`, 0},
	} {
		if got[want.Key] != want {
			t.Errorf("%+v, want %+v", got[want.Key], want)
		}
	}
}
