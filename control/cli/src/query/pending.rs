//! What flows would come to if the staged policies were enforced.

use ringwall_analyse::{
    flow::Flow,
    judge::{Answer, Direction, Fate, Judge, Reason},
};
use ringwall_policy::{Cluster, PolicyId, STAGED, policy_label};
use ringwall_source::{
    folder::Loaded,
    staged::{Staged, StagedAction, StagedPolicy},
};

/// The cluster with all staged policies enforced.
pub(super) struct Pending<'a> {
    staged: &'a [Staged],
    cluster: Cluster,
    judge: Judge,
}

/// What staged policies would make of a flow.
pub(super) struct PendingAnswer {
    /// The verdict, with all of them enforced.
    pub(super) fate: Fate,
    /// Those that would decide, or that would remove the policy that decides.
    pub(super) deciding: Vec<Reason>,
    /// Whether the verdict would be another.
    differs: bool,
}

impl<'a> Pending<'a> {
    /// None where nothing is staged.
    pub(super) fn of(loaded: &'a Loaded) -> anyhow::Result<Option<Self>> {
        if loaded.staged.is_empty() {
            return Ok(None);
        }
        let cluster = loaded.pending(None);
        Ok(Some(Self {
            staged: &loaded.staged,
            judge: Judge::new(&cluster)?,
            cluster,
        }))
    }

    /// What would become of a flow of which this is the answer in force.
    pub(super) fn answer(&self, flow: &Flow, enforced: &Answer) -> Result<PendingAnswer, String> {
        let (src, dst) = self.judge.ends(&self.cluster, &flow.src, &flow.dst)?;
        let pending = self.judge.judge(&src, &dst, flow.service)?;
        let mut deciding = Vec::new();
        for direction in [Direction::Egress, Direction::Ingress] {
            let of = |answer: &Answer| {
                let reasons = answer.reasons.iter().filter(|it| it.direction == direction);
                reasons.cloned().collect::<Vec<_>>()
            };
            let (now, then) = (of(enforced), of(&pending));
            // What is staged may be equal to what is enforced.
            if now == then {
                continue;
            }
            deciding.extend(self.of_staged(&then, false));
            deciding.extend(self.of_staged(&now, true));
        }
        Ok(PendingAnswer {
            fate: pending.fate(),
            differs: pending.fate() != enforced.fate(),
            deciding,
        })
    }

    /// Those of the reasons that are policies which are staged, to be set or to be deleted.
    fn of_staged(&self, reasons: &[Reason], deleted: bool) -> Vec<Reason> {
        let named = reasons.iter().filter_map(|reason| {
            let staged = self.staged.iter().find(|staged| {
                let id = enforced_as(staged);
                deleted == (staged.action == StagedAction::Delete)
                    && reason.kind.as_deref() == Some(id.kind.name())
                    && reason.policy == Some(id.to_string())
            })?;
            Some(Reason {
                kind: Some(staged.kind.to_owned()),
                effect: STAGED,
                ..reason.clone()
            })
        });
        named.collect()
    }
}

/// The policy that a staged one would be.
fn enforced_as(staged: &Staged) -> PolicyId {
    match &staged.policy {
        StagedPolicy::Calico(policy) => policy.id.clone(),
        StagedPolicy::Kubernetes(policy) => PolicyId::network_policy(&policy.key),
    }
}

impl PendingAnswer {
    /// What would change, in words; None where nothing would.
    pub(super) fn words(&self) -> Option<String> {
        let deciding: Vec<String> = self
            .deciding
            .iter()
            .filter_map(|reason| Some(policy_label(reason.kind.as_deref()?, reason.policy.as_deref()?)))
            .collect();
        self.differs.then(|| {
            format!(
                "with staged policies enforced: {} ({})",
                self.fate.word(),
                deciding.join(", ")
            )
        })
    }
}
