package turn

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"wicgate/internal/listen"
	"wicgate/internal/takeover"
	"wicgate/internal/turnclient"
	"wicgate/internal/wire/stun"
)

// giver is what cmd/wicgate is, for one Server.
type giver struct {
	*Server
	end time.Time
}

func (g giver) Offer(takeover.Hello) (out []takeover.Socket, err error) {
	for _, l := range g.Listening() {
		out = append(out, takeover.Socket{Name: l.Network + " " + l.Addr.String(), Conn: l.Conn})
	}
	return out, nil
}
func (g giver) Leave() { g.Server.Leave(g.end) }

// ends is a connected pair of Unix sockets.
func ends(t *testing.T) (a, b *net.UnixConn) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // of the test's own folder
	if a, err = net.DialUnix("unix", nil, l.Addr().(*net.UnixAddr)); err != nil {
		t.Fatal(err)
	}
	if b, err = l.AcceptUnix(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() }) //nolint:errcheck // they may be closed
	return a, b
}

// takeOver makes a Server that takes over from b's, with b's configuration but for change. It returns
// a bench without a running Server and the error where it does not come to that, and what became of
// b's side.
func (b *bench) takeOver(change ...func(*Config)) (next *bench, err, given error) {
	b.t.Helper()
	t := b.t.(*testing.T)
	oldEnd, newEnd := ends(t)
	give := make(chan error, 1)
	go func() { give <- takeover.Give(oldEnd, giver{b.s, time.Now().Add(time.Minute)}) }()
	taker, err := takeover.Take(newEnd, takeover.Hello{State: StateVersion})
	if err != nil {
		t.Fatal(err)
	}
	var sockets []listen.Inherited
	count := map[string]int{}
	for _, s := range taker.Sockets {
		network, addr, _ := strings.Cut(s.Name, " ")
		sockets = append(sockets, listen.Inherited{Network: network, Addr: netip.MustParseAddrPort(addr), Number: count[network], File: s.File})
		count[network]++
	}
	cfg := b.s.cfg
	cfg.Heritage = listen.NewHeritage(sockets)
	restored := make(chan error, 1)
	cfg.Takeover = func(_ context.Context, restore func([]byte, []*os.File) error) error {
		err := taker.Restore(restore)
		restored <- err
		return err
	}
	for _, f := range change {
		f(&cfg)
	}
	next = &bench{t: t, ring: b.ring, log: b.log, fails: len(change) > 0}
	s, err := New(cfg)
	if err == nil {
		next.serve(s)
		err = <-restored
	}
	if err != nil {
		taker.Close() //nolint:errcheck // it may have failed already
	}
	return next, err, <-give
}

// flow sends numbered packets both ways between a client with a channel and a peer, one a millisecond.
type flow struct {
	stop func() (sent, out, in int) // sent each way; arrived at the peer, at the client
}

func (b *bench) flow(c *turnclient.Client) *flow {
	b.t.Helper()
	t := b.t
	ctx, cancel := context.WithCancel(context.Background())
	p, err := net.ListenUDP("udp4", &net.UDPAddr{IP: loopback.AsSlice()})
	if err != nil {
		t.Fatal(err)
	}
	a, err := c.Allocate(ctx, 0)
	if err != nil {
		t.Fatal(err)
	}
	peer := p.LocalAddr().(*net.UDPAddr).AddrPort()
	if _, err := c.ChannelBind(ctx, peer); err != nil {
		t.Fatal(err)
	}
	var all, readers sync.WaitGroup
	sent := 0
	out, in := map[uint32]bool{}, map[uint32]bool{}
	all.Go(func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for ctx.Err() == nil {
			<-tick.C
			sent++
			m := binary.BigEndian.AppendUint32(nil, uint32(sent))
			if err := c.Send(peer, m); err != nil {
				t.Error(err)
			}
			if _, err := p.WriteToUDPAddrPort(m, a.Relayed); err != nil {
				t.Error(err)
			}
		}
	})
	readers.Go(func() {
		m := make([]byte, 64)
		for {
			n, _, err := p.ReadFromUDPAddrPort(m)
			if err != nil {
				return
			}
			if n == 4 {
				out[binary.BigEndian.Uint32(m)] = true
			}
		}
	})
	until, enough := context.WithCancel(context.Background())
	readers.Go(func() {
		for {
			m, err := c.Receive(until)
			if err != nil {
				return
			}
			if len(m.Data) == 4 && m.Channel != 0 {
				in[binary.BigEndian.Uint32(m.Data)] = true
			}
		}
	})
	return &flow{func() (int, int, int) {
		cancel()
		all.Wait()
		time.Sleep(200 * time.Millisecond) // for the last to arrive
		enough()
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		readers.Wait()
		return sent, len(out), len(in)
	}}
}

