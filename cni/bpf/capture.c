//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Capture of one pod's traffic inside its own network namespace.
 *
 *   egress   tc(x) egress of every device but lo: turns the pod's new
 *            connections, and what it sends to a socket of this namespace,
 *            around into lo
 *   ingress  tc(x) ingress of the same devices: gives what would reach a
 *            listener of the pod to the proxy's
 *   lookup   sk_lookup of the namespace: gives what arrives on lo for a foreign
 *            address to the proxy's outbound listener
 *
 *   stamp    tcx egress of the host's end of the pod's veth: marks frames of the
 *            node's own processes to the pod's probe ports
 *
 * There is no NAT: the original destination is the accepted socket's local
 * address. Only UAPI contexts are touched, hence no CO-RE relocations, no
 * vmlinux.h and one object for all kernels.
 */
#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "capture.h"
#include "packet.h"

/* TCX_NEXT: later programs see the packet too. The same value continues with
 * the next filter of a clsact qdisc. */
#define NEXT TC_ACT_UNSPEC

#define IFINDEX_LO 1
#define STATE_LISTEN 10
#define FAMILY_INET 2
#define FAMILY_INET6 10

/* Makes BTF, and so Go, know enums that no other object has as its type. */
#define EXPORT(kind) const enum kind kind##_values = 0
EXPORT(mark);
EXPORT(flag);
EXPORT(slot);
EXPORT(stat);
EXPORT(port);
EXPORT(verdict);

/* sk_lookup's ingress_ifindex came with Linux 5.17; without it the address
 * tests carry the decision. */
volatile const __u32 has_ingress_ifindex = 1;

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct switches);
} settings SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SOCKMAP);
	__uint(max_entries, SLOT_COUNT);
	__type(key, __u32);
	__type(value, __u64);
} listeners SEC(".maps");

/* Every address of the namespace that is known to be its own. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 256);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct address);
	__type(value, __u8);
} addresses SEC(".maps");

/* Ports (network order) of the pod's probes. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u16);
	__type(value, __u8);
} probes SEC(".maps");

/* Where probes come from when no stamp can be had. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 64);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct source);
	__type(value, __u8);
} sources SEC(".maps");

/* Cgroup ids the proxy's sockets were made in. Grows only: an accepted socket
 * carries the cgroup of its listener's creator, and generations overlap. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 256);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64);
	__type(value, __u8);
} cgroups SEC(".maps");

/* Cgroup ids of the node's processes that probe. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64);
	__type(value, __u8);
} probers SEC(".maps");

/* Indexes of the devices behind which others live. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, __u8);
} reroutes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, __u32);
} verdicts SEC(".maps");

/* A plain hash: an evicted hint would be a bypass, a full map drops. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct hint);
	__type(value, __u64);
} hints SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, STAT_COUNT);
	__type(key, __u32);
	__type(value, __u64);
} stats SEC(".maps");

static __always_inline void count(__u32 what)
{
	__u64 *n = bpf_map_lookup_elem(&stats, &what);

	if (n)
		*n += 1;
}

static __always_inline int drop(__u32 why)
{
	count(why);
	return TC_ACT_SHOT;
}

static __always_inline struct switches *load_settings(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&settings, &zero);
}

#define LINK_HEADER 14 /* of Ethernet */

/* Devices such as tun and WireGuard have none: there the packet begins with what
 * is at its network header. The type alone does not tell, an address in
 * 8.0.0.0/16 looks like the one of IPv4. */
static __always_inline int lacks_link_header(struct __sk_buff *skb)
{
	struct {
		__u32 word[3];
		__be16 type, unused;
	} first = {}, ip = {};

	if (bpf_skb_load_bytes(skb, 0, &first, LINK_HEADER) < 0 || first.type != skb->protocol)
		return 1;
	return !load(skb, 0, &ip, LINK_HEADER) && first.word[0] == ip.word[0] && first.word[1] == ip.word[1] &&
	       first.word[2] == ip.word[2] && first.type == ip.type;
}

