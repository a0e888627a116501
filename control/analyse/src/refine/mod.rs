//! Exact sets of flows: what one compiled cluster decides, or what two decide differently, about every packet there is.
//!
//! 1. [`ends`]: the sources and destinations that all sides know: endpoints by `namespace/name`, and ranges of addresses
//!    that are no pod's. Ends that no side can tell apart are one class: the common refinement of the sides' classes.
//! 2. [`cells`]: what the rows of the compiled snapshots decide between two classes, for every protocol and port. One
//!    answer per (row, class) on each side; pairs of pods are never looked at one by one.
//! 3. [`Decisions`]: one side; what passes between two ends. [`difference`]: two sides; what changes, merged into regions.
//!
//! Exemptions are of pairs, not of classes: an endpoint and itself, a pod and the node that hosts it. They are laid over
//! the classes' answer.

mod addresses;
pub mod cells;
mod changes;
pub(crate) mod decisions;
pub mod difference;
pub mod ends;
mod ports;
mod readings;
mod region;
mod sets;
mod sweep;
mod totals;

pub use addresses::Family;
pub use decisions::{Decided, Decisions, Ports};
pub use difference::{Difference, FlowChange, difference, difference_of_readings, difference_with_cuts};
pub use ends::{End, Ends, OneSided, What};
pub use ports::{Service, Span, source_words, type_words};
pub use region::{Region, verdicts};
use ringwall_compile::{CompileError, EpochKey};
use ringwall_dataplane::classify::{Generation, ImageError, Snapshot};
use ringwall_policy::{
    Cluster, DEFAULT_TIER, ObjectKey, Order, PodSelection, Rule, Selector, Tier, TierDefault, TieredPolicy,
    TieredRule, tiers::Tiers,
};
pub use totals::{Pairs, Totals};

/// A cluster and the snapshot that it compiles to.
#[derive(Debug)]
pub struct Compiled<'a> {
    /// The cluster.
    pub cluster: &'a Cluster,
    /// Its snapshot.
    pub snapshot: Snapshot,
}

/// What a policy says, apart from its name and from what of it is not understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said<'a> {
    /// A NetworkPolicy.
    Rules {
        /// The pods that it selects.
        subjects: &'a Selector,
        /// Its rules of ingress.
        ingress: Option<&'a [Rule]>,
        /// Its rules of egress.
        egress: Option<&'a [Rule]>,
    },
    /// A policy of an ordered kind.
    Ordered {
        /// Where it stands.
        at: (&'a str, Order),
        /// The pods that it selects.
        subjects: &'a [PodSelection],
        /// Its rules of ingress and egress.
        rules: [Option<&'a [TieredRule]>; 2],
    },
}

/// What the policy says that is [called](ringwall_policy::policy_label) so; None where the cluster has none.
pub fn said<'a>(cluster: &'a Cluster, label: &str) -> Option<Said<'a>> {
    if let Some(policy) = tiered(cluster, label) {
        return Some(Said::Ordered {
            at: (&policy.tier, policy.order),
            subjects: &policy.subjects,
            rules: [policy.ingress.as_deref(), policy.egress.as_deref()],
        });
    }
    let (namespace, name) = label.split_once('/')?;
    let key = ObjectKey {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    };
    let policy = cluster.policies.get(&key)?;
    Some(Said::Rules {
        subjects: &policy.subjects,
        ingress: policy.ingress.as_deref(),
        egress: policy.egress.as_deref(),
    })
}

/// The policy of an ordered kind that is called so: such names have a kind before them.
fn tiered<'a>(cluster: &'a Cluster, label: &str) -> Option<&'a TieredPolicy> {
    let mut policies = cluster.tiered.values().filter(|_| label.contains(' '));
    policies.find(|policy| policy.id.label() == label).map(|it| &**it)
}

/// The tier of the policy that is called so; None where the cluster has no such policy.
pub fn tier_of(cluster: &Cluster, label: &str) -> Option<Tier> {
    let name = match tiered(cluster, label) {
        Some(policy) => policy.tier.as_str(),
        None => said(cluster, label).map(|_| DEFAULT_TIER)?,
    };
    let tiers = Tiers::of(cluster);
    let built_in = Tier::built_in();
    let there = cluster.tiers.get(name).map(|tier| &**tier);
    let tier = there.or_else(|| built_in.iter().find(|tier| tier.name == name));
    Some(Tier {
        name: tiers.named(name).name.clone(),
        order: tier.map_or(Order::LAST, |tier| tier.order),
        default: tier.map_or(TierDefault::Deny, |tier| tier.default),
    })
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum RefineError {
    /// The cluster cannot be compiled.
    #[error("cannot compile the policies: {0}")]
    Compile(#[from] CompileError),
    /// The image does not open.
    #[error("the compiled snapshot does not validate: {0}; please report this")]
    Image(#[from] ImageError),
    /// A number of the snapshot leads nowhere.
    #[error("the compiled snapshot contradicts itself: {0}; please report this")]
    Snapshot(&'static str),
}

impl<'a> Compiled<'a> {
    /// Compiles a cluster.
    ///
    /// # Errors
    /// It does not compile.
    pub fn of(cluster: &'a Cluster) -> Result<Self, RefineError> {
        let image = ringwall_compile::compile(&cluster.for_compiler(), Generation(1), &EpochKey::OFFLINE)?;
        let snapshot = Snapshot::open(&image.bytes)?;
        Ok(Self { cluster, snapshot })
    }
}
