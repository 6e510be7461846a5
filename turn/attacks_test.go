package turn

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"math"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"wicgate/internal/peerpolicy"
	"wicgate/internal/secret"
	tokens "wicgate/internal/token"
	"wicgate/internal/turnclient"
	"wicgate/internal/wire/stun"
)

// Each TestAttack plays one class of attack that TURN servers have been open to through the server's
// sockets, and sees it fail. Those that need none are in turn/internal/core. The identifiers in the
// comments name the class.

// TestAttackOwnListeners: a relay reaches neither this server's listeners, on UDP and on TCP, nor its
// wildcard and loopback forms, by any door (CVE-2018-4058, CVE-2020-26262, CVE-2026-27624).
func TestAttackOwnListeners(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	listening, _ := streamed(t)
	b := start(t, listening, func(c *Config) {
		c.TCPRelay = true
		// Open as far as it goes: the listeners are refused in spite of it.
		c.Peers = peerpolicy.General(peerpolicy.Range{Prefix: netip.MustParsePrefix("0.0.0.0/0")}, peerpolicy.Range{Prefix: netip.MustParsePrefix("::/0")})
	})
	ctx := timeout(t)
	c := b.client(turnclient.TokenUsername(b.issue("p1", time.Hour)))
	if _, err := c.Allocate(ctx, 0); err != nil {
		t.Fatal(err)
	}
	if err := c.CreatePermission(ctx, netip.AddrPortFrom(loopback, 9)); err != nil { // for other ports
		t.Fatal(err)
	}
	for _, own := range []netip.AddrPort{b.s.Addrs()[0], b.s.TCPAddrs()[0]} {
		if _, err := c.ChannelBind(ctx, own); turnclient.Code(err) != 403 {
			t.Errorf("ChannelBind to %v: %v", own, err)
		}
		before := b.s.Stats()
		if err := c.Send(own, stun.AppendHeader(nil, stun.NewType(stun.Binding, stun.Request), stun.TransactionID{1})); err != nil {
			t.Fatal(err)
		}
		b.eventually("Send to a listener is refused", func(s Stats) bool { return s.Refused["peer"] == before.Refused["peer"]+1 })
		if after := b.s.Stats(); after.ToPeerPackets != before.ToPeerPackets || after.Bindings != before.Bindings {
			t.Errorf("Send to %v is relayed", own)
		}
	}
	zero := netip.AddrPortFrom(netip.IPv4Unspecified(), b.s.Addrs()[0].Port())
	if _, err := c.ChannelBind(ctx, zero); turnclient.Code(err) != 403 {
		t.Errorf("ChannelBind to %v: %v", zero, err)
	}
}

