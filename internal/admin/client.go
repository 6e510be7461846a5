package admin

import (
	"bufio"
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
	"time"
)

// maxAnswer bounds what the client reads, in bytes: maxSessions of the longest.
const maxAnswer = 80 << 20

// Client asks the process that uses a data folder.
type Client struct {
	Dir    string
	Socket string // its name there; "" = SocketName
}

// name is the socket's path.
func (c Client) name() string {
	if c.Socket == "" {
		return filepath.Join(c.Dir, SocketName)
	}
	return filepath.Join(c.Dir, c.Socket)
}

// TakeOver asks the process to be taken over from, by what is said on the connection then.
func (c Client) TakeOver(ctx context.Context) (*net.UnixConn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", c.name())
	if err != nil {
		return nil, fmt.Errorf("nobody answers in %s: %w\n  hint: %s", c.Dir, cause(err), c.hint(err))
	}
	u := conn.(*net.UnixConn)
	res, err := switchProtocol(ctx, u)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("admin: ask to take over: %w", err), u.Close())
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusSwitchingProtocols {
		b, _ := io.ReadAll(io.LimitReader(res.Body, maxBody)) // for the words
		return nil, errors.Join(refusal(res, b), u.Close())
	}
	return u, nil
}

func switchProtocol(ctx context.Context, u *net.UnixConn) (*http.Response, error) {
	end, ok := ctx.Deadline()
	if !ok {
		end = time.Now().Add(readTime)
	}
	if err := u.SetDeadline(end); err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://admin/v1/takeover", http.NoBody)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", upgradeProtocol)
	if err := req.Write(u); err != nil {
		return nil, err
	}
	return http.ReadResponse(bufio.NewReader(u), req) // behind a 101 the other side waits for us
}

// refusal is what an answer that is not 200 says.
func refusal(res *http.Response, b []byte) error {
	var f failureForm
	if json.Unmarshal(b, &f) != nil || f.Error.Message == "" {
		f.Error = failure{Message: fmt.Sprintf("%s %s: %s", res.Request.Method, res.Request.URL.Path, res.Status)}
	}
	return &Error{res.StatusCode, f.Error.Message, f.Error.Hint}
}

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
		return (&net.Dialer{}).DialContext(ctx, "unix", c.name())
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
		return refusal(res, b)
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
