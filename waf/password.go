package waf

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/argon2"

	"wicgate/internal/secret"
)

// argonCost is the price of one password check with argon2id (RFC 9106).
type argonCost struct {
	memory uint32 // KiB
	time   uint32 // passes
	lanes  uint8
}

// argonDefault takes 19 MiB and about 55 ms.
var argonDefault = argonCost{memory: 19 << 10, time: 2, lanes: 1}

const (
	maxPassword  = 1024 // bytes; what is longer is wrong
	hashSize     = 32
	saltSize     = 16
	hashWaiting  = 64              // log-ins that may wait for their turn
	hashWaitTime = 5 * time.Second // and for how long
)

var (
	errBusy = errors.New("too many password checks at once")
	errPHC  = errors.New("not a password hash of this program")
)

// hasher makes and checks password hashes, as many at once as there are CPUs: memory and time of
// all log-ins together are bounded.
type hasher struct {
	cost    argonCost
	key     func(password, salt []byte, time, memory uint32, threads uint8, keyLen uint32) []byte // argon2.IDKey; a test counts
	turns   chan struct{}                                                                         // holds one for each check under way
	waiting atomic.Int32
}

func newHasher(cost argonCost) *hasher {
	return &hasher{cost: cost, key: argon2.IDKey, turns: make(chan struct{}, runtime.NumCPU())}
}

// enter waits for a turn. The caller calls leave.
func (h *hasher) enter(ctx context.Context) (leave func(), err error) {
	if h.waiting.Add(1) > hashWaiting {
		h.waiting.Add(-1)
		return nil, errBusy
	}
	defer h.waiting.Add(-1)
	t := time.NewTimer(hashWaitTime)
	defer t.Stop()
	select {
	case h.turns <- struct{}{}:
		return func() { <-h.turns }, nil
	case <-t.C:
		return nil, errBusy
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// hash returns the PHC string of password: $argon2id$v=19$m=19456,t=2,p=1$<salt>$<hash>.
func (h *hasher) hash(ctx context.Context, password secret.Bytes) (secret.Bytes, error) {
	leave, err := h.enter(ctx)
	if err != nil {
		return secret.Bytes{}, err
	}
	defer leave()
	var salt [saltSize]byte
	rand.Read(salt[:]) // never fails
	sum := h.key(password.Expose(), salt[:], h.cost.time, h.cost.memory, h.cost.lanes, hashSize)
	b64 := base64.RawStdEncoding
	return secret.New(fmt.Appendf(nil, "$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, h.cost.memory, h.cost.time,
		h.cost.lanes, b64.EncodeToString(salt[:]), b64.EncodeToString(sum))), nil
}

// check compares a password with a PHC string. The zero phc stands for a user that does not exist:
// the same work is done, and the answer is no.
func (h *hasher) check(ctx context.Context, password, phc secret.Bytes) (bool, error) {
	cost, salt, want := h.cost, make([]byte, saltSize), make([]byte, hashSize)
	known := !phc.IsZero()
	if known {
		var err error
		if cost, salt, want, err = parsePHC(string(phc.Expose())); err != nil {
			return false, err
		}
	}
	leave, err := h.enter(ctx)
	if err != nil {
		return false, err
	}
	defer leave()
	p := password.Expose()
	fits := len(p) <= maxPassword
	if !fits {
		p = nil // hashed all the same, so that the time tells nothing
	}
	got := h.key(p, salt, cost.time, cost.memory, cost.lanes, hashSize)
	return subtle.ConstantTimeCompare(got, want) == 1 && known && fits, nil
}

func parsePHC(s string) (cost argonCost, salt, hash []byte, err error) {
	parts := strings.Split(s, "$")
	if len(parts) != 6 || parts[0] != "" || parts[1] != "argon2id" {
		return argonCost{}, nil, nil, errPHC
	}
	var version int
	if n, err := fmt.Sscanf(parts[2], "v=%d", &version); n != 1 || err != nil || version != argon2.Version {
		return argonCost{}, nil, nil, errPHC
	}
	if n, err := fmt.Sscanf(parts[3], "m=%d,t=%d,p=%d", &cost.memory, &cost.time, &cost.lanes); n != 3 || err != nil ||
		cost.memory < 8 || cost.memory > 256<<10 || cost.time < 1 || cost.time > 16 || cost.lanes < 1 || cost.lanes > 16 {
		return argonCost{}, nil, nil, errPHC
	}
	salt, err1 := base64.RawStdEncoding.Strict().DecodeString(parts[4])
	hash, err2 := base64.RawStdEncoding.Strict().DecodeString(parts[5])
	if err1 != nil || err2 != nil || len(salt) < 8 || len(salt) > 64 || len(hash) != hashSize {
		return argonCost{}, nil, nil, errPHC
	}
	return cost, salt, hash, nil
}
