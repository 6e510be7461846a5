package acme

import (
	"bytes"
	"errors"
	"io/fs"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"wicgate/internal/secret"
	"wicgate/internal/store"
)

var (
	quiet  = slog.New(slog.DiscardHandler)
	first  = secret.New([]byte("the first of two secrets"))
	second = secret.New([]byte("the second of two secrets"))
)

func open(t testing.TB, st store.Store, secrets ...secret.Bytes) *vault {
	t.Helper()
	v, err := newVault(st, secrets, quiet)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// TestVault holds what certmagic.Storage promises, on both engines.
func TestVault(t *testing.T) {
	t.Run("memory", func(t *testing.T) { contract(t, store.NewMemory()) })
	t.Run("embedded", func(t *testing.T) {
		n, err := store.Embed(t.TempDir(), quiet)
		if err != nil {
			t.Fatal(err)
		}
		defer n.Close()
		contract(t, n)
	})
}

func contract(t *testing.T, st store.Store) {
	ctx := t.Context()
	v, other := open(t, st, first), open(t, st, first)
	if _, err := v.Load(ctx, "certificates/ca/a/a.key"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nothing there: %v", err)
	}
	if err := v.Delete(ctx, "certificates"); err != nil {
		t.Errorf("delete nothing: %v", err)
	}
	long := "acme/" + strings.Repeat("x", 600) + "/users/default.key"
	for _, path := range []string{"certificates/ca/a/a.key", "certificates/ca/a/a.crt", "certificates/ca/b/b.crt", "certificates/cb/a/a.crt", long} {
		for _, value := range []string{"old", "value of " + path} {
			if err := v.Store(ctx, path, []byte(value)); err != nil {
				t.Fatal(err)
			}
		}
		b, err := other.Load(ctx, path)
		if err != nil || string(b) != "value of "+path {
			t.Errorf("%s: %q, %v", path, b, err)
		}
	}
	if st, err := v.Stat(ctx, "certificates/ca/a/a.key"); err != nil || !st.IsTerminal || st.Size != int64(len("value of certificates/ca/a/a.key")) || time.Since(st.Modified) > time.Minute {
		t.Errorf("%+v, %v", st, err)
	}
	if st, err := v.Stat(ctx, "certificates/ca"); err != nil || st.IsTerminal || st.Modified.IsZero() {
		t.Errorf("a folder: %+v, %v", st, err)
	}
	for path, want := range map[string]bool{"certificates": true, "certificates/ca/a": true, "certificates/c": false, "certificates/ca/a/a.key/x": false, "x": false} {
		if v.Exists(ctx, path) != want {
			t.Errorf("%s exists: %v", path, !want)
		}
	}
	for _, c := range []struct {
		path      string
		recursive bool
		want      string
	}{
		{"certificates", false, "certificates/ca certificates/cb"},
		{"certificates/ca", true, "certificates/ca/a certificates/ca/a/a.crt certificates/ca/a/a.key certificates/ca/b certificates/ca/b/b.crt"},
		{"", false, "acme certificates"},
	} {
		got, err := v.List(ctx, c.path, c.recursive)
		if err != nil || strings.Join(got, " ") != c.want {
			t.Errorf("list %q: %q, %v", c.path, got, err)
		}
	}
	if _, err := v.List(ctx, "certificates/c", true); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("list nothing: %v", err)
	}
	if err := v.Delete(ctx, "certificates/ca"); err != nil {
		t.Fatal(err)
	}
	if got, err := v.List(ctx, "certificates", true); err != nil || !slices.Equal(got, []string{"certificates/cb", "certificates/cb/a", "certificates/cb/a/a.crt"}) {
		t.Errorf("after delete: %q, %v", got, err)
	}
	if err := v.Store(ctx, "big", make([]byte, store.MaxValue)); !errors.Is(err, store.ErrTooLarge) {
		t.Errorf("a value of %d bytes: %v", store.MaxValue, err)
	}
	if err := v.Store(ctx, strings.Repeat("p", maxPath+1), nil); err == nil {
		t.Error("a path without a bound")
	}
}

