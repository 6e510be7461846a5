package session

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"wicgate/internal/store"
)

// Issuer tells news. Any number of them may work on one store.
type Issuer struct {
	store store.Store
	bus   store.Bus
	log   *slog.Logger
	head  atomic.Uint64 // the highest number known here
}

// NewIssuer returns an Issuer; log may be nil.
func NewIssuer(st store.Store, bus store.Bus, log *slog.Logger) *Issuer {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Issuer{store: st, bus: bus, log: log}
}

// Extend tells that the session has credentials until then. It waits for nothing.
func (i *Issuer) Extend(pseudonym string, until time.Time) error {
	if !isName(pseudonym) {
		return fmt.Errorf("session: pseudonym %.40q: want 1 to %d printable characters", pseudonym, maxText)
	}
	return i.publish(subjectExtended, extension{version, pseudonym, until})
}

func (i *Issuer) publish(subject string, v any) error {
	b, err := json.Marshal(v)
	if err == nil {
		err = i.bus.Publish(subject, b)
	}
	if err != nil {
		return fmt.Errorf("session: publish on %s: %w", subject, err)
	}
	return nil
}

// Revoke tells that the session has ended, for reason. until is when no credential of it can be
// alive any more, at most 31 days ahead. It returns when the news is stored, and so cannot be lost.
func (i *Issuer) Revoke(ctx context.Context, pseudonym, reason string, until time.Time) error {
	now := time.Now()
	if limit := now.Add(maxLife); until.After(limit) {
		until = limit
	}
	r := Revocation{Version: version, Number: 1, Pseudonym: pseudonym, Reason: reason, At: now, Until: until}
	if err := r.check(); err != nil {
		return fmt.Errorf("session: revoke %.40q for %.40q: %w", pseudonym, reason, err)
	}
	// First to those who hear: the store may have lost its leader, for seconds. Number 0 is not
	// stored yet.
	urgent := r
	urgent.Number = 0
	if err := i.publish(subjectRevoked, urgent); err != nil {
		i.log.Warn("session: revocation is not told at once", "pseudonym", pseudonym, "error", err)
	}
	known, rev, err := readHead(ctx, i.store)
	if err != nil {
		return fmt.Errorf("session: revoke %s: %w", pseudonym, err)
	}
again:
	// Who created a number has it. The head follows, by whoever comes next if not by us.
	for r.Number = max(known, i.head.Load()) + 1; ; r.Number++ {
		b, err := json.Marshal(r)
		if err != nil {
			return fmt.Errorf("session: revoke %s: %w", pseudonym, err)
		}
		_, err = i.store.Create(ctx, bucket, numberKey(r.Number), b, wholeSeconds(until.Sub(now)))
		if err == nil {
			break
		}
		if !errors.Is(err, store.ErrExists) {
			return fmt.Errorf("session: revoke %s: %w", pseudonym, err)
		}
	}
	i.raise(r.Number)
	switch at, err := writeHead(ctx, i.store, known, rev, r.Number); {
	case err != nil:
		// The number is taken and will be found; only a start at this moment would miss it.
		i.log.Warn("session: head of revocations not written", "number", r.Number, "error", err)
	case at > r.Number:
		// The head that was read was old, and the number may have been another's whose time has passed:
		// who has seen that would not look for this one.
		known, rev = at, 0
		i.raise(at)
		goto again
	}
	if err := i.publish(subjectRevoked, r); err != nil {
		i.log.Warn("session: revocation is stored but not told; the next head will tell", "pseudonym", pseudonym, "error", err)
	}
	i.log.Info("session revoked", "pseudonym", pseudonym, "reason", reason, "number", r.Number)
	return nil
}

func (i *Issuer) raise(n uint64) {
	for {
		was := i.head.Load()
		if n <= was || i.head.CompareAndSwap(was, n) {
			return
		}
	}
}

// Serve tells the head every 500 ms, until ctx ends.
func (i *Issuer) Serve(ctx context.Context) error {
	unsubscribe, err := i.bus.Subscribe(subjectRevoked, func(m store.Message) { // of other issuers
		if r, err := parseRevocation(m.Data); err == nil {
			i.raise(r.Number) // 0 raises nothing
		}
	})
	if err != nil {
		return fmt.Errorf("session: %w", err)
	}
	defer unsubscribe()
	read, failing := false, false
	for {
		if !read {
			c, cancel := context.WithTimeout(ctx, storeTime)
			n, _, err := readHead(c, i.store)
			cancel()
			if read = err == nil; read {
				i.raise(n)
			}
		}
		if read {
			err := i.publish(subjectHead, head{version, i.head.Load()})
			if err != nil && !failing {
				i.log.Warn("session: head of revocations not told", "error", err)
			}
			failing = err != nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(headEvery):
		}
	}
}

// readHead returns the highest number that is noted, 0 for none.
func readHead(ctx context.Context, st store.Store) (uint64, store.Revision, error) {
	e, err := st.Get(ctx, bucket, headKey)
	if errors.Is(err, store.ErrNotFound) {
		return 0, 0, nil
	}
	if err != nil {
		return 0, 0, err
	}
	var h head
	if err := json.Unmarshal(e.Value, &h); err != nil || h.Version != version {
		return 0, 0, fmt.Errorf("%w: head of revocations %.60q", errMalformed, e.Value)
	}
	return h.Number, e.Revision, nil
}

// writeHead raises the head to n, and returns what it is then.
func writeHead(ctx context.Context, st store.Store, known uint64, rev store.Revision, n uint64) (uint64, error) {
	b, err := json.Marshal(head{version, n})
	if err != nil {
		return 0, err
	}
	for known < n {
		if known == 0 {
			_, err = st.Create(ctx, bucket, headKey, b, 0)
		} else {
			_, err = st.CompareAndSet(ctx, bucket, headKey, b, rev, 0)
		}
		if err == nil {
			return n, nil
		}
		if !errors.Is(err, store.ErrExists) && !errors.Is(err, store.ErrConflict) {
			return 0, err
		}
		if known, rev, err = readHead(ctx, st); err != nil {
			return 0, err
		}
	}
	return known, nil
}
