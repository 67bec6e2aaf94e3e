package sidestreamv1

import (
	"errors"
	"fmt"
	"strings"

	"github.com/sidestream-dev/sidestream/adapters"
)

// The bounds of what a peer may say in one frame. They are far above what a mesh needs and far below what hurts.
const (
	MaxID          = 253  // bytes in a node id
	MaxCluster     = 253  // bytes in a cluster's name
	MaxNamespace   = 63   // bytes in a namespace
	MaxFingerprint = 64   // bytes in a cluster's fingerprint
	MaxHost        = 253  // bytes in a host name
	MaxText        = 512  // bytes in a version, a reason or a URL
	MaxToken       = 4096 // bytes in a pull token
	MaxProcess     = 64   // bytes in a process's random name
	MaxFeatures    = 64   // in a hello
	MaxPath        = 16   // nodes in a path
	MaxTracks      = 64   // in a hold
	MaxHolds       = 1024 // in one piece of a set, withdrawn ones counted separately
	MaxPacketAges  = 4096 // in a heartbeat
	MaxTrackWord   = 64   // bytes in a track's kind, MIME type or RID
	MaxFeatureWord = 64   // bytes in a feature's name
)

// Validate reports what no honest node would send. A frame of a kind that this version does not know is valid: it
// comes from a newer one, and is ignored.
func (x *ExchangeRequest) Validate() error { return validateWrapped(x.GetFrame()) }

// Validate does for the dialled side what it does for the dialler's.
func (x *ExchangeResponse) Validate() error { return validateWrapped(x.GetFrame()) }

func validateWrapped(f *Frame) error {
	if f == nil {
		return errors.New("frame is missing")
	}
	return f.Validate()
}

// Validate reports what no honest node would send.
func (x *Frame) Validate() error {
	switch body := x.GetBody().(type) {
	case *Frame_Hello:
		return prefix("hello", body.Hello.validate())
	case *Frame_Heartbeat:
		return prefix("heartbeat", body.Heartbeat.validate())
	case *Frame_Holds:
		return prefix("holds", body.Holds.validate())
	case *Frame_ClaimRequest:
		return prefix("claim request", errors.Join(validateStream(body.ClaimRequest.GetStream()), body.ClaimRequest.GetTrace().validate()))
	case *Frame_ClaimAnswer:
		if body.ClaimAnswer.GetHolder() == "" {
			return nil
		}
		return prefix("claim answer", validateID(body.ClaimAnswer.GetHolder()))
	case *Frame_PullRequest:
		return prefix("pull request", errors.Join(validateStream(body.PullRequest.GetStream()), body.PullRequest.GetTrace().validate()))
	case *Frame_PullAnswer:
		return prefix("pull answer", body.PullAnswer.validate())
	case *Frame_Obituary:
		return prefix("obituary", validateID(body.Obituary.GetNode()))
	case *Frame_Refusal:
		return prefix("refusal", validateLength("reason", body.Refusal.GetReason(), MaxText))
	default:
		return nil
	}
}

func (x *Hello) validate() error {
	errs := []error{
		validateID(x.GetNode()),
		validateLength("version", x.GetVersion(), MaxText),
		validateWord("host", x.GetHost(), MaxHost),
		validateWord("cluster", x.GetCluster(), MaxCluster),
	}
	if x.GetCluster() == "" {
		errs = append(errs, errors.New("cluster is empty"))
	}
	if err := validateNamespace(x.GetNamespace()); err != nil {
		errs = append(errs, err)
	}
	if n := len(x.GetClusterFingerprint()); n > MaxFingerprint {
		errs = append(errs, fmt.Errorf("cluster fingerprint is %d bytes long; at most %d are allowed", n, MaxFingerprint))
	}
	if x.GetPort() > 65535 {
		errs = append(errs, fmt.Errorf("port %d is not one", x.GetPort()))
	}
	if n := len(x.GetProcess()); n > MaxProcess {
		errs = append(errs, fmt.Errorf("process is %d bytes long; at most %d are allowed", n, MaxProcess))
	}
	if n := len(x.GetFeatures()); n > MaxFeatures {
		errs = append(errs, fmt.Errorf("%d features; at most %d are allowed", n, MaxFeatures))
		return errors.Join(errs...)
	}
	for _, f := range x.GetFeatures() {
		errs = append(errs, validateLength("feature", f, MaxFeatureWord))
	}
	return errors.Join(errs...)
}

