//! `ringwall-cni`: the last plugin of a chain. It makes nothing: it tells the dataplane of this node which interface the plugins
//! before it made for a pod, waits until that is guarded, and passes their result on. Where the configuration says so
//! (`podStart: hold`), it also tells control the pod's addresses, and waits until every worker decides by a snapshot that has
//! them. Without an answer it fails, and the runtime tries again: no pod starts unguarded.
//!
//! The CNI specification, versions 0.3.0 to 1.1.0; parameters are in the environment, the configuration on standard input.

mod result;

use std::{
    collections::BTreeSet,
    env,
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use ringwall_messages::{
    CONTROL_SOCKET,
    client::ask_control,
    cni::{
        Attachment, CNI_SOCKET, CniReply, CniRequest, LONGEST_CNI_LINE, POD_ENDS, POD_STARTS, PodEnds,
        PodStart, PodStartAnswer,
    },
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::result::attachment;

/// How long a pod's start waits for the dataplane.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long it waits for a snapshot that has the pod. With the above that is well below the two minutes that a kubelet gives the
/// runtime: whoever looks sees this plugin's error, and not that time is up.
const HOLD: Duration = Duration::from_secs(20);
/// And how long at most, whatever the configuration of the network says.
const LONGEST_HOLD: Duration = Duration::from_secs(90);
/// Longest pause between two questions about that; the first is a hundredth.
const HOLD_LOOK: Duration = Duration::from_millis(200);
/// How long control may take for one answer.
const CONTROL_ANSWER: Duration = Duration::from_secs(5);
/// How long the end of a pod waits for anybody.
const FAREWELL: Duration = Duration::from_secs(2);
const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// What the configuration of the network says to this plugin.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NetConf {
    #[serde(default)]
    cni_version: String,
    /// The runtime directory of the instance.
    #[serde(default = "default_runtime_dir")]
    runtime_dir: PathBuf,
    prev_result: Option<Value>,
    /// How long a pod's start waits for a snapshot that has it.
    hold_seconds: Option<u64>,
    /// With GC: the containers that there are.
    #[serde(rename = "cni.dev/valid-attachments")]
    valid_attachments: Option<Vec<ValidAttachment>>,
}

/// As the specification has it (section 2, GC).
#[derive(Debug, Deserialize)]
struct ValidAttachment {
    #[serde(rename = "containerID")]
    container: String,
}

fn default_runtime_dir() -> PathBuf {
    "/run/ringwall/node".into()
}

/// An error as the specification has it (section 5). Numbers from 100 are this plugin's own.
#[derive(Debug, PartialEq, Eq)]
struct CniError {
    code: u32,
    message: String,
    details: String,
}

impl CniError {
    /// 4: a parameter in the environment.
    fn environment(what: &str, details: impl Into<String>) -> Self {
        Self::new(4, format!("{what} is missing or not valid"), details)
    }

    /// 6: the input is not JSON of the right form.
    fn input(details: impl Into<String>) -> Self {
        Self::new(6, "the network configuration cannot be read", details)
    }

    /// 7: the configuration asks for something that cannot be.
    fn configuration(message: impl Into<String>, details: impl Into<String>) -> Self {
        Self::new(7, message, details)
    }

    /// 11: try again later.
    fn later(message: impl Into<String>, details: impl Into<String>) -> Self {
        Self::new(11, message, details)
    }

    fn new(code: u32, message: impl Into<String>, details: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            details: details.into(),
        }
    }
}

fn main() -> ExitCode {
    let mut input = String::new();
    let read = io::stdin()
        .take(LONGEST_CNI_LINE)
        .read_to_string(&mut input)
        .map_err(|error| CniError::new(5, "standard input cannot be read", error.to_string()));
    let version = serde_json::from_str::<NetConf>(&input).map_or_else(
        |_| VERSIONS[VERSIONS.len() - 1].to_owned(),
        |conf| conf.cni_version,
    );
    let outcome = read.and_then(|_| run(&variable("CNI_COMMAND")?, &input));
    let (printed, code) = match outcome {
        Ok(None) => return ExitCode::SUCCESS,
        Ok(Some(printed)) => (printed, ExitCode::SUCCESS),
        Err(error) => (
            json!({
                "cniVersion": version,
                "code": error.code,
                "msg": format!("ringwall: {}", error.message),
                "details": error.details,
            }),
            ExitCode::FAILURE,
        ),
    };
    match writeln!(io::stdout(), "{printed}") {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE, // whoever started it does not listen
    }
}

