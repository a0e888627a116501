//! What points and traps of the checklist come to in the lowered form, each by its number; what is refused, with its path;
//! and that nothing in an object makes decoding stop or widen.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may stop at the first surprise"
)]

mod refused;
mod together;

use ringwall_policy::{
    Condition, Object, Operator, Order, Part, Peer, PodSelection, PortMatch, Protocol, Selector, TierDefault,
    TieredPolicy, TieredRule,
};
use serde_json::{Value, json};

use super::{
    super::{DecodeError, Decoded, decode, decode_served},
    Input, StagedAction,
};

fn decoded(value: &Value) -> Result<Decoded, DecodeError> {
    decode(value).map(|mut decoded| decoded.pop().unwrap())
}

fn object(kind: &str, name: &str, spec: &Value) -> Value {
    let namespace = [
        "NetworkPolicy",
        "StagedNetworkPolicy",
        "StagedKubernetesNetworkPolicy",
        "NetworkSet",
    ];
    let mut metadata = json!({"name": name});
    if namespace.contains(&kind) {
        metadata["namespace"] = json!("shop");
    }
    json!({"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": metadata, "spec": spec})
}

/// A NetworkPolicy of namespace `shop`.
fn namespaced(spec: &Value) -> Value {
    object("NetworkPolicy", "p", spec)
}

/// A GlobalNetworkPolicy.
fn global(spec: &Value) -> Value {
    object("GlobalNetworkPolicy", "p", spec)
}

fn lowered(value: &Value) -> TieredPolicy {
    match decoded(value).unwrap_or_else(|wrong| panic!("{wrong}")).object {
        Object::Tiered(policy) => policy,
        other => panic!("{other:?}"),
    }
}

/// The one rule of a policy that has it in one direction.
fn rule(global: bool, direction: &str, rule: &Value) -> (TieredRule, TieredPolicy) {
    let spec = json!({direction: [rule]});
    let policy = lowered(&if global {
        self::global(&spec)
    } else {
        namespaced(&spec)
    });
    let rules = if direction == "ingress" {
        &policy.ingress
    } else {
        &policy.egress
    };
    (rules.as_ref().unwrap()[0].clone(), policy)
}

fn ingress(rule: &Value) -> String {
    words(&self::rule(false, "ingress", rule).0)
}

fn global_ingress(rule: &Value) -> String {
    words(&self::rule(true, "ingress", rule).0)
}

fn egress(rule: &Value) -> String {
    words(&self::rule(false, "egress", rule).0)
}

/// A rule, as `Allow from WHOM at WHERE`.
fn words(rule: &TieredRule) -> String {
    let peers = match &rule.peers {
        None => "anyone".to_owned(),
        Some(peers) => peers.iter().map(peer).collect::<Vec<_>>().join(", "),
    };
    let ports = match &rule.ports {
        None => "anywhere".to_owned(),
        Some(ports) => ports.iter().map(port).collect::<Vec<_>>().join(" "),
    };
    let one_of = |condition: &Condition| condition.any.iter().map(peer).collect::<Vec<_>>().join(", ");
    let condition = |whose: &str, condition: &Condition| {
        let not = if condition.negated { "not " } else { "" };
        format!(" {whose} {not}{}", one_of(condition))
    };
    let conditions = &rule.conditions;
    let of_peer = conditions.peer.iter().map(|it| condition("and", it));
    let of_own = conditions.own.iter().map(|it| condition("to", it));
    let ends: String = of_peer.chain(of_own).collect();
    let not: String = conditions
        .not_ports
        .iter()
        .map(|it| format!(" -{}", port(it)))
        .collect();
    let from: String = match &conditions.source_ports {
        None => String::new(),
        Some(ports) => ports.iter().map(|it| format!(" <{}", port(it))).collect(),
    };
    let not_from: String = conditions
        .not_source_ports
        .iter()
        .map(|it| format!(" -<{}", port(it)))
        .collect();
    format!("{:?} {peers}{ends} at {ports}{not}{from}{not_from}", rule.action)
}

fn peer(peer: &Peer) -> String {
    match peer {
        Peer::Pods { namespaces, pods } => {
            format!("[{}|{}]", selector(namespaces.as_ref().unwrap()), selector(pods))
        }
        Peer::Addresses(set) => set.clone(),
        Peer::Block { cidr, except } if except.is_empty() => cidr.to_string(),
        Peer::Block { cidr, except } => {
            let except: Vec<String> = except.iter().map(ToString::to_string).collect();
            format!("{cidr}-{}", except.join("-"))
        }
    }
}

