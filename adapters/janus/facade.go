package janus

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/whip"
)

const (
	// openTime is how long a session may take from the 201 or 406 until it is connected.
	openTime = 30 * time.Second
	// silentTime is how long a publisher that was connected may send nothing: Janus itself keeps one that has vanished.
	silentTime = 30 * time.Second
	// replaceTime is after how much silence, or time without connection, another publisher may take the name.
	replaceTime = 2 * time.Second

	// playAge is how long a play counts as demand at a Janus that does not notice when a viewer vanishes.
	playAge = 6 * time.Hour

	awaitTime = 3 * time.Second
	sweepTime = 500 * time.Millisecond
	reapers   = 8 // handles that are detached at once
)

// session is one publication or play that came through the façade.
type session struct {
	id      string // the last element of its URL; of a publication also the participant's id
	publish bool
	inside  bool // opened by the sidecar itself: a relay's
	stream  adapters.StreamID
	room    ident
	feed    ident // the participant: itself, or the one it plays
	began   time.Time

	// The rest is the façade's, under its mutex.
	handle    *handle
	offer     description // the publisher's, or Janus'
	answered  bool        // both descriptions are there
	up        bool        // ICE and DTLS are
	receiving map[string]bool
	media     bool      // something has come from the publisher
	silent    time.Time // since when nothing comes any more; zero while something does
	tag       int       // of the ETag: counts ICE restarts
	busy      bool      // a restart is under way
	over      bool
	settled   chan struct{} // closed once it is up or over
}

// settle notes that a session is up, or never will be.
func (s *session) settle() {
	select {
	case <-s.settled:
	default:
		close(s.settled)
	}
}

// facade keeps the sessions, and knows what of them may be.
type facade struct {
	link   *link
	config Config
	logger *slog.Logger
	// news tells the inventory that sessions have changed, and whether there may be rooms that it does not know.
	news func(rooms bool)
	reap chan struct{} // capacity 1

	mu         sync.Mutex
	mark       mark
	naming     naming
	notices    bool
	connected  chan struct{} // closed while there is a session with Janus
	sessions   map[string]*session
	publishers map[adapters.StreamID]*session
	rooms      map[ident]bool // made by the sidecar
	locks      map[ident]*roomLock
	dead       []*session // to be detached
}

func newFacade(l *link, c Config, m mark, logger *slog.Logger, news func(bool)) *facade {
	return &facade{
		link: l, config: c, mark: m, logger: logger, news: news, reap: make(chan struct{}, 1),
		connected: make(chan struct{}),
		sessions:  map[string]*session{}, publishers: map[adapters.StreamID]*session{}, rooms: map[ident]bool{},
		locks: map[ident]*roomLock{},
	}
}

// renew begins another run: what is left in the rooms of a session with Janus that was lost is nobody's.
func (f *facade) renew() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mark.run = nonce()[:12]
}

func (f *facade) current() mark {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.mark
}

// connect says that there is a session with Janus, of which kind its ids are, and whether it notices viewers that vanish.
func (f *facade) connect(n naming, notices bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.naming, f.notices = n, notices
	close(f.connected)
}

// disconnect forgets every session: their handles have gone.
func (f *facade) disconnect() {
	f.mu.Lock()
	defer f.mu.Unlock()
	select {
	case <-f.connected:
		f.connected = make(chan struct{})
	default:
	}
	for _, s := range f.sessions {
		s.over = true
		s.settle()
	}
	f.dead = nil
	clear(f.sessions)
	clear(f.publishers)
	clear(f.rooms)
}

func (f *facade) session(id string) *session {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.sessions[id]
}

// await waits for a session with Janus: one that is being restarted, or that the sidecar has just found, is soon there.
func (f *facade) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, awaitTime)
	defer cancel()
	f.mu.Lock()
	connected := f.connected
	f.mu.Unlock()
	select {
	case <-connected:
		return nil
	case <-ctx.Done():
		return errNotConnected
	}
}

