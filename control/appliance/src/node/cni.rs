//! The socket where the CNI plugin asks.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::{
        fs::PermissionsExt,
        net::{UnixListener, UnixStream},
    },
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context;
use ringwall_messages::cni::{CNI_SOCKET, CniReply, CniRequest, LONGEST_CNI_LINE};

use super::NodeGuard;
use crate::netlink::readable;

/// How long one question or answer may take: the plugin is on this machine.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two looks whether the process stops.
const LOOK: Duration = Duration::from_millis(500);
/// So many plugins are answered together, at most.
const ANSWERED_AT_ONCE: usize = 256;

/// Listens in the runtime directory, in place of an earlier process.
///
/// # Errors
/// The socket cannot be made.
pub(crate) fn listen(runtime_dir: &Path) -> anyhow::Result<UnixListener> {
    let path = runtime_dir.join(CNI_SOCKET);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot remove {}", path.display()));
        }
        _ => {}
    }
    let listener =
        UnixListener::bind(&path).with_context(|| format!("cannot listen at {}", path.display()))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Answers plugins until the process stops. Those that wait at the same time, as when a node starts all of its pods, are answered
/// together: what they ask changes one table, and each change looks at every interface.
pub(crate) fn serve(listener: &UnixListener, node: &Arc<NodeGuard>, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        match readable(listener, LOOK) {
            Ok(true) => {}
            Ok(false) => continue,
            Err(error) => {
                tracing::error!(%error, "cannot wait for the CNI plugin");
                std::thread::sleep(LOOK);
                continue;
            }
        }
        let mut questions = Vec::new();
        while questions.len() < ANSWERED_AT_ONCE
            && let Ok((stream, _)) = listener.accept()
        {
            match question(&stream) {
                Ok(request) => questions.push((stream, request)),
                Err(error) => tracing::warn!(%error, "the CNI plugin's question cannot be read"),
            }
        }
        answer(questions, node);
    }
}

/// What a plugin asks; None where it cannot be understood, which the plugin is told.
fn question(stream: &UnixStream) -> io::Result<Option<CniRequest>> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    BufReader::new(stream.take(LONGEST_CNI_LINE)).read_line(&mut line)?;
    match serde_json::from_str(&line) {
        Ok(request) => Ok(Some(request)),
        Err(error) => {
            let reason = format!("the question cannot be read: {error}");
            say(stream, &CniReply::Refused(reason)).map(|()| None)
        }
    }
}

fn answer(questions: Vec<(UnixStream, Option<CniRequest>)>, node: &NodeGuard) {
    let (streams, requests): (Vec<UnixStream>, Vec<CniRequest>) = questions
        .into_iter()
        .filter_map(|(stream, request)| Some((stream, request?)))
        // The runtime asks again for a start that was given up. A pod's end counts even if its plugin has gone.
        .filter(|(stream, request)| !matches!(request, CniRequest::Add(_)) || is_waiting(stream))
        .unzip();
    let begin = Instant::now();
    let replies = node.answer(&requests);
    let micros = begin.elapsed().as_micros();
    for ((stream, request), reply) in streams.iter().zip(&requests).zip(&replies) {
        tracing::debug!(?request, ?reply, micros, together = requests.len(), "CNI");
        if let Err(error) = say(stream, reply) {
            tracing::warn!(%error, "the CNI plugin cannot be answered");
        }
    }
}

fn say(mut stream: &UnixStream, reply: &CniReply) -> io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    stream.write_all(&line)
}

/// Whether the plugin still waits for its answer: it says nothing after its question, and ends where it has given up.
fn is_waiting(mut stream: &UnixStream) -> bool {
    let looked = stream.set_nonblocking(true).and_then(|()| stream.read(&mut [0]));
    let is_waiting = matches!(&looked, Err(error) if error.kind() == io::ErrorKind::WouldBlock);
    is_waiting && stream.set_nonblocking(false).is_ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a failed step is a failed test
mod tests {
    use super::*;

    #[test]
    fn a_plugin_that_has_given_up_is_not_waited_for() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (&theirs).write_all(b"\"status\"\n").unwrap();
        let mut line = String::new();
        BufReader::new(&ours).read_line(&mut line).unwrap();
        assert!(is_waiting(&ours));
        say(&ours, &CniReply::Done).unwrap();
        drop(theirs);
        assert!(!is_waiting(&ours));
    }
}
