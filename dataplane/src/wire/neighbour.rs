//! ARP and neighbour discovery: which Ethernet address a frame claims for an IP address, and probes for it.

use super::protocol;
use crate::addr::Addr;

/// The Ethernet address that a frame claims for an IP address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NeighbourClaim {
    pub(crate) addr: Addr,
    /// The Ethernet address that the frame comes from; None where what it says is of another one.
    pub(crate) station: Option<[u8; 6]>,
    /// VLAN tags, as in [`super::Packet::vlan`].
    pub(crate) vlan: u32,
}

/// The claim of an ARP frame, or of neighbour discovery without extension headers. None if it claims nothing, as a
/// probe for an unused address.
pub(crate) fn neighbour_claim(frame: &[u8]) -> Option<NeighbourClaim> {
    let source: [u8; 6] = frame.get(6..12)?.try_into().ok()?;
    let mut rest = frame.get(12..)?;
    let mut vlan = 0;
    while let &[0x81, 0x00, high, low, ..] | &[0x88, 0xa8, high, low, ..] | &[0x91, 0x00, high, low, ..] =
        rest
    {
        vlan = vlan << 16 | 0x1000 | u32::from(u16::from_be_bytes([high, low]) & 0xfff);
        rest = rest.get(4..)?;
    }
    let (addr, said) = match rest {
        [0x08, 0x06, arp @ ..] => arp_claim(arp)?,
        [0x86, 0xdd, packet @ ..] => ndp_claim(packet)?,
        _ => return None,
    };
    Some(NeighbourClaim {
        addr,
        station: said.is_none_or(|said| said == source).then_some(source),
        vlan,
    })
}

/// RFC 826: the sender of a request or an answer.
fn arp_claim(arp: &[u8]) -> Option<(Addr, Option<[u8; 6]>)> {
    let &[a, b, c, d] = arp.get(14..18)? else {
        return None;
    };
    let station = arp.get(8..14)?.try_into().ok()?;
    ([a, b, c, d] != [0; 4]).then(|| (Addr::v4([a, b, c, d]), Some(station)))
}

/// RFC 4861 4.3 and 4.4: the source of a solicitation, the target of an advertisement. Their options need not say the
/// Ethernet address.
fn ndp_claim(packet: &[u8]) -> Option<(Addr, Option<[u8; 6]>)> {
    /// Of the IPv6 header, and of a message without options.
    const HEADER: usize = 40;
    const MESSAGE: usize = 24;
    let length = usize::from(u16::from_be_bytes(packet.get(4..6)?.try_into().ok()?));
    let message = packet.get(HEADER..HEADER + length)?;
    if packet.get(6) != Some(&protocol::ICMPV6) || message.len() < MESSAGE {
        return None;
    }
    let (addr, own): (&[u8], u8) = match message.first()? {
        135 => (packet.get(8..24)?, 1),
        136 => (message.get(8..24)?, 2),
        _ => return None,
    };
    let addr: [u8; 16] = addr.try_into().ok()?;
    let mut options = message.get(MESSAGE..)?;
    let mut said = None;
    while let [kind, units, ..] = *options {
        let option = options
            .get(..8 * usize::from(units))
            .filter(|option| !option.is_empty())?;
        if kind == own {
            said = option.get(2..8).and_then(|said| said.try_into().ok());
        }
        options = options.get(option.len()..)?;
    }
    (addr != [0; 16]).then(|| (Addr::v6(addr), said))
}

/// A probe for the Ethernet address of an IP address that claims nothing for its sender: an ARP probe (RFC 5227 1.1),
/// or a neighbour solicitation from the unspecified address (RFC 4861 4.3). `vlan` as in [`super::Packet::vlan`].
pub fn neighbour_probe(addr: Addr, from: [u8; 6], vlan: u32) -> Vec<u8> {
    let tags: Vec<u16> = [(vlan >> 16) as u16, vlan as u16]
        .into_iter()
        .filter(|tag| *tag != 0)
        .map(|tag| tag & 0xfff)
        .collect();
    let octets = addr.octets();
    if addr.is_v4() {
        let mut frame = [[0xff; 6], from].concat();
        for tag in tags {
            frame.extend([0x81, 0x00]);
            frame.extend(tag.to_be_bytes());
        }
        frame.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1]);
        frame.extend(from);
        frame.extend([0; 10]);
        frame.extend(&octets[12..]);
        frame.resize(frame.len().max(60), 0);
        return frame;
    }
    let mut group = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 0];
    group[13..].copy_from_slice(&octets[13..]);
    let mut template = super::build::Template::new(Addr::v6([0; 16]), Addr::v6(group));
    template.eth_src = from;
    template.vlans = tags;
    template.ttl = 255;
    template.icmp(135, 0, [0; 4], &octets)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test that panics has failed
