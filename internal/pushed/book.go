package pushed

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"wicgate/internal/secret"
	"wicgate/internal/store"
)

const (
	maxKnown = 200_000 // credentials, some 270 bytes each

	// Questions to the store. A client can make one by a username of the right shape, so they are few.
	askRate    = 100 // a second, and as many at once
	askers     = 8   // at a time; the others wait in the queue
	askTime    = time.Second
	absentFor  = 5 * time.Second // a username that the store does not have is remembered that long, up to twice
	startTime  = 5 * time.Second // to read the store through at the start
	complainBy = time.Minute     // between complaints of one kind
)

// State is what is known of a username.
type State int

// The states.
const (
	Unknown State = iota // or of no shape of ours
	Known
	// Asking: the store is being asked. Who asks again a little later gets one of the others.
	Asking
)

// Stats of a Book.
type Stats struct {
	Known   int    // credentials remembered now
	Told    uint64 // of the bus, and read at the start
	Found   uint64 // only when a client came with them
	Missing uint64 // the store had none of the username
	Failed  uint64 // the store did not answer
	Limited uint64 // not looked up, as more were asked for than are
	Dropped uint64 // for want of room, before their end
	Bad     uint64 // malformed, or sealed under another secret
}

// Book is what a TURN server knows. Its methods are safe for concurrent use, and Get waits for nothing.
type Book struct {
	store   store.Store
	bus     store.Bus
	secrets func() []secret.Bytes
	log     *slog.Logger
	room    int

	ask chan string // of usernames in asking

	mu      sync.Mutex // guards the following
	known   map[string]*list.Element
	order   *list.List // of Credential, as they came; the lives are alike, so the first end first
	asking  map[string]struct{}
	absent  [2]map[string]struct{} // of this time and the time before; see turnLocked
	turned  time.Time
	tokens  float64 // questions that may be asked now
	drawn   time.Time
	stats   Stats
	grumble time.Time
}

// NewBook returns an empty Book; log may be nil. Call Start, then Serve.
func NewBook(st store.Store, bus store.Bus, secrets func() []secret.Bytes, log *slog.Logger) *Book {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Book{
		store: st, bus: bus, secrets: secrets, log: log, room: maxKnown, ask: make(chan string, askRate),
		known: map[string]*list.Element{}, order: list.New(), asking: map[string]struct{}{},
		absent: [2]map[string]struct{}{{}, {}}, tokens: askRate,
	}
}

// Start subscribes, and reads what was pushed before. A store that does not answer is no reason not to
// start: what is missing is asked for when a client comes with it.
func (b *Book) Start(ctx context.Context) (stop func(), err error) {
	stop, err = b.bus.Subscribe(subject, func(m store.Message) { b.hear("bus", m.Data) })
	if err != nil {
		return nil, fmt.Errorf("pushed: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	err = b.store.Scan(ctx, bucket, func(e store.Entry) bool {
		b.hear("store", e.Value)
		return true
	})
	if err != nil {
		b.log.Warn("pushed: the credentials pushed before are not all read; they will be when clients come with them", "error", err)
	}
	return stop, nil
}

// hear takes a credential of the bus, or of the store.
func (b *Book) hear(whence string, data []byte) {
	c, err := open(b.secrets(), data)
	b.mu.Lock()
	defer b.mu.Unlock()
	if err == nil && b.takeLocked(c) {
		b.stats.Told++
	} else if err != nil {
		b.badLocked(whence, err)
	}
}

func (b *Book) badLocked(whence string, err error) {
	b.stats.Bad++
	if now := time.Now(); now.Sub(b.grumble) > complainBy {
		b.grumble = now
		b.log.Error("pushed: a credential cannot be used", "from", whence, "error", err)
	}
}

// takeLocked remembers c.
func (b *Book) takeLocked(c Credential) bool {
	now := time.Now()
	left := c.Ends.Sub(now)
	if _, ok := b.known[c.Username]; ok || left <= 0 {
		return false
	}
	if left > maxLife {
		b.badLocked("whoever has the secret", fmt.Errorf("%w: it ends in %v, want up to %v", errMalformed, left, maxLife))
		return false
	}
	for e := b.order.Front(); e != nil; e = b.order.Front() {
		first := e.Value.(Credential)
		over := !now.Before(first.Ends)
		if !over && len(b.known) < b.room {
			break
		}
		if !over {
			b.stats.Dropped++
		}
		b.order.Remove(e)
		delete(b.known, first.Username)
	}
	b.known[c.Username] = b.order.PushBack(c)
	delete(b.absent[0], c.Username)
	delete(b.absent[1], c.Username)
	return true
}

// Get returns the credential of username. Of one that it does not know it asks the store in the
// background, once and not too often. A credential that has just ended may be returned still.
func (b *Book) Get(username string) (Credential, State) {
	if !IsUsername(username) {
		return Credential{}, Unknown
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if e := b.known[username]; e != nil {
		return e.Value.(Credential), Known
	}
	now := time.Now()
	b.turnLocked(now)
	for _, absent := range b.absent {
		if _, ok := absent[username]; ok {
			return Credential{}, Unknown
		}
	}
	if _, ok := b.asking[username]; ok {
		return Credential{}, Asking
	}
	b.tokens = min(askRate, b.tokens+now.Sub(b.drawn).Seconds()*askRate)
	b.drawn = now
	if b.tokens < 1 {
		b.stats.Limited++
		return Credential{}, Unknown
	}
	select {
	case b.ask <- username:
	default: // the store is slow
		b.stats.Limited++
		return Credential{}, Unknown
	}
	b.tokens--
	b.asking[username] = struct{}{}
	return Credential{}, Asking
}

// turnLocked forgets what was absent. The memory is bounded as the questions are.
func (b *Book) turnLocked(now time.Time) {
	switch d := now.Sub(b.turned); {
	case d >= 2*absentFor:
		b.absent = [2]map[string]struct{}{{}, {}}
	case d >= absentFor:
		b.absent = [2]map[string]struct{}{{}, b.absent[0]}
	default:
		return
	}
	b.turned = now
}

// Serve asks the store for what clients came with, until ctx ends.
func (b *Book) Serve(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	for range askers {
		wg.Go(func() {
			for {
				select {
				case <-ctx.Done():
					return
				case username := <-b.ask:
					b.look(ctx, username)
				}
			}
		})
	}
	return nil
}

// look asks the store for one.
func (b *Book) look(ctx context.Context, username string) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	e, err := b.store.Get(ctx, bucket, username)
	var c Credential
	if err == nil {
		if c, err = open(b.secrets(), e.Value); err == nil && c.Username != username {
			err = fmt.Errorf("%w: stored under another username", errMalformed)
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.asking, username)
	switch {
	case err == nil:
		if b.takeLocked(c) {
			b.stats.Found++
		}
	case errors.Is(err, errMalformed):
		b.badLocked("store", err)
		b.absent[0][username] = struct{}{}
	case errors.Is(err, store.ErrNotFound):
		b.stats.Missing++
		if b.known[username] == nil { // unless the bus was quicker
			b.absent[0][username] = struct{}{}
		}
	default: // who comes again asks again
		b.stats.Failed++
	}
}

// Stats counts.
func (b *Book) Stats() Stats {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.stats
	s.Known = len(b.known)
	return s
}
