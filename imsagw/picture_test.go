package imsagw

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/pion/rtcp"
	"github.com/pion/rtp"

	"wicgate/internal/iq"
)

func TestPictures(t *testing.T) {
	var p pictures
	now := time.Now()
	for i, step := range []struct {
		after time.Duration
		sent  bool
		want  bool
	}{
		{0, true, false},                      // the first packet begins a picture
		{33 * time.Millisecond, true, false},  //
		{33 * time.Millisecond, false, false}, // the far side is not there
		{33 * time.Millisecond, true, true},   // now it is
		{33 * time.Millisecond, true, false},  //
		{33 * time.Millisecond, false, false}, //
		{33 * time.Millisecond, true, false},  // too soon to ask again
		{time.Second, true, true},             // and not forgotten
		{3 * time.Second, true, true},         // after a pause
		{33 * time.Millisecond, true, false},
	} {
		now = now.Add(step.after)
		if got := p.passes(1, step.sent, now); got != step.want {
			t.Errorf("step %d: %v", i, got)
		}
	}
	for ssrc := uint32(2); ssrc < 100; ssrc++ {
		p.passes(ssrc, false, now)
	}
	if p.n != maxPictures || p.passes(99, true, now) {
		t.Error("sources without bound")
	}
}

// pli reads a compound packet and says which source it asks for a new picture.
func pli(t *testing.T, b []byte) uint32 {
	t.Helper()
	list, err := rtcp.Unmarshal(b)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range list {
		if p, ok := p.(*rtcp.PictureLossIndication); ok {
			return p.MediaSSRC
		}
	}
	return 0
}

// TestVideo: the gateway asks both senders for a picture where the other side has just come, feedback and
// retransmission pass both ways, and a sender is not asked when there is no need.
func TestVideo(t *testing.T) {
	checkLeaks(t)
	l := newLab(t, nil)
	core := newCoreEnd(t)
	r := newRoamer(t, true)
	set := func(seq uint32, c *iq.CoreRemote) iq.LocalStream {
		return l.set(iq.Set{Ref: iq.Ref{Session: "s1", Seq: seq}, Streams: []iq.Stream{{Media: "video", Access: r.remote(), Core: c}}}).Streams[0]
	}
	feedback := func() []byte { // what the browser gets by RTCP
		t.Helper()
		select {
		case b := <-r.media:
			if !isRTCP(b) {
				t.Fatal("RTP came")
			}
			b, err := r.in.DecryptRTCP(nil, b, nil)
			if err != nil {
				t.Fatal(err)
			}
			return b
		case <-time.After(5 * time.Second):
			t.Fatal("the browser gets no RTCP")
			return nil
		}
	}

	// The core's end sends before the browser has keys, the browser before the core's end is known.
	local := set(1, nil)
	r.connect(local.Access)
	set(2, core.remote())
	if _, err := core.rtp.WriteToUDPAddrPort(rtpPacket(t, 1, "early"), local.Core.RTP); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is too early", func() bool { return l.Stats().Drops["no-keys"] == 1 })
	set(3, &iq.CoreRemote{RTP: mustAddr("0.0.0.0:9"), RTCP: mustAddr("0.0.0.0:9")})
	r.secure()
	l.want(iq.Connected, "s1")
	r.say(77, 1)
	eventually(t, "nobody is there", func() bool { return l.Stats().Drops["no-remote"] == 1 })
	set(4, core.remote())
	r.say(77, 2)
	if got := pli(t, feedback()); got != 77 {
		t.Errorf("the browser is asked for a picture of %d", got)
	}
	if _, err := core.rtp.WriteToUDPAddrPort(rtpPacket(t, 2, "now"), local.Core.RTP); err != nil {
		t.Fatal(err)
	}
	raw, _ := receive(t, core.rtcp, 5*time.Second)
	if got := pli(t, raw); got != coreSSRC {
		t.Errorf("the core is asked for a picture of %d", got)
	}
	if b := <-r.media; isRTCP(b) {
		t.Error("RTCP in place of the packet")
	}
	if n := l.Stats().Asked; n != 2 {
		t.Errorf("asked %d times", n)
	}

	// Feedback passes as it is, both ways.
	for _, p := range []rtcp.Packet{
		&rtcp.PictureLossIndication{SenderSSRC: coreSSRC, MediaSSRC: 77},
		&rtcp.FullIntraRequest{SenderSSRC: coreSSRC, MediaSSRC: 77, FIR: []rtcp.FIREntry{{SSRC: 77, SequenceNumber: 1}}},
		&rtcp.TransportLayerNack{SenderSSRC: coreSSRC, MediaSSRC: 77, Nacks: []rtcp.NackPair{{PacketID: 2}}},
		&rtcp.ReceiverEstimatedMaximumBitrate{SenderSSRC: coreSSRC, Bitrate: 1e6, SSRCs: []uint32{77}},
		&rtcp.TransportLayerCC{Header: rtcp.Header{Type: rtcp.TypeTransportSpecificFeedback, Count: rtcp.FormatTCC, Padding: true, Length: 5}, SenderSSRC: coreSSRC, MediaSSRC: 77, PacketStatusCount: 1,
			PacketChunks: []rtcp.PacketStatusChunk{&rtcp.RunLengthChunk{PacketStatusSymbol: rtcp.TypeTCCPacketReceivedSmallDelta, RunLength: 1}}, RecvDeltas: []*rtcp.RecvDelta{{Type: rtcp.TypeTCCPacketReceivedSmallDelta}}},
	} {
		b, err := rtcp.Marshal([]rtcp.Packet{&rtcp.ReceiverReport{SSRC: coreSSRC}, p})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := core.rtcp.WriteToUDPAddrPort(b, local.Core.RTCP); err != nil {
			t.Fatal(err)
		}
		if got := feedback(); string(got) != string(b) {
			t.Errorf("%T towards the browser: %x, was %x", p, got, b)
		}
		e, err := r.out.EncryptRTCP(nil, b, nil)
		if err == nil {
			_, err = r.conn.Load().Write(e)
		}
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := receive(t, core.rtcp, 5*time.Second); string(got) != string(b) {
			t.Errorf("%T towards the core: %x, was %x", p, got, b)
		}
	}

	// A packet repeated by RTX has a source and numbers of its own; a late one, far back in a burst, passes too.
	seen := map[[2]uint32]bool{}
	for seq := uint16(3); seq <= 800; seq++ {
		switch seq {
		case 10:
			r.say(78, 1)
		case 800:
			r.say(77, 10)
		default:
			r.say(77, seq)
		}
		raw, _ := receive(t, core.rtp, 5*time.Second)
		var h rtp.Header
		if _, err := h.Unmarshal(raw); err != nil {
			t.Fatal(err)
		}
		seen[[2]uint32{h.SSRC, uint32(h.SequenceNumber)}] = true
	}
	if raw, _ := receive(t, core.rtp, 5*time.Second); raw != nil { // one was on its way from before
		var h rtp.Header
		if _, err := h.Unmarshal(raw); err != nil {
			t.Fatal(err)
		}
		seen[[2]uint32{h.SSRC, uint32(h.SequenceNumber)}] = true
	}
	if !seen[[2]uint32{77, 10}] || !seen[[2]uint32{78, 1}] {
		t.Error("the late packet or the retransmission is lost")
	}
	// The gateway's own source cannot be taken by the core: its SRTCP indices would repeat.
	forged, err := rtcp.Marshal([]rtcp.Packet{&rtcp.ReceiverReport{}})
	if err != nil {
		t.Fatal(err)
	}
	binary.BigEndian.PutUint32(forged[4:], l.of("s1").keys.Load().ask.ssrc)
	if _, err := core.rtcp.WriteToUDPAddrPort(forged, local.Core.RTCP); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is dropped", func() bool { return l.Stats().Drops["ssrc"] == 1 })
}

