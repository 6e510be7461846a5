// Package limit counts what strangers may do: a token bucket for each key, and the key
// that stands for a request's sender. It holds no goroutine, and its memory is bounded.
package limit

import (
	"container/list"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

// maxBuckets bounds a Limiter's memory: at about 200 bytes each, 2 MB.
const maxBuckets = 10_000

// Limiter allows each key a burst and then one more per interval, a token bucket that can take back.
// It knows at most maxBuckets keys, and forgets the one that was not asked for longest: to make it
// forget a bucket that matters costs as many requests, each of which is itself limited. Its methods
// are safe for concurrent use.
type Limiter struct {
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

// New allows burst at once, and one more after each per.
func New(burst int, per time.Duration) *Limiter {
	return &Limiter{burst: float64(burst), per: per, m: map[string]*list.Element{}, lru: list.New()}
}

// Take takes one from key's bucket. Where there is none, wait is the time until there is.
func (l *Limiter) Take(key string, now time.Time) (wait time.Duration, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.bucketLocked(key, now)
	if b.tokens < 1 {
		return max(time.Second, time.Duration((1-b.tokens)*float64(l.per))), false
	}
	b.tokens--
	return 0, true
}

// GiveBack undoes a Take, for what turned out harmless.
func (l *Limiter) GiveBack(key string, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.bucketLocked(key, now)
	b.tokens = min(l.burst, b.tokens+1)
}

func (l *Limiter) bucketLocked(key string, now time.Time) *bucket {
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

// Source is whom a request counts for in rate limits and logs: an IPv4 address, or the /64 of an
// IPv6 address, of which one subscriber has many. "unknown" where RemoteAddr is no address.
func Source(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return "unknown"
	}
	a, err := netip.ParseAddr(host)
	if err != nil {
		return "unknown"
	}
	if a = a.Unmap().WithZone(""); a.Is4() {
		return a.String()
	}
	return netip.PrefixFrom(a, 64).Masked().String()
}