fn variable(name: &str) -> Result<String, CniError> {
    env::var(name).map_err(|error| CniError::environment(name, error.to_string()))
}

/// What is to be printed.
fn run(command: &str, input: &str) -> Result<Option<Value>, CniError> {
    if command == "VERSION" {
        return Ok(Some(
            json!({ "cniVersion": VERSIONS[VERSIONS.len() - 1], "supportedVersions": VERSIONS }),
        ));
    }
    let conf: NetConf = serde_json::from_str(input).map_err(|error| CniError::input(error.to_string()))?;
    if !VERSIONS.contains(&conf.cni_version.as_str()) {
        return Err(CniError::new(
            1,
            format!("version {} of CNI is not supported", conf.cni_version),
            format!("supported are {}", VERSIONS.join(", ")),
        ));
    }
    match command {
        "ADD" => {
            let previous = previous(&conf)?;
            let attachment = attachment_of(&previous)?;
            if let Guarded::AwaitSnapshot = ask(&conf, &CniRequest::Add(attachment.clone()), PATIENCE)? {
                await_snapshot(&conf, attachment)?;
            }
            Ok(Some(previous))
        }
        "CHECK" => {
            let previous = previous(&conf)?;
            ask(&conf, &CniRequest::Check(attachment_of(&previous)?), PATIENCE)?;
            Ok(None)
        }
        // What is not there any more is deleted: that must never keep a pod from ending.
        "DEL" => {
            let container = variable("CNI_CONTAINERID").unwrap_or_default();
            let request = CniRequest::Delete {
                container: container.clone(),
            };
            let _ = ask(&conf, &request, FAREWELL);
            forget(&conf, &PodEnds::Ended(container));
            Ok(None)
        }
        "STATUS" => status(&conf).map_err(|error| CniError { code: 50, ..error }),
        "GC" => {
            let Some(valid) = &conf.valid_attachments else {
                return Ok(None);
            };
            let containers: BTreeSet<String> = valid.iter().map(|one| one.container.clone()).collect();
            let request = CniRequest::Collect {
                containers: containers.clone(),
            };
            let _ = ask(&conf, &request, FAREWELL);
            forget(&conf, &PodEnds::AllBut(containers));
            Ok(None)
        }
        other => Err(CniError::environment(
            "CNI_COMMAND",
            format!("`{other}` is none of ADD, CHECK, DEL, GC, STATUS, VERSION"),
        )),
    }
}

fn previous(conf: &NetConf) -> Result<Value, CniError> {
    conf.prev_result.clone().ok_or_else(|| {
        CniError::configuration(
            "there is no result of a plugin before this one",
            "ringwall-cni makes no interfaces: put it at the end of the list of plugins",
        )
    })
}

fn attachment_of(previous: &Value) -> Result<Attachment, CniError> {
    let container = variable("CNI_CONTAINERID")?;
    let arguments = env::var("CNI_ARGS").unwrap_or_default();
    attachment(container, &arguments, previous)
        .map_err(|reason| CniError::configuration("the result of the plugins before cannot be used", reason))
}

/// Whether pods can be started.
fn status(conf: &NetConf) -> Result<Option<Value>, CniError> {
    if let Guarded::AwaitSnapshot = ask(conf, &CniRequest::Status, PATIENCE)? {
        let socket = conf.runtime_dir.join(CONTROL_SOCKET);
        let answer = ask_control(&socket, "/livez", None, CONTROL_ANSWER).map_err(|error| {
            CniError::later(
                format!("control of this node does not answer at {}", socket.display()),
                error.to_string(),
            )
        })?;
        if answer.status != 200 {
            let why = String::from_utf8_lossy(&answer.body).trim().to_owned();
            return Err(CniError::later("control of this node does not work", why));
        }
    }
    Ok(None)
}

