package main

import (
	"strings"
	"testing"
)

func TestRedirectCommand(t *testing.T) {
	for args, want := range map[string]string{
		"8889 18080": "", "0 1": "write a number", "1 65536": "write a number", "http 80": "write a number", "80 80": "to itself", "80": "arg",
	} {
		var got [2]uint16
		cmd := redirectCommand(func(from, to uint16) error { got = [2]uint16{from, to}; return nil })
		cmd.SetArgs(strings.Fields(args))
		cmd.SilenceErrors, cmd.SilenceUsage = true, true
		err := cmd.ExecuteContext(t.Context())
		if want == "" {
			if err != nil || got != [2]uint16{8889, 18080} {
				t.Errorf("%s: %v, %v", args, got, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), want) || got != [2]uint16{} {
			t.Errorf("%s: %v, and %v are redirected", args, err, got)
		}
	}
}
