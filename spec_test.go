package arch_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
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

// row splits | clause | requirement | code | test |, and leaves out headings.
func row(line string) ([]string, bool) {
	line = strings.TrimSpace(line)
	if !strings.HasPrefix(line, "|") || strings.HasPrefix(line, "|-") || strings.HasPrefix(line, "| clause") {
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

// wrong lists what is wrong with a row. The test cell is a folder in backticks and the names of
// tests in it; several folders may follow each other.
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
	tests := 0
	parts := quoted.FindAllStringSubmatchIndex(cells[3], -1)
	for i, at := range parts {
		dir, end := cells[3][at[2]:at[3]], len(cells[3])
		if i+1 < len(parts) {
			end = parts[i+1][0]
		}
		for _, name := range testName.FindAllString(cells[3][at[1]:end], -1) {
			tests++
			if !hasTest(dir, name) {
				out = append(out, "test: no "+name+" in "+dir)
			}
		}
	}
	if tests == 0 {
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
