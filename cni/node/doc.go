// Package node owns the node agent: which pods of this node are enrolled, the
// steps that bring each of them into the mesh and out of it, and the memory of
// both that survives a restart.
//
// One goroutine (loop.go) owns the state of all pods. It is told that
// something about a pod may have changed, compares what should be with what is,
// and starts at most one job per pod (work.go) that makes it so. Jobs are the
// only code that waits for the kernel, the runtime, ztunnel or the API server.
//
// Listeners and a restart of the agent. A pod's listening sockets are open in
// the agent and in ztunnel. When the agent ends, ztunnel's copies keep them
// alive and the pinned socket map keeps pointing at them, so capture and
// service go on. The next agent takes copies back from the ztunnel that
// connects to it (recover.go) rather than make new sockets, whose addresses
// would still be in use; established connections are not touched. When both
// ended at the same time, the sockets are gone: new connections of captured
// pods are dropped until the agent has made new ones.
package node
