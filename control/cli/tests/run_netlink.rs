//! The netlink mirror against a real kernel, in a namespace of its own.
#![cfg(feature = "afxdp")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test that panics has failed
#![allow(missing_docs, unreachable_pub, dead_code)] // a test, and it uses a part of the bed

mod run_bed;

use std::time::{Duration, Instant};

use ringwall_appliance::{
    kernel_state::{Action, KernelNeighbour, KernelState},
    netlink::{ChangeStream, KernelChange, Netlink},
};
use run_bed::*;

fn read(netlink: &mut Netlink) -> KernelState {
    let mut view = KernelState::default();
    view.set_links(&netlink.links().unwrap());
    view.set_addresses(&netlink.addresses().unwrap());
    view.set_routes(&netlink.routes().unwrap());
    view.set_neighbours(&netlink.neighbours().unwrap());
    view
}

fn action(view: &KernelState, prefix: &str) -> Option<Action> {
    view.routes
        .get(&prefix.parse().unwrap())
        .map(|route| route.action.clone())
}

#[test]
fn routes_of_every_kind_are_read_as_the_kernel_has_them() {
    if !may_run("routes_of_every_kind_are_read_as_the_kernel_has_them") {
        return;
    }
    let ns = Namespace::new("nl");
    let empty = ns.inside(|| read(&mut Netlink::open().unwrap()));
    assert!(empty.routes.is_empty(), "a namespace without a table is no error");
    let n = &ns.0;
    sh(&format!(
        "ip -n {n} link add d0 type veth peer name p0; ip -n {n} link add d1 type veth peer name p1
         for link in d0 p0 d1 p1; do ip -n {n} link set $link up; done
         ip -n {n} addr add 192.0.2.1/24 dev d0; ip -n {n} addr add 198.51.100.1/24 dev d1
         ip -n {n} addr add 2001:db8::1/64 dev d0 nodad
         ip -n {n} route add 10.1.0.0/16 via 192.0.2.9
         ip -n {n} route add 10.2.0.0/16 via 203.0.113.9 dev d0 onlink
         ip -n {n} route add blackhole 10.3.0.0/16
         ip -n {n} route add unreachable 10.4.0.0/16
         ip -n {n} route add prohibit 10.5.0.0/16
         ip -n {n} route add 10.6.0.0/16 nexthop via 192.0.2.8 weight 3 nexthop via 198.51.100.8
         ip -n {n} route add 10.7.0.0/16 via 192.0.2.7 metric 50
         ip -n {n} route add 10.7.0.0/16 via 192.0.2.6 metric 20
         ip -n {n} route add 10.8.0.0/16 via inet6 2001:db8::8 dev d0
         ip -n {n} nexthop add id 7 via 192.0.2.5 dev d0
         ip -n {n} route add 10.9.0.0/16 nhid 7
         ip -n {n} route add 10.10.0.0/16 via 192.0.2.9 table 100
         ip -n {n} -6 route add 2001:db8:1::/48 via 2001:db8::9
         ip -n {n} -6 route add 2001:db8:2::/48 nexthop via 2001:db8::8 nexthop via 2001:db8::9
         ip -n {n} -6 route add blackhole 2001:db8:3::/48"
    ));
    let view = ns.inside(|| read(&mut Netlink::open().unwrap()));
    let (d0, _) = view.link_named("d0").unwrap();
    let (d1, _) = view.link_named("d1").unwrap();
    let hops = |prefix: &str| match action(&view, prefix) {
        Some(Action::Forward(hops)) => hops
            .iter()
            .map(|hop| {
                (
                    hop.link,
                    hop.gateway.map(|gateway| gateway.to_string()),
                    hop.weight,
                )
            })
            .collect::<Vec<_>>(),
        other => panic!("{prefix}: {other:?}"),
    };
    let via = |link, gateway: &str, weight| (link, Some(gateway.to_owned()), weight);
    assert_eq!(hops("192.0.2.0/24"), [(d0, None, 1)]);
    assert_eq!(hops("10.1.0.0/16"), [via(d0, "192.0.2.9", 1)]);
    assert_eq!(hops("10.2.0.0/16"), [via(d0, "203.0.113.9", 1)]);
    assert_eq!(
        hops("10.6.0.0/16"),
        [via(d0, "192.0.2.8", 3), via(d1, "198.51.100.8", 1)]
    );
    assert_eq!(hops("10.7.0.0/16"), [via(d0, "192.0.2.6", 1)]);
    assert_eq!(hops("10.8.0.0/16"), [via(d0, "2001:db8::8", 1)]);
    assert_eq!(
        hops("10.9.0.0/16"),
        [via(d0, "192.0.2.5", 1)],
        "a next-hop object"
    );
    assert_eq!(hops("2001:db8:1::/48"), [via(d0, "2001:db8::9", 1)]);
    assert_eq!(
        hops("2001:db8:2::/48"),
        [via(d0, "2001:db8::8", 1), via(d0, "2001:db8::9", 1)]
    );
    assert_eq!(action(&view, "10.3.0.0/16"), Some(Action::Blackhole));
    assert_eq!(action(&view, "10.4.0.0/16"), Some(Action::Unreachable));
    assert_eq!(action(&view, "10.5.0.0/16"), Some(Action::Prohibit));
    assert_eq!(action(&view, "2001:db8:3::/48"), Some(Action::Blackhole));
    assert_eq!(action(&view, "10.10.0.0/16"), None, "another table");
    assert!(view.addresses.contains(&(d0, "192.0.2.1".parse().unwrap(), 24)));

    // A link that goes down takes its IPv4 routes without a word about them: only the link is told.
    let changes = ns.inside(|| ChangeStream::subscribe().unwrap());
    sh(&format!("ip -n {n} link set d1 down"));
    let mut view = view;
    let mut stale = false;
    let deadline = Instant::now() + Duration::from_secs(5);
    while !stale && Instant::now() < deadline {
        if let KernelChange::Messages(messages) = changes.wait(Duration::from_millis(100)).unwrap() {
            stale = messages.iter().any(|message| view.apply(message).all);
        }
    }
    assert!(stale, "the link's change makes everything stale");
    let view = ns.inside(|| read(&mut Netlink::open().unwrap()));
    assert_eq!(action(&view, "198.51.100.0/24"), None);
}

