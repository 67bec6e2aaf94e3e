package catalogue

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/sidestream-dev/sidestream/adapters"
)

// Record is what a catalogue must not forget when its sidecar is restarted. It is kept as JSON.
type Record struct {
	Clock    uint64    `json:"clock"`
	Bindings []Binding `json:"bindings,omitempty"`
	// Carried are the WHIP sessions that own relays have at the own server: after a crash they are to be deleted there,
	// and until then they are not origins' publications.
	Carried []Carried `json:"carried,omitempty"`
	// Tells is set when the server's sessions were seen to match its locations.
	Tells bool `json:"tells,omitempty"`
}

// Binding is the epoch of one publication at the own server.
type Binding struct {
	Stream  adapters.StreamID `json:"stream"`
	Session string            `json:"session,omitempty"`
	Epoch   uint64            `json:"epoch"`
}

// Carried is a WHIP session of an own relay. Its Location is "" until that is known.
type Carried struct {
	Stream   adapters.StreamID `json:"stream"`
	Location string            `json:"location,omitempty"`
}

// Record is the memory as it stands; the same memory always yields the same record. Whoever persists it does so when the
// channel of a Snapshot is closed, and from time to time for the clock.
func (c *Catalogue) Record() Record {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := Record{Clock: c.clock, Tells: c.tells}
	for _, id := range slices.Sorted(maps.Keys(c.bindings)) {
		b := c.bindings[id]
		r.Bindings = append(r.Bindings, Binding{Stream: id, Session: b.session, Epoch: b.epoch})
	}
	for _, id := range slices.Sorted(maps.Keys(c.carriers)) {
		o := c.carriers[id]
		for _, l := range o.locations {
			r.Carried = append(r.Carried, Carried{Stream: id, Location: l})
		}
		if !o.located {
			r.Carried = append(r.Carried, Carried{Stream: id})
		}
	}
	return r
}

// Restore takes over the record of the process before. It is called before the first SetLocal. A record that cannot be
// true is refused as a whole, and the catalogue goes on without one.
func (c *Catalogue) Restore(r Record) error {
	bindings := make(map[adapters.StreamID]binding, len(r.Bindings))
	for _, b := range r.Bindings {
		if err := b.Stream.Validate(); err != nil {
			return fmt.Errorf("restore record: %w", err)
		}
		if b.Epoch > r.Clock {
			return fmt.Errorf("restore record: stream %q has epoch %d and the clock stands at %d", b.Stream, b.Epoch, r.Clock)
		}
		bindings[b.Stream] = binding{session: b.Session, epoch: b.Epoch}
	}
	carriers := map[adapters.StreamID]*carrier{}
	for _, o := range r.Carried {
		if err := o.Stream.Validate(); err != nil {
			return fmt.Errorf("restore record: %w", err)
		}
		if carriers[o.Stream] == nil {
			carriers[o.Stream] = &carrier{located: true, unsettled: true}
		}
		if o.Location == "" {
			carriers[o.Stream].located = false
			continue
		}
		carriers[o.Stream].locations = lastFew(append(carriers[o.Stream].locations, o.Location))
	}
	if len(bindings) > maxBindings || len(carriers) > MaxHolds {
		return fmt.Errorf("restore record: %w streams", ErrLimit)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.clock = max(c.clock, r.Clock)
	c.tells = c.tells || r.Tells
	maps.Copy(c.bindings, bindings)
	maps.Copy(c.carriers, carriers)
	c.settle(nil)
	return nil
}

// Left are the WHIP sessions at the own server that ended relays may have left behind there, of this process or of the
// one before.
func (c *Catalogue) Left() []Carried {
	c.mu.Lock()
	defer c.mu.Unlock()
	var left []Carried
	for id, o := range c.carriers {
		for _, l := range o.locations {
			if !o.active {
				left = append(left, Carried{Stream: id, Location: l})
			}
		}
	}
	slices.SortFunc(left, func(a, b Carried) int {
		if d := strings.Compare(string(a.Stream), string(b.Stream)); d != 0 {
			return d
		}
		return strings.Compare(a.Location, b.Location)
	})
	return left
}
