// Package probe goes the way of a browser without one: portal, log-in or guest, tokens, TURN over each
// transport, registration over WebSocket, a call to itself, and an echo through each relay.
//
//	portal ─► WAF ─► log-in ─► TURN token ─► Allocate: udp, tcp, tls ─► REGISTER twice, A and B
//	   A ── INVITE to its own address ──► core ──► B answers
//	   A ── STUN connectivity checks ─► each relay ─► gateway, and back: the echo
//	BYE, de-REGISTER, log-out
//
// Each step has its time and, where it fails, what to check. It carries no media: the gateway's ICE
// agent answers the checks (RFC 8445 §7.3), which is the way that media takes, both ways. For an
// operator's core [Core] has the cases of Trusted Node Authentication.
package probe

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"wicgate/internal/secret"
)

// State of a step.
type State string

// The states.
const (
	OK      State = "ok"
	Failed  State = "failed"
	Skipped State = "skipped" // what it needs has failed
)

// Step is one step done.
type Step struct {
	Name   string        `json:"name"`
	Clause string        `json:"clause,omitempty"` // what demands it
	State  State         `json:"state"`
	Took   time.Duration `json:"-"`
	Detail string        `json:"detail"`          // what was found, or what went wrong; no secret
	Check  string        `json:"check,omitempty"` // what to look at where it failed
}

// MarshalJSON gives the time in milliseconds.
func (s Step) MarshalJSON() ([]byte, error) {
	type plain Step
	return json.Marshal(struct {
		plain
		Milliseconds float64 `json:"ms"`
	}{plain(s), float64(s.Took.Microseconds()) / 1000})
}

// Report is all steps.
type Report struct {
	Target string `json:"target"`
	Steps  []Step `json:"steps"`
}

// Count says how many steps are in a state.
func (r Report) Count(state State) (n int) {
	for _, s := range r.Steps {
		if s.State == state {
			n++
		}
	}
	return n
}

// Config is what to probe. URL and either Guest or User with Password are required.
type Config struct {
	URL      string // the portal's origin, https://host[:port]
	Guest    bool
	User     string
	Password secret.Bytes
	// Callee is called instead of the own address, where the core does not call the caller itself.
	Callee string
	Roots  *x509.CertPool // nil: the system's
	// TURNCredential is who gives it: "token", the WAF; "edge", the eP-CSCF in REGISTER; "" as the portal says.
	TURNCredential string
	// Packets of each echo; 0 = 20, at most 500.
	Packets int
	// Begin and End are told of each step; nil is nobody.
	Begin func(name string)
	End   func(Step)
}

// stepTime bounds a step.
const stepTime = 12 * time.Second

// fault is an error with what to check.
type fault struct {
	err   error
	check string
}

func (f fault) Error() string { return f.err.Error() }
func (f fault) Unwrap() error { return f.err }

func faultf(check, format string, a ...any) error { return fault{fmt.Errorf(format, a...), check} }

// errSkip is why a step was not run after all.
type errSkip string

func (e errSkip) Error() string { return string(e) }

// runner runs steps.
type runner struct {
	report Report
	begin  func(string)
	end    func(Step)
}

// step runs f, unless need is false, and reports whether it went well.
func (r *runner) step(ctx context.Context, name string, need bool, f func(ctx context.Context) (string, error)) bool {
	return r.demanded(ctx, name, "", need, f)
}

// demanded is step with the clause that demands it.
func (r *runner) demanded(ctx context.Context, name, clause string, need bool, f func(ctx context.Context) (string, error)) bool {
	name = line(name)
	s := Step{Name: name, Clause: clause, State: Skipped, Detail: "needs a step that failed"}
	if need && ctx.Err() != nil {
		s.Detail = "interrupted"
		need = false
	}
	if need {
		if r.begin != nil {
			r.begin(name)
		}
		ctx, cancel := context.WithTimeout(ctx, stepTime)
		begun := time.Now()
		detail, err := f(ctx)
		cancel()
		s.Took, s.State, s.Detail = time.Since(begun), OK, detail
		if err != nil {
			s.State, s.Detail = Failed, err.Error()
			var f fault
			var skip errSkip
			switch {
			case errors.As(err, &skip):
				s.State = Skipped
			case errors.As(err, &f):
				s.Check = f.check
			}
		}
	}
	s.Detail, s.Check = line(s.Detail), line(s.Check)
	r.report.Steps = append(r.report.Steps, s)
	if r.end != nil {
		r.end(s)
	}
	return s.State == OK
}

// maxLine bounds a step's words, in bytes.
const maxLine = 2000

// line makes one printable line of words in which a server's own may stand: control characters would write over a
// terminal, and line feeds tell of steps that nobody took.
func line(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) || r == utf8.RuneError { // which a cut leaves
			return '?'
		}
		return r
	}, s[:min(len(s), maxLine)])
}

// Run probes. It ends with ctx, but takes down what it has put up first.
func Run(ctx context.Context, cfg Config) Report {
	if cfg.Packets <= 0 {
		cfg.Packets = 20
	}
	cfg.Packets = min(cfg.Packets, 500)
	target := cfg.URL
	if u, err := url.Parse(target); err == nil {
		target = u.Redacted() // reports are passed on
	}
	r := &runner{report: Report{Target: target}, begin: cfg.Begin, end: cfg.End}
	p := &probe{cfg: cfg, web: newWeb(cfg)}
	defer p.web.client.CloseIdleConnections()

	ok := r.step(ctx, "portal", true, p.portal)
	ok = r.step(ctx, "authorization server", ok, p.metadata) && ok
	if cfg.Guest {
		ok = r.step(ctx, "guest", ok, p.guest) && ok
	} else {
		ok = r.step(ctx, "log-in", ok, p.logIn) && ok
	}
	tokens := ok
	var relays, registered bool
	if p.fromEdge() {
		registered = r.step(ctx, "register", ok, p.register)
		relays = r.step(ctx, "TURN credential", registered, p.turnCredential)
	} else {
		relays = r.step(ctx, "TURN token", ok, p.turnToken)
	}
	if relays {
		relays = false
		for _, t := range p.relays {
			relays = r.step(ctx, "allocate "+t.name, true, func(ctx context.Context) (string, error) { return p.allocate(ctx, t) }) || relays
		}
	}
	if !p.fromEdge() {
		registered = r.step(ctx, "register", ok, p.register)
	}
	called := r.step(ctx, "call", registered && relays, p.call)
	for _, t := range p.relays {
		r.step(ctx, "echo "+t.name, called && t.client != nil, func(ctx context.Context) (string, error) { return t.echo(ctx, p.gateway, cfg.Packets) })
	}
	// From here on also after an interruption.
	after, cancel := context.WithTimeout(context.WithoutCancel(ctx), stepTime)
	defer cancel()
	r.step(after, "hang up", called, p.hangUp)
	r.step(after, "de-register", registered, p.deregister)
	p.closeFlows()
	for _, t := range p.relays {
		t.close(after)
	}
	r.step(after, "log out", tokens, p.logOut)
	return r.report
}

// probe is what the steps find for one another.
type probe struct {
	cfg     Config
	web     *web
	config  portalConfig
	login   login
	relays  []*relay
	a, b    *flow
	gateway gateway

	credential string // TURN-Credential of the edge
}

// web is the client of portal and WAF.
type web struct {
	client *http.Client
	roots  *x509.CertPool
}
