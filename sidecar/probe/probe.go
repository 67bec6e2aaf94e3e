// Package probe tests a server that speaks WHIP or WHEP from outside, as an operator would before trusting it: it publishes
// and plays streams of its own, does to them what networks and people do, and reports what a cascade can expect. The command
// "sidestream probe" is a thin layer around it. It deletes what it made, and uses names that nobody else does.
package probe

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pion/webrtc/v4"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/whip"
)

// Default times of a whole probe, without and with Options.Slow.
const (
	DefaultTimeout     = time.Minute
	DefaultSlowTimeout = 3 * time.Minute
)

// concurrent bounds the publications with their viewers that run at once.
const concurrent = 3

// Options say what is probed and how.
type Options struct {
	// Base is a server's address, tried with the paths of known makes. It is empty where Publish or Play is given.
	Base string
	// Publish and Play are the URLs of its WHIP and WHEP endpoints, with {stream} for the name; one may be empty.
	Publish, Play string
	// Bearer tokens; PublishToken and PlayToken go before Token. They may hold {stream}.
	Token, PublishToken, PlayToken string
	// Header goes with every request. Values may hold {stream}.
	Header http.Header
	// Stream is the name to be used, for servers that know their names beforehand; empty means random ones. Where somebody
	// publishes it already, nothing is published.
	Stream adapters.StreamID
	// Timeout bounds the whole; zero means the default.
	Timeout time.Duration
	// Slow also finds out how long the server believes in those who vanish.
	Slow bool
	// Transport sends requests; nil means http.DefaultTransport.
	Transport http.RoundTripper
	// Progress is told what is being done, from any goroutine; nil is nobody.
	Progress func(string)
}

// Probe is one examination of a server. Make it by New.
type Probe struct {
	options   Options
	target    target
	bounds    bounds
	transport http.RoundTripper
	bare      *http.Client
	prefix    string

	mu     sync.Mutex
	checks map[string]Check
	facts  facts
}

// bounds are how long things are waited for.
type bounds struct {
	open    time.Duration // an answer to an offer
	request time.Duration // an answer to anything else
	wait    time.Duration // media that should come, and a stream that should appear
	quiet   time.Duration // something that should not come
	hold    time.Duration // a server that waits for a missing packet
	vanish  time.Duration // a server that believes in one who vanished
	retry   time.Duration // between attempts
}

// facts are what steps find out that others and the summary need.
type facts struct {
	publishes, plays, whole bool
	codecs                  []string
	main                    content // what detailed steps publish
	traits                  adapters.Traits
	missing                 int           // status of a play of what nobody publishes, 0: not known
	waits                   bool          // such a play is taken, and served once somebody publishes
	location                string        // path of a publisher's session
	firstKey                time.Duration // the longest that a viewer waits for one
}

