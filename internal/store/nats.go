package store

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"
)

// markerLife is how long JetStream keeps the mark of a deleted or expired key.
const markerLife = time.Minute

// headroom is what JetStream adds to a value, headers and subject, and counts against its limits.
const headroom = 4 << 10

// NATS is the Store and Bus on NATS JetStream: embedded in this process, or a cluster elsewhere.
type NATS struct {
	conn     *nats.Conn
	js       jetstream.JetStream
	embedded *server.Server // nil when connected to a cluster elsewhere
	replicas int

	mu      sync.Mutex // guards the following field
	buckets map[string]jetstream.KeyValue
}

var (
	_ Store = (*NATS)(nil)
	_ Bus   = (*NATS)(nil)
)

// Embed starts a NATS server inside this process. It opens no port; its state is in dir. Every
// write is on disk before it is acknowledged. Close ends the server.
func Embed(dir string, log *slog.Logger) (*NATS, error) {
	srv, err := server.NewServer(&server.Options{
		ServerName: "wicgate", DontListen: true, JetStream: true, StoreDir: dir,
		SyncAlways: true, NoSigs: true, MaxPayload: MaxValue + 2*headroom, NoSystemAccount: true,
	})
	if err != nil {
		return nil, fmt.Errorf("store: embedded NATS in %s: %w", dir, err)
	}
	srv.SetLogger(natsLog{log}, false, false)
	srv.Start()
	if !srv.ReadyForConnections(10 * time.Second) {
		srv.Shutdown()
		return nil, fmt.Errorf("store: embedded NATS in %s is not ready after 10 s; is the disk full or read-only?", dir)
	}
	if !srv.JetStreamEnabled() {
		srv.Shutdown()
		srv.WaitForShutdown()
		return nil, fmt.Errorf("store: embedded NATS cannot use %s; is it writable, and by this user alone?", dir)
	}
	n, err := connect("", 1, nats.InProcessServer(srv))
	if err != nil {
		srv.Shutdown()
		srv.WaitForShutdown()
		return nil, err
	}
	n.embedded = srv
	return n, nil
}

// Connect uses a NATS cluster elsewhere, with JetStream on. nkeyFile holds this node's nkey seed;
// empty means none. replicas is the number of servers that keep each value: 1, 3 or 5.
func Connect(url, nkeyFile string, replicas int) (*NATS, error) {
	opts := []nats.Option{
		// A server that hangs must not hang its clients for the library's two minutes.
		nats.PingInterval(2 * time.Second), nats.MaxPingsOutstanding(2),
		nats.ReconnectWait(50 * time.Millisecond), nats.MaxReconnects(-1), nats.Timeout(5 * time.Second),
	}
	if nkeyFile != "" {
		opt, err := nkeyOption(nkeyFile)
		if err != nil {
			return nil, err
		}
		opts = append(opts, opt)
	}
	return connect(url, replicas, opts...)
}

func nkeyOption(file string) (nats.Option, error) {
	seed, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("store: nkey of this node: %w", err)
	}
	defer clear(seed)
	pair, err := nkeys.ParseDecoratedNKey(seed)
	if err != nil {
		return nil, fmt.Errorf("store: %s holds no nkey seed: %w", file, err)
	}
	public, err := pair.PublicKey()
	if err != nil {
		return nil, fmt.Errorf("store: %s: %w", file, err)
	}
	return nats.Nkey(public, pair.Sign), nil
}

func connect(url string, replicas int, opts ...nats.Option) (*NATS, error) {
	nc, err := nats.Connect(url, append(opts, nats.Name("wicgate"))...)
	if err != nil {
		return nil, fmt.Errorf("store: connect to NATS %s: %s", hide(url), hide(err.Error())) // the library quotes what it cannot read
	}
	js, err := jetstream.New(nc)
	if err != nil {
		nc.Close()
		return nil, fmt.Errorf("store: JetStream on %s: %w", url, err)
	}
	return &NATS{conn: nc, js: js, replicas: replicas, buckets: map[string]jetstream.KeyValue{}}, nil
}

// hide leaves out users, passwords and tokens of a list of URLs.
func hide(urls string) string {
	list := strings.Split(urls, ",")
	for i, u := range list {
		scheme, rest, _ := strings.Cut(u, "//")
		if at := strings.LastIndexByte(rest, '@'); at >= 0 {
			list[i] = scheme + "//xxxxx" + rest[at:]
		}
	}
	return strings.Join(list, ",")
}

// Close ends the connection, and the embedded server where there is one, and waits for both.
func (n *NATS) Close() {
	n.conn.Close()
	if n.embedded != nil {
		n.embedded.Shutdown()
		n.embedded.WaitForShutdown()
	}
}

