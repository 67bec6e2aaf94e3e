package check

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/rest"
)

// server answers like an API server; the test says what it is asked.
func server(t *testing.T, answers map[string]string) (Cluster, *[]string) {
	t.Helper()
	var asked []string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		asked = append(asked, string(body))
		if r.Header.Get("Authorization") != "Bearer secret" {
			t.Errorf("Authorization is %q", r.Header.Get("Authorization"))
		}
		text, ok := answers[r.Method+" "+r.URL.RequestURI()]
		if !ok {
			t.Errorf("%s %s is asked", r.Method, r.URL.RequestURI())
			return
		}
		status := 200
		if n, rest, ok := strings.Cut(text, " "); ok && len(n) == 3 {
			_, _ = fmt.Sscan(n, &status)
			text = rest
		}
		w.Header().Set("Date", "Wed, 02 Jan 2030 03:04:05 GMT")
		w.Header().Add("Warning", `299 - "sidestream: not so"`)
		w.WriteHeader(status)
		_, _ = io.WriteString(w, text)
	}))
	t.Cleanup(s.Close)
	c, err := Connect(&rest.Config{Host: s.URL + "/below", BearerToken: "secret"})
	if err != nil {
		t.Fatal(err)
	}
	return c, &asked
}

func TestClient(t *testing.T) {
	const forbidden = `403 {"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Forbidden","code":403,"message":"no"}`
	c, asked := server(t, map[string]string{
		"GET /below/version": `{"gitVersion":"v1.34.1"}`,
		"GET /below/api/v1/namespaces/media/pods?labelSelector=a%3Db&limit=500":            `{"metadata":{"continue":"x"},"items":[{"metadata":{"name":"one"}}]}`,
		"GET /below/api/v1/namespaces/media/pods?continue=x&labelSelector=a%3Db&limit=500": `{"metadata":{},"items":[{"metadata":{"name":"two"}}]}`,
		"GET /below/api/v1/pods?limit=500":                                                 `{"items":[]}`,
		"GET /below/api/v1/namespaces/media/secrets/s":                                     forbidden,
		"GET /below/api/v1/namespaces/media/configmaps/c":                                  `502 <html>`,
		"GET /below/api/v1/namespaces/media":                                               `<html>`,
		"POST /below/api/v1/namespaces/media/pods?dryRun=All":                              `{"metadata":{"name":"tried"}}`,
		"POST /below/apis/authorization.k8s.io/v1/selfsubjectaccessreviews":                `{"status":{"allowed":true}}`,
		"POST /below/apis/authorization.k8s.io/v1/subjectaccessreviews":                    `{"status":{"allowed":false}}`,
		"GET /below/api/v1/namespaces/media/pods/sfu:18090/proxy/readyz":                   `503 not ready: refused`,
		"GET /below/api/v1/namespaces/media/pods/gone:18090/proxy/readyz":                  forbidden,
	})
	ctx := t.Context()
	version, clock, err := c.Version(ctx)
	if shown := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC); err != nil || version != "v1.34.1" || !clock.Shown.Equal(shown) || clock.Asked.IsZero() {
		t.Errorf("%s %+v %v", version, clock, err)
	}
	if pods, err := c.Pods(ctx, "media", "a=b"); err != nil || len(pods) != 2 || pods[1].Name != "two" {
		t.Errorf("%v %v", pods, err)
	}
	if pods, err := c.Pods(ctx, "", ""); err != nil || len(pods) != 0 {
		t.Errorf("%v %v", pods, err)
	}
	if _, err := c.Secret(ctx, "media", "s"); !apierrors.IsForbidden(err) {
		t.Error(err)
	}
	if _, err := c.ConfigMap(ctx, "media", "c"); err == nil || !strings.Contains(err.Error(), "502") {
		t.Error(err)
	}
	if _, err := c.Namespace(ctx, "media"); err == nil || !strings.Contains(err.Error(), "no object") {
		t.Error(err)
	}
	after, warnings, err := c.TryPod(ctx, trial("media"))
	if err != nil || after.Name != "tried" || len(warnings) != 1 || warnings[0] != "sidestream: not so" {
		t.Errorf("%v %q %v", after.Name, warnings, err)
	}
	var sent corev1.Pod
	if err := json.Unmarshal([]byte((*asked)[len(*asked)-1]), &sent); err != nil || sent.Kind != "Pod" || sent.Name != trial("media").Name {
		t.Errorf("%v %+v", err, sent)
	}
	if yes, err := c.Allowed(ctx, "", authorizationv1.ResourceAttributes{Verb: "list"}); err != nil || !yes {
		t.Errorf("%t %v", yes, err)
	}
	if yes, err := c.Allowed(ctx, accountPrefix+"media:sfu", authorizationv1.ResourceAttributes{Verb: "list"}); err != nil || yes {
		t.Errorf("%t %v", yes, err)
	}
	if said := (*asked)[len(*asked)-1]; !strings.Contains(said, `"groups":["system:serviceaccounts","system:serviceaccounts:media","system:authenticated"]`) {
		t.Error(said)
	}
	if a, err := c.Ask(ctx, "media", "sfu", 18090, "/readyz"); err != nil || a.Status != 503 || string(a.Body) != "not ready: refused" || a.Clock.Shown.IsZero() {
		t.Errorf("%+v %v", a, err)
	}
	if _, err := c.Ask(ctx, "media", "gone", 18090, "/readyz"); !apierrors.IsForbidden(err) {
		t.Error(err)
	}
}
