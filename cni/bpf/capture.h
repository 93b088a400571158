/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What the programs and their loader agree on. bpf2go turns the enums and
 * structs into Go, so neither side repeats a number.
 */
#ifndef AMBIT_CAPTURE_H
#define AMBIT_CAPTURE_H

#include <linux/types.h>

/* Packet and socket marks; the same values stand in cni/netns. */
enum mark {
	MARK_PROXY = 0x539,   /* sockets of the proxy */
	MARK_CAPTURE = 0x111, /* packets turned around into lo */
	MARK_MASK = 0xfff,
};

enum port {
	PORT_DNS = 53,
	PORT_HBONE = 15008,
};

/* settings.flags */
enum flag {
	FLAG_OUTBOUND = 1,
	FLAG_INBOUND = 2,
	FLAG_DNS = 4,
	/* Captured connections end in peace, new ones go direct. */
	FLAG_DRAIN = 8,
	/* The proxy's mark counts only with a cgroup of the proxies set. */
	FLAG_CGROUP = 16,
	/* Probes are told by the stamp the host side puts into the source MAC. */
	FLAG_STAMP = 32,
	/* Only sockets of the probers set are stamped. */
	FLAG_PROBERS = 64,
	/* What comes in over a device of the reroutes set is the pod's own going
	 * out: machines or containers that live behind the pod. */
	FLAG_REROUTE = 128,
};

/* Keys of the listeners map. A socket of one family takes only its packets,
 * so a port that is bound to addresses needs a slot per family. */
enum slot {
	SLOT_OUTBOUND,
	SLOT_INBOUND,
	SLOT_HBONE4,
	SLOT_HBONE6,
	SLOT_DNS_TCP,
	SLOT_DNS_UDP,
	SLOT_COUNT,
};

/* What was remembered for a socket of the pod. */
enum verdict {
	VERDICT_NONE,
	VERDICT_LOCAL, /* its peer is a socket in this namespace */
	VERDICT_WIRE,  /* its peer is elsewhere */
};

/* Keys of the stats map: one reason for each thing that was done. */
enum stat {
	STAT_OUTBOUND_CAPTURED,  /* a new connection of the pod */
	STAT_OUTBOUND_DELIVERED, /* handed to the outbound listener */
	STAT_OUTBOUND_DIRECT,    /* a new connection while capture was off, or to an IPv6 link-local address */
	STAT_RETURN_LOCAL,       /* first segment of a socket towards the proxy */
	STAT_RETURN_WIRE,        /* first segment of a socket towards the wire */
	STAT_INBOUND_CAPTURED,
	STAT_INBOUND_HBONE,
	STAT_INBOUND_HINTED, /* captured through a hint: port reuse on TIME_WAIT */
	STAT_INBOUND_PROBE,
	STAT_INBOUND_FORWARDED, /* for an address behind the pod */
	STAT_DNS_CAPTURED,
	STAT_DROP_FRAGMENT,
	STAT_DROP_UNPARSED,  /* TCP cut short, or headers the walk cannot pass */
	STAT_DROP_NO_LISTENER,
	STAT_DROP_ASSIGN,    /* the kernel refused the listener */
	STAT_DROP_HINTS_FULL,
	STAT_DROP_REDIRECT,  /* the packet could not be turned around */
	STAT_MARK_FORGED,    /* proxy's mark from a foreign cgroup: captured */
	STAT_STAMP_FORGED,   /* a frame arrived on the host with a stamp */
	STAT_STAMPED,
	STAT_REROUTED, /* a new connection from behind the pod: captured outbound */
	STAT_COUNT,
};

/* IPv4 addresses stand as ::ffff:a.b.c.d. */
struct address {
	__u32 word[4];
};

/* The first eight bytes are written by one store: flags switch at once. */
struct switches {
	__u32 flags;
	__u32 pad;
	__u64 version; /* of the programs that are attached, for the loader */
	__u8 stamp[6];
	__u8 pad2[2];
};

/* One inbound SYN that met a TIME_WAIT socket. Ports in network order. */
struct hint {
	struct address remote;
	__u16 remote_port;
	__u16 local_port;
};

/* A source whose connections to a probe port pass; longest prefix match. */
struct source {
	__u32 prefix;
	struct address address;
};

#endif
