// Command turn measures TURN servers beside each other: wicgate's, coturn and pion/turn. README.md
// tells how to run it and how to read what it prints.
//
//	hosts.go    network namespaces, one pair for each life of a server
//	server.go   the servers: configuration, start, end, CPU and memory
//	socket.go   bare sockets of the load
//	client.go   a TURN client on them
//	traffic.go  media through the server, at a rate and at saturation
//	measure.go  what is measured
//	report.go   medians, Markdown, JSON
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	runtime.LockOSThread() // see server.start
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench/turn:", err)
		os.Exit(1)
	}
}

// options of the command line.
type options struct {
	programs
	out    string
	rounds int
	quick  bool
	only   string
}

func run(ctx context.Context) error {
	var o options
	flag.StringVar(&o.wicgate, "wicgate", "bin/wicgate", "our program")
	flag.StringVar(&o.before, "before", "", "our program as it was, to be compared; empty: none")
	flag.StringVar(&o.pion, "pion", "bin/pionserver", "the program of bench/turn/pionserver; empty: none")
	flag.StringVar(&o.coturn, "coturn", "turnserver", "coturn; empty: none")
	flag.StringVar(&o.newer, "newer", os.Getenv("COTURN"), "another coturn; empty: none (default: the variable COTURN)")
	flag.StringVar(&o.out, "out", "bin/bench-turn", "where to write the report: this name with .md and .json")
	flag.IntVar(&o.rounds, "rounds", 5, "rounds that count, after one that does not")
	flag.BoolVar(&o.quick, "quick", false, "one round that counts, with a quarter of the load: does it run at all?")
	flag.StringVar(&o.only, "only", "", "names of groups of measures, separated by commas; empty: all")
	flag.Parse()
	if flag.NArg() > 0 || o.rounds < 1 || o.rounds > 20 {
		return errors.New("want no arguments, and 1 to 20 rounds; see -help")
	}
	if os.Geteuid() != 0 {
		return errors.New("it makes network namespaces: run it as root")
	}
	if err := raiseFiles(); err != nil {
		return err
	}
	release, err := lock(ctx)
	if err != nil {
		return err
	}
	defer release()
	return o.bench(ctx)
}

// raiseFiles raises the limit of open files, for a socket a client.
func raiseFiles() error {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return err
	}
	if l.Max < 8192 {
		return fmt.Errorf("at most %d open files, want 8192: raise the limit (ulimit -n)", l.Max)
	}
	l.Cur = l.Max
	return unix.Setrlimit(unix.RLIMIT_NOFILE, &l)
}

// lock waits until no other bench runs on this machine.
func lock(ctx context.Context) (release func(), err error) {
	name := filepath.Join(os.TempDir(), "wicgate-bench.lock")
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	for said := false; ; time.Sleep(500 * time.Millisecond) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return func() { f.Close() }, nil
		case !errors.Is(err, unix.EWOULDBLOCK) || ctx.Err() != nil:
			return nil, errors.Join(fmt.Errorf("lock %s: %w", name, err), f.Close())
		case !said:
			said = true
			fmt.Fprintln(os.Stderr, "bench/turn: another bench holds", name, "- waiting for its end")
		}
	}
}

func (o *options) bench(ctx context.Context) error {
	n, rounds := full, o.rounds
	if o.quick {
		n, rounds = quick, 1
	}
	var chosen []group
	for _, g := range groups {
		if o.only == "" || slices.Contains(strings.Split(o.only, ","), g.name) {
			chosen = append(chosen, g)
		}
	}
	if len(chosen) == 0 {
		return fmt.Errorf("-only: no group %q", o.only)
	}
	list, err := cpus()
	if err != nil {
		return err
	}
	if len(list) < 2 {
		return errors.New("it needs two CPUs: one for the server, one for the load")
	}
	for _, p := range []*string{&o.wicgate, &o.before, &o.pion, &o.coturn, &o.newer} {
		if *p == "" {
			continue
		}
		path, err := exec.LookPath(*p)
		if err != nil {
			return fmt.Errorf("%w: make bench-turn builds and installs what is missing", err)
		}
		if *p, err = filepath.Abs(path); err != nil {
			return err
		}
	}
	dir, err := os.MkdirTemp("", "wgbench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // in the temporary folder
	servers, err := servers(dir, o.programs)
	if err != nil {
		return err
	}
	begin := time.Now()
	r := &report{Date: begin, Rounds: rounds, Servers: servers, Values: map[string]map[string]map[int]float64{}}
	r.Machine = machine(text("/proc/cpuinfo"), text("/proc/sys/kernel/osrelease"), text("/proc/sys/net/core/rmem_max"))
	r.Load = strings.TrimSpace(text("/proc/loadavg"))
	fmt.Fprintln(os.Stderr, r.Machine)
	for round := range rounds + 1 {
		for _, g := range chosen {
			for _, s := range servers {
				values, err := g.measure(ctx, s, dir, list, n)
				if ctx.Err() != nil {
					return ctx.Err()
				}
				fmt.Fprintf(os.Stderr, "%5.0fs  round %d/%d  %-22s %-13s", time.Since(begin).Seconds(), round, rounds, g.name, s.Name)
				if err != nil {
					fmt.Fprintln(os.Stderr, " failed:", strings.Join(strings.Fields(err.Error()), " "))
					r.Failed = append(r.Failed, fmt.Sprintf("round %d, %s, %s: %v", round, g.name, s.Name, err))
					continue
				}
				for _, m := range measures {
					if v, ok := values[m.Key]; ok {
						fmt.Fprintf(os.Stderr, " %s "+m.format+" %s", m.Key, v, m.Unit)
					}
				}
				fmt.Fprintln(os.Stderr)
				if round > 0 {
					r.add(s.Name, round, values)
				}
			}
		}
	}
	for _, m := range measures {
		if slices.ContainsFunc(servers, func(s *server) bool { return len(r.Values[s.Name][m.Key]) > 0 }) {
			r.Measures = append(r.Measures, m)
		}
	}
	r.Took = time.Since(begin).Round(time.Second).String()
	return o.write(r)
}

func (o *options) write(r *report) error {
	table := r.table()
	fmt.Print(table)
	b, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return err
	}
	if err := errors.Join(os.WriteFile(o.out+".md", []byte(table), 0o644), os.WriteFile(o.out+".json", append(b, '\n'), 0o644)); err != nil {
		return err
	}
	if len(r.Failed) > 0 {
		return fmt.Errorf("%d measurements failed, see the table's end", len(r.Failed))
	}
	return nil
}

// measure runs one life of a server.
func (g *group) measure(ctx context.Context, s *server, dir string, cpus []int, n size) (values map[string]float64, err error) {
	cpu, load := -1, []int(nil)
	if g.pinned {
		cpu, load = cpus[0], cpus[1:]
	}
	p, err := s.start(ctx, dir, cpu)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.stop()) }()
	err = on(p.hosts.load, load, func() error {
		var err error
		values, err = g.run(p, n)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%w; the end of its log: %s", err, tail(text(p.log), 400))
	}
	return values, nil
}

func tail(s string, n int) string { return strings.TrimSpace(s[max(0, len(s)-n):]) }

// text of a file; "" where it cannot be read, which the report then shows.
func text(name string) string {
	b, _ := os.ReadFile(name)
	return string(b)
}
