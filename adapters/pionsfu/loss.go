package pionsfu

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/sidestream-dev/sidestream/adapters/whip"
)

const (
	pathLoss = "loss"
	maxLoss  = 10 // per cent
)

// simulation is the body of a session's address for simulated loss.
type simulation struct {
	Loss *float64 `json:"loss"` // per cent of the packets to the viewer that are thrown away, repairs among them
}

// addLoss promises a viewer's session that its loss can be set.
func (s *Server) addLoss(h http.Header, session *session) {
	if !s.config.SimulatedLoss {
		return
	}
	target := s.publicURL + pathSession + session.id + "/" + pathLoss
	h.Add("Link", whip.Link{Target: target, Params: []whip.LinkParam{{Name: "rel", Value: whip.RelLoss}}}.String())
}

// serveLoss tells and sets what is thrown away of the packets to one viewer.
func (s *Server) serveLoss(w http.ResponseWriter, r *http.Request, id string) {
	const methods = "OPTIONS, GET, HEAD, PUT, PATCH"
	if r.Method == http.MethodOptions {
		w.Header().Set("Accept-Patch", contentJSON)
		s.serveOptions(w, r, methods, nil)
		return
	}
	if !slices.Contains(strings.Split(methods, ", "), r.Method) {
		notAllowed(w, methods)
		return
	}
	session, err := s.registry.session(id)
	if !s.admit(w, r, s.sessionClaim(session, r)) {
		return
	}
	if err == nil && (session.viewer == nil || !s.config.SimulatedLoss) {
		err = errNoSession
	}
	if err == nil && (r.Method == http.MethodPut || r.Method == http.MethodPatch) {
		err = s.simulate(w, r, session)
	}
	if err != nil {
		s.refuse(w, err)
		return
	}
	loss := session.conn.Loss() * 100
	w.Header().Set("Content-Type", contentJSON)
	w.Header().Set("Cache-Control", "no-store")
	_ = json.NewEncoder(w).Encode(simulation{Loss: &loss}) // an error here is a caller that has gone
}

// simulate takes a new loss.
func (s *Server) simulate(w http.ResponseWriter, r *http.Request, session *session) error {
	var wanted simulation
	if err := s.decode(w, r, &wanted); err != nil {
		return err
	}
	if wanted.Loss == nil || *wanted.Loss < 0 || *wanted.Loss > maxLoss {
		return &refusal{
			http.StatusUnprocessableEntity, "loss", "Loss out of range",
			fmt.Sprintf(`Send {"loss": n}, n being per cent from 0 to %d.`, maxLoss),
		}
	}
	session.conn.SetLoss(*wanted.Loss / 100)
	return nil
}
