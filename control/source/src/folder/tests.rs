#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may stop at the first surprise"
)]

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    time::{Duration, Instant},
};

use rustix::fs::{CWD, FileType, Mode, mknodat};
use tempfile::TempDir;

use super::*;

mod calico;
mod tiered;

const LONG: Duration = Duration::from_secs(10);

fn pod(name: &str, ip: &str) -> String {
    format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: a}}\nstatus: {{podIP: {ip}}}\n")
}

fn policy(name: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata:\n  name: {name}\n  namespace: a\nspec:\n  podSelector: {{}}\n"
    )
}

fn folder(files: &[(&str, &str)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        write(dir.path(), name, text);
    }
    dir
}

fn write(dir: &Path, name: &str, text: &str) {
    let path = dir.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    // At once: a file that is empty for a moment is a folder without its objects.
    let next = path.with_extension("next");
    fs::write(&next, text).unwrap();
    fs::rename(next, path).unwrap();
}

fn read(dir: &Path) -> Result<Loaded, FolderError> {
    load(dir, &Settings::default())
}

/// Problems with paths relative to the folder.
fn messages(dir: &Path, problems: &[Problem]) -> Vec<String> {
    let prefix = format!("{}/", dir.display());
    problems
        .iter()
        .map(|problem| problem.to_string().replace(&prefix, ""))
        .collect()
}

fn refused(dir: &TempDir) -> Vec<String> {
    match read(dir.path()) {
        Err(FolderError::Broken(problems)) => messages(dir.path(), &problems),
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn manifests_are_found_below_and_other_files_passed_over() {
    let dir = folder(&[
        ("pods/one.yml", &pod("one", "10.0.0.1")),
        (
            "pods/deep/two.json",
            r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"two","namespace":"a"}}"#,
        ),
        ("policy.yaml", &format!("{}---\n{}", policy("p"), policy("q"))),
        ("README.md", "not: [yaml"),
        (".hidden.yaml", "not: [yaml"),
        (".git/x.yaml", "not: [yaml"),
        ("backup.yaml~", "not: [yaml"),
        ("empty.yaml", "\n# nothing\n---\n"),
        ("kustomization.yaml", "resources: [policy.yaml]\n"),
    ]);
    let loaded = read(dir.path()).unwrap();
    assert_eq!(
        (
            loaded.cluster.pods.len(),
            loaded.cluster.policies.len(),
            loaded.files
        ),
        (2, 2, 5)
    );
    assert!(loaded.cluster.namespaces.contains_key("a"), "supplied");
    assert_eq!(
        messages(dir.path(), &loaded.problems),
        [
            "kustomization.yaml:1: document: is not a Kubernetes object (no apiVersion, kind, metadata, spec): skipped"
        ]
    );
    assert_eq!(loaded.problems[0].severity, Severity::Warning);
    // A single file will do.
    assert_eq!(
        read(&dir.path().join("policy.yaml"))
            .unwrap()
            .cluster
            .policies
            .len(),
        2
    );
}

#[test]
fn a_mounted_config_map_is_read_once() {
    let dir = folder(&[
        ("..2025_01/p.yaml", &policy("p")),
        ("..2025_01/q.yaml", &policy("q")),
    ]);
    symlink("..2025_01", dir.path().join("..data")).unwrap();
    symlink("..data/p.yaml", dir.path().join("p.yaml")).unwrap();
    symlink("..data/q.yaml", dir.path().join("q.yaml")).unwrap();
    let loaded = read(dir.path()).unwrap();
    assert_eq!((loaded.cluster.policies.len(), loaded.files), (2, 2));
}

#[test]
fn links_that_turn_back_or_lead_nowhere() {
    let dir = folder(&[("sub/p.yaml", &policy("p"))]);
    symlink("..", dir.path().join("sub/up")).unwrap();
    symlink("sub", dir.path().join("twice")).unwrap();
    assert_eq!(read(dir.path()).unwrap().files, 1);
    symlink("gone.yaml", dir.path().join("dangling.yaml")).unwrap();
    assert_eq!(
        refused(&dir),
        ["dangling.yaml: links to a file that does not exist"]
    );
}

