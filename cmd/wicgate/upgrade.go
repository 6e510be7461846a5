package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"wicgate/internal/admin"
)

// Process implements [admin.Upgrader].
func (h *house) Process() admin.Process {
	version, revision := build()
	h.nextMu.Lock()
	defer h.nextMu.Unlock()
	return admin.Process{PID: os.Getpid(), Version: strings.TrimSpace(version + " " + revision), Next: h.next, Failed: h.failed}
}

// Upgrade implements [admin.Upgrader]. The new process is a child, so that it has what this one has:
// user, environment, folder, output, and the service manager's group.
func (h *house) Upgrade(program string, within time.Duration) (admin.Process, error) {
	if err := h.mayLeave(); err != nil {
		return admin.Process{}, err
	}
	if os.Getenv("SYSTEMD_EXEC_PID") == strconv.Itoa(os.Getpid()) && os.Getenv("NOTIFY_SOCKET") == "" {
		return admin.Process{}, errors.New("systemd would end the new process together with this one; set Type=notify and NotifyAccess=all in the unit, as deploy/systemd has it")
	}
	cmd := exec.Command(program, takeoverArgs(os.Args[1:], within)...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		return admin.Process{}, fmt.Errorf("start the new process: %w", err)
	}
	pid := cmd.Process.Pid
	h.log.Info("started a process to take over", "program", program, "pid", pid)
	h.nextMu.Lock()
	h.next, h.failed = pid, ""
	h.nextMu.Unlock()
	go func() { // ends with the child, or with this process
		err := cmd.Wait()
		if h.gone.Load() {
			return
		}
		if err == nil {
			err = errors.New("it ended by itself")
		}
		h.nextMu.Lock()
		defer h.nextMu.Unlock()
		if h.next == pid {
			h.failed = err.Error()
		}
	}()
	return h.Process(), nil
}

// takeoverArgs are the arguments of this process for the one that comes after it.
func takeoverArgs(args []string, within time.Duration) (out []string) {
	for i := 0; i < len(args); i++ {
		switch a := args[i]; {
		case a == "--takeover", strings.HasPrefix(a, "--within="):
		case a == "--within":
			i++
		default:
			out = append(out, a)
		}
	}
	return append(out, "--takeover", "--within="+within.String())
}

type upgradeCmd struct {
	door
	Program string        `help:"The wicgate to start. Default: the one that runs this command." type:"existingfile" placeholder:"FILE"`
	Within  time.Duration `help:"How long the old process may keep its connections (TCP, TLS, DTLS), which cannot move; 0 to 24h." default:"12h" placeholder:"TIME"`
}

// Help implements [kong.HelpProvider].
func (upgradeCmd) Help() string {
	return `The running process starts the new one with its own arguments, and hands over its sockets and TURN sessions: clients on UDP go on without a lost packet. Clients on TCP, TLS and DTLS stay with the old process, which lives beside the new one until they have ended, or --within is over. If anything fails, the old process goes on as if nothing had been.

The new process reads the configuration anew. Only a process that runs turn alone can be upgraded so.

Examples:

	install wicgate-new /usr/bin/wicgate && wicgate upgrade --data /var/lib/wicgate
	wicgate upgrade --program ./wicgate-new --within 1h
`
}

// upgradeTime is how long the new process may take.
const upgradeTime = 45 * time.Second

// Run implements the command upgrade.
func (c *upgradeCmd) Run(out io.Writer) error {
	if c.Within < 0 || c.Within > 24*time.Hour {
		return misuse(fmt.Sprintf("--within %v: want 0 to 24h", c.Within))
	}
	if c.Program == "" {
		self, err := os.Executable()
		if err != nil {
			return fmt.Errorf("this program's own file: %w\n  hint: name it with --program", err)
		}
		c.Program = self
	}
	var old admin.Process
	if err := c.ask("GET", "/v1/process", nil, &old); err != nil {
		return err
	}
	var p admin.Process
	if err := c.ask("POST", "/v1/upgrade", map[string]any{"program": c.Program, "within_seconds": seconds(c.Within)}, &p); err != nil {
		return err
	}
	next := p.Next
	for end := time.Now().Add(upgradeTime); ; time.Sleep(100 * time.Millisecond) {
		switch err := c.ask("GET", "/v1/process", nil, &p); {
		case err == nil && p.PID == next:
			_, err := fmt.Fprintf(out, "Process %d (%s) has taken over from %d (%s).\n", p.PID, p.Version, old.PID, old.Version)
			return err
		case err == nil && p.Failed != "":
			return fmt.Errorf("the new process has not taken over (%s), and the old one goes on\n  hint: it has said why where the log goes", p.Failed)
		case time.Now().After(end):
			return fmt.Errorf("process %d has not taken over within %v\n  hint: the log says how far it is", next, upgradeTime)
		}
	}
}

// notify tells a service manager, as systemd is one, that this process is ready, and is the main one
// of the service (sd_notify(3)).
func notify() error {
	name := os.Getenv("NOTIFY_SOCKET")
	if name == "" {
		return nil
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer c.Close() //nolint:errcheck // it has been written, or not
	_, err = fmt.Fprintf(c, "MAINPID=%d\nREADY=1", os.Getpid())
	return err
}
