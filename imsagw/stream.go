package imsagw

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pion/dtls/v3"

	"wicgate/internal/iq"
)

const (
	// maxPacket bounds a datagram, in bytes: more than any path of ours carries unfragmented.
	maxPacket = 2048
	// maxTail is what SRTP or SRTCP may add: a tag of 16 bytes at most, an index of 4.
	maxTail = 32
	// maxHeld bounds the DTLS packets held for sources not yet validated; a hello is two.
	maxHeld = 8
	// maxValid bounds the addresses of the browser that ICE has validated.
	maxValid = 16
)

// remoteAccess is the browser's side: what its certificate must be, for the stream's life.
type remoteAccess struct {
	hash   string // of the fingerprint
	digest []byte
}

// stream is one m-line between a browser and the core.
//
// Its goroutines: three readers, one for each socket, from the start; the pair and consent (run) and
// DTLS (runDTLS) from the moment the browser's side is known; and those of pion's agents. A packet is
// handled to its end by the reader that read it.
type stream struct {
	s     *session
	g     *Gateway
	media string
	// before is what the streams have carried that had this place and stopped.
	before totals

	accessConn, rtpConn, rtcpConn *net.UDPConn

	dtlsQueue *queue
	consent   consent

	// remote, keyed and stopped are guarded by the session's mu; peer is remote again, for DTLS.
	remote  *remoteAccess
	keyed   bool
	stopped bool // its line is given up, or its session ends: it has nothing to tell any more
	peer    atomic.Pointer[remoteAccess]

	// generations of ICE, newest first, at least one: the readers take the slice as it is. electing makes
	// changes to it, and to elected, one at a time; it is taken after the session's mu.
	electing    sync.Mutex
	generations atomic.Pointer[[]*generation]
	elected     atomic.Pointer[generation] // whose pair selected is
	restarting  atomic.Int32               // generations that wait for a pair while an older one has it

	core     atomic.Pointer[iq.CoreRemote]    // nil before it is known; an invalid address is one on hold
	selected atomic.Pointer[netip.AddrPort]   // the browser's address of the nominated pair
	valid    atomic.Pointer[[]netip.AddrPort] // its validated addresses; the access reader replaces the slice
	hello    atomic.Pointer[netip.AddrPort]   // where its last DTLS packet came from
	keys     atomic.Pointer[keys]             // nil before DTLS has ended
	dtls     atomic.Pointer[dtls.Conn]        // to close it
	profile  atomic.Pointer[string]           // name of the SRTP profile
	muted    atomic.Bool                      // consent is lost: nothing is sent, either way
	held     []queued                         // the access reader's own
	// pictures that pass, and do not: the access reader's own, and the core RTP reader's.
	fromBrowser, fromCore pictures
	message               stunMessage   // the access reader's own
	pair                  chan struct{} // holds one when selected is new; never closed
	wake                  chan struct{} // holds one when DTLS may begin; never closed
	count                 counters
	ctx                   context.Context
	cancel                context.CancelFunc
	wg                    sync.WaitGroup // of the goroutines above, pion's excepted
	closing               sync.Once
}

// newStream takes ports and starts the readers.
func newStream(s *session, media string) (*stream, error) {
	g := s.g
	access, err := g.access.open()
	if err != nil {
		return nil, err
	}
	core, err := g.core.open()
	if err != nil {
		g.access.release(access)
		return nil, err
	}
	st := &stream{
		s: s, g: g, media: media,
		accessConn: access[0], rtpConn: core[0], rtcpConn: core[1],
		pair: make(chan struct{}, 1), wake: make(chan struct{}, 1),
		consent: consent{period: g.timing.consentPeriod, expiry: g.timing.consentExpiry},
	}
	st.ctx, st.cancel = context.WithCancel(context.Background())
	st.dtlsQueue = newQueue(g.access.advertised(st.accessConn), st.writeDTLS)
	first, err := st.newGeneration()
	if err != nil {
		g.access.release(access)
		g.core.release(core)
		return nil, err
	}
	st.generations.Store(&[]*generation{first})
	st.wg.Go(func() { st.read(st.accessConn, st.fromAccess) })
	st.wg.Go(func() { st.read(st.rtpConn, st.fromCoreRTP) })
	st.wg.Go(func() { st.read(st.rtcpConn, st.fromCoreRTCP) })
	return st, nil
}

