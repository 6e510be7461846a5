//go:build !race

// Under the race detector this would be slow and tell nothing new: what runs at once is in Chromium.

package wwsf

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"
	"github.com/coder/websocket"
	"github.com/pion/logging"
	"github.com/pion/rtcp"
	"github.com/pion/turn/v5"
	"github.com/pion/webrtc/v4"
)

// The page itself, in a real Chromium, against a WAF, an edge, a TURN server and a gateway that this
// file plays: so each failure that a person can meet is made on purpose, and its words are read. The
// way through wicgate's own roles is test/browser's matter.

const (
	testToken = "test.sip.token"
	turnUser  = "o1.k.token"
	turnPass  = "turn-credential"
	turnRealm = "turn.ims.test"
)

// world is everything around the page.
type world struct {
	t      *testing.T
	origin string
	edge   *edge
	mu     sync.Mutex // guards the following fields
	// challenge of the code that was given out, by code.
	challenges map[string]string
	exchanges  int                 // TURN tokens given out
	turnURL    string              // what they point at
	answerISS  string              // "iss" of the redirect; "" as it should be
	refuse     string              // OAuth error of the token endpoint; "" none
	asked      map[string][]string // the forms of the token endpoint by grant
	life       int                 // of a SIP token, s
	ended      bool                // no session at the WAF: prompt=none is refused
	silent     int                 // requests with prompt=none
	portal     map[string]any      // what /config.json says besides
	turnLife   int                 // of a TURN token, s
	refreshes  int                 // tokens given for a refresh token
	noGuest    int                 // status with which guests are refused; 0 lets them in
	ahead      time.Duration       // of the servers' clock
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, challenges: map[string]string{}, asked: map[string][]string{}, life: 3600, turnLife: 3600, turnURL: startTURN(t)}
	mux := http.NewServeMux()
	srv := httptest.NewTLSServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		ahead := w.ahead
		w.mu.Unlock()
		rw.Header().Set("Date", time.Now().Add(ahead).UTC().Format(http.TimeFormat))
		mux.ServeHTTP(rw, r)
	}))
	t.Cleanup(srv.Close)
	w.origin = strings.Replace(srv.URL, "127.0.0.1", "localhost", 1)
	w.edge = &edge{t: t}
	t.Cleanup(w.edge.close)
	s := newServer(t, Config{
		WAF: w.origin, SIPURL: strings.Replace(w.origin, "https", "wss", 1) + "/sip", Domain: "ims.test",
		HTTP: &http.Client{Transport: wafFunc(func(r *http.Request) (*http.Response, error) {
			r.URL.Host = strings.TrimPrefix(srv.URL, "https://") // the certificate is for 127.0.0.1
			return srv.Client().Transport.RoundTrip(r)
		})},
	})
	mux.Handle("/", s.Handler())
	mux.HandleFunc("/config.json", func(rw http.ResponseWriter, r *http.Request) {
		rec := httptest.NewRecorder()
		s.Handler().ServeHTTP(rec, r)
		var c map[string]any
		if err := json.Unmarshal(rec.Body.Bytes(), &c); err != nil {
			t.Error(err)
		}
		w.with(func() { maps.Copy(c, w.portal) })
		rw.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(rw).Encode(c); err != nil {
			t.Error(err)
		}
	})
	mux.HandleFunc("POST /guest", w.guest)
	mux.HandleFunc("POST /oauth/revoke", func(_ http.ResponseWriter, r *http.Request) {
		if err := r.ParseForm(); err != nil {
			t.Error(err)
		}
		w.with(func() { w.asked["revoke"] = append(w.asked["revoke"], r.PostForm.Encode()) })
	})
	mux.Handle("/sip", w.edge)
	mux.HandleFunc(wellKnown, func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Content-Type", "application/json")
		fmt.Fprint(rw, strings.ReplaceAll(goodMetadata, testWAF, w.origin))
	})
	mux.HandleFunc("/oauth/authorize", w.authorize)
	mux.HandleFunc("/oauth/token", w.token)
	return w
}

func (w *world) authorize(rw http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	if q.Get("response_type") != "code" || q.Get("client_id") != "wic" || q.Get("redirect_uri") != w.origin+"/" || q.Get("code_challenge_method") != "S256" || len(q.Get("state")) < 20 {
		w.t.Errorf("authorization request: %v", q)
	}
	w.mu.Lock()
	code := fmt.Sprintf("code-%d", len(w.challenges))
	w.challenges[code] = q.Get("code_challenge")
	iss, ended := w.answerISS, w.ended
	if q.Get("prompt") == "none" {
		w.silent++
	}
	w.mu.Unlock()
	if iss == "" {
		iss = w.origin
	}
	if ended && q.Get("prompt") == "none" {
		http.Redirect(rw, r, q.Get("redirect_uri")+"?"+url.Values{"error": {"login_required"}, "state": {q.Get("state")}, "iss": {iss}}.Encode(), http.StatusSeeOther)
		return
	}
	http.Redirect(rw, r, q.Get("redirect_uri")+"?"+url.Values{"code": {code}, "state": {q.Get("state")}, "iss": {iss}}.Encode(), http.StatusSeeOther)
}

