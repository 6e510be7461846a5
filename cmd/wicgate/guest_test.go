package main

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	"wicgate/internal/config"
	"wicgate/internal/keyring"
	"wicgate/internal/store"
)

// TestGuestsWay is a guest's way through portal and WAF as this program joins them: join, TURN token,
// renew, leave, all as the page's client.
func TestGuestsWay(t *testing.T) {
	mux := http.NewServeMux()
	web := httptest.NewTLSServer(mux)
	defer web.Close()
	dir := t.TempDir()
	file := config.Default()
	file.HTTPS.URL = config.Origin(web.URL)
	file.WAF.Guests = 1
	nats, err := store.Embed(filepath.Join(dir, "nats"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer nats.Close()
	h := &house{file: file, data: dir, roles: []string{"waf", "wwsf"}, log: slog.New(slog.DiscardHandler), stats: map[string]func() any{},
		bus: nats, rings: keyring.New(file.TURN.Name), client: web.Client()}
	for _, build := range []func(*http.ServeMux) error{h.openNews, h.waf, h.wwsf} {
		if err := build(mux); err != nil {
			t.Fatal(err)
		}
	}
	post := func(target string, form url.Values) (int, map[string]any) {
		t.Helper()
		resp, err := web.Client().PostForm(target, form)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var m map[string]any
		if err := json.NewDecoder(resp.Body).Decode(&m); err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, m
	}
	resp, err := web.Client().Get(web.URL + "/config.json")
	if err != nil {
		t.Fatal(err)
	}
	var c struct {
		Token      string `json:"token_endpoint"`
		Revocation string `json:"revocation_endpoint"`
		Client     string `json:"client_id"`
		Guests     bool   `json:"guests"`
		TURN       string `json:"turn_credential"`
	}
	err = json.NewDecoder(resp.Body).Decode(&c)
	resp.Body.Close()
	if err != nil || !c.Guests || c.Client != "wic" || c.TURN != "token" || c.Revocation == "" {
		t.Fatalf("%+v %v", c, err)
	}

	status, m := post(web.URL+"/guest", nil)
	if status != 200 || m["name"] != "Guest 1" || m["refresh_token"] == nil {
		t.Fatalf("join: %d %v", status, m)
	}
	if status, m := post(web.URL+"/guest", nil); status != 503 || !strings.Contains(m["message"].(string), "All places for guests are taken") {
		t.Errorf("no place left: %d %v", status, m)
	}
	exchange := url.Values{"grant_type": {"urn:ietf:params:oauth:grant-type:token-exchange"}, "client_id": {c.Client},
		"subject_token": {m["access_token"].(string)}, "subject_token_type": {"urn:ietf:params:oauth:token-type:access_token"}}
	if status, m := post(c.Token, exchange); status != 200 || m["ice_servers"] == nil {
		t.Errorf("TURN token: %d %v", status, m)
	}
	status, m = post(c.Token, url.Values{"grant_type": {"refresh_token"}, "client_id": {c.Client}, "refresh_token": {m["refresh_token"].(string)}})
	if status != 200 || m["name"] != "Guest 1" {
		t.Fatalf("renew: %d %v", status, m)
	}
	if status, m := post(c.Revocation, url.Values{"client_id": {c.Client}, "token": {m["refresh_token"].(string)}}); status != 200 {
		t.Errorf("leave: %d %v", status, m)
	}
	if status, m := post(c.Token, exchange); status != 400 {
		t.Errorf("TURN token after leaving: %d %v", status, m)
	}
}
