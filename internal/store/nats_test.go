package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"
)

// A password in the address of a bus that is not there is in no error.
func TestConnectHidesPasswords(t *testing.T) {
	for _, url := range []string{"nats://node:hunter2@127.0.0.1:1", "nats://node:hunter2@127.0.0.1:1,nats://node:hunter2@127.0.0.1:2", "nats://hunter2@127.0.0.1:1", "nats://node:hunter2@127.0.0.1:no"} {
		_, err := Connect(url, "", 1)
		if err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%v", err)
		}
	}
}

// A scan whose time ends while it is under way says so: what it has seen is not all.
func TestScanInTime(t *testing.T) {
	n, err := Embed(t.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	const keys = 600 // more than the library reads ahead
	for i := range keys {
		if _, err := n.Create(t.Context(), "b", fmt.Sprint(i), []byte("v"), 0); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	seen := 0
	err = n.Scan(ctx, "b", func(Entry) bool {
		if seen++; seen == 1 {
			cancel()
			time.Sleep(200 * time.Millisecond)
		}
		return true
	})
	if seen < keys && !errors.Is(err, context.Canceled) {
		t.Errorf("%d of %d keys, %v", seen, keys, err)
	}
}
