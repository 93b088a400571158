package identity

import (
	"crypto/fips140"
	"fmt"
	"os"
	"strings"
	"syscall"
)

// Approve makes the process one whose cryptography is that of the Go Cryptographic
// Module in FIPS mode, where c asks for it. The mode is chosen when a program
// starts, so the process starts itself again, with environ; main calls it before
// anything has begun. It returns if there is nothing to do, or with an error.
func (c Compliance) Approve(environ []string) error {
	if c != FIPS140 || fips140.Enabled() {
		return nil
	}
	return fmt.Errorf("start in FIPS mode: %w", syscall.Exec("/proc/self/exe", os.Args, fipsEnviron(environ)))
}

// fipsEnviron is environ with the mode added to what GODEBUG says already.
func fipsEnviron(environ []string) []string {
	out := []string{"GODEBUG=fips140=on"}
	for _, kv := range environ {
		if v, ok := strings.CutPrefix(kv, "GODEBUG="); ok {
			out[0] = "GODEBUG=" + strings.TrimLeft(v+",fips140=on", ",")
			continue
		}
		out = append(out, kv)
	}
	return out
}