// reserve takes a place, and the name where it is a publication. Of a publisher that holds the name and is as good as
// gone, the session is given back, to be ended first.
func (f *facade) reserve(stream adapters.StreamID, publish, inside bool) (s, replaced *session, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	select {
	case <-f.connected:
	default:
		return nil, nil, errNotConnected
	}
	opening := 0
	for _, other := range f.sessions {
		if !other.up {
			opening++
		}
	}
	switch {
	case len(f.sessions) >= f.config.MaxSessions:
		return nil, nil, errTooMany
	case opening >= f.config.MaxOpening:
		return nil, nil, errTooManyOpening
	}
	now := time.Now()
	s = &session{
		id: nonce(), publish: publish, inside: inside, stream: stream, room: f.naming.room(stream), began: now, receiving: map[string]bool{},
		settled: make(chan struct{}),
	}
	if publish {
		if before := f.publishers[stream]; before != nil {
			if !before.replaceable(now) {
				return nil, nil, errPublished
			}
			f.removeLocked(before)
			replaced = before
		}
		s.feed = f.naming.participantID()
		s.id = s.feed.text
		f.publishers[stream] = s
	}
	f.sessions[s.id] = s
	return s, replaced, nil
}

func (s *session) replaceable(now time.Time) bool {
	if !s.up {
		return s.answered && now.Sub(s.began) >= replaceTime
	}
	return !s.silent.IsZero() && now.Sub(s.silent) >= replaceTime
}

// remove takes a session out; false where it was out already.
func (f *facade) remove(s *session) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.removeLocked(s)
}

func (f *facade) removeLocked(s *session) bool {
	if s.over {
		return false
	}
	s.over = true
	s.settle()
	if f.sessions[s.id] == s {
		delete(f.sessions, s.id)
	}
	if f.publishers[s.stream] == s {
		delete(f.publishers, s.stream)
	}
	return true
}

// end takes a session out and has its handle detached.
func (f *facade) end(s *session, why string) {
	f.mu.Lock()
	ended := f.removeLocked(s)
	if ended {
		f.dead = append(f.dead, s)
	}
	f.mu.Unlock()
	if !ended {
		return
	}
	f.logger.Info("session ended", "stream", s.stream, "publish", s.publish, "session", s.id, "why", why)
	select {
	case f.reap <- struct{}{}:
	default:
	}
	f.news(false)
}

// free detaches a session that was taken out, and ends the room that was made for it.
func (f *facade) free(ctx context.Context, s *session) {
	f.mu.Lock()
	h := s.handle
	f.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*detachTime)
	defer cancel()
	if h != nil {
		if err := h.detach(ctx); err != nil {
			f.logger.Warn("handle is left at janus", "stream", s.stream, "error", err)
		}
	}
	if s.publish {
		if err := f.closeRoom(ctx, s.room); err != nil {
			f.logger.Debug("room is left at janus", "stream", s.stream, "error", err)
		}
	}
	f.news(false)
}

// run ends sessions that nobody ends, and detaches those that ended by themselves, until ctx ends.
func (f *facade) run(ctx context.Context) {
	var group sync.WaitGroup
	defer group.Wait()
	slots := make(chan struct{}, reapers)
	ticker := time.NewTicker(sweepTime)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			f.sweep(time.Now())
		case <-f.reap:
		}
		f.mu.Lock()
		dead := f.dead
		f.dead = nil
		f.mu.Unlock()
		for _, s := range dead {
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				return
			}
			group.Go(func() {
				defer func() { <-slots }()
				f.free(ctx, s)
			})
		}
	}
}

func (f *facade) sweep(now time.Time) {
	type ending struct {
		s   *session
		why string
	}
	var endings []ending
	f.mu.Lock()
	for _, s := range f.sessions {
		switch {
		case !s.up && now.Sub(s.began) >= openTime:
			endings = append(endings, ending{s, "it did not connect"})
		case s.up && !s.silent.IsZero() && now.Sub(s.silent) >= silentTime:
			endings = append(endings, ending{s, "the publisher sends nothing any more"})
		}
	}
	f.mu.Unlock()
	for _, e := range endings {
		f.end(e.s, e.why)
	}
}

