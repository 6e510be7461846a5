package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

// fakeTURN has sessions by their ID.
type fakeTURN struct {
	mu       sync.Mutex
	sessions []Session
}

func (f *fakeTURN) Sessions() []Session {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]Session(nil), f.sessions...)
}

func (f *fakeTURN) Kill(id string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, s := range f.sessions {
		if s.ID == id {
			f.sessions = append(f.sessions[:i], f.sessions[i+1:]...)
			return true
		}
	}
	return false
}

type revoker func(ctx context.Context, kind, name string) (Revoked, error)

func (f revoker) Revoke(ctx context.Context, kind, name string) (Revoked, error) {
	return f(ctx, kind, name)
}

// start serves cfg in a folder of its own until the test ends.
func start(t *testing.T, cfg Config) Client {
	t.Helper()
	t.Cleanup(func() { goleak.VerifyNone(t) })
	cfg.Dir = t.TempDir()
	if cfg.Health == nil {
		cfg.Health = &Health{}
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve = %v", err)
		}
	})
	return Client{Dir: cfg.Dir}
}

func TestStatsOverTheSocket(t *testing.T) {
	defer goleak.VerifyNone(t)
	dir := t.TempDir()
	// What a killed process leaves must not be in the way.
	if err := os.WriteFile(filepath.Join(dir, SocketName), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	n := 0
	s, err := New(Config{Dir: dir, Health: &Health{}, Stats: func() map[string]any { n++; return map[string]any{"turn": map[string]int{"allocations": n}} }})
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(filepath.Join(dir, SocketName)); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("socket mode %v, %v", st.Mode(), err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Serve(ctx) }()
	c := Client{Dir: dir}
	for want := 1; want <= 2; want++ {
		var got map[string]map[string]int
		if err := c.Do(t.Context(), "GET", "/v1/stats", nil, &got); err != nil || got["turn"]["allocations"] != want {
			t.Errorf("stats = %v, %v, want %d", got, err, want)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Serve = %v", err)
	}
	err = c.Do(t.Context(), "GET", "/v1/stats", nil, &struct{}{})
	if err == nil || !strings.Contains(err.Error(), "nobody answers in "+dir+": no such file or directory\n  hint: is wicgate running with --data "+dir) {
		t.Errorf("after the end: %v", err)
	}
}

// TestDeadSocket: a killed process leaves its socket behind.
func TestDeadSocket(t *testing.T) {
	dir := t.TempDir()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, SocketName)})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	_ = l.Close() // the file stays, nobody listens
	err = Client{Dir: dir}.Do(t.Context(), "GET", "/v1/stats", nil, &struct{}{})
	if err == nil || !strings.Contains(err.Error(), "connection refused\n  hint: wicgate was there and did not end in order") {
		t.Errorf("%v", err)
	}
}

func TestSessions(t *testing.T) {
	begin := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	turn := &fakeTURN{sessions: []Session{
		{ID: "b", Pseudonym: "p1", Since: begin.Add(time.Minute)}, {ID: "a", Pseudonym: "p2", Since: begin}, {ID: "c", Pseudonym: "p1", Since: begin},
	}}
	c := start(t, Config{TURN: func() TURN { return turn }})
	ids := func(path string) (out []string) {
		var list SessionList
		if err := c.Do(t.Context(), "GET", path, nil, &list); err != nil {
			t.Fatal(err)
		}
		for _, s := range list.Sessions {
			out = append(out, s.ID)
		}
		return out
	}
	if d := cmp.Diff([]string{"a", "c", "b"}, ids("/v1/turn/sessions")); d != "" {
		t.Error("oldest first:", d)
	}
	if d := cmp.Diff([]string{"c", "b"}, ids("/v1/turn/sessions?pseudonym=p1")); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string(nil), ids("/v1/turn/sessions?pseudonym=nobody")); d != "" {
		t.Error(d)
	}
	var one Session
	if err := c.Do(t.Context(), "GET", "/v1/turn/sessions/c", nil, &one); err != nil || one.ID != "c" || !one.Since.Equal(begin) {
		t.Errorf("%+v, %v", one, err)
	}
	var fields map[string]any
	if err := c.Do(t.Context(), "GET", "/v1/turn/sessions/c", nil, &fields); err != nil || fields["credential_ends"] != nil || fields["tenant"] == nil {
		t.Errorf("of a credential without an end: %v, %v", fields, err)
	}
	var killed struct{ Killed string }
	if err := c.Do(t.Context(), "DELETE", "/v1/turn/sessions/c", nil, &killed); err != nil || killed.Killed != "c" {
		t.Errorf("%+v, %v", killed, err)
	}
	if d := cmp.Diff([]string{"a", "b"}, ids("/v1/turn/sessions")); d != "" {
		t.Error(d)
	}
	for _, method := range []string{"GET", "DELETE"} {
		err := c.Do(t.Context(), method, "/v1/turn/sessions/c", nil, &one)
		var refused *Error
		if !errors.As(err, &refused) || refused.Status != http.StatusNotFound || refused.Message != `no TURN session "c"` || !strings.Contains(refused.Hint, "wicgate turn sessions") {
			t.Errorf("%s: %v", method, err)
		}
	}
}