// TestVaultSeals: a reader of the bus learns nothing, and a writer can put nothing there.
func TestVaultSeals(t *testing.T) {
	st := store.NewMemory()
	v := open(t, st, first)
	const pem = "-----BEGIN EC PRIVATE KEY-----"
	for _, path := range []string{"certificates/ca/a/a.key", "certificates/ca/b/b.key"} {
		if err := v.Store(t.Context(), path, []byte(pem)); err != nil {
			t.Fatal(err)
		}
	}
	var all []store.Entry
	if err := st.Scan(t.Context(), bucket, func(e store.Entry) bool { all = append(all, e); return true }); err != nil || len(all) != 2 {
		t.Fatalf("%d entries, %v", len(all), err)
	}
	for _, e := range all {
		for _, bad := range []string{"PRIVATE", "certificates", "a.key"} {
			if strings.Contains(e.Key, bad) || bytes.Contains(e.Value, []byte(bad)) {
				t.Errorf("the store holds %q", bad)
			}
		}
	}
	if bytes.Equal(all[0].Value[1:13], all[1].Value[1:13]) {
		t.Error("a nonce twice")
	}

	// Rotation: the new secret before the old opens all; the old alone does not open what the new seals.
	both := open(t, st, second, first)
	if b, err := both.Load(t.Context(), "certificates/ca/a/a.key"); err != nil || string(b) != pem {
		t.Errorf("after rotation: %q, %v", b, err)
	}
	if err := both.Store(t.Context(), "certificates/ca/a/a.key", []byte("new")); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Load(t.Context(), "certificates/ca/a/a.key"); !errors.Is(err, errSealed) || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without the new secret: %v", err)
	}
	if !v.Exists(t.Context(), "certificates/ca/a/a.key") {
		t.Error("what cannot be opened counts as not there, and would be replaced")
	}
	if _, err := v.List(t.Context(), "certificates", true); !errors.Is(err, errSealed) {
		t.Errorf("list: %v", err)
	}

	// One value in another's place.
	swapped := open(t, st, first, second)
	e, err := st.Get(t.Context(), bucket, keyOf("certificates/ca/b/b.key"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := st.Create(t.Context(), bucket, keyOf("certificates/ca/c/c.key"), e.Value, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := swapped.Load(t.Context(), "certificates/ca/c/c.key"); !errors.Is(err, errSealed) {
		t.Errorf("a value in another's place: %v", err)
	}
	if _, err := newVault(st, nil, quiet); err == nil {
		t.Error("a vault without a secret")
	}
}

// TestVaultForgets: leftovers end, accounts do not.
func TestVaultForgets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := open(t, store.NewMemory(), first)
		lives := map[string]time.Duration{
			"rw_test_1": time.Hour, "acme/ca/challenge_tokens/a.json": time.Hour, failures + "a": 720 * time.Hour,
			"certificates/ca/a/a.key": 9600 * time.Hour,
		}
		for path := range lives {
			if err := v.Store(t.Context(), path, nil); err != nil {
				t.Fatal(err)
			}
		}
		if err := v.Store(t.Context(), "acme/ca/users/default/default.key", nil); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		for _, life := range []time.Duration{time.Hour, 720 * time.Hour, 9600 * time.Hour} {
			for before, when := range []time.Duration{life - time.Second, life + time.Second} {
				time.Sleep(time.Until(start.Add(when)))
				for path, l := range lives {
					if l == life && v.Exists(t.Context(), path) != (before == 0) {
						t.Errorf("%s after %v", path, when)
					}
				}
			}
		}
		if !v.Exists(t.Context(), "acme/ca/users/default/default.key") {
			t.Error("the account is gone")
		}
	})
}

// TestVaultLocks: one of many has a lock; it outlasts its life while it is held, and not much longer
// than its holder.
func TestVaultLocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := store.NewMemory()
		nodes := []*vault{open(t, st, first), open(t, st, first), open(t, st, first)}
		held, longest := 0, 0
		done := make(chan error)
		for _, v := range nodes {
			go func() {
				done <- func() error {
					if err := v.Lock(t.Context(), "issue"); err != nil {
						return err
					}
					held++ // the lock guards it, which the race detector sees by the store's own
					longest = max(longest, held)
					time.Sleep(5 * lockLife)
					held--
					return v.Unlock(t.Context(), "issue")
				}()
			}()
		}
		for range nodes {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		if longest != 1 {
			t.Errorf("%d nodes had the lock at once", longest)
		}
		if err := nodes[0].Unlock(t.Context(), "issue"); err == nil {
			t.Error("unlocked what it does not hold")
		}

		// A holder that is gone: its lock is there and nobody renews it.
		if _, err := st.Create(t.Context(), bucket, lockOf("issue"), nil, lockLife); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if err := nodes[1].Lock(t.Context(), "issue"); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(start); d < lockLife || d > lockLife+2*lockPoll {
			t.Errorf("waited %v for a holder that is gone", d)
		}

		// A lock that another took: its holder finds out and does not free it.
		e, err := st.Get(t.Context(), bucket, lockOf("issue"))
		if err != nil {
			t.Fatal(err)
		}
		if err := st.Delete(t.Context(), bucket, e.Key, e.Revision); err != nil {
			t.Fatal(err)
		}
		if err := nodes[2].Lock(t.Context(), "issue"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(lockLife)
		if err := nodes[1].Unlock(t.Context(), "issue"); err != nil {
			t.Error(err)
		}
		if _, err := st.Get(t.Context(), bucket, lockOf("issue")); err != nil {
			t.Errorf("the other's lock: %v", err)
		}
		if err := nodes[2].Unlock(t.Context(), "issue"); err != nil {
			t.Error(err)
		}
	})
	goleak.VerifyNone(t)
}

// FuzzVaultOpen: nothing but what was sealed is opened.
func FuzzVaultOpen(f *testing.F) {
	v := open(f, store.NewMemory(), first, second)
	key := keyOf("a/b")
	good := v.seal(key, item{"a/b", []byte("value"), time.Unix(1, 0)})
	for _, b := range [][]byte{good, nil, {format}, good[:13], good[:len(good)-1], append([]byte{2}, good[1:]...), v.seal(key, item{"another", nil, time.Unix(1, 0)}), bytes.Repeat([]byte{format}, 60)} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		it, err := v.open(key, b)
		// Each process of a fuzzing run has sealed the same anew.
		if bytes.Equal(b, good) && err != nil || err == nil && (it.path != "a/b" || string(it.value) != "value") {
			t.Errorf("%x: %q, %v", b, it.path, err)
		}
	})
}
