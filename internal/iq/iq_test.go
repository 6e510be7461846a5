package iq

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"wicgate/internal/store"
)

var (
	someFingerprint = Fingerprint{"sha-256", strings.TrimSuffix(strings.Repeat("AB:", 32), ":")}
	somePwd         = "abcdefghijklmnopqrstuvwx"
)

func someSet(session string, seq uint32) Set {
	return Set{
		Ref:     Ref{Session: session, Seq: seq},
		Offerer: true,
		Streams: []Stream{{
			Media: "audio",
			Access: &AccessRemote{Ufrag: "abcd", Pwd: somePwd, Fingerprint: someFingerprint,
				Candidates: []string{"1 1 udp 2130706431 192.0.2.1 5000 typ host"}},
			Core: &CoreRemote{RTP: netip.MustParseAddrPort("192.0.2.9:4000"), RTCP: netip.MustParseAddrPort("192.0.2.9:4001")},
		}},
	}
}

// fake is a Handler that writes down what it is asked.
type fake struct {
	calls []string
	err   error
}

func (f *fake) Set(s Set) (Local, error) {
	f.calls = append(f.calls, fmt.Sprintf("set %s %d", s.Session, s.Seq))
	if f.err != nil {
		return Local{}, f.err
	}
	l := Local{Streams: make([]LocalStream, len(s.Streams))}
	for i := range l.Streams {
		l.Streams[i] = LocalStream{
			Access: AccessLocal{Ufrag: fmt.Sprint("u", len(f.calls)), Default: netip.MustParseAddrPort("192.0.2.2:40000")},
			Core:   CoreLocal{RTP: netip.MustParseAddrPort("192.0.2.2:41000"), RTCP: netip.MustParseAddrPort("192.0.2.2:41001")},
		}
	}
	return l, nil
}

func (f *fake) Release(r Release) (Report, error) {
	f.calls = append(f.calls, fmt.Sprintf("release %s %d", r.Session, r.Seq))
	return Report{Streams: []StreamReport{{Media: "audio", AccessRx: Counter{uint64(len(f.calls)), 2}}}}, f.err
}

