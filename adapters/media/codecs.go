package media

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/pion/sdp/v3"
	"github.com/pion/webrtc/v4"
)

// URIs of the RTP header extensions (RFC 8285) that are passed on from hop to hop. All others end at the hop.
const (
	AbsCaptureTime       = "http://www.webrtc.org/experiments/rtp-hdrext/abs-capture-time"
	extAudioLevel        = "urn:ietf:params:rtp-hdrext:ssrc-audio-level"
	extVideoOrientation  = "urn:3gpp:video-orientation"
	extPlayoutDelay      = "http://www.webrtc.org/experiments/rtp-hdrext/playout-delay"
	DependencyDescriptor = "https://aomediacodec.github.io/av1-rtp-spec/#dependency-descriptor-rtp-header-extension"
)

// PassedExtensions are the URIs of the RTP header extensions that a Sender passes on, where both sides know them.
func PassedExtensions() []string {
	return []string{AbsCaptureTime, extAudioLevel, extVideoOrientation, extPlayoutDelay, DependencyDescriptor}
}

// RegisterCodecs tells an engine every codec and header extension that Sidestream passes through: VP8, VP9, H264 in both
// packetization modes, AV1, H265, each with RTX (RFC 4588), Opus, multichannel Opus, PCMU, PCMA and G722.
func RegisterCodecs(m *webrtc.MediaEngine) error {
	audio := func(mime string, pt webrtc.PayloadType, clock uint32, channels uint16, fmtp string) error {
		return m.RegisterCodec(webrtc.RTPCodecParameters{
			PayloadType: pt,
			RTPCodecCapability: webrtc.RTPCodecCapability{
				MimeType: mime, ClockRate: clock, Channels: channels, SDPFmtpLine: fmtp,
				RTCPFeedback: []webrtc.RTCPFeedback{{Type: webrtc.TypeRTCPFBTransportCC}, {Type: webrtc.TypeRTCPFBNACK}},
			},
		}, webrtc.RTPCodecTypeAudio)
	}
	for _, err := range []error{
		audio(webrtc.MimeTypeOpus, 111, 48000, 2, "minptime=10;useinbandfec=1"),
		audio("audio/multiopus", 63, 48000, 6,
			"channel_mapping=0,4,1,2,3,5;coupled_streams=2;minptime=10;num_streams=4;useinbandfec=1"),
		audio("audio/multiopus", 62, 48000, 8,
			"channel_mapping=0,6,1,2,3,4,5,7;coupled_streams=3;minptime=10;num_streams=5;useinbandfec=1"),
		audio(webrtc.MimeTypeG722, 9, 8000, 0, ""),
		audio(webrtc.MimeTypePCMU, 0, 8000, 0, ""),
		audio(webrtc.MimeTypePCMA, 8, 8000, 0, ""),
	} {
		if err != nil {
			return fmt.Errorf("register audio codecs: %w", err)
		}
	}

	video := func(mime string, pt, rtx webrtc.PayloadType, fmtp string) error {
		err := m.RegisterCodec(webrtc.RTPCodecParameters{
			PayloadType: pt,
			RTPCodecCapability: webrtc.RTPCodecCapability{
				MimeType: mime, ClockRate: 90000, SDPFmtpLine: fmtp,
				RTCPFeedback: []webrtc.RTCPFeedback{
					{Type: webrtc.TypeRTCPFBTransportCC},
					{Type: webrtc.TypeRTCPFBCCM, Parameter: "fir"},
					{Type: webrtc.TypeRTCPFBNACK},
					{Type: webrtc.TypeRTCPFBNACK, Parameter: "pli"},
				},
			},
		}, webrtc.RTPCodecTypeVideo)
		if err != nil {
			return err
		}
		return m.RegisterCodec(webrtc.RTPCodecParameters{
			PayloadType: rtx,
			RTPCodecCapability: webrtc.RTPCodecCapability{
				MimeType: webrtc.MimeTypeRTX, ClockRate: 90000, SDPFmtpLine: "apt=" + strconv.Itoa(int(pt)),
			},
		}, webrtc.RTPCodecTypeVideo)
	}
	h264 := func(pt, rtx webrtc.PayloadType, mode int, profile string) error {
		return video(webrtc.MimeTypeH264, pt, rtx,
			fmt.Sprintf("level-asymmetry-allowed=1;packetization-mode=%d;profile-level-id=%s", mode, profile))
	}
	for _, err := range []error{
		video(webrtc.MimeTypeVP8, 96, 97, ""),
		h264(102, 103, 1, "42001f"),
		h264(104, 105, 0, "42001f"),
		h264(106, 107, 1, "42e01f"),
		h264(108, 109, 0, "42e01f"),
		h264(127, 125, 1, "4d001f"),
		h264(39, 40, 0, "4d001f"),
		h264(112, 113, 1, "64001f"),
		h264(41, 42, 0, "64001f"),
		video(webrtc.MimeTypeAV1, 45, 46, ""),
		video(webrtc.MimeTypeVP9, 98, 99, "profile-id=0"),
		video(webrtc.MimeTypeVP9, 100, 101, "profile-id=2"),
		video(webrtc.MimeTypeVP9, 37, 38, "profile-id=1"),
		video(webrtc.MimeTypeH265, 116, 117, ""),
	} {
		if err != nil {
			return fmt.Errorf("register video codecs: %w", err)
		}
	}

	both := []webrtc.RTPCodecType{webrtc.RTPCodecTypeAudio, webrtc.RTPCodecTypeVideo}
	for _, extension := range []struct {
		uri   string
		kinds []webrtc.RTPCodecType
	}{
		{sdp.SDESMidURI, both},
		{sdp.SDESRTPStreamIDURI, both[1:]},
		{sdp.SDESRepairRTPStreamIDURI, both[1:]},
		{sdp.TransportCCURI, both},
		{AbsCaptureTime, both},
		{extAudioLevel, both[:1]},
		{extVideoOrientation, both[1:]},
		{extPlayoutDelay, both[1:]},
		{DependencyDescriptor, both[1:]},
	} {
		for _, kind := range extension.kinds {
			if err := m.RegisterHeaderExtension(webrtc.RTPHeaderExtensionCapability{URI: extension.uri}, kind); err != nil {
				return fmt.Errorf("register header extension %s: %w", extension.uri, err)
			}
		}
	}
	return nil
}

