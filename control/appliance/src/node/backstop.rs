//! The rules of nf_tables behind the programs: what is forwarded between a pod and an interface that carries no program is dropped,
//! so a device that appears is no way around policy before it is guarded.
//!
//! A pod is known by its network, as configured, and by the interface where its packets come in or leave: its port, or the bridge
//! whose ports are pods'. The table's name is the quarantine's, which a node with this datapath does not have.

use std::collections::BTreeSet;

use ipnet::IpNet;

use crate::{
    kept_table::KeptTable,
    netfilter::{Batch, Expression, Family, Hook, Meta, Register},
    netlink::NetlinkError,
};

const GUARDED: &str = "guarded";
const PODS: &str = "pods";
const CHAIN: &str = "forward";
/// After the tables of others: what they drop is not counted here.
const PRIORITY: i32 = 300;

/// Elements that a set has room for at least.
const LEAST_CAPACITY: u32 = 1024;

/// Where the source and the destination are in the network header: offset and length.
const ENDS_V4: [(u32, u32); 2] = [(12, 4), (16, 4)];
const ENDS_V6: [(u32, u32); 2] = [(8, 16), (24, 16)];
const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];

/// Interfaces by index, as the table should know them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KnownInterfaces {
    /// Those that carry programs.
    pub guarded: BTreeSet<u32>,
    /// Those where nothing but pods is: their ports, and bridges of them.
    pub pods: BTreeSet<u32>,
}

impl KnownInterfaces {
    /// Elements that sets for these should hold, with room for as many again.
    fn capacity(&self) -> u32 {
        let most = self.guarded.len().max(self.pods.len()) as u32;
        (2 * most).next_power_of_two().max(LEAST_CAPACITY)
    }
}

/// The table as it should be.
pub struct Backstop {
    table: KeptTable,
    networks: Vec<IpNet>,
    known: KnownInterfaces,
    /// Elements that each set of the table holds at most.
    capacity: u32,
    /// Whether the table is there with what is known.
    is_made: bool,
}

impl Backstop {
    /// For an instance whose pods are in these networks; makes nothing.
    pub fn new(instance: &str, networks: Vec<IpNet>) -> Self {
        Self {
            table: KeptTable::new(instance),
            networks,
            known: KnownInterfaces::default(),
            capacity: 0,
            is_made: false,
        }
    }

    /// Makes the table anew with these interfaces; one that is there is replaced without a moment between.
    ///
    /// # Errors
    /// The kernel has no nf_tables, or refuses.
    pub fn install(&mut self, known: KnownInterfaces) -> Result<(), NetlinkError> {
        self.known = known;
        self.is_made = false;
        self.capacity = self.known.capacity();
        let (networks, known) = (&self.networks, &self.known);
        self.table.replace(
            "make the table that holds back what no program guards",
            |batch, family, table| fill(batch, family, table, networks, known),
        )?;
        self.is_made = true;
        Ok(())
    }

    /// Lets pods' packets pass by guarded interfaces and no others.
    ///
    /// # Errors
    /// The kernel refuses: the table has to be made anew.
    pub fn guard(&mut self, known: KnownInterfaces) -> Result<(), NetlinkError> {
        if !self.is_made || known.guarded.len().max(known.pods.len()) as u32 > self.capacity {
            return self.install(known);
        }
        if known == self.known {
            return Ok(());
        }
        let before = std::mem::replace(&mut self.known, known);
        let now = &self.known;
        let changed = self
            .table
            .change("name the interfaces that are guarded", |batch, family, table| {
                for (set, before, now) in [
                    // What is a pod's is known as that before it is let through.
                    (PODS, &before.pods, &now.pods),
                    (GUARDED, &before.guarded, &now.guarded),
                ] {
                    let gone: Vec<u32> = before.difference(now).copied().collect();
                    if !gone.is_empty() {
                        batch.remove_indices(family, table, set, gone);
                    }
                    batch.add_indices(family, table, set, now.difference(before).copied());
                }
            });
        // Somebody may have removed the table: it is made anew with what it should hold by now.
        self.is_made = changed.is_ok();
        changed
    }

