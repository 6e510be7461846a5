package session

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strconv"
	"sync"
	"time"

	"wicgate/internal/store"
)

// Handler is told the news. Nil functions are not called. They are called one at a time, and must
// not wait.
type Handler struct {
	// Extended: the session's credentials are good until then.
	Extended func(pseudonym string, until time.Time)
	// Revoked: the session has ended. It is told twice, and may be oftener.
	Revoked func(Revocation)
	// Missed: extensions may have been lost, as messages were. What was said to end without one
	// must not.
	Missed func()
	// Blind: for more than 60 s revocations may have been missed, as neither bus nor store was heard, or the
	// bus told of some that the store did not give (true), or all is known again (false).
	Blind func(bool)
}

// Follower hears the news and remembers who is revoked.
type Follower struct {
	store store.Store
	bus   store.Bus
	log   *slog.Logger
	hear  []Handler

	telling sync.Mutex // held while handlers are called

	mu      sync.Mutex // guards the following
	revoked map[string]time.Time
	swept   time.Time // when revoked was last looked through for what is over
	seen    uint64    // every revocation up to it is known
	above   []uint64  // known ones above a gap
	head    uint64    // the highest number heard of
	heard   time.Time // when a head was last heard, or read
	gap     time.Time // since when seen is behind head; zero: it is not
	lacked  time.Time // since when the store answers, and lacks numbers up to lackTo; zero: it does not
	lackTo  uint64
	blind   bool
	since   time.Time // of blind: when all was known last
}

// NewFollower returns a Follower that tells each of hear; log may be nil.
func NewFollower(st store.Store, bus store.Bus, log *slog.Logger, hear ...Handler) *Follower {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Follower{store: st, bus: bus, log: log, hear: hear, revoked: map[string]time.Time{}}
}

// Hear adds a handler, before Start.
func (f *Follower) Hear(h Handler) { f.hear = append(f.hear, h) }

// tell calls the handlers, one at a time.
func (f *Follower) tell(what func(Handler)) {
	f.telling.Lock()
	defer f.telling.Unlock()
	for _, h := range f.hear {
		what(h)
	}
}

// Revoked reports whether the session of pseudonym has been revoked. Safe for concurrent use.
func (f *Follower) Revoked(pseudonym string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	until, ok := f.revoked[pseudonym]
	return ok && time.Now().Before(until)
}

// Revocations are the sessions that are known to be revoked, and until when that matters.
func (f *Follower) Revocations() map[string]time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.revoked)
}

// Ready is nil unless the follower is blind.
func (f *Follower) Ready() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.blind {
		return fmt.Errorf("session: no news of revocations since %v; see whether the bus and its store are reached", f.since.Format(time.RFC3339))
	}
	return nil
}

// Start subscribes and reads every living revocation, so that none is missed once it has returned.
// Call Serve then.
func (f *Follower) Start(ctx context.Context) (stop func(), err error) {
	var stops []func()
	stop = func() {
		for _, s := range stops {
			s()
		}
	}
	for _, s := range []struct {
		subject string
		handle  func(store.Message)
	}{{subjectRevoked, f.onRevoked}, {subjectExtended, f.onExtended}, {subjectHead, f.onHead}} {
		unsubscribe, err := f.bus.Subscribe(s.subject, s.handle)
		if err != nil {
			stop()
			return nil, fmt.Errorf("session: %w", err)
		}
		stops = append(stops, unsubscribe)
	}
	if err := f.readAll(ctx); err != nil {
		stop()
		return nil, err
	}
	return stop, nil
}

