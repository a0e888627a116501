//! What becomes of a packet, and why.

/// What happens to a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is forwarded out of a port.
    Forward,
    /// It is dropped.
    Drop(DropReason),
}

macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $number:literal, $name:literal;)+) => {
        /// Why a packet was dropped: return value, counter index, metric label and CLI text in one. Numbers are
        /// never reused or changed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum DropReason {
            $($(#[doc = $doc])+ $variant = $number,)+
        }

        impl DropReason {
            /// Every reason, in order of its number.
            pub const ALL: &[DropReason] = &[$(DropReason::$variant,)+];

            /// The name in metrics, JSON and text.
            pub const fn name(self) -> &'static str {
                match self { $(DropReason::$variant => $name,)+ }
            }

            /// What it means, in a sentence.
            pub const fn meaning(self) -> &'static str {
                match self { $(DropReason::$variant => concat!($($doc),+).trim_ascii(),)+ }
            }

            /// The reason with a name.
            pub fn from_name(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|reason| reason.name() == name)
            }
        }
    };
}

drop_reasons! {
    /// A pod is isolated in the direction and no rule allows the packet.
    PolicyIngress = 0, "policy-ingress";
    /// A pod is isolated for egress and no rule allows the packet.
    PolicyEgress = 1, "policy-egress";
    /// An address inside a pod CIDR that belongs to no live pod and no node.
    UnknownEndpoint = 2, "unknown-endpoint";
    /// The source address does not belong where the packet arrived (wrong side, port, VLAN or
    /// station), or is also the destination.
    SpoofedSource = 3, "spoofed-source";
    /// Shorter than its headers say, or than the shortest packet of its kind.
    Truncated = 4, "truncated";
    /// Header fields that contradict each other or the standards.
    Malformed = 5, "malformed";
    /// A source or destination address that is invalid in that field.
    MartianAddress = 6, "martian-address";
    /// A later fragment whose first fragment was not seen, or was dropped.
    FragmentUnknown = 7, "fragment-unknown";
    /// A fragment that overlaps another or is too small to hold the layer 4 header.
    FragmentInvalid = 8, "fragment-invalid";
    /// An ICMP error that quotes no live flow in the right direction.
    IcmpUnrelated = 9, "icmp-unrelated";
    /// An ICMP error over the rate limit.
    IcmpRateLimited = 10, "icmp-rate-limited";
    /// The flow table of the shard is full and this packet would have needed an entry to be answered.
    FlowTableFull = 11, "flow-table-full";
    /// Too many half-open flows in the shard.
    HalfOpenLimit = 12, "half-open-limit";
    /// A TCP segment that does not fit the state of its flow.
    TcpInvalid = 13, "tcp-invalid";
    /// No snapshot has been adopted yet.
    NoSnapshot = 14, "no-snapshot";
    /// No route to the destination.
    NoRoute = 15, "no-route";
    /// The route to the destination is a blackhole, unreachable or prohibit route.
    RouteRefused = 16, "route-refused";
    /// The next hop's Ethernet address was not resolved in time.
    NeighbourUnresolved = 17, "neighbour-unresolved";
    /// TTL or hop limit reached zero.
    TtlExceeded = 18, "ttl-exceeded";
    /// Larger than the MTU of the port it would leave by.
    TooBig = 19, "too-big";
    /// Addressed to a Service, which is not supported yet.
    ServiceUnsupported = 20, "service-unsupported";
    /// The TX ring of the port was full.
    TxFull = 21, "tx-full";
    /// The hand-over ring to the worker that owns the flow was full.
    HandoverFull = 22, "handover-full";
    /// Not subject to policy, and dropped by the table of the role.
    NotSubject = 23, "not-subject";
    /// The frame pool was empty when a copy was needed.
    PoolEmpty = 24, "pool-empty";
    /// The packet would leave by the port on which it arrived, or by a port that no longer exists.
    PortUnavailable = 25, "port-unavailable";
    /// The snapshot returned a value outside of its own tables. Never expected, never forwarded.
    SnapshotInvalid = 26, "snapshot-invalid";
    /// A tunnel packet from a pod, or to a node from a host that is not a node.
    Encapsulation = 27, "encapsulation";
    /// Source routing, which would lead past the destination that policy judges: IPv4 source route options, IPv6 routing
    /// headers with segments left.
    SourceRouted = 28, "source-routed";
    /// An ICMP error longer than a router may send (576 bytes, IPv6 1280).
    IcmpTooLong = 29, "icmp-too-long";
    /// An endpoint has begun as many flows as it may.
    EndpointQuota = 30, "endpoint-quota";
    /// The destination is in another VLAN, or behind another port, as `cluster.places` says.
    MisplacedDestination = 31, "misplaced-destination";
    /// A tunnel packet whose outer source is no node's address.
    TunnelSource = 32, "tunnel-source";
    /// The packet inside a tunnel has the source of a pod or node that is not at the node that sent the
    /// tunnel packet.
    TunnelSpoofed = 33, "tunnel-spoofed";
    /// A tunnel in a tunnel, deeper than is looked into.
    TunnelNested = 34, "tunnel-nested";
    /// A fragment of a tunnel packet: what is inside cannot be judged.
    TunnelFragment = 35, "tunnel-fragment";
    /// A tunnel header that contradicts its standard, or VLAN tags inside a tunnel.
    TunnelMalformed = 36, "tunnel-malformed";
    /// A tunnel between nodes that cannot be looked into, and `overlay.opaque` does not allow it.
    TunnelOpaque = 37, "tunnel-opaque";
    /// A network (VNI) that `overlay.networks` does not name.
    TunnelNetwork = 38, "tunnel-network";
    /// A packet of several buffers whose headers do not all lie in the first.
    HeadersSplit = 39, "headers-split";
    /// A packet of several buffers that is longer than the MTU of the port by which it came.
    ChainTooLong = 40, "chain-too-long";
}

#[cfg(test)]
mod tests {
    use super::DropReason;

    #[test]
    fn numbers_are_dense_and_names_are_unique() {
        let mut names = std::collections::BTreeSet::new();
        for (index, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
            assert!(names.insert(reason.name()), "{} twice", reason.name());
            assert_eq!(DropReason::from_name(reason.name()), Some(*reason));
            assert!(reason.meaning().ends_with('.'), "{}", reason.meaning());
        }
    }
}