// heard takes what Janus tells of a session's handle.
func (f *facade) heard(s *session, m *message) {
	switch m.Janus {
	case "webrtcup":
		f.mu.Lock()
		s.up = true
		s.settle()
		if s.publish && !s.media {
			s.silent = time.Now() // until something comes
		}
		f.mu.Unlock()
		f.news(false)
	case "media":
		f.mu.Lock()
		s.receiving[m.MID] = m.Receiving
		s.media = s.media || m.Receiving
		some := false
		for _, receiving := range s.receiving {
			some = some || receiving
		}
		if some {
			s.silent = time.Time{}
		} else if s.silent.IsZero() {
			s.silent = time.Now()
		}
		f.mu.Unlock()
		f.news(false)
	case "hangup":
		f.end(s, "janus hung up: "+legible(m.Reason))
	case "detached":
		f.end(s, "janus detached it")
	case "event":
		about, err := m.said("hear of a session")
		switch {
		case err != nil:
			f.logger.Warn("janus tells what is not understood", "stream", s.stream, "error", err)
		case about.VideoRoom == "destroyed":
			f.end(s, "its room was destroyed")
		case about.Leaving != nil && (about.Leaving.text == "ok" || *about.Leaving == s.feed):
			f.end(s, "it was taken out of the room")
		case about.VideoRoom == "updated" && !s.publish:
			f.end(s, "the publisher has gone")
		}
	}
}

// roomLock is held by who makes or ends a room.
type roomLock struct {
	held  chan struct{} // capacity 1
	users int           // who hold it or wait
}

// lockRoom keeps others from making or ending a room meanwhile.
func (f *facade) lockRoom(ctx context.Context, room ident) (unlock func(), err error) {
	f.mu.Lock()
	lock := f.locks[room]
	if lock == nil {
		lock = &roomLock{held: make(chan struct{}, 1)}
		f.locks[room] = lock
	}
	lock.users++
	f.mu.Unlock()
	leave := func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if lock.users--; lock.users == 0 {
			delete(f.locks, room)
		}
	}
	select {
	case lock.held <- struct{}{}:
		return func() { <-lock.held; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}

// publish joins the room and hands over the offer; what Janus answers comes back. Where it fails, the caller frees the
// session.
func (f *facade) publish(ctx context.Context, s *session, offer description) (description, error) {
	unlock, err := f.lockRoom(ctx, s.room)
	if err != nil {
		return description{}, err
	}
	defer unlock()
	h, err := f.attach(ctx, s)
	if err != nil {
		return description{}, err
	}
	join := params{
		"request": "join", "ptype": "publisher", "room": s.room, "id": s.feed, "display": f.current().display(),
	}
	f.withPIN(join)
	joined, _, err := h.request(ctx, "join the room", join, nil)
	if codeOf(err) == codeNoRoom {
		if err = f.makeRoom(ctx, h, s); err == nil {
			joined, _, err = h.request(ctx, "join the room", join, nil)
		}
	}
	if err != nil {
		return description{}, err
	}
	f.news(true)
	for _, p := range joined.Publishers {
		switch {
		case p.Dummy || p.ID == s.feed:
		case f.current().orphan(p.Display):
			if err := f.kick(ctx, h, s.room, p.ID); err != nil {
				return description{}, err
			}
		case !f.isOver(p.ID):
			return description{}, errPublished
		}
	}
	// Janus takes one codec of those that are offered: the first in the room's order.
	_, answer, err := h.request(ctx, "publish", params{"request": "publish"}, &jsep{"offer", offer.text})
	if err != nil {
		return description{}, err
	}
	if answer == nil || answer.Type != "answer" {
		return description{}, &garbageError{"publish", "no session description"}
	}
	got, err := describe(answer.SDP)
	if err != nil {
		return description{}, &garbageError{"publish", "an answer that is no SDP (" + legible(err.Error()) + ")"}
	}
	if len(got.refused) > 0 {
		return description{}, &refusedMedia{got.refused}
	}
	f.mu.Lock()
	s.offer, s.answered = offer, true
	f.mu.Unlock()
	return got, nil
}

// isOver says whether a participant is a publication that was ended here, and that Janus is about to forget.
func (f *facade) isOver(id ident) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.dead {
		if s.feed == id {
			return true
		}
	}
	return false
}

// attach gives a session its handle.
func (f *facade) attach(ctx context.Context, s *session) (*handle, error) {
	h, err := f.link.attach(ctx, func(m *message) { f.heard(s, m) })
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	s.handle = h
	f.mu.Unlock()
	return h, nil
}

func (f *facade) withPIN(p params) {
	if f.config.RoomPIN != "" {
		p["pin"] = f.config.RoomPIN
	}
}

func (f *facade) withSecret(p params) {
	if f.config.RoomSecret != "" {
		p["secret"] = f.config.RoomSecret
	}
}