// TestAttackNoWeakRandom: nothing that a client could guess from is in the data plane: math/rand is
// imported by none of its packages (CVE-2025-69217).
func TestAttackNoWeakRandom(t *testing.T) {
	seen := 0
	for _, dir := range []string{".", "../internal/wire", "../internal/token", "../internal/keyring", "../internal/secret", "../internal/listen"} {
		err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
				return err
			}
			f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly)
			if err != nil {
				return err
			}
			seen++
			for _, i := range f.Imports {
				if strings.HasPrefix(i.Path.Value, `"math/rand`) {
					t.Errorf("%s imports %s; use crypto/rand", name, i.Path.Value)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if seen < 30 {
		t.Errorf("%d files looked at", seen)
	}
}

// TestAttackPredictablePorts: relay ports come evenly from the whole range, and the last one says nothing
// about the next (CVE-2025-69217, RFC 6056). Bounds are six standard deviations.
func TestAttackPredictablePorts(t *testing.T) {
	const draws, buckets = 64_000, 64
	p := newPool(Relay{Bind: loopback, MinPort: 49152, MaxPort: 65535})
	var places, steps [buckets]int
	last := 0
	for range draws {
		port, ok := p.take(false, false)
		if !ok {
			t.Fatal("no port")
		}
		p.give(port)
		at := int(port-p.MinPort) * buckets / len(p.used)
		places[at]++
		steps[(at-last+buckets)%buckets]++
		last = at
	}
	const want = draws / buckets
	for i := range places {
		if d := 6 * math.Sqrt(want); math.Abs(float64(places[i]-want)) > d || math.Abs(float64(steps[i]-want)) > d {
			t.Errorf("of %d: %d ports in part %d of %d, %d steps of that width; want %d", draws, places[i], i, buckets, steps[i], want)
		}
	}
}

// TestAttackEvenPortSockets: ports come back from EVEN-PORT through sockets: R=0, R=1, and R=1 at the end
// of the range where there is no next one, 100,000 on the ports of a range, and 500 with their sockets
// (4adbd82e).
func TestAttackEvenPortSockets(t *testing.T) {
	b := start(t)
	p := newPool(Relay{Bind: loopback, MinPort: 50001, MaxPort: 50008})
	for i := range 100_000 {
		even, pair := i%3 != 0, i%3 == 2
		port, ok := p.take(even, pair)
		if !ok || even && port&1 != 0 {
			t.Fatalf("cycle %d: port %d, %v", i, port, ok)
		}
		p.give(port)
		if pair {
			p.give(port + 1)
		}
	}
	for _, used := range p.used {
		if used {
			t.Error("a port is still in use")
		}
	}
	for i := range 500 {
		got, next, err := b.s.openRelay(0, true, i%2 == 1)
		if err != nil {
			t.Fatal(err)
		}
		got.Relay.(*relay).close()
		if next.Relay != nil {
			next.Relay.(*relay).close()
		}
	}
	for i, used := range b.s.pools[0][0].used {
		if used {
			t.Errorf("port %d is still in use", 50000+i)
		}
	}
}

// TestAttackLongTokens: an ACCESS-TOKEN of 1 to 65,000 bytes over TCP is a 401 up to what a client without
// an allocation may send, beyond that the end of its connection, and a 401 again for one that has an
// allocation and keeps it (CVE-2026-43994, coturn#1932).
func TestAttackLongTokens(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	listening, _ := streamed(t)
	b := start(t, listening)
	kid, tok, mac := b.issue("p1", time.Hour)
	try := func(c *turnclient.Client, n int) error {
		long := append(bytes.Clone(tok), make([]byte, n)...)[:n]
		c.SetCredential(turnclient.AccessToken(kid, long, mac))
		_, err := c.Refresh(timeout(t), 0)
		return err
	}
	for _, n := range []int{1, 2, 3, 13, 14, 15, 63, 255, 1023, 1024, 1025, 2048, 3900} {
		if n == len(tok) {
			continue
		}
		c := b.stream("tcp", nil, turnclient.Credential{})
		if err := try(c, n); turnclient.Code(err) != 401 {
			t.Errorf("%d bytes of a stranger: %v", n, err)
		}
		if _, err := c.Binding(timeout(t)); err != nil {
			t.Errorf("after %d bytes: %v", n, err)
		}
		_ = c.Close()
	}
	for _, n := range []int{4096, 16000, 65000} {
		before := b.s.Stats().ConnectionsEnded["too_long"]
		c := b.stream("tcp", nil, turnclient.Credential{})
		if err := try(c, n); err == nil || turnclient.Code(err) != 0 {
			t.Errorf("%d bytes of a stranger: %v", n, err)
		}
		b.eventually("too long", func(s Stats) bool { return s.ConnectionsEnded["too_long"] == before+1 })
		_ = c.Close()
	}
	c := b.stream("tcp", nil, turnclient.AccessToken(kid, tok, mac))
	if _, err := c.Allocate(timeout(t), 0); err != nil {
		t.Fatal(err)
	}
	for n := 1; n <= 65000; n += 1 + n/3 {
		if n == len(tok) {
			continue
		}
		if err := try(c, n); turnclient.Code(err) != 401 {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	if err := try(c, 65000); turnclient.Code(err) != 401 {
		t.Errorf("65000 bytes: %v", err)
	}
	c.SetCredential(turnclient.AccessToken(kid, tok, mac))
	if _, err := c.Refresh(timeout(t), 10*time.Minute); err != nil {
		t.Errorf("the allocation afterwards: %v", err)
	}
}

// TestAttackHTTP: who speaks HTTP on the TURN port hears nothing, over UDP and TCP, and costs a connection's
// time (CVE-2020-6061, CVE-2020-6062).
func TestAttackHTTP(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	listening, _ := streamed(t)
	b := start(t, listening, func(c *Config) { c.Idle = 300 * time.Millisecond })
	for _, request := range []string{
		"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "POST /logon HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\nuname=a&pwd=b", "POST / HTTP/1.1\r\n\r\n", "POST",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "\r\n\r\nGET /", "CONNECT 127.0.0.1:22 HTTP/1.1\r\n\r\n", "HEAD " + strings.Repeat("/", 3000),
	} {
		for _, network := range []string{"udp", "tcp"} {
			to := b.s.Addrs()[0]
			if network == "tcp" {
				to = b.s.TCPAddrs()[0]
			}
			c, err := net.Dial(network, to.String())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(c, request); err != nil {
				t.Fatal(err)
			}
			wait := 5 * time.Second
			if network == "udp" {
				wait = 30 * time.Millisecond
			}
			if err := c.SetReadDeadline(time.Now().Add(wait)); err != nil {
				t.Fatal(err)
			}
			if n, err := c.Read(make([]byte, 100)); n != 0 || err == nil {
				t.Errorf("%s %.20q is answered", network, request)
			} else if network == "tcp" && errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%s %.20q: the connection stays", network, request)
			}
			_ = c.Close()
		}
	}
	b.eventually("all have been closed", func(st Stats) bool { return st.Connections == 0 })
	if st := b.s.Stats(); st.Bindings != 0 || st.AllocationsTotal != 0 {
		t.Errorf("%+v", st)
	}
}

// TestAttackUsernames: user names with control characters, separators and of any length are a 401 through
// the whole server, and break no line of its log (GHSA-4g7c-p5wg-j4hp, GHSA-v8hj-2xx7-xmp5).
func TestAttackUsernames(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	b := start(t, func(c *Config) {
		c.Secrets = func() []secret.Bytes { return []secret.Bytes{secret.New([]byte("a secret shared with an edge"))} }
	})
	ctx := timeout(t)
	names := []string{
		"a:b", ":", "99999999999:x\nlevel=INFO msg=\"turn: forged\"", "\x00\x01\x1b[2J\r\n", "%s%n%n%d", "'; DROP TABLE users; --", "\xff\xfe\xfd", "a\u2028b\u202e",
		strings.Repeat("a", 508), strings.Repeat("a", 509), strings.Repeat("a", 513), strings.Repeat("\n", 763), strings.Repeat("o1.", 1000),
		fmt.Sprintf("%d:a\nb", time.Now().Add(time.Hour).Unix()),
	}
	for _, name := range names {
		c := b.client(turnclient.LongTerm(name, secret.New([]byte("a password that is long enough"))))
		if _, err := c.Allocate(ctx, 0); turnclient.Code(err) != 401 {
			t.Errorf("%.20q: %v", name, err)
		}
	}
	for i, line := range strings.Split(strings.TrimSuffix(b.log.String(), "\n"), "\n") {
		if !strings.HasPrefix(line, "time=") || strings.ContainsFunc(line, func(r rune) bool { return r < ' ' || r == 0x7f || r == 0x202e || r == 0x2028 }) {
			t.Errorf("line %d of the log: %q", i, line)
		}
	}
	if st := b.s.Stats(); st.AllocationsTotal != 0 {
		t.Errorf("%+v", st)
	}
}

// bareAllocate is an Allocate without a credential.
func bareAllocate() []byte {
	b := stun.AppendHeader(nil, stun.NewType(stun.Allocate, stun.Request), stun.TransactionID{9})
	return stun.AppendByte(b, stun.AttrRequestedTransport, stun.ProtocolUDP)
}

// flood sends bare Allocates from ports of one address until the test ends, about perSecond of them, as
// whoever writes that address into his packets does. It returns how many it has sent and been answered.
func (b *bench) flood(perSecond, ports int) (sent, answered *atomic.Int64) {
	b.t.Helper()
	sent, answered = new(atomic.Int64), new(atomic.Int64)
	stop := make(chan struct{})
	var sender, readers sync.WaitGroup
	var conns []*net.UDPConn
	for range ports {
		c, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(b.s.Addrs()[0]))
		if err != nil {
			b.t.Fatal(err)
		}
		conns = append(conns, c)
		readers.Go(func() {
			buf := make([]byte, 1500)
			for {
				if _, err := c.Read(buf); err != nil {
					return
				}
				answered.Add(1)
			}
		})
	}
	sender.Go(func() {
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		bare := bareAllocate()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
			}
			for range perSecond / 200 {
				binary.BigEndian.PutUint64(bare[8:], uint64(sent.Load()))
				if _, err := conns[sent.Add(1)%int64(ports)].Write(bare); err != nil {
					b.t.Errorf("flood: %v", err)
					return
				}
			}
		}
	})
	b.t.Cleanup(func() {
		close(stop)
		sender.Wait()
		for _, c := range conns {
			closed(b.t, c)
		}
		readers.Wait()
	})
	return sent, answered
}

