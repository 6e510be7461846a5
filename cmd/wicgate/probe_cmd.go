package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"wicgate/internal/config"
	"wicgate/internal/listen"
	"wicgate/internal/probe"
)

type probeCmd struct {
	URL   string `arg:"" optional:"" help:"The portal as browsers open it, such as https://portal.example.org." placeholder:"URL"`
	User  string `help:"Log in as this user. The password: see below." placeholder:"NAME" xor:"who"`
	Guest bool   `help:"Join as a guest." xor:"who"`
	password
	Callee  string `help:"Call this address, which answers by itself, where the core does not call the caller's own." placeholder:"SIP-URI"`
	CA      string `name:"ca" help:"PEM file of the CA to trust, instead of the system's." type:"existingfile" placeholder:"FILE"`
	TURN    string `name:"turn-credential" help:"Who gives the TURN credential: token, the WAF, or edge, the eP-CSCF. Default: as the portal says." enum:",token,edge" default:"" placeholder:"HOW"`
	Packets int    `help:"Packets of each echo." default:"20"`
	JSON    bool   `name:"json" help:"Print one JSON document."`

	Core   bool   `help:"Probe the core instead, from the edge's machine: Trusted Node Authentication, good and bad." xor:"who"`
	Config string `help:"With --core: the edge's configuration file. Default: none, democore on loopback." type:"existingfile" placeholder:"FILE"`
	IMPI   string `name:"impi" help:"With --core: private identity of a user that the HSS has." placeholder:"USER@DOMAIN"`
	IMPI2  string `name:"other-impi" help:"With --core: private identity of another user that the HSS has, for one more case." placeholder:"USER@DOMAIN"`
	IMPU   string `name:"impu" help:"With --core: that user's public identity." placeholder:"SIP-URI"`
}

// Help implements [kong.HelpProvider].
func (probeCmd) Help() string {
	return `Goes a browser's way without one: portal, log-in, tokens, TURN over each transport, registration, a call to itself, an echo through each relay. Each step has its time and, where it fails, what to check. What it puts up it takes down, after Ctrl-C too.

The password is read from --password-file, from $WICGATE_PASSWORD, or asked for at the terminal.

Exit: 0 all went well, 1 a step has failed, 2 misuse.

Examples:

	wicgate probe https://localhost:8443 --guest --ca wicgate-data/ca/ca.pem
	WICGATE_PASSWORD=… wicgate probe https://portal.example.org --user alice --json
	wicgate probe --core --config wicgate.yaml --impi alice@ims.test --impu sip:alice@ims.test
`
}

// Run implements the command probe.
func (c *probeCmd) Run(out io.Writer) error {
	ctx, stop := untilSignal()
	defer stop()
	show := newShow(out, c.JSON)
	var report probe.Report
	var needs []probe.Need
	if c.Core {
		cfg, err := c.core()
		if err != nil {
			return err
		}
		cfg.Begin, cfg.End = show.begin, show.end
		needs = cfg.Needs()
		report = probe.Core(ctx, cfg)
	} else {
		cfg, err := c.way(ctx)
		if err != nil {
			return err
		}
		cfg.Begin, cfg.End = show.begin, show.end
		report = probe.Run(ctx, cfg)
	}
	if c.JSON {
		if err := printJSON(out, struct {
			probe.Report
			Needs []probe.Need `json:"needs,omitempty"`
		}{report, needs}); err != nil {
			return err
		}
	} else if len(needs) > 0 {
		fmt.Fprintf(out, "\n  The core must be provisioned with\n")
		w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
		for _, n := range needs {
			fmt.Fprintf(w, "    %s\t%s\t%s\t%s\n", n.Where, n.Value, n.What, n.Clause)
		}
		if err := w.Flush(); err != nil {
			return err
		}
	}
	if n := report.Count(probe.Failed); n > 0 {
		return fmt.Errorf("%d of %d steps failed, %d skipped", n, len(report.Steps), report.Count(probe.Skipped))
	}
	if ctx.Err() != nil {
		return errors.New("interrupted: not all steps were taken")
	}
	return nil
}

