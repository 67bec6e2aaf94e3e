package adapters

// DeniedError says that who asks may not do what they ask for: what checks tokens and what answers requests share it.
type DeniedError struct {
	// Known is set where the token is good, and not for this.
	Known  bool
	Reason string // for who asked
}

func (e *DeniedError) Error() string { return e.Reason }
