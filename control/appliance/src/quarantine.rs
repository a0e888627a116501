//! Interfaces that are pods' ports by their name and do not carry the programs yet: the kernel takes nothing from them and
//! sends nothing to them.
//!
//! The kernel uses an interface as soon as it is there, and says so later. So what it does for a pod's new interface is stopped
//! before there is one, by rules about names: a table of nf_tables with a set of the interfaces that were looked at. Whoever
//! attaches the programs adds the interface to the set afterwards. Whose name means a port and who is none (the pattern
//! `*`, the management interface) is in the set too.
//!
//! The table stays when the process ends: a pod that comes while none runs has no way past the fail mode. ARP is no part of it, as
//! pods' ports pass it to the kernel anyway.

use std::collections::BTreeSet;

use ringwall_config::FailMode;
use ringwall_dataplane::port::PortKind;

use super::{
    kept_table::KeptTable,
    netfilter::{Batch, Expression, Family, Hook, Meta, Register, padded},
    netlink::NetlinkError,
    plan::Plan,
};

const SET: &str = "guarded";
/// Before connections are tracked, and before other tables.
const PRIORITY: i32 = -500;

/// What the names begin with that mean pods' ports.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Beginning(Vec<u8>);

impl Beginning {
    fn of_pattern(pattern: &str) -> Self {
        let literal = pattern.split(['*', '?']).next().unwrap_or_default();
        if literal.len() == pattern.len() {
            return Self::of_name(pattern);
        }
        Self(literal.bytes().take(15).collect())
    }

    fn of_name(name: &str) -> Self {
        Self(padded(name).to_vec())
    }
}

/// The table, as it should be.
pub struct Quarantine {
    table: KeptTable,
    beginnings: Vec<Beginning>,
    /// By name and index.
    released: BTreeSet<(String, u32)>,
    /// Why the table is not there.
    pub problem: Option<String>,
}

/// The reason of its drops, among those of the workers.
pub const DROP_REASON: &str = "port-not-guarded";

impl Quarantine {
    /// What a plan asks for. None if it has no pods' ports, or lets everything pass while no dataplane runs (`failMode: open`):
    /// then a pod that comes while there is none has to pass, too.
    pub fn planned(instance: &str, plan: &Plan) -> Option<Self> {
        if plan.fail_mode == FailMode::Open {
            return None;
        }
        let named = plan.ports.iter().filter(|port| !port.matched);
        let mut beginnings: Vec<Beginning> = named
            .filter(|port| port.kind == PortKind::Pod)
            .map(|port| Beginning::of_name(&port.name))
            .collect();
        beginnings.extend(plan.pod_patterns().map(Beginning::of_pattern));
        (!beginnings.is_empty()).then(|| Self {
            table: KeptTable::new(instance),
            beginnings,
            released: BTreeSet::new(),
            problem: None,
        })
    }

    /// Its table's name.
    pub fn table(&self) -> &str {
        self.table.name()
    }

    /// Whether an interface of this name is held until it is released.
    pub fn holds(&self, name: &str) -> bool {
        let name = padded(name);
        self.beginnings
            .iter()
            .any(|Beginning(bytes)| name.starts_with(bytes))
    }

    /// Whether an interface was released.
    pub fn has_released(&self, name: &str, index: u32) -> bool {
        self.released.contains(&(name.to_owned(), index))
    }

    /// Indices of released interfaces other than these.
    pub fn released_but(&self, there: &BTreeSet<u32>) -> BTreeSet<u32> {
        let indices = self.released.iter().map(|(_, index)| *index);
        indices.filter(|index| !there.contains(index)).collect()
    }

    /// Makes the table anew, with these interfaces released; one that is there is replaced without a moment between.
    ///
    /// # Errors
    /// The kernel has no nf_tables, or refuses.
    pub fn install(&mut self, released: BTreeSet<(String, u32)>) -> Result<(), NetlinkError> {
        self.released = released;
        let (beginnings, released) = (&self.beginnings, &self.released);
        self.table.replace(
            "hold interfaces that are not guarded yet",
            |batch, family, table| {
                fill(batch, family, table, beginnings, released);
            },
        )
    }

    /// Whether the table is there.
    pub fn is_there(&self) -> bool {
        self.table.is_there()
    }