mod tests {
    use super::*;
    use crate::wire::{Parsed, build::Template, parse, subject::NotSubject};

    const STATION: [u8; 6] = [2, 0, 0, 0, 0, 7];
    const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 8];

    fn addr(text: &str) -> Addr {
        Addr::from(text.parse::<std::net::IpAddr>().unwrap())
    }

    /// Tags, sender and the Ethernet address that it says.
    fn arp(tags: &[u8], sender: [u8; 4], said: [u8; 6], operation: u8) -> Vec<u8> {
        let mut frame = [[0xff; 6], STATION].concat();
        frame.extend(tags);
        frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, operation]);
        frame.extend(said);
        frame.extend(sender);
        frame.extend([0; 10]);
        frame
    }

    #[test]
    fn arp_claims_its_senders_address() {
        let tags: [(&[u8], u32); 3] = [
            (&[], 0),
            (&[0x81, 0, 0xe0, 10], 0x100a),
            (&[0x88, 0xa8, 0, 100, 0x81, 0, 0, 10], 0x1064_100a),
        ];
        for (tags, vlan) in tags {
            let said = |station| {
                Some(NeighbourClaim {
                    addr: addr("10.0.0.7"),
                    station,
                    vlan,
                })
            };
            for operation in [1, 2] {
                let of = |said| neighbour_claim(&arp(tags, [10, 0, 0, 7], said, operation));
                assert_eq!(of(STATION), said(Some(STATION)));
                assert_eq!(of(OTHER), said(None), "it speaks of another one");
            }
        }
        assert_eq!(neighbour_claim(&arp(&[], [0; 4], STATION, 1)), None, "a probe");
        let whole = arp(&[], [10, 0, 0, 7], STATION, 1);
        for length in 0..30 {
            assert_eq!(neighbour_claim(&whole[..length]), None);
        }
    }

    #[test]
    fn neighbour_discovery_claims_source_or_target() {
        let (node, router) = (addr("fd09::1"), addr("fd09::99"));
        let message = |src, kind, target: Addr, options: &[u8]| {
            let mut template = Template::new(src, addr("ff02::1"));
            (template.eth_src, template.ttl) = (STATION, 255);
            template.icmp(kind, 0, [0; 4], &[&target.octets(), options].concat())
        };
        let option = |kind: u8, station: [u8; 6]| [&[kind, 1][..], &station].concat();
        let said = |station| {
            Some(NeighbourClaim {
                addr: node,
                station,
                vlan: 0,
            })
        };
        for (src, kind, target, own) in [(node, 135, router, 1), (router, 136, node, 2)] {
            let of = |options: &[u8]| neighbour_claim(&message(src, kind, target, options));
            assert_eq!(of(&[]), said(Some(STATION)));
            assert_eq!(of(&option(own, STATION)), said(Some(STATION)));
            assert_eq!(of(&option(own, OTHER)), said(None));
            assert_eq!(
                of(&option(3 - own, OTHER)),
                said(Some(STATION)),
                "of another kind"
            );
            let nonce = option(14, [1; 6]);
            assert_eq!(of(&[nonce, option(own, OTHER)].concat()), said(None));
            assert_eq!(of(&[14, 0, 0, 0, 0, 0, 0, 0]), None, "an option without a length");
        }
        assert_eq!(
            neighbour_claim(&message(addr("::"), 135, node, &[])),
            None,
            "a probe"
        );
        assert_eq!(neighbour_claim(&message(node, 133, router, &[])), None);
    }

    #[test]
    fn a_question_claims_nothing() {
        for (who, kind) in [("10.9.0.1", NotSubject::Arp), ("fd09::1:2:3", NotSubject::Ndp)] {
            for (vlan, length) in [(0, 0), (0x100a, 4), (0x1064_100a, 8)] {
                let frame = neighbour_probe(addr(who), STATION, vlan);
                assert_eq!(parse(&frame), Parsed::NotSubject(kind));
                assert_eq!(neighbour_claim(&frame), None);
                let octets = addr(who).octets();
                let at = |offset: usize| &frame[14 + length + offset..];
                if addr(who).is_v4() {
                    assert_eq!(at(24)[..4], octets[12..]);
                } else {
                    assert_eq!(at(48)[..16], octets);
                }
            }
        }
    }
}
