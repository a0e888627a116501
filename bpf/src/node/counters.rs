//! What the programs of a node count.

/// Which program saw the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Program {
    /// tc ingress of a pod's port.
    FromPod,
    /// tc egress of every device.
    Exit,
    /// tc ingress of every device that is no pod's port.
    FromNet,
    /// tc ingress of the near end of the ask pair.
    Back,
    /// XDP of the far end of the ask pair.
    Judge,
}

macro_rules! outcomes {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $program:ident, $drops:literal, $text:literal;)*) => {
        /// What became of a packet in one program: each packet that a program sees moves exactly one of the program's
        /// outcomes. The numbers are those of `enum rw_node_outcome` in `bpf/src/c/node.h`; never renumber.
        #[repr(u8)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Outcome {
            $($(#[$doc])* $name = $number,)*
        }

        impl Outcome {
            /// Every outcome, in order of number.
            pub const ALL: &[Outcome] = &[$(Outcome::$name,)*];

            /// The program that counts it.
            pub fn program(self) -> Program {
                match self { $(Outcome::$name => Program::$program,)* }
            }

            /// Whether the packet ended here (in audit it passed all the same, and was counted in
            /// [`Count::audited`], but for frames that are not from a worker).
            pub fn drops(self) -> bool {
                match self { $(Outcome::$name => $drops,)* }
            }

            /// The name in metrics and status.
            pub fn as_str(self) -> &'static str {
                match self { $(Outcome::$name => $text,)* }
            }
        }
    };
}

outcomes! {
    /// A pod's packet went on; it is judged where it leaves.
    PodPassed = 0, FromPod, false, "pod-passed";
    /// A pod's ARP, neighbour discovery, DHCP or listener report.
    PodLink = 1, FromPod, false, "pod-link";
    /// Headers that cannot be read.
    PodMalformed = 2, FromPod, true, "pod-malformed";
    /// The device is not known as a pod's port.
    PodUnknownDevice = 3, FromPod, true, "pod-unknown-device";
    /// The Ethernet source is not the pod's.
    PodSpoofedMac = 4, FromPod, true, "pod-spoofed-mac";
    /// The source address is not the pod's.
    PodSpoofedSource = 5, FromPod, true, "pod-spoofed-source";
    /// ARP for an address that is not the pod's.
    PodSpoofedArp = 6, FromPod, true, "pod-spoofed-arp";
    /// Neighbour discovery for an address that is not the pod's.
    PodSpoofedNeighbour = 7, FromPod, true, "pod-spoofed-neighbour";
    /// A router's advertisement or redirect.
    PodRouter = 8, FromPod, true, "pod-router";
    /// A VLAN tag.
    PodTagged = 9, FromPod, true, "pod-tagged";
    /// Neither ARP nor IP.
    PodEthertype = 10, FromPod, true, "pod-ethertype";
    /// A packet that may hold another one.
    PodEncapsulated = 11, FromPod, true, "pod-encapsulated";
    /// A packet that names its own way.
    PodSourceRoute = 12, FromPod, true, "pod-source-route";
    /// Broadcast or multicast.
    PodGroup = 13, FromPod, true, "pod-group";
    /// A worker has just denied the same.
    PodDenied = 14, FromPod, true, "pod-denied";
    /// New, from a pod that has used up what it may ask.
    PodAskLimit = 15, FromPod, true, "pod-ask-limit";
    /// A cached decision lets it pass.
    ExitHit = 16, Exit, false, "exit-hit";
    /// A worker let it pass.
    ExitReturned = 17, Exit, false, "exit-returned";
    /// No pod of this node has to do with it.
    ExitNoPod = 18, Exit, false, "exit-no-pod";
    /// Made by this host's stack.
    ExitOwnStack = 19, Exit, false, "exit-own-stack";
    /// ARP, neighbour discovery, DHCP or listener reports.
    ExitLink = 20, Exit, false, "exit-link";
    /// Neither ARP nor IP, not to a pod or made by this host.
    ExitNotIp = 21, Exit, false, "exit-not-ip";
    /// An ICMP error about a flow that may pass.
    ExitRelated = 22, Exit, false, "exit-related";
    /// Given to a worker.
    ExitAsked = 23, Exit, false, "exit-asked";
    /// Nobody judges and the fail mode is open.
    ExitFailOpen = 24, Exit, false, "exit-fail-open";
    /// Nobody judges and the fail mode is closed.
    ExitFailClosed = 25, Exit, true, "exit-fail-closed";
    /// Headers that cannot be read.
    ExitMalformed = 26, Exit, true, "exit-malformed";
    /// The device is not known.
    ExitUnknownDevice = 27, Exit, true, "exit-unknown-device";
    /// To a pod's port, and not to that pod's address.
    ExitNotItsAddress = 28, Exit, true, "exit-not-its-address";
    /// Broadcast or multicast from or to a pod.
    ExitGroup = 29, Exit, true, "exit-group";
    /// Neither ARP nor IP, to a pod.
    ExitEthertype = 30, Exit, true, "exit-ethertype";
    /// With a VLAN tag and without a cached decision.
    ExitTagged = 31, Exit, true, "exit-tagged";
    /// A local pod's address that did not come from its port.
    ExitSpoofedSource = 32, Exit, true, "exit-spoofed-source";
    /// To a Service address that nobody has translated.
    ExitServiceUnresolved = 33, Exit, true, "exit-service-unresolved";
    /// A worker has just denied the same.
    ExitDenied = 34, Exit, true, "exit-denied";
    /// An ICMP error from a pod that is no end of the flow.
    ExitRelatedForeign = 35, Exit, true, "exit-related-foreign";
    /// An ICMP error that quotes more than an error does.
    ExitRelatedTooLong = 36, Exit, true, "exit-related-too-long";
    /// The pod has used up what it may ask.
    ExitAskLimit = 37, Exit, true, "exit-ask-limit";
    /// It does not fit the way to the workers.
    ExitAskFailed = 38, Exit, true, "exit-ask-failed";
    /// More discovery by addresses of the link than makes sense.
    PodLinkLimit = 39, FromPod, true, "pod-link-limit";
    /// As many first packets of the pod wait for a worker as may.
    ExitAskQueue = 48, Exit, true, "exit-ask-queue";
    /// New, from a pod of which as many first packets wait for a worker as may.
    PodAskQueue = 49, FromPod, true, "pod-ask-queue";
    /// From elsewhere, and not with a local pod's address.
    NetPassed = 40, FromNet, false, "net-passed";
    /// From elsewhere with a local pod's address.
    NetSpoofedSource = 41, FromNet, true, "net-spoofed-source";
    /// The device is not known.
    NetUnknownDevice = 42, FromNet, true, "net-unknown-device";
    /// A worker's frame went on where it was taken.
    BackReturned = 44, Back, false, "back-returned";
    /// A worker's frame that cannot be read.
    BackMalformed = 45, Back, true, "back-malformed";
    /// A frame that is not from a worker.
    BackForged = 46, Back, true, "back-forged";
    /// The device where it was taken is gone.
    BackUnknownDevice = 47, Back, true, "back-unknown-device";
    /// Given to a worker's socket.
    JudgeAsked = 50, Judge, false, "judge-asked";
    /// A frame that is not from `exit`.
    JudgeForged = 51, Judge, true, "judge-forged";
    /// The queue has no socket.
    JudgeNoSocket = 52, Judge, true, "judge-no-socket";
}

