//! From one YAML or JSON document to objects of the cluster, strictly.
//!
//! Both sources use it: the folder for what people wrote, the API server's watch for what the server holds. What decides
//! (`spec`, names, labels) is read strictly from both; a mistake costs the object's owner, never its neighbours. Unknown
//! fields around it are mistakes in a folder alone.

pub(super) mod calico;
mod field;
mod identity;
mod policy;
mod services;
#[cfg(test)]
pub(crate) mod tests;
mod tiered;

pub(super) use field::item;
pub use field::join;
use field::{
    Fields, NO_FIELDS, bad_label_key, bad_label_value, dns_label, dns_subdomain, fault, list, mapping,
    present, string, wrong_type,
};
pub(super) use identity::seconds_since_1970;
use std::sync::Arc;

use ringwall_policy::{
    DenialAnswer, Fault, Labels, NAMESPACE_NAME_LABEL, Namespace, Object, ObjectKey, services::ServiceObject,
};
use serde_json::Value;

/// One object of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// `Kind namespace/name`, for messages.
    pub label: String,
    /// Where in the document it stands: empty, or `items[3]` in a List.
    pub prefix: String,
    /// The object.
    pub object: Object,
    /// What is odd about it but does not change how it is judged (paths relative to the document).
    pub notes: Vec<Fault>,
    /// What of it is valid and not evaluated yet, of an object that is evaluated otherwise.
    pub unevaluated: Vec<Fault>,
    /// What an API server would refuse of an object that is no policy in force; the rest counts.
    pub faults: Vec<Fault>,
    /// What the state needs of it besides the object.
    pub(super) input: Option<Arc<calico::Input>>,
    /// What it says about Services.
    pub(super) service: Option<ServiceObject>,
}

/// An object that cannot be understood at all.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{label}: {}: {}", .fault.path, .fault.message)]
pub struct DecodeError {
    /// `Kind namespace/name`, as far as it can be read.
    pub label: String,
    /// What and where; the path is relative to the document.
    pub fault: Fault,
}

/// Decodes one document: an object, or a List of them (`List`, `PodList`, ...), unfolded.
///
/// An invalid NetworkPolicy is no error: it comes back with its `faults` and isolates (what it selects, in the
/// directions that can be read). Of a policy whose rules decide in order, a rule that is not understood is none either.
///
/// # Errors
/// The document is no Kubernetes object, or an object that ringwall needs has a field that cannot be read.
pub fn decode(value: &Value) -> Result<Vec<Decoded>, DecodeError> {
    let mut out = Vec::new();
    unfold(value, "", None, Origin::Folder, &mut out)?;
    Ok(out)
}

/// Decodes one object as an API server delivers it.
///
/// # Errors
/// As those of [`decode`].
pub(super) fn decode_served(value: &Value) -> Result<Vec<Decoded>, DecodeError> {
    let mut out = Vec::new();
    unfold(value, "", None, Origin::Server, &mut out)?;
    Ok(out)
}

/// Who says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// Somebody who may have misspelt anything.
    Folder,
    /// An API server. It has refused or dropped what it does not know; what it has of fields around `spec` that are not
    /// known here, a newer one has added.
    Server,
}

/// Kind and apiVersion that the items of a typed list leave out.
struct Inherited<'a> {
    api_version: &'a str,
    kind: &'a str,
}

