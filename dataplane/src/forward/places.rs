//! Where networks are, as the configuration says it: behind which ports, and in which VLAN. An address of such a network
//! is believed as a source from there alone, and is reached there alone.

use crate::{
    addr::Addr,
    port::{Port, PortId, PortKind},
    verdict::DropReason,
    wire::Packet,
};

/// VLAN tags of a frame without any, and of one that has a priority alone (IEEE 802.1Q 6.9.1): both are untagged.
const UNTAGGED: [u32; 2] = [0, 0x1000];

/// Where a network is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkPlace {
    /// The ports that lead to it; None for any.
    pub ports: Option<Box<[PortId]>>,
    /// VLAN tags of its frames, as in [`Packet::vlan`], 0 for none; None for any.
    pub vlan: Option<u32>,
}

impl NetworkPlace {
    fn is_at(&self, port: PortId, vlan: u32) -> bool {
        let here = self.ports.as_ref().is_none_or(|ports| ports.contains(&port));
        here && self
            .vlan
            .is_none_or(|wanted| wanted == vlan || UNTAGGED.contains(&wanted) && UNTAGGED.contains(&vlan))
    }
}

/// Networks that have a place. They do not overlap: of those that do, the one with the first address counts.
#[derive(Clone, Debug, Default)]
pub(crate) struct NetworkPlaces {
    /// First and last address, in order.
    ranges: Vec<(u128, u128, NetworkPlace)>,
}

impl NetworkPlaces {
    /// `length` counts from the first bit of the family's address.
    pub(crate) fn insert(&mut self, prefix: Addr, length: u8, place: NetworkPlace) {
        let bits = if prefix.is_v4() { 32_u32 } else { 128 };
        let hosts = bits.saturating_sub(u32::from(length));
        let mask = u128::MAX.checked_shr(128 - hosts).unwrap_or(0);
        let first = prefix.to_u128() & !mask;
        let at = self.ranges.partition_point(|(other, ..)| *other <= first);
        self.ranges.insert(at, (first, first | mask, place));
    }

    fn place_of(&self, addr: Addr) -> Option<&NetworkPlace> {
        let addr = addr.to_u128();
        let before = self.ranges.partition_point(|(first, ..)| *first <= addr);
        let (_, last, place) = self.ranges.get(before.checked_sub(1)?)?;
        (addr <= *last).then_some(place)
    }

    /// Whether a packet's source may come in by a port, and its destination be where a wire leads. Where a router sends
    /// it is a matter of its routes.
    #[inline]
    pub(crate) fn check(&self, packet: &Packet, port: &Port) -> Result<(), DropReason> {
        if self.ranges.is_empty() {
            return Ok(());
        }
        self.check_ends(packet, port)
    }

    /// Whether frames of an address may be on a port with these VLAN tags.
    pub(crate) fn may_be_at(&self, addr: Addr, port: PortId, vlan: u32) -> bool {
        self.place_of(addr).is_none_or(|place| place.is_at(port, vlan))
    }

    #[cold]
    fn check_ends(&self, packet: &Packet, port: &Port) -> Result<(), DropReason> {
        let is_at = |addr, port| self.may_be_at(addr, port, packet.vlan);
        match port.kind {
            _ if !is_at(packet.src, port.id) => Err(DropReason::SpoofedSource),
            PortKind::Wire { peer } if !is_at(packet.dst, peer) => Err(DropReason::MisplacedDestination),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test that panics has failed
mod tests {
    use super::*;

    fn addr(text: &str) -> Addr {
        Addr::from(text.parse::<std::net::IpAddr>().unwrap())
    }

    #[test]
    fn an_address_has_the_place_of_the_network_that_holds_it() {
        let place = |vlan| NetworkPlace {
            ports: None,
            vlan: Some(vlan),
        };
        let mut places = NetworkPlaces::default();
        let networks = [
            ("10.20.0.0", 16),
            ("10.10.0.0", 16),
            ("fd00:20::", 32),
            ("fd00:10::", 128),
            ("0.0.0.0", 8),
        ];
        for (number, (network, length)) in (0..).zip(networks) {
            places.insert(addr(network), length, place(number));
        }
        for (text, number) in [
            ("10.10.0.0", Some(1)),
            ("10.10.255.255", Some(1)),
            ("10.11.0.0", None),
            ("10.19.255.255", None),
            ("10.20.0.0", Some(0)),
            ("10.21.0.0", None),
            ("0.255.255.255", Some(4)),
            ("fd00:20:ffff::", Some(2)),
            ("fd00:21::", None),
            ("fd00:10::", Some(3)),
            ("fd00:10::1", None),
            ("::", None),
        ] {
            assert_eq!(places.place_of(addr(text)), number.map(place).as_ref(), "{text}");
        }
        let mut all = NetworkPlaces::default();
        all.insert(addr("::"), 0, place(7));
        assert_eq!(all.place_of(addr("ffff::1")), Some(&place(7)));
    }

    #[test]
    fn a_priority_is_no_vlan() {
        for (wanted, vlan, is_there) in [
            (Some(0), 0, true),
            (Some(0), 0x1000, true),
            (Some(0), 0x1001, false),
            (Some(0), 0x1000_1000, false),
            (Some(0x100a), 0x100a, true),
            (Some(0x100a), 0, false),
            (Some(0x100a), 0x1000, false),
            (Some(0x100a), 0x1000_100a, false),
            (Some(0x100a), 0x1064_100a, false),
            (Some(0x1064_100a), 0x1064_100a, true),
            (Some(0x1064_100a), 0x100a_1064, false),
            (Some(0x1064_100a), 0x100a, false),
            (None, 0x1064_100a, true),
        ] {
            let place = NetworkPlace {
                ports: None,
                vlan: wanted,
            };
            assert_eq!(place.is_at(PortId(0), vlan), is_there, "{wanted:?} {vlan:x}");
        }
    }
}