fn port(port: &PortMatch) -> String {
    let name = |protocol: &Protocol| format!("{protocol:?}").to_lowercase();
    match port {
        PortMatch::All(protocol) => name(protocol),
        PortMatch::Range { protocol, lo, hi } if lo == hi => format!("{}/{lo}", name(protocol)),
        PortMatch::Range { protocol, lo, hi } => format!("{}/{lo}-{hi}", name(protocol)),
        PortMatch::Named { protocol, name: port } => format!("{}/{port}", name(protocol)),
        PortMatch::IpProtocol(number) => number.to_string(),
        PortMatch::Icmp { protocol, kind, code } => match code {
            Some(code) => format!("{protocol}/{kind}:{code}"),
            None => format!("{protocol}/{kind}"),
        },
    }
}

fn selector(selector: &Selector) -> String {
    let words = selector.requirements.iter().map(|requirement| {
        let key = requirement.key.replace("kubernetes.io/metadata.name", "ns");
        let list = |values: &std::collections::BTreeSet<String>| {
            values.iter().cloned().collect::<Vec<_>>().join("/")
        };
        match &requirement.operator {
            Operator::In(values) => format!("{key}={}", list(values)),
            Operator::NotIn(values) => format!("{key}!={}", list(values)),
            Operator::Exists => key,
            Operator::DoesNotExist => format!("!{key}"),
            Operator::Like { part, text, negated } => {
                let sign = match part {
                    Part::Anywhere => "~",
                    Part::Start => "^",
                    Part::End => "$",
                };
                format!("{}{key}{sign}{text}", if *negated { "!" } else { "" })
            }
        }
    });
    words.collect::<Vec<_>>().join("&")
}

fn subjects(value: &Value) -> String {
    let words = |it: &PodSelection| format!("[{}|{}]", selector(&it.namespaces), selector(&it.pods));
    lowered(value)
        .subjects
        .iter()
        .map(words)
        .collect::<Vec<_>>()
        .join(" ")
}

const NOTHING: &str = "Allow  at anywhere";
const EVERYTHING: &str = "Deny anyone at anywhere";

#[test]
fn t79_a_tier_has_order_and_default() {
    let tier = |name: &str, spec: Value| match decoded(&object("Tier", name, &spec)).unwrap().object {
        Object::Tier(tier) => (tier.name, tier.order.number(), tier.default),
        other => panic!("{other:?}"),
    };
    assert_eq!(
        tier("a", json!({"order": 0.5})),
        ("a".to_owned(), 0.5, TierDefault::Deny)
    );
    assert_eq!(
        tier("a", json!({"order": -3, "defaultAction": "Pass"})),
        ("a".to_owned(), -3.0, TierDefault::Pass)
    );
    assert_eq!(tier("a", json!({"defaultAction": "Deny"})).2, TierDefault::Deny);
    for (name, order, default) in [
        ("kube-admin", 1000.0, "Pass"),
        ("default", 1e6, "Deny"),
        ("kube-baseline", 1e7, "Pass"),
    ] {
        tier(name, json!({"order": order, "defaultAction": default}));
        for wrong in [
            json!({"order": order + 1.0, "defaultAction": default}),
            json!({"defaultAction": default}),
            json!({"order": order, "defaultAction": if default == "Pass" { "Deny" } else { "Pass" }}),
        ] {
            decoded(&object("Tier", name, &wrong)).unwrap_err();
        }
    }
}

#[test]
fn t37_a_tier_without_order_has_that_of_the_default_tier() {
    let Object::Tier(tier) = decoded(&object("Tier", "app", &json!({}))).unwrap().object else {
        panic!("no tier");
    };
    assert_eq!(tier.order.number(), 1_000_000.0);
}

#[test]
fn t83_a_policy_without_order_comes_last() {
    let order = |spec: Value| lowered(&namespaced(&spec)).order;
    assert_eq!(order(json!({})), Order::LAST);
    assert_eq!(order(json!({"order": null})), Order::LAST);
    assert_eq!(order(json!({"order": 10.5})).number(), 10.5);
    assert_eq!(order(json!({"order": -1})).number(), -1.0);
    assert!(order(json!({"order": 1e300})) < Order::LAST);
}

#[test]
fn t43_a_tier_need_not_exist() {
    assert_eq!(lowered(&namespaced(&json!({"tier": "nope"}))).tier, "nope");
    assert_eq!(lowered(&namespaced(&json!({}))).tier, "default");
    assert_eq!(lowered(&namespaced(&json!({"tier": ""}))).tier, "default");
    assert_eq!(
        lowered(&global(&json!({"tier": "kube-admin"}))).tier,
        "kube-admin"
    );
}

