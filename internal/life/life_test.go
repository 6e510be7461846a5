package life

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

var discard = slog.New(slog.DiscardHandler)

func TestEndsInOppositeOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var ended []string
		part := func(name string, drain time.Duration) Part {
			return Part{name, func(ctx context.Context) error {
				<-ctx.Done()
				time.Sleep(drain)
				mu.Lock()
				ended = append(ended, name)
				mu.Unlock()
				return nil
			}}
		}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Hour, cancel)
		start := time.Now()
		if err := Run(ctx, discard, part("store", 0), part("turn", time.Second), part("front", 2*time.Second)); err != nil {
			t.Errorf("Run = %v", err)
		}
		if want := []string{"front", "turn", "store"}; !slices.Equal(ended, want) {
			t.Errorf("ended %v, want %v", ended, want)
		}
		if d := time.Since(start); d != time.Hour+3*time.Second {
			t.Errorf("took %v", d)
		}
	})
}

func TestOneFailureEndsAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		boom := errors.New("boom")
		ended := false
		err := Run(t.Context(), discard,
			Part{"a", func(ctx context.Context) error { <-ctx.Done(); ended = true; return nil }},
			Part{"b", func(ctx context.Context) error { time.Sleep(time.Minute); return boom }})
		if !errors.Is(err, boom) || !strings.Contains(err.Error(), "b: boom") || !ended {
			t.Errorf("Run = %v, the other ended: %v", err, ended)
		}
		err = Run(t.Context(), discard, Part{"c", func(context.Context) error { return nil }})
		if err == nil || !strings.Contains(err.Error(), "c: ended by itself") {
			t.Errorf("Run = %v", err)
		}
	})
}

func TestAHangingPartIsNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		release := make(chan bool)
		err := Run(ctx, discard, Part{"stuck", func(context.Context) error { <-release; return nil }})
		if err == nil || !strings.Contains(err.Error(), "stuck: did not end within 8s") {
			t.Errorf("Run = %v", err)
		}
		close(release)
	})
}
