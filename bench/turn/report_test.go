package main

import (
	"strings"
	"testing"
)

func TestSummarize(t *testing.T) {
	for _, c := range []struct {
		values []float64
		want   summary
	}{
		{nil, summary{}},
		{[]float64{3}, summary{3, 3, 3, 1}},
		{[]float64{4, 1}, summary{2.5, 1, 4, 2}},
		{[]float64{9, 1, 5, 2, 3}, summary{3, 1, 9, 5}},
	} {
		if got := summarize(c.values); got != c.want {
			t.Errorf("%v: %v, want %v", c.values, got, c.want)
		}
	}
}

// TestTable: medians, spread, and the ratio by round and not by median.
func TestTable(t *testing.T) {
	r := &report{Rounds: 3, Servers: []*server{{Name: "a"}, {Name: "b"}}, Values: map[string]map[string]map[int]float64{},
		Measures: []measure{{"k", "thing", "µs", false, "%.1f"}, {"none", "other", "1/s", true, "%.0f"}}}
	for round, v := range [][2]float64{1: {1, 2}, 2: {10, 20}, 3: {4, 40}} {
		if round > 0 {
			r.add("a", round, map[string]float64{"k": v[0]})
			r.add("b", round, map[string]float64{"k": v[1]})
		}
	}
	r.add("b", 1, map[string]float64{"none": 7})
	got := r.table()
	for _, want := range []string{
		"| measure | unit | better | a | b | a / b |\n",
		"| thing | µs | less | 4.0 (1.0 – 10.0) | 20.0 (2.0 – 40.0) | 0.50 |\n",
		"| other | 1/s | more | failed | 7 (7 – 7), 1 rounds | – |\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
}

// TestSources: few clients share an address, and no two are alike.
func TestSources(t *testing.T) {
	var s sources
	hosts, seen := map[string]int{}, map[string]bool{}
	for range 20_000 {
		a := s.next()
		if !strings.HasPrefix(a.Addr().String(), "10.31.") || seen[a.String()] {
			t.Fatal(a)
		}
		seen[a.String()] = true
		hosts[a.Addr().String()]++
	}
	for a, n := range hosts {
		if n != 80 {
			t.Errorf("%s: %d of 20000 clients", a, n)
		}
	}
}

func TestMachine(t *testing.T) {
	got := machine("processor\t: 0\nmodel name\t: Fine CPU\nmodel name\t: Other\n", "6.1\n", "212992\n")
	if !strings.HasPrefix(got, "Fine CPU, ") || !strings.Contains(got, "Linux 6.1, go") || !strings.HasSuffix(got, " 212992") {
		t.Error(got)
	}
}
