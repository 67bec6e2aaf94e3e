package relay_test

import (
	"testing"
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/sidecar/relay"
)

// asked is a session that counts.
type asked struct {
	*session
	requests *int
}

func (a asked) RequestKeyFrame() { *a.requests++ }

// At a server that does not hear its readers, each who comes is a request for a key frame, and none who goes.
func TestReadersAreGreeted(t *testing.T) {
	for _, ignores := range []bool{true, false} {
		var requests int
		run(t, func(b *bed, o *relay.ManagerOptions) {
			o.IgnoresPLI = ignores
			o.NewSession = func(s relay.Spec) relay.Runner { return asked{b.newSession(s), &requests} }
		}, func(b *bed) {
			b.peers.answer = relay.Claim{Granted: true}
			b.peer("b1", "5 b1")
			defer b.play()()
			for _, readers := range []int{1, 1, 3, 2, 3} {
				b.report(func(server map[adapters.StreamID]adapters.Stream) {
					s := server["x"]
					s.Readers = readers
					server["x"] = s
				})
				after(time.Second)
			}
			want := 0
			if ignores {
				want = 3
			}
			if requests != want {
				t.Errorf("%d requests, want %d", requests, want)
			}
		})
	}
}
