package imsagw

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/pion/rtp"
	"github.com/pion/srtp/v3"
	"pgregory.net/rapid"

	"wicgate/internal/iq"
)

// TestSequencesNeverRepeat: no index is let through twice, and what is let through has the index that
// pion/srtp will give it, whatever order the core sends in.
func TestSequencesNeverRepeat(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, seen := sequences{}, map[uint64]bool{}
		ctx, err := srtp.CreateContext(make([]byte, 16), make([]byte, 12), srtp.ProtectionProfileAeadAes128Gcm)
		if err != nil {
			t.Fatal(err)
		}
		seq := uint16(rapid.SampledFrom([]int{0, 1, 5, 200, 32767, 32768, 65534, 65535}).Draw(t, "first"))
		for range rapid.IntRange(1, 300).Draw(t, "packets") {
			seq += uint16(rapid.SampledFrom([]int{0, 1, 1, 1, 1, 2, 3, -1, -2, -60, -64, -127, -128, -129, -958, -959, -960, -961, -1024, 127, 128, 129, 1000, 1023, 1024, 1025, 32766, 32767, 32768, -32767}).Draw(t, "step"))
			if _, ok := s.admit(1, seq); !ok {
				continue
			}
			p := rtp.Packet{Header: rtp.Header{Version: 2, SSRC: 1, SequenceNumber: seq}, Payload: []byte{1}}
			b, err := p.Marshal()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := ctx.EncryptRTP(nil, b, nil); err != nil {
				t.Fatal(err)
			}
			// The index as pion has it: the nearest to its highest, which is ours.
			top := s[1].top
			index := top - uint64(uint16(top)-seq)
			if roc, _ := ctx.ROC(1); uint64(roc) != top>>16 {
				t.Fatalf("pion is at rollover %d, sequences at %d", roc, top>>16)
			}
			if seen[index] {
				t.Fatalf("index %d let through twice", index)
			}
			seen[index] = true
		}
	})
}

func TestSequences(t *testing.T) {
	s := sequences{}
	for i, step := range []struct {
		seq  uint16
		want bool
	}{
		{100, true}, {100, false}, {101, true}, {99, true}, {99, false}, {65535, false}, {230, true}, {102, true}, {102, false}, {103, true}, {103, false},
		{229, true}, {166, true}, {166, false}, {165, true}, {30000, true}, {230, false}, {29041, true}, {29041, false}, {29040, false}, {60000, true}, {10, true}, {65535, true}, {65535, false}, {9, true}, {11, true},
	} {
		if _, ok := s.admit(7, step.seq); ok != step.want {
			t.Errorf("step %d, sequence %d: %v", i, step.seq, ok)
		}
	}
	if roc := s[7].top >> 16; roc != 1 {
		t.Errorf("rollover counter %d, want 1", roc)
	}
	for i := range uint32(maxSSRC - 1) {
		if _, ok := s.admit(1000+i, 1); !ok {
			t.Fatalf("SSRC %d refused", i)
		}
	}
	if why, ok := s.admit(9, 1); ok || why != dropSSRC {
		t.Errorf("an SSRC too many: %v %v", why, ok)
	}
}

// wire is a stream with keys and sockets but no agents, and the browser's end of its keys.
type wire struct {
	*stream
	browserOut, browserIn *srtp.Context
	browser, core         *coreEnd
}