/// Tells control the addresses of a pod, until every worker decides by a snapshot that has them.
fn await_snapshot(conf: &NetConf, attachment: Attachment) -> Result<(), CniError> {
    let Some(pod) = attachment.pod else {
        return Err(CniError::configuration(
            "the pod cannot be held back until policies know it",
            "the runtime does not say which pod it is (K8S_POD_NAMESPACE and K8S_POD_NAME in CNI_ARGS)",
        ));
    };
    let start = PodStart {
        container: attachment.container,
        pod,
        uid: attachment.uid,
        addresses: attachment.addresses,
    };
    let body = serde_json::to_string(&start).map_err(|error| CniError::input(error.to_string()))?;
    let socket = conf.runtime_dir.join(CONTROL_SOCKET);
    let limit = conf
        .hold_seconds
        .map_or(HOLD, |seconds| Duration::from_secs(seconds).min(LONGEST_HOLD));
    let until = Instant::now() + limit;
    let mut pause = HOLD_LOOK / 100;
    loop {
        let reason = match ask_control(&socket, POD_STARTS, Some(&body), CONTROL_ANSWER) {
            Ok(answer) if answer.status == 200 => {
                match serde_json::from_slice::<PodStartAnswer>(&answer.body) {
                    Ok(PodStartAnswer { known: true, .. }) => return Ok(()),
                    Ok(answer) => answer.reason,
                    Err(error) => format!("control's answer cannot be read: {error}"),
                }
            }
            Ok(answer) => format!(
                "control answers with status {}: {}",
                answer.status,
                String::from_utf8_lossy(&answer.body).trim()
            ),
            // It may be starting.
            Err(error) => format!("control does not answer at {}: {error}", socket.display()),
        };
        if Instant::now() + pause >= until {
            return Err(CniError::later(
                format!(
                    "no snapshot in force has the pod after {} s (`podStart: hold`)",
                    limit.as_secs()
                ),
                reason,
            ));
        }
        thread::sleep(pause);
        pause = (pause * 2).min(HOLD_LOOK);
    }
}

/// Tells control that containers are gone. It learns it from the API server, too.
fn forget(conf: &NetConf, ends: &PodEnds) {
    if let Ok(body) = serde_json::to_string(ends) {
        let _ = ask_control(
            &conf.runtime_dir.join(CONTROL_SOCKET),
            POD_ENDS,
            Some(&body),
            FAREWELL,
        );
    }
}

/// What the dataplane has done, and what is to be waited for.
enum Guarded {
    Done,
    AwaitSnapshot,
}

/// Asks the dataplane of this node.
fn ask(conf: &NetConf, request: &CniRequest, patience: Duration) -> Result<Guarded, CniError> {
    let path = conf.runtime_dir.join(CNI_SOCKET);
    let away = |error: io::Error| {
        CniError::later(
            format!("the dataplane of this node does not answer at {}", path.display()),
            error.to_string(),
        )
    };
    let mut stream = UnixStream::connect(&path).map_err(away)?;
    stream.set_read_timeout(Some(patience)).map_err(away)?;
    stream.set_write_timeout(Some(patience)).map_err(away)?;
    let mut line = serde_json::to_string(request).map_err(|error| CniError::input(error.to_string()))?;
    line.push('\n');
    stream.write_all(line.as_bytes()).map_err(away)?;
    let mut answer = String::new();
    BufReader::new(stream.take(LONGEST_CNI_LINE))
        .read_line(&mut answer)
        .map_err(away)?;
    match serde_json::from_str(&answer) {
        Ok(CniReply::Done) => Ok(Guarded::Done),
        Ok(CniReply::AwaitSnapshot) => Ok(Guarded::AwaitSnapshot),
        Ok(CniReply::Refused(reason)) => Err(CniError::later("the pod's interface is not guarded", reason)),
        Err(error) => Err(away(io::Error::other(error))),
    }
}
