// Command ambit-cni is the CNI plugin of Ambit: the last plugin in the chain,
// run by the container runtime for every sandbox.
package main

import (
	"os"
	"runtime/debug"

	"github.com/containernetworking/cni/pkg/skel"
	cniversion "github.com/containernetworking/cni/pkg/version"

	"github.com/ambitmesh/ambit/cni/plugin"
)

// version is set by the linker.
var version = "unknown"

func main() {
	// One short life per pod start: a collection would only cost time.
	debug.SetGCPercent(-1)
	skel.PluginMainFuncs(plugin.New(os.Stdout, os.Stderr).Funcs(), cniversion.All, "CNI plugin ambit-cni "+version)
}
