//! Holds what a watch has said against a full list of the same version.
//!
//! Nothing that happens meanwhile counts: the list is asked for as it was at the version that the watch had come to, so
//! each difference is one. It is how a gap is found that nothing else shows, such as a restored etcd whose versions have
//! passed the old ones.

use std::{collections::HashSet, sync::Arc};

use kube::core::params::{ListParams, VersionMatch};

use super::{
    Timing,
    connection::Connection,
    kind::{Api, Kind, Reference},
    state::{Item, Watched},
    watch::{PageError, Pages, explain},
};
use crate::feed::{Condition, Health};

/// Objects that the alarm names.
const NAMED: usize = 3;

/// Compares. Differences are counted, said, and have every watch list anew.
pub(super) async fn compare(
    connection: Arc<Connection>,
    timing: Timing,
    health: Arc<Health>,
    (kind, api, version): (Kind, &'static Api, String),
    watched: Watched,
) {
    let resource = api.resource();
    let params = ListParams {
        resource_version: Some(version.clone()),
        version_match: Some(VersionMatch::Exact),
        ..ListParams::default()
    };
    let mut pages = Pages::new(&connection, &timing, (kind, api), params);
    let mut listed: HashSet<Reference> = HashSet::new();
    let mut differ: Vec<Reference> = Vec::new();
    loop {
        match pages.next().await {
            Ok(Some(items)) => {
                differ.extend(items.iter().filter(|item| !watched.has(item)).map(of));
                listed.extend(items.into_iter().map(|item| item.reference));
            }
            Ok(None) => break,
            // Too old: the next watch of this kind that ends has another.
            Err(PageError::Request(error)) if error.is_gone() => {
                tracing::debug!(resource, version, "not compared: the version is gone");
                return;
            }
            Err(PageError::Request(error)) => {
                return health.error(None, explain("list", &resource, &error, true));
            }
            Err(PageError::Unusable(reason)) => {
                return health.error(None, format!("list {resource}: {reason}"));
            }
        }
    }
    differ.extend(
        watched
            .references(kind)
            .filter(|reference| !listed.contains(reference)),
    );
    health.compared(differ.len() as u64);
    if differ.is_empty() {
        return;
    }
    let named: Vec<String> = differ.iter().take(NAMED).map(ToString::to_string).collect();
    let more = differ.len() - named.len();
    let text = format!(
        "a full list of {resource} differs from the watched state; {} different: {}{}",
        differ.len(),
        named.join(", "),
        if more > 0 {
            format!(" and {more} more")
        } else {
            String::new()
        },
    );
    health.remember(Condition::Differences, text.clone());
    connection.relist(text);
}

fn of(item: &Item) -> Reference {
    item.reference.clone()
}
