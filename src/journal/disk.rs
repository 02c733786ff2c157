//! [`Disk`]: the one directory that a journal is kept in; [`Files`], which is a real one.
//!
//! What a disk promises (fsync(2), rename(2)): what was written is there after a crash once it was synced, and not
//! before; a name is there once its directory was synced. A sync that failed says nothing about what was written before it.

use std::fmt;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

/// Why something could not be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// There is no room now: nothing is lost, and it may be tried again.
    NoRoom(String),
    /// Nothing is known of what was written: it must not go on.
    Broken(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Failure::NoRoom(why) | Failure::Broken(why)) = self;
        f.write_str(why)
    }
}

/// Unless it is known to be about room.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Broken(error.to_string())
    }
}

/// Syncs a file, wherever it is called: what was written before it was made is on the disk once it has returned.
pub type Sync = Box<dyn FnOnce() -> io::Result<()> + Send>;

/// See the module. Names are those of files in the directory.
pub trait Disk: Send {
    /// All names.
    fn list(&mut self) -> io::Result<Vec<String>>;
    /// The whole of a file.
    fn read(&mut self, name: &str) -> io::Result<Vec<u8>>;
    /// Makes a file that is not there yet, with so much space taken ahead; its bytes are 0.
    fn make(&mut self, name: &str, bytes: u64) -> io::Result<()>;
    /// Writes to a file.
    fn write(&mut self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// How a file is synced.
    ///
    /// # Errors
    /// It is not there.
    fn to_sync(&mut self, name: &str) -> io::Result<Sync>;
    /// What was written to a file is on the disk.
    fn sync(&mut self, name: &str) -> io::Result<()> {
        self.to_sync(name)?()
    }
    /// Gives a file another name, which another file may have had.
    fn rename(&mut self, from: &str, to: &str) -> io::Result<()>;
    fn remove(&mut self, name: &str) -> io::Result<()>;
    /// What was done to names is on the disk.
    fn sync_names(&mut self) -> io::Result<()>;
}

/// How long a predecessor may take to be gone.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// A directory of this host, which this process alone has.
pub struct Files {
    dir: PathBuf,
    names: File,
    /// The file that was used last.
    open: Option<(String, Arc<File>)>,
    /// `None`: it is only looked at.
    _lock: Option<File>,
}

impl Files {
    /// Makes the directory if it is not there. Only one process has it at a time.
    ///
    /// # Errors
    /// It is not ours alone, or cannot be written to, or somebody has it.
    pub fn open(dir: &Path) -> Result<Files, String> {
        let failed = |error: io::Error| format!("{}: {error}", dir.display());
        match DirBuilder::new().mode(0o700).create(dir) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(failed(error)),
            Ok(()) => {
                let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty());
                File::open(parent.unwrap_or(Path::new(".")))
                    .and_then(|dir| dir.sync_all())
                    .map_err(failed)?;
            }
            Err(_) => {}
        }
        let files = Files::look(dir)?;
        let lock =
            OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(dir.join("lock"));
        let lock = lock.map_err(failed)?;
        let mut waited = Duration::ZERO;
        while lock.try_lock().is_err() {
            const STEP: Duration = Duration::from_millis(10);
            if waited >= LOCK_PATIENCE {
                return Err(format!("{}: another process has it", dir.display()));
            }
            std::thread::sleep(STEP);
            waited += STEP;
        }
        Ok(Files { _lock: Some(lock), ..files })
    }

    /// To look at it only; somebody else may have it.
    ///
    /// # Errors
    /// It is no directory of ours.
    pub fn look(dir: &Path) -> Result<Files, String> {
        vet(dir)?;
        let names = File::open(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
        Ok(Files { dir: dir.to_owned(), names, open: None, _lock: None })
    }

    /// Copies what stands before an offset of a file, in the order of names, to a directory that is not there yet.
    ///
    /// # Errors
    /// It cannot be read or made.
    pub fn copy_until(&mut self, copy: &Path, last: &str, offset: usize) -> io::Result<()> {
        DirBuilder::new().mode(0o700).create(copy)?;
        let is_wanted = |name: &String| name.ends_with(".log") && name.as_str() <= last || name == "key";
        for name in self.list()?.into_iter().filter(is_wanted) {
            let mut bytes = self.read(&name)?;
            if name == last {
                bytes.truncate(offset);
            }
            let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(copy.join(name))?;
            file.write_all_at(&bytes, 0)?;
            file.sync_all()?;
        }
        File::open(copy)?.sync_all()
    }

    fn file(&mut self, name: &str) -> io::Result<Arc<File>> {
        if let Some((_, file)) = self.open.as_ref().filter(|(open, _)| open == name) {
            return Ok(file.clone());
        }
        let file = Arc::new(OpenOptions::new().write(true).open(self.dir.join(name))?);
        self.open = Some((name.to_owned(), file.clone()));
        Ok(file)
    }
}

fn zero(file: &File, bytes: u64) -> io::Result<()> {
    static ZEROS: [u8; 1 << 16] = [0; 1 << 16];
    (0..bytes).step_by(ZEROS.len()).try_for_each(|at| {
        let rest = ZEROS.len().min((bytes - at) as usize);
        file.write_all_at(&ZEROS[..rest], at)
    })
}

/// Refuses a directory that is not ours, or that others may write to.
pub(super) fn vet(dir: &Path) -> Result<(), String> {
    let at = dir.display();
    let about = dir.symlink_metadata().map_err(|error| format!("{at}: {error}"))?;
    let (own, mode) = (rustix::process::geteuid().as_raw(), about.mode() & 0o777);
    if !about.is_dir() {
        let is_link = about.is_symlink();
        let what = if is_link { "is a symbolic link: name what it leads to" } else { "is not a directory" };
        return Err(format!("{at}: {what}"));
    }
    if about.uid() != own {
        return Err(format!("{at}: belongs to user {}, not to {own}, who runs this: chown it", about.uid()));
    }
    if mode & 0o022 != 0 {
        return Err(format!("{at}: others can write to it (mode {mode:03o}): chmod 700 it"));
    }
    Ok(())
}

impl Disk for Files {
    fn list(&mut self) -> io::Result<Vec<String>> {
        let names = std::fs::read_dir(&self.dir)?.map(|entry| Ok(entry?.file_name().into_string().ok()));
        Ok(names.collect::<io::Result<Vec<_>>>()?.into_iter().flatten().collect())
    }

    fn read(&mut self, name: &str) -> io::Result<Vec<u8>> {
        std::fs::read(self.dir.join(name))
    }

    fn make(&mut self, name: &str, bytes: u64) -> io::Result<()> {
        let path = self.dir.join(name);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        let taken = match fallocate(&file, FallocateFlags::empty(), 0, bytes) {
            // Not every file system can: then zeros take it.
            Err(Errno::OPNOTSUPP) => zero(&file, bytes),
            taken => taken.map_err(Into::into),
        };
        taken.and_then(|()| file.sync_all()).inspect_err(|_| _ = std::fs::remove_file(&path))
    }

    fn write(&mut self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file(name)?.write_all_at(bytes, offset)
    }

    fn to_sync(&mut self, name: &str) -> io::Result<Sync> {
        let file = self.file(name)?;
        Ok(Box::new(move || file.sync_data()))
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.open = None;
        std::fs::rename(self.dir.join(from), self.dir.join(to))
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.dir.join(name))
    }

    fn sync_names(&mut self) -> io::Result<()> {
        self.names.sync_all()
    }
}
