package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

type engine interface {
	Store
	Bus
}

// late is how long after its time a key may still be seen. JetStream expires in whole seconds.
const late = 3 * time.Second

func TestMemory(t *testing.T) { contract(t, NewMemory()) }

func TestEmbedded(t *testing.T) {
	n, err := Embed(t.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	contract(t, n)
}

func TestThreeNodes(t *testing.T) { contract(t, cluster(t)) }

func TestRestartKeepsState(t *testing.T) {
	dir, log := t.TempDir(), slog.New(slog.DiscardHandler)
	n, err := Embed(dir, log)
	if err != nil {
		t.Fatal(err)
	}
	rev, err := n.Create(t.Context(), "users", "alice", []byte("v1"), 0)
	if err != nil {
		t.Fatal(err)
	}
	n.Close()
	n, err = Embed(dir, log)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	e, err := n.Get(t.Context(), "users", "alice")
	if err != nil || string(e.Value) != "v1" || e.Revision != rev {
		t.Errorf("after a restart: %+v, %v", e, err)
	}
}

// cluster starts three NATS servers on loopback and connects to one of them.
func cluster(t *testing.T) *NATS {
	var routes []string
	var ports []int
	for range 3 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
		routes = append(routes, fmt.Sprintf("nats://127.0.0.1:%d", ports[len(ports)-1]))
		l.Close()
	}
	var servers []*server.Server
	for i := range 3 {
		srv, err := server.NewServer(&server.Options{
			ServerName: fmt.Sprintf("n%d", i), Host: "127.0.0.1", Port: -1, JetStream: true, StoreDir: t.TempDir(), NoSigs: true, NoLog: true,
			Cluster: server.ClusterOpts{Name: "c", Host: "127.0.0.1", Port: ports[i]},
			Routes:  server.RoutesFromStr(strings.Join(routes, ",")),
		})
		if err != nil {
			t.Fatal(err)
		}
		srv.Start()
		servers = append(servers, srv)
		t.Cleanup(func() { srv.Shutdown(); srv.WaitForShutdown() })
	}
	if !servers[0].ReadyForConnections(10 * time.Second) {
		t.Fatal("cluster not ready")
	}
	for end := time.Now().Add(30 * time.Second); ; {
		n, err := Connect(servers[0].ClientURL(), "", 3)
		if err == nil {
			// The cluster elects a leader first; until then buckets are refused.
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			_, err = n.bucket(ctx, "probe")
			cancel()
			if err == nil {
				t.Cleanup(n.Close)
				return n
			}
			n.Close()
		}
		if time.Now().After(end) {
			t.Fatal("no leader after 30 s: ", err)
		}
	}
}

