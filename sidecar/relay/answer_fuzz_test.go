package relay

import "testing"

func FuzzAnswerSections(f *testing.F) {
	f.Add("v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\nm=audio 9 UDP/TLS/RTP/SAVPF 111\r\na=mid:0\r\na=recvonly\r\n" +
		"m=video 0 UDP/TLS/RTP/SAVPF 96\r\na=mid:1\r\na=inactive\r\n")
	f.Add("v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\na=sendonly\r\nm=video 9 RTP/AVP 96\r\n")
	f.Fuzz(func(t *testing.T, answer string) {
		sections, err := sectionsOf(answer)
		if err == nil && sections == nil {
			t.Error("neither sections nor an error")
		}
	})
}
