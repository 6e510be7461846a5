package pushed

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"wicgate/internal/secret"
	"wicgate/internal/store"
	"wicgate/internal/token"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	north = secret.New([]byte("the secret of the north"))
	south = secret.New([]byte("the secret of the south"))
)

func of(list ...secret.Bytes) func() []secret.Bytes { return func() []secret.Bytes { return list } }

// wire is a bus and a store whose parts can fail.
type wire struct {
	*store.Memory
	mu   sync.Mutex
	lose bool // messages
	down bool // the store answers nothing, until the deadline
	slow bool // it answers a Get after a tenth of a second
	gets map[string]int
}

func newWire() *wire { return &wire{Memory: store.NewMemory(), gets: map[string]int{}} }

func (w *wire) set(f func()) { w.mu.Lock(); defer w.mu.Unlock(); f() }

func (w *wire) is(flag *bool) bool { w.mu.Lock(); defer w.mu.Unlock(); return *flag }

func (w *wire) asked() (n int) {
	w.set(func() {
		for _, k := range w.gets {
			n += k
		}
	})
	return n
}

func (w *wire) Publish(s string, data []byte) error {
	if w.is(&w.lose) {
		return nil // as core NATS does, which tells nobody
	}
	return w.Memory.Publish(s, data)
}

func (w *wire) Create(ctx context.Context, b, k string, v []byte, ttl time.Duration) (store.Revision, error) {
	if w.is(&w.down) {
		<-ctx.Done()
		return 0, ctx.Err()
	}
	return w.Memory.Create(ctx, b, k, v, ttl)
}

func (w *wire) Get(ctx context.Context, b, k string) (store.Entry, error) {
	w.set(func() { w.gets[k]++ })
	if w.is(&w.down) {
		<-ctx.Done()
		return store.Entry{}, ctx.Err()
	}
	if w.is(&w.slow) {
		time.Sleep(100 * time.Millisecond)
	}
	return w.Memory.Get(ctx, b, k)
}

func (w *wire) Scan(ctx context.Context, b string, each func(store.Entry) bool) error {
	if w.is(&w.down) {
		<-ctx.Done()
		return ctx.Err()
	}
	return w.Memory.Scan(ctx, b, each)
}

// bubble runs f with an issuer and what starts books, in virtual time.
func bubble(t *testing.T, f func(t *testing.T, w *wire, i *Issuer, book func(secrets ...secret.Bytes) *Book)) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		defer wg.Wait()
		defer cancel()
		w := newWire()
		i := NewIssuer(w, w, of(north), nil)
		wg.Go(func() { _ = i.Serve(ctx) })
		f(t, w, i, func(secrets ...secret.Bytes) *Book {
			t.Helper()
			b := NewBook(w, w, of(secrets...), nil)
			stop, err := b.Start(ctx)
			if err != nil {
				t.Fatal(err)
			}
			wg.Go(func() {
				defer stop()
				_ = b.Serve(ctx)
			})
			synctest.Wait()
			return b
		})
	})
}

