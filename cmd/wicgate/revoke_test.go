package main

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"wicgate/internal/admin"
	"wicgate/internal/session"
	"wicgate/internal/store"
)

// A user's name where no WAF runs ends nothing, as users are unknown there; the operator is told so.
func TestRevokeUserWithoutWAF(t *testing.T) {
	m := store.NewMemory()
	h := &house{log: slog.New(slog.DiscardHandler), news: news{issuer: session.NewIssuer(m, m, nil)}}
	done, err := h.Revoke(t.Context(), admin.KindAny, "alice")
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := printRevoked(&out, "alice", done); err != nil || !strings.Contains(out.String(), "taken for a pseudonym") || !strings.Contains(out.String(), "where waf runs") {
		t.Errorf("%q, %v", out.String(), err)
	}
	out.Reset()
	if err := printRevoked(&out, "alice", admin.Revoked{As: admin.KindUser}); err != nil || out.String() != "alice: nothing was alive.\n" {
		t.Errorf("%q, %v", out.String(), err)
	}
	out.Reset()
	if err := printRevoked(&out, "alice", admin.Revoked{As: admin.KindUser, LogIns: 1}); err != nil || out.String() != "Revoked alice: 1 log-in ended, and 0 TURN sessions here at once.\n" {
		t.Errorf("%q, %v", out.String(), err)
	}
}
