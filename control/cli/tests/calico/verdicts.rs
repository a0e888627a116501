//! Verdicts of single rules and of tiers as Calico's own tests of its eBPF programs have them (`pol_prog_test.go`, Apache-2.0): the
//! data in words of our own. What they say of hosts' interfaces is not judged.

use serde_json::{Value, json};

use super::{World, gnp, set, tier};

/// A rule of all pods, in a direction, and packets `PROTOCOL[/PORT] SRC DST` that it allows and that it does not.
struct Case {
    direction: &'static str,
    rule: Value,
    allowed: &'static [&'static str],
    denied: &'static [&'static str],
}

fn into(rule: Value, allowed: &'static [&'static str], denied: &'static [&'static str]) -> Case {
    Case {
        direction: "ingress",
        rule,
        allowed,
        denied,
    }
}

fn out_of(rule: Value, allowed: &'static [&'static str], denied: &'static [&'static str]) -> Case {
    Case {
        direction: "egress",
        ..into(rule, allowed, denied)
    }
}

/// Asks for each packet.
#[track_caller]
fn ask(world: &World, packets: &[&str], passes: bool, case: &str) {
    for packet in packets {
        let words: Vec<&str> = packet.split(' ').collect();
        let [service, src, dst] = words[..] else {
            panic!("{packet}")
        };
        let (protocol, port) = match service.split_once('/') {
            Some((protocol, port)) => (protocol, Some(port)),
            None => (service, None),
        };
        // Perhaps from a source port.
        let (source, port) = match port.and_then(|port| port.split_once('>')) {
            Some((source, port)) => (source.parse().unwrap(), Some(port)),
            None => (40000, port),
        };
        // Of ICMP a type and a code.
        let port = port.map(|port| match port.split_once(':') {
            Some((kind, code)) => u16::from_be_bytes([kind.parse().unwrap(), code.parse().unwrap()]),
            None => port.parse().unwrap(),
        });
        let number = match protocol {
            "tcp" => 6,
            "udp" => 17,
            "icmp" => 1,
            "icmpv6" => 58,
            number => number.parse().unwrap(),
        };
        let (src, dst) = (src.parse().unwrap(), dst.parse().unwrap());
        assert_eq!(
            world.judged(src, dst, number, port, source),
            passes,
            "{packet} with {case}"
        );
    }
}

/// Addresses with a label.
fn sets() -> Vec<Value> {
    vec![
        set("a", json!({"set": "a"}), json!(["10.0.0.0/8"])),
        set("b", json!({"set": "b"}), json!(["11.0.0.0/8", "123.0.0.1"])),
        set("none", json!({"set": "none"}), json!([])),
    ]
}

#[track_caller]
fn check(cases: Vec<Case>) {
    for case in cases {
        let mut rule = case.rule;
        rule["action"] = json!("Allow");
        let types = if case.direction == "ingress" {
            "Ingress"
        } else {
            "Egress"
        };
        let mut objects = sets();
        objects.push(gnp(
            "p",
            json!({"types": [types], case.direction: [rule.clone()]}),
        ));
        let world = World::new(&objects);
        assert_eq!(world.incomplete(), [""; 0], "{rule}");
        ask(&world, case.allowed, true, &rule.to_string());
        ask(&world, case.denied, false, &rule.to_string());
        // The same rule denies what it allowed, and a rule after it has the rest.
        rule["action"] = json!("Deny");
        let rules = json!([rule, {"action": "Allow"}]);
        let mut objects = sets();
        objects.push(gnp("p", json!({"types": [types], case.direction: rules})));
        let world = World::new(&objects);
        ask(&world, case.allowed, false, &rule.to_string());
        ask(&world, case.denied, true, &rule.to_string());
    }
}