#[test]
fn t80_types_that_are_absent_follow_the_rules() {
    let allow = json!([{"action": "Allow"}]);
    let types = |spec: Value| {
        let policy = lowered(&namespaced(&spec));
        (policy.ingress.is_some(), policy.egress.is_some())
    };
    assert_eq!(types(json!({})), (true, false));
    assert_eq!(types(json!({"ingress": []})), (true, false));
    assert_eq!(types(json!({"ingress": allow})), (true, false));
    assert_eq!(types(json!({"egress": allow})), (false, true));
    assert_eq!(types(json!({"ingress": [], "egress": allow})), (false, true));
    assert_eq!(types(json!({"ingress": allow, "egress": allow})), (true, true));
    assert_eq!(types(json!({"types": ["Egress"]})), (false, true));
    assert_eq!(types(json!({"types": ["Egress", "Ingress"]})), (true, true));
    // Rules of a direction not in types have no effect.
    let policy = decoded(&namespaced(&json!({"types": ["Ingress"], "egress": allow}))).unwrap();
    assert_eq!(policy.notes.len(), 1);
}

#[test]
fn t70_an_empty_list_of_egress_is_no_type() {
    let policy = lowered(&namespaced(&json!({"egress": []})));
    assert_eq!(policy.ingress, Some(Vec::new()));
    assert_eq!(policy.egress, None);
}

#[test]
fn t98_a_networkpolicy_selects_in_its_namespace() {
    assert_eq!(subjects(&namespaced(&json!({}))), "[ns=shop|]");
    assert_eq!(subjects(&namespaced(&json!({"selector": "all()"}))), "[ns=shop|]");
    assert_eq!(
        subjects(&namespaced(&json!({"selector": "a == 'b' || has(c)"}))),
        "[ns=shop|a=b] [ns=shop|c]"
    );
    assert_eq!(
        subjects(&namespaced(&json!({"serviceAccountSelector": "team == 'x'"}))),
        "[ns=shop|serviceaccount:team=x]"
    );
    // Of another namespace there is nothing.
    assert_eq!(
        subjects(&namespaced(
            &json!({"selector": "projectcalico.org/namespace == 'other'"})
        )),
        ""
    );
}

#[test]
fn t98_a_globalnetworkpolicy_selects_by_namespace_and_account() {
    assert_eq!(subjects(&global(&json!({}))), "[|]");
    for all in ["all()", "has(projectcalico.org/name)"] {
        assert_eq!(subjects(&global(&json!({"namespaceSelector": all}))), "[|]");
        assert_eq!(subjects(&global(&json!({"serviceAccountSelector": all}))), "[|]");
    }
    assert_eq!(
        subjects(&global(&json!({
            "selector": "role == 'db'",
            "namespaceSelector": "team != 'a' && projectcalico.org/name in {'x', 'y'}",
            "serviceAccountSelector": "has(tier)",
        }))),
        "[ns=x/y&team!=a|role=db&serviceaccount:tier]"
    );
}

#[test]
fn t55_labels_of_a_pod_are_not_those_of_its_namespace() {
    assert_eq!(
        subjects(&global(&json!({"selector": "pcns.team == 'admin'"}))),
        "[team=admin|]"
    );
    assert_eq!(
        subjects(&global(&json!({"selector": "pcsa.team == 'admin'"}))),
        "[|serviceaccount:team=admin]"
    );
}

#[test]
fn t99_a_rule_without_peers_is_for_anyone() {
    assert_eq!(ingress(&json!({"action": "Allow"})), "Allow anyone at anywhere");
    assert_eq!(
        ingress(&json!({"action": "Deny", "source": {}, "destination": null})),
        EVERYTHING
    );
    assert_eq!(ingress(&json!({"action": "Log"})), "Log anyone at anywhere");
    assert_eq!(egress(&json!({"action": "Pass"})), "Pass anyone at anywhere");
}

#[test]
fn t99_1_selectors_of_a_networkpolicy_are_for_its_namespace() {
    let source = |source: Value| json!({"action": "Allow", "source": source});
    for (peer, namespaced, everywhere) in [
        (json!({"selector": "a == 'b'"}), "[ns=shop|a=b]", "[|a=b]"),
        (json!({"selector": "all()"}), "[ns=shop|]", "[|]"),
        (
            json!({"serviceAccounts": {"names": ["s"]}}),
            "[ns=shop|serviceaccount:projectcalico.org/name=s]",
            "[|serviceaccount:projectcalico.org/name=s]",
        ),
        (
            json!({"serviceAccounts": {"names": ["s", "t"], "selector": "has(team)"}}),
            "[ns=shop|serviceaccount:projectcalico.org/name=s/t&serviceaccount:team]",
            "[|serviceaccount:projectcalico.org/name=s/t&serviceaccount:team]",
        ),
        (
            json!({"namespaceSelector": "team == 'x'", "selector": "a == 'b'"}),
            "[team=x|a=b]",
            "[team=x|a=b]",
        ),
        (json!({"namespaceSelector": "all()"}), "[|]", "[|]"),
        (json!({"namespaceSelector": "global()"}), "", ""),
        (
            json!({"namespaceSelector": "all()", "selector": "has(a)"}),
            "[|a]",
            "[|a]",
        ),
        (json!({"nets": ["10.0.0.0/8"]}), "10.0.0.0/8", "10.0.0.0/8"),
        (
            json!({"selector": "", "namespaceSelector": ""}),
            "anyone",
            "anyone",
        ),
        (json!({"serviceAccounts": {}}), "anyone", "anyone"),
    ] {
        let rule = source(peer.clone());
        assert_eq!(
            ingress(&rule),
            format!("Allow {namespaced} at anywhere"),
            "{peer}"
        );
        assert_eq!(
            global_ingress(&rule),
            format!("Allow {everywhere} at anywhere"),
            "{peer}"
        );
    }
}