#[test]
fn what_is_no_file_is_not_waited_for() {
    let dir = folder(&[]);
    mknodat(CWD, dir.path().join("pipe.yaml"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    assert_eq!(
        refused(&dir),
        ["pipe.yaml: cannot be read: it is neither a file nor a folder"]
    );
}

#[test]
fn a_list_does_not_lose_what_stands_under_another_key() {
    let of = |kind: &str, rest: &str| {
        let text = format!("apiVersion: networking.k8s.io/v1\nkind: {kind}\n{rest}\n");
        let dir = folder(&[("list.yaml", &text)]);
        match read(dir.path()) {
            Ok(_) => Vec::new(),
            Err(_) => refused(&dir),
        }
    };
    for kind in ["List", "NetworkPolicyList"] {
        let missing = ["list.yaml:1: document: items: is missing: a list without objects has items: []"];
        assert_eq!(of(kind, "item: [{kind: NetworkPolicy}]"), missing);
        let wrong = ["list.yaml:3: document: items: must be a list, not a mapping"];
        assert_eq!(of(kind, "items: {kind: NetworkPolicy}"), wrong);
        assert!(of(kind, "items: null").is_empty());
    }
    assert!(of("AllowList", "items: {a: b}").is_empty(), "of another kind");
}

#[test]
fn every_mistake_says_file_line_and_field() {
    let dir = folder(&[
        (
            "a.yaml",
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: x\n   labels: {}\n",
        ),
        (
            "b.yaml",
            "# note\n---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: x\n  labels:\n    version: 1\n",
        ),
        ("c.yaml", "metadata: {name: x}\n"),
        ("d.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {}\n"),
        (
            "e.yaml",
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: e\nstatus:\n  podIPs:\n  - ip: 10.0.0.256\n",
        ),
        ("f.json", "{\"kind\": \"Pod\",\n \"kind\": \"Pod\"}"),
        ("g.yaml", "- a\n- b\n"),
        (
            "h.yaml",
            "apiVersion: v1\nkind: Node\nmetadata:\n  name: m\nspec:\n  podCIDRs: [10.0.0.0/99]\n",
        ),
        (
            "i.yaml",
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: x\n  name: y\n",
        ),
    ]);
    fs::write(dir.path().join("z.yaml"), b"kind: Pod\nx: \xff\n").unwrap();
    insta::assert_snapshot!(refused(&dir).join("\n"));
}

#[test]
fn invalid_policies_isolate_and_are_reported() {
    let text = format!(
        "{}---\n{}  ingres: []\n  ingress:\n  - from:\n    - {{}}\n",
        policy("good"),
        policy("bad")
    );
    let dir = folder(&[("p.yaml", &text), ("q.yaml", &policy("Odd"))]);
    let loaded = read(dir.path()).unwrap();
    assert_eq!(loaded.cluster.policies.len(), 3);
    insta::assert_snapshot!(messages(dir.path(), &loaded.problems).join("\n"));
}

#[test]
fn one_object_in_two_files_is_an_error() {
    let dir = folder(&[("a.yaml", &policy("p")), ("b.yaml", &policy("p"))]);
    assert_eq!(
        refused(&dir),
        [format!(
            "b.yaml:1: NetworkPolicy a/p: already defined at {}/a.yaml:1; remove one of them",
            dir.path().display()
        )
        .replace(&format!("{}/", dir.path().display()), "")]
    );
}

#[test]
fn a_workload_with_a_pods_name_gets_its_kind_before_it() {
    let deployment =
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web, namespace: a}\nspec: {template: {}}\n";
    let dir = folder(&[("a.yaml", deployment), ("b.yaml", &pod("web", "10.0.0.1"))]);
    let loaded = read(dir.path()).unwrap();
    let names: Vec<String> = loaded.cluster.pods.keys().map(ToString::to_string).collect();
    assert_eq!(names, ["a/deployment/web", "a/web"]);
    assert_eq!(loaded.problems[0].severity, Severity::Warning);
}

#[test]
fn a_folder_that_is_not_there_is_unreadable() {
    let error = read(Path::new("/nonexistent/manifests")).unwrap_err();
    assert!(matches!(error, FolderError::Unreadable { .. }));
    assert!(error.to_string().contains("/nonexistent/manifests"), "{error}");
}

fn watch(dir: &TempDir) -> (Loaded, FolderWatch) {
    FolderWatch::start(dir.path(), Settings::default(), WatchOptions::default()).unwrap()
}

/// The next complete state that satisfies `wanted`.
fn until(watch: &FolderWatch, wanted: impl Fn(&Loaded) -> bool) -> Loaded {
    let deadline = Instant::now() + LONG;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match watch.updates().recv_timeout(left).expect("no such state came") {
            Update::State(loaded) if wanted(&loaded) => return *loaded,
            Update::State(_) | Update::Services(_) => {}
            Update::Held { reason, .. } => panic!("held: {reason}"),
        }
    }
}

