// Package enroll owns what passes between the CNI plugin and the node agent:
// the request and its answer on a unix socket, and the intent file the plugin
// reads when the agent does not answer. The plugin is executed at every pod
// start, so this package imports the standard library only.
package enroll

const (
	// DefaultSocket is where the agent listens for the plugin.
	DefaultSocket = "/var/run/ambit/cni.sock"
	// DefaultIntent is where the agent keeps what it has decided.
	DefaultIntent = "/var/lib/ambit/intent"
)