#[test]
fn t71_account_names_are_of_any_namespace_in_a_globalnetworkpolicy() {
    let rule = json!({"action": "Allow", "source": {"serviceAccounts": {"names": ["s"]}}});
    assert_eq!(
        global_ingress(&rule),
        "Allow [|serviceaccount:projectcalico.org/name=s] at anywhere"
    );
    let pod = |spec: Value| {
        let value = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec});
        match decoded(&value).unwrap().object {
            Object::Pod(pod) => pod.service_account,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(pod(json!({})), "default");
    assert_eq!(pod(json!({"serviceAccountName": "s"})), "s");
    assert_eq!(pod(json!({"serviceAccount": "old"})), "old");
    assert_eq!(pod(json!({"serviceAccountName": ""})), "default");
}

#[test]
fn t96_5_selector_and_notselector_are_joined_per_object() {
    let rule =
        json!({"action": "Allow", "source": {"selector": "has(a)", "notSelector": "b == 'c' || has(x)"}});
    assert_eq!(global_ingress(&rule), "Allow [|a&b!=c&!x] at anywhere");
}

#[test]
fn t49_notselector_alone_is_for_the_own_namespace_or_for_everything() {
    let not = json!({"action": "Allow", "source": {"notSelector": "has(x)"}});
    assert_eq!(ingress(&not), "Allow [ns=shop|!x] at anywhere");
    assert_eq!(global_ingress(&not), "Allow anyone and not [|x] at anywhere");
}

#[test]
fn t53_a_namespace_selector_that_is_negative_holds_without_a_namespace() {
    // The pods of it; that sets are among it too is a matter of the objects together.
    let rule = json!({"action": "Allow", "source": {"namespaceSelector": "team != \"a\""}});
    assert_eq!(global_ingress(&rule), "Allow [team!=a|] at anywhere");
}

#[test]
fn t99_6_blocks_are_for_their_version_of_ip() {
    for (source, expected) in [
        (
            json!({"nets": ["10.0.0.0/8", "192.0.2.0/24"]}),
            "10.0.0.0/8, 192.0.2.0/24",
        ),
        (json!({"nets": ["fd00::/8"]}), "fd00::/8"),
        (json!({"notNets": ["10.0.0.0/8"]}), "0.0.0.0/0-10.0.0.0/8"),
        (json!({"notNets": ["fd00::/8"]}), "::/0-fd00::/8"),
        (
            json!({"nets": ["10.0.0.0/8", "11.0.0.0/8"], "notNets": ["10.1.0.0/16", "12.0.0.0/8"]}),
            "10.0.0.0/8-10.1.0.0/16, 11.0.0.0/8",
        ),
        (json!({"nets": ["10.1.0.0/16"], "notNets": ["10.0.0.0/8"]}), ""),
    ] {
        let rule = json!({"action": "Allow", "source": source});
        assert_eq!(ingress(&rule), format!("Allow {expected} at anywhere"));
    }
}

#[test]
fn t58_notnets_of_one_version_match_nothing_of_the_other() {
    let rule = json!({"action": "Deny", "source": {"notNets": ["10.0.0.0/8"]}});
    assert_eq!(ingress(&rule), "Deny 0.0.0.0/0-10.0.0.0/8 at anywhere");
}

#[test]
fn t59_a_block_that_is_none_costs_the_rule() {
    for net in [
        "10.0.0.0/33",
        "10.0.0.1/8",
        "10.0.0.1",
        "010.0.0.0/8",
        "::ffff:10.0.0.0/104",
        "x",
        "",
    ] {
        for key in ["nets", "notNets"] {
            let rule = |action: &str| json!({"action": action, "source": {key: [net]}});
            assert_eq!(ingress(&rule("Allow")), NOTHING, "{net}");
            assert_eq!(ingress(&rule("Deny")), EVERYTHING, "{net}");
            assert_eq!(ingress(&rule("Pass")), EVERYTHING, "{net}");
            assert_eq!(ingress(&rule("Log")), "Log  at anywhere", "{net}");
        }
    }
}

#[test]
fn t66_names_of_icmp_imply_a_version_and_numbers_do_not() {
    let rule = |protocol: Value| json!({"action": "Allow", "protocol": protocol});
    assert_eq!(ingress(&rule(json!("ICMP"))), "Allow 0.0.0.0/0 at 1");
    assert_eq!(ingress(&rule(json!(1))), "Allow anyone at 1");
    assert_eq!(ingress(&rule(json!(58))), "Allow anyone at 58");
}

