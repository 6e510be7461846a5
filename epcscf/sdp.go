package epcscf

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/pion/sdp/v3"

	"wicgate/internal/iq"
)

// Bounds of a session description.
const (
	maxSDP     = 32 << 10 // bytes
	maxLines   = 8        // m-lines
	maxFormats = 32       // payload types of one m-line
)

// Media transports, as m-lines write them.
const (
	accessProto = "UDP/TLS/RTP/SAVPF"
	coreProto   = "RTP/AVP"
	coreProtoFB = "RTP/AVPF" // where there is feedback (RFC 4585)
)

// unacceptable is why a session description is answered with 488, in words for the log and the page.
type unacceptable string

func (u unacceptable) Error() string { return string(u) }

// description is a session description reduced to what this edge understands. Nothing of the text
// that it was read from survives but what stands in these fields, each checked: that is what keeps
// a WIC's fingerprint, addresses and names from the far side.
type description struct {
	Lines []line
	// Index numbers the lines of an offer in a call for the gateway, -1 for those that it is not told
	// about; nil in an answer, which goes by its offer's. Streams is how many the gateway knows of.
	Index   []int
	Streams int
}

// line is one m-line.
type line struct {
	Kind  string // audio, video, application, …
	Proto string // as written
	Raw   string // first format as written, to be echoed in a rejection
	// Rejected: port 0, bundle-only, or a kind or codecs that this edge does not carry.
	Rejected bool
	Mid      string
	Formats  []format
	Ext      []extension // of video
	Dir      string      // sendrecv, sendonly, recvonly, inactive
	Ptime    int         // ms, 0 where absent
	MaxPtime int         // ms, 0 where absent
	Access   *iq.AccessRemote
	Core     *iq.CoreRemote // the unspecified address where the core holds the call with 0.0.0.0
}

// format is one payload type with its codec in its canonical spelling.
type format struct {
	PT    uint8
	Codec string // as rtpmap writes it: "opus/48000/2"
	Fmtp  string // rebuilt from known parameters, "" where absent
	// Feedback are the a=rtcp-fb of video, without the payload type.
	Feedback []string
}

const event = "telephone-event/"

func (f format) isEvent() bool { return strings.HasPrefix(f.Codec, event) }

// kinds of media that IANA has registered (RFC 8866 §8.2.2).
var kinds = []string{"audio", "video", "text", "application", "message", "image"}

// codecs that pass, by their lower-case spelling. The gateway relays; it does not transcode.
var codecs = map[string]string{
	"opus/48000/2": "opus/48000/2", "pcmu/8000": "PCMU/8000", "pcmu/8000/1": "PCMU/8000", "pcma/8000": "PCMA/8000", "pcma/8000/1": "PCMA/8000",
	"telephone-event/8000": "telephone-event/8000", "telephone-event/48000": "telephone-event/48000",
}

// staticCodecs need no rtpmap (RFC 3551 §6).
var staticCodecs = map[uint8]string{0: "PCMU/8000", 8: "PCMA/8000"}

// opusParams of RFC 7587 §6.1 and what browsers add; their values are numbers.
var opusParams = []string{"minptime", "useinbandfec", "usedtx", "stereo", "sprop-stereo", "maxaveragebitrate", "maxplaybackrate", "sprop-maxcapturerate", "cbr"}

// parseBrowser reads a WIC's offer or answer.
func parseBrowser(b []byte, offer bool) (description, error) {
	s, d, err := parseSDP(b)
	if err != nil {
		return d, err
	}
	for i, m := range s.MediaDescriptions {
		l := &d.Lines[i]
		attr := func(key string) (string, bool) {
			if v, ok := m.Attribute(key); ok {
				return v, true
			}
			return s.Attribute(key)
		}
		if _, only := m.Attribute("bundle-only"); only {
			l.Rejected = true // no transport of its own, and this edge does not bundle (TS 23.228 U.1)
		}
		if l.Rejected || !l.carried() {
			l.Rejected = true
			continue
		}
		if l.Proto != accessProto && l.Proto != "UDP/TLS/RTP/SAVP" {
			return d, unacceptable("media transport is not " + accessProto)
		}
		if _, mux := m.Attribute("rtcp-mux"); !mux {
			return d, unacceptable("no rtcp-mux")
		}
		setup, _ := attr("setup")
		switch {
		case offer && (setup == "actpass" || setup == "active"), !offer && setup == "active":
		default:
			return d, unacceptable("a=setup does not let the gateway be the DTLS server")
		}
		ufrag, _ := attr("ice-ufrag")
		pwd, _ := attr("ice-pwd")
		if !isICE(ufrag, 4) || !isICE(pwd, 22) {
			return d, unacceptable("ice-ufrag or ice-pwd is missing or malformed")
		}
		print, err := fingerprint(m.Attributes, s.Attributes)
		if err != nil {
			return d, err
		}
		l.Access = &iq.AccessRemote{Ufrag: ufrag, Pwd: pwd, Fingerprint: print}
		for _, a := range m.Attributes {
			if a.Key == "candidate" && len(a.Value) <= 512 && len(l.Access.Candidates) < iq.MaxCandidates {
				l.Access.Candidates = append(l.Access.Candidates, a.Value)
			}
		}
	}
	return d, d.limit()
}

