//! Which files a process can still open: Landlock.

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, NetPort, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use ringwall_config::Config;

use super::SourceFiles;

/// The newest that is asked for; older kernels give what they have.
const LANDLOCK_ABI: ABI = ABI::V6;

/// What resolving a name, checking a certificate and telling the time need.
const SYSTEM: &[&str] = &[
    "/usr",
    "/lib",
    "/lib64",
    "/bin",
    "/etc/ld.so.cache",
    "/etc/hosts",
    "/etc/host.conf",
    "/etc/resolv.conf",
    "/etc/nsswitch.conf",
    "/etc/gai.conf",
    "/etc/services",
    "/etc/protocols",
    "/etc/localtime",
    "/etc/passwd",
    "/etc/group",
    "/etc/ssl",
    "/etc/pki",
    "/etc/ca-certificates",
];

/// What the kernel says about itself and about this process. Landlock keeps what other processes hold from it all the same.
const KERNEL: &[&str] = &[
    "/proc",
    "/sys/fs/cgroup",
    "/sys/devices/system",
    "/dev/null",
    "/dev/zero",
    "/dev/random",
    "/dev/urandom",
];

/// What the control process may do: read the source, write its folders, listen where it is to. True where the kernel has
/// Landlock.
pub(super) fn control(
    config: &Config,
    needs: &SourceFiles,
    folders: &[PathBuf; 2],
) -> Result<bool, RulesetError> {
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(LANDLOCK_ABI))?
        .scope(if needs.runs_programs {
            Scope::Signal.into()
        } else {
            Scope::from_all(LANDLOCK_ABI)
        })?;
    if !needs.runs_programs {
        ruleset = ruleset.handle_access(AccessNet::BindTcp)?;
    }
    let mut ruleset = ruleset.create()?;
    if needs.runs_programs {
        // It may be a script of any language, with a configuration anywhere.
        ruleset = grant(ruleset, Path::new("/"), AccessFs::from_read(LANDLOCK_ABI))?;
    } else {
        let ports = [
            Some(config.telemetry.metrics_listen),
            config.telemetry.health_listen,
        ];
        for address in ports.into_iter().flatten() {
            ruleset = ruleset.add_rule(NetPort::new(address.port(), AccessNet::BindTcp))?;
        }
        for path in SYSTEM.iter().map(Path::new).chain(needs.below()) {
            ruleset = grant(ruleset, path, AccessFs::ReadFile | AccessFs::ReadDir)?;
            // A link leads elsewhere, as that of resolv.conf does.
            if let Some(real) = path.canonicalize().ok().filter(|real| real != path) {
                let folder = if real.is_dir() {
                    real.as_path()
                } else {
                    real.parent().unwrap_or(&real)
                };
                ruleset = grant(ruleset, folder, AccessFs::ReadFile | AccessFs::ReadDir)?;
            }
        }
    }
    for path in KERNEL.iter().map(Path::new) {
        ruleset = grant(ruleset, path, AccessFs::ReadFile | AccessFs::ReadDir)?;
    }
    ruleset = grant(
        ruleset,
        Path::new("/dev/null"),
        AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate,
    )?;
    for folder in folders {
        ruleset = grant(
            ruleset,
            folder,
            AccessFs::from_all(LANDLOCK_ABI) & !AccessFs::Execute,
        )?;
    }
    // What the supervisor counts.
    ruleset = grant(
        ruleset,
        &config.runtime_dir,
        AccessFs::ReadFile | AccessFs::ReadDir,
    )?;
    enforce(ruleset)
}

/// What the dataplane may do: its folders, the kernel's settings and the BPF file system. No configuration, which it has read,
/// and no kubeconfig.
pub(super) fn dataplane(config: &Config) -> Result<bool, RulesetError> {
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(LANDLOCK_ABI))?
        .scope(Scope::Signal)?
        .create()?;
    for path in KERNEL.iter().map(Path::new).chain([Path::new("/sys")]) {
        ruleset = grant(ruleset, path, AccessFs::ReadFile | AccessFs::ReadDir)?;
    }
    ruleset = grant(
        ruleset,
        Path::new("/proc/sys/net"),
        AccessFs::ReadFile | AccessFs::ReadDir | AccessFs::WriteFile | AccessFs::Truncate,
    )?;
    ruleset = grant(
        ruleset,
        Path::new("/dev/null"),
        AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate,
    )?;
    let snapshots = config.snapshot_file();
    let own = [
        Some(config.runtime_dir.as_path()),
        Some(&config.state_dir),
        Some(&config.bpffs),
        snapshots.parent(),
    ];
    for folder in own.into_iter().flatten() {
        ruleset = grant(
            ruleset,
            folder,
            AccessFs::from_all(LANDLOCK_ABI) & !AccessFs::Execute,
        )?;
    }
    enforce(ruleset)
}

/// Allows something of a file or of all below a folder, where there is one.
fn grant(
    ruleset: RulesetCreated,
    path: &Path,
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, RulesetError> {
    let Ok(descriptor) = PathFd::new(path) else {
        return Ok(ruleset);
    };
    let access = if path.is_dir() {
        access
    } else {
        access & AccessFs::from_file(LANDLOCK_ABI)
    };
    ruleset.add_rule(PathBeneath::new(descriptor, access))
}

fn enforce(ruleset: RulesetCreated) -> Result<bool, RulesetError> {
    let status = ruleset.restrict_self()?;
    let enforced = status.ruleset != RulesetStatus::NotEnforced;
    if !enforced {
        tracing::warn!(
            "this kernel has no Landlock (5.13 and later have it, unless `lsm=` leaves it out): the process can open whatever its user can"
        );
    }
    Ok(enforced)
}
