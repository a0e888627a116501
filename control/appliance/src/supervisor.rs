//! `ringwall run`: starts the dataplane and the control process, keeps both alive, ends both.
//!
//! The supervisor holds no port and no policy. What it does fits on one screen: [`Supervisor::turn`]. Upgrades have a file of
//! their own ([`upgrading`]).

mod upgrading;

use std::{
    fs::File,
    io::{self, IsTerminal, Write},
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use ringwall_messages::{
    CONTROL_SOCKET, ChildReport, DATAPLANE_SOCKET, DataplaneStatus, RELEASE, REPORT_INTERVAL,
    SUPERVISION_FILE, Supervision,
};
use ringwall_process::log;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::FlockOperation,
    process::Signal,
};

use self::upgrading::{EndingChild, Upgrade};
use super::{
    about::About,
    changes,
    children::{Backoff, Child, LaunchSpec, MAX_REPORTS_PER_TURN, Program, Role, describe},
    dataplane::revert_mount,
    expedited::Expedited,
    flow_table,
    plan::Plan,
    stop_signal::StopSignal,
    upgrade::requests::Requests,
};

/// Arguments of `ringwall run`.
#[derive(Clone, Debug, clap::Args)]
pub struct RunArgs {
    /// Configuration file
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Take policies from this folder of manifests, whatever the configuration says
    #[arg(long, value_name = "DIR", conflicts_with = "kubeconfig")]
    pub manifests: Option<PathBuf>,
    /// Take policies from the API server of this kubeconfig, whatever the configuration says
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
}

/// How long a process may take to end when it is asked to.
const GRACE: Duration = Duration::from_secs(5);
/// How long grace periods are short after a dataplane began to die: more than a replacement takes.
const SHORT_GRACE_PERIOD: Duration = Duration::from_millis(500);
/// How long after a dataplane went its successor is started, to stand by: the replacement is over by then.
const STANDBY_DELAY: Duration = SHORT_GRACE_PERIOD;
/// How often it is looked at first whether the processes are ready and policies in force: the longer that takes, the less
/// often, at most once in [`READY_LOOK_MOST`].
const READY_CHECK: Duration = Duration::from_millis(10);
const MAX_READY_CHECK: Duration = Duration::from_secs(2);
/// How long the dataplane may take to answer; meanwhile nothing else is looked after.
const ANSWER: Duration = Duration::from_millis(300);
/// How long control has, at the first start, to refuse its configuration before ports are touched.
const CONTROL_HEAD_START: Duration = Duration::from_secs(5);
/// After so long without a word a process that used to say that it is alive is killed: before systemd would end all of them.
const SILENCE_LIMIT: Duration = Duration::from_secs(20);
/// A turn that takes longer, with its wait of a second, was not one: the process was stopped.
const MAX_TURN: Duration = Duration::from_secs(3);
/// Between two signs of life to systemd.
const ALIVE: Duration = Duration::from_secs(5);

/// Runs until SIGTERM or SIGINT. Status 2 where nothing was started because of bad configuration or a missing
/// interface, CPU or capability.
pub fn run(args: &RunArgs) -> anyhow::Result<ExitCode> {
    ringwall_process::log::start();
    let config = super::load_config(&args.config)?;
    // The dataplane makes the same plan again. Made here first, it refuses before anything is changed.
    let plan = Plan::make(&config)?;
    let runtime = plan.runtime_dir.clone();
    super::make_private_dir(&runtime)?;
    let _lock = lock(&runtime)?;
    changes::may_start_here(&plan.state_dir)?;
    let stop = StopSignal::catch().context("cannot catch signals")?;
    Expedited::clear();
    let mut supervisor = Supervisor::new(args, plan)?;
    supervisor.start()?;
    while supervisor.turn(&stop)? {}
    Ok(supervisor.end())
}

