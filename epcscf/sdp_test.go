package epcscf

import (
	"bytes"
	"net/netip"
	"os"
	"strings"
	"testing"

	"wicgate/internal/iq"
)

func sdpFile(t testing.TB, name, user string) string {
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return strings.NewReplacer("\n", "\r\n", "{fingerprint}", fingerprintOf(user), "{user}", user).Replace(string(b))
}

const coreOffer = "v=0\r\no=far 1 1 IN IP4 198.51.100.77\r\ns=call\r\nc=IN IP4 198.51.100.77\r\nt=0 0\r\n" +
	"m=audio 30000 RTP/AVP 8 0 101\r\na=rtpmap:101 telephone-event/8000\r\na=fmtp:101 0-16\r\na=ptime:20\r\na=maxptime:150\r\n"

func fakeLocal(t testing.TB, n int) iq.Local {
	streams := make([]iq.Stream, n)
	l, err := newFakeGateway().Set(t.Context(), iq.Set{Streams: streams})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// TestCoreOfferIsExactly writes out what the core is offered for a Chromium offer, whole.
func TestCoreOfferIsExactly(t *testing.T) {
	d, err := parseBrowser([]byte(sdpFile(t, "offer.sdp", "alice")), true)
	if err != nil {
		t.Fatal(err)
	}
	o := &origin{id: 7}
	got, err := writeCore(&d, nil, fakeLocal(t, 1), o)
	if err != nil {
		t.Fatal(err)
	}
	want := `v=0
o=- 7 1 IN IP4 198.51.100.10
s=-
c=IN IP4 198.51.100.10
t=0 0
m=audio 41000 RTP/AVP 111 0 8 110 126
c=IN IP4 198.51.100.10
a=rtpmap:111 opus/48000/2
a=fmtp:111 minptime=10;useinbandfec=1
a=rtpmap:0 PCMU/8000
a=rtpmap:8 PCMA/8000
a=rtpmap:110 telephone-event/48000
a=rtpmap:126 telephone-event/8000
a=sendrecv
`
	if s := strings.ReplaceAll(string(got), "\r\n", "\n"); s != want {
		t.Errorf("got\n%s", s)
	}
	// written again it is the same; changed, its version rises
	again, _ := writeCore(&d, nil, fakeLocal(t, 1), o)
	if !bytes.Equal(got, again) {
		t.Error("the version rose without a change")
	}
	d.Lines[0].Dir = "sendonly"
	if again, _ = writeCore(&d, nil, fakeLocal(t, 1), o); !bytes.Contains(again, []byte("o=- 7 2 ")) {
		t.Errorf("the version did not rise:\n%s", again)
	}
	r := d.Lines[0].Access
	if r.Ufrag != "Yx1alice" || r.Fingerprint.Value != fingerprintOf("alice") || len(r.Candidates) != 1 || !strings.HasPrefix(r.Candidates[0], "1 1 udp 41885695 203.0.113.7 51372 typ relay") {
		t.Errorf("for the gateway %+v", r)
	}
}

func TestBrowserOfferIsExactly(t *testing.T) {
	d, err := parseCore([]byte(coreOffer))
	if err != nil {
		t.Fatal(err)
	}
	got, err := writeBrowser(&d, nil, fakeLocal(t, 1), &origin{id: 7})
	if err != nil {
		t.Fatal(err)
	}
	want := `v=0
o=- 7 1 IN IP4 192.0.2.10
s=-
c=IN IP4 192.0.2.10
t=0 0
m=audio 40000 UDP/TLS/RTP/SAVPF 8 0 101
c=IN IP4 192.0.2.10
a=mid:0
a=ice-ufrag:gwuf
a=ice-pwd:gatewaypwdgatewaypwd22
a=fingerprint:sha-256 ` + gatewayPrint + `
a=setup:actpass
a=rtcp-mux
a=rtpmap:8 PCMA/8000
a=rtpmap:0 PCMU/8000
a=rtpmap:101 telephone-event/8000
a=fmtp:101 0-16
a=ptime:20
a=maxptime:150
a=sendrecv
a=msid:wicgate audio0
a=wicgate-core:RTP/AVP
a=candidate:1 1 udp 2130706431 192.0.2.10 40000 typ host
a=end-of-candidates
`
	if s := strings.ReplaceAll(string(got), "\r\n", "\n"); s != want {
		t.Errorf("got\n%s", s)
	}
}

func TestParseCore(t *testing.T) {
	at := func(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }
	for _, c := range []struct {
		name, old, to string
		rtp, rtcp     netip.AddrPort
		dir           string
		refused       bool
	}{
		{"plain", "", "", at("198.51.100.77:30000"), at("198.51.100.77:30001"), "sendrecv", false},
		{"address of the m-line", "a=ptime", "c=IN IP4 198.51.100.78\r\na=ptime", at("198.51.100.78:30000"), at("198.51.100.78:30001"), "sendrecv", false},
		{"IPv6", "IN IP4 198.51.100.77\r\nt=", "IN IP6 2001:db8::7\r\nt=", at("[2001:db8::7]:30000"), at("[2001:db8::7]:30001"), "sendrecv", false},
		{"a=rtcp", "a=ptime", "a=rtcp:30009\r\na=ptime", at("198.51.100.77:30000"), at("198.51.100.77:30009"), "sendrecv", false},
		{"a=rtcp with address", "a=ptime", "a=rtcp:30009 IN IP4 198.51.100.78\r\na=ptime", at("198.51.100.77:30000"), at("198.51.100.78:30009"), "sendrecv", false},
		{"a=rtcp malformed", "a=ptime", "a=rtcp:0\r\na=ptime", netip.AddrPort{}, netip.AddrPort{}, "", true},
		{"hold of RFC 2543", "IN IP4 198.51.100.77\r\nt=", "IN IP4 0.0.0.0\r\nt=", netip.MustParseAddrPort("0.0.0.0:30000"), netip.MustParseAddrPort("0.0.0.0:30000"), "inactive", false},
		{"hold", "a=ptime", "a=sendonly\r\na=ptime", at("198.51.100.77:30000"), at("198.51.100.77:30001"), "sendonly", false},
		{"AVPF", "RTP/AVP", "RTP/AVPF", at("198.51.100.77:30000"), at("198.51.100.77:30001"), "sendrecv", false},
		{"multicast", "IN IP4 198.51.100.77\r\nt=", "IN IP4 224.0.0.1/127\r\nt=", netip.AddrPort{}, netip.AddrPort{}, "", true},
		{"a name", "IN IP4 198.51.100.77\r\nt=", "IN IP4 far.test\r\nt=", netip.AddrPort{}, netip.AddrPort{}, "", true},
		{"SAVP", "RTP/AVP", "RTP/SAVP", netip.AddrPort{}, netip.AddrPort{}, "", true},
		{"port 0", "audio 30000", "audio 0", netip.AddrPort{}, netip.AddrPort{}, "", true},
		{"port range", "audio 30000", "audio 30000/2", netip.AddrPort{}, netip.AddrPort{}, "", true},
		{"no codec of ours", "8 0 101", "18 101", netip.AddrPort{}, netip.AddrPort{}, "", true},
		{"video alone", "m=audio", "m=video", netip.AddrPort{}, netip.AddrPort{}, "", true},
		{"nonsense kind", "m=audio", "m=AB:CD", netip.AddrPort{}, netip.AddrPort{}, "", true},
		{"nine lines", "m=audio", strings.Repeat("m=video 9 RTP/AVP 96\r\n", 8) + "m=audio", netip.AddrPort{}, netip.AddrPort{}, "", true},
	} {
		d, err := parseCore([]byte(strings.Replace(coreOffer, c.old, c.to, 1)))
		if (err != nil) != c.refused {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if err != nil {
			continue
		}
		l := d.Lines[0]
		var r iq.CoreRemote
		if l.Core != nil {
			r = *l.Core
		}
		if r.RTP != c.rtp || r.RTCP != c.rtcp || l.Dir != c.dir {
			t.Errorf("%s: %+v %s", c.name, r, l.Dir)
		}
	}
}

// TestManyLines: at most iq.MaxStreams are carried, the others keep their places with port 0; bundled-only lines have no transport.
func TestManyLines(t *testing.T) {
	offer := sdpFile(t, "offer.sdp", "alice")
	head, media, _ := strings.Cut(offer, "m=audio")
	media = "m=audio" + media
	many := head + strings.Repeat(media, iq.MaxStreams+1) + "m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\na=mid:d\r\n" + strings.Replace(media, "a=rtcp-mux", "a=bundle-only\r\na=rtcp-mux", 1)
	d, err := parseBrowser([]byte(many), true)
	if err != nil {
		t.Fatal(err)
	}
	index, n := d.streams()
	if n != iq.MaxStreams || len(index) != iq.MaxStreams+3 || index[iq.MaxStreams] != -1 {
		t.Fatalf("%v %d", index, n)
	}
	core, err := writeCore(&d, nil, fakeLocal(t, n), newOrigin())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"m=audio 41006 RTP/AVP", "m=audio 0 RTP/AVP 0", "m=application 0 RTP/AVP 0"} {
		if !strings.Contains(string(core), want) {
			t.Errorf("no %q in\n%s", want, core)
		}
	}
	a, err := parseCore(core)
	if err != nil {
		t.Fatal(err)
	}
	if err := match(&d, &a); err != nil {
		t.Fatal(err)
	}
	answer, err := writeBrowser(&a, &d, fakeLocal(t, n), newOrigin())
	if err != nil || !strings.Contains(string(answer), "m=application 0 UDP/DTLS/SCTP webrtc-datachannel\r\na=mid:d\r\n") {
		t.Errorf("%v\n%s", err, answer)
	}
}

func TestMatch(t *testing.T) {
	offer := func() *description {
		d, err := parseCore([]byte(coreOffer))
		if err != nil {
			t.Fatal(err)
		}
		return &d
	}
	two := offer()
	two.Lines = append(two.Lines, two.Lines[0])
	if match(two, offer()) == nil {
		t.Error("an answer with fewer lines passes")
	}
	kind := offer()
	kind.Lines[0].Kind = "video"
	if match(offer(), kind) == nil {
		t.Error("an answer with another kind passes")
	}
	none := offer()
	none.Lines[0].Rejected = true
	if match(offer(), none) == nil {
		t.Error("an answer that accepts nothing passes")
	}
	for _, c := range [][3]string{
		{"sendrecv", "sendrecv", "sendrecv"}, {"sendrecv", "recvonly", "recvonly"}, {"sendonly", "sendrecv", "recvonly"}, {"sendonly", "sendonly", "inactive"},
		{"recvonly", "sendrecv", "sendonly"}, {"inactive", "sendrecv", "inactive"}, {"sendrecv", "inactive", "inactive"},
	} {
		if got := answerDir(c[0], c[1]); got != c[2] {
			t.Errorf("%s answered %s: %s", c[0], c[1], got)
		}
	}
}

// FuzzDescription: no description makes the rewriting panic, and nothing of a WIC's fingerprint,
// ufrag or address comes out on the core's side, wherever in the text it stood.
func FuzzDescription(f *testing.F) {
	offer, answer := sdpFile(f, "offer.sdp", "alice"), sdpFile(f, "answer.sdp", "bob")
	f.Add(offer, coreOffer)
	f.Add(answer, coreOffer)
	f.Add(videoOffer(f, "alice"), coreOffer+"m=video 30002 RTP/AVPF 96 97 103\r\na=rtpmap:96 VP8/90000\r\na=rtcp-fb:* nack pli\r\na=rtpmap:97 rtx/90000\r\na=fmtp:97 apt=96\r\na=rtpmap:103 H264/90000\r\na=fmtp:103 profile-level-id=42e01f;packetization-mode=1\r\na=extmap:3 urn:3gpp:video-orientation\r\n")
	f.Add(strings.ReplaceAll(videoOffer(f, "alice"), "42e01f", "Yx1alice"), coreOffer)
	f.Add(strings.ReplaceAll(offer, "useinbandfec=1", fingerprintOf("alice")), coreOffer)
	f.Add(strings.ReplaceAll(offer, "s=-", "s="+fingerprintOf("alice")), strings.Replace(coreOffer, "a=ptime:20", "a=rtcp:9 IN IP6 ::1", 1))
	f.Add(strings.ReplaceAll(offer, "a=mid:0", "a=mid:"+fingerprintOf("alice")[:30]), strings.ReplaceAll(coreOffer, "101", "96"))
	f.Fuzz(func(t *testing.T, browser, core string) {
		b, errB := parseBrowser([]byte(browser), true)
		if a, err := parseBrowser([]byte(browser), false); err == nil {
			b, errB = a, nil
		}
		c, errC := parseCore([]byte(core))
		if errB == nil {
			_, n := b.streams()
			out, err := writeCore(&b, nil, fakeLocal(t, n), &origin{id: 1})
			if err != nil {
				t.Fatalf("parsed, and not written: %v", err)
			}
			for _, l := range b.Lines {
				if l.Access != nil && (bytes.Contains(bytes.ToUpper(out), []byte(l.Access.Fingerprint.Value)) || bytes.Contains(out, []byte("fingerprint")) || bytes.Contains(out, []byte("ice-"))) {
					t.Fatalf("a fingerprint comes out:\n%s", out)
				}
			}
			if _, err := parseCore(out); err != nil {
				t.Fatalf("our own offer is refused: %v\n%s", err, out)
			}
		}
		if errC == nil {
			_, n := c.streams()
			out, err := writeBrowser(&c, nil, fakeLocal(t, n), &origin{id: 1})
			if err != nil {
				t.Fatalf("parsed, and not written: %v", err)
			}
			if _, err := parseBrowser(out, true); err != nil {
				t.Fatalf("our own offer is refused: %v\n%s", err, out)
			}
		}
		if errB != nil || errC != nil {
			return
		}
		_, n := b.streams()
		if match(&b, &c) == nil {
			if _, err := writeBrowser(&c, &b, fakeLocal(t, n), &origin{id: 1}); err != nil {
				t.Fatal(err)
			}
		}
		c, _ = parseCore([]byte(core))
		b, _ = parseBrowser([]byte(browser), true)
		_, n = c.streams()
		if match(&c, &b) == nil {
			if _, err := writeCore(&b, &c, fakeLocal(t, n), &origin{id: 1}); err != nil {
				t.Fatal(err)
			}
		}
	})
}
