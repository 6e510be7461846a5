package limit

import (
	"net/http/httptest"
	"strconv"
	"testing"
	"time"
)

func TestLimiterIsBounded(t *testing.T) {
	l := New(2, time.Minute)
	now := time.Unix(1_800_000_000, 0)
	for i := range 3 * maxBuckets {
		l.Take(strconv.Itoa(i), now)
	}
	if len(l.m) != maxBuckets || l.lru.Len() != maxBuckets {
		t.Errorf("%d, %d buckets", len(l.m), l.lru.Len())
	}
	last := strconv.Itoa(3*maxBuckets - 1)
	if _, ok := l.Take(last, now); !ok {
		t.Error("second of two refused")
	}
	if wait, ok := l.Take(last, now); ok || wait != time.Minute {
		t.Errorf("third: %v %v", wait, ok)
	}
	if wait, ok := l.Take(last, now.Add(59*time.Second)); ok || wait < time.Second {
		t.Errorf("after 59 s: %v %v", wait, ok)
	}
	if _, ok := l.Take(last, now.Add(time.Minute)); !ok {
		t.Error("after 60 s refused")
	}
	l.GiveBack(last, now.Add(time.Minute))
	if _, ok := l.Take(last, now); !ok { // a clock that went back takes nothing
		t.Error("given back, but refused")
	}
	for range 5 {
		l.GiveBack("x", now)
	}
	for i := range 3 {
		if _, ok := l.Take("x", now); ok != (i < 2) {
			t.Error("giving back made the bucket larger")
		}
	}
}

func TestSource(t *testing.T) {
	for addr, want := range map[string]string{
		"192.0.2.7:1234": "192.0.2.7", "[::ffff:192.0.2.7]:1": "192.0.2.7", "[2001:db8:1:2:3::4]:5": "2001:db8:1:2::/64",
		"[fe80::1%eth0]:5": "fe80::/64", "": "unknown", "@": "unknown", "pipe:1": "unknown",
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.RemoteAddr = addr
		if got := Source(r); got != want {
			t.Errorf("%q: %q, want %q", addr, got, want)
		}
	}
}