// TestStopped: a line given up ends alone, its ports are free, and it comes back with new ones. A call whose only other
// line is given up before it was connected is connected.
func TestStopped(t *testing.T) {
	checkLeaks(t)
	l := newLab(t, func(_ *Config, tm *timing) {
		tm.ice, tm.consentPeriod, tm.consentExpiry = time.Second, 100*time.Millisecond, 400*time.Millisecond
	})
	core, more := newCoreEnd(t), newCoreEnd(t)
	audio, video := newRoamer(t, true), newRoamer(t, true)
	ref := func(seq uint32) iq.Ref { return iq.Ref{Session: "s1", Seq: seq} }
	a := iq.Stream{Media: "audio", Access: audio.remote(), Core: core.remote()}
	stopped := iq.Stream{Media: "video", Stopped: true}
	local := l.set(iq.Set{Ref: ref(1), Streams: []iq.Stream{a, {Media: "video", Access: video.remote()}}})
	audio.connect(local.Streams[0].Access)
	audio.secure()
	select {
	case e := <-l.events:
		t.Fatalf("event %s while video has no keys", e.Kind)
	case <-time.After(50 * time.Millisecond):
	}
	if again := l.set(iq.Set{Ref: ref(2), Streams: []iq.Stream{a, stopped}}); again.Streams[1].Core.RTP.IsValid() || again.Streams[0].Core != local.Streams[0].Core {
		t.Errorf("%+v", again)
	}
	l.want(iq.Connected, "s1")
	time.Sleep(1200 * time.Millisecond) // longer than ICE may take
	back := l.set(iq.Set{Ref: ref(3), Streams: []iq.Stream{a, {Media: "video", Access: video.remote(), Core: more.remote()}}})
	if back.Streams[1].Access.Ufrag == local.Streams[1].Access.Ufrag {
		t.Error("the stream that comes back has the credentials of before")
	}
	video.connect(back.Streams[1].Access)
	video.secure()
	l.of("s1").s.mu.Lock()
	again := l.of("s1").s.streams[1]
	l.of("s1").s.mu.Unlock()
	eventually(t, "keys", func() bool { return again.keys.Load() != nil })
	video.say(77, 1)
	if raw, _ := receive(t, more.rtp, 5*time.Second); raw == nil {
		t.Error("no video")
	}
	l.set(iq.Set{Ref: ref(4), Streams: []iq.Stream{a, stopped}})
	time.Sleep(600 * time.Millisecond) // longer than consent lasts
	l.set(iq.Set{Ref: ref(5), Streams: []iq.Stream{a, {Media: "video"}}})
	select {
	case e := <-l.events:
		t.Errorf("event %s: %s", e.Kind, e.Detail)
	default:
	}
	if r := l.release("s1", 6); r.Streams[1].CoreTx.Packets != 1 {
		t.Errorf("%+v", r)
	}
}
