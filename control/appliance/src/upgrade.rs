//! `ringwall upgrade`: the running processes are replaced by those of another program, in an order that never leaves
//! traffic without a verdict.
//!
//! What happens in which order is [`next`], a table; the supervisor does what it says. [`probe`] asks a program what it is,
//! [`requests`] listens for those who want an upgrade.

pub mod probe;
pub mod requests;

use std::time::Duration;

/// How far an upgrade is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The program says what it is, and whether it would run with the configuration.
    Asking,
    /// The new control reads the source, compiles and proves, beside the old one.
    Staging,
    /// The new dataplane stands by and tries the new control's snapshot.
    Readying,
    /// The old dataplane has been killed, the new one begins.
    Switching,
    /// It receives. Nobody can talk to it yet, so that the way back is open.
    Trial,
    /// The old control ends.
    Relieving,
    /// The new control takes over.
    TakingOver,
    /// The old dataplane begins again.
    RollingBack,
}

/// What happens in an upgrade.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The program is one that can be tried.
    Answered,
    /// The new control has a snapshot.
    Staged,
    /// The new dataplane can use it.
    Ready,
    /// The dataplane that was told to go receives.
    Receiving,
    /// The old control has ended.
    Relieved,
    /// The new control can be asked and has the dataplane.
    InCharge,
    /// The new control ended, or says that it cannot do its work.
    ControlFailed,
    /// So with the new dataplane, or with the program when it was asked.
    Failed,
    /// The stage has taken as long as it may.
    Late,
}

/// What is to be done then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    Wait,
    /// Start the new control.
    StageControl,
    /// Start the new dataplane and hand it the snapshot.
    ReadyDataplane,
    /// Kill the old dataplane and let the new one go.
    Switch,
    /// Begin the trial.
    Try,
    /// Make the new program the one that is started again, and end the old control.
    Relieve,
    /// Let the new control go.
    Commit,
    /// All is done.
    Finish,
    /// End what was started: nothing has been replaced.
    Abort,
    /// Kill the new dataplane and let the old one go that stands by.
    RollBack,
    /// All is as it was.
    Restored,
}

impl Stage {
    /// Every one, in order.
    pub const ALL: [Self; 8] = [
        Self::Asking,
        Self::Staging,
        Self::Readying,
        Self::Switching,
        Self::Trial,
        Self::Relieving,
        Self::TakingOver,
        Self::RollingBack,
    ];

    /// How long it may take.
    pub fn limit(self) -> Duration {
        Duration::from_secs(match self {
            // A first list of a large cluster, its compilation and its proof.
            Self::Staging => 300,
            Self::Trial => 1,
            Self::Readying | Self::TakingOver => 30,
            Self::Asking | Self::Switching | Self::Relieving | Self::RollingBack => 10,
        })
    }

    /// What happens, for a person.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Asking => "asking the program what it is",
            Self::Staging => "the new control reads the policies, compiles and proves them",
            Self::Readying => "the new dataplane tries the new snapshot",
            Self::Switching => "the dataplane is replaced",
            Self::Trial => "the new dataplane decides, on trial",
            Self::Relieving => "the old control ends",
            Self::TakingOver => "the new control takes over",
            Self::RollingBack => "the old dataplane comes back",
        }
    }
}

/// The whole order of things: what an event in a stage leads to, and what is to be done. None: the upgrade is over.
pub fn next(stage: Stage, event: Event) -> (Option<Stage>, Action) {
    use Event::{Answered, ControlFailed, Failed, InCharge, Late, Ready, Receiving, Relieved};
    use Stage::{Asking, Readying, Relieving, RollingBack, Staging, Switching, TakingOver, Trial};
    match (stage, event) {
        (Asking, Answered) => (Some(Staging), Action::StageControl),
        (Staging, Event::Staged) => (Some(Readying), Action::ReadyDataplane),
        (Readying, Ready) => (Some(Switching), Action::Switch),
        (Switching, Receiving) => (Some(Trial), Action::Try),
        (Trial, Late) => (Some(Relieving), Action::Relieve),
        // One that does not end is killed by then.
        (Relieving, Relieved | Late) => (Some(TakingOver), Action::Commit),
        // There is no way back any more: whoever dies is started again in the new version.
        (TakingOver, InCharge | Late) => (None, Action::Finish),
        (RollingBack, Receiving | Late) => (None, Action::Restored),
        (Asking | Staging | Readying, ControlFailed | Failed | Late) => (None, Action::Abort),
        (Switching | Trial, ControlFailed | Failed) | (Switching, Late) => {
            (Some(RollingBack), Action::RollBack)
        }
        (
            stage,
            Answered | Event::Staged | Ready | Receiving | Relieved | InCharge | ControlFailed | Failed,
        ) => (Some(stage), Action::Wait),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENTS: [Event; 9] = [
        Event::Answered,
        Event::Staged,
        Event::Ready,
        Event::Receiving,
        Event::Relieved,
        Event::InCharge,
        Event::ControlFailed,
        Event::Failed,
        Event::Late,
    ];

    #[test]
    fn the_whole_table() {
        let mut table = String::new();
        for stage in Stage::ALL {
            for event in EVENTS {
                let (then, action) = next(stage, event);
                if action != Action::Wait {
                    let then = then.map_or("over".to_owned(), |stage| format!("{stage:?}"));
                    table += &format!("{stage:?} + {event:?}: {action:?}, {then}\n");
                }
            }
        }
        insta::assert_snapshot!(table, @r"
        Asking + Answered: StageControl, Staging
        Asking + ControlFailed: Abort, over
        Asking + Failed: Abort, over
        Asking + Late: Abort, over
        Staging + Staged: ReadyDataplane, Readying
        Staging + ControlFailed: Abort, over
        Staging + Failed: Abort, over
        Staging + Late: Abort, over
        Readying + Ready: Switch, Switching
        Readying + ControlFailed: Abort, over
        Readying + Failed: Abort, over
        Readying + Late: Abort, over
        Switching + Receiving: Try, Trial
        Switching + ControlFailed: RollBack, RollingBack
        Switching + Failed: RollBack, RollingBack
        Switching + Late: RollBack, RollingBack
        Trial + ControlFailed: RollBack, RollingBack
        Trial + Failed: RollBack, RollingBack
        Trial + Late: Relieve, Relieving
        Relieving + Relieved: Commit, TakingOver
        Relieving + Late: Commit, TakingOver
        TakingOver + InCharge: Finish, over
        TakingOver + Late: Finish, over
        RollingBack + Receiving: Restored, over
        RollingBack + Late: Restored, over
        ");
    }

    #[test]
    fn whatever_happens_it_ends_and_nothing_is_replaced_before_both_are_ready() {
        // Every stage ends by its limit alone, at the latest.
        for mut stage in Stage::ALL {
            for step in 0.. {
                assert!(step < 10, "{stage:?}");
                match next(stage, Event::Late).0 {
                    Some(then) => {
                        assert_ne!(then, stage);
                        stage = then;
                    }
                    None => break,
                }
            }
        }
        for stage in Stage::ALL {
            for event in EVENTS {
                let (_, action) = next(stage, event);
                assert_eq!(
                    action == Action::Switch,
                    (stage, event) == (Stage::Readying, Event::Ready)
                );
                assert_eq!(
                    action == Action::Relieve,
                    (stage, event) == (Stage::Trial, Event::Late)
                );
            }
        }
    }
}
