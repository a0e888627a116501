//! Which pods had the addresses of this node: connection tracking outlives pods.
//!
//! An answer without an entry is judged as what it answers, since the kernel knows connections for longer than the flow table
//! does. Once another pod has an end's address, what is answered may be a conversation of the one before, and the pod that has it
//! now is no party of it (SEMANTICS 50).

use std::{
    collections::HashMap,
    sync::{PoisonError, RwLock},
};

use crate::{
    addr::Addr,
    classify::{IdentityKind, Snapshot, is_same_owner},
};

/// Addresses that are remembered, a multiple of what a node hands out. Of more, earlier pods are not known.
const MOST_ADDRESSES: usize = 65_536;

/// The pods that have addresses of this node, as far as this process has seen them.
#[derive(Debug, Default)]
pub struct AddressOwners(RwLock<HashMap<Addr, Owner>>);

#[derive(Clone, Copy, Debug)]
struct Owner {
    epoch: u64,
    /// Another pod had the address before.
    had_another: bool,
}

impl AddressOwners {
    /// Takes from a snapshot which pods have these addresses, and those that are remembered.
    pub fn note(&self, snapshot: &Snapshot, addresses: impl IntoIterator<Item = Addr>) {
        let pod_at = |addr: Addr| {
            let identity = snapshot.identify(addr);
            (identity.kind == IdentityKind::Pod).then_some(identity.epoch)
        };
        let mut owners = self.0.write().unwrap_or_else(PoisonError::into_inner);
        for (addr, owner) in owners.iter_mut() {
            if let Some(epoch) = pod_at(*addr) {
                owner.had_another |= !is_same_owner(owner.epoch, epoch);
                owner.epoch = epoch;
            }
        }
        for addr in addresses {
            if owners.len() >= MOST_ADDRESSES {
                break;
            }
            if let Some(epoch) = pod_at(addr) {
                owners.entry(addr).or_insert(Owner {
                    epoch,
                    had_another: false,
                });
            }
        }
    }

    /// Whether another pod had the address before the one of which `epoch` is.
    pub(crate) fn had_another(&self, addr: Addr, epoch: u64) -> bool {
        let owners = self.0.read().unwrap_or_else(PoisonError::into_inner);
        // A worker may decide by a snapshot that has not been taken yet.
        let is_another = |owner: &Owner| owner.had_another || !is_same_owner(owner.epoch, epoch);
        owners.get(&addr).is_some_and(is_another)
    }
}