fn unfold(
    value: &Value,
    at: &str,
    inherited: Option<&Inherited<'_>>,
    origin: Origin,
    out: &mut Vec<Decoded>,
) -> Result<(), DecodeError> {
    let nameless = |fault| DecodeError {
        label: "document".to_owned(),
        fault,
    };
    let Value::Object(root) = value else {
        return Err(nameless(fault(
            at,
            wrong_type(value, "a Kubernetes object (a mapping with apiVersion and kind)"),
        )));
    };
    let kind = string(root, at, "kind")
        .map_err(nameless)?
        .or(inherited.map(|list| list.kind));
    let api_version = string(root, at, "apiVersion")
        .map_err(nameless)?
        .or(inherited.map(|list| list.api_version));
    let Some(kind) = kind else {
        // Values of a chart, a kustomization, notes: not an object that lost its kind, which would have one of these.
        if !["apiVersion", "metadata", "spec", "items"]
            .iter()
            .any(|key| root.contains_key(*key))
        {
            let note = fault(
                at,
                "is not a Kubernetes object (no apiVersion, kind, metadata, spec): skipped",
            );
            out.push(Decoded {
                label: "document".to_owned(),
                prefix: at.to_owned(),
                object: Object::Ignored { kind: String::new() },
                notes: vec![note],
                unevaluated: Vec::new(),
                faults: Vec::new(),
                input: None,
                service: None,
            });
            return Ok(());
        }
        return Err(nameless(fault(
            join(at, "kind"),
            "is missing: write the kind of the object, such as NetworkPolicy, or move the file out of the folder",
        )));
    };
    let api_version = api_version.unwrap_or_default();
    let group = api_version.split_once('/').map_or("", |(group, _)| group);

    if let Some(item_kind) = kind.strip_suffix("List")
        && let Some(items) = items(root, at, item_kind, group, api_version).map_err(nameless)?
    {
        let named = Inherited {
            api_version,
            kind: item_kind,
        };
        // The items of a plain List name themselves.
        let named = (!item_kind.is_empty()).then_some(&named);
        let items_at = join(at, "items");
        for (index, value) in items.iter().enumerate() {
            unfold(value, &item(&items_at, index), named, origin, out)?;
        }
        return Ok(());
    }
    out.push(object(root, at, kind, group, api_version, origin)?);
    Ok(())
}

/// The items of a list; None for a kind that only ends like one. A list of what matters here has to have items, or a
/// misspelt key would take all of them away without a word.
fn items<'a>(
    root: &'a Fields,
    at: &str,
    item_kind: &str,
    group: &str,
    api_version: &str,
) -> Result<Option<&'a [Value]>, Fault> {
    let matters = item_kind.is_empty()
        || !matches!(
            role(item_kind, group, api_version, at),
            Role::Ignored | Role::Support(_)
        );
    match root.get("items") {
        Some(Value::Array(items)) => Ok(Some(items)),
        // What Go writes for none.
        Some(Value::Null) if matters => Ok(Some(&[])),
        Some(other) if matters => Err(fault(join(at, "items"), wrong_type(other, "a list"))),
        None if matters => Err(fault(
            join(at, "items"),
            "is missing: a list without objects has items: []",
        )),
        _ => Ok(None),
    }
}

/// What an object is to policy, from its kind and API group.
enum Role {
    Namespace,
    Node,
    Pod,
    Template(&'static [&'static str]),
    /// Of an unknown kind, with a template of pods where workloads have theirs.
    Foreign,
    NetworkPolicy,
    /// A NetworkPolicy that names itself wrongly: isolates.
    Misnamed(Fault),
    Tiered(&'static tiered::Dialect),
    /// A policy of Calico, or what it speaks of.
    Calico(calico::Kind),
    /// What Calico's policies speak of, of Kubernetes itself.
    Support(calico::Support),
    /// A policy of no kind or version that there is.
    Refused(Fault),
    Unevaluated,
    Ignored,
}

fn role(kind: &str, group: &str, api_version: &str, at: &str) -> Role {
    const POD_TEMPLATE: &[&str] = &["spec", "template"];
    const CRON_JOB_TEMPLATE: &[&str] = &["spec", "jobTemplate", "spec", "template"];
    // Whatever its group: a Deny that is not read must not vanish.
    let others = tiered::OTHER_GROUPS.contains(&group);
    match tiered::dialect(kind, api_version, at).filter(|_| !others) {
        Some(Ok(dialect)) => return Role::Tiered(dialect),
        Some(Err(wrong)) => return Role::Refused(wrong),
        None => {}
    }
    match calico::kind(kind, group, api_version, at) {
        Some(Ok(kind)) => return Role::Calico(kind),
        Some(Err(wrong)) => return Role::Refused(wrong),
        None => {}
    }
    if let Some(support) = calico::support(kind, group) {
        return Role::Support(support);
    }
    match (group, kind) {
        ("", "Namespace") => Role::Namespace,
        ("", "Node") => Role::Node,
        ("", "Pod") => Role::Pod,
        ("", "ReplicationController") => Role::Template(POD_TEMPLATE),
        ("apps" | "extensions", "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet") => {
            Role::Template(POD_TEMPLATE)
        }
        ("batch", "Job") => Role::Template(POD_TEMPLATE),
        ("batch", "CronJob") => Role::Template(CRON_JOB_TEMPLATE),
        ("networking.k8s.io", "NetworkPolicy") if api_version == "networking.k8s.io/v1" => {
            Role::NetworkPolicy
        }
        ("networking.k8s.io" | "extensions" | "", "NetworkPolicy") => Role::Misnamed(fault(
            join(at, "apiVersion"),
            format!("{api_version:?} has no NetworkPolicy: write networking.k8s.io/v1"),
        )),
        ("networking.k8s.io", _) if looks_like_policy(kind) => Role::Misnamed(fault(
            join(at, "kind"),
            format!("networking.k8s.io has no {kind:?}: write NetworkPolicy"),
        )),
        // Whatever is in this group is policy.
        (tiered::GROUP, _) => Role::Unevaluated,
        // Staged kinds decide nothing.
        (_, kind) if kind.ends_with("NetworkPolicy") && !kind.starts_with("Staged") => Role::Unevaluated,
        _ => Role::Ignored,
    }
}

