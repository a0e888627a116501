//! Asking the control process over its Unix socket.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

/// Longest answer, in bytes.
const MAX_ANSWER: u64 = 64 << 20;

/// An answer of the control process.
pub(crate) struct Answer {
    /// HTTP status.
    pub(crate) status: u16,
    /// What it says.
    pub(crate) body: Vec<u8>,
}

/// Asks over HTTP/1.0: one request, one answer, the end. With a body it is a POST of JSON, else a GET.
///
/// # Errors
/// Nobody listens, or what comes back in time is not an answer.
pub(crate) fn ask(
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
