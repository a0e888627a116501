//! The plugin as a runtime runs it: parameters in the environment, a configuration on standard input.
#![allow(clippy::unwrap_used)] // a failed step is a failed test

use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixListener,
    path::Path,
    process::{Command, Stdio},
    thread,
};

use serde_json::{Value, json};

/// Runs it; whether it succeeded, and what it printed.
fn run(command: &str, input: &str) -> (bool, Value) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_ringwall-cni"))
        .env_clear()
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", "c1")
        .env("CNI_NETNS", "/run/netns/c1")
        .env("CNI_IFNAME", "eth0")
        .env("CNI_ARGS", "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    let printed = if printed.is_empty() {
        Value::Null
    } else {
        serde_json::from_str(&printed).unwrap()
    };
    (output.status.success(), printed)
}

fn previous() -> Value {
    json!({
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "veth1"}, {"name": "eth0", "sandbox": "/run/netns/c1"}],
        "ips": [{"address": "10.1.0.5/24", "interface": 1}],
        "routes": [{"dst": "0.0.0.0/0"}],
    })
}

fn configuration(runtime_dir: &Path, previous: Option<Value>) -> String {
    let mut conf = json!({
        "cniVersion": "1.0.0", "name": "pods", "type": "ringwall-cni", "runtimeDir": runtime_dir,
    });
    if let Some(previous) = previous {
        conf["prevResult"] = previous;
    }
    conf.to_string()
}

/// A dataplane that gives one answer, and the question that it heard.
fn dataplane(folder: &Path, answer: &'static str) -> thread::JoinHandle<Value> {
    let listener = UnixListener::bind(folder.join("cni.sock")).unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).unwrap();
        stream.write_all(answer.as_bytes()).unwrap();
        serde_json::from_str(&line).unwrap()
    })
}

#[test]
fn a_guarded_pod_gets_the_result_of_the_plugins_before() {
    let folder = tempfile::tempdir().unwrap();
    let heard = dataplane(folder.path(), "{\"answer\": \"done\"}\n");
    let (fine, printed) = run("ADD", &configuration(folder.path(), Some(previous())));
    assert!(fine, "{printed}");
    assert_eq!(printed, previous());
    assert_eq!(
        heard.join().unwrap(),
        json!({"command": "add", "about": {
            "container": "c1", "pod": "shop/web", "hostInterfaces": ["veth1"], "addresses": ["10.1.0.5"],
        }})
    );
}

#[test]
fn a_pod_that_is_not_guarded_does_not_start_and_the_runtime_is_to_try_again() {
    let folder = tempfile::tempdir().unwrap();
    let (fine, error) = run("ADD", &configuration(folder.path(), Some(previous())));
    assert!(!fine);
    assert_eq!(
        (&error["code"], &error["cniVersion"]),
        (&json!(11), &json!("1.0.0"))
    );
    assert!(
        error["msg"].as_str().unwrap().contains("does not answer"),
        "{error}"
    );

    let heard = dataplane(
        folder.path(),
        "{\"answer\": \"refused\", \"reason\": \"interface veth1 is not there\"}\n",
    );
    let (fine, error) = run("ADD", &configuration(folder.path(), Some(previous())));
    heard.join().unwrap();
    assert!(!fine);
    assert_eq!(error["details"], "interface veth1 is not there");
}

