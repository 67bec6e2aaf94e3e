package main

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"
)

// FuzzReview posts whatever to the webhook. It is turned away, or answered with a review that lets the pod by.
func FuzzReview(f *testing.F) {
	f.Add([]byte(`{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{"uid":"u","resource":{"group":"","version":"v1",` +
		`"resource":"pods"},"operation":"CREATE","namespace":"media","object":{"metadata":{"labels":{"sidestream.dev/inject":"true"},` +
		`"annotations":{"sidestream.dev/adapter":"mediamtx"}},"spec":{"containers":[{"name":"mtx","ports":[{"name":"http","containerPort":8889}]}]}}}}`))
	f.Add([]byte(`{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{"uid":"u","object":null}}`))
	f.Add([]byte(`{"request":`))
	f.Fuzz(func(t *testing.T, body []byte) {
		h := newHarness(t)
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, webhookPath, bytes.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		h.webhook.ServeHTTP(w, r)
		if w.Code == http.StatusBadRequest {
			return
		}
		var review admissionv1.AdmissionReview
		if err := json.Unmarshal(w.Body.Bytes(), &review); err != nil || w.Code != http.StatusOK {
			t.Fatalf("%d %v: %s", w.Code, err, w.Body)
		}
		if a := review.Response; a == nil || !a.Allowed || (a.Patch == nil) != (a.PatchType == nil) || a.Patch != nil && !json.Valid(a.Patch) {
			t.Errorf("%+v", review.Response)
		}
	})
}
