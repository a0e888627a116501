//! The tc programs of a port: filters on its clsact qdisc.

use std::os::fd::BorrowedFd;

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
pub(crate) fn set(
    name: &str,
    ifindex: u32,
    egress: Option<BorrowedFd<'_>>,
    ingress: Option<BorrowedFd<'_>>,
) -> Result<(), BpfError> {
    for (program, point, place) in [(egress, TC_EGRESS, "egress"), (ingress, TC_INGRESS, "ingress")] {
        match program {
            Some(program) => {
                let mut hook = hook(program, ifindex, point);
                hook.create()
                    .map_err(|error| wrap(&format!("make the clsact qdisc of `{name}`"), error))?;
                hook.attach()
                    .map_err(|error| wrap(&format!("attach the tc {place} program of `{name}`"), error))?;
            }
            None => remove(name, ifindex, point, place)?,
        }
    }
    Ok(())
}

/// Removes the port's filters, and the qdisc where nobody else has a filter on it.
pub(crate) fn detach(name: &str, ifindex: u32) -> Result<(), BpfError> {
    let ours = [TC_EGRESS, TC_INGRESS]
        .iter()
        .any(|&point| bare_hook(ifindex, point).query().is_ok());
    remove(name, ifindex, TC_EGRESS, "egress")?;
    remove(name, ifindex, TC_INGRESS, "ingress")?;
    if ours && kernel::has_filters(ifindex).is_ok_and(|others| !others) {
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