// Ready says whether the bus is there now: nil, or why not.
func (n *NATS) Ready() error {
	if s := n.conn.Status(); s != nats.CONNECTED {
		where := "embedded in this process"
		if n.embedded == nil {
			where = strings.Join(n.conn.Servers(), ", ")
		}
		if err := n.conn.LastError(); err != nil {
			return fmt.Errorf("not connected to NATS %s: %s: %w", where, strings.ToLower(s.String()), err)
		}
		return fmt.Errorf("not connected to NATS %s: %s", where, strings.ToLower(s.String()))
	}
	return nil
}

// bucket opens or makes a bucket.
func (n *NATS) bucket(ctx context.Context, name string) (jetstream.KeyValue, error) {
	n.mu.Lock()
	kv := n.buckets[name]
	n.mu.Unlock()
	if kv != nil {
		return kv, nil
	}
	kv, err := n.js.CreateOrUpdateKeyValue(ctx, jetstream.KeyValueConfig{
		Bucket: name, History: 1, Replicas: n.replicas, MaxValueSize: MaxValue + headroom, LimitMarkerTTL: markerLife,
	})
	if err != nil {
		return nil, fmt.Errorf("store: bucket %s: %w", name, err)
	}
	n.mu.Lock()
	n.buckets[name] = kv
	n.mu.Unlock()
	return kv, nil
}

// JetStream keys allow few characters, ours allow all.
func encodeKey(key string) string { return base64.RawURLEncoding.EncodeToString([]byte(key)) }

func decodeKey(key string) (string, error) {
	b, err := base64.RawURLEncoding.DecodeString(key)
	return string(b), err
}

// plain turns JetStream's errors into ours.
func plain(err error, bucket string) error {
	var api *jetstream.APIError
	switch {
	case err == nil:
		return nil
	case errors.Is(err, jetstream.ErrKeyNotFound), errors.Is(err, jetstream.ErrKeyDeleted):
		return ErrNotFound
	case errors.As(err, &api) && api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence:
		return ErrConflict
	}
	return fmt.Errorf("store: bucket %s: %w", bucket, err)
}

// Create implements [Store].
func (n *NATS) Create(ctx context.Context, bucket, key string, value []byte, ttl time.Duration) (Revision, error) {
	if err := checkKey(bucket, key, value, ttl); err != nil {
		return 0, err
	}
	kv, err := n.bucket(ctx, bucket)
	if err != nil {
		return 0, err
	}
	var opts []jetstream.KVCreateOpt
	if ttl > 0 {
		opts = append(opts, jetstream.KeyTTL(ttl))
	}
	rev, err := kv.Create(ctx, encodeKey(key), value, opts...)
	if errors.Is(err, jetstream.ErrKeyExists) {
		return 0, ErrExists
	}
	return Revision(rev), plain(err, bucket)
}

// Get implements [Store].
func (n *NATS) Get(ctx context.Context, bucket, key string) (Entry, error) {
	if err := checkKey(bucket, key, nil, 0); err != nil {
		return Entry{}, err
	}
	kv, err := n.bucket(ctx, bucket)
	if err != nil {
		return Entry{}, err
	}
	e, err := kv.Get(ctx, encodeKey(key))
	if err != nil {
		return Entry{}, plain(err, bucket)
	}
	return Entry{Key: key, Value: e.Value(), Revision: Revision(e.Revision())}, nil
}

// CompareAndSet implements [Store]. The library's Update has no time to live, and drops one that
// was there; a publish to the key's subject has.
func (n *NATS) CompareAndSet(ctx context.Context, bucket, key string, value []byte, old Revision, ttl time.Duration) (Revision, error) {
	if err := checkKey(bucket, key, value, ttl); err != nil {
		return 0, err
	}
	kv, err := n.bucket(ctx, bucket)
	if err != nil {
		return 0, err
	}
	opts := []jetstream.PublishOpt{jetstream.WithExpectLastSequencePerSubject(uint64(old))}
	if ttl > 0 {
		opts = append(opts, jetstream.WithMsgTTL(ttl))
	}
	ack, err := n.js.Publish(ctx, "$KV."+bucket+"."+encodeKey(key), value, opts...)
	if err != nil {
		return 0, gone(ctx, kv, key, plain(err, bucket))
	}
	return Revision(ack.Sequence), nil
}

// gone tells a key that is not there from one that another changed.
func gone(ctx context.Context, kv jetstream.KeyValue, key string, err error) error {
	if !errors.Is(err, ErrConflict) {
		return err
	}
	if _, getErr := kv.Get(ctx, encodeKey(key)); errors.Is(plain(getErr, ""), ErrNotFound) {
		return ErrNotFound
	}
	return err
}

