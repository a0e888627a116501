//! Programs on devices: by links, or by filters where the kernel has no links for tc.
//!
//! What is attached is on record among the pins, so that whoever comes after takes off that and nothing else: a link's pin, or of a filter
//! its program's. Filters are ours if their place is one of ours and their program one on record.

use std::{
    collections::BTreeSet,
    fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use super::{DIRECTORY, Hook, LINKS, Node};
use crate::{
    BpfError,
    clsact::{self, FilterPlace, Side},
    kernel,
    port::{remove_pin, remove_pins},
};

/// How tc programs are attached to devices. A kernel has one way for as long as it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcAttachment {
    /// tcx links, which `tc` cannot take off: Linux 6.6.
    Link,
    /// Filters of the clsact qdisc, for older kernels. Whoever may use `tc` can remove them, or add others that are asked before.
    Filter,
}

impl TcAttachment {
    /// The best that the running kernel has.
    pub fn of_kernel() -> Self {
        if kernel::has_tcx() {
            Self::Link
        } else {
            Self::Filter
        }
    }
}

/// What keeps a device of the calling thread's network namespace from being guarded by filters, each with what to do about it; empty
/// where the kernel has tcx. `name` is the interface's.
///
/// # Errors
/// The kernel could not be asked.
pub fn filter_obstacles(attachment: TcAttachment, ifindex: u32, name: &str) -> Result<Vec<String>, BpfError> {
    if attachment == TcAttachment::Link {
        return Ok(Vec::new());
    }
    clsact::obstacles(ifindex, &format!("interface {name}"))
        .map_err(|source| BpfError::system(format!("list the tc filters of interface {name}"), source))
}

impl Hook {
    /// Where the program's filter is; None where it is no tc program.
    fn filter(self, ifindex: u32) -> Option<FilterPlace> {
        /// "r", and a number for each program.
        const FIRST_HANDLE: u32 = 0x7200;
        let (side, number) = match self {
            Hook::FromPod => (Side::Ingress, 1),
            Hook::Exit => (Side::Egress, 2),
            Hook::FromNet => (Side::Ingress, 3),
            Hook::Back => (Side::Ingress, 4),
            Hook::Judge => return None,
        };
        Some(FilterPlace {
            ifindex,
            side,
            handle: FIRST_HANDLE + number,
        })
    }
}

impl Node {
    /// Attaches a program to a device of the calling thread's network namespace and records it, first of all
    /// programs there. Where a predecessor's program of another build is on the device, it is replaced atomically. The
    /// device must be known before.
    ///
    /// # Errors
    /// There is no such device, the kernel refuses, or a filter cannot be the first.
    pub fn attach(&self, ifindex: u32, hook: Hook) -> Result<(), BpfError> {
        match hook.filter(ifindex) {
            Some(place) if self.attachment == TcAttachment::Filter => self.attach_filter(place, hook),
            _ => self.attach_link(ifindex, hook),
        }
    }

    fn attach_link(&self, ifindex: u32, hook: Hook) -> Result<(), BpfError> {
        let program = self.program(hook);
        let path = link_pin(&self.pins, ifindex, hook);
        if hook == Hook::Judge {
            // Whether an index is of the same device as before, nobody can tell in another namespace. Without the program nothing
            // gets to a worker.
            detach_link(&path)?;
        } else if let Some((link, attached)) = inherited_link(&path, ifindex, hook) {
            if kernel::program_id(program).ok() != Some(attached) {
                kernel::update_link(link.as_fd(), program)
                    .map_err(|source| attach_error("replace", hook, ifindex, source))?;
            }
            return Ok(());
        }
        remove_pin(&path)?;
        let link = match hook {
            Hook::FromPod | Hook::FromNet | Hook::Back => kernel::link_tcx_first(program, ifindex, true),
            Hook::Exit => kernel::link_tcx_first(program, ifindex, false),
            Hook::Judge => kernel::link_xdp(program, ifindex, true),
        };
        let link = link.map_err(|source| attach_error("attach", hook, ifindex, source))?;
        pin(link.as_fd(), &path)
    }

