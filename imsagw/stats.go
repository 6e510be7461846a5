package imsagw

import (
	"sync/atomic"

	"wicgate/internal/iq"
)

// cause is why a packet was dropped. The set is fixed: each is a metric's label.
type cause int

const (
	dropUnknown   cause = iota // first byte is no protocol of ours (RFC 7983)
	dropOversize               // longer than maxPacket
	dropMalformed              // not what its first byte says: bad STUN, RTP or RTCP
	dropSTUN                   // STUN without proof: wrong user name, password, or transaction
	dropSources                // a STUN source too many
	dropForeign                // DTLS or SRTP from an address that ICE has not validated; core media from another address
	dropQueue                  // STUN or DTLS faster than it is read
	dropNoKeys                 // SRTP or core media before DTLS has ended
	dropNoRemote               // the other side's address is not known yet, or media is on hold
	dropAuth                   // SRTP that failed authentication, or a replay
	dropSSRC                   // an SSRC too many
	dropSequence               // core media whose index was sent before, or too long ago to tell
	dropConsent                // the browser's consent is lost
	dropPace                   // a connectivity check of ours over the rate (RFC 8445 §14)
	dropSend                   // the kernel refused it
	causes
)

var causeNames = [causes]string{
	"unknown", "oversize", "malformed", "stun", "sources", "foreign", "queue", "no-keys", "no-remote",
	"auth", "ssrc", "sequence", "consent", "pace", "send",
}

// dtlsCause is why a handshake failed. The set is fixed: each is a metric's label.
type dtlsCause int

const (
	dtlsFingerprint dtlsCause = iota // the certificate is not the one signalled
	dtlsProfile                      // no common SRTP profile, or none asked for
	dtlsNoHello                      // nothing came
	dtlsTimeout                      // something came, but no end
	dtlsHandshake                    // anything else
	dtlsCauses
)

var dtlsCauseNames = [dtlsCauses]string{"fingerprint", "profile", "no-hello", "timeout", "handshake"}

// counter counts packets and their bytes.
type counter struct{ packets, bytes atomic.Uint64 }

func (c *counter) add(n int) {
	c.packets.Add(1)
	c.bytes.Add(uint64(n))
}

func (c *counter) read() iq.Counter {
	return iq.Counter{Packets: c.packets.Load(), Bytes: c.bytes.Load()}
}

// counters of one stream. Each of the stream's goroutines adds without a lock.
type counters struct {
	accessRx, accessTx, coreRx, coreTx counter
	drops                              [causes]atomic.Uint64
}

func (c *counters) drop(why cause) { c.drops[why].Add(1) }

// happened counts what happens once a session or less.
type happened struct {
	connected, abandoned, iceFailed, consentLost, eventsLost, restarts, restartsFailed, asked atomic.Uint64
	dtls                                                                                      [dtlsCauses]atomic.Uint64
}

// totals of the streams of several sessions.
type totals struct {
	sessions                           uint64
	accessRx, accessTx, coreRx, coreTx iq.Counter
	drops                              [causes]uint64
}

func plus(a *iq.Counter, b iq.Counter) {
	a.Packets += b.Packets
	a.Bytes += b.Bytes
}

// add adds the counters of a session.
func (t *totals) add(s *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range s.streams {
		t.addStream(st)
	}
}

// addStream adds those of a stream, and of those before it in its place.
func (t *totals) addStream(st *stream) {
	plus(&t.accessRx, st.before.accessRx)
	plus(&t.accessTx, st.before.accessTx)
	plus(&t.coreRx, st.before.coreRx)
	plus(&t.coreTx, st.before.coreTx)
	plus(&t.accessRx, st.count.accessRx.read())
	plus(&t.accessTx, st.count.accessTx.read())
	plus(&t.coreRx, st.count.coreRx.read())
	plus(&t.coreTx, st.count.coreTx.read())
	for i := range t.drops {
		t.drops[i] += st.before.drops[i] + st.count.drops[i].Load()
	}
}

// Stats are the gateway's counters. Packets are RTP and RTCP; AccessRx counts after authentication
// and decryption, AccessTx before encryption, so that the two sides of a path agree.
type Stats struct {
	Sessions      int    // alive now
	SessionsTotal uint64 // ever reserved
	Connected     uint64 // that came up
	Abandoned     uint64 // that the gateway ended because no edge did
	ICEFailed     uint64
	ConsentLost   uint64
	EventsLost    uint64
	Asked         uint64 // new pictures asked for by the gateway itself
	// Restarts of ICE that began, and those that found no path.
	Restarts, RestartsFailed uint64
	AccessRx                 iq.Counter
	AccessTx                 iq.Counter
	CoreRx                   iq.Counter
	CoreTx                   iq.Counter
	// Drops are packets, by cause: unknown, oversize, malformed, stun, sources, foreign, queue,
	// no-keys, no-remote, auth, ssrc, sequence, consent, pace, send. All are always there.
	Drops map[string]uint64
	// DTLSFailures are handshakes, by cause: fingerprint, profile, no-hello, timeout, handshake.
	DTLSFailures map[string]uint64
}

// Stats returns the counters of all sessions, alive and ended.
func (g *Gateway) Stats() Stats {
	g.mu.Lock()
	t, n := g.ended, len(g.sessions)
	for _, s := range g.sessions {
		t.add(s)
	}
	g.mu.Unlock()
	st := Stats{
		Sessions: n, SessionsTotal: t.sessions, Connected: g.count.connected.Load(), Abandoned: g.count.abandoned.Load(),
		ICEFailed: g.count.iceFailed.Load(), ConsentLost: g.count.consentLost.Load(), EventsLost: g.count.eventsLost.Load(),
		Asked: g.count.asked.Load(), Restarts: g.count.restarts.Load(), RestartsFailed: g.count.restartsFailed.Load(),
		AccessRx: t.accessRx, AccessTx: t.accessTx, CoreRx: t.coreRx, CoreTx: t.coreTx,
		Drops: make(map[string]uint64, causes), DTLSFailures: make(map[string]uint64, dtlsCauses),
	}
	for i, name := range causeNames {
		st.Drops[name] = t.drops[i]
	}
	for i, name := range dtlsCauseNames {
		st.DTLSFailures[name] = g.count.dtls[i].Load()
	}
	return st
}