/// The lock that keeps two instances of one name apart; held as long as the file is open.
fn lock(runtime: &Path) -> anyhow::Result<File> {
    let path = runtime.join("run.lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let holder = std::fs::read_to_string(&path).unwrap_or_default();
            bail!(
                "another `ringwall run` (process {}) holds {}: stop it first, or give this one another `name`",
                holder.trim(),
                path.display()
            );
        }
        Err(error) => return Err(error).with_context(|| format!("cannot lock {}", path.display())),
    }
    file.set_len(0)
        .and_then(|()| writeln!(&file, "{}", std::process::id()))
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(file)
}

/// One of the two, running or waiting to be started again.
struct ProcessSlot {
    recipe: LaunchSpec,
    child: Option<Child>,
    /// One that is dying while its successor begins.
    dying: Option<Child>,
    /// So that it is gone soon, and its successor's sockets bound; since when.
    expedited: Option<(Expedited, Instant)>,
    backoff: Backoff,
    due: Option<Instant>,
    /// Whether it has ever said that it is ready: until then, exit status 2 is the user's to mend.
    was_ready: bool,
}

/// The next dataplane, started and not told to go. It has its packet memory and nothing of the machine.
#[derive(Default)]
struct Standby {
    child: Option<Child>,
    backoff: Backoff,
    due: Option<Instant>,
}

struct Supervisor {
    plan: Plan,
    posts: [ProcessSlot; 2],
    standby: Standby,
    /// Who wants an upgrade.
    requests: Requests,
    upgrade: Option<Upgrade>,
    /// Children that were told to end, and whose end is no news.
    relieved: Vec<EndingChild>,
    /// What the program is that processes are started from.
    about: About,
    record: Supervision,
    announced: bool,
    in_force: bool,
    stopping: Option<Instant>,
    outcome: ExitCode,
    last_alive: Instant,
    /// When the last turn was.
    turned: Instant,
    /// When a process was started last, and when it is looked next how far they are.
    started: Instant,
    next_look: Instant,
}

impl Supervisor {
    fn new(args: &RunArgs, plan: Plan) -> anyhow::Result<Self> {
        // Held open, so that a crash after its file was replaced starts no other.
        let program = Program::running().context("cannot open the running program")?;
        let config = std::path::absolute(&args.config)?;
        let requests = Requests::listen(&plan.runtime_dir)?;
        let post = |role: Role| {
            let mut arguments = vec![role.name().into(), "--config".into(), config.clone().into()];
            if let Some(folder) = &args.manifests {
                arguments.extend(["--manifests".into(), folder.clone().into()]);
            }
            if let Some(file) = &args.kubeconfig {
                arguments.extend(["--kubeconfig".into(), file.clone().into()]);
            }
            arguments.push("--supervised".into());
            ProcessSlot {
                recipe: LaunchSpec {
                    role,
                    program: program.clone(),
                    arguments,
                },
                child: None,
                dying: None,
                expedited: None,
                backoff: Backoff::default(),
                due: None,
                was_ready: false,
            }
        };
        Ok(Self {
            plan,
            posts: Role::ALL.map(post),
            standby: Standby::default(),
            requests,
            upgrade: None,
            relieved: Vec::new(),
            about: About::this(),
            record: Supervision {
                version: RELEASE.to_owned(),
                ..Supervision::default()
            },
            announced: false,
            in_force: false,
            stopping: None,
            outcome: ExitCode::SUCCESS,
            last_alive: Instant::now(),
            turned: Instant::now(),
            started: Instant::now(),
            next_look: Instant::now(),
        })
    }

    fn post(&mut self, role: Role) -> &mut ProcessSlot {
        &mut self.posts[role as usize]
    }

    /// First control, so that it can refuse a kubeconfig or manifests before any port is touched; then the dataplane.
    fn start(&mut self) -> anyhow::Result<()> {
        self.write_record();
        self.forget_other_flow_tables();
        let now = Instant::now();
        self.post(Role::Control).due = Some(now);
        self.post(Role::Dataplane).due = Some(now + CONTROL_HEAD_START);
        Ok(())
    }

