//! The real `ringwall run`, started inside the gateway.

use std::{
    fmt::Write as _,
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

pub use nix::sys::signal::Signal;
use nix::{sys::signal::kill, unistd::Pid};
use serde_json::Value;

use crate::{
    BedError, Result, manifests,
    topology::{Bed, POD_CIDR, POD_CIDR_V6, Role},
};

/// Name of the installation, and of the kernel's end of its host port.
pub const NAME: &str = "rwbed";
/// The judged end of the host port.
pub const HOST_PORT: &str = "rwhost";
/// How long a test waits for what should happen. An emulated processor takes half a minute to start what takes a second here.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// What a bed's firewall is to be like.
#[derive(Clone, Debug)]
pub struct Options {
    /// `closed` or `open`.
    pub fail_mode: &'static str,
    /// `enforce` or `audit`.
    pub mode: &'static str,
    /// Number of workers.
    pub workers: u16,
    /// Whether there is a port to the host's kernel (routed role).
    pub host_port: bool,
    /// Whose addresses are on the outer end of a wire; `any` is taken with `antiSpoofing: off`.
    pub outer_side: &'static str,
    /// Policy source: None for the bed's folder, else the lines of `source`.
    pub source: Option<String>,
    /// Lines of `cluster`, each indented, besides its networks.
    pub cluster: String,
    /// More lines of the configuration.
    pub more: String,
    /// `RUST_LOG`, where it is not the test's own.
    pub log: Option<&'static str>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            fail_mode: "closed",
            mode: "enforce",
            workers: 1,
            host_port: true,
            outer_side: "any",
            source: None,
            cluster: String::new(),
            more: String::new(),
            log: None,
        }
    }
}

/// A running firewall. Stopped when dropped; what it leaves pinned goes with the bed.
#[derive(Debug)]
pub struct Appliance {
    /// Its configuration file.
    pub config: PathBuf,
    binary: PathBuf,
    control_socket: PathBuf,
    gateway: Arc<crate::netns::Netns>,
    manifests: PathBuf,
    staged: PathBuf,
    child: Child,
    log: Arc<Mutex<String>>,
}

/// A change that every worker decides by.
#[derive(Clone, Copy, Debug)]
pub struct Adoption {
    /// The generation.
    pub generation: u64,
    /// From the change of the folder to the last worker, as control measured it.
    pub event_to_adopted: Option<Duration>,
    /// From before the change was written until it was seen to be adopted, polling included.
    pub seen: Duration,
}

/// The `ringwall` binary beside the running test: `target/PROFILE/ringwall` for `target/PROFILE/deps/TEST`.
///
/// # Errors
/// It has not been built.
pub fn built_binary() -> Result<PathBuf> {
    built("ringwall", "cargo build -p ringwall")
}

/// The same program with the numbers of another version.
///
/// # Errors
/// It has not been built.
pub fn built_neighbour() -> Result<PathBuf> {
    built(
        "ringwall-neighbour",
        "cargo build -p ringwall --features neighbour --bin ringwall-neighbour",
    )
}

fn built(name: &str, command: &str) -> Result<PathBuf> {
    let test =
        std::env::current_exe().map_err(|error| BedError::new("cannot find the running program", error))?;
    let binary = test
        .ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join(name))
        .find(|file| file.is_file());
    binary.ok_or_else(|| {
        BedError::other(
            format!("no `{name}` beside {}", test.display()),
            format!("build it with the same profile first: {command}"),
        )
    })
}

