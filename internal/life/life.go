// Package life starts the parts of the program in order and ends them in the opposite order.
package life

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// PartTime is how long one part may take to end before the next is told to.
const PartTime = 8 * time.Second

// Part is one thing that runs: a role, the front, the store.
type Part struct {
	Name string
	// Serve runs until its context ends, drains, and returns when all that it started has returned.
	Serve func(context.Context) error
}

// Run serves all parts until ctx ends or one of them fails. Then it ends them one by one, the last
// first, so that a part can still use those before it while it drains. It returns once every part
// has, or has had PartTime to; its error joins the parts' errors.
func Run(ctx context.Context, log *slog.Logger, parts ...Part) error {
	type running struct {
		Part
		cancel context.CancelFunc
		done   chan error
	}
	failed := make(chan error, len(parts))
	var all []running
	for _, p := range parts {
		own, cancel := context.WithCancel(context.WithoutCancel(ctx))
		r := running{p, cancel, make(chan error, 1)}
		all = append(all, r)
		go func() {
			err := p.Serve(own)
			if own.Err() == nil { // nobody asked it to end
				if err == nil {
					err = errors.New("ended by itself")
				}
				failed <- fmt.Errorf("%s: %w", p.Name, err)
				err = nil // reported already
			}
			r.done <- err
		}()
	}

	var errs []error
	select {
	case <-ctx.Done():
		log.Info("draining")
	case err := <-failed:
		log.Error("a part failed; ending the others", "error", err)
		errs = append(errs, err)
	}
	for i := len(all) - 1; i >= 0; i-- {
		all[i].cancel()
		select {
		case err := <-all[i].done:
			if err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", all[i].Name, err))
			}
		case <-time.After(PartTime):
			errs = append(errs, fmt.Errorf("%s: did not end within %v", all[i].Name, PartTime))
		}
	}
	return errors.Join(errs...)
}
