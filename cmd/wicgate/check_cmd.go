package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"wicgate/internal/check"
	"wicgate/internal/config"
)

type checkCmd struct {
	Roles  []string `arg:"" optional:"" enum:"turn,waf,wwsf,epcscf,imsagw,democore" help:"Those that would run. Default: all." placeholder:"ROLE"`
	Config string   `help:"Configuration file. Default: none, all roles on loopback." type:"existingfile" placeholder:"FILE"`
	Data   string   `help:"Data folder that would be used." default:"wicgate-data" type:"path" placeholder:"DIR"`
	JSON   bool     `name:"json" help:"Print JSON."`
}

// Help implements [kong.HelpProvider].
func (checkCmd) Help() string {
	return `Shows the values that hold, what is dangerous or contradicts itself, with its line, whether ports, files, capabilities and limits are there, and how many allocations, calls and WebSockets this machine can carry. Nothing is started or written; ports are opened and released at once.

Exit: 0 it would run (warnings do not count), 1 something is refused, 2 misuse. "wicgate run" refuses the same errors, in the same words.

Examples:

	wicgate check                              the defaults
	wicgate check --config wicgate.yaml
	wicgate check turn --config turn.yaml      for a process with this role alone
	wicgate check --json | jq .capacity
`
}

// errRefused ends check with 1, all having been said.
var errRefused = errors.New("the configuration is refused; see above")

// Run implements the command check.
func (c *checkCmd) Run(out io.Writer) error {
	file, err := config.Load(c.Config)
	if err != nil {
		if c.JSON {
			reason := strings.TrimPrefix(err.Error(), "configuration: ")
			if e := printJSON(out, check.Report{Roles: c.Roles, Findings: []config.Finding{{Severity: config.Error, Reason: reason}}}); e != nil {
				return e
			}
			return errRefused
		}
		return err
	}
	roles := c.Roles
	if len(roles) == 0 {
		roles = allRoles
	}
	running := door{c.Data}.ask("GET", "/healthz", nil, &[]byte{}) == nil
	report := check.All(check.Input{File: file, Data: c.Data, Roles: roles, Running: running})
	if c.JSON {
		err = printJSON(out, report)
	} else {
		printReport(out, report, c.Config)
	}
	if err == nil && !report.OK {
		err = errRefused
	}
	return err
}

func printReport(out io.Writer, r check.Report, name string) {
	if name == "" {
		name = "no file: the defaults"
	}
	fmt.Fprintf(out, "Configuration (%s)\n", name)
	for _, s := range r.Settings {
		from := ""
		if s.Line > 0 {
			from = fmt.Sprintf("  # line %d", s.Line)
		}
		value := s.Value
		if len(value) > 50 && value[0] == '[' {
			value = strings.ReplaceAll(value, ", ", ",\n"+strings.Repeat(" ", 28))
		}
		fmt.Fprintf(out, "  %-24s %s%s\n", s.Key, value, from)
	}
	fmt.Fprintf(out, "\nTested, for %s\n", strings.Join(r.Roles, ", "))
	for _, t := range r.Tested {
		fmt.Fprintf(out, "  ok       %s\n", t)
	}
	errs := 0
	for _, f := range r.Findings {
		if f.Severity == config.Error {
			errs++
		}
		fmt.Fprintf(out, "  %-8s %s\n", f.Severity, strings.ReplaceAll(f.String(), "\n", "\n         "))
	}
	fmt.Fprintf(out, "\nCapacity: of each alone, at most, and what bounds it\n")
	for _, c := range r.Capacity {
		for i, b := range c.Bounds {
			what, mark := c.Name, "<- first"
			if i > 0 {
				what, mark = "", ""
			}
			fmt.Fprintf(out, "  %-25s %8d  %s\n", what, b.Count, strings.TrimSpace(b.By+" "+mark))
		}
	}
	fmt.Fprintf(out, "\n%s, %s.\n", count(errs, "error"), count(len(r.Findings)-errs, "warning"))
}

// refuse logs warnings, and returns the errors as one.
func refuse(found []config.Finding, log *slog.Logger) error {
	for _, f := range found {
		if f.Severity == config.Warning {
			log.Warn("configuration: "+f.Reason, "key", f.Key, "line", f.Line, "hint", f.Hint)
		}
	}
	return faults(found)
}
