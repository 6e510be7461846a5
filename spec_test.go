package arch_test

import (
	"cmp"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"wicgate/internal/config"
)

// TestClauseTables holds docs/spec to the code: each row names code that is there and tests that
// are there. A clause that is not met yet says so: its code and test are "not yet", with why.
func TestClauseTables(t *testing.T) {
	files, err := filepath.Glob("docs/spec/*.md")
	if err != nil || len(files) == 0 {
		t.Fatalf("docs/spec holds no table: %v", err)
	}
	rows := 0
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for i, line := range strings.Split(string(b), "\n") {
			cells, ok := row(line)
			if !ok {
				continue
			}
			rows++
			for _, complaint := range wrong(cells) {
				t.Errorf("%s:%d: %s", name, i+1, complaint)
			}
		}
	}
	if rows < 20 {
		t.Errorf("only %d rows; is the table still a table?", rows)
	}
	for _, bad := range []string{
		"| RFC 1 §1 | x | `nowhere/x.go` | `.` TestWalls |",
		"| RFC 1 §1 | x | `arch_test.go` | `.` TestNowhere |",
		"| RFC 1 §1 | x | `arch_test.go` | |",
		"| RFC 1 §1 | x | arch_test.go | `.` TestWalls |",
		"| RFC 1 §1 | x | not yet | not yet |",
	} {
		if cells, ok := row(bad); !ok || len(wrong(cells)) == 0 {
			t.Errorf("not refused: %s", bad)
		}
	}
}

