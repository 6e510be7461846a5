// Package turn is the TURN server: STUN and TURN over UDP, DTLS, TCP and TLS (RFC 8489, RFC 8656), every
// client authenticated: by a token of the WAF, in RFC 7635's own shape or in the USERNAME that
// unmodified browsers can send, by an ephemeral or a pushed credential of the eP-CSCF (DESIGN,
// Credentials), or as a static user.
//
//	client ── STUN, TURN, ChannelData ──► Listen, UDP, with and without DTLS ─┐                 ┌─ relay socket, one an allocation ── peer
//	                                                                          ├─ internal/core ─┤
//	client ── the same, framed ─────────► TCP, with and without TLS ──────────┘                 └─ relay socket ── peer
//
// What is decided about a packet is decided in turn/internal/core, which has no socket and no clock.
// Here are the sockets, the goroutines (one a listener, one a relay socket, two a connection, one
// an association and pion's, one for the time), and the log.
package turn

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"wicgate/internal/listen"
	"wicgate/turn/internal/core"
)

// Keys are the keys of one TURN server name; *keyring.Ring is one.
type Keys = core.Keys

// CredentialPolicy says what happens to an allocation whose credential ends.
type CredentialPolicy = core.CredentialPolicy

// The credential policies (DESIGN, What happens when a credential ends). Each refuses a new
// Allocate with an expired token.
const (
	// Session grants Refresh while the issuer says by [Server.Extend] that the session lives, and
	// in any case as CallGrace does. It is the default.
	Session = core.Session
	// CallGrace grants Refresh until the token's expiry plus GraceMax.
	CallGrace = core.CallGrace
	// Strict ends the allocation at the token's expiry. It is what RFC 7635 §4.1.1 says; calls in
	// browsers end with it, for they cannot renew a live allocation.
	Strict = core.Strict
)

// Sibling is an address of another server that shares our names, keys and nonce secrets.
type Sibling = core.Sibling

// Relay is where relay sockets are opened.
type Relay struct {
	Bind      netip.Addr // local address; an unspecified one means every address of that family
	Advertise netip.Addr // what clients and peers see; the zero Addr means Bind
	// MinPort and MaxPort bound the ports, inclusive. Zeros mean 49152 and 65535 (RFC 8656 §7.2).
	MinPort, MaxPort uint16
}

// Tenant is one TURN server name with its keys, users, policies and quotas. Name, Keys and Peers are
// required. Zeros mean: Quota 32, QuotaTenant no bound, GraceMax 12 h, rates no bound.
type Tenant = core.Tenant

// Pushed is a credential that the eP-CSCF has told the TURN server.
type Pushed = core.Pushed

// Other is a tenant beside the first, and how its clients are known: by the listener, by the name that
// they ask for in TLS (SNI), or, where neither is named, by the kid of their token. On a listener and
// under a name of a tenant's no other's credentials are taken.
type Other struct {
	Tenant
	Listen      []netip.AddrPort // of Config.Listen and Config.TCP
	ServerNames []string         // without regard to case
}

