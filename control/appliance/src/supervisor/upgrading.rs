//! What the supervisor does in an upgrade; in which order is in [`super::super::upgrade`].

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use ringwall_messages::{ChildReport, ContentHash, SupervisorOrder, UpgradeOutcome, UpgradeStatus};
use rustix::process::Signal;

use super::{
    super::{
        about::About,
        children::{Child, LaunchSpec, Program, Role, describe},
        expedited::Expedited,
        upgrade::{Action, Event, Stage, next, probe::Probe, requests::Client},
    },
    GRACE, STANDBY_DELAY, Supervisor,
};

/// A child that was told to end. It is killed when it does not.
pub(super) struct EndingChild {
    child: Child,
    since: Instant,
}

impl EndingChild {
    fn told(child: Child, signal: Signal) -> Self {
        child.signal(signal);
        Self {
            child,
            since: Instant::now(),
        }
    }

    /// How long it still has.
    pub(super) fn left(&self) -> Duration {
        match GRACE.saturating_sub(self.since.elapsed()) {
            // It has been killed and is waited for.
            Duration::ZERO => GRACE,
            left => left,
        }
    }
}

impl AsFd for EndingChild {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.child.as_fd()
    }
}

/// An upgrade that runs.
pub(super) struct Upgrade {
    stage: Stage,
    /// When the stage is over at the latest.
    due: Instant,
    client: Client,
    status: UpgradeStatus,
    program: Program,
    about: About,
    probe: Option<Probe>,
    /// The new control, until it takes over.
    control: Option<Child>,
    /// The new dataplane, until it is told to go.
    dataplane: Option<Child>,
    snapshot: Option<Snapshot>,
    /// Process ids: of the new dataplane that was told to go, and of the control that has to end first.
    switched_to: u32,
    relieved: Option<u32>,
}

/// What the new control has compiled and proven.
struct Snapshot {
    memory: OwnedFd,
    generation: u64,
    hash: ContentHash,
    bytes: u64,
}

impl Snapshot {
    fn hand_to(&self, dataplane: &Child) {
        let order = SupervisorOrder::Snapshot {
            generation: self.generation,
            hash: self.hash,
            bytes: self.bytes,
        };
        dataplane.order(&order, Some(self.memory.as_fd()));
    }
}

impl Upgrade {
    fn enter(&mut self, stage: Stage) {
        self.stage = stage;
        self.due = Instant::now() + stage.limit();
        self.say(stage.describe());
    }

    fn say(&mut self, text: &str) {
        tracing::info!(to = self.status.to, "upgrade: {text}");
        text.clone_into(&mut self.status.step);
        self.client.step(text);
    }

    /// How long the stage may still take.
    pub(super) fn left(&self) -> Duration {
        self.due.saturating_duration_since(Instant::now())
    }

    /// What becomes readable when there may be news.
    pub(super) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let children = self.control.iter().chain(&self.dataplane);
        let lines = children.flat_map(|child| std::iter::once(child.as_fd()).chain(child.open_line()));
        self.probe.iter().map(AsFd::as_fd).chain(lines)
    }

    /// A dataplane that is started while the new control is not in charge yet finds nothing on disk that it can use: it
    /// gets the new control's snapshot.
    pub(super) fn hand_snapshot(&self, dataplane: &Child) {
        if matches!(self.stage, Stage::Relieving | Stage::TakingOver)
            && let Some(snapshot) = &self.snapshot
        {
            snapshot.hand_to(dataplane);
        }
    }

    /// What the children say that have no post yet.
    fn hear(&mut self) -> anyhow::Result<Option<Event>> {
        if let Some(probe) = &mut self.probe
            && let Some(answer) = probe.poll()
        {
            self.probe = None;
            return Ok(Some(match answer {
                Ok(about) => {
                    self.status.to.clone_from(&about.version);
                    self.about = about;
                    Event::Answered
                }
                Err(reason) => self.failed(Event::Failed, reason),
            }));
        }
        for (failure, what, slot) in [
            (Event::ControlFailed, "the new control", Role::Control),
            (Event::Failed, "the new dataplane", Role::Dataplane),
        ] {
            let child = match slot {
                Role::Control => &mut self.control,
                Role::Dataplane => &mut self.dataplane,
            };
            let Some(running) = child else { continue };
            if let Some(received) = running.report() {
                return Ok(match (slot, received.message, received.fd) {
                    (
                        Role::Control,
                        ChildReport::Staged {
                            generation,
                            hash,
                            bytes,
                        },
                        Some(memory),
                    ) if self.snapshot.is_none() => {
                        self.snapshot = Some(Snapshot {
                            memory,
                            generation,
                            hash,
                            bytes,
                        });
                        Some(Event::Staged)
                    }
                    (Role::Dataplane, ChildReport::Ready, _) => Some(Event::Ready),
                    (_, ChildReport::Refused { reason }, _) => {
                        Some(self.failed(failure, format!("{what}: {reason}")))
                    }
                    _ => None,
                });
            }
            if let Some(status) = running.ended()? {
                *child = None;
                let reason = format!("{what} ended ({}); the log has its words", describe(status));
                return Ok(Some(self.failed(failure, reason)));
            }
        }
        Ok(None)
    }

    fn failed(&mut self, event: Event, reason: String) -> Event {
        self.status.reason.get_or_insert(reason);
        event
    }
}

