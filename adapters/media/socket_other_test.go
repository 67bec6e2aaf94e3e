//go:build !linux

package media

func setWhole(*socket, bool) {}
