package store

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"
)

// Memory is a Store and a Bus in this process, for tests. Its time is the time package's, so in a
// testing/synctest bubble it is virtual. It owns no goroutine.
type Memory struct {
	mu      sync.Mutex // guards the following fields
	buckets map[string]map[string]memoryValue
	next    Revision
	subs    map[*memorySub]struct{}
}

type memoryValue struct {
	Entry
	end time.Time // zero: never
}

type memorySub struct {
	pattern []string
	handle  func(Message)
	mu      sync.Mutex // held while handle runs: one message at a time
	closed  bool
}

var (
	_ Store = (*Memory)(nil)
	_ Bus   = (*Memory)(nil)
)

// NewMemory returns an empty Memory.
func NewMemory() *Memory {
	return &Memory{buckets: map[string]map[string]memoryValue{}, subs: map[*memorySub]struct{}{}}
}

func checkKey(bucket, key string, value []byte, ttl time.Duration) error {
	switch {
	case !validBucket(bucket):
		return fmt.Errorf("store: bucket name %q: want 1 to 32 of a-z 0-9 -", bucket)
	case key == "" || len(key) > 256:
		return fmt.Errorf("store: key of %d bytes in bucket %s: want 1 to 256", len(key), bucket)
	case len(value) > MaxValue:
		return fmt.Errorf("%w: %d bytes for a key in bucket %s, at most %d", ErrTooLarge, len(value), bucket, MaxValue)
	case ttl != 0 && (ttl < time.Second || ttl%time.Second != 0):
		return fmt.Errorf("store: time to live %v in bucket %s: want whole seconds", ttl, bucket)
	}
	return nil
}

