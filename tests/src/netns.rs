//! Network namespaces without names: the kernel takes them back when nothing holds them any more.

use std::{
    fmt,
    fs::File,
    io,
    os::fd::{AsRawFd, BorrowedFd},
    process::{Child, Command, Output, Stdio},
    sync::mpsc::{Sender, channel},
    thread::JoinHandle,
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
};

use crate::{BedError, Result};

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace, and a thread that lives in it.
pub struct Netns {
    name: String,
    net: File,
    /// Its mount namespace, where it has one of its own.
    mounts: Option<File>,
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for Netns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Netns({})", self.name)
    }
}

impl Netns {
    /// A new namespace with its loopback up, the kernel forwarding nothing and no IPv6 duplicate address detection
    /// (which would take a second). `name` is for messages.
    ///
    /// # Errors
    /// Not root, or no such kernel feature.
    pub fn new(name: &str) -> Result<Self> {
        Self::make(name, None)
    }

    /// As [`Self::new`], with a BPF file system at `bpffs` (an existing folder) that only its own processes see.
    ///
    /// # Errors
    /// As [`Self::new`], or the file system cannot be mounted.
    pub fn with_bpffs(name: &str, bpffs: &std::path::Path) -> Result<Self> {
        Self::make(name, Some(bpffs.to_owned()))
    }

