//! What must hold before anything is opened.

use std::{fs, path::PathBuf};

use caps::{CapSet, Capability};

use crate::{XskError, device::Device, syscall};

/// Something that keeps ringwall from working or makes it work badly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Whether it refuses to start.
    pub fatal: bool,
    /// The interface, where it concerns one.
    pub interface: Option<String>,
    /// What is wrong.
    pub problem: String,
    /// What to do about it.
    pub remedy: String,
}

/// What to look at.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// Interfaces of the ports.
    pub interfaces: &'a [String],
    /// The kernel must not forward by itself (routed role), but for `kernel_takes_over`.
    pub routed: bool,
    /// The kernel forwards while no dataplane runs (routed role, fail mode open), so its forwarding must be on. While
    /// one runs, the programs leave it nothing to forward.
    pub kernel_takes_over: bool,
    /// How many workers will share the ports.
    pub workers: usize,
    /// Turn off what can be turned off: VLAN offloads, forwarding, accept_ra and redirects of the interfaces.
    pub repair: bool,
}

/// Settings of an interface under `/proc/sys/net` that must be 0 on a routed port, and why.
const MUST_BE_OFF: [(&str, &str, &str); 5] = [
    (
        "ipv4",
        "accept_redirects",
        "a neighbour could change the kernel's routes",
    ),
    (
        "ipv4",
        "send_redirects",
        "the kernel would tell pods of ways past the firewall",
    ),
    (
        "ipv4",
        "proxy_arp",
        "the kernel would answer for addresses that are not its own",
    ),
    (
        "ipv6",
        "accept_ra",
        "a neighbour could give the kernel routes and addresses",
    ),
    (
        "ipv6",
        "accept_redirects",
        "a neighbour could change the kernel's routes",
    ),
];

/// Capabilities, and what each is for.
const NEEDED: [(Capability, &str); 3] = [
    (Capability::CAP_NET_RAW, "open AF_XDP sockets"),
    (Capability::CAP_NET_ADMIN, "attach programs and set up interfaces"),
    (Capability::CAP_BPF, "load programs and maps"),
];

/// Looks at kernel, capabilities, limits and interfaces, in the calling thread's network namespace.
///
/// # Errors
/// The kernel does not answer; what it answers is in the findings.
pub fn preflight(request: &Request<'_>) -> Result<Vec<Finding>, XskError> {
    let mut findings = Vec::new();
    process(&mut findings);
    for interface in request.interfaces {
        match Device::lookup(interface) {
            Ok(device) => look_at(&device, request, &mut findings),
            Err(XskError::NoInterface(name)) => findings.push(Finding {
                fatal: true,
                interface: Some(name),
                problem: "does not exist in this network namespace".to_owned(),
                remedy: "correct the name, or create it (`ip link`)".to_owned(),
            }),
            Err(error) => return Err(error),
        }
    }
    let forwards_v6 = read("/proc/sys/net/ipv6/conf/all/forwarding");
    if request.kernel_takes_over && forwards_v6.as_deref() == Some("0") {
        findings.push(Finding {
            fatal: false,
            interface: None,
            problem:
                "net.ipv6.conf.all.forwarding is 0: while no dataplane runs, the kernel forwards no IPv6"
                    .to_owned(),
            remedy: "`sysctl net.ipv6.conf.all.forwarding=1` where IPv6 is to pass then".to_owned(),
        });
    }
    if request.routed && !request.kernel_takes_over && forwards_v6.as_deref() == Some("1") {
        findings.push(Finding {
            fatal: false,
            interface: None,
            problem: "net.ipv6.conf.all.forwarding is 1: the kernel forwards IPv6 by itself; the guard on the ports keeps it from pods"
                .to_owned(),
            remedy: "`sysctl net.ipv6.conf.all.forwarding=0` where nothing else needs it".to_owned(),
        });
    }
    Ok(findings)
}

