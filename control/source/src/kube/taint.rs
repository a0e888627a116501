//! Takes the taint off the node that this process runs on, once the node is guarded: from then on, pods are scheduled there.
//!
//! A kubelet registers its node with the taint (`--register-with-taints`), again if the Node object is made anew. So it is looked
//! for as long as the node is guarded. What is removed is just the elements of `spec.taints` with [`NODE_TAINT`], by a JSON patch
//! (RFC 6902) that first tests that they are still where they were seen: whatever else changed meanwhile, no other taint goes.

use std::{sync::Arc, time::Duration};

use hyper::header::CONTENT_TYPE;
use kube::{api::ListParams, core::Request};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{sync::watch as latest, time::sleep};

use super::{
    Timing,
    connection::{Connection, RequestError},
    kind::Kind,
    watch::{Backoff, explain, jittered},
};
use crate::feed::{Condition, Health};

/// The taint's key.
pub const NODE_TAINT: &str = "ringwall.io/not-ready";

/// The media type of a JSON patch.
const JSON_PATCH: &str = "application/json-patch+json";

/// How often it is looked whether a node has the taint.
const LOOK: Duration = Duration::from_secs(60);

/// How often a node that changes while it is patched is read again at once.
const ATTEMPTS: usize = 5;

/// As much of a list of Nodes as is needed.
#[derive(Deserialize)]
struct Nodes {
    #[serde(default)]
    items: Vec<Value>,
}

/// Why the taint is still there, perhaps.
enum Failure {
    /// The API server says no, or nothing.
    Request(&'static str, RequestError),
    /// There is no such node.
    Absent,
    /// The node changed each time between reading and patching.
    Changing,
}

/// Takes the taint off a node whenever it is there and the node is guarded, for ever.
pub(super) async fn keep_off(
    node: String,
    mut guarded: latest::Receiver<bool>,
    connection: Arc<Connection>,
    timing: Timing,
    health: Arc<Health>,
) {
    let mut backoff = Backoff::up_to(LOOK, &timing);
    let mut retries = connection.retries();
    loop {
        if guarded.wait_for(|guarded| *guarded).await.is_err() {
            // The process ends.
            return std::future::pending().await;
        }
        retries.borrow_and_update();
        let pause = match remove(&node, &connection, &timing).await {
            Ok(removed) => {
                if removed {
                    tracing::info!(node, taint = NODE_TAINT, "the node is guarded: taint removed");
                }
                health.condition(Condition::Taint, Duration::ZERO, None);
                backoff.reset();
                jittered(LOOK, 0.75, 1.0)
            }
            Err(failure) => {
                let (text, after) = described(&node, &failure);
                health.error(None, text.clone());
                health.condition(Condition::Taint, timing.refused_alarm, Some(text));
                backoff.next().max(after)
            }
        };
        tokio::select! {
            () = sleep(pause) => {}
            Ok(()) = retries.changed() => {}
            Ok(()) = guarded.changed() => {}
        }
    }
}

/// What goes wrong, in words, and how long to wait at least.
fn described(node: &str, failure: &Failure) -> (String, Duration) {
    let (why, after) = match failure {
        Failure::Request(verb, error) => (
            explain(verb, Kind::NODE.api().plural, error, true),
            error.retry_after().unwrap_or_default(),
        ),
        Failure::Absent => (
            "the API server has no such Node; NODE_NAME has to be the name of this machine's".to_owned(),
            Duration::ZERO,
        ),
        Failure::Changing => (
            format!("somebody else changed its taints each of {ATTEMPTS} times"),
            Duration::ZERO,
        ),
    };
    let text = format!(
        "node {node} is guarded, and whether its taint {NODE_TAINT} is gone is not known, so that pods may not be scheduled there: {why}"
    );
    (text, after)
}

/// Removes the taint; whether it was there.
async fn remove(node: &str, connection: &Connection, timing: &Timing) -> Result<bool, Failure> {
    for _ in 0..ATTEMPTS {
        let Some(patch) = removal(&read(node, connection, timing).await?) else {
            return Ok(false);
        };
        let path = format!("{}/{node}", Kind::NODE.api().path());
        let request = hyper::Request::patch(path)
            .header(CONTENT_TYPE, JSON_PATCH)
            .body(patch.to_string().into_bytes())
            .map_err(|error| Failure::Request("patch", RequestError::Kube(kube::Error::HttpError(error))))?;
        let answer = connection
            .call(timing.list_timeout, |client| async move {
                client.request::<Value>(request).await
            })
            .await;
        match answer {
            Ok(_) => return Ok(true),
            // It has changed: a test of the patch has failed, or the server gave up.
            Err(error) if matches!(error.code(), Some(409 | 422)) => {}
            Err(error) if error.code() == Some(404) => return Err(Failure::Absent),
            Err(error) => return Err(Failure::Request("patch", error)),
        }
    }
    Err(Failure::Changing)
}

/// A node as it is now. By a list, which needs no other right than the watch has.
async fn read(node: &str, connection: &Connection, timing: &Timing) -> Result<Value, Failure> {
    let failed = |error| Failure::Request("list", error);
    let params = ListParams::default().fields(&format!("metadata.name={node}"));
    let request = Request::new(Kind::NODE.api().path())
        .list(&params)
        .map_err(|error| failed(RequestError::Kube(kube::Error::BuildRequest(error))))?;
    let nodes = connection
        .call(timing.list_timeout, |client| async move {
            client.request::<Nodes>(request).await
        })
        .await
        .map_err(failed)?;
    let is_it = |item: &Value| item.pointer("/metadata/name").and_then(Value::as_str) == Some(node);
    nodes.items.into_iter().find(is_it).ok_or(Failure::Absent)
}

/// The patch that takes the taint off a node; None where it has none. The last element goes first, so that the places of the
/// others stay.
fn removal(node: &Value) -> Option<Value> {
    let taints = node.pointer("/spec/taints")?.as_array()?;
    let steps: Vec<Value> = taints
        .iter()
        .enumerate()
        .rev()
        .filter(|(_, taint)| taint["key"] == NODE_TAINT)
        .flat_map(|(index, taint)| {
            let path = format!("/spec/taints/{index}");
            [
                json!({"op": "test", "path": path, "value": taint}),
                json!({"op": "remove", "path": path}),
            ]
        })
        .collect();
    (!steps.is_empty()).then_some(Value::Array(steps))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_own_taint_is_removed_and_the_last_one_first() {
        let own = |effect: &str| json!({"key": NODE_TAINT, "effect": effect});
        let other = json!({"key": "other.example/not-ready", "effect": "NoSchedule"});
        let node = |taints: Value| json!({"spec": {"taints": taints}});
        assert_eq!(removal(&json!({})), None);
        assert_eq!(removal(&json!({"spec": {}})), None);
        assert_eq!(removal(&node(json!([]))), None);
        assert_eq!(removal(&node(json!([other]))), None);
        assert_eq!(
            removal(&node(json!([own("NoSchedule"), other, own("NoExecute")]))),
            Some(json!([
                {"op": "test", "path": "/spec/taints/2", "value": own("NoExecute")},
                {"op": "remove", "path": "/spec/taints/2"},
                {"op": "test", "path": "/spec/taints/0", "value": own("NoSchedule")},
                {"op": "remove", "path": "/spec/taints/0"},
            ]))
        );
    }
}
