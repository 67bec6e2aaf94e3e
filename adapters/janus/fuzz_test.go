package janus

import "testing"

func FuzzEvents(f *testing.F) {
	for _, text := range []string{
		`[{"janus":"keepalive"},{"janus":"event","sender":7,"plugindata":{"data":{"videoroom":"event","id":1,"publishers":[{"id":2}]}}}]`,
		`{"janus":"event","plugindata":{"data":{"videoroom":"event","error_code":426,"error":"No such room"}}}`,
		`{"janus":"error","error":{"code":458,"reason":"No such session"}}`, `{"janus":"media","mid":"0","receiving":true}`, `[]`, `null`, ``,
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		events, err := eventsOf("wait", body)
		if err != nil {
			_ = err.Error()
			return
		}
		for _, e := range events {
			if e.Janus == "" || e.Janus == "error" {
				t.Errorf("%+v is an event", e)
			}
			if s, err := e.said("wait"); err == nil && s.Code != 0 {
				t.Errorf("%+v is no error", s)
			}
		}
	})
}
