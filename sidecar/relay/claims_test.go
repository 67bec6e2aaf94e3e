package relay_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/sidecar/catalogue"
	"github.com/sidestream-dev/sidestream/sidecar/planner"
	"github.com/sidestream-dev/sidestream/sidecar/relay"
)

// owner is node a1 of cluster a, who grants pulls of x to a2, a3 and a4.
type owner struct {
	*testing.T
	*relay.Claims
	catalogue *catalogue.Catalogue
	now       time.Time
}

func newOwner(t *testing.T) *owner {
	o := &owner{T: t, Claims: relay.NewClaims(), catalogue: catalogue.New(catalogue.Node{ID: "a1", Cluster: "a"})}
	for _, id := range []ID{"a2", "a3", "a4", "b1"} {
		o.holds(id)
	}
	return o
}

// holds lets a node announce what it holds of x.
func (o *owner) holds(id ID, holds ...catalogue.Hold) {
	o.Helper()
	if err := o.catalogue.SetPeer(catalogue.Node{ID: id, Cluster: string(id)[:1]}, holds); err != nil {
		o.Fatal(err)
	}
	o.observe()
}

func (o *owner) observe() {
	s, _ := o.catalogue.Snapshot()
	o.Observe(o.now, s)
}

func (o *owner) after(d time.Duration) { o.now = o.now.Add(d) }

// want asks for a node and compares "granted", "none" or the holder.
func (o *owner) want(from ID, epoch uint64, want string) {
	o.Helper()
	s, _ := o.catalogue.Snapshot()
	c := o.Claim(o.now, s, from, "x", epoch)
	got := string(c.Holder)
	switch {
	case c.Granted && c.Holder == "":
		got = "granted"
	case c == relay.Claim{}:
		got = "none"
	}
	if got != want {
		o.Errorf("at %s %s asks at epoch %d: %s, want %s", o.now.Sub(time.Time{}), from, epoch, got, want)
	}
}

func hold(epoch uint64, path ...ID) catalogue.Hold {
	return catalogue.Hold{Stream: "x", Epoch: epoch, Path: path}
}

func TestLease(t *testing.T) {
	o := newOwner(t)
	o.want("b1", 1, "none") // of another cluster
	o.want("z9", 1, "none") // not known
	o.want("a2", 1, "granted")
	o.want("a3", 1, "a2")
	o.want("a2", 1, "granted")
	o.after(4 * time.Second)
	o.want("a2", 1, "granted") // which does not lengthen it
	o.want("a4", 1, "a2")
	o.after(time.Second)
	o.want("a2", 1, "a4") // it did not come to hold it: the next
	o.want("a4", 1, "granted")
	o.want("a3", 1, "a4")
	o.after(5 * time.Second)
	o.want("a3", 1, "granted")
	o.after(5 * time.Second)
	o.want("a3", 1, "granted") // nobody else asked
}

func TestLeaseIsRenewedByTheHold(t *testing.T) {
	o := newOwner(t)
	o.want("a2", 1, "granted")
	o.holds("a2", hold(1, "b1", "a2"))
	o.after(time.Hour)
	o.want("a3", 1, "a2")
	o.holds("a2") // it looks for another parent
	o.after(4 * time.Second)
	o.want("a3", 1, "a2")
	o.after(time.Second)
	o.want("a3", 1, "granted")
}

func TestLeaseEndsWithItsHolder(t *testing.T) {
	o := newOwner(t)
	o.want("a2", 1, "granted")
	o.catalogue.Forget("a2")
	o.want("a3", 1, "granted")
}

func TestLeaseIsForAnEpoch(t *testing.T) {
	o := newOwner(t)
	o.want("a2", 3, "granted")
	o.want("a3", 2, "a2") // it has not heard of the newer one
	o.want("a3", 4, "granted")
	o.want("a2", 4, "a3")
	o.holds("b1", hold(9, "b1"))
	o.want("a2", 4, "granted") // the owner knows of a newer one
	o.want("a3", 9, "a2")
}

