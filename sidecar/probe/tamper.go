package probe

import (
	"encoding/binary"
	"sync"

	"github.com/pion/interceptor"
	"github.com/pion/rtp"
)

// tamper stands between a publisher and the network and withholds packets, as the network would. Retransmissions pass it too.
type tamper struct {
	interceptor.NoOp

	mu      sync.Mutex
	writers map[uint32]interceptor.RTPWriter // by SSRC
	lost    map[lostKey]*lost
	highest map[uint32]uint16
	rtx     int // retransmissions by RTX (RFC 4588)
	same    int // retransmissions in the original's own stream
}

type lostKey struct {
	ssrc uint32
	seq  uint16
}

type lost struct {
	times   int // how often it is still withheld; the original counts
	held    bool
	header  rtp.Header
	payload []byte
}

func newTamper() *tamper {
	return &tamper{
		writers: map[uint32]interceptor.RTPWriter{}, lost: map[lostKey]*lost{}, highest: map[uint32]uint16{},
	}
}

// NewInterceptor implements interceptor.Factory.
func (t *tamper) NewInterceptor(string) (interceptor.Interceptor, error) { return t, nil }

// BindLocalStream implements interceptor.Interceptor.
func (t *tamper) BindLocalStream(info *interceptor.StreamInfo, next interceptor.RTPWriter) interceptor.RTPWriter {
	ssrc, repair := info.SSRC, info.SSRCRetransmission
	t.mu.Lock()
	t.writers[ssrc] = next
	t.mu.Unlock()
	return interceptor.RTPWriterFunc(func(h *rtp.Header, payload []byte, a interceptor.Attributes) (int, error) {
		if t.withholds(h, payload, ssrc, repair) {
			return len(payload), nil
		}
		return next.Write(h, payload, a)
	})
}

func (t *tamper) withholds(h *rtp.Header, payload []byte, ssrc, repair uint32) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	seq := h.SequenceNumber
	switch highest, began := t.highest[ssrc]; {
	case repair != 0 && h.SSRC == repair:
		if len(payload) < 2 {
			return false
		}
		seq = binary.BigEndian.Uint16(payload)
		t.rtx++
	case began && int16(seq-highest) <= 0: //nolint:gosec // RFC 1982
		t.same++
	default:
		t.highest[ssrc] = seq
	}
	l := t.lost[lostKey{ssrc, seq}]
	if l == nil || l.times == 0 {
		return false
	}
	l.times--
	if !l.held {
		l.held, l.header, l.payload = true, h.Clone(), append([]byte(nil), payload...)
	}
	return true
}

// withhold lets a packet that is yet to be sent, and so many times in all, not pass.
func (t *tamper) withhold(ssrc uint32, seq uint16, times int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lost[lostKey{ssrc, seq}] = &lost{times: times}
}

// release sends the original of a packet that is withheld, late.
func (t *tamper) release(ssrc uint32, seq uint16) {
	t.mu.Lock()
	l, writer := t.lost[lostKey{ssrc, seq}], t.writers[ssrc]
	delete(t.lost, lostKey{ssrc, seq})
	t.mu.Unlock()
	if l != nil && l.held && writer != nil {
		_, _ = writer.Write(&l.header, l.payload, interceptor.Attributes{}) // a connection that is gone says so itself
	}
}

// resent counts retransmissions: by RTX, and in the stream itself.
func (t *tamper) resent() (rtx, same int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.rtx, t.same
}
