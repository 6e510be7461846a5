package takeover

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"
)

// ends is a connected pair of Unix sockets.
func ends(t testing.TB) (a, b *net.UnixConn) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // of the test's own folder
	if a, err = net.DialUnix("unix", nil, l.Addr().(*net.UnixAddr)); err != nil {
		t.Fatal(err)
	}
	if b, err = l.AcceptUnix(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() }) //nolint:errcheck // they may be closed
	return a, b
}

// old is a Giver with files.
type old struct {
	listeners, relays []*os.File
	state             []byte
	refuses           error
	calls             string
}

func (o *old) Offer(Hello) (out []Socket, err error) {
	for _, f := range o.listeners {
		out = append(out, Socket{Name: f.Name(), Conn: f})
	}
	return out, o.refuses
}

func (o *old) Pause() (state []byte, relays []syscall.Conn, err error) {
	o.calls += "pause "
	for _, f := range o.relays {
		relays = append(relays, f)
	}
	return bytes.Clone(o.state), relays, nil
}
func (o *old) Resume() { o.calls += "resume" }
func (o *old) Leave()  { o.calls += "leave" }

// files are n files that know their number.
func files(t testing.TB, n int) (list []*os.File) {
	t.Helper()
	for i := range n {
		f, err := os.Create(filepath.Join(t.TempDir(), "f"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		if _, err := f.Write(binary.BigEndian.AppendUint32(nil, uint32(i))); err != nil {
			t.Fatal(err)
		}
		list = append(list, f)
	}
	return list
}

// inOrder reads and closes what has come.
func inOrder(t testing.TB, list []*os.File) {
	t.Helper()
	for i, f := range list {
		b := make([]byte, 4)
		if _, err := f.ReadAt(b, 0); err != nil || binary.BigEndian.Uint32(b) != uint32(i) {
			t.Fatalf("file %d is %d: %v", i, b, err)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestAll(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	// More descriptors than fit one message, more bytes than the socket's buffer.
	o := &old{listeners: files(t, 3), relays: files(t, 2*perSend+7), state: bytes.Repeat([]byte("state"), 1<<18)}
	a, b := ends(t)
	given := make(chan error, 1)
	go func() { given <- Give(a, o) }()
	k, err := Take(b, Hello{Roles: []string{"turn"}})
	if err != nil {
		t.Fatal(err)
	}
	var list []*os.File
	for i, s := range k.Sockets {
		if s.Name != o.listeners[i].Name() {
			t.Errorf("socket %d is %q", i, s.Name)
		}
		list = append(list, s.File)
	}
	inOrder(t, list)
	err = k.Restore(func(state []byte, relays []*os.File) error {
		if !bytes.Equal(state, o.state) || len(relays) != len(o.relays) {
			t.Errorf("%d bytes, %d sockets", len(state), len(relays))
		}
		inOrder(t, relays)
		return nil
	})
	if given := <-given; err != nil || given != nil || o.calls != "pause leave" {
		t.Errorf("%v, %v, %q", err, given, o.calls)
	}
	if err := k.Close(); err != nil {
		t.Error(err)
	}
}

// TestRefused: each side says why, and hears why; the old one goes on.
func TestRefused(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	for name, q := range map[string]struct {
		old          *old
		hello        func(*Hello)
		restore      error
		taker, giver string // parts of the errors
		calls        string
	}{
		"by the old one":     {&old{refuses: errors.New("I drain")}, nil, nil, "I drain", "I drain", ""},
		"by the new one":     {&old{relays: files(t, 2)}, nil, errors.New("no room"), "no room", "no room", "pause resume"},
		"of another version": {&old{}, func(h *Hello) { h.Version++ }, nil, "version 1 of the takeover, the new one version 2", "version 1", ""},
	} {
		a, b := ends(t)
		given := make(chan error, 1)
		go func() { given <- Give(a, q.old) }()
		var err error
		if q.hello != nil {
			h := Hello{Version: Version}
			q.hello(&h)
			m, _ := json.Marshal(h)
			w := wire{b}
			if err = w.send(hello, m, nil, stepTime); err == nil {
				_, _, err = w.receive(offer, maxText, stepTime)
			}
		} else {
			var k *Taker
			if k, err = Take(b, Hello{}); err == nil {
				err = k.Restore(func(_ []byte, relays []*os.File) error {
					for _, f := range relays {
						f.Close()
					}
					return q.restore
				})
			}
		}
		given1 := <-given
		if err == nil || given1 == nil || !strings.Contains(err.Error(), q.taker) || !strings.Contains(given1.Error(), q.giver) || q.old.calls != q.calls {
			t.Errorf("%s: the new one %v; the old one %v, %q", name, err, given1, q.old.calls)
		}
	}
}

// FuzzReceive: bytes of whoever is at the other end lead to a message or an error.
func FuzzReceive(f *testing.F) {
	f.Add([]byte{byte(hello), 0, 0, 0, 2, 0, 0, 0, 0, '{', '}'})
	f.Add([]byte{byte(refused), 0, 0, 0, 2, 0, 0, 0, 0, 'n', 'o'})
	f.Add([]byte{byte(hello), 0, 0, 0, 0, 0, 0, 0, 1, 0})
	f.Add([]byte{byte(state), 255, 255, 255, 255, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		from, to := ends(t)
		go func() { from.Write(b); from.Close() }() //nolint:errcheck // the other end may have gone
		m, files, err := wire{to}.receive(hello, maxText, stepTime)
		if len(files) > 0 || err == nil && len(m) > len(b) {
			t.Errorf("%d bytes, %d files, %v", len(m), len(files), err)
		}
	})
}
