package generic

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/itchyny/gojq"

	"github.com/sidestream-dev/sidestream/adapters"
)

// maxStreams bounds what an inventory is believed to hold.
const maxStreams = 100_000

// Stream is what a Query yields for each stream; only the name must be there. It may yield several, or arrays of them.
type Stream struct {
	Name string `json:"name"`
	// Session tells one publication of the name from the next: best what the Location of the WHIP session ends in.
	Session string     `json:"session"`
	Since   *time.Time `json:"since"`   // RFC 3339
	Readers *int       `json:"readers"` // where it is missing or null, the server does not say
	// Tracks are MIME types, "video/H264" or "audio/opus"; null ones are left out.
	Tracks  []*string `json:"tracks"`
	Waiting bool      `json:"waiting"` // somebody plays what nobody publishes
	Relayed bool      `json:"relayed"` // published by a sidecar, as the server shows by whatever the path to publish holds
}

// query makes streams of a JSON document.
type query struct{ code *gojq.Code }

func newQuery(text string) (*query, error) {
	if strings.TrimSpace(text) == "" {
		return nil, errors.New("the inventory has no expression: give one of jq, such as .streams[] | {name, session: .id}")
	}
	parsed, err := gojq.Parse(text)
	if err != nil {
		return nil, fmt.Errorf("expression for the inventory: %w", err)
	}
	code, err := gojq.Compile(parsed)
	if err != nil {
		return nil, fmt.Errorf("expression for the inventory: %w", err)
	}
	return &query{code}, nil
}

func (q *query) streams(ctx context.Context, document []byte) ([]adapters.Stream, error) {
	var input any
	if err := json.Unmarshal(document, &input); err != nil {
		return nil, fmt.Errorf("the answer is no JSON: %w", err)
	}
	var streams []adapters.Stream
	for results := q.code.RunWithContext(ctx, input); ; {
		result, more := results.Next()
		if !more {
			break
		}
		if err, failed := result.(error); failed {
			if halt, ok := errors.AsType[*gojq.HaltError](err); ok && halt.Value() == nil {
				break
			}
			return nil, fmt.Errorf("the expression fails: %w", err)
		}
		list, many := result.([]any)
		if !many {
			list = []any{result}
		}
		if len(streams)+len(list) > maxStreams {
			return nil, fmt.Errorf("the expression yields more than %d streams", maxStreams)
		}
		for _, one := range list {
			s, err := streamOf(one)
			if err != nil {
				return nil, err
			}
			streams = append(streams, s)
		}
	}
	slices.SortStableFunc(streams, func(a, b adapters.Stream) int { return cmp.Compare(a.ID, b.ID) })
	return slices.CompactFunc(streams, func(a, b adapters.Stream) bool { return a.ID == b.ID }), nil
}

func streamOf(value any) (adapters.Stream, error) {
	text, err := json.Marshal(value)
	if err != nil {
		return adapters.Stream{}, fmt.Errorf("the expression yields what is no JSON: %w", err)
	}
	var s Stream
	strict := json.NewDecoder(bytes.NewReader(text))
	strict.DisallowUnknownFields() // a misspelt one would be missed by nobody
	if err := strict.Decode(&s); err != nil {
		return adapters.Stream{}, fmt.Errorf("the expression yields %.200s, which is no stream: %w", text, err)
	}
	if s.Name == "" {
		return adapters.Stream{}, fmt.Errorf("the expression yields %.200s, which has no name", text)
	}
	out := adapters.Stream{
		ID: adapters.StreamID(s.Name), Session: s.Session, Readers: -1, Waiting: s.Waiting, Relayed: s.Relayed,
	}
	if s.Since != nil {
		out.Since = *s.Since
	}
	if s.Readers != nil {
		out.Readers = *s.Readers
	}
	for _, mime := range s.Tracks {
		if mime == nil {
			continue
		}
		kind, _, ok := strings.Cut(*mime, "/")
		if kind = strings.ToLower(kind); !ok || kind != "audio" && kind != "video" {
			return adapters.Stream{}, fmt.Errorf("the expression yields the track %q: it must be like video/H264 or audio/opus", *mime)
		}
		out.Tracks = append(out.Tracks, adapters.Track{Kind: kind, MIME: *mime})
	}
	return out, nil
}