// Config is how a [Server] is. The Tenant in it, Listen or TCP, and Relays are required. That
// tenant challenges clients on every listener that is not another's.
type Config struct {
	Log *slog.Logger // nil = discard
	Tenant
	Tenants []Other

	Listen []netip.AddrPort
	Relays []Relay // of IPv4, IPv6 or both; of one family each allocation takes one at random

	// TCP are addresses for clients on TCP and TLS, told apart by their first byte; none = none.
	TCP []netip.AddrPort
	// Certificate is the GetCertificate of TLS there; nil = TLS is refused.
	Certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	// Proxies are load balancers in front of TCP, who must send a header of the PROXY protocol.
	Proxies []netip.Prefix
	// HTTPS takes the connections for the web on an address of TCP that both use; nil = none is.
	HTTPS *listen.Handover
	// DTLS takes clients on DTLS (RFC 7350) at the addresses of Listen, besides UDP. It needs Certificate.
	DTLS bool
	// Connections at once, and those of one source, an IPv4 address or an IPv6 /64; the same again for
	// associations of DTLS. Zeros mean 8192 and 256.
	MaxConnections, MaxConnectionsSource int
	// Idle is how long a connection or an association may be without an allocation; 0 = 30 s.
	Idle time.Duration

	// Siblings are where authenticated clients are sent while draining or full; none = they are told 508.
	Siblings []Sibling

	// Revoked says whether the session of a pseudonym has been revoked, for new allocations; nil =
	// none is. Who hears news calls Revoke, Extend, Missed and Blind besides.
	Revoked func(pseudonym string) bool
	// BlindClosed refuses new allocations while Blind.
	BlindClosed bool

	MaxAllocations int // 0 = as many as relay ports
	MaxPermissions int // for each allocation; 0 = 64
	MaxChannels    int // for each allocation; 0 = 64
	// ChannelNumbers5766 takes the channel numbers of RFC 5766 too, 0x5000 to 0x7FFF, which RFC 8656
	// §12 gave up. Debian's turnutils_uclient needs it.
	ChannelNumbers5766 bool

	// NATDiscovery answers RFC 5780's questions on four of Listen: two addresses with the same two ports.
	// NATReflect takes RESPONSE-PORT and PADDING too, which others can misuse.
	// NATClassic answers clients of RFC 3489 too.
	NATDiscovery, NATReflect, NATClassic bool
	// Mobility lets clients take their allocations along to another address (RFC 8016).
	Mobility bool
	// TCPRelay lets clients on TCP and TLS have relays on TCP (RFC 6062).
	TCPRelay bool

	// Replies to one source address that has not shown a valid nonce: at once, and a second.
	// Zeros mean 100 and 20.
	ReplyBurst int
	ReplyRate  float64

	// Heritage are listening sockets that are open already; nil = none.
	Heritage *listen.Heritage
	// Takeover, where it is not nil, is called by Serve before it reads. It fetches what another Server
	// has given by Pause, and calls restore with it, which owns the files. After an error Serve returns.
	Takeover func(ctx context.Context, restore func(state []byte, relays []*os.File) error) error

	// Drain is how long Serve waits, once its context has ended, for clients to end their
	// allocations; 0 = 2 s, at most 5 s.
	Drain time.Duration
}

// Server is a TURN server. Make it with [New], run it with [Server.Serve].
type Server struct {
	cfg       Config
	log       *slog.Logger
	listeners []*net.UDPConn
	lanes     []*net.UDPConn // of the same numbers, see openLane; nil = none
	pools     [2][]*pool     // of relay ports: IPv4, IPv6
	desks     desks
	refusals  refusalLog
	kick      chan struct{}  // a deadline may have come nearer; never closed
	udp       sync.WaitGroup // readers of listeners
	relays    sync.WaitGroup
	tcp       *listen.Streams // nil = none
	streams   streams
	dtls      *listen.DTLS // nil = none
	stopping  atomic.Bool

	associations associations

	sendErrors, tooLong atomic.Uint64

	chosen    choices
	refuseOwn func(*Tenant) // adds what is ours to its policy; set by ownPeers

	moving   sync.RWMutex // held from Pause to Resume or Leave, and by what would be lost meanwhile; before mu
	moved    moved        // guarded by moving
	forwards forwards
	// numbers are of UDP listeners that another process has opened: by its number, ours.
	numbers map[int]uint16

	serving   context.Context // until it closes its sockets
	stopServe context.CancelFunc

	mu   sync.Mutex // guards core
	core *core.Core
}

