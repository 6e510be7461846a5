package imsagw

import (
	"net/netip"
	"time"

	"github.com/pion/rtcp"
	"github.com/pion/srtp/v3"
)

const (
	// maxPictures bounds the sources of video looked after, of one direction.
	maxPictures = 8
	// pictureGap without a packet is a pause: the sender was on hold, or its camera off.
	pictureGap = 2 * time.Second
	// pictureAsk is the least time between two of our requests to one source. Browsers make no more than three or four
	// new pictures a second, whoever asks.
	pictureAsk = time.Second
)

// pictures watches the video of one direction. What begins to pass after some of it was dropped, as the other side was not
// connected yet or was on hold, or after a pause, begins amid a picture: the receiver sees nothing before the next
// whole one. So the gateway asks for it (PLI, RFC 4585 §6.3.1) at once, without waiting for the receiver to notice.
// Its zero value is ready. It belongs to one goroutine.
type pictures struct {
	n       int
	sources [maxPictures]picture
}

type picture struct {
	ssrc   uint32
	missed bool // dropped since the last request
	last   time.Time
	asked  time.Time
}

// passes is told of each packet whether it is sent on, and says whether a new picture is to be asked for.
func (p *pictures) passes(ssrc uint32, sent bool, now time.Time) bool {
	var s *picture
	for i := range p.n {
		if p.sources[i].ssrc == ssrc {
			s = &p.sources[i]
		}
	}
	if s == nil {
		if p.n == maxPictures {
			return false
		}
		s = &p.sources[p.n]
		*s = picture{ssrc: ssrc, last: now}
		p.n++
	}
	if !sent || now.Sub(s.last) > pictureGap {
		s.missed = true
	}
	s.last = now
	if !sent || !s.missed || !s.asked.IsZero() && now.Sub(s.asked) < pictureAsk {
		return false
	}
	s.missed, s.asked = false, now
	return true
}

// asking is the access reader's end for requests of our own. It has the same master key as the core RTCP reader's, and no
// index in common, as its SSRC is its own.
type asking struct {
	ctx  *srtp.Context
	ssrc uint32
}

// request is a PLI behind an empty receiver report, as a compound packet must be (RFC 3550 §6.1).
func (a *asking) request(ssrc uint32) ([]byte, error) {
	return rtcp.Marshal([]rtcp.Packet{&rtcp.ReceiverReport{SSRC: a.ssrc}, &rtcp.PictureLossIndication{SenderSSRC: a.ssrc, MediaSSRC: ssrc}})
}

// askBrowser asks the browser for a new picture.
func (st *stream) askBrowser(c *keys, ssrc uint32) {
	to := st.selected.Load()
	b, err := c.ask.request(ssrc)
	if err != nil || to == nil {
		return
	}
	if b, err = c.ask.ctx.EncryptRTCP(nil, b, nil); err != nil {
		return
	}
	st.g.count.asked.Add(1)
	_, _ = st.send(b, *to) // counted there
}

// askCore asks the core's sender, be it a phone or another gateway's browser.
func (st *stream) askCore(c *keys, ssrc uint32) {
	core := st.core.Load()
	if core == nil || core.RTCP == (netip.AddrPort{}) {
		return
	}
	b, err := c.ask.request(ssrc)
	if err != nil {
		return
	}
	st.g.count.asked.Add(1)
	st.sendCore(st.rtcpConn, b, core.RTCP)
}
