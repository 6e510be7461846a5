package token

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"fmt"

	"wicgate/internal/secret"
)

// The CBC formats: token = S || T, where S = AES-256-CBC(AS-RS, IV = 0, PKCS #7, block) and T is the
// beginning of an HMAC, 32 bytes. A block of 34 or of 46 bytes makes an S of 48.
//
//	A256CBC-HS512          AUTH = K[:32], AS-RS = K[32:] (RFC 7518 §5.2.2.1, RFC 7635 §4.1.1)
//	                       T = HMAC-SHA-512(AUTH, server || S || uint64 bits of server)[:32]
//	draft13-A256CBC-HS256  AS-RS = HKDF-SHA256(K, no salt, "AS-RS key", 32 bytes), AUTH likewise by "AUTH key"
//	                       T = HMAC-SHA-256(AUTH, S || server)
//
// What the texts leave open, and our reading, which vectors hold:
//   - RFC 7635 §6.2 shows nonce_length and nonce for all formats, and then says of CBC that «the
//     entire token, i.e., the encrypted_block» is C = S || T. So there is no nonce, nor its length.
//   - The IV is zero and not in the HMAC, unlike JWE's (RFC 7518 §5.2.2.1), which has it there. A zero
//     IV is bearable because the block begins with a fresh mac_key, of which 14 bytes are in the first
//     16: equal mac_keys would show, and there are none.
//   - TR 33.872 §6.3.2 derives two keys from K and protects «the encrypted data and the server name»,
//     and gives no bytes. Labels and order are those of the implementation that its draft's authors
//     had at that time. The concatenation is unambiguous since S has one length.
//
// T is compared before S is deciphered, in constant time: there is no padding to be asked about.
const (
	cbcSize  = 48 // of S
	cbcTag   = 32 // of T
	labelASR = "AS-RS key"
	labelAUT = "AUTH key"
)

// split returns the two keys of a CBC format.
func (f Format) split(key secret.Bytes) (auth, asrs []byte, err error) {
	k := key.Expose()
	if !f.Fits(len(k)) {
		return nil, nil, fmt.Errorf("%w: %v with %d bytes", ErrKey, f, len(k))
	}
	if f == A256CBCHS512 {
		return k[:32], k[32:], nil
	}
	auth, err = hkdf.Key(sha256.New, k, nil, labelAUT, 32)
	if err == nil {
		asrs, err = hkdf.Key(sha256.New, k, nil, labelASR, 32)
	}
	if err != nil { // 32 bytes are always to be had
		return nil, nil, fmt.Errorf("%w: %w", ErrKey, err)
	}
	return auth, asrs, nil
}

// tag returns T.
func (f Format) tag(auth []byte, server string, s []byte) []byte {
	if f == Draft13 {
		h := hmac.New(sha256.New, auth)
		h.Write(s) // a hash never fails to write
		h.Write([]byte(server))
		return h.Sum(nil)
	}
	h := hmac.New(sha512.New, auth)
	h.Write([]byte(server))
	h.Write(s)
	h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(server))*8))
	return h.Sum(nil)[:cbcTag]
}

func (f Format) sealCBC(key secret.Bytes, server string, plain []byte) ([]byte, error) {
	auth, asrs, err := f.split(key)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(asrs)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKey, err)
	}
	pad := cbcSize - len(plain) // 14 or 2
	out := make([]byte, 0, cbcSize+cbcTag)
	out = append(append(out, plain...), bytes.Repeat([]byte{byte(pad)}, pad)...)
	var iv [aes.BlockSize]byte
	cipher.NewCBCEncrypter(block, iv[:]).CryptBlocks(out, out)
	return append(out, f.tag(auth, server, out)...), nil
}

func (f Format) openCBC(key secret.Bytes, server string, tok []byte) ([]byte, error) {
	if len(tok) != cbcSize+cbcTag {
		return nil, ErrMalformed
	}
	auth, asrs, err := f.split(key)
	if err != nil {
		return nil, err
	}
	s := tok[:cbcSize]
	if !hmac.Equal(f.tag(auth, server, s), tok[cbcSize:]) {
		return nil, ErrSealed
	}
	block, err := aes.NewCipher(asrs)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKey, err)
	}
	plain := make([]byte, cbcSize)
	var iv [aes.BlockSize]byte
	cipher.NewCBCDecrypter(block, iv[:]).CryptBlocks(plain, s)
	pad := int(plain[cbcSize-1])
	if pad == 0 || pad > aes.BlockSize || !bytes.Equal(plain[cbcSize-pad:], bytes.Repeat([]byte{byte(pad)}, pad)) {
		return nil, ErrMalformed
	}
	return plain[:cbcSize-pad], nil
}