// New checks cfg, opens the listening sockets and returns the server.
func New(cfg Config) (*Server, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	s := &Server{numbers: map[int]uint16{}, cfg: cfg, log: cfg.Log, kick: make(chan struct{}, 1), streams: streams{open: map[core.Tuple]*stream{}}, associations: associations{open: map[core.Tuple]*listen.Association{}}}
	s.serving, s.stopServe = context.WithCancel(context.Background())
	for i, a := range cfg.Listen {
		c, was, err := cfg.Heritage.UDP("turn.listen", a)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("turn: %w", err), s.Close())
		}
		// The kernel's cap may leave it smaller; then bursts are lost earlier, which is all.
		_ = c.SetReadBuffer(listenBuffer)
		_ = c.SetWriteBuffer(listenBuffer)
		s.listeners = append(s.listeners, c)
		if was >= 0 {
			s.numbers[was] = uint16(i)
		}
		if err := s.addLane(c, a); err != nil {
			return nil, errors.Join(err, s.Close())
		}
	}
	if err := errors.Join(s.newStreams(), s.newDTLS()); err != nil {
		return nil, errors.Join(fmt.Errorf("turn: %w", err), s.Close())
	}
	if err := s.heirless(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	families := byte(0)
	for _, r := range s.cfg.Relays {
		f := family(r.Bind)
		families |= 1 << f // stun.FamilyIPv4, stun.FamilyIPv6
		s.pools[f] = append(s.pools[f], newPool(r))
	}
	if err := s.ownPeers(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	nat, err := s.natDiscovery()
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	c := core.Config{
		Tenant: s.cfg.Tenant, Families: families, DontFragment: dontFragment, NATDiscovery: nat, TCPRelay: s.cfg.TCPRelay, Mobility: s.cfg.Mobility,
		MaxAllocations: s.cfg.MaxAllocations, MaxPermissions: s.cfg.MaxPermissions, MaxChannels: s.cfg.MaxChannels, ChannelNumbers5766: s.cfg.ChannelNumbers5766,
		ReplyBurst: s.cfg.ReplyBurst, ReplyRate: s.cfg.ReplyRate, Siblings: s.cfg.Siblings, Revoked: s.cfg.Revoked, BlindClosed: s.cfg.BlindClosed,
	}
	for _, t := range s.cfg.Tenants {
		c.Others = append(c.Others, t.Tenant)
	}
	s.core = core.New(c)
	s.chosen = s.choices()
	return s, nil
}

// addLane opens the lane of the listening socket c, which is at the address a of the configuration.
func (s *Server) addLane(c *net.UDPConn, a netip.AddrPort) error {
	lane, err := s.cfg.Heritage.Lane(a)
	if lane == nil && err == nil {
		lane, err = openLane(c)
	}
	if err != nil {
		return fmt.Errorf("turn: second socket on %v, for relayed data: %w; it takes Linux 4.5 or later, see whether a sandbox forbids SO_REUSEPORT or SO_ATTACH_REUSEPORT_CBPF", c.LocalAddr(), err)
	}
	if lane != nil {
		_ = lane.SetReadBuffer(listenBuffer) // as in New
	}
	s.lanes = append(s.lanes, lane)
	return nil
}

const (
	listenBuffer = 4 << 20 // bytes of kernel buffer
	relayBuffer  = 256 << 10
)

// complete fills in defaults and says what is wrong.
func (c *Config) complete() error {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	ports, err := c.completeRelays()
	switch {
	case len(c.Listen)+len(c.TCP) == 0:
		return errors.New("turn: no address to listen on; set turn.listen")
	case len(c.Listen)+len(c.TCP) > 1<<16:
		return fmt.Errorf("turn: %d addresses to listen on, at most %d", len(c.Listen)+len(c.TCP), 1<<16)
	case err != nil:
		return err
	case c.MaxAllocations < 0 || c.MaxPermissions < 0 || c.MaxChannels < 0 || c.ReplyBurst < 0 || c.ReplyRate < 0 ||
		c.MaxConnections < 0 || c.MaxConnectionsSource < 0 || c.Idle < 0:
		return errors.New("turn: a limit is negative")
	case c.Drain < 0 || c.Drain > 5*time.Second:
		return fmt.Errorf("turn: drain %v: want 0 to 5s", c.Drain)
	}
	if err := c.completeSiblings(); err != nil {
		return err
	}
	c.Tenants = slices.Clone(c.Tenants) // completed in place
	if err := c.completeTenants(); err != nil {
		return err
	}
	setDefault(&c.MaxPermissions, 64)
	setDefault(&c.MaxChannels, 64)
	setDefault(&c.Drain, 2*time.Second)
	setDefault(&c.Idle, defaultIdle)
	if c.MaxAllocations == 0 || c.MaxAllocations > ports {
		c.MaxAllocations = ports
	}
	return nil
}

// maxSiblings bounds the look for one that suits a client.
const maxSiblings = 64

func (c *Config) completeSiblings() error {
	if len(c.Siblings) > maxSiblings {
		return fmt.Errorf("turn: %d siblings, at most %d", len(c.Siblings), maxSiblings)
	}
	c.Siblings = slices.Clone(c.Siblings)
	for i := range c.Siblings {
		s := &c.Siblings[i]
		s.Address = unmap(s.Address)
		if !s.Address.IsValid() || s.Address.Addr().IsUnspecified() || s.Address.Port() == 0 || len(s.Domain) > 255 {
			return fmt.Errorf("turn: sibling %d: want an address and port that clients reach, and a domain of at most 255 bytes, not %v %.20q; set turn.siblings", i, s.Address, s.Domain)
		}
	}
	return nil
}

// completeRelays does so for Relays, and returns how many ports they have.
func (c *Config) completeRelays() (ports int, err error) {
	c.Relays = slices.Clone(c.Relays)
	if len(c.Relays) == 0 {
		return 0, errors.New("turn: no address for relay sockets; set turn.relay")
	}
	for i := range c.Relays {
		r := &c.Relays[i]
		if r.MinPort == 0 && r.MaxPort == 0 {
			r.MinPort, r.MaxPort = 49152, 65535
		}
		if !r.Advertise.IsValid() {
			r.Advertise = r.Bind
		}
		r.Bind, r.Advertise = r.Bind.Unmap(), r.Advertise.Unmap()
		key := fmt.Sprintf("turn.relay[%d]", i)
		switch {
		case !r.Bind.IsValid():
			return 0, fmt.Errorf("turn: no address for relay sockets; set %s.bind", key)
		case r.Advertise.IsUnspecified():
			return 0, fmt.Errorf("turn: relay address %v cannot be told to anybody; set %s.advertise", r.Advertise, key)
		case r.Bind.Is4() != r.Advertise.Is4():
			return 0, fmt.Errorf("turn: %s.bind %v and advertise %v are of different families", key, r.Bind, r.Advertise)
		case r.MinPort < 1024 || r.MinPort > r.MaxPort:
			return 0, fmt.Errorf("turn: %s.ports %d to %d: want 1024 <= min <= max (RFC 8656 §7.2)", key, r.MinPort, r.MaxPort)
		}
		for j, o := range c.Relays[:i] {
			// Two sockets on one port, or two allocations with one relayed address.
			same := o.Advertise == r.Advertise || o.Bind == r.Bind || o.Bind.Is4() == r.Bind.Is4() && (o.Bind.IsUnspecified() || r.Bind.IsUnspecified())
			if same && o.MinPort <= r.MaxPort && r.MinPort <= o.MaxPort {
				return 0, fmt.Errorf("turn: %s.ports %d to %d overlap with those of turn.relay[%d] on the same address; give each a range of its own", key, r.MinPort, r.MaxPort, j)
			}
		}
		ports += int(r.MaxPort) - int(r.MinPort) + 1
	}
	return ports, nil
}

func setDefault[T int | time.Duration](v *T, d T) {
	if *v == 0 {
		*v = d
	}
}

// ownPeers finds what is ours, for the policies to refuse: the listeners at every door, and in the
// general profile all addresses of this machine, a public one with a filtered service on it too, but for
// ports that hold a relay and those that the policy opens by name.
func (s *Server) ownPeers() error {
	machine, err := net.InterfaceAddrs()
	if err != nil {
		return fmt.Errorf("turn: list this machine's addresses, to refuse them as peers: %w", err)
	}
	var own, advertised []netip.Addr
	for _, r := range s.cfg.Relays {
		advertised = append(advertised, r.Advertise)
		own = append(own, r.Advertise, r.Bind)
	}
	for _, i := range machine {
		if p, err := netip.ParsePrefix(i.String()); err == nil {
			own = append(own, p.Addr().Unmap())
		}
	}
	var listeners []netip.AddrPort
	for _, a := range slices.Concat(s.Addrs(), s.TCPAddrs()) {
		if !a.Addr().IsUnspecified() {
			listeners = append(listeners, a)
			for _, o := range advertised { // ours as well behind a one-to-one NAT
				listeners = append(listeners, netip.AddrPortFrom(o, a.Port()))
			}
			continue
		}
		for _, o := range own {
			listeners = append(listeners, netip.AddrPortFrom(o, a.Port()))
		}
	}
	s.refuseOwn = func(t *Tenant) { t.Peers = t.Peers.WithListeners(listeners...).WithRelays(own...) }
	s.refuseOwn(&s.cfg.Tenant)
	for i := range s.cfg.Tenants {
		s.refuseOwn(&s.cfg.Tenants[i].Tenant)
	}
	return nil
}

// TCPAddrs is Addrs for TCP.
func (s *Server) TCPAddrs() []netip.AddrPort {
	if s.tcp == nil {
		return nil
	}
	return s.tcp.Addrs()
}

// Addrs returns the addresses that the server listens on with UDP, ports filled in.
func (s *Server) Addrs() []netip.AddrPort {
	var out []netip.AddrPort
	for _, c := range s.listeners {
		out = append(out, unmap(c.LocalAddr().(*net.UDPAddr).AddrPort()))
	}
	return out
}

func unmap(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// Close closes the listening sockets and connections of a server that is not to be served. Serve closes them itself.
func (s *Server) Close() error {
	s.stopServe()
	var errs []error
	if s.dtls != nil {
		s.dtls.Close() // while it can still tell its clients
	}
	s.forwards.close(true)
	for _, c := range slices.Concat(s.listeners, s.lanes) {
		if c == nil {
			continue
		}
		if err := c.Close(); !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	if s.tcp != nil {
		errs = append(errs, s.tcp.Close())
	}
	return errors.Join(errs...)
}

// Serve relays until ctx ends. Then it refuses new allocations, waits Drain for the others to end,
// ends them, closes all sockets, and returns nil once every goroutine that it started has returned.
// It can be called once.
func (s *Server) Serve(ctx context.Context) error {
	var readers, timer sync.WaitGroup
	if s.cfg.Takeover != nil {
		if err := s.takeOver(ctx); err != nil {
			return errors.Join(fmt.Errorf("turn: %w", err), s.Close())
		}
	}
	stop := make(chan struct{}) // closed here, ends the timer
	timer.Go(func() { s.serveTime(stop) })
	s.readListeners()
	if s.tcp != nil {
		readers.Go(func() { s.tcp.Serve(s.serveStream) })
	}
	<-ctx.Done()
	s.moving.Lock() // whoever takes over has, or has not
	s.moved.gone = true
	s.moving.Unlock()
	s.drain()
	// Nothing new is allocated any more. This comes before the connections are closed, so that the
	// end of their allocations has its true cause.
	w := newWorker(s)
	s.mu.Lock()
	s.core.EndAll(time.Now(), &w.out)
	s.mu.Unlock()
	w.act(&w.out)
	s.stopping.Store(true)
	s.stopServe()
	closeErr := s.Close()
	readers.Wait()
	s.udp.Wait() // from here on no relay is opened
	close(stop)
	timer.Wait()
	s.relays.Wait()
	return closeErr
}

// drain waits for the allocations to end, up to Drain.
func (s *Server) drain() {
	s.mu.Lock()
	s.core.Drain(true, time.Time{})
	s.mu.Unlock()
	end := time.NewTimer(s.cfg.Drain)
	defer end.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for s.Stats().Allocations > 0 {
		select {
		case <-tick.C:
		case <-end.C:
			return
		}
	}
}

// Drain refuses new allocations from now on, with 300 to a sibling or with 508, and ends those that
// there still are at end; the zero Time is never.
func (s *Server) Drain(end time.Time) { s.setDrain(true, end) }

// Undrain takes new allocations again.
func (s *Server) Undrain() { s.setDrain(false, time.Time{}) }

func (s *Server) setDrain(on bool, end time.Time) {
	s.moving.RLock()
	defer s.moving.RUnlock()
	s.mu.Lock()
	s.core.Drain(on, end)
	s.mu.Unlock()
	s.wakeTimer()
}

// Oldest returns how many allocations there are and when the oldest of them began, the zero Time if
// there is none.
func (s *Server) Oldest() (n int, born time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	born, _ = s.core.Oldest()
	return s.core.Allocations(), born
}

// serveTime ends allocations when their time has come.
func (s *Server) serveTime(stop <-chan struct{}) {
	w := newWorker(s)
	next := time.NewTimer(0)
	defer next.Stop()
	for {
		select {
		case <-next.C:
		case <-s.kick:
		case <-stop:
			return
		}
		s.mu.Lock()
		s.core.Timeout(time.Now(), &w.out)
		at, ok := s.core.NextTimeout()
		s.mu.Unlock()
		w.act(&w.out)
		wait := time.Hour
		if ok {
			wait = max(0, time.Until(at))
		}
		next.Reset(wait)
	}
}

// Revoke ends all allocations of pseudonym at once and returns how many they were.
func (s *Server) Revoke(pseudonym string) int {
	w := newWorker(s)
	s.mu.Lock()
	n := s.core.Revoke(time.Now(), pseudonym, &w.out)
	s.mu.Unlock()
	w.act(&w.out)
	return n
}

// Recheck ends the allocations of static users who are no longer among Users with the key that they
// authenticated with, and returns how many they were. It is to be called when Users has changed.
func (s *Server) Recheck() int {
	s.moving.RLock()
	defer s.moving.RUnlock()
	w := newWorker(s)
	s.mu.Lock()
	n := s.core.Recheck(time.Now(), &w.out)
	s.mu.Unlock()
	w.act(&w.out)
	return n
}

// Extend is the issuer's news that the session of pseudonym lives until the given time.
func (s *Server) Extend(pseudonym string, until time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.core.Extend(time.Now(), pseudonym, until)
}

// Missed tells that extensions may have been lost: no session is held to have ended for want of one.
func (s *Server) Missed() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.core.Missed()
}

// Blind tells that nothing is heard of revocations (true), or again something is.
func (s *Server) Blind(blind bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.core.Blind(blind)
}

// Stats counts since New, except Allocations. The keys of the maps are fixed sets.
type Stats struct {
	Allocations      int // now
	AllocationsTotal uint64
	Bindings         uint64            // Binding requests answered
	Refused401       uint64            // challenges among them
	Refused          map[string]uint64 // packets refused or dropped, by cause, challenges too
	Ended            map[string]uint64 // allocations, by cause

	// Relayed payload.
	ToPeerPackets, ToPeerBytes, ToClientPackets, ToClientBytes uint64

	SendErrors uint64 // packets that the kernel did not take, or whose connection was gone
	TooLong    uint64 // packets of peers above 4096 bytes, dropped
	ICMP       uint64 // ICMP errors about packets to peers, told to clients

	// Clients on TCP and TLS.
	Connections        int // now
	TCP, TLS           uint64
	ConnectionsRefused map[string]uint64 // before a first message, by cause
	ConnectionsEnded   map[string]uint64 // by cause
	QueueDropped       uint64            // packets of peers that a connection had no room for

	// Clients on DTLS.
	Associations        int // now
	DTLS                uint64
	AssociationsRefused map[string]uint64 // before a first message, by cause
	AssociationsEnded   map[string]uint64 // by cause
}

// Stats returns the counters.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	c := s.core.Stats()
	s.mu.Unlock()
	out := Stats{
		Allocations: c.Allocations, AllocationsTotal: c.AllocationsTotal, Bindings: c.Bindings, Refused401: c.Unauthenticated,
		Refused: make(map[string]uint64, len(c.Refused)), Ended: make(map[string]uint64, len(c.Ended)),
		ToPeerPackets: c.Traffic.SentPackets, ToPeerBytes: c.Traffic.SentBytes, ToClientPackets: c.Traffic.ReceivedPackets, ToClientBytes: c.Traffic.ReceivedBytes,
		SendErrors: s.sendErrors.Load(), TooLong: s.tooLong.Load(), ICMP: c.ICMP,
	}
	for i, n := range c.Refused[1:] {
		out.Refused[core.Cause(i+1).Label()] = n
	}
	for i, n := range c.Ended {
		out.Ended[core.EndCause(i).String()] = n
	}
	if s.dtls != nil {
		d := s.dtls.Stats()
		out.Associations, out.DTLS, out.AssociationsRefused = d.Open, d.Begun, d.Refused
		out.AssociationsEnded = make(map[string]uint64, len(associationEnds))
		for _, why := range associationEnds {
			out.AssociationsEnded[streamEnds[why]] = s.associations.ends[why].Load()
		}
	}
	if s.tcp == nil {
		return out
	}
	t := s.tcp.Stats()
	out.Connections, out.TCP, out.TLS, out.ConnectionsRefused = t.Open, t.Plain, t.TLS, t.Refused
	out.ConnectionsEnded = make(map[string]uint64, numStreamEnds)
	for i, why := range streamEnds {
		out.ConnectionsEnded[why] = s.streams.ends[i].Load()
	}
	out.QueueDropped = s.streams.dropped.Load()
	return out
}
