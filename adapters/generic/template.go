package generic

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
)

const placeholder = "{stream}"

// template is a path, and a query where there is one, in which a stream's name stands once.
type template struct {
	prefix, suffix string     // of the path, around the name; the whole path is in prefix where the name is in the query
	inQuery        string     // the parameter that is the name, "" where it is in the path
	fixed          url.Values // the other parameters
	encoded        string     // of fixed
}

// newTemplate reads a template; an empty one is nil, which nothing matches.
func newTemplate(s string) (*template, error) {
	if s == "" {
		return nil, nil //nolint:nilnil // it is what the comment says
	}
	if strings.Count(s, placeholder) != 1 {
		return nil, fmt.Errorf("%q must hold %s once", s, placeholder)
	}
	if !strings.HasPrefix(s, "/") || strings.Contains(s, "#") {
		return nil, fmt.Errorf("%q must be a path, such as /whip/%s", s, placeholder)
	}
	path, rawQuery, _ := strings.Cut(s, "?")
	decoded, err := url.PathUnescape(path)
	if err != nil {
		return nil, err
	}
	parameters, err := url.ParseQuery(rawQuery)
	if err != nil {
		return nil, err
	}
	t := &template{fixed: parameters}
	before, after, inPath := strings.Cut(decoded, placeholder)
	t.prefix = before
	if inPath {
		if !strings.HasSuffix(before, "/") || after != "" && !strings.HasPrefix(after, "/") {
			return nil, fmt.Errorf("%q: %s must be a whole element of the path", s, placeholder)
		}
		t.suffix = after
		t.encoded = t.fixed.Encode()
		return t, nil
	}
	for name, values := range parameters {
		if len(values) == 1 && values[0] == placeholder {
			t.inQuery = name
			delete(t.fixed, name)
			t.encoded = t.fixed.Encode()
			return t, nil
		}
	}
	return nil, errors.New(placeholder + " must be the whole value of a parameter")
}

// fill puts a stream's address below a base URL.
func (t *template) fill(u *url.URL, name string) {
	u.RawQuery = t.encoded
	if t.inQuery == "" {
		u.Path += t.prefix + name + t.suffix
		return
	}
	u.Path += t.prefix
	q := url.Values{t.inQuery: {name}}.Encode()
	u.RawQuery = strings.TrimPrefix(t.encoded+"&"+q, "&")
}

// match finds the name in an address. Parameters that the template does not name may be there, too.
func (t *template) match(u *url.URL) (name string, ok bool) {
	if t == nil {
		return "", false
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return "", false
	}
	for key, values := range t.fixed {
		if query.Get(key) != values[0] {
			return "", false
		}
	}
	if t.inQuery != "" {
		return query.Get(t.inQuery), u.Path == t.prefix && query.Has(t.inQuery)
	}
	name, ok = strings.CutPrefix(u.Path, t.prefix)
	if !ok {
		return "", false
	}
	return strings.CutSuffix(name, t.suffix)
}