#[test]
fn services_that_change_make_no_state() {
    let dir = folder(&[("np.yaml", &policy("p"))]);
    let (_, watch) = watch(&dir);
    let service = |port: u16| {
        let text = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: a}}\nspec: {{selector: {{app: web}}, ports: [{{port: {port}}}]}}\n"
        );
        let next = dir.path().join("next");
        fs::write(&next, text).unwrap();
        fs::rename(next, dir.path().join("web.yaml")).unwrap();
    };
    for port in [80, 81] {
        service(port);
        match watch.updates().recv_timeout(LONG).unwrap() {
            Update::Services(services) => {
                let web = services.services.values().next().unwrap();
                assert_eq!(web.ports[0].port, port);
            }
            other => panic!("{other:?}"),
        }
    }
    fs::remove_file(dir.path().join("web.yaml")).unwrap();
    match watch.updates().recv_timeout(LONG).unwrap() {
        Update::Services(services) => assert!(services.services.is_empty()),
        other => panic!("{other:?}"),
    }
}

fn held(watch: &FolderWatch) -> String {
    match watch.updates().recv_timeout(LONG).unwrap() {
        Update::Held { reason, .. } => reason,
        Update::State(loaded) => panic!("not held: {:?}", loaded.cluster.policies),
        Update::Services(services) => panic!("not held: {services:?}"),
    }
}

fn names(loaded: &Loaded) -> Vec<String> {
    loaded
        .cluster
        .policies
        .keys()
        .map(|key| key.name.clone())
        .collect()
}

#[test]
fn changes_are_taken_up_live() {
    let dir = folder(&[("p.yaml", &policy("p"))]);
    let (loaded, watch) = watch(&dir);
    assert_eq!(names(&loaded), ["p"]);
    write(dir.path(), "q.yaml", &policy("q"));
    until(&watch, |loaded| names(loaded) == ["p", "q"]);
    write(dir.path(), "q.yaml", &policy("r"));
    until(&watch, |loaded| names(loaded) == ["p", "r"]);
    fs::rename(dir.path().join("q.yaml"), dir.path().join("s.yaml")).unwrap();
    write(dir.path(), "sub/t.yaml", &policy("t"));
    until(&watch, |loaded| names(loaded) == ["p", "r", "t"]);
    write(dir.path(), "sub/t.yaml", &policy("u"));
    until(&watch, |loaded| names(loaded) == ["p", "r", "u"]);
    fs::remove_file(dir.path().join("p.yaml")).unwrap();
    let last = until(&watch, |loaded| names(loaded) == ["r", "u"]);
    assert!(last.problems.is_empty(), "{:?}", last.problems);
}

/// A policy that isolates egress, and one as it is after a slip of the pen.
fn egress(name: &str) -> String {
    policy(name) + "  policyTypes: [Egress]\n"
}

fn misspelt(name: &str) -> String {
    egress(name).replace("podSelector", "podSelctor")
}

