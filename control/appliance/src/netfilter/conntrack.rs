//! The entries of connection tracking, by the addresses in them.

use std::{collections::BTreeSet, net::IpAddr};

use super::{
    ACK, Batch, DONE, DUMP, ERROR, HEADER_OF_TABLES, Netfilter, NetlinkError, attribute, attributes, refused,
};

/// `NFNL_SUBSYS_CTNETLINK`.
const SUBSYSTEM: u16 = 1;
const NEW: u16 = SUBSYSTEM << 8;
const GET: u16 = NEW + 1;
const DELETE: u16 = NEW + 2;

/// `CTA_TUPLE_ORIG`, `CTA_TUPLE_REPLY`: what began the connection, and its answer.
const TUPLES: [u16; 2] = [1, 2];
/// What names an entry, in its own words: `CTA_TUPLE_ORIG`, `CTA_ID`, `CTA_ZONE`.
const NAMING: [u16; 3] = [1, 12, 18];
/// Of a tuple: `CTA_TUPLE_IP`.
const ADDRESSES: u16 = 1;
/// Entries in one message: the kernel answers those that are gone already, and the socket holds the answers.
const AT_ONCE: usize = 100;

/// Families of addresses (`AF_INET`, `AF_INET6`).
fn family(address: &IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 2,
        IpAddr::V6(_) => 10,
    }
}

impl Netfilter {
    /// Deletes the entries that have one of these addresses at any end, as sent or as translated. Answers how many.
    ///
    /// # Errors
    /// The kernel has no netlink for connection tracking (the module `nf_conntrack_netlink`), or the process no right to it (`CAP_NET_ADMIN`).
    pub fn forget_connections(&self, of: &BTreeSet<IpAddr>) -> Result<usize, NetlinkError> {
        let families: BTreeSet<u8> = of.iter().map(family).collect();
        let mut deleted = 0;
        for family in families {
            let found = self.connections(family, of)?;
            for some in found.chunks(AT_ONCE) {
                deleted += self.delete_connections(family, some)?;
            }
        }
        Ok(deleted)
    }

    /// What names each entry with one of these addresses.
    fn connections(&self, family: u8, of: &BTreeSet<IpAddr>) -> Result<Vec<Vec<u8>>, NetlinkError> {
        let what = "list the connections that the kernel tracks";
        let mut request = Batch::empty();
        request.add_to(SUBSYSTEM, GET, DUMP, family, &[]);
        self.send(&request.bytes, what)?;
        let mut found = Vec::new();
        loop {
            for answer in self.answers(what)? {
                if let Some(code) = answer.error.filter(|code| *code != 0) {
                    return Err(refused(what, code));
                }
                match answer.kind {
                    DONE | ERROR => return Ok(found),
                    NEW => {
                        let entry = answer.body.get(HEADER_OF_TABLES..).unwrap_or_default();
                        if addresses(entry).any(|address| of.contains(&address)) {
                            found.push(name(entry));
                        }
                    }
                    _ => {}
                }
            }
        }
    }

    /// Deletes entries, by what names them; how many there still were.
    fn delete_connections(&self, family: u8, named: &[Vec<u8>]) -> Result<usize, NetlinkError> {
        let what = "delete a connection that the kernel tracks";
        let mut request = Batch::empty();
        for (index, name) in named.iter().enumerate() {
            // Failures are answered in any case; the last answer says that no more come.
            let flags = if index + 1 == named.len() { ACK } else { 0 };
            request.add_to(SUBSYSTEM, DELETE, flags, family, std::slice::from_ref(name));
        }
        let last = request.sequence;
        self.send(&request.bytes, what)?;
        let mut deleted = named.len();
        loop {
            for answer in self.answers(what)? {
                match answer.error {
                    // It ended by itself, or another has its tuple by now.
                    Some(code) if code == -rustix::io::Errno::NOENT.raw_os_error() => deleted -= 1,
                    Some(code) if code != 0 => return Err(refused(what, code)),
                    _ => {}
                }
                if answer.sequence == last {
                    return Ok(deleted);
                }
            }
        }
    }
}

/// The addresses of an entry: source and destination, of both directions.
fn addresses(entry: &[u8]) -> impl Iterator<Item = IpAddr> {
    attributes(entry)
        .filter(|(kind, _)| TUPLES.contains(kind))
        .flat_map(|(_, tuple)| attributes(tuple))
        .filter(|(kind, _)| *kind == ADDRESSES)
        .flat_map(|(_, addresses)| attributes(addresses))
        .filter_map(|(_, bytes)| {
            let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
            v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
        })
}

/// What names an entry. The tuple alone would name one that came in its place, too.
fn name(entry: &[u8]) -> Vec<u8> {
    const NESTED: u16 = 1 << 15;
    attributes(entry)
        .filter(|(kind, _)| NAMING.contains(kind))
        .flat_map(|(kind, value)| {
            let is_tuple = TUPLES.contains(&kind);
            attribute(if is_tuple { kind | NESTED } else { kind }, value)
        })
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test that panics has failed
mod tests {
    use super::*;
    use crate::netfilter::nested;

    fn tuple(kind: u16, src: IpAddr, dst: IpAddr) -> Vec<u8> {
        let bytes = |address: IpAddr| match address {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        let first = if src.is_ipv4() { 1 } else { 3 };
        let addresses = [attribute(first, &bytes(src)), attribute(first + 1, &bytes(dst))];
        let ports = nested(2, &[attribute(1, &[17])]);
        nested(kind, &[nested(ADDRESSES, &addresses), ports])
    }

    #[test]
    fn an_entry_is_found_by_each_of_its_addresses_and_named_in_its_own_words() {
        for ends in [
            ["10.0.0.1", "10.96.0.10", "10.0.0.2", "192.0.2.1"],
            ["fd00::1", "fd00:96::1", "fd00::2", "2001:db8::1"],
        ] {
            let [client, service, backend, node] = ends.map(|end| end.parse().unwrap());
            let sent = tuple(1, client, service);
            let (id, zone) = (attribute(12, &[1, 2, 3, 4]), attribute(18, &[0, 7]));
            let entry = [
                sent.clone(),
                tuple(2, backend, node),
                attribute(3, &[0; 4]),
                id.clone(),
                zone.clone(),
            ]
            .concat();
            assert_eq!(
                addresses(&entry).collect::<Vec<_>>(),
                [client, service, backend, node]
            );
            assert_eq!(name(&entry), [sent, id, zone].concat());
        }
        assert_eq!(addresses(&[7; 40]).count(), 0);
    }
}
