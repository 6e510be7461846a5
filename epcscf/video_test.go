package epcscf

import (
	"bytes"
	"slices"
	"strings"
	"testing"
)

func videoOffer(t testing.TB, user string) string {
	return sdpFile(t, "offer-video.sdp", user)
}

// TestVideoOfferIsExactly writes out the line of video that the core is offered for Chromium's, whole.
func TestVideoOfferIsExactly(t *testing.T) {
	d, err := parseBrowser([]byte(videoOffer(t, "alice")), true)
	if err != nil {
		t.Fatal(err)
	}
	got, err := writeCore(&d, nil, fakeLocal(t, 2), &origin{id: 7})
	if err != nil {
		t.Fatal(err)
	}
	want := `m=video 41002 RTP/AVPF 96 97 103 104 107
c=IN IP4 198.51.100.10
a=rtpmap:96 VP8/90000
a=rtcp-fb:96 goog-remb
a=rtcp-fb:96 transport-cc
a=rtcp-fb:96 ccm fir
a=rtcp-fb:96 nack
a=rtcp-fb:96 nack pli
a=rtpmap:97 rtx/90000
a=fmtp:97 apt=96
a=rtpmap:103 H264/90000
a=fmtp:103 level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42e01f
a=rtcp-fb:103 ccm fir
a=rtcp-fb:103 nack
a=rtcp-fb:103 nack pli
a=rtpmap:104 rtx/90000
a=fmtp:104 apt=103
a=rtpmap:107 H264/90000
a=fmtp:107 level-asymmetry-allowed=1;packetization-mode=0;profile-level-id=42e01f
a=rtcp-fb:107 nack pli
a=extmap:14 urn:ietf:params:rtp-hdrext:toffset
a=extmap:2 http://www.webrtc.org/experiments/rtp-hdrext/abs-send-time
a=extmap:13 urn:3gpp:video-orientation
a=extmap:3 http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01
a=sendrecv
`
	s := strings.ReplaceAll(string(got), "\r\n", "\n")
	if i := strings.Index(s, "m=video"); s[i:] != want {
		t.Errorf("got\n%s", s)
	}
	if !strings.Contains(s, "m=audio 41000 RTP/AVP ") {
		t.Errorf("audio needs no feedback:\n%s", s)
	}
}

