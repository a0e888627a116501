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
    /// What ringwall itself can do about it.
    pub repair: Option<Repair>,
}

/// A change of the machine that mends a finding. Whoever makes it puts it on record before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Repair {
    /// Write a setting.
    Setting {
        /// Its path below `/proc/sys`.
        path: String,
        /// Whether it is of the interface, or of all.
        of_interface: bool,
        /// Its value.
        before: String,
        /// What is wanted.
        after: String,
    },
    /// Turn the VLAN offloads off.
    VlanOffload {
        /// [`Device::vlan_flags`] now.
        before: u32,
    },
}

/// What to look at.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// Interfaces of the ports.
    pub interfaces: &'a [PortInterface],
    /// The kernel must not forward by itself (routed role), but for `kernel_takes_over`.
    pub routed: bool,
    /// The kernel forwards while no dataplane runs (routed role, fail mode open), so its forwarding must be on. While
    /// one runs, the programs leave it nothing to forward.
    pub kernel_takes_over: bool,
    /// How many workers will share the ports.
    pub workers: usize,
}

/// An interface of a port, as far as preflight has to know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortInterface {
    /// Its name.
    pub name: String,
    /// Whether a pod is behind it.
    pub pod: bool,
    /// The MTU that it is going to have; None: the one it has.
    pub mtu: Option<u32>,
}

/// A setting below `/proc/sys/net/FAMILY/conf/INTERFACE` that must have a value on a routed port.
struct RequiredSysctl {
    family: &'static str,
    setting: &'static str,
    value: &'static str,
    /// Why, in words.
    why: &'static str,
    /// The value of `all` counts, too: the kernel takes the larger of both.
    with_all: bool,
    /// On ports to pods alone.
    pods_only: bool,
}

const fn off(family: &'static str, setting: &'static str, why: &'static str) -> RequiredSysctl {
    RequiredSysctl {
        family,
        setting,
        value: "0",
        why,
        with_all: false,
        pods_only: false,
    }
}

const MUST_BE_OFF: [RequiredSysctl; 6] = [
    RequiredSysctl {
        with_all: true,
        ..off(
            "ipv4",
            "accept_redirects",
            "a neighbour could change the kernel's routes",
        )
    },
    off(
        "ipv4",
        "send_redirects",
        "the kernel would tell pods of ways past the firewall",
    ),
    RequiredSysctl {
        with_all: true,
        ..off(
            "ipv4",
            "proxy_arp",
            "the kernel would answer for addresses that are not its own",
        )
    },
    RequiredSysctl {
        pods_only: true,
        with_all: true,
        ..off(
            "ipv4",
            "arp_ignore",
            "the kernel would not answer pods that ask for their gateway 169.254.1.1",
        )
    },
    // An uplink may have its address and default route from a router's advertisements.
    RequiredSysctl {
        pods_only: true,
        ..off(
            "ipv6",
            "accept_ra",
            "a pod could give the kernel routes and addresses",
        )
    },
    off(
        "ipv6",
        "accept_redirects",
        "a neighbour could change the kernel's routes",
    ),
];

