//! Words in which verdicts are given, to people and between processes.

use serde::{Deserialize, Serialize};

/// Who decided a direction: as in `query`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decider {
    /// `egress` or `ingress`.
    pub direction: String,
    /// Tier of the policy.
    pub tier: Option<String>,
    /// Kind of the policy.
    pub kind: Option<String>,
    /// `namespace/name` of the policy.
    pub policy: Option<String>,
    /// Index of the rule.
    pub rule: Option<u32>,
    /// `allow`, `isolated`, `open`, `self`, `node`, `unknown` or `depends`.
    pub effect: String,
}