    /// Frees the memory of flow tables that only another version could read.
    fn forget_other_flow_tables(&self) {
        let kept = Some(self.about.flows);
        if let Err(error) = flow_table::remove_all_but(&self.plan.runtime_dir, kept) {
            tracing::warn!("{error:#}");
        }
    }

    /// One turn: start what is due, wait for an event, take it in. False when both have ended.
    fn turn(&mut self, stop: &StopSignal) -> anyhow::Result<bool> {
        self.start_due();
        self.keep_standby()?;
        self.wait(stop)?;
        if stop.is_set() {
            self.begin_stop(Signal::TERM);
        }
        if stop.hung_up() {
            tracing::info!(
                "SIGHUP ignored: restart to load another configuration, use `ringwall upgrade` to change the program"
            );
        }
        self.collect_ended()?;
        let heard = self.take_reports();
        self.kill_silent();
        self.collect_relieved()?;
        self.step_upgrade(&heard)?;
        for post in &mut self.posts {
            post.expedited
                .take_if(|(_, since)| since.elapsed() >= SHORT_GRACE_PERIOD);
        }
        self.check_readiness();
        self.tell_systemd();
        if let Some(since) = self.stopping {
            if since.elapsed() > GRACE {
                for child in self
                    .posts
                    .iter()
                    .flat_map(|post| post.child.iter().chain(&post.dying))
                {
                    child.signal(Signal::KILL);
                }
            }
            return Ok(self
                .posts
                .iter()
                .any(|post| post.child.is_some() || post.dying.is_some())
                || !self.relieved.is_empty());
        }
        Ok(true)
    }

    fn start_due(&mut self) {
        if self.stopping.is_some() {
            return;
        }
        for post in &mut self.posts {
            if post.child.is_some() || post.due.is_none_or(|due| due > Instant::now()) {
                continue;
            }
            let standby = match post.recipe.role {
                Role::Dataplane => self.standby.child.take(),
                Role::Control => None,
            };
            match standby.map_or_else(|| Child::start(&post.recipe), Ok) {
                Ok(mut child) => {
                    if post.recipe.role == Role::Dataplane {
                        if let Some(upgrade) = &self.upgrade {
                            upgrade.hand_snapshot(&child);
                        }
                        child.go(false);
                        self.standby.due = Some(Instant::now() + STANDBY_DELAY);
                        self.record.dataplane_standby = None;
                    }
                    tracing::info!(process = post.recipe.role.name(), pid = child.pid(), "started");
                    post.child = Some(child);
                    post.due = None;
                    self.started = Instant::now();
                    self.next_look = self.started;
                }
                Err(error) => {
                    tracing::error!(process = post.recipe.role.name(), %error, "cannot be started");
                    post.due = Some(Instant::now() + post.backoff.after(Duration::ZERO));
                }
            }
        }
    }

    /// Has the next dataplane stand by, once the first has shown that there can be one.
    fn keep_standby(&mut self) -> anyhow::Result<()> {
        let (post, standby) = (&self.posts[Role::Dataplane as usize], &mut self.standby);
        if let Some(child) = &mut standby.child
            && let Some(status) = child.ended()?
        {
            let wait = standby.backoff.after(child.lived());
            tracing::warn!(how = describe(status), "the standby dataplane exited");
            standby.child = None;
            standby.due = Some(Instant::now() + wait);
        }
        let due = standby.due.is_some_and(|due| due <= Instant::now());
        if self.stopping.is_none() && post.was_ready && due {
            match Child::start(&post.recipe) {
                Ok(child) => {
                    standby.child = Some(child);
                    standby.due = None;
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot start a standby dataplane");
                    standby.due = Some(Instant::now() + standby.backoff.after(Duration::ZERO));
                }
            }
        }
        let pid = standby.child.as_ref().map(Child::pid);
        if self.record.dataplane_standby != pid {
            self.record.dataplane_standby = pid;
            self.write_record();
        }
        Ok(())
    }

