package interop

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
)

// HSS is a home subscriber server with the few Cx answers (TS 29.228, TS 29.229; Diameter, RFC 6733)
// that an S-CSCF asks for in Trusted Node Authentication: it knows which private identity may register
// which public one.
type HSS struct {
	// Subscribers are public identities by private identity.
	Subscribers map[string][]string

	listener net.Listener
	done     sync.WaitGroup

	mu    sync.Mutex // guards the following fields
	conns map[net.Conn]bool
	asked []string // "SAR alice@ims.test sip:alice@ims.test"
	met   bool     // capabilities were exchanged
}

// Result codes (RFC 6733 §7.1, TS 29.229 §6.2).
const (
	success            = 2001
	commandUnsupported = 3001
	userUnknown        = 5001 // experimental, as is the next
	identitiesDiffer   = 5002
)

// AVP codes, and the vendor of those above 600.
const (
	avpUserName, avpHostIP, avpVendorApp, avpSession           = 1, 257, 260, 263
	avpHost, avpVendor, avpResult, avpProduct                  = 264, 266, 268, 269
	avpRealm, avpExperimental, avpExperimentalCode, avpAuthApp = 296, 297, 298, 258
	avpSupportedVendor, avpAuthState                           = 265, 277
	avpPublicIdentity, avpUserData                             = 601, 606
	vendor3GPP, applicationCx                                  = 10415, 16777216
)

// Commands.
const (
	capabilities, watchdog, disconnect     = 257, 280, 282
	serverAssignment, multimediaAuth       = 301, 303
	diameterHead, avpHead, avpHeadOfVendor = 20, 8, 12
)

// NewHSS listens on loopback, on a port of the kernel's choice.
func NewHSS(subscribers map[string][]string) (*HSS, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	h := &HSS{Subscribers: subscribers, listener: l, conns: map[net.Conn]bool{}}
	h.done.Go(h.accept)
	return h, nil
}

// Port that it listens on.
func (h *HSS) Port() int { return h.listener.Addr().(*net.TCPAddr).Port }

// Close ends it, and waits.
func (h *HSS) Close() {
	_ = h.listener.Close() // it ends accept
	h.mu.Lock()
	for c := range h.conns {
		_ = c.Close() // it ends serve
	}
	h.mu.Unlock()
	h.done.Wait()
}

// Connected says whether a peer has exchanged capabilities with it.
func (h *HSS) Connected() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.met
}

// Asked is what it was asked so far: "SAR" or "MAR", private and public identity.
func (h *HSS) Asked() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.asked)
}

func (h *HSS) accept() {
	for {
		c, err := h.listener.Accept()
		if err != nil {
			return
		}
		h.mu.Lock()
		h.conns[c] = true
		h.mu.Unlock()
		h.done.Go(func() {
			h.serve(c)
			_ = c.Close()
			h.mu.Lock()
			delete(h.conns, c)
			h.mu.Unlock()
		})
	}
}

func (h *HSS) serve(c net.Conn) {
	head := make([]byte, diameterHead)
	for {
		if _, err := io.ReadFull(c, head); err != nil {
			return
		}
		n := int(binary.BigEndian.Uint32(head) & 0xffffff)
		if n < diameterHead || n > 1<<16 {
			return
		}
		body := make([]byte, n-diameterHead)
		if _, err := io.ReadFull(c, body); err != nil {
			return
		}
		if head[4]&0x80 == 0 { // an answer
			continue
		}
		command := binary.BigEndian.Uint32(head[4:]) & 0xffffff
		answer := h.answer(command, attributes(body))
		m := slices.Concat(head, answer)
		binary.BigEndian.PutUint32(m, 1<<24|uint32(len(m)))
		m[4] = head[4] &^ 0x80
		if _, err := c.Write(m); err != nil {
			return
		}
	}
}