fn only_policy(loaded: &Loaded) -> &ringwall_policy::NetworkPolicy {
    assert_eq!(loaded.cluster.policies.len(), 1);
    loaded.cluster.policies.values().next().unwrap()
}

#[test]
fn a_policy_that_becomes_invalid_keeps_its_last_good_version() {
    let dir = folder(&[("p.yaml", &egress("p"))]);
    let (first, watch) = watch(&dir);
    let good = only_policy(&first).clone();
    assert!(good.faults.is_empty() && first.kept().next().is_none());

    // Whatever is wrong with it, and wherever it is now.
    for (file, text) in [
        ("p.yaml", misspelt("p")),
        ("p.yaml", misspelt("p") + "  more: 1\n"),
        ("q.yaml", misspelt("p")),
    ] {
        if file == "q.yaml" {
            fs::rename(dir.path().join("p.yaml"), dir.path().join("q.yaml")).unwrap();
        }
        write(dir.path(), file, &text);
        let kept = until(&watch, |loaded| {
            let all = messages(dir.path(), &loaded.problems);
            !all.is_empty() && all.iter().all(|problem| problem.starts_with(file))
        });
        assert_eq!(*only_policy(&kept), good, "{file}: {text}");
        let problems: Vec<String> = kept.kept().map(ToString::to_string).collect();
        assert!(problems[0].contains("podSelctor"), "{problems:?}");
    }

    // What is valid again counts, and what is gone is gone.
    write(dir.path(), "q.yaml", &policy("p"));
    let mended = until(&watch, |loaded| loaded.problems.is_empty());
    assert_ne!(*only_policy(&mended), good);
    write(dir.path(), "r.yaml", &policy("r"));
    until(&watch, |loaded| names(loaded) == ["p", "r"]);
    fs::remove_file(dir.path().join("q.yaml")).unwrap();
    until(&watch, |loaded| names(loaded) == ["r"]);

    // One that never was valid isolates.
    write(dir.path(), "s.yaml", &misspelt("s"));
    let new = until(&watch, |loaded| names(loaded) == ["r", "s"]);
    let invalid = new.cluster.policies.values().next_back().unwrap();
    assert!(!invalid.faults.is_empty() && new.kept().next().is_none());
}

#[test]
fn at_a_cold_start_an_invalid_policy_isolates() {
    let dir = folder(&[("p.yaml", &misspelt("p"))]);
    let (first, watch) = watch(&dir);
    assert!(!only_policy(&first).faults.is_empty());
    assert!(first.kept().next().is_none());
    // Still: nothing good is in force.
    write(dir.path(), "p.yaml", &(misspelt("p") + "  more: 1\n"));
    let later = until(&watch, |loaded| loaded.problems.len() > first.problems.len());
    assert!(!only_policy(&later).faults.is_empty());
}

#[test]
fn a_broken_file_keeps_its_last_good_objects_and_the_others_live() {
    let dir = folder(&[("p.yaml", &policy("p")), ("q.yaml", &policy("q"))]);
    let (_, watch) = watch(&dir);
    write(dir.path(), "p.yaml", "spec: [oops\n");
    let broken = until(&watch, |loaded| !loaded.problems.is_empty());
    assert_eq!(names(&broken), ["p", "q"]);
    assert!(broken.problems[0].file.ends_with("p.yaml") && broken.problems[0].line.is_some());
    write(
        dir.path(),
        "q.yaml",
        &format!("{}---\n{}", policy("q"), policy("r")),
    );
    until(&watch, |loaded| {
        names(loaded) == ["p", "q", "r"] && !loaded.problems.is_empty()
    });
    // A new file that never was good takes nothing down either.
    write(dir.path(), "s.yaml", "kind: 5\n");
    until(&watch, |loaded| {
        names(loaded) == ["p", "q", "r"] && loaded.problems.len() == 2
    });
    fs::remove_file(dir.path().join("s.yaml")).unwrap();
    write(dir.path(), "p.yaml", &policy("again"));
    until(&watch, |loaded| {
        names(loaded) == ["again", "q", "r"] && loaded.problems.is_empty()
    });
}