    fn wait(&self, stop: &StopSignal) -> anyhow::Result<()> {
        let now = Instant::now();
        let mut timeout = Duration::from_secs(1);
        if !self.is_settled() {
            timeout = timeout.min(self.next_look.saturating_duration_since(now));
        }
        let standby = self.standby.due;
        for due in self.posts.iter().filter_map(|post| post.due).chain(standby) {
            timeout = timeout.min(due.saturating_duration_since(now));
        }
        for (_, since) in self.posts.iter().filter_map(|post| post.expedited.as_ref()) {
            timeout = timeout.min(SHORT_GRACE_PERIOD.saturating_sub(since.elapsed()));
        }
        if self.stopping.is_some() {
            timeout = Duration::from_millis(50);
        }
        let mut fds = vec![PollFd::new(stop, PollFlags::IN)];
        if let Some(child) = &self.standby.child {
            fds.push(PollFd::from_borrowed_fd(child.as_fd(), PollFlags::IN));
        }
        for post in &self.posts {
            for child in post.child.iter().chain(&post.dying) {
                fds.push(PollFd::from_borrowed_fd(child.as_fd(), PollFlags::IN));
            }
            let line = match (&post.child, post.recipe.role) {
                (Some(child), Role::Dataplane) if post.was_ready => Some(child.line()), // its end is acted upon at once
                (Some(child), Role::Control) if post.was_ready => child.open_line(),
                _ => None,
            };
            fds.extend(line.map(|line| PollFd::from_borrowed_fd(line, PollFlags::IN)));
        }
        if let Some(upgrade) = &self.upgrade {
            timeout = timeout.min(upgrade.left());
            fds.extend(
                upgrade
                    .fds()
                    .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)),
            );
        }
        for relieved in &self.relieved {
            timeout = timeout.min(relieved.left());
            fds.push(PollFd::from_borrowed_fd(relieved.as_fd(), PollFlags::IN));
        }
        let asking = self.requests.fds();
        fds.extend(asking.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        let timespec = Timespec {
            tv_sec: timeout.as_secs() as i64,
            tv_nsec: i64::from(timeout.subsec_nanos()),
        };
        match poll(&mut fds, Some(&timespec)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error).context("cannot wait for the processes"),
        }
    }

    /// What the processes have said, each with its process id.
    fn take_reports(&mut self) -> Vec<(u32, ChildReport)> {
        let mut reports = Vec::new();
        for child in self.posts.iter_mut().filter_map(|post| post.child.as_mut()) {
            let pid = child.pid();
            let messages = std::iter::from_fn(|| child.report()).take(MAX_REPORTS_PER_TURN);
            reports.extend(messages.map(|received| (pid, received.message)));
        }
        reports
    }

    /// Kills what has fallen silent, as a process that is stopped does: it is started again, and systemd need not end all of
    /// them. While all were stopped, this process too, nobody could say anything.
    fn kill_silent(&mut self) {
        let gap = self.turned.elapsed();
        self.turned = Instant::now();
        for post in &mut self.posts {
            let Some(child) = &mut post.child else { continue };
            if gap > MAX_TURN {
                child.extend_silence(gap);
            }
            if let Some(silence) = child.silence().filter(|silence| *silence >= SILENCE_LIMIT) {
                tracing::error!(
                    process = post.recipe.role.name(),
                    pid = child.pid(),
                    seconds = silence.as_secs(),
                    "the process does not respond: killing it"
                );
                child.signal(Signal::KILL);
                child.expect_nothing();
            }
        }
    }

    fn collect_ended(&mut self) -> anyhow::Result<()> {
        for role in Role::ALL {
            let stopping = self.stopping.is_some();
            let post = self.post(role);
            let mut how = None;
            if let Some(dying) = &mut post.dying
                && let Some(status) = dying.ended()?
            {
                how = Some(describe(status));
                post.dying = None;
            }
            if let Some(how) = how {
                self.note_end(role, how);
            }
            let post = self.post(role);
            let Some(child) = &mut post.child else { continue };
            let lived = child.lived();
            let Some(status) = child.ended()? else {
                // What was ready once is started again whatever its exit status: no need to wait for that.
                if role == Role::Dataplane
                    && post.was_ready
                    && !stopping
                    && post.dying.is_none()
                    && child.is_dying()
                {
                    post.expedited = Expedited::begin().map(|expedited| (expedited, Instant::now()));
                    post.dying = post.child.take();
                    self.start_again(role, lived);
                }
                continue;
            };
            post.child = None;
            if stopping {
                continue;
            }
            if status.code() == Some(2) && !post.was_ready {
                // It has said why itself.
                self.outcome = ExitCode::from(2);
                self.begin_stop(Signal::TERM);
                continue;
            }
            self.start_again(role, lived);
            self.note_end(role, describe(status));
        }
        Ok(())
    }

    fn start_again(&mut self, role: Role, lived: Duration) {
        let post = self.post(role);
        let wait = post.backoff.after(lived);
        post.due = Some(Instant::now() + wait);
        match role {
            Role::Dataplane => self.record.dataplane_restarts += 1,
            Role::Control => self.record.control_restarts += 1,
        }
        tracing::warn!(
            process = role.name(),
            lived_seconds = lived.as_secs_f64(),
            wait_milliseconds = wait.as_millis() as u64,
            "exited; restarting it"
        );
        self.start_due();
        self.write_record();
    }

    fn note_end(&mut self, role: Role, how: String) {
        tracing::warn!(process = role.name(), how, "the process exited");
        match role {
            Role::Dataplane => self.record.dataplane_last_exit = Some(how),
            Role::Control => self.record.control_last_exit = Some(how),
        }
        self.write_record();
    }

    fn begin_stop(&mut self, signal: Signal) {
        if self.stopping.is_none() {
            let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
            self.stopping = Some(Instant::now());
        }
        for post in &self.posts {
            if let Some(child) = &post.child {
                child.signal(signal);
            }
        }
        self.standby = Standby::default();
        self.stop_upgrade();
    }

    /// Whether the first policies are in force.
    fn is_settled(&self) -> bool {
        self.announced && self.in_force
    }

    /// Until the first policies are in force, looks how far the processes are and tells the user.
    fn check_readiness(&mut self) {
        if self.stopping.is_some() || self.is_settled() || Instant::now() < self.next_look {
            return;
        }
        self.next_look = Instant::now() + look_after(self.started.elapsed());
        let runtime = self.plan.runtime_dir.clone();
        let control = self.post(Role::Control);
        if !control.was_ready && control.child.is_some() && runtime.join(CONTROL_SOCKET).exists() {
            control.was_ready = true;
        }
        let go = control.was_ready;
        let dataplane = self.post(Role::Dataplane);
        if go && !dataplane.was_ready && dataplane.child.is_none() {
            dataplane.due = dataplane.due.map(|due| due.min(Instant::now()));
        }
        if dataplane.child.is_none() {
            return;
        }
        let Ok(status) = ringwall_messages::client::ask_dataplane(&runtime.join(DATAPLANE_SOCKET), ANSWER)
        else {
            return;
        };
        self.post(Role::Dataplane).was_ready = true;
        if !self.announced {
            self.announced = true;
            let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
            let _ = self.say(&status);
        }
        let generation = status.snapshot.generation;
        if !self.in_force && generation > 0 && status.workers.iter().all(|w| w.generation == generation) {
            self.in_force = true;
            if log::is_json() {
                tracing::info!(generation, "policies in force");
            } else {
                println!("policies in force: generation {generation}");
            }
        }
    }

    /// What runs, for the person who started it.
    fn say(&self, status: &DataplaneStatus) -> io::Result<()> {
        if log::is_json() {
            let ports: Vec<&str> = status.ports.iter().map(|port| port.name.as_str()).collect();
            tracing::info!(
                name = self.plan.name,
                mode = self.plan.describe_mode(),
                workers = status.workers.len(),
                ports = ports.join(" "),
                "running"
            );
            for alarm in &status.alarms {
                tracing::warn!("{alarm}");
            }
            return Ok(());
        }
        let mut out = io::stdout().lock();
        let bold = |text: &str| {
            if io::stdout().is_terminal() {
                format!("\x1b[1m{text}\x1b[0m")
            } else {
                text.to_owned()
            }
        };
        let cpus: Vec<String> = status
            .workers
            .iter()
            .map(|w| w.cpu.map_or("unpinned".to_owned(), |cpu| cpu.to_string()))
            .collect();
        writeln!(
            out,
            "{} {}: {}, {} worker{} on CPU {}",
            bold("ringwall"),
            self.plan.name,
            self.plan.describe_mode(),
            cpus.len(),
            if cpus.len() == 1 { "" } else { "s" },
            cpus.join(", ")
        )?;
        for port in &status.ports {
            writeln!(
                out,
                "  {:<15} {:<7} side {:<8} {} XDP, {}, {} queue{}, MTU {}",
                port.name,
                port.kind,
                port.side,
                port.xdp,
                if port.zero_copy { "zero-copy" } else { "copy" },
                port.queues,
                if port.queues == 1 { "" } else { "s" },
                port.mtu
            )?;
        }
        for alarm in &status.alarms {
            writeln!(out, "  alarm: {alarm}")?;
        }
        out.flush()
    }

    /// Says that all is alive, unless a process that should say so does not.
    fn tell_systemd(&mut self) {
        let children = self.posts.iter().filter_map(|post| post.child.as_ref());
        let silent = children
            .filter_map(Child::silence)
            .any(|silence| silence > REPORT_INTERVAL * 2);
        if self.announced && !silent && self.stopping.is_none() && self.last_alive.elapsed() >= ALIVE {
            self.last_alive = Instant::now();
            let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
        }
    }

    fn write_record(&self) {
        let path = self.plan.runtime_dir.join(SUPERVISION_FILE);
        let written = serde_json::to_vec(&self.record)
            .map_err(io::Error::from)
            .and_then(|text| super::write_atomically(&path, &text));
        if let Err(error) = written {
            tracing::warn!(path = %path.display(), %error, "cannot write the restart counters");
        }
    }

    fn end(self) -> ExitCode {
        let _ = std::fs::remove_file(self.plan.runtime_dir.join(SUPERVISION_FILE));
        if !self.announced
            && ringwall_bpf::pinned_ports(&self.plan.pins).is_empty()
            && let Err(error) = revert_mount(&self.plan.state_dir)
        {
            tracing::warn!("{error:#}");
        }
        if self.announced {
            if log::is_json() {
                tracing::info!("stopped; {}", ringwall_bpf::DETACH_HINT);
            } else {
                println!("stopped; {}", ringwall_bpf::DETACH_HINT);
            }
        }
        self.outcome
    }
}

/// How long until it is looked again how far the processes are, so long after the last was started: soon at first, as most
/// starts take a fraction of a second; a start may also wait for an API server for ever.
fn look_after(started: Duration) -> Duration {
    (started / 8).clamp(READY_CHECK, MAX_READY_CHECK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_that_takes_long_is_looked_at_less_and_less_often() {
        let (mut elapsed, mut looks) = (Duration::ZERO, 0);
        while elapsed < Duration::from_secs(3600) {
            elapsed += look_after(elapsed);
            looks += 1;
        }
        assert!(looks < 1900, "{looks} in an hour");
        assert_eq!(look_after(Duration::from_millis(80)), READY_CHECK);
    }
}