    fn attach_filter(&self, place: FilterPlace, hook: Hook) -> Result<(), BpfError> {
        let ifindex = place.ifindex;
        let of = of_device(ifindex);
        let record = filter_record(&self.pins, ifindex, hook);
        let own = self.program_id(hook);
        match place.program() {
            Some(there) if there == own && program_on_record(&record) == Some(own) => return Ok(()),
            Some(there) if !is_ours(&self.pins, &record, hook, there) => {
                return Err(BpfError::ForeignFilter {
                    device: of,
                    side: place.side.name(),
                    handle: place.handle,
                });
            }
            Some(_) => {
                // Ended in between, the new one is known by the pin of the program itself.
                place.attach(self.program(hook), &of)?;
                remove_pin(&record)?;
                return pin(self.program(hook), &record);
            }
            None => {}
        }
        clsact::make_qdisc(ifindex, &qdisc_mark(&self.pins, ifindex), &of)?;
        let attach = || {
            let obstacles = clsact::obstacles(ifindex, &of)
                .map_err(|source| BpfError::system(format!("list the tc filters of {of}"), source))?;
            if let Some(obstacle) = obstacles.into_iter().next() {
                return Err(BpfError::NotFirst(obstacle));
            }
            remove_pin(&record)?;
            pin(self.program(hook), &record)?;
            place.attach(self.program(hook), &of)
        };
        attach().inspect_err(|_| {
            // What this has made goes again; the error that led here says what is wrong.
            let _ = remove_pin(&record);
            let _ = release_qdisc(&self.pins, ifindex);
        })
    }

    /// Takes every tc program off a device but those that are to stay.
    pub(super) fn take_off_but(&self, ifindex: u32, stay: &[Hook]) -> Result<(), BpfError> {
        take_off_but(&self.pins, ifindex, stay)
    }

    /// Whether a program of this installation is attached to a device.
    pub fn is_attached(&self, ifindex: u32, hook: Hook) -> bool {
        match hook.filter(ifindex) {
            Some(place) if self.attachment == TcAttachment::Filter => {
                let record = filter_record(&self.pins, ifindex, hook);
                place
                    .program()
                    .is_some_and(|id| is_ours(&self.pins, &record, hook, id))
            }
            _ => inherited_link(&link_pin(&self.pins, ifindex, hook), ifindex, hook).is_some(),
        }
    }

    /// What packets meet before a program that is attached as a filter, which may let them pass without asking further; None where
    /// that is nothing.
    ///
    /// # Errors
    /// The kernel could not be asked.
    pub fn asked_before(&self, ifindex: u32, hook: Hook) -> Result<Option<String>, BpfError> {
        let place = hook
            .filter(ifindex)
            .filter(|_| self.attachment == TcAttachment::Filter);
        place.map_or(Ok(None), |place| {
            place.asked_before().map_err(|source| {
                BpfError::system(format!("list the tc filters of {}", of_device(ifindex)), source)
            })
        })
    }

    /// The devices on which something is on record, whether they are still there or not.
    pub fn pinned_devices(&self) -> BTreeSet<u32> {
        devices_on_record(&self.pins)
    }
}

/// Takes the programs of a node off every device of the calling thread's network namespace and removes all pins, of any build. Fine where there are none.
///
/// # Errors
/// A program, a link or a pin could not be removed.
pub fn detach(pins: &Path) -> Result<(), BpfError> {
    crate::log::quiet();
    for ifindex in devices_on_record(pins) {
        take_off_but(pins, ifindex, &[])?;
    }
    detach_link(&link_pin(pins, 0, Hook::Judge))?;
    remove_pins(&pins.join(LINKS))?;
    remove_pins(&pins.join(DIRECTORY))
}