// TestLeaseUnderOtherPolicies: a later epoch is no better by itself.
func TestLeaseUnderOtherPolicies(t *testing.T) {
	oldest := func(epoch uint64, path ...ID) catalogue.Hold {
		h := hold(epoch, path...)
		h.Oldest = true
		return h
	}
	o := newOwner(t)
	o.holds("b1", oldest(3, "b1"))
	o.holds("c1", oldest(7, "c1"))
	o.want("a2", 7, "granted") // it has not heard of the older one, which it will pull
	o.want("a3", 3, "a2")
	o.want("a4", 7, "a2")
	o.holds("a2", oldest(7, "c1", "a2"))
	o.after(5 * time.Second)
	o.want("a3", 3, "granted") // what a2 holds is beaten
	o.holds("a3", oldest(3, "b1", "a3"))
	o.after(time.Hour)
	o.want("a2", 3, "a3")
	o.want("a2", 7, "a3")
	o.want("a2", 9, "granted") // the owner has not heard of that one: it may be of a higher priority
	o.want("a3", 3, "granted") // who holds the winner is adopted
}

// TestLeaseFollowsTheHold: a grantee whose parent turned out to have a later publication keeps its right.
func TestLeaseFollowsTheHold(t *testing.T) {
	o := newOwner(t)
	o.want("a2", 3, "granted")
	o.holds("a2", hold(5, "b1", "a2"))
	o.holds("b1", hold(5, "b1"))
	o.holds("a2")
	o.want("a3", 5, "a2")
}

// TestLeaseOfANodeThatLeaves: it keeps nothing that another wants.
func TestLeaseOfANodeThatLeaves(t *testing.T) {
	drains := catalogue.Condition{Ready: true, Draining: true}
	o := newOwner(t)
	o.holds("b1", hold(1, "b1"))
	o.want("a2", 1, "granted")
	o.catalogue.SetCondition("a2", drains)
	o.want("a2", 1, "granted") // nobody else has asked
	o.want("a3", 1, "granted")
	o.want("a2", 1, "a3")
	o.holds("a3", hold(1, "b1", "a3"))
	o.catalogue.SetCondition("a3", drains)
	o.want("a4", 1, "granted") // though a3 holds it
	o.want("a2", 1, "a3")      // which is about to leave itself
}

func TestHoldsAreAdopted(t *testing.T) {
	o := newOwner(t)
	first := planner.Rank("x", []ID{"a2", "a3"})[0]
	o.holds("a4", hold(1, "b1", "a2", "a4"))
	o.holds("a2", hold(1, "b1", "a2"))
	o.want("a3", 1, "a2")
	o.want("a2", 1, "granted")
	o.holds("a3", hold(1, "b1", "a3"))
	o.want("a4", 1, string(first))
	o.holds("a1x", hold(2, "a1x")) // published within the cluster
	o.want("a4", 1, "a1x")
}

func TestLeasesAreBounded(t *testing.T) {
	o := newOwner(t)
	s, _ := o.catalogue.Snapshot()
	for i := range catalogue.MaxHolds + 10 {
		if c := o.Claim(o.now, s, "a2", adapters.StreamID(fmt.Sprint("s", i)), 1); !c.Granted {
			t.Fatalf("claim %d: %+v", i, c)
		}
	}
	o.want("a2", 1, "granted")
	o.want("a3", 1, "granted") // no room to remember, so both may
	o.after(11 * time.Second)
	o.want("a2", 1, "granted")
	o.want("a3", 1, "a2")
}

// A process that was killed, and is back before anybody missed it, has lost what it was granted; unless it has the stream.
func TestLeaseEndsWithItsProcess(t *testing.T) {
	o := newOwner(t)
	o.want("a2", 5, "granted")
	o.want("a3", 5, "a2")
	reborn := catalogue.Node{ID: "a2", Cluster: "a", Incarnation: 1}
	if err := o.catalogue.SetPeer(reborn, nil); err != nil {
		t.Fatal(err)
	}
	o.observe()
	o.want("a3", 5, "granted")
	o.want("a2", 5, "a3")

	o.holds("b1", hold(6, "b1"))
	o.want("a2", 6, "granted")
	if err := o.catalogue.SetPeer(reborn, []catalogue.Hold{hold(6, "b1", "a2")}); err != nil {
		t.Fatal(err)
	}
	o.observe()
	reborn.Incarnation++
	if err := o.catalogue.SetPeer(reborn, []catalogue.Hold{hold(6, "b1", "a2")}); err != nil {
		t.Fatal(err)
	}
	o.observe()
	o.want("a3", 6, "a2")
}