func validBucket(s string) bool {
	if s == "" || len(s) > 32 {
		return false
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

// liveLocked returns the value of a key whose time has not passed.
func (m *Memory) liveLocked(bucket, key string) (memoryValue, bool) {
	v, ok := m.buckets[bucket][key]
	if ok && !v.end.IsZero() && !time.Now().Before(v.end) {
		delete(m.buckets[bucket], key)
		return memoryValue{}, false
	}
	return v, ok
}

func (m *Memory) putLocked(bucket, key string, value []byte, ttl time.Duration) Revision {
	if m.buckets[bucket] == nil {
		m.buckets[bucket] = map[string]memoryValue{}
	}
	m.next++
	v := memoryValue{Entry: Entry{Key: key, Value: append([]byte(nil), value...), Revision: m.next}}
	if ttl > 0 {
		v.end = time.Now().Add(ttl)
	}
	m.buckets[bucket][key] = v
	return m.next
}

// Create implements [Store].
func (m *Memory) Create(ctx context.Context, bucket, key string, value []byte, ttl time.Duration) (Revision, error) {
	if err := firstError(ctx.Err(), checkKey(bucket, key, value, ttl)); err != nil {
		return 0, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.liveLocked(bucket, key); ok {
		return 0, ErrExists
	}
	return m.putLocked(bucket, key, value, ttl), nil
}

// Get implements [Store].
func (m *Memory) Get(ctx context.Context, bucket, key string) (Entry, error) {
	if err := firstError(ctx.Err(), checkKey(bucket, key, nil, 0)); err != nil {
		return Entry{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	v, ok := m.liveLocked(bucket, key)
	if !ok {
		return Entry{}, ErrNotFound
	}
	v.Value = append([]byte(nil), v.Value...)
	return v.Entry, nil
}

// CompareAndSet implements [Store].
func (m *Memory) CompareAndSet(ctx context.Context, bucket, key string, value []byte, old Revision, ttl time.Duration) (Revision, error) {
	if err := firstError(ctx.Err(), checkKey(bucket, key, value, ttl)); err != nil {
		return 0, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	v, ok := m.liveLocked(bucket, key)
	if !ok {
		return 0, ErrNotFound
	}
	if v.Revision != old {
		return 0, ErrConflict
	}
	return m.putLocked(bucket, key, value, ttl), nil
}

// Delete implements [Store].
func (m *Memory) Delete(ctx context.Context, bucket, key string, old Revision) error {
	if err := firstError(ctx.Err(), checkKey(bucket, key, nil, 0)); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	v, ok := m.liveLocked(bucket, key)
	if !ok {
		return ErrNotFound
	}
	if v.Revision != old {
		return ErrConflict
	}
	delete(m.buckets[bucket], key)
	return nil
}

// Scan implements [Store].
func (m *Memory) Scan(ctx context.Context, bucket string, each func(Entry) bool) error {
	if err := firstError(ctx.Err(), checkKey(bucket, "-", nil, 0)); err != nil {
		return err
	}
	m.mu.Lock()
	var all []Entry
	for key := range m.buckets[bucket] {
		if v, ok := m.liveLocked(bucket, key); ok {
			v.Value = append([]byte(nil), v.Value...)
			all = append(all, v.Entry)
		}
	}
	m.mu.Unlock()
	for _, e := range all {
		if !each(e) {
			return nil
		}
	}
	return nil
}

// matches says whether a subject's words fit a subscription's.
func matches(pattern, subject []string) bool {
	for i, p := range pattern {
		switch {
		case p == ">":
			return len(subject) > i
		case i >= len(subject), p != "*" && p != subject[i]:
			return false
		}
	}
	return len(pattern) == len(subject)
}

func checkMessage(subject string, data []byte) error {
	if subject == "" || len(subject) > 256 || strings.ContainsAny(subject, "*> \t\r\n") || strings.Contains("."+subject+".", "..") {
		return fmt.Errorf("store: %q is not a subject to publish to", subject)
	}
	if len(data) > MaxValue {
		return fmt.Errorf("%w: message of %d bytes on %s, at most %d", ErrTooLarge, len(data), subject, MaxValue)
	}
	return nil
}

func (m *Memory) matching(subject string) (hit []*memorySub) {
	words := strings.Split(subject, ".")
	m.mu.Lock()
	defer m.mu.Unlock()
	for s := range m.subs {
		if matches(s.pattern, words) {
			hit = append(hit, s)
		}
	}
	return hit
}

func (s *memorySub) deliver(msg Message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.handle(msg)
	}
}

// Publish implements [Bus]: it returns when the handlers have.
func (m *Memory) Publish(subject string, data []byte) error {
	if err := checkMessage(subject, data); err != nil {
		return err
	}
	for _, s := range m.matching(subject) {
		s.deliver(Message{Subject: subject, Data: data})
	}
	return nil
}

// Flush implements [Bus]: there is nothing on its way.
func (m *Memory) Flush(ctx context.Context) error { return ctx.Err() }

// Subscribe implements [Bus].
func (m *Memory) Subscribe(subject string, handle func(Message)) (func(), error) {
	s := &memorySub{pattern: strings.Split(subject, "."), handle: handle}
	m.mu.Lock()
	m.subs[s] = struct{}{}
	m.mu.Unlock()
	return func() {
		m.mu.Lock()
		delete(m.subs, s)
		m.mu.Unlock()
		s.mu.Lock() // waits for a handler under way
		s.closed = true
		s.mu.Unlock()
	}, nil
}

// Request implements [Bus].
func (m *Memory) Request(ctx context.Context, subject string, data []byte) ([]byte, error) {
	if err := firstError(ctx.Err(), checkMessage(subject, data)); err != nil {
		return nil, err
	}
	hit := m.matching(subject)
	if len(hit) == 0 {
		return nil, fmt.Errorf("%w on %s", ErrNoResponder, subject)
	}
	answer := make(chan []byte, 1)
	for _, s := range hit {
		s.deliver(Message{Subject: subject, Data: data, Respond: func(b []byte) error {
			select {
			case answer <- append([]byte(nil), b...):
			default: // only the first answer counts
			}
			return nil
		}})
	}
	select {
	case b := <-answer:
		return b, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
