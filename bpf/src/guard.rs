//! The tc programs of a port: filters on its clsact qdisc.

use std::{fs, io, os::fd::BorrowedFd, path::Path};

use libbpf_rs::{TC_EGRESS, TC_INGRESS, TcAttachPoint, TcHook, TcHookBuilder};

use crate::{BpfError, error::wrap, kernel};

/// Handle and priority that name our filters; "rw". The first priority, so that no other filter accepts before us.
const HANDLE: u32 = 0x7277;
const PRIORITY: u32 = 1;

fn hook(program: BorrowedFd<'_>, ifindex: u32, point: TcAttachPoint) -> TcHook {
    TcHookBuilder::new(program)
        .ifindex(ifindex as i32)
        .replace(true)
        .handle(HANDLE)
        .priority(PRIORITY)
        .hook(point)
}

/// A hook for questions and removal, which take no program.
fn bare_hook(ifindex: u32, point: TcAttachPoint) -> TcHook {
    use std::os::fd::AsFd;
    hook(std::io::stdin().as_fd(), ifindex, point)
}

/// Makes the port's filters these. A filter of an earlier process is replaced without a moment in which there is none.
/// `mark` is a directory that is there as long as the clsact qdisc is of our making.
pub(crate) fn set(
    name: &str,
    ifindex: u32,
    mark: &Path,
    egress: Option<BorrowedFd<'_>>,
    ingress: Option<BorrowedFd<'_>>,
) -> Result<(), BpfError> {
    // Whether the qdisc was made just now, so that nothing can be on it.
    let mut new = false;
    for (program, point, place) in [(egress, TC_EGRESS, "egress"), (ingress, TC_INGRESS, "ingress")] {
        match program {
            Some(program) => {
                new |= make_qdisc(ifindex, mark).map_err(|source| {
                    BpfError::system(format!("make the clsact qdisc of `{name}`"), source)
                })?;
                hook(program, ifindex, point)
                    .attach()
                    .map_err(|error| wrap(&format!("attach the tc {place} program of `{name}`"), error))?;
            }
            None if new => {}
            None => remove(name, ifindex, point, place)?,
        }
    }
    Ok(())
}

/// Makes the clsact qdisc, and the mark where it was not there; whether it is new. The mark comes first: whoever comes after a crash in between
/// takes it off for a qdisc that is empty.
fn make_qdisc(ifindex: u32, mark: &Path) -> io::Result<bool> {
    let marked = match fs::create_dir(mark) {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
        Err(error) => return Err(error),
    };
    let made = kernel::make_clsact(ifindex);
    if marked && !matches!(made, Ok(true)) {
        fs::remove_dir(mark)?;
    }
    made
}

/// Whether the interface has filters of ours.
pub(crate) fn is_set(ifindex: u32) -> bool {
    [TC_EGRESS, TC_INGRESS]
        .iter()
        .any(|&point| bare_hook(ifindex, point).query().is_ok())
}

/// Removes the port's filters, and the qdisc where it is of our making and nobody else has a filter on it.
pub(crate) fn detach(name: &str, ifindex: u32, mark: &Path) -> Result<(), BpfError> {
    remove(name, ifindex, TC_EGRESS, "egress")?;
    remove(name, ifindex, TC_INGRESS, "ingress")?;
    if mark.exists() && kernel::has_filters(ifindex).is_ok_and(|others| !others) {
        bare_hook(ifindex, TC_EGRESS | TC_INGRESS)
            .destroy()
            .map_err(|error| wrap(&format!("remove the clsact qdisc of `{name}`"), error))?;
    }
    Ok(())
}

fn remove(name: &str, ifindex: u32, point: TcAttachPoint, place: &str) -> Result<(), BpfError> {
    let mut hook = bare_hook(ifindex, point);
    if hook.query().is_err() {
        return Ok(()); // no qdisc, or no filter of ours
    }
    hook.detach()
        .map_err(|error| wrap(&format!("remove the tc {place} program of `{name}`"), error))
}
