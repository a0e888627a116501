//! The tc programs of a port: filters on its clsact qdisc.

use std::{os::fd::BorrowedFd, path::Path};

use crate::{
    BpfError,
    clsact::{self, FilterPlace, Side},
};

/// Names our filters; "rw".
const HANDLE: u32 = 0x7277;

fn place(ifindex: u32, side: Side) -> FilterPlace {
    FilterPlace {
        ifindex,
        side,
        handle: HANDLE,
    }
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
    let of = format!("`{name}`");
    // Whether the qdisc was made just now, so that nothing can be on it.
    let mut new = false;
    for (program, side) in [(egress, Side::Egress), (ingress, Side::Ingress)] {
        match program {
            Some(program) => {
                new |= clsact::make_qdisc(ifindex, mark, &of)?;
                place(ifindex, side).attach(program, &of)?;
            }
            None if new => {}
            None => place(ifindex, side).detach(&of)?,
        }
    }
    Ok(())
}

/// Whether the interface has filters of ours.
pub(crate) fn is_set(ifindex: u32) -> bool {
    Side::BOTH
        .iter()
        .any(|&side| place(ifindex, side).program().is_some())
}

/// Removes the port's filters, and the qdisc where it is of our making and nobody else has a filter on it.
pub(crate) fn detach(name: &str, ifindex: u32, mark: &Path) -> Result<(), BpfError> {
    let of = format!("`{name}`");
    for side in Side::BOTH {
        place(ifindex, side).detach(&of)?;
    }
    clsact::remove_qdisc(ifindex, mark, &of)
}
