//! Whether the packet that a difference names is what it says: asked of the literal evaluator and of the snapshot.

use std::net::IpAddr;

use ringwall_evaluate::{Cause, End, Service};
use ringwall_policy::{Cluster, ObjectKey, PolicyId, PolicyKind};
use ringwall_prove::{Answer, Difference};

fn name(tier: &str, policy: &PolicyId) -> String {
    match policy.kind {
        PolicyKind::NetworkPolicy if tier == "NetworkPolicy" => policy.to_string(),
        kind => format!("{} {policy} of tier {tier}", kind.name()),
    }
}

fn words(cause: &Cause) -> String {
    match cause {
        Cause::Rule { tier, policy, index } => format!("rule {index} of {}", name(tier, policy)),
        Cause::Denied { tier, policy, index } => {
            format!("denied by rule {index} of {}", name(tier, policy))
        }
        Cause::Isolated { tier, policies } => {
            let names: Vec<String> = policies.iter().map(|policy| name(tier, policy)).collect();
            format!("isolated by {}", names.join(", "))
        }
        Cause::Open => "open".to_owned(),
        Cause::Profile => "profile".to_owned(),
        Cause::SelfTraffic => "self".to_owned(),
        Cause::HostingNode => "its node".to_owned(),
        Cause::Unknown => "unknown".to_owned(),
    }
}

fn end<'a>(cluster: &'a Cluster, text: &str) -> Option<End<'a>> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(ringwall_evaluate::identify(cluster, address));
    }
    let (namespace, name) = text.split_once('/')?;
    let key = ObjectKey {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    };
    ringwall_evaluate::named(cluster, &key)
}

/// What the evaluator says about the packet of a difference; None where it does not know an end.
fn evaluated(cluster: &Cluster, difference: &Difference) -> Option<Answer> {
    let (src, dst) = (end(cluster, &difference.src)?, end(cluster, &difference.dst)?);
    let service = Service {
        protocol: difference.protocol,
        port: difference.port,
        source_port: difference.source_port,
    };
    let verdict = ringwall_evaluate::judge(cluster, &src, &dst, service);
    Some(Answer {
        allow: verdict.allow(),
        ingress: words(&verdict.ingress.cause),
        egress: words(&verdict.egress.cause),
    })
}

/// Fails where the evaluator says another thing about the packet than the checker wants.
pub(crate) fn confirm(cluster: &Cluster, difference: &Difference) {
    // The evaluator trusts node addresses, and knows no machine.
    if difference.what.contains("not trusted") || difference.what.contains("is the pod's node") {
        return;
    }
    if let Some(evaluated) = evaluated(cluster, difference) {
        assert_eq!(evaluated, difference.wanted, "{difference}");
    }
}