// makeRoom makes the room of a stream that has none. One publisher is all that a stream has.
func (f *facade) makeRoom(ctx context.Context, h *handle, s *session) error {
	create := params{
		"request": "create", "room": s.room, "description": ownRoom + string(s.stream), "permanent": false,
		"publishers": 1, "bitrate": 0, "fir_freq": 0, "audiocodec": roomAudio, "videocodec": roomVideo,
	}
	if f.config.AdminKey != "" {
		create["admin_key"] = f.config.AdminKey
	}
	f.withPIN(create)
	f.withSecret(create)
	_, err := h.ask(ctx, "make the room", create)
	switch codeOf(err) {
	case 0:
	case codeRoomExists:
		return nil // made by somebody else meanwhile: his
	case codeRoomForbidden, codeMissingElement:
		return &noRoom{err}
	}
	if err == nil {
		f.mu.Lock()
		f.rooms[s.room] = true
		f.mu.Unlock()
	}
	return err
}

// adopt takes up a room that a run before this one has made.
func (f *facade) adopt(room ident) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rooms[room] = true
}

// vacant says whether a room was made by the sidecar and none of its publications is in it any more.
func (f *facade) vacant(room ident) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.rooms[room] {
		return false
	}
	for _, s := range f.publishers {
		if s.room == room {
			return false
		}
	}
	return true
}

// closeRoom ends a room that the sidecar has made when nobody but the sidecar itself is in it.
func (f *facade) closeRoom(ctx context.Context, room ident) error {
	f.mu.Lock()
	made := f.rooms[room]
	f.mu.Unlock()
	if !made {
		return nil
	}
	unlock, err := f.lockRoom(ctx, room)
	if err != nil {
		return err
	}
	defer unlock()
	h, err := f.link.attach(ctx, nil)
	if err != nil {
		return err
	}
	defer h.detach(ctx) //nolint:errcheck // a handle without a connection
	in, err := h.ask(ctx, "list participants", params{"request": "listparticipants", "room": room})
	if err == nil {
		for _, p := range in.Participants {
			// One of ours that has been detached may be listed for a moment.
			if !f.current().ours(p.Display) || f.session(p.ID.text) != nil {
				return nil
			}
		}
		destroy := params{"request": "destroy", "room": room}
		f.withSecret(destroy)
		_, err = h.ask(ctx, "end the room", destroy)
	}
	if codeOf(err) == codeNoRoom {
		err = nil
	}
	if err == nil {
		f.mu.Lock()
		delete(f.rooms, room)
		f.mu.Unlock()
		f.news(true)
	}
	return err
}

// closeRooms ends all rooms that it may.
func (f *facade) closeRooms(ctx context.Context) {
	f.mu.Lock()
	var publishing []*session
	for _, s := range f.publishers {
		publishing = append(publishing, s)
	}
	for _, s := range publishing {
		f.removeLocked(s)
	}
	var rooms []ident
	for room := range f.rooms {
		rooms = append(rooms, room)
	}
	f.mu.Unlock()
	for _, s := range publishing {
		f.free(ctx, s)
	}
	for _, room := range rooms {
		if ctx.Err() != nil {
			return
		}
		_ = f.closeRoom(ctx, room) // an empty room does no harm
	}
}

// kick takes a participant out of a room. One that is not there is no error.
func (f *facade) kick(ctx context.Context, h *handle, room, id ident) error {
	request := params{"request": "kick", "room": room, "id": id}
	f.withSecret(request)
	_, err := h.ask(ctx, "kick", request)
	if code := codeOf(err); code == codeNoFeed || code == codeNoRoom {
		return nil
	}
	return err
}

// awaitPublisher waits for a publication that is just being connected: its publisher may know of the connection before
// Janus does.
func (f *facade) awaitPublisher(ctx context.Context, stream adapters.StreamID) {
	f.mu.Lock()
	s := f.publishers[stream]
	f.mu.Unlock()
	if s == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, awaitTime)
	defer cancel()
	select {
	case <-s.settled:
	case <-ctx.Done():
	}
}