// TestTakeover: the clients on UDP go on in another Server without losing a packet; those on
// connections stay where they are and go on too, and calls between both.
func TestTakeover(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	tcp, trust := secured(t)
	old := start(t, tcp)
	ctx := timeout(t)
	udp := old.client(turnclient.TokenUsername(old.issue("p1", time.Hour)))
	tls := old.stream("tls", trust, turnclient.TokenUsername(old.issue("p2", time.Hour)))
	other := old.client(turnclient.AccessToken(old.issue("p3", time.Hour)))
	at, err := other.Allocate(ctx, 0)
	if err != nil {
		t.Fatal(err)
	}
	dtls := old.secure(trust, turnclient.TokenUsername(old.issue("p5", time.Hour)))
	moving, staying, secure := old.flow(udp), old.flow(tls), old.flow(dtls)
	time.Sleep(100 * time.Millisecond)

	next, err, given := old.takeOver()
	if err != nil || given != nil {
		t.Fatal(err, given)
	}
	time.Sleep(300 * time.Millisecond)
	sent, out, in := moving.stop()
	if sent != out || sent != in || sent < 100 {
		t.Errorf("UDP: of %d packets each way %d arrived at the peer and %d at the client", sent, out, in)
	}
	t.Logf("UDP: %d packets each way, %d lost; ", sent, 2*sent-out-in)
	if sent, out, in := staying.stop(); sent != out || sent != in {
		t.Errorf("TLS: of %d packets each way %d arrived at the peer and %d at the client", sent, out, in)
	}
	if sent, out, in := secure.stop(); sent != out || sent != in {
		t.Errorf("DTLS: of %d packets each way %d arrived at the peer and %d at the client", sent, out, in)
	}
	if a, b := old.s.Stats().Allocations, next.s.Stats().Allocations; a != 2 || b != 2 || old.s.Connections() != 2 {
		t.Errorf("%d allocations stayed, %d moved, %d connections", a, b, old.s.Connections())
	}
	if list := next.s.Sessions("p1"); len(list) != 1 || list[0].Client != udp.LocalAddr() || len(list[0].Channels) != 1 || list[0].ToPeerPackets != uint64(sent) || list[0].ToClientPackets != uint64(sent) {
		t.Errorf("%+v", list)
	}
	// Whoever moved: Refresh, permissions, another allocation on the same port of the new server, and
	// a port that is in use is not given out twice.
	if _, err := udp.Refresh(ctx, time.Hour); err != nil {
		t.Error(err)
	}
	if err := udp.CreatePermission(ctx, at.Relayed); err != nil {
		t.Error(err)
	}
	if _, err := next.client(turnclient.TokenUsername(next.issue("p1", time.Hour))).Allocate(ctx, 0); err != nil {
		t.Error(err)
	}
	if n := next.s.Revoke("p1"); n != 2 {
		t.Errorf("%d revoked", n)
	}
	if _, err := udp.Refresh(ctx, time.Hour); turnclient.Code(err) != 437 {
		t.Errorf("after the revocation: %v", err)
	}
	// Whoever stayed lives on with the old one, new connections come to the new one.
	if _, err := tls.Refresh(ctx, time.Hour); err != nil {
		t.Error(err)
	}
	fresh := next.stream("tcp", trust, turnclient.TokenUsername(next.issue("p4", time.Hour)))
	if _, err := fresh.Allocate(ctx, 0); err != nil || next.s.Connections() != 1 {
		t.Errorf("%v, %d connections", err, next.s.Connections())
	}
	if _, _, err := old.s.Pause(); err == nil {
		t.Error("given twice")
	}
	// The new one can be followed in turn.
	third, err, given := next.takeOver()
	if err != nil || given != nil {
		t.Fatal(err, given)
	}
	if _, err := other.Refresh(ctx, time.Hour); err != nil {
		t.Error(err)
	}
	if _, err := dtls.Refresh(ctx, time.Hour); err != nil {
		t.Errorf("DTLS, two processes on: %v", err)
	}
	third.s.Alone()
	old.stop()
	next.stop()
	if _, err := other.Refresh(ctx, 0); err != nil {
		t.Errorf("after the others have ended: %v", err)
	}
	if s := third.s.Stats(); s.Ended["shutdown"] != 0 || s.Ended["deleted"] != 1 || s.Allocations != 0 {
		t.Errorf("%+v", s.Ended)
	}
}

