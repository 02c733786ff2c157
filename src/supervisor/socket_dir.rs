//! The private directory of the inner listener: mode 0700, a random name, removed with its owner.

use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::entropy::Entropy;
use crate::job::write_hex;

const PREFIX: &str = "cofferdam-";

/// Removed when dropped.
#[derive(Debug)]
pub struct SocketDir {
    path: PathBuf,
}

impl SocketDir {
    /// In the first place that can be written; leftovers of processes that are gone are swept there.
    ///
    /// # Errors
    /// Names each place that was tried.
    pub fn make() -> Result<SocketDir, String> {
        let from_environment =
            ["RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR"].into_iter().filter_map(std::env::var_os);
        let fixed = ["/run", "/dev/shm"].into_iter().map(Into::into);
        let places = from_environment.chain(fixed).map(PathBuf::from).chain([std::env::temp_dir()]);
        let mut name = format!("{PREFIX}{}-", std::process::id());
        let random: [u8; 8] = Entropy::system().bytes();
        let _ = write_hex(&mut name, &random);
        let mut tried = Vec::new();
        for place in places {
            let path = place.join(&name);
            match std::fs::DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => {
                    sweep(&place);
                    return Ok(SocketDir { path });
                }
                Err(error) => tried.push(format!("{}: {error}", place.display())),
            }
        }
        Err(format!("no place for the private socket: {}", tried.join("; ")))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// Removes directories of ours whose process is gone.
fn sweep(place: &Path) {
    let own = rustix::process::geteuid().as_raw();
    for entry in std::fs::read_dir(place).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid =
            name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split('-').next()?.parse::<u32>().ok());
        let is_ours = entry.metadata().is_ok_and(|meta| meta.is_dir() && meta.uid() == own);
        let is_gone = pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists());
        if is_gone && is_ours && !is_served(&entry.path()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// True if somebody listens in there: its process may live in another pid namespace, where we cannot see it.
fn is_served(directory: &Path) -> bool {
    let sockets = std::fs::read_dir(directory).into_iter().flatten().flatten();
    sockets.into_iter().any(|socket| std::os::unix::net::UnixStream::connect(socket.path()).is_ok())
}
