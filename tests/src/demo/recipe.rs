//! A recipe: manifests on top of the demo's cluster, and what its text promises.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use include_dir::{Dir, include_dir};
use ringwall_testbed::{
    manifests,
    probe::Service,
    topology::{EXTERNAL, GATEWAY, GATEWAY_V6, POD_CIDR, POD_CIDR_V6, pod_addresses},
};
use serde::Deserialize;
use serde_json::{Value, json};

/// The cluster and the recipes that the binary carries.
static EMBEDDED: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../config/demo");

/// How many pods the bed has room for.
pub(super) const SLOTS: usize = 13;

/// A recipe.
#[derive(Clone, Debug)]
pub(super) struct Recipe {
    /// Its folder's or file's name.
    pub(super) slug: String,
    /// Its title.
    pub(super) title: String,
    /// What has to be known besides.
    pub(super) note: Option<String>,
    /// The whole cluster, with addresses, policies included.
    pub(super) objects: Vec<Value>,
    /// Pods by name, and the slot that each has.
    pub(super) pods: BTreeMap<String, usize>,
    /// What the text promises.
    pub(super) expect: Vec<Expectation>,
    /// What its policies' ports and the text mention, besides what is always tried.
    pub(super) ports: Vec<Service>,
}

/// One promise of a recipe's text.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Expectation {
    /// `namespace/pod`, `external`, or one of the external addresses.
    pub(super) from: String,
    /// As `from`.
    pub(super) to: String,
    #[serde(rename = "port", deserialize_with = "service")]
    pub(super) service: Service,
    /// What the text says comes of it.
    #[serde(rename = "want", deserialize_with = "verdict")]
    pub(super) allow: bool,
    /// In its words.
    pub(super) text: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Promises {
    title: Option<String>,
    note: Option<String>,
    #[serde(default)]
    expect: Vec<Expectation>,
}

fn verdict<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    match String::deserialize(deserializer)?.as_str() {
        "allow" => Ok(true),
        "deny" => Ok(false),
        other => Err(serde::de::Error::custom(format!(
            "`{other}` is neither `allow` nor `deny`"
        ))),
    }
}

fn service<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Service, D::Error> {
    let text = String::deserialize(deserializer)?;
    let wrong = || {
        serde::de::Error::custom(format!(
            "`{text}` is no service; write `80/TCP`, `53/UDP` or `ICMP`"
        ))
    };
    if text == "ICMP" {
        return Ok(Service::Echo);
    }
    let (port, protocol) = text.split_once('/').ok_or_else(wrong)?;
    let port = port.parse().map_err(|_| wrong())?;
    match protocol {
        "TCP" => Ok(Service::Tcp(port)),
        "UDP" => Ok(Service::Udp(port)),
        _ => Err(wrong()),
    }
}

/// The recipes of a folder, each a folder or a file in it, or the embedded ones.
pub(super) fn load(folder: Option<&Path>) -> anyhow::Result<Vec<Recipe>> {
    let text = EMBEDDED
        .get_file("cluster.yaml")
        .and_then(|file| file.contents_utf8())
        .context("the binary carries no cluster")?;
    let base = documents("cluster.yaml", text)?;
    let sources = match folder {
        None => embedded(),
        Some(folder) => from_disk(folder)?,
    };
    if sources.is_empty() {
        bail!(
            "there is no .yaml, .yml or .json file in {}",
            folder.unwrap_or(Path::new("the binary")).display()
        );
    }
    sources
        .into_iter()
        .map(|(slug, files)| assemble(&base, slug.clone(), &files).with_context(|| format!("recipe {slug}")))
        .collect()
}

/// Name and text of each file.
type Files = Vec<(PathBuf, String)>;

fn embedded() -> Vec<(String, Files)> {
    let Some(recipes) = EMBEDDED.get_dir("recipes") else {
        return Vec::new();
    };
    let mut all: Vec<_> = recipes
        .dirs()
        .map(|dir| {
            let files = dir
                .files()
                .filter_map(|file| Some((file.path().to_owned(), file.contents_utf8()?.to_owned())));
            (name(dir.path()), files.collect())
        })
        .collect();
    all.sort();
    all
}

fn name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

fn is_manifest(path: &Path) -> bool {
    path.extension()
        .is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|known| extension == *known))
}

