// Package takeover brings the sockets and the state of a running process to the one that comes after
// it, over a Unix socket between the two:
//
//	new                                  old
//	Hello: versions, roles ────────────►
//	◄──────────────────────────── Offer, listening sockets
//	  builds all, reads nothing
//	Ready ─────────────────────────────►   reads no more
//	◄───────────────────── State, relay sockets
//	  restores
//	Restored ──────────────────────────►
//	◄──────────────────────────────── Go   and is the old one from here on
//	  reads
//
// Go is the point of no return. Before it either side says Refused, or its end of the connection ends,
// and the old one goes on as if nothing had been. Sockets come as descriptors (unix(7), SCM_RIGHTS), so
// that what the kernel has queued in them is neither lost nor read twice.
package takeover

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"
)

// Version is of what is said here. Processes of different versions do not take over from one another.
const Version = 1

type kind byte

const (
	hello kind = iota + 1
	offer
	ready
	state
	restored
	commit
	refused
)

const (
	maxText  = 64 << 10  // bytes of a message, but for state
	maxState = 256 << 20 // some 4 KiB each for all ports of an address
	maxFiles = 1 << 17
	perSend  = 200 // descriptors in one message; the kernel takes 253 (SCM_MAX_FD)
	// stepTime bounds each step but the one in which the new process builds all.
	stepTime  = 5 * time.Second
	buildTime = 30 * time.Second
)

// Hello is what the new process says first.
type Hello struct {
	Version int `json:"version"` // of this protocol
	State   int `json:"state"`   // version of the encoding of the state
	// Program is its version, for the log.
	Program string   `json:"program"`
	Roles   []string `json:"roles"`
	PID     int      `json:"pid"`
	// Within is how long the old process may keep what cannot move, in seconds.
	Within int64 `json:"within_seconds"`
}

// Socket is what one of the descriptors that go with an Offer is.
type Socket struct {
	Name string // such as "udp 127.0.0.1:3478"
	Conn syscall.Conn
	File *os.File // on the side of the receiver, who owns it
}

// Refusal is the other side's.
type Refusal string

// Error implements error.
func (r Refusal) Error() string { return string(r) }

// Giver is the process that is taken over from.
type Giver interface {
	// Offer says whether h may take over, and what listening sockets there are.
	Offer(h Hello) ([]Socket, error)
	// Pause stops what reads them and the relays, and returns all that there is.
	Pause() (state []byte, relays []syscall.Conn, err error)
	// Resume goes on after Pause: nothing has come of it.
	Resume()
	// Leave is for good.
	Leave()
}

// Give is the side of the old process. It returns nil once all is handed over.
func Give(c *net.UnixConn, g Giver) error {
	w := wire{c}
	err := w.give(g)
	if err != nil && !errors.As(err, new(Refusal)) {
		w.refuse(err)
	}
	return err
}

func (w wire) give(g Giver) error {
	b, _, err := w.receive(hello, maxText, stepTime)
	if err != nil {
		return err
	}
	var h Hello
	if err := json.Unmarshal(b, &h); err != nil {
		return fmt.Errorf("takeover: hello: %w", err)
	}
	if h.Version != Version {
		return fmt.Errorf("the running process speaks version %d of the takeover, the new one version %d; drain it and start the new one then", Version, h.Version)
	}
	list, err := g.Offer(h)
	if err != nil {
		return err
	}
	names := make([]string, len(list))
	conns := make([]syscall.Conn, len(list))
	for i, s := range list {
		names[i], conns[i] = s.Name, s.Conn
	}
	b, err = json.Marshal(names)
	if err != nil {
		return err
	}
	if err := w.send(offer, b, conns, stepTime); err != nil {
		return err
	}
	if _, _, err := w.receive(ready, maxText, buildTime); err != nil {
		return err
	}
	b, conns, err = g.Pause()
	if err != nil {
		return err
	}
	if err = w.send(state, b, conns, stepTime); err == nil {
		if _, _, err = w.receive(restored, maxText, stepTime); err == nil {
			err = w.send(commit, nil, nil, stepTime)
		}
	}
	clear(b) // keys
	if err != nil {
		g.Resume()
		return err
	}
	g.Leave()
	return nil
}

// Taker is the side of the new process.
type Taker struct {
	w       wire
	Sockets []Socket // those of the offer
}

// Take says h and returns what is offered. It owns c.
func Take(c *net.UnixConn, h Hello) (*Taker, error) {
	w := wire{c}
	h.Version = Version
	b, err := json.Marshal(h)
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	t := &Taker{w: w}
	if err = w.send(hello, b, nil, stepTime); err == nil {
		var files []*os.File
		var names []string
		if b, files, err = w.receive(offer, maxText, stepTime); err == nil {
			if err = json.Unmarshal(b, &names); err == nil && len(names) != len(files) {
				err = fmt.Errorf("takeover: %d sockets for %d names", len(files), len(names))
			}
			for i, f := range files {
				if err != nil {
					_ = f.Close() // the old process has it still
					continue
				}
				t.Sockets = append(t.Sockets, Socket{Name: names[i], File: f})
			}
		}
	}
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return t, nil
}

// Restore asks for the state, hands it to restore, and returns nil once the old process reads no more.
// After an error the new one must end. relays are restore's to close.
func (t *Taker) Restore(restore func(state []byte, relays []*os.File) error) error {
	err := t.w.send(ready, nil, nil, stepTime)
	if err == nil {
		var b []byte
		var files []*os.File
		if b, files, err = t.w.receive(state, maxState, stepTime); err == nil {
			err = restore(b, files)
			clear(b) // keys
		}
	}
	if err == nil {
		err = t.w.send(restored, nil, nil, stepTime)
	}
	if err == nil {
		_, _, err = t.w.receive(commit, maxText, buildTime) // the old one has given up before that
	}
	if err != nil && !errors.As(err, new(Refusal)) {
		t.w.refuse(err)
	}
	return err
}

