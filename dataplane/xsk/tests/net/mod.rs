//! Network namespaces for tests: made with `ip`, named `xdp-t...`, gone with the value.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test says what went wrong by panicking
#![allow(unsafe_code, dead_code, unreachable_pub)] // entering a namespace is a system call; not every test uses everything

use std::{
    fs::File,
    net::UdpSocket,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

/// Whether to go on: the tests need root. Without it they are skipped, or fail where that was asked for.
pub fn privileged() -> bool {
    // SAFETY: no pointers.
    if unsafe { libc::geteuid() } == 0 {
        return true;
    }
    assert!(
        std::env::var("REQUIRE_ROOT").as_deref() != Ok("1"),
        "REQUIRE_ROOT=1, but not root"
    );
    println!("SKIPPED: needs root");
    false
}

/// Runs a command that must succeed.
pub fn run(command: &str) -> String {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(
        output.status.success(),
        "`{command}`: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// A network namespace.
pub struct Namespace {
    pub name: String,
}

impl Namespace {
    pub fn new(role: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("xdp-t{}-{number}-{role}", std::process::id());
        run(&format!("ip netns add {name}"));
        run(&format!("ip -n {name} link set lo up"));
        Self { name }
    }

    /// `ip` inside.
    pub fn ip(&self, arguments: &str) -> String {
        run(&format!("ip -n {} {arguments}", self.name))
    }

    /// A command inside.
    pub fn exec(&self, command: &str) -> String {
        run(&format!("ip netns exec {} {command}", self.name))
    }

    /// Moves the calling thread inside, for good.
    pub fn enter(&self) {
        let file = File::open(Path::new("/run/netns").join(&self.name)).unwrap();
        // SAFETY: an open descriptor, no pointers; it changes the calling thread alone.
        assert_eq!(unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) }, 0);
    }

    /// Does something inside, on a thread of its own.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    self.enter();
                    work()
                })
                .join()
                .unwrap()
        })
    }

    /// A UDP socket inside, which waits at most half a second.
    pub fn udp(&self, address: &str) -> UdpSocket {
        let socket = self.within(|| UdpSocket::bind(address).unwrap());
        socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        socket
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.name]).status();
    }
}

/// Joins `outer` in namespace `far` and `port` in namespace `near` by a veth pair, up, checksums in software at the
/// far end.
pub fn join(far: &Namespace, outer: &str, near: &Namespace, port: &str, address: &str) {
    run(&format!(
        "ip link add {outer} netns {} type veth peer name {port} netns {}",
        far.name, near.name
    ));
    for (namespace, end) in [(far, outer), (near, port)] {
        let off = namespace.exec(&format!("sysctl -w net.ipv6.conf.{end}.disable_ipv6=1"));
        assert!(off.contains("= 1"));
        namespace.ip(&format!("link set {end} up"));
    }
    far.exec(&format!("ethtool -K {outer} tx off"));
    far.ip(&format!("addr add {address} dev {outer}"));
}

/// A BPF file system of the test's own.
pub struct Bpffs {
    directory: tempfile::TempDir,
}

impl Bpffs {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        ringwall_bpf::ensure_bpffs(directory.path()).unwrap();
        Self { directory }
    }

    pub fn pins(&self) -> PathBuf {
        self.directory.path().join("ringwall")
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.directory.path()).status();
    }
}