#[test]
fn source_ports() {
    check(vec![
        into(
            json!({"protocol": "TCP", "source": {"ports": [1024, "2000:3000"]}}),
            &[
                "tcp/1024>80 10.0.0.1 10.0.0.2",
                "tcp/2000>0 10.0.0.1 10.0.0.2",
                "tcp/3000>65535 fd00::1 fd00::2",
            ],
            &[
                "tcp/1023>80 10.0.0.1 10.0.0.2",
                "tcp/1025>1024 10.0.0.1 10.0.0.2",
                "tcp/3001>80 10.0.0.1 10.0.0.2",
                "tcp/0>2000 10.0.0.1 10.0.0.2",
                "udp/1024>80 10.0.0.1 10.0.0.2",
                "icmp/8:0 10.0.0.1 10.0.0.2",
            ],
        ),
        into(
            json!({"protocol": "UDP", "source": {"ports": [53], "notPorts": [80]}, "destination": {"ports": ["1024:65535"]}}),
            &["udp/53>1024 10.0.0.1 10.0.0.2", "udp/53>65535 10.0.0.1 10.0.0.2"],
            &[
                "udp/53>1023 10.0.0.1 10.0.0.2",
                "udp/54>1024 10.0.0.1 10.0.0.2",
                "tcp/53>1024 10.0.0.1 10.0.0.2",
            ],
        ),
        out_of(
            json!({"protocol": "SCTP", "source": {"notPorts": [80, "90:100"]}, "destination": {"notPorts": [7]}}),
            &[
                "132/0>80 10.0.0.1 10.0.0.2",
                "132/79>8 10.0.0.1 10.0.0.2",
                "132/101>0 10.0.0.1 10.0.0.2",
                "132/65535>65535 10.0.0.1 10.0.0.2",
            ],
            &[
                "132/80>80 10.0.0.1 10.0.0.2",
                "132/95>80 10.0.0.1 10.0.0.2",
                "132/101>7 10.0.0.1 10.0.0.2",
                "tcp/79>8 10.0.0.1 10.0.0.2",
            ],
        ),
    ]);
}

#[test]
fn names_of_source_ports() {
    check(vec![
        into(
            json!({"protocol": "TCP", "source": {"ports": ["sql"]}}),
            &[
                "tcp/5432>80 10.0.0.2 10.0.0.1",
                "tcp/5432>0 10.0.0.2 10.0.1.1",
                "tcp/5432>65535 fd00::2 fd00::1",
            ],
            &[
                "tcp/5433>80 10.0.0.2 10.0.0.1",
                "tcp/5431>5432 10.0.0.2 10.0.0.1",
                "tcp/80>5432 10.0.1.1 10.0.0.2",
                "udp/5432>80 10.0.0.2 10.0.0.1",
                "tcp/5432>80 10.0.0.1 10.0.0.2",
                "tcp/5432>80 192.0.2.9 10.0.0.2",
                "icmp/8:0 10.0.0.2 10.0.0.1",
            ],
        ),
        into(
            json!({"source": {"ports": ["dns"]}}),
            &["tcp/53>80 10.0.0.2 10.0.0.1", "udp/53>80 10.0.0.2 10.0.0.1"],
            &[
                "132/53>80 10.0.0.2 10.0.0.1",
                "tcp/53>80 10.0.1.1 10.0.0.1",
                "icmp/0:53 10.0.0.2 10.0.0.1",
            ],
        ),
        into(
            json!({"protocol": "TCP", "source": {"notPorts": ["sql"]}}),
            &[
                "tcp/5431>80 10.0.0.2 10.0.0.1",
                "tcp/5433>80 10.0.0.2 10.0.0.1",
                "tcp/5432>80 10.0.1.1 10.0.0.1",
                "tcp/5432>80 192.0.2.9 10.0.0.1",
            ],
            &["tcp/5432>80 10.0.0.2 10.0.0.1", "udp/80>80 10.0.0.2 10.0.0.1"],
        ),
        into(
            json!({"source": {"notPorts": ["dns"]}}),
            &[
                "icmp/8:0 10.0.0.2 10.0.0.1",
                "132/53>80 10.0.0.2 10.0.0.1",
                "47 10.0.0.2 10.0.0.1",
            ],
            &["tcp/53>80 10.0.0.2 10.0.0.1", "udp/53>80 fd00::2 fd00::1"],
        ),
        into(
            json!({"protocol": "TCP", "source": {"ports": ["sql", "1:100"], "notPorts": ["dns", 80]}}),
            &[
                "tcp/5432>80 10.0.0.2 10.0.0.1",
                "tcp/100>80 10.0.0.2 10.0.0.1",
                "tcp/53>80 10.0.1.1 10.0.0.1",
            ],
            &[
                "tcp/53>80 10.0.0.2 10.0.0.1",
                "tcp/80>80 10.0.0.2 10.0.0.1",
                "tcp/101>80 10.0.0.2 10.0.0.1",
                "tcp/5432>80 10.0.1.1 10.0.0.1",
            ],
        ),
        // Whom a set holds has no names of its own (99.7); its numbers count.
        into(
            json!({"protocol": "TCP", "source": {"selector": "set == 'a'", "ports": ["sql", 7]}}),
            &["tcp/7>80 10.0.0.2 10.0.0.1", "tcp/7>80 10.9.9.9 10.0.0.1"],
            &["tcp/5432>80 10.0.0.2 10.0.0.1", "tcp/7>80 192.0.2.9 10.0.0.1"],
        ),
        into(
            json!({"protocol": "TCP", "source": {"ports": ["dns"]}, "destination": {"ports": [80]}}),
            &["tcp/53>80 10.0.0.2 10.0.0.1"],
            &["tcp/53>81 10.0.0.2 10.0.0.1", "tcp/54>80 10.0.0.2 10.0.0.1"],
        ),
        // In egress they are those of the pod that the policy selects.
        out_of(
            json!({"protocol": "TCP", "source": {"ports": ["sql"]}}),
            &["tcp/5432>80 10.0.0.2 10.0.0.1", "tcp/5432>80 10.0.0.2 192.0.2.9"],
            &[
                "tcp/5433>80 10.0.0.2 192.0.2.9",
                "tcp/5432>80 10.0.0.1 10.0.0.2",
                "udp/5432>80 10.0.0.2 192.0.2.9",
            ],
        ),
        out_of(
            json!({"source": {"notPorts": ["sql"]}, "destination": {"nets": ["192.0.2.0/24"]}}),
            &[
                "tcp/5433>80 10.0.0.2 192.0.2.9",
                "tcp/5432>80 10.0.0.1 192.0.2.9",
                "icmp/8:0 10.0.0.2 192.0.2.9",
            ],
            &["tcp/5432>80 10.0.0.2 192.0.2.9", "tcp/5433>80 10.0.0.2 10.0.0.1"],
        ),
    ]);
}

