package imsagw

import (
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"wicgate/internal/iq"
)

// session is one call leg.
type session struct {
	g       *Gateway
	key     sessionKey
	log     *slog.Logger
	offerer bool // the gateway offers, and so is ICE's controlling agent
	created time.Time

	mu        sync.Mutex // guards the following fields; the streams' own goroutines take it
	ref       iq.Ref     // the newest, for events
	streams   []*stream  // by m-line; only grows. One that stopped stays, until a new one takes its place
	said      map[iq.EventKind]bool
	failed    time.Time // zero while all is well
	connected bool
	closed    bool
}

func newSession(g *Gateway, req iq.Set) *session {
	return &session{
		g: g, key: keyOf(req.Ref), offerer: req.Offerer, created: time.Now(), ref: req.Ref,
		log:  g.log.With("edge", req.Edge, "session", req.Session),
		said: map[iq.EventKind]bool{},
	}
}

// set obeys a Set: it checks everything, then opens the streams that are new, then tells each stream
// what is new of its remote sides.
func (s *session) set(req iq.Set) (iq.Local, error) {
	l, stopped, err := s.obey(req)
	for _, st := range stopped { // not under the lock, which their goroutines may want
		st.close()
	}
	return l, err
}

// obey does so but for closing the streams that stop.
func (s *session) obey(req iq.Set) (l iq.Local, stopped []*stream, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return l, nil, iq.ErrUnknownSession
	}
	if err := s.checkLocked(req); err != nil {
		return l, nil, err
	}
	next := slices.Clone(s.streams)
	for i, r := range req.Streams {
		if i < len(next) && (!next[i].stopped || r.Stopped) {
			continue
		}
		st, err := newStream(s, r.Media)
		if err != nil {
			for j, f := range next {
				if j >= len(s.streams) || f != s.streams[j] {
					f.close()
				}
			}
			return l, nil, fmt.Errorf("stream %d: %w", i, err)
		}
		if i < len(next) {
			st.before.addStream(next[i])
			next[i] = st
		} else {
			next = append(next, st)
		}
	}
	s.ref = req.Ref
	s.streams = next
	l.Streams = make([]iq.LocalStream, len(s.streams))
	for i, st := range s.streams {
		if req.Streams[i].Stopped {
			if !st.stopped {
				st.stopped = true
				stopped = append(stopped, st)
			}
			continue
		}
		if c := req.Streams[i].Core; c != nil {
			st.setCore(*c)
		}
		if a := req.Streams[i].Access; a != nil {
			if err := st.setAccess(*a); err != nil {
				return iq.Local{}, stopped, fmt.Errorf("stream %d: %w", i, err)
			}
		}
		l.Streams[i] = st.local()
	}
	s.connectedLocked() // what was waited for may have been given up
	return l, stopped, nil
}

// checkLocked finds what a Set may not change. The error is an [iq.ErrInvalid].
func (s *session) checkLocked(req iq.Set) error {
	if req.Offerer != s.offerer {
		return fmt.Errorf("%w: the offerer changes; the ICE role holds for the session's life", iq.ErrInvalid)
	}
	if len(req.Streams) < len(s.streams) {
		return fmt.Errorf("%w: %d streams, the session has %d; an m-line never goes away", iq.ErrInvalid, len(req.Streams), len(s.streams))
	}
	for i, r := range req.Streams {
		if c := r.Core; c != nil {
			if err := s.g.checkCore(*c); err != nil {
				return fmt.Errorf("stream %d: %w", i, err)
			}
		}
		if i >= len(s.streams) {
			continue
		}
		st := s.streams[i]
		if r.Media != st.media {
			return fmt.Errorf("stream %d: %w: media changes from %s to %s", i, iq.ErrInvalid, st.media, r.Media)
		}
		if r.Access == nil || st.remote == nil || st.stopped {
			continue
		}
		digest, err := r.Access.Fingerprint.Digest()
		switch {
		case err != nil:
			return fmt.Errorf("stream %d: %w", i, err)
		case !slices.Equal(digest, st.remote.digest):
			return fmt.Errorf("stream %d: %w: another fingerprint, but this gateway cannot start DTLS anew yet", i, iq.ErrInvalid)
		}
	}
	return nil
}

// checkCore says whether the gateway may send media to these addresses of the core.
func (g *Gateway) checkCore(c iq.CoreRemote) error {
	if c.RTP.Addr().IsUnspecified() {
		return nil // on hold
	}
	for _, a := range []struct {
		what string
		addr bool
		ip   bool
	}{
		{"RTP", g.core.reaches(c.RTP), g.peer(c.RTP.Addr().Unmap())},
		{"RTCP", g.core.reaches(c.RTCP), g.peer(c.RTCP.Addr().Unmap())},
	} {
		if !a.addr {
			return fmt.Errorf("%w: core %s address cannot be reached from imsagw.core (%v)", iq.ErrInvalid, a.what, g.core.side.Bind)
		}
		if !a.ip {
			return fmt.Errorf("%w: core %s address is none of the peers allowed", iq.ErrInvalid, a.what)
		}
	}
	return nil
}

// keyed is told by a stream that it has a pair and keys. The session is connected once all
// streams that the browser accepted are.
func (s *session) keyed(st *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st.keyed = true
	s.connectedLocked()
}

func (s *session) connectedLocked() {
	keyed := false
	for _, o := range s.streams {
		if o.remote != nil && !o.keyed && !o.stopped {
			return
		}
		keyed = keyed || o.keyed
	}
	if keyed && !s.connected && !s.closed {
		s.connected = true
		s.g.count.connected.Add(1)
		s.sayLocked(iq.Connected, "")
	}
}

// fail is told by a stream what ended it. Its session is over, unless the edge thinks otherwise.
func (s *session) fail(st *stream, kind iq.EventKind, detail string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if st.stopped {
		return
	}
	if s.failed.IsZero() {
		s.failed = time.Now()
	}
	if !s.closed {
		s.log.Warn("imsagw: session failed", "kind", kind, "cause", detail)
		s.sayLocked(kind, detail)
	}
}

// sayLocked emits an event, the first of its kind only.
func (s *session) sayLocked(kind iq.EventKind, detail string) {
	if !s.said[kind] {
		s.said[kind] = true
		s.g.emit(iq.Event{Ref: s.ref, Kind: kind, Detail: detail})
	}
}

// abandoned says whether nobody wants the session any more; see [timing].
func (s *session) abandoned(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.failed.IsZero() {
		return now.Sub(s.failed) > s.g.timing.linger
	}
	core := false
	for _, st := range s.streams {
		if st.remote != nil && !st.stopped {
			return false // ICE's deadline and consent look after it
		}
		core = core || st.core.Load() != nil
	}
	if core {
		return now.Sub(s.created) > s.g.timing.answer
	}
	return now.Sub(s.created) > s.g.timing.reserve
}

// close ends all streams and frees their ports. It returns once all their goroutines have.
func (s *session) close() {
	s.mu.Lock()
	s.closed = true
	streams := s.streams
	s.mu.Unlock()
	for _, st := range streams {
		st.close()
	}
}

// report tells what the session carried.
func (s *session) report() iq.Report {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := iq.Report{Streams: make([]iq.StreamReport, len(s.streams))}
	for i, st := range s.streams {
		r.Streams[i] = st.report()
	}
	return r
}
