package epcscf

import (
	"slices"
	"strconv"
	"strings"

	"github.com/pion/sdp/v3"
)

// What an m-line of video says beyond audio: parameters of its codecs, retransmission (RFC 4588), feedback
// (RFC 4585, RFC 5104) and header extensions (RFC 8285). Each is taken apart and written anew, so that no
// other text passes. Audio needs none of them and goes on as plain RTP/AVP.

const (
	rtx           = "rtx/90000"
	h264          = "H264/90000"
	maxExtensions = 14 // the identifiers of the one-byte form, RFC 8285 §4.2
)

// videoCodecs that pass, by their lower-case spelling.
var videoCodecs = map[string]string{"vp8/90000": "VP8/90000", "h264/90000": h264, "rtx/90000": rtx}

// feedbacks that the gateway passes on, RTCP being end to end: loss, a new picture, and two ways to estimate a rate.
var feedbacks = []string{"nack", "nack pli", "ccm fir", "goog-remb", "transport-cc"}

// extensions of the RTP header that pass. Those that name an m-line or a layer do not: there is no bundle and no simulcast.
var extensions = []string{
	"urn:ietf:params:rtp-hdrext:toffset",
	"http://www.webrtc.org/experiments/rtp-hdrext/abs-send-time",
	"http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01",
	"urn:3gpp:video-orientation", // TS 26.114 §7.4.5
}

// extension is one a=extmap, without a direction.
type extension struct {
	ID  int
	URI string
}

// vp8Params of RFC 7741 §6.1 and h264Params of RFC 6184 §8.1; their values are numbers. Parameter sets are
// left out: browsers send them in the stream, and their base64 would carry any text.
var (
	vp8Params  = []string{"max-fr", "max-fs"}
	h264Params = []string{"max-mbps", "max-fs", "max-cpb", "max-dpb", "max-br"}
)

// videoFmtp rebuilds the parameters of a codec of video. ok is false where they say what a peer cannot rely on:
// the format is then passed over.
func videoFmtp(codec, v string) (clean string, ok bool) {
	var kept []string
	for part := range strings.SplitSeq(v, ";") {
		k, n, _ := strings.Cut(strings.TrimSpace(part), "=")
		k = strings.ToLower(k)
		number := n != "" && len(n) <= 9 && onlyOf(n, "0123456789")
		switch {
		case len(kept) > len(h264Params)+3: // repeated
			return "", false
		case codec == rtx && k == "apt":
			if pt, err := strconv.ParseUint(n, 10, 7); err != nil || len(kept) > 0 {
				return "", false
			} else {
				kept = append(kept, "apt="+strconv.Itoa(int(pt)))
			}
		case codec == h264 && k == "profile-level-id":
			if len(n) != 6 || !onlyOf(n, "0123456789abcdefABCDEF") {
				return "", false
			}
			kept = append(kept, k+"="+strings.ToLower(n))
		case codec == h264 && k == "packetization-mode": // 2, interleaved, is no browser's
			if n != "0" && n != "1" {
				return "", false
			}
			kept = append(kept, k+"="+n)
		case codec == h264 && k == "level-asymmetry-allowed":
			if n != "0" && n != "1" {
				return "", false
			}
			kept = append(kept, k+"="+n)
		case number && (codec == h264 && slices.Contains(h264Params, k) || codec == "VP8/90000" && slices.Contains(vp8Params, k)):
			kept = append(kept, k+"="+n)
		}
	}
	return strings.Join(kept, ";"), codec != rtx || len(kept) == 1
}

// param is the value of a parameter of f, or its default.
func (f format) param(key, def string) string {
	for part := range strings.SplitSeq(f.Fmtp, ";") {
		if k, v, _ := strings.Cut(part, "="); k == key {
			return v
		}
	}
	return def
}

// isRTX says whether f retransmits another; primary says which.
func (f format) isRTX() bool { return f.Codec == rtx }

func (f format) primary() uint8 {
	n, _ := strconv.ParseUint(f.param("apt", ""), 10, 7) // checked by videoFmtp
	return uint8(n)
}

// sameFormat says whether an answer's format means the offer's: payload type and codec, and what the two sides must
// have in common: profile and packetization of H.264 (RFC 6184 §8.2.2), the format that is retransmitted. Levels may
// differ: phones that send at most what they can are many, and those that say level-asymmetry-allowed few.
func sameFormat(a, b format) bool {
	switch {
	case a.PT != b.PT || a.Codec != b.Codec:
		return false
	case a.isRTX():
		return a.primary() == b.primary()
	case a.Codec == h264:
		return a.param("packetization-mode", "0") == b.param("packetization-mode", "0") && h264Profile(a) == h264Profile(b)
	}
	return true
}

// h264Profile is the profile that profile-level-id names; several spellings name one (RFC 6184 §8.1, table 5).
func h264Profile(f format) string {
	id := f.param("profile-level-id", "420010")
	idc := id[:2]
	iop, _ := strconv.ParseUint(id[2:4], 16, 8) // checked by videoFmtp
	switch {
	case idc == "42" && iop&0x4f == 0x40, idc == "4d" && iop&0x8f == 0x80, idc == "58" && iop&0xcf == 0xc0:
		return "constrained baseline"
	case idc == "42" && iop&0x4f == 0, idc == "58" && iop&0xcf == 0x80:
		return "baseline"
	}
	return id[:4]
}

// prune takes away what has lost what it belongs to: retransmission of a format that is gone, and repetition of lost packets
// (nack) where it would send the same packet again, which SRTP takes for a replay.
func (l *line) prune() {
	l.Formats = slices.DeleteFunc(l.Formats, func(f format) bool {
		return f.isRTX() && !slices.ContainsFunc(l.Formats, func(p format) bool { return p.PT == f.primary() && !p.isRTX() })
	})
	for i, f := range l.Formats {
		if !slices.ContainsFunc(l.Formats, func(r format) bool { return r.isRTX() && r.primary() == f.PT }) {
			l.Formats[i].Feedback = slices.DeleteFunc(slices.Clone(f.Feedback), func(s string) bool { return s == "nack" })
		}
	}
}

// feedback reads what a line of video says of a payload type.
func feedback(m *sdp.MediaDescription, pt string) []string {
	var list []string
	for _, a := range m.Attributes {
		if a.Key != "rtcp-fb" {
			continue
		}
		p, v, _ := strings.Cut(a.Value, " ")
		if v = strings.ToLower(strings.TrimSpace(v)); (p == pt || p == "*") && slices.Contains(feedbacks, v) && !slices.Contains(list, v) {
			list = append(list, v)
		}
	}
	return list
}

// hasFeedback says whether l needs RTP/AVPF (RFC 4585 §4.1).
func (l *line) hasFeedback() bool {
	return slices.ContainsFunc(l.Formats, func(f format) bool { return len(f.Feedback) > 0 })
}

// headerExtensions reads those that pass, each URI and each identifier once.
func headerExtensions(m *sdp.MediaDescription) []extension {
	var list []extension
	for _, a := range m.Attributes {
		if a.Key != "extmap" {
			continue
		}
		f := strings.Fields(a.Value)
		if len(f) != 2 || !slices.Contains(extensions, f[1]) {
			continue
		}
		id, err := strconv.ParseUint(f[0], 10, 8)
		if err != nil || id < 1 || id > maxExtensions || slices.ContainsFunc(list, func(e extension) bool { return e.ID == int(id) || e.URI == f[1] }) {
			continue
		}
		list = append(list, extension{int(id), f[1]})
	}
	return list
}