#[test]
fn names_of_source_ports_are_those_of_host_endpoints_too() {
    let host = json!({"apiVersion": "projectcalico.org/v3", "kind": "HostEndpoint",
        "metadata": {"name": "h", "labels": {"role": "db"}},
        "spec": {"node": "n", "expectedIPs": ["192.0.2.77"], "profiles": ["projectcalico-default-allow"],
            "ports": [{"name": "sql", "port": 3306, "protocol": "TCP"}]}});
    let world = |source: Value| {
        let rule = json!({"action": "Allow", "protocol": "TCP", "source": source});
        World::new(&[
            host.clone(),
            gnp("p", json!({"types": ["Ingress"], "ingress": [rule]})),
        ])
    };
    for source in [
        json!({"selector": "role == 'db'", "ports": ["sql"]}),
        json!({"ports": ["sql"]}),
    ] {
        let case = source.to_string();
        let world = world(source);
        ask(
            &world,
            &["tcp/3306>80 192.0.2.77 10.0.0.1", "tcp/5432>80 10.0.0.2 10.0.0.1"],
            true,
            &case,
        );
        let others = [
            "tcp/5432>80 192.0.2.77 10.0.0.1",
            "tcp/3306>80 10.0.0.2 10.0.0.1",
            "tcp/3306>80 192.0.2.78 10.0.0.1",
        ];
        ask(&world, &others, false, &case);
    }
    let but = world(json!({"notPorts": ["sql"]}));
    ask(
        &but,
        &["tcp/5432>80 192.0.2.77 10.0.0.1", "tcp/3306>80 10.0.0.2 10.0.0.1"],
        true,
        "notPorts",
    );
    ask(
        &but,
        &["tcp/3306>80 192.0.2.77 10.0.0.1", "tcp/5432>80 10.0.0.2 10.0.0.1"],
        false,
        "notPorts",
    );
}

