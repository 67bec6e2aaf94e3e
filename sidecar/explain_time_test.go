package main

import (
	"context"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sidestream-dev/sidestream/e2e/wan"
	"github.com/sidestream-dev/sidestream/sidecar/cascade"
)

// Three regions are 200 ms apart, and of a fourth node, whose heartbeats come, nothing is heard when it is asked: the account of all
// takes two seconds at most, and says of that one what is wrong.
func TestExplainAnswersInTime(t *testing.T) {
	network := wan.NewNetwork()
	running, end := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- network.Run(running) }()
	t.Cleanup(func() {
		end()
		<-ended
	})
	// Who accepts and never reads stands for what answers no more.
	mute, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = mute.Close() })
	link := wan.NewLink(1, wan.Params{Delay: 100 * time.Millisecond})
	far := network.Dialer(nil, func(string) wan.Link { return link })
	var silent atomic.Pointer[string] // the address of who falls silent
	dial := func(ctx context.Context, address string) (net.Conn, error) {
		if s := silent.Load(); s != nil && *s == address {
			address = mute.Addr().String()
		}
		return far(ctx, "tcp", address)
	}
	nodes := runNodes(t, map[string]string{"g1": "germany", "s1": "singapore", "u1": "us-west", "u2": "us-west"}, dial)
	publishAt(t, nodes["s1"], "show", nodes)
	address := nodes["u2"].listeners.peer.Addr().String()
	silent.Store(&address)
	nodes["g1"].peers.CloseIdleConnections()

	began := time.Now()
	e := cascade.Explain(nodes["g1"].askAll("show"), "show", "")
	took := time.Since(began)
	t.Logf("three clusters, 200 ms apart, one node silent: %s", took.Round(time.Millisecond))
	if took > 2*time.Second {
		t.Errorf("it took %s", took)
	}
	if len(e.Accounts) != 4 {
		t.Fatalf("%+v", e.Accounts)
	}
	for _, a := range e.Accounts {
		last := a.Stages[len(a.Stages)-1]
		if mute := a.Node == "u2"; mute != (a.State == cascade.Failed) || mute && !strings.Contains(last.Text, "does not answer") {
			t.Errorf("%s: %s at %s: %s", a.Node, a.State, a.Stage, last.Text)
		}
	}

	// Where all answer, it takes three round trips at most: TCP, what is asked, and nothing else.
	silent.Store(nil)
	began = time.Now()
	e = cascade.Explain(nodes["g1"].askAll("show"), "show", "")
	t.Logf("all answer: %s", time.Since(began).Round(time.Millisecond))
	for _, a := range e.Accounts {
		if a.State == cascade.Failed {
			t.Errorf("%+v", a)
		}
	}
}
