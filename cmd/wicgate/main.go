// Command wicgate is the security edge between web browsers and an IMS or SIP network (3GPP TR
// 33.872): one program, six roles. This room is the only one that knows all roles; it joins them.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/alecthomas/kong"

	"wicgate/internal/admin"
)

// started is as near to the process's start as Go code comes.
var started = time.Now()

// version is set by the build (-ldflags "-X main.version=…").
var version = ""

type cli struct {
	Run     runCmd     `cmd:"" help:"Run roles: all six, or those named."`
	Check   checkCmd   `cmd:"" help:"Say whether a configuration would run well on this machine, and what it can carry. Starts nothing."`
	Reload  reloadCmd  `cmd:"" help:"Let a running wicgate read its configuration again, or say what that would change."`
	Turn    turnCmd    `cmd:"" help:"TURN sessions of a running wicgate: list, show, kill; revoke a log-in."`
	Keys    keysCmd    `cmd:"" help:"Rotate the keys of a TURN server name."`
	Probe   probeCmd   `cmd:"" help:"Go a browser's way without one, step by step, and say what to check where it fails."`
	Drain   drainCmd   `cmd:"" help:"Send new users elsewhere, wait for TURN sessions to end, then end the rest. --stop takes it back."`
	Import  importCmd  `cmd:"" help:"Take over the configuration of another TURN server."`
	Upgrade upgradeCmd `cmd:"" help:"Put another wicgate in the place of a running TURN server, without a lost call."`
	Stats   statsCmd   `cmd:"" help:"Print the counters of the roles that run with a data folder, as JSON."`
	Version versionCmd `cmd:"" help:"Print the version."`
}

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// misuse is an error of the person who typed the command.
type misuse string

func (m misuse) Error() string { return string(m) }

// run is the program: 0 done, 1 failed, 2 misused.
func run(args []string, stdout, stderr io.Writer) int {
	exit := -1
	parser, err := kong.New(&cli{},
		kong.Name("wicgate"),
		kong.Description("The security edge that lets a web browser make and take calls over an IMS or SIP network (3GPP TR 33.872).\n\nA first call:  wicgate run"),
		kong.UsageOnError(), kong.ConfigureHelp(kong.HelpOptions{Compact: true}),
		kong.Writers(stdout, stderr), kong.Exit(func(code int) { exit = code }),
		kong.BindTo(stdout, (*io.Writer)(nil)),
	)
	if err != nil {
		panic(err) // the struct above is wrong
	}
	ctx, err := parser.Parse(args)
	if exit >= 0 { // --help
		return exit
	}
	if err != nil {
		var parse *kong.ParseError
		if errors.As(err, &parse) && parse.Context != nil {
			of := "run"
			if node := parse.Context.Selected(); node != nil {
				of = strings.TrimSpace(strings.TrimPrefix(node.Path(), "wicgate"))
			}
			fmt.Fprintf(stderr, "wicgate: error: %v\n  hint: \"wicgate --help\" lists the commands, \"wicgate %s --help\" the options of one\n", err, of)
		} else {
			fmt.Fprintf(stderr, "wicgate: error: %v\n", err)
		}
		return 2
	}
	if err := ctx.Run(); err != nil {
		fmt.Fprintf(stderr, "wicgate: error: %v\n", err)
		if _, ok := errors.AsType[misuse](err); ok {
			return 2
		}
		return 1
	}
	return 0
}

// door is how commands find the running wicgate.
type door struct {
	Data string `help:"The data folder of the running wicgate." default:"wicgate-data" type:"path" placeholder:"DIR"`
}

// ask asks it, within 20 s.
func (d door) ask(method, path string, body, out any) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return admin.Client{Dir: d.Data}.Do(ctx, method, path, body, out)
}

// printJSON prints for programs.
func printJSON(out io.Writer, v any) error {
	enc := json.NewEncoder(out)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

type statsCmd struct{ door }

// Help implements [kong.HelpProvider].
func (statsCmd) Help() string {
	return `The same numbers are Prometheus metrics, at /metrics on the address admin.listen.

Examples:

	wicgate stats
	wicgate stats --data /var/lib/wicgate | jq .turn.Allocations
`
}

// Run implements the command stats.
func (c *statsCmd) Run(out io.Writer) error {
	var v any
	if err := c.ask("GET", "/v1/stats", nil, &v); err != nil {
		return err
	}
	return printJSON(out, v)
}

type versionCmd struct{}

// build is what this program was built from.
func build() (v, revision string) {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				revision = s.Value[:min(12, len(s.Value))]
			}
		}
	}
	if v = version; v == "" {
		v = "development"
	}
	return v, revision
}

// Run implements the command version.
func (versionCmd) Run(out io.Writer) error {
	v, revision := build()
	if version == "" && revision != "" {
		v += " " + revision
	}
	_, err := fmt.Fprintf(out, "wicgate %s, %s %s/%s\n", v, runtime.Version(), runtime.GOOS, runtime.GOARCH)
	return err
}

// untilSignal ends with the first interrupt or termination; a second one ends the process at once.
func untilSignal() (context.Context, context.CancelFunc) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	return ctx, stop
}
