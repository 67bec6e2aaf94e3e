package main

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/api/resource"
)

var enough = []string{
	"INJECTOR_IMAGE=sidestream:1", "INJECTOR_NAMESPACE=sidestream", "INJECTOR_CERT_HOSTS=sidestream-injector.sidestream.svc",
	"SIDESTREAM_CLUSTER=germany", "PATH=/bin",
}

func TestSettings(t *testing.T) {
	s, sidecar, err := decode(append(enough, "INJECTOR_PULL_SECRETS=a,b", "INJECTOR_CPU_LIMIT=2", "SIDESTREAM_PEER_LISTEN=:19443",
		"OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4317"))
	if err != nil {
		t.Fatal(err)
	}
	o, err := s.options(sidecar)
	if err != nil {
		t.Fatal(err)
	}
	if o.Ports.Gateway != 18080 || o.Ports.Peer != 19443 || o.Ports.Admin != 18090 || len(o.PullSecrets) != 2 ||
		o.Tracing["OTEL_EXPORTER_OTLP_ENDPOINT"] != "http://collector:4317" ||
		o.Resources.Limits.Cpu().Cmp(resource.MustParse("2")) != 0 || o.Resources.Requests.Memory().String() != "64Mi" {
		t.Errorf("%+v", o)
	}
	if len(o.Resources.Requests) != 2 || len(o.Resources.Limits) != 2 {
		t.Errorf("%+v", o.Resources)
	}
}

func TestBadSettings(t *testing.T) {
	for _, tt := range []struct{ set, word string }{
		{"INJECTOR_IMAGE=", "INJECTOR_IMAGE is not set"},
		{"INJECTOR_IMAGES=x", "did you mean INJECTOR_IMAGE?"},
		{"INJECTOR_ZZZZZZZZZZZZZZZZZZ=x", "remove it"},
		{"INJECTOR_NAMESPACE=A", "INJECTOR_NAMESPACE"},
		{"INJECTOR_NATIVE=maybe", "auto, true or false"},
		{"INJECTOR_CPU_REQUEST=much", `INJECTOR_CPU_REQUEST is "much"`},
		{"INJECTOR_HOST_PORTS=1-2", "18100-18999"},
		{"INJECTOR_PULL_POLICY=Often", "IfNotPresent"},
		{"INJECTOR_CERT_HOSTS=", "INJECTOR_CERT_HOSTS"},
		{"INJECTOR_CERT_LIFE=1m", "ten minutes"},
		{"INJECTOR_CERT_LIFE=soon", `INJECTOR_CERT_LIFE is "soon"`},
		{"INJECTOR_REPORT_EVERY=0s", "INJECTOR_REPORT_EVERY"},
		{"INJECTOR_SHUTDOWN_DELAY=1h", "INJECTOR_SHUTDOWN_DELAY"},
		{"INJECTOR_LISTEN=8443", "INJECTOR_LISTEN"},
		{"INJECTOR_REVISION=a b", "INJECTOR_REVISION"},
		{"SIDESTREAM_CLUSTER=", "SIDESTREAM_CLUSTER"},
		{"SIDESTREAM_RELAY_FAN_OUT=0", "SIDESTREAM_RELAY_FAN_OUT"},
		{"SIDESTREAM_CLUSTR=x", "SIDESTREAM_CLUSTR is not a setting"},
		{"SIDESTREAM_GATEWAY_LISTEN=127.0.0.1:18080", "without a host"},
		{"OTEL_EXPORTER_OTLP_HEADERS=key=hunter2", "OTEL_EXPORTER_OTLP_HEADERS would stand in every pod"},
		{"SIDESTREAM_ADAPTER_TOKEN=hunter2", "SIDESTREAM_ADAPTER_TOKEN would stand in every pod"},
	} {
		s, sidecar, err := decode(append(enough, tt.set))
		if err == nil {
			_, err = s.options(sidecar)
		}
		if err == nil || !strings.Contains(err.Error(), tt.word) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", tt.set, err)
		}
	}
}

type answered struct {
	info apiVersion
	err  error
}

func (v answered) ServerVersion() (*apiVersion, error) { return &v.info, v.err }

func TestNative(t *testing.T) {
	for _, tt := range []struct {
		set, major, minor string
		want, fails       bool
	}{
		{"auto", "1", "33", true, false},
		{"auto", "1", "32", false, false},
		{"auto", "1", "34+", true, false},
		{"auto", "2", "0", true, false},
		{"auto", "", "", false, true},
		{"true", "1", "29", true, false},
		{"false", "1", "37", false, false},
	} {
		got, err := settings{Native: tt.set}.native(answered{info: apiVersion{Major: tt.major, Minor: tt.minor}})
		if got != tt.want || (err != nil) != tt.fails {
			t.Errorf("%+v: %v %v", tt, got, err)
		}
	}
	if _, err := (settings{Native: "auto"}).native(answered{err: errors.New("nobody there")}); err == nil {
		t.Error("no error")
	}
}

func TestCommand(t *testing.T) {
	var out bytes.Buffer
	if err := run(t.Context(), []string{"version"}, nil, &out, &out); err != nil || !strings.HasPrefix(out.String(), "sidestream-injector dev") {
		t.Errorf("%q %v", out.String(), err)
	}
	for _, args := range [][]string{{"serve"}, {"version", "x"}} {
		if err := run(t.Context(), args, nil, &out, &out); err == nil {
			t.Errorf("%q is understood", args)
		}
	}
	if err := run(t.Context(), nil, nil, &out, &out); err == nil || !strings.Contains(err.Error(), "INJECTOR_IMAGE") {
		t.Errorf("%v", err)
	}
	if err := run(t.Context(), nil, append(enough, "INJECTOR_KUBECONFIG=/nowhere"), &out, &out); err == nil {
		t.Error("no error")
	}
}
