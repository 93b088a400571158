package inbound

import (
	"errors"
	"fmt"
	"testing"

	"github.com/ambitmesh/ambit/hbone"
	"github.com/ambitmesh/ambit/ztunnel/live"
)

// TestMemoryPressureIsNamed: neither the application nor the tunnel is at fault.
func TestMemoryPressureIsNamed(t *testing.T) {
	cause := fmt.Errorf("%w: 1 byte", hbone.ErrMemory)
	for _, err := range []error{&hbone.StreamError{Err: cause}, &hbone.ConnError{Op: "memory", Err: cause}} {
		var e *live.Error
		if !errors.As(relayError(err), &e) || e.Reason != live.MemoryPressure {
			t.Errorf("%v: %v", err, e)
		}
	}
}