// TestAttackBudgetOfAnAddress: while somebody floods the server with bare Allocates that say they come from
// an address, a carrier's NAT, the clients there who hold a nonce allocate within a second, newcomers do
// over TCP, and the flood is answered no more than the budget says.
func TestAttackBudgetOfAnAddress(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	listening, _ := streamed(t)
	b := start(t, listening)
	var holders []*turnclient.Client
	for i := range 10 {
		c := b.client(turnclient.TokenUsername(b.issue(fmt.Sprint("holder", i), time.Hour)))
		if _, err := c.Allocate(timeout(t), 0); err != nil { // gets a nonce
			t.Fatal(err)
		}
		if _, err := c.Refresh(timeout(t), 0); err != nil {
			t.Fatal(err)
		}
		holders = append(holders, c)
	}
	begin := time.Now()
	sent, answered := b.flood(5000, 50)
	b.eventually("the budget is spent", func(s Stats) bool { return s.Refused["budget"] > 1000 })
	within := func(what string, c *turnclient.Client) {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if _, err := c.Allocate(ctx, 0); err != nil {
			t.Errorf("%s under the flood: %v", what, err)
		}
	}
	for i, c := range holders {
		within("a client with a nonce", c)
		within("a newcomer over TCP", b.stream("tcp", nil, turnclient.TokenUsername(b.issue(fmt.Sprint("newcomer", i), time.Hour))))
	}
	took := time.Since(begin).Seconds()
	// 100 at once and 20 a second; the holders had ten of them.
	if got := answered.Load(); float64(got) > 100+20*took+1 {
		t.Errorf("%d of %d answered in %.1f s", got, sent.Load(), took)
	}
	if _, err := holders[0].Refresh(timeout(t), 0); err != nil {
		t.Error(err)
	}
}