// parseCore reads the core's offer or answer.
func parseCore(b []byte) (description, error) {
	s, d, err := parseSDP(b)
	if err != nil {
		return d, err
	}
	for i, m := range s.MediaDescriptions {
		l := &d.Lines[i]
		l.Mid = strconv.Itoa(i) // for the browser, which needs one
		if l.Rejected || !l.carried() {
			l.Rejected = true
			continue
		}
		if l.Proto != coreProto && l.Proto != coreProtoFB {
			return d, unacceptable("media transport is not " + coreProto)
		}
		c := m.ConnectionInformation
		if c == nil {
			c = s.ConnectionInformation
		}
		if c == nil || c.Address == nil || c.NetworkType != "IN" {
			return d, unacceptable("no connection address")
		}
		addr, err := netip.ParseAddr(c.Address.Address)
		if err != nil || addr.Zone() != "" || addr.IsMulticast() {
			return d, unacceptable("connection address is not a unicast address")
		}
		if addr.IsUnspecified() { // hold as RFC 2543 wrote it
			l.Dir = "inactive"
			at := netip.AddrPortFrom(addr.Unmap(), uint16(m.MediaName.Port.Value)) // which the gateway, too, understands as hold
			l.Core = &iq.CoreRemote{RTP: at, RTCP: at}
			continue
		}
		port := m.MediaName.Port.Value
		l.Core = &iq.CoreRemote{RTP: netip.AddrPortFrom(addr.Unmap(), uint16(port)), RTCP: netip.AddrPortFrom(addr.Unmap(), uint16(min(port+1, 65535)))}
		if v, ok := m.Attribute("rtcp"); ok { // RFC 3605
			f := strings.Fields(v)
			if len(f) != 1 && len(f) != 4 {
				return d, unacceptable("a=rtcp is malformed")
			}
			n, err := strconv.ParseUint(f[0], 10, 16)
			if err != nil || n == 0 {
				return d, unacceptable("a=rtcp is malformed")
			}
			if len(f) == 4 {
				if addr, err = netip.ParseAddr(f[3]); err != nil || addr.Zone() != "" || addr.IsMulticast() || addr.IsUnspecified() {
					return d, unacceptable("a=rtcp is malformed")
				}
			}
			l.Core.RTCP = netip.AddrPortFrom(addr.Unmap(), uint16(n))
		}
	}
	return d, d.limit()
}

// parseSDP reads what both sides have in common.
func parseSDP(b []byte) (*sdp.SessionDescription, description, error) {
	var s sdp.SessionDescription
	var d description
	if len(b) == 0 {
		return nil, d, unacceptable("no session description")
	}
	if len(b) > maxSDP {
		return nil, d, unacceptable("session description too long")
	}
	if err := s.Unmarshal(b); err != nil {
		return nil, d, unacceptable("malformed session description")
	}
	switch n := len(s.MediaDescriptions); {
	case n == 0:
		return nil, d, unacceptable("no media")
	case n > maxLines:
		return nil, d, unacceptable(fmt.Sprintf("%d m-lines, at most %d", n, maxLines))
	}
	for _, m := range s.MediaDescriptions {
		l := line{Kind: m.MediaName.Media, Proto: strings.Join(m.MediaName.Protos, "/"), Dir: "sendrecv"}
		if !slices.Contains(kinds, l.Kind) || len(m.MediaName.Formats) == 0 || len(m.MediaName.Formats) > 4*maxFormats || m.MediaName.Port.Value < 0 || m.MediaName.Port.Value > 65535 {
			return nil, d, unacceptable("malformed m-line")
		}
		if isWord(m.MediaName.Formats[0]) {
			l.Raw = m.MediaName.Formats[0]
		} else {
			l.Raw = "0"
		}
		l.Rejected = m.MediaName.Port.Value == 0 || m.MediaName.Port.Range != nil && *m.MediaName.Port.Range > 1
		if mid, ok := m.Attribute("mid"); ok {
			if !isWord(mid) {
				return nil, d, unacceptable("malformed mid")
			}
			l.Mid = mid
		}
		for _, list := range [][]sdp.Attribute{s.Attributes, m.Attributes} {
			for _, a := range list {
				switch a.Key {
				case "sendrecv", "sendonly", "recvonly", "inactive":
					l.Dir = a.Key
				case "ptime":
					l.Ptime = millis(a.Value)
				case "maxptime":
					l.MaxPtime = millis(a.Value)
				}
			}
		}
		l.Formats = formats(m)
		if l.Kind == "video" {
			l.Ext = headerExtensions(m)
			l.prune()
		}
		d.Lines = append(d.Lines, l)
	}
	return &s, d, nil
}

