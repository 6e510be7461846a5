//go:build flood

// Package flood_test measures what a flood against a running TURN server costs those who are relayed. It
// takes both processors for half a minute, so that it is run by hand: make flood.
package flood_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wicgate/internal/keyring"
	"wicgate/internal/token"
	"wicgate/internal/turnclient"
	"wicgate/internal/wire/stun"
	"wicgate/test/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }

const (
	target     = 100_000 // packets a second
	attackers  = 32      // sources with a nonce each
	spoofed    = 64      // sources of bare Allocates
	relayRate  = 1000    // packets a second, there and back
	phase      = 5 * time.Second
	lossBound  = 0.001
	batch      = 40 // packets that the kernel cuts out of one write
	serverPort = 3478
	name       = "turn.ims.test"
)

var server = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), serverPort)

// TestFlood: 100,000 bad tokens a second with valid nonces, as many bare Allocates, and some of each, while
// a client is relayed 1000 packets a second there and back: of those less than 0.1 % are lost. The rate
// that this machine reaches is measured with it, and how newcomers fare who allocate meanwhile, over UDP and
// TCP. ChannelData of who has no allocation shares the queue of
// who has one; what that costs is measured and has no bound.
func TestFlood(t *testing.T) {
	h := lab.Lone(t)
	data := lab.DataFolder(t)
	cfg := filepath.Join(data, "wicgate.yaml")
	text := fmt.Sprintf("turn:\n  listen: ['%[1]v']\n  listen_tcp: ['%[1]v']\n  urls: ['turn:%[1]v']\n  open: ['127.0.0.0/8 1024-65535']\n", server)
	if err := os.WriteFile(cfg, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p := lab.Start(t, h, data, "--config", cfg, "turn")
	ring, err := keyring.OpenFile(filepath.Join(data, "turn-keys.json"), name)
	if err != nil {
		t.Fatal(err)
	}
	var r *relayed
	var bad, bare, stray []*source
	if err := h.In(func() (err error) {
		if r, err = newRelayed(t, ring); err != nil {
			return err
		}
		for i := range attackers {
			s, err := newSource(byte(1+i/250), byte(2+i))
			if err != nil {
				return err
			}
			if err := s.badTokens(ring); err != nil {
				return err
			}
			bad = append(bad, s)
		}
		for i := range spoofed {
			s, err := newSource(9, byte(2+i))
			if err != nil {
				return err
			}
			s.bareAllocates()
			bare = append(bare, s)
			if s, err = newSource(10, byte(2+i)); err != nil {
				return err
			}
			s.packet = stun.AppendChannelData(nil, 0x4000, make([]byte, 160))
			stray = append(stray, s)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, s := range slices.Concat(bad, bare, stray) {
			_ = s.conn.Close()
		}
	})
	t.Logf("%d processors, shared by the server, the flood and the relayed client", runtime.NumCPU())
	for _, f := range []struct {
		what    string
		sources []*source
		bound   float64
	}{{"nothing", nil, lossBound}, {"bad tokens", bad, lossBound}, {"bare Allocates", bare, lossBound}, {"both", slices.Concat(bad, bare), lossBound}, {"stray ChannelData", stray, 1}} {
		before := refused(p)
		stop := flood(t, f.sources)
		udp, tcp := newcomers(t, h, ring, "udp"), newcomers(t, h, ring, "tcp")
		sent, up, down := r.run(phase)
		rate := stop()
		for _, n := range []func() arrivals{udp, tcp} {
			a := n()
			lab.Figure(t, fmt.Sprintf("newcomers over %s under %s", a.network, f.what), "-", "%d of %d have allocated, median %v, slowest %v",
				len(a.took), a.tried, a.at(0.5), a.at(1))
		}
		if f.sources != nil && rate < 0.9*target {
			t.Errorf("%s: the flood is of %.0f a second, not of %d", f.what, rate, target)
		}
		after := refused(p)
		loss := 1 - float64(down)/float64(sent)
		lab.Figure(t, "relay loss under "+f.what, "below 0.1 % at 100000/s", "%.3f %% at %.0f/s", 100*loss, rate)
		t.Logf("%s: %d packets relayed out, %d there, %d back; flood %.0f a second, of which the server took %.0f",
			f.what, sent, up, down, rate, (after-before)/phase.Seconds())
		if loss >= f.bound {
			t.Errorf("%s: %.2f %% of the packets relayed are lost, at most %.1f %%", f.what, 100*loss, 100*f.bound)
		}
	}
}

// refused is how many packets the server has refused.
func refused(p *lab.Process) (n float64) {
	turn, _ := p.Stats()["turn"].(map[string]any)
	causes, _ := turn["Refused"].(map[string]any)
	for _, v := range causes {
		f, _ := v.(float64)
		n += f
	}
	return n
}

// relayed is a client with a channel to a peer that sends back what it gets.
type relayed struct {
	t            testing.TB
	client, peer *net.UDPConn
	channel      uint16
	there, back  atomic.Int64
}

func newRelayed(t testing.TB, ring *keyring.Ring) (*relayed, error) {
	r := &relayed{t: t}
	var err error
	if r.peer, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}); err != nil {
		return nil, err
	}
	cr, err := credential(ring, "p1")
	if err != nil {
		return nil, err
	}
	c, err := turnclient.Dial(turnclient.Config{Server: server, Credential: cr})
	if err != nil {
		return nil, err
	}
	local := net.UDPAddrFromAddrPort(c.LocalAddr())
	if _, err := c.Allocate(t.Context(), time.Hour); err != nil {
		return nil, err
	}
	if r.channel, err = c.ChannelBind(t.Context(), r.peer.LocalAddr().(*net.UDPAddr).AddrPort()); err != nil {
		return nil, err
	}
	if err := c.Close(); err != nil { // the raw socket takes its port over
		return nil, err
	}
	local.IP = net.IPv4(127, 0, 0, 1)
	if r.client, err = net.DialUDP("udp4", local, net.UDPAddrFromAddrPort(server)); err != nil {
		return nil, err
	}
	var wg sync.WaitGroup
	for _, c := range []*net.UDPConn{r.client, r.peer} {
		_ = c.SetReadBuffer(4 << 20)
	}
	wg.Go(func() {
		b := make([]byte, 1500)
		for {
			n, from, err := r.peer.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			r.there.Add(1)
			if _, err := r.peer.WriteToUDPAddrPort(b[:n], from); err != nil {
				t.Error(err)
			}
		}
	})
	wg.Go(func() {
		b := make([]byte, 1500)
		for {
			if _, err := r.client.Read(b); err != nil {
				return
			}
			r.back.Add(1)
		}
	})
	t.Cleanup(func() {
		_, _ = r.client.Close(), r.peer.Close()
		wg.Wait()
	})
	return r, nil
}