// TestTakeoverFails: at each step, and the old Server goes on without a lost packet.
func TestTakeoverFails(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	old := start(t)
	ctx := timeout(t)
	c := old.client(turnclient.TokenUsername(old.issue("p1", time.Hour)))
	f := old.flow(c)
	reserve := old.client(turnclient.TokenUsername(old.issue("p2", time.Hour)))
	if _, err := reserve.Allocate(ctx, 0, func(m []byte) []byte { return stun.AppendAttr(m, stun.AttrEvenPort, []byte{0x80}) }); err != nil {
		t.Fatal(err)
	}
	take := func(h takeover.Hello) (*takeover.Taker, chan error, error) {
		oldEnd, newEnd := ends(t)
		give := make(chan error, 1)
		go func() { give <- takeover.Give(oldEnd, giver{Server: old.s}) }()
		taker, err := takeover.Take(newEnd, h)
		if err == nil {
			for _, s := range taker.Sockets {
				s.File.Close()
			}
		}
		return taker, give, err
	}
	drop := func(files []*os.File) {
		for _, f := range files {
			f.Close()
		}
	}
	for name, fail := range map[string]func(*takeover.Taker) error{
		"dies before it is ready": func(k *takeover.Taker) error { return k.Close() },
		"cannot restore": func(k *takeover.Taker) error {
			if err := k.Restore(func(_ []byte, files []*os.File) error { drop(files); return errors.New("no room") }); err == nil || err.Error() != "no room" {
				return fmt.Errorf("Restore: %w", err)
			}
			return nil
		},
		"dies with all in hands": func(k *takeover.Taker) error {
			_ = k.Restore(func(_ []byte, files []*os.File) error { drop(files); return k.Close() })
			return nil
		},
	} {
		k, give, err := take(takeover.Hello{State: StateVersion})
		if err != nil {
			t.Fatal(name, err)
		}
		time.Sleep(20 * time.Millisecond)
		if err := fail(k); err != nil {
			t.Error(name, err)
		}
		if err := <-give; err == nil {
			t.Errorf("%s: the old one has given", name)
		}
		k.Close() //nolint:errcheck // it may be closed
	}
	// A configuration that lacks a listener, or a name that holds sessions.
	for want, change := range map[string]func(*Config){
		"which this one would not":                               func(c *Config) { c.Listen = []netip.AddrPort{netip.MustParseAddrPort("127.0.0.2:0")} },
		`"turn.ims.test", which is not in the new configuration`: func(c *Config) { c.Name = "other.test" },
	} {
		if _, err, given := old.takeOver(change); given == nil || err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v; the old one says %v", err, given)
		}
	}
	time.Sleep(50 * time.Millisecond)
	if sent, out, in := f.stop(); sent != out || sent != in {
		t.Errorf("of %d packets each way %d arrived at the peer and %d at the client", sent, out, in)
	}
	if _, err := c.Refresh(ctx, 0); err != nil {
		t.Error(err)
	}
	if old.s.Stats().Allocations != 1 {
		t.Errorf("%d allocations", old.s.Stats().Allocations)
	}
}

