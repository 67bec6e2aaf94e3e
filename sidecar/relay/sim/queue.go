package main

import "time"

// queue is virtual time: what is due next happens next, of several things due at once what was planned first. Nothing
// takes time but what is planned for later.
type queue struct {
	now     time.Duration
	planned uint64
	events  []event // a heap of four children to a node
}

type event struct {
	at  time.Duration
	seq uint64
	do  func()
}

func (e event) before(o event) bool { return e.at < o.at || e.at == o.at && e.seq < o.seq }

// after plans something for later.
func (q *queue) after(d time.Duration, do func()) { q.at(q.now+d, do) }

func (q *queue) at(t time.Duration, do func()) {
	q.planned++
	e := event{at: max(t, q.now), seq: q.planned, do: do}
	q.events = append(q.events, e)
	i := len(q.events) - 1
	for i > 0 {
		up := (i - 1) / 4
		if !e.before(q.events[up]) {
			break
		}
		q.events[i] = q.events[up]
		i = up
	}
	q.events[i] = e
}

// run lets everything happen that is due until then.
func (q *queue) run(until time.Duration) {
	for len(q.events) > 0 && q.events[0].at <= until {
		e := q.pop()
		q.now = e.at
		e.do()
	}
	q.now = max(q.now, until)
}

func (q *queue) pop() event {
	first := q.events[0]
	n := len(q.events) - 1
	last := q.events[n]
	q.events[n] = event{}
	q.events = q.events[:n]
	if n == 0 {
		return first
	}
	i := 0
	for {
		least := 4*i + 1
		if least >= n {
			break
		}
		for c := least + 1; c < min(4*i+5, n); c++ {
			if q.events[c].before(q.events[least]) {
				least = c
			}
		}
		if !q.events[least].before(last) {
			break
		}
		q.events[i] = q.events[least]
		i = least
	}
	q.events[i] = last
	return first
}

// alarm is something that is to happen once at the earliest time that was asked for since it happened last.
type alarm struct {
	at  time.Duration
	set bool
}

// ring plans do for a time, unless it is planned for an earlier one.
func (a *alarm) ring(q *queue, at time.Duration, do func()) {
	at = max(at, q.now)
	if a.set && a.at <= at {
		return
	}
	a.at, a.set = at, true
	q.at(at, func() {
		if a.set && a.at == at {
			a.set = false
			do()
		}
	})
}