// New checks the options.
func New(o Options) (*Probe, error) {
	if (o.Base == "") == (o.Publish == "" && o.Play == "") {
		return nil, errors.New("give either one address, or the URLs to publish and to play")
	}
	if o.Stream != "" {
		if err := o.Stream.Validate(); err != nil {
			return nil, err
		}
	}
	elsewhere := o.Stream != ""
	for _, values := range o.Header {
		elsewhere = elsewhere || slices.ContainsFunc(values, func(v string) bool { return strings.Contains(v, placeholder) })
	}
	for _, token := range []string{o.Token, o.PublishToken, o.PlayToken} {
		elsewhere = elsewhere || strings.Contains(token, placeholder)
	}
	for _, u := range []string{o.Base, o.Publish, o.Play} {
		if u == "" {
			continue
		}
		if err := checkTemplate(u, elsewhere || u == o.Base); err != nil {
			return nil, err
		}
	}
	if o.Base != "" && strings.ContainsAny(o.Base, "{?#") {
		return nil, fmt.Errorf("%q must be like https://host or https://host/path; with %s give the URL to publish and the one to play",
			o.Base, placeholder)
	}
	if o.Publish == "" && o.Base == "" && o.Stream == "" {
		return nil, errors.New("with a URL to play only, -stream must name a stream that is published there")
	}
	if o.Timeout < 0 {
		return nil, fmt.Errorf("the time for it all is %s: give one like 60s", o.Timeout)
	}
	if o.Timeout == 0 {
		o.Timeout = DefaultTimeout
		if o.Slow {
			o.Timeout = DefaultSlowTimeout
		}
	}
	if o.Transport == nil {
		o.Transport = http.DefaultTransport
	}
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	p := &Probe{
		options: o, transport: o.Transport, checks: map[string]Check{},
		target: target{publish: o.Publish, play: o.Play},
		prefix: "sidestream-probe-" + strings.ToLower(rand.Text()[:8]),
		bounds: bounds{
			open: 15 * time.Second, request: 5 * time.Second, wait: 8 * time.Second, quiet: 2500 * time.Millisecond,
			hold: 2200 * time.Millisecond, vanish: 2 * time.Minute, retry: 100 * time.Millisecond,
		},
	}
	p.bare = &http.Client{
		Transport:     o.Transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	if o.Base == "" {
		p.target.scheme = guess(o.Publish, o.Play)
		p.target.scheme.key = false // what goes along is said by the flags
	}
	return p, nil
}

// Run probes, until it is done or the time is over, and reports what it saw until then. It deletes its sessions before it
// returns. Its error is ctx's.
func (p *Probe) Run(ctx context.Context) (Report, error) {
	began := time.Now()
	bounded, cancel := context.WithTimeout(ctx, p.options.Timeout)
	defer cancel()
	p.examine(bounded)
	r := p.summarize(bounded, began)
	return r, ctx.Err()
}

func (p *Probe) examine(ctx context.Context) {
	p.address(ctx)
	if p.options.Base != "" && !p.detect(ctx) {
		return
	}
	if p.options.Stream != "" && !p.vacant(ctx) {
		return
	}
	if p.target.play != "" {
		p.tryMissing(ctx)
	}
	if !p.tryMedia(ctx) {
		p.tryHTTP(ctx)
		return
	}
	steps := []func(context.Context){
		p.tryHTTP, p.tryOpen, p.trySession, p.tryDetails, p.tryLife, p.tryCodecs, p.trySimulcast, p.tryOffers, p.tryEvents,
	}
	if p.options.Slow {
		steps = append([]func(context.Context){p.tryVanish, p.tryViewerVanish, p.tryHalfOpen}, steps...)
	}
	p.all(ctx, steps)
}

// all takes the steps, some at once where each has streams of its own.
func (p *Probe) all(ctx context.Context, steps []func(context.Context)) {
	most := concurrent
	if p.options.Slow {
		most += 3 // they wait, mostly
	}
	if p.options.Stream != "" {
		most = 1
	}
	var group sync.WaitGroup
	free := make(chan struct{}, most)
	for _, step := range steps {
		free <- struct{}{}
		group.Go(func() {
			defer func() { <-free }()
			if ctx.Err() == nil {
				step(ctx)
			}
		})
	}
	group.Wait()
}

// name is a stream's for one purpose.
func (p *Probe) name(purpose string) adapters.StreamID {
	if p.options.Stream != "" {
		return p.options.Stream
	}
	return adapters.StreamID(p.prefix + "-" + purpose)
}

func (p *Probe) record() *recorder { return &recorder{next: p.transport} }

func (p *Probe) say(format string, args ...any) { p.options.Progress(fmt.Sprintf(format, args...)) }

// note writes a check down.
func (p *Probe) note(id string, v Verdict, format string, args ...any) {
	if !known(id) {
		panic("probe: no check " + id)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.checks[id] = Check{ID: id, Verdict: v, Text: fmt.Sprintf(format, args...)}
}

// learn changes the facts.
func (p *Probe) learn(change func(*facts)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change(&p.facts)
}

// fact is a copy of the facts.
func (p *Probe) fact() facts {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.facts
}

// why is an error in the words of a report.
func why(err error) string {
	var refused *whip.StatusError
	if errors.As(err, &refused) {
		text := answer{status: refused.Code}.String()
		if detail := cmp.Or(refused.Problem.Detail, refused.Problem.Title); detail != "" {
			text += ": " + strings.TrimRight(excerpt(detail), ".")
		}
		return text
	}
	if errors.Is(err, webrtc.ErrUnsupportedCodec) {
		return "the answer refuses its section"
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return "no answer in time"
	}
	text := err.Error()
	// The URL stands at the head of the report.
	if _, rest, ok := strings.Cut(text, ": "); ok && strings.Contains(text[:len(text)-len(rest)], "://") {
		text = rest
	}
	return excerpt(text)
}

// refusal is the status of an error that is a server's refusal, else 0.
func refusal(err error) int {
	var refused *whip.StatusError
	if errors.As(err, &refused) {
		return refused.Code
	}
	return 0
}

func ms(d time.Duration) string { return fmt.Sprintf("%d ms", d.Milliseconds()) }
