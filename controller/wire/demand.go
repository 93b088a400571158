package wire

// HeaderOnDemand is the response header in which a server of ours says how it
// answers a client that asks for single names: with the word OnDemandNames or
// OnDemandWhole. Other servers do not send it.
const HeaderOnDemand = "ambit-on-demand"

// The words of HeaderOnDemand.
const (
	// OnDemandNames: what was asked for, and every later change of it, also of
	// names that were not found.
	OnDemandNames = "names"
	// OnDemandWhole: the mesh is small, everything is sent without being asked.
	OnDemandWhole = "whole"
)

// MetadataServices is the key of the node's metadata by which a client that
// asks for single names says that it wants every service nevertheless, and to
// be sent the workloads of those only that it asks for. Its value is "all".
const MetadataServices = "AMBIT_SERVICES"