// associated is the payload type that an RTX codec repairs (RFC 4588, section 8.6).
func associated(c webrtc.RTPCodecParameters) (uint8, bool) {
	if !strings.EqualFold(c.MimeType, webrtc.MimeTypeRTX) {
		return 0, false
	}
	for part := range strings.SplitSeq(c.SDPFmtpLine, ";") {
		if value, ok := strings.CutPrefix(strings.TrimSpace(part), "apt="); ok {
			pt, err := strconv.ParseUint(value, 10, 7)
			return uint8(pt), err == nil
		}
	}
	return 0, false
}

// MatchCodec picks, of the codecs that a connection negotiated, the one that carries packets of the wanted codec: the
// same MIME type and packetization mode, and the same profile where there is a choice. RTX codecs never match.
func MatchCodec(want webrtc.RTPCodecCapability, among []webrtc.RTPCodecParameters) (webrtc.RTPCodecParameters, bool) {
	best, score := webrtc.RTPCodecParameters{}, -1
	for _, c := range among {
		if !strings.EqualFold(c.MimeType, want.MimeType) || strings.EqualFold(c.MimeType, webrtc.MimeTypeRTX) {
			continue
		}
		if want.Channels > 2 && c.Channels != want.Channels {
			continue
		}
		s := 0
		if formatParameter(c.SDPFmtpLine, "packetization-mode", "0") == formatParameter(want.SDPFmtpLine, "packetization-mode", "0") {
			s += 4
		}
		if formatParameter(c.SDPFmtpLine, "profile-id", "0") == formatParameter(want.SDPFmtpLine, "profile-id", "0") {
			s += 2
		}
		if formatParameter(c.SDPFmtpLine, "profile-level-id", "") == formatParameter(want.SDPFmtpLine, "profile-level-id", "") {
			s++
		}
		if s > score {
			best, score = c, s
		}
	}
	return best, score >= 0
}

func formatParameter(fmtp, name, otherwise string) string {
	for part := range strings.SplitSeq(fmtp, ";") {
		key, value, _ := strings.Cut(strings.TrimSpace(part), "=")
		if strings.EqualFold(key, name) {
			return strings.ToLower(value)
		}
	}
	return otherwise
}
