package main

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
	"time"
)

// report is the JSON file.
type report struct {
	Date     time.Time `json:"date"`
	Took     string    `json:"took"`
	Machine  string    `json:"machine"`
	Load     string    `json:"load"` // /proc/loadavg at the start
	Rounds   int       `json:"rounds"`
	Servers  []*server `json:"servers"`
	Measures []measure `json:"measures"`
	// Values by server, measure and round; the first round is not among them. A round that failed
	// has none.
	Values map[string]map[string]map[int]float64 `json:"values"`
	Failed []string                              `json:"failed,omitempty"`
}

func (r *report) add(server string, round int, values map[string]float64) {
	if r.Values[server] == nil {
		r.Values[server] = map[string]map[int]float64{}
	}
	for key, v := range values {
		if r.Values[server][key] == nil {
			r.Values[server][key] = map[int]float64{}
		}
		r.Values[server][key][round] = v
	}
}

// summary of the rounds of one measure.
type summary struct {
	median, min, max float64
	n                int
}

func summarize(values []float64) summary {
	if len(values) == 0 {
		return summary{}
	}
	v := slices.Sorted(slices.Values(values))
	n := len(v)
	return summary{(v[(n-1)/2] + v[n/2]) / 2, v[0], v[n-1], n}
}

func (r *report) values(server, key string) (list []float64) {
	for _, v := range r.Values[server][key] {
		list = append(list, v)
	}
	return list
}

// ratio is the median of what a round's value of one server is to the other's in the same round: a
// machine that is busy in one round is so for both.
func (r *report) ratio(key, one, other string) (float64, bool) {
	var list []float64
	for round, v := range r.Values[one][key] {
		if w, ok := r.Values[other][key][round]; ok && v > 0 && w > 0 {
			list = append(list, v/w)
		}
	}
	return summarize(list).median, len(list) > 0
}

// table is the report in Markdown.
func (r *report) table() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, %s. Load average at the start: %s. Run of %s, %d rounds after one discarded.\nMedian (min – max).\n\n",
		r.Date.Format("2006-01-02"), r.Machine, r.Load, r.Took, r.Rounds)
	fmt.Fprint(&b, "| measure | unit | better |")
	rule := "|---|---|---|"
	for _, s := range r.Servers {
		fmt.Fprintf(&b, " %s |", s.Name)
		rule += "---|"
	}
	first := r.Servers[0].Name
	for _, s := range r.Servers[1:] {
		fmt.Fprintf(&b, " %s / %s |", first, s.Name)
		rule += "---|"
	}
	fmt.Fprintf(&b, "\n%s\n", rule)
	for _, m := range r.Measures {
		better := "less"
		if m.More {
			better = "more"
		}
		fmt.Fprintf(&b, "| %s | %s | %s |", m.Name, m.Unit, better)
		for _, s := range r.Servers {
			v := summarize(r.values(s.Name, m.Key))
			switch {
			case v.n == 0:
				fmt.Fprint(&b, " failed |")
			case v.n < r.Rounds:
				fmt.Fprintf(&b, " "+m.format+" ("+m.format+" – "+m.format+"), %d rounds |", v.median, v.min, v.max, v.n)
			default:
				fmt.Fprintf(&b, " "+m.format+" ("+m.format+" – "+m.format+") |", v.median, v.min, v.max)
			}
		}
		for _, s := range r.Servers[1:] {
			if q, ok := r.ratio(m.Key, first, s.Name); ok {
				fmt.Fprintf(&b, " %.2f |", q)
			} else {
				fmt.Fprint(&b, " – |")
			}
		}
		fmt.Fprintln(&b)
	}
	fmt.Fprintln(&b)
	for _, s := range r.Servers {
		fmt.Fprintf(&b, "- %s: version %s: `%s`\n", s.Name, strings.ReplaceAll(s.Version, "\n", "; "), strings.Join(s.Command, " "))
	}
	for _, f := range r.Failed {
		fmt.Fprintf(&b, "- failed: %s\n", strings.ReplaceAll(f, "\n", " "))
	}
	return b.String()
}

// machine in one line.
func machine(cpuinfo, release string, rmemMax string) string {
	model := "unknown CPU"
	for line := range strings.Lines(cpuinfo) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			model = strings.TrimSpace(value)
			break
		}
	}
	return fmt.Sprintf("%s, %d CPUs, Linux %s, %s, net.core.rmem_max %s", model, runtime.NumCPU(), strings.TrimSpace(release), runtime.Version(), strings.TrimSpace(rmemMax))
}