// run sends relayRate packets a second for d, and returns how many went, arrived and came back.
func (r *relayed) run(d time.Duration) (sent, there, back int64) {
	there, back = r.there.Load(), r.back.Load()
	packet := stun.AppendChannelData(nil, r.channel, make([]byte, 160))
	for begin := time.Now(); ; time.Sleep(time.Millisecond) {
		since := time.Since(begin)
		for due := int64(min(since, d).Seconds() * relayRate); sent < due; sent++ {
			if _, err := r.client.Write(packet); err != nil {
				r.t.Fatal(err)
			}
		}
		if since >= d {
			break
		}
	}
	time.Sleep(300 * time.Millisecond) // what is on its way
	return sent, r.there.Load() - there, r.back.Load() - back
}

// arrivals are newcomers who have allocated and gone, with the time from the first packet to the answer.
type arrivals struct {
	network string
	tried   int
	took    []time.Duration
}

func (a arrivals) at(share float64) time.Duration {
	if len(a.took) == 0 {
		return 0
	}
	slices.Sort(a.took)
	return a.took[int(share*float64(len(a.took)-1))].Round(100 * time.Microsecond)
}

// newcomers lets one come each 100 ms, from an address and with a pseudonym of its own, for at most 3 s, until the
// returned function is called.
func newcomers(t testing.TB, h *lab.Host, ring *keyring.Ring, network string) func() arrivals {
	var wg sync.WaitGroup
	var mu sync.Mutex
	a := arrivals{network: network}
	one := func(i int) error {
		cr, err := credential(ring, fmt.Sprintf("new-%s-%d", network, i))
		if err != nil {
			return err
		}
		from := netip.AddrFrom4([4]byte{127, 8, network[0], byte(1 + i%250)})
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		defer cancel()
		var c *turnclient.Client
		begin := time.Now()
		if err := h.In(func() (err error) {
			c, err = turnclient.DialContext(ctx, turnclient.Config{Server: server, Network: network, Local: netip.AddrPortFrom(from, 0), Credential: cr})
			return err
		}); err != nil {
			return err
		}
		defer c.Close() //nolint:errcheck // it has allocated or not
		if _, err = c.Allocate(ctx, 0); err != nil {
			return err
		}
		mu.Lock()
		a.took = append(a.took, time.Since(begin))
		mu.Unlock()
		_, err = c.Refresh(ctx, 0)
		return err
	}
	end := make(chan struct{})
	wg.Go(func() {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-end:
				return
			case <-tick.C:
				a.tried++
				i := a.tried
				wg.Go(func() {
					if err := one(i); err != nil {
						t.Logf("newcomer %d over %s: %v", i, network, err)
					}
				})
			}
		}
	})
	return func() arrivals {
		close(end)
		wg.Wait()
		return a
	}
}