/// Whether an object holds a template of pods: labels and containers where a Deployment has them.
fn has_pod_template(root: &Fields) -> bool {
    let template = root.get("spec").and_then(|spec| spec.get("template"));
    let at = |path: &str| template.and_then(|template| template.pointer(path));
    let named = root.get("metadata").and_then(|metadata| metadata.get("name"));
    at("/metadata/labels").is_some_and(Value::is_object)
        && at("/spec/containers").is_some_and(Value::is_array)
        && named.is_some_and(Value::is_string)
}

/// Whether a kind of `networking.k8s.io` was meant to be NetworkPolicy.
fn looks_like_policy(kind: &str) -> bool {
    let lower = kind.to_ascii_lowercase();
    lower.contains("polic") || lower.starts_with("network")
}

fn object(
    root: &Fields,
    at: &str,
    kind: &str,
    group: &str,
    api_version: &str,
    origin: Origin,
) -> Result<Decoded, DecodeError> {
    let role = match role(kind, group, api_version, at) {
        Role::Ignored if has_pod_template(root) => Role::Foreign,
        role => role,
    };
    let unnamed = |object| Decoded {
        label: kind.to_owned(),
        prefix: at.to_owned(),
        object,
        notes: Vec::new(),
        unevaluated: Vec::new(),
        faults: Vec::new(),
        input: None,
        service: None,
    };
    let passed_over = |notes| {
        Ok(Decoded {
            notes,
            ..unnamed(Object::Ignored {
                kind: kind.to_owned(),
            })
        })
    };
    // A patch of kustomize looks like the object that it changes.
    if root.contains_key("$patch") {
        let message = "is a kustomize patch, not an object: skipped; check the output of kustomize build";
        return passed_over(vec![fault(join(at, "$patch"), message.to_owned())]);
    }
    match role {
        Role::Ignored if group == "kustomize.config.k8s.io" && kind == "Kustomization" => {
            let message = "kustomize may change names, namespaces and labels of this folder: check the output of kustomize build";
            return passed_over(vec![fault(join(at, "kind"), message.to_owned())]);
        }
        Role::Ignored => return passed_over(Vec::new()),
        Role::Support(support) => {
            let (input, service) = support.read(root);
            return passed_over(Vec::new()).map(|decoded| Decoded {
                input: input.map(Arc::new),
                service,
                ..decoded
            });
        }
        Role::Unevaluated => {
            let kind = if group.is_empty() {
                kind.to_owned()
            } else {
                format!("{kind}.{group}")
            };
            return Ok(unnamed(Object::Unevaluated { kind }));
        }
        _ => {}
    }

    let metadata_at = join(at, "metadata");
    let anonymous = |fault| DecodeError {
        label: kind.to_owned(),
        fault,
    };
    if let Role::Refused(wrong) = role {
        return Err(anonymous(wrong));
    }
    let restored = match &role {
        Role::Calico(_) if group == calico::STORED_GROUP => {
            Some(calico::restored(root, at).map_err(anonymous)?)
        }
        _ => None,
    };
    let root = restored.as_deref().unwrap_or(root);
    let metadata = mapping(root, at, "metadata").map_err(anonymous)?;
    let name = string(metadata, &metadata_at, "name")
        .map_err(anonymous)?
        .filter(|name| !name.is_empty());
    let name = match name {
        Some(name) => name,
        // `kubectl create` lets the server finish such a name; until then the stem is all there is.
        None => match string(metadata, &metadata_at, "generateName").map_err(anonymous)? {
            Some(stem) if !stem.is_empty() => stem,
            _ => {
                return Err(anonymous(fault(
                    join(&metadata_at, "name"),
                    "is missing: every object needs a name",
                )));
            }
        },
    };
    let namespaced = match &role {
        Role::Namespace | Role::Node | Role::Tiered(_) => false,
        Role::Calico(kind) => kind.namespaced(),
        _ => true,
    };
    let kind = match &role {
        Role::Calico(calico) => calico.label(),
        _ => kind,
    };
    let namespace = string(metadata, &metadata_at, "namespace")
        .map_err(|wrong| DecodeError {
            label: format!("{kind} {name}"),
            fault: wrong,
        })?
        .filter(|namespace| !namespace.is_empty())
        .unwrap_or("default"); // SEMANTICS 15
    let label = if namespaced {
        format!("{kind} {namespace}/{name}")
    } else {
        format!("{kind} {name}")
    };
    let wrong = |fault| DecodeError {
        label: label.clone(),
        fault,
    };
    let key = ObjectKey {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    };
    // Only a message: the API server gives every object one.
    let uid = string(metadata, &metadata_at, "uid")
        .ok()
        .flatten()
        .unwrap_or_default()
        .to_owned();

    let mut findings = policy::Findings::default();
    let mut input = None;
    let mut service = None;
    let is_calico = matches!(role, Role::Calico(_));
    let mut object = match role {
        Role::Namespace => Object::Namespace(decode_namespace(root, at, metadata, name).map_err(wrong)?),
        Role::Node => {
            input = Some(calico::Input::Node(Arc::new(tiered::nodes::Node::of(root))));
            service = services::zone(name, root);
            Object::Node(identity::node(root, at, metadata, name, &mut findings.notes).map_err(wrong)?)
        }
        Role::Pod => {
            service = services::readiness(&key, root);
            Object::Pod(identity::pod(root, at, metadata, key, uid, &mut findings.notes).map_err(wrong)?)
        }
        Role::Template(path) => Object::Pod(identity::template(root, at, path, kind, key).map_err(wrong)?),
        Role::Foreign => match identity::template(root, at, &["spec", "template"], kind, key) {
            Ok(pod) => Object::Pod(pod),
            // Whoever defines the kind says what it may look like.
            Err(_) => return passed_over(Vec::new()),
        },
        Role::NetworkPolicy => {
            let staged = is_staged(metadata, &metadata_at, &mut findings);
            let policy = policy::network_policy(root, at, key, uid, origin, &mut findings);
            if staged {
                findings.faults.extend(policy.faults.iter().cloned());
                input = Some(calico::staged_by_annotation(policy));
                Object::Ignored {
                    kind: kind.to_owned(),
                }
            } else {
                Object::NetworkPolicy(policy)
            }
        }
        Role::Misnamed(misnamed) => {
            findings.faults.push(misnamed);
            Object::NetworkPolicy(policy::network_policy(root, at, key, uid, origin, &mut findings))
        }
        Role::Tiered(dialect) => {
            let (policy, awaits) =
                tiered::policy(dialect, root, at, name, uid, origin, &mut findings).map_err(wrong)?;
            input = awaits.map(calico::Input::Policy);
            Object::Tiered(policy)
        }
        Role::Calico(kind) => {
            let place = calico::ObjectText {
                root,
                at,
                key: &key,
                origin,
            };
            let read = calico::object(kind, place, uid, &mut findings).map_err(wrong)?;
            input = read.input;
            read.object
        }
        Role::Refused(_) | Role::Unevaluated | Role::Support(_) | Role::Ignored => {
            unreachable!("returned above")
        }
    };
    match &mut object {
        Object::NetworkPolicy(policy) => policy.answer = denial_answer(metadata, &metadata_at, &mut findings),
        Object::Tiered(policy) => policy.answer = denial_answer(metadata, &metadata_at, &mut findings),
        _ => {}
    }
    // Of a policy these are faults, and found with the others.
    let policy = matches!(object, Object::NetworkPolicy(_) | Object::Tiered(_)) || is_calico;
    if namespaced && !policy && !dns_label(namespace) {
        findings.notes.push(fault(
            join(&metadata_at, "namespace"),
            bad_name(namespace, "a DNS label"),
        ));
    }
    if !policy && !dns_subdomain(name.trim_end_matches('-')) {
        findings
            .notes
            .push(fault(join(&metadata_at, "name"), bad_name(name, "a DNS name")));
    }
    Ok(Decoded {
        label,
        prefix: at.to_owned(),
        object,
        notes: findings.notes,
        unevaluated: findings.unevaluated,
        faults: findings.faults,
        input: input.map(Arc::new),
        service,
    })
}

