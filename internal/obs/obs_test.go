package obs

import (
	"io"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
)

// page is what Prometheus gets.
func page(t *testing.T, m *Metrics) string {
	t.Helper()
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	b, err := io.ReadAll(w.Body)
	if err != nil || w.Code != 200 {
		t.Fatalf("%d %s %v", w.Code, b, err)
	}
	return string(b)
}

// democore's Stats, as they are in the table, and a map in the manner of the others.
type democore struct{ Registrations, Calls, Connections, Registers, Refused, Routed, Leaks int }

// TestNothingFromTheWireIsALabel: a key that is not there at the start never becomes a label, however
// it got into the map.
func TestNothingFromTheWireIsALabel(t *testing.T) {
	type stats struct{ Refused map[string]uint64 }
	now := map[string]uint64{"bad_mac": 0, "stale_nonce": 0}
	m := New("1.0", "abc")
	if err := m.Role("turn", func() any { return stats{now} }); err != nil {
		t.Fatal(err)
	}
	if got := page(t, m); strings.Contains(got, `cause="other"`) || !strings.Contains(got, `wicgate_turn_refused_total{cause="bad_mac"} 0`) {
		t.Errorf("at the start:\n%s", got)
	}
	now = map[string]uint64{"bad_mac": 3, "stale_nonce": 1, "1767225600:alice": 5, "203.0.113.7:5000": 6, "a\"} 1\nx": 7}
	got := page(t, m)
	for _, never := range []string{"alice", "203.0.113.7", "\nx"} {
		if strings.Contains(got, never) {
			t.Errorf("%q is on the page", never)
		}
	}
	for _, want := range []string{`wicgate_turn_refused_total{cause="bad_mac"} 3`, `wicgate_turn_refused_total{cause="stale_nonce"} 1`, `wicgate_turn_refused_total{cause="other"} 18`} {
		if !strings.Contains(got, want+"\n") {
			t.Errorf("no %s", want)
		}
	}
}

// TestRefusesOpenSets: a map that is no fixed set of words at the start is a mistake of the role's.
func TestRefusesOpenSets(t *testing.T) {
	type stats struct{ Refused map[string]uint64 }
	many := map[string]uint64{}
	for i := range maxValues + 1 {
		many[strings.Repeat("a", i%31+1)+string(rune('a'+i/31))] = 0
	}
	for name, q := range map[string]struct {
		stats any
		want  string
	}{
		"address": {stats{map[string]uint64{"192.0.2.1": 1}}, "turn.Refused: \"192.0.2.1\" is no label value"},
		"long":    {stats{map[string]uint64{strings.Repeat("a", 33): 1}}, "is no label value"},
		"many":    {stats{many}, "65 label values, at most 64"},
		"field":   {struct{ Nonsense int }{}, "turn.Nonsense is not in the table"},
		"nested":  {struct{ Inner struct{ Nonsense int } }{}, "turn.Inner.Nonsense is not in the table"},
		"type":    {struct{ Refused string }{}, "turn.Refused is a string"},
		"map":     {struct{ Refused map[int]int }{}, "want a map of strings to numbers"},
		"scalar":  {7, "stats of turn are int, want a struct"},
	} {
		if err := New("", "").Role("turn", func() any { return q.stats }); err == nil || !strings.Contains(err.Error(), q.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestStructOfCauses(t *testing.T) {
	type refused struct{ FlowToken, ICE, TURNToken, Core uint64 }
	type stats struct{ Refused refused }
	m := New("", "")
	if err := m.Role("epcscf", func() any { return stats{refused{1, 2, 3, 4}} }); err != nil {
		t.Fatal(err)
	}
	got := page(t, m)
	for _, want := range []string{`{cause="flow_token"} 1`, `{cause="ice"} 2`, `{cause="turn_token"} 3`, `{cause="core"} 4`} {
		if !strings.Contains(got, "wicgate_epcscf_refused_total"+want) {
			t.Errorf("no %s in\n%s", want, got)
		}
	}
}

func TestMetricsPage(t *testing.T) {
	m := New("1.2.3", "abcdef")
	calls := 0
	if err := m.Role("democore", func() any { calls++; return democore{Registrations: 2, Routed: 9} }); err != nil {
		t.Fatal(err)
	}
	if err := m.Gauge("wicgate_ready", "1 if it is.", func() float64 { return 1 }); err != nil {
		t.Fatal(err)
	}
	got := page(t, m)
	for _, want := range []string{
		`wicgate_build_info{goversion="go1.`, `revision="abcdef",version="1.2.3"} 1`,
		"# TYPE wicgate_democore_registrations gauge", "wicgate_democore_registrations 2",
		"# TYPE wicgate_democore_routed_total counter", "wicgate_democore_routed_total 9",
		"process_resident_memory_bytes ", "process_open_fds ", "go_goroutines ", "wicgate_ready 1",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %s", want)
		}
	}
	if calls != 2 {
		t.Errorf("Stats were read %d times for one scrape and the start", calls)
	}
	problems, err := promlint.New(strings.NewReader(got)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "wicgate_") {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
	if err := m.Gauge("wicgate_ready", "Twice.", func() float64 { return 1 }); err == nil {
		t.Error("a name twice")
	}
}

// TestTable: a gauge and a counter whose names differ by _total alone are one family in OpenMetrics, and
// one metric has one help text and one set of labels.
func TestTable(t *testing.T) {
	byName := map[string]spec{}
	for field, s := range table {
		if old, ok := byName[s.name]; ok && (old.help != s.help || len(old.constant) != len(s.constant) || len(s.constant) == 0) {
			t.Errorf("%s: %s twice, with other words or without labels to tell them apart", field, s.name)
		}
		byName[s.name] = s
		if s.help == "" || !strings.HasSuffix(s.help, ".") {
			t.Errorf("%s: help is no sentence: %q", field, s.help)
		}
	}
	for name := range byName {
		if _, ok := byName[name+"_total"]; ok {
			t.Errorf("%s and %s_total", name, name)
		}
	}
}

func TestSnake(t *testing.T) {
	for in, want := range map[string]string{"Core": "core", "FlowToken": "flow_token", "TooMany": "too_many", "ICE": "ice", "ICEFailed": "ice_failed", "NoTURN": "no_turn"} {
		if got := snake(in); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}