// carried says whether this edge carries the media: audio or video with a codec that passes.
func (l *line) carried() bool {
	return (l.Kind == "audio" || l.Kind == "video") && slices.ContainsFunc(l.Formats, func(f format) bool { return !f.isEvent() && !f.isRTX() })
}

// limit holds d to the gateway's number of streams; one at least must be left.
func (d *description) limit() error {
	n := 0
	for i := range d.Lines {
		if d.Lines[i].Rejected {
			continue
		}
		if n++; n > iq.MaxStreams {
			d.Lines[i].Rejected = true
		}
	}
	if n == 0 {
		return unacceptable("no audio or video with a codec that passes here: opus, PCMU or PCMA; VP8 or H264")
	}
	return nil
}

// number gives the lines of d, an offer, their streams: a line keeps its number for the life of the
// call, also while it is given up, as the gateway goes by numbers. known are the numbers so far, n their count.
func (d *description) number(known []int, n int) ([]int, int) {
	d.Index = make([]int, len(d.Lines))
	for i := range d.Lines {
		l := &d.Lines[i]
		if i >= len(known) {
			known = append(known, -1)
		}
		if !l.Rejected && known[i] < 0 {
			if n >= iq.MaxStreams {
				l.Rejected = true
			} else {
				known[i] = n
				n++
			}
		}
		if d.Index[i] = known[i]; l.Rejected {
			d.Index[i] = -1
		}
	}
	d.Streams = n
	return known, n
}

// streams are the numbers of the lines of an offer that the gateway is told about: -1 for the others.
// Its answer goes by the same numbers.
func (d *description) streams() (index []int, n int) {
	if d.Index != nil {
		return d.Index, d.Streams
	}
	for _, l := range d.Lines {
		if l.Rejected {
			index = append(index, -1)
			continue
		}
		index = append(index, n)
		n++
	}
	return index, n
}

func formats(m *sdp.MediaDescription) []format {
	var list []format
	video := m.MediaName.Media == "video"
	known := codecs
	if video {
		known = videoCodecs
	}
	seen := map[uint8]bool{}
	for _, f := range m.MediaName.Formats {
		n, err := strconv.ParseUint(f, 10, 7)
		if err != nil || seen[uint8(n)] || len(list) >= maxFormats {
			continue
		}
		pt := uint8(n)
		seen[pt] = true
		codec, params := "", ""
		if !video {
			codec = staticCodecs[pt]
		}
		for _, a := range m.Attributes {
			if a.Key != "rtpmap" && a.Key != "fmtp" {
				continue
			}
			p, v, ok := strings.Cut(a.Value, " ")
			if !ok || p != f {
				continue
			}
			if a.Key == "rtpmap" {
				codec = known[strings.ToLower(strings.TrimSpace(v))]
			} else {
				params = v
			}
		}
		switch {
		case codec == "":
		case video:
			clean, ok := videoFmtp(codec, params)
			if !ok {
				continue
			}
			x := format{PT: pt, Codec: codec, Fmtp: clean}
			if codec != rtx {
				x.Feedback = feedback(m, f)
			}
			list = append(list, x)
		default:
			list = append(list, format{PT: pt, Codec: codec, Fmtp: fmtp(codec, params)})
		}
	}
	return list
}

