package iq

import (
	"encoding/json"
	"errors"
	"fmt"
)

// maxMessage bounds a request or answer as JSON, in bytes.
const maxMessage = 64 << 10

// The subject of an operation is "iq.<gateway>.<op>", that of an event "iq.event.<edge>". A gateway
// named "event" would hear events as requests, so that name is refused.
const (
	opSet     = "set"
	opRelease = "release"
)

func subject(gateway, op string) string { return "iq." + gateway + "." + op }
func eventSubject(edge string) string   { return "iq.event." + edge }

func checkGateway(name string) error {
	if !validName(name) || name == "event" {
		return fmt.Errorf("iq: gateway name %q: want 1 to %d of a-z 0-9 -, and not \"event\"", name, maxName)
	}
	return nil
}

func checkEdge(name string) error {
	if !validName(name) {
		return fmt.Errorf("iq: edge name %q: want 1 to %d of a-z 0-9 -", name, maxName)
	}
	return nil
}

// readable says whether a reader of version current understands version v: current and the one
// before. The first version was 1.
func readable(v, current int) bool { return v >= 1 && (v == current || v == current-1) }

// A request is the version beside the words of the operation, all in one object.
type setRequest struct {
	V int `json:"v"`
	Set
}

type releaseRequest struct {
	V int `json:"v"`
	Release
}

// answer to either request. Code is "ok" or names one of the sentinels.
type answer struct {
	V      int     `json:"v"`
	Code   string  `json:"code"`
	Text   string  `json:"text,omitempty"`
	Local  *Local  `json:"local,omitempty"`
	Report *Report `json:"report,omitempty"`
}

// codes are how the sentinels travel. A code that the reader does not know becomes a plain error.
var codes = []struct {
	code string
	err  error
}{
	{"unknown-session", ErrUnknownSession},
	{"stale", ErrStale},
	{"capacity", ErrCapacity},
	{"invalid", ErrInvalid},
	{"version", ErrVersion},
}

const (
	codeOK       = "ok"
	codeInternal = "internal"
)

// codeOf returns an error's code, and the text beside it. What has no sentinel of ours leaves as
// "internal" without its text: that may name files or addresses that are nobody else's business.
func codeOf(err error) (code, text string) {
	for _, c := range codes {
		if errors.Is(err, c.err) {
			t := err.Error()
			if len(t) > maxDetail {
				t = t[:maxDetail]
			}
			return c.code, t
		}
	}
	return codeInternal, ""
}

// remoteError is an error that came over the bus: the text as the gateway wrote it, and the
// sentinel for errors.Is.
type remoteError struct {
	text string
	err  error
}

func (e *remoteError) Error() string { return e.text }
func (e *remoteError) Unwrap() error { return e.err }

// errorOf is the inverse of codeOf.
func errorOf(gateway, code, text string) error {
	for _, c := range codes {
		if c.code == code {
			if text == "" {
				text = c.err.Error()
			}
			return &remoteError{fmt.Sprintf("gateway %s: %s", gateway, text), c.err}
		}
	}
	return fmt.Errorf("iq: gateway %s failed (%q); its log says why", gateway, code)
}

// decode reads JSON of a bounded size. Fields that it does not know are passed over: a newer
// version may have added them.
func decode(data []byte, v any) error {
	if len(data) > maxMessage {
		return invalid("message of %d bytes, at most %d", len(data), maxMessage)
	}
	if err := json.Unmarshal(data, v); err != nil {
		var syntax *json.SyntaxError
		var kind *json.UnmarshalTypeError
		switch {
		case errors.As(err, &syntax):
			return invalid("not JSON, at byte %d", syntax.Offset)
		case errors.As(err, &kind):
			return invalid("field %q has another type", kind.Field)
		}
		return invalid("cannot be read") // the decoder's own text may quote a password
	}
	return nil
}

// decodeSet reads and checks a Set request.
func decodeSet(data []byte) (v int, s Set, err error) {
	var r setRequest
	if err := decode(data, &r); err != nil {
		return 0, Set{}, err
	}
	if !readable(r.V, Version) {
		return r.V, Set{}, fmt.Errorf("%w: %d, this gateway reads %d and the one before", ErrVersion, r.V, Version)
	}
	return r.V, r.Set, r.Set.Validate()
}

// decodeRelease reads and checks a Release request.
func decodeRelease(data []byte) (v int, rel Release, err error) {
	var r releaseRequest
	if err := decode(data, &r); err != nil {
		return 0, Release{}, err
	}
	if !readable(r.V, Version) {
		return r.V, Release{}, fmt.Errorf("%w: %d, this gateway reads %d and the one before", ErrVersion, r.V, Version)
	}
	return r.V, r.Release, r.Ref.Validate()
}

// decodeEvent reads and checks an event.
func decodeEvent(data []byte) (Event, error) {
	var e Event
	if err := decode(data, &e); err != nil {
		return Event{}, err
	}
	if !readable(e.V, Version) {
		return Event{}, fmt.Errorf("%w: event of version %d", ErrVersion, e.V)
	}
	if len(e.Kind) > maxName || len(e.Detail) > maxDetail {
		return Event{}, invalid("event: kind of %d bytes, detail of %d", len(e.Kind), len(e.Detail))
	}
	return e, e.Ref.Validate()
}
