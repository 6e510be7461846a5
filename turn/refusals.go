package turn

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"wicgate/turn/internal/core"
)

// refusalLog writes one line a second and cause about refused packets, with the number of those
// left out. A flood costs no log, and one cause does not hide another.
type refusalLog struct {
	mu     sync.Mutex // guards causes
	causes [core.NumCauses]struct {
		next time.Time
		left uint64
	}
}

// note logs what out says of a packet from addr. What a stranger can cause without a valid nonce,
// and stray packets, is for debugging; the rest is a client of ours with a problem.
func (l *refusalLog) note(log *slog.Logger, now time.Time, out *core.Outbox, addr netip.AddrPort, client bool) {
	level := slog.LevelInfo
	switch out.Cause {
	case core.CauseNotSTUN, core.CauseMalformed, core.CauseMethod, core.CauseBudget, core.CauseChallenge, core.CauseIncomplete, core.CauseStaleNonce,
		core.CauseNoAllocation, core.CauseNoPermission, core.CauseChannel, core.CauseTooLong, core.CauseICMP:
		level = slog.LevelDebug
	}
	ctx := context.Background()
	if !log.Enabled(ctx, level) {
		return
	}
	l.mu.Lock()
	c := &l.causes[out.Cause]
	if now.Before(c.next) {
		c.left++
		l.mu.Unlock()
		return
	}
	left := c.left
	c.next, c.left = now.Add(time.Second), 0
	l.mu.Unlock()

	who := "peer"
	attrs := make([]slog.Attr, 0, 6)
	if client {
		who = "client"
		if out.Method != 0 {
			attrs = append(attrs, slog.String("method", out.Method.String()))
		}
	}
	attrs = append(attrs, slog.Any(who, addr), slog.String("cause", out.Cause.String()))
	if out.Code != 0 {
		attrs = append(attrs, slog.Int("code", out.Code))
	}
	if out.Detail != nil {
		attrs = append(attrs, slog.Any("detail", out.Detail))
	}
	if left > 0 {
		attrs = append(attrs, slog.Uint64("more", left))
	}
	log.LogAttrs(ctx, level, "turn: refused", attrs...)
}
