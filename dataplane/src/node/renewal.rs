//! What becomes of cached decisions when a snapshot takes another's place.
//!
//! Flows whose decision stands are renewed before the bump, so that they do not all ask at once, in the midst of what they
//! send. The order is: publish, wait until every worker has adopted the snapshot, then [`end_decisions`].

use super::{
    ask::LocalEnds,
    cache::{EntryBody, FlowCache, action, flag},
    epochs::{SlotSet, changed_slots},
};
use crate::{
    addr::Addr,
    classify::{Identity, IdentityKind, L4, NodeExemption, Snapshot, is_same_owner},
    wire::protocol,
};

/// What a snapshot did to the cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Renewal {
    /// Slots that were bumped.
    pub slots: usize,
    /// Flows that go on without a question.
    pub renewed: usize,
    /// Decisions that ended: each asks at its next packet.
    pub ended: usize,
}

/// Ends the decisions that a snapshot may decide otherwise, when every worker has adopted it. `older` was in force before:
/// without it every decision ends.
pub fn end_decisions(cache: &FlowCache, snapshot: &Snapshot, older: Option<&Snapshot>) -> Renewal {
    let changed = older.map_or_else(SlotSet::all, |older| changed_slots(snapshot, older));
    let mut renewal = Renewal {
        slots: changed.iter().count(),
        ..Renewal::default()
    };
    if renewal.slots == 0 {
        return renewal;
    }
    let stands = |entry: &EntryBody| older.is_some_and(|older| still_passes(entry, snapshot, older));
    (renewal.renewed, renewal.ended) = cache.renew(&changed, stands);
    cache.bump(&changed);
    renewal
}

/// Whether a flow passes as before: between the same ends, by the policies of the snapshot. Whatever else may have let it pass
/// is asked about again.
fn still_passes(entry: &EntryBody, snapshot: &Snapshot, older: &Snapshot) -> bool {
    let [src, dst] = [entry.original.src, entry.reply.src].map(Addr::v6);
    let same = |addr: Addr| -> Option<Identity> {
        let (was, is) = (older.identify(addr), snapshot.identify(addr));
        let same = was.kind == is.kind && is_same_owner(was.epoch, is.epoch);
        let may_have_entry = !matches!(is.kind, IdentityKind::Unknown | IdentityKind::Service);
        (same && may_have_entry).then_some(is)
    };
    let (Some(from), Some(to)) = (same(src), same(dst)) else {
        return false;
    };
    let client = entry.original.src_port.get();
    let (port, source) = match entry.protocol {
        protocol::TCP | protocol::UDP | protocol::SCTP => (Some(entry.reply.src_port.get()), client),
        // Type and code of the message that began.
        protocol::ICMP if src.is_v4() => (Some(entry.original.dst_port.get()), 0),
        protocol::ICMPV6 if !src.is_v4() => (Some(entry.original.dst_port.get()), 0),
        _ => (None, 0),
    };
    let l4 = L4::of(entry.protocol, port, source);
    let judgement = snapshot.judge(&from, &to, src, dst, l4, NodeExemption::Untrusted);
    entry.action == action::ALLOW
        && entry.flags & flag::AUDITED == 0
        && LocalEnds::from_flags(entry.flags).restrict(judgement).allow()
}

#[cfg(test)]
mod tests;
