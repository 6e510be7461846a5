package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"syscall"
)

// maxAnswer bounds what the client reads, in bytes: maxSessions of the longest.
const maxAnswer = 80 << 20

// Client asks the process that uses a data folder.
type Client struct{ Dir string }

// Error is a refusal by the process that was asked.
type Error struct {
	Status        int // HTTP
	Message, Hint string
}

// Error implements error, with the hint in a line of its own.
func (e *Error) Error() string {
	if e.Hint == "" {
		return e.Message
	}
	return e.Message + "\n  hint: " + e.Hint
}

// Do asks, and decodes the answer's JSON into out; out may be a *[]byte for the bytes as they are.
// The error is an [*Error] where the process answered and refused.
func (c Client) Do(ctx context.Context, method, path string, body, out any) error {
	var send io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return err
		}
		send = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://admin"+path, send)
	if err != nil {
		return err
	}
	hc := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(c.Dir, SocketName))
	}}}
	res, err := hc.Do(req)
	if err != nil {
		return fmt.Errorf("nobody answers in %s: %w\n  hint: %s", c.Dir, cause(err), c.hint(err))
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	switch {
	case err != nil:
		return fmt.Errorf("admin: %s %s: %w", method, path, err)
	case len(b) > maxAnswer:
		return fmt.Errorf("admin: %s %s: the answer has more than %d bytes", method, path, maxAnswer)
	case res.StatusCode != http.StatusOK:
		var f failureForm
		if json.Unmarshal(b, &f) != nil || f.Error.Message == "" {
			f.Error = failure{Message: fmt.Sprintf("%s %s: %s", method, path, res.Status)}
		}
		return &Error{res.StatusCode, f.Error.Message, f.Error.Hint}
	}
	if raw, ok := out.(*[]byte); ok {
		*raw = b
		return nil
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("admin: %s %s: the answer is not JSON of the form expected: %w", method, path, err)
	}
	return nil
}

// cause leaves out what only repeats the folder.
func cause(err error) error {
	var number syscall.Errno
	if errors.As(err, &number) {
		return number
	}
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

func (c Client) hint(err error) string {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return "run the command as the user that wicgate runs as, or with sudo"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "wicgate was there and did not end in order; start it again with \"wicgate run --data " + c.Dir + "\""
	case errors.Is(err, fs.ErrNotExist):
		return "is wicgate running with --data " + c.Dir + "? The default is wicgate-data in the current folder"
	}
	return "is wicgate running with --data " + c.Dir + ", as this user?"
}
