//! What happens in a synthetic cluster, as watch events.
//!
//! Things that take several events (a rollout, a job) are scripts; many go on at once, and each event is the next step of
//! one of them, chosen at random. So events of one object stay in order, and those of different objects mix.

use std::collections::VecDeque;

use serde_json::Value;

use super::{APPS, Controller, Life, MOST_PODS_OF_WORKLOAD, Stage, Synthetic, TEAMS};

/// A type of watch event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// ADDED.
    Added,
    /// MODIFIED.
    Modified,
    /// DELETED; the object is as it was last.
    Deleted,
}

impl EventKind {
    /// As a watch calls it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
        }
    }
}

/// One watch event.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Its type.
    pub kind: EventKind,
    /// The object, with kind and apiVersion.
    pub object: Value,
}

/// Steps of one thing that happens, and the pod that it made last.
#[derive(Clone, Debug, Default)]
pub(super) struct Script {
    steps: VecDeque<Step>,
    made: Option<usize>,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// A new pod of a workload.
    Create(usize),
    /// The four that follow are about the pod made last.
    Schedule,
    Run,
    Ready,
    Finish,
    RemoveMade,
    /// About some pod.
    Unready(usize),
    Reready(usize),
    Retire(usize),
    Remove(usize),
    Role(usize, &'static str),
    Track(usize),
    /// A policy of a namespace, the how manieth.
    AddPolicy(usize, usize),
    ChangePolicy(usize),
    RemovePolicy(usize),
    AddSpace,
    RelabelSpace(usize),
    EndSpace(usize),
    RemoveSpace(usize),
    AddNode,
    Beat(usize),
    RemoveNode(usize),
}

const BIRTH: [Step; 3] = [Step::Schedule, Step::Run, Step::Ready];

impl Synthetic {
    /// The next event. The cluster is afterwards as it says. Without end, unless every weight of the mix is zero: then
    /// pods lose their readiness and get it back.
    pub fn churn(&mut self) -> Event {
        loop {
            while self.scripts.len() < self.spec.churn.concurrent.max(1) {
                let script = self.begin();
                self.scripts.push(script);
            }
            let chosen = self.random.below(self.scripts.len());
            let mut script = std::mem::take(&mut self.scripts[chosen]);
            let event = script
                .steps
                .pop_front()
                .and_then(|step| self.step(step, &mut script));
            if script.steps.is_empty() {
                self.scripts.swap_remove(chosen);
            } else {
                self.scripts[chosen] = script;
            }
            if let Some(event) = event {
                return event;
            }
        }
    }

    fn begin(&mut self) -> Script {
        let mix = &self.spec.churn;
        let weights = [
            mix.readiness,
            mix.rollout,
            mix.job,
            mix.scale,
            mix.reschedule,
            mix.relabel,
            mix.policy,
            mix.namespace,
            mix.node,
        ];
        let what = if weights.iter().sum::<f64>() > 0.0 {
            self.random.weighted(&weights)
        } else {
            0
        };
        let steps = match what {
            1 => self.rollout(),
            2 => self.job(),
            3 => self.scale(),
            4 => self.reschedule(),
            5 => self.relabel(),
            6 => self.policies_change(),
            7 => self.namespaces_change(),
            8 => self.nodes_change(),
            _ => self
                .any_pod()
                .map_or(Vec::new(), |pod| vec![Step::Unready(pod), Step::Reready(pod)]),
        };
        Script {
            steps: steps.into(),
            made: None,
        }
    }

    /// A workload that is not bound to nodes, with pods, in a namespace that stays.
    fn any_workload(&mut self, fits: impl Fn(Controller) -> bool) -> Option<usize> {
        (0..64).find_map(|_| {
            let place = self.random.below(self.workloads.len());
            let workload = &self.workloads[place];
            let active = self.namespaces[workload.space].life == Life::Active;
            (active && !workload.pods.is_empty() && fits(workload.app.controller)).then_some(place)
        })
    }

    fn any_pod(&mut self) -> Option<usize> {
        (0..256).find_map(|_| {
            let place = self.random.below(self.pods.len());
            self.pods[place]
                .as_ref()
                .filter(|pod| pod.stage == Stage::Ready)?;
            Some(place)
        })
    }