    fn make(name: &str, bpffs: Option<std::path::PathBuf>) -> Result<Self> {
        let (jobs, inbox) = channel::<Job>();
        let (answer, made) = channel();
        let thread = std::thread::Builder::new()
            .name(format!("ns {name}"))
            .spawn(move || {
                let _ = answer.send(enter_new(bpffs.as_deref()));
                drop(answer);
                for job in inbox {
                    job();
                }
            })
            .map_err(|error| BedError::new("cannot start a thread", error))?;
        let (net, mounts) = made
            .recv()
            .map_err(|_| BedError::other(format!("namespace {name}"), "its thread ended"))?
            .map_err(|error| BedError::new(format!("cannot make the network namespace {name}"), error))?;
        let namespace = Self {
            name: name.to_owned(),
            net,
            mounts,
            jobs: Some(jobs),
            thread: Some(thread),
        };
        namespace.ip(&["link set lo up"])?;
        for (key, value) in [
            ("net/ipv4/ip_forward", "0"),
            ("net/ipv6/conf/all/forwarding", "0"),
            ("net/ipv6/conf/default/accept_dad", "0"),
            ("net/ipv6/conf/all/accept_dad", "0"),
            ("net/ipv6/conf/default/accept_ra", "0"),
            ("net/ipv6/conf/default/router_solicitations", "0"),
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/default/rp_filter", "0"),
            ("net/ipv4/conf/all/accept_redirects", "0"),
            ("net/ipv4/conf/default/accept_redirects", "0"),
            ("net/ipv4/conf/default/send_redirects", "0"),
            ("net/ipv4/conf/all/send_redirects", "0"),
            // Echo requests from unprivileged sockets, which need no checksum and header code of our own.
            ("net/ipv4/ping_group_range", "0 2147483647"),
            ("net/ipv4/icmp_ratelimit", "0"),
        ] {
            namespace.sysctl(key, value)?;
        }
        Ok(namespace)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A path that names it for `ip` and `nsenter`, while this process lives.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.net.as_raw_fd())
    }

    /// Puts the calling thread into the network namespace, for good.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn enter(&self) -> io::Result<()> {
        Ok(setns(&self.net, CloneFlags::CLONE_NEWNET)?)
    }

    /// Runs a function inside, on a thread of its own.
    ///
    /// # Errors
    /// The thread cannot enter. A panic inside goes on outside.
    pub fn run<T: Send>(&self, function: impl FnOnce() -> T + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| self.enter().map(|()| function()));
            match thread.join() {
                Ok(result) => {
                    result.map_err(|error| BedError::new(format!("cannot enter {}", self.name), error))
                }
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Starts a program inside, with the mounts of the namespace. The kernel kills it when this process ends or the
    /// namespace is dropped.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn spawn(&self, command: Command) -> Result<Child> {
        let what = format!(
            "cannot start {} in {}",
            command.get_program().to_string_lossy(),
            self.name
        );
        let mut bound = Command::new("setpriv");
        bound
            .args(["--pdeathsig", "KILL", "--"])
            .arg(command.get_program())
            .args(command.get_args());
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => bound.env(key, value),
                None => bound.env_remove(key),
            };
        }
        if let Some(folder) = command.get_current_dir() {
            bound.current_dir(folder);
        }
        let (answer, spawned) = channel();
        let mut stdio = Some(bound);
        let job: Job = Box::new(move || {
            if let Some(mut command) = stdio.take() {
                let _ = answer.send(
                    command
                        .stdin(Stdio::null())
                        .stdout(Stdio::piped())
                        .stderr(Stdio::piped())
                        .spawn(),
                );
            }
        });
        self.jobs
            .as_ref()
            .and_then(|jobs| jobs.send(job).ok())
            .and_then(|()| spawned.recv().ok())
            .ok_or_else(|| BedError::other(what.clone(), "its thread ended"))?
            .map_err(|error| BedError::new(what, error))
    }

    /// Runs a program inside to its end.
    ///
    /// # Errors
    /// As [`Self::spawn`].
    pub fn output(&self, command: Command) -> Result<Output> {
        let what = format!("{} in {}", command.get_program().to_string_lossy(), self.name);
        self.spawn(command)?
            .wait_with_output()
            .map_err(|error| BedError::new(what, error))
    }

    /// Runs lines of `ip` inside, in one process.
    ///
    /// # Errors
    /// `ip` refuses one; its words are in the error.
    pub fn ip(&self, lines: &[impl AsRef<str>]) -> Result<()> {
        use std::io::Write;
        let script = lines
            .iter()
            .map(|line| format!("{}\n", line.as_ref()))
            .collect::<String>();
        let output = self.run(|| {
            let mut child = Command::new("ip")
                .args(["-batch", "-"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()?;
            if let Some(mut stdin) = child.stdin.take() {
                stdin.write_all(script.as_bytes())?;
            }
            child.wait_with_output()
        })?;
        let output = output.map_err(|error| BedError::new("cannot run ip", error))?;
        if output.status.success() {
            return Ok(());
        }
        Err(BedError::other(
            format!("ip in {} refuses:\n{script}", self.name),
            String::from_utf8_lossy(&output.stderr).trim(),
        ))
    }

    /// Sets a variable of `/proc/sys` inside.
    ///
    /// # Errors
    /// There is none, or it does not take the value.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        self.run(|| std::fs::write(format!("/proc/sys/{key}"), value))?
            .map_err(|error| BedError::new(format!("cannot set {key} to {value} in {}", self.name), error))
    }

    /// Makes everything that a device sends leave by one of its transmit queues, whatever CPU and flow it comes from;
    /// a veth receives it at the other end on the queue of the same number.
    ///
    /// # Errors
    /// The device has no such queue, or the kernel no XPS.
    pub fn send_by_queue(&self, device: &str, queue: u32) -> Result<()> {
        let steer = || -> io::Result<()> {
            // /sys shows the devices of the namespace that it was mounted in.
            unshare(CloneFlags::CLONE_NEWNS)?;
            let none = None::<&str>;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
            mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), none)?;
            let folder = format!("/sys/class/net/{device}/queues");
            let all = std::thread::available_parallelism()?.get().min(63);
            for entry in std::fs::read_dir(&folder)? {
                let name = entry?.file_name().to_string_lossy().into_owned();
                if let Some(number) = name.strip_prefix("tx-") {
                    let mask = if number == queue.to_string() {
                        (1u64 << all) - 1
                    } else {
                        0
                    };
                    std::fs::write(format!("{folder}/{name}/xps_cpus"), format!("{mask:x}"))?;
                }
            }
            Ok(())
        };
        self.run(steer)?.map_err(|error| {
            BedError::new(
                format!("cannot steer {device} of {} to queue {queue}", self.name),
                error,
            )
        })
    }

    /// Reads a file inside: `/proc/sys` and `/proc/thread-self/net` show the namespace's own.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(&self, file: &str) -> Result<String> {
        self.run(|| std::fs::read_to_string(file))?
            .map_err(|error| BedError::new(format!("cannot read {file} in {}", self.name), error))
    }

    /// The mount namespace, where it has one of its own.
    pub fn mounts(&self) -> Option<BorrowedFd<'_>> {
        use std::os::fd::AsFd;
        self.mounts.as_ref().map(AsFd::as_fd)
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Moves the calling thread into new namespaces and answers handles to them.
fn enter_new(bpffs: Option<&std::path::Path>) -> io::Result<(File, Option<File>)> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    let net = File::open("/proc/thread-self/ns/net")?;
    let Some(bpffs) = bpffs else {
        return Ok((net, None));
    };
    unshare(CloneFlags::CLONE_NEWNS)?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    mount(
        Some("bpf"),
        bpffs,
        Some("bpf"),
        MsFlags::empty(),
        Some("mode=700"),
    )?;
    Ok((net, Some(File::open("/proc/thread-self/ns/mnt")?)))
}
