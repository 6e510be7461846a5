package epcscf

import (
	"slices"

	"wicgate/internal/iq"
	"wicgate/internal/siptx"
)

// agreement is what the last exchange has come to: what each side has said of itself.
type agreement struct{ browser, core description }

// restarts says whether x, an offer of the browser inside the dialog, does nothing but restart ICE (RFC 8839 §4.4.1): that is
// between the browser and the gateway, and the core has nothing to answer. Whatever else it changes makes it a
// negotiation between the two sides, with the restart done on the way; so does a session timer, which it
// refreshes for both (RFC 4028 §7.4), or another negotiation that is not over, whose parties see to glare (RFC 3261 §14).
func (c *call) restarts(x *exchange) bool {
	m := x.tx.Request
	if x.first || !x.browser || !c.confirmed || c.agreed == nil || m.Get("Session-Expires") != "" || m.Get("Require") != "" {
		return false
	}
	for tx := range c.pending {
		if tx != x.tx && tx.Open() {
			return false
		}
	}
	was, core := c.agreed.browser.Lines, c.agreed.core.Lines
	if len(x.offer.Lines) != len(was) {
		return false
	}
	fresh := false
	for i := range was {
		o, w := &x.offer.Lines[i], &was[i]
		gone := w.Rejected || core[i].Rejected
		switch {
		case o.Kind != w.Kind || o.Rejected != gone:
			return false
		case gone:
			continue
		case o.Access.Fingerprint != w.Access.Fingerprint || o.Dir != w.Dir || o.Ptime != w.Ptime || o.MaxPtime != w.MaxPtime:
			return false
		}
		// An offer lists what the browser can, also where it has answered less: what is in use must be as it was.
		for _, f := range core[i].Formats {
			j := slices.IndexFunc(w.Formats, func(g format) bool { return g.PT == f.PT })
			if j < 0 {
				continue // the core's offer, not taken
			}
			if !slices.ContainsFunc(o.Formats, func(g format) bool {
				return sameFormat(g, w.Formats[j]) && (g.Codec == h264 || g.Fmtp == w.Formats[j].Fmtp)
			}) {
				return false
			}
		}
		fresh = fresh || o.Access.Ufrag != w.Access.Ufrag || o.Access.Pwd != w.Access.Pwd
	}
	return fresh
}

// restart has the gateway restart ICE and answers the browser with what was agreed before. The core hears nothing: its next
// CSeq from this side skips a number, which is allowed (RFC 3261 §12.2.2). The answer goes over a reliable
// connection once; if that is lost, so is the call. Its ACK ends here.
func (c *call) restart(x *exchange) {
	x.streams = slices.Clone(c.streams)
	for i := len(x.streams); i < len(c.media); i++ {
		x.streams = append(x.streams, iq.Stream{Media: c.media[i], Stopped: true})
	}
	for i, l := range x.offer.Lines {
		if n := x.offer.Index[i]; n >= 0 {
			x.streams[n].Access = l.Access
		}
	}
	c.do(func() {
		err := c.set(x)
		c.e.mu.Lock()
		defer c.e.mu.Unlock()
		var body []byte
		if err == nil && !c.ended {
			body, err = c.restartAnswer(x)
		}
		if c.ended || err != nil {
			c.gatewayFailed(x, err)
			return
		}
		c.streams = x.streams
		for i, l := range x.offer.Lines {
			if !l.Rejected {
				c.agreed.browser.Lines[i].Access = l.Access
			}
		}
		seq, _, _ := x.tx.Request.CSeq()
		c.ownSeq = seq
		c.e.stats.Restarts++
		c.e.log.Info("ICE restarts", "call", c.id, "pseudonym", c.alias)
		r := x.tx.Request.Response(200, "OK", siptx.Header{Name: "Contact", Value: "<" + c.core.contact + ">"}, allow,
			siptx.Header{Name: "Content-Type", Value: "application/sdp"})
		r.Body = body
		x.tx.Respond(r)
	})
}

// restartAnswer writes, from what was agreed, the answer that the far side would give.
func (c *call) restartAnswer(x *exchange) ([]byte, error) {
	far := c.agreed.core
	far.Index = nil
	far.Lines = slices.Clone(far.Lines)
	for i := range far.Lines {
		l := &far.Lines[i]
		l.Formats, l.Ext = slices.Clone(l.Formats), slices.Clone(l.Ext)
	}
	if err := match(&c.agreed.browser, &far); err != nil {
		return nil, err
	}
	if err := match(&x.offer, &far); err != nil {
		return nil, err
	}
	return writeBrowser(&far, &x.offer, x.local, c.browser.origin)
}