#[test]
fn icmp_types_and_codes() {
    let only = |more: Value| {
        let mut rule = json!({"protocol": "ICMP"});
        rule.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        rule
    };
    check(vec![
        into(
            only(json!({"icmp": {"type": 8}})),
            &["icmp/8:0 10.0.0.1 10.0.0.2", "icmp/8:255 10.0.0.1 10.0.0.2"],
            &[
                "icmp/7:255 10.0.0.1 10.0.0.2",
                "icmp/9:0 10.0.0.1 10.0.0.2",
                "icmp/0:0 10.0.0.1 10.0.0.2",
                "icmp/13:0 10.0.0.1 10.0.0.2",
                // Its type is unknown.
                "icmp 10.0.0.1 10.0.0.2",
                "icmpv6/8:0 fd00::1 fd00::2",
                "tcp/2048 10.0.0.1 10.0.0.2",
            ],
        ),
        into(
            only(json!({"icmp": {"type": 3, "code": 4}})),
            &["icmp/3:4 10.0.0.1 10.0.0.2"],
            &[
                "icmp/3:3 10.0.0.1 10.0.0.2",
                "icmp/3:5 10.0.0.1 10.0.0.2",
                "icmp/4:4 10.0.0.1 10.0.0.2",
            ],
        ),
        into(
            only(json!({"icmp": {"type": 0, "code": 0}})),
            &["icmp/0:0 10.0.0.1 10.0.0.2"],
            &["icmp/0:1 10.0.0.1 10.0.0.2", "icmp/8:0 10.0.0.1 10.0.0.2"],
        ),
        into(
            only(json!({"notICMP": {"type": 8}})),
            &[
                "icmp/7:255 10.0.0.1 10.0.0.2",
                "icmp/9:0 10.0.0.1 10.0.0.2",
                "icmp 10.0.0.1 10.0.0.2",
            ],
            &[
                "icmp/8:0 10.0.0.1 10.0.0.2",
                "icmp/8:255 10.0.0.1 10.0.0.2",
                "icmpv6/9:0 fd00::1 fd00::2",
                "tcp/80 10.0.0.1 10.0.0.2",
            ],
        ),
        into(
            only(json!({"notICMP": {"type": 3, "code": 4}})),
            &["icmp/3:3 10.0.0.1 10.0.0.2", "icmp/8:0 10.0.0.1 10.0.0.2"],
            &["icmp/3:4 10.0.0.1 10.0.0.2"],
        ),
        into(
            only(json!({"icmp": {"type": 3}, "notICMP": {"type": 3, "code": 4}})),
            &["icmp/3:3 10.0.0.1 10.0.0.2", "icmp/3:5 10.0.0.1 10.0.0.2"],
            &["icmp/3:4 10.0.0.1 10.0.0.2", "icmp/8:0 10.0.0.1 10.0.0.2"],
        ),
        into(
            json!({"protocol": "ICMPv6", "icmp": {"type": 128}}),
            &["icmpv6/128:0 fd00::1 fd00::2"],
            &[
                "icmpv6/129:0 fd00::1 fd00::2",
                "icmp/128:0 10.0.0.1 10.0.0.2",
                "icmpv6 fd00::1 fd00::2",
            ],
        ),
        out_of(
            json!({"protocol": 1, "icmp": {"type": 254, "code": 255}}),
            &["icmp/254:255 10.0.0.1 10.0.0.2"],
            &["icmp/255:0 10.0.0.1 10.0.0.2", "icmp/254:254 10.0.0.1 10.0.0.2"],
        ),
    ]);
}

