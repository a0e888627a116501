//! Filters on the clsact qdisc of an interface: how tc programs are attached without tcx.

use std::{
    fs, io,
    os::fd::{AsFd, BorrowedFd},
    path::Path,
};

use libbpf_rs::{TC_EGRESS, TC_INGRESS, TcAttachPoint, TcHook, TcHookBuilder};

use crate::{BpfError, error::wrap, kernel};

/// The priority of all our filters. The first, so that no other filter accepts before us; among BPF filters of one priority, the
/// kernel asks the newest first.
const PRIORITY: u32 = 1;

/// Where on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Ingress,
    Egress,
}

impl Side {
    pub(crate) const BOTH: [Side; 2] = [Side::Ingress, Side::Egress];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Side::Ingress => "ingress",
            Side::Egress => "egress",
        }
    }

    fn point(self) -> TcAttachPoint {
        match self {
            Side::Ingress => TC_INGRESS,
            Side::Egress => TC_EGRESS,
        }
    }

    fn parent(self) -> u32 {
        match self {
            Side::Ingress => kernel::CLSACT_INGRESS,
            Side::Egress => kernel::CLSACT_EGRESS,
        }
    }
}

/// The place of one filter of ours, whether it is there or not.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FilterPlace {
    pub(crate) ifindex: u32,
    pub(crate) side: Side,
    /// Names the filter among those of its priority.
    pub(crate) handle: u32,
}

impl FilterPlace {
    fn hook(self, program: BorrowedFd<'_>) -> TcHook {
        TcHookBuilder::new(program)
            .ifindex(self.ifindex as i32)
            .replace(true)
            .handle(self.handle)
            .priority(PRIORITY)
            .hook(self.side.point())
    }

    /// For questions and removal, which take no program.
    fn bare_hook(self) -> TcHook {
        self.hook(io::stdin().as_fd())
    }

    /// The id of the program of the filter that is there.
    pub(crate) fn program(self) -> Option<u32> {
        self.bare_hook().query().ok()
    }

    /// Puts a program there. That of a filter which is there already is replaced without a moment in which there is none.
    /// `of` names it for errors: the tc program of what.
    pub(crate) fn attach(self, program: BorrowedFd<'_>, of: &str) -> Result<(), BpfError> {
        self.hook(program).attach().map(drop).map_err(|error| {
            wrap(
                &format!("attach the tc {} program of {of}", self.side.name()),
                error,
            )
        })
    }

    /// Removes the filter. Fine where there is none.
    pub(crate) fn detach(self, of: &str) -> Result<(), BpfError> {
        if self.program().is_none() {
            return Ok(()); // no qdisc, or no filter of ours
        }
        self.bare_hook().detach().map_err(|error| {
            wrap(
                &format!("remove the tc {} program of {of}", self.side.name()),
                error,
            )
        })
    }

    /// Whatever is asked before the filter; None where it is the first, or not there.
    pub(crate) fn asked_before(self) -> io::Result<Option<String>> {
        let all = kernel::filters(self.ifindex, self.side.parent())?;
        let own = |filter: &kernel::ListedFilter| {
            u32::from(filter.priority) == PRIORITY && filter.kind == "bpf" && filter.handle == self.handle
        };
        let first = all.first().filter(|first| !own(first) && all.iter().any(own));
        Ok(first.map(|first| {
            format!(
                "a tc filter (kind {}, priority {}, handle {:#x})",
                first.kind, first.priority, first.handle
            )
        }))
    }
}

/// What keeps filters of ours from being the first of an interface, each with what to do about it.
pub(crate) fn obstacles(ifindex: u32, of: &str) -> io::Result<Vec<String>> {
    let mut found = Vec::new();
    if kernel::clsact_kind(ifindex)?.is_some_and(|kind| kind == "ingress") {
        found.push(format!(
            "{of} has an `ingress` qdisc, beside which nothing can look at what leaves: use `clsact` for what is there (`tc qdisc replace dev NAME clsact`), or Linux 6.6"
        ));
        return Ok(found);
    }
    for side in Side::BOTH {
        let in_the_way = kernel::filters(ifindex, side.parent())?
            .into_iter()
            .find(|filter| {
                u32::from(filter.priority) <= PRIORITY
                    && (filter.kind != "bpf" || i32::from(filter.protocol) != libc::ETH_P_ALL)
            });
        found.extend(in_the_way.map(|filter| {
            format!(
                "{of} has a tc {} filter of kind {} with priority {}, and ringwall's could not come before it: give it a higher number, or use Linux 6.6",
                side.name(),
                filter.kind,
                filter.priority
            )
        }));
    }
    Ok(found)
}

/// Makes the clsact qdisc, and the mark where it was not there; whether it is new. `mark` is a directory that is there as long as the
/// qdisc is of our making. It comes first: whoever comes after a crash in between takes it off for a qdisc that is empty.
pub(crate) fn make_qdisc(ifindex: u32, mark: &Path, of: &str) -> Result<bool, BpfError> {
    let make = || {
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
    };
    make().map_err(|source| BpfError::system(format!("make the clsact qdisc of {of}"), source))
}

/// Removes the qdisc where it is of our making and nobody else has a filter on it. The mark stays.
pub(crate) fn remove_qdisc(ifindex: u32, mark: &Path, of: &str) -> Result<(), BpfError> {
    let is_there =
        || kernel::clsact_kind(ifindex).is_ok_and(|kind| kind.is_some_and(|kind| kind == "clsact"));
    if mark.exists() && kernel::has_filters(ifindex).is_ok_and(|others| !others) && is_there() {
        let place = FilterPlace {
            ifindex,
            side: Side::Egress,
            handle: 0,
        };
        let mut both = place.bare_hook();
        both.attach_point(TC_EGRESS | TC_INGRESS)
            .destroy()
            .map_err(|error| wrap(&format!("remove the clsact qdisc of {of}"), error))?;
    }
    Ok(())
}
