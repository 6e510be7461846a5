// Package arch_test holds the walls of the house: who may import whom, and that each room says
// what it is. ARCHITECTURE.md gives the reasons.
package arch_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "wicgate/"

var roles = []string{"turn", "waf", "wwsf", "epcscf", "imsagw", "democore"}

// rooms: each room, and the rooms that it may import. A folder below a room belongs to it.
var rooms = map[string][]string{
	"internal/secret":     {},
	"internal/claims":     {},
	"internal/peerpolicy": {},
	"internal/wire/stun":  {},
	"internal/life":       {},
	"internal/limit":      {},
	"internal/token":      {"internal/secret"},
	"internal/keyring":    {"internal/secret", "internal/token", "internal/wire/stun"},
	"internal/stunkey":    {"internal/keyring", "internal/limit", "internal/secret", "internal/token"},
	"internal/store":      {"internal/secret"},
	"internal/iq":         {"internal/store"},
	"internal/session":    {"internal/store"},
	"internal/pushed":     {"internal/secret", "internal/store"},
	"internal/policy":     {},
	"internal/probe":      {"internal/secret", "internal/siptx", "internal/turnclient", "internal/wire/stun"},
	"internal/listen":     {"internal/limit", "internal/secret"},
	"internal/acme":       {"internal/listen", "internal/secret", "internal/store"},
	"internal/admin":      {"internal/listen"},
	"internal/obs":        {},
	"internal/takeover":   {},
	"internal/check":      {"internal/config", "internal/keyring", "internal/listen", "internal/peerpolicy"},
	"internal/turnclient": {"internal/wire/stun", "internal/token", "internal/secret"},
	"web":                 {},
	"turn":                {"internal/wire/stun", "internal/token", "internal/keyring", "internal/store", "internal/peerpolicy", "internal/secret", "internal/listen"},
	"waf":                 {"internal/token", "internal/claims", "internal/keyring", "internal/limit", "internal/store", "internal/secret", "internal/listen"},
	"wwsf":                {"web", "internal/limit", "internal/secret", "internal/listen"},
	"epcscf":              {"internal/policy", "internal/limit", "internal/iq", "internal/siptx", "internal/token", "internal/claims", "internal/keyring", "internal/store", "internal/secret", "internal/listen"},
	"imsagw":              {"internal/iq", "internal/peerpolicy", "internal/store", "internal/wire/stun", "internal/secret", "internal/listen"},
	"internal/siptx":      {},
	"democore":            {"internal/listen", "internal/siptx"},
	"internal/config":     {"internal/peerpolicy", "internal/policy", "internal/token"},
	"internal/coturn":     {"internal/peerpolicy", "internal/secret"},
	"cmd/wicgate":         {"*"},
	"test":                {"*"},
	"bench":               {"*"},
	"tools":               {"*"},
}

// guests: each module from outside, and the rooms it may enter. golang.org/x is listed too.
var guests = map[string][]string{
	"github.com/nats-io/":              {"internal/store"},
	"github.com/caddyserver/certmagic": {"internal/acme"},
	"github.com/mholt/acmez/v3":        {"internal/acme"},
	"go.uber.org/zap":                  {"internal/acme"},
	"github.com/goccy/go-yaml":         {"internal/config"},
	"github.com/alecthomas/kong":       {"cmd/wicgate"},
	"github.com/emiago/sipgo":          {"internal/siptx"},
	"github.com/gobwas/ws":             {"epcscf", "internal/probe"},
	"github.com/pion/sdp/v3":           {"epcscf"},
	"github.com/go-jose/go-jose/v4":    {"waf", "epcscf"},
	"github.com/pion/ice/v4":           {"imsagw"},
	"github.com/pion/dtls/v3":          {"imsagw", "internal/listen", "internal/turnclient"},
	"github.com/pion/srtp/v3":          {"imsagw"},
	"github.com/pion/rtp":              {"imsagw"},
	"github.com/pion/rtcp":             {"imsagw"},
	"github.com/pion/stun/v4":          {"imsagw"},
	"github.com/pion/logging":          {"imsagw", "internal/listen"},
	"github.com/pion/transport/v5":     {"imsagw", "internal/listen"},
	"golang.org/x/crypto/argon2":       {"waf"},
	"golang.org/x/time/rate":           {"waf", "epcscf"},
	"golang.org/x/sys/unix":            {"cmd/wicgate", "internal/admin", "internal/check", "turn", "test", "bench"},
	"github.com/pion/turn/v5":          {"bench"},
	"github.com/prometheus/":           {"internal/obs"},
	"golang.org/x/sync/errgroup":       {"waf"},
	"github.com/chromedp/":             {"test"},
	"github.com/coder/websocket":       {"test"},
	"github.com/evanw/esbuild":         {"tools"},
	"github.com/letsencrypt/pebble":    {"tools"},
}

