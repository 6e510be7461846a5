package iq

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"wicgate/internal/store"
)

// Handler is the gateway behind [Serve]. It is called by one goroutine at a time, and with requests
// that are valid, new, and in order for their session. It must answer well within [Deadline].
type Handler interface {
	Set(Set) (Local, error)
	Release(Release) (Report, error)
}

const (
	// maxEdges bounds the edges that one gateway knows; more is a misconfiguration.
	maxEdges = 256
	// maxOldEpochs bounds the ended epochs remembered for each edge.
	maxOldEpochs = 4
	// maxRemembered bounds the sessions of all edges, ended ones included.
	maxRemembered = 1 << 16
	// remember is how long an ended session's answer can be asked for again. The bus holds nothing
	// back longer than a Deadline, so a minute is plenty.
	remember = time.Minute
)

// Serve answers the requests to the gateway called gateway until stop is called; stop waits for a
// request under way. Here is the rule of the Ref: the same Ref is answered with the same answer and
// obeyed once, a lower sequence number gets [ErrStale], and the first request of a new epoch releases
// what its edge held in the old one. log may be nil.
func Serve(bus store.Bus, gateway string, h Handler, log *slog.Logger) (stop func(), err error) {
	if err := checkGateway(gateway); err != nil {
		return nil, err
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	s := newServer(h, log)
	return bus.Subscribe(subject(gateway, "*"), func(m store.Message) {
		if m.Respond == nil {
			return // published, not asked
		}
		op := m.Subject[strings.LastIndexByte(m.Subject, '.')+1:]
		if err := m.Respond(s.serve(op, m.Data)); err != nil {
			log.Warn("iq: answer not sent", "op", op, "error", err)
		}
	})
}

// Publish sends an event to the edge that its Ref names.
func Publish(bus store.Bus, e Event) error {
	e.V = Version
	if err := e.Ref.Validate(); err != nil {
		return err
	}
	if len(e.Detail) > maxDetail {
		e.Detail = e.Detail[:maxDetail]
	}
	data, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("iq: event: %w", err)
	}
	return bus.Publish(eventSubject(e.Ref.Edge), data)
}

type sessionKey struct{ edge, session string }

// obeyed is the newest state of a session that the handler has obeyed, and the answer it gave.
type obeyed struct {
	seq    uint32
	op     string
	sum    [sha256.Size]byte // of the request, to tell a repeat from another request under its Ref
	answer []byte
	ended  time.Time // zero while the session lives
}

type edgeState struct {
	epoch string
	old   []string // epochs that ended, newest last
}

// server keeps the rule of the Ref. It owns no goroutine.
type server struct {
	h   Handler
	log *slog.Logger

	mu       sync.Mutex // guards the following fields, and makes the handler's calls one at a time
	edges    map[string]*edgeState
	sessions map[sessionKey]*obeyed
	swept    time.Time
}

func newServer(h Handler, log *slog.Logger) *server {
	return &server{h: h, log: log, edges: map[string]*edgeState{}, sessions: map[sessionKey]*obeyed{}, swept: time.Now()}
}

