package epcscf

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"strings"

	"wicgate/internal/secret"
)

// A flow token names a WebSocket of this edge in a URI's user part (RFC 5626 §5.2): unguessable,
// and MAC-protected, so that the core, or whoever reached the core, can address no flow that it has not been shown.
//
//	edge1.<base64url( flow id, 12 random bytes ‖ first 16 bytes of HMAC-SHA256(key, label ‖ name ‖ id) )>
const (
	flowIDSize   = 12
	flowMACSize  = 16
	flowMACLabel = "wicgate flow token\x00"
)

type flowID [flowIDSize]byte

func flowMAC(key secret.Bytes, name string, id []byte) []byte {
	h := hmac.New(sha256.New, key.Expose())
	h.Write([]byte(flowMACLabel + name + "\x00"))
	h.Write(id)
	return h.Sum(nil)[:flowMACSize]
}

func sealFlow(key secret.Bytes, name string, id flowID) string {
	return name + "." + base64.RawURLEncoding.EncodeToString(append(id[:], flowMAC(key, name, id[:])...))
}

// openFlow returns the flow of a token; ok is false where the token is another's, or forged.
func openFlow(key secret.Bytes, name, token string) (id flowID, ok bool) {
	rest, ok := strings.CutPrefix(token, name+".")
	if !ok || len(rest) != (flowIDSize+flowMACSize)*4/3+1 {
		return id, false
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(rest)
	if err != nil || len(b) != flowIDSize+flowMACSize || !hmac.Equal(b[flowIDSize:], flowMAC(key, name, b[:flowIDSize])) {
		return id, false
	}
	copy(id[:], b)
	return id, true
}
