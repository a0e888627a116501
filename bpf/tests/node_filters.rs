//! Programs of a node attached as filters, as on kernels without tcx: beside the filters of others, and gone without a trace.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test says what went wrong by panicking

#[path = "../../dataplane/xsk/tests/net/mod.rs"]
mod net;
mod node_rig;

use std::process::Command;

use net::{Bpffs, Namespace, join, privileged};
use node_rig::{A4, B4, Rig, Shape, ask::Verdict, index, tcp};
use ringwall_bpf::node::{self, Device, DeviceKind, Hook, Node, Outcome, TcAttachment};

/// A host with an uplink, and a node that attaches by filters.
struct Host {
    host: Namespace,
    _other: Namespace,
    bpffs: Bpffs,
    node: Node,
}

impl Host {
    fn new() -> Self {
        let (host, other) = (Namespace::new("host"), Namespace::new("out"));
        join(&other, "far", &host, "eth0", "192.0.2.9/24");
        let bpffs = Bpffs::new();
        let node = Node::load(&bpffs.pins(), 1, TcAttachment::Filter).unwrap();
        Self {
            host,
            _other: other,
            bpffs,
            node,
        }
    }

    fn eth0(&self) -> u32 {
        index(&self.host, "eth0")
    }

    fn guard(&self) -> Result<(), ringwall_bpf::BpfError> {
        let device = Device::new(DeviceKind::Other);
        self.host.within(|| self.node.guard(self.eth0(), &device))
    }

    /// What `tc` shows, without what counts.
    fn state(&self) -> String {
        let side = |side| self.host.exec(&format!("tc filter show dev eth0 {side}"));
        self.host.exec("tc qdisc show dev eth0") + &side("ingress") + &side("egress")
    }

    fn tc(&self, arguments: &str) {
        self.host.exec(&format!("tc {arguments}"));
    }

    fn asked_before(&self, hook: Hook) -> Option<String> {
        self.host
            .within(|| self.node.asked_before(self.eth0(), hook))
            .unwrap()
    }

    /// Somebody's own program, which lets everything pass without asking further.
    fn foreign_program(&self) -> String {
        let path = self.bpffs.pins().join("node-programs-and-maps/back");
        path.display().to_string()
    }
}

#[test]
fn what_was_made_goes_and_what_others_made_stays() {
    if !privileged() {
        return;
    }
    // Made by us; there before; there before with filters of others.
    for before in [
        &[][..],
        &["qdisc add dev eth0 clsact"],
        &[
            "qdisc add dev eth0 clsact",
            "filter add dev eth0 egress prio 10 protocol ip u32 match u32 0 0 flowid 1:1",
            "filter add dev eth0 ingress prio 2 protocol ip u32 match u32 0 0 flowid 1:1",
        ],
    ] {
        let host = Host::new();
        before.iter().for_each(|line| host.tc(line));
        let at_first = host.state();
        host.guard().unwrap();
        for hook in [Hook::FromNet, Hook::Exit] {
            assert!(host.host.within(|| host.node.is_attached(host.eth0(), hook)));
            assert_eq!(host.asked_before(hook), None);
        }
        assert!(
            !host
                .host
                .within(|| host.node.is_attached(host.eth0(), Hook::FromPod))
        );
        let guarded = host.state();
        assert!(
            guarded.contains("node_exit") && guarded.contains("node_from_net"),
            "{guarded}"
        );
        // Again, and nothing changes.
        host.guard().unwrap();
        assert_eq!(host.state(), guarded);
        host.host.within(|| host.node.release(host.eth0())).unwrap();
        assert_eq!(host.state(), at_first);
        assert!(host.node.pinned_devices().is_empty());

        host.guard().unwrap();
        host.host.within(|| node::detach(&host.bpffs.pins())).unwrap();
        assert_eq!(host.state(), at_first);
        assert!(!node::is_installed(&host.bpffs.pins()));
    }
}

#[test]
fn a_qdisc_of_ours_on_which_others_have_filters_now_is_theirs() {
    if !privileged() {
        return;
    }
    let host = Host::new();
    host.guard().unwrap();
    host.tc("filter add dev eth0 egress prio 10 protocol ip u32 match u32 0 0 flowid 1:1");
    host.host.within(|| host.node.release(host.eth0())).unwrap();
    let state = host.state();
    assert!(
        state.contains("clsact") && state.contains("u32") && !state.contains("node_"),
        "{state}"
    );
    assert!(host.node.pinned_devices().is_empty());
}