func (h *HSS) answer(command uint32, asked map[uint32]string) []byte {
	id := slices.Concat(avp(avpHost, 0, []byte("localhost")), avp(avpRealm, 0, []byte("ims.test")))
	cx := avp(avpVendorApp, 0, slices.Concat(number(avpVendor, vendor3GPP), number(avpAuthApp, applicationCx)))
	var b []byte
	if s := asked[avpSession]; s != "" {
		b = avp(avpSession, 0, []byte(s))
	}
	result := func(code uint32) {
		b = slices.Concat(b, cx, number(avpAuthState, 1), number(avpResult, code), id)
	}
	refused := func(code uint32) {
		b = slices.Concat(b, cx, number(avpAuthState, 1), avp(avpExperimental, 0, slices.Concat(number(avpVendor, vendor3GPP), number(avpExperimentalCode, code))), id)
	}
	impi, impu := asked[avpUserName], asked[avpPublicIdentity]
	switch command {
	case capabilities:
		h.mu.Lock()
		h.met = true
		h.mu.Unlock()
		b = slices.Concat(b, number(avpResult, success), id, avp(avpHostIP, 0, []byte{0, 1, 127, 0, 0, 1}), number(avpVendor, vendor3GPP),
			avp(avpProduct, 0, []byte("wicgate test HSS")), number(avpSupportedVendor, vendor3GPP), cx)
	case watchdog, disconnect:
		b = slices.Concat(b, number(avpResult, success), id)
	case serverAssignment: // TS 29.228 §6.1.2
		h.note("SAR", impi, impu)
		has, known := h.Subscribers[impi]
		switch {
		case !known && impi == "": // a de-registration by its S-CSCF names the public identity alone
			result(success)
		case !known:
			refused(userUnknown)
		case !slices.Contains(has, impu):
			refused(identitiesDiffer)
		default:
			result(success)
			b = append(b, avp(avpUserData, vendor3GPP, profile(impi, has))...)
		}
	case multimediaAuth: // nobody here has a password
		h.note("MAR", impi, impu)
		refused(userUnknown)
	default:
		result(commandUnsupported)
	}
	return b
}

func (h *HSS) note(what, impi, impu string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.asked = append(h.asked, strings.Join([]string{what, impi, impu}, " "))
}

// profile is the user profile of TS 29.228 annex B.
func profile(impi string, impus []string) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, `<?xml version="1.0" encoding="UTF-8"?><IMSSubscription><PrivateID>%s</PrivateID><ServiceProfile>`, impi)
	for _, u := range impus {
		fmt.Fprintf(&b, `<PublicIdentity><Identity>%s</Identity><Extension><IdentityType>0</IdentityType></Extension></PublicIdentity>`, u)
	}
	b.WriteString(`</ServiceProfile></IMSSubscription>`)
	return []byte(b.String())
}

// avp writes an attribute (RFC 6733 §4.1), mandatory where the flags say so.
func avp(code, vendor uint32, data []byte) []byte {
	head, flags := avpHead, uint32(0x40)
	if vendor != 0 {
		head, flags = avpHeadOfVendor, 0xc0
	}
	b := make([]byte, head, head+len(data)+3)
	binary.BigEndian.PutUint32(b, code)
	binary.BigEndian.PutUint32(b[4:], flags<<24|uint32(head+len(data)))
	if vendor != 0 {
		binary.BigEndian.PutUint32(b[8:], vendor)
	}
	b = append(b, data...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

func number(code, v uint32) []byte {
	return avp(code, 0, binary.BigEndian.AppendUint32(nil, v))
}

// attributes reads the outermost attributes, the first of each code.
func attributes(b []byte) map[uint32]string {
	m := map[uint32]string{}
	for len(b) >= avpHead {
		code, word := binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:])
		head, n := avpHead, int(word&0xffffff)
		if word>>31 != 0 {
			head = avpHeadOfVendor
		}
		if n < head || n > len(b) {
			return m
		}
		if _, seen := m[code]; !seen {
			m[code] = string(b[head:n])
		}
		b = b[min(len(b), (n+3)&^3):]
	}
	return m
}
