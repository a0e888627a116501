//! `ringwall-cni`: the last plugin of a chain. It makes nothing: it tells the dataplane of this node which interface the plugins
//! before it made for a pod, waits until that is guarded, and passes their result on. Without an answer it fails, and the
//! runtime tries again: no pod starts unguarded.
//!
//! The CNI specification, versions 0.3.0 to 1.1.0; parameters are in the environment, the configuration on standard input.

mod result;

use std::{
    env,
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use ringwall_messages::cni::{Attachment, CNI_SOCKET, CniReply, CniRequest, LONGEST_CNI_LINE};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::result::attachment;

/// How long a pod's start waits for the dataplane.
const PATIENCE: Duration = Duration::from_secs(10);
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
            ask(&conf, &CniRequest::Add(attachment_of(&previous)?))?;
            Ok(Some(previous))
        }
        "CHECK" => {
            let previous = previous(&conf)?;
            ask(&conf, &CniRequest::Check(attachment_of(&previous)?))?;
            Ok(None)
        }
        // What is not there any more is deleted: that must never keep a pod from ending.
        "DEL" => {
            let container = variable("CNI_CONTAINERID").unwrap_or_default();
            let _ = ask(&conf, &CniRequest::Delete { container });
            Ok(None)
        }
        "STATUS" => match ask(&conf, &CniRequest::Status) {
            Ok(()) => Ok(None),
            Err(error) => Err(CniError { code: 50, ..error }),
        },
        "GC" => Ok(None),
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

/// Asks the dataplane of this node.
fn ask(conf: &NetConf, request: &CniRequest) -> Result<(), CniError> {
    let path = conf.runtime_dir.join(CNI_SOCKET);
    let away = |error: io::Error| {
        CniError::later(
            format!("the dataplane of this node does not answer at {}", path.display()),
            error.to_string(),
        )
    };
    let mut stream = UnixStream::connect(&path).map_err(away)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(away)?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(away)?;
    let mut line = serde_json::to_string(request).map_err(|error| CniError::input(error.to_string()))?;
    line.push('\n');
    stream.write_all(line.as_bytes()).map_err(away)?;
    let mut answer = String::new();
    BufReader::new(stream.take(LONGEST_CNI_LINE))
        .read_line(&mut answer)
        .map_err(away)?;
    match serde_json::from_str(&answer) {
        Ok(CniReply::Done) => Ok(()),
        Ok(CniReply::Refused(reason)) => Err(CniError::later("the pod's interface is not guarded", reason)),
        Err(error) => Err(away(io::Error::other(error))),
    }
}