/// The annotation that stages a NetworkPolicy.
pub(super) const STAGING: &str = "ringwall.io/mode";

/// Whether a NetworkPolicy is staged: nothing is enforced of it, and `ringwall diff --staged` shows what would change.
fn is_staged(metadata: &Fields, at: &str, findings: &mut policy::Findings) -> bool {
    let mode = metadata.get("annotations").and_then(|all| all.get(STAGING));
    match mode.map(Value::as_str) {
        None | Some(Some("enforced")) => false,
        Some(Some("staged")) => true,
        Some(_) => {
            let message = "is not a mode, and the policy is enforced: write staged or enforced";
            findings
                .notes
                .push(fault(format!("{at}.annotations[{STAGING}]"), message));
            false
        }
    }
}

/// The annotation that says what the sender of a packet gets that a policy denies.
pub(super) const DENIAL_ANSWER: &str = "ringwall.io/denied";

/// What a policy answers to those whom it denies; None where it leaves that to the configuration.
fn denial_answer(metadata: &Fields, at: &str, findings: &mut policy::Findings) -> Option<DenialAnswer> {
    let word = metadata.get("annotations")?.get(DENIAL_ANSWER)?;
    let known = DenialAnswer::WORDS.iter().find(|(known, _)| word == known);
    if known.is_none() {
        let message =
            "is no answer, and denied packets are dropped silently: write drop, reset or prohibited";
        findings
            .notes
            .push(fault(format!("{at}.annotations[{DENIAL_ANSWER}]"), message));
    }
    Some(known.map_or(DenialAnswer::Drop, |(_, answer)| *answer))
}

