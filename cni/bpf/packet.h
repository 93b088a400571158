/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Finding TCP in a packet. The rule behind all of it: what cannot be parsed
 * must not pass, because whatever this parser misses the receiver's stack will
 * find (RFC 8200 4 lets TCP sit behind any chain of extension headers).
 */
#ifndef AMBIT_PACKET_H
#define AMBIT_PACKET_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* More extension headers than any honest sender uses. */
#define MAX_EXTENSIONS 6

#define IPV4_MORE_FRAGMENTS 0x2000
#define IPV4_OFFSET 0x1fff
#define IPV6_MORE_FRAGMENTS 1
#define IPV6_OFFSET 0xfff8

enum {
	NEXT_HOP = 0,
	NEXT_ROUTING = 43,
	NEXT_FRAGMENT = 44,
	NEXT_AH = 51,
	NEXT_OPTIONS = 60,
	NEXT_MOBILITY = 135,
	NEXT_HIP = 139,
	NEXT_SHIM6 = 140,
};

enum parsed {
	PARSED_OTHER, /* certainly neither TCP nor UDP */
	PARSED_TCP,
	PARSED_UDP,
	PARSED_FRAGMENT, /* part of something that may be TCP */
	PARSED_BROKEN,   /* may be TCP */
};

struct packet {
	__u8 v6;
	__u8 syn; /* SYN without ACK */
	__u8 rst;
	/* In packet order: a lookup with it asks who would receive this. */
	struct bpf_sock_tuple tuple;
	__be16 sport, dport;
};

struct ipv4_header {
	__u8 version_ihl, tos;
	__be16 total, id, fragment;
	__u8 ttl, protocol;
	__be16 check;
	__be32 source, destination;
};

struct ipv6_header {
	__be32 version_class_flow;
	__be16 payload;
	__u8 next, hops;
	__u32 source[4], destination[4];
};

struct extension {
	__u8 next, length;
	__be16 fragment; /* in a fragment header */
};

/* Offsets count from the network header: the same for devices with and without
 * a link layer header, and for data outside the linear part. */
static __always_inline int load(struct __sk_buff *skb, __u32 offset, void *to, __u32 size)
{
	return bpf_skb_load_bytes_relative(skb, offset, to, size, BPF_HDR_START_NET) < 0;
}

static __always_inline int is_extension(__u8 next)
{
	return next == NEXT_HOP || next == NEXT_ROUTING || next == NEXT_FRAGMENT ||
	       next == NEXT_AH || next == NEXT_OPTIONS || next == NEXT_MOBILITY ||
	       next == NEXT_HIP || next == NEXT_SHIM6;
}

static __always_inline enum parsed parse_transport(struct __sk_buff *skb, struct packet *p, __u8 protocol,
						   __u32 offset)
{
	if (protocol == IPPROTO_TCP) {
		/* Ports, sequence, acknowledgement, offset, flags: up to the
		 * flags is what decides, so that much must be here. */
		struct {
			__be16 source, dest;
			__be32 seq, ack;
			__u8 offset, flags;
		} tcp;
		if (load(skb, offset, &tcp, 14))
			return PARSED_BROKEN;
		p->sport = tcp.source;
		p->dport = tcp.dest;
		p->syn = (tcp.flags & 0x12) == 0x02;
		p->rst = (tcp.flags & 0x04) != 0;
	} else if (protocol == IPPROTO_UDP) {
		__be16 ports[2];
		if (load(skb, offset, ports, sizeof(ports)))
			return PARSED_OTHER;
		p->sport = ports[0];
		p->dport = ports[1];
	} else {
		return PARSED_OTHER;
	}
	if (p->v6) {
		p->tuple.ipv6.sport = p->sport;
		p->tuple.ipv6.dport = p->dport;
	} else {
		p->tuple.ipv4.sport = p->sport;
		p->tuple.ipv4.dport = p->dport;
	}
	return protocol == IPPROTO_TCP ? PARSED_TCP : PARSED_UDP;
}