// newWire puts a stream together by hand, keyed and validated.
func newWire(t testing.TB, profile srtp.ProtectionProfile) *wire {
	t.Helper()
	g, err := New(Config{Name: "agw1", Bus: nopBus{}, Access: Side{Bind: loopback}, Core: Side{Bind: loopback}})
	if err != nil {
		t.Fatal(err)
	}
	open := func() *coreEnd {
		r, err := newPortRange("test", Side{Bind: loopback}, 2)
		if err != nil {
			t.Fatal(err)
		}
		conns, err := r.open()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { closeAll(conns) })
		return &coreEnd{rtp: conns[0], rtcp: conns[1]}
	}
	gw, more := open(), open()
	w := &wire{browser: open(), core: open(), stream: &stream{
		g: g, accessConn: more.rtp, rtpConn: gw.rtp, rtcpConn: gw.rtcp, wake: make(chan struct{}, 1),
	}}
	n := &generation{st: w.stream, known: map[netip.AddrPort]struct{}{}, ufrag: "abcdefgh"}
	n.queue = newQueue(addrOf(w.accessConn), n.write)
	w.generations.Store(&[]*generation{n})
	w.dtlsQueue = newQueue(addrOf(w.accessConn), w.writeDTLS)
	keyLen, err := profile.KeyLen()
	if err != nil {
		t.Fatal(err)
	}
	saltLen, err := profile.SaltLen()
	if err != nil {
		t.Fatal(err)
	}
	part := func(n int, fill byte) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = fill + byte(i)
		}
		return b
	}
	k := srtp.SessionKeys{LocalMasterKey: part(keyLen, 1), LocalMasterSalt: part(saltLen, 2), RemoteMasterKey: part(keyLen, 3), RemoteMasterSalt: part(saltLen, 4)}
	c, err := newKeys(profile, k)
	if err != nil {
		t.Fatal(err)
	}
	w.keys.Store(c)
	to := addrOf(w.browser.rtp)
	w.selected.Store(&to)
	w.stream.core.Store(&iq.CoreRemote{RTP: addrOf(w.core.rtp), RTCP: addrOf(w.core.rtcp)})
	if w.browserOut, err = srtp.CreateContext(k.RemoteMasterKey, k.RemoteMasterSalt, profile); err != nil {
		t.Fatal(err)
	}
	if w.browserIn, err = srtp.CreateContext(k.LocalMasterKey, k.LocalMasterSalt, profile, srtp.SRTPReplayProtection(64)); err != nil {
		t.Fatal(err)
	}
	return w
}

