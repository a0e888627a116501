//! What the programs count, per port.

/// A counter of a port's programs. The numbers are those of `enum rw_counter` in `bpf/src/c/ringwall.h`; never renumber.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Counter {
    /// Given to an AF_XDP socket.
    Xsk = 0,
    /// To the kernel: ARP, IPv6 neighbour and router discovery, MLD; a pod's DHCP.
    KernelNeighbour = 1,
    /// To the kernel: multicast and broadcast (DHCP too).
    KernelMulticast = 2,
    /// To the kernel: unicast to a link-local IPv6 address.
    KernelLinkLocal = 3,
    /// To the kernel: for one of the host's own addresses and not from a pod.
    KernelLocal = 4,
    /// To the kernel: neither IPv4 nor IPv6.
    KernelOther = 5,
    /// No socket: dropped, to or from a pod.
    FailDropped = 6,
    /// No socket: dropped, could not be parsed.
    FailMalformed = 7,
    /// No socket: sent to the wire's other port.
    FailRedirected = 8,
    /// No socket: passed to the kernel.
    FailPassed = 9,
    /// No socket: to or from a pod, let through by the failsafe list.
    FailSafe = 10,
    /// Wire without `judge_all`: no pod address, sent straight to the other port.
    WireBypass = 11,
    /// The kernel sent this to or from a pod: handed to the host port to be judged.
    GuardRedirected = 12,
    /// The kernel sent this to or from a pod: dropped.
    GuardDropped = 13,
    /// The kernel sent this to or from a pod: let out, because the fail mode is open and no socket is there.
    GuardFailOpen = 14,
    /// A frame that a wire would have sent on could not be redirected.
    RedirectFailed = 15,
    /// Meant for the kernel and dropped: a redirect; of a pod what is neither ARP nor IP, and more ARP and neighbour
    /// discovery than one may send.
    KernelRefused = 16,
}

/// Values of every counter of a port, summed over CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters([u64; Counter::ALL.len()]);

impl Counter {
    /// Every counter, in order of number.
    pub const ALL: [Counter; 17] = [
        Counter::Xsk,
        Counter::KernelNeighbour,
        Counter::KernelMulticast,
        Counter::KernelLinkLocal,
        Counter::KernelLocal,
        Counter::KernelOther,
        Counter::FailDropped,
        Counter::FailMalformed,
        Counter::FailRedirected,
        Counter::FailPassed,
        Counter::FailSafe,
        Counter::WireBypass,
        Counter::GuardRedirected,
        Counter::GuardDropped,
        Counter::GuardFailOpen,
        Counter::RedirectFailed,
        Counter::KernelRefused,
    ];

    /// The name in metrics and status.
    pub fn as_str(self) -> &'static str {
        match self {
            Counter::Xsk => "xsk",
            Counter::KernelNeighbour => "kernel-neighbour",
            Counter::KernelMulticast => "kernel-multicast",
            Counter::KernelLinkLocal => "kernel-link-local",
            Counter::KernelLocal => "kernel-local",
            Counter::KernelOther => "kernel-other",
            Counter::FailDropped => "fail-dropped",
            Counter::FailMalformed => "fail-malformed",
            Counter::FailRedirected => "fail-redirected",
            Counter::FailPassed => "fail-passed",
            Counter::FailSafe => "fail-safe",
            Counter::WireBypass => "wire-bypass",
            Counter::GuardRedirected => "guard-redirected",
            Counter::GuardDropped => "guard-dropped",
            Counter::GuardFailOpen => "guard-fail-open",
            Counter::RedirectFailed => "redirect-failed",
            Counter::KernelRefused => "kernel-refused",
        }
    }
}

impl Counters {
    /// The value of one counter, in packets.
    pub fn get(&self, counter: Counter) -> u64 {
        self.0[counter as usize]
    }

    /// Name and value of every counter, in order of number.
    pub fn iter(&self) -> impl Iterator<Item = (Counter, u64)> + '_ {
        Counter::ALL.iter().map(|&counter| (counter, self.get(counter)))
    }

    pub(crate) fn add(&mut self, index: usize, value: u64) {
        if let Some(slot) = self.0.get_mut(index) {
            *slot = slot.wrapping_add(value);
        }
    }
}