// TestAttackNonceOfAnotherPort: a credential and nonce that are overheard are of no use from elsewhere.
func TestAttackNonceOfAnotherPort(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	b := start(t)
	kid, tok, mac := b.issue("p1", time.Hour)
	ask := func(c net.Conn, m []byte) (code int, nonce []byte) {
		t.Helper()
		if _, err := c.Write(m); err != nil {
			t.Fatal(err)
		}
		if err := c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 1500)
		n, err := c.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		r, err := stun.Parse(buf[:n])
		if err != nil {
			t.Fatal(err)
		}
		nonce, _ = r.Get(stun.AttrNonce)
		if v, ok := r.Get(stun.AttrErrorCode); ok {
			if code, _, err = stun.ParseErrorCode(v); err != nil {
				t.Fatal(err)
			}
		}
		return code, nonce
	}
	dial := func() net.Conn {
		t.Helper()
		c, err := net.Dial("udp4", b.s.Addrs()[0].String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { closed(t, c) })
		return c
	}
	victim, thief := dial(), dial()
	_, nonce := ask(victim, bareAllocate())
	username := tokens.AppendUsername(nil, kid, tok)
	m := stun.AppendAttr(bareAllocate(), stun.AttrUsername, username)
	m = stun.AppendAttr(stun.AppendText(m, stun.AttrRealm, name), stun.AttrNonce, nonce)
	m = stun.NewHasher().AppendIntegrity(m, stun.MD5.Key(username, []byte(name), tokens.Credential(mac).Expose()))
	if code, _ := ask(thief, m); code != 438 || b.s.Stats().AllocationsTotal != 0 {
		t.Errorf("the whole request from another port: %d", code)
	}
	if code, _ := ask(victim, m); code != 0 {
		t.Errorf("the request: %d", code)
	}
}
