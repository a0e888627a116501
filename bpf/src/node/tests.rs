//! The node's programs in the kernel, without devices.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test says what went wrong by panicking

use std::{
    os::fd::AsFd,
    sync::atomic::{AtomicBool, Ordering, fence},
};

use super::{Address, Device, DeviceKind, Hook, Node, NodeConfig, NodeMemory, Outcome, TcAttachment, load};
use crate::{kernel, program_tests::privileged};

/// A tenth of what the kernel allows; a hundred thousand take it about a tenth of a second.
const MOST_INSTRUCTIONS: u32 = 100_000;

#[test]
fn the_verifier_is_not_kept_long() {
    if !privileged() {
        return;
    }
    let (programs, _maps) = load(1024).unwrap();
    for (hook, program) in Hook::ALL.iter().zip(&programs) {
        let instructions = kernel::verified_instructions(program.as_fd()).unwrap();
        println!("{}: {instructions}", hook.name());
        assert!(
            instructions < MOST_INSTRUCTIONS,
            "{}: {instructions}",
            hook.name()
        );
    }
}

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// A UDP packet from B to A, of 18 bytes of payload.
fn datagram(ipv6: bool) -> Vec<u8> {
    let mut frame = [[2, 0, 0, 0, 0, 1], MAC].concat();
    if ipv6 {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 26, 17, 64]);
        for host in [3, 2] {
            frame.extend([0xfd, 0, 2, 0x44, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host]);
        }
    } else {
        frame.extend([
            8, 0, 0x45, 0, 0, 46, 0, 0, 0, 0, 64, 17, 0, 0, 10, 244, 1, 3, 10, 244, 1, 2,
        ]);
    }
    frame.extend([19, 136, 23, 112, 0, 26, 0, 0]);
    frame.extend([0; 18]);
    frame
}

/// Says what a cached decision costs; that it is found, in any case. `cargo test -p ringwall-bpf --lib cost_of -- --nocapture`.
#[test]
fn cost_of_a_cached_decision() {
    if !privileged() {
        return;
    }
    let bench = Bench::new();
    let (node, memory) = (&bench.node, bench.node.memory());
    for ipv6 in [false, true] {
        let frame = datagram(ipv6);
        let exit = node.program(Hook::Exit);
        let (verdict, ask, _) = kernel::test_run_repeated(exit, &frame, 1, 1).unwrap();
        assert_eq!(
            (verdict, ask.len()),
            (7, frame.len() + 120),
            "redirected with its header"
        );
        write_entry(&memory, &ask, &ask[36..72], &ask[72..108]);
        for (hook, outcome, own) in [
            (Hook::Exit, Outcome::ExitHit, ["10.244.1.2", "fd00:244::2"]),
            (Hook::FromPod, Outcome::PodPassed, ["10.244.1.3", "fd00:244::3"]),
        ] {
            node.set_device(1, &port(own)).unwrap();
            let before = node.counters().unwrap().get(outcome).packets;
            // The least of many: whatever else the machine does takes time and gives none.
            let (rounds, times) = (50, 4000);
            let least = (0..rounds)
                .map(|_| {
                    let (verdict, _, took) =
                        kernel::test_run_repeated(node.program(hook), &frame, 1, times).unwrap();
                    assert_eq!(verdict as i32, -1);
                    took
                })
                .min();
            assert_eq!(
                node.counters().unwrap().get(outcome).packets,
                before + u64::from(rounds * times)
            );
            println!("{} IPv{}: {least:?}", hook.name(), if ipv6 { 6 } else { 4 });
        }
    }
}

/// A node whose only device stands for the ports of two pods: the loopback device, which a test run takes. Something like a worker
/// is there to be asked.
struct Bench {
    node: Node,
    mount: tempfile::TempDir,
    _socket: std::os::fd::OwnedFd,
}

/// A pod's port that knows these of its addresses itself.
fn port([v4, v6]: [&str; 2]) -> Device {
    let kind = DeviceKind::Pod {
        mac: MAC,
        bridge: None,
    };
    Device {
        address_v4: v4.parse().ok(),
        address_v6: v6.parse().ok(),
        ..Device::new(kind)
    }
}