#[test]
fn t67_icmp_is_not_that_of_ipv6() {
    let rule = |protocol: &str| json!({"action": "Allow", "protocol": protocol});
    assert_eq!(ingress(&rule("ICMP")), "Allow 0.0.0.0/0 at 1");
    assert_eq!(ingress(&rule("ICMPv6")), "Allow ::/0 at 58");
    let nets = json!({"action": "Allow", "protocol": "ICMPv6", "source": {"nets": ["10.0.0.0/8"]}});
    assert_eq!(ingress(&nets), "Allow  at 58");
}

#[test]
fn t99_8_protocols_and_what_is_none_of_them() {
    let matched = |rule: Value| {
        let mut rule = rule;
        rule["action"] = json!("Allow");
        ingress(&rule).split_once(" at ").unwrap().1.to_owned()
    };
    for (protocol, expected) in [
        (json!("TCP"), "tcp"),
        (json!(6), "tcp"),
        (json!("17"), "udp"),
        (json!("SCTP"), "sctp"),
        (json!("UDPLite"), "136"),
        (json!(255), "255"),
    ] {
        assert_eq!(matched(json!({"protocol": protocol})), expected, "{protocol}");
    }
    assert_eq!(matched(json!({"protocol": "TCP", "notProtocol": "UDP"})), "tcp");
    let none = json!({"action": "Allow", "protocol": "TCP", "notProtocol": 6});
    assert_eq!(ingress(&none), NOTHING);
}

#[test]
fn t99_7_ports_are_numbers_ranges_and_names() {
    let at = |protocol: Option<&str>, destination: Value| {
        let rule = json!({"action": "Allow", "protocol": protocol, "destination": destination});
        let (own, peer) = (ingress(&rule), egress(&rule));
        assert_eq!(own, peer);
        own.strip_prefix("Allow anyone at ").unwrap_or(&own).to_owned()
    };
    assert_eq!(
        at(Some("TCP"), json!({"ports": [80, "443", "8000:9000"]})),
        "tcp/80 tcp/443 tcp/8000-9000"
    );
    assert_eq!(
        at(Some("UDP"), json!({"ports": ["dns", 5353]})),
        "udp/5353 udp/dns"
    );
    assert_eq!(
        at(Some("TCP"), json!({"notPorts": [80, "8000:9000"]})),
        "tcp -tcp/80 -tcp/8000-9000"
    );
    assert_eq!(
        at(Some("TCP"), json!({"ports": ["1:100"], "notPorts": [80]})),
        "tcp/1-100 -tcp/80"
    );
    assert_eq!(
        at(Some("TCP"), json!({"ports": ["web"], "notPorts": [80]})),
        "tcp/web -tcp/80"
    );
    assert_eq!(
        at(None, json!({"notPorts": ["dns"]})),
        "anywhere -tcp/dns -udp/dns -sctp/dns"
    );
}

#[test]
fn t63_a_named_port_without_protocol_is_of_any() {
    let rule = json!({"action": "Allow", "destination": {"ports": ["dns"]}});
    assert_eq!(ingress(&rule), "Allow anyone at tcp/dns udp/dns sctp/dns");
    let rule = json!({"action": "Allow", "notProtocol": "TCP", "destination": {"ports": ["dns"]}});
    assert_eq!(ingress(&rule), "Allow anyone at udp/dns sctp/dns");
}

#[test]
fn t64_notports_with_names_leave_the_rest() {
    let rule = json!({"action": "Allow", "protocol": "TCP", "destination": {"notPorts": ["dns", 80]}});
    assert_eq!(egress(&rule), "Allow anyone at tcp -tcp/80 -tcp/dns");
    let rule = json!({"action": "Allow", "notProtocol": "TCP", "destination": {"notPorts": ["dns"]}});
    assert_eq!(egress(&rule), "Allow anyone at anywhere -udp/dns -sctp/dns -tcp");
}

#[test]
fn t68_http_matches_every_connection_and_is_incomplete() {
    let http = json!({"action": "Allow", "protocol": "TCP", "http": {"methods": ["GET"], "paths": [{"exact": "/x"}]},
        "destination": {"ports": [80]}});
    let (rule, policy) = rule(false, "ingress", &http);
    assert_eq!(words(&rule), "Allow anyone at tcp/80");
    assert_eq!(
        policy.unevaluated.iter().collect::<Vec<_>>(),
        ["http of NetworkPolicy.projectcalico.org"]
    );
}