    /// Whether the table is there.
    pub fn is_there(&self) -> bool {
        self.is_made && self.table.is_there()
    }

    /// Makes the table anew with what it held.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn restore(&mut self) -> Result<(), NetlinkError> {
        let known = std::mem::take(&mut self.known);
        self.install(known)
    }

    /// Packets that it held back since this process began.
    pub fn dropped(&mut self) -> u64 {
        self.table.dropped()
    }
}

fn fill(batch: &mut Batch, family: Family, table: &str, networks: &[IpNet], known: &KnownInterfaces) {
    for (set, indices) in [(GUARDED, &known.guarded), (PODS, &known.pods)] {
        batch.set_of_indices(family, table, set, known.capacity());
        batch.add_indices(family, table, set, indices.iter().copied());
    }
    batch.chain(family, table, CHAIN, Hook::Forward, PRIORITY);
    // Nearly every packet goes from one guarded interface to another, and nothing below drops it. Two lookups, in place of
    // four and of four for each network.
    batch.rule(
        family,
        table,
        CHAIN,
        &[
            Expression::meta(Meta::Iif, Register::First),
            Expression::is_in(Register::First, GUARDED),
            Expression::meta(Meta::Oif, Register::First),
            Expression::is_in(Register::First, GUARDED),
            Expression::accept(),
        ],
    );
    let mut drop_unless_guarded = |interface: Meta, mut steps: Vec<Expression>| {
        steps.extend([
            Expression::meta(interface, Register::Second),
            Expression::not_in(Register::Second, GUARDED),
            Expression::counter(),
            Expression::drop(),
        ]);
        batch.rule(family, table, CHAIN, &steps);
    };
    for (pod, other) in [(Meta::Iif, Meta::Oif), (Meta::Oif, Meta::Iif)] {
        let of_a_pod = vec![
            Expression::meta(pod, Register::First),
            Expression::is_in(Register::First, PODS),
        ];
        drop_unless_guarded(other, of_a_pod);
    }
    for network in networks {
        for end in 0..2 {
            for interface in [Meta::Iif, Meta::Oif] {
                drop_unless_guarded(interface, within(network, end));
            }
        }
    }
}

/// Goes on if an end of a packet (0: the source, 1: the destination) is in a network.
fn within(network: &IpNet, end: usize) -> Vec<Expression> {
    let (ether_type, (offset, length), address, mask) = match network {
        IpNet::V4(v4) => (
            IPV4,
            ENDS_V4[end],
            v4.network().octets().to_vec(),
            v4.netmask().octets().to_vec(),
        ),
        IpNet::V6(v6) => (
            IPV6,
            ENDS_V6[end],
            v6.network().octets().to_vec(),
            v6.netmask().octets().to_vec(),
        ),
    };
    vec![
        Expression::meta(Meta::EtherType, Register::First),
        Expression::begins_with(Register::First, &ether_type),
        Expression::network_header(offset, length, Register::First),
        Expression::mask(Register::First, &mask),
        Expression::begins_with(Register::First, &address),
    ]
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test that panics has failed
mod tests {
    use nix::sched::{CloneFlags, unshare};

    use super::*;

    #[test]
    fn the_table_holds_as_many_interfaces_as_there_are() {
        let in_a_namespace = || {
            if unshare(CloneFlags::CLONE_NEWNET).is_err() {
                assert!(std::env::var_os("REQUIRE_ROOT").is_none(), "root is required");
                return;
            }
            let up_to = |last: u32| KnownInterfaces {
                guarded: (1..=last).collect(),
                pods: (1..=last).collect(),
            };
            let mut backstop = Backstop::new("many", vec!["10.0.0.0/8".parse().unwrap()]);
            backstop.install(up_to(3)).unwrap();
            for last in [LEAST_CAPACITY, LEAST_CAPACITY + 1, 5000, 2, 9000] {
                backstop.guard(up_to(last)).unwrap();
                assert!(backstop.is_there(), "{last}");
            }
        };
        std::thread::spawn(in_a_namespace).join().unwrap();
    }
}
