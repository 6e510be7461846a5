package iq

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"log/slog"
	"time"

	"wicgate/internal/store"
)

// epoch names this process as an edge, for the life of the process.
var epoch = rand.Text()

// retryAfter is when a Client sends an unanswered request a second time, under the same Ref. The bus
// delivers at most once; the gateway obeys a Ref once.
const retryAfter = 200 * time.Millisecond

// Client is the edge's end of Iq towards one gateway.
type Client struct {
	bus     store.Bus
	gateway string
	edge    string
	log     *slog.Logger
}

// NewClient returns the client of the edge called edge towards the gateway called gateway; names are 1
// to 32 of a-z 0-9 -. log may be nil.
func NewClient(bus store.Bus, gateway, edge string, log *slog.Logger) (*Client, error) {
	if err := checkGateway(gateway); err != nil {
		return nil, err
	}
	if err := checkEdge(edge); err != nil {
		return nil, err
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Client{bus: bus, gateway: gateway, edge: edge, log: log}, nil
}

// complete fills in what the caller may leave empty: the edge's name, and the epoch of this process.
func (c *Client) complete(r *Ref) error {
	if r.Edge == "" {
		r.Edge = c.edge
	}
	if r.Edge != c.edge {
		return invalid("a Ref of edge %q by the client of edge %q", r.Edge, c.edge)
	}
	if r.Epoch == "" {
		r.Epoch = epoch
	}
	return nil
}

// Set asks the gateway to reserve or modify a session. Empty Ref.Edge and Ref.Epoch are filled in. The
// answer comes within [Deadline], else the error is ctx's or [context.DeadlineExceeded]; the session
// may then exist, so release it. Sentinels of this package pass the bus.
func (c *Client) Set(ctx context.Context, s Set) (Local, error) {
	if err := c.complete(&s.Ref); err != nil {
		return Local{}, err
	}
	if err := s.Validate(); err != nil {
		return Local{}, err
	}
	a, err := c.request(ctx, opSet, s.Ref, setRequest{Version, s})
	if err != nil {
		return Local{}, err
	}
	if a.Local == nil || len(a.Local.Streams) != len(s.Streams) {
		return Local{}, fmt.Errorf("iq: gateway %s: answer to set of session %s does not match its %d streams", c.gateway, s.Session, len(s.Streams))
	}
	return *a.Local, nil
}

// Release ends a session. [ErrUnknownSession] if the gateway has ended it before, or never had it.
func (c *Client) Release(ctx context.Context, r Release) (Report, error) {
	if err := c.complete(&r.Ref); err != nil {
		return Report{}, err
	}
	if err := r.Ref.Validate(); err != nil {
		return Report{}, err
	}
	a, err := c.request(ctx, opRelease, r.Ref, releaseRequest{Version, r})
	if err != nil {
		return Report{}, err
	}
	if a.Report == nil {
		return Report{}, fmt.Errorf("iq: gateway %s: answer to release of session %s has no report", c.gateway, r.Session)
	}
	return *a.Report, nil
}

func (c *Client) request(ctx context.Context, op string, ref Ref, words any) (answer, error) {
	data, err := json.Marshal(words)
	if err != nil {
		return answer{}, fmt.Errorf("iq: %s: %w", op, err)
	}
	ctx, cancel := context.WithTimeout(ctx, Deadline)
	defer cancel()
	first, cancelFirst := context.WithTimeout(ctx, retryAfter)
	defer cancelFirst()
	b, err := c.bus.Request(first, subject(c.gateway, op), data)
	if err != nil && first.Err() != nil && ctx.Err() == nil {
		c.log.Warn("iq: no answer yet, asking again", "op", op, "gateway", c.gateway, "session", ref.Session, "seq", ref.Seq)
		b, err = c.bus.Request(ctx, subject(c.gateway, op), data)
	}
	if err != nil {
		return answer{}, fmt.Errorf("iq: %s of session %s at gateway %s: %w", op, ref.Session, c.gateway, err)
	}
	var a answer
	if err := decode(b, &a); err != nil {
		return answer{}, fmt.Errorf("iq: answer of gateway %s to %s: %w", c.gateway, op, err)
	}
	if a.Code != codeOK {
		return answer{}, errorOf(c.gateway, a.Code, a.Text)
	}
	if !readable(a.V, Version) {
		return answer{}, fmt.Errorf("iq: answer of gateway %s to %s: %w: %d", c.gateway, op, ErrVersion, a.V)
	}
	return a, nil
}

// Events calls handle, one event at a time, for each event of each gateway that is meant for this
// edge, until stop is called; stop waits for a handle under way. An event of an earlier process under
// the same edge name may come: its session is unknown, pass it over. handle may call Set and Release.
func (c *Client) Events(handle func(Event)) (stop func(), err error) {
	return c.bus.Subscribe(eventSubject(c.edge), func(m store.Message) {
		e, err := decodeEvent(m.Data)
		if err != nil {
			c.log.Warn("iq: event passed over", "edge", c.edge, "error", err)
			return
		}
		handle(e)
	})
}