fn bad_name(name: &str, wanted: &str) -> String {
    format!("{name:?} is not {wanted} (lower case letters, digits, '-'): an API server refuses it")
}

fn decode_namespace(root: &Fields, at: &str, metadata: &Fields, name: &str) -> Result<Namespace, Fault> {
    let mut labels = labels(metadata, &join(at, "metadata"))?;
    // Immutable on a server, so a manifest that says otherwise is wrong (SEMANTICS 13).
    labels.insert(NAMESPACE_NAME_LABEL.to_owned(), name.to_owned());
    let phase = mapping(root, at, "status")
        .ok()
        .and_then(|status| status.get("phase"))
        .and_then(Value::as_str);
    let terminating = phase == Some("Terminating") || present(metadata, "deletionTimestamp").is_some();
    Ok(Namespace {
        name: name.to_owned(),
        labels,
        terminating,
    })
}

/// `metadata.labels`; the only labels that count (SEMANTICS 16).
fn labels(metadata: &Fields, metadata_at: &str) -> Result<Labels, Fault> {
    let at = join(metadata_at, "labels");
    let mut out = Labels::new();
    for (key, value) in mapping(metadata, metadata_at, "labels")? {
        let value_at = join(&at, key);
        let value = match value {
            Value::Null => "",
            Value::String(text) => text,
            other => return Err(fault(value_at, wrong_type(other, "a string"))),
        };
        if let Some(wrong) = bad_label_key(key).or_else(|| bad_label_value(value)) {
            return Err(fault(value_at, wrong));
        }
        out.insert(key.clone(), value.to_owned());
    }
    Ok(out)
}

/// Walks down a path of mappings; absent reads as empty.
fn descend<'a>(root: &'a Fields, at: &str, path: &[&str]) -> Result<(&'a Fields, String), Fault> {
    let mut here = (root, at.to_owned());
    for step in path {
        let (fields, at) = here;
        here = (mapping(fields, &at, step)?, join(&at, step));
    }
    Ok(here)
}

/// The mappings of a list, with their paths.
fn mappings<'a>(fields: &'a Fields, at: &str, key: &str) -> Result<Vec<(&'a Fields, String)>, Fault> {
    let path = join(at, key);
    list(fields, at, key)?
        .iter()
        .enumerate()
        .map(|(index, value)| match value {
            Value::Object(fields) => Ok((fields, item(&path, index))),
            Value::Null => Ok((&*NO_FIELDS, item(&path, index))),
            other => Err(fault(item(&path, index), wrong_type(other, "a mapping"))),
        })
        .collect()
}
