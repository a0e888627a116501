//! Whether this machine and user can run the bed at all.

use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sched::{CloneFlags, unshare};
use socket2::{Domain, Socket, Type};

/// What stands in the way, and what to do about it; None where nothing does.
pub fn obstacle() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some(
            "this needs root, for network namespaces, BPF programs and AF_XDP sockets; run it with sudo"
                .into(),
        );
    }
    for program in ["ip", "bridge", "setpriv", "nft"] {
        let found = std::env::var_os("PATH")
            .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).exists()));
        if !found {
            return Some(format!(
                "there is no `{program}`; install the packages iproute2, util-linux and nftables (make packages)"
            ));
        }
    }
    let new_namespace = std::thread::spawn(|| unshare(CloneFlags::CLONE_NEWNET)).join();
    if !matches!(new_namespace, Ok(Ok(()))) {
        return Some(
            "the kernel refuses to make a network namespace (CONFIG_NET_NS, CAP_SYS_ADMIN); a container needs --privileged"
                .into(),
        );
    }
    /// `AF_XDP` of `linux/socket.h`.
    const AF_XDP: i32 = 44;
    match Socket::new(Domain::from(AF_XDP), Type::RAW, None) {
        Ok(_) => None,
        Err(error) => Some(format!(
            "the kernel has no AF_XDP ({error}); it needs CONFIG_XDP_SOCKETS and the capability CAP_NET_RAW"
        )),
    }
}

/// For tests that need root: leave to go on, alone among the tests of this program, since attempts have deadlines. Says
/// SKIPPED and answers None where the test cannot run.
///
/// # Panics
/// Where the test cannot run and `REQUIRE_ROOT=1` says that it must.
#[allow(clippy::panic)] // it fails the test that asks
#[must_use = "the next test begins when this is dropped"]
pub fn runs_here(test: &str) -> Option<MutexGuard<'static, ()>> {
    static ALONE: Mutex<()> = Mutex::new(());
    let Some(obstacle) = obstacle() else {
        // A test that failed before has left nothing that matters to this one.
        return Some(ALONE.lock().unwrap_or_else(PoisonError::into_inner));
    };
    if std::env::var("REQUIRE_ROOT").is_ok_and(|value| value == "1") {
        panic!("{test} has to run (REQUIRE_ROOT=1) and cannot: {obstacle}");
    }
    eprintln!("SKIPPED {test}: {obstacle}");
    None
}
