package session

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"wicgate/internal/store"
)

// wire is a store and a bus whose parts can fail.
type wire struct {
	*store.Memory
	mu              sync.Mutex
	busDown, dbDown bool
	lose            string // subject whose messages get lost
	hidden          string // key that Get does not find yet; the head only once
}

var errDown = errors.New("down")

func (w *wire) set(f func()) { w.mu.Lock(); defer w.mu.Unlock(); f() }

func (w *wire) Publish(subject string, data []byte) error {
	w.mu.Lock()
	down, lost := w.busDown, w.lose == subject
	w.mu.Unlock()
	if down || lost { // as core NATS does, which tells nobody
		return nil
	}
	return w.Memory.Publish(subject, data)
}

func (w *wire) Get(ctx context.Context, b, k string) (store.Entry, error) {
	w.mu.Lock()
	down, hidden := w.dbDown, w.hidden == k
	if hidden && k == headKey {
		w.hidden = ""
	}
	w.mu.Unlock()
	if down {
		return store.Entry{}, errDown
	}
	if hidden {
		return store.Entry{}, store.ErrNotFound
	}
	return w.Memory.Get(ctx, b, k)
}

func (w *wire) Scan(ctx context.Context, b string, each func(store.Entry) bool) error {
	w.mu.Lock()
	down := w.dbDown
	w.mu.Unlock()
	if down {
		return errDown
	}
	return w.Memory.Scan(ctx, b, each)
}

// ear records what a follower is told.
type ear struct {
	mu       sync.Mutex
	revoked  []string
	extended map[string]time.Time
	missed   int
	blind    []bool
}

func (e *ear) handler() Handler {
	lock := func(f func()) { e.mu.Lock(); defer e.mu.Unlock(); f() }
	return Handler{
		Extended: func(p string, until time.Time) { lock(func() { e.extended[p] = until }) },
		Revoked:  func(r Revocation) { lock(func() { e.revoked = append(e.revoked, r.Pseudonym+" "+r.Reason) }) },
		Missed:   func() { lock(func() { e.missed++ }) },
		Blind:    func(b bool) { lock(func() { e.blind = append(e.blind, b) }) },
	}
}

func (e *ear) heard() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.revoked)
}

// follow starts a follower that ends with the test's bubble.
func follow(t *testing.T, ctx context.Context, w *wire) (*Follower, *ear) {
	t.Helper()
	e := &ear{extended: map[string]time.Time{}}
	f := NewFollower(w, w, slog.New(slog.DiscardHandler), e.handler())
	stop, err := f.Start(ctx)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		defer stop()
		if err := f.Serve(ctx); err != nil {
			t.Error(err)
		}
	}()
	return f, e
}

func issue(t *testing.T, ctx context.Context, w *wire) *Issuer {
	t.Helper()
	i := NewIssuer(w, w, nil)
	go func() {
		if err := i.Serve(ctx); err != nil {
			t.Error(err)
		}
	}()
	return i
}

func bubble(t *testing.T, test func(t *testing.T, ctx context.Context, w *wire)) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		test(t, ctx, &wire{Memory: store.NewMemory()})
		stop()
		synctest.Wait()
	})
}

func revoke(t *testing.T, i *Issuer, p string, life time.Duration) {
	t.Helper()
	if err := i.Revoke(t.Context(), p, "revoked", time.Now().Add(life)); err != nil {
		t.Fatal(err)
	}
}

// TestNews: extensions and revocations are told at once, and a revocation is forgotten at its end.
func TestNews(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, w *wire) {
		i := issue(t, ctx, w)
		f, e := follow(t, ctx, w)
		until := time.Now().Add(time.Hour)
		if err := i.Extend("p1", until); err != nil {
			t.Fatal(err)
		}
		revoke(t, i, "p2", time.Minute)
		synctest.Wait()
		if !e.extended["p1"].Equal(until) || !slices.Equal(slices.Compact(e.heard()), []string{"p2 revoked"}) || !f.Revoked("p2") || f.Revoked("p1") {
			t.Errorf("%v %v", e.extended, e.heard())
		}
		time.Sleep(61 * time.Second)
		synctest.Wait()
		if f.Revoked("p2") {
			t.Error("still revoked after its end")
		}
		if e.missed != 0 || len(e.blind) != 0 {
			t.Errorf("missed %d, blind %v, with nothing lost", e.missed, e.blind)
		}
	})
}

// TestGap: what the bus loses is read from the store within a second, once the head tells.
func TestGap(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, w *wire) {
		i := issue(t, ctx, w)
		f, e := follow(t, ctx, w)
		w.set(func() { w.lose = subjectRevoked })
		revoke(t, i, "p1", time.Minute)
		revoke(t, i, "p2", time.Minute)
		w.set(func() { w.lose = "" })
		revoke(t, i, "p3", time.Minute)
		time.Sleep(time.Second)
		synctest.Wait()
		if !f.Revoked("p1") || !f.Revoked("p2") || !f.Revoked("p3") || e.missed == 0 {
			t.Errorf("%v, missed %d", e.heard(), e.missed)
		}
		n := len(e.heard())
		time.Sleep(30 * time.Second)
		synctest.Wait()
		if len(e.heard()) != n {
			t.Errorf("told again and again: %v", e.heard())
		}
	})
}