#[test]
fn managed_neighbours_are_resolved_and_stay_so() {
    if !may_run("managed_neighbours_are_resolved_and_stay_so") {
        return;
    }
    let (here, there) = (Namespace::new("nh"), Namespace::new("nt"));
    let (h, t) = (&here.0, &there.0);
    sh(&format!(
        "ip -n {h} link add v0 type veth peer name v1 netns {t}
         ip -n {h} link set v0 up; ip -n {t} link set v1 up
         ip -n {h} addr add 192.0.2.1/24 dev v0; ip -n {t} addr add 192.0.2.2/24 dev v1
         ip -n {h} addr add 2001:db8::1/64 dev v0 nodad; ip -n {t} addr add 2001:db8::2/64 dev v1 nodad"
    ));
    let (link, mac) = {
        let there = there.inside(|| read(&mut Netlink::open().unwrap()));
        let here = here.inside(|| read(&mut Netlink::open().unwrap()));
        (
            here.link_named("v0").unwrap().0,
            there.link_named("v1").unwrap().1.mac,
        )
    };
    let known = here.inside(move || {
        let mut netlink = Netlink::open().unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        let wanted = ["192.0.2.2", "2001:db8::2"].map(|text| (link, text.parse().unwrap()));
        for (link, address) in wanted {
            netlink.manage_neighbour(link, address).unwrap();
            netlink.manage_neighbour(link, address).unwrap(); // again is fine
        }
        loop {
            let view = read(&mut netlink);
            let found: Vec<_> = wanted
                .iter()
                .filter_map(|key| view.neighbours.get(key).copied())
                .collect();
            if found.len() == 2 || Instant::now() > deadline {
                return found;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    });
    assert_eq!(
        known,
        [KernelNeighbour::Resolved(mac), KernelNeighbour::Resolved(mac)]
    );
    let shown = here.command("ip").args(["neigh"]).output().unwrap();
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("managed"), "{shown}");
    here.inside(move || {
        let mut netlink = Netlink::open().unwrap();
        netlink
            .forget_neighbour(link, "192.0.2.2".parse().unwrap())
            .unwrap();
    });
}

#[test]
fn lost_notifications_are_noticed() {
    if !may_run("lost_notifications_are_noticed") {
        return;
    }
    let ns = Namespace::new("no");
    let changes = ns.inside(|| ChangeStream::subscribe().unwrap());
    let batch = tempfile::NamedTempFile::new().unwrap();
    let mut lines = String::new();
    for high in 0..160 {
        for low in 0..256 {
            lines.push_str(&format!("route add blackhole 10.{high}.{low}.0/24\n"));
        }
    }
    std::fs::write(batch.path(), lines).unwrap();
    sh(&format!("ip -n {} -batch {}", ns.0, batch.path().display()));
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut overrun = false;
    while !overrun && Instant::now() < deadline {
        overrun = matches!(
            changes.wait(Duration::from_millis(100)).unwrap(),
            KernelChange::Overrun
        );
    }
    assert!(overrun, "40960 notifications do not fit");
    let view = ns.inside(|| read(&mut Netlink::open().unwrap()));
    assert_eq!(view.routes.len(), 160 * 256);
}