// readAll reads the store through.
func (f *Follower) readAll(ctx context.Context) error {
	// The head first: what is revoked while the bucket is read is above it, or read.
	head, _, err := readHead(ctx, f.store)
	if err == nil {
		err = f.store.Scan(ctx, bucket, func(e store.Entry) bool {
			if e.Key == headKey {
				return true
			}
			r, err := parseRevocation(e.Value)
			if n, parseErr := strconv.ParseUint(e.Key, 10, 64); err != nil || parseErr != nil || n != r.Number {
				f.log.Error("session: a stored revocation is malformed", "key", e.Key)
				return true
			}
			f.take(r)
			head = max(head, r.Number)
			return true
		})
	}
	if err != nil {
		return fmt.Errorf("session: read the revocations: %w", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.passLocked(head)
	f.heard = time.Now()
	return nil
}

// passLocked notes that everything up to n is known, and takes up what lies above.
func (f *Follower) passLocked(n uint64) {
	f.seen, f.head = max(f.seen, n), max(f.head, n)
	for again := true; again; {
		again = false
		rest := f.above[:0]
		for _, a := range f.above {
			switch {
			case a == f.seen+1:
				f.seen, again = a, true
			case a > f.seen:
				rest = append(rest, a)
			}
		}
		f.above = rest
	}
}

// take remembers r and tells it.
func (f *Follower) take(r Revocation) {
	now := time.Now()
	if !now.Before(r.Until) {
		return
	}
	f.mu.Lock()
	if len(f.revoked) >= maxRevoked && now.Sub(f.swept) > sweepEvery {
		f.swept = now
		for p, until := range f.revoked {
			if !now.Before(until) {
				delete(f.revoked, p)
			}
		}
	}
	if len(f.revoked) < maxRevoked {
		f.revoked[r.Pseudonym] = r.Until
	} else {
		f.log.Error("session: too many revocations are alive to remember this one; its allocations end, but its tokens stay good", "pseudonym", r.Pseudonym, "remembered", maxRevoked)
	}
	f.mu.Unlock()
	f.tell(func(h Handler) {
		if h.Revoked != nil {
			h.Revoked(r)
		}
	})
}

func (f *Follower) onRevoked(m store.Message) {
	r, err := parseRevocation(m.Data)
	if err != nil {
		f.log.Error("session: malformed revocation on the bus", "error", err)
		return
	}
	f.take(r)
	if r.Number == 0 {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.head = max(f.head, r.Number)
	if r.Number > f.seen && len(f.above) < 1024 { // more are read from the store again, which does no harm
		f.above = append(f.above, r.Number)
		f.passLocked(0)
	}
}

func (f *Follower) onExtended(m store.Message) {
	var e extension
	if err := json.Unmarshal(m.Data, &e); err != nil || e.Version != version || !isName(e.Pseudonym) {
		f.log.Error("session: malformed extension on the bus")
		return
	}
	f.tell(func(h Handler) {
		if h.Extended != nil {
			h.Extended(e.Pseudonym, e.Until)
		}
	})
}

func (f *Follower) onHead(m store.Message) {
	var h head
	if err := json.Unmarshal(m.Data, &h); err != nil || h.Version != version {
		f.log.Error("session: malformed head on the bus")
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.head = max(f.head, h.Number)
	if now := time.Now(); now.Sub(f.heard) <= silence {
		f.heard = now
	}
	// After a silence heard stays as it was until Serve has looked: something may have been lost.
}

// Serve follows until ctx ends.
func (f *Follower) Serve(ctx context.Context) error {
	tick := time.NewTicker(headEvery / 2)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		f.follow(ctx)
	}
}

// follow reads what was missed, if anything may have been.
func (f *Follower) follow(ctx context.Context) {
	now := time.Now()
	f.mu.Lock()
	silent := now.Sub(f.heard) > silence
	from, to := f.seen+1, f.head
	switch {
	case to < from:
		f.gap = time.Time{}
	case f.gap.IsZero():
		f.gap = now
	}
	var settled uint64 // numbers up to it that are not there will not come
	if !f.lacked.IsZero() && now.Sub(f.lacked) > settle {
		settled = f.lackTo
	}
	f.mu.Unlock()
	if to < from && !silent {
		f.see(false)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, storeTime)
	defer cancel()
	var err error
	if silent || to-from > 1000 {
		err = f.readAll(ctx)
	} else {
		err = f.read(ctx, from, to, settled)
	}
	f.lack(err == nil)
	f.see(err != nil)
	if err != nil {
		return
	}
	f.tell(func(h Handler) {
		if h.Missed != nil {
			h.Missed()
		}
	})
}

// lack notes since when the store answers without the number after seen. A store that was away begins anew:
// the node that answers then may be behind.
func (f *Follower) lack(answered bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case !answered || f.seen >= f.head:
		f.lacked = time.Time{}
	case f.lacked.IsZero() || f.seen >= f.lackTo:
		f.lacked, f.lackTo = time.Now(), f.head
	}
}

// read reads the revocations of these numbers. One that is not there has passed its time, or has
// not come to the node that was asked: only up to settled it is passed over.
func (f *Follower) read(ctx context.Context, from, to, settled uint64) error {
	known := to
	for n := from; n <= to; n++ {
		e, err := f.store.Get(ctx, bucket, numberKey(n))
		if errors.Is(err, store.ErrNotFound) {
			if n > settled {
				known = min(known, n-1)
			}
			continue
		}
		if err != nil {
			return fmt.Errorf("session: read revocation %d: %w", n, err)
		}
		r, err := parseRevocation(e.Value)
		if err != nil {
			f.log.Error("session: a stored revocation is malformed", "number", n)
			continue
		}
		f.take(r)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.passLocked(known)
	return nil
}

// see notes whether the follower is blind, and tells a change.
func (f *Follower) see(failed bool) {
	f.mu.Lock()
	was := f.blind
	since := f.heard
	if !f.gap.IsZero() && f.gap.Before(since) {
		since = f.gap // heads come, and what they tell of cannot be read
	}
	f.blind = failed && time.Since(since) > blindAfter
	if f.blind {
		f.since = since
	}
	blind := f.blind
	f.mu.Unlock()
	if blind == was {
		return
	}
	if blind {
		f.log.Error("session: blind: no news of revocations for a minute; credentials that were revoked may still be taken. See whether the bus and its store are reached", "since", since)
	} else {
		f.log.Info("session: news of revocations are heard again")
	}
	f.tell(func(h Handler) {
		if h.Blind != nil {
			h.Blind(blind)
		}
	})
}