// Close ends the connection, and with it a takeover that is under way.
func (t *Taker) Close() error {
	if err := t.w.c.Close(); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// wire sends messages: kind, length and number of descriptors; the descriptors, each some with a byte
// of their own; the bytes.
type wire struct{ c *net.UnixConn }

const headSize = 1 + 4 + 4

func (w wire) send(k kind, b []byte, files []syscall.Conn, within time.Duration) error {
	end := time.Now().Add(within)
	if err := w.c.SetDeadline(end); err != nil {
		return fmt.Errorf("takeover: %w", err)
	}
	head := make([]byte, headSize)
	head[0] = byte(k)
	binary.BigEndian.PutUint32(head[1:], uint32(len(b)))
	binary.BigEndian.PutUint32(head[5:], uint32(len(files)))
	if _, err := w.c.Write(head); err != nil {
		return fmt.Errorf("takeover: %w", err)
	}
	for len(files) > 0 {
		some := files[:min(perSend, len(files))]
		if err := w.sendFiles(some, end); err != nil {
			return fmt.Errorf("takeover: send %d sockets: %w", len(files), err)
		}
		files = files[len(some):]
	}
	if len(b) == 0 {
		return nil // the other side may have said its last word already
	}
	if _, err := w.c.Write(b); err != nil {
		return fmt.Errorf("takeover: %w", err)
	}
	return nil
}

// sendFiles sends descriptors without a copy of them in this process.
func (w wire) sendFiles(files []syscall.Conn, end time.Time) error {
	fds := make([]int, 0, len(files))
	var with func(rest []syscall.Conn) error // holds each descriptor while the next ones are added
	with = func(rest []syscall.Conn) error {
		if len(rest) > 0 {
			raw, err := rest[0].SyscallConn()
			if err != nil {
				return err
			}
			var inner error
			err = raw.Control(func(fd uintptr) {
				fds = append(fds, int(fd))
				inner = with(rest[1:])
			})
			return errors.Join(err, inner)
		}
		for {
			_, _, err := w.c.WriteMsgUnix([]byte{0}, syscall.UnixRights(fds...), nil)
			// The kernel bounds how many are on their way (unix(7)): the receiver has to take some.
			if !errors.Is(err, syscall.ETOOMANYREFS) || time.Now().After(end) {
				return err
			}
			time.Sleep(time.Millisecond)
		}
	}
	return with(files)
}

func (w wire) receive(want kind, most int, within time.Duration) (b []byte, files []*os.File, err error) {
	defer func() {
		if err != nil {
			for _, f := range files {
				_ = f.Close() // the other side has it still
			}
			files = nil
		}
	}()
	if err := w.c.SetDeadline(time.Now().Add(within)); err != nil {
		return nil, nil, fmt.Errorf("takeover: %w", err)
	}
	head := make([]byte, headSize)
	if _, err := io.ReadFull(w.c, head); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
			err = errors.New("the other process has ended the connection")
		}
		return nil, nil, fmt.Errorf("takeover: %w", err)
	}
	k, size, n := kind(head[0]), int(binary.BigEndian.Uint32(head[1:])), int(binary.BigEndian.Uint32(head[5:]))
	if k == refused {
		most = maxText
	}
	if size > most || n > maxFiles || k != want && (k != refused || n > 0) {
		return nil, nil, fmt.Errorf("takeover: message %d of %d bytes and %d sockets where %d is due", k, size, n, want)
	}
	if files, err = w.receiveFiles(n); err != nil {
		return nil, files, err
	}
	b = make([]byte, size)
	if _, err := io.ReadFull(w.c, b); err != nil {
		return nil, files, fmt.Errorf("takeover: %w", err)
	}
	if k == refused {
		return nil, files, Refusal(b)
	}
	return b, files, nil
}

func (w wire) receiveFiles(n int) (files []*os.File, err error) {
	oob := make([]byte, syscall.CmsgSpace(4*perSend))
	for len(files) < n {
		one := make([]byte, 1)
		_, k, flags, _, err := w.c.ReadMsgUnix(one, oob)
		if err != nil {
			return files, fmt.Errorf("takeover: receive sockets: %w", err)
		}
		list, err := syscall.ParseSocketControlMessage(oob[:k])
		if err != nil {
			return files, fmt.Errorf("takeover: receive sockets: %w", err)
		}
		before := len(files)
		for i := range list {
			fds, err := syscall.ParseUnixRights(&list[i])
			if err != nil {
				return files, fmt.Errorf("takeover: receive sockets: %w", err)
			}
			for _, fd := range fds {
				files = append(files, os.NewFile(uintptr(fd), "inherited"))
			}
		}
		switch {
		case len(files) > n:
			return files, fmt.Errorf("takeover: %d sockets where %d are due", len(files), n)
		case flags&syscall.MSG_CTRUNC != 0 || len(files) == before:
			// What is over the limit is cut off silently.
			return files, fmt.Errorf("takeover: %d sockets of %d have come; raise the limit of open files (ulimit -n, LimitNOFILE)", len(files), n)
		}
	}
	return files, nil
}

// refuse tells the other side why nothing comes of it, if it listens still.
func (w wire) refuse(why error) {
	b := []byte(why.Error())
	_ = w.send(refused, b[:min(len(b), maxText)], nil, time.Second)
}