static __always_inline enum parsed parse_ipv4(struct __sk_buff *skb, struct packet *p)
{
	struct ipv4_header ip;

	if (load(skb, 0, &ip, sizeof(ip)))
		return PARSED_BROKEN;
	if (ip.fragment & bpf_htons(IPV4_MORE_FRAGMENTS | IPV4_OFFSET))
		return ip.protocol == IPPROTO_TCP ? PARSED_FRAGMENT : PARSED_OTHER;
	p->v6 = 0;
	p->tuple.ipv4.saddr = ip.source;
	p->tuple.ipv4.daddr = ip.destination;
	return parse_transport(skb, p, ip.protocol, (ip.version_ihl & 0xf) * 4);
}

static __always_inline enum parsed parse_ipv6(struct __sk_buff *skb, struct packet *p)
{
	struct ipv6_header ip;
	__u32 offset = sizeof(ip);
	__u8 next;

	if (load(skb, 0, &ip, sizeof(ip)))
		return PARSED_BROKEN;
	p->v6 = 1;
	__builtin_memcpy(p->tuple.ipv6.saddr, ip.source, 16);
	__builtin_memcpy(p->tuple.ipv6.daddr, ip.destination, 16);
	next = ip.next;
#pragma unroll
	for (int i = 0; i < MAX_EXTENSIONS; i++) {
		struct extension x;

		if (!is_extension(next))
			return parse_transport(skb, p, next, offset);
		if (load(skb, offset, &x, sizeof(x)))
			return PARSED_BROKEN;
		if (next == NEXT_FRAGMENT) {
			/* An atomic fragment (RFC 6946) is whole. */
			if (x.fragment & bpf_htons(IPV6_MORE_FRAGMENTS | IPV6_OFFSET))
				return x.next == IPPROTO_TCP || is_extension(x.next) ? PARSED_FRAGMENT : PARSED_OTHER;
			offset += 8;
		} else if (next == NEXT_AH) {
			offset += (x.length + 2) * 4;
		} else {
			offset += (x.length + 1) * 8;
		}
		next = x.next;
	}
	if (!is_extension(next))
		return parse_transport(skb, p, next, offset);
	return PARSED_BROKEN;
}

static __always_inline enum parsed parse(struct __sk_buff *skb, struct packet *p)
{
	if (skb->protocol == bpf_htons(ETH_P_IP))
		return parse_ipv4(skb, p);
	if (skb->protocol == bpf_htons(ETH_P_IPV6))
		return parse_ipv6(skb, p);
	return PARSED_OTHER;
}

static __always_inline void mapped(struct address *a, __be32 v4)
{
	a->word[0] = 0;
	a->word[1] = 0;
	a->word[2] = bpf_htonl(0xffff);
	a->word[3] = v4;
}

static __always_inline void source_of(const struct packet *p, struct address *a)
{
	if (p->v6)
		__builtin_memcpy(a, p->tuple.ipv6.saddr, sizeof(*a));
	else
		mapped(a, p->tuple.ipv4.saddr);
}

static __always_inline void destination_of(const struct packet *p, struct address *a)
{
	if (p->v6)
		__builtin_memcpy(a, p->tuple.ipv6.daddr, sizeof(*a));
	else
		mapped(a, p->tuple.ipv4.daddr);
}

/* fe80::/10 (RFC 4291 2.5.6). A socket that connects there is bound to its
 * device, and what comes in through lo does not reach it. */
static __always_inline int to_link_local(const struct packet *p)
{
	return p->v6 && (p->tuple.ipv6.daddr[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000);
}

/* The helper wants a constant size. Request and TIME_WAIT sockets count. */
static __always_inline struct bpf_sock *receiver(struct __sk_buff *skb, struct packet *p)
{
	if (p->v6)
		return bpf_skc_lookup_tcp(skb, &p->tuple, sizeof(p->tuple.ipv6), BPF_F_CURRENT_NETNS, 0);
	return bpf_skc_lookup_tcp(skb, &p->tuple, sizeof(p->tuple.ipv4), BPF_F_CURRENT_NETNS, 0);
}

#endif