func (w *world) token(rw http.ResponseWriter, r *http.Request) {
	rw.Header().Set("Content-Type", "application/json")
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := r.ParseForm(); err != nil {
		w.t.Error(err)
	}
	w.asked[r.PostForm.Get("grant_type")] = append(w.asked[r.PostForm.Get("grant_type")], r.PostForm.Encode())
	if w.refuse != "" {
		rw.WriteHeader(http.StatusBadRequest)
		fmt.Fprintf(rw, `{"error":%q}`, w.refuse)
		return
	}
	var answer any
	switch r.PostForm.Get("grant_type") {
	case "authorization_code":
		sum := sha256.Sum256([]byte(r.PostForm.Get("code_verifier")))
		if got := base64.RawURLEncoding.EncodeToString(sum[:]); got != w.challenges[r.PostForm.Get("code")] || got == "" {
			w.t.Errorf("code %q with a verifier for %q", r.PostForm.Get("code"), got)
		}
		answer = map[string]any{
			"access_token": testToken, "token_type": "Bearer", "expires_in": w.life, "scope": "sip", "name": "Alice", "refresh_token": "refresh-0",
			"ims": map[string]any{"impi": "alice@ims.test", "impu": []string{"sip:alice@ims.test"}, "domain": "ims.test"},
		}
	case "refresh_token":
		if want := fmt.Sprintf("refresh-%d", w.refreshes); r.PostForm.Get("refresh_token") != want || r.PostForm.Get("client_id") != "wic" {
			w.t.Errorf("refresh: %v, want %s", r.PostForm, want)
		}
		w.refreshes++
		answer = map[string]any{
			"access_token": fmt.Sprintf("%s-%d", testToken, w.refreshes), "token_type": "Bearer", "expires_in": w.life, "scope": "sip", "name": "Alice",
			"ims": map[string]any{"impi": "alice@ims.test", "impu": []string{"sip:alice@ims.test"}, "domain": "ims.test"}, "refresh_token": fmt.Sprintf("refresh-%d", w.refreshes),
		}
	case "urn:ietf:params:oauth:grant-type:token-exchange":
		if !strings.HasPrefix(r.PostForm.Get("subject_token"), testToken) || r.PostForm.Get("subject_token_type") != "urn:ietf:params:oauth:token-type:access_token" {
			w.t.Errorf("token exchange: %v", r.PostForm)
		}
		w.exchanges++
		answer = map[string]any{
			"access_token": "dA==", "token_type": "pop", "expires_in": w.turnLife, "kid": "k",
			"ice_servers": []any{map[string]any{"urls": []string{w.turnURL}, "username": turnUser, "credential": turnPass}},
		}
	default:
		w.t.Errorf("grant type %q", r.PostForm.Get("grant_type"))
	}
	if err := json.NewEncoder(rw).Encode(answer); err != nil {
		w.t.Error(err)
	}
}

// guest is the portal's door.
func (w *world) guest(rw http.ResponseWriter, _ *http.Request) {
	w.mu.Lock()
	defer w.mu.Unlock()
	rw.Header().Set("Content-Type", "application/json")
	if w.noGuest != 0 {
		rw.WriteHeader(w.noGuest)
		fmt.Fprint(rw, `{"error":"temporarily_unavailable"}`)
		return
	}
	fmt.Fprintf(rw, `{"access_token":%q,"token_type":"Bearer","expires_in":1800,"scope":"sip","name":"Guest 7","refresh_token":"refresh-0","ims":{"impi":"guest-07@ims.test","impu":["sip:guest-07@ims.test"],"domain":"ims.test"}}`, testToken)
}

// with changes what the world answers, for the rest of the test.
func (w *world) with(change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change()
}

// startTURN serves a relay; other is a password in place of the one that pages are given.
func startTURN(t *testing.T, other ...string) string {
	t.Helper()
	pass := turnPass
	if len(other) > 0 {
		pass = other[0]
	}
	c, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s, err := turn.NewServer(turn.ServerConfig{
		Realm: turnRealm,
		AuthHandler: func(ra *turn.RequestAttributes) (string, []byte, bool) {
			return ra.Username, turn.GenerateAuthKey(ra.Username, turnRealm, pass), strings.HasSuffix(ra.Username, turnUser)
		},
		PacketConnConfigs: []turn.PacketConnConfig{{
			PacketConn:            c,
			RelayAddressGenerator: &turn.RelayAddressGeneratorStatic{RelayAddress: net.IPv4(127, 0, 0, 1), Address: "127.0.0.1"},
			PermissionHandler:     func(net.Addr, net.IP) bool { return true },
		}},
		LoggerFactory: silent(),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() }) // the test is over
	return "turn:" + c.LocalAddr().String() + "?transport=udp"
}

func silent() logging.LoggerFactory {
	f := logging.NewDefaultLoggerFactory()
	f.DefaultLogLevel = logging.LogLevelDisabled
	return f
}

// gateway is one call's media: it sends back what it hears and sees. As in IMS, sound and picture are not
// multiplexed (TS 23.228 U.1): each media line has a peer connection, and so a transport, of its own.
type gateway struct{ lines []*webrtc.PeerConnection }

func newGateway(t *testing.T, video bool) *gateway {
	t.Helper()
	g := &gateway{[]*webrtc.PeerConnection{newLine(t, webrtc.MimeTypeOpus, 48000, 2)}}
	if video {
		g.lines = append(g.lines, newLine(t, webrtc.MimeTypeVP8, 90000, 0))
	}
	return g
}