#[test]
fn what_would_be_asked_before_is_refused_by_name_and_nothing_is_changed() {
    if !privileged() {
        return;
    }
    for (before, wanted) in [
        (
            &[
                "qdisc add dev eth0 clsact",
                "filter add dev eth0 egress prio 1 u32 match u32 0 0 flowid 1:1",
            ][..],
            "tc egress filter of kind u32 with priority 1",
        ),
        (
            &[
                "qdisc add dev eth0 clsact",
                "filter add dev eth0 ingress prio 1 protocol ip u32 match u32 0 0 flowid 1:1",
            ],
            "tc ingress filter of kind u32 with priority 1",
        ),
        (&["qdisc add dev eth0 ingress"], "has an `ingress` qdisc"),
    ] {
        let host = Host::new();
        before.iter().for_each(|line| host.tc(line));
        let at_first = host.state();
        let obstacles = || node::filter_obstacles(TcAttachment::Filter, host.eth0(), "eth0");
        let named = host.host.within(obstacles).unwrap();
        assert!(named.len() == 1 && named[0].contains(wanted), "{named:?}");
        assert!(named[0].starts_with("interface eth0 "), "{named:?}");
        let error = host.guard().unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
        assert_eq!(host.state(), at_first);
        assert!(host.node.pinned_devices().is_empty(), "{error}");
    }
}

#[test]
fn a_filter_in_our_place_that_is_not_ours_is_left_alone() {
    if !privileged() {
        return;
    }
    let host = Host::new();
    host.tc("qdisc add dev eth0 clsact");
    let program = host.foreign_program();
    host.tc(&format!(
        "filter add dev eth0 egress prio 1 handle 0x7202 bpf da object-pinned {program}"
    ));
    let at_first = host.state();
    let error = host.guard().unwrap_err().to_string();
    assert!(
        error.contains("egress filter with priority 1 and handle 0x7202"),
        "{error}"
    );
    // What was attached before the error is on record, and goes.
    host.host.within(|| host.node.release(host.eth0())).unwrap();
    assert_eq!(host.state(), at_first);
}

#[test]
fn a_filter_that_comes_later_and_is_asked_before_is_named() {
    if !privileged() {
        return;
    }
    let host = Host::new();
    host.tc("qdisc add dev eth0 clsact");
    let program = host.foreign_program();
    let add = |handle: u32| {
        host.tc(&format!(
            "filter add dev eth0 egress prio 1 handle {handle} bpf da object-pinned {program}"
        ));
    };
    add(1);
    host.guard().unwrap();
    assert_eq!(host.asked_before(Hook::Exit), None, "the newest is asked first");
    add(2);
    let named = host.asked_before(Hook::Exit).unwrap();
    assert_eq!(named, "a tc filter (kind bpf, priority 1, handle 0x2)");
    assert_eq!(host.asked_before(Hook::FromNet), None);
    // Somebody cleans up.
    host.tc("qdisc del dev eth0 clsact");
    assert!(
        !host
            .host
            .within(|| host.node.is_attached(host.eth0(), Hook::Exit))
    );
    host.guard().unwrap();
    assert!(
        host.host
            .within(|| host.node.is_attached(host.eth0(), Hook::Exit))
    );
}

#[test]
fn a_device_that_turns_out_to_be_a_pods_has_that_program_alone() {
    if !privileged() {
        return;
    }
    for attachment in node_rig::attachments() {
        let rig = Rig::attached_by(attachment, Shape::Routed, |_: &node_rig::ask::Ask| Verdict::Allow);
        let va = rig.index("va");
        rig.release(va);
        // A veth whose far end is still here, and then goes into the pod.
        let device = Device::new(DeviceKind::Other);
        rig.host.within(|| rig.node.guard(va, &device)).unwrap();
        assert!(rig.is_attached(va, Hook::FromNet));
        rig.guard("va");
        assert!(rig.is_attached(va, Hook::FromPod) && !rig.is_attached(va, Hook::FromNet));
        tcp(&rig.a, &format!("{B4}:80"), &rig.b, &format!("{B4}:80")).unwrap();
        assert_eq!(rig.count(Outcome::NetSpoofedSource), 0, "{A4}");
    }
}

#[test]
fn the_kernel_says_which_way_it_has() {
    if !privileged() {
        return;
    }
    let output = Command::new("uname").arg("-r").output().unwrap();
    let release = String::from_utf8(output.stdout).unwrap();
    let mut numbers = release.split(['.', '-']).map(|part| part.parse().unwrap_or(0));
    let version: (u32, u32) = (numbers.next().unwrap(), numbers.next().unwrap());
    let wanted = if version >= (6, 6) {
        TcAttachment::Link
    } else {
        TcAttachment::Filter
    };
    assert_eq!(TcAttachment::of_kernel(), wanted);
}