func TestTooManySessionsForOneAnswer(t *testing.T) {
	turn := &fakeTURN{sessions: make([]Session, maxSessions+3)}
	c := start(t, Config{TURN: func() TURN { return turn }})
	var list SessionList
	if err := c.Do(t.Context(), "GET", "/v1/turn/sessions", nil, &list); err != nil || len(list.Sessions) != maxSessions || list.Left != 3 {
		t.Errorf("%d sessions, %d left, %v", len(list.Sessions), list.Left, err)
	}
}

// What one answer may hold the client takes, even if each session has all the permissions and channels that it can.
func TestLongestAnswerIsTaken(t *testing.T) {
	const each = 64 // turn.Config.MaxPermissions, MaxChannels
	peer := "[2001:db8:ffff:ffff:ffff:ffff:ffff:ffff]:65535"
	long := Session{ID: "18446744073709551615", Pseudonym: strings.Repeat("p", 508), Tenant: strings.Repeat("t", 127), Client: peer, Transport: "dtls", Relayed: []string{peer, peer},
		Since: time.Now(), Expires: time.Now(), Credential: "ephemeral", CredentialEnds: time.Now()}
	for range each {
		long.Permissions, long.Channels = append(long.Permissions, peer), append(long.Channels, peer)
	}
	b, err := json.Marshal(long)
	if err != nil {
		t.Fatal(err)
	}
	if n := maxSessions * (len(b) + 1); n > maxAnswer {
		t.Errorf("%d sessions of %d bytes are %d bytes, and the client takes %d", maxSessions, len(b), n, maxAnswer)
	}
}

func TestRevoke(t *testing.T) {
	c := start(t, Config{Revoker: func() Revoker {
		return revoker(func(_ context.Context, kind, name string) (Revoked, error) {
			switch name {
			case "mallory":
				return Revoked{}, fmt.Errorf("user %q: %w", name, ErrNotFound)
			case "slow":
				return Revoked{}, errors.New("the store did not answer")
			}
			return Revoked{As: "as " + kind, LogIns: len(kind), Allocations: len(name)}, nil
		})
	}})
	for _, q := range []struct {
		body any
		want string // of the error, or of the answer
	}{
		{map[string]string{"name": "alice"}, "{As:as  LogIns:0 Allocations:5}"},
		{map[string]string{"user": "alice"}, "{As:as user LogIns:4 Allocations:5}"},
		{map[string]string{"pseudonym": "xy"}, "{As:as pseudonym LogIns:9 Allocations:2}"},
		{map[string]string{"name": "mallory"}, "404 user \"mallory\": not found\n  hint: \"wicgate turn sessions\" shows"},
		{map[string]string{"name": "slow"}, "503 revoke \"slow\": the store did not answer\n  hint: what was reached has ended"},
		{map[string]string{"name": "a", "user": "b"}, "400 want one of name, user and pseudonym"},
		{map[string]string{}, "400 want one of"},
		{map[string]string{"name": strings.Repeat("x", 129)}, "400 want one of"},
		{map[string]string{"nome": "alice"}, "400 the body is no JSON of the form"},
		{map[string]string{"name": strings.Repeat("x", 5000)}, "413 the body has more than 4096 bytes"},
		{[]int{1}, "400 the body is no JSON"},
	} {
		var done Revoked
		err := c.Do(t.Context(), "POST", "/v1/revoke", q.body, &done)
		got := fmt.Sprintf("%+v", done)
		var refused *Error
		if errors.As(err, &refused) {
			got = fmt.Sprintf("%d %v", refused.Status, err)
		} else if err != nil {
			t.Errorf("%v: %v", q.body, err)
		}
		if !strings.HasPrefix(got, q.want) {
			t.Errorf("%.60v: %s, want %s", q.body, got, q.want)
		}
	}
}