    fn any_space(&mut self, fits: impl Fn(&super::Space) -> bool) -> Option<usize> {
        (0..64).find_map(|_| {
            let place = self.random.below(self.namespaces.len());
            let space = &self.namespaces[place];
            (space.life == Life::Active && fits(space)).then_some(place)
        })
    }

    fn rollout(&mut self) -> Vec<Step> {
        let fits = |it| matches!(it, Controller::Deployment | Controller::StatefulSet);
        let Some(place) = self.any_workload(fits) else {
            return Vec::new();
        };
        let template = self.random.below(1 << 30) as u32;
        let workload = &mut self.workloads[place];
        workload.template = template;
        workload.version += 1;
        let numbered = workload.app.controller == Controller::StatefulSet;
        workload
            .pods
            .iter()
            .flat_map(|old| {
                let end = [Step::Retire(*old), Step::Remove(*old)];
                let birth = [Step::Create(place)].into_iter().chain(BIRTH);
                // A number is free only once its pod is gone.
                let steps: Vec<Step> = if numbered {
                    end.into_iter().chain(birth).collect()
                } else {
                    birth.chain(end).collect()
                };
                steps
            })
            .collect()
    }

    fn job(&mut self) -> Vec<Step> {
        let Some(place) = self.any_workload(|it| it == Controller::Job) else {
            return Vec::new();
        };
        let mut steps = vec![Step::Create(place)];
        steps.extend(BIRTH);
        steps.extend([Step::Finish, Step::RemoveMade]);
        steps
    }

    /// Up or down, so that there are about as many pods as there should be.
    fn scale(&mut self) -> Vec<Step> {
        let fits = |it| matches!(it, Controller::Deployment | Controller::StatefulSet);
        let Some(place) = self.any_workload(fits) else {
            return Vec::new();
        };
        let many = self.live_pods > self.spec.pods;
        let workload = &mut self.workloads[place];
        match (workload.pods.len(), many) {
            // The last one stays, else a workload would be gone for good.
            (2.., true) => workload.wanted = (workload.wanted - 1).max(1),
            (..MOST_PODS_OF_WORKLOAD, false) => workload.wanted += 1,
            _ => {}
        }
        let pods = &workload.pods;
        match pods.last() {
            Some(last) if pods.len() > workload.wanted => vec![Step::Retire(*last), Step::Remove(*last)],
            _ if pods.len() < workload.wanted => [Step::Create(place)].into_iter().chain(BIRTH).collect(),
            _ => Vec::new(),
        }
    }

    fn reschedule(&mut self) -> Vec<Step> {
        let fits = |it| matches!(it, Controller::Deployment | Controller::StatefulSet);
        let Some(place) = self.any_workload(fits) else {
            return Vec::new();
        };
        let old = *self.random.pick(&self.workloads[place].pods);
        let mut steps = vec![Step::Retire(old), Step::Remove(old), Step::Create(place)];
        steps.extend(BIRTH);
        steps
    }

    fn relabel(&mut self) -> Vec<Step> {
        if self.random.chance(0.5)
            && let Some(place) = self.any_workload(|it| it == Controller::StatefulSet)
        {
            let role = |pod: &usize| self.pods[*pod].as_ref().and_then(|pod| pod.role);
            let pods = &self.workloads[place].pods;
            let primary = pods.iter().copied().find(|pod| role(pod) == Some("primary"));
            let replica = pods.iter().copied().find(|pod| role(pod) == Some("replica"));
            // A fail-over: the replica is promoted before the old primary knows.
            if let (Some(primary), Some(replica)) = (primary, replica) {
                return vec![Step::Role(replica, "primary"), Step::Role(primary, "replica")];
            }
        }
        self.any_pod().map_or(Vec::new(), |pod| vec![Step::Track(pod)])
    }

    fn policies_change(&mut self) -> Vec<Step> {
        let live = self.policies.iter().filter(|it| !it.gone).count();
        if live == 0 || (live < self.spec.policies && self.random.chance(0.4)) {
            let space = self.any_space(|it| !it.system);
            return space.map_or(Vec::new(), |space| vec![Step::AddPolicy(space, usize::MAX)]);
        }
        let place = (0..64)
            .map(|_| self.random.below(self.policies.len()))
            .find(|it| !self.policies[*it].gone);
        let remove = live >= self.spec.policies && self.random.chance(0.4);
        place.map_or(Vec::new(), |place| {
            vec![if remove {
                Step::RemovePolicy(place)
            } else {
                Step::ChangePolicy(place)
            }]
        })
    }