/// What is counted beside the outcome.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Note {
    /// Translated in a way that conntrack does not know: judged by its own addresses.
    CtMismatch = 56,
    /// Judged without conntrack.
    Untracked = 57,
}

/// `RW_NODE_COUNTERS`.
pub(super) const COUNTERS: usize = 60;

/// One counter, summed over CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Packets as the program saw them: segments that travel as one are one.
    pub packets: u64,
    /// Their bytes, with the link header.
    pub bytes: u64,
    /// Those of `packets` that would have dropped, and passed in audit.
    pub audited: u64,
}

/// Every counter of a node's programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeCounters(pub(super) [Count; COUNTERS]);

impl NodeCounters {
    /// What had an outcome.
    pub fn get(&self, outcome: Outcome) -> Count {
        self.at(outcome as usize)
    }

    /// What was counted beside the outcome.
    pub fn note(&self, note: Note) -> Count {
        self.at(note as usize)
    }

    /// Packets that a program saw.
    pub fn seen_by(&self, program: Program) -> u64 {
        self.iter()
            .filter(|(outcome, _)| outcome.program() == program)
            .map(|(_, count)| count.packets)
            .sum()
    }

    /// Every outcome with its count, in order of number.
    pub fn iter(&self) -> impl Iterator<Item = (Outcome, Count)> + '_ {
        Outcome::ALL.iter().map(|&outcome| (outcome, self.get(outcome)))
    }

    fn at(&self, index: usize) -> Count {
        self.0.get(index).copied().unwrap_or_default()
    }
}