impl Bench {
    fn new() -> Self {
        let mount = tempfile::tempdir().unwrap();
        crate::ensure_bpffs(mount.path()).unwrap();
        let node = Node::load(&mount.path().join("ringwall"), 1 << 14, TcAttachment::of_kernel()).unwrap();
        let config = NodeConfig {
            ask_ifindex: 9,
            enforcing: true,
            ..NodeConfig::default()
        };
        node.set_config(&config).unwrap();
        node.set_device(1, &port(["10.244.1.2", "fd00:244::2"])).unwrap();
        for address in ["10.244.1.2", "10.244.1.3", "fd00:244::2", "fd00:244::3"] {
            node.set_address(address.parse().unwrap(), Address::Pod { port: 1 })
                .unwrap();
        }
        let socket = kernel::unbound_xsk().unwrap();
        node.register_socket(0, socket.as_fd()).unwrap();
        node.memory().beat(u64::MAX >> 1);
        Self {
            node,
            mount,
            _socket: socket,
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = super::detach(&self.mount.path().join("ringwall"));
        let _ = kernel::unmount(self.mount.path());
    }
}

/// Writes an entry that allows, where an ask says, as a worker does.
fn write_entry(memory: &NodeMemory, ask: &[u8], original: &[u8], reply: &[u8]) {
    let word = |at: usize| u32::from_ne_bytes(ask[at..at + 4].try_into().unwrap());
    let index = word(24) as usize * 8;
    let mut entry = [0; 128];
    entry[4] = 1;
    entry[8] = ask[34];
    entry[12..48].copy_from_slice(original);
    entry[48..84].copy_from_slice(reply);
    entry[108..112].copy_from_slice(&ask[16..20]);
    let place = |at: usize| memory.entries.word(index * 128 + at).unwrap();
    let version = place(0).load(Ordering::Relaxed);
    place(0).store(version | 1, Ordering::Relaxed);
    fence(Ordering::SeqCst);
    for (at, word) in entry.chunks_exact(4).enumerate().skip(1) {
        place(at * 4).store(u32::from_ne_bytes(word.try_into().unwrap()), Ordering::Relaxed);
    }
    place(0).store((version | 1).wrapping_add(1), Ordering::Release);
    memory
        .buckets
        .word(index * 4)
        .unwrap()
        .store(word(20), Ordering::Release);
}

/// A worker writes one entry and then another in the same place, neither of which is the packet's; half of each would be.
#[test]
fn an_entry_that_is_being_written_is_none() {
    if !privileged() {
        return;
    }
    let bench = Bench::new();
    let (node, memory) = (&bench.node, bench.node.memory());
    let exit = node.program(Hook::Exit);
    let frame = datagram(false);
    let (_, ask, _) = kernel::test_run_repeated(exit, &frame, 1, 1).unwrap();
    write_entry(&memory, &ask, &ask[36..72], &ask[72..108]);
    // From here on nobody is asked: every run is a lookup.
    node.set_config(&NodeConfig::default()).unwrap();
    let index = u32::from_ne_bytes(ask[24..28].try_into().unwrap()) as usize * 8;
    let word = |at: usize| memory.entries.word(index * 128 + at).unwrap();
    // The ports of both tuples, which are right and wrong in turn.
    let (version, original, reply) = (word(0), word(12 + 32), word(48 + 32));
    let (right_original, right_reply) = (original.load(Ordering::Relaxed), reply.load(Ordering::Relaxed));
    let mut number = version.load(Ordering::Relaxed);
    let mut write = |of_original: u32, of_reply: u32| {
        // Stores go in order on x86; elsewhere the fences see to it.
        version.store(number | 1, Ordering::Relaxed);
        fence(Ordering::Release);
        original.store(of_original, Ordering::Relaxed);
        reply.store(of_reply, Ordering::Relaxed);
        number = (number | 1).wrapping_add(1);
        version.store(number, Ordering::Release);
    };
    write(right_original, !right_reply);
    let stop = AtomicBool::new(false);
    let writes = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut writes = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                write(!right_original, right_reply);
                write(right_original, !right_reply);
                writes += 2;
            }
            writes
        });
        for _ in 0..20 {
            kernel::test_run_repeated(exit, &frame, 1, 100_000).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
        writer.join().unwrap()
    });
    let counters = node.counters().unwrap();
    assert_eq!(counters.get(Outcome::ExitFailClosed).packets, 2_000_000);
    assert_eq!(counters.get(Outcome::ExitHit).packets, 0, "after {writes} writes");
    // The whole entry is one.
    write_entry(&memory, &ask, &ask[36..72], &ask[72..108]);
    kernel::test_run_repeated(exit, &frame, 1, 1).unwrap();
    assert_eq!(node.counters().unwrap().get(Outcome::ExitHit).packets, 1);
}