// TestFeatureTable holds docs/turn.md to the tests: what it says we have, wholly or partly, names the tests that
// show it. In make test WICGATE_RAN names the file in which test/tally has written what came of each test of the
// run; one that was skipped, or did not run, shows nothing then.
func TestFeatureTable(t *testing.T) {
	var ran map[test]string
	if name := os.Getenv("WICGATE_RAN"); name != "" {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		ran = outcomes(string(b))
	}
	b, err := os.ReadFile("docs/turn.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := 0
	for i, line := range strings.Split(string(b), "\n") {
		if cells, ok := row(line); ok {
			rows++
			for _, complaint := range unshown(cells, ran) {
				t.Errorf("docs/turn.md:%d: %s", i+1, complaint)
			}
		}
	}
	if rows < 50 {
		t.Errorf("only %d rows; are the tables still tables?", rows)
	}

	run := outcomes("pass wicgate TestWalls\nskip wicgate TestClauseTables\npass wicgate/internal/limit TestSource\n")
	for _, good := range []string{
		"| x | yes | `.` TestWalls |",
		"| x | partly: not y | `internal/limit` TestSource `.` TestWalls |",
		"| x | no: nobody asked | |",
	} {
		if cells, ok := row(good); !ok || len(unshown(cells, run)) != 0 {
			t.Errorf("refused: %s: %q", good, unshown(cells, run))
		}
	}
	for _, bad := range []string{
		"| x | yes | `.` TestClauseTables |", // skipped
		"| x | yes | `.` TestWalls TestClauseTables |",
		"| x | yes | `.` TestWallsCanFail |", // did not run
		"| x | yes | `.` TestNowhere |",
		"| x | yes | |",
		"| x | partly: not y | |",
		"| x | partly | `.` TestWalls |",
		"| x | no | |",
		"| x | perhaps | `.` TestWalls |",
		"| x | yes |",
	} {
		if cells, ok := row(bad); !ok || len(unshown(cells, run)) == 0 {
			t.Errorf("not refused: %s", bad)
		}
	}
}

// TestTURNPage: the configuration in docs/turn.md is one that wicgate takes, without a warning.
func TestTURNPage(t *testing.T) {
	b, err := os.ReadFile("docs/turn.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(b), "```yaml\n")
	text, _, ok := strings.Cut(text, "```")
	name := filepath.Join(t.TempDir(), "turn.yaml")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil || !ok {
		t.Fatalf("no configuration in docs/turn.md: %v", err)
	}
	f, err := config.Load(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, finding := range f.Review([]string{"turn"}) {
		t.Error(finding)
	}
}

// row splits | clause | requirement | code | test | or | feature | wicgate | shown by |, and leaves out headings.
func row(line string) ([]string, bool) {
	line = strings.TrimSpace(line)
	if !strings.HasPrefix(line, "|") || strings.HasPrefix(line, "|-") ||
		strings.HasPrefix(line, "| clause") || strings.HasPrefix(line, "| feature") {
		return nil, false
	}
	cells := strings.Split(strings.Trim(line, "|"), "|")
	for i := range cells {
		cells[i] = strings.TrimSpace(cells[i])
	}
	return cells, true
}

var (
	quoted   = regexp.MustCompile("`([^`]+)`")
	testName = regexp.MustCompile(`\b(Test|Fuzz)[A-Z]\w*`)
)

// wrong lists what is wrong with a row of docs/spec.
func wrong(cells []string) (out []string) {
	if len(cells) != 4 {
		return []string{"a row has four cells: clause, requirement, code, test"}
	}
	if code, ok := strings.CutPrefix(cells[2], "not yet"); ok {
		if len(code) < 5 {
			out = append(out, "not yet: say why")
		}
		return out
	}
	paths := quoted.FindAllStringSubmatch(cells[2], -1)
	if len(paths) == 0 {
		out = append(out, "names no code in backticks")
	}
	for _, p := range paths {
		if _, err := os.Stat(p[1]); err != nil {
			out = append(out, "code: "+err.Error())
		}
	}
	return append(out, unknown(testsIn(cells[3]))...)
}

var answer = regexp.MustCompile(`^(yes|partly|no)\b:?(.*)`)

// unshown lists what is wrong with a row of docs/turn.md. ran may be nil: not known.
func unshown(cells []string, ran map[test]string) (out []string) {
	if len(cells) != 3 {
		return []string{"a row has three cells: feature, wicgate, shown by"}
	}
	m := answer.FindStringSubmatch(cells[1])
	switch {
	case m == nil:
		return []string{"begin with yes, partly or no"}
	case m[1] != "yes" && len(m[2]) < 5:
		out = append(out, m[1]+": say why, or what is missing")
	}
	if m[1] == "no" {
		return out
	}
	tests := testsIn(cells[2])
	for _, t := range tests {
		if o := ran[t]; ran != nil && o != "pass" {
			out = append(out, "test: "+t.name+" in "+t.dir+": "+cmp.Or(o, "did not run"))
		}
	}
	return append(out, unknown(tests)...)
}

// outcomes reads what test/tally has written.
func outcomes(text string) map[test]string {
	out := map[test]string{}
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) == 3 {
			out[test{path.Join(".", strings.TrimPrefix(f[1]+"/", module)), f[2]}] = f[0]
		}
	}
	return out
}

// A test is one of a folder.
type test struct{ dir, name string }

// testsIn lists the tests that a cell names: a folder in backticks and the names of tests in it; several folders
// may follow each other.
func testsIn(cell string) (out []test) {
	parts := quoted.FindAllStringSubmatchIndex(cell, -1)
	for i, at := range parts {
		end := len(cell)
		if i+1 < len(parts) {
			end = parts[i+1][0]
		}
		for _, name := range testName.FindAllString(cell[at[1]:end], -1) {
			out = append(out, test{cell[at[2]:at[3]], name})
		}
	}
	return out
}

// unknown lists what is wrong with the tests that a row names.
func unknown(tests []test) (out []string) {
	for _, t := range tests {
		if !hasTest(t.dir, t.name) {
			out = append(out, "test: no "+t.name+" in "+t.dir)
		}
	}
	if len(tests) == 0 {
		out = append(out, "names no test")
	}
	return out
}

func hasTest(dir, name string) bool {
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		return false
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err == nil && strings.Contains(string(b), "func "+name+"(") {
			return true
		}
	}
	return false
}