// fmtp rebuilds the parameters of a codec from those that are known, so that no other text passes.
func fmtp(codec, v string) string {
	if strings.HasPrefix(codec, event) {
		if v = strings.TrimSpace(v); len(v) <= 32 && onlyOf(v, "0123456789,-") {
			return v
		}
		return ""
	}
	if !strings.HasPrefix(codec, "opus/") {
		return ""
	}
	var kept []string
	for part := range strings.SplitSeq(v, ";") {
		k, n, _ := strings.Cut(strings.TrimSpace(part), "=")
		if k = strings.ToLower(k); slices.Contains(opusParams, k) && n != "" && len(n) <= 7 && onlyOf(n, "0123456789") {
			kept = append(kept, k+"="+n)
		}
	}
	return strings.Join(kept[:min(len(kept), len(opusParams))], ";")
}

func onlyOf(s, set string) bool { return strings.Trim(s, set) == "" }

func millis(s string) int {
	n, err := strconv.ParseUint(s, 10, 10)
	if err != nil {
		return 0
	}
	return int(n)
}

func isWord(s string) bool {
	if s == "" || len(s) > 32 {
		return false
	}
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && c != '-' && c != '_' && c != '.' && c != '+' {
			return false
		}
	}
	return true
}

// isICE is ice-char, at least least and at most 256 of it (RFC 8839 §5.4).
func isICE(s string, least int) bool {
	if len(s) < least || len(s) > 256 {
		return false
	}
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && c != '+' && c != '/' {
			return false
		}
	}
	return true
}

// hashes that a fingerprint may use, with their length in bytes. RFC 8122 §5 lets nobody rely on
// SHA-1 or MD5.
var hashes = map[string]int{"sha-256": 32, "sha-384": 48, "sha-512": 64}

// fingerprint is the first with a hash known here, of the m-line or else of the session.
func fingerprint(levels ...[]sdp.Attribute) (iq.Fingerprint, error) {
	seen := false
	for _, level := range levels {
		for _, a := range level {
			if a.Key != "fingerprint" {
				continue
			}
			seen = true
			hash, value, _ := strings.Cut(a.Value, " ")
			hash = strings.ToLower(hash)
			n := hashes[hash]
			if n == 0 {
				continue
			}
			if len(value) != 3*n-1 {
				return iq.Fingerprint{}, unacceptable("fingerprint is malformed")
			}
			for i, c := range []byte(value) {
				hex := c >= '0' && c <= '9' || c >= 'A' && c <= 'F' || c >= 'a' && c <= 'f'
				if i%3 == 2 && c != ':' || i%3 != 2 && !hex {
					return iq.Fingerprint{}, unacceptable("fingerprint is malformed")
				}
			}
			return iq.Fingerprint{Hash: hash, Value: strings.ToUpper(value)}, nil
		}
	}
	if seen {
		return iq.Fingerprint{}, unacceptable("fingerprint with a hash that is not SHA-2")
	}
	return iq.Fingerprint{}, unacceptable("no fingerprint")
}

// match holds an answer to its offer (RFC 3264 §6): the same lines in the same order, payload types
// that mean what they meant. Formats that do not are dropped; a line that loses all is an error. The answer's directions are held to
// what the offer allows, and its mids are the offer's.
func match(offer, answer *description) error {
	if len(offer.Lines) != len(answer.Lines) {
		return unacceptable(fmt.Sprintf("answer has %d m-lines, the offer %d", len(answer.Lines), len(offer.Lines)))
	}
	left := 0
	for i := range answer.Lines {
		o, a := &offer.Lines[i], &answer.Lines[i]
		if o.Kind != a.Kind {
			return unacceptable("answer changes the kind of an m-line")
		}
		a.Mid = o.Mid
		if o.Rejected || a.Rejected {
			a.Rejected = true
			continue
		}
		a.Formats = slices.DeleteFunc(a.Formats, func(f format) bool {
			return !slices.ContainsFunc(o.Formats, func(g format) bool { return sameFormat(f, g) })
		})
		for i, f := range a.Formats {
			g := o.Formats[slices.IndexFunc(o.Formats, func(g format) bool { return g.PT == f.PT })]
			a.Formats[i].Feedback = slices.DeleteFunc(slices.Clone(f.Feedback), func(s string) bool { return !slices.Contains(g.Feedback, s) })
		}
		a.Ext = slices.DeleteFunc(a.Ext, func(e extension) bool { return !slices.Contains(o.Ext, e) })
		a.prune()
		if !a.carried() {
			return unacceptable("answer has no codec of the offer under its payload type")
		}
		a.Dir = answerDir(o.Dir, a.Dir)
		left++
	}
	if left == 0 {
		return unacceptable("answer accepts no media")
	}
	return nil
}

