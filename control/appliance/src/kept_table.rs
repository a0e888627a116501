//! One table of nf_tables that ringwall makes, keeps and counts by: in the families `inet` and `bridge`, under one name.
//!
//! It stays when the process ends. Whoever holds it puts it back if somebody removes it.

use super::{
    netfilter::{Batch, Family, Netfilter},
    netlink::NetlinkError,
};

const FAMILIES: [Family; 2] = [Family::Inet, Family::Bridge];

/// The name of an instance's table, in both families.
pub fn table_name(instance: &str) -> String {
    format!("ringwall-{instance}")
}

/// Removes the table of an instance. Fine if there is none.
///
/// # Errors
/// The kernel refuses.
pub fn remove(table: &str) -> Result<(), NetlinkError> {
    let netfilter = match Netfilter::open() {
        Ok(netfilter) => netfilter,
        Err(error) if is_unknown(&error) => return Ok(()),
        Err(error) => return Err(error),
    };
    for family in FAMILIES {
        match netfilter.has_table(family, table) {
            Ok(true) => {
                let mut batch = Batch::default();
                batch.delete_table(family, table);
                netfilter.commit(batch, "remove the table of interfaces that are not guarded yet")?;
            }
            Ok(false) => {}
            Err(error) if is_unknown(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Whether the kernel has no such thing.
fn is_unknown(error: &NetlinkError) -> bool {
    use rustix::io::Errno;
    let unknown = [
        Errno::NOENT,
        Errno::OPNOTSUPP,
        Errno::AFNOSUPPORT,
        Errno::PROTONOSUPPORT,
        Errno::INVAL, // nfnetlink without nf_tables
    ];
    unknown
        .iter()
        .any(|code| error.errno() == Some(code.raw_os_error()))
}

/// The table, as far as this process made it.
pub(crate) struct KeptTable {
    name: String,
    /// The families that the kernel has, and a socket; None until the table is there.
    made: Option<(Vec<Family>, Netfilter)>,
    /// What tables before this one dropped, and what this one had dropped when it was asked last: somebody may remove it.
    dropped: [u64; 2],
}

impl KeptTable {
    /// Makes nothing yet.
    pub(crate) fn new(instance: &str) -> Self {
        Self {
            name: table_name(instance),
            made: None,
            dropped: [0; 2],
        }
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Makes the table anew; one that is there is replaced without a moment between. `fill` adds sets, chains and rules to one
    /// family's table.
    ///
    /// # Errors
    /// The kernel has no nf_tables, or refuses.
    pub(crate) fn replace(
        &mut self,
        what: &str,
        fill: impl Fn(&mut Batch, Family, &str),
    ) -> Result<(), NetlinkError> {
        self.dropped = [self.dropped(), 0];
        self.made = None;
        let ruleset = |families: &[Family]| {
            let mut batch = Batch::default();
            for family in families.iter().copied() {
                // There or not, it is another one afterwards.
                batch.table(family, &self.name);
                batch.delete_table(family, &self.name);
                batch.table(family, &self.name);
                fill(&mut batch, family, &self.name);
            }
            batch
        };
        let netfilter = Netfilter::open()?;
        match netfilter.commit(ruleset(&FAMILIES), what) {
            Ok(()) => self.made = Some((FAMILIES.to_vec(), netfilter)),
            // A kernel without the family has no bridges with rules.
            Err(error) if is_unknown(&error) => {
                let (netfilter, only) = (Netfilter::open()?, [Family::Inet]);
                netfilter.commit(ruleset(&only), what)?;
                self.made = Some((only.to_vec(), netfilter));
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Changes the table in one transaction. Fine where it is not there: it is made anew with all that it should hold.
    ///
    /// # Errors
    /// The kernel refuses: somebody may have removed the table, and it counts as not there.
    pub(crate) fn change(
        &mut self,
        what: &str,
        step: impl Fn(&mut Batch, Family, &str),
    ) -> Result<(), NetlinkError> {
        let Some((families, netfilter)) = &self.made else {
            return Ok(());
        };
        let mut batch = Batch::default();
        for family in families {
            step(&mut batch, *family, &self.name);
        }
        let done = netfilter.commit(batch, what);
        if done.is_err() {
            self.made = None;
        }
        done
    }

    /// Whether the table is there.
    pub(crate) fn is_there(&self) -> bool {
        self.made.as_ref().is_some_and(|(families, netfilter)| {
            families
                .iter()
                .all(|family| netfilter.has_table(*family, &self.name).unwrap_or(false))
        })
    }

    /// Packets that it dropped since this process began.
    pub(crate) fn dropped(&mut self) -> u64 {
        let counted = self.made.as_ref().map_or(0, |(families, netfilter)| {
            let of = |family: &Family| netfilter.counted(*family, &self.name).unwrap_or_default();
            families.iter().map(of).sum()
        });
        let [before, last] = self.dropped;
        self.dropped = [if counted < last { before + last } else { before }, counted];
        self.dropped.iter().sum()
    }
}
