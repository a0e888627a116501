//! As much of DNS as a pod needs to find a Service: questions for an address, and answers (RFC 1035, section 4).

use std::{
    collections::BTreeMap,
    io,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Context;
use ringwall_testbed::netns::Netns;

/// Class IN, type A, as at the end of a question.
const A_IN: [u8; 4] = [0, 1, 0, 1];
const HEADER: usize = 12;

/// Answers for the names of Services until it is dropped.
pub(super) struct NameServer {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl NameServer {
    /// In a pod that has port 53 free.
    pub(super) fn start(pod: &Netns, names: BTreeMap<String, Ipv4Addr>) -> anyhow::Result<Self> {
        let socket = pod.run(|| UdpSocket::bind("0.0.0.0:53"))?.context("port 53")?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let stop = stop.clone();
            move || {
                let mut buffer = [0; 512];
                while !stop.load(Ordering::Relaxed) {
                    let Ok((length, from)) = socket.recv_from(&mut buffer) else {
                        continue;
                    };
                    if let Some(answer) = answer(&buffer[..length], &names) {
                        // An answer that cannot be sent is an answer that is not received.
                        let _ = socket.send_to(&answer, from);
                    }
                }
            }
        });
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Asks for a name's address, in the thread's own namespace; None if it has none, or no answer comes in time.
pub(super) fn resolve(server: SocketAddr, name: &str, within: Duration) -> io::Result<Option<Ipv4Addr>> {
    const TRIES: u32 = 3;
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(within / TRIES))?;
    let asked = question(name);
    let mut buffer = [0; 512];
    for _ in 0..TRIES {
        socket.send(&asked)?;
        match socket.recv(&mut buffer) {
            Ok(length) => return Ok(address(&buffer[..length])),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

fn question(name: &str) -> Vec<u8> {
    let mut bytes = vec![0x52, 0x57, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        bytes.push(label.len() as u8);
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.push(0);
    bytes.extend_from_slice(&A_IN);
    bytes
}

/// The name that is asked for, and where the question ends.
fn asked(query: &[u8]) -> Option<(String, usize)> {
    let mut labels = Vec::new();
    let mut at = HEADER;
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        if length == 0 {
            let end = at + A_IN.len();
            return (query.get(at..end)? == A_IN).then(|| (labels.join("."), end));
        }
        labels.push(std::str::from_utf8(query.get(at..at + length)?).ok()?.to_owned());
        at += length;
    }
}

fn answer(query: &[u8], names: &BTreeMap<String, Ipv4Addr>) -> Option<Vec<u8>> {
    let (name, end) = asked(query)?;
    let found = names.get(&name);
    let mut bytes = query.get(..end)?.to_vec();
    // A response, recursion available; no error, or no such name.
    let code = if found.is_some() { 0 } else { 3 };
    bytes[2..HEADER].copy_from_slice(&[0x81, 0x80 | code, 0, 1, 0, u8::from(found.is_some()), 0, 0, 0, 0]);
    if let Some(address) = found {
        // The name of the question, type A, class IN, five seconds, four bytes.
        bytes.extend_from_slice(&[0xc0, HEADER as u8, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4]);
        bytes.extend_from_slice(&address.octets());
    }
    Some(bytes)
}

fn address(answer: &[u8]) -> Option<Ipv4Addr> {
    let (_, end) = asked(answer)?;
    let has_answer = answer.get(6..8)? != [0, 0];
    let record = answer.get(end..).filter(|_| has_answer)?;
    let bytes: [u8; 4] = record.get(12..16)?.try_into().ok()?;
    Some(bytes.into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a failed step is a failed test
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_there_has_its_address_and_another_has_none() {
        let web = Ipv4Addr::new(10, 112, 1, 3);
        let names = BTreeMap::from([("web.default.svc.cluster.local".to_owned(), web)]);
        let met = |name: &str| address(&answer(&question(name), &names).unwrap());
        assert_eq!(met("web.default.svc.cluster.local"), Some(web));
        assert_eq!(met("web.other.svc.cluster.local"), None);
        for length in 0..question("web.default").len() {
            assert_eq!(answer(&question("web.default")[..length], &names), None);
        }
    }
}