func newLine(t *testing.T, codec string, rate uint32, channels uint16) *webrtc.PeerConnection {
	t.Helper()
	var se webrtc.SettingEngine
	se.LoggerFactory = silent()
	se.SetIncludeLoopbackCandidate(true)
	se.SetInterfaceFilter(func(name string) bool { return name == "lo" })
	se.SetNetworkTypes([]webrtc.NetworkType{webrtc.NetworkTypeUDP4})
	if err := se.SetAnsweringDTLSRole(webrtc.DTLSRoleServer); err != nil {
		t.Fatal(err)
	}
	pc, err := webrtc.NewAPI(webrtc.WithSettingEngine(se)).NewPeerConnection(webrtc.Configuration{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = pc.Close() }) // the test is over
	echo, err := webrtc.NewTrackLocalStaticRTP(webrtc.RTPCodecCapability{MimeType: codec, ClockRate: rate, Channels: channels}, strings.ReplaceAll(codec, "/", "-"), "echo")
	if err != nil {
		t.Fatal(err)
	}
	sender, err := pc.AddTrack(echo)
	if err != nil {
		t.Fatal(err)
	}
	var source atomic.Uint32 // SSRC of the page's picture
	keyFrame := func() {
		_ = pc.WriteRTCP([]rtcp.Packet{&rtcp.PictureLossIndication{MediaSSRC: source.Load()}}) // the call may be over
	}
	go func() { // until pc is closed
		for {
			packets, _, err := sender.ReadRTCP()
			if err != nil {
				return
			}
			if slices.ContainsFunc(packets, func(p rtcp.Packet) bool { _, ok := p.(*rtcp.PictureLossIndication); return ok }) {
				keyFrame()
			}
		}
	}()
	pc.OnTrack(func(in *webrtc.TrackRemote, _ *webrtc.RTPReceiver) {
		if in.Kind() == webrtc.RTPCodecTypeVideo {
			source.Store(uint32(in.SSRC()))
			keyFrame() // to begin with
		}
		for {
			p, _, err := in.ReadRTP()
			if err != nil || echo.WriteRTP(p) != nil {
				return
			}
		}
	})
	return pc
}

// split makes a description one for each media line.
func split(sdp string) (lines []string) {
	parts := strings.Split(sdp, "\r\nm=")
	for _, m := range parts[1:] {
		lines = append(lines, strings.TrimRight(group.ReplaceAllString(parts[0], "")+"\r\nm="+m, "\r\n")+"\r\n")
	}
	return lines
}

// alone is a line's description as pion wants it: in a group of its own.
func alone(line string) string {
	return strings.Replace(line, "\r\nm=", "\r\na=group:BUNDLE "+strings.TrimPrefix(mid.FindString(line), "a=mid:")+"\r\nm=", 1)
}

var (
	group       = regexp.MustCompile(`\r\na=group:[^\r]*`)
	fingerprint = regexp.MustCompile(`a=fingerprint:[^\r]*\r\n`)
	mid         = regexp.MustCompile(`a=mid:\d+`)
)

// local sets what make makes as each line's local description, and returns them as one with the edge's attribute.
func (g *gateway) local(t *testing.T, make func(i int, pc *webrtc.PeerConnection) (webrtc.SessionDescription, error)) string {
	var all strings.Builder
	for i, pc := range g.lines {
		d, err := make(i, pc)
		if err != nil {
			t.Error(err)
			return ""
		}
		done := webrtc.GatheringCompletePromise(pc)
		if err := pc.SetLocalDescription(d); err != nil {
			t.Error(err)
			return ""
		}
		<-done
		one := split(pc.LocalDescription().SDP)[0]
		head, media, _ := strings.Cut(one, "\r\nm=")
		if i == 0 {
			all.WriteString(fingerprint.ReplaceAllString(head+"\r\n", ""))
		}
		all.WriteString("m=" + mid.ReplaceAllString(media, fmt.Sprintf("a=mid:%d", i)) + fingerprint.FindString(one))
	}
	return all.String() + "a=wicgate-core:RTP/AVP\r\n"
}

func (g *gateway) answer(t *testing.T, offer string) string {
	offers := split(offer)
	return g.local(t, func(i int, pc *webrtc.PeerConnection) (webrtc.SessionDescription, error) {
		if err := pc.SetRemoteDescription(webrtc.SessionDescription{Type: webrtc.SDPTypeOffer, SDP: alone(offers[i])}); err != nil {
			return webrtc.SessionDescription{}, err
		}
		return pc.CreateAnswer(nil)
	})
}

func (g *gateway) offer(t *testing.T) string {
	return g.local(t, func(_ int, pc *webrtc.PeerConnection) (webrtc.SessionDescription, error) { return pc.CreateOffer(nil) })
}

// answered takes the page's answer to offer.
func (g *gateway) answered(t *testing.T, answer string) {
	for i, a := range split(answer) {
		if strings.HasPrefix(a[strings.Index(a, "m="):], "m=video 0 ") {
			continue
		}
		if err := g.lines[i].SetRemoteDescription(webrtc.SessionDescription{Type: webrtc.SDPTypeAnswer, SDP: alone(mid.ReplaceAllString(a, "a=mid:0"))}); err != nil {
			t.Error(err)
		}
	}
}

// sipMessage is as much of SIP as a scripted edge needs.
type sipMessage struct {
	start, body string
	headers     [][2]string
}

func parseSIP(s string) (m sipMessage) {
	head, body, _ := strings.Cut(s, "\r\n\r\n")
	lines := strings.Split(head, "\r\n")
	m.start, m.body = lines[0], body
	for _, l := range lines[1:] {
		name, value, _ := strings.Cut(l, ":")
		m.headers = append(m.headers, [2]string{name, strings.TrimSpace(value)})
	}
	return m
}

func (m sipMessage) get(name string) string {
	for _, h := range m.headers {
		if strings.EqualFold(h[0], name) {
			return h[1]
		}
	}
	return ""
}

func (m sipMessage) method() string { return strings.Fields(m.start)[0] }

// reply makes a response to m with more header lines.
func (m sipMessage) reply(status, body string, more ...string) string {
	var b strings.Builder
	b.WriteString("SIP/2.0 " + status + "\r\n")
	for _, h := range m.headers {
		switch strings.ToLower(h[0]) {
		case "via", "from", "call-id", "cseq":
			b.WriteString(h[0] + ": " + h[1] + "\r\n")
		case "to":
			if !strings.Contains(h[1], "tag=") && !strings.HasPrefix(status, "100") {
				h[1] += ";tag=edge"
			}
			b.WriteString("To: " + h[1] + "\r\n")
		}
	}
	return finishSIP(&b, body, more)
}

