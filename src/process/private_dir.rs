//! The private directory of the inner listener: mode 0700, a random name, removed with its owner.
//!
//! Its owner holds a lock on it, which ends with the owner however that ends: so a leftover is told from a directory
//! in use without a word about process numbers, which come again and differ between pid namespaces.

use std::fs::File;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};

use crate::codec::hex;
use crate::entropy::Entropy;

/// What its name begins with.
pub const PREFIX: &str = "cofferdam-";

/// Removed when dropped.
pub struct PrivateDir {
    path: PathBuf,
    _lock: File,
}

impl PrivateDir {
    /// In the first place that can be written; leftovers of processes that are gone are swept there.
    pub fn make() -> Result<PrivateDir, String> {
        let mut tried = Vec::new();
        for place in PrivateDir::places() {
            match PrivateDir::make_in(&place) {
                Ok(made) => return Ok(made),
                Err(error) => tried.push(format!("{}: {error}", place.display())),
            }
        }
        Err(format!("no place for the private socket: {}", tried.join("; ")))
    }

    /// Where it may be: in the first of these that can be written.
    pub fn places() -> Vec<PathBuf> {
        let from_environment =
            ["RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR"].into_iter().filter_map(std::env::var_os);
        let fixed = ["/run", "/dev/shm"].into_iter().map(Into::into);
        from_environment.chain(fixed).map(PathBuf::from).chain([std::env::temp_dir()]).collect()
    }

    /// The one where it would be made now, as far as that can be seen without making it.
    pub fn likely_place() -> Option<PathBuf> {
        let may_write = |place: &PathBuf| access(place, Access::WRITE_OK | Access::EXEC_OK).is_ok();
        PrivateDir::places().into_iter().find(may_write)
    }

    fn make_in(place: &Path) -> std::io::Result<PrivateDir> {
        loop {
            let random = hex(&Entropy::system().bytes::<8>());
            let path = place.join(format!("{PREFIX}{}-{random}", std::process::id()));
            std::fs::DirBuilder::new().mode(0o700).create(&path)?;
            // Another service that starts now may take it for a leftover until it is locked; then there is another name.
            if let Some(lock) = lock(&path) {
                sweep(place);
                return Ok(PrivateDir { path, _lock: lock });
            }
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for PrivateDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// A lock on a directory that nobody else has, and that is still where it was.
fn lock(path: &Path) -> Option<File> {
    let directory = File::open(path).ok()?;
    directory.try_lock().ok()?;
    let is_same = std::fs::metadata(path).ok()?.ino() == directory.metadata().ok()?.ino();
    is_same.then_some(directory)
}

/// Removes directories of ours whose owner is gone.
fn sweep(place: &Path) {
    let own = rustix::process::geteuid().as_raw();
    for entry in std::fs::read_dir(place).into_iter().flatten().flatten() {
        let is_named = entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX));
        let is_ours = is_named && entry.metadata().is_ok_and(|meta| meta.is_dir() && meta.uid() == own);
        if is_ours && let Some(_held_until_it_is_gone) = lock(&entry.path()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Services that start in one moment, each sweeping what the others have made and not locked yet.
    #[test]
    fn a_directory_that_is_just_made_is_never_taken_for_a_leftover() {
        let place = std::env::temp_dir().join(format!("private-dirs-{}", std::process::id()));
        std::fs::create_dir(&place).expect("a place of the test's own");
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        let made = PrivateDir::make_in(&place).expect("made");
                        assert!(made.path().is_dir(), "removed while its owner has it");
                        std::thread::yield_now();
                        assert!(made.path().is_dir(), "removed while its owner has it");
                    }
                });
            }
        });
        assert!(std::fs::remove_dir(&place).is_ok(), "every owner has removed what it had");
    }
}
