package admin

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	checkTime = time.Second     // one check
	checkHold = 2 * time.Second // how long its answer is used again
)

// Health is whether new users should be sent to this process. Alive it is as long as it answers.
//
//	starting ──Serving──► serving ──Draining──► draining, for good
//
// [Health.Leave] says draining of a process that may come back. While serving it is ready if every part's
// check says so. The zero value is starting.
type Health struct {
	mu    sync.Mutex // guards the following
	state healthState
	leave bool
	parts []*part
}

type healthState uint8

const (
	starting healthState = iota
	serving
	draining
)

// part is one check, asked for at most once per checkHold, and when somebody wants to know.
type part struct {
	name  string
	check func(context.Context) error

	mu  sync.Mutex // guards the following, and is held during a check
	at  time.Time
	err error
}

// degraded is an error that leaves the process ready.
type degraded struct{ error }

func (d degraded) Unwrap() error { return d.error }

// Degraded marks what an operator should know of and no load balancer should act on: new users would
// fare no better elsewhere, or well enough here. nil stays nil.
func Degraded(err error) error {
	if err == nil {
		return nil
	}
	return degraded{err}
}

// Watch adds a part's check: nil is ready. Its context ends after 1 s; later answers are not waited
// for. For use before serving.
func (h *Health) Watch(name string, check func(context.Context) error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.parts = append(h.parts, &part{name: name, check: check})
}

// Serving says that every part has started.
func (h *Health) Serving() { h.to(serving) }

// Draining says that the end has begun.
func (h *Health) Draining() { h.to(draining) }

// Leave says that new users are to go elsewhere, or again are welcome.
func (h *Health) Leave(on bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.leave = on
}

func (h *Health) to(s healthState) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.state = max(h.state, s)
}

// Serve is a part of the process that starts last, and so ends first: from its start to its end the
// process serves, then it drains.
func (h *Health) Serve(ctx context.Context) error {
	h.Serving()
	<-ctx.Done()
	h.Draining()
	return nil
}

// Report is the answer of Ready.
type Report struct {
	Ready bool `json:"ready"`
	// Reasons why not, one a part; of what is degraded too, when Ready.
	Reasons []string `json:"reasons"`
}

// String is a report for people: a line, and one for each reason.
func (r Report) String() string {
	head := "ready\n"
	if !r.Ready {
		head = "not ready\n"
	}
	if len(r.Reasons) == 0 {
		return head
	}
	return head + strings.Join(r.Reasons, "\n") + "\n"
}

// Ready asks all parts at once.
func (h *Health) Ready(ctx context.Context) Report {
	h.mu.Lock()
	state, parts := h.state, slices.Clone(h.parts)
	if h.leave && state == serving {
		state = draining
	}
	h.mu.Unlock()
	switch state {
	case starting:
		return Report{Reasons: []string{"starting: not all parts serve yet"}}
	case draining:
		return Report{Reasons: []string{"draining: no new calls; those under way may end"}}
	}
	answers := make([]error, len(parts))
	var all sync.WaitGroup
	for i, p := range parts {
		all.Go(func() { answers[i] = p.ask(ctx) })
	}
	all.Wait()
	r := Report{Ready: true, Reasons: []string{}}
	for i, err := range answers {
		var mild degraded
		switch {
		case err == nil:
		case errors.As(err, &mild):
			r.Reasons = append(r.Reasons, fmt.Sprintf("%s: degraded: %v", parts[i].name, err))
		default:
			r.Ready = false
			r.Reasons = append(r.Reasons, fmt.Sprintf("%s: %v", parts[i].name, err))
		}
	}
	return r
}

// ask does not let one visitor's patience decide for the others.
func (p *part) ask(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.at.IsZero() && time.Since(p.at) < checkHold {
		return p.err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), checkTime)
	defer cancel()
	p.err = p.check(ctx)
	p.at = time.Now()
	return p.err
}
