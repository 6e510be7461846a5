package epcscf

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/emiago/sipgo"
	"github.com/emiago/sipgo/sip"
	"go.uber.org/goleak"
)

// TestSipgo has the edge talk to a core and far end that we did not write: sipgo's transports,
// transactions and dialogs. It registers, is called, calls, and hangs up from either side.
func TestSipgo(t *testing.T) {
	defer goleak.VerifyNone(t)
	sip.SetDefaultLogger(slog.New(slog.DiscardHandler))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := l.Addr().(*net.TCPAddr)
	agent, err := sipgo.NewUA()
	if err != nil {
		t.Fatal(err)
	}
	server, err := sipgo.NewServer(agent)
	if err != nil {
		t.Fatal(err)
	}
	client, err := sipgo.NewClient(agent, sipgo.WithClientHostname("127.0.0.1"), sipgo.WithClientPort(at.Port))
	if err != nil {
		t.Fatal(err)
	}
	far := sip.ContactHeader{Address: sip.Uri{Scheme: "sip", User: "far", Host: "127.0.0.1", Port: at.Port, UriParams: sip.HeaderParams{{K: "transport", V: "tcp"}}}}
	called, calling := sipgo.NewDialogServerCache(client, far), sipgo.NewDialogClientCache(client, far)

	paths := make(chan string, 10)
	contacts := make(chan sip.Uri, 10)
	server.OnRegister(func(req *sip.Request, tx sip.ServerTransaction) {
		if h := req.GetHeader("Authorization"); h == nil || !strings.Contains(h.Value(), `integrity-protected="auth-done"`) {
			t.Error("no Trusted Node Authentication")
		}
		res := sip.NewResponseFromRequest(req, 200, "OK", nil)
		res.AppendHeader(sip.HeaderClone(req.Contact()))
		res.AppendHeader(sip.NewHeader("Service-Route", "<sip:orig@"+at.String()+";lr>"))
		if err := tx.Respond(res); err != nil {
			t.Error(err)
		}
		paths <- req.GetHeader("Path").Value()
		contacts <- req.Contact().Address
	})
	answered := make(chan *sipgo.DialogServerSession, 10)
	server.OnInvite(func(req *sip.Request, tx sip.ServerTransaction) {
		dlg, err := called.ReadInvite(req, tx)
		if err != nil {
			t.Error(err)
			return
		}
		if h := req.GetHeader("Record-Route"); h == nil || !strings.Contains(h.Value(), ";transport=tcp;") {
			t.Errorf("Record-Route %v: a core would come over UDP", h)
		}
		if !strings.Contains(string(req.Body()), "m=audio 41000 RTP/AVP 111 0 8 110 126") {
			t.Errorf("offered\n%s", req.Body())
		}
		if err := dlg.Respond(180, "Ringing", nil); err != nil {
			t.Error(err)
		}
		if err := dlg.RespondSDP([]byte(coreOffer)); err != nil { // returns with the ACK, or times out
			t.Error(err)
		}
		answered <- dlg
		<-tx.Done()
	})
	server.OnAck(func(req *sip.Request, tx sip.ServerTransaction) {
		if err := called.ReadAck(req, tx); err != nil {
			t.Error(err)
		}
	})
	byes := make(chan struct{}, 10)
	server.OnBye(func(req *sip.Request, tx sip.ServerTransaction) {
		if called.ReadBye(req, tx) != nil && calling.ReadBye(req, tx) != nil {
			t.Errorf("a BYE of no dialog:\n%s", req)
		}
		byes <- struct{}{}
	})
	served := make(chan struct{})
	go func() { defer close(served); _ = server.ServeTCP(l) }()

	h := newHouse(t, func(c *Config) {
		c.Core.NextHop = netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(at.Port))
	})
	defer func() {
		h.stop()
		_ = l.Close()
		_ = server.Close()
		_ = client.Close()
		_ = agent.Close()
		<-served
	}()
	h.play("alice connects\nalice> REGISTER\n<alice 200\n  expires=600", "sipgo")
	path, contact := <-paths, <-contacts
	if !strings.Contains(path, ";transport=tcp;") { // else UDP, RFC 3263 §4.1
		t.Errorf("Path %s: a core would call over UDP", path)
	}

	h.play("alice> INVITE far\n<alice 180\n<alice 200\n  a=setup:passive\n  SAVPF 8 0\nalice> ACK", "alice calls")
	receive(t, answered)
	h.play("alice> BYE\n<alice 200\nsettled", "alice hangs up")
	receive(t, byes)

	h.play("alice> INVITE far\n<alice 180\n<alice 200\nalice> ACK", "alice calls again")
	dlg := receive(t, answered)
	ended := make(chan error, 1)
	go func() { ended <- dlg.Bye(t.Context()) }()
	h.play("<alice BYE\nalice> 200 BYE\nsettled", "sipgo hangs up")
	if err := receive(t, ended); err != nil {
		t.Errorf("BYE: %v", err)
	}

	route := sip.NewHeader("Route", path)
	invite := func(ctx context.Context) (*sipgo.DialogClientSession, error) {
		req := sip.NewRequest(sip.INVITE, contact)
		req.SetTransport("TCP")
		req.SetDestination(h.edge.sentBy)
		req.AppendHeader(route)
		req.AppendHeader(sip.NewHeader("Content-Type", "application/sdp"))
		req.SetBody([]byte(coreOffer))
		return calling.WriteInvite(ctx, req)
	}
	type result struct {
		*sipgo.DialogClientSession
		error
	}
	up := make(chan result, 1)
	go func() {
		s, err := invite(t.Context())
		if err == nil {
			err = s.WaitAnswer(t.Context(), sipgo.AnswerOptions{})
		}
		if err == nil {
			err = s.Ack(t.Context())
		}
		up <- result{s, err}
	}()
	h.play("<alice INVITE\n  SAVPF 8 0 101\nalice> 180\nalice> 200\n  sdp: answer.sdp SAVPF 111 0 8 110 126 => SAVPF 0\n<alice ACK\nedge: dialogs=1", "sipgo calls")
	s := receive(t, up)
	if s.error != nil {
		t.Fatal(s.error)
	}
	if b := string(s.InviteResponse.Body()); !strings.Contains(b, "m=audio 41000 RTP/AVP 0\r\n") {
		t.Errorf("answered\n%s", b)
	}
	go func() { ended <- s.Bye(t.Context()) }()
	h.play("<alice BYE\nalice> 200 BYE\nsettled", "sipgo hangs up its call")
	if err := receive(t, ended); err != nil {
		t.Errorf("BYE: %v", err)
	}

	// it gives up while it rings
	ctx, giveUp := context.WithCancel(t.Context())
	go func() {
		s, err := invite(t.Context())
		if err == nil {
			err = s.WaitAnswer(ctx, sipgo.AnswerOptions{})
		}
		ended <- err
	}()
	h.play("<alice INVITE\nalice> 180", "sipgo calls again")
	time.Sleep(20 * time.Millisecond) // WaitAnswer knows of no other sign that it has seen the 180
	giveUp()
	h.play("<alice CANCEL\nalice> 200 CANCEL\nalice> 487\n<alice ACK\nsettled", "sipgo gives up")
	if err := receive(t, ended); err == nil {
		t.Error("given up, and answered")
	}
	h.play("alice> REGISTER 0\n<alice 200", "off")
	if u := h.ua("alice"); strings.Contains(u.everything(), path) {
		t.Error("the path reached the browser")
	}
	h.clean()
}

func receive[T any](t *testing.T, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatal("nothing came")
		panic("unreachable")
	}
}