#[test]
fn protocols() {
    check(vec![
        into(
            json!({}),
            &[
                "253 10.0.0.1 10.0.0.2",
                "tcp/80 10.0.0.1 10.0.0.2",
                "udp/31245 10.0.0.2 10.0.0.1",
                "icmp 10.0.0.1 10.0.0.2",
                "tcp/80 fd00::1 fd00::2",
                "253 fd00::1 fd00::2",
            ],
            &[],
        ),
        into(
            json!({"protocol": "TCP"}),
            &[
                "tcp/80 10.0.0.1 10.0.0.2",
                "tcp/31245 10.0.0.2 10.0.0.1",
                "tcp/80 fd00::1 fd00::2",
            ],
            &[
                "253 10.0.0.1 10.0.0.2",
                "udp/80 10.0.0.1 10.0.0.2",
                "icmp 10.0.0.1 10.0.0.2",
                "udp/80 fd00::1 fd00::2",
                "icmpv6 fd00::1 fd00::2",
                "253 fd00::1 fd00::2",
            ],
        ),
        into(
            json!({"notProtocol": "TCP"}),
            &[
                "253 10.0.0.1 10.0.0.2",
                "udp/80 10.0.0.1 10.0.0.2",
                "icmp 10.0.0.1 10.0.0.2",
                "udp/80 fd00::1 fd00::2",
                "icmpv6 fd00::1 fd00::2",
                "253 fd00::1 fd00::2",
            ],
            &[
                "tcp/80 10.0.0.1 10.0.0.2",
                "tcp/31245 10.0.0.2 10.0.0.1",
                "tcp/80 fd00::1 fd00::2",
            ],
        ),
        into(
            json!({"protocol": "UDP"}),
            &["udp/31245 10.0.0.2 10.0.0.1", "udp/80 fd00::1 fd00::2"],
            &[
                "253 10.0.0.1 10.0.0.2",
                "tcp/80 10.0.0.1 10.0.0.2",
                "icmp 10.0.0.1 10.0.0.2",
            ],
        ),
        into(
            json!({"protocol": 253}),
            &["253 11.0.0.2 10.0.0.2"],
            &[
                "254 11.0.0.2 10.0.0.2",
                "icmp 10.0.0.1 10.0.0.2",
                "udp/53 123.0.0.1 10.0.0.2",
            ],
        ),
    ]);
}

#[test]
fn blocks() {
    let three = json!(["102.0.0.0/8", "10.0.0.1/32", "11.0.0.1/32"]);
    check(vec![
        into(
            json!({"source": {"nets": ["10.0.0.1/32"]}}),
            &[
                "253 10.0.0.1 10.0.0.2",
                "tcp/80 10.0.0.1 10.0.0.2",
                "icmp 10.0.0.1 10.0.0.2",
            ],
            &["253 10.0.0.3 10.0.0.2", "tcp/31245 10.0.0.2 10.0.0.1"],
        ),
        into(
            json!({"source": {"nets": ["fd00::1/128"]}}),
            &["tcp/80 fd00::1 fd00::2", "253 fd00::1 fd00::2"],
            &["tcp/80 fd00::3 fd00::2", "icmpv6 fd00::3 fd00::2"],
        ),
        into(
            json!({"source": {"nets": ["10.0.0.0/8"]}}),
            &["253 10.0.0.1 10.0.0.2", "udp/31245 10.0.0.2 10.0.0.1"],
            &["253 11.0.0.1 10.0.0.2", "icmp 11.0.0.1 10.0.0.2"],
        ),
        into(
            json!({"source": {"nets": ["ffee::/16", "ffe2:0:1111::/64", "ffe2:0:2222::/80", "ffe2::f/128"]}}),
            &[
                "253 ffee::1 fd00::2",
                "icmpv6 ffe2:0:1111::1 fd00::2",
                "udp/80 ffe2:0:2222::1 fd00::2",
                "tcp/80 ffe2::f fd00::2",
            ],
            &[
                "tcp/80 ffe0::2 fd00::2",
                "udp/80 ffe2:0:1112::1 fd00::2",
                "icmpv6 ffe2:0:2222:10::1 fd00::2",
                "253 ffe2::e fd00::2",
            ],
        ),
        into(
            json!({"source": {"nets": three}}),
            &[
                "253 10.0.0.1 10.0.0.2",
                "icmp 11.0.0.1 10.0.0.2",
                "udp/80 102.9.9.9 10.0.0.2",
            ],
            &["253 10.0.0.3 10.0.0.2", "tcp/31245 10.0.0.2 10.0.0.1"],
        ),
        into(
            json!({"source": {"notNets": three}}),
            &["253 10.0.0.3 10.0.0.2", "tcp/31245 10.0.0.2 10.0.0.1"],
            &[
                "253 10.0.0.1 10.0.0.2",
                "icmp 11.0.0.1 10.0.0.2",
                "udp/80 10.0.0.1 10.0.0.2",
                // The program would allow it; Felix gives it no rules of the other version (99.6).
                "tcp/80 fd00::1 fd00::2",
            ],
        ),
        out_of(
            json!({"destination": {"nets": three}}),
            &["253 10.0.0.2 10.0.0.1", "tcp/31245 10.0.0.2 10.0.0.1"],
            &[
                "253 10.0.0.1 10.0.0.2",
                "udp/1024 10.0.0.2 123.0.0.1",
                "tcp/80 fd00::1 fd00::2",
            ],
        ),
        out_of(
            json!({"destination": {"notNets": ["10.0.0.0/8"]}}),
            &["253 10.0.0.1 123.0.0.2", "udp/1024 10.0.0.2 123.0.0.1"],
            &["253 10.0.0.1 10.0.0.2", "tcp/80 10.0.0.1 10.0.0.2"],
        ),
        // The own side is asked just as well.
        out_of(
            json!({"source": {"nets": ["10.0.0.1/32"]}}),
            &["253 10.0.0.1 10.0.0.2", "tcp/80 10.0.0.1 123.0.0.1"],
            &["tcp/31245 10.0.0.2 10.0.0.1", "tcp/80 fd00::1 fd00::2"],
        ),
        into(
            json!({"destination": {"notNets": three}}),
            &["udp/80 10.0.0.1 10.0.0.2"],
            &["253 10.0.0.2 10.0.0.1", "tcp/31245 10.0.0.2 10.0.0.1"],
        ),
    ]);
}

