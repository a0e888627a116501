//! The rules of nf_tables behind the programs: what is forwarded from or to a pod network by an interface that carries no program
//! is dropped, so a device that appears is no way around policy before it is guarded.
//!
//! The table stays when the process ends. Its name is the quarantine's, which a node with this datapath does not have.

use std::collections::BTreeSet;

use ipnet::IpNet;

use crate::{
    netfilter::{Batch, Expression, Family, Hook, Meta, Netfilter, Register},
    netlink::NetlinkError,
    quarantine::{is_unknown, table_name},
};

const SET: &str = "guarded";
const CHAIN: &str = "forward";
const FAMILIES: [Family; 2] = [Family::Inet, Family::Bridge];
/// After the tables of others: what they drop is not counted here.
const PRIORITY: i32 = 300;

/// Where the source and the destination are in the network header: offset and length.
const ENDS_V4: [(u32, u32); 2] = [(12, 4), (16, 4)];
const ENDS_V6: [(u32, u32); 2] = [(8, 16), (24, 16)];
const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];

/// The table as it should be.
pub struct Backstop {
    table: String,
    networks: Vec<IpNet>,
    guarded: BTreeSet<u32>,
    /// The families that the kernel has, and a socket; None until the table is there.
    made: Option<(Vec<Family>, Netfilter)>,
    /// What tables before this one dropped, and what this one had dropped when it was asked last.
    dropped: [u64; 2],
}

impl Backstop {
    /// For an instance whose pods are in these networks; makes nothing.
    pub fn new(instance: &str, networks: Vec<IpNet>) -> Self {
        Self {
            table: table_name(instance),
            networks,
            guarded: BTreeSet::new(),
            made: None,
            dropped: [0; 2],
        }
    }

    /// Makes the table anew with these interfaces; one that is there is replaced without a moment between.
    ///
    /// # Errors
    /// The kernel has no nf_tables, or refuses.
    pub fn install(&mut self, guarded: BTreeSet<u32>) -> Result<(), NetlinkError> {
        let what = "make the table that holds back what no program guards";
        self.dropped = [self.dropped(), 0];
        self.made = None;
        self.guarded = guarded;
        let netfilter = Netfilter::open()?;
        match netfilter.commit(self.ruleset(&FAMILIES), what) {
            Ok(()) => self.made = Some((FAMILIES.to_vec(), netfilter)),
            // A kernel without the family has no bridges with rules.
            Err(error) if is_unknown(&error) => {
                let (netfilter, only) = (Netfilter::open()?, [Family::Inet]);
                netfilter.commit(self.ruleset(&only), what)?;
                self.made = Some((only.to_vec(), netfilter));
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Lets packets pass by these interfaces and no others.
    ///
    /// # Errors
    /// The kernel refuses: the table has to be made anew.
    pub fn guard(&mut self, guarded: &BTreeSet<u32>) -> Result<(), NetlinkError> {
        let (gone, new): (Vec<u32>, Vec<u32>) = (
            self.guarded.difference(guarded).copied().collect(),
            guarded.difference(&self.guarded).copied().collect(),
        );
        if gone.is_empty() && new.is_empty() {
            return Ok(());
        }
        let Some((families, netfilter)) = &self.made else {
            return self.install(guarded.clone());
        };
        let mut batch = Batch::default();
        for family in families {
            if !gone.is_empty() {
                batch.remove_indices(*family, &self.table, SET, gone.iter().copied());
            }
            batch.add_indices(*family, &self.table, SET, new.iter().copied());
        }
        let named = netfilter.commit(batch, "name the interfaces that are guarded");
        // Somebody may have removed the table: it is made anew with what it should hold by now.
        self.guarded.clone_from(guarded);
        if named.is_err() {
            self.made = None;
        }
        named
    }

    /// Whether the table is there.
    pub fn is_there(&self) -> bool {
        self.made.as_ref().is_some_and(|(families, netfilter)| {
            families
                .iter()
                .all(|family| netfilter.has_table(*family, &self.table).unwrap_or(false))
        })
    }

    /// Makes the table anew with what it held.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn restore(&mut self) -> Result<(), NetlinkError> {
        let guarded = std::mem::take(&mut self.guarded);
        self.install(guarded)
    }

    /// Packets that it held back since this process began.
    pub fn dropped(&mut self) -> u64 {
        let counted = self.made.as_ref().map_or(0, |(families, netfilter)| {
            let of = |family: &Family| netfilter.counted(*family, &self.table).unwrap_or_default();
            families.iter().map(of).sum()
        });
        let [before, last] = self.dropped;
        self.dropped = [if counted < last { before + last } else { before }, counted];
        self.dropped.iter().sum()
    }

    fn ruleset(&self, families: &[Family]) -> Batch {
        let mut batch = Batch::default();
        for family in families.iter().copied() {
            // There or not, it is another one afterwards.
            batch.table(family, &self.table);
            batch.delete_table(family, &self.table);
            batch.table(family, &self.table);
            batch.set_of_indices(family, &self.table, SET);
            batch.add_indices(family, &self.table, SET, self.guarded.iter().copied());
            batch.chain(family, &self.table, CHAIN, Hook::Forward, PRIORITY);
            for network in &self.networks {
                for end in 0..2 {
                    for interface in [Meta::Iif, Meta::Oif] {
                        let mut steps = within(network, end);
                        steps.extend([
                            Expression::meta(interface, Register::Second),
                            Expression::not_in(Register::Second, SET),
                            Expression::counter(),
                            Expression::drop(),
                        ]);
                        batch.rule(family, &self.table, CHAIN, &steps);
                    }
                }
            }
        }
        batch
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