#[test]
fn of_two_files_with_one_object_the_older_keeps_it() {
    let dir = folder(&[("m.yaml", &policy("p"))]);
    let (_, watch) = watch(&dir);
    write(
        dir.path(),
        "a.yaml",
        &format!("{}  policyTypes: [Egress]\n---\n{}", policy("p"), policy("x")),
    );
    let loaded = until(&watch, |loaded| names(loaded) == ["p", "x"]);
    assert!(
        loaded
            .cluster
            .policies
            .values()
            .all(|policy| policy.ingress.is_some())
    );
    assert_eq!(loaded.problems.len(), 1);
    assert!(loaded.problems[0].file.ends_with("a.yaml"));
}

#[test]
fn policies_that_vanish_are_held_until_accepted() {
    let dir = folder(&[("pod.yaml", &pod("x", "10.0.0.1"))]);
    for name in ["a", "b", "c"] {
        write(dir.path(), &format!("p/{name}.yaml"), &policy(name));
    }
    let (_, watch) = watch(&dir);
    // One of three is an everyday change.
    fs::remove_file(dir.path().join("p/a.yaml")).unwrap();
    until(&watch, |loaded| names(loaded) == ["b", "c"]);
    fs::remove_dir_all(dir.path().join("p")).unwrap();
    assert!(held(&watch).starts_with("2 of 2 policies are gone"));
    watch.accept();
    until(&watch, |loaded| names(loaded).is_empty());
    // Held again, and let go by itself when the objects are back.
    fs::remove_file(dir.path().join("pod.yaml")).unwrap();
    assert!(held(&watch).starts_with("all objects are gone"));
    write(dir.path(), "pod.yaml", &pod("x", "10.0.0.2"));
    until(&watch, |loaded| loaded.cluster.pods.len() == 1);
}

#[test]
fn the_swap_of_a_mounted_config_map_is_one_change() {
    let dir = folder(&[("..1/p.yaml", &policy("p")), ("..2/p.yaml", &policy("q"))]);
    symlink("..1", dir.path().join("..data")).unwrap();
    symlink("..data/p.yaml", dir.path().join("p.yaml")).unwrap();
    let (loaded, watch) = watch(&dir);
    assert_eq!(names(&loaded), ["p"]);
    symlink("..2", dir.path().join("..data_tmp")).unwrap();
    fs::rename(dir.path().join("..data_tmp"), dir.path().join("..data")).unwrap();
    until(&watch, |loaded| names(loaded) == ["q"]);
}

#[test]
fn a_file_that_is_still_being_written_is_left_alone() {
    use std::io::Write;
    let dir = folder(&[("p.yaml", &policy("p"))]);
    let (_, watch) = watch(&dir);
    let mut file = fs::File::create(dir.path().join("p.yaml")).unwrap();
    // A valid beginning: half a file must not be taken for the whole.
    file.write_all(policy("q").as_bytes()).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    file.write_all(b"---\n").unwrap();
    file.write_all(policy("p").as_bytes()).unwrap();
    drop(file);
    let first = match watch.updates().recv_timeout(LONG).unwrap() {
        Update::State(loaded) => *loaded,
        other => panic!("{other:?}"),
    };
    assert_eq!(names(&first), ["p", "q"], "half a file was taken up");
}

#[test]
fn a_folder_that_is_replaced_is_watched_on() {
    let dir = folder(&[("v1/p.yaml", &policy("p")), ("v2/q.yaml", &policy("q"))]);
    let link = dir.path().join("now");
    symlink("v1", &link).unwrap();
    let options = WatchOptions {
        poll: Duration::from_millis(5),
        ..WatchOptions::default()
    };
    let (_, watch) = FolderWatch::start(&link, Settings::default(), options).unwrap();
    symlink("v2", dir.path().join("next")).unwrap();
    fs::rename(dir.path().join("next"), &link).unwrap();
    until(&watch, |loaded| names(loaded) == ["q"]);
    write(&dir.path().join("v2"), "r.yaml", &policy("r"));
    until(&watch, |loaded| names(loaded) == ["q", "r"]);
    // Gone for a while: the state is held, and taken up when there is a folder again.
    fs::remove_file(&link).unwrap();
    assert!(held(&watch).contains("the last good state stays in force"));
    symlink("v1", &link).unwrap();
    until(&watch, |loaded| names(loaded) == ["p"]);
}

