package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"os"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
)

const (
	component = "sidestream-injector"
	// maxEvents wait to be written; more are dropped, for nobody reads so many.
	maxEvents = 100
	// maxEventMessage is the API's bound.
	maxEventMessage = 1024
	eventTime       = 5 * time.Second
)

// events are written beside what they are about. An event's name comes of what it says and about whom, so that many pods of
// one owner and several replicas of the injector make one, until Kubernetes has forgotten it (after an hour).
type events struct {
	to     typedcorev1.EventsGetter
	queue  chan *corev1.Event
	logger *slog.Logger
}

func newEvents(to typedcorev1.EventsGetter, logger *slog.Logger) *events {
	return &events{to: to, queue: make(chan *corev1.Event, maxEvents), logger: logger}
}

// ownerReference is who hears of a pod that has no UID yet; nil where it has no owner.
func ownerReference(namespace string, owner *metav1.OwnerReference) *corev1.ObjectReference {
	if owner == nil {
		return nil
	}
	return &corev1.ObjectReference{
		APIVersion: owner.APIVersion, Kind: owner.Kind, Namespace: namespace, Name: owner.Name, UID: owner.UID,
	}
}

// report has an event written soon. It does not wait.
func (e *events) report(about *corev1.ObjectReference, kind, reason, message string) {
	if about == nil {
		return
	}
	if len(message) > maxEventMessage {
		message = message[:maxEventMessage-3] + "..."
	}
	sum := sha256.Sum256([]byte(string(about.UID) + "\n" + reason + "\n" + message))
	now := metav1.Now()
	host, _ := os.Hostname()
	event := &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Namespace: about.Namespace, Name: fmt.Sprintf("%.200s.sidestream-%s", about.Name, hex.EncodeToString(sum[:8]))},
		InvolvedObject: *about, Type: kind, Reason: reason, Message: message, Count: 1, FirstTimestamp: now, LastTimestamp: now,
		Source: corev1.EventSource{Component: component}, ReportingController: component, ReportingInstance: host,
	}
	select {
	case e.queue <- event:
	default:
		e.logger.Warn("event is dropped: too many wait", "about", about.Name, "message", message)
	}
}

// run writes events until ctx ends; those that wait then are still written, if that is soon done.
func (e *events) run(ctx context.Context) error {
	for {
		select {
		case event := <-e.queue:
			e.write(ctx, event)
		case <-ctx.Done():
			rest, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			defer cancel()
			for rest.Err() == nil {
				select {
				case event := <-e.queue:
					e.write(rest, event)
				default:
					return ctx.Err()
				}
			}
			return ctx.Err()
		}
	}
}

func (e *events) write(ctx context.Context, event *corev1.Event) {
	ctx, cancel := context.WithTimeout(ctx, eventTime)
	defer cancel()
	_, err := e.to.Events(event.Namespace).Create(ctx, event, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) && !apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
		e.logger.Warn("event cannot be written", "namespace", event.Namespace, "about", event.InvolvedObject.Name, "error", err)
	}
}