func credential(ring *keyring.Ring, pseudonym string) (turnclient.Credential, error) {
	kid, mac := ring.KID(pseudonym), token.NewMACKey()
	k, f, _, ok := ring.Key(kid)
	if !ok {
		return turnclient.Credential{}, fmt.Errorf("no key for %s", kid)
	}
	tok, err := token.Seal(f, k, name, token.Payload{MACKey: mac, Timestamp: token.NewTimestamp(time.Now()), Lifetime: time.Hour})
	return turnclient.TokenUsername(kid, tok, mac), err
}

// source sends batch packets of equal size with each write; the kernel cuts them.
type source struct {
	conn   *net.UDPConn
	packet []byte // one of them
	all    []byte
}

func newSource(c, d byte) (*source, error) {
	conn, err := net.DialUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 7, c, d)}, net.UDPAddrFromAddrPort(server))
	return &source{conn: conn}, err
}

// badTokens asks for a nonce, and makes Allocates with it and a token that opens under no key: each costs
// the server all that a bad one can.
func (s *source) badTokens(ring *keyring.Ring) error {
	s.bareAllocates()
	if _, err := s.conn.Write(s.packet); err != nil {
		return err
	}
	if err := s.conn.SetReadDeadline(time.Now().Add(2 * time.Second)); err != nil {
		return err
	}
	b := make([]byte, 1500)
	n, err := s.conn.Read(b)
	if err != nil {
		return err
	}
	m, err := stun.Parse(b[:n])
	if err != nil {
		return err
	}
	nonce, _ := m.Get(stun.AttrNonce)
	kid, mac := ring.KID("attacker"), token.NewMACKey()
	k, f, _, _ := ring.Key(kid)
	tok, err := token.Seal(f, k, name, token.Payload{MACKey: mac, Timestamp: token.NewTimestamp(time.Now()), Lifetime: time.Hour})
	if err != nil {
		return err
	}
	tok[len(tok)-1] ^= 1
	s.packet = stun.AppendText(s.packet, stun.AttrUsername, kid)
	s.packet = stun.AppendText(s.packet, stun.AttrRealm, name)
	s.packet = stun.AppendAttr(s.packet, stun.AttrNonce, bytes.Clone(nonce))
	s.packet = stun.AppendAttr(s.packet, stun.AttrAccessToken, tok)
	s.packet = stun.NewHasher().AppendIntegrity(s.packet, mac.Expose())
	return nil
}

func (s *source) bareAllocates() {
	s.packet = stun.AppendHeader(nil, stun.NewType(stun.Allocate, stun.Request), stun.TransactionID{})
	s.packet = stun.AppendByte(s.packet, stun.AttrRequestedTransport, stun.ProtocolUDP)
}

// segments lets the kernel cut what is written.
func (s *source) segments() error {
	raw, err := s.conn.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = raw.Control(func(fd uintptr) { set = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT, len(s.packet)) })
	if err == nil {
		err = set
	}
	s.all = bytes.Repeat(s.packet, batch)
	return err
}

// flood sends target packets a second from the sources, in turn, until the returned function is called,
// which tells how many they were. Nobody reads the answers.
func flood(t testing.TB, sources []*source) (stop func() float64) {
	t.Helper()
	if len(sources) == 0 {
		return func() float64 { return 0 }
	}
	for _, s := range sources {
		if err := s.segments(); err != nil {
			t.Fatal(err)
		}
	}
	end, done := make(chan struct{}), make(chan struct{})
	var sent int64
	begin := time.Now()
	go func() {
		defer close(done)
		for ; ; time.Sleep(500 * time.Microsecond) {
			for due := int64(time.Since(begin).Seconds() * target); sent < due; sent += batch {
				select {
				case <-end:
					return
				default:
				}
				s := sources[sent/batch%int64(len(sources))]
				binary.BigEndian.PutUint64(s.all[8:], uint64(sent)) // another transaction
				if _, err := s.conn.Write(s.all); err != nil {
					t.Errorf("flood: %v", err)
					return
				}
			}
			select {
			case <-end:
				return
			default:
			}
		}
	}()
	return func() float64 {
		close(end)
		<-done
		return float64(sent) / time.Since(begin).Seconds()
	}
}
