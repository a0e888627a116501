//! What is not subject to policy (SEMANTICS 65), and what becomes of it.

macro_rules! kinds {
    ($($(#[doc = $doc:literal])+ $variant:ident = $number:literal, $name:literal;)+) => {
        /// Kinds of frames that policies do not speak about.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum NotSubject {
            $($(#[doc = $doc])+ $variant = $number,)+
        }

        impl NotSubject {
            /// Every kind, in order of its number.
            pub const ALL: &[NotSubject] = &[$(NotSubject::$variant,)+];

            /// The name in the configuration and in messages.
            pub const fn name(self) -> &'static str {
                match self { $(NotSubject::$variant => $name,)+ }
            }
        }
    };
}

kinds! {
    /// ARP and RARP of the one form that IPv4 over Ethernet has (RFC 826), with nothing behind it.
    Arp = 0, "arp";
    /// IPv6 neighbour discovery: ICMPv6 133, 135 and 136 with hop limit 255, to a group or between link-local addresses,
    /// with the options that hosts send and nothing else.
    Ndp = 1, "ndp";
    /// DHCP of a client, where it cannot be judged by address: to the limited broadcast, and DHCPv6 between link-local
    /// addresses and to its groups. Unicast DHCPv4 is judged like any UDP, else port 67 would be a way around.
    Dhcp = 2, "dhcp";
    /// IPv4 group membership, to a group.
    Igmp = 3, "igmp";
    /// IPv6 multicast listener discovery with hop limit 1.
    Mld = 4, "mld";
    /// Any other IP packet to a group address.
    Multicast = 5, "multicast";
    /// Any other IPv4 packet to the limited broadcast address.
    Broadcast = 6, "broadcast";
    /// Link layer discovery.
    Lldp = 7, "lldp";
    /// Slow protocols: link aggregation, to the address that no bridge forwards.
    Lacp = 8, "lacp";
    /// Spanning tree, of the form that bridges send.
    Stp = 9, "stp";
    /// Any other IEEE 802.3 frame with a length instead of a type.
    Llc = 10, "llc";
    /// Any other Ethernet type, VLAN tags of another type than 0x8100, 0x88a8 and 0x9100 among them.
    OtherType = 11, "other";
    /// Routed role only: not addressed to the port's own Ethernet address, or with a VLAN tag.
    NotOurs = 12, "not-ours";
    /// What a router tells hosts: ICMPv6 134 and 137 with hop limit 255.
    RouterAdvertisement = 13, "router-advertisement";
    /// DHCP of a server.
    DhcpServer = 14, "dhcp-server";
    /// PPP over Ethernet: IP that is not looked into.
    Pppoe = 15, "pppoe";
    /// Label switching: IP that is not looked into.
    Mpls = 16, "mpls";
    /// Any other IPv6 packet to a link-local address: whose that is, no policy can tell.
    LinkLocal = 17, "link-local";
}

/// What becomes of frames that are not subject, on one port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotSubjectTable {
    crosses: u32,
}

impl NotSubjectTable {
    /// A wire, unless it is told otherwise: what links and hosts need to find each other crosses. What could carry
    /// anything between two who agreed on it does not, nor what only routers and DHCP servers say.
    pub const WIRE: Self = Self::ROUTED
        .with(NotSubject::Arp, true)
        .with(NotSubject::Ndp, true)
        .with(NotSubject::Dhcp, true)
        .with(NotSubject::Mld, true)
        .with(NotSubject::Lacp, true)
        .with(NotSubject::Stp, true);

    /// Everything crosses.
    pub const ALL: Self = Self { crosses: u32::MAX };

    /// A router: nothing crosses; what belongs to the kernel never gets here.
    pub const ROUTED: Self = Self { crosses: 0 };

    /// The same table, but for one kind.
    #[must_use]
    pub const fn with(self, kind: NotSubject, crosses: bool) -> Self {
        let bit = 1 << kind as u32;
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
        self.crosses & (1 << kind as u32) != 0
    }
}
