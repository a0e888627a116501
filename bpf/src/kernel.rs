//! System calls that libbpf-rs does not wrap: links with attach flags, pins, questions about interfaces.
#![allow(unsafe_code)] // thin wrappers of C functions; every pointer is to a local that outlives the call

use std::{
    ffi::{CStr, CString},
    io, mem,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use libbpf_rs::libbpf_sys as sys;

/// Magic number of a BPF file system, `statfs(2)`.
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

fn c_string(text: &[u8]) -> io::Result<CString> {
    CString::new(text).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// libbpf answers `-errno`.
fn check(answer: i32) -> io::Result<i32> {
    if answer < 0 {
        Err(io::Error::from_raw_os_error(-answer))
    } else {
        Ok(answer)
    }
}

fn owned(answer: i32) -> io::Result<OwnedFd> {
    let fd = check(answer)?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The index of an interface in the calling thread's network namespace.
pub(crate) fn interface_index(name: &str) -> Option<u32> {
    let name = c_string(name.as_bytes()).ok()?;
    // SAFETY: `name` is a NUL-terminated string that outlives the call.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => None,
        index => Some(index),
    }
}

/// Bytes of an `ifreq` for `name`, and a socket to ask with.
fn interface_request(name: &str) -> io::Result<(OwnedFd, libc::ifreq)> {
    // SAFETY: no pointers; the answer is checked.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just opened, nobody else has it.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: `ifreq` is plain data for which zeroes are valid.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok((socket, request))
}

/// The Ethernet address of an interface.
pub(crate) fn interface_mac(name: &str) -> io::Result<[u8; 6]> {
    let (socket, mut request) = interface_request(name)?;
    // SAFETY: SIOCGIFHWADDR reads and writes one `ifreq`, which `request` is.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFHWADDR as _, &mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has filled this member of the union, and all its bytes are valid in any case.
    let data = unsafe { request.ifr_ifru.ifru_hwaddr.sa_data };
    let mut mac = [0; 6];
    for (to, from) in mac.iter_mut().zip(data) {
        *to = from as u8;
    }
    Ok(mac)
}

/// The name of an interface's driver, empty where it does not say.
pub(crate) fn interface_driver(name: &str) -> String {
    /// `ETHTOOL_GDRVINFO` of `linux/ethtool.h`.
    const GET_DRIVER: u32 = 3;
    /// `struct ethtool_drvinfo`.
    #[repr(C)]
    struct DriverInfo {
        command: u32,
        driver: [u8; 32],
        rest: [u8; 32 + 32 + 32 + 32 + 12],
        numbers: [u32; 5],
    }
    let Ok((socket, mut request)) = interface_request(name) else {
        return String::new();
    };
    let mut info = DriverInfo {
        command: GET_DRIVER,
        driver: [0; 32],
        rest: [0; 140],
        numbers: [0; 5],
    };
    request.ifr_ifru.ifru_data = (&raw mut info).cast();
    // SAFETY: SIOCETHTOOL reads one `ifreq` and writes a `struct ethtool_drvinfo` (196 bytes) where it points; `info`
    // has that layout and outlives the call.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &mut request) } < 0 {
        return String::new();
    }
    CStr::from_bytes_until_nul(&info.driver)
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// What a driver can do with XDP, `NETDEV_XDP_ACT_*` of `linux/netdev.h`; 0 where it can nothing or the kernel (before
/// 6.3) does not tell.
pub(crate) fn xdp_features(ifindex: u32) -> io::Result<u64> {
    Ok(xdp_query(ifindex)?.feature_flags)
}

/// What XDP program an interface carries: its id, and whether it is native.
pub(crate) fn xdp_program(ifindex: u32) -> io::Result<Option<(u32, bool)>> {
    let options = xdp_query(ifindex)?;
    let native = u32::from(options.attach_mode) != sys::XDP_ATTACHED_SKB;
    let id = [
        options.prog_id,
        options.drv_prog_id,
        options.skb_prog_id,
        options.hw_prog_id,
    ]
    .into_iter()
    .find(|&id| id != 0);
    Ok(id.map(|id| (id, native)))
}

fn xdp_query(ifindex: u32) -> io::Result<sys::bpf_xdp_query_opts> {
    let mut options = sys::bpf_xdp_query_opts {
        sz: mem::size_of::<sys::bpf_xdp_query_opts>() as _,
        ..Default::default()
    };
    // SAFETY: `options` is initialised, its size is in `sz`, and it outlives the call.
    check(unsafe { sys::bpf_xdp_query(ifindex as i32, 0, &mut options) })?;
    Ok(options)
}

/// A program's name.
pub(crate) fn program_name(id: u32) -> io::Result<String> {
    // SAFETY: no pointers.
    let program = owned(unsafe { sys::bpf_prog_get_fd_by_id(id) })?;
    Ok(program_info(&program)?.1)
}

/// A program's id and name.
pub(crate) fn program_info(program: &impl AsRawFd) -> io::Result<(u32, String)> {
    let mut info = sys::bpf_prog_info::default();
    let mut length = mem::size_of::<sys::bpf_prog_info>() as u32;
    // SAFETY: `info` is zeroed (so it asks for no arrays) and `length` is its size; both outlive the call.
    check(unsafe { sys::bpf_prog_get_info_by_fd(program.as_raw_fd(), &mut info, &mut length) })?;
    let name: Vec<u8> = info
        .name
        .iter()
        .map(|&byte| byte as u8)
        .take_while(|&byte| byte != 0)
        .collect();
    Ok((info.id, String::from_utf8_lossy(&name).into_owned()))
}

/// A program's id.
pub(crate) fn program_id(program: BorrowedFd<'_>) -> io::Result<u32> {
    Ok(program_info(&program)?.0)
}

/// The instructions that the kernel's verifier looked at.
#[cfg(test)]
pub(crate) fn verified_instructions(program: BorrowedFd<'_>) -> io::Result<u32> {
    let mut info = sys::bpf_prog_info::default();
    let mut length = mem::size_of::<sys::bpf_prog_info>() as u32;
    // SAFETY: as in `program_info`.
    check(unsafe { sys::bpf_prog_get_info_by_fd(program.as_raw_fd(), &mut info, &mut length) })?;
    Ok(info.verified_insns)
}

/// Whether the kernel has XDP programs that take packets of several buffers: Linux 5.18, and what was ported back.
pub(crate) fn has_xdp_frags() -> bool {
    // r0 = XDP_PASS; exit.
    let program = [
        sys::bpf_insn {
            code: (sys::BPF_ALU64 | sys::BPF_MOV | sys::BPF_K) as u8,
            imm: sys::XDP_PASS as i32,
            ..Default::default()
        },
        sys::bpf_insn {
            code: (sys::BPF_JMP | sys::BPF_EXIT) as u8,
            ..Default::default()
        },
    ];
    let mut options = sys::bpf_prog_load_opts {
        sz: mem::size_of::<sys::bpf_prog_load_opts>() as _,
        prog_flags: sys::BPF_F_XDP_HAS_FRAGS,
        ..Default::default()
    };
    // SAFETY: name and license are NUL-terminated, `program` has as many instructions as is said, `options` is initialised and
    // its size is in `sz`; all outlive the call.
    owned(unsafe {
        sys::bpf_prog_load(
            sys::BPF_PROG_TYPE_XDP,
            c"ringwall_probe".as_ptr(),
            c"GPL".as_ptr(),
            program.as_ptr(),
            program.len() as _,
            &mut options,
        )
    })
    .is_ok()
}

/// Puts an XDP program on an interface through a link.
pub(crate) fn link_xdp(program: BorrowedFd<'_>, ifindex: u32, native: bool) -> io::Result<OwnedFd> {
    let options = sys::bpf_link_create_opts {
        sz: mem::size_of::<sys::bpf_link_create_opts>() as _,
        flags: if native {
            sys::XDP_FLAGS_DRV_MODE
        } else {
            sys::XDP_FLAGS_SKB_MODE
        },
        ..Default::default()
    };
    // SAFETY: `options` is initialised, its size is in `sz`, and it outlives the call.
    owned(unsafe { sys::bpf_link_create(program.as_raw_fd(), ifindex as i32, sys::BPF_XDP, &options) })
}

/// Puts a tc program on an interface through a tcx link, before every other program there.
pub(crate) fn link_tcx_first(program: BorrowedFd<'_>, ifindex: u32, ingress: bool) -> io::Result<OwnedFd> {
    let options = sys::bpf_link_create_opts {
        sz: mem::size_of::<sys::bpf_link_create_opts>() as _,
        flags: sys::BPF_F_BEFORE,
        ..Default::default()
    };
    let point = if ingress {
        sys::BPF_TCX_INGRESS
    } else {
        sys::BPF_TCX_EGRESS
    };
    // SAFETY: `options` is initialised, its size is in `sz`, and it outlives the call.
    owned(unsafe { sys::bpf_link_create(program.as_raw_fd(), ifindex as i32, point, &options) })
}

/// Replaces the program of a link, without a moment in which there is none.
pub(crate) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no options are given.
    check(unsafe { sys::bpf_link_update(link.as_raw_fd(), program.as_raw_fd(), std::ptr::null()) }).map(drop)
}

/// Takes a link's program off now, whoever else has the link; merely closing it may take effect later.
pub(crate) fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { sys::bpf_link_detach(link.as_raw_fd()) }).map(drop)
}

