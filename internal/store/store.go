// Package store is the one room that knows NATS: a Bus for messages and a Store for state, so
// that a single machine and a fleet run the same code.
//
// Rules that its users keep: no Store call on the path of a call or a packet; decisions follow
// from Create and CompareAndSet, never from a Get, which may be stale; a value carries a version.
// There are no transactions over several keys.
package store

import (
	"context"
	"errors"
	"time"
)

var (
	// ErrNotFound: no such key, or its time to live has passed.
	ErrNotFound = errors.New("store: not found")
	// ErrExists: Create of a key that is there.
	ErrExists = errors.New("store: already exists")
	// ErrConflict: CompareAndSet or Delete with a revision that is no longer the newest.
	ErrConflict = errors.New("store: changed by another")
	// ErrNoResponder: nobody subscribes to a requested subject.
	ErrNoResponder = errors.New("store: nobody answers")
	// ErrTooLarge: a value over MaxValue.
	ErrTooLarge = errors.New("store: value too large")
)

// MaxValue bounds a value and a message, in bytes.
const MaxValue = 256 << 10

// Revision of a key's value. Revisions of one key only rise.
type Revision uint64

// Entry is one value as read.
type Entry struct {
	Key      string
	Value    []byte
	Revision Revision
}

// Store keeps small values by bucket and key. A bucket is made when first used. Keys may hold any
// bytes but must not be empty and not exceed 256 bytes. All methods end with ctx.
type Store interface {
	// Create writes a new key. ttl 0 means no end; else at least one second, in whole seconds.
	// ErrExists if the key is there.
	Create(ctx context.Context, bucket, key string, value []byte, ttl time.Duration) (Revision, error)
	// Get reads the value; it may be a moment old. ErrNotFound.
	Get(ctx context.Context, bucket, key string) (Entry, error)
	// CompareAndSet replaces the value if old is still its revision; the time to live starts
	// again at ttl. ErrConflict, ErrNotFound.
	CompareAndSet(ctx context.Context, bucket, key string, value []byte, old Revision, ttl time.Duration) (Revision, error)
	// Delete removes the key if old is still its revision. ErrConflict, ErrNotFound.
	// Of several callers exactly one gets nil: a one-time code is redeemed by Delete.
	Delete(ctx context.Context, bucket, key string, old Revision) error
	// Scan calls each for every key of the bucket, in no order, until it returns false.
	Scan(ctx context.Context, bucket string, each func(Entry) bool) error
}

// Message is what a subscriber gets. Data must not be kept after the handler returns.
type Message struct {
	Subject string
	Data    []byte
	// Respond answers a request. It is nil for a message that was published.
	Respond func(data []byte) error
}

// Bus carries messages at most once: no storing, no waiting for a quorum. Subjects are words
// separated by dots; a subscription may use "*" for one word and ">" for the rest.
type Bus interface {
	Publish(subject string, data []byte) error
	// Flush returns when what was published before is on its way to those who subscribe: the server has it.
	Flush(ctx context.Context) error
	// Subscribe calls handle for each message, one at a time, in the order of the publisher, until
	// the returned function is called; that waits for a handler under way.
	Subscribe(subject string, handle func(Message)) (unsubscribe func(), err error)
	// Request publishes and waits for one answer. ErrNoResponder at once when nobody subscribes;
	// ctx bounds the wait.
	Request(ctx context.Context, subject string, data []byte) ([]byte, error)
}
