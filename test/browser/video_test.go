package browser

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"wicgate/test/lab"
)

// picture is what getStats says about received video.
type picture struct {
	Codec            string  // media type, such as video/VP8
	Width, Height    float64 // of the last decoded frame
	Frames, Keys     float64 // decoded
	Bytes            float64 // received
	Lost, NACKs, PLI float64 // packets; asked for by this side
}

const pictureJS = `(async () => {
  const out = {Codec: "", Width: 0, Height: 0, Frames: 0, Keys: 0, Bytes: 0, Lost: 0, NACKs: 0, PLI: 0};
  const all = await wicgate.pc()?.getStats() ?? [];
  all.forEach(s => {
    if (s.type !== "inbound-rtp" || s.kind !== "video") return;
    out.Codec = all.get(s.codecId)?.mimeType ?? ""; out.Width = s.frameWidth ?? 0; out.Height = s.frameHeight ?? 0;
    out.Frames = s.framesDecoded ?? 0; out.Keys = s.keyFramesDecoded ?? 0; out.Bytes = s.bytesReceived;
    out.Lost = s.packetsLost; out.NACKs = s.nackCount ?? 0; out.PLI = s.pliCount ?? 0;
  });
  return out;
})()`

// watched measures the pictures that pages receive across a span. Size and codec are those at its end.
func watched(span time.Duration, pages ...*Page) (diff []picture) {
	before := make([]picture, len(pages))
	for i, p := range pages {
		p.Eval(pictureJS, &before[i])
	}
	time.Sleep(span) // media runs in real time
	for i, p := range pages {
		var v picture
		p.Eval(pictureJS, &v)
		v.Frames -= before[i].Frames
		v.Keys -= before[i].Keys
		v.Bytes -= before[i].Bytes
		v.Lost -= before[i].Lost
		v.NACKs -= before[i].NACKs
		v.PLI -= before[i].PLI
		diff = append(diff, v)
	}
	return diff
}

// moves waits until a page has decoded some more pictures: after an ICE restart they may stop for a moment.
func moves(p *Page) {
	p.t.Helper()
	var v picture
	p.Eval(pictureJS, &v)
	p.Wait(10*time.Second, fmt.Sprintf(`(await %s).Frames > %v`, pictureJS, v.Frames+10))
}

// connectVideo takes two registered pages to an active call with pictures both ways.
func connectVideo(from, to *Page) {
	from.t.Helper()
	from.Fill("#callee", to.Name)
	from.Click("#video-call")
	callState(to, 10*time.Second, "incoming")
	to.Click("#answer-video")
	for _, p := range []*Page{from, to} {
		callState(p, 10*time.Second, "active")
		p.Wait(15*time.Second, "wicgate.firstVideo() !== null")
	}
}

// seen checks that both pages see each other: a picture of some size, that moves.
func (s *system) seen(span time.Duration, codec string) {
	s.t.Helper()
	pages := []*Page{s.alice, s.bob}
	for i, v := range watched(span, pages...) {
		s.t.Logf("%s sees over %v: %+v", pages[i].Name, span, v)
		// A fake camera has 20 to 30 frames a second; a busy machine drops some.
		if v.Frames < 3*span.Seconds() || v.Width < 160 || v.Height < 120 || v.Bytes < 2000*span.Seconds() {
			s.t.Errorf("%s sees too little: %+v over %v", pages[i].Name, v, span)
		}
		if codec != "" && v.Codec != codec {
			s.t.Errorf("%s decodes %s, want %s", pages[i].Name, v.Codec, codec)
		}
	}
}

// onlyH264 makes a page offer H.264 and no other video.
const onlyH264 = `{ const real = RTCPeerConnection.prototype.createOffer;
RTCPeerConnection.prototype.createOffer = function (...a) {
  for (const t of this.getTransceivers()) {
    if (t.receiver.track.kind === "video") t.setCodecPreferences(RTCRtpReceiver.getCapabilities("video").codecs.filter(c => /H264|rtx/.test(c.mimeType)));
  }
  return real.apply(this, a);
}; }`