/// The interface and the program id of an XDP link; index 0 where the interface is gone.
pub(crate) fn xdp_link_info(link: BorrowedFd<'_>) -> io::Result<(u32, u32)> {
    let info = link_info(link, sys::BPF_LINK_TYPE_XDP)?;
    // SAFETY: the kernel fills this member for an XDP link, and any bytes are a valid integer.
    Ok((unsafe { info.__bindgen_anon_1.xdp.ifindex }, info.prog_id))
}

/// As [`xdp_link_info`], of a tcx link.
pub(crate) fn tcx_link_info(link: BorrowedFd<'_>) -> io::Result<(u32, u32)> {
    let info = link_info(link, sys::BPF_LINK_TYPE_TCX)?;
    // SAFETY: the kernel fills this member for a tcx link, and any bytes are a valid integer.
    Ok((unsafe { info.__bindgen_anon_1.tcx.ifindex }, info.prog_id))
}

fn link_info(link: BorrowedFd<'_>, kind: sys::bpf_link_type) -> io::Result<sys::bpf_link_info> {
    let mut info = sys::bpf_link_info::default();
    let mut length = mem::size_of::<sys::bpf_link_info>() as u32;
    // SAFETY: `info` is zeroed and `length` is its size; both outlive the call.
    check(unsafe { sys::bpf_link_get_info_by_fd(link.as_raw_fd(), &mut info, &mut length) })?;
    if info.type_ != kind {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the pin is not a link of the expected kind",
        ));
    }
    Ok(info)
}