fn from_disk(folder: &Path) -> anyhow::Result<Vec<(String, Files)>> {
    fn entries(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
        let mut paths = fs::read_dir(folder)
            .and_then(|entries| {
                entries
                    .map(|entry| Ok(entry?.path()))
                    .collect::<Result<Vec<_>, _>>()
            })
            .with_context(|| format!("cannot read the folder {}", folder.display()))?;
        paths.sort();
        Ok(paths)
    }
    fn files(path: &Path, found: &mut Files) -> anyhow::Result<()> {
        if path.is_dir() {
            return entries(path)?.iter().try_for_each(|path| files(path, found));
        }
        if is_manifest(path) {
            let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            found.push((path.to_owned(), text));
        }
        Ok(())
    }
    let mut all = Vec::new();
    for path in entries(folder)? {
        let mut found = Files::new();
        files(&path, &mut found)?;
        if !found.is_empty() {
            all.push((name(&path), found));
        }
    }
    Ok(all)
}

/// The objects of a file, lists unfolded.
fn documents(file: &str, text: &str) -> anyhow::Result<Vec<Value>> {
    let values: Vec<Value> =
        serde_saphyr::from_multiple(text).map_err(|error| anyhow::anyhow!("{file}: {error}"))?;
    let mut objects = Vec::new();
    for value in values {
        match value["kind"].as_str() {
            Some(kind) if kind.ends_with("List") && value["items"].is_array() => {
                objects.extend(value["items"].as_array().cloned().unwrap_or_default());
            }
            Some(_) => objects.push(value),
            None if value.is_null() => {}
            None => bail!("{file}: a document without `kind`"),
        }
    }
    Ok(objects)
}

fn key(object: &Value) -> (String, String, String) {
    let text = |pointer: &str| {
        object
            .pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let namespace = match text("/metadata/namespace") {
        namespace if namespace.is_empty() && text("/kind") != "Namespace" => "default".to_owned(),
        namespace => namespace,
    };
    (text("/kind"), namespace, text("/metadata/name"))
}

/// Puts a recipe's objects on top of the cluster's: same kind and name replaces.
fn assemble(base: &[Value], slug: String, files: &Files) -> anyhow::Result<Recipe> {
    let mut promises = Promises::default();
    let mut objects: BTreeMap<(String, String, String), Value> =
        base.iter().map(|object| (key(object), object.clone())).collect();
    let mut own = Vec::new();
    for (path, text) in files {
        let file = path.display().to_string();
        if name(path) == "expect.yaml" {
            promises = serde_saphyr::from_str(text).map_err(|error| anyhow::anyhow!("{file}: {error}"))?;
        } else {
            own.extend(documents(&file, text)?);
        }
    }
    add_subjects(&objects, &mut own);
    for object in own {
        objects.insert(key(&object), object);
    }
    // Every namespace that is used exists.
    let used: Vec<String> = objects
        .keys()
        .map(|(_, namespace, _)| namespace.clone())
        .collect();
    for namespace in used.into_iter().filter(|namespace| !namespace.is_empty()) {
        objects
            .entry(("Namespace".to_owned(), String::new(), namespace.clone()))
            .or_insert_with(|| manifests::namespace(&namespace, &manifests::Labels::new()));
    }
    let mut pods = BTreeMap::new();
    // The cluster's own pods keep their slots whatever a recipe adds.
    let known: Vec<_> = base.iter().map(key).filter(|(kind, ..)| kind == "Pod").collect();
    let added: Vec<_> = objects
        .keys()
        .filter(|key| key.0 == "Pod" && !known.contains(key))
        .cloned()
        .collect();
    for (slot, key) in known.iter().chain(&added).enumerate() {
        if slot >= SLOTS {
            bail!(
                "more than {} pods of its own; the demo has room for no more",
                SLOTS - known.len()
            );
        }
        let (_, namespace, pod) = key;
        pods.insert(format!("{namespace}/{pod}"), slot);
        if let Some(object) = objects.get_mut(key) {
            place(object, namespace, slot);
        }
    }
    let ports = mentioned(objects.values(), &promises.expect);
    let mut all: Vec<Value> = vec![
        manifests::node("gateway", &[GATEWAY.into(), GATEWAY_V6.into()], &[]),
        manifests::node("node-a", &[], &[POD_CIDR, POD_CIDR_V6]),
    ];
    all.extend(objects.into_values());
    for expectation in &promises.expect {
        for end in [&expectation.from, &expectation.to] {
            if !pods.contains_key(end) && end != "external" && end.parse::<Ipv4Addr>().is_err() {
                bail!(
                    "expect.yaml speaks of `{end}`, which is no pod of the recipe, `external` or an address"
                );
            }
        }
    }
    Ok(Recipe {
        title: promises.title.unwrap_or_else(|| slug.clone()),
        note: promises.note,
        slug,
        objects: all,
        pods,
        expect: promises.expect,
        ports,
    })
}

/// Gives a pod the addresses of a slot.
fn place(object: &mut Value, namespace: &str, slot: usize) {
    let (v4, v6) = pod_addresses(slot);
    object["metadata"]["namespace"] = json!(namespace);
    if !object["spec"].is_object() {
        object["spec"] = json!({"containers": [{"name": "main", "image": "registry.example/main"}]});
    }
    object["spec"]["nodeName"] = json!("node-a");
    object["status"] = json!({
        "phase": "Running",
        "podIP": v4.to_string(),
        "podIPs": [{"ip": v4.to_string()}, {"ip": v6.to_string()}],
    });
}

/// Policies whose own selector nothing in the demo's cluster matches would show nothing: each gets a pod, as far as
/// there is room.
fn add_subjects(cluster: &BTreeMap<(String, String, String), Value>, own: &mut Vec<Value>) {
    let has = |object: &Value, namespace: &str, wanted: &serde_json::Map<String, Value>| {
        let (kind, pod_namespace, _) = key(object);
        kind == "Pod"
            && pod_namespace == namespace
            && wanted
                .iter()
                .all(|(label, value)| object["metadata"]["labels"].get(label) == Some(value))
    };
    let base = cluster.keys().filter(|(kind, ..)| kind == "Pod").count();
    let mut room = SLOTS.saturating_sub(base + own.iter().filter(|object| key(object).0 == "Pod").count());
    let mut added: Vec<Value> = Vec::new();
    for policy in own.iter().filter(|object| key(object).0 == "NetworkPolicy") {
        let (_, namespace, name) = key(policy);
        let labels = policy
            .pointer("/spec/podSelector/matchLabels")
            .and_then(Value::as_object);
        let labels = labels.cloned().unwrap_or_default();
        let there = cluster
            .values()
            .chain(own.iter())
            .chain(&added)
            .any(|object| has(object, &namespace, &labels));
        if there || room == 0 {
            continue;
        }
        room -= 1;
        added.push(json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"namespace": namespace, "name": format!("for-{name}"), "labels": labels},
        }));
    }
    own.extend(added);
}

