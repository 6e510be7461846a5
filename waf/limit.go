package waf

import (
	"container/list"
	"sync"
	"time"
)

// maxBuckets bounds a limiter's memory: at about 200 bytes each, 2 MB.
const maxBuckets = 10_000

// limiter allows each key a burst and then one more per interval, a token bucket that can take back.
// It knows at most maxBuckets keys, and forgets the one that was not asked for longest: to make it
// forget a bucket that matters costs as many requests, each of which is itself limited.
type limiter struct {
	burst float64
	per   time.Duration

	mu  sync.Mutex // guards the following
	m   map[string]*list.Element
	lru *list.List // of *bucket, most recent first
}

type bucket struct {
	key    string
	tokens float64
	at     time.Time
}

func newLimiter(burst int, per time.Duration) *limiter {
	return &limiter{burst: float64(burst), per: per, m: map[string]*list.Element{}, lru: list.New()}
}

// take takes one from key's bucket. Where there is none, wait is the time until there is.
func (l *limiter) take(key string, now time.Time) (wait time.Duration, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.bucketLocked(key, now)
	if b.tokens < 1 {
		return max(time.Second, time.Duration((1-b.tokens)*float64(l.per))), false
	}
	b.tokens--
	return 0, true
}

// giveBack undoes a take, for what turned out harmless.
func (l *limiter) giveBack(key string, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.bucketLocked(key, now)
	b.tokens = min(l.burst, b.tokens+1)
}

func (l *limiter) bucketLocked(key string, now time.Time) *bucket {
	e, ok := l.m[key]
	if !ok {
		if l.lru.Len() >= maxBuckets {
			last := l.lru.Back()
			delete(l.m, last.Value.(*bucket).key)
			l.lru.Remove(last)
		}
		e = l.lru.PushFront(&bucket{key, l.burst, now})
		l.m[key] = e
		return e.Value.(*bucket)
	}
	l.lru.MoveToFront(e)
	b := e.Value.(*bucket)
	if d := now.Sub(b.at); d > 0 {
		b.tokens = min(l.burst, b.tokens+float64(d)/float64(l.per))
		b.at = now
	}
	return b
}