func pair(t *testing.T, h Handler) (*Client, store.Bus) {
	t.Helper()
	bus := store.NewMemory()
	stop, err := Serve(bus, "agw1", h, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	c, err := NewClient(bus, "agw1", "edge1", nil)
	if err != nil {
		t.Fatal(err)
	}
	return c, bus
}

func TestSameRefIsObeyedOnceAndAnsweredTheSame(t *testing.T) {
	f := &fake{}
	c, _ := pair(t, f)
	a, err := c.Set(t.Context(), someSet("s1", 1))
	if err != nil {
		t.Fatal(err)
	}
	b, err := c.Set(t.Context(), someSet("s1", 1))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(a, b, cmp.Comparer(func(x, y netip.AddrPort) bool { return x == y })); d != "" {
		t.Errorf("another answer to the same Ref: %s", d)
	}
	r1, err1 := c.Release(t.Context(), Release{Ref{Session: "s1", Seq: 2}})
	r2, err2 := c.Release(t.Context(), Release{Ref{Session: "s1", Seq: 2}})
	if err1 != nil || err2 != nil || !cmp.Equal(r1, r2) {
		t.Errorf("release twice: %v %v, %v %v", r1, err1, r2, err2)
	}
	if want := []string{"set s1 1", "release s1 2"}; !cmp.Equal(f.calls, want) {
		t.Errorf("handler obeyed %v, want %v", f.calls, want)
	}
}

func TestOrder(t *testing.T) {
	f := &fake{}
	c, _ := pair(t, f)
	other := someSet("s1", 3)
	other.Streams[0].Core = nil
	for _, step := range []struct {
		name string
		do   func() error
		want error
	}{
		{"first", func() error { _, err := c.Set(t.Context(), someSet("s1", 3)); return err }, nil},
		{"lower", func() error { _, err := c.Set(t.Context(), someSet("s1", 2)); return err }, ErrStale},
		{"another under the same Ref", func() error { _, err := c.Set(t.Context(), other); return err }, ErrInvalid},
		{"gap", func() error { _, err := c.Set(t.Context(), someSet("s1", 9)); return err }, nil},
		{"late", func() error { _, err := c.Set(t.Context(), someSet("s1", 3)); return err }, ErrStale},
		{"late release", func() error { _, err := c.Release(t.Context(), Release{Ref{Session: "s1", Seq: 4}}); return err }, ErrStale},
		{"release under the last Ref", func() error { _, err := c.Release(t.Context(), Release{Ref{Session: "s1", Seq: 9}}); return err }, nil},
		{"set after release", func() error { _, err := c.Set(t.Context(), someSet("s1", 10)); return err }, ErrUnknownSession},
		{"release after release", func() error { _, err := c.Release(t.Context(), Release{Ref{Session: "s1", Seq: 10}}); return err }, ErrUnknownSession},
	} {
		if err := step.do(); !errors.Is(err, step.want) {
			t.Errorf("%s: %v, want %v", step.name, err, step.want)
		}
	}
	if want := []string{"set s1 3", "set s1 9", "release s1 9"}; !cmp.Equal(f.calls, want) {
		t.Errorf("handler obeyed %v, want %v", f.calls, want)
	}
}

func TestErrorsPassTheBus(t *testing.T) {
	for _, want := range []error{ErrUnknownSession, ErrStale, ErrCapacity, ErrInvalid, ErrVersion} {
		f := &fake{err: fmt.Errorf("while testing: %w: cause in words", want)}
		c, _ := pair(t, f)
		_, err := c.Set(t.Context(), someSet("s", 1))
		if !errors.Is(err, want) || !strings.Contains(err.Error(), "cause in words") {
			t.Errorf("%v came as %v", want, err)
		}
		// A refusal changes nothing, so the same Ref may be tried again.
		f.err = nil
		if _, err := c.Set(t.Context(), someSet("s", 1)); err != nil {
			t.Errorf("again after %v: %v", want, err)
		}
	}
	f := &fake{err: errors.New("open /secret/file")}
	c, _ := pair(t, f)
	_, err := c.Set(t.Context(), someSet("s", 1))
	if err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("an error without a sentinel came as %v", err)
	}
}