func (c *probeCmd) way(ctx context.Context) (probe.Config, error) {
	cfg := probe.Config{URL: strings.TrimSuffix(c.URL, "/"), Guest: c.Guest, User: c.User, Callee: c.Callee, Packets: c.Packets, TURNCredential: c.TURN}
	switch {
	case c.URL == "":
		return cfg, misuse("probe: which portal?\n  hint: wicgate probe https://localhost:8443 --guest --ca wicgate-data/ca/ca.pem")
	case !c.Guest && c.User == "":
		return cfg, misuse("probe: as whom?\n  hint: --user NAME, or --guest")
	}
	if c.CA != "" {
		var err error
		if cfg.Roots, err = listen.PoolFile(c.CA); err != nil {
			return cfg, err
		}
	}
	if c.User == "" {
		return cfg, nil
	}
	var err error
	cfg.Password, err = c.password.read(ctx, c.User)
	return cfg, err
}

func (c *probeCmd) core() (probe.CoreConfig, error) {
	file, err := config.Load(c.Config)
	if err != nil {
		return probe.CoreConfig{}, err
	}
	e := file.EPCSCF
	if c.IMPI == "" && c.IMPU == "" && c.Config == "" && len(file.DemoCore.Users) > 0 {
		c.IMPI = file.DemoCore.Users[0] + "@" + file.Domain
		c.IMPU = "sip:" + c.IMPI
		if len(file.DemoCore.Users) > 1 {
			c.IMPI2 = file.DemoCore.Users[1] + "@" + file.Domain
		}
	}
	if c.IMPI == "" || c.IMPU == "" {
		return probe.CoreConfig{}, misuse("probe: which user does the HSS have?\n  hint: --impi alice@ims.test --impu sip:alice@ims.test")
	}
	return probe.CoreConfig{NextHop: e.Core.AddrPort, Listen: e.Listen.AddrPort, Domain: file.Domain, VisitedNetwork: e.VisitedNetwork, IMPI: c.IMPI, IMPU: c.IMPU, OtherIMPI: c.IMPI2}, nil
}

// show prints steps: on a terminal the one under way is there too, a pipe gets plain lines.
type show struct {
	out            io.Writer
	live, coloured bool
	quiet          bool
}

func newShow(out io.Writer, quiet bool) show {
	live := isTerminal(out) && os.Getenv("TERM") != "dumb"
	return show{out, live, live && os.Getenv("NO_COLOR") == "", quiet}
}

func (s show) begin(name string) {
	if s.live && !s.quiet {
		fmt.Fprintf(s.out, "  ..       %s", name)
	}
}

func (s show) end(t probe.Step) {
	if s.quiet {
		return
	}
	if s.live {
		fmt.Fprint(s.out, "\r\x1b[K")
	}
	word, colour := map[probe.State]string{probe.OK: "ok", probe.Failed: "FAILED", probe.Skipped: "skipped"}[t.State], map[probe.State]string{probe.OK: "32", probe.Failed: "31;1", probe.Skipped: "2"}[t.State]
	word = fmt.Sprintf("%-8s", word)
	if s.coloured {
		word = "\x1b[" + colour + "m" + word + "\x1b[0m"
	}
	took := ""
	if t.State != probe.Skipped {
		took = t.Took.Round(100 * time.Microsecond).String()
		if t.Took > time.Second {
			took = t.Took.Round(10 * time.Millisecond).String()
		}
	}
	detail := t.Detail
	if t.Clause != "" {
		detail += " (" + t.Clause + ")"
	}
	fmt.Fprintf(s.out, "  %s %-36s %9s  %s\n", word, t.Name, took, detail)
	if t.Check != "" {
		fmt.Fprintf(s.out, "           check: %s\n", t.Check)
	}
}