/// A control process that gives one answer after the other, each to one question; the questions.
fn control(folder: &Path, answers: &'static [&'static str]) -> thread::JoinHandle<Vec<(String, Value)>> {
    let listener = UnixListener::bind(folder.join("control.sock")).unwrap();
    thread::spawn(move || {
        let mut questions = Vec::new();
        for answer in answers {
            let (mut stream, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(&stream);
            let (mut path, mut length) = (String::new(), 0);
            loop {
                let mut line = String::new();
                reader.read_line(&mut line).unwrap();
                if let Some(rest) = line.strip_prefix("POST ") {
                    path = rest.split_whitespace().next().unwrap().to_owned();
                }
                if let Some(rest) = line.strip_prefix("Content-Length: ") {
                    length = rest.trim().parse().unwrap();
                }
                if line.trim().is_empty() {
                    break;
                }
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            questions.push((path, serde_json::from_slice(&body).unwrap_or_default()));
            write!(stream, "HTTP/1.0 200 OK\r\n\r\n{answer}").unwrap();
        }
        questions
    })
}

#[test]
fn a_held_pod_starts_when_control_knows_it() {
    let folder = tempfile::tempdir().unwrap();
    let heard = dataplane(folder.path(), "{\"answer\": \"awaitSnapshot\"}\n");
    let asked = control(
        folder.path(),
        &[
            "{\"known\": false, \"reason\": \"not adopted\"}",
            "nonsense",
            "{\"known\": true}",
        ],
    );
    let (fine, printed) = run("ADD", &configuration(folder.path(), Some(previous())));
    assert!(fine, "{printed}");
    assert_eq!(printed, previous());
    heard.join().unwrap();
    let about = json!({"container": "c1", "pod": "shop/web", "addresses": ["10.1.0.5"]});
    let question = ("/v1/pods/starts".to_owned(), about);
    assert_eq!(
        asked.join().unwrap(),
        [question.clone(), question.clone(), question]
    );
}

#[test]
fn a_pod_that_policies_never_know_does_not_start() {
    let folder = tempfile::tempdir().unwrap();
    let heard = dataplane(folder.path(), "{\"answer\": \"awaitSnapshot\"}\n");
    let mut conf: Value = serde_json::from_str(&configuration(folder.path(), Some(previous()))).unwrap();
    conf["holdSeconds"] = json!(1);
    let (fine, error) = run("ADD", &conf.to_string());
    heard.join().unwrap();
    assert!(!fine);
    assert_eq!(error["code"], 11, "{error}");
    assert!(
        error["msg"].as_str().unwrap().contains("podStart: hold"),
        "{error}"
    );
    assert!(
        error["details"]
            .as_str()
            .unwrap()
            .contains("control does not answer"),
        "{error}"
    );
}

#[test]
fn what_a_runtime_has_lost_is_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let heard = dataplane(folder.path(), "{\"answer\": \"done\"}\n");
    let asked = control(folder.path(), &[""]);
    let mut conf: Value = serde_json::from_str(&configuration(folder.path(), None)).unwrap();
    conf["cniVersion"] = json!("1.1.0");
    conf["cni.dev/valid-attachments"] = json!([{"containerID": "c7", "ifname": "eth0"}]);
    assert_eq!(run("GC", &conf.to_string()), (true, Value::Null));
    assert_eq!(
        heard.join().unwrap(),
        json!({"command": "collect", "about": {"containers": ["c7"]}})
    );
    let question = ("/v1/pods/ends".to_owned(), json!({"allBut": ["c7"]}));
    assert_eq!(asked.join().unwrap(), [question]);
}

#[test]
fn a_pod_can_always_be_deleted() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(
        run("DEL", &configuration(folder.path(), None)),
        (true, Value::Null)
    );
}

#[test]
fn what_cannot_be_understood_is_said_as_the_specification_has_it() {
    let folder = tempfile::tempdir().unwrap();
    let conf = |previous| configuration(folder.path(), previous);
    for (command, input, code) in [
        ("ADD", conf(None), 7),
        ("ADD", "{".to_owned(), 6),
        ("ADD", conf(Some(previous())).replace("\"1.0.0\"", "\"9.9.9\""), 1),
        ("JUMP", conf(Some(previous())), 4),
        ("STATUS", conf(None), 50),
        ("CHECK", conf(Some(json!({"interfaces": []}))), 7),
    ] {
        let (fine, error) = run(command, &input);
        assert!(!fine, "{command} {input}");
        assert_eq!(error["code"], code, "{command}: {error}");
        assert!(!error["msg"].as_str().unwrap().is_empty());
    }
    let (fine, versions) = run("VERSION", "");
    assert!(fine);
    assert!(
        versions["supportedVersions"]
            .as_array()
            .unwrap()
            .contains(&json!("0.3.1"))
    );
}