// Delete implements [Store].
func (n *NATS) Delete(ctx context.Context, bucket, key string, old Revision) error {
	if err := checkKey(bucket, key, nil, 0); err != nil {
		return err
	}
	kv, err := n.bucket(ctx, bucket)
	if err != nil {
		return err
	}
	err = kv.Purge(ctx, encodeKey(key), jetstream.LastRevision(uint64(old)), jetstream.PurgeTTL(markerLife))
	return gone(ctx, kv, key, plain(err, bucket))
}

// fence is the key of a mark that a scan writes; no key of ours is encoded as one character.
const fence = "_"

// Scan implements [Store]. The server that it reads from may be behind the others, and would then say of a part
// that it is all. So the scan writes a mark first, and reads until it comes by: entries come in the order in
// which they were written.
func (n *NATS) Scan(ctx context.Context, bucket string, each func(Entry) bool) error {
	if err := checkKey(bucket, "-", nil, 0); err != nil {
		return err
	}
	kv, err := n.bucket(ctx, bucket)
	if err != nil {
		return err
	}
	mark, err := n.js.Publish(ctx, "$KV."+bucket+"."+fence, nil, jetstream.WithMsgTTL(markerLife))
	if err != nil {
		return plain(err, bucket)
	}
	w, err := kv.WatchAll(ctx)
	if err != nil {
		return plain(err, bucket)
	}
	defer w.Stop() //nolint:errcheck // the watch is over either way
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case e, open := <-w.Updates():
			if !open { // by the end of ctx, or of the connection: what was read is not all
				return errors.Join(ctx.Err(), fmt.Errorf("store: bucket %s: the scan was cut off", bucket))
			}
			if e == nil {
				continue // all that this server knows of yet
			}
			if e.Revision() >= mark.Sequence {
				return nil
			}
			if e.Operation() != jetstream.KeyValuePut || e.Key() == fence {
				continue
			}
			key, err := decodeKey(e.Key())
			if err != nil {
				return fmt.Errorf("store: bucket %s holds the key %q, which is not ours", bucket, e.Key())
			}
			if !each(Entry{Key: key, Value: e.Value(), Revision: Revision(e.Revision())}) {
				return nil
			}
		}
	}
}

// Publish implements [Bus].
func (n *NATS) Publish(subject string, data []byte) error {
	if err := checkMessage(subject, data); err != nil {
		return err
	}
	if err := n.conn.Publish(subject, data); err != nil {
		return fmt.Errorf("store: publish on %s: %w", subject, err)
	}
	return nil
}

// Flush implements [Bus].
func (n *NATS) Flush(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second) // the library wants an end
	defer cancel()
	if err := n.conn.FlushWithContext(ctx); err != nil {
		return fmt.Errorf("store: flush: %w", err)
	}
	return nil
}

// Subscribe implements [Bus].
func (n *NATS) Subscribe(subject string, handle func(Message)) (func(), error) {
	var mu sync.Mutex // held while handle runs
	closed := false
	sub, err := n.conn.Subscribe(subject, func(m *nats.Msg) {
		msg := Message{Subject: m.Subject, Data: m.Data}
		if m.Reply != "" {
			msg.Respond = m.Respond
		}
		mu.Lock()
		defer mu.Unlock()
		if !closed {
			handle(msg)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("store: subscribe to %s: %w", subject, err)
	}
	// What is published after Subscribe returned must arrive.
	if err := n.conn.Flush(); err != nil {
		return nil, fmt.Errorf("store: subscribe to %s: %w", subject, err)
	}
	return func() {
		sub.Unsubscribe() //nolint:errcheck // fails only where the connection is closed, which ends it too
		mu.Lock()
		closed = true
		mu.Unlock()
	}, nil
}

// Request implements [Bus].
func (n *NATS) Request(ctx context.Context, subject string, data []byte) ([]byte, error) {
	if err := checkMessage(subject, data); err != nil {
		return nil, err
	}
	m, err := n.conn.RequestWithContext(ctx, subject, data)
	if errors.Is(err, nats.ErrNoResponders) {
		return nil, fmt.Errorf("%w on %s", ErrNoResponder, subject)
	}
	if err != nil {
		return nil, fmt.Errorf("store: request on %s: %w", subject, err)
	}
	return m.Data, nil
}

// natsLog sends the embedded server's complaints to our log and drops its chatter.
type natsLog struct{ log *slog.Logger }

func (l natsLog) Noticef(string, ...any)         {}
func (l natsLog) Debugf(string, ...any)          {}
func (l natsLog) Tracef(string, ...any)          {}
func (l natsLog) Warnf(format string, v ...any)  { l.log.Warn("nats: " + fmt.Sprintf(format, v...)) }
func (l natsLog) Errorf(format string, v ...any) { l.log.Error("nats: " + fmt.Sprintf(format, v...)) }
func (l natsLog) Fatalf(format string, v ...any) { l.log.Error("nats: " + fmt.Sprintf(format, v...)) }