// serve reads a request and returns its answer, which is never empty.
func (s *server) serve(op string, data []byte) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sweepLocked(time.Now())

	var v int
	var ref Ref
	var set Set
	var rel Release
	var err error
	switch op {
	case opSet:
		v, set, err = decodeSet(data)
		ref = set.Ref
	case opRelease:
		v, rel, err = decodeRelease(data)
		ref = rel.Ref
	default:
		err = invalid("operation: want %s or %s", opSet, opRelease)
	}
	if !readable(v, Version) {
		v = Version
	}
	if err == nil {
		err = s.admitEpochLocked(ref)
	}
	if err != nil {
		return s.refuse(v, op, ref, err)
	}

	key := sessionKey{ref.Edge, ref.Session}
	last := s.sessions[key]
	sum := sha256.Sum256(data)
	if last != nil {
		switch {
		case ref.Seq == last.seq && op == last.op && sum == last.sum:
			return last.answer
		case ref.Seq < last.seq:
			return s.refuse(v, op, ref, fmt.Errorf("%w: sequence %d, the session is at %d", ErrStale, ref.Seq, last.seq))
		case !last.ended.IsZero():
			return s.refuse(v, op, ref, ErrUnknownSession)
		case ref.Seq == last.seq && op == opSet:
			return s.refuse(v, op, ref, invalid("another request under sequence %d, which is obeyed", ref.Seq))
		}
	} else if op == opSet && len(s.sessions) >= maxRemembered {
		return s.refuse(v, op, ref, fmt.Errorf("%w: %d sessions remembered", ErrCapacity, len(s.sessions)))
	}

	a := answer{V: v, Code: codeOK}
	if op == opSet {
		var l Local
		l, err = s.h.Set(set)
		a.Local = &l
	} else {
		var r Report
		r, err = s.h.Release(rel)
		a.Report = &r
	}
	if err != nil {
		if errors.Is(err, ErrUnknownSession) {
			delete(s.sessions, key) // the gateway has ended it by itself
		}
		return s.refuse(v, op, ref, err)
	}
	b, err := json.Marshal(a)
	if err != nil {
		return s.refuse(v, op, ref, err)
	}
	now := &obeyed{seq: ref.Seq, op: op, sum: sum, answer: b}
	if op == opRelease {
		now.ended = time.Now()
	}
	s.sessions[key] = now
	return b
}

// refuse logs and encodes an error. It is not remembered: the same Ref may be tried again.
func (s *server) refuse(v int, op string, ref Ref, err error) []byte {
	code, text := codeOf(err)
	s.log.Warn("iq: request refused", "op", op, "edge", ref.Edge, "session", ref.Session, "seq", ref.Seq, "code", code, "error", err)
	b, err := json.Marshal(answer{V: v, Code: code, Text: text})
	if err != nil { // three strings and a number: cannot happen
		return []byte(`{"v":1,"code":"internal"}`)
	}
	return b
}

// admitEpochLocked finds the epoch current, or new: then the sessions of the one before are released.
func (s *server) admitEpochLocked(ref Ref) error {
	e := s.edges[ref.Edge]
	if e == nil {
		if len(s.edges) >= maxEdges {
			return fmt.Errorf("%w: %d edges known", ErrCapacity, len(s.edges))
		}
		s.edges[ref.Edge] = &edgeState{epoch: ref.Epoch}
		return nil
	}
	if e.epoch == ref.Epoch {
		return nil
	}
	for _, o := range e.old {
		if o == ref.Epoch {
			return fmt.Errorf("%w: the epoch has ended", ErrStale)
		}
	}
	n := 0
	for key, o := range s.sessions {
		if key.edge != ref.Edge {
			continue
		}
		if o.ended.IsZero() {
			n++
			old := Ref{Epoch: e.epoch, Edge: key.edge, Session: key.session, Seq: o.seq}
			if _, err := s.h.Release(Release{old}); err != nil && !errors.Is(err, ErrUnknownSession) {
				s.log.Warn("iq: session of an ended epoch not released", "edge", key.edge, "session", key.session, "error", err)
			}
		}
		delete(s.sessions, key)
	}
	s.log.Info("iq: edge has started anew", "edge", ref.Edge, "released", n)
	e.old = append(e.old, e.epoch)
	if len(e.old) > maxOldEpochs {
		e.old = e.old[1:]
	}
	e.epoch = ref.Epoch
	return nil
}

// sweepLocked forgets sessions that ended longer than remember ago.
func (s *server) sweepLocked(now time.Time) {
	if now.Sub(s.swept) < remember/4 {
		return
	}
	s.swept = now
	for key, o := range s.sessions {
		if !o.ended.IsZero() && now.Sub(o.ended) > remember {
			delete(s.sessions, key)
		}
	}
}
