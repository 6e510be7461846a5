package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"wicgate/internal/admin"
)

// drain is a drain that an operator has asked for. The zero value is none.
type drain struct {
	mu  sync.Mutex // guards the following
	on  bool
	end time.Time
}

// Drain implements [admin.Drainer].
func (h *house) Drain(within time.Duration) {
	d := &h.operator.drain
	d.mu.Lock()
	defer d.mu.Unlock()
	d.on, d.end = true, time.Now().Add(within)
	h.health.Leave(true) // first, so that load balancers are the sooner gone
	if t := h.operator.turn; t != nil {
		t.Drain(d.end)
	}
	_ = askElders(context.Background(), h, http.MethodPost, "/v1/drain", map[string]int64{"within_seconds": seconds(within)}, func(admin.Drain) {})
	h.log.Info("draining", "within", within)
}

// Undrain implements [admin.Drainer].
func (h *house) Undrain() {
	d := &h.operator.drain
	d.mu.Lock()
	defer d.mu.Unlock()
	d.on = false
	if t := h.operator.turn; t != nil {
		t.Undrain()
	}
	h.health.Leave(false)
	_ = askElders(context.Background(), h, http.MethodDelete, "/v1/drain", nil, func(admin.Drain) {})
	h.log.Info("drain taken back")
}

// Drained implements [admin.Drainer].
func (h *house) Drained() (out admin.Drain) {
	d := &h.operator.drain
	d.mu.Lock()
	out.Draining = d.on
	end := d.end
	d.mu.Unlock()
	now := time.Now()
	if out.Draining {
		out.Left = seconds(end.Sub(now))
	}
	if t := h.operator.turn; t != nil {
		n, born := t.Oldest()
		if out.Sessions = n; n > 0 {
			out.Oldest = seconds(now.Sub(born))
		}
		for _, s := range h.eldersSessions() {
			out.Sessions++
			out.Oldest = max(out.Oldest, seconds(now.Sub(s.Since)))
		}
	}
	return out
}

func seconds(d time.Duration) int64 { return int64(max(0, d).Round(time.Second) / time.Second) }

type drainCmd struct {
	door
	Within time.Duration `help:"How long TURN sessions may take to end by themselves; 0 to 24h." default:"10m" placeholder:"TIME"`
	Stop   bool          `help:"Take new users again. Sessions that were ended stay ended."`
}

// Help implements [kong.HelpProvider].
func (drainCmd) Help() string {
	return `At once /readyz fails, so that load balancers leave, and new TURN sessions are sent to turn.siblings or refused. Those that there are live on until --within is over. Then the process has nothing to lose and can be ended; it does not end by itself, and takes no new users until "wicgate drain --stop".

On a terminal one line tells how far it is; elsewhere each line is JSON. Ctrl-C ends the command and not the drain.

Examples:

	wicgate drain --data /var/lib/wicgate
	wicgate drain --within 1h && systemctl restart wicgate
	wicgate drain --stop
`
}

// Run implements the command drain.
func (c *drainCmd) Run(out io.Writer) error {
	var d admin.Drain
	if c.Stop {
		if err := c.ask("DELETE", "/v1/drain", nil, &d); err != nil {
			return err
		}
		_, err := fmt.Fprintf(out, "The drain is taken back; %s.\n", count(d.Sessions, "TURN session"))
		return err
	}
	if c.Within < 0 || c.Within > 24*time.Hour {
		return misuse(fmt.Sprintf("--within %v: want 0 to 24h", c.Within))
	}
	if err := c.ask("POST", "/v1/drain", map[string]int64{"within_seconds": seconds(c.Within)}, &d); err != nil {
		return err
	}
	ctx, stop := untilSignal()
	defer stop()
	return watchDrain(ctx, out, d, func() (d admin.Drain, err error) { return d, c.ask("GET", "/v1/drain", nil, &d) })
}

const (
	drainTick = time.Second // between two looks
	drainTell = 10 * time.Second
)

// errDrainStopped: somebody else has taken it back.
var errDrainStopped = errors.New("the drain was taken back; new users come again\n  hint: \"wicgate drain\" begins anew")

// watchDrain tells how far a drain is until no session is left: a line that changes on a terminal,
// elsewhere lines of JSON, when the number of sessions changes and every 10 s.
func watchDrain(ctx context.Context, out io.Writer, d admin.Drain, look func() (admin.Drain, error)) error {
	terminal := isTerminal(out)
	tick := time.NewTicker(drainTick)
	defer tick.Stop()
	told, last := time.Time{}, -1
	for {
		if now := time.Now(); terminal {
			line := fmt.Sprintf("Draining: %s left, the oldest %s; the rest end in %s.", count(d.Sessions, "TURN session"), age(time.Duration(d.Oldest)*time.Second), age(time.Duration(d.Left)*time.Second))
			if d.Sessions == 0 {
				line = "Drained: no TURN session is left.\n"
			}
			fmt.Fprintf(out, "\r\x1b[K%s", line)
		} else if d.Sessions != last || now.Sub(told) >= drainTell {
			told, last = now, d.Sessions
			if err := json.NewEncoder(out).Encode(d); err != nil {
				return err
			}
		}
		if d.Sessions == 0 {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return errors.New("interrupted; the drain goes on\n  hint: \"wicgate drain --stop\" takes it back")
		}
		var err error
		if d, err = look(); err != nil {
			return err
		}
		if !d.Draining {
			return errDrainStopped
		}
	}
}

func isTerminal(out io.Writer) bool {
	f, ok := out.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
