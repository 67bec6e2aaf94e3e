package adapters

import (
	"fmt"
	"net/url"
	"strings"
)

// ParseBase reads the base URL of a server or of its API, http or https with or without a path, and takes slashes off its end.
// Credentials and queries have no place there. what names the URL in errors, which show no password.
func ParseBase(what, text string) (url.URL, error) {
	u, err := url.Parse(text)
	if err != nil {
		return url.URL{}, fmt.Errorf("%s: %w", what, err)
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" {
		return url.URL{}, fmt.Errorf("%s %q: must be like http://host:port", what, u.Redacted())
	}
	return url.URL{Scheme: u.Scheme, Host: u.Host, Path: strings.TrimRight(u.Path, "/")}, nil
}
