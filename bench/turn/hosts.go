package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// The two hosts and their addresses. The load has a whole /16 to send from: a server may limit
// what it does for one source address.
//
//	load 10.30.0.2, 10.31.0.0/16 ──── veth ──── 10.30.0.1 server
const (
	serverAddress = "10.30.0.1"
	peerAddress   = "10.30.0.2"
	sourcePrefix  = "10.31.0.0/16"
)

// hosts are the network namespaces of one server's life.
type hosts struct{ server, load string }

func makeHosts() (h hosts, err error) {
	h = hosts{server: fmt.Sprintf("wgbs%d", os.Getpid()), load: fmt.Sprintf("wgbl%d", os.Getpid())}
	for _, step := range []string{
		"netns add " + h.server,
		"netns add " + h.load,
		"-n " + h.load + " link add l0 type veth peer name s0 netns " + h.server,
		"-n " + h.load + " addr add " + peerAddress + "/24 dev l0",
		"-n " + h.load + " link set l0 up",
		"-n " + h.load + " link set lo up",
		"-n " + h.load + " route add local " + sourcePrefix + " dev lo", // each address of it is the load's
		"-n " + h.server + " addr add " + serverAddress + "/24 dev s0",
		"-n " + h.server + " link set s0 up",
		"-n " + h.server + " link set lo up",
		"-n " + h.server + " route add " + sourcePrefix + " via " + peerAddress,
	} {
		if out, err := exec.Command("ip", strings.Fields(step)...).CombinedOutput(); err != nil {
			return h, errors.Join(fmt.Errorf("ip %s: %w: %s", step, err, bytes.TrimSpace(out)), h.remove())
		}
	}
	return h, nil
}

// remove removes what there is of the two.
func (h hosts) remove() error {
	var errs []error
	for _, name := range []string{h.server, h.load} {
		if _, err := os.Stat("/run/netns/" + name); err != nil {
			continue
		}
		if out, err := exec.Command("ip", "netns", "del", name).CombinedOutput(); err != nil {
			errs = append(errs, fmt.Errorf("ip netns del %s: %w: %s", name, err, bytes.TrimSpace(out)))
		}
	}
	return errors.Join(errs...)
}

// on runs f in a thread of its own in a network namespace, on the given CPUs (none: on any). All of
// f's sockets must be made in it.
func on(namespace string, cpus []int, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		done <- func() error {
			ns, err := os.Open("/run/netns/" + namespace)
			if err != nil {
				return err
			}
			defer ns.Close()
			if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("enter network namespace %s: %w", namespace, err)
			}
			if len(cpus) > 0 {
				var set unix.CPUSet
				for _, c := range cpus {
					set.Set(c)
				}
				if err := unix.SchedSetaffinity(0, &set); err != nil {
					return fmt.Errorf("stay on CPU %v: %w", cpus, err)
				}
			}
			// Sleeps as short as they are asked for; 50 µs more is the default.
			if err := unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0); err != nil {
				return fmt.Errorf("set timer slack: %w", err)
			}
			return f()
		}()
	}()
	return <-done
}

// cpus are those that this process may use.
func cpus() (list []int, err error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return nil, err
	}
	for c := range 1024 {
		if set.IsSet(c) {
			list = append(list, c)
		}
	}
	return list, nil
}
