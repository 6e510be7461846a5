package browser

import (
	"strings"

	"wicgate/internal/iq"
)

// accessOf reads what Iq needs out of a browser's SDP with one m-line.
func accessOf(sdp string) *iq.AccessRemote {
	a := &iq.AccessRemote{}
	for line := range strings.Lines(sdp) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		switch key {
		case "a=ice-ufrag":
			a.Ufrag = value
		case "a=ice-pwd":
			a.Pwd = value
		case "a=fingerprint":
			a.Fingerprint.Hash, a.Fingerprint.Value, _ = strings.Cut(value, " ")
		case "a=candidate":
			a.Candidates = append(a.Candidates, value)
		}
	}
	return a
}

// answer is the least that a browser takes: Opus alone, the gateway's side of ICE and DTLS.
func answer(offer string, g iq.AccessLocal) string {
	mid := ""
	for line := range strings.Lines(offer) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), "a=mid:"); ok {
			mid = v
		}
	}
	lines := []string{"v=0", "o=- 1 1 IN IP4 " + g.Default.Addr().String(), "s=-", "t=0 0",
		"m=audio " + strings.TrimPrefix(g.Default.String(), g.Default.Addr().String()+":") + " UDP/TLS/RTP/SAVPF 111",
		"c=IN IP4 " + g.Default.Addr().String(), "a=rtpmap:111 opus/48000/2", "a=mid:" + mid, "a=sendrecv", "a=rtcp-mux",
		"a=ice-ufrag:" + g.Ufrag, "a=ice-pwd:" + g.Pwd, "a=fingerprint:" + g.Fingerprint.Hash + " " + g.Fingerprint.Value, "a=setup:passive"}
	for _, c := range g.Candidates {
		lines = append(lines, "a=candidate:"+c)
	}
	return strings.Join(append(lines, "a=end-of-candidates", ""), "\r\n")
}
