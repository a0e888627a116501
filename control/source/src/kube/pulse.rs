//! Asks now and then whether the server still answers, and whether it has the history that the watches follow.
//!
//! A watch is silent where nothing happens, and where the server hangs, and where its versions went back behind the one
//! that the watch waits for: an etcd restored from an older snapshot. A list of one object tells these apart.

use std::{sync::Arc, time::Duration};

use kube::core::{Request, params::ListParams};
use serde::Deserialize;
use tokio::time::sleep;

use super::{
    Timing,
    connection::{Connection, RequestError},
    kind::{Api, Kind},
    watch::{explain, jittered},
};
use crate::feed::Health;

#[derive(Deserialize)]
struct List {
    metadata: ListMeta,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListMeta {
    #[serde(default)]
    resource_version: String,
}

/// Asks for ever.
pub(super) async fn run(connection: &Arc<Connection>, timing: &Timing, health: &Health) {
    for turn in 0_u64.. {
        sleep(jittered(timing.pulse, 0.9, 1.0)).await;
        // That it answers is known from any; versions are compared every other time, of what is watched.
        let compared = |kind: &Kind| match turn % 2 {
            0 => kind.required() || connection.version(*kind).is_some(),
            _ => *kind == Kind::NAMESPACE,
        };
        for kind in Kind::all().filter(compared) {
            let Some(api) = connection.presences().api(kind) else {
                continue;
            };
            let before = connection.version(kind);
            let mut answer = version(connection, timing.pulse_patience, api).await;
            if answer.as_ref().is_err_and(RequestError::is_unreachable) {
                answer = version(connection, timing.pulse_patience, api).await;
            }
            match answer {
                // A list is never older than what was seen before it was asked for.
                Ok(Some(now)) => {
                    if let Some(before) = before
                        && now < before
                    {
                        connection.went_back(kind, before, now);
                        break;
                    }
                }
                Ok(None) => {}
                Err(error) => {
                    let reason = explain("list", &api.resource(), &error, false);
                    health.error(None, reason.clone());
                    if error.is_unreachable() {
                        // Where watches are connected they are so in name only. What is listed already goes on.
                        if connection.is_watching() {
                            connection.relist(format!("the API server does not answer: {reason}"));
                        }
                        break;
                    }
                }
            }
        }
    }
}

/// The version of a kind's objects; None where it is no number.
async fn version(
    connection: &Connection,
    patience: Duration,
    api: &Api,
) -> Result<Option<u64>, RequestError> {
    let params = ListParams {
        limit: Some(1),
        ..ListParams::default()
    };
    let request = Request::new(api.path())
        .list(&params)
        .map_err(|error| RequestError::Kube(kube::Error::BuildRequest(error)))?;
    let list = connection
        .call(
            patience,
            |client| async move { client.request::<List>(request).await },
        )
        .await?;
    Ok(list.metadata.resource_version.parse().ok())
}