func finishSIP(b *strings.Builder, body string, more []string) string {
	for _, h := range more {
		b.WriteString(h + "\r\n")
	}
	if body != "" {
		b.WriteString("Content-Type: application/sdp\r\n")
	}
	fmt.Fprintf(b, "Content-Length: %d\r\n\r\n%s", len(body), body)
	return b.String()
}

// edge is a scripted eP-CSCF for one page. Whom is called decides what happens.
type edge struct {
	t          *testing.T
	wg         sync.WaitGroup
	credential func() string // for a REGISTER that asks; nil gives none

	mu       sync.Mutex // guards the following fields
	conn     *websocket.Conn
	contact  string
	register string       // status line for REGISTER; "" is 200 OK
	cuts     int          // REGISTERs at which the WebSocket is cut instead
	seen     []sipMessage // from the page
	pending  sipMessage   // the INVITE that rings
	gw       *gateway     // of the call under way
}

func (e *edge) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{"sip"}})
	if err != nil {
		return
	}
	c.SetReadLimit(64 << 10)
	e.wg.Add(1)
	defer e.wg.Done()
	e.mu.Lock()
	e.conn = c
	e.mu.Unlock()
	for {
		_, b, err := c.Read(r.Context())
		if err != nil {
			return
		}
		if m := parseSIP(string(b)); m.start != "" {
			e.mu.Lock()
			e.seen = append(e.seen, m)
			e.mu.Unlock()
			e.handle(m)
		}
	}
}

func (e *edge) close() {
	e.drop()
	e.wg.Wait()
}

// drop cuts the WebSocket.
func (e *edge) drop() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.conn != nil {
		_ = e.conn.CloseNow() // gone is what is wanted
	}
}

// end closes the WebSocket as the edge does when a log-in is over.
func (e *edge) end(reason string) {
	e.mu.Lock()
	c := e.conn
	e.mu.Unlock()
	_ = c.Close(websocket.StatusPolicyViolation, reason) // the page may be gone
}

func (e *edge) send(s string) {
	e.mu.Lock()
	c := e.conn
	e.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := c.Write(ctx, websocket.MessageText, []byte(s)); err != nil {
		e.t.Logf("edge: %v", err)
	}
}

func (e *edge) handle(m sipMessage) {
	const contact = "Contact: <sip:edge.invalid;transport=ws>"
	if m.method() != "ACK" && m.method() != "CANCEL" && !strings.HasPrefix(m.start, "SIP/2.0") && !strings.HasPrefix(m.get("Authorization"), "Bearer "+testToken) {
		e.t.Errorf("%s without the token: %q", m.start, m.get("Authorization"))
	}
	switch m.method() {
	case "REGISTER":
		e.mu.Lock()
		if e.cuts > 0 {
			e.cuts--
			e.mu.Unlock()
			e.drop()
			return
		}
		status := e.register
		uri, _, _ := strings.Cut(strings.TrimPrefix(m.get("Contact"), "<"), ">")
		e.contact = uri
		e.mu.Unlock()
		if status == "" {
			status = "200 OK"
		}
		more := []string{"Contact: " + m.get("Contact")}
		if m.get("TURN-Credential") == "request" && e.credential != nil {
			more = append(more, "TURN-Credential: "+e.credential())
		}
		e.send(m.reply(status, "", more...))
	case "INVITE":
		user, _, _ := strings.Cut(strings.TrimPrefix(strings.Fields(m.start)[1], "sip:"), "@")
		status := map[string]string{"guestless": "403 Destination Not Allowed For Guests", "busy": "486 Busy Here", "nobody": "404 Not Found", "away": "480 Temporarily Unavailable", "no": "603 Decline", "full": "503 Service Unavailable"}[user]
		e.send(m.reply("100 Trying", ""))
		if status != "" {
			e.send(m.reply(status, ""))
			return
		}
		e.send(m.reply("180 Ringing", "", contact))
		if user == "slow" {
			e.mu.Lock()
			e.pending = m
			e.mu.Unlock()
			return
		}
		if strings.Contains(m.get("To"), "tag=") { // an ICE restart
			e.mu.Lock()
			gw := e.gw
			e.mu.Unlock()
			e.send(m.reply("200 OK", gw.answer(e.t, m.body), contact))
			return
		}
		offer, refused := m.body, ""
		if user == "soundonly" {
			if before, _, ok := strings.Cut(offer, "m=video"); ok {
				offer, refused = before, "m=video 0 UDP/TLS/RTP/SAVPF 96\r\nc=IN IP4 0.0.0.0\r\na=mid:1\r\na=inactive\r\n"
			}
		}
		gw := newGateway(e.t, strings.Contains(offer, "m=video"))
		e.mu.Lock()
		e.gw = gw
		e.mu.Unlock()
		e.send(m.reply("200 OK", gw.answer(e.t, offer)+refused, contact))
	case "CANCEL":
		e.send(m.reply("200 OK", ""))
		e.mu.Lock()
		p := e.pending
		e.mu.Unlock()
		e.send(p.reply("487 Request Terminated", ""))
	case "BYE":
		e.send(m.reply("200 OK", ""))
	case "SIP/2.0":
		if strings.HasPrefix(m.start, "SIP/2.0 200") && strings.HasSuffix(m.get("CSeq"), "INVITE") {
			e.mu.Lock()
			gw := e.gw
			e.mu.Unlock()
			gw.answered(e.t, m.body)
			e.send(e.request("ACK", 1))
		}
	}
}

// invite rings the page, with a picture or without.
func (e *edge) invite(from string, video bool) {
	e.t.Helper()
	gw := newGateway(e.t, video)
	offer := gw.offer(e.t)
	e.mu.Lock()
	e.gw = gw
	e.pending = sipMessage{headers: [][2]string{{"From", from + ";tag=caller"}, {"To", "<sip:alice@ims.test>"}, {"Call-ID", fmt.Sprintf("call-%d", len(e.seen))}}}
	e.mu.Unlock()
	e.send(e.request("INVITE", 1, offer))
}

