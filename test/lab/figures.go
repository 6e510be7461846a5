package lab

import (
	"fmt"
	"os"
	"testing"
)

// Figure reports one measured number: to the test's log, and to the file that WICGATE_FIGURES
// names, which make test prints at its end. A figure is no pass or fail; goal is what we aim for.
func Figure(t testing.TB, what, goal, format string, args ...any) {
	t.Helper()
	line := fmt.Sprintf("%-36s %-28s goal: %s", what, fmt.Sprintf(format, args...), goal)
	t.Log(line)
	name := os.Getenv("WICGATE_FIGURES")
	if name == "" {
		return
	}
	f, err := os.OpenFile(name, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := fmt.Fprintln(f, line); err != nil {
		t.Fatal(err)
	}
}