// TestVideoAnswers: what a far side answers to Chromium's offer, and what Chromium is told.
func TestVideoAnswers(t *testing.T) {
	const audio = "v=0\r\no=far 1 1 IN IP4 198.51.100.77\r\ns=call\r\nc=IN IP4 198.51.100.77\r\nt=0 0\r\nm=audio 30000 RTP/AVP 0\r\n"
	for _, c := range []struct {
		name, video string
		want        []string // in the WIC's line of video
		not         []string
		refused     bool
	}{
		{"not taken", "m=video 0 RTP/AVPF 96\r\n", []string{"m=video 0 UDP/TLS/RTP/SAVPF 96\r\na=mid:1\r\n"}, []string{"ice-ufrag"}, false},
		{"VP8 with all", "m=video 30002 RTP/AVPF 96 97\r\na=rtpmap:96 VP8/90000\r\na=rtcp-fb:* nack\r\na=rtcp-fb:96 nack pli\r\na=rtpmap:97 rtx/90000\r\na=fmtp:97 apt=96\r\n",
			[]string{"m=video 40002 UDP/TLS/RTP/SAVPF 96 97\r\n", "a=rtcp-fb:96 nack\r\n", "a=rtcp-fb:96 nack pli\r\n", "a=fmtp:97 apt=96\r\n", "a=wicgate-core:RTP/AVPF\r\n"}, []string{"rtcp-fb:97"}, false},
		{"nack without rtx", "m=video 30002 RTP/AVPF 96\r\na=rtpmap:96 VP8/90000\r\na=rtcp-fb:96 nack\r\na=rtcp-fb:96 nack pli\r\n", []string{"a=rtcp-fb:96 nack pli\r\n"}, []string{"a=rtcp-fb:96 nack\r\n"}, false},
		{"AVP without feedback", "m=video 30002 RTP/AVP 103\r\na=rtpmap:103 H264/90000\r\na=fmtp:103 profile-level-id=42C028;packetization-mode=1\r\n",
			[]string{"UDP/TLS/RTP/SAVPF 103\r\n", "a=fmtp:103 profile-level-id=42c028;packetization-mode=1\r\n", "a=wicgate-core:RTP/AVP\r\n"}, []string{"rtcp-fb"}, false},
		{"H264 of another profile", "m=video 30002 RTP/AVP 103\r\na=rtpmap:103 H264/90000\r\na=fmtp:103 profile-level-id=640028;packetization-mode=1\r\n", nil, nil, true},
		{"H264 of another mode", "m=video 30002 RTP/AVP 103\r\na=rtpmap:103 H264/90000\r\na=fmtp:103 profile-level-id=42e01f\r\n", nil, nil, true},
		{"rtx of another format", "m=video 30002 RTP/AVPF 96 97\r\na=rtpmap:96 VP8/90000\r\na=rtpmap:97 rtx/90000\r\na=fmtp:97 apt=103\r\n", []string{"SAVPF 96\r\n"}, []string{"rtx"}, false},
		{"rtx alone", "m=video 30002 RTP/AVPF 97\r\na=rtpmap:97 rtx/90000\r\na=fmtp:97 apt=96\r\n", []string{"m=video 0 "}, nil, false},
		{"extensions and feedback not offered", "m=video 30002 RTP/AVPF 103\r\na=rtpmap:103 H264/90000\r\na=fmtp:103 profile-level-id=42e01f;packetization-mode=1\r\na=rtcp-fb:103 goog-remb\r\na=rtcp-fb:103 app x\r\n" +
			"a=extmap:3 http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01\r\na=extmap:4 urn:3gpp:video-orientation\r\na=extmap:2/sendonly http://www.webrtc.org/experiments/rtp-hdrext/abs-send-time\r\n",
			[]string{"a=extmap:3 http"}, []string{"goog-remb", "app x", "extmap:4", "extmap:2"}, false},
	} {
		d, err := parseBrowser([]byte(videoOffer(t, "alice")), true)
		if err != nil {
			t.Fatal(err)
		}
		a, err := parseCore([]byte(audio + c.video))
		if err == nil {
			err = match(&d, &a)
		}
		if (err != nil) != c.refused {
			t.Errorf("%s: %v", c.name, err)
		}
		if err != nil {
			continue
		}
		out, err := writeBrowser(&a, &d, fakeLocal(t, 2), newOrigin())
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		_, video, _ := bytes.Cut(out, []byte("m=video"))
		line := "m=video" + string(video)
		for _, w := range c.want {
			if !strings.Contains(line, w) {
				t.Errorf("%s: no %q in\n%s", c.name, w, line)
			}
		}
		for _, w := range c.not {
			if strings.Contains(line, w) {
				t.Errorf("%s: %q in\n%s", c.name, w, line)
			}
		}
	}
}

func TestH264Profile(t *testing.T) {
	for id, want := range map[string]string{
		"42e01f": "constrained baseline", "42c028": "constrained baseline", "4d801f": "constrained baseline", "42001f": "baseline", "420010": "baseline",
		"4d001f": "4d00", "640028": "6400", "640c28": "640c",
	} {
		if got := h264Profile(format{Codec: h264, Fmtp: "profile-level-id=" + id}); got != want {
			t.Errorf("%s: %s, want %s", id, got, want)
		}
	}
	if got := h264Profile(format{Codec: h264}); got != "baseline" {
		t.Errorf("none: %s", got)
	}
}

// FuzzVideoFmtp: what comes out comes out again, and is made of few words.
func FuzzVideoFmtp(f *testing.F) {
	for _, c := range []string{rtx, h264, "VP8/90000"} {
		for _, v := range []string{"apt=96", "apt=96;apt=97", "level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42e01f", "max-fr=30; max-fs=3600", "profile-level-id=42e0", "packetization-mode=2", ";;=;"} {
			f.Add(c, v)
		}
	}
	words := append([]string{"apt", "profile-level-id", "packetization-mode", "level-asymmetry-allowed"}, append(vp8Params, h264Params...)...)
	f.Fuzz(func(t *testing.T, codec, v string) {
		clean, ok := videoFmtp(codec, v)
		if !ok || clean == "" {
			return
		}
		if again, ok := videoFmtp(codec, clean); !ok || again != clean {
			t.Fatalf("%q, then %q", clean, again)
		}
		for part := range strings.SplitSeq(clean, ";") {
			if k, n, _ := strings.Cut(part, "="); !slices.Contains(words, k) || len(n) > 9 || !onlyOf(n, "0123456789abcdef") {
				t.Fatalf("%q comes out", part)
			}
		}
	})
}
