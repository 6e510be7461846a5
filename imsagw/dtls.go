package imsagw

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"strings"
	"time"

	"github.com/pion/dtls/v3"
	"github.com/pion/srtp/v3"

	"wicgate/internal/iq"
)

// flightInterval is the first wait before a DTLS flight is sent again; it doubles. RFC 6347 §4.2.4.1
// says 1 s for strangers, and lets an application of known delay take less; browsers take 50 ms.
const flightInterval = 250 * time.Millisecond

// newCertificate makes the certificate of this process: self-signed ECDSA on P-256, as RFC 8827 §6.5
// wants it. Its only meaning is its fingerprint, which travels in signalling.
func newCertificate() (tls.Certificate, iq.Fingerprint, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, iq.Fingerprint{}, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return tls.Certificate{}, iq.Fingerprint{}, err
	}
	now := time.Now()
	t := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "wicgate"}, // nothing of the machine
		NotBefore: now.Add(-24 * time.Hour), NotAfter: now.AddDate(10, 0, 0),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, iq.Fingerprint{}, err
	}
	sum := sha256.Sum256(der)
	hex := strings.ReplaceAll(fmt.Sprintf("% X", sum[:]), " ", ":")
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, iq.Fingerprint{Hash: "sha-256", Value: hex}, nil
}

var errFingerprint = errors.New("the browser's certificate is not the one that its SDP names")

// verify checks the browser's certificate against the signalled fingerprint (RFC 5763 §5, RFC 8122 §6.2).
// The certificate's own content means nothing.
func (r *remoteAccess) verify(chain [][]byte) error {
	if len(chain) == 0 {
		return errFingerprint
	}
	var sum []byte
	switch strings.ToLower(r.hash) {
	case "sha-256":
		d := sha256.Sum256(chain[0])
		sum = d[:]
	case "sha-384":
		d := sha512.Sum384(chain[0])
		sum = d[:]
	case "sha-512":
		d := sha512.Sum512(chain[0])
		sum = d[:]
	}
	if len(r.digest) == 0 || subtle.ConstantTimeCompare(sum, r.digest) != 1 {
		return errFingerprint
	}
	return nil
}

// profiles in our order. All have 80-bit tags or longer.
var profiles = []dtls.SRTPProtectionProfile{
	dtls.SRTP_AEAD_AES_256_GCM,
	dtls.SRTP_AEAD_AES_128_GCM,
	dtls.SRTP_AES128_CM_HMAC_SHA1_80,
}

// runDTLS waits for the browser's side to be reachable, answers one DTLS handshake, installs the keys,
// and then hears the browser out until it or the stream closes.
func (st *stream) runDTLS() {
	select {
	case <-st.ctx.Done():
		return
	case <-st.wake:
	}
	conn, why, err := st.handshake()
	if err != nil {
		if st.ctx.Err() == nil {
			st.g.count.dtls[why].Add(1)
			st.s.fail(st, iq.DTLSFailed, dtlsCauseNames[why]+": "+err.Error())
		}
		return
	}
	// DTLS-SRTP carries no data. Reading lets the agent answer a repeated last flight and a close_notify.
	b := make([]byte, maxPacket)
	for {
		if _, err := conn.Read(b); err != nil {
			st.s.log.Debug("imsagw: DTLS association has ended", "cause", err)
			return
		}
	}
}

// handshake answers one handshake and installs the keys. Before it returns without an error no media
// flows; the keys are not even derived unless the fingerprint was right.
func (st *stream) handshake() (*dtls.Conn, dtlsCause, error) {
	peer := st.peer.Load()
	mismatch := false
	conn, err := dtls.ServerWithOptions(st.dtlsQueue, &net.UDPAddr{}, // queue knows where to send
		dtls.WithCertificates(st.g.cert),
		dtls.WithCipherSuites(dtls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, dtls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384),
		dtls.WithSRTPProtectionProfiles(profiles...),
		dtls.WithExtendedMasterSecret(dtls.RequireExtendedMasterSecret),
		dtls.WithClientAuth(dtls.RequireAnyClientCert),
		dtls.WithVerifyPeerCertificate(func(chain [][]byte, _ [][]*x509.Certificate) error {
			err := peer.verify(chain)
			mismatch = err != nil
			return err
		}),
		// Only addresses that ICE has validated get here, so that a cookie would prove nothing more
		// and cost a round trip (RFC 6347 §4.2.1: "MAY be configured not to").
		dtls.WithInsecureSkipVerifyHello(true),
		dtls.WithFlightInterval(flightInterval),
		dtls.WithLoggerFactory(noLog{}),
	)
	if err != nil {
		return nil, dtlsHandshake, err
	}
	st.dtls.Store(conn) // now close can reach it
	ctx, cancel := context.WithTimeout(st.ctx, st.g.timing.handshake)
	defer cancel()
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = conn.Close() // the handshake's error is the one that counts
		switch {
		case mismatch:
			return nil, dtlsFingerprint, errFingerprint
		case ctx.Err() != nil && st.hello.Load() == nil:
			return nil, dtlsNoHello, fmt.Errorf("no ClientHello within %v", st.g.timing.handshake)
		case ctx.Err() != nil:
			return nil, dtlsTimeout, fmt.Errorf("not ended within %v: %w", st.g.timing.handshake, err)
		case strings.Contains(err.Error(), "SRTP"): // the agent has no sentinel for it
			return nil, dtlsProfile, err
		}
		return nil, dtlsHandshake, err
	}
	if why, err := st.install(conn); err != nil {
		_ = conn.Close()
		return nil, why, err
	}
	return conn, 0, nil
}

// install derives the SRTP keys (RFC 5764 §4.2) and opens the way for media.
func (st *stream) install(conn *dtls.Conn) (dtlsCause, error) {
	p, ok := conn.SelectedSRTPProtectionProfile()
	if !ok {
		return dtlsProfile, errors.New("the browser asked for no SRTP profile")
	}
	state, ok := conn.ConnectionState()
	if !ok {
		return dtlsHandshake, errors.New("the association ended before its keys were read")
	}
	cfg := srtp.Config{Profile: srtp.ProtectionProfile(p)}
	if err := cfg.ExtractSessionKeysFromDTLS(&state, false); err != nil {
		return dtlsHandshake, err
	}
	c, err := newKeys(cfg.Profile, cfg.Keys)
	if err != nil {
		return dtlsHandshake, err
	}
	name := cfg.Profile.String()
	st.profile.Store(&name)
	st.keys.Store(c)

	// Keys may come before the pair, on a validated address that is not nominated yet.
	for st.selected.Load() == nil {
		select {
		case <-st.ctx.Done():
			return dtlsHandshake, st.ctx.Err()
		case <-st.wake:
		}
	}
	st.s.keyed(st)
	return 0, nil
}
