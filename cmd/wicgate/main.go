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
	Stats   statsCmd   `cmd:"" help:"Print the counters of the roles that run with a data folder, as JSON."`
	Version versionCmd `cmd:"" help:"Print the version."`
}

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

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
			fmt.Fprintf(stderr, "wicgate: error: %v\n  hint: \"wicgate --help\" lists the commands, \"wicgate run --help\" the options of one\n", err)
		} else {
			fmt.Fprintf(stderr, "wicgate: error: %v\n", err)
		}
		return 2
	}
	if err := ctx.Run(); err != nil {
		fmt.Fprintf(stderr, "wicgate: error: %v\n", err)
		return 1
	}
	return 0
}

type statsCmd struct {
	Data string `help:"The data folder of the running wicgate." default:"wicgate-data" type:"path" placeholder:"DIR"`
}

// Run implements the command stats.
func (c *statsCmd) Run(out io.Writer) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	b, err := admin.Get(ctx, c.Data, "/v1/stats")
	if err != nil {
		return err
	}
	var v any
	if err := json.Unmarshal(b, &v); err != nil {
		return fmt.Errorf("admin: answer is not JSON: %w", err)
	}
	enc := json.NewEncoder(out)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

type versionCmd struct{}

// Run implements the command version.
func (versionCmd) Run(out io.Writer) error {
	v := version
	if v == "" {
		v = "development"
		if info, ok := debug.ReadBuildInfo(); ok {
			for _, s := range info.Settings {
				if s.Key == "vcs.revision" {
					v += " " + s.Value[:min(12, len(s.Value))]
				}
			}
		}
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