#[test]
fn ports() {
    let to = |ports: Value| json!({"protocol": "TCP", "destination": ports});
    check(vec![
        out_of(
            to(json!({"ports": ["80:65535"]})),
            &["tcp/80 10.0.0.1 10.0.0.2", "tcp/65535 fd00::1 fd00::2"],
            &[
                "253 10.0.0.2 10.0.0.1",
                "tcp/79 10.0.0.1 10.0.0.2",
                "udp/31245 fd00::1 fd00::2",
            ],
        ),
        out_of(
            to(json!({"ports": ["80:81", 90]})),
            &[
                "tcp/80 10.0.0.1 10.0.0.2",
                "tcp/81 10.0.0.1 10.0.0.2",
                "tcp/90 fd00::1 fd00::2",
            ],
            &[
                "tcp/79 10.0.0.1 10.0.0.2",
                "tcp/82 10.0.0.1 10.0.0.2",
                "tcp/89 fd00::1 fd00::2",
                "tcp/91 fd00::1 fd00::2",
                "udp/80 10.0.0.1 10.0.0.2",
                "icmp 10.0.0.1 10.0.0.2",
            ],
        ),
        out_of(
            to(json!({"notPorts": ["80:81", 90]})),
            &[
                "tcp/79 10.0.0.1 10.0.0.2",
                "tcp/82 10.0.0.1 10.0.0.2",
                "tcp/89 fd00::1 fd00::2",
                "tcp/91 fd00::1 fd00::2",
            ],
            &[
                "253 10.0.0.2 10.0.0.1",
                "tcp/80 10.0.0.1 10.0.0.2",
                "tcp/81 fd00::1 fd00::2",
                "tcp/90 10.0.0.1 10.0.0.2",
                "udp/80 10.0.0.1 10.0.0.2",
                "udp/79 10.0.0.1 10.0.0.2",
                "icmp 10.0.0.1 10.0.0.2",
            ],
        ),
        out_of(
            to(json!({"ports": [65535]})),
            &["tcp/65535 10.0.0.1 10.0.0.2"],
            &["tcp/80 10.0.0.1 10.0.0.2", "tcp/31245 fd00::1 fd00::2"],
        ),
        // Names are those of the destination for the protocol.
        out_of(
            json!({"destination": {"ports": ["sql", "dns"]}}),
            &[
                "tcp/5432 10.0.0.1 10.0.0.2",
                "udp/53 10.0.0.1 10.0.0.2",
                "tcp/53 fd00::1 fd00::2",
            ],
            &[
                "253 10.0.0.1 10.0.0.2",
                "tcp/8080 10.0.0.1 10.0.0.2",
                "udp/5432 10.0.0.1 10.0.0.2",
                "tcp/5432 10.0.0.2 10.0.0.1",
                "tcp/5432 10.0.0.1 123.0.0.1",
            ],
        ),
        out_of(
            to(json!({"ports": ["sql", "81:82", 90]})),
            &[
                "tcp/5432 10.0.0.1 10.0.0.2",
                "tcp/90 10.0.0.2 10.0.0.1",
                "tcp/82 10.0.0.1 123.0.0.1",
            ],
            &[
                "udp/5432 10.0.0.1 10.0.0.2",
                "tcp/80 10.0.0.1 10.0.0.2",
                "tcp/5432 10.0.0.2 10.0.0.1",
            ],
        ),
    ]);
}