// play subscribes to a publisher; Janus' offer comes back.
func (f *facade) play(ctx context.Context, s *session) (description, error) {
	h, err := f.attach(ctx, s)
	if err != nil {
		return description{}, err
	}
	join := params{
		"request": "join", "ptype": "subscriber", "room": s.room, "streams": []params{{"feed": s.feed}},
	}
	f.withPIN(join)
	_, offer, err := h.request(ctx, "subscribe", join, nil)
	if err != nil {
		return description{}, err
	}
	if offer == nil || offer.Type != "offer" {
		return description{}, &garbageError{"subscribe", "no session description"}
	}
	// Janus begins the DTLS handshake: what a viewer sends before Janus has finished ICE is lost, and sent again a second later.
	got, err := describe(strings.ReplaceAll(offer.SDP, "a=setup:actpass", "a=setup:active"))
	if err != nil {
		return description{}, &garbageError{"subscribe", "an offer that is no SDP (" + legible(err.Error()) + ")"}
	}
	f.mu.Lock()
	s.offer = got
	f.mu.Unlock()
	return got, nil
}

// anyPublisher asks Janus itself who publishes in a room: what the inventory knows may be a moment old.
func (f *facade) anyPublisher(ctx context.Context, room ident) (ident, error) {
	h, err := f.link.attach(ctx, nil)
	if err != nil {
		return ident{}, err
	}
	defer h.detach(ctx) //nolint:errcheck // a handle without a connection
	in, err := h.ask(ctx, "list participants", params{"request": "listparticipants", "room": room})
	if err != nil {
		return ident{}, err
	}
	var found []participant
	for _, p := range in.Participants {
		if p.Publisher && !f.current().orphan(p.Display) {
			found = append(found, p)
		}
	}
	if len(found) == 0 {
		return ident{}, adapters.ErrNoStream
	}
	return slices.MinFunc(found, func(a, b participant) int { return strings.Compare(a.ID.text, b.ID.text) }).ID, nil
}

// answer completes a play. A second answer is refused.
func (f *facade) answer(ctx context.Context, s *session, text string) error {
	f.mu.Lock()
	h, again := s.handle, s.answered || s.over
	s.answered = true
	f.mu.Unlock()
	if again {
		return errAnswered
	}
	_, _, err := h.request(ctx, "start", params{"request": "start"}, &jsep{"answer", text})
	return err
}

// restart has ICE begin anew with the publisher's new credentials; Janus' new ones come back, and the new tag.
func (f *facade) restart(ctx context.Context, s *session, fragment whip.Fragment) (description, int, error) {
	f.mu.Lock()
	if s.busy {
		f.mu.Unlock()
		return description{}, 0, errBusy
	}
	s.busy = true
	h, before, tag := s.handle, s.offer, s.tag+1
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		s.busy = false
		f.mu.Unlock()
	}()
	text, err := before.restarted(fragment, tag+1)
	if err != nil {
		return description{}, 0, err
	}
	offer, err := describe(text)
	if err != nil {
		return description{}, 0, err
	}
	_, answer, err := h.request(ctx, "restart ICE", params{"request": "configure"}, &jsep{"offer", text})
	if err != nil {
		return description{}, 0, err
	}
	if answer == nil {
		return description{}, 0, errors.New("janus does not answer the restart")
	}
	got, err := describe(answer.SDP)
	if err != nil {
		return description{}, 0, err
	}
	if err := h.trickle(ctx, offer.trickled(fragment), true); err != nil {
		return description{}, 0, err
	}
	f.mu.Lock()
	s.offer, s.tag = offer, tag
	f.mu.Unlock()
	return got, tag, nil
}

// counts are the plays of each stream: connected ones, and all.
func (f *facade) counts() (up, all map[adapters.StreamID]int) {
	up, all = map[adapters.StreamID]int{}, map[adapters.StreamID]int{}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.sessions {
		if s.publish {
			continue
		}
		all[s.stream]++
		if s.up && (f.notices || time.Since(s.began) < playAge) {
			up[s.stream]++
		}
	}
	return up, all
}

// publication is what the façade knows of a participant: whether it is a publication of its own, whether anything has come
// of it, and whether it is a relay's.
func (f *facade) publication(id ident) (mine, media, relayed bool, h *handle) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.sessions[id.text]
	if s == nil || !s.publish {
		return false, false, false, nil
	}
	return true, s.media, s.inside, s.handle
}

// left ends the plays of a publisher that has gone.
func (f *facade) left(room, id ident) {
	var plays []*session
	f.mu.Lock()
	for _, s := range f.sessions {
		if !s.publish && s.room == room && s.feed == id {
			plays = append(plays, s)
		}
	}
	f.mu.Unlock()
	for _, s := range plays {
		f.end(s, "the publisher has gone")
	}
}