#[test]
fn types_of_icmp_are_what_a_rule_matches_or_not() {
    for (rule, expected) in [
        (json!({"protocol": 1, "icmp": {"type": 8}}), "Allow anyone at 1/8"),
        (
            json!({"protocol": 58, "icmp": {"type": 1, "code": 0}}),
            "Allow anyone at 58/1:0",
        ),
        (json!({"protocol": 1, "icmp": {}}), "Allow anyone at 1"),
    ] {
        let mut rule = rule;
        rule["action"] = json!("Allow");
        let (read, policy) = self::rule(true, "ingress", &rule);
        assert_eq!(words(&read), expected, "{rule}");
        assert!(policy.unevaluated.is_empty(), "{rule}");
    }
    let not = json!({"action": "Allow", "protocol": 1, "notICMP": {"type": 8, "code": 0}});
    let (read, _) = self::rule(true, "ingress", &not);
    let excluded = PortMatch::Icmp {
        protocol: 1,
        kind: 8,
        code: Some(0),
    };
    assert_eq!(read.ports, Some(vec![PortMatch::IpProtocol(1)]));
    assert_eq!(read.conditions.not_ports, [excluded]);
}

#[test]
fn source_ports_are_a_condition_of_a_rule() {
    let source = |source: Value| {
        let rule =
            json!({"action": "Allow", "protocol": "TCP", "source": source, "destination": {"ports": [80]}});
        let (read, policy) = self::rule(true, "ingress", &rule);
        assert!(policy.unevaluated.is_empty(), "{rule}");
        words(&read)
    };
    assert_eq!(
        source(json!({"ports": [1024, "2000:3000"]})),
        "Allow anyone at tcp/80 <tcp/1024 <tcp/2000-3000"
    );
    assert_eq!(
        source(json!({"notPorts": [53]})),
        "Allow anyone at tcp/80 <tcp/0-52 <tcp/54-65535"
    );
    assert_eq!(source(json!({"ports": [53], "notPorts": [53]})), NOTHING);
    // Names are those of the source.
    assert_eq!(
        source(json!({"ports": [1024, "web"]})),
        "Allow anyone at tcp/80 <tcp/1024 <tcp/web"
    );
    assert_eq!(
        source(json!({"notPorts": [53, "web"]})),
        "Allow anyone at tcp/80 -<tcp/53 -<tcp/web"
    );
    assert_eq!(
        source(json!({"ports": ["1:9"], "notPorts": ["web"]})),
        "Allow anyone at tcp/80 <tcp/1-9 -<tcp/web"
    );
    let (read, _) = self::rule(
        true,
        "egress",
        &json!({"action": "Deny", "notProtocol": "TCP", "source": {"notPorts": ["web"]}}),
    );
    assert_eq!(words(&read), "Deny anyone at anywhere -tcp -<udp/web -<sctp/web");
}

#[test]
fn all_that_a_side_says_has_to_hold() {
    for (rule, expected) in [
        (
            json!({"source": {"selector": "has(a)", "nets": ["10.0.0.0/8"]}}),
            "Allow [|a] and 10.0.0.0/8 at anywhere",
        ),
        (
            json!({"source": {"namespaceSelector": "has(a)", "notNets": ["10.0.0.0/8"]}}),
            "Allow [a|] and 0.0.0.0/0-10.0.0.0/8 at anywhere",
        ),
        (
            json!({"source": {"notSelector": "has(a)"}}),
            "Allow anyone and not [|a] at anywhere",
        ),
        (
            json!({"source": {"notSelector": "has(a)", "nets": ["10.0.0.0/8", "11.0.0.0/8"], "notNets": ["10.1.0.0/16"]}}),
            "Allow 10.0.0.0/8-10.1.0.0/16, 11.0.0.0/8 and not [|a] at anywhere",
        ),
        (
            json!({"source": {"selector": "has(a)", "namespaceSelector": "has(b)", "notSelector": "has(c)",
                "serviceAccounts": {"names": ["s"]}}}),
            "Allow [b|a&!c&serviceaccount:projectcalico.org/name=s] at anywhere",
        ),
        (
            json!({"ipVersion": 4, "source": {"selector": "has(a)"}}),
            "Allow [|a] and 0.0.0.0/0 at anywhere",
        ),
        (
            json!({"protocol": "ICMP", "source": {"selector": "has(a)"}}),
            "Allow [|a] and 0.0.0.0/0 at 1",
        ),
        (
            json!({"protocol": "ICMPv6", "source": {"notSelector": "has(a)"}}),
            "Allow ::/0 and not [|a] at 58",
        ),
        (json!({"notProtocol": "TCP"}), "Allow anyone at anywhere -tcp"),
        (json!({"notProtocol": "UDPLite"}), "Allow anyone at anywhere -136"),
        (
            json!({"destination": {"selector": "has(a)"}}),
            "Allow anyone to [|a] at anywhere",
        ),
        (
            json!({"destination": {"nets": ["10.0.0.0/8"]}}),
            "Allow anyone to 10.0.0.0/8 at anywhere",
        ),
        (
            json!({"destination": {"notSelector": "has(a)", "notNets": ["10.0.0.0/8"]}}),
            "Allow anyone to not [|a] to 0.0.0.0/0-10.0.0.0/8 at anywhere",
        ),
        (
            json!({"destination": {"serviceAccounts": {"names": ["a"]}}}),
            "Allow anyone to [|serviceaccount:projectcalico.org/name=a] at anywhere",
        ),
    ] {
        let mut rule = rule;
        rule["action"] = json!("Allow");
        let (read, policy) = self::rule(true, "ingress", &rule);
        assert_eq!(words(&read), expected, "{rule}");
        assert!(policy.unevaluated.is_empty(), "{rule}: {:?}", policy.unevaluated);
        assert!(policy.faults.is_empty(), "{rule}: {:?}", policy.faults);
    }
}

