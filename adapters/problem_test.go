package adapters

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"
)

func TestWriteProblem(t *testing.T) {
	for name, tt := range map[string]struct {
		status        int
		title, detail string
		want          Problem
	}{
		"full":           {http.StatusConflict, "Nobody publishes", "retry later", Problem{"Nobody publishes", 409, "retry later"}},
		"title by code":  {http.StatusNotFound, "", "", Problem{"Not Found", 404, ""}},
		"hostile detail": {400, "Bad", "\"}\n<script>\x00", Problem{"Bad", 400, "\"}\n<script>\x00"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := httptest.NewRecorder()
			w.Header().Set("Retry-After", "1")
			w.Header().Set("Content-Length", "7")
			WriteProblem(w, tt.status, tt.title, tt.detail)
			if w.Code != tt.status || w.Header().Get("Content-Type") != ProblemType || w.Header().Get("Retry-After") != "1" ||
				w.Header().Get("Content-Length") != "" {
				t.Errorf("status %d, header %v", w.Code, w.Header())
			}
			var got Problem
			if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
				t.Fatal(err)
			}
			if got != tt.want {
				t.Errorf("body %+v, want %+v", got, tt.want)
			}
		})
	}
}