// TestVideo: two Chromiums see each other, whatever happens to packets and cameras.
func TestVideo(t *testing.T) {
	// UDP alone: a browser that has TCP too moves there in a gap.
	s := newSystem(t, plan{keys: keys{"turn": {"urls": turnURLs(lab.EdgeName)[:1]}}})
	s.logIn()

	t.Run("VP8 and sound both ways", func(t *testing.T) {
		connectVideo(s.alice, s.bob)
		var ms float64
		s.alice.Eval("wicgate.firstVideo()", &ms)
		lab.Figure(t, "click to first picture", "-", "%.0f ms", ms)
		s.seen(3*time.Second, "video/VP8")
		for i, m := range over(3*time.Second, s.alice, s.bob) {
			if m.Packets < 60 || m.Energy < 0.001 {
				t.Errorf("page %d hears %+v", i, m)
			}
		}
		for _, p := range []*Page{s.alice, s.bob} {
			p.Wait(time.Second, `(v => v.videoWidth > 0 && v.checkVisibility())(document.querySelector("#remote-video"))`)
			p.Wait(time.Second, `(v => v.videoWidth > 0 && v.checkVisibility())(document.querySelector("#local-video"))`)
			p.Show("video")
		}
	})
	if t.Failed() {
		return
	}

	t.Run("some packets get lost", func(t *testing.T) {
		lose := "numgen random mod 100 < 10"
		s.edge.Drop("iifname e0 udp dport 3478 " + lose)
		s.wic.Drop("iifname w0 udp sport 3478 " + lose)
		during := watched(5*time.Second, s.alice, s.bob)
		s.edge.Drop()
		s.wic.Drop()
		for i, v := range during {
			t.Logf("page %d sees over 5 s with 10 %% lost at each of two hops: %+v", i, v)
			if v.NACKs == 0 {
				t.Errorf("page %d asked for nothing again: %+v", i, v)
			}
			if v.Frames < 10 {
				t.Errorf("page %d sees a still: %+v", i, v)
			}
		}
		time.Sleep(time.Second) // what is lost gets asked for again
		s.seen(3*time.Second, "")
	})

	t.Run("after a gap there is a key frame", func(t *testing.T) {
		var before [2]picture
		for i, p := range []*Page{s.alice, s.bob} {
			p.Eval(pictureJS, &before[i])
		}
		s.wic.Drop("iifname w0 udp sport 3478")
		time.Sleep(4 * time.Second) // more than asking again (NACK) can repair; consent lasts 30 s
		s.wic.Drop()
		for i, p := range []*Page{s.alice, s.bob} {
			p.Wait(10*time.Second, fmt.Sprintf(`(await %s).Keys > %v`, pictureJS, before[i].Keys))
		}
		s.seen(3*time.Second, "")
	})

	t.Run("a camera goes off and on", func(t *testing.T) {
		on := watched(3*time.Second, s.bob)[0]
		s.alice.Click("#camera")
		s.alice.Wait(5*time.Second, `document.querySelector("#camera").ariaPressed === "false"`)
		time.Sleep(time.Second) // what was on its way
		off := watched(3*time.Second, s.bob)[0]
		t.Logf("bob sees with the camera on %+v, off %+v", on, off)
		if off.Bytes > on.Bytes/2 {
			t.Errorf("alice's camera is off, and bob still gets %v bytes in 3 s (on: %v)", off.Bytes, on.Bytes)
		}
		s.alice.Click("#camera")
		s.alice.Wait(5*time.Second, `document.querySelector("#camera").ariaPressed === "true"`)
		time.Sleep(time.Second)
		s.seen(3*time.Second, "")
	})

	t.Run("nothing is left", func(t *testing.T) {
		s.bob.Click("#hangup")
		ended(s.alice, 5*time.Second)
		s.quiet(10 * time.Second)
	})

	t.Run("answered with sound alone", func(t *testing.T) {
		s.alice.Fill("#callee", "bob")
		s.alice.Click("#video-call")
		callState(s.bob, 10*time.Second, "incoming")
		s.bob.Click("#answer")
		callState(s.alice, 10*time.Second, "active")
		firstAudio(s.alice)
		for i, m := range over(2*time.Second, s.alice, s.bob) {
			if m.Packets < 40 {
				t.Errorf("page %d hears %+v", i, m)
			}
		}
		for i, v := range watched(time.Second, s.alice, s.bob) {
			if v.Bytes != 0 {
				t.Errorf("page %d gets a picture that nobody agreed to: %+v", i, v)
			}
		}
		s.alice.Click("#hangup")
		ended(s.bob, 5*time.Second)
		s.quiet(10 * time.Second)
	})

	t.Run("H.264", func(t *testing.T) {
		s.bob.Before(onlyH264)
		reload(s.bob)
		s.quiet(15 * time.Second)
		connectVideo(s.bob, s.alice)
		s.seen(3*time.Second, "video/H264")
		s.bob.Click("#hangup")
		ended(s.alice, 5*time.Second)
		s.quiet(10 * time.Second)
	})

	t.Run("the camera is denied", func(t *testing.T) {
		s.alice.Deny("camera")
		s.alice.Fill("#callee", "bob")
		s.alice.Click("#video-call")
		told(s.alice, 10*time.Second, `(?i)may not use the camera`)
		ended(s.alice, time.Second)
		s.alice.Click("#error-help") // the same call with sound only
		callState(s.bob, 10*time.Second, "incoming")
		s.bob.Click("#answer")
		firstAudio(s.alice)
		s.bob.Click("#hangup")
		ended(s.alice, 5*time.Second)
		s.quiet(10 * time.Second)
	})

	t.Run("the gateway's own account", func(t *testing.T) {
		if n := strings.Count(s.core.Log(), "level=ERROR"); n != 0 {
			t.Errorf("%d errors in the log", n)
		}
	})
}
