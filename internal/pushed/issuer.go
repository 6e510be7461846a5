package pushed

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"wicgate/internal/secret"
	"wicgate/internal/store"
)

const (
	maxUnsaved = 10_000 // credentials that wait for the store; 6 s without a leader are 1600 a second
	flushTime  = 500 * time.Millisecond
	saveTime   = 3 * time.Second // for one access to the store
	saveAgain  = 500 * time.Millisecond
	lastTime   = 2 * time.Second // to store what waits when the edge ends
)

// Issuer makes credentials and tells them. Any number of them may work on one bus.
type Issuer struct {
	store   store.Store
	bus     store.Bus
	secrets func() []secret.Bytes
	log     *slog.Logger

	wake chan struct{} // something is unsaved

	mu      sync.Mutex // guards the following
	unsaved []saving
	lost    uint64
}

type saving struct {
	username string
	value    []byte
	ends     time.Time
}

// NewIssuer returns an Issuer that seals with the first of secrets; log may be nil.
func NewIssuer(st store.Store, bus store.Bus, secrets func() []secret.Bytes, log *slog.Logger) *Issuer {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Issuer{store: st, bus: bus, secrets: secrets, log: log, wake: make(chan struct{}, 1)}
}

// Push makes a credential of pseudonym that is good until ends, and tells it. It waits until the bus has
// taken it, 500 ms at most, so that the TURN servers normally have it before the WIC does, and never for the store.
func (i *Issuer) Push(ctx context.Context, pseudonym string, ends time.Time) (Credential, error) {
	c := generate(pseudonym, ends)
	switch left := time.Until(c.Ends); {
	case !isName(pseudonym):
		return Credential{}, fmt.Errorf("pushed: pseudonym %.40q: want 1 to %d printable characters", pseudonym, maxText)
	case left <= 0 || left > maxLife:
		return Credential{}, fmt.Errorf("pushed: a credential that ends in %v: want up to %v", left, maxLife)
	}
	secrets := i.secrets()
	if len(secrets) == 0 {
		return Credential{}, errors.New("pushed: no secret to seal with; set turn.secrets")
	}
	var nonce [sealNonce]byte
	rand.Read(nonce[:])
	b, err := seal(secrets[0], c, nonce)
	if err == nil {
		err = i.bus.Publish(subject, b)
	}
	if err == nil {
		c, cancel := context.WithTimeout(ctx, flushTime)
		err = i.bus.Flush(c)
		cancel()
	}
	if err != nil {
		return Credential{}, fmt.Errorf("pushed: tell a credential: %w", err)
	}
	i.save(saving{c.Username, b, c.Ends})
	return c, nil
}

// save queues s. Where the store has been away for long, the oldest goes: most TURN servers know it.
func (i *Issuer) save(s saving) {
	i.mu.Lock()
	if len(i.unsaved) >= maxUnsaved {
		i.unsaved[0] = saving{}
		i.unsaved = i.unsaved[1:]
		i.lost++
	}
	i.unsaved = append(i.unsaved, s)
	i.mu.Unlock()
	select {
	case i.wake <- struct{}{}:
	default:
	}
}

// Serve stores what is pushed, until ctx ends, and then for 2 s at most what still waits.
func (i *Issuer) Serve(ctx context.Context) error {
	failing := false
	for {
		err := i.saveAll(ctx)
		if err != nil && ctx.Err() == nil && !failing {
			i.log.Warn("pushed: credentials are not stored; a TURN server that starts now will not know them", "error", err)
		}
		if failing = err != nil; failing {
			select {
			case <-ctx.Done():
			case <-time.After(saveAgain):
				continue
			}
		}
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastTime)
			defer cancel()
			if err := i.saveAll(last); err != nil {
				i.log.Warn("pushed: credentials were not stored at the end", "error", err)
			}
			return nil
		case <-i.wake:
		}
	}
}

// saveAll stores the queue, oldest first, up to the first failure.
func (i *Issuer) saveAll(ctx context.Context) error {
	for {
		i.mu.Lock()
		if lost := i.lost; lost > 0 {
			i.lost = 0
			i.log.Error("pushed: credentials were not stored, as too many waited", "lost", lost, "room", maxUnsaved)
		}
		if len(i.unsaved) == 0 {
			i.unsaved = nil
			i.mu.Unlock()
			return nil
		}
		s := i.unsaved[0]
		i.mu.Unlock()
		if left := time.Until(s.ends); left > 0 {
			c, cancel := context.WithTimeout(ctx, saveTime)
			_, err := i.store.Create(c, bucket, s.username, s.value, max(time.Second, (left+time.Second-1).Truncate(time.Second)))
			cancel()
			if err != nil && !errors.Is(err, store.ErrExists) { // it exists after an answer that was lost
				return err
			}
		}
		i.mu.Lock()
		if len(i.unsaved) > 0 && i.unsaved[0].username == s.username { // unless it was dropped meanwhile
			i.unsaved[0] = saving{}
			i.unsaved = i.unsaved[1:]
		}
		i.mu.Unlock()
	}
}
