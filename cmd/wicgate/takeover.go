package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"wicgate/internal/admin"
	"wicgate/internal/life"
	"wicgate/internal/listen"
	"wicgate/internal/takeover"
	"wicgate/turn"
	"wicgate/waf"
)

// succession is how this process takes over from another one, and another one from it
// (docs/adr/0015-takeover.md). A process that has been taken over from is an elder: it keeps the
// clients on connections until they end, answers at a socket of another name, and is asked by the
// process that is in its place.
type succession struct {
	lock     *os.File      // of the data folder; an elder has it no more
	serving  chan struct{} // closed once this process serves, which is at once unless it takes over
	begin    func() error  // opens the door and closes serving
	ready    func()        // tells those who have started it
	door     *admin.Server // nil until begin, or if it could not be opened
	observer *admin.Observer
	quit     context.CancelFunc // ends this process

	taker                      *takeover.Taker // nil = this process begins anew
	heritage, observerHeritage *listen.Heritage

	giving sync.Mutex   // held by the one takeover that is under way, and by a reload
	moving sync.RWMutex // held while nothing may change here, since it would be lost
	gone   atomic.Bool  // another process has taken over

	nextMu sync.Mutex // guards the following
	next   int        // the process that was started, or has taken over
	failed string     // why nothing came of it
}

// prepare makes what the others need. ctx ends with the one that is returned, or by quit.
func (h *house) prepare(ctx context.Context) context.Context {
	h.serving = make(chan struct{})
	ctx, h.quit = context.WithCancel(ctx)
	h.closers = append(h.closers, h.quit)
	return ctx
}

// onceServing is a part that has nothing to do before.
func (h *house) onceServing(serve func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		select {
		case <-h.serving:
			return serve(ctx)
		case <-ctx.Done():
			return nil
		}
	}
}

// The names of the descriptors that go along.
const (
	lockSocket     = "lock"
	observerSocket = "observer"
)

// follow asks the process that runs with the data folder, and takes its listening sockets.
func (h *house) follow(ctx context.Context, within time.Duration) error {
	conn, err := admin.Client{Dir: h.data}.TakeOver(ctx)
	if err != nil {
		return err
	}
	version, revision := build()
	h.taker, err = takeover.Take(conn, takeover.Hello{
		State: turn.StateVersion, Program: strings.TrimSpace(version + " " + revision), Roles: h.roles, PID: os.Getpid(), Within: seconds(within),
	})
	if err != nil {
		return fmt.Errorf("not taken over, the other process goes on: %w", err)
	}
	count := map[string]int{}
	var roles, observer []listen.Inherited
	for _, s := range h.taker.Sockets {
		network, at, _ := strings.Cut(s.Name, " ")
		addr, parse := netip.ParseAddrPort(at)
		switch {
		case network == lockSocket:
			h.lock = s.File
			continue
		case parse != nil:
			err = errors.Join(err, fmt.Errorf("takeover: socket %q is unknown", s.Name), s.File.Close())
		case network == observerSocket:
			observer = append(observer, listen.Inherited{Network: "tcp", Addr: addr, File: s.File})
		default:
			roles = append(roles, listen.Inherited{Network: network, Addr: addr, Number: count[network], File: s.File})
			count[network]++
		}
	}
	h.heritage, h.observerHeritage = listen.NewHeritage(roles), listen.NewHeritage(observer)
	h.closers = append(h.closers, h.heritage.Close, h.observerHeritage.Close, func() { h.taker.Close() }) //nolint:errcheck // it is over
	if err == nil && h.lock == nil {
		err = errors.New("takeover: the data folder's lock has not come")
	}
	if err != nil {
		h.close()
		return err
	}
	h.parts = append(h.parts, life.Part{Name: "elders", Serve: h.onceServing(h.watchElders)})
	return nil
}

// takeOver fetches the TURN sessions, and begins to serve. From the point of no return on nothing is an
// error any more: calls matter more.
func (h *house) takeOver(ctx context.Context, restore func(state []byte, relays []*os.File) error) error {
	defer context.AfterFunc(ctx, func() { h.taker.Close() })() //nolint:errcheck // Restore says so
	begin := time.Now()
	err := h.taker.Restore(func(b []byte, relays []*os.File) error {
		revoked, state, err := splitState(b)
		if err != nil {
			for _, f := range relays {
				_ = f.Close() // the other process has it still
			}
			return err
		}
		for pseudonym, until := range revoked {
			if err := h.news.issuer.Revoke(ctx, pseudonym, waf.ReasonRevoked, until); err != nil {
				h.log.Error("a revocation was not taken over", "pseudonym", pseudonym, "error", err)
			}
		}
		return restore(state, relays)
	})
	if err != nil {
		return fmt.Errorf("not taken over, the other process goes on: %w", err)
	}
	took := time.Since(begin)
	if err := claim(h.lock); err != nil {
		h.log.Warn("the data folder's lock names another process", "error", err)
	}
	if err := h.begin(); err != nil {
		h.log.Error("this process has no admin socket", "error", err)
	}
	h.operator.turn.Recheck()
	h.log.Info("taken over", "sessions", h.operator.turn.Stats().Allocations, "took", took.Round(time.Millisecond))
	h.ready()
	return nil
}

