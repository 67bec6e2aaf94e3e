package mesh

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"net"
	"sync"
	"time"
)

// datagramsFeature is in the hello of a node that answers datagrams at the number of its peer port.
const datagramsFeature = "datagrams"

const (
	// datagramSize is that of each, question and answer: the payload of the largest packets of media that are common. So a
	// stranger's question, were it answered, would bring him nothing that he does not pay for.
	datagramSize  = 1300
	datagramNonce = 16
	// datagramPeriod is how often a peer is asked while it answers, datagramRetry how soon it is asked again when it did not.
	// After datagramTries without an answer datagrams do not pass.
	datagramPeriod = time.Minute
	datagramRetry  = time.Second
	datagramTries  = 5
)

// passage is what one link knows of datagrams to its peer. Guarded by datagrams.mu.
type passage struct {
	nonce [datagramNonce]byte
	next  time.Time // when the peer is asked again
	tries int       // questions since the last answer
	lost  bool
}

// datagrams finds out whether UDP passes to the peers, in packets as large as those of media: connections by TCP show neither a
// firewall that stops UDP, nor a network between the clusters whose packets are smaller than it says.
//
// A question is a nonce and its HMAC by what the peer said of its process in the handshake, and so only those who are joined can
// ask; an answer is the same with another purpose. Only addresses are asked: behind a name there may be a balancer.
type datagrams struct {
	mesh *Mesh
	conn net.PacketConn

	mu    sync.Mutex // taken after Mesh.mu
	asked map[[datagramNonce]byte]*link
}

// seal is the HMAC of a question to, or an answer from, a process.
func seal(process []byte, purpose string, nonce []byte) []byte {
	h := hmac.New(sha256.New, process)
	_, _ = h.Write([]byte("sidestream datagram " + purpose + " "))
	_, _ = h.Write(nonce)
	return h.Sum(nil)
}

// serve answers questions, and takes the answers to this node's own, until the socket is closed.
func (d *datagrams) serve() {
	var b [datagramSize + 1]byte
	for {
		n, from, err := d.conn.ReadFrom(b[:])
		if err != nil {
			return
		}
		if n != datagramSize {
			continue
		}
		nonce, proof := b[:datagramNonce], b[datagramNonce:datagramNonce+sha256.Size]
		if l := d.answered([datagramNonce]byte(nonce), proof); l != nil {
			continue
		}
		if hmac.Equal(proof, seal(d.mesh.process, "question", nonce)) {
			copy(proof, seal(d.mesh.process, "answer", nonce))
			_, _ = d.conn.WriteTo(b[:n], from)
		}
	}
}

// answered notes an answer, and says whose it is.
func (d *datagrams) answered(nonce [datagramNonce]byte, proof []byte) *link {
	d.mu.Lock()
	defer d.mu.Unlock()
	l := d.asked[nonce]
	if l == nil || !hmac.Equal(proof, seal(l.process, "answer", nonce[:])) {
		return nil
	}
	delete(d.asked, nonce)
	l.passage = passage{next: time.Now().Add(datagramPeriod)}
	return l
}

// ask asks those whose turn it is, until ctx ends.
func (d *datagrams) ask(ctx context.Context) {
	tick := time.NewTicker(datagramRetry)
	defer tick.Stop()
	for {
		for nonce, l := range d.due(time.Now()) {
			b := make([]byte, datagramSize)
			copy(b[copy(b, nonce[:]):], seal(l.process, "question", nonce[:]))
			_, _ = d.conn.WriteTo(b, net.UDPAddrFromAddrPort(l.datagrams)) // that it cannot be sent is seen by the answer that is missing
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// due are the links whose peers are to be asked now, by the nonces of the questions. Those whose peers have not answered are reported.
func (d *datagrams) due(now time.Time) map[[datagramNonce]byte]*link {
	d.mesh.mu.Lock()
	defer d.mesh.mu.Unlock()
	due := map[[datagramNonce]byte]*link{}
	var lost []*link
	d.mu.Lock()
	for nonce, l := range d.asked {
		if l.ended() {
			delete(d.asked, nonce)
		}
	}
	for _, p := range d.mesh.peers {
		l := p.primary
		if l == nil || !l.datagrams.IsValid() || now.Before(l.passage.next) {
			continue
		}
		delete(d.asked, l.passage.nonce)
		if l.passage.tries >= datagramTries {
			l.passage = passage{next: now.Add(datagramPeriod), lost: true}
			lost = append(lost, l)
			continue
		}
		l.passage.next = now.Add(datagramRetry)
		l.passage.tries++
		_, _ = rand.Read(l.passage.nonce[:]) // never fails
		d.asked[l.passage.nonce] = l
		due[l.passage.nonce] = l
	}
	d.mu.Unlock()
	for _, l := range lost {
		d.mesh.report(l)
	}
	return due
}

// lost says whether datagrams do not pass to a link's peer, as far as this is known.
func (d *datagrams) lost(l *link) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return l.passage.lost
}
