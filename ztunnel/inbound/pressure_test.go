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
	for cause, reason := range map[error]live.Reason{hbone.ErrMemory: live.MemoryPressure, hbone.ErrShare: live.QuotaBacklog} {
		cause = fmt.Errorf("%w: 1 byte", cause)
		for _, err := range []error{&hbone.StreamError{Err: cause}, &hbone.ConnError{Op: "memory", Err: cause}} {
			var e *live.Error
			if !errors.As(relayError(err), &e) || e.Reason != reason {
				t.Errorf("%v: %v", err, e)
			}
		}
	}
}