/// Two readers of one folder, one that learns what happened, one that reads everything each time: they never differ.
#[test]
fn what_an_event_names_is_all_that_is_read_and_nothing_is_missed() {
    use super::reader::{Changed, Reader};
    let mut seed = 1u64;
    let mut random = move |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        usize::try_from(seed >> 33).unwrap() % below
    };
    let (mut occurred, mut links, mut steps) = ([0; 5], 0, 0);
    for round in 0..40 {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for folder in ["d", "..1", "..2"] {
            fs::create_dir(at(folder)).unwrap();
        }
        let settings = Settings::default();
        let (mut quick, mut thorough) = (
            Reader::new(dir.path(), &settings),
            Reader::new(dir.path(), &settings),
        );
        quick.refresh(&Changed::All).unwrap();
        thorough.refresh(&Changed::All).unwrap();
        for step in 0..60 {
            let name = |n: usize| {
                [
                    "a.yaml", "b.yaml", "c.json", "d/a.yaml", "d/b.yml", "e.yaml", "notes", ".x.yaml",
                ][n]
            };
            let (one, other) = (name(random(8)), name(random(8)));
            let mut events = vec![at(one)];
            // In half of the rounds nothing has a second name.
            match random(if round % 2 == 0 { 8 } else { 14 }) {
                0..5 => {
                    let objects = (0..random(3)).map(|_| {
                        let object = random(4).to_string();
                        match random(20) {
                            0 => format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: a, labels: {{x: y{object}}}}}\n"),
                            1 => format!("apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: p{object}, namespace: a}}\nspec: {{template: {{}}}}\n"),
                            2 => "apiVersion: projectcalico.org/v3\nkind: Profile\nmetadata: {name: g}\n".to_owned(),
                            3 => "kind: [\n".to_owned(),
                            4 => format!("{}  ingress: [x]\n", policy(&format!("p{object}"))),
                            5 => format!("apiVersion: v1\nkind: Node\nmetadata: {{name: n{object}}}\n"),
                            6 | 7 => policy(&format!("p{object}")),
                            8 => tiered::cluster_policy(&format!("p{object}"), "Deny"),
                            9 => tiered::cluster_policy(&format!("p{object}"), "Drop"),
                            10 => tiered::towards_nodes(&format!("p{object}")),
                            11 => calico::global(&format!("p{object}"), "has(a) && !has(pcsa.team)", "Allow"),
                            12 => calico::global(&format!("p{object}"), "has(a)", ["Deny", "Drop"][random(2)]),
                            13 => calico::set(&format!("s{object}"), "a: b", &format!("192.0.{step}.0/24")),
                            14 => calico::account("default", &format!("t{object}")),
                            15 => calico::tier(&format!("t{object}"), step),
                            _ => pod(&format!("p{object}"), &format!("10.0.{step}.{}", random(200)))
                                .replace("namespace: a", ["namespace: a", "namespace: b"][random(2)]),
                        }
                    });
                    // Each text is longer than those before, so that metadata always tell, too.
                    let text: Vec<String> = objects
                        .chain([format!("#{}\n", "x".repeat(500 + step))])
                        .collect();
                    // A link may lead in circles.
                    drop(fs::write(at(one), text.join("---\n")));
                }
                5 => drop(fs::remove_file(at(one))),
                6 => {
                    events.push(at(other));
                    drop(fs::rename(at(one), at(other)));
                }
                7 => {
                    events = vec![at("d"), at("d2")];
                    if fs::rename(at("d"), at("d2")).is_ok() {
                        fs::create_dir(at("d")).unwrap();
                    } else {
                        fs::remove_dir_all(at("d2")).unwrap();
                    }
                }
                8 => {
                    drop(fs::remove_file(at(one)));
                    drop(symlink(at(other), at(one)));
                }
                9 => drop(fs::hard_link(at(other), at(one))),
                10 => {
                    fs::write(at("..1/p.yaml"), format!("{}#{}", policy("p"), "x".repeat(step))).unwrap();
                    fs::write(
                        at("..2/p.yaml"),
                        format!("{}#{}", pod("p", "10.0.0.1"), "x".repeat(step)),
                    )
                    .unwrap();
                    events = vec![at("..1/p.yaml"), at("..2/p.yaml")];
                }
                _ => {
                    drop(symlink("..data/p.yaml", at("p.yaml")));
                    drop(fs::remove_file(at("..data")));
                    symlink(["..1", "..2"][random(2)], at("..data")).unwrap();
                    events = vec![at("..data"), at("p.yaml")];
                }
            }
            links += usize::from(at("p.yaml").exists());
            let events = events.into_iter().collect();
            quick.refresh(&Changed::Only(events)).unwrap();
            thorough.refresh(&Changed::All).unwrap();
            let (found, wanted) = (quick.assemble(), thorough.anew());
            assert_eq!(found.cluster, wanted.cluster, "round {round}, step {step}");
            assert_eq!(found.problems, wanted.problems, "round {round}, step {step}");
            assert_eq!(found.files, wanted.files, "round {round}, step {step}");
            occurred[0] += usize::from(found.problems.iter().any(|it| it.kind == ProblemKind::Duplicate));
            occurred[1] += usize::from(!found.cluster.pods.is_empty());
            occurred[2] += usize::from(!found.cluster.unevaluated_kinds.is_empty());
            occurred[3] += usize::from(!found.cluster.policies.is_empty());
            occurred[4] += usize::from(!found.cluster.tiered.is_empty());
            steps += 1;
        }
    }
    assert!(
        occurred
            .iter()
            .chain([&links])
            .all(|count| *count > 50 && *count < steps),
        "{occurred:?}, {links} of {steps}"
    );
}

