package bearer

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
)

func TestWebhook(t *testing.T) {
	var asked atomic.Int32
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		var q struct{ Action, Stream, Token string }
		if err := json.NewDecoder(r.Body).Decode(&q); err != nil || r.Method != http.MethodPost || q.Stream != "live/show" {
			t.Errorf("%s %+v: %v", r.Method, q, err)
		}
		switch {
		case q.Token == "broken":
			w.WriteHeader(http.StatusInternalServerError)
		case q.Token == "elsewhere":
			http.Redirect(w, r, "/other", http.StatusTemporaryRedirect)
		case q.Token != "good":
			w.WriteHeader(http.StatusUnauthorized)
		case q.Action == "publish":
			w.WriteHeader(http.StatusForbidden)
		}
	}))
	defer web.Close()
	at, err := url.Parse(web.URL)
	if err != nil {
		t.Fatal(err)
	}
	w := NewWebhook(at, nil)
	defer w.CloseIdleConnections()
	for _, tt := range []struct {
		token         string
		want          adapters.Request
		denied, known bool
		asks          int32
	}{
		{"good", play, false, false, 1},
		{"good", play, false, false, 0}, // it was said a moment ago
		{"good", publish, true, true, 1},
		{"good", publish, true, true, 1}, // a refusal is not kept
		{"bad", play, true, false, 1},
		{"", play, true, false, 0},
	} {
		before := asked.Load()
		err := w.Check(t.Context(), tt.token, tt.want)
		denied, ok := errors.AsType[*adapters.DeniedError](err)
		if ok != tt.denied || !ok && err != nil || ok && denied.Known != tt.known || asked.Load()-before != tt.asks {
			t.Errorf("%q %+v: %v, asked %d times", tt.token, tt.want, err, asked.Load()-before)
		}
	}
	for _, token := range []string{"broken", "elsewhere"} {
		err := w.Check(t.Context(), token, play)
		if _, ok := errors.AsType[*adapters.DeniedError](err); ok || err == nil {
			t.Errorf("%s: %v", token, err)
		}
	}
}

func TestWebhookForgets(t *testing.T) {
	now0 := time.Now()
	w := NewWebhook(&url.URL{}, nil)
	for i := range 3 * maxAgreed {
		w.agree(question{token: [32]byte{byte(i), byte(i >> 8), byte(i >> 16)}}, now0.Add(1))
		if len(w.agreed) > maxAgreed {
			t.Fatalf("%d are kept", len(w.agreed))
		}
	}
	q := question{want: play}
	w.agree(q, now0)
	if !w.known(q, now0.Add(agreedTime/2)) || w.known(q, now0.Add(agreedTime)) {
		t.Error("kept for another time")
	}
}