/// Pins a program, map or link.
pub(crate) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_string(path.as_os_str().as_bytes())?;
    // SAFETY: `path` is a NUL-terminated string that outlives the call.
    check(unsafe { sys::bpf_obj_pin(object.as_raw_fd(), path.as_ptr()) }).map(drop)
}

/// Opens a pin.
pub(crate) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = c_string(path.as_os_str().as_bytes())?;
    // SAFETY: `path` is a NUL-terminated string that outlives the call.
    owned(unsafe { sys::bpf_obj_get(path.as_ptr()) })
}

/// Makes the clsact qdisc of an interface; whether it was not there before.
pub(crate) fn make_clsact(ifindex: u32) -> io::Result<bool> {
    let mut hook = sys::bpf_tc_hook {
        sz: mem::size_of::<sys::bpf_tc_hook>() as _,
        ifindex: ifindex as i32,
        attach_point: sys::BPF_TC_INGRESS | sys::BPF_TC_EGRESS,
        ..Default::default()
    };
    // SAFETY: `hook` is initialised, its size is in `sz`, and it outlives the call.
    match check(unsafe { sys::bpf_tc_hook_create(&mut hook) }) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

/// `TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS)`; `linux/pkt_sched.h`.
pub(crate) const CLSACT_INGRESS: u32 = 0xffff_fff2;
/// `TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_EGRESS)`.
pub(crate) const CLSACT_EGRESS: u32 = 0xffff_fff3;

/// A tc filter as the kernel lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ListedFilter {
    /// `bpf`, `flower`, ...
    pub kind: String,
    /// The lowest is asked first; of equal ones the first in the list.
    pub priority: u16,
    /// The EtherType that it is asked about, host byte order; `ETH_P_ALL` for all.
    pub protocol: u16,
    /// What names it among those of its priority.
    pub handle: u32,
}