#[test]
fn sets_of_addresses() {
    check(vec![
        into(
            json!({"protocol": "TCP", "source": {"selector": "set == 'none'"}}),
            &[],
            &[
                "253 10.0.0.1 10.0.0.2",
                "tcp/80 10.0.0.1 10.0.0.2",
                "icmp 10.0.0.1 10.0.0.2",
            ],
        ),
        into(
            json!({"protocol": "TCP", "source": {"notSelector": "set == 'none'"}}),
            &["tcp/80 10.0.0.1 10.0.0.2", "tcp/80 123.0.0.1 10.0.0.2"],
            &["253 10.0.0.1 10.0.0.2", "udp/80 10.0.0.1 10.0.0.2"],
        ),
        into(
            json!({"source": {"selector": "set == 'a'"}}),
            &[
                "253 10.0.0.1 10.0.0.2",
                "udp/1024 10.9.9.9 10.0.0.2",
                "icmp 10.0.0.1 10.0.0.2",
            ],
            &["253 11.0.0.2 10.0.0.1", "tcp/8080 11.0.0.1 10.0.0.2"],
        ),
        out_of(
            json!({"destination": {"selector": "set == 'b'"}}),
            &["253 10.0.0.2 11.0.0.1", "udp/1024 10.0.0.2 123.0.0.1"],
            &["253 10.0.0.2 10.0.0.1", "udp/80 10.0.0.1 10.0.0.2"],
        ),
        into(
            json!({"source": {"notSelector": "set == 'a'"}}),
            &["253 11.0.0.2 10.0.0.1", "tcp/8080 11.0.0.1 10.0.0.2"],
            &[
                "253 10.0.0.2 10.0.0.1",
                "tcp/31245 10.0.0.2 10.0.0.1",
                "icmp 10.0.0.1 10.0.0.2",
            ],
        ),
        out_of(
            json!({"destination": {"notSelector": "set == 'b'"}}),
            &["253 10.0.0.2 10.0.0.1", "udp/80 10.0.0.1 10.0.0.2"],
            &["253 10.0.0.2 11.0.0.1", "udp/1024 10.0.0.2 123.0.0.1"],
        ),
        // Several at once.
        out_of(
            json!({"destination": {"selector": "set in {'a', 'b'}", "notSelector": "set == 'a'", "nets": ["11.0.0.0/9"]}}),
            &["tcp/80 10.0.0.1 11.0.0.1"],
            &[
                "tcp/80 10.0.0.1 11.200.0.1",
                "tcp/80 10.0.0.1 123.0.0.1",
                "tcp/80 10.0.0.1 10.9.9.9",
            ],
        ),
    ]);
}

#[test]
fn tiers_pass_allow_deny_and_end() {
    let first = |rules: Value, end: &str| {
        [
            tier("t1", json!({"order": 1, "defaultAction": end})),
            tier("t2", json!({"order": 2})),
            gnp(
                "p1",
                json!({"tier": "t1", "types": ["Ingress"], "ingress": rules}),
            ),
            gnp(
                "p2",
                json!({"tier": "t2", "ingress": [{"action": "Allow", "source": {"nets": ["10.0.0.1/32"]}}]}),
            ),
        ]
    };
    let net = |action: &str| json!([{"action": action, "source": {"nets": ["10.0.0.0/8"]}}]);
    let (own, other, outside) = (
        "tcp/80 10.0.0.1 10.0.0.2",
        "tcp/80 10.0.0.2 10.0.0.1",
        "tcp/80 11.0.0.1 10.0.0.2",
    );
    for (rules, end, allowed, denied) in [
        (net("Allow"), "Deny", vec![own, other], vec![outside]),
        (net("Deny"), "Deny", vec![], vec![own, other, outside]),
        (net("Deny"), "Pass", vec![], vec![own, other, outside]),
        (net("Pass"), "Deny", vec![own], vec![other, outside]),
        (net("Allow"), "Pass", vec![own, other], vec![outside]),
        (json!([]), "Pass", vec![own], vec![other, outside]),
        (json!([]), "Deny", vec![], vec![own, other, outside]),
        (net("Log"), "Pass", vec![own], vec![other, outside]),
    ] {
        let case = format!("{rules} and then {end}");
        let world = World::new(&first(rules, end));
        ask(&world, &allowed, true, &case);
        ask(&world, &denied, false, &case);
    }
}

