//! Asking the control process and the dataplane over their Unix sockets.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use crate::{Connection, DataplaneStatus, ProtocolError, Reply, Request, VERSION};

/// Longest answer, in bytes.
const MAX_ANSWER: u64 = 64 << 20;

/// An answer of the control process.
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// What it says.
    pub body: Vec<u8>,
}

/// Asks control over HTTP/1.0: one request, one answer, the end. With a body it is a POST of JSON, else a GET.
///
/// # Errors
/// Nothing listens there, or what comes back in time is not an answer.
pub fn ask_control(
    socket: &Path,
    path: &str,
    body: Option<&str>,
    patience: Duration,
) -> std::io::Result<Answer> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    let request = match body {
        None => format!("GET {path} HTTP/1.0\r\nHost: ringwall\r\n\r\n"),
        Some(body) => format!(
            "POST {path} HTTP/1.0\r\nHost: ringwall\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ),
    };
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer)?;
    let wrong = || std::io::Error::new(std::io::ErrorKind::InvalidData, "not an HTTP answer");
    let end = answer
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .ok_or_else(wrong)?;
    let head = String::from_utf8_lossy(answer.get(..end).unwrap_or_default()).into_owned();
    let status = head
        .split_whitespace()
        .nth(1)
        .and_then(|status| status.parse().ok())
        .ok_or_else(wrong)?;
    Ok(Answer {
        status,
        body: answer.split_off(end + 4),
    })
}

/// Asks the dataplane for its status.
///
/// # Errors
/// Nothing listens there, or what comes back in time is not an answer.
pub fn ask_dataplane(socket: &Path, patience: Duration) -> Result<DataplaneStatus, ProtocolError> {
    let connection = Connection::connect(socket)?;
    connection.set_receive_timeout(Some(patience))?;
    connection.set_send_timeout(Some(patience))?;
    connection.send(&Request::Hello { version: VERSION }, None)?;
    match connection.receive::<Reply>()?.message {
        Reply::Hello { .. } => {}
        other => return Err(ProtocolError::Unexpected(format!("{other:?}"))),
    }
    connection.send(&Request::Status, None)?;
    loop {
        match connection.receive::<Reply>()?.message {
            Reply::Status { status } => return Ok(*status),
            Reply::Adopted { .. } => {}
            other => return Err(ProtocolError::Unexpected(format!("{other:?}"))),
        }
    }
}
