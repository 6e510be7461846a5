package imsagw

import (
	"encoding/binary"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"

	"github.com/pion/rtcp"
	"github.com/pion/rtp"
	"github.com/pion/srtp/v3"
)

const (
	// replayWindow is how many packets an SRTP packet may be late, RFC 3711 §3.3.2 (at least 64). Video at 10 Mbit/s is
	// some 1000 packets a second, and paths of mobile networks reorder over more than a tenth of that.
	replayWindow = 1024
	// maxSSRC bounds the sources of one stream and direction. Each costs state for the call's life.
	maxSSRC               = 64
	rtpHeader, rtcpHeader = 12, 8
)

// keys is a stream's SRTP state. Each part belongs to one reader, so that none needs a lock.
type keys struct {
	in  inbound  // the access reader's
	rtp outbound // the core RTP reader's
	// rtcp has the same master key as rtp: SRTP and SRTCP keys are derived from it apart
	// (RFC 3711 §4.3.2), and each reader uses only one of the two.
	rtcp outboundRTCP
	ask  asking
}

type inbound struct {
	ctx       *srtp.Context
	header    rtp.Header
	control   rtcp.Header
	rtp, rtcp sources
}

type outbound struct {
	ctx    *srtp.Context
	header rtp.Header
	sent   sequences
}

type outboundRTCP struct {
	ctx     *srtp.Context
	control rtcp.Header
	sources sources
}

// newKeys makes the contexts of the server's end.
func newKeys(profile srtp.ProtectionProfile, k srtp.SessionKeys) (*keys, error) {
	in, err := srtp.CreateContext(k.RemoteMasterKey, k.RemoteMasterSalt, profile,
		srtp.SRTPReplayProtection(replayWindow), srtp.SRTCPReplayProtection(replayWindow))
	if err != nil {
		return nil, err
	}
	out, err := srtp.CreateContext(k.LocalMasterKey, k.LocalMasterSalt, profile)
	if err != nil {
		return nil, err
	}
	outRTCP, err := srtp.CreateContext(k.LocalMasterKey, k.LocalMasterSalt, profile)
	if err != nil {
		return nil, err
	}
	ask, err := srtp.CreateContext(k.LocalMasterKey, k.LocalMasterSalt, profile)
	if err != nil {
		return nil, err
	}
	return &keys{
		in:   inbound{ctx: in, rtp: sources{}, rtcp: sources{}},
		rtp:  outbound{ctx: out, sent: sequences{}},
		rtcp: outboundRTCP{ctx: outRTCP, sources: sources{}},
		ask:  asking{ctx: ask, ssrc: rand.Uint32()},
	}, nil
}

// sources are the SSRCs seen.
type sources map[uint32]struct{}

// room says whether an SSRC is known or may still become known.
func (s sources) room(ssrc uint32) bool {
	_, ok := s[ssrc]
	return ok || len(s) < maxSSRC
}

func (s sources) add(ssrc uint32) {
	if _, ok := s[ssrc]; !ok {
		s[ssrc] = struct{}{}
	}
}

// sequences finds core packets whose SRTP index was used before. The gateway passes SSRC and sequence
// number on, and both AES-CM and AES-GCM lose everything if one index encrypts two packets
// (RFC 3711 §9.1, RFC 7714 §10.1); a core that repeats itself must not bring that about.
type sequences map[uint32]*sequence

type sequence struct {
	top  uint64     // highest index sent: rollover counter and sequence number
	seen [16]uint64 // a bit for each of the newest 1024 indices, at index mod 1024
}

// sequenceWindow is how far back seen can tell; a word is cleared whole when the top comes to it.
const sequenceWindow = 1024 - 64

// admit says whether a packet may be sent; if not, why.
func (s sequences) admit(ssrc uint32, seq uint16) (cause, bool) {
	q := s[ssrc]
	if q == nil {
		if len(s) >= maxSSRC {
			return dropSSRC, false
		}
		q = &sequence{top: uint64(seq)}
		q.mark(q.top)
		s[ssrc] = q
		return 0, true
	}
	// The nearest index with this sequence number, RFC 3711 §3.3.1.
	if ahead := int(int16(seq - uint16(q.top))); ahead > 0 {
		next := q.top + uint64(ahead)
		for w := q.top/64 + 1; w <= next/64 && w <= q.top/64+uint64(len(q.seen)); w++ {
			q.seen[w%uint64(len(q.seen))] = 0
		}
		q.top = next
		q.mark(next)
		return 0, true
	} else if back := -ahead; back >= sequenceWindow || uint64(back) > q.top || q.marked(q.top-uint64(back)) {
		return dropSequence, false
	} else {
		q.mark(q.top - uint64(back))
		return 0, true
	}
}

func (q *sequence) mark(i uint64)        { q.seen[i/64%16] |= 1 << (i % 64) }
func (q *sequence) marked(i uint64) bool { return q.seen[i/64%16]>>(i%64)&1 == 1 }

// isRTCP tells RTCP from RTP by the second byte, RFC 5761 §4.
func isRTCP(b []byte) bool { return b[1] >= 192 && b[1] <= 223 }

