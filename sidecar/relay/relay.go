// Package relay carries live streams from a parent node into the local media server, packet by packet and without
// transcoding. A Session carries one stream from a parent, which can be changed for another while it flows, and says how
// it ended; a Manager runs the sessions that are wanted here, changes their parents, retries them, and lets viewers wait
// until one is live. The gateway and the planner's loop call the Manager; nothing else opens a Session. What a stream is,
// who has it and who should be pulled from is not decided here: see the catalogue and planner packages.
package relay
