package media

func setWhole(s *socket, whole bool) { s.queue.whole = whole }