func contract(t *testing.T, e engine) {
	ctx := t.Context()
	t.Run("Store", func(t *testing.T) {
		rev, err := e.Create(ctx, "b", "k/ü\x00.*>", []byte("one"), 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := e.Create(ctx, "b", "k/ü\x00.*>", []byte("two"), 0); !errors.Is(err, ErrExists) {
			t.Errorf("second Create: %v, want ErrExists", err)
		}
		if _, err := e.Get(ctx, "b", "other"); !errors.Is(err, ErrNotFound) {
			t.Errorf("Get of nothing: %v", err)
		}
		got, err := e.Get(ctx, "b", "k/ü\x00.*>")
		if err != nil || string(got.Value) != "one" || got.Revision != rev || got.Key != "k/ü\x00.*>" {
			t.Errorf("Get = %+v, %v", got, err)
		}
		rev2, err := e.CompareAndSet(ctx, "b", "k/ü\x00.*>", []byte("three"), rev, 0)
		if err != nil || rev2 <= rev {
			t.Errorf("CompareAndSet: revision %d after %d, %v", rev2, rev, err)
		}
		if _, err := e.CompareAndSet(ctx, "b", "k/ü\x00.*>", []byte("four"), rev, 0); !errors.Is(err, ErrConflict) {
			t.Errorf("CompareAndSet with an old revision: %v, want ErrConflict", err)
		}
		if _, err := e.CompareAndSet(ctx, "b", "never", []byte("x"), 7, 0); !errors.Is(err, ErrNotFound) {
			t.Errorf("CompareAndSet of nothing: %v, want ErrNotFound", err)
		}
		if err := e.Delete(ctx, "b", "k/ü\x00.*>", rev); !errors.Is(err, ErrConflict) {
			t.Errorf("Delete with an old revision: %v, want ErrConflict", err)
		}
		if err := e.Delete(ctx, "b", "k/ü\x00.*>", rev2); err != nil {
			t.Errorf("Delete: %v", err)
		}
		if err := e.Delete(ctx, "b", "k/ü\x00.*>", rev2); !errors.Is(err, ErrNotFound) {
			t.Errorf("second Delete: %v, want ErrNotFound", err)
		}
		if _, err := e.CompareAndSet(ctx, "b", "k/ü\x00.*>", []byte("x"), rev2, 0); !errors.Is(err, ErrNotFound) {
			t.Errorf("CompareAndSet of a deleted key: %v, want ErrNotFound", err)
		}
		if _, err := e.Create(ctx, "b", "k/ü\x00.*>", []byte("again"), 0); err != nil {
			t.Errorf("Create after Delete: %v", err)
		}
	})
	t.Run("OneOfManyRedeems", func(t *testing.T) {
		rev, err := e.Create(ctx, "codes", "c1", nil, 60*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		won := make(chan int, 16)
		for i := range 16 {
			wg.Go(func() {
				if e.Delete(ctx, "codes", "c1", rev) == nil {
					won <- i
				}
			})
		}
		wg.Wait()
		if len(won) != 1 {
			t.Errorf("%d of 16 redeemed the code, want 1", len(won))
		}
	})
	t.Run("TTL", func(t *testing.T) {
		rev, err := e.Create(ctx, "ttl", "short", []byte("v"), time.Second)
		if err != nil {
			t.Fatal(err)
		}
		kept, err := e.Create(ctx, "ttl", "renewed", []byte("v"), time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := e.CompareAndSet(ctx, "ttl", "renewed", []byte("w"), kept, time.Hour); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(time.Second + late); ; time.Sleep(50 * time.Millisecond) {
			if _, err = e.Get(ctx, "ttl", "short"); errors.Is(err, ErrNotFound) {
				break
			}
			if time.Now().After(end) {
				t.Fatal("a key outlives its time to live by ", late)
			}
		}
		if _, err := e.CompareAndSet(ctx, "ttl", "short", []byte("x"), rev, 0); !errors.Is(err, ErrNotFound) {
			t.Errorf("CompareAndSet of an expired key: %v, want ErrNotFound", err)
		}
		if got, err := e.Get(ctx, "ttl", "renewed"); err != nil || string(got.Value) != "w" {
			t.Errorf("a renewed key: %+v, %v", got, err)
		}
	})
	t.Run("Scan", func(t *testing.T) {
		for _, k := range []string{"a", "b", "c"} {
			if _, err := e.Create(ctx, "scan", k, []byte(k), 0); err != nil {
				t.Fatal(err)
			}
		}
		got, _ := e.Get(ctx, "scan", "b")
		if err := e.Delete(ctx, "scan", "b", got.Revision); err != nil {
			t.Fatal(err)
		}
		var seen []string
		if err := e.Scan(ctx, "scan", func(x Entry) bool { seen = append(seen, x.Key+string(x.Value)); return true }); err != nil {
			t.Fatal(err)
		}
		slices.Sort(seen)
		if !slices.Equal(seen, []string{"aa", "cc"}) {
			t.Errorf("Scan saw %v", seen)
		}
		n := 0
		if err := e.Scan(ctx, "scan", func(Entry) bool { n++; return false }); err != nil || n != 1 {
			t.Errorf("Scan that stops: %d entries, %v", n, err)
		}
		if err := e.Scan(ctx, "empty", func(Entry) bool { t.Error("an entry in an empty bucket"); return true }); err != nil {
			t.Error(err)
		}
	})
	t.Run("Refused", func(t *testing.T) {
		for name, err := range map[string]error{
			"bucket":      second(e.Create(ctx, "B.*", "k", nil, 0)),
			"empty key":   second(e.Create(ctx, "b", "", nil, 0)),
			"long key":    second(e.Create(ctx, "b", strings.Repeat("k", 257), nil, 0)),
			"half second": second(e.Create(ctx, "b", "k", nil, 1500*time.Millisecond)),
			"subject":     e.Publish("a.*", nil),
		} {
			if err == nil {
				t.Errorf("%s: not refused", name)
			}
		}
		if _, err := e.Create(ctx, "b", "big", make([]byte, MaxValue+1), 0); !errors.Is(err, ErrTooLarge) {
			t.Errorf("large value: %v", err)
		}
		if _, err := e.Create(ctx, "b", "largest", make([]byte, MaxValue), 0); err != nil {
			t.Errorf("largest value: %v", err)
		}
		if err := e.Publish("a", make([]byte, MaxValue+1)); !errors.Is(err, ErrTooLarge) {
			t.Errorf("large message: %v", err)
		}
	})
	t.Run("Bus", func(t *testing.T) {
		got := make(chan string, 10)
		stop, err := e.Subscribe("x.*.z", func(m Message) {
			if m.Respond != nil {
				if err := m.Respond([]byte("re:" + string(m.Data))); err != nil {
					t.Error(err)
				}
				return
			}
			got <- m.Subject + "=" + string(m.Data)
		})
		if err != nil {
			t.Fatal(err)
		}
		for i := range 5 {
			if err := e.Publish("x.y.z", fmt.Append(nil, i)); err != nil {
				t.Fatal(err)
			}
		}
		if err := e.Flush(ctx); err != nil {
			t.Fatal(err)
		}
		for _, other := range []string{"x.y", "x.y.z.w", "y.y.z"} {
			if err := e.Publish(other, []byte("stray")); err != nil {
				t.Fatal(err)
			}
		}
		for i := range 5 {
			select {
			case s := <-got:
				if s != fmt.Sprintf("x.y.z=%d", i) {
					t.Errorf("message %d is %s", i, s)
				}
			case <-time.After(5 * time.Second):
				t.Fatal("message lost: ", i)
			}
		}
		answer, err := e.Request(ctx, "x.q.z", []byte("hi"))
		if err != nil || string(answer) != "re:hi" {
			t.Errorf("Request = %q, %v", answer, err)
		}
		stop()
		if _, err := e.Request(ctx, "x.q.z", nil); !errors.Is(err, ErrNoResponder) {
			t.Errorf("Request to nobody: %v, want ErrNoResponder", err)
		}
		mute, err := e.Subscribe("mute", func(Message) {})
		if err != nil {
			t.Fatal(err)
		}
		defer mute()
		short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		defer cancel()
		if _, err := e.Request(short, "mute", nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Request without an answer: %v, want DeadlineExceeded", err)
		}
		if len(got) != 0 {
			t.Errorf("stray message %s", <-got)
		}
	})
}

func second[T any](_ T, err error) error { return err }
