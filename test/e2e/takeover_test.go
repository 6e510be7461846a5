package e2e_test

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"wicgate/internal/admin"
	"wicgate/internal/listen"
	"wicgate/internal/secret"
	"wicgate/internal/takeover"
	"wicgate/internal/token"
	"wicgate/internal/turnclient"
	"wicgate/test/lab"
	"wicgate/turn"
)

// turnAlone is the place of a TURN server without the other roles.
type turnAlone struct {
	t        *testing.T
	data     string
	args     []string // of wicgate run
	udp, tcp netip.AddrPort
	observer string // address of admin.listen
}

const turnSecret = "an operator's shared secret"

// newTURN writes a configuration.
func newTURN(t *testing.T, more string) *turnAlone {
	t.Helper()
	s := &turnAlone{t: t, data: lab.DataFolder(t)}
	secrets, cfg := filepath.Join(s.data, "secrets.txt"), filepath.Join(s.data, "wicgate.yaml")
	free := func() netip.AddrPort {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		return netip.MustParseAddrPort(l.Addr().String())
	}
	s.udp, s.tcp, s.observer = free(), free(), free().String()
	text := fmt.Sprintf("admin: {listen: '%s'}\nturn: {listen: ['%v'], listen_tcp: ['%v'], urls: ['turns:localhost:%d?transport=tcp'], secrets: %s, open: ['127.0.0.1/32 1024-65535']%s}\n",
		s.observer, s.udp, s.tcp, s.tcp.Port(), secrets, more)
	for name, text := range map[string]string{secrets: turnSecret + "\n", cfg: text} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s.args = []string{"--config", cfg, "turn"}
	return s
}

// client is one that has not allocated.
func (s *turnAlone) client(pseudonym, network string) *turnclient.Client {
	s.t.Helper()
	name := token.EphemeralUsername(time.Now().Add(time.Hour), pseudonym)
	cfg := turnclient.Config{Server: s.udp, Network: network, Credential: turnclient.LongTerm(name, token.EphemeralPassword(secret.New([]byte(turnSecret)), name))}
	if network != "udp" {
		pool, err := listen.PoolFile(filepath.Join(s.data, "ca", "ca.pem"))
		if err != nil {
			s.t.Fatal(err)
		}
		cfg.Server, cfg.TLS = s.tcp, &tls.Config{RootCAs: pool, ServerName: "localhost"}
	}
	c, err := turnclient.Dial(cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = c.Close() }) // the server may have ended before
	return c
}

