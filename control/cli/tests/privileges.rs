//! What the processes can still do once they have begun: as /proc says, and as the kernel does.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)] // a failed step is a failed test

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    net::TcpListener,
    os::unix::{
        fs::{MetadataExt, PermissionsExt, symlink},
        net::UnixStream,
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nix::sys::signal::{Signal, kill};
use ringwall_config::Config;
use ringwall_process::confine;

const PATIENCE: Duration = Duration::from_secs(20);

/// A user who surely owns nothing.
const STRANGER: u32 = 1_900_000_000;

/// Whether the test can run: users change for root alone.
fn is_root(test: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    assert!(
        root || std::env::var("REQUIRE_ROOT").is_ok_and(|it| it.is_empty())
            || std::env::var_os("REQUIRE_ROOT").is_none(),
        "{test} needs root"
    );
    if !root {
        eprintln!("skipped: {test} needs root");
    }
    root
}

struct Bed {
    dir: tempfile::TempDir,
}

impl Bed {
    /// A folder that everybody can enter, with manifests.
    fn new(more: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(dir.path().join("manifests")).unwrap();
        let bed = Self { dir };
        let config = format!(
            "apiVersion: ringwall.io/v1alpha1\nkind: Gateway\nname: rights\nmode: enforce\n\
             cluster: {{podCIDRs: [10.0.0.0/16]}}\nsource: {{manifests: manifests, allowNoPods: true}}\n\
             interfaces:\n- {{name: lan0, side: inside}}\n- {{name: lan1, side: outside}}\n\
             wires:\n- {{name: w0, interfaces: [lan0, lan1], failMode: closed}}\n\
             runtimeDir: {0}/run\nstateDir: {0}/state\ntelemetry: {{metricsListen: \"127.0.0.1:0\"}}\n{more}",
            bed.dir.path().display()
        );
        fs::write(bed.path("config.yaml"), config).unwrap();
        bed
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn config(&self) -> Config {
        Config::load(&self.path("config.yaml")).unwrap()
    }

    fn command(&self, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringwall"));
        command
            .args(["control", "--config"])
            .arg(self.path("config.yaml"))
            .args(more);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        command
    }

    /// Starts control and waits until it serves.
    fn start(&self, more: &[&str]) -> Running {
        let child = self
            .command(more)
            .stderr(File::create(self.path("log")).unwrap())
            .spawn()
            .unwrap();
        let running = Running(child);
        let until = Instant::now() + PATIENCE;
        while !self.path("run/control.sock").exists() {
            assert!(
                Instant::now() < until,
                "{}",
                fs::read_to_string(self.path("log")).unwrap()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        running
    }
}

struct Running(Child);

impl Running {
    /// A line of /proc/PID/status.
    fn status(&self, key: &str) -> Vec<String> {
        of_process(&format!("/proc/{}/status", self.0.id()), key)
    }

    fn exit_status(&mut self) -> Option<i32> {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < until, "it does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn of_process(file: &str, key: &str) -> Vec<String> {
    let text = fs::read_to_string(file).unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("{key} in {text}"))
        .split_whitespace()
        .map(str::to_owned)
        .collect()
}

const NOTHING: [&str; 1] = ["0000000000000000"];

#[test]
fn control_is_a_user_of_its_own_without_any_capability() {
    if !is_root("a user of its own") {
        return;
    }
    let bed = Bed::new("");
    let control = bed.start(&[]);
    let user = control.status("Uid");
    assert_ne!(user[0], "0");
    assert!(
        user.iter().all(|id| *id == user[0]),
        "real, effective, saved and of files: {user:?}"
    );
    assert_ne!(control.status("Gid")[0], "0");
    assert_eq!(control.status("Groups"), Vec::<String>::new());
    for task in fs::read_dir(format!("/proc/{}/task", control.0.id())).unwrap() {
        let status = task.unwrap().path().join("status").display().to_string();
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(of_process(&status, set), NOTHING, "{set} of {status}");
        }
        assert_eq!(of_process(&status, "NoNewPrivs"), ["1"], "{status}");
        assert_eq!(of_process(&status, "Seccomp"), ["2"], "{status}");
    }
    // What it writes is its own, and the administrator's commands find it where it always was.
    let key = fs::metadata(bed.path("state/control/epoch.key")).unwrap();
    assert_eq!(key.uid().to_string(), user[0]);
    assert_eq!(fs::metadata(bed.path("state")).unwrap().uid(), 0);
    let asked = Command::new(env!("CARGO_BIN_EXE_ringwall"))
        .args(["coverage", "--live", "--config"])
        .arg(bed.path("config.yaml"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&asked.stderr).into_owned();
    assert!(!said.contains("denied"), "{said}");
}

/// CAP_NET_BIND_SERVICE.
const TO_LISTEN: [&str; 1] = ["0000000000000400"];

#[test]
fn a_port_below_1024_is_listened_on_by_one_capability() {
    if !is_root("a port of root's") {
        return;
    }
    let bed = Bed::new("");
    let port = (600..1024)
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .unwrap();
    let text = fs::read_to_string(bed.path("config.yaml")).unwrap();
    let text = text.replace("127.0.0.1:0", &format!("127.0.0.1:{port}"));
    fs::write(bed.path("config.yaml"), text).unwrap();
    let control = bed.start(&[]);
    assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    assert_ne!(control.status("Uid")[0], "0");
    for task in fs::read_dir(format!("/proc/{}/task", control.0.id())).unwrap() {
        let status = task.unwrap().path().join("status").display().to_string();
        for set in ["CapPrm", "CapEff", "CapBnd"] {
            assert_eq!(of_process(&status, set), TO_LISTEN, "{set} of {status}");
        }
        for set in ["CapInh", "CapAmb"] {
            assert_eq!(of_process(&status, set), NOTHING, "{set} of {status}");
        }
        assert_eq!(of_process(&status, "Seccomp"), ["2"], "{status}");
    }
    drop(control);
    // Who starts it may not have the capability.
    let output = Command::new("setpriv")
        .args(["--bounding-set", "-net_bind_service", "--"])
        .arg(env!("CARGO_BIN_EXE_ringwall"))
        .args(["control", "--config"])
        .arg(bed.path("config.yaml"))
        .output();
    let Ok(output) = output else {
        println!("SKIPPED in part: there is no setpriv, which takes the capability away");
        return;
    };
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(
        said.contains("telemetry.metricsListen") && said.contains("CAP_NET_BIND_SERVICE"),
        "{said}"
    );
}

/// CAP_DAC_READ_SEARCH.
const TO_READ: [&str; 1] = ["0000000000000004"];

#[test]
fn a_source_that_its_user_cannot_read_is_read_by_one_capability_and_nothing_else_is() {
    if !is_root("a source of root") {
        return;
    }
    for owner in [0, 12_345] {
        let bed = Bed::new("");
        std::os::unix::fs::chown(bed.path("manifests"), Some(owner), Some(owner)).unwrap();
        fs::set_permissions(bed.path("manifests"), fs::Permissions::from_mode(0o700)).unwrap();
        // Whoever writes manifests does not choose what is read.
        let elsewhere = tempfile::tempdir().unwrap();
        let secret = elsewhere.path().join("secret.yaml");
        fs::write(
            &secret,
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: secret}\n",
        )
        .unwrap();
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
        let mut control = bed.start(&[]);
        assert_ne!(control.status("Uid")[0], "0");
        for set in ["CapPrm", "CapEff", "CapBnd"] {
            assert_eq!(control.status(set), TO_READ, "{set}");
        }
        assert_eq!(control.status("Seccomp"), ["2"]);
        let log = fs::read_to_string(bed.path("log")).unwrap();
        assert!(log.contains("control keeps the capability to read"), "{log}");
        symlink(&secret, bed.path("manifests/secret.yaml")).unwrap();
        let until = Instant::now() + PATIENCE;
        while !status(&bed.path("run/control.sock")).contains("secret.yaml") {
            assert!(Instant::now() < until, "the link is not complained of");
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(status(&bed.path("run/control.sock")).contains("\"namespaces\":0"));
        assert!(
            control.0.try_wait().unwrap().is_none(),
            "another process could not read it either"
        );
    }
}

#[test]
fn a_configured_user_is_taken_or_refused_with_what_it_cannot_read() {
    if !is_root("a configured user") {
        return;
    }
    let bed = Bed::new("control: {user: 12345}\n");
    let control = bed.start(&[]);
    assert_eq!(control.status("Uid")[0], "12345");
    drop(control);
    fs::set_permissions(bed.path("manifests"), fs::Permissions::from_mode(0o700)).unwrap();
    let output = bed.command(&[]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(
        said.contains("control.user: user 12345 cannot use") && said.contains("manifests"),
        "{said}"
    );
    let bed = Bed::new("control: {user: no-such-user}\n");
    let output = bed.command(&[]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(
        said.contains("no user `no-such-user`") && said.contains("useradd"),
        "{said}"
    );
}

#[test]
fn folders_that_are_missing_can_be_passed_by_the_user_and_one_that_was_closed_is_opened() {
    if !is_root("folders above") {
        return;
    }
    let bed = Bed::new("");
    let text = fs::read_to_string(bed.path("config.yaml")).unwrap();
    let root = bed.dir.path().display();
    let text = text
        .replace(
            &format!("runtimeDir: {root}/run"),
            &format!("runtimeDir: {root}/a/b/run"),
        )
        .replace(
            &format!("stateDir: {root}/state"),
            &format!("stateDir: {root}/ringwall/state"),
        );
    fs::write(bed.path("config.yaml"), text).unwrap();
    fs::create_dir(bed.path("ringwall")).unwrap();
    fs::set_permissions(bed.path("ringwall"), fs::Permissions::from_mode(0o700)).unwrap();
    symlink("a/b/run", bed.path("run")).unwrap();
    let control = bed.start(&[]);
    assert_ne!(control.status("Uid")[0], "0");
    assert_eq!(control.status("CapEff"), NOTHING);
    for folder in ["a", "a/b", "ringwall"] {
        assert_eq!(
            fs::metadata(bed.path(folder)).unwrap().mode() & 0o777,
            0o711,
            "{folder}"
        );
    }
}

#[test]
fn what_a_control_that_was_taken_over_leaves_is_not_followed() {
    if !is_root("leftovers") {
        return;
    }
    let bed = Bed::new("");
    let uid: u32 = {
        let control = bed.start(&[]);
        control.status("Uid")[0].parse().unwrap()
    };
    let victim = bed.path("victim");
    fs::write(&victim, "root's").unwrap();
    fs::remove_file(bed.path("state/control/epoch.key")).unwrap();
    for name in ["epoch.key", "policies.json", ".probe", "epoch.key.new"] {
        symlink(&victim, bed.path("state/control").join(name)).unwrap();
        std::os::unix::fs::lchown(bed.path("state/control").join(name), Some(uid), Some(uid)).unwrap();
    }
    fs::hard_link(&victim, bed.path("run/control/epoch.key")).unwrap();
    let output = bed.command(&[]).output();
    assert!(output.is_ok());
    assert_eq!(fs::read_to_string(&victim).unwrap(), "root's");
    assert_eq!(fs::metadata(&victim).unwrap().uid(), 0);
}

#[test]
fn what_an_earlier_version_kept_is_handed_over() {
    if !is_root("files of an earlier version") {
        return;
    }
    let bed = Bed::new("");
    fs::create_dir(bed.path("state")).unwrap();
    fs::write(bed.path("state/epoch.key"), [7; 32]).unwrap();
    let _control = bed.start(&[]);
    assert_eq!(fs::read(bed.path("state/control/epoch.key")).unwrap(), [7; 32]);
    assert!(!bed.path("state/epoch.key").exists());
}

/// Runs in a thread of its own: users, capabilities, Landlock and seccomp are a thread's.
fn confined(confine: impl FnOnce() + Send, then: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            confine();
            then();
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

fn denied<T>(what: &str, outcome: io::Result<T>) {
    match outcome {
        Err(error)
            if error.raw_os_error() == Some(libc::EACCES) || error.raw_os_error() == Some(libc::EPERM) => {}
        Err(error) => panic!("{what}: {error}"),
        Ok(_) => panic!("{what} is possible"),
    }
}

#[test]
fn control_reaches_nothing_but_its_source_and_its_folders() {
    if !is_root("Landlock and seccomp") {
        return;
    }
    let bed = Bed::new("");
    let elsewhere = tempfile::tempdir().unwrap();
    fs::set_permissions(elsewhere.path(), fs::Permissions::from_mode(0o777)).unwrap();
    fs::write(elsewhere.path().join("open"), "to everybody").unwrap();
    fs::write(bed.path("manifests/policy.yaml"), "").unwrap();
    let config = bed.config();
    let mut other = Command::new("/bin/sleep")
        .arg("60")
        .uid(STRANGER)
        .spawn()
        .unwrap();
    let pid = nix::unistd::Pid::from_raw(other.id() as i32);
    let before = fs::read_dir(elsewhere.path()).unwrap().count();
    confined(
        || confine::control(&config, ringwall_source::needs(&config.source.kind)).unwrap(),
        || {
            assert!(fs::read(bed.path("manifests/policy.yaml")).is_ok());
            fs::write(bed.path("manifests/../state/control/mine"), "").unwrap();
            fs::write(bed.path("run/control/mine"), "").unwrap();
            assert!(File::open("/dev/urandom").is_ok());
            assert!(TcpListener::bind("127.0.0.1:0").is_ok());

            denied(
                "reading what everybody may",
                File::open(elsewhere.path().join("open")),
            );
            denied("listing it", fs::read_dir(elsewhere.path()));
            denied("writing there", fs::write(elsewhere.path().join("new"), ""));
            denied("reading secrets", File::open("/etc/shadow"));
            denied(
                "changing policy",
                fs::write(bed.path("manifests/policy.yaml"), "x"),
            );
            denied(
                "changing the machine's record",
                fs::write(bed.path("state/changes"), ""),
            );
            denied(
                "replacing the dataplane's socket",
                symlink("/dev/null", bed.path("run/dataplane.sock")),
            );
            // Listed, since where nothing is mounted nothing can be made.
            denied("the BPF file system", fs::read_dir("/sys/fs/bpf"));
            denied(
                "the kernel's settings",
                fs::write("/proc/sys/net/ipv4/ip_forward", "1"),
            );
            denied("another port", TcpListener::bind("127.0.0.1:9"));
            denied("raw sockets", socket(libc::AF_PACKET, libc::SOCK_RAW));
            denied("XDP's sockets", socket(libc::AF_XDP, libc::SOCK_RAW));
            denied(
                "becoming root",
                rustix::thread::set_thread_uid(rustix::fs::Uid::ROOT).map_err(Into::into),
            );
            denied(
                "a namespace of users",
                nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER).map_err(Into::into),
            );
            denied(
                "another process of its user",
                kill(pid, Signal::SIGTERM).map_err(Into::into),
            );
            denied(
                "looking into it",
                nix::sys::ptrace::attach(pid).map_err(Into::into),
            );
            denied(
                "mounting",
                nix::mount::mount(
                    Some("none"),
                    "/mnt",
                    Some("tmpfs"),
                    nix::mount::MsFlags::empty(),
                    None::<&str>,
                )
                .map_err(Into::into),
            );
        },
    );
    assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), before);
    other.kill().unwrap();
    other.wait().unwrap();
}

fn socket(domain: i32, kind: i32) -> io::Result<()> {
    let domain = rustix::net::AddressFamily::from_raw(domain as u16);
    let kind = rustix::net::SocketType::from_raw(kind as u32);
    rustix::net::socket(domain, kind, None)
        .map(drop)
        .map_err(Into::into)
}

#[cfg(feature = "afxdp")]
#[test]
fn the_dataplane_cannot_read_the_kubeconfig() {
    if !is_root("the dataplane's rights") {
        return;
    }
    let bed = Bed::new("");
    for dir in ["run", "state"] {
        fs::create_dir(bed.path(dir)).unwrap();
    }
    let kubeconfig = bed.path("kubeconfig");
    fs::write(&kubeconfig, "").unwrap();
    fs::set_permissions(&kubeconfig, fs::Permissions::from_mode(0o600)).unwrap();
    // Not even where it is root's and everybody's.
    fs::write(bed.path("token"), "").unwrap();
    fs::write(bed.path("state/of-another"), "").unwrap();
    std::os::unix::fs::chown(bed.path("state/of-another"), Some(STRANGER), None).unwrap();
    fs::set_permissions(bed.path("state/of-another"), fs::Permissions::from_mode(0o600)).unwrap();
    let forward = fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap();
    confined(
        || confine::dataplane(&bed.config()).unwrap(),
        || {
            denied("the kubeconfig", File::open(&kubeconfig));
            denied("a token", File::open(bed.path("token")));
            denied("a file of another user", File::open(bed.path("state/of-another")));
            denied("secrets", File::open("/etc/shadow"));
            denied("a shell", Command::new("/bin/sh").arg("-c").arg("true").status());
            denied(
                "becoming another",
                rustix::thread::set_thread_uid(rustix::fs::Uid::from_raw(1)).map_err(Into::into),
            );
            denied(
                "mounting",
                nix::mount::mount(
                    Some("none"),
                    "/mnt",
                    Some("tmpfs"),
                    nix::mount::MsFlags::empty(),
                    None::<&str>,
                )
                .map_err(Into::into),
            );
            denied(
                "the kernel's own programs",
                fs::OpenOptions::new()
                    .write(true)
                    .open("/proc/sys/kernel/core_pattern"),
            );
            // What it is there for.
            fs::write(bed.path("run/flows-0.bin"), "").unwrap();
            fs::write(bed.path("state/snapshot.img"), "").unwrap();
            fs::write("/proc/sys/net/ipv4/ip_forward", &forward).unwrap();
            socket(libc::AF_XDP, libc::SOCK_RAW).unwrap();
            socket(libc::AF_PACKET, libc::SOCK_RAW).unwrap();
        },
    );
}

#[test]
fn a_source_that_leads_elsewhere_is_read_by_the_next_process() {
    if !is_root("a folder that is replaced") {
        return;
    }
    let bed = Bed::new("");
    let elsewhere = tempfile::tempdir().unwrap();
    fs::set_permissions(elsewhere.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let policy = elsewhere.path().join("policy.yaml");
    fs::write(
        &policy,
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n",
    )
    .unwrap();
    let mut control = bed.start(&[]);
    symlink(&policy, bed.path("manifests/policy.yaml")).unwrap();
    assert_eq!(
        control.exit_status(),
        Some(70),
        "{}",
        fs::read_to_string(bed.path("log")).unwrap()
    );
    let log = fs::read_to_string(bed.path("log")).unwrap();
    assert!(
        log.contains("has moved since this process started and gave up its rights"),
        "{log}"
    );
    let _ = fs::remove_file(bed.path("run/control/control.sock"));
    let mut control = bed.start(&[]);
    assert!(status(&bed.path("run/control.sock")).contains("\"namespaces\":1"));
    // Another folder of the same name is another folder.
    fs::rename(bed.path("manifests"), bed.path("before")).unwrap();
    fs::create_dir(bed.path("manifests")).unwrap();
    fs::write(bed.path("manifests/policy.yaml"), "").unwrap();
    assert_eq!(
        control.exit_status(),
        Some(70),
        "{}",
        fs::read_to_string(bed.path("log")).unwrap()
    );
}

fn status(socket: &Path) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream
        .write_all(b"GET /v1/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}