// What it says is read by the standard's rules, and counts for nothing where it breaks them.
func (x *Trace) validate() error {
	return errors.Join(validateLength("trace", x.GetParent(), MaxText), validateLength("trace's state", x.GetState(), MaxText))
}

func (x *Heartbeat) validate() error {
	if n := len(x.GetPacketAges()); n > MaxPacketAges {
		return fmt.Errorf("%d packet ages; at most %d are allowed", n, MaxPacketAges)
	}
	for _, a := range x.GetPacketAges() {
		if err := validateStream(a.GetStream()); err != nil {
			return err
		}
	}
	return validateWord("load's URL", x.GetLoad().GetUrl(), MaxText)
}

func (x *Holds) validate() error {
	if n := len(x.GetHolds()); n > MaxHolds {
		return fmt.Errorf("%d in one piece; at most %d are allowed", n, MaxHolds)
	}
	if n := len(x.GetWithdrawn()); n > MaxHolds {
		return fmt.Errorf("%d withdrawn in one piece; at most %d are allowed", n, MaxHolds)
	}
	if x.GetBase() >= x.GetSequence() {
		return fmt.Errorf("sequence %d does not come after its base %d", x.GetSequence(), x.GetBase())
	}
	if x.GetBase() == 0 && len(x.GetWithdrawn()) > 0 {
		return errors.New("a full set withdraws")
	}
	for _, h := range x.GetHolds() {
		if err := h.validate(); err != nil {
			return err
		}
	}
	for _, s := range x.GetWithdrawn() {
		if err := validateStream(s); err != nil {
			return err
		}
	}
	return nil
}

func (x *Hold) validate() error {
	if err := validateStream(x.GetStream()); err != nil {
		return err
	}
	if err := validatePath(x.GetPath()); err != nil {
		return fmt.Errorf("stream %q: %w", x.GetStream(), err)
	}
	if n := len(x.GetTracks()); n > MaxTracks {
		return fmt.Errorf("stream %q: %d tracks; at most %d are allowed", x.GetStream(), n, MaxTracks)
	}
	for _, t := range x.GetTracks() {
		err := errors.Join(
			validateWord("track kind", t.GetKind(), MaxTrackWord),
			validateWord("track MIME type", t.GetMime(), MaxTrackWord),
			validateWord("track RID", t.GetRid(), MaxTrackWord))
		if err != nil {
			return fmt.Errorf("stream %q: %w", x.GetStream(), err)
		}
	}
	return nil
}

func (x *PullAnswer) validate() error {
	switch result := x.GetResult().(type) {
	case *PullAnswer_Grant:
		return errors.Join(
			validateWord("token", result.Grant.GetToken(), MaxToken),
			validatePath(result.Grant.GetPath()))
	case *PullAnswer_Refused:
		return validateLength("reason", result.Refused, MaxText)
	default:
		return errors.New("neither granted nor refused")
	}
}

func validatePath(path []string) error {
	if len(path) == 0 {
		return errors.New("path is empty")
	}
	if len(path) > MaxPath {
		return fmt.Errorf("path of %d nodes; at most %d are allowed", len(path), MaxPath)
	}
	for i, id := range path {
		if err := validateID(id); err != nil {
			return err
		}
		for _, earlier := range path[:i] {
			if earlier == id {
				return fmt.Errorf("path passes node %q twice", id)
			}
		}
	}
	return nil
}

func validateID(id string) error {
	if id == "" {
		return errors.New("node id is empty")
	}
	return validateWord("node id", id, MaxID)
}

// validateNamespace is for one label of a DNS name (RFC 1123 section 2.1), without regard to case; it may be empty.
func validateNamespace(s string) error {
	other := func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-'
	}
	if strings.ContainsFunc(s, other) || strings.HasPrefix(s, "-") || strings.HasSuffix(s, "-") {
		return errors.New("namespace is not a label of a DNS name")
	}
	return validateLength("namespace", s, MaxNamespace)
}

func validateStream(id string) error { return adapters.StreamID(id).Validate() }

// validateWord is for what goes into labels, headers and URLs: printable ASCII without spaces.
func validateWord(what, s string, longest int) error {
	if strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return fmt.Errorf("%s holds a character that is not printable ASCII", what)
	}
	return validateLength(what, s, longest)
}

func validateLength(what, s string, longest int) error {
	if len(s) > longest {
		return fmt.Errorf("%s is %d bytes long; at most %d are allowed", what, len(s), longest)
	}
	return nil
}

func prefix(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}