    fn namespaces_change(&mut self) -> Vec<Step> {
        let live = self
            .namespaces
            .iter()
            .filter(|it| it.life == Life::Active)
            .count();
        match self.random.below(3) {
            0 => self
                .any_space(|it| !it.system)
                .map_or(Vec::new(), |space| vec![Step::RelabelSpace(space)]),
            _ if live < self.spec.namespaces => vec![Step::AddSpace],
            // Small ones: the largest are not deleted.
            _ => self
                .any_space(|it| !it.system && it.pods.len() <= 50)
                .map_or(Vec::new(), |space| vec![Step::EndSpace(space)]),
        }
    }

    /// Takes a step. None where it has become pointless: what it is about is gone.
    fn step(&mut self, step: Step, script: &mut Script) -> Option<Event> {
        let made = script.made;
        match step {
            Step::Create(workload) => {
                let of = &self.workloads[workload];
                if of.gone || self.namespaces[of.space].life != Life::Active {
                    script.steps.clear();
                    return None;
                }
                // Of two rollouts at once, one has made enough.
                let surge = 1 + of.wanted / 4;
                if of.app.controller != Controller::Job && of.pods.len() >= of.wanted + surge {
                    script.made = None;
                    return None;
                }
                let pod = self.create_pod(workload, false);
                script.made = Some(pod);
                self.pod_event(EventKind::Added, pod)
            }
            Step::Schedule => self.pod_changed(made?, |cluster, pod| cluster.schedule(pod)),
            Step::Run => self.pod_changed(made?, |cluster, pod| cluster.run(pod)),
            Step::Ready => self.stage(made?, Stage::Running, Stage::Ready),
            Step::Finish => {
                let event = self.stage(made?, Stage::Ready, Stage::Finished);
                self.free_address(made?);
                event
            }
            Step::Unready(pod) => self.stage(pod, Stage::Ready, Stage::Running),
            Step::Reready(pod) => self.stage(pod, Stage::Running, Stage::Ready),
            Step::Retire(pod) => {
                self.pods[pod].as_ref().filter(|it| it.stage != Stage::Finished)?;
                self.pod_changed(pod, |cluster, place| {
                    if let Some(pod) = &mut cluster.pods[place] {
                        pod.stage = Stage::Terminating;
                    }
                })
            }
            Step::RemoveMade => self.remove(made?),
            Step::Remove(pod) => self.remove(pod),
            Step::Role(pod, role) => {
                self.pods[pod].as_mut()?.role = Some(role);
                self.pod_event(EventKind::Modified, pod)
            }
            Step::Track(pod) => {
                let it = self.pods[pod].as_mut()?;
                it.canary = !it.canary;
                self.pod_event(EventKind::Modified, pod)
            }
            other => self.step_of_space(other, script),
        }
    }

    fn nodes_change(&mut self) -> Vec<Step> {
        if self.random.chance(0.25) {
            return vec![Step::AddNode];
        }
        vec![Step::Beat(self.random.below(self.nodes.len()))]
    }