static __always_inline int turn_around(struct __sk_buff *skb)
{
	/* With the gateway's MAC eth_type_trans() would call the packet
	 * somebody else's; lo's own address is all zero. */
	__u8 none[6] = {};

	if (lacks_link_header(skb)) {
		__be16 type = skb->protocol;

		/* The new bytes are zero. */
		if (bpf_skb_change_head(skb, LINK_HEADER, 0) < 0 ||
		    bpf_skb_store_bytes(skb, 12, &type, sizeof(type), 0) < 0)
			return drop(STAT_DROP_REDIRECT);
	} else if (bpf_skb_store_bytes(skb, 0, none, sizeof(none), 0) < 0) {
		return drop(STAT_DROP_REDIRECT);
	}
	skb->mark = (skb->mark & ~MARK_MASK) | MARK_CAPTURE;
	return bpf_redirect(IFINDEX_LO, BPF_F_INGRESS);
}

/* The proxy's sockets are told by their mark. SO_MARK needs only CAP_NET_RAW
 * since Linux 5.17, which container runtimes grant by default, so where cgroup
 * v2 is in use the sender's cgroup must be one of the proxy's. */
static __always_inline int from_proxy(struct __sk_buff *skb, const struct switches *s)
{
	__u64 id;

	if ((skb->mark & MARK_MASK) != MARK_PROXY)
		return 0;
	if (!(s->flags & FLAG_CGROUP))
		return 1;
	id = bpf_skb_cgroup_id(skb);
	if (bpf_map_lookup_elem(&cgroups, &id))
		return 1;
	count(STAT_MARK_FORGED);
	return 0;
}

/* What the pod sends on for others: it came in over a device, and no NAT has made
 * it the pod's own. A packet made here has not come in, whatever source a raw
 * socket gave it. */
static __always_inline int passes_through(struct __sk_buff *skb, const struct packet *p)
{
	struct address from;

	if (!skb->ingress_ifindex || skb->ingress_ifindex == IFINDEX_LO)
		return 0;
	source_of(p, &from);
	return !bpf_map_lookup_elem(&addresses, &from);
}

SEC("tc/egress")
int egress(struct __sk_buff *skb)
{
	struct switches *s = load_settings();
	struct bpf_sock *sk = skb->sk, *full = 0;
	struct packet p = {};
	__u32 known = VERDICT_NONE;
	int local;

	if (!s)
		return TC_ACT_SHOT; /* cannot be: an array element */
	if (from_proxy(skb, s))
		return NEXT;
	/* A SYN-ACK carries a request socket and a RST none: those are looked up. */
	if (sk)
		full = bpf_sk_fullsock(sk);
	if (full && full->protocol == IPPROTO_TCP) {
		__u32 *v = bpf_sk_storage_get(&verdicts, full, 0, 0);

		if (v) {
			known = *v;
			if (known == VERDICT_LOCAL)
				return turn_around(skb);
		}
	} else {
		full = 0;
	}
	switch (parse(skb, &p)) {
	case PARSED_TCP:
		break;
	case PARSED_UDP:
		if (!(s->flags & FLAG_DNS) || p.dport != bpf_htons(PORT_DNS))
			return NEXT;
		count(STAT_DNS_CAPTURED);
		return turn_around(skb);
	case PARSED_FRAGMENT:
		return s->flags & FLAG_OUTBOUND ? drop(STAT_DROP_FRAGMENT) : NEXT;
	case PARSED_BROKEN:
		return s->flags & FLAG_OUTBOUND ? drop(STAT_DROP_UNPARSED) : NEXT;
	default:
		return NEXT;
	}
	if (p.syn) {
		local = (s->flags & FLAG_OUTBOUND) && !to_link_local(&p) && !passes_through(skb, &p);
		count(local ? STAT_OUTBOUND_CAPTURED : STAT_OUTBOUND_DIRECT);
	} else if (known == VERDICT_WIRE) {
		/* Only now: connect(AF_UNSPEC) makes a new client of an old
		 * socket, and its SYN must not live on what was. */
		return NEXT;
	} else {
		/* Would a socket of this namespace receive it? Then the peer is
		 * the proxy under a foreign address. Connections that are older
		 * than capture have no such socket and go on untouched. */
		struct bpf_sock *peer = receiver(skb, &p);

		local = 0;
		if (peer) {
			local = peer->state != STATE_LISTEN;
			bpf_sk_release(peer);
		}
		count(local ? STAT_RETURN_LOCAL : STAT_RETURN_WIRE);
	}
	if (full) {
		__u32 now = local ? VERDICT_LOCAL : VERDICT_WIRE;
		__u32 *v = bpf_sk_storage_get(&verdicts, full, &now, BPF_SK_STORAGE_GET_F_CREATE);

		if (v)
			*v = now;
	}
	return local ? turn_around(skb) : NEXT;
}

