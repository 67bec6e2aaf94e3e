package media

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/pion/interceptor/pkg/twcc"
	"github.com/pion/rtcp"
)

// transfer sends over a path what a function wants at each moment, reports every 100 ms, and gives the estimate at the end.
func transfer(o *outgoing, p *path, d time.Duration, bits func(at time.Duration) float64, probing func(at time.Duration) bool) {
	random := rand.New(rand.NewPCG(1, 1))
	recorder := twcc.NewRecorder(1)
	start := time.Unix(1_800_000_000, 0)
	type arrival struct {
		seq uint16
		at  time.Duration
	}
	var under []arrival
	var owed float64
	reported := time.Duration(0)
	for at := time.Duration(0); at < d; at += time.Millisecond {
		owed += bits(at) / 8 / 1000
		for owed >= 1000 {
			owed -= 1000
			seq := o.send(start.Add(at), 1000, probing(at))
			if out, ok := p.pass(random, at, 1000); ok {
				under = append(under, arrival{seq, out})
			}
		}
		for len(under) > 0 && under[0].at <= at {
			// The far end's clock is another.
			recorder.Record(1, under[0].seq, (under[0].at + 77*time.Hour).Microseconds())
			under = under[1:]
		}
		if at-reported >= 100*time.Millisecond {
			reported = at
			for _, packet := range recorder.BuildFeedbackPacket() {
				o.report(start.Add(at+p.delay), packet.(*rtcp.TransportLayerCC))
			}
		}
	}
}

func TestOutgoing(t *testing.T) {
	never := func(time.Duration) bool { return false }
	for name, test := range map[string]struct {
		path    path
		bits    float64
		limited bool
		low     int64
		high    int64
	}{
		"wide":            {path{bits: 10e6, queue: time.Second}, 2e6, false, 2e6, 3.5e6},
		"with jitter":     {path{bits: 10e6, queue: time.Second, jitter: 5 * time.Millisecond}, 2e6, false, 1.5e6, 3.5e6},
		"half too narrow": {path{bits: 1e6, queue: 300 * time.Millisecond}, 2e6, true, 0.5e6, 1.2e6},
		"without a queue": {path{bits: 1e6, queue: 20 * time.Millisecond}, 2e6, true, 0.4e6, 1.2e6},
	} {
		t.Run(name, func(t *testing.T) {
			var o outgoing
			test.path.delay = 20 * time.Millisecond
			const d = 10 * time.Second
			transfer(&o, &test.path, d, func(time.Duration) float64 { return test.bits }, never)
			bits, limited := o.now(time.Unix(1_800_000_000, 0).Add(d))
			if limited != test.limited || bits < test.low || bits > test.high {
				t.Errorf("%d bits, limited: %t", bits, limited)
			}
		})
	}
}

// A probe shows what a stream that needs less does not; one that does not come through shows nothing, and does no harm.
func TestOutgoingProbe(t *testing.T) {
	for name, test := range map[string]struct {
		bits      float64
		low, high int64
	}{
		"it comes through": {10e6, 1_700_000, 2_200_000},
		"it does not":      {1e6, 250_000, 1_100_000},
	} {
		t.Run(name, func(t *testing.T) {
			var o outgoing
			p := path{bits: test.bits, queue: 100 * time.Millisecond, delay: 20 * time.Millisecond}
			during := func(at time.Duration) bool { return at >= 5*time.Second && at < 5*time.Second+150*time.Millisecond }
			began, ended := false, false
			transfer(&o, &p, 6*time.Second, func(at time.Duration) float64 {
				switch {
				case during(at) && !began:
					began = true
					o.begin()
				case began && !ended && !during(at):
					ended = true
					o.end(time.Unix(1_800_000_000, 0).Add(at))
				}
				if during(at) {
					return 2e6
				}
				return 300e3
			}, during)
			if bits, limited := o.now(time.Unix(1_800_000_006, 0)); bits < test.low || bits > test.high || limited {
				t.Errorf("%d bits, limited: %t", bits, limited)
			}
		})
	}
}

// What a far end says against all sense is passed over.
func TestOutgoingNonsense(t *testing.T) {
	var o outgoing
	now := time.Unix(1_800_000_000, 0)
	o.report(now, &rtcp.TransportLayerCC{PacketStatusCount: 10, PacketChunks: []rtcp.PacketStatusChunk{
		&rtcp.RunLengthChunk{PacketStatusSymbol: rtcp.TypeTCCPacketReceivedSmallDelta, RunLength: 10},
	}})
	for range 20 {
		o.send(now, 1000, false)
	}
	for range 3 { // the same again and again, more than it holds, of packets never sent, and from another time
		for _, r := range []*rtcp.TransportLayerCC{
			{BaseSequenceNumber: 5, PacketStatusCount: 65535, PacketChunks: []rtcp.PacketStatusChunk{
				&rtcp.RunLengthChunk{PacketStatusSymbol: rtcp.TypeTCCPacketReceivedSmallDelta, RunLength: 8191},
			}, RecvDeltas: []*rtcp.RecvDelta{{Delta: 250}}},
			{BaseSequenceNumber: 60000, PacketStatusCount: 7, ReferenceTime: 1<<24 - 1, PacketChunks: []rtcp.PacketStatusChunk{
				&rtcp.StatusVectorChunk{SymbolList: []uint16{1, 2, 3, 0, 1, 1, 1}},
			}, RecvDeltas: []*rtcp.RecvDelta{{Delta: -1 << 15}, {Delta: 1 << 30}, {}, {}, {}, {}}},
		} {
			o.report(now, r)
		}
	}
	if o.came != 1 || o.missed != 0 {
		t.Errorf("%d came, %d were missed", o.came, o.missed)
	}
}