// audio is a packet of 20 ms Opus at 64 kbit/s, with the header extensions that a browser sends.
func audio(t testing.TB, ssrc uint32, seq uint16) []byte {
	p := rtp.Packet{Header: rtp.Header{Version: 2, PayloadType: 111, SequenceNumber: seq, Timestamp: uint32(seq) * 960, SSRC: ssrc}, Payload: make([]byte, 160)}
	if err := p.Header.SetExtension(1, []byte{0x30}); err != nil {
		t.Fatal(err)
	}
	if err := p.Header.SetExtension(3, []byte{1, 2, 3}); err != nil {
		t.Fatal(err)
	}
	b, err := p.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

var allProfiles = []srtp.ProtectionProfile{srtp.ProtectionProfileAeadAes256Gcm, srtp.ProtectionProfileAeadAes128Gcm, srtp.ProtectionProfileAes128CmHmacSha1_80}

// TestMediaAllocatesNothing, a packet each way, SRTP and sending included.
func TestMediaAllocatesNothing(t *testing.T) {
	for _, profile := range allProfiles {
		w := newWire(t, profile)
		from, coreFrom, coreControl := addrOf(w.browser.rtp), addrOf(w.core.rtp), addrOf(w.core.rtcp)
		const n = 600
		var in [n][]byte
		for i := range in {
			b, err := w.browserOut.EncryptRTP(nil, audio(t, 1, uint16(i)), nil)
			if err != nil {
				t.Fatal(err)
			}
			in[i] = b
		}
		buf := make([]byte, maxPacket+maxTail)
		i := 0
		toCore := func() {
			w.fromAccess(append(buf[:0], in[i]...), from)
			i++
		}
		out, seq := audio(t, 2, 0), uint16(0)
		toBrowser := func() {
			b := append(buf[:0], out...)
			binary.BigEndian.PutUint16(b[2:], seq)
			w.fromCoreRTP(b, coreFrom)
			seq++
		}
		report := []byte{0x80, 201, 0, 1, 0, 0, 0, 9}
		reportToBrowser := func() { w.fromCoreRTCP(append(buf[:0], report...), coreControl) }
		for name, f := range map[string]func(){"SRTP to RTP": toCore, "RTP to SRTP": toBrowser, "RTCP to SRTCP": reportToBrowser} {
			if a := testing.AllocsPerRun(400, f); a != 0 {
				t.Errorf("%v: %s allocates %v times", profile, name, a)
			}
		}
		if rx, tx := w.count.accessRx.read(), w.count.accessTx.read(); rx.Packets < 400 || tx.Packets < 800 {
			t.Errorf("%v: %+v in, %+v out", profile, rx, tx)
		}
	}
}

// TestSRTPScreen: who may send what, on a keyed stream.
func TestSRTPScreen(t *testing.T) {
	w := newWire(t, srtp.ProtectionProfileAeadAes256Gcm)
	browser, stranger := addrOf(w.browser.rtp), mustAddr("127.0.0.9:9")
	core, coreControl := addrOf(w.core.rtp), addrOf(w.core.rtcp)
	enc := func(seq uint16, ssrc uint32) []byte {
		b, err := w.browserOut.EncryptRTP(nil, audio(t, ssrc, seq), nil)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	room := func(b []byte) []byte { return append(make([]byte, 0, maxPacket+maxTail), b...) }
	good := enc(1, 1)
	broken := append([]byte(nil), enc(2, 1)...)
	broken[20] ^= 1
	control := []byte{0x80, 201, 0, 1, 0, 0, 0, 1}
	for _, step := range []struct {
		name string
		do   func()
		why  string
	}{
		{"SRTP of a stranger", func() { w.fromAccess(room(good), stranger) }, "foreign"},
		{"DTLS of a stranger", func() { w.fromAccess([]byte{22, 254, 253}, stranger) }, "foreign"},
		{"SRTP", func() { w.fromAccess(room(good), browser) }, ""},
		{"SRTP again", func() { w.fromAccess(room(good), browser) }, "auth"},
		{"SRTP broken", func() { w.fromAccess(room(broken), browser) }, "auth"},
		{"plain RTP", func() { w.fromAccess(room(audio(t, 1, 9)), browser) }, "auth"},
		{"plain RTCP", func() { w.fromAccess(room(control), browser) }, "auth"},
		{"short", func() { w.fromAccess(room(good[:7]), browser) }, "malformed"},
		{"cut header", func() { w.fromAccess(room(good[:11]), browser) }, "malformed"},
		{"cut extension", func() { w.fromAccess(room(good[:17]), browser) }, "auth"},
		{"empty", func() { w.fromAccess(nil, browser) }, "unknown"},
		{"ZRTP", func() { w.fromAccess([]byte{16, 0}, browser) }, "unknown"},
		{"TURN channel", func() { w.fromAccess([]byte{64, 0, 0, 0}, browser) }, "unknown"},
		{"HTTP", func() { w.fromAccess([]byte("GET / HTTP/1.1"), browser) }, "unknown"},
		{"core RTP of a stranger", func() { w.fromCoreRTP(room(audio(t, 2, 1)), stranger) }, "foreign"},
		{"core RTCP of a stranger", func() { w.fromCoreRTCP(room(control), stranger) }, "foreign"},
		{"core RTP from another port", func() { w.fromCoreRTP(room(audio(t, 2, 1)), netip.AddrPortFrom(core.Addr(), 9)) }, ""},
		{"core RTP again", func() { w.fromCoreRTP(room(audio(t, 2, 1)), core) }, "sequence"},
		{"core version 1", func() { w.fromCoreRTP(room(append([]byte{0x40}, audio(t, 2, 2)[1:]...)), core) }, "malformed"},
		{"core RTCP on the RTP port", func() { w.fromCoreRTP(room(append(control, control...)), core) }, "malformed"},
		{"core RTP on the RTCP port", func() { w.fromCoreRTCP(room(audio(t, 2, 3)), coreControl) }, "malformed"},
		{"core cut extension", func() { w.fromCoreRTP(room(audio(t, 2, 4)[:17]), core) }, "malformed"},
		{"core RTCP", func() { w.fromCoreRTCP(room(control), coreControl) }, ""},
	} {
		var before [causes]uint64
		for i := range before {
			before[i] = w.count.drops[i].Load()
		}
		n := func(i int) uint64 { return w.count.drops[i].Load() - before[i] }
		step.do()
		for i, name := range causeNames {
			want := uint64(0)
			if name == step.why {
				want = 1
			}
			if n(i) != want {
				t.Errorf("%s: %d drops for %s, want %d", step.name, n(i), name, want)
			}
		}
	}
	// More sources than a stream may have, in each direction.
	for i := range uint32(2 * maxSSRC) {
		w.fromAccess(room(enc(1, 100+i)), browser)
		w.fromCoreRTP(room(audio(t, 100+i, 1)), core)
		c := append([]byte(nil), control...)
		binary.BigEndian.PutUint32(c[4:], 100+i)
		w.fromCoreRTCP(room(c), coreControl)
	}
	if c := w.keys.Load(); len(c.in.rtp) != maxSSRC || len(c.rtp.sent) != maxSSRC || len(c.rtcp.sources) != maxSSRC {
		t.Errorf("%d, %d, %d sources kept", len(c.in.rtp), len(c.rtp.sent), len(c.rtcp.sources))
	}
	w.muted.Store(true)
	before := w.count.drops[dropConsent].Load()
	w.fromAccess(room(enc(3, 1)), browser)
	w.fromCoreRTP(room(audio(t, 2, 9)), core)
	w.fromCoreRTCP(room(control), coreControl)
	if n := w.count.drops[dropConsent].Load() - before; n != 3 {
		t.Errorf("%d of 3 packets stopped after consent was lost", n)
	}
}

// TestRolloverCounter: the sequence number wraps, and the browser still understands.
func TestRolloverCounter(t *testing.T) {
	w := newWire(t, srtp.ProtectionProfileAeadAes256Gcm)
	for i := range 70000 {
		if i%997 == 3 {
			continue // lost on the way
		}
		b := append(make([]byte, 0, maxPacket+maxTail), audio(t, 2, uint16(i))...)
		c := w.keys.Load()
		if _, ok := c.rtp.sent.admit(2, uint16(i)); !ok {
			t.Fatalf("packet %d refused", i)
		}
		out, err := c.rtp.ctx.EncryptRTP(b[:0], b, &c.rtp.header)
		if err != nil {
			t.Fatal(err)
		}
		if i%50 == 0 || i > 65000 && i < 66000 {
			if _, err := w.browserIn.DecryptRTP(nil, out, nil); err != nil {
				t.Fatalf("packet %d: %v", i, err)
			}
		}
	}
}

// FuzzAccess puts hostile bytes to everything that a datagram on the access socket can reach, and to
// both core sockets: no crash, and nothing unauthenticated gets through.
func FuzzAccess(f *testing.F) {
	w := newWire(f, srtp.ProtectionProfileAeadAes256Gcm)
	good, err := w.browserOut.EncryptRTP(nil, audio(f, 1, 1), nil)
	if err != nil {
		f.Fatal(err)
	}
	sr, err := w.browserOut.EncryptRTCP(nil, []byte{0x80, 200, 0, 6, 0, 0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, nil)
	if err != nil {
		f.Fatal(err)
	}
	binding := []byte{0, 1, 0, 0, 0x21, 0x12, 0xA4, 0x42, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}
	for i := range good {
		f.Add(good[:i])
	}
	for _, seed := range [][]byte{sr, sr[:12], binding, audio(f, 1, 1), {}, {22, 254, 253, 0, 0}, {0x90, 111, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0xBE, 0xDE, 0xFF, 0xFF}, {0x8F, 111, 0, 1}} {
		f.Add(seed)
	}
	from, core, coreControl := addrOf(w.browser.rtp), addrOf(w.core.rtp), addrOf(w.core.rtcp)
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > maxPacket {
			return
		}
		room := func() []byte { return append(make([]byte, 0, maxPacket+maxTail), b...) }
		before := w.count.accessRx.read().Packets
		w.fromAccess(room(), from)
		if n := w.count.accessRx.read().Packets - before; n != 0 && string(b) != string(good) && string(b) != string(sr) {
			t.Fatalf("%x passed as authentic", b)
		}
		w.fromCoreRTP(room(), core)
		w.fromCoreRTCP(room(), coreControl)
		for _, q := range []*queue{(*w.generations.Load())[0].queue, w.dtlsQueue} {
			select {
			case <-q.in:
			default:
			}
		}
	})
}

// BenchmarkPacket is one packet of 160 bytes Opus: SRTP, and the system call that sends it on. Reading it
// is not in.
func BenchmarkPacket(b *testing.B) {
	for _, profile := range allProfiles {
		w := newWire(b, profile)
		from, core := addrOf(w.browser.rtp), addrOf(w.core.rtp)
		buf := make([]byte, maxPacket+maxTail)
		b.Run(fmt.Sprintf("%v/access-core", profile), func(b *testing.B) {
			out := w.browserOut
			p, seq := audio(b, rand.Uint32(), 0), uint16(0)
			clear := make([]byte, len(p), maxPacket)
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				copy(clear, p)
				binary.BigEndian.PutUint16(clear[2:], seq)
				seq++
				e, err := out.EncryptRTP(buf[:0], clear, nil)
				if err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
				w.fromAccess(e, from)
			}
		})
		b.Run(fmt.Sprintf("%v/core-access", profile), func(b *testing.B) {
			p, seq := audio(b, 2, 0), uint16(0)
			b.ReportAllocs()
			for b.Loop() {
				e := append(buf[:0], p...)
				binary.BigEndian.PutUint16(e[2:], seq)
				seq++
				w.fromCoreRTP(e, core)
			}
		})
	}
}
