package browser

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"testing"
	"time"

	"wicgate/test/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }

const portal = "https://" + lab.Edge + "/"

// keys of wicgate.yaml by section.
type keys map[string]map[string]any

// configuration of the lab: the default, with the addresses of its picture and with changes. Portal and
// TURN share port 443.
func configuration(t testing.TB, changes keys) string {
	t.Helper()
	all := keys{
		"log":   {"level": "debug"},
		"https": {"listen": lab.Edge + ":443", "url": "https://" + lab.Edge},
		"turn": {
			"listen": []string{lab.Edge + ":3478"}, "listen_tcp": []string{lab.Edge + ":3478", lab.Edge + ":443"}, "urls": turnURLs(lab.EdgeName),
			"relay": []any{map[string]any{"bind": lab.Relay}},
		},
		"imsagw": {"access": map[string]any{"bind": lab.Gateway}},
	}
	text, err := json.Marshal(merge(all, changes)) // which is YAML
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "wicgate.yaml")
	if err := os.WriteFile(name, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// turnURLs are the ways to the TURN server, with the host that has it behind TLS on port 443.
func turnURLs(secure string) []string {
	return []string{"turn:" + lab.Edge + ":3478?transport=udp", "turn:" + lab.Edge + ":3478?transport=tcp", "turns:" + secure + ":443?transport=tcp"}
}

// plan is how a system differs from one process and two Chromiums.
type plan struct {
	keys       keys
	turn       keys // where not nil, TURN is a process of its own, that can be stopped alone, with these changes
	alice, bob func(testing.TB, *lab.Host, string) Browser
}

// system is wicgate on the host edge, and two pages on the host wic.
type system struct {
	t          *testing.T
	wic, edge  *lab.Host
	ca         string       // file
	core, turn *lab.Process // the same where TURN is no process of its own
	turnData   string
	turnConfig string
	alice, bob *Page
}

func newSystem(t *testing.T, p plan) *system {
	t.Helper()
	wic, edge := lab.Pair(t)
	data := lab.DataFolder(t)
	s := &system{t: t, wic: wic, edge: edge, ca: filepath.Join(data, "ca", "ca.pem")}
	if p.turn != nil {
		apart := merge(keys{"turn": {
			"listen_tcp": []string{lab.Edge + ":3478", lab.TURN + ":443"}, "urls": turnURLs(lab.TURNName), "keys": filepath.Join(data, "turn-keys.json"),
		}}, p.keys)
		s.core = lab.Start(t, edge, data, "--config", configuration(t, apart), "waf", "wwsf", "epcscf", "imsagw", "democore")
		s.turnData, s.turnConfig = lab.DataFolder(t), configuration(t, merge(apart, p.turn))
		s.startTURN()
	} else {
		s.core = lab.Start(t, edge, data, "--config", configuration(t, p.keys))
		s.turn = s.core
	}
	// A browser each: a page that is not in front gets no clicks.
	for _, b := range []struct {
		page  **Page
		name  string
		start func(testing.TB, *lab.Host, string) Browser
	}{{&s.alice, "alice", p.alice}, {&s.bob, "bob", p.bob}} {
		if b.start == nil {
			b.start = NewChromium
		}
		*b.page = b.start(t, wic, s.ca).Page(b.name)
	}
	return s
}

func merge(a, b keys) keys {
	all := keys{}
	for _, k := range []keys{a, b} {
		for section, v := range k {
			if all[section] == nil {
				all[section] = map[string]any{}
			}
			maps.Copy(all[section], v)
		}
	}
	return all
}

func (s *system) startTURN() {
	s.t.Helper()
	s.turn = lab.Start(s.t, s.edge, s.turnData, "--config", s.turnConfig, "turn")
}

// logIn takes a page from the portal to the registered state.
func logIn(p *Page, user, password string) {
	p.t.Helper()
	p.Open(portal)
	p.Click("#login")
	p.Fill("input[name=username]", user)
	p.Fill("input[name=password]", password)
	p.Click("button[type=submit]")
	p.Wait(15*time.Second, `document.body.dataset.registration === "registered"`)
}

// logIn takes both pages there.
func (s *system) logIn() {
	s.t.Helper()
	logIn(s.alice, "alice", s.core.Password("alice"))
	logIn(s.bob, "bob", s.core.Password("bob"))
}