// read hands each datagram of a socket to handle, until the socket is closed. The slice has room for
// maxTail bytes more, and is handle's until it returns.
func (st *stream) read(conn *net.UDPConn, handle func(b []byte, from netip.AddrPort)) {
	buf := make([]byte, maxPacket+maxTail)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buf[:maxPacket+1])
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil: // of an earlier packet, or of the interface; the socket is as good as before
			select {
			case <-st.ctx.Done():
			case <-time.After(10 * time.Millisecond):
			}
			continue
		case n > maxPacket:
			st.count.drop(dropOversize)
			continue
		}
		handle(buf[:n], netip.AddrPortFrom(from.Addr().Unmap(), from.Port()))
	}
}

// fromAccess sorts a datagram from the browser's side by its first byte (RFC 7983 §7).
func (st *stream) fromAccess(b []byte, from netip.AddrPort) {
	switch {
	case len(b) == 0:
		st.count.drop(dropUnknown)
	case b[0] <= 3:
		st.fromSTUN(b, from)
	case b[0] >= 20 && b[0] <= 63:
		st.fromDTLS(b, from)
	case b[0] >= 128 && b[0] <= 191:
		st.fromSRTP(b, from)
	default: // 16 to 19 ZRTP, 64 to 79 TURN's channels
		st.count.drop(dropUnknown)
	}
}

// fromDTLS hands a DTLS packet to the agent, if ICE has validated its source. A browser says hello as soon
// as its own check is answered, which may be a moment before ours is: from a source whose check was
// authenticated the hello is held until then, else the browser would wait for its retransmission.
func (st *stream) fromDTLS(b []byte, from netip.AddrPort) {
	if !st.isValid(from) {
		if !st.isKnown(from) || len(st.held) >= maxHeld {
			st.count.drop(dropForeign)
			return
		}
		st.held = append(st.held, queued{append([]byte(nil), b...), from})
		return
	}
	st.passDTLS(b, from)
}

// passDTLS hands a packet to the agent.
func (st *stream) passDTLS(b []byte, from netip.AddrPort) {
	if h := st.hello.Load(); h == nil || *h != from {
		st.hello.Store(&from)
	}
	if !st.dtlsQueue.push(b, from) {
		st.count.drop(dropQueue)
		return
	}
	nudge(st.wake)
}

// isValid says whether ICE has validated an address of the browser.
func (st *stream) isValid(a netip.AddrPort) bool {
	if s := st.selected.Load(); s != nil && *s == a {
		return true
	}
	if v := st.valid.Load(); v != nil {
		for _, o := range *v {
			if o == a {
				return true
			}
		}
	}
	return false
}

// validate adds an address to the validated ones, and passes on what DTLS it has sent before. The oldest but
// the selected gives way.
func (st *stream) validate(a netip.AddrPort) {
	if st.isValid(a) {
		return
	}
	selected := st.selected.Load()
	var next []netip.AddrPort
	if v := st.valid.Load(); v != nil {
		next = append(next, *v...)
	}
	for i := 0; len(next) >= maxValid; {
		if selected != nil && next[i] == *selected {
			i++
			continue
		}
		next = append(next[:i], next[i+1:]...)
	}
	next = append(next, a)
	st.valid.Store(&next)
	rest := st.held[:0]
	for _, p := range st.held {
		if p.from == a {
			st.passDTLS(p.b, a)
		} else {
			rest = append(rest, p)
		}
	}
	st.held = rest
}

