// Package main is the last part of go test -json | tally FILE: it prints what go test without -json prints, then
// each test that was skipped, with its reason, and their number. FILE gets a line for each test: pass, fail or
// skip, its package, its name; spec_test.go holds docs/turn.md to it. It judges nothing: the exit status to look
// at is that of go test.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

func main() {
	results := io.Discard
	if len(os.Args) > 1 {
		f, err := os.OpenFile(os.Args[1], os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
		if err != nil {
			fmt.Fprintln(os.Stderr, "tally:", err)
			os.Exit(1)
		}
		defer f.Close()
		results = f
	}
	if err := tally(os.Stdin, os.Stdout, results); err != nil {
		fmt.Fprintln(os.Stderr, "tally:", err)
		os.Exit(1)
	}
}

// event is a line of go test -json (go doc test2json, go help buildjson).
type event struct{ Action, Package, Test, Output string }

// A test without an outcome was running when its process ended.
type test struct {
	name, outcome string
	lines         []string
}

// skipped is the reason that a test or a part of it gave, in one line.
type skipped struct{ pkg, name, reason string }

func tally(in io.Reader, out, results io.Writer) error {
	running := map[string][]*test{} // by package
	var skips []skipped
	passed := 0
	r := bufio.NewReader(in)
	for {
		line, err := r.ReadBytes('\n')
		if err != nil && len(line) == 0 {
			break
		}
		var e event
		if !bytes.HasPrefix(line, []byte("{")) || json.Unmarshal(line, &e) != nil {
			if _, err := out.Write(line); err != nil { // a word of the go command itself
				return err
			}
			continue
		}
		if e.Package == "" { // about a build
			fmt.Fprint(out, e.Output)
			continue
		}
		tests := running[e.Package]
		i := slices.IndexFunc(tests, func(t *test) bool { return t.name == e.Test })
		if i < 0 {
			i, tests = len(tests), append(tests, &test{name: e.Test})
			running[e.Package] = tests
		}
		switch t := tests[i]; e.Action {
		case "output":
			t.lines = append(t.lines, e.Output)
		case "pass", "fail", "skip":
			t.outcome = e.Action
			if e.Test != "" {
				continue
			}
			delete(running, e.Package)
			show(out, tests, e.Action == "fail")
			for _, t := range tests {
				if t.outcome == "skip" && t.name != "" {
					skips = append(skips, skipped{e.Package, t.name, reason(t.lines)})
				}
			}
			for _, t := range tests {
				if t.name == "" || strings.Contains(t.name, "/") {
					continue
				}
				o := outcome(tests, t)
				if o == "pass" {
					passed++
				}
				if _, err := fmt.Fprintln(results, o, e.Package, t.name); err != nil {
					return err
				}
			}
		}
	}
	for _, tests := range running { // go test itself was stopped
		show(out, tests, true)
	}
	for _, s := range skips {
		fmt.Fprintf(out, "skipped: %s %s: %s\n", s.pkg, s.name, s.reason)
	}
	fmt.Fprintf(out, "passed: %d, skipped: %d\n", passed, len(skips))
	return nil
}

// outcome of a test of the top level: what was skipped in part, was skipped.
func outcome(tests []*test, top *test) string {
	for _, t := range tests {
		if t.outcome == "skip" && strings.HasPrefix(t.name, top.name+"/") && top.outcome == "pass" {
			return "skip"
		}
	}
	if top.outcome == "" {
		return "fail"
	}
	return top.outcome
}

// show prints a package as go test does: its last line, and of one that failed all that was written, but for the
// logs of tests that passed.
func show(out io.Writer, tests []*test, failed bool) {
	for _, t := range slices.Concat(tests[1:], tests[:1]) { // the package's own lines come last
		good := t.outcome == "pass" || t.outcome == "skip"
		if !failed && t.name != "" {
			continue
		}
		var verdict, rest []string
		for i, l := range t.lines {
			switch {
			case strings.HasPrefix(l, "=== "):
			case strings.HasPrefix(l, "--- FAIL: "):
				verdict = append(verdict, l)
			case t.name != "" && good && (strings.HasPrefix(l, "    ") || strings.HasPrefix(l, "--- ")): // what is left has gone past its log, as of the race detector
			case t.name == "" && !failed && i != len(t.lines)-1:
			default:
				rest = append(rest, l)
			}
		}
		fmt.Fprint(out, strings.Join(append(verdict, rest...), ""))
	}
}

// reason is what a skipped test has said.
func reason(lines []string) string {
	var words []string
	for _, l := range lines {
		if !strings.HasPrefix(l, "=== ") && !strings.HasPrefix(l, "--- ") {
			words = append(words, strings.Fields(l)...)
		}
	}
	return strings.Join(words, " ")
}