/* Known to be on its way through the pod. Anything unsure is not: when
 * forwarding is off the answer says nothing, and the stack drops what is not
 * the pod's own whoever it was assigned to. */
static __always_inline int forwarded(struct __sk_buff *skb, const struct packet *p)
{
	struct bpf_fib_lookup f = {};
	long r;

	f.ifindex = skb->ifindex;
	f.l4_protocol = IPPROTO_TCP;
	if (p->v6) {
		f.family = FAMILY_INET6;
		__builtin_memcpy(f.ipv6_src, p->tuple.ipv6.saddr, 16);
		__builtin_memcpy(f.ipv6_dst, p->tuple.ipv6.daddr, 16);
	} else {
		f.family = FAMILY_INET;
		f.ipv4_src = p->tuple.ipv4.saddr;
		f.ipv4_dst = p->tuple.ipv4.daddr;
	}
	r = bpf_fib_lookup(skb, &f, sizeof(f), 0);
	return r == BPF_FIB_LKUP_RET_SUCCESS || r == BPF_FIB_LKUP_RET_NO_NEIGH ||
	       r == BPF_FIB_LKUP_RET_FRAG_NEEDED;
}

static __always_inline int has_stamp(struct __sk_buff *skb, const struct switches *s)
{
	__u8 mac[6];

	if (bpf_skb_load_bytes(skb, 6, mac, sizeof(mac)) < 0)
		return 0;
	return mac[0] == s->stamp[0] && mac[1] == s->stamp[1] && mac[2] == s->stamp[2] &&
	       mac[3] == s->stamp[3] && mac[4] == s->stamp[4] && mac[5] == s->stamp[5];
}

static __always_inline int is_probe(struct __sk_buff *skb, const struct switches *s, const struct packet *p)
{
	__u16 port = p->dport;

	if (!bpf_map_lookup_elem(&probes, &port))
		return 0;
	if (s->flags & FLAG_STAMP)
		return has_stamp(skb, s);
	struct source from = { .prefix = 128 };

	source_of(p, &from.address);
	return bpf_map_lookup_elem(&sources, &from) != 0;
}

/* Over a device behind which others live, for somewhere else than the pod: the
 * mark makes our route deliver it here, on its own device, because the source
 * has no way back through lo that a strict reverse path filter would accept. */
static __always_inline int rerouted(struct __sk_buff *skb, const struct switches *s, struct packet *p)
{
	__u32 device = skb->ifindex;
	struct address to;

	if (!(s->flags & FLAG_REROUTE) || !bpf_map_lookup_elem(&reroutes, &device))
		return 0;
	destination_of(p, &to);
	if (bpf_map_lookup_elem(&addresses, &to))
		return 0;
	if (s->flags & FLAG_OUTBOUND)
		return 1;
	/* Drained: what began with the proxy ends with it. */
	struct bpf_sock *sk = receiver(skb, p);

	if (!sk)
		return 0;
	__u32 state = sk->state;

	bpf_sk_release(sk);
	return state != STATE_LISTEN;
}

static __always_inline __u32 inbound_slot(int v6, __be16 port)
{
	if (port != bpf_htons(PORT_HBONE))
		return SLOT_INBOUND;
	return v6 ? SLOT_HBONE6 : SLOT_HBONE4;
}

