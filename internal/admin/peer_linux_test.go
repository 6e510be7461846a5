package admin

import (
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestStranger: even with the mode bits gone, another user gets 403, and the log says who it was.
func TestStranger(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to be somebody else")
	}
	var log lines
	asked := false
	c := start(t, Config{Log: slog.New(slog.NewTextHandler(&log, nil)), Stats: func() map[string]any { asked = true; return nil }})
	name := filepath.Join(c.Dir, SocketName)
	for _, p := range []string{name, c.Dir, filepath.Dir(c.Dir)} {
		if err := os.Chmod(p, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	got := make(chan string, 1)
	go func() {
		// This thread becomes another user's for good: it is not unlocked, so it ends with the goroutine.
		runtime.LockOSThread()
		const nobody = 65534
		if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, nobody, nobody, nobody); e != 0 {
			got <- "setresuid: " + e.Error()
			return
		}
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		if err != nil {
			got <- err.Error()
			return
		}
		f := os.NewFile(uintptr(fd), "socket")
		defer f.Close()
		if err := unix.Connect(fd, &unix.SockaddrUnix{Name: name}); err != nil {
			got <- "connect: " + err.Error()
			return
		}
		io.WriteString(f, "GET /v1/stats HTTP/1.0\r\n\r\n")
		b, _ := io.ReadAll(f) // what was read is looked at
		got <- string(b)
	}()
	if answer := <-got; !strings.HasPrefix(answer, "HTTP/1.0 403") || !strings.Contains(answer, "this door is for the user that wicgate runs as") {
		t.Errorf("a stranger got %q", answer)
	}
	if asked {
		t.Error("the stats were asked")
	}
	if l := log.String(); !strings.Contains(l, "admin: refused") || !strings.Contains(l, "uid=65534") {
		t.Errorf("log: %s", l)
	}
	if err := c.Do(t.Context(), "GET", "/v1/stats", nil, &struct{}{}); err != nil {
		t.Errorf("the owner: %v", err)
	}
}