// TestLaggingNode: a number that the asked node does not have yet is asked for again.
func TestLaggingNode(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, w *wire) {
		i := issue(t, ctx, w)
		f, _ := follow(t, ctx, w)
		w.set(func() { w.lose, w.hidden = subjectRevoked, numberKey(1) })
		revoke(t, i, "p1", time.Hour)
		revoke(t, i, "p2", time.Hour)
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if f.Revoked("p1") || !f.Revoked("p2") {
			t.Error("the second is behind the first")
		}
		w.set(func() { w.hidden = "" })
		time.Sleep(time.Second)
		synctest.Wait()
		if !f.Revoked("p1") {
			t.Error("passed over")
		}
	})
}

// TestStoreIsDown: a revocation is heard at once, and the issuer is told that it is not stored.
func TestStoreIsDown(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, w *wire) {
		f, _ := follow(t, ctx, w)
		w.set(func() { w.dbDown = true })
		err := NewIssuer(w, w, nil).Revoke(ctx, "p1", "revoked", time.Now().Add(time.Hour))
		synctest.Wait()
		if !errors.Is(err, errDown) || !f.Revoked("p1") {
			t.Errorf("%v, revoked %v", err, f.Revoked("p1"))
		}
	})
}

// TestOldHead: an issuer that reads an old head, and finds the number after it free again, takes a new
// one all the same.
func TestOldHead(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, w *wire) {
		i := NewIssuer(w, w, nil)
		for range 3 {
			revoke(t, i, "short", 2*time.Second)
		}
		f, _ := follow(t, ctx, w)
		time.Sleep(5 * time.Second)
		w.set(func() { w.lose, w.hidden = subjectRevoked, headKey }) // once, the head that is read is that of before
		late := NewIssuer(w, w, nil)
		if err := late.Revoke(ctx, "p1", "revoked", time.Now().Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
		go func() { _ = late.Serve(ctx) }()
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if !f.Revoked("p1") {
			t.Errorf("missed: seen %d, head %d", f.seen, f.head)
		}
	})
}

// TestStart: a follower that starts later knows what has been revoked, also without a head and after
// the numbers before have passed their time.
func TestStart(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, w *wire) {
		i := NewIssuer(w, w, nil)
		revoke(t, i, "old", 2*time.Second)
		revoke(t, i, "p1", time.Hour)
		time.Sleep(5 * time.Second)
		f, e := follow(t, ctx, w)
		if !f.Revoked("p1") || f.Revoked("old") || len(e.heard()) != 1 {
			t.Errorf("%v", e.heard())
		}
		// A second issuer goes on with the numbers.
		revoke(t, NewIssuer(w, w, nil), "p2", time.Hour)
		synctest.Wait()
		if !f.Revoked("p2") || f.head != 3 || f.seen != 3 {
			t.Errorf("head %d, seen %d", f.head, f.seen)
		}
	})
}

func TestStartNeedsTheStore(t *testing.T) {
	w := &wire{Memory: store.NewMemory(), dbDown: true}
	if _, err := NewFollower(w, w, nil, Handler{}).Start(t.Context()); !errors.Is(err, errDown) {
		t.Error(err)
	}
}

// TestSilence: without a head on the bus the store is read; when that fails too, the follower is
// blind after a minute, says so, and reads what it missed when it sees again.
func TestSilence(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, w *wire) {
		i := issue(t, ctx, w)
		f, e := follow(t, ctx, w)
		time.Sleep(5 * time.Second)
		w.set(func() { w.busDown = true })
		revoke(t, i, "p1", time.Hour)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if !f.Revoked("p1") || e.missed == 0 {
			t.Error("not read in silence")
		}
		w.set(func() { w.dbDown = true })
		time.Sleep(50 * time.Second)
		synctest.Wait()
		if f.Ready() != nil {
			t.Error("blind too early")
		}
		time.Sleep(20 * time.Second)
		synctest.Wait()
		if err := f.Ready(); err == nil || !slices.Equal(e.blind, []bool{true}) {
			t.Errorf("%v %v", err, e.blind)
		}
		w.set(func() { w.dbDown = false })
		revoke(t, i, "p2", time.Hour)
		w.set(func() { w.busDown = false })
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if !f.Revoked("p2") || f.Ready() != nil || !slices.Equal(e.blind, []bool{true, false}) {
			t.Errorf("%v %v", e.heard(), e.blind)
		}
	})
}