func answerDir(offer, answer string) string {
	send := offer != "sendonly" && offer != "inactive" && (answer == "sendrecv" || answer == "sendonly")
	recv := offer != "recvonly" && offer != "inactive" && (answer == "sendrecv" || answer == "recvonly")
	switch {
	case send && recv:
		return "sendrecv"
	case send:
		return "sendonly"
	case recv:
		return "recvonly"
	}
	return "inactive"
}

// origin is the o= line of one side of a call: the version rises with each change (RFC 3264 §8).
type origin struct {
	id, version uint64
	last        string
}

func newOrigin() *origin {
	var b [8]byte
	rand.Read(b[:])
	return &origin{id: binary.BigEndian.Uint64(b[:]) >> 2}
}

// write marshals lines under the origin.
func (o *origin) write(addr netip.Addr, lines []*sdp.MediaDescription) ([]byte, error) {
	if !addr.IsValid() {
		addr = netip.IPv4Unspecified()
	}
	s := sdp.SessionDescription{
		Origin:           sdp.Origin{Username: "-", SessionID: o.id, NetworkType: "IN", AddressType: addrType(addr), UnicastAddress: addr.String()},
		SessionName:      "-",
		TimeDescriptions: []sdp.TimeDescription{{}},

		ConnectionInformation: connection(addr),
		MediaDescriptions:     lines,
	}
	b, err := s.Marshal()
	if err != nil {
		return nil, err
	}
	if string(b) != o.last {
		o.version++
		o.last = string(b)
	}
	s.Origin.SessionVersion = o.version
	return s.Marshal()
}

func addrType(a netip.Addr) string {
	if a.Is4() {
		return "IP4"
	}
	return "IP6"
}

func connection(a netip.Addr) *sdp.ConnectionInformation {
	return &sdp.ConnectionInformation{NetworkType: "IN", AddressType: addrType(a), Address: &sdp.Address{Address: a.String()}}
}

func attribute(key string, value string) sdp.Attribute { return sdp.Attribute{Key: key, Value: value} }

// codecLines are the attributes that both sides share.
func codecLines(m *sdp.MediaDescription, l *line) {
	for _, f := range l.Formats {
		pt := strconv.Itoa(int(f.PT))
		m.MediaName.Formats = append(m.MediaName.Formats, pt)
		m.Attributes = append(m.Attributes, attribute("rtpmap", pt+" "+f.Codec))
		if f.Fmtp != "" {
			m.Attributes = append(m.Attributes, attribute("fmtp", pt+" "+f.Fmtp))
		}
		for _, fb := range f.Feedback {
			m.Attributes = append(m.Attributes, attribute("rtcp-fb", pt+" "+fb))
		}
	}
	for _, e := range l.Ext {
		m.Attributes = append(m.Attributes, attribute("extmap", strconv.Itoa(e.ID)+" "+e.URI))
	}
	if l.Ptime > 0 {
		m.Attributes = append(m.Attributes, attribute("ptime", strconv.Itoa(l.Ptime)))
	}
	if l.MaxPtime > 0 {
		m.Attributes = append(m.Attributes, attribute("maxptime", strconv.Itoa(l.MaxPtime)))
	}
	m.Attributes = append(m.Attributes, attribute(l.Dir, ""))
}

// rejection is an m-line with port 0. proto and raw are those of the side that is written to, where it has said them.
func rejection(kind, proto, raw, mid string) *sdp.MediaDescription {
	m := &sdp.MediaDescription{MediaName: sdp.MediaName{Media: kind, Protos: strings.Split(proto, "/"), Formats: []string{raw}}}
	if mid != "" {
		m.Attributes = append(m.Attributes, attribute("mid", mid))
	}
	m.Attributes = append(m.Attributes, attribute("inactive", ""))
	return m
}

