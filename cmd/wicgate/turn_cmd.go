package main

import (
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"strings"
	"text/tabwriter"
	"time"

	"wicgate/internal/admin"
)

type turnCmd struct {
	Sessions turnSessionsCmd `cmd:"" help:"List TURN sessions (allocations), oldest first."`
	Show     turnShowCmd     `cmd:"" help:"Show one TURN session: permissions, channels, traffic."`
	Kill     turnKillCmd     `cmd:"" help:"End one TURN session. The browser may allocate anew."`
	Revoke   turnRevokeCmd   `cmd:"" help:"End a log-in and all that it holds: registration, calls, TURN sessions."`
	User     turnUserCmd     `cmd:"" help:"Print the line of a static user, for the file of turn.users."`
}

type turnSessionsCmd struct {
	door
	Pseudonym string `help:"Only those of this pseudonym." placeholder:"P"`
	JSON      bool   `name:"json" help:"Print JSON."`
}

// Help implements [kong.HelpProvider].
func (turnSessionsCmd) Help() string {
	return `Who a pseudonym stands for is known to the WAF alone; "wicgate turn revoke" takes either name.

Examples:

	wicgate turn sessions
	wicgate turn sessions --pseudonym 5cUbjNn1ezD3u7vBkGfE0g
	wicgate turn sessions --json | jq -r '.sessions[].id'
`
}

// Run implements the command turn sessions.
func (c *turnSessionsCmd) Run(out io.Writer) error {
	path := "/v1/turn/sessions"
	if c.Pseudonym != "" {
		path += "?pseudonym=" + url.QueryEscape(c.Pseudonym)
	}
	var list admin.SessionList
	if err := c.ask("GET", path, nil, &list); err != nil {
		return err
	}
	if c.JSON {
		return printJSON(out, list)
	}
	return printSessions(out, list, time.Now())
}

// printSessions prints a table of at most 80 columns.
func printSessions(out io.Writer, list admin.SessionList, now time.Time) error {
	if len(list.Sessions) == 0 {
		_, err := fmt.Fprintln(out, "No TURN sessions.")
		return err
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tPSEUDONYM\tCLIENT\tVIA\tAGE\tLEFT\tSENT\tGOT")
	for _, s := range list.Sessions {
		tight := func(n uint64) string { return strings.ReplaceAll(size(n), " ", "") }
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", s.ID, cut(s.Pseudonym, 10), address(s.Client), s.Transport,
			age(now.Sub(s.Since)), age(s.Expires.Sub(now)), tight(s.ToPeerBytes), tight(s.ToClientBytes))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if list.Left > 0 {
		fmt.Fprintf(out, "and %d more; --pseudonym narrows the list\n", list.Left)
	}
	return nil
}

type turnShowCmd struct {
	door
	ID   string `arg:"" help:"Of the session, as the list has it." placeholder:"ID"`
	JSON bool   `name:"json" help:"Print JSON."`
}

// Help implements [kong.HelpProvider].
func (turnShowCmd) Help() string {
	return `Examples:

	wicgate turn show 7
	wicgate turn show 7 --json
`
}

// Run implements the command turn show.
func (c *turnShowCmd) Run(out io.Writer) error {
	s, err := c.find(c.ID)
	if err != nil {
		return err
	}
	if c.JSON {
		return printJSON(out, s)
	}
	printSession(out, s, time.Now())
	return nil
}

// find asks for a session by its whole ID: of numbers that grow, a part would name another.
func (d door) find(id string) (s admin.Session, err error) {
	err = d.ask("GET", "/v1/turn/sessions/"+url.PathEscape(id), nil, &s)
	return s, err
}

func printSession(out io.Writer, s admin.Session, now time.Time) {
	line := func(name, format string, args ...any) {
		fmt.Fprintf(out, "%-12s %s\n", name, fmt.Sprintf(format, args...))
	}
	line("id", "%s", s.ID)
	line("pseudonym", "%s", s.Pseudonym)
	line("tenant", "%s", s.Tenant)
	until := "without an end"
	if !s.CredentialEnds.IsZero() {
		until = "until " + s.CredentialEnds.UTC().Format(time.DateTime+" MST")
	}
	line("credential", "%s, %s", s.Credential, until)
	line("client", "%s over %s", s.Client, s.Transport)
	line("relayed", "%s", strings.Join(s.Relayed, ", "))
	line("since", "%s (%s ago)", s.Since.UTC().Format(time.DateTime+" MST"), age(now.Sub(s.Since)))
	line("expires", "%s (in %s, unless refreshed)", s.Expires.UTC().Format(time.DateTime+" MST"), age(s.Expires.Sub(now)))
	line("to peers", "%d packets, %s", s.ToPeerPackets, size(s.ToPeerBytes))
	line("to client", "%d packets, %s", s.ToClientPackets, size(s.ToClientBytes))
	several := func(name string, values []string) {
		if len(values) == 0 {
			values = []string{"none"}
		}
		for i, v := range values {
			if i > 0 {
				name = ""
			}
			line(name, "%s", v)
		}
	}
	several("permissions", s.Permissions)
	several("channels", s.Channels)
}

type turnKillCmd struct {
	door
	ID string `arg:"" help:"Of the session, as the list has it." placeholder:"ID"`
}

// Help implements [kong.HelpProvider].
func (turnKillCmd) Help() string {
	return `The credential stays good. To end all that a user holds, and keep it ended, revoke the log-in.

Examples:

	wicgate turn kill 7
`
}

// Run implements the command turn kill.
func (c *turnKillCmd) Run(out io.Writer) error {
	s, err := c.find(c.ID)
	if err != nil {
		return err
	}
	if err := c.ask("DELETE", "/v1/turn/sessions/"+url.PathEscape(s.ID), nil, &struct{}{}); err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "Ended TURN session %s of %s, client %s.\n", s.ID, s.Pseudonym, s.Client)
	return err
}