/// Capabilities, and what each is for.
const REQUIRED_CAPABILITIES: [(Capability, &str); 3] = [
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
        match Device::lookup(&interface.name) {
            Ok(device) => check_interface(&device, interface, request, &mut findings),
            Err(XskError::NoInterface(name)) => findings.push(Finding {
                fatal: true,
                interface: Some(name),
                problem: "does not exist in this network namespace".to_owned(),
                remedy: "correct the name, or create it (`ip link`)".to_owned(),
                repair: None,
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
            repair: None,
        });
    }
    if request.routed && !request.kernel_takes_over && forwards_v6.as_deref() == Some("1") {
        findings.push(Finding {
            fatal: false,
            interface: None,
            problem: "net.ipv6.conf.all.forwarding is 1: the kernel forwards IPv6 by itself; the guard on the ports keeps it from pods"
                .to_owned(),
            remedy: "`sysctl net.ipv6.conf.all.forwarding=0` where nothing else needs it".to_owned(),
            repair: None,
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
            repair: None,
        });
    };
    let has = |capability| caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false);
    let all_powerful = has(Capability::CAP_SYS_ADMIN);
    for (capability, purpose) in REQUIRED_CAPABILITIES {
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

/// Drivers of devices that are made of others, and what to name instead: their XDP programs run elsewhere, or their
/// packets come with what lies below.
const STACKED_DRIVERS: [(&str, &str); 4] = [
    (
        "bonding",
        "its slaves receive the packets, and their sockets are not the bond's: name a port of its own for each slave, or take the interface out of the bond",
    ),
    (
        "team",
        "its members receive the packets, and their sockets are not the team's: name a port of its own for each member, or take the interface out of the team",
    ),
    (
        "bridge",
        "it has no receive queues of its own: name its members as ports",
    ),
    (
        "802.1Q VLAN Support",
        "its packets come by the interface below it: name that one, whose frames are judged with their tags",
    ),
];

fn check_interface(
    device: &Device,
    asked: &PortInterface,
    request: &Request<'_>,
    findings: &mut Vec<Finding>,
) {
    let mut add = |fatal, problem: String, remedy: String, repair| {
        findings.push(Finding {
            fatal,
            interface: Some(device.name.clone()),
            problem,
            remedy,
            repair,
        });
    };
    if let Some((driver, remedy)) = STACKED_DRIVERS
        .iter()
        .find(|(driver, _)| *driver == device.driver)
    {
        add(
            true,
            format!("is made of other interfaces ({driver}) and cannot be a port"),
            (*remedy).to_owned(),
            None,
        );
    }
    let max = ringwall_dataplane::port::MAX_MTU;
    let mtu = asked.mtu.unwrap_or(device.mtu);
    if mtu > max {
        add(
            true,
            format!("has MTU {mtu}, at most {max} works"),
            format!("`ip link set dev {} mtu {max}`", device.name),
            None,
        );
    }
    if !device.up {
        add(
            false,
            "is down".to_owned(),
            format!("`ip link set dev {} up`", device.name),
            None,
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
            None,
        );
    }
    if device.offloads_vlan() {
        add(
            true,
            "takes VLAN tags out of packets, which then are lost".to_owned(),
            format!("`ethtool -K {} rxvlan off txvlan off`", device.name),
            Some(Repair::VlanOffload {
                before: device.vlan_flags(),
            }),
        );
    }
    if !request.routed {
        return;
    }
    let forwarding = if request.kernel_takes_over {
        RequiredSysctl {
            value: "1",
            ..off(
                "ipv4",
                "forwarding",
                "the kernel could not take over while no dataplane runs",
            )
        }
    } else {
        off(
            "ipv4",
            "forwarding",
            "the kernel would forward packets past the firewall",
        )
    };
    for wanted in MUST_BE_OFF.iter().chain([&forwarding]) {
        if wanted.pods_only && !asked.pod {
            continue;
        }
        for conf in [device.name.as_str(), "all"] {
            if conf == "all" && !wanted.with_all {
                continue;
            }
            let RequiredSysctl {
                family,
                setting,
                value,
                why,
                ..
            } = wanted;
            let path = format!("net/{family}/conf/{conf}/{setting}");
            // A family that is off has no such file.
            let Some(before) = read(format!("/proc/sys/{path}")).filter(|found| found != value) else {
                continue;
            };
            // Addresses of other interfaces may be hidden on purpose: not ours to show.
            let ours = conf != "all" || *setting != "arp_ignore";
            findings.push(Finding {
                fatal: true,
                interface: ours.then(|| device.name.clone()),
                problem: format!("net.{family}.conf.{conf}.{setting} is {before}: {why}"),
                remedy: format!("`sysctl -w {path}={value}`"),
                repair: ours.then(|| Repair::Setting {
                    path,
                    of_interface: conf != "all",
                    before,
                    after: (*value).to_owned(),
                }),
            });
        }
    }
    // The kernel takes the larger of the interface's value and `all`'s.
    if read("/proc/sys/net/ipv4/conf/all/send_redirects").as_deref() == Some("1") {
        findings.push(Finding {
            fatal: false,
            interface: Some(device.name.clone()),
            problem: "net.ipv4.conf.all.send_redirects is 1, which holds for every interface".to_owned(),
            remedy: "`sysctl net.ipv4.conf.all.send_redirects=0`".to_owned(),
            repair: None,
        });
    }
}