#[test]
fn what_says_nothing_of_the_own_side_is_understood() {
    for destination in [
        json!({"selector": "all()"}),
        json!({"selector": "has(a) || all()"}),
        json!({"namespaceSelector": "projectcalico.org/name == 'shop'"}),
        json!({"namespaceSelector": "all()"}),
    ] {
        let rule = json!({"action": "Allow", "destination": destination});
        assert_eq!(ingress(&rule), "Allow anyone at anywhere", "{rule}");
    }
    assert_eq!(
        global_ingress(
            &json!({"action": "Allow", "destination": {"namespaceSelector": "projectcalico.org/name == 'shop'"}})
        ),
        "Allow anyone to [ns=shop|] at anywhere"
    );
    assert_eq!(
        ingress(&json!({"action": "Allow", "protocol": "ICMP", "icmp": {}})),
        "Allow 0.0.0.0/0 at 1"
    );
}

#[test]
fn t69_policies_of_hosts_alone_do_nothing_to_pods() {
    for flag in ["doNotTrack", "preDNAT"] {
        let value = global(&json!({flag: true, "applyOnForward": true, "ingress": [{"action": "Deny"}]}));
        let decoded = decoded(&value).unwrap();
        let kind = format!("{flag} GlobalNetworkPolicy.projectcalico.org");
        assert_eq!(decoded.object, Object::Unevaluated { kind });
        assert_eq!(decoded.input, None);
    }
    let policy = lowered(&global(
        &json!({"applyOnForward": true, "ingress": [{"action": "Allow"}]}),
    ));
    assert_eq!(words(&policy.ingress.unwrap()[0]), "Allow anyone at anywhere");
    assert_eq!(
        policy.unevaluated.iter().collect::<Vec<_>>(),
        ["applyOnForward of GlobalNetworkPolicy.projectcalico.org"]
    );
}

#[test]
fn t38_staged_policies_are_not_in_force() {
    for (kind, spec) in [
        (
            "StagedNetworkPolicy",
            json!({"ingress": [{"action": "Deny"}], "tier": "a"}),
        ),
        (
            "StagedGlobalNetworkPolicy",
            json!({"stagedAction": "Learn", "namespaceSelector": "all()"}),
        ),
        (
            "StagedKubernetesNetworkPolicy",
            json!({"podSelector": {}, "policyTypes": ["Ingress"]}),
        ),
        (
            "StagedNetworkPolicy",
            json!({"stagedAction": "Delete", "tier": "a"}),
        ),
    ] {
        let decoded = decoded(&object(kind, "p", &spec)).unwrap();
        assert_eq!(
            decoded.object,
            Object::Ignored {
                kind: kind.to_owned()
            }
        );
        assert!(decoded.unevaluated.is_empty());
        assert!(decoded.faults.is_empty(), "{:?}", decoded.faults);
        let Some(Input::Staged(staged)) = decoded.input.as_deref() else {
            panic!("{kind}: {:?}", decoded.input);
        };
        let action = match spec["stagedAction"].as_str() {
            Some("Delete") => StagedAction::Delete,
            Some("Learn") => StagedAction::Learn,
            _ => StagedAction::Set,
        };
        assert_eq!(staged.action, action);
    }
}

