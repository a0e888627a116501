//! Policy kinds that the API server has objects of and that ringwall does not evaluate.

use std::{collections::BTreeSet, time::Duration};

use kube::core::{Request, params::ListParams};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{connection::Connection, watch::explain};

/// Group and kind of what else decides about packets in a cluster.
const KINDS: &[(&str, &str)] = &[
    ("policy.networking.k8s.io", "ClusterNetworkPolicy"),
    ("policy.networking.k8s.io", "AdminNetworkPolicy"),
    ("policy.networking.k8s.io", "BaselineAdminNetworkPolicy"),
    ("projectcalico.org", "NetworkPolicy"),
    ("projectcalico.org", "GlobalNetworkPolicy"),
    ("crd.projectcalico.org", "NetworkPolicy"),
    ("crd.projectcalico.org", "GlobalNetworkPolicy"),
    ("cilium.io", "CiliumNetworkPolicy"),
    ("cilium.io", "CiliumClusterwideNetworkPolicy"),
    ("crd.antrea.io", "NetworkPolicy"),
    ("crd.antrea.io", "ClusterNetworkPolicy"),
];

/// How long one question may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is there, and what could not be looked at.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Kinds with at least one object, as `kind.group`.
    pub(super) kinds: BTreeSet<String>,
    /// Why something may be missing from `kinds`.
    pub(super) errors: Vec<Unseen>,
}

/// What could not be looked at.
#[derive(Debug)]
pub(super) struct Unseen {
    /// The kind, as `kind.group`; None where it may be any.
    pub(super) of: Option<String>,
    /// Why.
    pub(super) reason: String,
}

#[derive(Deserialize)]
struct AnyList {
    items: Option<Vec<Box<RawValue>>>,
}

/// Looks for objects of kinds that are not evaluated.
pub(super) async fn probe(connection: &Connection) -> Found {
    let mut found = Found::default();
    let groups = connection
        .call(PATIENCE, |client| async move { client.list_api_groups().await })
        .await;
    let groups = match groups {
        Ok(groups) => groups.groups,
        Err(error) => {
            found.errors.push(Unseen {
                of: None,
                reason: explain("list", "the API groups", &error, false),
            });
            return found;
        }
    };
    for group in groups {
        let kinds: Vec<&str> = KINDS
            .iter()
            .filter(|(name, _)| *name == group.name)
            .map(|(_, kind)| *kind)
            .collect();
        if kinds.is_empty() {
            continue;
        }
        let mut versions: Vec<String> = group
            .versions
            .iter()
            .map(|version| version.group_version.clone())
            .collect();
        versions.sort();
        for version in versions {
            look(connection, &group.name, &version, &kinds, &mut found).await;
        }
    }
    found
}

async fn look(connection: &Connection, group: &str, version: &str, kinds: &[&str], found: &mut Found) {
    let resources = connection
        .call(PATIENCE, |client| async move {
            client.list_api_group_resources(version).await
        })
        .await;
    let resources = match resources {
        Ok(resources) => resources.resources,
        Err(error) => {
            let reason = explain("list", version, &error, false);
            return found.errors.push(Unseen { of: None, reason });
        }
    };
    for resource in resources {
        let name = format!("{}.{group}", resource.kind);
        let listable = resource.verbs.iter().any(|verb| verb == "list") && !resource.name.contains('/');
        if !listable || !kinds.contains(&resource.kind.as_str()) || found.kinds.contains(&name) {
            continue;
        }
        let params = ListParams {
            limit: Some(1),
            ..ListParams::default()
        };
        let unseen = |reason| Unseen {
            of: Some(name.clone()),
            reason,
        };
        let request = match Request::new(format!("/apis/{version}/{}", resource.name)).list(&params) {
            Ok(request) => request,
            Err(error) => {
                found.errors.push(unseen(error.to_string()));
                continue;
            }
        };
        let plural = format!("{}.{group}", resource.name);
        let list = connection
            .call(PATIENCE, |client| async move {
                client.request::<AnyList>(request).await
            })
            .await;
        match list {
            Ok(list) if list.items.as_ref().is_some_and(|items| !items.is_empty()) => {
                found.kinds.insert(name);
            }
            Ok(_) => {}
            // Served no more: nobody has objects of it.
            Err(error) if error.code() == Some(404) => {}
            Err(error) => found.errors.push(unseen(explain("list", &plural, &error, true))),
        }
    }
}