// TakeOver implements [admin.Upgrader].
func (h *house) TakeOver(ctx context.Context, c *net.UnixConn) {
	stop := context.AfterFunc(ctx, func() { c.Close() }) //nolint:errcheck // Give says so
	defer stop()
	g := &giver{house: h}
	err := takeover.Give(c, g)
	if g.locked {
		defer h.giving.Unlock()
	}
	if err != nil {
		h.log.Warn("another process has not taken over", "error", err)
		return
	}
	h.log.Info("another process has taken over", "pid", g.hello.PID, "program", g.hello.Program, "connections", h.operator.turn.Connections())
	if err := c.Close(); err != nil {
		h.log.Debug("takeover", "error", err)
	}
	// The rest of this process's life.
	tick := time.NewTicker(elderTick)
	defer tick.Stop()
	for h.operator.turn.Connections() > 0 && time.Now().Before(g.end) {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
	h.quit()
}

// elderTick is how often an elder looks whether it has something to do still.
const elderTick = time.Second

// giver is a house that another process takes over from.
type giver struct {
	*house
	hello  takeover.Hello
	end    time.Time // of what cannot move
	locked bool      // h.giving
}

// mayLeave says why nobody can take over from this process.
func (h *house) mayLeave() error {
	h.drain.mu.Lock()
	draining := h.drain.on
	h.drain.mu.Unlock()
	switch {
	case !slices.Equal(h.roles, []string{"turn"}):
		return fmt.Errorf("this process runs %s, and only turn alone can be taken over from; restart it, after \"wicgate drain\"", strings.Join(h.roles, ", "))
	case h.bus != nil && h.file.Bus.URL == "":
		return errors.New("the bus is inside this process, and only one at a time can have it; set bus.url, or restart after \"wicgate drain\"")
	case h.gone.Load():
		return fmt.Errorf("process %d has taken over from this one already", h.Process().Next)
	case draining:
		return errors.New("this process drains; take that back with \"wicgate drain --stop\" first")
	}
	return nil
}

// Offer implements [takeover.Giver].
func (g *giver) Offer(hello takeover.Hello) (out []takeover.Socket, err error) {
	if g.locked = g.giving.TryLock(); !g.locked {
		return nil, errors.New("another process is about to take over, or the configuration is read again just now; try once more")
	}
	if err := g.mayLeave(); err != nil {
		return nil, err
	}
	if !slices.Equal(hello.Roles, g.roles) {
		return nil, fmt.Errorf("the new process would run %s, and this one runs %s", strings.Join(hello.Roles, ", "), strings.Join(g.roles, ", "))
	}
	if hello.State != turn.StateVersion {
		return nil, fmt.Errorf("sessions are told in version %d here and %d there; restart, after \"wicgate drain\"", turn.StateVersion, hello.State)
	}
	g.hello = hello
	out = append(out, takeover.Socket{Name: lockSocket, Conn: g.lock})
	if g.observer != nil {
		out = append(out, takeover.Socket{Name: observerSocket + " " + g.file.Admin.Listen.String(), Conn: g.observer.Listener()})
	}
	for _, l := range g.operator.turn.Listening() {
		out = append(out, takeover.Socket{Name: l.Network + " " + l.Addr.String(), Conn: l.Conn})
	}
	return out, nil
}

// Pause implements [takeover.Giver].
func (g *giver) Pause() (state []byte, relays []syscall.Conn, err error) {
	g.moving.Lock()
	defer func() {
		if err != nil {
			g.door.Unalias(elderSocket(os.Getpid()))
			g.moving.Unlock()
		}
	}()
	if err := g.mayLeave(); err != nil { // the new process has built for seconds
		return nil, nil, err
	}
	if err := g.door.Alias(elderSocket(os.Getpid())); err != nil {
		return nil, nil, err
	}
	b, relays, err := g.operator.turn.Pause()
	if err != nil {
		return nil, nil, err
	}
	var revoked map[string]time.Time
	if g.bus == nil { // else the new process has heard of them itself
		revoked = g.news.follower.Revocations()
	}
	state = joinState(revoked, b)
	clear(b) // keys
	return state, relays, nil
}

// joinState puts revocations in front of the state of the TURN server.
func joinState(revoked map[string]time.Time, state []byte) []byte {
	head, err := json.Marshal(revoked)
	if err != nil {
		panic(err) // of strings and times
	}
	out := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(head)+len(state)), uint32(len(head)))
	return append(append(out, head...), state...)
}

