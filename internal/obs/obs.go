// Package obs makes Prometheus metrics of the roles' Stats. It is the one room that knows
// Prometheus. Roles count as they always do; a scrape reads their Stats once and translates them by
// the table in metrics.go:
//
//	turn.Stats{Refused: {"bad_mac": 3}}  ──►  wicgate_turn_refused_total{cause="bad_mac"} 3
//
// Label sets are fixed. A label's values are those that the role's Stats name when it starts, before
// it has seen a packet; nothing that comes later can add one, so nothing on the wire can. Users,
// addresses and call identities are for the log and the admin socket.
package obs

import (
	"fmt"
	"net/http"
	"reflect"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// maxValues bounds a label's values, and valueForm says what one looks like.
const maxValues = 64

var valueForm = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,31}$`)

// other is the value under which everything is counted that a label does not name.
const other = "other"

// Metrics is a set of metrics with its page.
type Metrics struct{ reg *prometheus.Registry }

// New returns metrics of the process and the runtime, and wicgate_build_info.
func New(version, revision string) *Metrics {
	m := &Metrics{prometheus.NewPedanticRegistry()}
	build := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "wicgate_build_info", Help: "Which program this is; always 1.",
		ConstLabels: prometheus.Labels{"version": version, "revision": revision, "goversion": runtime.Version()},
	}, func() float64 { return 1 })
	m.reg.MustRegister(build, collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), collectors.NewGoCollector())
	return m
}

// Gauge adds a single value. help gives the unit.
func (m *Metrics) Gauge(name, help string, value func() float64) error {
	return m.reg.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value))
}

// Role adds a role's metrics. stats returns the role's Stats, a struct, and is called at each scrape
// and once here, for the values of labels. It is an error if the table does not know all its fields.
func (m *Metrics) Role(role string, stats func() any) error {
	r := &roleCollector{stats: stats}
	if err := r.describe(role, reflect.ValueOf(stats())); err != nil {
		return err
	}
	return m.reg.Register(r)
}

// Handler is the page for Prometheus.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.reg, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 10 * time.Second})
}

// roleCollector reads a role's Stats once a scrape.
type roleCollector struct {
	stats func() any
	rows  []row
}

// row is a number of the Stats, or a map of numbers.
type row struct {
	desc   *prometheus.Desc
	kind   prometheus.ValueType
	path   []int    // of fields, from the Stats
	labels []string // values of the label that varies in the map; empty for a number
}

// describe makes the rows.
func (r *roleCollector) describe(role string, v reflect.Value) error {
	if v.Kind() != reflect.Struct {
		return fmt.Errorf("obs: stats of %s are %v, want a struct", role, v.Kind())
	}
	var problems []string
	var walk func(v reflect.Value, name string, path []int)
	walk = func(v reflect.Value, name string, path []int) {
		for i := range v.NumField() {
			key := name + "." + v.Type().Field(i).Name
			at := append(slices.Clone(path), i)
			spec, known := table[key]
			f := v.Field(i)
			switch {
			case !known && f.Kind() == reflect.Struct:
				walk(f, key, at)
			case !known:
				problems = append(problems, key+" is not in the table")
			case f.Kind() == reflect.Struct && spec.label != "": // each field is a value of the label
				for j := range f.NumField() {
					one := spec
					one.constant = with(spec.constant, spec.label, snake(f.Type().Field(j).Name))
					one.label = ""
					r.add(one, append(slices.Clone(at), j), nil)
					if !number(f.Field(j).Kind()) {
						problems = append(problems, key+"."+f.Type().Field(j).Name+" is no number")
					}
				}
			case f.Kind() == reflect.Map && spec.label != "":
				values, err := labelValues(f)
				if err != nil {
					problems = append(problems, fmt.Sprintf("%s: %v", key, err))
				}
				r.add(spec, at, values)
			case number(f.Kind()) && spec.label == "":
				r.add(spec, at, nil)
			default:
				problems = append(problems, fmt.Sprintf("%s is a %v, which the table does not fit", key, f.Type()))
			}
		}
	}
	walk(v, role, nil)
	if problems != nil {
		return fmt.Errorf("obs: %s", strings.Join(problems, "; "))
	}
	return nil
}

func (r *roleCollector) add(s spec, path []int, values []string) {
	var labels []string
	if s.label != "" {
		labels = []string{s.label}
	}
	kind := prometheus.GaugeValue
	if strings.HasSuffix(s.name, "_total") {
		kind = prometheus.CounterValue
	}
	r.rows = append(r.rows, row{prometheus.NewDesc("wicgate_"+s.name, s.help, labels, s.constant), kind, path, values})
}

// labelValues are the keys of a map of numbers, sorted.
func labelValues(m reflect.Value) (out []string, err error) {
	if m.Type().Key().Kind() != reflect.String || !number(m.Type().Elem().Kind()) {
		return nil, fmt.Errorf("want a map of strings to numbers, not %v", m.Type())
	}
	for _, k := range m.MapKeys() {
		if !valueForm.MatchString(k.String()) {
			return nil, fmt.Errorf("%q is no label value of a fixed set", k.String())
		}
		out = append(out, k.String())
	}
	if len(out) > maxValues {
		return nil, fmt.Errorf("%d label values, at most %d make a fixed set", len(out), maxValues)
	}
	slices.Sort(out)
	return out, nil
}

// Describe implements [prometheus.Collector].
func (r *roleCollector) Describe(out chan<- *prometheus.Desc) {
	for _, row := range r.rows {
		out <- row.desc
	}
}

// Collect implements [prometheus.Collector].
func (r *roleCollector) Collect(out chan<- prometheus.Metric) {
	v := reflect.ValueOf(r.stats())
	for _, row := range r.rows {
		f := v.FieldByIndex(row.path)
		if f.Kind() != reflect.Map {
			out <- prometheus.MustNewConstMetric(row.desc, row.kind, value(f))
			continue
		}
		rest, hasRest := 0.0, false
		for _, k := range f.MapKeys() {
			if !slices.Contains(row.labels, k.String()) {
				rest, hasRest = rest+value(f.MapIndex(k)), true
			}
		}
		for _, l := range row.labels {
			n := 0.0
			if e := f.MapIndex(reflect.ValueOf(l)); e.IsValid() {
				n = value(e)
			}
			if l == other {
				n, hasRest = n+rest, false
			}
			out <- prometheus.MustNewConstMetric(row.desc, row.kind, n, l)
		}
		if hasRest {
			out <- prometheus.MustNewConstMetric(row.desc, row.kind, rest, other)
		}
	}
}

func number(k reflect.Kind) bool {
	return k >= reflect.Int && k <= reflect.Uint64 || k == reflect.Float64
}

func value(v reflect.Value) float64 {
	switch {
	case v.CanInt():
		return float64(v.Int())
	case v.CanUint():
		return float64(v.Uint())
	}
	return v.Float()
}

func with(m map[string]string, key, value string) map[string]string {
	out := map[string]string{key: value}
	for k, v := range m {
		out[k] = v
	}
	return out
}

// snake writes a field's name as a label's value: FlowToken is flow_token.
func snake(s string) string {
	var b strings.Builder
	upper := func(i int) bool { return i >= 0 && i < len(s) && s[i] >= 'A' && s[i] <= 'Z' }
	for i := range len(s) {
		if upper(i) && i > 0 && (!upper(i-1) || i+1 < len(s) && !upper(i+1)) {
			b.WriteByte('_')
		}
		b.WriteString(strings.ToLower(s[i : i+1]))
	}
	return b.String()
}