fn take_off_but(pins: &Path, ifindex: u32, stay: &[Hook]) -> Result<(), BpfError> {
    for hook in Hook::ALL.into_iter().filter(|hook| !stay.contains(hook)) {
        let Some(place) = hook.filter(ifindex) else {
            continue;
        };
        detach_link(&link_pin(pins, ifindex, hook))?;
        let record = filter_record(pins, ifindex, hook);
        if !record.exists() {
            continue;
        }
        if place.program().is_some_and(|id| is_ours(pins, &record, hook, id)) {
            place.detach(&of_device(ifindex))?;
        }
        remove_pin(&record)?;
    }
    release_qdisc(pins, ifindex)
}

/// Removes a clsact qdisc that was made for our filters, once nobody has a filter there. If others have some, it is theirs.
fn release_qdisc(pins: &Path, ifindex: u32) -> Result<(), BpfError> {
    let mark = qdisc_mark(pins, ifindex);
    let in_use = Hook::ALL
        .iter()
        .any(|&hook| filter_record(pins, ifindex, hook).exists());
    if in_use || !mark.exists() {
        return Ok(());
    }
    clsact::remove_qdisc(ifindex, &mark, &of_device(ifindex))?;
    fs::remove_dir(&mark).map_err(|error| BpfError::system(format!("remove {}", mark.display()), error))
}

fn of_device(ifindex: u32) -> String {
    format!("the device with index {ifindex}")
}

fn pin(object: BorrowedFd<'_>, path: &Path) -> Result<(), BpfError> {
    kernel::pin(object, path).map_err(|source| BpfError::system(format!("pin {}", path.display()), source))
}

fn link_pin(pins: &Path, ifindex: u32, hook: Hook) -> PathBuf {
    let links = pins.join(LINKS);
    match hook {
        // Of another network namespace, whose indices may be the same.
        Hook::Judge => links.join(hook.name()),
        _ => links.join(format!("{ifindex}-{}", hook.name())),
    }
}

/// Where the program of a filter is pinned.
fn filter_record(pins: &Path, ifindex: u32, hook: Hook) -> PathBuf {
    pins.join(LINKS).join(format!("{ifindex}-{}-filter", hook.name()))
}

/// A directory that is there while the device has a clsact qdisc of our making.
fn qdisc_mark(pins: &Path, ifindex: u32) -> PathBuf {
    pins.join(LINKS).join(format!("{ifindex}-qdisc"))
}

fn devices_on_record(pins: &Path) -> BTreeSet<u32> {
    let entries = fs::read_dir(pins.join(LINKS)).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.split_once('-')?.0.parse().ok())
        .collect()
}

fn program_on_record(path: &Path) -> Option<u32> {
    kernel::program_id(kernel::open_pin(path).ok()?.as_fd()).ok()
}

/// Whether the filter at one of our places has a program of ours: the one on record for it, or the one that is about to be.
fn is_ours(pins: &Path, record: &Path, hook: Hook, program: u32) -> bool {
    let loaded = pins.join(DIRECTORY).join(hook.name());
    [record, &loaded]
        .iter()
        .any(|path| program_on_record(path) == Some(program))
}

/// The link that is pinned, and its program's id, where it is still on this device.
fn inherited_link(path: &Path, ifindex: u32, hook: Hook) -> Option<(OwnedFd, u32)> {
    let link = kernel::open_pin(path).ok()?;
    let info = match hook {
        Hook::Judge => kernel::xdp_link_info(link.as_fd()),
        _ => kernel::tcx_link_info(link.as_fd()),
    };
    let (linked, program) = info.ok()?;
    (linked == ifindex).then_some((link, program))
}

fn detach_link(path: &Path) -> Result<(), BpfError> {
    if let Ok(link) = kernel::open_pin(path) {
        match kernel::detach_link(link.as_fd()) {
            Err(error) if !matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENOLINK)) => {
                return Err(BpfError::system(
                    format!("take off the program of {}", path.display()),
                    error,
                ));
            }
            _ => {}
        }
    }
    remove_pin(path)
}

fn attach_error(verb: &str, hook: Hook, ifindex: u32, source: io::Error) -> BpfError {
    let action = format!("{verb} the program `{}` of {}", hook.name(), of_device(ifindex));
    BpfError::system(action, source)
}
