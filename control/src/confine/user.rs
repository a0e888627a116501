//! Who the control process is.

use std::{
    fmt, fs, io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
};

use ringwall_config::User;
use rustix::{
    fs::{Gid, Uid},
    thread::CapabilitySet,
};

use super::{ConfineError, Needs, give_up, words};

/// The user that an installation makes for it.
pub(super) const NAME: &str = "ringwall";

/// Stands for that user where there is none: a number that neither distributions, containers nor systemd give out.
const WITHOUT_NAME: u32 = 1_900_000_000;

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

/// The users that are tried, in their order.
pub(super) struct Choice<'a> {
    configured: Option<&'a User>,
    needs: &'a Needs,
}

impl<'a> Choice<'a> {
    pub(super) fn new(configured: Option<&'a User>, needs: &'a Needs) -> Self {
        Self { configured, needs }
    }

    /// The configured one alone; else its own user, who owns what it reads, and root. Programs that make credentials keep
    /// theirs where their user does, so that the owner goes first.
    pub(super) fn accounts(&self) -> Result<Vec<Account>, ConfineError> {
        if let Some(user) = self.configured {
            return Ok(vec![configured(user)?]);
        }
        let own = Account::named(NAME).unwrap_or_else(|| Account::numbered(WITHOUT_NAME));
        let owner = self.needs.owner().map(Account::numbered);
        let mut accounts: Vec<Account> = if self.needs.runs_programs {
            owner.into_iter().chain([own, Account::numbered(0)]).collect()
        } else {
            [own]
                .into_iter()
                .chain(owner)
                .chain([Account::numbered(0)])
                .collect()
        };
        // Owned by root, or by the first: once is enough.
        let mut seen = Vec::new();
        accounts.retain(|account| {
            !seen.contains(&account.uid) && {
                seen.push(account.uid);
                true
            }
        });
        Ok(accounts)
    }
}

fn configured(user: &User) -> Result<Account, ConfineError> {
    match user {
        User::Id(id) => Ok(Account::numbered(*id)),
        User::Name(name) => Account::named(name).ok_or_else(|| ConfineError::NoUser(words(user))),
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

    /// Whether this user can read what is needed and write its folders; else what it cannot use, and why.
    ///
    /// Tried out by a thread that is this user, without capabilities: who owns what is not all that counts.
    pub(super) fn can_use(&self, needs: &Needs, folders: &[PathBuf; 2]) -> Result<(), (PathBuf, String)> {
        let attempt = || {
            if let Err(error) = self
                .become_it()
                .and_then(|()| super::keep_capabilities(CapabilitySet::empty()))
            {
                return Err((PathBuf::from("this user's rights"), error.to_string()));
            }
            let unusable = |path: &Path| {
                let path = path.to_owned();
                move |error: io::Error| (path, error.to_string())
            };
            for folder in folders {
                let probe = folder.join(".probe");
                fs::write(&probe, "")
                    .and_then(|()| fs::remove_file(&probe))
                    .map_err(unusable(folder))?;
            }
            needs
                .read_all()
                .map_err(|(path, error)| (path, error.to_string()))
        };
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new()
                .name("rw-rights".to_owned())
                .spawn_scoped(scope, attempt);
            match thread.map(std::thread::ScopedJoinHandle::join) {
                Ok(Ok(outcome)) => outcome,
                Ok(Err(_)) | Err(_) => Err((
                    PathBuf::from("this user's rights"),
                    "cannot be tried out".to_owned(),
                )),
            }
        })
    }

    /// Makes the calling thread this user's. Other threads stay what they are.
    pub(super) fn become_it(&self) -> Result<(), ConfineError> {
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        if self.is_root() && rustix::process::geteuid().is_root() {
            return Ok(());
        }
        rustix::thread::set_thread_groups(&[]).map_err(give_up("groups"))?;
        rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(give_up("the group root"))?;
        rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(give_up("the user root"))
    }

    /// Whether a folder is this user's. A link in its place would hand over what it leads to.
    pub(super) fn owns(&self, folder: &Path) -> io::Result<bool> {
        let metadata = fs::symlink_metadata(folder)?;
        if metadata.is_dir() {
            Ok((metadata.uid(), metadata.gid()) == (self.uid, self.gid))
        } else {
            Err(io::ErrorKind::NotADirectory.into())
        }
    }

    /// Makes a file or folder this user's.
    pub(super) fn take(&self, path: &Path) -> io::Result<()> {
        std::os::unix::fs::lchown(path, Some(self.uid), Some(self.gid))
    }

    /// Where programs that make credentials look for theirs.
    pub(super) fn home(&self) -> Option<&Path> {
        self.home.as_deref()
    }
}

/// Makes a folder and its parents, unless it is there.
pub(super) fn make_folder(folder: &Path) -> Result<(), ConfineError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(|error| ConfineError::HandOver {
        user: "the process".to_owned(),
        path: folder.to_owned(),
        reason: error.to_string(),
    })
}
