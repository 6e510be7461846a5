package turn

import (
	"net/netip"
	"time"

	"wicgate/internal/wire/stun"
	"wicgate/turn/internal/core"
)

// Allocation is one as an operator sees it: no secret is in it.
type Allocation struct {
	ID        uint64 `json:"id"` // for the life of the process
	Pseudonym string `json:"pseudonym"`
	Tenant    string `json:"tenant"` // its name
	// Credential is token (RFC 7635), username (a token in USERNAME), ephemeral, pushed or static.
	Credential     string           `json:"credential"`
	Client         netip.AddrPort   `json:"client"`
	Transport      string           `json:"transport"` // udp, dtls, tcp or tls
	Relayed        []netip.AddrPort `json:"relayed"`   // IPv4 first
	Since          time.Time        `json:"since"`
	Expires        time.Time        `json:"expires"`                  // a Refresh moves it
	CredentialEnds time.Time        `json:"credential_ends,omitzero"` // never, if it is not there
	Permissions    []netip.Addr     `json:"permissions"`
	Channels       []netip.AddrPort `json:"channels"`

	ToPeerPackets   uint64 `json:"to_peer_packets"`
	ToPeerBytes     uint64 `json:"to_peer_bytes"`
	ToClientPackets uint64 `json:"to_client_packets"`
	ToClientBytes   uint64 `json:"to_client_bytes"`
}

// Sessions returns the allocations, oldest first: those of pseudonym, or all where it is empty.
func (s *Server) Sessions(pseudonym string) []Allocation {
	return s.sessions(func(_ core.ID, p string) bool { return pseudonym == "" || p == pseudonym })
}

// Session returns one allocation.
func (s *Server) Session(id uint64) (Allocation, bool) {
	list := s.sessions(func(i core.ID, _ string) bool { return uint64(i) == id })
	if len(list) == 0 {
		return Allocation{}, false
	}
	return list[0], true
}

func (s *Server) sessions(want func(core.ID, string) bool) []Allocation {
	s.mu.Lock()
	list := s.core.List(time.Now(), want)
	s.mu.Unlock()
	out := make([]Allocation, 0, len(list))
	for _, a := range list {
		out = append(out, Allocation{
			ID: uint64(a.ID), Pseudonym: a.Pseudonym, Tenant: a.Tenant, Credential: string(a.Credential), Client: a.Tuple.Client, Transport: transport(a.Tuple), Relayed: a.Relayed,
			Since: a.Since, Expires: a.Expires, CredentialEnds: a.CredentialEnds, Permissions: a.Permissions, Channels: a.Channels,
			ToPeerPackets: a.Traffic.SentPackets, ToPeerBytes: a.Traffic.SentBytes,
			ToClientPackets: a.Traffic.ReceivedPackets, ToClientBytes: a.Traffic.ReceivedBytes,
		})
	}
	return out
}

func transport(t core.Tuple) string {
	switch {
	case t.Transport == core.TransportDTLS:
		return "dtls"
	case t.TLS:
		return "tls"
	case t.Transport == stun.ProtocolTCP:
		return "tcp"
	}
	return "udp"
}

// Kill ends one allocation, and reports whether it was there.
func (s *Server) Kill(id uint64) bool {
	s.moving.RLock()
	defer s.moving.RUnlock()
	w := newWorker(s)
	s.mu.Lock()
	found := s.core.Kill(time.Now(), core.ID(id), &w.out)
	s.mu.Unlock()
	w.act(&w.out)
	return found
}