    /// Packets that it kept from or off interfaces that were not guarded, since this process began.
    pub fn dropped(&mut self) -> u64 {
        self.table.dropped()
    }

    /// Lets an interface go that carries the programs, or that is no pod's port.
    ///
    /// # Errors
    /// The kernel refuses: the table has to be made anew.
    pub fn release(&mut self, name: &str, index: u32) -> Result<(), NetlinkError> {
        if !self.holds(name) || self.has_released(name, index) {
            return Ok(());
        }
        self.forget(index)?; // it had another name
        self.released.insert((name.to_owned(), index));
        self.table.change("release an interface", |batch, family, table| {
            batch.add_interfaces(family, table, SET, [(name, index)]);
        })
    }

    /// Holds what comes with this index again: the interface that had it is gone.
    ///
    /// # Errors
    /// The kernel refuses: the table has to be made anew.
    pub fn forget(&mut self, index: u32) -> Result<(), NetlinkError> {
        let gone: Vec<(String, u32)> = self
            .released
            .iter()
            .filter(|(_, released)| *released == index)
            .cloned()
            .collect();
        for (name, index) in gone {
            self.released.remove(&(name.clone(), index));
            self.table.change("forget an interface", |batch, family, table| {
                batch.remove_interface(family, table, SET, (&name, index));
            })?;
        }
        Ok(())
    }
}

fn fill(
    batch: &mut Batch,
    family: Family,
    table: &str,
    beginnings: &[Beginning],
    released: &BTreeSet<(String, u32)>,
) {
    batch.set_of_interfaces(family, table, SET);
    for (chain, hook, name, index) in [
        ("from-pods", Hook::Prerouting, Meta::IifName, Meta::Iif),
        ("to-pods", Hook::Postrouting, Meta::OifName, Meta::Oif),
    ] {
        batch.chain(family, table, chain, hook, PRIORITY);
        for Beginning(bytes) in beginnings {
            let mut steps = vec![
                Expression::meta(name, Register::First),
                Expression::meta(index, Register::Second),
            ];
            if !bytes.is_empty() {
                steps.push(Expression::begins_with(Register::First, bytes));
            }
            steps.push(Expression::not_in(Register::First, SET));
            steps.push(Expression::counter());
            steps.push(Expression::drop());
            batch.rule(family, table, chain, &steps);
        }
    }
    let released = released.iter().map(|(name, index)| (name.as_str(), *index));
    batch.add_interfaces(family, table, SET, released);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a failed step is a failed test
mod tests {
    use super::*;

    #[test]
    fn whose_name_may_mean_a_port_is_held_until_it_is_released() {
        let mut quarantine = Quarantine {
            table: KeptTable::new("gw"),
            beginnings: vec![
                Beginning::of_pattern("cali*"),
                Beginning::of_pattern("v?th*"),
                Beginning::of_pattern("exact"),
                Beginning::of_name("pod-a"),
            ],
            released: BTreeSet::new(),
            problem: None,
        };
        for (name, held) in [
            ("cali", true),
            ("cali0123456789a", true),
            ("cal", false),
            ("veth0", true),
            ("vlan0", true), // released once it is looked at
            ("exact", true),
            ("exactly", false),
            ("pod-a", true),
            ("pod-ab", false),
            ("eth0", false),
        ] {
            assert_eq!(quarantine.holds(name), held, "{name}");
        }
        quarantine.release("eth0", 2).unwrap();
        quarantine.release("veth0", 3).unwrap();
        quarantine.release("cali1", 4).unwrap();
        assert!(!quarantine.has_released("eth0", 2), "nobody holds it");
        assert!(quarantine.has_released("veth0", 3));
        assert!(!quarantine.has_released("veth0", 5), "another interface");
        quarantine.release("veth1", 3).unwrap();
        assert!(!quarantine.has_released("veth0", 3), "it has another name now");
        assert_eq!(quarantine.released_but(&BTreeSet::from([4])), BTreeSet::from([3]));
        quarantine.forget(3).unwrap();
        assert!(!quarantine.has_released("veth1", 3));
        assert!(Beginning::of_pattern("*").0.is_empty(), "every name");
    }
}
