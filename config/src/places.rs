//! Where networks are: `cluster.places`.

use std::ops::RangeInclusive;

use ipnet::IpNet;

use crate::{
    config::{NetworkPlacement, VlanTags},
    problem::Problem,
    raw::{self, PlacementVlan, Raw},
    validate::overlap,
};

/// VLAN numbers that a frame may have (IEEE 802.1Q 9.6).
const VLANS: RangeInclusive<u16> = 1..=4094;

/// Every network that has a place.
pub(crate) fn places(raw: &Raw, problems: &mut Vec<Problem>) -> Vec<NetworkPlacement> {
    let mut found: Vec<(String, NetworkPlacement)> = Vec::new();
    for (index, place) in raw.cluster.places.iter().enumerate() {
        let path = format!("cluster.places[{index}]");
        if place.networks.is_empty() {
            problems.push(
                Problem::new(format!("{path}.networks"), "an empty list")
                    .help("list the networks that are there"),
            );
        }
        let says_nothing = place.wire.is_none()
            && place.interfaces.is_none()
            && place.vlan.is_none()
            && place.outer_vlan.is_none();
        if says_nothing {
            problems.push(
                Problem::new(path.clone(), "says no place")
                    .help("add `wire: NAME`, `interfaces: [NAME]` or `vlan: NUMBER`"),
            );
        }
        let interfaces = interfaces(raw, place, &path, problems);
        let vlan = vlan(raw, place, &path, problems);
        for (at, network) in place.networks.iter().enumerate() {
            let path = format!("{path}.networks[{at}]");
            if let Some((other, twin)) = found.iter().find(|(_, twin)| overlap(network, &twin.network)) {
                problems.push(
                    Problem::new(
                        path.clone(),
                        format!("{network} overlaps {} of {other}", twin.network),
                    )
                    .help("give each network one place"),
                );
            }
            found.push((
                path,
                NetworkPlacement {
                    network: IpNet::trunc(network),
                    interfaces: interfaces.clone(),
                    vlan,
                },
            ));
        }
    }
    found.into_iter().map(|(_, place)| place).collect()
}

fn interfaces(
    raw: &Raw,
    place: &raw::NetworkPlacement,
    path: &str,
    problems: &mut Vec<Problem>,
) -> Option<Vec<String>> {
    if let Some(name) = &place.wire {
        let path = format!("{path}.wire");
        if place.interfaces.is_some() {
            problems
                .push(Problem::new(path, "`wire` and `interfaces` say two places").help("keep one of them"));
            return None;
        }
        let wires = raw.wires.iter().flatten();
        if let Some(wire) = wires.clone().find(|wire| wire.name == *name) {
            return Some(wire.interfaces.clone());
        }
        let known: Vec<&str> = wires.map(|wire| wire.name.as_str()).collect();
        problems.push(
            Problem::new(path, format!("there is no wire called `{name}`")).help(if known.is_empty() {
                "this gateway has no wires: name `interfaces`".to_owned()
            } else {
                format!("the wires are: {}", known.join(", "))
            }),
        );
        return None;
    }
    let names = place.interfaces.as_ref()?;
    if names.is_empty() {
        problems.push(
            Problem::new(format!("{path}.interfaces"), "an empty list")
                .help("name the interfaces that lead there, or remove the key"),
        );
    }
    for (at, name) in names.iter().enumerate() {
        let named = |interface: &&raw::Interface| interface.name.as_ref() == Some(name);
        if raw.interfaces.iter().find(named).is_none() {
            problems.push(
                Problem::new(
                    format!("{path}.interfaces[{at}]"),
                    format!("`{name}` is not in `interfaces` by its name"),
                )
                .help(format!("add `- {{name: {name}}}` there")),
            );
        }
    }
    Some(names.clone())
}

fn vlan(
    raw: &Raw,
    place: &raw::NetworkPlacement,
    path: &str,
    problems: &mut Vec<Problem>,
) -> Option<VlanTags> {
    if raw.wires.is_none() && (place.vlan.is_some() || place.outer_vlan.is_some()) {
        problems.push(
            Problem::new(
                format!("{path}.vlan"),
                "a router takes untagged frames alone: VLANs are told apart on wires",
            )
            .help("make a VLAN interface (`ip link add link eth1 name eth1.10 type vlan id 10`) and name it in `interfaces`"),
        );
        return None;
    }
    let mut number = |key: &str, number: u16| {
        if !VLANS.contains(&number) {
            problems.push(
                Problem::new(format!("{path}.{key}"), format!("{number} is no VLAN")).help("use 1 to 4094"),
            );
        }
        number
    };
    let inner = match &place.vlan {
        None => None,
        Some(PlacementVlan::Number(vlan)) => Some(Some(number("vlan", *vlan))),
        Some(PlacementVlan::Text(text)) if text == "untagged" => Some(None),
        Some(PlacementVlan::Text(text)) => {
            problems.push(
                Problem::new(format!("{path}.vlan"), format!("`{text}` is no VLAN"))
                    .help("use 1 to 4094, or `untagged`"),
            );
            return None;
        }
    };
    match (place.outer_vlan.map(|outer| number("outerVlan", outer)), inner) {
        (None, None) => None,
        (None, Some(None)) => Some(VlanTags::Untagged),
        (None, Some(Some(vlan))) => Some(VlanTags::Single(vlan)),
        (Some(outer), Some(Some(inner))) => Some(VlanTags::Double { outer, inner }),
        (Some(_), None | Some(None)) => {
            problems.push(
                Problem::new(format!("{path}.outerVlan"), "an outer VLAN without an inner one")
                    .help("give the inner one as `vlan`; a frame with one tag has no `outerVlan`"),
            );
            None
        }
    }
}
