// Package redirect has the kernel send what comes from outside for the media server's port to the gateway's, where a Service
// leads to that port by its number.
package redirect
