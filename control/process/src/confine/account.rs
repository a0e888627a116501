//! Who the control process is.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use ringwall_config::User;
use rustix::{
    fs::{Gid, Uid},
    thread::CapabilitySet,
};

use super::{ConfineError, SourceFiles, drop_error};

/// The user that an installation makes for it.
pub(super) const NAME: &str = "ringwall";

/// Stands for that user where there is none: a number that neither distributions, containers nor systemd give out.
const FALLBACK_ID: u32 = 1_900_000_000;

/// A user and its group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) uid: u32,
    pub(super) gid: u32,
    name: Option<String>,
    home: Option<PathBuf>,
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => f.write_str(name),
            None => write!(f, "user {}", self.uid),
        }
    }
}

/// Who control is to be: the configured user, or its own. Where the kubeconfig names a program for credentials, which finds
/// its own in the home of a person, that person.
pub(super) fn choose(configured: Option<&User>, needs: &SourceFiles) -> Result<Account, ConfineError> {
    match configured {
        Some(User::Id(id)) => Ok(Account::numbered(*id)),
        Some(User::Name(name)) => Account::named(name).ok_or_else(|| ConfineError::NoUser(name.clone())),
        None => {
            let person = needs.owner().filter(|owner| *owner != 0 && needs.runs_programs);
            let own = || Account::named(NAME).unwrap_or_else(|| Account::numbered(FALLBACK_ID));
            Ok(person.map_or_else(own, Account::numbered))
        }
    }
}

impl Account {
    fn of(user: nix::unistd::User) -> Self {
        Self {
            uid: user.uid.as_raw(),
            gid: user.gid.as_raw(),
            name: Some(user.name),
            home: Some(user.dir),
        }
    }

    fn named(name: &str) -> Option<Self> {
        nix::unistd::User::from_name(name).ok().flatten().map(Self::of)
    }

    fn numbered(id: u32) -> Self {
        let known = nix::unistd::User::from_uid(id.into()).ok().flatten();
        known.map_or(
            Self {
                uid: id,
                gid: id,
                name: None,
                home: None,
            },
            Self::of,
        )
    }

    pub(super) fn is_root(&self) -> bool {
        self.uid == 0
    }

    /// The first that this user cannot read of what is needed, or of its own folders, for want of a way there; with what the
    /// kernel says.
    ///
    /// Tried out by a thread that is this user, without capabilities: who owns what is not all that counts.
    pub(super) fn cannot_read(
        &self,
        needs: &SourceFiles,
        folders: &[PathBuf; 2],
    ) -> Result<Option<(PathBuf, String)>, ConfineError> {
        let attempt = || {
            self.switch_to()?;
            super::drop_other_capabilities(CapabilitySet::empty())?;
            let folder = folders
                .iter()
                .find_map(|folder| Some((folder.clone(), fs::read_dir(folder).err()?)));
            let denied = folder.or_else(|| needs.read_all().err());
            Ok(denied.map(|(path, error)| (path, error.to_string())))
        };
        let lost = || ConfineError::DropPrivilege {
            what: "the user root",
            reason: "no thread can try it out".to_owned(),
        };
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new()
                .name("rw-rights".to_owned())
                .spawn_scoped(scope, attempt);
            thread.map_err(|_| lost())?.join().map_err(|_| lost())?
        })
    }

    /// Makes the calling thread this user's. Other threads stay what they are.
    pub(super) fn switch_to(&self) -> Result<(), ConfineError> {
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        if self.is_root() && rustix::process::geteuid().is_root() {
            return Ok(());
        }
        rustix::thread::set_thread_groups(&[]).map_err(drop_error("groups"))?;
        rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(drop_error("the group root"))?;
        rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(drop_error("the user root"))
    }

    /// Where programs that make credentials look for theirs.
    pub(super) fn home(&self) -> Option<&Path> {
        self.home.as_deref()
    }
}
