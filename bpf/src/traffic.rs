//! Load for benchmarks: a generator inside the kernel (live frames of BPF_PROG_TEST_RUN) and a sink that counts.

use std::{io, mem::MaybeUninit, time::Duration};

use libbpf_rs::{
    Link, MapCore, MapFlags, OpenObject, ProgramInput,
    skel::{OpenSkel, SkelBuilder},
};

use crate::{
    BpfError,
    error::wrap,
    kernel::interface_index,
    skeleton::traffic::{TrafficSkel, TrafficSkelBuilder},
};

/// Bytes that the generator writes at the begin of every frame.
pub const HEADERS: usize = 80;
/// The most different packets that it takes turns in.
pub const MAX_FLOWS: usize = 65_536;
/// Frames that are made at once, as many as a NAPI poll takes (`BPF_F_TEST_XDP_LIVE_FRAMES`, default batch).
const LIVE_FRAMES: u32 = 1 << 1;

/// The programs, loaded.
pub struct Traffic {
    skel: TrafficSkel<'static>,
    frame: Vec<u8>,
}

impl Traffic {
    /// Loads both programs. The generator sends frames of `length` bytes whose first [`HEADERS`] bytes are those of
    /// the given packets in turn.
    pub fn load(packets: &[[u8; HEADERS]], length: usize) -> Result<Self, BpfError> {
        Self::load_as(packets, length, false)
    }

    /// As [`Self::load`], of TCP over IPv4 without options: each time that all have been sent, their source ports go on by
    /// one.
    pub fn load_varied(packets: &[[u8; HEADERS]], length: usize) -> Result<Self, BpfError> {
        Self::load_as(packets, length, true)
    }

    fn load_as(packets: &[[u8; HEADERS]], length: usize, vary: bool) -> Result<Self, BpfError> {
        if packets.is_empty() || packets.len() > MAX_FLOWS {
            return Err(BpfError::TooMany {
                what: "packets of the generator",
                got: packets.len(),
                max: MAX_FLOWS,
            });
        }
        // The skeleton borrows its object; both live as long as the process, of which a benchmark needs few.
        let object: &'static mut MaybeUninit<OpenObject> = Box::leak(Box::new(MaybeUninit::uninit()));
        let mut open = TrafficSkelBuilder::default()
            .open(object)
            .map_err(|error| wrap("opening the traffic programs", error))?;
        if let Some(rodata) = open.maps.rodata_data.as_deref_mut() {
            rodata.flow_count = packets.len() as u32;
            rodata.vary = u32::from(vary);
        }
        let skel = open
            .load()
            .map_err(|error| wrap("loading the traffic programs", error))?;
        for (index, packet) in packets.iter().enumerate() {
            skel.maps
                .templates
                .update(&(index as u32).to_ne_bytes(), packet, MapFlags::ANY)
                .map_err(|error| wrap("writing the generator's packets", error))?;
        }
        let mut frame = vec![0; length.max(HEADERS)];
        frame[..HEADERS].copy_from_slice(&packets[0]);
        Ok(Self { skel, frame })
    }

    /// Sends `count` frames out of an interface (its own XDP program is not run), on this core; answers how long one
    /// took on average. Each call costs about 20 ms beside.
    pub fn send(&self, interface: &str, count: u32) -> Result<Duration, BpfError> {
        let index = interface_index(interface).ok_or_else(|| BpfError::NoInterface(interface.to_owned()))?;
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let mut context = [0; 24];
        context[4..8].copy_from_slice(&(self.frame.len() as u32).to_ne_bytes());
        context[12..16].copy_from_slice(&index.to_ne_bytes());
        let output = self
            .skel
            .progs
            .generate
            .test_run(ProgramInput {
                context_in: Some(&mut context),
                data_in: Some(&self.frame),
                flags: LIVE_FRAMES,
                repeat: count,
                ..ProgramInput::default()
            })
            .map_err(|error| wrap(&format!("sending out of `{interface}`"), error))?;
        Ok(output.duration)
    }

    /// Makes an interface count and end what it receives. Until the answer is dropped.
    pub fn sink(&self, interface: &str) -> Result<Link, BpfError> {
        attach(&self.skel.progs.sink, interface)
    }

    /// Makes an interface's driver take redirected frames, without changing what is received.
    pub fn pass(&self, interface: &str) -> Result<Link, BpfError> {
        attach(&self.skel.progs.pass, interface)
    }

    /// Packets that all sinks together have counted.
    pub fn received(&self) -> Result<u64, BpfError> {
        let values = self
            .skel
            .maps
            .received
            .lookup_percpu(&0_u32.to_ne_bytes(), MapFlags::ANY)
            .map_err(|error| wrap("reading the sink", error))?
            .unwrap_or_default();
        Ok(values
            .iter()
            .filter_map(|value| value.first_chunk::<8>())
            .map(|packets| u64::from_ne_bytes(*packets))
            .sum())
    }
}

/// The Ethernet address of an interface.
///
/// # Errors
/// There is no such interface.
pub fn mac(interface: &str) -> io::Result<[u8; 6]> {
    crate::kernel::interface_mac(interface)
}

fn attach(program: &libbpf_rs::ProgramMut<'_>, interface: &str) -> Result<Link, BpfError> {
    let index = interface_index(interface).ok_or_else(|| BpfError::NoInterface(interface.to_owned()))?;
    program
        .attach_xdp(
            i32::try_from(index)
                .map_err(|_| BpfError::system(interface, io::ErrorKind::InvalidInput.into()))?,
        )
        .map_err(|error| wrap(&format!("attaching to `{interface}`"), error))
}
