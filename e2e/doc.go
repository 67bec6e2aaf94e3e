// Package e2e proves the promise from outside: it starts what a user starts, publishes and plays as a user does, and
// counts what arrives.
package e2e