/// Two tiers, five pods and policies whose rules are for some of the pods that they select (`tiered_policy_test.go`, in names
/// of our own): staged ones between them change nothing.
#[test]
fn tiers_with_rules_for_some_of_the_selected_pods() {
    let pod = |name: &str, address: &str| {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "lab", "labels": {"name": name}},
            "status": {"podIPs": [{"ip": address}]}})
    };
    let named = |name: &str| json!({"selector": format!("name == '{name}'")});
    let all = json!([{"action": "Allow"}]);
    let lab = |kind: &str, name: &str, selector: &str, mut spec: Value| {
        spec["selector"] = json!(selector);
        super::object(kind, name, spec)
    };
    let world = |end: &str| {
        let ones = "name in {'one', 'two'}";
        World::new(&[
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "lab"}}),
            pod("peer", "10.65.0.0"),
            pod("one", "10.65.1.0"),
            pod("two", "10.65.1.1"),
            pod("three", "10.65.1.2"),
            pod("four", "10.65.1.3"),
            tier("t1", json!({"order": 1, "defaultAction": end})),
            tier("t2", json!({"order": 2, "defaultAction": "Deny"})),
            lab(
                "GlobalNetworkPolicy",
                "peer",
                "name == 'peer'",
                json!({"order": 1, "ingress": all, "egress": all}),
            ),
            lab(
                "GlobalNetworkPolicy",
                "four",
                "name == 'four'",
                json!({"tier": "t1", "order": 1, "ingress": [{"action": "Allow", "source": named("one")}],
                    "egress": [{"action": "Allow", "destination": named("one")}]}),
            ),
            lab(
                "NetworkPolicy",
                "lab/ones",
                ones,
                json!({"tier": "t1", "order": 1,
                    "egress": [{"action": "Pass", "source": named("one")}, {"action": "Deny", "source": named("two")}],
                    "ingress": [{"action": "Allow", "destination": named("one")}, {"action": "Pass", "destination": named("two")}]}),
            ),
            lab(
                "StagedNetworkPolicy",
                "lab/staged-one",
                "name == 'one'",
                json!({"tier": "t2", "order": 1, "egress": all}),
            ),
            lab(
                "GlobalNetworkPolicy",
                "three-out",
                "name == 'three'",
                json!({"tier": "t2", "order": 2, "types": ["Egress"], "egress": [{"action": "Deny"}]}),
            ),
            lab(
                "StagedNetworkPolicy",
                "lab/staged-two",
                "name in {'two', 'three'}",
                json!({"tier": "t2", "order": 3, "types": ["Ingress"], "ingress": [{"action": "Deny", "destination": named("two")}]}),
            ),
            lab(
                "NetworkPolicy",
                "lab/three-in",
                "name == 'three'",
                json!({"tier": "t2", "order": 3, "types": ["Ingress"], "ingress": [{"action": "Deny"}]}),
            ),
            lab(
                "NetworkPolicy",
                "lab/two-in",
                "name == 'two'",
                json!({"order": 2, "types": ["Ingress"], "ingress": all}),
            ),
        ])
    };
    let packets = |pairs: &[(&str, &str)]| -> Vec<String> {
        let packets = pairs.iter().map(|(src, dst)| format!("tcp/8055 {src} {dst}"));
        packets.collect()
    };
    let (peer, one, two, three, four) = ("10.65.0.0", "10.65.1.0", "10.65.1.1", "10.65.1.2", "10.65.1.3");
    let allowed = packets(&[(peer, one), (peer, two), (one, peer)]);
    let denied = packets(&[(peer, three), (two, peer), (three, peer)]);
    let by_end = packets(&[(peer, four), (four, peer)]);
    for end in ["Deny", "Pass"] {
        let world = world(end);
        let ask = |packets: &[String], passes| {
            let packets: Vec<&str> = packets.iter().map(String::as_str).collect();
            ask(&world, &packets, passes, &format!("a tier that ends in {end}"));
        };
        ask(&allowed, true);
        ask(&denied, false);
        ask(&by_end, end == "Pass");
        ask(&packets(&[(four, one)]), true);
    }
}
