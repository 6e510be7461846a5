package lab

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Command is a command that will run on the host; nil is this machine.
func (h *Host) Command(name string, args ...string) *exec.Cmd {
	if h == nil {
		return exec.Command(name, args...)
	}
	on := []string{"netns", "exec", h.Name}
	if h.hosts != "" { // ip gives its child a mount namespace of its own
		on = append(on, "sh", "-c", `mount --bind "$0" /etc/hosts && exec "$@"`, h.hosts)
	}
	return exec.Command("ip", append(append(on, name), args...)...)
}

// In runs f in a goroutine whose system calls are the host's: a socket made in f stays on the host. nil is this machine.
func (h *Host) In(f func() error) error {
	if h == nil {
		return f()
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		done <- func() error {
			ns, err := os.Open("/run/netns/" + h.Name)
			if err != nil {
				return err
			}
			defer ns.Close()
			if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("enter network namespace %s: %w", h.Name, err)
			}
			return f()
		}()
	}()
	return <-done
}

// Drop drops, without an answer, what reaches the host and matches any of the nft expressions. It
// replaces what was there before.
func (h *Host) Drop(matches ...string) {
	h.t.Helper()
	rules := "table inet lab {}\ndelete table inet lab\ntable inet lab {\nchain arrive {\ntype filter hook prerouting priority raw;\n"
	for _, m := range matches {
		rules += m + " drop\n"
	}
	cmd := h.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules + "}\n}\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		h.t.Fatalf("nft: %v: %s in\n%s", err, bytes.TrimSpace(out), rules)
	}
}

// Reset ends the host's TCP connections that match an expression of ss, at both their ends.
func (h *Host) Reset(match string) {
	h.t.Helper()
	if out, err := h.Command("ss", append([]string{"-Ktn"}, strings.Fields(match)...)...).CombinedOutput(); err != nil {
		h.t.Fatalf("ss: %v: %s", err, bytes.TrimSpace(out))
	}
}