/// A device is found in its place, and in the hash where another has the place or it is being written; both say the same.
#[test]
fn a_device_is_what_it_was_last_said_to_be_wherever_it_is_found() {
    const PLACES: u32 = 16_384;
    if !privileged() {
        return;
    }
    let bench = Bench::new();
    let node = &bench.node;
    let frame = datagram(false);
    let (own, other) = (["10.244.1.3", "fd00:244::3"], ["10.244.1.2", "fd00:244::2"]);
    // Without the look-up of addresses, what the device says of itself counts alone.
    for address in ["10.244.1.2", "10.244.1.3"] {
        node.remove_address(address.parse().unwrap()).unwrap();
    }
    let count = |outcome| node.counters().unwrap().get(outcome).packets;
    let sent = || {
        let before = (
            count(Outcome::PodPassed),
            count(Outcome::PodSpoofedSource),
            count(Outcome::PodUnknownDevice),
        );
        kernel::test_run_repeated(node.program(Hook::FromPod), &frame, 1, 1).unwrap();
        let after = (
            count(Outcome::PodPassed),
            count(Outcome::PodSpoofedSource),
            count(Outcome::PodUnknownDevice),
        );
        match (after.0 - before.0, after.1 - before.1, after.2 - before.2) {
            (1, 0, 0) => "passed",
            (0, 1, 0) => "spoofed",
            (0, 0, 1) => "unknown",
            other => panic!("{other:?}"),
        }
    };
    let check = |at: &str| {
        node.set_device(1, &port(own)).unwrap();
        assert_eq!(sent(), "passed", "{at}");
        node.set_device(1, &port(other)).unwrap();
        assert_eq!(sent(), "spoofed", "{at}");
        node.remove_device(1).unwrap();
        assert_eq!(sent(), "unknown", "{at}");
    };
    check("in its place");
    // Who comes first has the place, and leaves it free.
    node.set_device(1 + PLACES, &port(own)).unwrap();
    assert_eq!(sent(), "unknown");
    check("beside another");
    node.remove_device(1 + PLACES).unwrap();
    check("in its place again");
    // A process that ended half-way.
    node.set_device(1, &port(own)).unwrap();
    let failed = bench
        .node
        .memory()
        .change_place(1, Some(&[0xff; 64]), || Err("the hash is as it was"));
    assert!(failed.is_err());
    assert_eq!(sent(), "passed");
    check("after somebody ended half-way");
}

/// A VLAN's packets leave by two devices, one above the other: the second time they have their tag, a decision, and have been counted.
#[test]
fn a_tagged_packet_takes_a_decision_but_asks_for_none() {
    if !privileged() {
        return;
    }
    let bench = Bench::new();
    let (node, memory) = (&bench.node, bench.node.memory());
    let exit = node.program(Hook::Exit);
    let frame = datagram(false);
    let mut tagged = frame[..12].to_vec();
    tagged.extend([0x81, 0, 0, 5]);
    tagged.extend(&frame[12..]);
    let run = |frame: &[u8]| kernel::test_run_repeated(exit, frame, 1, 1).unwrap();
    let count = |outcome| node.counters().unwrap().get(outcome).packets;
    assert_eq!((run(&tagged).0, count(Outcome::ExitTagged)), (2, 1));
    let (verdict, ask, _) = run(&frame);
    assert_eq!(verdict, 7);
    write_entry(&memory, &ask, &ask[36..72], &ask[72..108]);
    let index = u32::from_ne_bytes(ask[24..28].try_into().unwrap()) as usize * 8;
    let used = || memory.usage.word(index * 64).unwrap().load(Ordering::Relaxed);
    assert_eq!(
        (run(&tagged).0 as i32, count(Outcome::ExitHit), used()),
        (-1, 1, 0)
    );
    assert_eq!(
        (run(&frame).0 as i32, count(Outcome::ExitHit), used()),
        (-1, 2, 1)
    );
}

/// An entry says where its flow came in when it was asked about. What comes in there is not looked at again; what comes in elsewhere
/// with a pod's source is.
#[test]
fn whose_a_source_is_is_looked_up_where_the_flow_did_not_come_in_before() {
    if !privileged() {
        return;
    }
    let bench = Bench::new();
    let (node, memory) = (&bench.node, bench.node.memory());
    let exit = node.program(Hook::Exit);
    for ipv6 in [false, true] {
        let frame = datagram(ipv6);
        let run = || kernel::test_run_repeated(exit, &frame, 1, 1).unwrap();
        let count = |outcome| node.counters().unwrap().get(outcome).packets;
        let (_, mut ask, _) = run();
        let source = if ipv6 { "fd00:244::3" } else { "10.244.1.3" }.parse().unwrap();
        node.set_address(source, Address::Pod { port: 77 }).unwrap();
        let (hits, spoofed) = (count(Outcome::ExitHit), count(Outcome::ExitSpoofedSource));
        write_entry(&memory, &ask, &ask[36..72], &ask[72..108]);
        assert_eq!((run().0 as i32, count(Outcome::ExitHit)), (-1, hits + 1));
        for other in [0_u32, 78] {
            ask[16..20].copy_from_slice(&other.to_ne_bytes());
            write_entry(&memory, &ask, &ask[36..72], &ask[72..108]);
            assert_eq!(run().0, 2);
        }
        assert_eq!(
            (count(Outcome::ExitHit), count(Outcome::ExitSpoofedSource)),
            (hits + 1, spoofed + 2)
        );
    }
}
