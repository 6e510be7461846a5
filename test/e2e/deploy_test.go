package e2e_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"wicgate/internal/admin"
	"wicgate/test/lab"
)

const deploy = "../../deploy/"

// page is what a scrape has: by metric, the values of each label.
type page map[string]map[string][]string

var (
	sample  = regexp.MustCompile(`(?m)^([a-z_0-9]+)(?:\{(.*)\})? `)
	pair    = regexp.MustCompile(`([a-z_]+)(=~|!~|!=|=)"((?:[^"\\]|\\.)*)"`)
	metric  = regexp.MustCompile(`\b((?:wicgate|process|go)_[a-z0-9_]+)(?:\{([^}]*)\})?`)
	grouped = regexp.MustCompile(`\b(?:by|without) \(([^)]*)\)`)
)

func parsePage(text string) page {
	p := page{}
	for _, m := range sample.FindAllStringSubmatch(text, -1) {
		if p[m[1]] == nil {
			p[m[1]] = map[string][]string{}
		}
		for _, l := range pair.FindAllStringSubmatch(m[2], -1) {
			p[m[1]][l[1]] = append(p[m[1]][l[1]], l[3])
		}
	}
	return p
}

// missing are the metrics, labels and values that text names and the page has not.
func (p page) missing(text string) (out []string) {
	for _, m := range metric.FindAllStringSubmatch(text, -1) {
		labels, ok := p[m[1]]
		if !ok {
			out = append(out, m[1])
			continue
		}
		for _, l := range pair.FindAllStringSubmatch(m[2], -1) {
			if l[1] == "job" || l[1] == "instance" { // of the scrape
				continue
			}
			for v := range strings.SplitSeq(l[3], "|") {
				if !slices.Contains(labels[l[1]], v) {
					out = append(out, fmt.Sprintf("%s{%s=%q}", m[1], l[1], v))
				}
			}
		}
	}
	for _, g := range grouped.FindAllStringSubmatch(text, -1) {
		for l := range strings.SplitSeq(g[1], ", ") {
			known := false
			for _, labels := range p {
				known = known || labels[l] != nil
			}
			if !known {
				out = append(out, g[0])
			}
		}
	}
	return out
}

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// tool runs a program that test/setup.sh installs.
func tool(t *testing.T, dir string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%s: %v (test/setup.sh installs it)\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// dashboard is what of Grafana's JSON the test looks at.
type dashboard struct {
	Panels []struct {
		ID                       int
		Type, Title, Description string
		Datasource               struct{ UID string }
		Targets                  []struct{ Expr string }
		FieldConfig              struct{ Defaults struct{ Unit string } }
		GridPos                  struct{ X, Y, W, H int }
	}
	Templating struct{ List []struct{ Query any } }
}

// TestDeployedMetrics: what alert rules, dashboard and documentation name is in the scrape of a process
// that runs all roles.
func TestDeployedMetrics(t *testing.T) {
	data := lab.DataFolder(t)
	cfg := filepath.Join(data, "wicgate.yaml")
	if err := os.WriteFile(cfg, []byte("turn: {dtls: true}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	lab.Start(t, lab.Lone(t), data, "--config", cfg)
	var b []byte
	if err := (admin.Client{Dir: data}).Do(t.Context(), "GET", "/metrics", nil, &b); err != nil {
		t.Fatal(err)
	}
	p := parsePage(string(b))
	if got := p.missing(`wicgate_turn_refused_total{cause="bad_mac|none_such"} wicgate_none_such sum by (cause, nobody) (wicgate_ready)`); len(got) != 3 {
		t.Fatalf("a test that finds nothing: %v", got)
	}
	for _, name := range []string{deploy + "prometheus/wicgate.rules.yml", deploy + "prometheus/wicgate.rules_test.yml", "../../docs/ops/operating.md"} {
		if got := p.missing(read(t, name)); got != nil {
			t.Errorf("%s names what no scrape has: %s", filepath.Base(name), strings.Join(got, ", "))
		}
	}
	var d dashboard
	if err := json.Unmarshal([]byte(read(t, deploy+"grafana/wicgate.json")), &d); err != nil {
		t.Fatal(err)
	}
	named := map[string]bool{}
	for _, panel := range d.Panels {
		for _, target := range panel.Targets {
			if got := p.missing(target.Expr); got != nil {
				t.Errorf("panel %q names what no scrape has: %s", panel.Title, strings.Join(got, ", "))
			}
			for _, m := range metric.FindAllStringSubmatch(target.Expr, -1) {
				named[m[1]] = true
			}
		}
	}
	for _, v := range d.Templating.List {
		if got := p.missing(fmt.Sprint(v.Query)); got != nil {
			t.Errorf("a variable names what no scrape has: %s", strings.Join(got, ", "))
		}
	}
	// Each counter of the TURN server is on the dashboard somewhere.
	for name := range p {
		if strings.HasPrefix(name, "wicgate_turn_") && !named[name] && name != "wicgate_turn_bindings_total" {
			t.Errorf("the dashboard has no %s", name)
		}
	}
}

// TestAlertRules: Prometheus takes the rules; each alert has been seen to fire and to keep silent, and says
// what it is about.
func TestAlertRules(t *testing.T) {
	dir := deploy + "prometheus"
	tool(t, dir, "promtool", "check", "rules", "wicgate.rules.yml")
	tool(t, dir, "promtool", "test", "rules", "wicgate.rules_test.yml")
	tests := read(t, dir+"/wicgate.rules_test.yml")
	rules := strings.Split(read(t, dir+"/wicgate.rules.yml"), "      - alert: ")[1:]
	for _, r := range rules {
		name, _, _ := strings.Cut(r, "\n")
		for _, want := range []string{"- name: " + name + " fires\n", "- name: " + name + " is silent\n"} {
			if !strings.Contains(tests, want) {
				t.Errorf("no test %q", strings.TrimSpace(want))
			}
		}
		if !regexp.MustCompile(`labels: \{severity: (critical|warning)\}`).MatchString(r) || !strings.Contains(r, " summary: ") || !strings.Contains(r, " description: ") {
			t.Errorf("%s lacks severity, summary or description", name)
		}
	}
	if len(rules) < 10 || strings.Count(tests, "exp_alerts: []") != len(rules) || strings.Count(tests, "exp_labels:") != len(rules) {
		t.Errorf("%d rules, %d silent, %d fire", len(rules), strings.Count(tests, "exp_alerts: []"), strings.Count(tests, "exp_labels:"))
	}
}

// TestDashboard: its expressions parse, its panels have names and units, and none lies on another.
func TestDashboard(t *testing.T) {
	var d dashboard
	if err := json.Unmarshal([]byte(read(t, deploy+"grafana/wicgate.json")), &d); err != nil {
		t.Fatal(err)
	}
	ids, taken := map[int]string{}, map[[2]int]string{}
	rules := "groups: [{name: dashboard, rules: [\n"
	for i, p := range d.Panels {
		if other, twice := ids[p.ID]; twice || p.ID == 0 || p.Title == "" {
			t.Errorf("panel %q has the id %d, as %q", p.Title, p.ID, other)
		}
		ids[p.ID] = p.Title
		for x := range p.GridPos.W {
			for y := range p.GridPos.H {
				at := [2]int{p.GridPos.X + x, p.GridPos.Y + y}
				if other, twice := taken[at]; twice || at[0] >= 24 {
					t.Fatalf("panel %q lies on %q or outside", p.Title, other)
				}
				taken[at] = p.Title
			}
		}
		if p.Type == "row" {
			continue
		}
		if p.Description == "" || p.Datasource.UID != "${datasource}" || p.FieldConfig.Defaults.Unit == "" || len(p.Targets) == 0 {
			t.Errorf("panel %q lacks description, data source, unit or targets", p.Title)
		}
		for j, target := range p.Targets {
			expr := strings.NewReplacer("$__rate_interval", "5m", "$job", "j", "$instance", ".*").Replace(target.Expr)
			rules += fmt.Sprintf("{record: 'p%d_%d', expr: %s},\n", i, j, strconv.Quote(expr))
		}
	}
	file := filepath.Join(t.TempDir(), "dashboard.yml")
	if err := os.WriteFile(file, []byte(rules+"]}]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tool(t, ".", "promtool", "check", "rules", file)
}

// TestSystemdUnit: systemd takes the unit, and finds its sandbox tight.
func TestSystemdUnit(t *testing.T) {
	unit := filepath.Join(t.TempDir(), "wicgate.service")
	text := strings.ReplaceAll(read(t, deploy+"systemd/wicgate.service"), "/usr/local/bin/wicgate", lab.Binary(t))
	if err := os.WriteFile(unit, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if out := tool(t, ".", "systemd-analyze", "verify", "--man=no", unit); strings.Contains(out, "wicgate.service:") {
		t.Errorf("systemd-analyze verify says\n%s", out)
	}
	out := tool(t, ".", "systemd-analyze", "security", "--no-pager", "--offline=true", unit)
	m := regexp.MustCompile(`Overall exposure level for wicgate.service: ([0-9.]+)`).FindStringSubmatch(out)
	if m == nil {
		t.Fatalf("no exposure level in\n%s", out)
	}
	if level, err := strconv.ParseFloat(m[1], 64); err != nil || level > 2 {
		t.Errorf("exposure level %s, want 2.0 at most\n%s", m[1], out)
	}
}