// fromSRTP takes an SRTP or SRTCP packet of the browser, decrypts it where it lies, and sends it to the core.
func (st *stream) fromSRTP(b []byte, from netip.AddrPort) {
	c := st.keys.Load()
	switch {
	case len(b) < rtcpHeader:
		st.count.drop(dropMalformed)
		return
	case c == nil:
		st.count.drop(dropNoKeys)
		return
	case !st.isValid(from):
		st.count.drop(dropForeign)
		return
	case st.muted.Load():
		st.count.drop(dropConsent)
		return
	}
	core := st.core.Load()
	var to netip.AddrPort
	conn := st.rtpConn
	var out []byte
	var err error
	if isRTCP(b) {
		ssrc := binary.BigEndian.Uint32(b[4:])
		if !c.in.rtcp.room(ssrc) {
			st.count.drop(dropSSRC)
			return
		}
		if out, err = c.in.ctx.DecryptRTCP(b[:0], b, &c.in.control); err == nil {
			c.in.rtcp.add(ssrc)
		}
		conn = st.rtcpConn
		if core != nil {
			to = core.RTCP
		}
	} else {
		if len(b) < rtpHeader {
			st.count.drop(dropMalformed)
			return
		}
		ssrc := binary.BigEndian.Uint32(b[8:])
		if !c.in.rtp.room(ssrc) {
			st.count.drop(dropSSRC)
			return
		}
		if out, err = c.in.ctx.DecryptRTP(b[:0], b, &c.in.header); err == nil {
			c.in.rtp.add(ssrc)
		}
		if core != nil {
			to = core.RTP
		}
	}
	if err != nil {
		st.count.drop(dropAuth)
		return
	}
	st.count.accessRx.add(len(out))
	sent := st.sendCore(conn, out, to)
	if st.media == "video" && conn == st.rtpConn {
		if ssrc := binary.BigEndian.Uint32(out[8:]); st.fromBrowser.passes(ssrc, sent, time.Now()) {
			st.askBrowser(c, ssrc)
		}
	}
}

// sendCore says whether the packet has left.
func (st *stream) sendCore(conn *net.UDPConn, b []byte, to netip.AddrPort) bool {
	if !to.IsValid() {
		st.count.drop(dropNoRemote)
		return false
	}
	if _, err := conn.WriteToUDPAddrPort(b, to); err != nil {
		st.count.drop(dropSend)
		return false
	}
	st.count.coreTx.add(len(b))
	return true
}

// ready finds what a packet of the core needs to go on, or drops it. from must have the address, not the
// port, that was signalled: some senders use another port than they receive on (RFC 4961 §2).
func (st *stream) ready(signalled, from netip.AddrPort) (c *keys, to netip.AddrPort, ok bool) {
	if !signalled.IsValid() {
		st.count.drop(dropNoRemote)
		return nil, to, false
	}
	if signalled.Addr() != from.Addr() {
		st.count.drop(dropForeign)
		return nil, to, false
	}
	c = st.keys.Load()
	selected := st.selected.Load()
	switch {
	case c == nil || selected == nil:
		st.count.drop(dropNoKeys)
		return nil, to, false
	case st.muted.Load():
		st.count.drop(dropConsent)
		return nil, to, false
	}
	return c, *selected, true
}

// fromCoreRTP takes an RTP packet of the core, encrypts it where it lies, and sends it to the browser.
func (st *stream) fromCoreRTP(b []byte, from netip.AddrPort) {
	if len(b) < rtpHeader || b[0]>>6 != 2 || isRTCP(b) {
		st.count.drop(dropMalformed)
		return
	}
	var signalled netip.AddrPort
	if core := st.core.Load(); core != nil {
		signalled = core.RTP
	}
	c, to, ok := st.ready(signalled, from)
	if !ok {
		if st.media == "video" && signalled.IsValid() && signalled.Addr() == from.Addr() {
			st.fromCore.passes(binary.BigEndian.Uint32(b[8:]), false, time.Now())
		}
		return
	}
	// Read before it counts as a source: what is no RTP must not use one up.
	if _, err := c.rtp.header.Unmarshal(b); err != nil {
		st.count.drop(dropMalformed)
		return
	}
	if why, ok := c.rtp.sent.admit(binary.BigEndian.Uint32(b[8:]), binary.BigEndian.Uint16(b[2:])); !ok {
		st.count.drop(why)
		return
	}
	if ssrc := binary.BigEndian.Uint32(b[8:]); st.media == "video" && st.fromCore.passes(ssrc, true, time.Now()) {
		st.askCore(c, ssrc)
	}
	n := len(b)
	out, err := c.rtp.ctx.EncryptRTP(b[:0], b, &c.rtp.header)
	if err != nil {
		st.count.drop(dropMalformed)
		return
	}
	st.count.coreRx.add(n)
	st.sendAccess(out, to, n)
}

// fromCoreRTCP does the same for RTCP. An SRTCP index is the context's own counter: it cannot repeat.
func (st *stream) fromCoreRTCP(b []byte, from netip.AddrPort) {
	if len(b) < rtcpHeader || b[0]>>6 != 2 || !isRTCP(b) {
		st.count.drop(dropMalformed)
		return
	}
	var signalled netip.AddrPort
	if core := st.core.Load(); core != nil {
		signalled = core.RTCP
	}
	c, to, ok := st.ready(signalled, from)
	if !ok {
		return
	}
	ssrc := binary.BigEndian.Uint32(b[4:])
	if !c.rtcp.sources.room(ssrc) || ssrc == c.ask.ssrc { // which has an index of its own
		st.count.drop(dropSSRC)
		return
	}
	n := len(b)
	out, err := c.rtcp.ctx.EncryptRTCP(b[:0], b, &c.rtcp.control)
	if err != nil {
		st.count.drop(dropMalformed)
		return
	}
	c.rtcp.sources.add(ssrc)
	st.count.coreRx.add(n)
	st.sendAccess(out, to, n)
}

// sendAccess sends to the browser; n is the length before encryption.
func (st *stream) sendAccess(b []byte, to netip.AddrPort, n int) {
	if _, err := st.accessConn.WriteToUDPAddrPort(b, to); err != nil {
		st.count.drop(dropSend)
		return
	}
	st.count.accessTx.add(n)
}
