package janus

import (
	"encoding/json"
	"log/slog"
	"strings"
	"testing"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/whip"
)

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

func FuzzNaming(f *testing.F) {
	for _, name := range []string{"demo", "1234", "01234", "0", "4503599627370496", "9999999999999999999", "a/b", "Käse 100%", "sidestream: x"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		id := adapters.StreamID(name)
		if id.Validate() != nil {
			return
		}
		for _, n := range []naming{{}, {numbers: true}} {
			r := room{Room: n.room(id), Description: ownRoom + name}
			got, made, ok := n.stream(r)
			if got != id || !made || !ok {
				t.Errorf("%q is room %+v, which is stream %q, %t, %t", name, r, got, made, ok)
			}
			text, err := json.Marshal(r.Room)
			var again ident
			if err != nil || json.Unmarshal(text, &again) != nil || again != r.Room {
				t.Errorf("room %s becomes %+v (%v)", text, again, err)
			}
		}
	})
}

func TestRoomsOfOthers(t *testing.T) {
	t.Parallel()
	numbers := naming{numbers: true}
	for _, o := range []struct {
		naming naming
		room   room
		want   adapters.StreamID
		ok     bool
	}{
		{naming{}, room{Room: ident{text: "studio"}, Description: "Studio"}, "studio", true},
		{naming{}, room{Room: ident{text: "studio"}, Description: ownRoom + "another"}, "studio", true},
		{naming{}, room{Room: ident{text: "a//b"}}, "a//b", false},
		{numbers, room{Room: ident{text: "1234", number: true}, Description: "Demo"}, "1234", true},
		{numbers, room{Room: ident{text: "4503599627370497", number: true}, Description: "a hash of nobody's"}, "", false},
		{numbers, room{Room: ident{text: "1234", number: true}, Description: ownRoom + "demo"}, "1234", true},
	} {
		if got, made, ok := o.naming.stream(o.room); got != o.want || made || ok != o.ok {
			t.Errorf("%+v is %q, made %t, %t; want %q, %t", o.room, got, made, ok, o.want, o.ok)
		}
	}
}

func FuzzDescribe(f *testing.F) {
	f.Add(answerSDP, "a=ice-ufrag:anew\r\na=ice-pwd:abcdefghijklmnopqrstuvwx\r\na=candidate:1 1 udp 1 10.0.0.1 1 typ host\r\n")
	f.Add("v=0", "a=end-of-candidates")
	f.Fuzz(func(t *testing.T, text, part string) {
		d, err := describe(text)
		if err != nil {
			return
		}
		fragment, err := whip.ParseFragment([]byte(part))
		if err != nil {
			return
		}
		d.trickled(fragment)
		d.fragment().Marshal()
		again, err := d.restarted(fragment, 2)
		if err != nil {
			return
		}
		if ufrag, _ := fragment.Credentials(); !strings.Contains(again, "a=ice-ufrag:"+ufrag) {
			t.Errorf("no %q in %q", ufrag, again)
		}
	})
}

func TestRestartedOffer(t *testing.T) {
	t.Parallel()
	d, err := describe(answerSDP)
	if err != nil {
		t.Fatal(err)
	}
	fragment := whip.Fragment{FragmentICE: whip.FragmentICE{Ufrag: "anew", Pwd: "0123456789abcdefghijklmn"}}
	got, err := d.restarted(fragment, 2)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"a=ice-ufrag:anew\r\n", "a=ice-pwd:0123456789abcdefghijklmn\r\n", "o=- 1 2 IN", "a=mid:0\r\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	for _, not := range []string{"a=candidate", "abcd\r\n"} {
		if strings.Contains(got, not) {
			t.Errorf("%q is left in\n%s", not, got)
		}
	}
}
