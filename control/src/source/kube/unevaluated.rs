//! Policy kinds that the API server has objects of and that ringwall does not evaluate.

use std::{collections::BTreeSet, time::Duration};

use kube::{
    Client,
    core::{Request, params::ListParams},
};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::timeout;

use super::watch::explain;

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
    pub(super) errors: Vec<String>,
}

#[derive(Deserialize)]
struct AnyList {
    items: Option<Vec<Box<RawValue>>>,
}

/// Looks for objects of kinds that are not evaluated. The error says that the server could not be asked at all.
pub(super) async fn probe(client: &Client) -> Result<Found, String> {
    let groups = timeout(PATIENCE, client.list_api_groups())
        .await
        .map_err(|_| "list the API groups: no answer in time".to_owned())?
        .map_err(|error| explain("list", "the API groups", &error))?;
    let mut found = Found::default();
    for group in groups.groups {
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
            look(client, &group.name, &version, &kinds, &mut found).await;
        }
    }
    Ok(found)
}

async fn look(client: &Client, group: &str, version: &str, kinds: &[&str], found: &mut Found) {
    let resources = match timeout(PATIENCE, client.list_api_group_resources(version)).await {
        Ok(Ok(resources)) => resources.resources,
        Ok(Err(error)) => return found.errors.push(explain("list", version, &error)),
        Err(_) => return found.errors.push(format!("list {version}: no answer in time")),
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
        let request = match Request::new(format!("/apis/{version}/{}", resource.name)).list(&params) {
            Ok(request) => request,
            Err(error) => {
                found.errors.push(error.to_string());
                continue;
            }
        };
        let plural = format!("{}.{group}", resource.name);
        match timeout(PATIENCE, client.request::<AnyList>(request)).await {
            Ok(Ok(list)) if list.items.as_ref().is_some_and(|items| !items.is_empty()) => {
                found.kinds.insert(name);
            }
            Ok(Ok(_)) => {}
            // Served no more: nobody has objects of it.
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => {}
            Ok(Err(error)) => found.errors.push(explain("list", &plural, &error)),
            Err(_) => found.errors.push(format!("list {plural}: no answer in time")),
        }
    }
}
