package iq

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"
)

// Bounds of the words, in bytes.
const (
	maxName      = 32  // gateway and edge: a word of a bus subject
	maxToken     = 64  // epoch and session
	maxICE       = 256 // ufrag and pwd, RFC 8839 §5.4
	maxCandidate = 512
	maxDetail    = 512
)

// fingerprintLength is a hash's length in bytes. SHA-1 and MD5 are not here on purpose: RFC 8122
// §5 lets nobody rely on them any more.
var fingerprintLength = map[string]int{"sha-256": 32, "sha-384": 48, "sha-512": 64}

// validName says whether s may be a word of a subject: 1 to 32 of a-z 0-9 -.
func validName(s string) bool {
	if s == "" || len(s) > maxName {
		return false
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

// validToken says whether s is 1 to 64 printable ASCII characters without a space.
func validToken(s string) bool {
	if s == "" || len(s) > maxToken {
		return false
	}
	for _, c := range []byte(s) {
		if c <= ' ' || c > '~' {
			return false
		}
	}
	return true
}

// validICE says whether s is least to 256 ice-char (RFC 8839 §5.1).
func validICE(s string, least int) bool {
	if len(s) < least || len(s) > maxICE {
		return false
	}
	for _, c := range []byte(s) {
		if (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '+' && c != '/' {
			return false
		}
	}
	return true
}

func invalid(format string, a ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrInvalid}, a...)...)
}

// Validate checks the bounds of r. The error is an [ErrInvalid].
func (r Ref) Validate() error {
	switch {
	case !validName(r.Edge):
		return invalid("edge name: want 1 to %d of a-z 0-9 -", maxName)
	case !validToken(r.Epoch):
		return invalid("epoch: want 1 to %d printable characters", maxToken)
	case !validToken(r.Session):
		return invalid("session: want 1 to %d printable characters", maxToken)
	}
	return nil
}

// Validate checks every bound of s, and that it does not contradict itself. The error is an
// [ErrInvalid] that names the stream and the part, and quotes no secret.
func (s Set) Validate() error {
	if err := s.Ref.Validate(); err != nil {
		return err
	}
	if len(s.Streams) == 0 || len(s.Streams) > MaxStreams {
		return invalid("%d streams: want 1 to %d", len(s.Streams), MaxStreams)
	}
	for i, st := range s.Streams {
		if err := st.validate(); err != nil {
			return fmt.Errorf("stream %d: %w", i, err)
		}
	}
	return nil
}

func (s Stream) validate() error {
	if s.Media != "audio" && s.Media != "video" {
		return invalid("media: want audio or video")
	}
	if s.Stopped && (s.Access != nil || s.Core != nil) {
		return invalid("a stream that is stopped, with a remote side")
	}
	if a := s.Access; a != nil {
		switch {
		case !validICE(a.Ufrag, 4):
			return invalid("access ufrag: want 4 to %d ice-char", maxICE)
		case !validICE(a.Pwd, 22):
			return invalid("access pwd: want 22 to %d ice-char", maxICE)
		case len(a.Candidates) > MaxCandidates:
			return invalid("%d access candidates: at most %d", len(a.Candidates), MaxCandidates)
		}
		if _, err := a.Fingerprint.Digest(); err != nil {
			return err
		}
		for i, c := range a.Candidates {
			if len(c) > maxCandidate || strings.ContainsFunc(c, func(r rune) bool { return r < ' ' || r == 0x7f }) {
				return invalid("access candidate %d: over %d bytes, or a control character", i, maxCandidate)
			}
		}
	}
	if c := s.Core; c != nil {
		if !validCore(c.RTP) {
			return invalid("core RTP address %v: want a unicast address and port", c.RTP)
		}
		if !validCore(c.RTCP) {
			return invalid("core RTCP address %v: want a unicast address and port", c.RTCP)
		}
	}
	return nil
}

// validCore accepts a unicast address with a port. The unspecified address is accepted too: in
// SDP it means "send nothing here for now" (RFC 3264 §8.4).
func validCore(a netip.AddrPort) bool {
	return a.IsValid() && a.Port() != 0 && !a.Addr().IsMulticast() && a.Addr().Unmap() != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// Digest returns the fingerprint's bytes. Hash and hexadecimal digits are taken in either case
// (RFC 8122 §5 writes upper, some write lower). An unknown or too weak hash, or a length that is
// not the hash's, is an [ErrInvalid].
func (f Fingerprint) Digest() ([]byte, error) {
	want, ok := fingerprintLength[strings.ToLower(f.Hash)]
	if !ok {
		return nil, invalid("fingerprint hash: want sha-256, sha-384 or sha-512")
	}
	if len(f.Value) != 3*want-1 {
		return nil, invalid("fingerprint: %d characters, a %s has %d", len(f.Value), strings.ToLower(f.Hash), 3*want-1)
	}
	d := make([]byte, want)
	for i := range d {
		if i > 0 && f.Value[3*i-1] != ':' {
			return nil, invalid("fingerprint: byte %d is not preceded by a colon", i)
		}
		if _, err := hex.Decode(d[i:i+1], []byte(f.Value[3*i:3*i+2])); err != nil {
			return nil, invalid("fingerprint: byte %d is not hexadecimal", i)
		}
	}
	return d, nil
}
