//! What is not subject to policy (SEMANTICS 65), and what becomes of it.

/// Kinds of frames that policies do not speak about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum NotSubject {
    /// ARP and RARP.
    Arp = 0,
    /// IPv6 neighbour discovery: ICMPv6 133 to 137 with hop limit 255.
    Ndp,
    /// DHCP where it cannot be judged by address: to the limited broadcast, and DHCPv6 between link-local addresses. Unicast DHCPv4 is judged like any UDP, else port 67 would be a way around.
    Dhcp,
    /// IPv4 group membership, to a group.
    Igmp,
    /// IPv6 multicast listener discovery with hop limit 1.
    Mld,
    /// Any other IP packet to a group address.
    Multicast,
    /// Any other IPv4 packet to the limited broadcast address.
    Broadcast,
    /// Link layer discovery.
    Lldp,
    /// Slow protocols: link aggregation.
    Lacp,
    /// Spanning tree.
    Stp,
    /// Any other IEEE 802.3 frame with a length instead of a type.
    Llc,
    /// Any other Ethernet type.
    OtherType,
    /// Routed role only: not addressed to the port's own Ethernet address, or with a VLAN tag.
    NotOurs,
}

/// What becomes of frames that are not subject, in one role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotSubjectTable {
    crosses: u16,
}

impl NotSubjectTable {
    /// A wire: everything crosses.
    pub const WIRE: Self = Self { crosses: u16::MAX };

    /// A router: nothing crosses; what belongs to the kernel never gets here.
    pub const ROUTED: Self = Self { crosses: 0 };

    /// The same table, but for one kind.
    #[must_use]
    pub const fn with(self, kind: NotSubject, crosses: bool) -> Self {
        let bit = 1 << kind as u16;
        Self {
            crosses: if crosses {
                self.crosses | bit
            } else {
                self.crosses & !bit
            },
        }
    }

    /// Whether a kind crosses a wire; else it drops as `not-subject`. Nothing but a wire can be crossed.
    #[inline]
    pub const fn crosses(self, kind: NotSubject) -> bool {
        self.crosses & (1 << kind as u16) != 0
    }
}