    /// Steps about policies, namespaces and nodes.
    fn step_of_space(&mut self, step: Step, script: &mut Script) -> Option<Event> {
        match step {
            Step::AddPolicy(space, number) => {
                if self.namespaces[space].life != Life::Active {
                    return None;
                }
                let place = self.add_policy(space, number);
                Some(self.policy_event(EventKind::Added, place))
            }
            Step::ChangePolicy(place) => {
                let policy = &self.policies[place];
                if policy.gone || self.namespaces[policy.space].life != Life::Active {
                    return None;
                }
                self.change_policy(place);
                Some(self.policy_event(EventKind::Modified, place))
            }
            Step::RemovePolicy(place) => {
                if std::mem::replace(&mut self.policies[place].gone, true) {
                    return None;
                }
                Some(self.policy_event(EventKind::Deleted, place))
            }
            Step::AddSpace => {
                let space = self.new_space(script);
                Some(self.space_event(EventKind::Added, space))
            }
            Step::RelabelSpace(space) => {
                self.namespaces[space].team = *self.random.pick(TEAMS);
                (self.namespaces[space].life == Life::Active)
                    .then(|| self.space_event(EventKind::Modified, space))
            }
            Step::EndSpace(space) => {
                if self.namespaces[space].life != Life::Active {
                    return None;
                }
                self.namespaces[space].life = Life::Terminating;
                self.end_of_space(space, script);
                Some(self.space_event(EventKind::Modified, space))
            }
            Step::RemoveSpace(space) => {
                if !self.namespaces[space].pods.is_empty() {
                    // Something was created while it ended.
                    self.end_of_space(space, script);
                    return None;
                }
                for place in std::mem::take(&mut self.namespaces[space].workloads) {
                    self.workloads[place].gone = true;
                    self.namespaces[space].workloads.push(place);
                }
                self.namespaces[space].life = Life::Gone;
                Some(self.space_event(EventKind::Deleted, space))
            }
            Step::AddNode => {
                let node = self.add_node();
                script.steps.extend([Step::Beat(node), Step::RemoveNode(node)]);
                Some(self.node_event(EventKind::Added, node))
            }
            Step::Beat(node) => {
                self.nodes[node].beats += 1;
                (!self.nodes[node].gone).then(|| self.node_event(EventKind::Modified, node))
            }
            // One that has pods by now stays.
            Step::RemoveNode(node) => {
                let there = !self.nodes[node].gone && !self.nodes[node].taken.contains(&true);
                there.then(|| {
                    self.nodes[node].gone = true;
                    self.node_event(EventKind::Deleted, node)
                })
            }
            // The others are about pods.
            _ => None,
        }
    }

    /// A namespace with two workloads, whose pods are still to come.
    fn new_space(&mut self, script: &mut Script) -> usize {
        let team = *self.random.pick(TEAMS);
        let serial = self.serial;
        let space = self.add_namespace(format!("{team}-n{serial:x}"), team, false);
        if self.random.chance(self.spec.protected) {
            script
                .steps
                .extend((0..4).map(|number| Step::AddPolicy(space, number)));
        }
        for app in [&APPS[0], &APPS[1]] {
            let workload = self.add_workload(space, app);
            let wanted = self.random.long_tailed(2, 20);
            self.workloads[workload].wanted = wanted;
            for _ in 0..wanted {
                script.steps.push_back(Step::Create(workload));
                script.steps.extend(BIRTH);
            }
        }
        space
    }

    /// Its policies go before its pods, as a controller that knows no order may have it.
    fn end_of_space(&self, space: usize, script: &mut Script) {
        let policies = self
            .policies
            .iter()
            .enumerate()
            .filter(|(_, it)| it.space == space && !it.gone);
        script
            .steps
            .extend(policies.map(|(place, _)| Step::RemovePolicy(place)));
        let pods = &self.namespaces[space].pods;
        script.steps.extend(pods.iter().map(|pod| Step::Retire(*pod)));
        script.steps.extend(pods.iter().map(|pod| Step::Remove(*pod)));
        script.steps.push_back(Step::RemoveSpace(space));
    }

    /// From one stage to another; None where it is not at the first.
    fn stage(&mut self, place: usize, from: Stage, to: Stage) -> Option<Event> {
        let pod = self.pods[place].as_mut().filter(|pod| pod.stage == from)?;
        pod.stage = to;
        self.pod_event(EventKind::Modified, place)
    }

    /// Changes a pod that is there and not on its way out.
    fn pod_changed(&mut self, place: usize, change: impl FnOnce(&mut Self, usize)) -> Option<Event> {
        self.pods[place]
            .as_ref()
            .filter(|pod| pod.stage != Stage::Terminating)?;
        change(self, place);
        self.pod_event(EventKind::Modified, place)
    }

    fn remove(&mut self, place: usize) -> Option<Event> {
        let event = self.pod_event(EventKind::Deleted, place);
        self.remove_pod(place);
        event
    }

    fn pod_event(&self, kind: EventKind, place: usize) -> Option<Event> {
        let object = self.pod_object(place)?;
        Some(Event { kind, object })
    }

    fn policy_event(&self, kind: EventKind, place: usize) -> Event {
        let object = self.policy_object(place);
        Event { kind, object }
    }

    fn node_event(&self, kind: EventKind, place: usize) -> Event {
        let object = self.node_object(place);
        Event { kind, object }
    }

    fn space_event(&self, kind: EventKind, place: usize) -> Event {
        let object = self.namespace_object(place);
        Event { kind, object }
    }
}