func push(t *testing.T, i *Issuer, pseudonym string, life time.Duration) Credential {
	t.Helper()
	c, err := i.Push(t.Context(), pseudonym, time.Now().Add(life))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (c Credential) is(o Credential) bool {
	return c.Username == o.Username && c.Pseudonym == o.Pseudonym && c.Ends.Equal(o.Ends) && c.Password.Equal(o.Password)
}

// knows asks b until it is sure.
func knows(t *testing.T, b *Book, c Credential) bool {
	t.Helper()
	got, state := b.Get(c.Username)
	for n := 0; state == Asking; n++ {
		if n == 100 {
			t.Fatal("asking for ever")
		}
		time.Sleep(50 * time.Millisecond)
		got, state = b.Get(c.Username)
	}
	if state == Known && !got.is(c) {
		t.Errorf("%+v, want %+v", got, c)
	}
	return state == Known
}

// TestVector fixes the label, the derivation and the shape of what is sealed.
func TestVector(t *testing.T) {
	c := Credential{"p1.AAECAwQFBgcICQoLDA0ODw", secret.New([]byte("a password of no meaning, of 32.")), "pseudonym", time.Unix(1800000000, 0)}
	b, err := seal(secret.New([]byte("wicgate test secret")), c, [12]byte([]byte("twelve bytes")))
	if err != nil {
		t.Fatal(err)
	}
	want := `{"v":1,"username":"p1.AAECAwQFBgcICQoLDA0ODw","sealed":"dHdlbHZlIGJ5dGVz5k5ccM2hjibwPdJ2YuuhYgp1JXsD6F8CLAiIEStF8cUEMUNQFZOT0phC+xENu0O9sMjMkgEjZLiECPZpxcB1GalZ4gqZgIf3W6MLNo2GthNN35LjUJ1iNpxbVUuDR5V9D0d8VJwaIdEm8iIHbWcETbd4PBuD"}`
	if string(b) != want {
		t.Errorf("%s", b)
	}
	got, err := open([]secret.Bytes{south, secret.New([]byte("wicgate test secret"))}, []byte(want))
	if err != nil || !got.is(c) {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestUsername(t *testing.T) {
	seen := map[string]bool{}
	for range 100 {
		c := generate("p", time.Unix(1800000000, 5))
		if !IsUsername(c.Username) || len(c.Username) != 25 || len(c.Password.Expose()) != 32 || seen[c.Username] || c.Ends.Nanosecond() != 0 {
			t.Fatalf("%+v", c)
		}
		seen[c.Username] = true
		if _, _, ok, _ := token.ParseUsername([]byte(c.Username)); ok {
			t.Error("it is a token's")
		}
		if _, _, ok, _ := token.ParseEphemeral([]byte(c.Username)); ok {
			t.Error("it is an ephemeral one")
		}
	}
	for _, s := range []string{
		"", "p1.", "alice", "1800000000:p1.AAECAwQFBgcICQoLDA0ODw", "o1.AAECAwQFBgcICQoLDA0ODw", "p2.AAECAwQFBgcICQoLDA0ODw",
		"p1.AAECAwQFBgcICQoLDA0OD", "p1.AAECAwQFBgcICQoLDA0ODww", "p1.AAECAwQFBgcICQoLDA0ODx", "p1.AAECAwQFBgcICQoLDA0OD/", "p1.AAECAwQFBgcICQoLDA0OD\n",
	} {
		if IsUsername(s) {
			t.Errorf("%q is taken", s)
		}
	}
}

// TestSealed: what was sealed opens under its secret, for its username, untouched, and not otherwise.
func TestSealed(t *testing.T) {
	c := generate("p1", time.Now().Add(time.Hour))
	b, err := seal(north, c, [12]byte{1})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := open([]secret.Bytes{south, north}, b); err != nil || !got.is(c) {
		t.Errorf("%+v, %v", got, err)
	}
	for name, bad := range map[string][]byte{
		"nothing": nil, "no JSON": b[1:], "another version": bytes.Replace(b, []byte(`"v":1`), []byte(`"v":2`), 1),
		"another username": bytes.Replace(b, []byte(c.Username), []byte(generate("p1", c.Ends).Username), 1),
		"another shape":    bytes.Replace(b, []byte(c.Username), []byte("alice"), 1),
		"empty":            []byte(`{"v":1,"username":"` + c.Username + `","sealed":""}`),
		"long":             fmt.Appendf(nil, `{"v":1,"username":"%s","sealed":"%s"}`, c.Username, strings.Repeat("AAAA", 1000)),
	} {
		if got, err := open([]secret.Bytes{north}, bad); !errors.Is(err, errMalformed) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	if _, err := open([]secret.Bytes{south}, b); err == nil || !strings.Contains(err.Error(), "turn.secrets") {
		t.Errorf("under another secret: %v", err)
	}
	if _, err := open(nil, b); err == nil {
		t.Error("under no secret")
	}
}

func FuzzOpen(f *testing.F) {
	c := Credential{"p1.AAECAwQFBgcICQoLDA0ODw", secret.New([]byte("password")), "p1", time.Unix(1800000000, 0)} // the same in each worker
	b, err := seal(north, c, [12]byte{1})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"v":1,"username":"p1.AAECAwQFBgcICQoLDA0ODw","sealed":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := open([]secret.Bytes{south, north}, data)
		if err == nil && !got.is(c) {
			t.Errorf("%+v", got)
		}
		IsUsername(string(data))
	})
}

// TestPush: a book knows a credential when Push returns, and until it ends.
func TestPush(t *testing.T) {
	bubble(t, func(t *testing.T, w *wire, i *Issuer, book func(...secret.Bytes) *Book) {
		b, other := book(south, north), book(south)
		c := push(t, i, "p1", time.Hour)
		if got, state := b.Get(c.Username); state != Known || !got.is(c) {
			t.Errorf("%+v, %v", got, state)
		}
		bad := other.Stats().Bad // before Get, which has the store's asked too
		if _, state := other.Get(c.Username); state == Known || bad != 1 {
			t.Error("known under another secret")
		}
		time.Sleep(time.Hour)
		if got, state := b.Get(c.Username); state == Known && time.Now().Before(got.Ends) {
			t.Error("alive after its end")
		}
		push(t, i, "p2", time.Hour) // what has ended goes as the next comes
		if s := b.Stats(); s.Known != 1 || s.Told != 2 || s.Dropped != 0 {
			t.Errorf("%+v", s)
		}
		if w.asked() != 1 { // of other
			t.Errorf("the store was asked %d times", w.asked())
		}
		for _, bad := range []struct {
			pseudonym string
			life      time.Duration
		}{{"", time.Hour}, {"a b", time.Hour}, {"p", 0}, {"p", 48 * time.Hour}} {
			if _, err := i.Push(t.Context(), bad.pseudonym, time.Now().Add(bad.life)); err == nil {
				t.Errorf("pushed for %q, %v", bad.pseudonym, bad.life)
			}
		}
		if _, err := NewIssuer(w, w, of(), nil).Push(t.Context(), "p", time.Now().Add(time.Hour)); err == nil {
			t.Error("pushed without a secret")
		}
	})
}

// TestRestart: a TURN server that starts knows what was pushed before.
func TestRestart(t *testing.T) {
	bubble(t, func(t *testing.T, w *wire, i *Issuer, book func(...secret.Bytes) *Book) {
		c := push(t, i, "p1", time.Hour)
		synctest.Wait() // stored
		b := book(north)
		if got, state := b.Get(c.Username); state != Known || !got.is(c) || w.asked() != 0 {
			t.Errorf("%+v, %v, asked %d times", got, state, w.asked())
		}
		// The store is away at a start: it is read when a client comes.
		w.set(func() { w.down = true })
		b = book(north)
		w.set(func() { w.down = false })
		if _, state := b.Get(c.Username); state != Asking {
			t.Errorf("%v before the store has answered", state)
		}
		if !knows(t, b, c) || b.Stats().Found != 1 {
			t.Error("not read on a miss")
		}
		time.Sleep(time.Hour)
		if knows(t, book(north), c) {
			t.Error("stored beyond its end")
		}
	})
}

// TestLostMessage: what the bus has lost is read from the store, once for all who ask at a time.
func TestLostMessage(t *testing.T) {
	bubble(t, func(t *testing.T, w *wire, i *Issuer, book func(...secret.Bytes) *Book) {
		b := book(north)
		w.set(func() { w.lose, w.slow = true, true }) // slow, or the answer may be there before the tenth asks
		c := push(t, i, "p1", time.Hour)
		synctest.Wait()
		for range 10 {
			if _, state := b.Get(c.Username); state != Asking {
				t.Fatalf("%v", state)
			}
		}
		if !knows(t, b, c) || w.asked() != 1 {
			t.Errorf("asked %d times", w.asked())
		}
	})
}

// TestStoreAway: pushing goes on without the store; what is known goes on; what was not stored is, when the
// store is back.
func TestStoreAway(t *testing.T) {
	bubble(t, func(t *testing.T, w *wire, i *Issuer, book func(...secret.Bytes) *Book) {
		b := book(north)
		w.set(func() { w.down = true })
		begun := time.Now()
		c := push(t, i, "p1", time.Hour)
		if !knows(t, b, c) || time.Since(begun) > 0 {
			t.Error("Push waits for the store")
		}
		stranger := generate("p1", c.Ends)
		if _, state := b.Get(stranger.Username); state != Asking {
			t.Errorf("%v, the store being away", state)
		}
		time.Sleep(askTime + time.Millisecond)
		if s := b.Stats(); s.Failed != 1 || s.Missing != 0 {
			t.Errorf("%+v", s)
		}
		time.Sleep(10 * time.Second)
		w.set(func() { w.down = false })
		time.Sleep(saveTime + saveAgain)
		if !knows(t, book(north), c) {
			t.Error("never stored")
		}
	})
}

// TestFlood: hostile usernames make few questions, whatever the store does, cost no wait, and their memory
// is bounded; who is known is served meanwhile.
func TestFlood(t *testing.T) {
	for _, down := range []bool{false, true} {
		t.Run(fmt.Sprintf("store down %v", down), func(t *testing.T) {
			bubble(t, func(t *testing.T, w *wire, i *Issuer, book func(...secret.Bytes) *Book) {
				b := book(north)
				c := push(t, i, "p1", time.Hour)
				synctest.Wait()
				w.set(func() { w.down = down })
				const seconds = 20
				begun := time.Now()
				for range seconds * 100 {
					for range 50 {
						if _, state := b.Get(generate("x", c.Ends).Username); state == Known {
							t.Fatal("known")
						}
					}
					b.Get("alice")
					if _, state := b.Get(c.Username); state != Known {
						t.Fatalf("who is known is %v", state)
					}
					time.Sleep(10 * time.Millisecond)
					b.mu.Lock()
					n := len(b.absent[0]) + len(b.absent[1]) + len(b.asking)
					b.mu.Unlock()
					if n > 3*askRate*int(2*absentFor/time.Second) {
						t.Fatalf("%d remembered", n)
					}
				}
				if took := time.Since(begun); took != seconds*time.Second {
					t.Errorf("Get has waited: %v", took)
				}
				if n := w.asked(); n > (seconds+1)*askRate+askers || n < askers {
					t.Errorf("asked %d times in %d s", n, seconds)
				}
				if b.Stats().Limited == 0 {
					t.Error("none was turned away")
				}
			})
		})
	}
}

// TestAbsent: what the store does not have is not asked for again, for a while, and is known as soon as it is pushed.
func TestAbsent(t *testing.T) {
	bubble(t, func(t *testing.T, w *wire, i *Issuer, book func(...secret.Bytes) *Book) {
		b := book(north)
		c := generate("p1", time.Now().Add(time.Hour))
		for range 100 {
			if knows(t, b, c) {
				t.Fatal("known")
			}
			time.Sleep(10 * time.Millisecond)
		}
		if w.asked() != 1 {
			t.Errorf("asked %d times", w.asked())
		}
		time.Sleep(2 * absentFor)
		if knows(t, b, c) || w.asked() != 2 {
			t.Errorf("asked %d times later", w.asked())
		}
		m, err := seal(north, c, [12]byte{1})
		if err == nil {
			err = w.Publish(subject, m)
		}
		if err != nil || !knows(t, b, c) {
			t.Errorf("absent although pushed: %v", err)
		}
	})
}

// TestRoom: of too many the oldest go.
func TestRoom(t *testing.T) {
	bubble(t, func(t *testing.T, w *wire, i *Issuer, book func(...secret.Bytes) *Book) {
		b := book(north)
		b.room = 3
		var list []Credential
		for n := range 5 {
			list = append(list, push(t, i, fmt.Sprint("p", n), time.Hour))
		}
		synctest.Wait() // stored
		if s := b.Stats(); s.Known != 3 || s.Dropped != 2 || b.order.Len() != 3 {
			t.Errorf("%+v", s)
		}
		if _, state := b.Get(list[4].Username); state != Known {
			t.Error("the newest went")
		}
		if !knows(t, b, list[0]) { // the store has it
			t.Error("the oldest is lost")
		}
	})
}

// TestBadNews: a store that gives one credential for another's username, and rubbish on the bus.
func TestBadNews(t *testing.T) {
	bubble(t, func(t *testing.T, w *wire, i *Issuer, book func(...secret.Bytes) *Book) {
		b := book(north)
		c, other := generate("p1", time.Now().Add(time.Hour)), generate("p2", time.Now().Add(time.Hour))
		m, err := seal(north, other, [12]byte{1})
		if err == nil {
			_, err = w.Memory.Create(t.Context(), bucket, c.Username, m, time.Hour)
		}
		if err != nil || knows(t, b, c) || knows(t, b, other) {
			t.Errorf("known, or %v", err)
		}
		far := generate("p3", time.Now().Add(30*24*time.Hour))
		if m, err = seal(north, far, [12]byte{1}); err != nil || w.Publish(subject, m) != nil || w.Publish(subject, []byte("{")) != nil {
			t.Fatal(err)
		}
		if s := b.Stats(); s.Bad != 3 || s.Known != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// TestUnsavedIsBounded: with the store away for long the oldest are not stored.
func TestUnsavedIsBounded(t *testing.T) {
	i := NewIssuer(store.NewMemory(), store.NewMemory(), of(north), slog.New(slog.DiscardHandler))
	for n := range maxUnsaved + 7 {
		i.save(saving{username: fmt.Sprint(n)})
	}
	if len(i.unsaved) != maxUnsaved || i.unsaved[0].username != "7" || i.lost != 7 {
		t.Errorf("%d wait, %q first, %d lost", len(i.unsaved), i.unsaved[0].username, i.lost)
	}
}

// TestNATS runs it over the embedded NATS: there at once, after a restart of all, after a lost message, without
// the bus; and no file of the store holds a password.
func TestNATS(t *testing.T) {
	dir := t.TempDir()
	log := slog.New(slog.DiscardHandler)
	openBus := func() *store.NATS {
		t.Helper()
		n, err := store.Embed(dir, log)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	serve := func(parts ...func(context.Context) error) (stop func()) {
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		for _, p := range parts {
			wg.Go(func() { _ = p(ctx) })
		}
		return func() { cancel(); wg.Wait() }
	}
	n := openBus()
	i, b := NewIssuer(n, n, of(north), log), NewBook(n, n, of(north), log)
	unsubscribe, err := b.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	stop := serve(i.Serve, b.Serve)
	var list []Credential
	for range 20 {
		list = append(list, push(t, i, "p1", time.Hour))
	}
	for end := time.Now().Add(10 * time.Second); b.Stats().Told < 20 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	for _, c := range list {
		if got, state := b.Get(c.Username); state != Known || !got.is(c) {
			t.Fatalf("%v", state)
		}
	}
	unsubscribe()
	stop() // stores the rest
	n.Close()
	if _, state := b.Get(list[0].Username); state != Known {
		t.Error("forgotten with the bus")
	}
	if _, err := i.Push(t.Context(), "p1", time.Now().Add(time.Hour)); err == nil {
		t.Error("pushed without a bus")
	}

	files := 0
	err = filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		raw, err := os.ReadFile(name)
		if bytes.Contains(raw, []byte(list[0].Username)) {
			files++
		}
		for _, c := range list {
			p := c.Password.Expose()
			for _, form := range [][]byte{p, []byte(hex.EncodeToString(p)), []byte(base64.StdEncoding.EncodeToString(p))} {
				if bytes.Contains(raw, form) {
					t.Errorf("a password in %s", name)
				}
			}
		}
		return err
	})
	if err != nil || files == 0 {
		t.Errorf("%d files hold the username, so nothing was looked at; %v", files, err)
	}

	n = openBus()
	defer n.Close()
	restarted, late := NewBook(n, n, of(south, north), log), NewBook(n, n, of(north), log)
	if unsubscribe, err = restarted.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer unsubscribe()
	stop = serve(restarted.Serve, late.Serve) // late has not started: it hears nothing, and has read nothing
	defer stop()
	for _, c := range list {
		if _, state := restarted.Get(c.Username); state != Known {
			t.Errorf("%v after a restart", state)
		}
		if !knows(t, late, c) {
			t.Error("not read on a miss")
		}
	}
}
