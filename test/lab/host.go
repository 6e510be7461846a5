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

// Firewall drops, without an answer, packets from the other host that match the nft expression in,
// and packets to it that match out. "" drops none. It replaces what was there.
func (h *Host) Firewall(in, out string) {
	h.t.Helper()
	rules := "table inet lab {}\ndelete table inet lab\ntable inet lab {\n"
	for _, c := range []struct{ chain, hook, where, match string }{
		{"from", "prerouting priority raw", "iifname e0", in},
		{"to", "postrouting priority filter", "oifname e0", out},
	} {
		if c.match != "" {
			rules += fmt.Sprintf("chain %s { type filter hook %s; %s %s counter drop; }\n", c.chain, c.hook, c.where, c.match)
		}
	}
	cmd := h.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules + "}\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		h.t.Fatalf("nft: %v: %s in\n%s", err, bytes.TrimSpace(out), rules)
	}
}
