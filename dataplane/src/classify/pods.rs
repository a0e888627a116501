//! Where pods and nodes are, for those who have to know without a lookup: the kernel's programs. Cold.

use std::{collections::BTreeMap, net::IpAddr};

use super::{
    IdentityKind,
    bucket::Bucket,
    layout::{NONE, TRIE_CHILD, TrieNode},
    snapshot::{Snapshot, identity_of},
    table::Table,
};
use crate::addr::Addr;

impl Snapshot {
    /// The pods' networks, and the addresses of pods that lie in none of them: prefixes with their length in bits of their
    /// family, in no order. Neighbours are not joined.
    pub fn pod_networks(&self) -> Vec<(IpAddr, u8)> {
        let tables = &self.image().parts.tables;
        let mut found = Vec::new();
        self.ranges(&tables.trie_v4, 4, &mut found);
        self.ranges(&tables.trie_v6, 16, &mut found);
        let v4 = tables.hosts_v4.iter().flat_map(hosts);
        let v6 = tables.hosts_v6.iter().flat_map(hosts);
        for (addr, identity) in v4.chain(v6) {
            // One that a pod network holds is known by it.
            if self.kind(identity) == IdentityKind::Pod
                && self.kind(self.lookup_range(addr)) != IdentityKind::Unknown
            {
                found.push((addr.into(), if addr.is_v4() { 32 } else { 128 }));
            }
        }
        found
    }

    /// The addresses of each node, by its name.
    pub fn addresses_of_nodes(&self) -> BTreeMap<&str, Vec<IpAddr>> {
        let tables = &self.image().parts.tables;
        let mut found: BTreeMap<&str, Vec<IpAddr>> = BTreeMap::new();
        let v4 = tables.hosts_v4.iter().flat_map(hosts);
        for (addr, identity) in v4.chain(tables.hosts_v6.iter().flat_map(hosts)) {
            let identity = identity_of(tables.identities.get(identity as usize));
            if identity.kind == IdentityKind::Node
                && let Some(name) = self.node_name(identity.node)
            {
                found.entry(name).or_default().push(addr.into());
            }
        }
        found
    }

    fn kind(&self, identity: u32) -> IdentityKind {
        identity_of(self.image().parts.tables.identities.get(identity as usize)).kind
    }

    /// The prefixes of a trie whose addresses are unknown pods'.
    fn ranges(&self, trie: &Table<TrieNode>, bytes: usize, found: &mut Vec<(IpAddr, u8)>) {
        // Children have higher indices, so this ends whatever the trie says.
        let mut open = vec![(0_usize, [0_u8; 16], 0_usize)];
        while let Some((at, prefix, depth)) = open.pop() {
            let Some(node) = trie.get(at).filter(|_| depth < bytes) else {
                continue;
            };
            for (byte, entry) in (0..=u8::MAX).zip(&node.entries) {
                let mut prefix = prefix;
                if let Some(slot) = prefix.get_mut(depth) {
                    *slot = byte;
                }
                if entry & TRIE_CHILD != 0 {
                    open.push(((entry & !TRIE_CHILD) as usize, prefix, depth + 1));
                } else if *entry != NONE && self.kind(*entry) == IdentityKind::Unknown {
                    let address = match prefix {
                        [a, b, c, d, ..] if bytes == 4 => IpAddr::from([a, b, c, d]),
                        _ => IpAddr::from(prefix),
                    };
                    found.push((address, 8 * (depth as u8 + 1)));
                }
            }
        }
    }
}

fn hosts<B: Bucket>(bucket: &B) -> impl Iterator<Item = (Addr, u32)> {
    bucket.hosts().map(|(key, identity)| (B::addr(key), identity))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test that panics has failed
mod tests {
    use super::*;
    use crate::classify::{Generation, Identity, ImageBuilder};

    #[test]
    fn pods_are_found_in_their_networks_and_outside_of_all() {
        let mut builder = ImageBuilder::new(Generation(7));
        let of = |kind| Identity {
            kind,
            endpoint: 0,
            node: NONE,
            peer_class: 1,
            ingress: 0,
            egress: 0,
            epoch: 1,
        };
        let ip = |text: &str| Addr::from(text.parse::<IpAddr>().unwrap());
        let unknown = builder.identity(of(IdentityKind::Unknown));
        let pod = builder.identity(of(IdentityKind::Pod));
        let outside = builder.identity(of(IdentityKind::External));
        builder.prefix(ip("0.0.0.0"), 0, outside);
        builder.prefix(ip("10.1.0.0"), 16, unknown);
        builder.prefix(ip("172.16.0.0"), 15, unknown);
        builder.prefix(ip("fd00:1::"), 64, unknown);
        for host in ["10.1.2.3", "192.0.2.7", "fd00:1::5", "2001:db8::5"] {
            builder.host(ip(host), pod);
        }
        builder.host(ip("192.0.2.8"), outside);
        for (name, addresses) in [
            ("n1", &["192.0.2.21", "2001:db8::21"][..]),
            ("n2", &["192.0.2.22"]),
        ] {
            let node = Identity {
                node: builder.node(name),
                ..of(IdentityKind::Node)
            };
            let node = builder.identity(node);
            for address in addresses {
                builder.host(ip(address), node);
            }
        }
        let snapshot = Snapshot::from_image(&builder.image(Generation(8), [0; 32]).unwrap());
        let mut found = snapshot.pod_networks();
        found.sort_unstable();
        let wanted: Vec<(IpAddr, u8)> = [
            ("10.1.0.0", 16),
            ("172.16.0.0", 16),
            ("172.17.0.0", 16),
            ("192.0.2.7", 32),
            ("2001:db8::5", 128),
            ("fd00:1::", 64),
        ]
        .map(|(text, length)| (text.parse().unwrap(), length))
        .into();
        assert_eq!(found, wanted);
        let mut nodes = snapshot.addresses_of_nodes();
        nodes.values_mut().for_each(|addresses| addresses.sort_unstable());
        let ips = |texts: &[&str]| {
            texts
                .iter()
                .map(|text| text.parse().unwrap())
                .collect::<Vec<IpAddr>>()
        };
        assert_eq!(
            nodes,
            BTreeMap::from([
                ("n1", ips(&["192.0.2.21", "2001:db8::21"])),
                ("n2", ips(&["192.0.2.22"])),
            ])
        );
    }
}
