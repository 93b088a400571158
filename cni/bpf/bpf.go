// Package bpf owns the capture programs: their C source, the header they share
// with Go, and the compiled objects.
//
// The objects are committed so that building Ambit needs no C compiler, and are
// rebuilt and compared byte for byte in CI. They depend on clang 14, llvm-strip
// 14 and the headers of libbpf-dev and linux-libc-dev of Debian 12 (x86-64):
// bpf2go maps the build folder out of the debug information and strips all but
// BTF, so neither the folder nor the time is in them. One object per processor
// architecture because that is how the files are named for the Go build; none
// of them depends on a kernel version.
package bpf

//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -cc clang-14 -strip llvm-strip-14 -target amd64,arm64 -go-package bpf Capture capture.c -- -O2 -g -Wall -Werror -mcpu=v3 -I/usr/include/x86_64-linux-gnu

import (
	"crypto/sha256"
	"encoding/binary"
)

// Version tells builds of the programs apart: programs of another version are
// replaced under running connections.
func Version() uint64 {
	sum := sha256.Sum256(_CaptureBytes)
	return binary.LittleEndian.Uint64(sum[:8])
}
