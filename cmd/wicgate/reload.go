package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"wicgate/internal/admin"
	"wicgate/internal/check"
	"wicgate/internal/config"
	"wicgate/internal/keyring"
	"wicgate/internal/secret"
	"wicgate/turn"
)

type reloadCmd struct {
	door
	DryRun bool `name:"dry-run" help:"Say what would change, and change nothing."`
	JSON   bool `name:"json" help:"Print JSON."`
}

// Help implements [kong.HelpProvider].
func (reloadCmd) Help() string {
	return `The running wicgate reads its configuration file and the files of users, secrets and keys again. A file with a fault changes nothing. What can change while calls go on does so at once; what cannot is named, and left as it is until a restart. SIGHUP does the same, and tells the log.

Examples:

	wicgate reload --dry-run
	wicgate reload --data /var/lib/wicgate
	wicgate reload --json | jq -r '.changes[] | select(.live | not).key'
`
}

// Run implements the command reload.
func (c *reloadCmd) Run(out io.Writer) error {
	var done admin.Reloaded
	if err := c.ask("POST", "/v1/reload", map[string]bool{"dry_run": c.DryRun}, &done); err != nil {
		return err
	}
	if c.JSON {
		return printJSON(out, done)
	}
	printReloaded(out, done)
	return nil
}

func printReloaded(out io.Writer, r admin.Reloaded) {
	list := func(title string, live bool) {
		for _, c := range r.Changes {
			if c.Live != live {
				continue
			}
			if title != "" {
				fmt.Fprintln(out, title)
				title = ""
			}
			fmt.Fprintf(out, "  %s: %s -> %s\n", c.Key, c.Old, c.New)
		}
	}
	now, again := "In effect now:", "Read again:"
	if r.DryRun {
		now, again = "Would take effect at once:", "Would be read again:"
	}
	list(now, true)
	list("Needs a restart, and is left as it is:", false)
	if len(r.Changes) == 0 {
		fmt.Fprintln(out, "The file says what runs.")
	}
	for i, f := range r.Reread {
		if i == 0 {
			fmt.Fprintln(out, again)
		}
		fmt.Fprintf(out, "  %s\n", f)
	}
	for _, w := range r.Warnings {
		fmt.Fprintf(out, "warning: %s\n", w)
	}
	if r.Ended > 0 {
		fmt.Fprintf(out, "Ended %s of users who are no longer there.\n", count(r.Ended, "TURN session"))
	}
	if r.DryRun {
		fmt.Fprintln(out, "Dry run: nothing has changed.")
	}
}

// reloader is what of a running process can change. house.file stays what the process began with.
type reloader struct {
	path  string // of the configuration file; "" = none
	level slog.LevelVar
	hup   chan os.Signal

	now     atomic.Pointer[config.File]               // the settings that hold
	secrets atomic.Pointer[[]secret.Bytes]            // see house.secrets; nil = none
	pushed  func(username string) (turn.Pushed, bool) // of the first tenant; nil = none
	keys    []turn.Keys                               // of the TURN server's tenants, in their order
	rings   []*keyring.Ring                           // that have files of their own to read again

	mu   sync.Mutex // one reload at a time
	last atomic.Pointer[reloadResult]
}

// reloadResult is what metrics tell.
type reloadResult struct {
	failed  bool
	succeed time.Time // last success, or the start
}

// serveReload reloads when a SIGHUP comes.
func (h *house) serveReload(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-h.reloader.hup:
			_, _ = h.reload(false) // it tells the log
		}
	}
}