func TestNewEpochReleasesTheOld(t *testing.T) {
	f := &fake{}
	c, bus := pair(t, f)
	set := func(c *Client, epoch, session string, seq uint32) error {
		s := someSet(session, seq)
		s.Epoch = epoch
		_, err := c.Set(t.Context(), s)
		return err
	}
	d, err := NewClient(bus, "agw1", "edge2", nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{set(c, "one", "a", 1), set(c, "one", "b", 7), set(d, "one", "z", 1)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	f.calls = nil
	if err := set(c, "two", "c", 1); err != nil {
		t.Fatal(err)
	}
	got := strings.Join(f.calls, ", ")
	if len(f.calls) != 3 || !strings.Contains(got, "release a 1") || !strings.Contains(got, "release b 7") || f.calls[2] != "set c 1" {
		t.Errorf("new epoch: %s", got)
	}
	if err := set(c, "one", "a", 2); !errors.Is(err, ErrStale) {
		t.Errorf("request of an ended epoch: %v", err)
	}
}

func TestDefaultsOfTheRef(t *testing.T) {
	c, bus := pair(t, &fake{})
	seen := make(chan Ref, 1)
	stop, err := bus.Subscribe("iq.agw1.set", func(m store.Message) {
		_, s, err := decodeSet(m.Data)
		if err != nil {
			t.Error(err)
		}
		seen <- s.Ref
	})
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	if _, err := c.Set(t.Context(), someSet("s", 1)); err != nil {
		t.Fatal(err)
	}
	if r := <-seen; r.Edge != "edge1" || r.Epoch != epoch {
		t.Errorf("Ref came as %+v", r)
	}
	s := someSet("s", 2)
	s.Edge = "edge2"
	if _, err := c.Set(t.Context(), s); !errors.Is(err, ErrInvalid) {
		t.Errorf("another edge's Ref: %v", err)
	}
}

func TestEvents(t *testing.T) {
	c, bus := pair(t, &fake{})
	var got []Event
	stop, err := c.Events(func(e Event) { got = append(got, e) })
	if err != nil {
		t.Fatal(err)
	}
	want := Event{V: Version, Ref: Ref{Epoch: "e", Edge: "edge1", Session: "s", Seq: 3}, Kind: DTLSFailed, Detail: "the certificate is another"}
	sent := want
	sent.V = 0
	if err := Publish(bus, sent); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{``, `{`, `{"v":9}`, `{"v":1,"ref":{}}`, `[]`} {
		if err := bus.Publish("iq.event.edge1", []byte(bad)); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	if err := Publish(bus, sent); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]Event{want}, got); d != "" {
		t.Error(d)
	}
	if err := Publish(bus, Event{Ref: Ref{Edge: "a.b", Epoch: "e", Session: "s"}}); !errors.Is(err, ErrInvalid) {
		t.Errorf("publish to a bad name: %v", err)
	}
}

func TestVersions(t *testing.T) {
	for _, tc := range []struct {
		v, current int
		want       bool
	}{{1, 1, true}, {0, 1, false}, {2, 1, false}, {1, 2, true}, {2, 2, true}, {3, 2, false}, {1, 3, false}, {-1, 1, false}} {
		if got := readable(tc.v, tc.current); got != tc.want {
			t.Errorf("version %d read by %d: %v", tc.v, tc.current, got)
		}
	}
	s := newServer(&fake{}, discard())
	var a answer
	if err := json.Unmarshal(s.serve(opSet, []byte(`{"v":2,"edge":"edge1"}`)), &a); err != nil || a.Code != "version" {
		t.Errorf("version 2: %+v %v", a, err)
	}
	// A field of a later version is passed over.
	set := someSet("s", 1)
	set.Edge, set.Epoch = "edge1", "e"
	b, err := json.Marshal(setRequest{Version, set})
	if err != nil {
		t.Fatal(err)
	}
	later := strings.Replace(string(b), `{"v":1,`, `{"v":1,"transcode":{"to":"pcma"},`, 1)
	if err := json.Unmarshal(s.serve(opSet, []byte(later)), &a); err != nil || a.Code != codeOK {
		t.Errorf("unknown field: %+v %v", a, err)
	}
	if err := json.Unmarshal(s.serve("reset", b), &a); err != nil || a.Code != "invalid" {
		t.Errorf("unknown operation: %+v %v", a, err)
	}
}

func TestBounds(t *testing.T) {
	for name, spoil := range map[string]func(*Set){
		"no streams":             func(s *Set) { s.Streams = nil },
		"too many streams":       func(s *Set) { s.Streams = make([]Stream, MaxStreams+1) },
		"media":                  func(s *Set) { s.Streams[0].Media = "application" },
		"session empty":          func(s *Set) { s.Session = "" },
		"session long":           func(s *Set) { s.Session = strings.Repeat("x", 65) },
		"session space":          func(s *Set) { s.Session = "a b" },
		"epoch long":             func(s *Set) { s.Epoch = strings.Repeat("x", 65) },
		"edge dot":               func(s *Set) { s.Edge = "a.b" },
		"edge upper":             func(s *Set) { s.Edge = "Edge" },
		"ufrag short":            func(s *Set) { s.Streams[0].Access.Ufrag = "abc" },
		"ufrag long":             func(s *Set) { s.Streams[0].Access.Ufrag = strings.Repeat("a", 257) },
		"ufrag char":             func(s *Set) { s.Streams[0].Access.Ufrag = "ab:cd" },
		"pwd short":              func(s *Set) { s.Streams[0].Access.Pwd = strings.Repeat("a", 21) },
		"candidates":             func(s *Set) { s.Streams[0].Access.Candidates = make([]string, MaxCandidates+1) },
		"candidate long":         func(s *Set) { s.Streams[0].Access.Candidates = []string{strings.Repeat("1", 513)} },
		"candidate newline":      func(s *Set) { s.Streams[0].Access.Candidates = []string{"1 1 udp\r\n"} },
		"fingerprint sha-1":      func(s *Set) { s.Streams[0].Access.Fingerprint.Hash = "sha-1" },
		"fingerprint cut":        func(s *Set) { s.Streams[0].Access.Fingerprint.Value = "AB:CD" },
		"fingerprint of another": func(s *Set) { s.Streams[0].Access.Fingerprint.Hash = "sha-384" },
		"fingerprint not hex": func(s *Set) {
			s.Streams[0].Access.Fingerprint.Value = strings.Replace(someFingerprint.Value, "AB", "XY", 1)
		},
		"fingerprint no colon": func(s *Set) {
			s.Streams[0].Access.Fingerprint.Value = strings.Replace(someFingerprint.Value, ":", "A", 1)
		},
		"core no address": func(s *Set) { s.Streams[0].Core.RTP = netip.AddrPort{} },
		"core port 0":     func(s *Set) { s.Streams[0].Core.RTCP = netip.MustParseAddrPort("192.0.2.1:0") },
		"core multicast":  func(s *Set) { s.Streams[0].Core.RTP = netip.MustParseAddrPort("224.0.0.1:4000") },
		"core broadcast":  func(s *Set) { s.Streams[0].Core.RTP = netip.MustParseAddrPort("255.255.255.255:4000") },
	} {
		s := someSet("s", 1)
		s.Edge, s.Epoch = "edge1", "e"
		if err := s.Validate(); err != nil {
			t.Fatalf("before %s: %v", name, err)
		}
		spoil(&s)
		err := s.Validate()
		if !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		} else if strings.Contains(err.Error(), somePwd) {
			t.Errorf("%s: the error quotes the password: %v", name, err)
		}
	}
	s := someSet("s", 1)
	s.Edge, s.Epoch = "edge1", "e"
	s.Streams[0].Core.RTP = netip.MustParseAddrPort("0.0.0.0:4000")
	s.Streams[0].Access.Fingerprint = Fingerprint{"SHA-256", strings.ToLower(someFingerprint.Value)}
	if err := s.Validate(); err != nil {
		t.Errorf("hold, and lower case hexadecimal: %v", err)
	}
}