// writeDTLS sends what the DTLS agent writes to the nominated address, or, before there is one, to the
// validated address that the browser's own DTLS came from.
func (st *stream) writeDTLS(b []byte, _ netip.AddrPort) (int, error) {
	to := st.selected.Load()
	if to == nil {
		to = st.hello.Load()
	}
	switch {
	case to == nil:
		st.count.drop(dropNoRemote)
		return len(b), nil
	case st.muted.Load():
		st.count.drop(dropConsent)
		return len(b), nil
	}
	return st.send(b, *to)
}

// send writes to the browser. A refused packet is a lost packet.
func (st *stream) send(b []byte, to netip.AddrPort) (int, error) {
	if _, err := st.accessConn.WriteToUDPAddrPort(b, to); err != nil {
		if errors.Is(err, net.ErrClosed) {
			return 0, err
		}
		st.count.drop(dropSend)
	}
	return len(b), nil
}

// setCore tells the core's side. The caller holds the session's mu, and has checked the addresses.
func (st *stream) setCore(c iq.CoreRemote) {
	if c.RTP.Addr().IsUnspecified() {
		st.core.Store(&iq.CoreRemote{})
		return
	}
	unmap := func(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }
	st.core.Store(&iq.CoreRemote{RTP: unmap(c.RTP), RTCP: unmap(c.RTCP)})
}

// setAccess tells the browser's side: the first time it starts ICE and waits for DTLS, later it adds candidates, or,
// where the browser's ICE credentials have changed, restarts ICE. The caller holds the session's mu, and has
// checked that the fingerprint stays.
func (st *stream) setAccess(a iq.AccessRemote) error {
	if st.remote != nil {
		return st.nextGeneration(a)
	}
	digest, err := a.Fingerprint.Digest()
	if err != nil {
		return err
	}
	if err := (*st.generations.Load())[0].start(a); err != nil {
		return err
	}
	st.remote = &remoteAccess{hash: a.Fingerprint.Hash, digest: digest}
	st.peer.Store(st.remote)
	st.wg.Go(st.run)
	st.wg.Go(st.runDTLS)
	return nil
}

// local is what the edge tells the two sides.
func (st *stream) local() iq.LocalStream {
	access := st.g.access.advertised(st.accessConn)
	now := (*st.generations.Load())[0]
	return iq.LocalStream{
		Access: iq.AccessLocal{
			Ufrag: now.ufrag, Pwd: string(now.pwd.Expose()), Fingerprint: st.g.fingerprint,
			// The priority of the one host candidate of component 1, RFC 8445 §5.1.2.1.
			Candidates: []string{fmt.Sprintf("1 1 udp %d %v %d typ host", hostPriority, access.Addr(), access.Port())},
			Default:    access,
		},
		Core: iq.CoreLocal{RTP: st.g.core.advertised(st.rtpConn), RTCP: st.g.core.advertised(st.rtcpConn)},
	}
}

// close says goodbye to the browser, ends all goroutines, pion's too, and frees the ports.
func (st *stream) close() {
	st.closing.Do(func() {
		st.cancel()
		if c := st.dtls.Load(); c != nil {
			_ = c.Close() // close_notify, if there is somebody to take it
		}
		_ = st.dtlsQueue.Close()
		st.closeGenerations()
		st.g.access.release([]*net.UDPConn{st.accessConn})
		st.g.core.release([]*net.UDPConn{st.rtpConn, st.rtcpConn})
		st.wg.Wait()
	})
}

func (st *stream) report() iq.StreamReport {
	r := iq.StreamReport{Media: st.media}
	var t totals
	t.addStream(st)
	r.AccessRx, r.AccessTx, r.CoreRx, r.CoreTx = t.accessRx, t.accessTx, t.coreRx, t.coreTx
	r.Discarded = t.drops[dropAuth] + t.drops[dropForeign]
	if p := st.profile.Load(); p != nil {
		r.Profile = *p
	}
	return r
}

// nudge leaves a mark in a channel of one place.
func nudge(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