/// Ports that policies name, and those that the text speaks of.
fn mentioned<'a>(objects: impl Iterator<Item = &'a Value>, expect: &[Expectation]) -> Vec<Service> {
    fn walk(value: &Value, found: &mut Vec<Service>) {
        match value {
            Value::Object(map) => {
                if let Some(port) = map
                    .get("port")
                    .and_then(Value::as_u64)
                    .and_then(|port| u16::try_from(port).ok())
                {
                    match map.get("protocol").and_then(Value::as_str) {
                        None | Some("TCP") => found.push(Service::Tcp(port)),
                        Some("UDP") => found.push(Service::Udp(port)),
                        Some(_) => {}
                    }
                }
                map.values().for_each(|value| walk(value, found));
            }
            Value::Array(list) => list.iter().for_each(|value| walk(value, found)),
            _ => {}
        }
    }
    let mut found: Vec<_> = expect.iter().map(|one| one.service).collect();
    objects
        .filter(|object| key(object).0 == "NetworkPolicy")
        .for_each(|policy| walk(&policy["spec"], &mut found));
    found.sort();
    found.dedup();
    found
}

impl Recipe {
    /// The addresses of an end, IPv4 first, and the slot where it is a pod.
    pub(super) fn end(&self, name: &str) -> Option<(Vec<IpAddr>, Option<usize>)> {
        if let Some(slot) = self.pods.get(name) {
            let (v4, v6) = pod_addresses(*slot);
            return Some((vec![v4.into(), v6.into()], Some(*slot)));
        }
        if name == "external" {
            return Some((
                vec![EXTERNAL.into(), ringwall_testbed::topology::EXTERNAL_V6.into()],
                None,
            ));
        }
        Some((vec![name.parse().ok()?], None))
    }

    /// Writes the whole cluster, ready for `ringwall query --manifests`.
    pub(super) fn export(&self, folder: &Path) -> anyhow::Result<PathBuf> {
        let folder = folder.join(
            self.slug
                .trim_end_matches(".yaml")
                .trim_end_matches(".yml")
                .trim_end_matches(".json"),
        );
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let file = folder.join("cluster.yaml");
        fs::write(&file, manifests::file(&self.objects))
            .with_context(|| format!("cannot write {}", file.display()))?;
        Ok(folder)
    }
}