// sources calls each for every Go file of this module, those of other operating systems too.
func sources(t *testing.T, each func(name string, f *ast.File)) {
	t.Helper()
	fset := token.NewFileSet()
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "node_modules" || d.Name() == "testdata" || d.Name() == "bin" || strings.HasPrefix(d.Name(), ".") && name != ".") {
			return fs.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(name, ".go") {
			return nil
		}
		f, err := parser.ParseFile(fset, name, nil, parser.ImportsOnly|parser.ParseComments)
		if err != nil {
			return err
		}
		each(filepath.ToSlash(name), f)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// roomOf is the room that a folder belongs to, "" where there is none.
func roomOf(dir string) string {
	for d := dir; d != "."; d = path.Dir(d) {
		if _, ok := rooms[d]; ok {
			return d
		}
	}
	return ""
}

func allowed(list []string, what string) bool {
	return slices.Contains(list, "*") || slices.Contains(list, what)
}

func TestWalls(t *testing.T) {
	seen, came := map[string]bool{}, map[string]bool{}
	sources(t, func(name string, f *ast.File) {
		dir := path.Dir(name)
		if dir == "." {
			return // this file
		}
		room := roomOf(dir)
		if room == "" {
			t.Errorf("%s: no line for this room in arch_test.go", name)
			return
		}
		seen[room] = true
		for _, i := range f.Imports {
			p, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			if complaint := verdict(name, room, p); complaint != "" {
				t.Errorf("%s: %s", name, complaint)
			}
			for guest := range guests {
				if under(p, guest) {
					came[guest+" in "+room] = true
				}
			}
		}
	})
	for guest, list := range guests {
		for _, room := range list {
			if !came[guest+" in "+room] && room != "tools" {
				t.Errorf("arch_test.go lets %s into %s, which has no use for it", guest, room)
			}
		}
	}
	for room := range rooms {
		if !seen[room] && room != "bench" && room != "tools" {
			t.Errorf("arch_test.go has a line for %s, where there is no Go file", room)
		}
	}
}

// under says whether package p is the module, or one of the modules, that prefix names.
func under(p, prefix string) bool {
	return p == prefix || strings.HasPrefix(p, strings.TrimSuffix(prefix, "/")+"/")
}

// verdict says what is wrong with a file of room importing p, "" where nothing is.
func verdict(name, room, p string) string {
	isTest := strings.HasSuffix(name, "_test.go")
	switch target := roomOf(strings.TrimPrefix(p, module)); {
	case strings.HasPrefix(p, module) && target == "":
		return p + " is no room"
	case strings.HasPrefix(p, module):
		if target == room || isTest {
			return "" // a test may use whom it likes
		}
		if slices.Contains(roles, room) && slices.Contains(roles, target) {
			return "a role imports a role: " + target
		}
		if target == "test" || target == "bench" || target == "cmd/wicgate" {
			return target + " is imported by nobody"
		}
		if !allowed(rooms[room], target) {
			return room + " may not import " + target
		}
	case strings.Contains(strings.Split(p, "/")[0], "."):
		if isTest {
			return ""
		}
		for prefix, list := range guests {
			if under(p, prefix) && allowed(list, room) {
				return ""
			}
		}
		return p + " is no guest of " + room
	}
	return ""
}

// TestWallsCanFail shows that each rule bites.
func TestWallsCanFail(t *testing.T) {
	for _, c := range []struct{ name, room, imports string }{
		{"turn/x.go", "turn", "wicgate/waf"},
		{"wwsf/x.go", "wwsf", "wicgate/internal/store"},
		{"internal/wire/stun/x.go", "internal/wire/stun", "wicgate/internal/secret"},
		{"turn/x.go", "turn", "wicgate/test/lab"},
		{"turn/x.go", "turn", "wicgate/nowhere"},
		{"turn/x.go", "turn", "github.com/pion/turn/v5"},
		{"waf/x.go", "waf", "github.com/nats-io/nats.go"},
		{"turn/x.go", "turn", "github.com/nats-iox/nats.go"},
	} {
		if verdict(c.name, c.room, c.imports) == "" {
			t.Errorf("%s may import %s", c.room, c.imports)
		}
	}
	for _, c := range []struct{ name, room, imports string }{
		{"turn/x.go", "turn", "wicgate/internal/token"},
		{"turn/x.go", "turn", "wicgate/turn/internal/core"},
		{"turn/x.go", "turn", "net/netip"},
		{"turn/x_test.go", "turn", "github.com/pion/turn/v5"},
	} {
		if v := verdict(c.name, c.room, c.imports); v != "" {
			t.Errorf("%s: %s", c.imports, v)
		}
	}
}

func TestEachRoomSaysWhatItIs(t *testing.T) {
	doc := map[string]int{}
	sources(t, func(name string, f *ast.File) {
		dir := path.Dir(name)
		if _, ok := doc[dir]; !ok {
			doc[dir] = 0
		}
		if f.Doc != nil && !strings.HasSuffix(name, "_test.go") || strings.HasSuffix(f.Name.Name, "_test") && f.Doc != nil {
			doc[dir]++
			if len(f.Doc.Text()) < 40 {
				t.Errorf("%s: the package comment says too little", name)
			}
		}
	})
	for dir, n := range doc {
		if n != 1 {
			t.Errorf("%s: %d package comments, want one", dir, n)
		}
	}
}