impl Supervisor {
    /// Takes requests, and what has happened to the upgrade that runs. `heard` is what the processes have said.
    pub(super) fn step_upgrade(&mut self, heard: &[(u32, ChildReport)]) -> anyhow::Result<()> {
        for (client, program) in self.requests.take() {
            self.begin_upgrade(client, program);
        }
        while let Some(event) = self.next_event(heard)? {
            let Some(upgrade) = &mut self.upgrade else { break };
            if event == Event::Late && !matches!(upgrade.stage, Stage::Trial) {
                let reason = format!(
                    "{}: not done within {} s",
                    upgrade.stage.describe(),
                    upgrade.stage.limit().as_secs()
                );
                upgrade.failed(event, reason);
            }
            let (then, action) = next(upgrade.stage, event);
            if action == Action::Wait {
                break;
            }
            if let Some(stage) = then {
                upgrade.enter(stage);
            }
            self.act(action);
            self.note_upgrade();
        }
        Ok(())
    }

    fn begin_upgrade(&mut self, client: Client, program: Program) {
        let mut status = UpgradeStatus {
            outcome: UpgradeOutcome::Refused,
            program: program.path().to_owned(),
            from: self.about.version.clone(),
            began: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| since.as_secs()),
            ..UpgradeStatus::default()
        };
        let recipe = &self.post(Role::Dataplane).recipe;
        let arguments = recipe.arguments.clone();
        if recipe.program.is(&program) {
            status.outcome = UpgradeOutcome::Done;
            status.to.clone_from(&status.from);
            status.reason = Some("this program runs already, and nothing was replaced".to_owned());
            return client.end(status);
        }
        // What has happened since it was last looked.
        self.next_look = Instant::now();
        self.check_readiness();
        let obstacle = if self.stopping.is_some() {
            Some("the supervisor is stopping")
        } else if self.upgrade.is_some() {
            Some("another upgrade runs; see `ringwall status`")
        } else if !self.is_settled() {
            Some("no policy has been in force yet: restart the service with the new program instead")
        } else {
            None
        };
        if let Some(obstacle) = obstacle {
            status.reason = Some(obstacle.to_owned());
            return client.end(status);
        }
        // The configuration is the second argument of every process.
        let config = arguments.get(2).cloned().unwrap_or_default();
        let probe = match Probe::start(&program, config.as_ref()) {
            Ok(probe) => probe,
            Err(error) => {
                status.reason = Some(format!("it cannot be started: {error}"));
                return client.end(status);
            }
        };
        status.outcome = UpgradeOutcome::Running;
        let mut upgrade = Upgrade {
            stage: Stage::Asking,
            due: Instant::now(),
            client,
            status,
            program,
            about: About::default(),
            probe: Some(probe),
            control: None,
            dataplane: None,
            snapshot: None,
            switched_to: 0,
            relieved: None,
        };
        upgrade.enter(Stage::Asking);
        self.upgrade = Some(upgrade);
        self.note_upgrade();
    }

    fn next_event(&mut self, heard: &[(u32, ChildReport)]) -> anyhow::Result<Option<Event>> {
        let dataplane = self.post(Role::Dataplane).child.as_ref().map(Child::pid);
        let control = self.post(Role::Control).child.as_ref().map(Child::pid);
        let relieved = |pid| self.relieved.iter().any(|it| it.child.pid() == pid);
        let gone = |pid: Option<u32>| pid.is_none_or(|pid| !relieved(pid));
        let Some(upgrade) = &mut self.upgrade else {
            return Ok(None);
        };
        if let Some(event) = upgrade.hear()? {
            return Ok(Some(event));
        }
        let said = |who: Option<u32>, report: &ChildReport| {
            heard.iter().any(|(pid, it)| Some(*pid) == who && it == report)
        };
        let is_new = dataplane == Some(upgrade.switched_to);
        let event = match upgrade.stage {
            Stage::Switching | Stage::Trial if !is_new => Some(upgrade.failed(
                Event::Failed,
                "the new dataplane died; the log has its words".to_owned(),
            )),
            Stage::Switching | Stage::RollingBack
                if said(dataplane, &ChildReport::Receiving)
                    && is_new == (upgrade.stage == Stage::Switching) =>
            {
                Some(Event::Receiving)
            }
            Stage::Relieving if gone(upgrade.relieved) => Some(Event::Relieved),
            Stage::TakingOver if said(control, &ChildReport::InCharge) => Some(Event::InCharge),
            _ => None,
        };
        Ok(event.or_else(|| upgrade.left().is_zero().then_some(Event::Late)))
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Wait => {}
            Action::StageControl => self.stage_control(),
            Action::ReadyDataplane => self.ready_dataplane(),
            Action::Switch => self.switch(),
            Action::Try => {}
            Action::Relieve => self.relieve_control(),
            Action::Commit => self.commit(),
            Action::RollBack => self.roll_back(),
            Action::Finish => self.end_upgrade(UpgradeOutcome::Done),
            Action::Abort => self.end_upgrade(UpgradeOutcome::Refused),
            Action::Restored => self.end_upgrade(UpgradeOutcome::RolledBack),
        }
    }

    /// The recipe of a process of the new program.
    fn new_recipe(&self, role: Role) -> Option<LaunchSpec> {
        let upgrade = self.upgrade.as_ref()?;
        let post = self.posts.get(role as usize)?;
        Some(LaunchSpec {
            program: upgrade.program.clone(),
            ..post.recipe.clone()
        })
    }

    fn stage_control(&mut self) {
        let Some(mut recipe) = self.new_recipe(Role::Control) else {
            return;
        };
        recipe.arguments.push("--staged".into());
        let flows = self.about.flows;
        let Some(upgrade) = &mut self.upgrade else { return };
        if upgrade.about.flows != flows {
            upgrade.say(
                "the flow table has another layout: connections are judged anew where their next packet is seen, as conntrack.tcpMidstream says",
            );
        }
        match Child::start(&recipe) {
            Ok(child) => upgrade.control = Some(child),
            Err(error) => self.cannot_start("the new control", &error),
        }
    }

    fn ready_dataplane(&mut self) {
        let Some(recipe) = self.new_recipe(Role::Dataplane) else {
            return;
        };
        let Some(upgrade) = &mut self.upgrade else { return };
        match (Child::start(&recipe), &upgrade.snapshot) {
            (Ok(child), Some(snapshot)) => {
                snapshot.hand_to(&child);
                upgrade.dataplane = Some(child);
            }
            (Err(error), _) => self.cannot_start("the new dataplane", &error),
            (Ok(_), None) => {} // never: nothing was staged
        }
    }

    fn cannot_start(&mut self, what: &str, error: &std::io::Error) {
        let Some(upgrade) = &mut self.upgrade else { return };
        upgrade.failed(Event::Failed, format!("{what} cannot be started: {error}"));
        self.end_upgrade(UpgradeOutcome::Refused);
    }

    /// As when a dataplane dies: the one that stands by goes while the kernel closes the other's sockets.
    fn switch(&mut self) {
        let Some(upgrade) = &mut self.upgrade else { return };
        let Some(mut child) = upgrade.dataplane.take() else {
            return;
        };
        upgrade.switched_to = child.pid();
        self.replace_dataplane();
        child.go(true);
        let post = self.post(Role::Dataplane);
        post.child = Some(child);
        post.due = None;
    }

    /// Kills the dataplane; whoever comes next finds short grace periods.
    fn replace_dataplane(&mut self) {
        let post = self.post(Role::Dataplane);
        post.expedited = Expedited::begin().map(|expedited| (expedited, Instant::now()));
        let child = post.child.take();
        self.relieved
            .extend(child.map(|child| EndingChild::told(child, Signal::KILL)));
    }

    fn relieve_control(&mut self) {
        let Some(upgrade) = &mut self.upgrade else { return };
        for post in &mut self.posts {
            post.recipe.program = upgrade.program.clone();
        }
        self.about = upgrade.about.clone();
        let post = &mut self.posts[Role::Control as usize];
        post.due = None;
        let control = post.child.take();
        upgrade.relieved = control.as_ref().map(Child::pid);
        self.relieved
            .extend(control.map(|child| EndingChild::told(child, Signal::TERM)));
        let standby = std::mem::take(&mut self.standby);
        self.relieved
            .extend(standby.child.map(|child| EndingChild::told(child, Signal::KILL)));
    }

    fn commit(&mut self) {
        let Some(upgrade) = &mut self.upgrade else { return };
        let switched_to = upgrade.switched_to;
        let control = upgrade.control.take();
        let post = self.post(Role::Control);
        match control {
            Some(mut control) => {
                control.go(false);
                post.child = Some(control);
            }
            // It died when there was no way back any more.
            None => post.due = Some(Instant::now()),
        }
        let dataplane = self.post(Role::Dataplane).child.as_ref();
        if let Some(dataplane) = dataplane.filter(|it| it.pid() == switched_to) {
            dataplane.order(&SupervisorOrder::Serve, None);
        }
        self.standby.due = Some(Instant::now() + STANDBY_DELAY);
    }

    /// The old dataplane that stands by takes over again. Where the new one died, that has happened already.
    fn roll_back(&mut self) {
        let Some(upgrade) = &mut self.upgrade else { return };
        let switched_to = upgrade.switched_to;
        let control = upgrade.control.take();
        self.relieved
            .extend(control.map(|child| EndingChild::told(child, Signal::KILL)));
        let post = self.post(Role::Dataplane);
        if post
            .child
            .as_ref()
            .is_some_and(|child| child.pid() == switched_to)
        {
            self.replace_dataplane();
            self.post(Role::Dataplane).due = Some(Instant::now());
            self.start_due();
        }
    }

    fn end_upgrade(&mut self, outcome: UpgradeOutcome) {
        let Some(mut upgrade) = self.upgrade.take() else {
            return;
        };
        let unused = upgrade.control.take().into_iter().chain(upgrade.dataplane.take());
        self.relieved
            .extend(unused.map(|child| EndingChild::told(child, Signal::KILL)));
        upgrade.status.outcome = outcome;
        self.forget_other_flow_tables();
        let text = upgrade.status.to_string();
        if outcome == UpgradeOutcome::Done {
            tracing::info!("{text}");
        } else {
            tracing::error!("{text}");
        }
        self.record.upgrade = Some(upgrade.status.clone());
        self.write_record();
        upgrade.client.end(upgrade.status);
    }

    /// The supervisor stops: whatever was begun ends.
    pub(super) fn stop_upgrade(&mut self) {
        if let Some(upgrade) = &mut self.upgrade {
            upgrade.failed(Event::Failed, "the supervisor is stopping".to_owned());
            self.end_upgrade(UpgradeOutcome::Refused);
        }
    }

    fn note_upgrade(&mut self) {
        if let Some(upgrade) = &self.upgrade {
            self.record.upgrade = Some(upgrade.status.clone());
            self.write_record();
        }
    }

    /// Forgets relieved children that have ended, kills those that do not.
    pub(super) fn collect_relieved(&mut self) -> anyhow::Result<()> {
        let mut alive = Vec::new();
        for mut relieved in std::mem::take(&mut self.relieved) {
            if relieved.child.ended()?.is_some() {
                continue;
            }
            if relieved.since.elapsed() > GRACE {
                relieved.child.signal(Signal::KILL);
            }
            alive.push(relieved);
        }
        self.relieved = alive;
        Ok(())
    }
}