impl Bed {
    /// The configuration of a firewall on this bed.
    pub fn configuration(&self, options: &Options) -> String {
        let mut text = format!(
            "apiVersion: ringwall.io/v1alpha1\nkind: {kind}\nname: {NAME}\nmode: {mode}\n\
             cluster:\n  podCIDRs: [{POD_CIDR}, \"{POD_CIDR_V6}\"]\n  serviceCIDRs: [10.112.0.0/16]\n{cluster}\
             source: {source}\nworkers: {{cpus: auto, count: {workers}, idlePolicy: adaptive}}\n\
             runtimeDir: {folder}/run\nstateDir: {folder}/state\nbpffs: {folder}/bpf\nfailMode: {fail_mode}\n\
             telemetry: {{metricsListen: \"127.0.0.1:9469\"}}\n{more}",
            kind = if self.role.is_node() { "Node" } else { "Gateway" },
            mode = options.mode,
            source = options
                .source
                .clone()
                .unwrap_or_else(|| format!("{{manifests: {}}}", self.manifests().display())),
            workers = options.workers,
            folder = self.folder().display(),
            fail_mode = options.fail_mode,
            cluster = options.cluster,
            more = options.more,
        );
        // Writing into a String cannot fail.
        match self.role {
            Role::Node | Role::Bridge => {}
            Role::Routed => {
                text.push_str("interfaces:\n");
                for pod in &self.pods {
                    let kind = if pod.node { "uplink, side: nodes" } else { "pod" };
                    let _ = writeln!(text, "  - {{name: {}, kind: {kind}}}", pod.port);
                }
                let _ = writeln!(text, "  - {{name: uplink, kind: uplink, side: outside}}");
                if options.host_port {
                    let _ = writeln!(text, "  - {{name: {HOST_PORT}, kind: host}}");
                }
            }
            Role::Wire => {
                let side = options.outer_side;
                let _ = writeln!(
                    text,
                    "interfaces:\n  - {{name: in, side: inside}}\n  - {{name: out, side: {side}}}"
                );
                if side == "any" {
                    text.push_str("antiSpoofing: off\n");
                }
                text.push_str("wires:\n");
                text.push_str("  - {name: w0, interfaces: [in, out]}\n");
            }
        }
        text
    }
}

impl Appliance {
    /// Writes the configuration and the first manifests, starts `ringwall run` and waits until it decides by them.
    ///
    /// # Errors
    /// It ends, or is not ready in time; its last words are in the error.
    pub fn start(bed: &Bed, binary: &Path, options: &Options, objects: &[Value]) -> Result<Self> {
        let appliance = Self::launch(bed, binary, options, objects)?;
        appliance.wait_until("it is ready", |status| settled(status).is_some())?;
        Ok(appliance)
    }

    /// As [`Self::start`], without waiting.
    ///
    /// # Errors
    /// Files cannot be written, or the program cannot be started.
    pub fn launch(bed: &Bed, binary: &Path, options: &Options, objects: &[Value]) -> Result<Self> {
        let config = bed.folder().join("ringwall.yaml");
        let write = |file: &Path, text: &str| {
            fs::write(file, text)
                .map_err(|error| BedError::new(format!("cannot write {}", file.display()), error))
        };
        write(&config, &bed.configuration(options))?;
        if !objects.is_empty() {
            write(&bed.manifests().join("bed.yaml"), &manifests::file(objects))?;
        }
        Self::launch_logging(bed, binary, &config, options.log)
    }

