package interop

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"wicgate/test/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }

// step of "wicgate probe --json".
type step struct {
	Name, State, Detail, Check string
}

func probe(t *testing.T, env []string, args ...string) (steps []step, all string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), lab.Binary(t), append([]string{"probe", "--json"}, args...)...)
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.Output()
	var report struct{ Steps []step }
	if e := json.Unmarshal(out, &report); e != nil {
		t.Fatalf("%v, %v in %s", err, e, out)
	}
	return report.Steps, string(out)
}

// TestCoreProbe plays the cases of Trusted Node Authentication against Kamailio, with an HSS that knows
// who may register whom.
func TestCoreProbe(t *testing.T) {
	s := StartSCSCF(t, map[string][]string{"alice@ims.test": {"sip:alice@ims.test"}, "bob@ims.test": {"sip:bob@ims.test"}})
	file := filepath.Join(t.TempDir(), "wicgate.yaml")
	text := fmt.Sprintf("epcscf: {core: '127.0.0.1:%d', listen: '127.0.0.1:%d'}\n", s.Port, FreePort(t))
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	steps, all := probe(t, nil, "--core", "--config", file, "--impi", "alice@ims.test", "--impu", "sip:alice@ims.test", "--other-impi", "bob@ims.test")
	for _, k := range steps {
		t.Logf("%-8s %s: %s", k.State, k.Name, k.Detail)
		if k.State != "ok" {
			t.Errorf("%s: %s: %s", k.State, k.Name, k.Detail)
		}
	}
	if len(steps) != 15 {
		t.Errorf("%d steps in %s", len(steps), all)
	}
	asked := s.HSS.Asked()
	for _, want := range []string{"SAR alice@ims.test sip:alice@ims.test", "SAR bob@ims.test sip:alice@ims.test", "MAR alice@ims.test sip:alice@ims.test"} {
		if !slices.Contains(asked, want) {
			t.Errorf("the HSS was not asked %q, but %s", want, strings.Join(asked, ", "))
		}
	}
}

// TestProbeThroughKamailio goes the whole way of a browser with Kamailio in democore's place: guests
// are registered by Trusted Node Authentication, called by their Path, and the call is ended.
func TestProbeThroughKamailio(t *testing.T) {
	subscribers := map[string][]string{}
	for i := 1; i <= 16; i++ {
		subscribers[fmt.Sprintf("guest-%02d@ims.test", i)] = []string{fmt.Sprintf("sip:guest-%02d@ims.test", i)}
	}
	s := StartSCSCF(t, subscribers)
	data := lab.DataFolder(t)
	file := filepath.Join(data, "wicgate.yaml")
	web, relay := FreePort(t), FreePort(t)
	text := fmt.Sprintf("https: {listen: '127.0.0.1:%d', url: 'https://localhost:%d'}\n", web, web) +
		fmt.Sprintf("turn: {listen: ['127.0.0.1:%[1]d'], listen_tcp: ['127.0.0.1:%[1]d'], urls: ['turn:127.0.0.1:%[1]d?transport=udp', 'turn:127.0.0.1:%[1]d?transport=tcp']}\n", relay) +
		fmt.Sprintf("epcscf: {core: '127.0.0.1:%d', listen: '127.0.0.1:%d'}\n", s.Port, FreePort(t))
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	lab.Start(t, nil, data, "--config", file, "turn", "waf", "wwsf", "epcscf", "imsagw")
	steps, all := probe(t, nil, fmt.Sprintf("https://localhost:%d", web), "--guest", "--ca", filepath.Join(data, "ca", "ca.pem"))
	for _, k := range steps {
		t.Logf("%-8s %s: %s", k.State, k.Name, k.Detail)
		if k.State != "ok" {
			t.Errorf("%s: %s: %s", k.State, k.Name, k.Detail)
		}
	}
	if len(steps) != 13 {
		t.Errorf("%d steps in %s", len(steps), all)
	}
}
