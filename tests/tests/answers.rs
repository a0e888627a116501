//! What clients of denied Services see, where configuration or a policy asks for an answer.
#![allow(clippy::unwrap_used)] // a failed step is a failed test

use std::{io::ErrorKind, net::TcpStream, time::Duration};

use ringwall_testbed::{
    appliance::{Appliance, Options, built_binary},
    preflight::runs_here,
    probe::{Attempt, Outcome, Service, attempt_all},
    topology::{Bed, Plan, Role},
    world::World,
};
use serde_json::{Value, json};

/// A policy of `shop/web` that lets nothing in, with its answer.
fn closed(answer: Option<&str>) -> Value {
    let mut policy = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "closed", "namespace": "shop"},
        "spec": {"podSelector": {"matchLabels": {"app": "web"}}},
    });
    if let Some(answer) = answer {
        policy["metadata"]["annotations"] = json!({"ringwall.io/denied": answer});
    }
    policy
}

/// What a client sees that connects, or None where it waits in vain for so long.
fn connect(bed: &Bed, from: &str, v6: bool, patience: Duration) -> Option<ErrorKind> {
    let (from, to) = (bed.member(from).unwrap(), bed.member("shop/web").unwrap());
    let to = (to.address(v6), 80).into();
    let tried = from.ns.run(|| TcpStream::connect_timeout(&to, patience));
    Some(tried.unwrap().unwrap_err().kind()).filter(|kind| *kind != ErrorKind::TimedOut)
}

fn datagram(bed: &Bed, from: &str, v6: bool, patience: Duration) -> Outcome {
    let (from, to) = (bed.member(from).unwrap(), bed.member("shop/web").unwrap());
    let attempt = Attempt {
        from: &from.ns,
        source: Some(from.address(v6)),
        to: to.address(v6),
        service: Service::Udp(53),
    };
    attempt_all(&[attempt], patience).unwrap().remove(0)
}

/// A gateway or node whose configuration says `reset`, with a policy that closes `shop/web` and says nothing about answers.
fn start(bed: &Bed) -> (World, Appliance) {
    let options = Options {
        more: "denied: {answer: reset}\n".to_owned(),
        ..Options::default()
    };
    let mut world = World::of(bed);
    world.policies = vec![closed(None)];
    let firewall = Appliance::start(bed, &built_binary().unwrap(), &options, &world.objects()).unwrap();
    (world, firewall)
}

fn answers(role: Role, clients: &[&str]) {
    let plans = [Plan::new("shop/web"), Plan::new("shop/client")];
    let bed = Bed::new(role, &plans, 1).unwrap();
    let (mut world, firewall) = start(&bed);
    for (answer, tcp, refuses_datagrams) in [
        (None, Some(ErrorKind::ConnectionRefused), true),
        (Some("prohibited"), Some(ErrorKind::HostUnreachable), true),
        (Some("drop"), None, false),
    ] {
        world.policies = vec![closed(answer)];
        world.apply(&firewall).unwrap();
        // An answer may be late on a busy machine; silence lasts.
        let patience = Duration::from_millis(if refuses_datagrams { 10_000 } else { 500 });
        for client in clients {
            for v6 in [false, true] {
                let seen = connect(&bed, client, v6, patience);
                // Linux takes "prohibited" of IPv6 for a lack of permission (RFC 4443 3.1, code 1).
                let wanted = tcp.map(|kind| match kind {
                    ErrorKind::HostUnreachable if v6 => ErrorKind::PermissionDenied,
                    other => other,
                });
                assert_eq!(seen, wanted, "{role:?} {answer:?} {client} v6 {v6}");
                let outcome = datagram(&bed, client, v6, patience);
                let refused = matches!(outcome, Outcome::Refused(_));
                assert_eq!(
                    refused, refuses_datagrams,
                    "{role:?} {answer:?} {client} v6 {v6}: {outcome}"
                );
            }
        }
    }
    let dataplane = firewall.status().unwrap()["dataplane"].clone();
    let (sent, denied) = (
        &dataplane["answers"]["sent"],
        &dataplane["drops"]["policy-ingress"],
    );
    // For each client and family at least two: to a connection and a datagram, once reset and once prohibited.
    assert!(sent.as_u64() >= Some(8 * clients.len() as u64), "{sent}");
    assert!(denied.as_u64() > sent.as_u64(), "{denied} {sent}");
}

#[test]
fn clients_of_a_routed_gateway_learn_that_they_are_denied() {
    let Some(_alone) = runs_here("answers of a routed gateway") else {
        return;
    };
    answers(Role::Routed, &["shop/client", "external"]);
}

#[test]
fn clients_across_a_wire_learn_that_they_are_denied() {
    let Some(_alone) = runs_here("answers of a wire") else {
        return;
    };
    answers(Role::Wire, &["external"]);
}

/// The web pod behind an address of a Service, in both families.
const SERVICE: [&str; 2] = ["10.112.0.10", "fd00:112::10"];

#[test]
fn pods_of_a_node_learn_that_they_are_denied_and_no_others() {
    let Some(_alone) = runs_here("answers of a node") else {
        return;
    };
    for role in [Role::Node, Role::Bridge] {
        answers(role, &["shop/client"]);
    }
}

#[test]
fn pods_of_a_node_learn_it_by_the_service_that_they_used() {
    let Some(_alone) = runs_here("answers of a node through a Service") else {
        return;
    };
    for role in [Role::Node, Role::Bridge] {
        let plans = [Plan::new("shop/web"), Plan::new("shop/client")];
        let bed = Bed::new(role, &plans, 1).unwrap();
        let web = bed.member("shop/web").unwrap();
        bed.translate(&format!(
            "table inet proxy {{ chain before {{ type nat hook prerouting priority dstnat;
                ip daddr {} meta l4proto {{ tcp, udp }} dnat ip to {}
                ip6 daddr {} meta l4proto {{ tcp, udp }} dnat ip6 to {}
            }}; }}",
            SERVICE[0], web.v4, SERVICE[1], web.v6
        ))
        .unwrap();
        let (_, firewall) = start(&bed);
        let client = bed.member("shop/client").unwrap();
        for address in SERVICE {
            let to: std::net::IpAddr = address.parse().unwrap();
            let tried = client
                .ns
                .run(|| TcpStream::connect_timeout(&(to, 80).into(), Duration::from_secs(10)))
                .unwrap();
            assert_eq!(
                tried.unwrap_err().kind(),
                ErrorKind::ConnectionRefused,
                "{role:?} {address}"
            );
            let attempt = Attempt {
                from: &client.ns,
                source: None,
                to,
                service: Service::Udp(53),
            };
            let outcome = attempt_all(&[attempt], Duration::from_secs(10))
                .unwrap()
                .remove(0);
            assert!(
                matches!(outcome, Outcome::Refused(_)),
                "{role:?} {address}: {outcome}"
            );
        }
        // Two connections and two datagrams have been answered; clients elsewhere are not.
        let status = firewall.status().unwrap()["dataplane"].clone();
        assert_eq!(status["answers"]["sent"].as_u64(), Some(4), "{role:?}");
        assert_eq!(connect(&bed, "external", false, Duration::from_millis(500)), None);
        let now = firewall.status().unwrap()["dataplane"].clone();
        assert_eq!(now["answers"]["sent"], status["answers"]["sent"]);
        assert!(now["drops"]["policy-ingress"].as_u64() > status["drops"]["policy-ingress"].as_u64());
    }
}
