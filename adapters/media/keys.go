package media

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"hash"
	"sync"

	"github.com/pion/dtls/v3"
	"github.com/pion/dtls/v3/pkg/crypto/prf"
	"github.com/pion/dtls/v3/pkg/protocol/extension"
	"github.com/pion/dtls/v3/pkg/protocol/handshake"
	"github.com/pion/srtp/v3"
	"github.com/pion/webrtc/v4"
)

// keys learns the SRTP keys of a connection from its DTLS handshake: pion keeps them to itself, but tells what they are
// made of, to whoever asks. It knows them only where this side was the DTLS server, as it is when the far end answers our
// offer with "setup:active" (RFC 8842, section 5.3). It is an io.Writer that takes pion's key log; nothing is written
// anywhere.
type keys struct {
	mu                         sync.Mutex
	clientRandom, serverRandom []byte
	masterSecret               []byte
	suite                      dtls.CipherSuiteID
	profile                    srtp.ProtectionProfile
}

var errNoKeys = errors.New("the handshake's keys are not known")

func (k *keys) attach(s *webrtc.SettingEngine) {
	s.SetDTLSKeyLogWriter(k)
	s.SetDTLSServerHelloMessageHook(k.hello)
}

// hello takes the answer to the client's offer of ciphers.
func (k *keys) hello(m handshake.MessageServerHello) handshake.Message {
	k.mu.Lock()
	defer k.mu.Unlock()
	random := m.Random.MarshalFixed()
	k.serverRandom, k.suite, k.profile = random[:], 0, 0
	if m.CipherSuiteID != nil {
		k.suite = dtls.CipherSuiteID(*m.CipherSuiteID)
	}
	for _, e := range m.Extensions {
		if use, ok := e.(*extension.UseSRTP); ok && len(use.ProtectionProfiles) == 1 && len(use.MasterKeyIdentifier) == 0 {
			k.profile = srtp.ProtectionProfile(use.ProtectionProfiles[0])
		}
	}
	return &m
}

// Write takes a line of the key log: a label, the client's random and the master secret, in hexadecimal.
func (k *keys) Write(line []byte) (int, error) {
	fields := bytes.Fields(line)
	if len(fields) != 3 || string(fields[0]) != "CLIENT_RANDOM" {
		return len(line), nil
	}
	random, err1 := hex.DecodeString(string(fields[1]))
	secret, err2 := hex.DecodeString(string(fields[2]))
	if err1 == nil && err2 == nil {
		k.mu.Lock()
		defer k.mu.Unlock()
		k.clientRandom, k.masterSecret = random, secret
	}
	return len(line), nil
}

// forget lets go of the secrets, when what is made of them has been made or will not be.
func (k *keys) forget() {
	k.mu.Lock()
	defer k.mu.Unlock()
	clear(k.masterSecret)
	k.clientRandom, k.serverRandom, k.masterSecret = nil, nil, nil
}

// ExportKeyingMaterial implements srtp.KeyingMaterialExporter (RFC 5705, section 4).
func (k *keys) ExportKeyingMaterial(label string, _ []byte, length int) ([]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var hashing func() hash.Hash
	switch k.suite {
	case dtls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, dtls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256:
		hashing = sha256.New
	case dtls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, dtls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384:
		hashing = sha512.New384
	default:
		return nil, errNoKeys
	}
	if len(k.clientRandom) == 0 || len(k.serverRandom) == 0 || len(k.masterSecret) == 0 {
		return nil, errNoKeys
	}
	seed := append([]byte(label), k.clientRandom...)
	return prf.PHash(k.masterSecret, append(seed, k.serverRandom...), length, hashing)
}

// contexts makes what encrypts and decrypts by the keys.
func (k *keys) contexts() (in, out *srtp.Context, err error) {
	k.mu.Lock()
	config := srtp.Config{Profile: k.profile}
	k.mu.Unlock()
	if config.Profile == 0 {
		return nil, nil, errNoKeys
	}
	if err := config.ExtractSessionKeysFromDTLS(k, false); err != nil {
		return nil, nil, err
	}
	in, err = srtp.CreateContext(config.Keys.RemoteMasterKey, config.Keys.RemoteMasterSalt, config.Profile,
		srtp.SRTPReplayProtection(replayWindow))
	if err != nil {
		return nil, nil, err
	}
	out, err = srtp.CreateContext(config.Keys.LocalMasterKey, config.Keys.LocalMasterSalt, config.Profile)
	return in, out, err
}