// reload reads the configuration again. Everything is read and built before anything changes.
func (h *house) reload(dryRun bool) (done admin.Reloaded, err error) {
	r := &h.reloader
	r.mu.Lock()
	defer r.mu.Unlock()
	if !dryRun {
		defer func() {
			if err != nil {
				r.last.Store(&reloadResult{true, r.last.Load().succeed})
				h.log.Error("configuration not reloaded; all goes on as before", "error", err)
			}
		}()
	}
	if !dryRun && !h.gone.Load() {
		if !h.giving.TryLock() { // that process may have read the files already
			return done, errors.New("another process is about to take over; reload once it has, or has not")
		}
		defer h.giving.Unlock()
	}
	done = admin.Reloaded{DryRun: dryRun, Changes: []admin.Change{}, Reread: []string{}, Warnings: []string{}}
	next, err := config.Load(r.path)
	if err != nil {
		return done, err
	}
	now, changes := r.now.Load().Reload(next)
	restart := false
	for _, c := range changes {
		done.Changes = append(done.Changes, admin.Change(c))
		restart = restart || !c.Live
	}
	found := check.Cheap(check.Input{File: next, Data: h.data, Roles: h.roles})
	if err := faults(found); err != nil {
		return done, err
	}
	if restart { // then what will hold is neither file
		if err := faults(check.Cheap(check.Input{File: now, Data: h.data, Roles: h.roles})); err != nil {
			return done, fmt.Errorf("%w\nThis is of what is live in the file together with what needs a restart, as it runs; restart, or change one after the other", err)
		}
	}
	for _, f := range found {
		done.Warnings = append(done.Warnings, f.String())
	}
	built, err := h.rebuild(now, &done)
	if err != nil || dryRun {
		return done, err
	}

	for _, ring := range r.rings {
		if err := ring.Reload(); err != nil {
			return done, err
		}
	}
	if h.operator.turn != nil {
		if done.Ended, err = h.operator.turn.Reconfigure(built.tenants, now.TURN.Blind == "closed"); err != nil {
			return done, err
		}
	}
	r.secrets.Store(built.secrets)
	r.level.Set(slog.Level(now.Log.Level))
	r.now.Store(now)
	r.last.Store(&reloadResult{succeed: time.Now()})
	for _, c := range done.Changes {
		if c.Live {
			h.log.Info("setting changed", "key", c.Key, "old", c.Old, "new", c.New)
		} else {
			h.log.Warn("setting needs a restart; left as it is", "key", c.Key, "old", c.Old, "new", c.New)
		}
	}
	h.log.Info("configuration reloaded", "changes", len(done.Changes), "ended", done.Ended)
	if err := askElders(context.Background(), h, http.MethodPost, "/v1/reload", map[string]bool{"dry_run": false}, func(r admin.Reloaded) { done.Ended += r.Ended }); err != nil {
		done.Warnings = append(done.Warnings, "it goes on as before: "+err.Error())
	}
	return done, nil
}

// rebuilt is what a reload puts in place.
type rebuilt struct {
	secrets *[]secret.Bytes
	tenants []turn.Tenant
}

// rebuild builds what f says, and tells what it has read for it.
func (h *house) rebuild(f *config.File, done *admin.Reloaded) (b rebuilt, err error) {
	if b.secrets, err = h.readSecrets(f, false); err != nil {
		return b, err
	}
	read := func(format string, args ...any) { done.Reread = append(done.Reread, fmt.Sprintf(format, args...)) }
	for _, ring := range h.reloader.rings {
		if err := ring.Check(); err != nil {
			return b, err
		}
		read("keys of %s", ring.Server())
	}
	if h.operator.turn == nil {
		if b.secrets != nil {
			read("secrets of %s: %d", f.TURN.Name, len(*b.secrets))
		}
		return b, nil
	}
	if b.tenants, err = h.tenants(f, b.secrets); err != nil {
		return b, err
	}
	for i := range b.tenants {
		t := &b.tenants[i]
		t.Keys = h.reloader.keys[i]
		if i == 0 {
			t.Pushed = h.reloader.pushed
		}
		if t.Secrets != nil {
			read("secrets of %s: %d", t.Name, len(t.Secrets()))
		}
		if users, ok := t.Users.(*keyring.Users); ok {
			read("users of %s: %d", t.Name, users.Len())
		}
	}
	return b, nil
}

// faults are the errors among findings as one, nil where there is none.
func faults(found []config.Finding) error {
	var errs []string
	for _, f := range found {
		if f.Severity == config.Error {
			errs = append(errs, f.String())
		}
	}
	if errs == nil {
		return nil
	}
	return fmt.Errorf("configuration: %s", strings.Join(errs, "\nconfiguration: "))
}

// observeReload is what metrics tell of it.
func (h *house) observeReload() (gauges []gauge) {
	last := &h.reloader.last
	return []gauge{
		{"wicgate_config_last_reload_successful", "1 while the last reload of the configuration, if there was one, has succeeded.", func() float64 {
			if last.Load().failed {
				return 0
			}
			return 1
		}},
		{"wicgate_config_last_reload_success_timestamp_seconds", "When the configuration that runs was read, in seconds since 1970.", func() float64 {
			return float64(last.Load().succeed.Unix())
		}},
	}
}

// begin is for a process that begins with file. From here on a SIGHUP ends it no more.
func (r *reloader) begin(path string, file *config.File) {
	r.path, r.hup = path, make(chan os.Signal, 1)
	signal.Notify(r.hup, syscall.SIGHUP)
	r.level.Set(slog.Level(file.Log.Level))
	r.now.Store(file)
	r.last.Store(&reloadResult{succeed: time.Now()})
}

func (r *reloader) end() { signal.Stop(r.hup) }