// writeCore writes, for the core, what the WIC's description d says with the gateway's addresses.
// theirs is the core's own description where this is an answer to it, else nil.
func writeCore(d, theirs *description, local iq.Local, o *origin) ([]byte, error) {
	index, n := d.streams()
	if theirs != nil {
		index, n = theirs.streams()
	}
	if len(local.Streams) < n {
		return nil, fmt.Errorf("gateway answered for %d streams of %d", len(local.Streams), n)
	}
	var lines []*sdp.MediaDescription
	var addr netip.Addr
	for i := range d.Lines {
		l := &d.Lines[i]
		if l.Rejected {
			proto, raw := coreProto, "0"
			if theirs != nil {
				proto, raw = theirs.Lines[i].Proto, theirs.Lines[i].Raw
			}
			lines = append(lines, rejection(l.Kind, proto, raw, ""))
			continue
		}
		c := local.Streams[index[i]].Core
		if !addr.IsValid() {
			addr = c.RTP.Addr()
		}
		proto := coreProto
		if l.hasFeedback() {
			proto = coreProtoFB
		}
		if theirs != nil {
			proto = theirs.Lines[i].Proto // an answer keeps the offer's (RFC 3264 §6)
		}
		m := &sdp.MediaDescription{MediaName: sdp.MediaName{Media: l.Kind, Port: sdp.RangedPort{Value: int(c.RTP.Port())}, Protos: strings.Split(proto, "/")}}
		m.ConnectionInformation = connection(c.RTP.Addr())
		codecLines(m, l)
		switch {
		case c.RTCP.Addr() != c.RTP.Addr() && c.RTCP.IsValid():
			m.Attributes = append(m.Attributes, attribute("rtcp", fmt.Sprintf("%d IN %s %s", c.RTCP.Port(), addrType(c.RTCP.Addr()), c.RTCP.Addr())))
		case c.RTCP.IsValid() && c.RTCP.Port() != c.RTP.Port()+1:
			m.Attributes = append(m.Attributes, attribute("rtcp", strconv.Itoa(int(c.RTCP.Port()))))
		}
		lines = append(lines, m)
	}
	return o.write(addr, lines)
}

// writeBrowser writes, for the WIC, what the core's description d says with the gateway's
// transport. theirs is the WIC's own description where this is an answer to it, else nil. No group is written: each
// m-line has its own transport (TS 23.228 U.1).
func writeBrowser(d, theirs *description, local iq.Local, o *origin) ([]byte, error) {
	index, n := d.streams()
	if theirs != nil {
		index, n = theirs.streams()
	}
	if len(local.Streams) < n {
		return nil, fmt.Errorf("gateway answered for %d streams of %d", len(local.Streams), n)
	}
	setup := "actpass"
	if theirs != nil {
		setup = "passive"
	}
	var lines []*sdp.MediaDescription
	var addr netip.Addr
	for i := range d.Lines {
		l := &d.Lines[i]
		if l.Rejected {
			proto, raw := accessProto, "0"
			if theirs != nil {
				proto, raw = theirs.Lines[i].Proto, theirs.Lines[i].Raw
			}
			lines = append(lines, rejection(l.Kind, proto, raw, l.Mid))
			continue
		}
		a := local.Streams[index[i]].Access
		port, ip := int(a.Default.Port()), a.Default.Addr()
		if !a.Default.IsValid() {
			port, ip = 9, netip.IPv4Unspecified()
		}
		if !addr.IsValid() {
			addr = ip
		}
		proto := accessProto
		if theirs != nil {
			proto = theirs.Lines[i].Proto
		}
		m := &sdp.MediaDescription{MediaName: sdp.MediaName{Media: l.Kind, Port: sdp.RangedPort{Value: port}, Protos: strings.Split(proto, "/")}}
		m.ConnectionInformation = connection(ip)
		if l.Mid != "" {
			m.Attributes = append(m.Attributes, attribute("mid", l.Mid))
		}
		m.Attributes = append(m.Attributes,
			attribute("ice-ufrag", a.Ufrag), attribute("ice-pwd", a.Pwd),
			attribute("fingerprint", a.Fingerprint.Hash+" "+a.Fingerprint.Value), attribute("setup", setup), attribute("rtcp-mux", ""))
		codecLines(m, l)
		m.Attributes = append(m.Attributes, attribute("msid", "wicgate "+l.Kind+strconv.Itoa(i)), attribute("wicgate-core", l.Proto))
		for _, c := range a.Candidates {
			m.Attributes = append(m.Attributes, attribute("candidate", c))
		}
		m.Attributes = append(m.Attributes, attribute("end-of-candidates", ""))
		lines = append(lines, m)
	}
	return o.write(addr, lines)
}
