//! The state and the snapshot that decide now, for explanations and coverage.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use ringwall_analyse::{
    coverage::{Coverage, FirewallPosition},
    explain::{ExplainError, Explainer, Question, services::Explained},
    hypothetical::HypotheticalStates,
    services::Directory,
};
use ringwall_dataplane::{
    addr::Addr,
    classify::{IdentityKind, Image, Snapshot},
};
use ringwall_policy::{ObjectKey, Pod, services::Services};
use ringwall_source::feed::SourceState;

use crate::staged::{AskedFlow, StagedAnswer};

/// A state, and the snapshot that was compiled of it.
#[derive(Debug)]
pub(super) struct CompiledPolicy {
    pub(super) generation: u64,
    pub(super) state: Arc<SourceState>,
    pub(super) image: Image,
}

/// How long compiled hypothetical states are kept after the last question that needed them: they take as much memory as the
/// compiler of the snapshots in force.
const KEEP_HYPOTHETICAL: Duration = Duration::from_secs(300);

/// What was published last, and what every worker has adopted.
#[derive(Debug, Default)]
pub(super) struct ActivePolicy {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    published: Option<Arc<CompiledPolicy>>,
    adopted: Option<Arc<CompiledPolicy>>,
    /// What questions compile, with the time of the last question.
    hypothetical: Option<(Arc<HypotheticalStates>, Instant)>,
}

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    /// There is nothing to ask.
    #[error("no policy has been compiled yet; see `ringwall status`")]
    NoPolicyYet,
    /// The question cannot be answered.
    #[error(transparent)]
    Explain(#[from] ExplainError),
    /// What is staged cannot be compiled.
    #[error("{0:#}")]
    Staged(anyhow::Error),
}

impl ActivePolicy {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        // What is in it is replaced as a whole.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn publish(&self, policy: CompiledPolicy) {
        self.inner().published = Some(Arc::new(policy));
    }

    /// Every worker decides by this generation; answers what decided before, and what decides now. None where it is not
    /// the one that was published last, or is no news.
    pub(super) fn adopt(
        &self,
        generation: u64,
    ) -> Option<(Option<Arc<CompiledPolicy>>, Arc<CompiledPolicy>)> {
        let mut inner = self.inner();
        let published = inner
            .published
            .as_ref()
            .filter(|it| it.generation == generation)?;
        let published = Arc::clone(published);
        if inner
            .adopted
            .as_ref()
            .is_some_and(|it| it.generation == generation)
        {
            return None;
        }
        let before = inner.adopted.replace(Arc::clone(&published));
        Some((before, published))
    }

    /// Whether every worker decides by a snapshot in which these addresses are this pod's.
    pub(super) fn has_pod(&self, key: &ObjectKey, uid: Option<&str>, addresses: &BTreeSet<IpAddr>) -> bool {
        let Some(adopted) = self.inner().adopted.clone() else {
            return false;
        };
        let same = |pod: &Pod| uid.is_none_or(|uid| pod.uid.is_empty() || pod.uid == uid);
        if !adopted.state.cluster.pods.get(key).is_some_and(|pod| same(pod)) {
            return false;
        }
        let snapshot = Snapshot::from_image(&adopted.image);
        let Some(endpoint) = snapshot.find_endpoint(&key.namespace, &key.name) else {
            return false;
        };
        !addresses.is_empty()
            && addresses.iter().all(|address| {
                let identity = snapshot.identify(Addr::from(*address));
                identity.kind == IdentityKind::Pod && identity.endpoint == endpoint.number
            })
    }

    /// What decides now; what was published, where nothing of it has been adopted yet.
    fn current(&self) -> Result<Arc<CompiledPolicy>, AskError> {
        let inner = self.inner();
        let current = inner.adopted.as_ref().or(inner.published.as_ref());
        current.cloned().ok_or(AskError::NoPolicyYet)
    }

    /// What compiles states that questions ask about. It is kept from one question to the next.
    fn hypothetical(&self) -> Arc<HypotheticalStates> {
        let mut inner = self.inner();
        let (states, asked) = inner
            .hypothetical
            .get_or_insert_with(|| (Arc::default(), Instant::now()));
        *asked = Instant::now();
        Arc::clone(states)
    }

    /// Hypothetical states that no question has needed for a while. They are no longer kept; freeing them takes a while.
    pub(super) fn take_idle(&self, now: Instant) -> Option<Arc<HypotheticalStates>> {
        let mut inner = self.inner();
        let idle = inner.hypothetical.as_ref().is_some_and(|(states, asked)| {
            now.saturating_duration_since(*asked) >= KEEP_HYPOTHETICAL && Arc::strong_count(states) == 1
        });
        inner.hypothetical.take_if(|_| idle).map(|(states, _)| states)
    }

    /// Says what would become of flows if what is staged were enforced. Takes a while: not for the loop's thread.
    pub(super) fn staged(&self, flows: &[AskedFlow]) -> Result<StagedAnswer, AskError> {
        let policy = self.current()?;
        StagedAnswer::of(&policy, &self.hypothetical(), flows).map_err(AskError::Staged)
    }

    /// Says what of the state that decides now is enforced from a place. Takes a while: not for the loop's thread.
    pub(super) fn coverage(&self, place: &FirewallPosition) -> Result<Coverage, AskError> {
        let policy = self.current()?;
        let mut coverage = Coverage::of(&policy.state.cluster, place);
        coverage.generation = Some(policy.generation);
        Ok(coverage)
    }

    /// Whether an address lies in a network of Services of the configuration.
    pub(super) fn is_of_services(&self, address: IpAddr) -> bool {
        self.current().is_ok_and(|policy| {
            let networks = &policy.state.cluster.settings.service_cidrs;
            networks.iter().any(|network| network.contains(&address))
        })
    }

    /// Explains a flow, or a connection to a Service, under what decides now. Takes a while: not for the loop's thread.
    pub(super) fn explain(
        &self,
        question: &Question,
        port_name: Option<&str>,
        services: &Services,
    ) -> Result<Explained, AskError> {
        let (policy, adopted) = {
            let inner = self.inner();
            let policy = inner.adopted.clone().or_else(|| inner.published.clone());
            (policy.ok_or(AskError::NoPolicyYet)?, inner.adopted.is_some())
        };
        let snapshot = Snapshot::from_image(&policy.image);
        let cluster = &policy.state.cluster;
        let directory = Directory::new(cluster, services);
        let mut explained = Explainer::over(cluster, snapshot, self.hypothetical())
            .explain_any(&directory, question, port_name)?;
        let (generation, notes) = explained.generation_and_notes();
        *generation = Some(policy.generation);
        if !adopted {
            notes.push(
                "the dataplane has not adopted this snapshot yet: what it decides by now may be older"
                    .to_owned(),
            );
        }
        Ok(explained)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hypothetical_states_are_kept_between_questions_and_freed_when_idle() {
        let active = ActivePolicy::default();
        assert!(active.take_idle(Instant::now()).is_none());
        let states = active.hypothetical();
        assert!(Arc::ptr_eq(&states, &active.hypothetical()));
        let later = Instant::now() + KEEP_HYPOTHETICAL;
        assert!(active.take_idle(later).is_none(), "a question still uses them");
        drop(states);
        assert!(active.take_idle(Instant::now()).is_none());
        assert!(active.take_idle(later).is_some());
        assert!(active.take_idle(later).is_none());
    }
}