// request is one of the dialog that invite began.
func (e *edge) request(method string, cseq int, more ...string) string {
	e.mu.Lock()
	defer e.mu.Unlock()
	var b strings.Builder
	to := e.pending.get("To")
	for _, m := range slices.Backward(e.seen) {
		if m.get("Call-ID") == e.pending.get("Call-ID") && method != "INVITE" {
			to = m.get("To")
			break
		}
	}
	fmt.Fprintf(&b, "%s %s SIP/2.0\r\nVia: SIP/2.0/WSS edge.invalid;branch=z9hG4bK%s%d%s\r\nMax-Forwards: 70\r\nFrom: %s\r\nTo: %s\r\nCall-ID: %s\r\nCSeq: %d %s\r\nContact: <sip:edge.invalid;transport=ws>\r\n",
		method, e.contact, method, cseq, e.pending.get("Call-ID"), e.pending.get("From"), to, e.pending.get("Call-ID"), cseq, method)
	body := ""
	if method == "INVITE" {
		body, more = more[0], more[1:]
	}
	return finishSIP(&b, body, more)
}

// last is the newest message from the page that begins so.
func (e *edge) last(start string) sipMessage {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, m := range slices.Backward(e.seen) {
		if strings.HasPrefix(m.start, start) {
			return m
		}
	}
	return sipMessage{}
}

// tab is a page in Chromium.
type tab struct {
	t   *testing.T
	ctx context.Context
}

func startChromium(t *testing.T) context.Context {
	t.Helper()
	path, err := exec.LookPath("chromium")
	if err != nil {
		t.Fatal("chromium is missing: apt-get install chromium, or run make test, which does it")
	}
	home := t.TempDir()
	opts := []chromedp.ExecAllocatorOption{
		chromedp.ExecPath(path), chromedp.UserDataDir(filepath.Join(home, "profile")), chromedp.Env("TMPDIR="+home, "HOME="+home),
		chromedp.Flag("headless", "new"), chromedp.Flag("no-sandbox", true), chromedp.Flag("disable-gpu", true), chromedp.Flag("disable-quic", true),
		chromedp.Flag("use-fake-device-for-media-stream", true), chromedp.Flag("use-fake-ui-for-media-stream", true),
		chromedp.Flag("disable-background-networking", true), chromedp.Flag("disable-component-update", true), chromedp.Flag("disable-sync", true),
		chromedp.Flag("no-first-run", true), chromedp.Flag("autoplay-policy", "no-user-gesture-required"),
		chromedp.Flag("allow-loopback-in-peer-connection", true), chromedp.Flag("disable-features", "WebRtcHideLocalIpsWithMdns"),
		chromedp.Flag("host-resolver-rules", "MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost"),
		chromedp.Flag("ignore-certificate-errors", true), // certificates are test/browser's matter
		chromedp.Flag("hide-scrollbars", true),
		chromedp.Flag("force-prefers-reduced-motion", true), // without a GPU, motion is paid for by the processor
		// Many tabs are open at once and one is in front: the others must not be slowed down.
		chromedp.Flag("disable-background-timer-throttling", true), chromedp.Flag("disable-backgrounding-occluded-windows", true),
		chromedp.Flag("disable-renderer-backgrounding", true),
		chromedp.ModifyCmdFunc(func(c *exec.Cmd) { c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }),
	}
	actx, stop := chromedp.NewExecAllocator(context.Background(), opts...)
	t.Cleanup(stop)
	ctx, stopBrowser := chromedp.NewContext(actx)
	t.Cleanup(stopBrowser)
	if err := chromedp.Do(ctx, chromedp.Navigate("about:blank")); err != nil {
		t.Fatalf("start chromium: %v", err)
	}
	return ctx
}

// newTab opens a tab with its own storage, in which script runs before each page's own.
func newTab(t *testing.T, browser context.Context, script string) *tab {
	t.Helper()
	ctx, stop := chromedp.NewContext(browser, chromedp.WithNewBrowserContext())
	p := &tab{t: t, ctx: ctx}
	t.Cleanup(stop)
	// Not by do: the tab would end with the deadline of the first call.
	if err := chromedp.Do(ctx, chromedp.Navigate("about:blank")); err != nil {
		t.Fatal(err)
	}
	const watch = `window.violations = []; document.addEventListener("securitypolicyviolation", e => violations.push(e.violatedDirective + " " + e.blockedURI));
		window.addEventListener("error", e => violations.push(String(e.message))); window.addEventListener("unhandledrejection", e => violations.push(String(e.reason)));`
	if _, err := chromedp.Call(ctx, page.AddScriptToEvaluateOnNewDocument, page.AddScriptToEvaluateOnNewDocumentParams{Source: watch + script}); err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *tab) do(actions ...chromedp.Action[chromedp.Void]) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, 20*time.Second)
	defer cancel()
	if err := chromedp.Do(ctx, actions...); err != nil {
		p.t.Fatalf("%v (page: %s)", err, p.text())
	}
}

func (p *tab) eval(js string, v any) error {
	ctx, cancel := context.WithTimeout(p.ctx, 20*time.Second)
	defer cancel()
	b, err := chromedp.Run(ctx, chromedp.Evaluate[[]byte](js, chromedp.EvalAwaitPromise))
	if err != nil {
		return fmt.Errorf("%.80s: %w", js, err)
	}
	return json.Unmarshal(b, v)
}

func (p *tab) str(js string) string {
	p.t.Helper()
	var s string
	if err := p.eval("(async () => String("+js+"))()", &s); err != nil {
		p.t.Fatal(err)
	}
	return s
}

func (p *tab) wait(condition string) {
	p.t.Helper()
	var ok bool
	var err error
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if err = p.eval("(async () => !!(await ("+condition+")))()", &ok); err == nil && ok {
			return
		}
	}
	p.t.Fatalf("not within 30 s: %s (%v; page: %s)", condition, err, p.text())
}

func (p *tab) text() string {
	var s string
	if err := p.eval(`location.href + " | " + JSON.stringify(document.body.dataset) + " | " + document.body.innerText + " | " + JSON.stringify(window.violations)`, &s); err != nil {
		return err.Error()
	}
	return strings.Join(strings.Fields(s), " ")
}

func (p *tab) state(state string) {
	p.t.Helper()
	p.wait(fmt.Sprintf(`document.body.dataset.call === %q`, state))
}

// error waits for words in #error.
func (p *tab) error(want string) {
	p.t.Helper()
	p.wait(fmt.Sprintf(`document.querySelector("#error").innerText.includes(%q)`, want))
}

func (p *tab) dial(callee string) {
	p.t.Helper()
	p.wait(`!document.querySelector("#dial").hidden`)
	p.do(chromedp.Click("#callee"), chromedp.Evaluate[chromedp.Void](`document.querySelector("#callee").select()`), chromedp.SendKeys("#callee", callee), chromedp.Click("#call"))
}

func (p *tab) logIn(w *world) {
	p.t.Helper()
	p.do(chromedp.Navigate(w.origin), chromedp.WaitVisible("#login"), chromedp.Click("#login"))
	p.wait(`document.body.dataset.registration === "registered"`)
}

// picture saves what the page looks like, in light and dark, on a phone and on a desk, where the
// environment variable WICGATE_PICTURES names a folder.
func (p *tab) picture(name string) {
	p.t.Helper()
	dir := os.Getenv("WICGATE_PICTURES")
	if dir == "" {
		return
	}
	for _, scheme := range []string{"light", "dark"} {
		for _, size := range []struct {
			name string
			w, h int64
		}{{"phone", 390, 844}, {"small", 320, 640}, {"desk", 1280, 800}} {
			if _, err := chromedp.Call(p.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}}); err != nil {
				p.t.Fatal(err)
			}
			p.do(chromedp.EmulateViewport(size.w, size.h))
			time.Sleep(300 * time.Millisecond) // transitions
			b, err := chromedp.Run(p.ctx, chromedp.CaptureScreenshot())
			if err != nil {
				p.t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, strings.Join([]string{name, size.name, scheme}, "-")+".png"), b, 0o644); err != nil {
				p.t.Fatal(err)
			}
		}
	}
	p.do(chromedp.EmulateViewport(1280, 800))
}

