package adapters

import (
	"errors"
	"testing"
)

func TestAccept(t *testing.T) {
	video := func(mime string) []Track {
		return []Track{{Kind: "audio", MIME: "audio/opus"}, {Kind: "video", MIME: mime}}
	}
	some := Traits{Codecs: []string{"video/H264", "audio/opus", "video/AV1"}}
	for name, test := range map[string]struct {
		traits Traits
		tracks []Track
		want   string
	}{
		"any codec":     {Traits{}, video("video/VP8"), ""},
		"taken":         {some, video("video/h264"), ""},
		"not known":     {some, video(""), ""},
		"not told":      {some, nil, ""},
		"not taken":     {some, video("video/VP8"), "the media server does not take video/VP8, only video/H264, video/AV1"},
		"no such kind":  {Traits{Codecs: []string{"audio/opus"}}, video("video/VP8"), "the media server does not take video/VP8"},
		"another sound": {some, []Track{{Kind: "audio", MIME: "audio/G722"}}, "the media server does not take audio/G722, only audio/opus"},
	} {
		t.Run(name, func(t *testing.T) {
			err := test.traits.Accept(test.tracks)
			if test.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if refused, ok := errors.AsType[*CodecError](err); !ok || refused.Error() != test.want {
				t.Errorf("%v; want %s", err, test.want)
			}
		})
	}
}