type turnRevokeCmd struct {
	door
	Name string `arg:"" help:"A user's or guest's name, or a pseudonym." placeholder:"NAME"`
}

// Help implements [kong.HelpProvider].
func (turnRevokeCmd) Help() string {
	return `Every token, registration, call and TURN session of the log-in ends within a second, on every node. The user may log in anew. Users are known where waf runs; a pseudonym is understood by every process with a bus.

Examples:

	wicgate turn revoke alice
	wicgate turn revoke guest-07
	wicgate turn revoke 5cUbjNn1ezD3u7vBkGfE0g
`
}

// Run implements the command turn revoke.
func (c *turnRevokeCmd) Run(out io.Writer) error {
	var done admin.Revoked
	if err := c.ask("POST", "/v1/revoke", map[string]string{"name": c.Name}, &done); err != nil {
		return err
	}
	return printRevoked(out, c.Name, done)
}

func printRevoked(out io.Writer, name string, done admin.Revoked) (err error) {
	switch {
	case done.LogIns+done.Allocations > 0:
		_, err = fmt.Fprintf(out, "Revoked %s: %s ended, and %s here at once.\n", name, count(done.LogIns, "log-in"), count(done.Allocations, "TURN session"))
	case done.As == admin.KindPseudonym:
		_, err = fmt.Fprintf(out, "%s: taken for a pseudonym, and nothing of it was alive here. What other nodes hold of it ends within a second.\nA user is revoked where waf runs.\n", name)
	default:
		_, err = fmt.Fprintf(out, "%s: nothing was alive.\n", name)
	}
	return err
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// cut shortens s to n characters.
func cut(s string, n int) string {
	r := []rune(s)
	if len(r) <= n {
		return s
	}
	return string(r[:n-1]) + "…"
}

// address is a transport address that fits a table: of a long IPv6 one the beginning and the port.
func address(s string) string {
	a, err := netip.ParseAddrPort(s)
	if err != nil || len(s) <= 21 {
		return cut(s, 21)
	}
	port := fmt.Sprintf("]:%d", a.Port())
	return "[" + cut(a.Addr().String(), 20-len(port)) + port
}

// age is a duration in one or two units: 42s, 3m07s, 2h15m, 4d03h.
func age(d time.Duration) string {
	d = max(0, d).Round(time.Second)
	switch s := int(d.Seconds()); {
	case s < 60:
		return fmt.Sprintf("%ds", s)
	case s < 3600:
		return fmt.Sprintf("%dm%02ds", s/60, s%60)
	case s < 86400:
		return fmt.Sprintf("%dh%02dm", s/3600, s/60%60)
	default:
		return fmt.Sprintf("%dd%02dh", s/86400, s/3600%24)
	}
}

// size is bytes in three digits and a unit.
func size(n uint64) string {
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	f, units := float64(n), []string{"kB", "MB", "GB", "TB", "PB", "EB"}
	for i, u := range units {
		f /= 1000
		if f < 9.995 {
			return fmt.Sprintf("%.2f %s", f, u)
		}
		if f < 99.95 {
			return fmt.Sprintf("%.1f %s", f, u)
		}
		if f < 999.5 || i == len(units)-1 {
			return fmt.Sprintf("%.0f %s", f, u)
		}
	}
	return ""
}