    /// As [`Self::launch`], with a configuration file that is there.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn launch_with(bed: &Bed, binary: &Path, config: &Path) -> Result<Self> {
        Self::launch_logging(bed, binary, config, None)
    }

    fn launch_logging(bed: &Bed, binary: &Path, config: &Path, log: Option<&str>) -> Result<Self> {
        let mut command = Command::new(binary);
        command
            .arg("run")
            .arg("--config")
            .arg(config)
            .env("NO_COLOR", "1");
        if let Some(level) = log {
            command.env("RUST_LOG", level);
        }
        let mut child = bed.gateway.spawn(command)?;
        let log = Arc::new(Mutex::new(String::new()));
        let streams = [
            child
                .stdout
                .take()
                .map(|stream| Box::new(stream) as Box<dyn Read + Send>),
            child
                .stderr
                .take()
                .map(|stream| Box::new(stream) as Box<dyn Read + Send>),
        ];
        for stream in streams.into_iter().flatten() {
            let log = log.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(io::Result::ok) {
                    if let Ok(mut log) = log.lock() {
                        log.push_str(&line);
                        log.push('\n');
                    }
                }
            });
        }
        Ok(Self {
            config: config.to_owned(),
            binary: binary.to_owned(),
            control_socket: bed.folder().join("run/control.sock"),
            gateway: bed.gateway.clone(),
            manifests: bed.manifests(),
            staged: bed.folder().join("staged.yaml"),
            child,
            log,
        })
    }

    /// What it has printed so far.
    pub fn log(&self) -> String {
        self.log.lock().map(|log| log.clone()).unwrap_or_default()
    }

    /// What `ringwall status -o json` says; asked over control's socket where that answers.
    ///
    /// # Errors
    /// Nothing answers.
    pub fn status(&self) -> Result<Value> {
        // Control may be up and its line to the dataplane not yet; the command then asks both.
        if let Ok(status) = ask(&self.control_socket)
            && !status["dataplane"].is_null()
        {
            return Ok(status);
        }
        let output = self.ringwall(&["status", "--config", &self.config.to_string_lossy(), "-o", "json"])?;
        serde_json::from_slice(&output.stdout).map_err(|_| {
            BedError::other(
                "ringwall status",
                String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            )
        })
    }

    /// Runs the binary inside the gateway to its end.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn ringwall(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new(&self.binary);
        command.args(arguments).env("NO_COLOR", "1");
        self.gateway.output(command)
    }

    /// Runs any program inside the gateway to its end.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn run_inside(&self, program: &Path, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new(program);
        command.args(arguments).env("NO_COLOR", "1");
        self.gateway.output(command)
    }

    /// Starts the binary inside the gateway, with its output to be read.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn begin(&self, arguments: &[&str]) -> Result<Child> {
        let mut command = Command::new(&self.binary);
        command.args(arguments).env("NO_COLOR", "1");
        self.gateway.spawn(command)
    }

    /// Waits until the status satisfies a condition and answers it.
    ///
    /// # Errors
    /// It does not in [`PATIENCE`], or the program has ended; status and last words are in the error.
    pub fn wait_until(&self, what: &str, condition: impl Fn(&Value) -> bool) -> Result<Value> {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.status() {
                Ok(status) if condition(&status) => return Ok(status),
                _ => {}
            }
            let gone = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).map_or(true, |stat| {
                stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z'))
            });
            if gone || Instant::now() > end {
                let how = if gone {
                    "`ringwall run` has ended"
                } else {
                    "it takes too long"
                };
                let status = self.ringwall(&["status", "--config", &self.config.to_string_lossy()])?;
                return Err(BedError::other(
                    format!("waiting until {what}: {how}"),
                    format!(
                        "{}\nits words:\n{}",
                        String::from_utf8_lossy(&status.stdout),
                        self.log()
                    ),
                ));
            }
            std::thread::sleep(Duration::from_millis(3));
        }
    }

    /// Replaces the bed's manifests in one step, without waiting.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, objects: &[Value]) -> Result<()> {
        self.write_text(&manifests::file(objects))
    }

    fn write_text(&self, text: &str) -> Result<()> {
        let file = self.manifests.join("bed.yaml");
        fs::write(&self.staged, text)
            .and_then(|()| fs::rename(&self.staged, &file))
            .map_err(|error| BedError::new(format!("cannot write {}", file.display()), error))
    }

    /// Replaces the bed's manifests in one step and waits until every worker decides by them. Where the firewall
    /// holds a change back because much has gone, it is told to accept.
    ///
    /// # Errors
    /// As [`Self::write`] and [`Self::wait_until`].
    pub fn apply(&self, objects: &[Value]) -> Result<Adoption> {
        self.apply_text(&manifests::file(objects))
    }

    /// As [`Self::apply`], with manifests as they are written.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub fn apply_text(&self, text: &str) -> Result<Adoption> {
        if fs::read_to_string(self.manifests.join("bed.yaml")).is_ok_and(|old| old == text) {
            let status = self.wait_until("the policies are in force", |status| settled(status).is_some())?;
            return Ok(Adoption {
                generation: settled(&status).unwrap_or(0),
                event_to_adopted: None,
                seen: Duration::ZERO,
            });
        }
        let compiled = |status: &Value| status["control"]["snapshot"]["compiled"].as_u64().unwrap_or(0);
        let before = compiled(&self.status()?);
        let start = Instant::now();
        self.write_text(text)?;
        let status = self.wait_until("a change is adopted", |status| {
            if !status["control"]["source"]["heldBack"].is_null() {
                // Refusal shows as a timeout with the status in it.
                let _ = post(&self.control_socket, "/v1/accept");
            }
            compiled(status) > before && settled(status).is_some()
        })?;
        Ok(Adoption {
            generation: settled(&status).unwrap_or(0),
            event_to_adopted: status["control"]["publication"]["eventToAdoptedMicros"]
                .as_u64()
                .map(Duration::from_micros),
            seen: start.elapsed(),
        })
    }

    /// Process id of `control` or `dataplane`.
    ///
    /// # Errors
    /// It is not there.
    pub fn pid(&self, process: &str) -> Result<Pid> {
        self.status()?[process]["pid"]
            .as_i64()
            .and_then(|pid| i32::try_from(pid).ok())
            .filter(|pid| *pid > 0)
            .map(Pid::from_raw)
            .ok_or_else(|| BedError::other(format!("the {process} process"), "is away"))
    }

    /// Sends a signal to `control` or `dataplane`.
    ///
    /// # Errors
    /// It is not there.
    pub fn signal(&self, process: &str, signal: Signal) -> Result<Pid> {
        let pid = self.pid(process)?;
        kill(pid, signal).map_err(|error| BedError::new(format!("{signal} to {process}"), error))?;
        Ok(pid)
    }

    /// Stops it as an administrator would, and answers how it ended.
    ///
    /// # Errors
    /// It does not end in time (it is then killed).
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.end(Signal::SIGTERM)
    }

    /// How it ended by itself; None where it still runs after so long.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub fn ended(&mut self, within: Duration) -> Result<Option<ExitStatus>> {
        let end = Instant::now() + within;
        loop {
            let status = self
                .child
                .try_wait()
                .map_err(|error| BedError::new("waiting for `ringwall run`", error))?;
            if status.is_some() || Instant::now() > end {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Process id of `ringwall run` itself.
    pub fn supervisor(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap_or(i32::MAX))
    }

    /// Sends a signal to `ringwall run` itself.
    ///
    /// # Errors
    /// It has ended.
    pub fn signal_supervisor(&self, signal: Signal) -> Result<()> {
        kill(self.supervisor(), signal)
            .map_err(|error| BedError::new(format!("{signal} to `ringwall run`"), error))
    }

    /// Ends it by a signal to the supervisor.
    ///
    /// # Errors
    /// It does not end in time (it is then killed).
    pub fn end(&mut self, signal: Signal) -> Result<ExitStatus> {
        let failed = |error: io::Error| BedError::new("waiting for `ringwall run`", error);
        if let Some(status) = self.child.try_wait().map_err(failed)? {
            return Ok(status);
        }
        let _ = kill(self.supervisor(), signal);
        let end = Instant::now() + Duration::from_secs(8);
        while Instant::now() < end {
            if let Some(status) = self.child.try_wait().map_err(failed)? {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        Err(BedError::other(
            "`ringwall run`",
            format!("did not end on {signal}:\n{}", self.log()),
        ))
    }
}

impl Drop for Appliance {
    fn drop(&mut self) {
        // Errors have no listener here; the kernel ends what is left with the bed.
        let _ = self.stop();
    }
}

/// The generation by which every worker decides, if it is the one that control compiled last from a synced source.
fn settled(status: &Value) -> Option<u64> {
    let generation = status["control"]["snapshot"]["generation"]
        .as_u64()
        .filter(|generation| *generation > 0)?;
    let workers = status["dataplane"]["workers"]
        .as_array()
        .filter(|workers| !workers.is_empty())?;
    let ready = status["control"]["ready"] == true
        && status["control"]["publication"]["adopted"] == generation
        && workers.iter().all(|worker| worker["generation"] == generation);
    ready.then_some(generation)
}

fn ask(socket: &Path) -> io::Result<Value> {
    let answer = http(socket, "GET", "/v1/status")?;
    serde_json::from_str(&answer).map_err(io::Error::other)
}

fn post(socket: &Path, path: &str) -> io::Result<String> {
    http(socket, "POST", path)
}

fn http(socket: &Path, method: &str, path: &str) -> io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(3)))?;
    stream.set_write_timeout(Some(Duration::from_secs(3)))?;
    write!(
        stream,
        "{method} {path} HTTP/1.0\r\nHost: ringwall\r\nContent-Length: 0\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.split(' ').nth(1) == Some("200") => Ok(body.to_owned()),
        _ => Err(io::Error::other(
            answer.lines().next().unwrap_or_default().to_owned(),
        )),
    }
}