// TestNothingBehindTheDoor: what does not run here is told in words.
// TestSlowRevocation: one that takes longer than an answer may is told of, not cut off.
func TestSlowRevocation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		_, mux := newAPI(Config{Log: slog.New(slog.DiscardHandler), Health: &Health{}, Revoker: func() Revoker {
			return revoker(func(ctx context.Context, _, _ string) (Revoked, error) {
				<-ctx.Done()
				return Revoked{LogIns: 3}, ctx.Err()
			})
		}})
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequest("POST", "/v1/revoke", strings.NewReader(`{"user":"alice"}`)))
		if w.Code != http.StatusServiceUnavailable || !strings.Contains(w.Body.String(), "run it again") || time.Since(begin) >= answerTime {
			t.Errorf("after %v: %d %s", time.Since(begin), w.Code, w.Body)
		}
	})
}

func TestNothingBehindTheDoor(t *testing.T) {
	c := start(t, Config{TURN: func() TURN { return nil }, Revoker: func() Revoker { return nil }})
	for _, q := range []struct{ method, path, want string }{
		{"GET", "/v1/turn/sessions", "no TURN server runs in this process\n  hint: name the data folder"},
		{"GET", "/v1/turn/sessions/x", "no TURN server runs"},
		{"DELETE", "/v1/turn/sessions/x", "no TURN server runs"},
		{"POST", "/v1/revoke", "nothing that runs in this process can revoke\n  hint: name the data folder"},
		{"GET", "/v1/other", "nothing is here for GET /v1/other\n  hint: is this wicgate of another version"},
		{"GET", "/metrics", "nothing is here for GET /metrics"},
	} {
		if err := c.Do(t.Context(), q.method, q.path, map[string]string{"name": "x"}, &struct{}{}); err == nil || !strings.HasPrefix(err.Error(), q.want) {
			t.Errorf("%s %s: %v", q.method, q.path, err)
		}
	}
}

func TestHealth(t *testing.T) {
	h := &Health{}
	var bus, keys error
	h.Watch("bus", func(context.Context) error { return bus })
	h.Watch("keys", func(context.Context) error { return Degraded(keys) })
	h.Watch("core", func(ctx context.Context) error {
		if _, ok := ctx.Deadline(); !ok {
			t.Error("a check without a deadline")
		}
		return nil
	})
	forget := func() { // what was held for the next 2 s
		for _, p := range h.parts {
			p.at = time.Time{}
		}
	}
	c := start(t, Config{Health: h})
	ready := func(want string) {
		t.Helper()
		forget()
		var b []byte
		err := c.Do(t.Context(), "GET", "/readyz", nil, &b)
		var refused *Error
		if errors.As(err, &refused) {
			if refused.Status != http.StatusServiceUnavailable {
				t.Errorf("status %d", refused.Status)
			}
		} else if err != nil || !strings.HasPrefix(want, "ready") {
			t.Errorf("%s, %v", b, err)
		}
		if got := h.Ready(t.Context()).String(); got != want {
			t.Errorf("got  %q\nwant %q", got, want)
		}
		if err := c.Do(t.Context(), "GET", "/healthz", nil, &b); err != nil || string(b) != "alive\n" {
			t.Errorf("healthz: %s, %v", b, err)
		}
	}
	ready("not ready\nstarting: not all parts serve yet\n")
	h.Serving()
	ready("ready\n")
	bus = errors.New("not connected to nats://10.0.0.1")
	ready("not ready\nbus: not connected to nats://10.0.0.1\n")
	keys = errors.New("turn-keys.json is gone")
	ready("not ready\nbus: not connected to nats://10.0.0.1\nkeys: degraded: turn-keys.json is gone\n")
	bus = nil
	ready("ready\nkeys: degraded: turn-keys.json is gone\n")
	keys = nil
	ready("ready\n")
	h.Leave(true)
	ready("not ready\ndraining: no new calls; those under way may end\n")
	h.Leave(false)
	ready("ready\n")
	h.Draining()
	ready("not ready\ndraining: no new calls; those under way may end\n")
	h.Serving() // too late
	ready("not ready\ndraining: no new calls; those under way may end\n")
}

