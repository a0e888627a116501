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
use ringwall_messages::cni::{CNI_SOCKET, CniReply, LONGEST_CNI_LINE};

use super::NodeGuard;
use crate::netlink::readable;

/// How long one question or answer may take: the plugin is on this machine.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two looks whether the process stops.
const LOOK: Duration = Duration::from_millis(500);

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

/// Answers one plugin after the other until the process stops: what they ask changes one table.
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
        let Ok((stream, _)) = listener.accept() else {
            continue; // it has gone again
        };
        if let Err(error) = answer(&stream, node) {
            tracing::warn!(%error, "the CNI plugin cannot be answered");
        }
    }
}

fn answer(mut stream: &UnixStream, node: &NodeGuard) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    BufReader::new(stream.take(LONGEST_CNI_LINE)).read_line(&mut line)?;
    let reply = match serde_json::from_str(&line) {
        Ok(request) => {
            let begin = Instant::now();
            let reply = node.answer(&request);
            let micros = begin.elapsed().as_micros();
            tracing::debug!(?request, ?reply, micros, "CNI");
            reply
        }
        Err(error) => CniReply::Refused(format!("the question cannot be read: {error}")),
    };
    let mut line = serde_json::to_vec(&reply)?;
    line.push(b'\n');
    stream.write_all(&line)
}
