package main

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"wicgate/internal/admin"
)

// TestWatchDrain: a line when something changes and every 10 s, the last one with no session left.
func TestWatchDrain(t *testing.T) {
	run := func(t *testing.T, sessions func(s int) (admin.Drain, error), stop time.Duration) (lines []string, took time.Duration, err error) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), stop)
			defer cancel()
			begin := time.Now()
			var out strings.Builder
			first, _ := sessions(0)
			err = watchDrain(ctx, &out, first, func() (admin.Drain, error) { return sessions(int(time.Since(begin) / time.Second)) })
			lines, took = strings.Split(strings.TrimSpace(out.String()), "\n"), time.Since(begin)
		})
		return lines, took, err
	}
	left := func(n int) (admin.Drain, error) { return admin.Drain{Draining: true, Sessions: n}, nil }
	lines, took, err := run(t, func(s int) (admin.Drain, error) {
		switch {
		case s < 12:
			return left(2)
		case s < 15:
			return left(1)
		}
		return left(0)
	}, time.Hour)
	if err != nil || len(lines) != 4 || took != 15*time.Second || lines[3] != `{"draining":true,"sessions":0,"oldest_seconds":0,"left_seconds":0}` {
		t.Errorf("%v after %v: %s", err, took, strings.Join(lines, "\n"))
	}
	if _, _, err := run(t, func(s int) (admin.Drain, error) { return admin.Drain{Draining: s < 3, Sessions: 1}, nil }, time.Hour); !errors.Is(err, errDrainStopped) {
		t.Errorf("taken back: %v", err)
	}
	if _, _, err := run(t, func(int) (admin.Drain, error) { return left(1) }, 5*time.Second); err == nil || !strings.Contains(err.Error(), "the drain goes on") {
		t.Errorf("interrupted: %v", err)
	}
}