fn process(findings: &mut Vec<Finding>) {
    let mut add = |fatal, problem: String, remedy: &str| {
        findings.push(Finding {
            fatal,
            interface: None,
            problem,
            remedy: remedy.to_owned(),
        });
    };
    let has = |capability| caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false);
    let all_powerful = has(Capability::CAP_SYS_ADMIN);
    for (capability, purpose) in NEEDED {
        let has = has(capability) || (capability == Capability::CAP_BPF && all_powerful);
        if !has {
            add(
                true,
                format!("the process lacks {capability}, which it needs to {purpose}"),
                "run it as root, or give it the capability (systemd: AmbientCapabilities=)",
            );
        }
    }
    if !has(Capability::CAP_IPC_LOCK) {
        add(
            false,
            "the process lacks CAP_IPC_LOCK: packet memory counts against RLIMIT_MEMLOCK".to_owned(),
            "give it the capability, or raise the limit (systemd: LimitMEMLOCK=infinity)",
        );
    }
    match syscall::probe_af_xdp() {
        Ok(true) => {}
        Ok(false) => add(
            true,
            "this kernel has no AF_XDP sockets".to_owned(),
            "use a kernel with CONFIG_XDP_SOCKETS, Linux 5.15 or newer",
        ),
        Err(error) if has(Capability::CAP_NET_RAW) => add(
            true,
            format!("an AF_XDP socket cannot be opened: {error}"),
            "look for a seccomp filter or LSM policy that forbids it",
        ),
        Err(_) => {} // the missing capability is named above
    }
}

fn read(path: impl Into<PathBuf>) -> Option<String> {
    fs::read_to_string(path.into())
        .ok()
        .map(|text| text.trim().to_owned())
}

fn look_at(device: &Device, request: &Request<'_>, findings: &mut Vec<Finding>) {
    let mut add = |fatal, problem: String, remedy: String| {
        findings.push(Finding {
            fatal,
            interface: Some(device.name.clone()),
            problem,
            remedy,
        });
    };
    let max = crate::sockets::MAX_MTU;
    if device.mtu > max {
        add(
            true,
            format!("has MTU {}, at most {max} fits into a frame", device.mtu),
            format!("`ip link set dev {} mtu {max}`", device.name),
        );
    }
    if !device.up {
        add(
            false,
            "is down".to_owned(),
            format!("`ip link set dev {} up`", device.name),
        );
    }
    if usize::from(device.max_queues) < request.workers {
        add(
            false,
            format!(
                "can have {} queues for {} workers: the others hand their packets over",
                device.max_queues, request.workers
            ),
            "a veth is made with more by `ip link add ... numrxqueues N numtxqueues N`".to_owned(),
        );
    }
    if device.strips_vlan() && !(request.repair && device.keep_vlan().is_ok() && !device.strips_vlan()) {
        add(
            true,
            "takes VLAN tags out of packets, which then are lost".to_owned(),
            format!("`ethtool -K {} rxvlan off txvlan off`", device.name),
        );
    }
    if !request.routed {
        return;
    }
    let forwarding = if request.kernel_takes_over {
        (
            "ipv4",
            "forwarding",
            "1",
            "the kernel could not take over while no dataplane runs",
        )
    } else {
        (
            "ipv4",
            "forwarding",
            "0",
            "the kernel would forward packets past the firewall",
        )
    };
    let off = MUST_BE_OFF.map(|(family, setting, why)| (family, setting, "0", why));
    for (family, setting, wanted, why) in off.into_iter().chain([forwarding]) {
        let path = format!("/proc/sys/net/{family}/conf/{}/{setting}", device.name);
        // A family that is off has no such file.
        let Some(value) = read(&path).filter(|value| value != wanted) else {
            continue;
        };
        if request.repair && fs::write(&path, wanted).is_ok() && read(&path).as_deref() == Some(wanted) {
            continue;
        }
        add(
            true,
            format!("net.{family}.conf.{}.{setting} is {value}: {why}", device.name),
            format!("`sysctl -w net/{family}/conf/{}/{setting}={wanted}`", device.name),
        );
    }
    // The kernel takes the larger of the interface's value and `all`'s.
    if read("/proc/sys/net/ipv4/conf/all/send_redirects").as_deref() == Some("1") {
        add(
            false,
            "net.ipv4.conf.all.send_redirects is 1, which holds for every interface".to_owned(),
            "`sysctl net.ipv4.conf.all.send_redirects=0`".to_owned(),
        );
    }
}
