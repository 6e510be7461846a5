package imsagw

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// TestConsentTimer: RFC 7675 §5.1 in virtual time.
func TestConsentTimer(t *testing.T) {
	t.Run("answered", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c := consent{period: 5 * time.Second, expiry: 30 * time.Second}
			ctx, cancel := context.WithTimeout(t.Context(), 24*time.Hour)
			defer cancel()
			var last time.Time
			began, n := time.Now(), 0
			if c.run(ctx, func() {
				if !last.IsZero() {
					if gap := time.Since(last); gap < 4*time.Second || gap > 6*time.Second {
						t.Errorf("%v between two checks, want 4 to 6 s", gap)
					}
				}
				last = time.Now()
				n++
				c.renew()
			}) {
				t.Errorf("consent lost after %v, though each check is answered", time.Since(began))
			}
			// A day of checks, 5 s apart on average; an equal gap each time would meet other gateways'.
			if n < 16000 || n > 18500 {
				t.Errorf("%d checks in a day", n)
			}
		})
	})
	t.Run("silence", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c := consent{period: 5 * time.Second, expiry: 30 * time.Second}
			began, n := time.Now(), 0
			if !c.run(t.Context(), func() { n++ }) {
				t.Error("not lost")
			}
			if d := time.Since(began); d != 30*time.Second {
				t.Errorf("lost after %v, want 30 s", d)
			}
			if n < 4 || n > 7 {
				t.Errorf("%d checks in 30 s", n)
			}
		})
	})
	t.Run("last answer counts", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c := consent{period: 5 * time.Second, expiry: 30 * time.Second}
			var renewed time.Time
			n := 0
			if !c.run(t.Context(), func() {
				if n++; n <= 3 {
					time.Sleep(100 * time.Millisecond) // an answer is not immediate
					c.renew()
					renewed = time.Now()
				}
			}) {
				t.Error("not lost")
			}
			if d := time.Since(renewed); d != 30*time.Second {
				t.Errorf("lost %v after the last answer, want 30 s", d)
			}
		})
	})
	t.Run("stream ends", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c := consent{period: 5 * time.Second, expiry: 30 * time.Second}
			ctx, cancel := context.WithTimeout(t.Context(), 12*time.Second)
			defer cancel()
			began := time.Now()
			if c.run(ctx, func() {}) || time.Since(began) != 12*time.Second {
				t.Errorf("lost, or ended after %v", time.Since(began))
			}
		})
	})
}
