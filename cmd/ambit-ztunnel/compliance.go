package main

import (
	"crypto/fips140"
	"os"
	"strings"
	"syscall"

	"github.com/ambitmesh/ambit/hbone/identity"
)

// approve makes the process one whose cryptography is that of the Go Cryptographic
// Module in FIPS mode, where that is asked for: the mode is chosen when a program
// starts, so it starts itself again. It returns if there is nothing to do.
func (c *config) approve(environ []string) error {
	if identity.Compliance(c.Compliance) != identity.FIPS140 || fips140.Enabled() {
		return nil
	}
	return syscall.Exec("/proc/self/exe", os.Args, fipsEnviron(environ))
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
