// Package handoff owns the conversation in which a node's CNI agent gives the
// pods of its node to a ztunnel: both ends of ZDS over a unix SOCK_SEQPACKET
// socket, the passing of descriptors, and the two dialects.
//
// One datagram is one protobuf message without a length prefix. The ztunnel
// dials and says hello; the agent then sends one request at a time and waits
// for its Ack: first a snapshot (Add and Keep for everything it knows, closed
// by SnapshotSent), afterwards Add and Del as they happen.
//
// Dialects. In "port", the one every implementation speaks, an Add carries one
// descriptor, the pod's network namespace, and the ztunnel makes its own
// listeners in there. In "slot", spoken when both ends are ours, the agent has
// made the listeners and an Add carries them as well, so that a ztunnel that
// dies leaves them open and its successor accepts what has queued. A ztunnel
// asks for "slot" in an unknown field of its hello; an end that does not know
// the field ignores it and everybody speaks "port".
//
// Descriptors have one owner at any moment. Server borrows those of the Pods
// it is given, for the time of the call. Handler.Add receives ownership of
// those of its Pod, whatever it returns.
package handoff

//go:generate go build -o ../../out/tool/protoc-gen-go google.golang.org/protobuf/cmd/protoc-gen-go
//go:generate protoc -I ../.. --plugin=protoc-gen-go=../../out/tool/protoc-gen-go --go_out=../.. --go_opt=module=github.com/ambitmesh/ambit cni/handoff/zds.proto