func TestNames(t *testing.T) {
	bus := store.NewMemory()
	for _, n := range []string{"", "event", "A", "a.b", "a*", ">", strings.Repeat("a", 33), "ä"} {
		if _, err := NewClient(bus, n, "edge1", nil); err == nil {
			t.Errorf("gateway %q accepted by NewClient", n)
		}
		if _, err := Serve(bus, n, &fake{}, nil); err == nil {
			t.Errorf("gateway %q accepted by Serve", n)
		}
		if n != "event" {
			if _, err := NewClient(bus, "agw1", n, nil); err == nil {
				t.Errorf("edge %q accepted", n)
			}
		}
	}
}

// silentBus loses requests until lose is 0.
type silentBus struct {
	store.Bus
	lose int
}

func (b *silentBus) Request(ctx context.Context, subject string, data []byte) ([]byte, error) {
	if b.lose > 0 {
		b.lose--
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return b.Bus.Request(ctx, subject, data)
}

func TestDeadlineAndRepeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{}
		_, bus := pair(t, f)
		quiet := &silentBus{Bus: bus, lose: 1}
		c, err := NewClient(quiet, "agw1", "edge1", nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Set(t.Context(), someSet("s", 1)); err != nil {
			t.Errorf("one request lost: %v", err)
		}
		if len(f.calls) != 1 {
			t.Errorf("handler obeyed %v", f.calls)
		}
		quiet.lose = 9
		began := time.Now()
		_, err = c.Set(t.Context(), someSet("s", 2))
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != Deadline {
			t.Errorf("nobody answers: %v after %v", err, time.Since(began))
		}
		c, err = NewClient(store.NewMemory(), "agw1", "edge1", nil)
		if err != nil {
			t.Fatal(err)
		}
		began = time.Now()
		if _, err = c.Set(t.Context(), someSet("s", 3)); !errors.Is(err, store.ErrNoResponder) || time.Since(began) != 0 {
			t.Errorf("nobody there: %v after %v", err, time.Since(began))
		}
	})
}

func TestEndedSessionsAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(&fake{}, discard())
		for i := range 100 {
			set := someSet(fmt.Sprint("s", i), 1)
			set.Edge, set.Epoch = "edge1", "e"
			b, _ := json.Marshal(setRequest{Version, set})
			s.serve(opSet, b)
			if i%2 == 0 {
				b, _ = json.Marshal(releaseRequest{Version, Release{set.Ref}})
				s.serve(opRelease, b)
			}
		}
		if len(s.sessions) != 100 {
			t.Errorf("%d sessions remembered, want 100", len(s.sessions))
		}
		time.Sleep(remember + remember/4)
		s.serve("", nil)
		if len(s.sessions) != 50 {
			t.Errorf("%d sessions remembered a minute later, want the 50 that live", len(s.sessions))
		}
	})
}

// TestHandlerForgetsASession: a session that the gateway ended by itself is not kept here either.
func TestHandlerForgetsASession(t *testing.T) {
	f := &fake{}
	s := newServer(f, discard())
	set := someSet("s", 1)
	set.Edge, set.Epoch = "edge1", "e"
	b, _ := json.Marshal(setRequest{Version, set})
	s.serve(opSet, b)
	f.err = ErrUnknownSession
	b, _ = json.Marshal(releaseRequest{Version, Release{Ref{Edge: "edge1", Epoch: "e", Session: "s", Seq: 2}}})
	s.serve(opRelease, b)
	if len(s.sessions) != 0 {
		t.Errorf("%d sessions remembered", len(s.sessions))
	}
}

func FuzzRequest(f *testing.F) {
	set := someSet("s", 1)
	set.Edge, set.Epoch = "edge1", "e"
	good, err := json.Marshal(setRequest{Version, set})
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range []string{string(good), `{}`, `{"v":1}`, `{"v":1,"edge":"edge1","epoch":"e","session":"s","seq":1}`, `[]`, `null`, `{"v":1,"streams":[null]}`, `{"v":1e9}`, `{"v":1,"seq":-1}`} {
		f.Add(opSet, []byte(seed))
		f.Add(opRelease, []byte(seed))
	}
	f.Fuzz(func(t *testing.T, op string, data []byte) {
		h := &fake{}
		s := newServer(h, discard())
		var a answer
		if err := json.Unmarshal(s.serve(op, data), &a); err != nil || a.Code == "" {
			t.Fatalf("answer: %+v, %v", a, err)
		}
		if (a.Code == codeOK) != (len(h.calls) == 1) {
			t.Fatalf("%s: %s but %d calls", op, a.Code, len(h.calls))
		}
		if v, set, err := decodeSet(data); err == nil {
			// What is accepted can be said again in our words, with the same meaning.
			b, err := json.Marshal(setRequest{v, set})
			if err != nil {
				t.Fatal(err)
			}
			v2, set2, err := decodeSet(b)
			if err != nil || v2 != v {
				t.Fatalf("round trip: %v", err)
			}
			b2, err := json.Marshal(setRequest{v2, set2})
			if err != nil || string(b) != string(b2) {
				t.Fatalf("round trip:\n%s\n%s", b, b2)
			}
		}
		if e, err := decodeEvent(data); err == nil && e.Ref.Validate() != nil {
			t.Fatal("an event with a bad Ref")
		}
	})
}

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }
