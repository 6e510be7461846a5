package browser

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"wicgate/internal/keyring"
	"wicgate/test/lab"
)

// candidate gathers over the relay alone, and returns the candidate.
const candidate = `servers => new Promise((ok, no) => {
  const pc = new RTCPeerConnection({iceServers: servers, iceTransportPolicy: "relay"});
  pc.createDataChannel("x");
  pc.onicecandidate = e => { if (e.candidate && e.candidate.candidate) ok(e.candidate.candidate); };
  const errors = [];
  pc.onicecandidateerror = e => errors.push(e.errorCode + " " + e.errorText);
  setTimeout(() => no(new Error("no relay candidate after 15 s; " + errors)), 15000);
  pc.createOffer().then(o => pc.setLocalDescription(o));
})`

// TestSibling: Chromium follows the 300 of a TURN server that drains, and has its relayed address from the
// other one. It does so over UDP, and for no server on loopback; over TCP it leaves the first server, comes
// to no other, and says 701, as after a 508.
func TestSibling(t *testing.T) {
	wic, edge := lab.Pair(t)
	keys := filepath.Join(lab.DataFolder(t), "keys.json") // of both
	node := func(addr string, ports, siblings string) string {
		data := lab.DataFolder(t)
		cfg := filepath.Join(data, "wicgate.yaml")
		text := fmt.Sprintf("turn: {listen: ['%[1]s:3478'], listen_tcp: ['%[1]s:3478'], urls: ['turns:%[2]s:3478?transport=tcp', 'turns:%[3]s:3478?transport=tcp'],\n"+
			" keys: %[4]s, relay: [{bind: %[5]s, ports: %[6]s}], siblings: [%[7]s]}\n", addr, lab.EdgeName, lab.TURNName, keys, lab.Relay, ports, siblings)
		if err := os.WriteFile(cfg, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		lab.Start(t, edge, data, "--config", cfg, "turn")
		return data
	}
	node(lab.TURN, "51000-51999", "")
	a := node(lab.Edge, "50000-50999", fmt.Sprintf("{address: '%s:3478', domain: %s}", lab.TURN, lab.TURNName))
	if out, err := exec.Command(lab.Binary(t), "drain", "--data", a).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	ring, err := keyring.OpenFile(keys, "turn.ims.test")
	if err != nil {
		t.Fatal(err)
	}
	page := NewChromium(t, wic, filepath.Join(a, "ca", "ca.pem")).Page("away")
	servers, err := json.Marshal([]map[string]any{iceServer(t, ring, []string{"turn:" + lab.Edge + ":3478?transport=udp"})})
	if err != nil {
		t.Fatal(err)
	}
	var got string
	page.Eval(fmt.Sprintf("(%s)(%s)", candidate, servers), &got)
	if !strings.Contains(got, lab.Relay+" 51") {
		t.Errorf("not of the other server: %s", got)
	}
}