SEC("tc/ingress")
int ingress(struct __sk_buff *skb)
{
	struct switches *s = load_settings();
	struct packet p = {};
	struct address to;
	struct bpf_sock *sk;
	__u32 slot;
	int stale = 0;

	if (!s)
		return TC_ACT_SHOT;
	if (!(s->flags & (FLAG_INBOUND | FLAG_REROUTE)))
		return NEXT;
	switch (parse(skb, &p)) {
	case PARSED_TCP:
		break;
	case PARSED_FRAGMENT:
		return s->flags & FLAG_INBOUND ? drop(STAT_DROP_FRAGMENT) : NEXT;
	case PARSED_BROKEN:
		return s->flags & FLAG_INBOUND ? drop(STAT_DROP_UNPARSED) : NEXT;
	default:
		return NEXT;
	}
	if (rerouted(skb, s, &p)) {
		skb->mark = (skb->mark & ~MARK_MASK) | MARK_CAPTURE;
		if (p.syn)
			count(STAT_REROUTED);
		return NEXT;
	}
	if (p.rst || !(s->flags & FLAG_INBOUND))
		return NEXT;
	/* Acting on SYNs alone would lose the ACK that ends a SYN cookie
	 * handshake to the application: the cookie is valid there too. So every
	 * segment whose receiver would be a listener is captured, and what has
	 * a socket of its own, whoever owns it, goes on. */
	sk = receiver(skb, &p);
	if (sk) {
		__u32 state = sk->state;

		bpf_sk_release(sk);
		if (state != STATE_LISTEN) {
			if (!p.syn)
				return NEXT;
			stale = 1;
		}
	}
	slot = inbound_slot(p.v6, p.dport);
	destination_of(&p, &to);
	if (!bpf_map_lookup_elem(&addresses, &to) && forwarded(skb, &p)) {
		count(STAT_INBOUND_FORWARDED);
		return NEXT;
	}
	if (slot == SLOT_INBOUND && is_probe(skb, s, &p)) {
		count(STAT_INBOUND_PROBE);
		return NEXT;
	}
	if (stale) {
		/* bpf_sk_assign would skip the recycling of the TIME_WAIT socket
		 * and the SYN be lost until it ends. The stack does it right, and
		 * then asks lookup for the listener. */
		struct hint h = {};
		__u64 now = bpf_ktime_get_ns();

		source_of(&p, &h.remote);
		h.remote_port = p.sport;
		h.local_port = p.dport;
		if (bpf_map_update_elem(&hints, &h, &now, BPF_ANY))
			return drop(STAT_DROP_HINTS_FULL);
		return NEXT;
	}
	sk = bpf_map_lookup_elem(&listeners, &slot);
	if (!sk)
		return drop(STAT_DROP_NO_LISTENER);
	long err = bpf_sk_assign(skb, sk, 0);
	bpf_sk_release(sk);
	if (err)
		return drop(STAT_DROP_ASSIGN);
	count(slot == SLOT_INBOUND ? STAT_INBOUND_CAPTURED : STAT_INBOUND_HBONE);
	return NEXT;
}

SEC("sk_lookup")
int lookup(struct bpf_sk_lookup *ctx)
{
	struct switches *s = load_settings();
	struct address local;
	struct hint h = {};
	__u32 slot, ifindex = IFINDEX_LO;
	struct bpf_sock *sk;

	/* All fields before any branch: clang 14 merges loads of two arms into
	 * one through a modified context pointer, which the verifier refuses. */
	__u32 family = ctx->family, protocol = ctx->protocol;
	__u32 local4 = ctx->local_ip4, remote4 = ctx->remote_ip4;
	__u32 port = ctx->local_port;
	__u16 remote_port = ctx->remote_port;
	local.word[0] = ctx->local_ip6[0];
	local.word[1] = ctx->local_ip6[1];
	local.word[2] = ctx->local_ip6[2];
	local.word[3] = ctx->local_ip6[3];
	h.remote.word[0] = ctx->remote_ip6[0];
	h.remote.word[1] = ctx->remote_ip6[1];
	h.remote.word[2] = ctx->remote_ip6[2];
	h.remote.word[3] = ctx->remote_ip6[3];
	if (has_ingress_ifindex)
		ifindex = ctx->ingress_ifindex;
	asm volatile("" : "+r"(local4), "+r"(remote4), "+r"(family), "+r"(ifindex)::"memory");

	if (!s || !s->flags)
		return SK_PASS;
	if (family == FAMILY_INET) {
		mapped(&local, local4);
		mapped(&h.remote, remote4);
	}
	if (protocol == IPPROTO_TCP) {
		h.remote_port = remote_port;
		h.local_port = bpf_htons((__u16)port);
		/* A hint is never too old: a late one must still capture. */
		if (bpf_map_lookup_elem(&hints, &h)) {
			bpf_map_delete_elem(&hints, &h);
			slot = inbound_slot(family == FAMILY_INET6, h.local_port);
			goto assign;
		}
	}
	/* Foreign addresses are local on lo alone, through our route, and on
	 * devices of the reroutes set. For the pod's own the kernel reports the
	 * device of the address, not lo. */
	if (ifindex != IFINDEX_LO &&
	    (!(s->flags & FLAG_REROUTE) || !bpf_map_lookup_elem(&reroutes, &ifindex)))
		return SK_PASS;
	if (bpf_map_lookup_elem(&addresses, &local))
		return SK_PASS;
	if (family == FAMILY_INET ? (local4 & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000) :
				    !local.word[0] && !local.word[1] && !local.word[2] && local.word[3] == bpf_htonl(1))
		return SK_PASS;
	if (port == PORT_DNS && (s->flags & FLAG_DNS))
		slot = protocol == IPPROTO_TCP ? SLOT_DNS_TCP : SLOT_DNS_UDP;
	else if (protocol == IPPROTO_TCP && (s->flags & (FLAG_OUTBOUND | FLAG_DRAIN)))
		slot = SLOT_OUTBOUND;
	else
		return SK_PASS;
assign:
	sk = bpf_map_lookup_elem(&listeners, &slot);
	if (!sk) {
		count(STAT_DROP_NO_LISTENER);
		return SK_DROP;
	}
	/* The listeners of a ztunnel that is not ours share their ports: without
	 * the flag the kernel would choose among all of the group, in which are a
	 * ztunnel's predecessor and whoever else of its user joined. */
	long err = bpf_sk_assign(ctx, sk, BPF_SK_LOOKUP_F_NO_REUSEPORT);
	bpf_sk_release(sk);
	if (err) {
		count(STAT_DROP_ASSIGN);
		return SK_DROP;
	}
	if (slot == SLOT_OUTBOUND)
		count(STAT_OUTBOUND_DELIVERED);
	else if (slot != SLOT_DNS_TCP && slot != SLOT_DNS_UDP)
		count(STAT_INBOUND_HINTED);
	return SK_PASS;
}