// TestHealthAsksSeldom: however often somebody looks, a part is asked once in 2 s.
func TestHealthAsksSeldom(t *testing.T) {
	h := &Health{}
	n := 0
	h.Watch("x", func(context.Context) error { n++; return nil })
	h.Serving()
	for range 50 {
		h.Ready(t.Context())
	}
	if n != 1 {
		t.Errorf("asked %d times", n)
	}
}

func TestObserver(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	h := &Health{}
	metrics := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "wicgate_up 1\n") })
	o, err := NewObserver("admin.listen", netip.MustParseAddrPort("127.0.0.1:0"), nil, h, metrics, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- o.Serve(ctx) }()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for _, q := range []struct {
		path, accept string
		code         int
		want         string
	}{
		{"/metrics", "", 200, "wicgate_up 1\n"},
		{"/healthz", "", 200, "alive\n"},
		{"/readyz", "", 503, "not ready\nstarting: not all parts serve yet\n"},
		{"/readyz", "application/json", 503, `{"ready":false,"reasons":["starting: not all parts serve yet"]}` + "\n"},
		// The operator's door is not here.
		{"/v1/stats", "", 404, ""}, {"/v1/turn/sessions", "", 404, ""}, {"/", "", 404, ""}, {"/debug/pprof/", "", 404, ""},
	} {
		req, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+o.Addr().String()+q.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Accept", q.accept)
		res, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil || res.StatusCode != q.code || q.want != "" && string(b) != q.want {
			t.Errorf("%s: %d %s, %v", q.path, res.StatusCode, b, err)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestConnectionsAreBounded: with every slot taken a connection waits, and is served when one is free.
func TestConnectionsAreBounded(t *testing.T) {
	c := start(t, Config{Stats: func() map[string]any { return nil }})
	var held []net.Conn
	for range maxConns {
		conn, err := net.Dial("unix", filepath.Join(c.Dir, SocketName))
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, conn)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := c.Do(ctx, "GET", "/v1/stats", nil, &struct{}{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("over the bound: %v", err)
	}
	for _, conn := range held {
		conn.Close()
	}
	if err := c.Do(t.Context(), "GET", "/v1/stats", nil, &struct{}{}); err != nil {
		t.Errorf("after: %v", err)
	}
}

func TestWhoMayComeIn(t *testing.T) {
	d := door{uid: 1000}
	for _, q := range []struct {
		who  caller
		want bool
	}{
		{caller{uid: 1000, known: true}, true},
		{caller{uid: 0, known: true}, true},
		{caller{uid: 1001, known: true}, false},
		{caller{uid: 65534, known: true}, false},
		{caller{}, true}, // a system that does not tell
		{caller{err: errors.New("x")}, false},
	} {
		if got := d.allowed(q.who); got != q.want {
			t.Errorf("%+v: %v", q.who, got)
		}
	}
	if d.allowed(d.note(t.Context(), &net.TCPConn{}).Value(callerKey{}).(caller)) {
		t.Error("TCP comes in")
	}
}

func TestLongPathIsExplained(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("d", 120))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := New(Config{Dir: dir, Health: &Health{}}); err == nil || !strings.Contains(err.Error(), "shorter name") {
		t.Errorf("New = %v", err)
	}
}

// lines collects a log.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// fakeDrainer notes what it is asked for.
type fakeDrainer struct {
	d      Drain
	within time.Duration
}

func (f *fakeDrainer) Drain(within time.Duration) { f.d.Draining, f.within = true, within }
func (f *fakeDrainer) Undrain()                   { f.d.Draining = false }
func (f *fakeDrainer) Drained() Drain             { return f.d }

func TestDrain(t *testing.T) {
	f := &fakeDrainer{d: Drain{Sessions: 3, Oldest: 7, Left: 9}}
	c := start(t, Config{Drainer: f})
	for _, q := range []struct {
		method string
		body   any
		want   string // of the answer or the error
		within time.Duration
	}{
		{"GET", nil, "{Draining:false Sessions:3 Oldest:7 Left:9}", 0},
		{"POST", map[string]int{"within_seconds": 600}, "{Draining:true Sessions:3 Oldest:7 Left:9}", 10 * time.Minute},
		{"POST", map[string]int{"within_seconds": 86401}, "want {\"within_seconds\": n} with n from 0 to 86400", 10 * time.Minute},
		{"POST", map[string]int{"within_seconds": -1}, "want {", 10 * time.Minute},
		{"POST", map[string]int{"within": 1}, "want {", 10 * time.Minute},
		{"DELETE", nil, "{Draining:false Sessions:3 Oldest:7 Left:9}", 10 * time.Minute},
	} {
		var d Drain
		err := c.Do(t.Context(), q.method, "/v1/drain", q.body, &d)
		got := fmt.Sprintf("%+v", d)
		if err != nil {
			got = err.Error()
		}
		if !strings.HasPrefix(got, q.want) || f.within != q.within {
			t.Errorf("%s %v: %s, within %v", q.method, q.body, got, f.within)
		}
	}
}

// TestSocketNames: under a second name the socket leaves the first to another process, whose file stays.
func TestSocketNames(t *testing.T) {
	for _, removed := range []bool{false, true} {
		cfg := Config{Dir: t.TempDir(), Health: &Health{}}
		first, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- first.Serve(ctx) }()
		if err := first.Alias("old.sock"); err != nil {
			t.Fatal(err)
		}
		first.Unalias("old.sock")
		if err := first.Alias("old.sock"); err != nil {
			t.Fatal(err)
		}
		first.Rename("old.sock")
		second, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		var all []byte
		if err := (Client{Dir: cfg.Dir, Socket: "old.sock"}).Do(t.Context(), "GET", "/healthz", nil, &all); err != nil {
			t.Errorf("by the second name: %v", err)
		}
		if removed { // as a process does that finds nobody there
			if err := os.Remove(filepath.Join(cfg.Dir, "old.sock")); err != nil {
				t.Error(err)
			}
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if list, err := filepath.Glob(filepath.Join(cfg.Dir, "*")); err != nil || len(list) != 1 || filepath.Base(list[0]) != SocketName {
			t.Errorf("left are %v, %v", list, err)
		}
		_ = second.l.Close() // it has served nobody
	}
}

// TestTakeoverOfWhom: the keys of clients go to a process of the same user alone, root's neither.
func TestTakeoverOfWhom(t *testing.T) {
	a, mux := newAPI(Config{Health: &Health{}, Upgrade: struct{ Upgrader }{}})
	defer a.end()
	own := caller{uid: os.Geteuid(), known: true}
	for _, q := range []struct {
		who  any
		want int
	}{
		{nil, http.StatusForbidden},
		{caller{uid: own.uid + 1, known: true}, http.StatusForbidden},
		{caller{uid: own.uid}, http.StatusForbidden},
		{caller{uid: own.uid, known: true, err: errors.New("unknown")}, http.StatusForbidden},
		{own, http.StatusUpgradeRequired}, // without the header
	} {
		r := httptest.NewRequestWithContext(context.WithValue(t.Context(), callerKey{}, q.who), http.MethodPost, "/v1/takeover", http.NoBody)
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, r)
		if w.Code != q.want {
			t.Errorf("%+v: %d, want %d", q.who, w.Code, q.want)
		}
	}
}
