package config

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"regexp"
	"strings"
	"time"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// source is a file's name, and the line of each key in it.
type source struct {
	name  string
	lines map[string]int // by key, such as turn.listen[0]
}

// newSource reads the places of keys in a file that has been understood.
func newSource(name string, b []byte) source {
	s := source{name, map[string]int{}}
	file, err := parser.ParseBytes(b, 0)
	if err != nil {
		return s // it has been understood before; without places there are still words
	}
	for _, doc := range file.Docs {
		if doc.Body != nil {
			ast.Walk(s, doc.Body)
		}
	}
	return s
}

// Visit implements [ast.Visitor].
func (s source) Visit(n ast.Node) ast.Visitor {
	var line int
	switch v := n.(type) {
	case *ast.MappingValueNode:
		line = v.Key.GetToken().Position.Line
		n = v.Value // its path is the key's
	case ast.ScalarNode:
		line = v.GetToken().Position.Line
	default:
		return s
	}
	key := strings.TrimPrefix(strings.TrimPrefix(n.GetPath(), "$"), ".")
	if _, ok := s.lines[key]; !ok && key != "" {
		s.lines[key] = line
	}
	return s
}

// Source is the file's name, "" where there is none.
func (f *File) Source() string { return f.source.name }

// Line is the line that sets a key, such as turn.listen[0]; 0 where the default holds. For what no
// line sets itself, it is the line of what holds it, if that is more than a section.
func (f *File) Line(key string) int {
	if l := f.source.lines[key]; l != 0 {
		return l
	}
	if i := strings.LastIndexByte(key, '['); i > 0 {
		return f.source.lines[key[:i]]
	}
	return 0
}

// placed puts file and line before each error whose text begins with a key.
func (f *File) placed(err error) error {
	var errs []error
	for _, e := range flatten(err) {
		key, _, _ := strings.Cut(e.Error(), ":")
		if line := f.Line(key); line != 0 {
			e = fmt.Errorf("%s:%d: %w", f.source.name, line, e)
		} else {
			e = fmt.Errorf("%s: %w", f.source.name, e)
		}
		errs = append(errs, e)
	}
	return errors.Join(errs...)
}

// flatten takes joined errors apart.
func flatten(err error) (out []error) {
	var joined interface{ Unwrap() []error }
	if errors.As(err, &joined) {
		for _, e := range joined.Unwrap() {
			out = append(out, flatten(e)...)
		}
		return out
	}
	if err != nil {
		out = append(out, err)
	}
	return out
}

// Setting is a key with the value that holds.
type Setting struct {
	Key   string `json:"key"`
	Value string `json:"value"`
	Line  int    `json:"line,omitempty"` // that sets it; 0: the default
}

// Settings are all keys in the order of the file wicgate.yaml. Users, passwords and tokens in URLs are left
// out; other secrets are in files of their own.
func (f *File) Settings() (out []Setting) {
	each(reflect.ValueOf(f).Elem(), "", func(x field) {
		out = append(out, Setting{x.key, show(x.value.Interface()), f.Line(x.key)})
	})
	return out
}

// field is a key with its value.
type field struct {
	key   string
	value reflect.Value
}

// each walks the keys of a section.
func each(v reflect.Value, prefix string, yield func(field)) {
	for i := range v.NumField() {
		tag := v.Type().Field(i).Tag.Get("yaml")
		if tag == "" {
			continue
		}
		key, value := prefix+tag, v.Field(i)
		if value.Kind() == reflect.Struct && value.NumField() > 0 && value.Type().Field(0).Tag.Get("yaml") != "" {
			each(value, key+".", yield)
			continue
		}
		yield(field{key, value})
	}
}

// show writes a value as the file would.
func show(v any) string {
	switch x := v.(type) {
	case string:
		if x == "" {
			return `""`
		}
		return hide(x)
	case Duration:
		return duration(time.Duration(x))
	case Ports:
		return x.String()
	case Side:
		if x.Advertise.IsValid() {
			return fmt.Sprintf("{bind: %v, advertise: %v, ports: %v}", x.Bind, x.Advertise, x.Ports)
		}
		return fmt.Sprintf("{bind: %v, ports: %v}", x.Bind, x.Ports)
	case Range:
		return x.Prefix.String() + " " + x.Ports.String()
	case Level:
		return x.String()
	case Tenant:
		return x.Name
	case AddrPort:
		if x == (AddrPort{}) {
			return `""`
		}
		return x.String()
	case Addr:
		if x.Addr == (netip.Addr{}) {
			return `""`
		}
		return x.String()
	}
	if rv := reflect.ValueOf(v); rv.Kind() == reflect.Slice {
		var list []string
		for i := range rv.Len() {
			list = append(list, show(rv.Index(i).Interface()))
		}
		return "[" + strings.Join(list, ", ") + "]"
	}
	return fmt.Sprint(v)
}

// hide leaves out users, passwords and tokens of a list of URLs.
func hide(urls string) string {
	list := strings.Split(urls, ",")
	for i, u := range list {
		scheme, rest, ok := strings.Cut(u, "://")
		if at := strings.LastIndexByte(rest, '@'); ok && at >= 0 {
			list[i] = scheme + "://xxxxx" + rest[at:]
		}
	}
	return strings.Join(list, ",")
}

// userinfo is what stands between a scheme and the last @ of a line.
var userinfo = regexp.MustCompile(`://[^\n]*@`)

// hideWithin does so for a text that may hold such URLs, as the words about a refused file do.
func hideWithin(text string) string { return userinfo.ReplaceAllString(text, "://xxxxx@") }

// duration leaves out zeros: 12h, not 12h0m0s.
func duration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// String is first-last.
func (p Ports) String() string { return fmt.Sprintf("%d-%d", p.First, p.Last) }

func (p Ports) overlap(q Ports) bool { return p.First <= q.Last && q.First <= p.Last }

// Count is how many ports there are.
func (p Ports) Count() int { return int(p.Last) - int(p.First) + 1 }

// String is the level's name, as the file has it.
func (l Level) String() string {
	for name, level := range map[string]Level{"debug": -4, "info": 0, "warn": 4, "error": 8} {
		if l == level {
			return name
		}
	}
	return fmt.Sprint(int(l))
}
