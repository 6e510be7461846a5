package imsagw

import (
	"context"
	"math/rand/v2"
	"sync/atomic"
	"time"
)

// consent is RFC 7675: the browser's leave to send to it, which each authenticated answer to a Binding
// request renews. It is apart from the ICE agent, which takes any packet for a sign of life.
type consent struct {
	period time.Duration // between two checks, each drawn from 0.8 to 1.2 of it (§5.1)
	expiry time.Duration // from the newest answer to the end of the leave
	last   atomic.Pointer[time.Time]
}

// renew is called at each answer, by any goroutine.
func (c *consent) renew() {
	now := time.Now()
	c.last.Store(&now)
}

// fresh says whether the leave holds.
func (c *consent) fresh() bool {
	l := c.last.Load()
	return l != nil && time.Since(*l) < c.expiry
}

// run starts with fresh consent, calls check at each time that a request is due, and returns true when
// consent is lost; false when ctx ends before.
func (c *consent) run(ctx context.Context, check func()) (lost bool) {
	c.renew()
	next := time.Now().Add(c.interval())
	for {
		end := c.last.Load().Add(c.expiry)
		timer := time.NewTimer(min(time.Until(next), time.Until(end)))
		select {
		case <-ctx.Done():
			timer.Stop()
			return false
		case <-timer.C:
		}
		now := time.Now()
		if !now.Before(c.last.Load().Add(c.expiry)) {
			return true
		}
		if !now.Before(next) {
			check()
			next = now.Add(c.interval())
		}
	}
}

func (c *consent) interval() time.Duration {
	return time.Duration((0.8 + 0.4*rand.Float64()) * float64(c.period))
}