// call sends numbered packets both ways, one a millisecond each, between c on a channel and a peer.
// hangUp returns how many were sent each way, and how many of both are lost.
func (s *turnAlone) call(c *turnclient.Client) (hangUp func() (sent, lost int)) {
	t := s.t
	t.Helper()
	p, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	peer := p.LocalAddr().(*net.UDPAddr).AddrPort()
	a, err := c.Allocate(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.ChannelBind(t.Context(), peer); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	arriving, enough := context.WithCancel(context.Background())
	var sender, readers sync.WaitGroup
	sent := 0
	out, in := map[uint32]bool{}, map[uint32]bool{}
	sender.Go(func() {
		for tick := time.NewTicker(time.Millisecond); ctx.Err() == nil; <-tick.C {
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
			if n, _, err := p.ReadFromUDPAddrPort(m); err != nil {
				return
			} else if n == 4 {
				out[binary.BigEndian.Uint32(m)] = true
			}
		}
	})
	readers.Go(func() {
		for {
			m, err := c.Receive(arriving)
			if err != nil {
				return
			}
			if m.Channel != 0 && len(m.Data) == 4 {
				in[binary.BigEndian.Uint32(m.Data)] = true
			}
		}
	})
	return sync.OnceValues(func() (int, int) {
		cancel()
		sender.Wait()
		time.Sleep(300 * time.Millisecond) // for the last ones to arrive
		enough()
		_ = p.Close()
		readers.Wait()
		return sent, 2*sent - len(out) - len(in)
	})
}

// process is who answers at the admin socket.
func (s *turnAlone) process() (p admin.Process) {
	s.t.Helper()
	if err := (admin.Client{Dir: s.data}).Do(s.t.Context(), "GET", "/v1/process", nil, &p); err != nil {
		s.t.Fatal(err)
	}
	return p
}

// TestTakeover: a second wicgate takes over from the first with calls under way. None of their packets is
// lost, and all that can be done with a session can be done afterwards.
func TestTakeover(t *testing.T) {
	s := newTURN(t, "")
	first := lab.Start(t, nil, s.data, s.args...)
	alice, carol := s.client("alice", "udp"), s.client("carol", "tls")
	overUDP, overTLS := s.call(alice), s.call(carol)
	defer overUDP()
	defer overTLS()
	gone := s.client("mallory", "udp")
	if _, err := gone.Allocate(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if out, err := wicgate(t, s.data, "turn", "revoke", "mallory"); err != nil {
		t.Fatal(err, out)
	}
	// A load balancer sees no gap.
	unready := make(chan string, 1000)
	looking, stop := context.WithCancel(t.Context())
	var balancer sync.WaitGroup
	balancer.Go(func() {
		hc := &http.Client{Timeout: 3 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
		for ; looking.Err() == nil; time.Sleep(5 * time.Millisecond) {
			res, err := hc.Get("http://" + s.observer + "/readyz")
			if err == nil {
				_ = res.Body.Close()
			}
			if err != nil || res.StatusCode != http.StatusOK {
				unready <- fmt.Sprint(res, err)
			}
		}
	})
	time.Sleep(300 * time.Millisecond)

	second := lab.Start(t, nil, s.data, append([]string{"--takeover"}, s.args...)...)
	time.Sleep(500 * time.Millisecond)
	stop()
	balancer.Wait()
	for len(unready) > 0 {
		t.Errorf("readiness: %s", <-unready)
	}
	sent, lost := overUDP()
	if lost != 0 || sent < 300 {
		t.Errorf("UDP: %d of %d packets lost", lost, 2*sent)
	}
	lab.Figure(t, "packets lost in a takeover, one call on UDP, 1 packet/ms each way", "0", "%d of %d", lost, 2*sent)
	if sent, lost := overTLS(); lost != 0 {
		t.Errorf("TLS: %d of %d packets lost", lost, 2*sent)
	}
	if p := s.process(); p.PID != second.PID() || first.Ended() {
		t.Errorf("process %d answers, want %d; the first has ended: %v", p.PID, second.PID(), first.Ended())
	}
	if out, err := wicgate(t, s.data, "turn", "sessions"); err != nil || !strings.Contains(out, "alice") || !strings.Contains(out, "carol") {
		t.Errorf("sessions of both processes: %v\n%s", err, out)
	}
	if b, err := os.ReadFile(filepath.Join(s.data, "lock")); err != nil || strings.TrimSpace(string(b)) != strconv.Itoa(second.PID()) {
		t.Errorf("lock %q, %v", b, err)
	}
	// The session lives on: lifetime, permissions, channels.
	if _, err := alice.Refresh(t.Context(), time.Hour); err != nil {
		t.Error(err)
	}
	if err := alice.CreatePermission(t.Context(), netip.MustParseAddrPort("127.0.0.1:4000")); err != nil {
		t.Error(err)
	}
	if _, err := carol.Refresh(t.Context(), time.Hour); err != nil {
		t.Errorf("TLS: %v", err)
	}
	// Who was revoked before stays so, and new ones come.
	if _, err := gone.Allocate(t.Context(), 0); turnclient.Code(err) != 401 {
		t.Errorf("revoked before: %v", err)
	}
	for _, network := range []string{"udp", "tcp", "tls"} {
		if _, err := s.client("new-"+network, network).Allocate(t.Context(), 0); err != nil {
			t.Errorf("new, %s: %v", network, err)
		}
	}
	// Revocation reaches what moved and what stayed.
	for name, c := range map[string]*turnclient.Client{"alice": alice, "carol": carol} {
		if out, err := wicgate(t, s.data, "turn", "revoke", name); err != nil || !strings.Contains(out, "1 TURN session") {
			t.Errorf("%v: %s", err, out)
		}
		if _, err := c.Refresh(t.Context(), time.Hour); turnclient.Code(err) != 401 {
			t.Errorf("%s, revoked: %v", name, err)
		}
	}
	// The first process ends once its connections have.
	if err := carol.Close(); err != nil {
		t.Error(err)
	}
	lab.Eventually(t, 5*time.Second, "the first process has ended", first.Ended)
	if err := first.Stop(); err != nil || !strings.HasSuffix(first.Output(), "wicgate has handed over to process "+strconv.Itoa(second.PID())+" and ended.\n") {
		t.Errorf("%v: %s", err, first.Output())
	}
	if list, err := filepath.Glob(filepath.Join(s.data, "admin*.sock")); err != nil || len(list) != 1 {
		t.Errorf("sockets %v, %v", list, err)
	}
	if strings.Contains(first.Log()+second.Log(), turnSecret) {
		t.Error("a secret is in the log")
	}
}

// TestUpgrade: the command starts the new process and waits for it, and says so where nothing comes of it.
func TestUpgrade(t *testing.T) {
	s := newTURN(t, "")
	first := lab.Start(t, nil, s.data, s.args...)
	alice := s.client("alice", "udp")
	hangUp := s.call(alice)
	defer hangUp()
	if out, err := wicgate(t, s.data, "upgrade", "--program", "/bin/false"); err == nil || !strings.Contains(out, "has not taken over (exit status 1), and the old one goes on") {
		t.Errorf("%v: %s", err, out)
	}
	out, err := wicgate(t, s.data, "upgrade", "--within", "1h")
	if err != nil || !strings.Contains(out, "has taken over from "+strconv.Itoa(first.PID())) {
		t.Fatalf("%v: %s", err, out)
	}
	next := s.process()
	defer func() {
		// It is nobody's child by now. Its output is the first one's, which ends with it.
		if err := syscall.Kill(next.PID, syscall.SIGINT); err != nil {
			t.Error(err)
		}
		if err := first.Stop(); err != nil {
			t.Error(err)
		}
	}()
	if sent, lost := hangUp(); lost != 0 || sent < 50 {
		t.Errorf("%d of %d packets lost", lost, 2*sent)
	}
	if _, err := alice.Refresh(t.Context(), 0); err != nil {
		t.Error(err)
	}
	if next.PID == first.PID() {
		t.Error("the process is the same")
	}
}

// TestTakeoverFails: whatever the new process does before the point of no return, the old one goes on.
func TestTakeoverFails(t *testing.T) {
	s := newTURN(t, "")
	first := lab.Start(t, nil, s.data, s.args...)
	alice := s.client("alice", "udp")
	hangUp := s.call(alice)
	defer hangUp()
	// Another configuration.
	other := newTURN(t, "")
	if _, err := lab.TryStart(t, nil, s.data, append([]string{"--takeover"}, other.args...)...); err == nil || !strings.Contains(err.Error(), "the running process listens on udp "+s.udp.String()) {
		t.Errorf("other listeners: %v", err)
	}
	renamed := filepath.Join(s.data, "renamed.yaml")
	b, err := os.ReadFile(s.args[1])
	if err == nil {
		err = os.WriteFile(renamed, []byte(strings.Replace(string(b), "turn: {", "turn: {name: other.ims.test, keys: "+filepath.Join(s.data, "other-keys.json")+", ", 1)), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lab.TryStart(t, nil, s.data, "--takeover", "--config", renamed, "turn"); err == nil || !strings.Contains(err.Error(), "which is not in the new configuration") {
		t.Errorf("another name: %v", err)
	}
	if _, err := lab.TryStart(t, nil, s.data, "--takeover", "--config", s.args[1], "wwsf", "turn"); err == nil || !strings.Contains(err.Error(), "would run wwsf, turn") {
		t.Errorf("other roles: %v", err)
	}
	// Another version of what is said, and a process that dies in the middle.
	take := func(h takeover.Hello) (*takeover.Taker, error) {
		conn, err := admin.Client{Dir: s.data}.TakeOver(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		h.Roles, h.PID = []string{"turn"}, os.Getpid()
		k, err := takeover.Take(conn, h)
		if err == nil {
			for _, s := range k.Sockets {
				_ = s.File.Close() // a copy
			}
		}
		return k, err
	}
	if _, err := take(takeover.Hello{State: turn.StateVersion + 1}); err == nil || !strings.Contains(err.Error(), "sessions are told in version") {
		t.Errorf("another version: %v", err)
	}
	k, err := take(takeover.Hello{State: turn.StateVersion})
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Restore(func(state []byte, relays []*os.File) error {
		if len(state) < 100 || len(relays) != 1 {
			t.Errorf("%d bytes of state, %d sockets", len(state), len(relays))
		}
		for _, f := range relays {
			_ = f.Close() // as a process that dies
		}
		return k.Close()
	}); err == nil {
		t.Error("taken over with a closed connection")
	}
	// The door and the drain work as before.
	drained := make(chan string, 1)
	go func() {
		out, err := wicgate(t, s.data, "drain", "--within", "20s")
		drained <- fmt.Sprint(out, err)
	}()
	lab.Eventually(t, 5*time.Second, "it drains", func() bool {
		res, err := http.Get("http://" + s.observer + "/readyz")
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		return res.StatusCode == http.StatusServiceUnavailable
	})
	if _, err := s.client("late", "udp").Allocate(t.Context(), 0); turnclient.Code(err) != 508 {
		t.Errorf("Allocate while draining: %v", err)
	}
	if _, err := lab.TryStart(t, nil, s.data, append([]string{"--takeover"}, s.args...)...); err == nil || !strings.Contains(err.Error(), "this process drains") {
		t.Errorf("takeover while draining: %v", err)
	}
	if sent, lost := hangUp(); lost != 0 || first.Ended() {
		t.Errorf("%d of %d packets lost; ended: %v", lost, 2*sent, first.Ended())
	}
	if _, err := alice.Refresh(t.Context(), 0); err != nil {
		t.Error(err)
	}
	var last admin.Drain
	out := <-drained
	lines := strings.Split(strings.TrimSuffix(out, "\n<nil>"), "\n")
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &last); err != nil || last.Sessions != 0 || !last.Draining || !strings.HasPrefix(out, `{"draining":true,"sessions":1,`) {
		t.Errorf("drain said %v: %s", err, out)
	}
	if out, err := wicgate(t, s.data, "drain", "--stop"); err != nil || !strings.Contains(out, "The drain is taken back") {
		t.Errorf("%v: %s", err, out)
	}
	if _, err := s.client("again", "udp").Allocate(t.Context(), 0); err != nil {
		t.Errorf("Allocate after the drain: %v", err)
	}
}

// TestElder: what the operator says reaches the clients that have stayed with the old process, and if the new
// one is killed, a third begins as ever.
func TestElder(t *testing.T) {
	s := newTURN(t, ", closed: [127.0.0.9]")
	first := lab.Start(t, nil, s.data, s.args...)
	carol := s.client("carol", "tls")
	if _, err := carol.Allocate(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	second := lab.Start(t, nil, s.data, append([]string{"--takeover"}, s.args...)...)
	peer := netip.MustParseAddrPort("127.0.0.1:4000")
	if err := carol.CreatePermission(t.Context(), peer); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(s.args[1])
	if err == nil {
		err = os.WriteFile(s.args[1], []byte(strings.Replace(string(b), "closed: [127.0.0.9]", "closed: [127.0.0.1]", 1)), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	if out, err := wicgate(t, s.data, "reload"); err != nil || strings.Contains(out, "warning") {
		t.Errorf("%v: %s", err, out)
	}
	if err := carol.CreatePermission(t.Context(), peer); turnclient.Code(err) != 403 {
		t.Errorf("a peer that was closed: %v", err)
	}
	second.Kill()
	third := lab.Start(t, nil, s.data, s.args...)
	if _, err := s.client("new", "udp").Allocate(t.Context(), 0); err != nil {
		t.Error(err)
	}
	if _, err := carol.Refresh(t.Context(), time.Hour); err != nil || first.Ended() {
		t.Errorf("the first process: %v, ended %v", err, first.Ended())
	}
	if out, err := wicgate(t, s.data, "turn", "revoke", "carol"); err != nil || !strings.Contains(out, "1 TURN session") {
		t.Errorf("%v: %s", err, out)
	}
	if err := carol.Close(); err != nil {
		t.Error(err)
	}
	lab.Eventually(t, 5*time.Second, "the first process has ended", first.Ended)
	if err := third.Stop(); err != nil {
		t.Error(err)
	}
}