// TestIssuersAtOnce: numbers are given without holes. An issuer that finds the head beyond its number takes
// another, so there may be more of them than revocations.
func TestIssuersAtOnce(t *testing.T) {
	w := &wire{Memory: store.NewMemory()}
	var wg sync.WaitGroup
	for k := range 4 {
		i := NewIssuer(w, w, nil)
		wg.Go(func() {
			for n := range 20 {
				if err := i.Revoke(t.Context(), fmt.Sprintf("p%d-%d", k, n), "logout", time.Now().Add(time.Hour)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	f := NewFollower(w, w, nil, Handler{})
	stop, err := f.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	stop()
	if f.seen < 80 || len(f.revoked) != 80 {
		t.Errorf("seen %d, %d revoked", f.seen, len(f.revoked))
	}
	for n := uint64(1); n <= f.seen; n++ {
		if _, err := w.Get(t.Context(), bucket, numberKey(n)); err != nil {
			t.Errorf("number %d: %v", n, err)
		}
	}
}

func TestMalformed(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, w *wire) {
		var log strings.Builder
		e := &ear{extended: map[string]time.Time{}}
		f := NewFollower(w, w, slog.New(slog.NewTextHandler(&log, nil)), e.handler())
		stop, err := f.Start(ctx)
		if err != nil {
			t.Fatal(err)
		}
		defer stop()
		for _, s := range []string{subjectRevoked, subjectExtended, subjectHead} {
			for _, b := range []string{"", "{}", "null", `{"v":2,"n":1}`, `{"v":1,"n":1,"pseudonym":"a b","reason":"x","until":"2030-01-01T00:00:00Z"}`} {
				if err := w.Memory.Publish(s, []byte(b)); err != nil {
					t.Fatal(err)
				}
			}
		}
		synctest.Wait()
		if len(e.heard()) != 0 || len(e.extended) != 0 || !strings.Contains(log.String(), "malformed revocation") {
			t.Errorf("%v %v %s", e.heard(), e.extended, log.String())
		}
		i := NewIssuer(w, w, nil)
		for _, p := range []string{"", "a b", strings.Repeat("x", 129), "ä"} {
			if i.Revoke(ctx, p, "revoked", time.Now().Add(time.Hour)) == nil || i.Extend(p, time.Now()) == nil {
				t.Errorf("%q is taken", p)
			}
		}
	})
}

// TestOverNATS: the same over the embedded store.
func TestOverNATS(t *testing.T) {
	n, err := store.Embed(t.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	revoked := make(chan string, 1)
	f := NewFollower(n, n, nil, Handler{Revoked: func(r Revocation) { revoked <- r.Pseudonym }})
	stop, err := f.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	begun := time.Now()
	if err := NewIssuer(n, n, nil).Revoke(t.Context(), "p1", "revoked", time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	select {
	case p := <-revoked:
		t.Logf("%s revoked after %v", p, time.Since(begun))
	case <-time.After(5 * time.Second):
		t.Fatal("not told")
	}
}

// TestGapWithoutStore: heads come, so the bus is there, but the revocation that one of them tells of cannot
// be read. That too is blind after a minute.
func TestGapWithoutStore(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, w *wire) {
		i := issue(t, ctx, w)
		f, e := follow(t, ctx, w)
		time.Sleep(5 * time.Second)
		w.set(func() { w.lose = subjectRevoked })
		revoke(t, i, "p1", time.Hour)
		w.set(func() { w.dbDown = true })
		time.Sleep(50 * time.Second)
		synctest.Wait()
		if f.Ready() != nil {
			t.Error("blind too early")
		}
		time.Sleep(20 * time.Second)
		synctest.Wait()
		if err := f.Ready(); err == nil || !slices.Equal(e.blind, []bool{true}) {
			t.Errorf("%v %v, with a revocation unread for 70 s", err, e.blind)
		}
		w.set(func() { w.dbDown = false })
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if !f.Revoked("p1") || f.Ready() != nil || !slices.Equal(e.blind, []bool{true, false}) {
			t.Errorf("%v %v", e.heard(), e.blind)
		}
	})
}

// TestStoreComesBackLate: the bus lost a revocation, the store was away for long, and the node that answers
// then is behind. What it does not have yet is not passed over.
func TestStoreComesBackLate(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, w *wire) {
		i := issue(t, ctx, w)
		f, _ := follow(t, ctx, w)
		time.Sleep(5 * time.Second)
		w.set(func() { w.lose = subjectRevoked })
		revoke(t, i, "p1", time.Hour)
		w.set(func() { w.dbDown = true })
		time.Sleep(15 * time.Second)
		w.set(func() { w.dbDown, w.hidden = false, numberKey(1) })
		time.Sleep(5 * time.Second)
		w.set(func() { w.hidden = "" })
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if !f.Revoked("p1") {
			t.Error("passed over")
		}
	})
}