/* Who sent it, if that was a process of this namespace. skb->sk does not tell:
 * behind a bridge it is still the socket of the pod that sent the frame. */
static __always_inline struct bpf_sock *sender(struct __sk_buff *skb, const struct packet *p)
{
	struct bpf_sock_tuple t = {};

	if (p->v6) {
		__builtin_memcpy(t.ipv6.saddr, p->tuple.ipv6.daddr, 16);
		__builtin_memcpy(t.ipv6.daddr, p->tuple.ipv6.saddr, 16);
		t.ipv6.sport = p->dport;
		t.ipv6.dport = p->sport;
		return bpf_skc_lookup_tcp(skb, &t, sizeof(t.ipv6), BPF_F_CURRENT_NETNS, 0);
	}
	t.ipv4.saddr = p->tuple.ipv4.daddr;
	t.ipv4.daddr = p->tuple.ipv4.saddr;
	t.ipv4.sport = p->dport;
	t.ipv4.dport = p->sport;
	return bpf_skc_lookup_tcp(skb, &t, sizeof(t.ipv4), BPF_F_CURRENT_NETNS, 0);
}

SEC("tc/egress")
int stamp(struct __sk_buff *skb)
{
	struct switches *s = load_settings();
	struct packet p = {};
	struct bpf_sock *sk, *full;
	__u16 port;
	int probe = 0;

	if (!s || !(s->flags & FLAG_STAMP))
		return NEXT;
	/* Only this program gives stamps out: one that is there already comes
	 * from a neighbour of the pod. */
	if (has_stamp(skb, s))
		return drop(STAT_STAMP_FORGED);
	if (parse(skb, &p) != PARSED_TCP)
		return NEXT;
	port = p.dport;
	if (!bpf_map_lookup_elem(&probes, &port))
		return NEXT;
	sk = sender(skb, &p);
	if (!sk)
		return NEXT;
	full = sk->state == STATE_LISTEN ? 0 : bpf_sk_fullsock(sk);
	if (full) {
		probe = 1;
		if (s->flags & FLAG_PROBERS) {
			__u64 id = bpf_skb_cgroup_id(skb);

			probe = bpf_map_lookup_elem(&probers, &id) != 0;
		}
	}
	bpf_sk_release(sk);
	if (!probe)
		return NEXT;
	if (bpf_skb_store_bytes(skb, 6, s->stamp, sizeof(s->stamp), 0) < 0)
		return NEXT; /* then it is captured like anything else */
	count(STAT_STAMPED);
	return NEXT;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