/// Whether any filter is on the clsact qdisc of an interface, in either direction.
pub(crate) fn has_filters(ifindex: u32) -> io::Result<bool> {
    for parent in [CLSACT_INGRESS, CLSACT_EGRESS] {
        let listed = traffic_control(libc::RTM_GETTFILTER, ifindex, parent)?;
        if listed.iter().any(|message| message.kind == libc::RTM_NEWTFILTER) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The filters of one direction of an interface's clsact qdisc that packets meet without being sent to another chain, in the order in
/// which they are asked.
pub(crate) fn filters(ifindex: u32, parent: u32) -> io::Result<Vec<ListedFilter>> {
    const CHAIN: u16 = 11; // TCA_CHAIN
    let mut found = Vec::new();
    for message in traffic_control(libc::RTM_GETTFILTER, ifindex, parent)? {
        let chain = message
            .attribute(CHAIN)
            .and_then(|chain| chain.first_chunk().copied());
        // Beside each filter, its priority has an entry of its own, without a handle.
        if message.kind == libc::RTM_NEWTFILTER
            && message.handle != 0
            && chain.is_none_or(|chain| chain == [0; 4])
        {
            found.push(ListedFilter {
                kind: message.name(),
                priority: (message.info >> 16) as u16,
                protocol: u16::from_be(message.info as u16),
                handle: message.handle,
            });
        }
    }
    Ok(found)
}

/// What kind of qdisc has the place of clsact on an interface: `clsact`, or `ingress`, which has no egress.
pub(crate) fn clsact_kind(ifindex: u32) -> io::Result<Option<String>> {
    const CLSACT: u32 = 0xffff_fff1; // TC_H_CLSACT, which is TC_H_INGRESS, too
    let all = traffic_control(libc::RTM_GETQDISC, ifindex, 0)?;
    let mut of_interface = all
        .iter()
        .filter(|message| message.ifindex == ifindex && message.parent == CLSACT);
    Ok(of_interface.next().map(TrafficControl::name))
}

/// A message about a qdisc or a filter: `struct tcmsg` and attributes.
struct TrafficControl {
    kind: u16,
    ifindex: u32,
    handle: u32,
    parent: u32,
    info: u32,
    attributes: Vec<u8>,
}

impl TrafficControl {
    fn read(kind: u16, body: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u32::from_ne_bytes(*body.get(at..)?.first_chunk()?));
        Some(Self {
            kind,
            ifindex: word(4)?,
            handle: word(8)?,
            parent: word(12)?,
            info: word(16)?,
            attributes: body.get(20..)?.to_vec(),
        })
    }

    fn attribute(&self, wanted: u16) -> Option<&[u8]> {
        let mut rest = self.attributes.as_slice();
        while let Some(&[low, high, kind_low, kind_high]) = rest.first_chunk() {
            let size = usize::from(u16::from_ne_bytes([low, high]));
            if u16::from_ne_bytes([kind_low, kind_high]) == wanted {
                return rest.get(4..size);
            }
            rest = rest.get(size.max(4).next_multiple_of(4)..)?;
        }
        None
    }

    /// `TCA_KIND`.
    fn name(&self) -> String {
        let text = self
            .attribute(1)
            .and_then(|text| CStr::from_bytes_until_nul(text).ok());
        text.map(|text| text.to_string_lossy().into_owned())
            .unwrap_or_default()
    }
}

/// What the kernel lists of an interface's qdiscs (it may name others' as well) or of the filters of one. Nothing, where it
/// refuses: there is no such interface or qdisc.
fn traffic_control(request_kind: u16, ifindex: u32, parent: u32) -> io::Result<Vec<TrafficControl>> {
    const DONE: u16 = libc::NLMSG_DONE as u16;
    const ERROR: u16 = libc::NLMSG_ERROR as u16;
    // SAFETY: no pointers.
    let socket = owned_or_last(unsafe {
        libc::socket(
            libc::AF_NETLINK,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC,
            libc::NETLINK_ROUTE,
        )
    })?;
    // `struct nlmsghdr` and `struct tcmsg`, host byte order.
    let mut request = [0u8; 36];
    request[0..4].copy_from_slice(&36u32.to_ne_bytes());
    request[4..6].copy_from_slice(&request_kind.to_ne_bytes());
    request[6..8].copy_from_slice(&((libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16).to_ne_bytes());
    request[20..24].copy_from_slice(&ifindex.to_ne_bytes());
    request[28..32].copy_from_slice(&parent.to_ne_bytes());
    // SAFETY: pointer and length are of one array that outlives the call.
    if unsafe { libc::send(socket.as_raw_fd(), request.as_ptr().cast(), request.len(), 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut found = Vec::new();
    let mut answer = vec![0u8; 32 << 10];
    loop {
        // SAFETY: pointer and length are of one buffer that outlives the call.
        let length = unsafe { libc::recv(socket.as_raw_fd(), answer.as_mut_ptr().cast(), answer.len(), 0) };
        let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
        let mut rest = answer.get(..length).unwrap_or_default();
        if rest.is_empty() {
            return Ok(found);
        }
        while let (Some(size), Some(kind)) = (rest.first_chunk::<4>(), rest.get(4..6)) {
            let size = u32::from_ne_bytes(*size) as usize;
            match u16::from_ne_bytes([kind[0], kind[1]]) {
                DONE => return Ok(found),
                ERROR => return Ok(Vec::new()),
                kind => {
                    let body = rest.get(16..size).unwrap_or_default();
                    found.extend(TrafficControl::read(kind, body));
                }
            }
            rest = rest.get(size.max(16).next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

/// Whether the kernel has tcx: Linux 6.6.
pub(crate) fn has_tcx() -> bool {
    /// The loopback interface's, in every network namespace.
    const LOOPBACK: i32 = 1;
    let mut options = sys::bpf_prog_query_opts {
        sz: mem::size_of::<sys::bpf_prog_query_opts>() as _,
        ..Default::default()
    };
    // SAFETY: `options` is initialised and asks for no arrays, its size is in `sz`, and it outlives the call.
    let answer = unsafe { sys::bpf_prog_query_opts(LOOPBACK, sys::BPF_TCX_INGRESS, &mut options) };
    // Older ones do not know the kind of place.
    answer != -libc::EINVAL
}

/// A descriptor that a system call has just made, or its error.
fn owned_or_last(fd: i32) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just opened, nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether a directory lies on a BPF file system.
pub(crate) fn is_bpffs(path: &Path) -> io::Result<bool> {
    let path = c_string(path.as_os_str().as_bytes())?;
    // SAFETY: `statfs` is plain data for which zeroes are valid.
    let mut answer: libc::statfs = unsafe { mem::zeroed() };
    // SAFETY: `path` is NUL-terminated, `answer` is writable, both outlive the call.
    if unsafe { libc::statfs(path.as_ptr(), &mut answer) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(answer.f_type as i64 == BPF_FS_MAGIC)
}

/// Mounts a BPF file system.
pub(crate) fn mount_bpffs(path: &Path) -> io::Result<()> {
    let path = c_string(path.as_os_str().as_bytes())?;
    // SAFETY: all strings are NUL-terminated and outlive the call; no data is given.
    let answer = unsafe {
        libc::mount(
            c"bpf".as_ptr(),
            path.as_ptr(),
            c"bpf".as_ptr(),
            0,
            c"mode=0700".as_ptr().cast(),
        )
    };
    if answer < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Unmounts a file system.
pub(crate) fn unmount(path: &Path) -> io::Result<()> {
    let path = c_string(path.as_os_str().as_bytes())?;
    // SAFETY: `path` is NUL-terminated and outlives the call.
    match unsafe { libc::umount2(path.as_ptr(), 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Runs a program on a packet, in the kernel, and answers its return value and the packet afterwards.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn test_run(program: BorrowedFd<'_>, packet: &[u8]) -> io::Result<(u32, Vec<u8>)> {
    let mut output = vec![0; packet.len() + 256];
    let mut options = sys::bpf_test_run_opts {
        sz: mem::size_of::<sys::bpf_test_run_opts>() as _,
        data_in: packet.as_ptr().cast(),
        data_size_in: packet.len() as u32,
        data_out: output.as_mut_ptr().cast(),
        data_size_out: output.len() as u32,
        repeat: 1,
        ..Default::default()
    };
    // SAFETY: input and output buffers are as long as the sizes beside them say and outlive the call.
    check(unsafe { sys::bpf_prog_test_run_opts(program.as_raw_fd(), &mut options) })?;
    output.truncate(options.data_size_out as usize);
    Ok((options.retval, output))
}

/// As [`test_run`], for a tc program and a packet that the kernel forwards: it came in by an interface.
#[cfg(test)]
pub(crate) fn test_run_forwarded(
    program: BorrowedFd<'_>,
    packet: &[u8],
    ingress_ifindex: u32,
) -> io::Result<u32> {
    Ok(test_run_repeated(program, packet, ingress_ifindex, 1)?.0)
}

/// As [`test_run_forwarded`], many times: the return value, the packet afterwards, and what one run took of a CPU on average
/// (the kernel's own answer counts the time of others, too).
#[cfg(test)]
pub(crate) fn test_run_repeated(
    program: BorrowedFd<'_>,
    packet: &[u8],
    ingress_ifindex: u32,
    times: u32,
) -> io::Result<(u32, Vec<u8>, std::time::Duration)> {
    let mut output = vec![0; packet.len() + 256];
    // The first words of `struct __sk_buff`; `ingress_ifindex` is the tenth.
    let mut context = [0u32; 11];
    context[9] = ingress_ifindex;
    let mut options = sys::bpf_test_run_opts {
        sz: mem::size_of::<sys::bpf_test_run_opts>() as _,
        data_in: packet.as_ptr().cast(),
        data_size_in: packet.len() as u32,
        data_out: output.as_mut_ptr().cast(),
        data_size_out: output.len() as u32,
        ctx_in: context.as_mut_ptr().cast(),
        ctx_size_in: mem::size_of_val(&context) as u32,
        repeat: times as i32,
        ..Default::default()
    };
    let begin = thread_time();
    // SAFETY: buffers and context are as long as the sizes beside them say and outlive the call.
    check(unsafe { sys::bpf_prog_test_run_opts(program.as_raw_fd(), &mut options) })?;
    let took = (thread_time() - begin) / times;
    output.truncate(options.data_size_out as usize);
    Ok((options.retval, output, took))
}

/// What the calling thread has had of a CPU.
#[cfg(test)]
fn thread_time() -> std::time::Duration {
    // SAFETY: zeroes are a valid timespec.
    let mut time: libc::timespec = unsafe { mem::zeroed() };
    // SAFETY: a valid pointer to a local.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    std::time::Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// An AF_XDP socket that is bound to nothing: enough to fill a slot of an XSKMAP.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn unbound_xsk() -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    let socket = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just opened, nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(socket) })
}
