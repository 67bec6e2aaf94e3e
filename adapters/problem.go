package adapters

import (
	"encoding/json"
	"net/http"
)

// ProblemType is the media type of a Problem.
const ProblemType = "application/problem+json"

// Problem is the body of an HTTP error (RFC 9457): what went wrong and what the caller can do about it. Its type is
// always "about:blank", which the RFC lets one leave out.
type Problem struct {
	Title  string `json:"title"`            // the same for every occurrence: "Stream name too long"
	Status int    `json:"status,omitempty"` // repeats the HTTP status
	Detail string `json:"detail,omitempty"` // this occurrence, with what to do about it
}

// WriteProblem answers a request with a Problem. Header fields that go with the status (Allow, Retry-After,
// WWW-Authenticate) are set by the caller beforehand; an empty title becomes the status' own words.
func WriteProblem(w http.ResponseWriter, status int, title, detail string) {
	if title == "" {
		title = http.StatusText(status)
	}
	body, err := json.Marshal(Problem{Title: title, Status: status, Detail: detail})
	if err != nil { // two strings and a number always marshal
		panic(err)
	}
	h := w.Header()
	h.Del("Content-Length")
	h.Set("Content-Type", ProblemType)
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n')) // an error here is a caller that has gone
}