func splitState(b []byte) (revoked map[string]time.Time, state []byte, err error) {
	if len(b) < 4 || uint64(binary.BigEndian.Uint32(b)) > uint64(len(b)-4) {
		return nil, nil, errors.New("takeover: the state is cut off")
	}
	head, state := b[4:4+binary.BigEndian.Uint32(b)], b[4+binary.BigEndian.Uint32(b):]
	if err := json.Unmarshal(head, &revoked); err != nil {
		return nil, nil, fmt.Errorf("takeover: revocations: %w", err)
	}
	return revoked, state, nil
}

// Resume implements [takeover.Giver].
func (g *giver) Resume() {
	g.operator.turn.Resume()
	g.door.Unalias(elderSocket(os.Getpid()))
	g.moving.Unlock()
}

// Leave implements [takeover.Giver].
func (g *giver) Leave() {
	g.end = time.Now().Add(time.Duration(g.hello.Within) * time.Second)
	g.operator.turn.Leave(g.end)
	g.door.Rename(elderSocket(os.Getpid()))
	g.nextMu.Lock()
	g.next, g.failed = g.hello.PID, ""
	g.nextMu.Unlock()
	g.gone.Store(true)
	if g.observer != nil {
		g.observer.Leave()
	}
	_ = g.lock.Close() // the new process holds it; were it to be killed, one that begins anew could not else
	g.moving.Unlock()
}

// staying begins a change that must not be lost between two processes; the caller calls end when it is
// done.
func (h *house) staying() (end func(), err error) {
	before := h.gone.Load()
	h.moving.RLock()
	if !before && h.gone.Load() {
		h.moving.RUnlock()
		return nil, errors.New("another process has taken over just now")
	}
	return h.moving.RUnlock, nil
}

// elderSocket is the name of the socket of a process that has been taken over from.
func elderSocket(pid int) string { return "admin-" + strconv.Itoa(pid) + ".sock" }

// elders are the processes that this one, or one before it, has taken over from and that live still.
func (h *house) elders() (out []admin.Client) {
	if h.gone.Load() {
		return nil // this one is asked, and asks nobody
	}
	files, err := os.ReadDir(h.data)
	if err != nil {
		h.log.Error("who else lives here", "error", err)
	}
	for _, f := range files {
		pid, ok := strings.CutPrefix(strings.TrimSuffix(f.Name(), ".sock"), "admin-")
		if n, err := strconv.Atoi(pid); !ok || err != nil || f.Name() != elderSocket(n) {
			continue
		}
		out = append(out, admin.Client{Dir: h.data, Socket: f.Name()})
	}
	return out
}

// askElders asks each, for at most 2 s, and calls each with what they answer. The error says who has not
// done it.
func askElders[T any](ctx context.Context, h *house, method, path string, body any, each func(T)) (failed error) {
	for _, c := range h.elders() {
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		var answer T
		err := c.Do(ctx, method, path, body, &answer)
		cancel()
		var refused *admin.Error
		switch {
		case err == nil:
			each(answer)
		case errors.As(err, &refused) && refused.Status == http.StatusNotFound:
		case errors.Is(err, syscall.ECONNREFUSED):
			// It was killed. If it is not, and about to begin, nobody has its socket's name yet.
			_ = os.Remove(h.path("", c.Socket))
		default:
			h.log.Warn("a process that has been taken over from does not do what is asked", "socket", c.Socket, "asked", path, "error", err)
			failed = errors.Join(failed, fmt.Errorf("the process at %s, which has been taken over from: %w", c.Socket, err))
		}
	}
	return failed
}

// watchElders waits until the last elder has ended.
func (h *house) watchElders(ctx context.Context) error {
	tick := time.NewTicker(5 * time.Second)
	defer tick.Stop()
	for {
		if h.gone.Load() { // what this one has heard of them is the next one's
			<-ctx.Done()
			return nil
		}
		_ = askElders(ctx, h, http.MethodGet, "/v1/process", nil, func(admin.Process) {}) // takes away those that were killed
		if len(h.elders()) == 0 && !h.gone.Load() {
			break
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
	h.operator.turn.Alone()
	h.log.Info("the processes before this one have ended")
	<-ctx.Done()
	return nil
}

func (h *house) eldersSessions() (out []admin.Session) {
	_ = askElders(context.Background(), h, http.MethodGet, "/v1/turn/sessions", nil, func(l admin.SessionList) { out = append(out, l.Sessions...) })
	return out
}

func (h *house) killWithElders(id string) (killed bool) {
	_ = askElders(context.Background(), h, http.MethodDelete, "/v1/turn/sessions/"+id, nil, func(struct{}) { killed = true })
	return killed
}

func (h *house) revokeWithElders(ctx context.Context, pseudonym string) (n int, err error) {
	err = askElders(ctx, h, http.MethodPost, "/v1/revoke", map[string]string{"pseudonym": pseudonym}, func(r admin.Revoked) { n += r.Allocations })
	return n, err
}