#[test]
fn t96_6_stored_objects_have_the_metadata_that_they_were_written_with() {
    let stored = |metadata: Value| {
        json!({"apiVersion": "crd.projectcalico.org/v1", "kind": "NetworkPolicy", "metadata": {
            "name": "default.p", "namespace": "shop", "labels": {"kept": "yes", "a": "old"},
            "annotations": {"projectcalico.org/metadata": metadata}}, "spec": {"selector": "has(a)"}})
    };
    let own = r#"{"name": "p", "labels": {"a": "b"}, "creationTimestamp": null, "annotations": null}"#;
    let policy = lowered(&stored(json!(own)));
    assert_eq!(policy.id.to_string(), "shop/p");
    assert_eq!(subjects(&stored(json!("{}"))), "[ns=shop|a]");
    assert_eq!(lowered(&stored(json!("{}"))).id.to_string(), "shop/default.p");
    for wrong in ["", "[]", "{", r#"{"labels": 1}"#] {
        decoded(&stored(json!(wrong))).unwrap_err();
    }
    let set = json!({"apiVersion": "crd.projectcalico.org/v1", "kind": "GlobalNetworkSet", "metadata": {
        "name": "g", "annotations": {"projectcalico.org/metadata": r#"{"labels": {"role": "db"}}"#}},
        "spec": {"nets": ["10.0.0.0/8"]}});
    let Some(Input::Set(set)) = decoded(&set).unwrap().input.as_deref().cloned() else {
        panic!("no set");
    };
    assert_eq!(set.labels["role"], "db");
    // In the other group, the annotation is one like others.
    let mut other = stored(json!(own));
    other["apiVersion"] = json!("projectcalico.org/v3");
    assert_eq!(lowered(&other).id.to_string(), "shop/default.p");
}

#[test]
fn t56_a_set_cannot_claim_labels_of_namespaces() {
    for key in ["pcns.team", "pcsa.team", "projectcalico.org/namespace"] {
        for kind in ["NetworkSet", "GlobalNetworkSet"] {
            let mut set = object(kind, "s", &json!({"nets": ["10.0.0.0/8"]}));
            set["metadata"]["labels"] = json!({key: "admin"});
            let wrong = decoded(&set).unwrap_err();
            assert_eq!(wrong.fault.path, format!("metadata.labels[{key:?}]"), "{wrong}");
        }
    }
}

#[test]
fn t96_3_a_set_has_what_can_be_read_of_it() {
    let set = object(
        "GlobalNetworkSet",
        "s",
        &json!({"nets": ["10.1.2.3/8", "192.0.2.1", "x", "fd00::1", "10.0.0.0/33"]}),
    );
    let decoded = decoded(&set).unwrap();
    let paths: Vec<&str> = decoded.faults.iter().map(|fault| fault.path.as_str()).collect();
    assert_eq!(paths, ["spec.nets[2]", "spec.nets[4]"]);
    let Some(Input::Set(set)) = decoded.input.as_deref() else {
        panic!("no set");
    };
    let blocks: Vec<String> = set.blocks.iter().map(ToString::to_string).collect();
    assert_eq!(blocks, ["10.0.0.0/8", "192.0.2.1/32", "fd00::1/128"]);
}

#[test]
fn what_was_meant_to_be_a_policy_of_calico_is_refused() {
    for (api_version, kind) in [
        ("projectcalico.org/v3", "networkpolicy"),
        ("projectcalico.org/v3", "GlobalNetworkPolicies"),
        ("projectcalico.org/v3", "GlobalNetworkpolicy"),
        ("projectcalico.org/v3", "GlobalPolicy"),
        ("projectcalico.org/v1", "NetworkPolicy"),
        ("crd.projectcalico.org/v3", "GlobalNetworkPolicy"),
        ("projectcalico.org/v3", "tier"),
    ] {
        let value = json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": "p"}, "spec": {}});
        decoded(&value).unwrap_err();
    }
    for kind in [
        "IPPool",
        "FelixConfiguration",
        "BGPPeer",
        "KubeControllersConfiguration",
    ] {
        let value = json!({"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": {"name": "p"}});
        assert_eq!(
            decoded(&value).unwrap().object,
            Object::Ignored {
                kind: kind.to_owned()
            }
        );
    }
    let profile = |name: &str| decoded(&object("Profile", name, &json!({}))).unwrap().object;
    assert_eq!(
        profile("mine"),
        Object::Unevaluated {
            kind: "Profile.projectcalico.org".to_owned()
        }
    );
    for name in ["kns.shop", "ksa.shop.web", "projectcalico-default-allow"] {
        assert_eq!(
            profile(name),
            Object::Ignored {
                kind: "Profile".to_owned()
            }
        );
    }
}

#[test]
fn a_kind_with_the_name_of_another_is_named_with_its_group() {
    let decoded = decoded(&namespaced(&json!({}))).unwrap();
    assert_eq!(decoded.label, "NetworkPolicy.projectcalico.org shop/p");
    assert!(decoded.input.is_some());
    assert_eq!(
        lowered(&namespaced(&json!({}))).id.label(),
        "NetworkPolicy.projectcalico.org shop/p"
    );
}

#[test]
fn a_server_s_object_is_read_as_a_file_s() {
    let mut value = namespaced(
        &json!({"tier": "default", "order": 10, "selector": "has(a)", "types": ["Ingress"],
        "ingress": [{"action": "Allow", "source": {"selector": "has(b)"}, "destination": {}}]}),
    );
    let of_file = lowered(&value);
    value["metadata"]["managedFields"] = json!([{}]);
    value["metadata"]["somethingNew"] = json!(1);
    let of_server = decode_served(&value).unwrap().pop().unwrap();
    assert_eq!(of_server.object, Object::Tiered(of_file));
}