/// A misspelt kind makes no second policy of that name.
#[test]
fn one_policy_by_two_kinds_is_one() {
    let dir = folder(&[
        ("a.yaml", &policy("p")),
        (
            "b.yaml",
            &policy("p").replace("kind: NetworkPolicy", "kind: NetworkPolicies"),
        ),
    ]);
    assert!(refused(&dir)[0].contains("already defined at"));
}

#[test]
fn without_notification_the_folder_is_looked_at_again() {
    let dir = folder(&[("p.yaml", &policy("p"))]);
    let options = WatchOptions {
        poll: Duration::from_millis(20),
        ..WatchOptions::default()
    };
    let (_, watch) = FolderWatch::start_polling(dir.path(), Settings::default(), options).unwrap();
    write(dir.path(), "q.yaml", &policy("q"));
    until(&watch, |loaded| names(loaded) == ["p", "q"]);
}

#[test]
#[ignore = "a figure, not a check: run it with --ignored --nocapture"]
fn latency_of_a_change() {
    for (pods, policies) in [(1000, 200), (10_000, 1000)] {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..pods {
            let text = pod(
                &format!("p{n}"),
                &format!("10.{}.{}.{}", n / 40_000, n / 200 % 200, n % 200),
            );
            write(dir.path(), &format!("pods/{n}.yaml"), &text);
        }
        for n in 0..policies {
            write(
                dir.path(),
                &format!("policies/{n}.yaml"),
                &policy(&format!("p{n}")),
            );
        }
        let (_, watch) = watch(&dir);
        let mut times: Vec<Duration> = (0..50)
            .map(|round| {
                let began = Instant::now();
                write(dir.path(), "policies/new.yaml", &policy(&format!("new{round}")));
                until(&watch, |_| true);
                began.elapsed()
            })
            .collect();
        times.sort();
        println!(
            "{pods} pods, {policies} policies: file written -> new state handed out: median {:?}, {:?} to {:?}",
            times[25], times[0], times[49]
        );
    }
}
