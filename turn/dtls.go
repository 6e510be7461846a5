package turn

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"wicgate/internal/listen"
	"wicgate/internal/wire/stun"
	"wicgate/turn/internal/core"
)

// This file is the way of clients on DTLS (RFC 7350), at the addresses of Listen. A message is a record,
// as it is a datagram on UDP, and nothing of it is framed or padded:
//
//	Listen, UDP ─► first byte ─┬─ 20 to 63 ──► listen.DTLS ─► association ─► core
//	                           └─ else ──────────────────────────────────► core

// associations are the clients on DTLS by 5-tuple.
type associations struct {
	ends [numStreamEnds]atomic.Uint64

	mu   sync.RWMutex // guards open
	open map[core.Tuple]*listen.Association
}

// associationEnds are those of streamEnds that an association may have.
var associationEnds = []streamEnd{endClient, endIdle, endShutdown}

func (l *associations) get(t core.Tuple) *listen.Association {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.open[t]
}

func (l *associations) set(t core.Tuple, a *listen.Association) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if a == nil {
		delete(l.open, t)
	} else {
		l.open[t] = a
	}
}

// newDTLS begins DTLS where it is wanted.
func (s *Server) newDTLS() error {
	switch {
	case !s.cfg.DTLS:
		return nil
	case s.cfg.Certificate == nil:
		return errors.New("turn: DTLS without a certificate")
	case len(s.cfg.Listen) == 0:
		return errors.New("turn: DTLS without an address; set turn.listen")
	}
	s.dtls = listen.NewDTLS(listen.DTLSConfig{
		Log: s.log, Certificate: s.cfg.Certificate, Protocols: protocols, Limits: s.limits(), Handle: s.serveAssociation,
		Send: func(listener int, b []byte, to netip.AddrPort) error {
			_, err := s.listeners[listener].WriteToUDPAddrPort(b, to)
			return err
		},
	})
	return nil
}

// isDTLS tells DTLS from STUN and ChannelData (RFC 7983 §7).
func isDTLS(b []byte) bool { return stun.Classify(b) == stun.ProtocolDTLS }

// toAssociation sends a message to a client on DTLS.
func (s *Server) toAssociation(a *core.Action) {
	c := s.associations.get(a.Tuple)
	if c == nil {
		s.sendErrors.Add(1) // it went away meanwhile
		return
	}
	if _, err := c.Write(a.Data); err != nil {
		s.sendErrors.Add(1)
	}
}

// serveAssociation serves one client until its association ends, and its allocation with it.
func (s *Server) serveAssociation(a *listen.Association) {
	t := core.Tuple{Client: a.Remote, Listener: uint16(a.Listener), Transport: core.TransportDTLS, Tenant: s.chosen.by(uint16(a.Listener), a.ServerName)}
	s.associations.set(t, a)
	s.log.Debug("turn: association", "client", a.Remote, "alpn", a.Protocol)
	w := newWorker(s)
	end, err := s.readAssociation(a, t, w)
	if s.stopping.Load() {
		end = endShutdown
	}
	s.associations.set(t, nil)
	s.disconnected(w, t)
	s.associations.ends[end].Add(1)
	s.log.Debug("turn: association ended", "client", a.Remote, "cause", streamEnds[end], "error", err)
}

// readAssociation hands the messages of an association to the core until it ends.
func (s *Server) readAssociation(a *listen.Association, t core.Tuple, w *worker) (streamEnd, error) {
	b := make([]byte, 1<<14) // the longest record
	held := time.Now()       // when it last had an allocation
	var armed time.Time
	next := held.Add(s.cfg.Idle)
	for {
		if armed != next {
			if err := a.SetReadDeadline(next); err != nil {
				return endClient, err
			}
			armed = next
		}
		n, err := a.Read(b)
		now := time.Now()
		var holds bool
		var timeout net.Error
		switch {
		case err == nil:
			holds = s.fromClient(w, now, t, b[:n])
		case errors.As(err, &timeout) && timeout.Timeout(): // Idle has gone by: is there an allocation?
			s.mu.Lock()
			holds = s.core.Holds(t)
			s.mu.Unlock()
		default:
			return endClient, err
		}
		if holds {
			held = now
		}
		if err != nil {
			next = held.Add(s.cfg.Idle)
		}
		// Under steady traffic no deadline would ever pass.
		if now.Sub(held) >= s.cfg.Idle {
			return endIdle, err
		}
	}
}