func TestPage(t *testing.T) {
	browser := startChromium(t)

	t.Run("log in and register", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		p := newTab(t, browser, "")
		p.do(chromedp.Navigate(w.origin), chromedp.WaitVisible("#login"))
		p.picture("landing")
		p.logIn(w)
		if got := p.str("location.href"); got != w.origin+"/" {
			t.Errorf("the address bar still holds %s", got)
		}
		if got := p.str("sessionStorage.length + localStorage.length + document.cookie.length"); got != "0" {
			t.Errorf("the browser stores %s things", got)
		}
		if got := p.str("JSON.stringify(Object.keys(wicgate).sort())"); got != `["credentials","firstAudio","firstVideo","pc","renew","restarts","stats"]` {
			t.Errorf("window.wicgate holds %s", got)
		}
		if got := p.str(`document.querySelector("#registration").innerText`); got != "Registered as Alice" {
			t.Errorf("registration reads %q", got)
		}
		m := w.edge.last("REGISTER")
		if !strings.Contains(m.get("Contact"), "reg-id=1") || m.get("From") == "" || !strings.Contains(m.start, "sip:ims.test") {
			t.Errorf("REGISTER: %+v", m)
		}
		p.picture("idle")
		p.clean()
	})

	t.Run("refusals in words", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		p := newTab(t, browser, "")
		p.logIn(w)
		for _, c := range [][2]string{
			{"", "Say whom to call"},
			{"bob smith", "cannot hold spaces"},
			{"alice", "your own address"},
			{"busy", "busy is busy in another call."},
			{"nobody", "nobody is not known to the network."},
			{"away", "away is not to be reached"},
			{"no", "no declined the call."},
			{"full", "The gateway takes no calls at the moment."},
		} {
			p.dial(c[0])
			p.error(c[1])
			p.wait(`["idle", "ended"].includes(document.body.dataset.call)`)
		}
		p.picture("error")
		if got := p.str(`document.activeElement.id`); got != "callee" && got != "call" {
			t.Errorf("after a refusal the focus is on %q", got)
		}

		p.dial("slow")
		p.state("ringing")
		if got := p.str(`document.querySelector("#error").innerText`); got != "" {
			t.Errorf("the old error stays: %q", got)
		}
		p.picture("ringing")
		p.do(chromedp.Click("#hangup"))
		p.state("ended")
		if got := p.str(`document.querySelector("#outcome").innerText`); got != "You hung up before it was answered." {
			t.Errorf("outcome reads %q", got)
		}
		w.edge.until("CANCEL")
		p.clean()
	})

	t.Run("a call through the relay", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		p := newTab(t, browser, "")
		p.logIn(w)
		p.dial("bob")
		p.state("active")
		p.wait("wicgate.firstAudio() > 0")
		invite := w.edge.last("INVITE")
		if n := strings.Count(invite.body, "a=candidate:"); n != 1 || !strings.Contains(invite.body, " typ relay ") {
			t.Errorf("the offer has %d candidates, want the first relay candidate alone:\n%s", n, invite.body)
		}
		if strings.Contains(invite.body, "m=video") {
			t.Error("the offer has video")
		}
		var way struct {
			Local, RelayProtocol, SRTP, DTLS, DTLSVersion, Core string
			Energy, PacketsIn, PacketsOut                       float64
		}
		p.wait(`(await wicgate.stats()).energy > 0.001`)
		if err := p.eval("wicgate.stats()", &way); err != nil {
			t.Fatal(err)
		}
		if way.Local != "relay" || way.RelayProtocol != "udp" || !strings.HasSuffix(way.SRTP, "AEAD_AES_256_GCM") || way.Core != "RTP/AVP" || way.PacketsIn == 0 || way.PacketsOut == 0 {
			t.Errorf("the way: %+v", way)
		}
		p.wait(`document.querySelector("#path").dataset.in === "on" && document.querySelector("#path").dataset.out === "on"`)
		if got := p.str(`[...document.querySelectorAll(".hop")].map(h => h.dataset.protection + ": " + h.querySelector(".what").innerText.replace(/\s+/g, " ").replaceAll("\u2011", "-")).join(" | ")`); got !=
			"sealed: Encrypted DTLS-SRTP, AES-256-GCM, over UDP | sealed: Encrypted the relay cannot open it | open: Not encrypted RTP, inside the operator’s network" {
			t.Errorf("the picture reads %s", got)
		}
		if got := p.str(`document.querySelector("#path-summary").innerText`); !strings.Contains(got, "is encrypted") || !strings.Contains(got, "without encryption inside the operator") {
			t.Errorf("the summary reads %q", got)
		}
		p.picture("active")
		if os.Getenv("WICGATE_PICTURES") != "" {
			p.do(chromedp.Click("#path summary"))
			p.picture("details")
		}

		p.do(chromedp.Click("#mute"))
		p.wait(`document.querySelector("#mute").ariaPressed === "true" && !wicgate.pc().getSenders()[0].track.enabled`)
		p.do(chromedp.Click("#mute"))
		p.wait(`document.querySelector("#mute").ariaPressed === "false" && wicgate.pc().getSenders()[0].track.enabled`)

		p.do(chromedp.Evaluate[chromedp.Void](`window.track = wicgate.pc().getSenders()[0].track`), chromedp.Click("#hangup"))
		p.state("ended")
		w.edge.until("BYE")
		p.wait(`track.readyState === "ended" && wicgate.pc() === null && wicgate.firstAudio() > 0`)
		p.dial("bob")
		p.state("active")
		p.do(chromedp.Click("#hangup"))
		p.state("ended")
		w.with(func() {
			if w.exchanges != 2 {
				t.Errorf("two calls took %d TURN tokens, want a fresh one each", w.exchanges)
			}
		})
		p.clean()
	})

	t.Run("being called", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		p := newTab(t, browser, "")
		p.logIn(w)

		w.edge.invite(`"Carol" <sip:carol@ims.test>`, false)
		p.state("incoming")
		if got := p.str(`document.activeElement.id + "|" + document.title + "|" + document.querySelector("#incoming-address").innerText`); got != "incoming|Carol is calling|sip:carol@ims.test" {
			t.Errorf("focus, title and address: %s", got)
		}
		p.picture("incoming")
		p.do(chromedp.Click("#answer"))
		p.state("active")
		p.wait("wicgate.firstAudio() > 0")
		w.edge.send(strings.NewReplacer("Call-ID: ", "Call-ID: other-", "z9hG4bKINVITE", "z9hG4bKOTHER").Replace(w.edge.request("INVITE", 1, "v=0\r\n")))
		w.edge.until("SIP/2.0 486")
		w.edge.send(w.edge.request("BYE", 2))
		p.state("ended")
		p.wait(`document.querySelector("#outcome").innerText.startsWith("Carol hung up.")`)

		w.edge.invite(`"Carol" <sip:carol@ims.test>`, false)
		p.state("incoming")
		p.do(chromedp.Click("#decline"))
		w.edge.until("SIP/2.0 603")
		p.state("ended")
		w.edge.send(w.edge.request("ACK", 1))

		w.edge.invite("<sip:carol@ims.test>", false)
		p.state("incoming")
		w.edge.send(strings.Replace(w.edge.request("CANCEL", 1), "z9hG4bKCANCEL", "z9hG4bKINVITE", 1))
		p.state("ended")
		p.wait(`document.querySelector("#outcome").innerText === "carol gave up before you answered."`)

		w.edge.invite(`"Carol" <sip:carol@ims.test>`, false)
		p.state("incoming")
		p.do(chromedp.Click("#answer"))
		p.state("active")
		w.edge.send(w.edge.request("BYE", 2, `Reason: SIP;cause=408;text="Media Lost"`))
		p.error("The sound broke off")
		p.clean()
	})

	t.Run("no relay", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		p := newTab(t, browser, "")
		p.logIn(w)
		hole, err := net.ListenPacket("udp4", "127.0.0.1:0") // takes everything, answers nothing
		if err != nil {
			t.Fatal(err)
		}
		defer hole.Close() //nolint:errcheck // the test is over
		good := w.turnURL
		w.with(func() { w.turnURL = "turn:" + hole.LocalAddr().String() + "?transport=udp" })
		p.dial("bob")
		begun := time.Now()
		p.error("The relay that carries the sound is not to be reached")
		if took := time.Since(begun); took < 4*time.Second || took > 15*time.Second {
			t.Errorf("the words came after %v, want 5 s", took)
		}
		if m := w.edge.last("INVITE"); m.start != "" {
			t.Error("an offer without any candidate left")
		}
		w.with(func() { w.turnURL = good + "x" }) // not a URL that RTCPeerConnection takes
		p.dial("bob")
		p.error("cannot be called from here")
		w.with(func() { w.turnURL = good; w.refuse = "invalid_grant" })
		p.dial("bob")
		p.error("Your log-in has run out.")
		p.clean()
	})

	t.Run("no microphone", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		p := newTab(t, browser, `navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException("", window.why || "NotAllowedError"));`)
		p.logIn(w)
		p.dial("bob")
		p.error("This page may not use the microphone.")
		p.do(chromedp.Evaluate[chromedp.Void](`window.why = "NotFoundError"`))
		p.dial("bob")
		p.error("No microphone was found.")
		w.edge.invite(`"Carol" <sip:carol@ims.test>`, false)
		p.state("incoming")
		p.do(chromedp.Click("#answer"))
		p.error("No microphone was found.")
		w.edge.until("SIP/2.0 480")
		p.clean()
	})

	t.Run("registration lost and refused", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		p := newTab(t, browser, "")
		p.logIn(w)
		w.edge.drop()
		p.wait(`document.body.dataset.registration === "lost" && document.querySelector("#call").disabled`)
		p.picture("lost")
		p.wait(`document.body.dataset.registration === "registered" && !document.querySelector("#call").disabled`)

		w.edge.mu.Lock()
		w.edge.register = "401 Unauthorized"
		w.edge.mu.Unlock()
		w.edge.drop()
		p.error("Refused: your log-in is no longer accepted. Log in again to go on.")
		p.wait(`document.body.dataset.view === "landing" && !document.querySelector("#login").disabled`)
		p.clean()
	})

	t.Run("a log-in that lapses in a call", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		p := newTab(t, browser, "")
		p.logIn(w)
		p.dial("bob")
		p.state("active")
		w.edge.mu.Lock()
		w.edge.register = "401 Unauthorized"
		w.edge.mu.Unlock()
		w.edge.drop()
		p.wait(`document.body.dataset.registration === "refused"`)
		p.state("active")
		p.wait(`wicgate.firstAudio() > 0`)
		p.do(chromedp.Click("#hangup"))
		p.error("Log in again to go on.")
		p.wait(`document.body.dataset.view === "landing"`)
		p.clean()
	})

	t.Run("a log-in is renewed", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.with(func() { w.life = 4 })
		p := newTab(t, browser, "")
		p.logIn(w)
		p.do(chromedp.Evaluate[chromedp.Void](`window.same = true`))
		p.dial("bob")
		p.state("active")
		for end := time.Now().Add(30 * time.Second); !strings.HasSuffix(w.edge.last("REGISTER").get("Authorization"), "-3") && time.Now().Before(end); {
			time.Sleep(50 * time.Millisecond)
		}
		if got := w.edge.last("REGISTER").get("Authorization"); !strings.HasSuffix(got, testToken+"-3") {
			t.Errorf("the last REGISTER bears %q", got)
		}
		p.state("active")
		if p.str("window.same") != "true" {
			t.Error("the page was left for the renewal")
		}
		w.with(func() {
			if w.silent != 0 {
				t.Errorf("%d requests with prompt=none", w.silent)
			}
		})
		p.clean()
	})

	t.Run("a reload logs in again without a question", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		p := newTab(t, browser, "")
		p.logIn(w)
		p.do(chromedp.Reload())
		p.wait(`document.body.dataset.registration === "registered"`)
		p.dial("bob")
		p.state("active")
		w.with(func() {
			if w.silent != 1 {
				t.Errorf("%d requests with prompt=none, want 1", w.silent)
			}
			w.ended = true
		})
		p.do(chromedp.Reload())
		p.error("Your session has ended. Log in again.")
		p.do(chromedp.Reload())
		p.wait(`document.body.dataset.view === "landing" && document.querySelector("#error").innerText === ""`)
		p.clean()
	})

	t.Run("a session that ended", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.with(func() { w.life = 4 })
		p := newTab(t, browser, "")
		p.logIn(w)
		w.with(func() { w.refuse = "invalid_grant" })
		p.error("Your session has ended. Log in again to go on.")
		p.wait(`document.body.dataset.view === "landing"`)
		p.clean()
	})

	t.Run("answers that were not asked for", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		p := newTab(t, browser, "")
		p.do(chromedp.Navigate(w.origin + "/?code=stolen&state=other&iss=" + url.QueryEscape(w.origin)))
		p.error("not begun in this window")
		if got := p.str("location.search"); got != "" {
			t.Errorf("the address bar still holds %s", got)
		}
		w.with(func() { w.answerISS = "https://evil.test" })
		p.do(chromedp.Click("#login"))
		p.error("came from another log-in service")
		w.with(func() {
			if n := len(w.asked); n != 0 {
				t.Errorf("codes went to the token endpoint: %v", w.asked)
			}
			w.answerISS = ""
			w.refuse = "invalid_grant"
		})
		p.do(chromedp.Click("#login"))
		p.error("took too long, or was used already")
		w.with(func() { w.refuse = "" })
		p.do(chromedp.Click("#login"))
		p.wait(`document.body.dataset.registration === "registered"`)
		p.do(chromedp.Click("#logout"))
		p.wait(`document.body.dataset.view === "landing"`)
		w.edge.until("REGISTER") // and with it:
		if m := w.edge.last("REGISTER"); m.get("Expires") != "0" {
			t.Errorf("log-out left the registration: %+v", m)
		}
		p.clean()
	})

	t.Run("nothing here", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		p := newTab(t, browser, "")
		p.do(chromedp.Navigate(w.origin + "/elsewhere"))
		p.picture("missing")
		p.clean()
	})
}

// clean asserts that no policy was violated and no exception went uncaught.
func (p *tab) clean() {
	p.t.Helper()
	if got := p.str("JSON.stringify(window.violations)"); got != "[]" {
		p.t.Errorf("violations and exceptions: %s", got)
	}
}

// until waits for a message from the page that begins so.
func (e *edge) until(start string) {
	e.t.Helper()
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if e.last(start).start != "" {
			return
		}
	}
	e.t.Errorf("no %s from the page", start)
}
