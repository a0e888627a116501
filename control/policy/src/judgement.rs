//! Words in which verdicts are given, to people and between processes.

use serde::{Deserialize, Serialize};

use super::{PolicyKind, policy_label};

/// Who decided a direction: as in `query`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decider {
    /// `egress` or `ingress`.
    pub direction: String,
    /// Tier of the policy.
    pub tier: Option<String>,
    /// Kind of the policy.
    pub kind: Option<String>,
    /// `namespace/name` of the policy, or the name of a cluster-wide one.
    pub policy: Option<String>,
    /// Index of the rule.
    pub rule: Option<u32>,
    /// Of who decides: `allow`, `deny`, `isolated`, `tier-default`, `profile`, `open`, `self`, `node`, `unknown` or
    /// `depends`. Of others: [`PASS`] or [`STAGED`].
    pub effect: String,
}

/// The effect of a rule that hands a flow on to the next tier.
pub const PASS: &str = "pass";

/// The effect of a staged policy that would decide if it were enforced.
pub const STAGED: &str = "staged";

impl Decider {
    /// The policy in words; None where none decides.
    pub fn policy_words(&self) -> Option<String> {
        policy_words(self.tier.as_deref(), self.kind.as_deref(), self.policy.as_deref())
    }

    /// Whether it decides; others only say what came before, or what is staged.
    pub fn decides(&self) -> bool {
        ![PASS, STAGED].contains(&self.effect.as_str())
    }
}

/// The effect of a tier that denies by default, by the kinds of its policies that select the pod.
pub fn tier_denial<'a>(mut kinds: impl Iterator<Item = &'a str>) -> &'static str {
    match kinds.all(|kind| kind == PolicyKind::NetworkPolicy.name()) {
        true => "isolated",
        false => "tier-default",
    }
}

/// A policy in words: a NetworkPolicy by `namespace/name`, others by kind, name and tier. None where there is none.
pub fn policy_words(tier: Option<&str>, kind: Option<&str>, policy: Option<&str>) -> Option<String> {
    let policy = policy?;
    let label = kind.map_or_else(|| policy.to_owned(), |kind| policy_label(kind, policy));
    Some(match tier.filter(|_| label != policy) {
        Some(tier) => format!("{label} ({tier})"),
        None => label,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_of_other_kinds_are_named_with_kind_and_tier() {
        let words = |tier, kind, policy| policy_words(Some(tier), Some(kind), Some(policy));
        assert_eq!(
            words("NetworkPolicy", "NetworkPolicy", "shop/db").as_deref(),
            Some("shop/db")
        );
        assert_eq!(
            words("Admin", "ClusterNetworkPolicy", "closed").as_deref(),
            Some("ClusterNetworkPolicy closed (Admin)")
        );
        assert_eq!(policy_words(None, None, None), None);
    }
}
