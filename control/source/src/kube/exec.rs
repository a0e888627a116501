//! Runs the program that a kubeconfig names for credentials, within a time limit.
//!
//! kube runs it, too, but waits for ever, once for the token and once more for the certificate. What hangs here is
//! killed with everything it started.

use std::{
    io::Read,
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use kube::config::{ExecConfig, ExecInteractiveMode};
use ringwall_process::confine;
use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;
use serde_json::json;

/// More than any credential.
const MOST_OUTPUT: u64 = 1 << 20;

/// How much of what the program complains about is shown.
const MOST_COMPLAINT: usize = 300;

/// What the program answers.
#[derive(Deserialize)]
struct ExecCredential {
    status: Option<Credential>,
}

/// Credentials that a program made.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
pub(super) struct Credential {
    /// RFC 3339.
    pub(super) expiration_timestamp: Option<String>,
    pub(super) token: Option<String>,
    /// PEM.
    pub(super) client_certificate_data: Option<String>,
    /// PEM.
    pub(super) client_key_data: Option<String>,
}

/// Runs the program and takes its answer. Blocks.
///
/// # Errors
/// The program cannot be run, fails, takes longer than `limit`, or answers with no credential.
pub(super) fn run(exec: &ExecConfig, limit: Duration) -> Result<Credential, String> {
    let name = exec
        .command
        .as_deref()
        .ok_or("the user's exec section names no command")?;
    if exec.interactive_mode == Some(ExecInteractiveMode::Always) {
        return Err(format!(
            "{name} requires a terminal (interactiveMode: Always), which a service does not have"
        ));
    }
    let until = Instant::now() + limit;
    let mut child = command(exec, name)?
        .spawn()
        .map_err(|error| format!("cannot run {name}: {error}"))?;
    let (output, complaint) = (drain(child.stdout.take()), drain(child.stderr.take()));
    let left = || until.saturating_duration_since(Instant::now());
    let answer = output.recv_timeout(left());
    let status = answer.as_ref().ok().and_then(|_| wait(&mut child, until));
    let Some(status) = status else {
        kill(&mut child);
        return Err(format!(
            "{name} took longer than {} s and was killed",
            limit.as_secs_f64()
        ));
    };
    if !status.success() {
        let complaint = complaint
            .recv_timeout(Duration::from_millis(100))
            .unwrap_or_default();
        let complaint: String = String::from_utf8_lossy(&complaint)
            .trim()
            .chars()
            .take(MOST_COMPLAINT)
            .collect();
        return Err(format!("{name} failed ({status}): {complaint}"));
    }
    let text = String::from_utf8(answer.unwrap_or_default())
        .map_err(|_| format!("{name} returned something that is not text"))?;
    // Not with the parser's words: they quote what they could not read, and that may be the credential.
    let credential: ExecCredential = serde_saphyr::from_str(&text)
        .map_err(|_| format!("{name} returned something that is not an ExecCredential"))?;
    credential
        .status
        .ok_or_else(|| format!("{name} returned an ExecCredential without status"))
}

fn command(exec: &ExecConfig, name: &str) -> Result<Command, String> {
    let mut command = Command::new(name);
    command.envs(confine::home().map(|home| ("HOME", home)));
    command.args(exec.args.iter().flatten());
    for variable in exec.env.iter().flatten() {
        if let (Some(name), Some(value)) = (variable.get("name"), variable.get("value")) {
            command.env(name, value);
        }
    }
    let mut spec = json!({"interactive": false});
    if exec.provide_cluster_info {
        spec["cluster"] = serde_json::to_value(&exec.cluster).map_err(|error| error.to_string())?;
    }
    let info = json!({"apiVersion": exec.api_version, "kind": "ExecCredential", "spec": spec});
    command
        .env("KUBERNETES_EXEC_INFO", info.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // A group of its own: what it starts is killed with it.
        .process_group(0);
    Ok(command)
}

/// Reads to the end in a thread of its own.
fn drain(from: Option<impl Read + Send + 'static>) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    if let Some(from) = from {
        // Without a thread the sender goes, which reads as no answer.
        let _ = thread::Builder::new()
            .name("exec-output".to_owned())
            .spawn(move || {
                let mut bytes = Vec::new();
                // What came before an error is what there is.
                let _ = from.take(MOST_OUTPUT).read_to_end(&mut bytes);
                let _ = sender.send(bytes);
            });
    }
    receiver
}

/// How it ended; None where it has not in time.
fn wait(child: &mut Child, until: Instant) -> Option<std::process::ExitStatus> {
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if Instant::now() < until => thread::sleep(Duration::from_millis(5)),
            Ok(None) | Err(_) => return None,
        }
    }
}

fn kill(child: &mut Child) {
    if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        // Gone already: as well.
        let _ = kill_process_group(group, Signal::KILL);
    }
    let _ = child.wait();
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // a failed step is a failed test

    use super::*;

    fn shell(script: &str) -> ExecConfig {
        serde_json::from_value(json!({
            "apiVersion": "client.authentication.k8s.io/v1", "command": "sh", "args": ["-c", script],
            "env": [{"name": "GREETING", "value": "hello"}],
        }))
        .unwrap()
    }

    #[test]
    fn the_program_is_told_what_it_needs_and_its_answer_is_taken() {
        let script = r#"
            case "$KUBERNETES_EXEC_INFO" in *client.authentication.k8s.io/v1*false*) ;; *) exit 3;; esac
            echo "{kind: ExecCredential, status: {token: $GREETING, expirationTimestamp: '2030-01-01T00:00:00Z'}}"
        "#;
        let credential = run(&shell(script), Duration::from_secs(20)).unwrap();
        assert_eq!(credential.token.as_deref(), Some("hello"));
        assert_eq!(
            credential.expiration_timestamp.as_deref(),
            Some("2030-01-01T00:00:00Z")
        );
    }

    #[test]
    fn a_program_that_hangs_is_killed_with_what_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        // The child keeps the pipe open after its parent.
        let script = format!("sleep 600 & echo $! > {}; wait", file.display());
        let began = Instant::now();
        let error = run(&shell(&script), Duration::from_millis(500)).err().unwrap();
        assert!(error.contains("longer than 0.5 s"), "{error}");
        assert!(began.elapsed() < Duration::from_secs(60));
        let pid = std::fs::read_to_string(&file).unwrap();
        let alive = || {
            let state = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
            let state = state.rsplit(") ").next().unwrap_or_default().to_owned();
            !(state.is_empty() || state.starts_with(['Z', 'X']))
        };
        let until = Instant::now() + Duration::from_secs(20);
        while alive() {
            assert!(Instant::now() < until, "still there");
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_program_that_fails_is_named_with_what_it_says() {
        let error = run(&shell("echo no ticket >&2; exit 7"), Duration::from_secs(20))
            .err()
            .unwrap();
        assert!(
            error.contains("sh failed") && error.contains("no ticket"),
            "{error}"
        );
        let error = run(&shell("echo token: secret"), Duration::from_secs(20))
            .err()
            .unwrap();
        assert!(!error.contains("secret"), "{error}");
    }
}
