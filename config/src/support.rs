//! Keys and values that the format has and this version does not act on.
//!
//! Everything in the format that is not acted on is an entry here, so that no user relies on a protection that is not
//! there. A value that asks for what happens anyway is harmless and accepted.

use crate::{
    problem::Problem,
    raw::{OpaqueTunnels, Raw},
};

/// Finds every key of a file that this version does not act on.
pub(crate) fn unsupported(raw: &Raw) -> Vec<Problem> {
    let mut found = Vec::new();
    let mut refuse = |path: String, why: &str| {
        found.push(Problem::new(path, format!("not supported yet: {why}")).help("remove it"));
    };
    /// Whether a text is present and none of the harmless ones.
    fn other(value: Option<&String>, harmless: &[&str]) -> bool {
        value.is_some_and(|value| !harmless.contains(&value.as_str()))
    }

    if raw.source.start_jitter.is_some() {
        refuse("source.startJitter".into(), "the first list is sent at once");
    }
    for (index, interface) in raw.interfaces.iter().enumerate() {
        let mut refuse = |key: &str, why: &str| refuse(format!("interfaces[{index}].{key}"), why);
        if interface.parent.is_some() {
            refuse(
                "parent",
                "VLAN interfaces are not made; create it and give its name",
            );
        }
        if interface.vlan.is_some() {
            refuse(
                "vlan",
                "VLAN interfaces are not made; create it and give its name",
            );
        }
    }
    for (index, wire) in raw.wires.iter().flatten().enumerate() {
        let mut refuse = |key: &str, why: &str| refuse(format!("wires[{index}].{key}"), why);
        // Every VLAN is judged, each by itself.
        if other(wire.vlans.as_ref(), &["all"]) {
            refuse("vlans", "every VLAN is judged");
        }
        if wire.link_state_propagation == Some(true) {
            refuse("linkStatePropagation", "the ends' link states are independent");
        }
    }
    if let Some(routing) = &raw.routing {
        let mut refuse = |key: &str, why: &str| refuse(format!("routing.{key}"), why);
        if routing
            .kernel_tables
            .as_ref()
            .is_some_and(|tables| tables.iter().any(|table| table != "main"))
        {
            refuse("kernelTables", "the main table is mirrored");
        }
        if other(routing.ecmp.as_ref(), &["5-tuple"]) {
            refuse("ecmp", "one of several next hops is chosen by the flow's 5-tuple");
        }
        // BGP and BFD are addressed to the host itself, which the kernel always gets.
        if routing.control_protocols.as_ref().is_some_and(|protocols| {
            protocols
                .iter()
                .any(|name| !["bgp", "bfd"].contains(&name.as_str()))
        }) {
            refuse(
                "controlProtocols",
                "only what is addressed to the host itself (`bgp`, `bfd`) stays with the kernel",
            );
        }
        if routing
            .icmp_errors
            .as_ref()
            .is_some_and(|errors| errors.rate_limit.is_some())
        {
            refuse("icmpErrors.rateLimit", "the limit is fixed");
        }
    }
    if let Some(failsafe) = &raw.failsafe
        && failsafe.confirm_timeout.is_some()
    {
        refuse(
            "failsafe.confirmTimeout".into(),
            "a configuration is in force when it is read",
        );
    }
    if other(raw.masqueraded_sources.as_ref(), &["off"]) {
        refuse(
            "masqueradedSources".into(),
            "node addresses are judged as what they are",
        );
    }
    if let Some(overlay) = &raw.overlay
        && overlay.opaque == OpaqueTunnels::Alarm
    {
        refuse(
            "overlay.opaque".into(),
            "tunnels that cannot be inspected pass (`allow`) or drop (`deny`)",
        );
    }
    if let Some(logging) = &raw.logging {
        let mut refuse = |key: &str| refuse(format!("logging.{key}"), "flows are not logged");
        if logging.file.is_some() {
            refuse("file");
        }
        if other(logging.denied.as_ref(), &["none"]) {
            refuse("denied");
        }
        if other(logging.allowed.as_ref(), &["none"]) {
            refuse("allowed");
        }
        if logging.ipfix.is_some() {
            refuse("ipfix");
        }
    }
    if other(raw.endpoint_discovery.as_ref(), &["routes"]) {
        refuse(
            "endpointDiscovery".into(),
            "pods are found by the kernel's routes (`routes`)",
        );
    }
    if other(raw.kernel_path.as_ref(), &["judge"]) {
        refuse(
            "kernelPath".into(),
            "pod traffic of the kernel is judged where there is a `host` interface (`judge`)",
        );
    }
    found
}
