//! The order of tiers and of policies in one tier (TIERS 79.2, 83.1, 93, 101): of any two, the earlier one decides.

use ringwall_testbed::traps::Case;

use super::levels;

/// Tiers in the order in which they decide, with their `spec`; None for those that are there without an object, or that do not exist.
const TIERS: [(&str, Option<&str>); 14] = [
    ("negative", Some("{order: -5}")),
    ("half", Some("{order: 0.5}")),
    ("b-one", Some("{order: 1}")),
    ("bone", Some("{order: 1}")),
    ("one", Some("{order: 1}")),
    ("a-thousand", Some("{order: 1000}")),
    ("kube-admin", None),
    ("thousand", Some("{order: 1000}")),
    ("app", Some("{}")),
    ("default", None),
    ("zone", Some("{order: null}")),
    ("kube-baseline", None),
    ("ghost", None),
    ("nope", None),
];

/// Policies of a tier in the order in which they decide: shorthand of the kind, name, order.
const POLICIES: [(&str, &str, &str); 10] = [
    ("gnp", "zz", "-1"),
    ("gnp", "yy", "0"),
    ("gnp", "xx", "0.5"),
    // By the bytes of `name/namespace/kind`.
    ("gnp", "allow-x", "10"),
    ("gnp", "allow.x", "10"),
    ("gnp", "allow", "10"),
    ("calico", "allow", "10"),
    ("gnp", "allows", "10"),
    ("gnp", "a", "null"),
    ("calico", "b", "null"),
];

/// Each pair, once with the earlier one allowing and once denying.
fn pairs<T: Copy>(all: &[T], document: impl Fn(T, &str) -> Vec<String>) {
    for (index, first) in all.iter().enumerate() {
        for second in &all[index + 1..] {
            for (actions, verdict) in [(["Allow", "Deny"], "allow"), (["Deny", "Allow"], "deny")] {
                let mut case = Case::default();
                let documents = [document(*first, actions[0]), document(*second, actions[1])].concat();
                documents.iter().for_each(|line| case.line(line).unwrap());
                case.line(&format!("x db TCP/80 {verdict}")).unwrap();
                levels(&documents.join(", "), &[case]);
            }
        }
    }
}

#[test]
fn tiers_79_2_the_earlier_of_two_tiers_decides() {
    pairs(&TIERS, |(name, spec), action| {
        let tier = spec.map(|spec| format!("tier {name} {spec}"));
        let policy = format!("gnp in-{name} {{tier: {name}, ingress: [{{action: {action}}}]}}");
        tier.into_iter().chain([policy]).collect()
    });
}

#[test]
fn tiers_93_the_earlier_of_two_policies_decides() {
    pairs(&POLICIES, |(kind, name, order), action| {
        vec![format!(
            "{kind} {name} {{order: {order}, ingress: [{{action: {action}}}]}}"
        )]
    });
}
