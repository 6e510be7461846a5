package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var module = map[string]string{
	"go.mod": "module m\n",
	"good/x_test.go": `package good
import ("fmt"; "testing")
func TestA(t *testing.T) { t.Log("of a test that passed") }
func TestB(t *testing.T) { fmt.Println("not to a log") }
func TestC(t *testing.T) { t.Skip("no\nip(8)") }
func TestD(t *testing.T) {
	t.Run("one", func(t *testing.T) { t.Skip("no IPv6") })
	t.Run("two", func(t *testing.T) {})
}`,
	"bad/x_test.go": `package bad
import ("fmt"; "testing")
func TestA(t *testing.T) { t.Log("of a test that passed"); fmt.Println("not to a log") }
func TestB(t *testing.T) {
	t.Run("one", func(t *testing.T) { t.Error("two\nlines") })
	t.Run("two", func(t *testing.T) { t.Log("of a part that passed") })
	t.Log("after")
}`,
	"dead/x_test.go": `package dead
import "testing"
func TestA(t *testing.T) { panic("stop") }
func TestB(t *testing.T) {}`,
	"broken/x_test.go": `package broken
import "testing"
func TestA(t *testing.T) { x }`,
	"bare/x.go": `package bare`,
}

const results = `pass m/good TestA
pass m/good TestB
skip m/good TestC
skip m/good TestD
pass m/bad TestA
fail m/bad TestB
fail m/dead TestA
`

// TestSameAsGoTest: the lines that go test prints, and nothing but the count beside them.
func TestSameAsGoTest(t *testing.T) {
	dir := t.TempDir()
	for name, text := range module {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	goTest := func(args ...string) []byte {
		cmd := exec.Command("go", append([]string{"test", "-p=1", "-count=1"}, args...)...)
		cmd.Dir = dir
		out, err := cmd.Output()
		if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() != 1 {
			t.Fatalf("go test: %v\n%s", err, out)
		}
		return out
	}
	packages := []string{"./good", "./bad", "./dead", "./broken", "./bare"}
	var printed, written bytes.Buffer
	if err := tally(bytes.NewReader(goTest(append(packages, "-json")...)), &printed, &written); err != nil {
		t.Fatal(err)
	}
	if written.String() != results {
		t.Errorf("written:\n%s", &written)
	}
	text, end, ok := strings.Cut(printed.String(), "skipped: ")
	if want := "m/good TestC: x_test.go:5: no ip(8)\nskipped: m/good TestD/one: x_test.go:7: no IPv6\npassed: 3, skipped: 2\n"; !ok || end != want {
		t.Errorf("the end is\n%s", end)
	}
	plain := string(goTest(packages...))
	if got, want := lines(text), lines(plain); !slices.Equal(got, want) {
		t.Errorf("printed:\n%s\ngo test prints:\n%s", text, plain)
	}
}

var changes = regexp.MustCompile(`0x[0-9a-f]+\??|\d\.\d+s|goroutine \d+`)

// lines, sorted, without what differs from run to run, without indentation, which is less where go test -json has
// taken the parts of a test apart, and without what go test alone prints: build errors go to its standard error,
// and a FAIL of its own ends it.
func lines(s string) (out []string) {
	for l := range strings.Lines(changes.ReplaceAllString(s, "")) {
		l = strings.TrimSpace(l)
		if l != "" && l != "FAIL" && !strings.HasPrefix(l, "# m/broken") && !strings.HasPrefix(l, "broken/x_test.go") {
			out = append(out, l)
		}
	}
	slices.Sort(out)
	return out
}