// TestPauseHoldsConnections: who is on a connection could change what moves, by a ticket or a reservation;
// that waits. The end of the process is not waited for.
func TestPauseHoldsConnections(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	tcp, trust := secured(t)
	b := start(t, tcp, func(c *Config) { c.Drain = time.Second })
	ctx := timeout(t)
	clients := []*turnclient.Client{
		b.stream("tls", trust, turnclient.TokenUsername(b.issue("p1", time.Hour))),
		b.stream("tcp", trust, turnclient.TokenUsername(b.issue("p2", time.Hour))),
	}
	for _, c := range clients {
		if _, err := c.Allocate(ctx, 0); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := b.s.Pause(); err != nil {
		t.Fatal(err)
	}
	answers := make(chan error, len(clients))
	for _, c := range clients {
		go func() {
			_, err := c.Refresh(ctx, time.Hour)
			answers <- err
		}()
	}
	select {
	case err := <-answers:
		t.Errorf("answered in a pause: %v", err)
	case <-time.After(100 * time.Millisecond): // of real sockets
	}
	b.s.Resume()
	for range clients {
		if err := <-answers; err != nil {
			t.Error(err)
		}
	}
	ended := make(chan struct{})
	go func() { b.stop(); close(ended) }()
	b.eventually("it drains", func(Stats) bool {
		_, _, err := b.s.Pause()
		if err == nil {
			b.s.Resume()
		}
		return err != nil
	})
	for _, a := range b.s.Sessions("") {
		b.s.Kill(a.ID)
	}
	select {
	case <-ended:
		if n := b.s.Stats().Ended["killed"]; n != 2 {
			t.Errorf("%d killed while draining", n)
		}
	case <-time.After(3 * time.Second):
		t.Error("an operator waits for the end")
	}
	<-ended
}

// TestForwardHolds: a process that has been taken over from and hangs does not hold up the one that reads,
// and one that is alone with its clients on DTLS, whom nobody reads for it, ends them.
func TestForwardHolds(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	tcp, trust := secured(t)
	old := start(t, tcp)
	ctx := timeout(t)
	c := old.secure(trust, turnclient.TokenUsername(old.issue("p1", time.Hour)))
	if _, err := c.Allocate(ctx, 0); err != nil {
		t.Fatal(err)
	}
	next, err, given := old.takeOver()
	if err != nil || given != nil {
		t.Fatal(err, given)
	}
	if _, err := c.Refresh(ctx, time.Hour); err != nil {
		t.Fatal(err)
	}
	// Another way, at whose end nobody reads.
	stuck := &Server{listeners: old.s.listeners, dtls: old.s.dtls}
	if _, err := stuck.offerForward(); err != nil {
		t.Fatal(err)
	}
	defer stuck.forwards.close(true)
	next.s.forwards.mu.Lock()
	next.s.forwards.to = append(next.s.forwards.to, stuck.forwards.next)
	next.s.forwards.mu.Unlock()
	stuck.forwards.next = nil // its owner closes it
	from := netip.MustParseAddrPort("192.0.2.1:4000")
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 10000 {
			next.s.forward(0, from, make([]byte, 1000))
		}
	}()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		t.Fatal("whoever reads is held up")
	}
	if _, err := c.Refresh(ctx, time.Hour); err != nil {
		t.Error(err)
	}
	next.stop()
	old.eventually("clients who cannot be heard have ended", func(s Stats) bool { return s.Allocations == 0 && old.s.Connections() == 0 })
}

// TestWrongSocket: a relay socket that is not the one of the state joins no two calls.
func TestWrongSocket(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	old := start(t)
	ctx := timeout(t)
	for _, p := range []string{"p1", "p2"} {
		if _, err := old.client(turnclient.TokenUsername(old.issue(p, time.Hour))).Allocate(ctx, 0); err != nil {
			t.Fatal(err)
		}
	}
	_, err, given := old.takeOver(func(c *Config) {
		take := c.Takeover
		c.Takeover = func(ctx context.Context, restore func([]byte, []*os.File) error) error {
			return take(ctx, func(state []byte, files []*os.File) error {
				files[0], files[1] = files[1], files[0]
				return restore(state, files)
			})
		}
	})
	if err == nil || given == nil || !strings.Contains(err.Error(), "a relay socket on ") {
		t.Errorf("%v; the old one says %v", err, given)
	}
	if n := old.s.Stats().Allocations; n != 2 {
		t.Errorf("%d allocations", n)
	}
}

// TestRevokedInTakeover: a revocation that both processes hear while neither reads is lost in none, whether
// something comes of the takeover or not.
func TestRevokedInTakeover(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	old := start(t)
	ctx := timeout(t)
	for _, fail := range []error{errors.New("no room"), nil} {
		gone, stays := old.client(turnclient.TokenUsername(old.issue("p1", time.Hour))), old.client(turnclient.TokenUsername(old.issue("p2", time.Hour)))
		for _, c := range []*turnclient.Client{gone, stays} {
			if _, err := c.Allocate(ctx, 0); err != nil {
				t.Fatal(err)
			}
		}
		next, err, given := old.takeOver(func(c *Config) {
			c.Revoked = func(p string) bool { return p == "p1" }
			take := c.Takeover
			c.Takeover = func(ctx context.Context, restore func([]byte, []*os.File) error) error {
				return take(ctx, func(state []byte, files []*os.File) error {
					if n := old.s.Revoke("p1"); n != 1 {
						t.Errorf("%d revoked", n)
					}
					return errors.Join(restore(state, files), fail)
				})
			}
		})
		if (err != nil) != (fail != nil) || (given != nil) != (fail != nil) {
			t.Fatalf("%v, the old one says %v", err, given)
		}
		now := old
		if next.fails = fail != nil; fail == nil {
			now = next
		}
		if st := now.s.Stats(); st.Allocations != 1 || st.Ended["revoked"] == 0 {
			t.Errorf("%d allocations, ended %v", st.Allocations, st.Ended)
		}
		if _, err := gone.Refresh(ctx, time.Hour); turnclient.Code(err) != 437 && turnclient.Code(err) != 401 {
			t.Errorf("revoked: %v", err)
		}
		if _, err := stays.Refresh(ctx, 0); err != nil {
			t.Error(err)
		}
	}
}
