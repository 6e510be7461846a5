// Package iq holds the words that the edge (IMS-ALG in the eP-CSCF) and the media gateway
// (eIMS-AGW) say to each other over the Iq reference point (TS 23.334), as JSON over the bus.
//
// The standard's Iq is H.248. These are its procedures, reserve, modify and release of the
// access and core terminations of one call leg, as three requests and one stream of events:
//
//	edge                     gateway
//	 │ Set{Ref, Streams}  ──►  │   reserve or modify; idempotent by Ref
//	 │ ◄── Local               │   the gateway's own addresses, ufrag, fingerprint
//	 │ Release{Ref}       ──►  │
//	 │ ◄── Report              │   what the session carried
//	 │ ◄── Event (published)   │   connected, consent lost, DTLS failed, …
//
// A request and its answer carry the version; a gateway reads versions N and N-1.
package iq

import (
	"errors"
	"net/netip"
	"time"
)

// Version of the words below. A reader accepts Version and Version-1.
const Version = 1

// Deadline is how long the edge waits for an answer. The gateway does no I/O that can take longer.
const Deadline = 500 * time.Millisecond

// MaxStreams bounds the media streams of one session.
const MaxStreams = 4

// MaxCandidates bounds the remote candidates of one stream.
const MaxCandidates = 32

var (
	// ErrUnknownSession answers a Release of a session that is not there, or no longer.
	ErrUnknownSession = errors.New("iq: unknown session")
	// ErrStale answers a request whose sequence number is below one already obeyed.
	ErrStale = errors.New("iq: request is older than the session's state")
	// ErrCapacity answers when no port or no session is left.
	ErrCapacity = errors.New("iq: gateway has no capacity left")
	// ErrInvalid answers a request that breaks a bound or contradicts itself; the text says how.
	ErrInvalid = errors.New("iq: invalid request")
	// ErrVersion answers a version that this gateway cannot read.
	ErrVersion = errors.New("iq: version not supported")
)

// Ref names one state of one session. The same Ref sent twice is answered twice with the same
// answer and obeyed once.
type Ref struct {
	// Epoch is the edge's process: random at each start. A new epoch from the same Edge makes the
	// gateway release the sessions of the old one.
	Epoch string `json:"epoch"`
	// Edge is the edge's configured name; events are published to it.
	Edge string `json:"edge"`
	// Session is one call leg: random, at most 64 characters.
	Session string `json:"session"`
	// Seq rises by one with each changed request.
	Seq uint32 `json:"seq"`
}

// Set reserves a session, or modifies it. A part that is nil stays as it was.
type Set struct {
	Ref
	// Offerer is true where the edge offers towards the browser, which makes the gateway the
	// controlling ICE agent (RFC 8445 §6.1.1); it holds for the life of the session.
	Offerer bool     `json:"offerer"`
	Streams []Stream `json:"streams"` // by m-line, at most MaxStreams
}

// Stream is what is known of the two remote sides of one m-line.
type Stream struct {
	Media  string        `json:"media"` // "audio" or "video"
	Access *AccessRemote `json:"access,omitempty"`
	Core   *CoreRemote   `json:"core,omitempty"`
	// Stopped: the m-line is given up (port 0). The gateway frees its ports; its answer has an empty LocalStream
	// there. A later Set without it starts the stream anew: other ports, ICE and DTLS from the beginning.
	Stopped bool `json:"stopped,omitempty"`
}

// AccessRemote is the browser's side as its SDP says it.
type AccessRemote struct {
	Ufrag       string      `json:"ufrag"`
	Pwd         string      `json:"pwd"`
	Fingerprint Fingerprint `json:"fingerprint"`
	// Candidates as SDP writes them after "candidate:"; unusable ones are passed over.
	Candidates []string `json:"candidates,omitempty"`
}

// Fingerprint of a certificate, RFC 8122: Hash "sha-256", Value "AB:CD:…".
type Fingerprint struct {
	Hash  string `json:"hash"`
	Value string `json:"value"`
}

// CoreRemote is where the core side wants its media: RTP/AVP over UDP.
type CoreRemote struct {
	RTP  netip.AddrPort `json:"rtp"`
	RTCP netip.AddrPort `json:"rtcp"` // RTP's port + 1 unless a=rtcp said otherwise
}

// Local is the gateway's answer to Set, one entry per stream.
type Local struct {
	Streams []LocalStream `json:"streams"`
}

// LocalStream is the gateway's own side of one stream.
type LocalStream struct {
	Access AccessLocal `json:"access"`
	Core   CoreLocal   `json:"core"`
}

// AccessLocal is what the edge writes into the SDP for the browser. The gateway is always the DTLS
// server: a=setup:passive in an answer, actpass in an offer.
type AccessLocal struct {
	Ufrag       string      `json:"ufrag"`
	Pwd         string      `json:"pwd"`
	Fingerprint Fingerprint `json:"fingerprint"`
	// Candidates as SDP writes them after "candidate:". All are known at once: no trickle.
	Candidates []string `json:"candidates"`
	// Default is the address for the c= and m= lines.
	Default netip.AddrPort `json:"default"`
}

// CoreLocal is what the edge writes into the SDP for the core.
type CoreLocal struct {
	RTP  netip.AddrPort `json:"rtp"`
	RTCP netip.AddrPort `json:"rtcp"`
}

// Release ends a session. Its answer is a Report.
type Release struct {
	Ref
}

// Report is what a session carried.
type Report struct {
	Streams []StreamReport `json:"streams"`
}

// StreamReport counts one stream. "Rx" is from the browser or the core into the gateway, after
// authentication and decryption; "Tx" is what left it.
type StreamReport struct {
	Media     string  `json:"media"`
	Profile   string  `json:"profile"` // SRTP protection profile, RFC 5764/7714 name, "" before DTLS ended
	AccessRx  Counter `json:"access_rx"`
	AccessTx  Counter `json:"access_tx"`
	CoreRx    Counter `json:"core_rx"`
	CoreTx    Counter `json:"core_tx"`
	Discarded uint64  `json:"discarded"` // packets that failed authentication, or came from elsewhere
}

// Counter counts RTP and RTCP packets and their bytes.
type Counter struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// EventKind says what happened to a session without the edge asking.
type EventKind string

const (
	// Connected: ICE has a pair and DTLS has keys, for all streams that the browser accepted.
	Connected EventKind = "connected"
	// ConsentLost: no authenticated Binding response for 30 s (RFC 7675 §5.1); sending has stopped.
	ConsentLost EventKind = "consent-lost"
	// DTLSFailed: the certificate was not the one signalled, or no common SRTP profile, or no hello in time.
	DTLSFailed EventKind = "dtls-failed"
	// ICEFailed: no pair within 30 s of the remote description.
	ICEFailed EventKind = "ice-failed"
)

// Event is published by the gateway to the edge that owns the session.
type Event struct {
	V      int       `json:"v"`
	Ref    Ref       `json:"ref"`
	Kind   EventKind `json:"kind"`
	Detail string    `json:"detail"` // for the log: the cause in words, no secret
}
