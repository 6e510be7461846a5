package core

import (
	"hash/maphash"
	"net/netip"
	"time"
)

// Budget bounds the replies to each source that has not shown that it can receive them: a reply to
// a spoofed request is a packet to a victim, larger than what it cost. Memory is fixed, about
// 300 KiB: sources share sets of four places, and the one that has been quiet for longest gives way.
//
// A source is an IPv4 address or an IPv6 /64, without port.
type Budget struct {
	burst, rate float64
	seed        maphash.Seed
	sets        [][4]bucket
}

type bucket struct {
	source netip.Addr
	tokens float64
	last   time.Time
}

const (
	defaultBurst = 100
	defaultRate  = 20
	budgetSets   = 1024
)

// NewBudget returns a Budget of burst replies at once and rate replies a second and source.
// Zeros mean 100 and 20: enough for an office behind one address to start its calls at once, and
// for a victim 20 packets of 100 bytes a second.
func NewBudget(burst int, rate float64) *Budget {
	if burst <= 0 {
		burst = defaultBurst
	}
	if rate <= 0 {
		rate = defaultRate
	}
	return &Budget{burst: float64(burst), rate: rate, seed: maphash.MakeSeed(), sets: make([][4]bucket, budgetSets)}
}

// Take reports whether a reply to source is within its budget, and draws it.
func (b *Budget) Take(now time.Time, source netip.Addr) bool {
	source = source.Unmap()
	if source.Is6() {
		if p, err := source.WithZone("").Prefix(64); err == nil {
			source = p.Addr()
		}
	}
	set := &b.sets[maphash.Comparable(b.seed, source)%uint64(len(b.sets))]
	oldest := &set[0]
	for i := range set {
		e := &set[i]
		if e.source == source {
			e.tokens = min(b.burst, e.tokens+b.rate*max(0, now.Sub(e.last).Seconds()))
			e.last = now
			if e.tokens < 1 {
				return false
			}
			e.tokens--
			return true
		}
		if e.last.Before(oldest.last) {
			oldest = e
		}
	}
	*oldest = bucket{source, b.burst - 1, now}
	return true
}
