//! A disk that does what disks do: of what was not synced a crash keeps any part, in any order, torn at any byte; syncs fail, and
//! say yes the next time; it fills up; it flips bits.

#![allow(dead_code, reason = "each test that includes this file uses its own part of it")]

use std::collections::BTreeMap;
use std::io::{Error, ErrorKind, Result};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use cofferdam::entropy::Entropy;
use cofferdam::journal::Disk;
use cofferdam::journal::disk::Sync;

/// One disk; all clones are the same.
#[derive(Clone, Default)]
pub struct SimDisk(Arc<(Mutex<Inner>, Condvar)>);

#[derive(Default)]
struct Inner {
    files: BTreeMap<u64, SimFile>,
    last_file: u64,
    /// As a crash would leave them, and what was done to them since.
    names: BTreeMap<String, u64>,
    renames: Vec<Naming>,
    /// Operations until the power fails.
    power: Option<u64>,
    /// Syncs until one fails: what was written before it is never on the disk.
    failing_sync: Option<u64>,
    /// Bytes that files may have.
    capacity: Option<u64>,
    /// Syncs wait.
    is_held: bool,
    pub operations: u64,
    pub syncs: u64,
}

#[derive(Clone, Default)]
struct SimFile {
    synced: Vec<u8>,
    pending: Vec<(usize, Vec<u8>)>,
    /// Its sync has failed: what the kernel shows is not what the disk has.
    shown: Option<Vec<u8>>,
}

#[derive(Clone)]
enum Naming {
    Make(String, u64),
    Rename(String, String),
    Remove(String),
}

impl SimFile {
    /// Bytes of what is seen.
    fn size(&self) -> usize {
        let shown = self.shown.as_ref().unwrap_or(&self.synced).len();
        self.pending.iter().map(|(offset, written)| offset + written.len()).fold(shown, usize::max)
    }

    fn seen(&self) -> Vec<u8> {
        let mut bytes = self.shown.clone().unwrap_or_else(|| self.synced.clone());
        for (offset, written) in &self.pending {
            put(&mut bytes, *offset, written);
        }
        bytes
    }
}

fn put(bytes: &mut Vec<u8>, offset: usize, written: &[u8]) {
    let end = offset + written.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[offset..end].copy_from_slice(written);
}

fn apply(names: &mut BTreeMap<String, u64>, naming: &Naming) {
    match naming {
        Naming::Make(name, file) => drop(names.insert(name.clone(), *file)),
        Naming::Rename(from, to) => {
            if let Some(file) = names.remove(from) {
                names.insert(to.clone(), file);
            }
        }
        Naming::Remove(name) => drop(names.remove(name)),
    }
}

impl Inner {
    fn seen(&self) -> BTreeMap<String, u64> {
        let mut names = self.names.clone();
        self.renames.iter().for_each(|naming| apply(&mut names, naming));
        names
    }

    fn number(&self, name: &str) -> Result<u64> {
        self.seen().get(name).copied().ok_or_else(|| ErrorKind::NotFound.into())
    }

    fn file(&mut self, name: &str) -> Result<&mut SimFile> {
        let number = self.number(name)?;
        Ok(self.files.entry(number).or_default())
    }

    fn used(&self) -> u64 {
        self.seen().values().map(|file| self.files[file].size() as u64).sum()
    }

    /// The power may have failed.
    fn operate(&mut self) -> Result<()> {
        self.operations += 1;
        match &mut self.power {
            Some(0) => Err(Error::other("the power has failed")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl SimDisk {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.0.lock().expect("no test panics here")
    }

    /// The power fails after so many operations, in the middle of the next one.
    pub fn fail_power_after(&self, operations: u64) {
        self.lock().power = Some(operations);
    }

    /// True if it has failed.
    pub fn is_off(&self) -> bool {
        self.lock().power == Some(0)
    }

    pub fn fail_sync_after(&self, syncs: u64) {
        self.lock().failing_sync = Some(syncs);
    }

    /// How many bytes all files may have; `None`: any number.
    pub fn set_capacity(&self, capacity: Option<u64>) {
        self.lock().capacity = capacity;
    }

    /// It has power and room, and its syncs hold.
    pub fn heal(&self) {
        let mut inner = self.lock();
        (inner.power, inner.failing_sync, inner.capacity) = (None, None, None);
    }

    pub fn used(&self) -> u64 {
        self.lock().used()
    }

    pub fn syncs(&self) -> u64 {
        self.lock().syncs
    }

    /// From now on syncs wait, or none does any more.
    pub fn hold_syncs(&self, is_held: bool) {
        self.lock().is_held = is_held;
        self.0.1.notify_all();
    }

    fn sync_now(&self, name: &str) -> Result<()> {
        let mut inner = self.lock();
        while inner.is_held {
            inner = self.0.1.wait(inner).expect("no test panics here");
        }
        inner.operate()?;
        inner.syncs += 1;
        if let Some(left) = &mut inner.failing_sync {
            if *left == 0 {
                inner.failing_sync = None;
                let file = inner.file(name)?;
                file.shown = Some(file.seen());
                file.pending.clear();
                return Err(Error::other("an input/output error"));
            }
            *left -= 1;
        }
        let file = inner.file(name)?;
        for (offset, written) in std::mem::take(&mut file.pending) {
            put(&mut file.synced, offset, &written);
            if let Some(shown) = &mut file.shown {
                put(shown, offset, &written);
            }
        }
        Ok(())
    }

    /// What is left after a crash: another disk.
    pub fn crash(&self, entropy: &mut Entropy) -> SimDisk {
        let inner = self.lock();
        let mut flip = |most: u64| entropy.up_to(most);
        let mut names = inner.names.clone();
        for naming in &inner.renames {
            // Each may have reached the disk or not; what it builds on may not have.
            if flip(1) == 1 {
                apply(&mut names, naming);
            }
        }
        let mut files = BTreeMap::new();
        for (number, file) in &inner.files {
            let mut bytes = file.synced.clone();
            for (offset, written) in &file.pending {
                match flip(3) {
                    0 => {}
                    1 => put(&mut bytes, *offset, written),
                    // Up to any byte.
                    2 => {
                        let end = flip(written.len() as u64) as usize;
                        put(&mut bytes, *offset, &written[..end]);
                    }
                    // Some of its sectors.
                    _ => {
                        for (index, sector) in written.chunks(64).enumerate() {
                            if flip(1) == 1 {
                                put(&mut bytes, offset + 64 * index, sector);
                            }
                        }
                    }
                }
            }
            files.insert(*number, SimFile { synced: bytes, ..SimFile::default() });
        }
        let last_file = inner.last_file;
        let left = Inner { files, last_file, names, ..Inner::default() };
        SimDisk(Arc::new((Mutex::new(left), Condvar::new())))
    }

    /// What a process finds that begins after another one was killed: all that was written.
    pub fn kill(&self) -> SimDisk {
        let inner = self.lock();
        let names = inner.seen();
        let seen = |file: &SimFile| SimFile { synced: file.seen(), ..SimFile::default() };
        let files = inner.files.iter().map(|(number, file)| (*number, seen(file))).collect();
        let left = Inner { files, last_file: inner.last_file, names, ..Inner::default() };
        SimDisk(Arc::new((Mutex::new(left), Condvar::new())))
    }

    /// The names and the bytes of all files, as they are seen.
    pub fn contents(&self) -> BTreeMap<String, Vec<u8>> {
        let inner = self.lock();
        inner.seen().into_iter().map(|(name, file)| (name, inner.files[&file].seen())).collect()
    }

    /// Puts other bytes in the place of a file's.
    pub fn replace(&self, name: &str, bytes: Vec<u8>) {
        let mut inner = self.lock();
        *inner.file(name).expect("it is there") = SimFile { synced: bytes, ..SimFile::default() };
    }

    /// Removes a file, whoever needs it.
    pub fn lose(&self, name: &str) {
        self.lock().names.remove(name);
    }
}

impl Disk for SimDisk {
    fn list(&mut self) -> Result<Vec<String>> {
        Ok(self.lock().seen().into_keys().collect())
    }

    fn read(&mut self, name: &str) -> Result<Vec<u8>> {
        Ok(self.lock().file(name)?.seen())
    }

    fn make(&mut self, name: &str, bytes: u64) -> Result<()> {
        let mut inner = self.lock();
        inner.operate()?;
        if inner.number(name).is_ok() {
            return Err(ErrorKind::AlreadyExists.into());
        }
        if inner.capacity.is_some_and(|capacity| inner.used() + bytes > capacity) {
            return Err(ErrorKind::StorageFull.into());
        }
        inner.last_file += 1;
        let number = inner.last_file;
        inner.files.insert(number, SimFile { synced: vec![0; bytes as usize], ..SimFile::default() });
        inner.renames.push(Naming::Make(name.into(), number));
        Ok(())
    }

    fn write(&mut self, name: &str, offset: u64, bytes: &[u8]) -> Result<()> {
        let mut inner = self.lock();
        let powered = inner.operate();
        let (capacity, used) = (inner.capacity, if inner.capacity.is_some() { inner.used() } else { 0 });
        let file = inner.file(name)?;
        let more = (offset + bytes.len() as u64).saturating_sub(file.size() as u64);
        if capacity.is_some_and(|capacity| more > 0 && used + more > capacity) {
            return Err(ErrorKind::StorageFull.into());
        }
        file.pending.push((offset as usize, bytes.to_vec()));
        powered
    }

    fn to_sync(&mut self, name: &str) -> Result<Sync> {
        let (disk, name) = (self.clone(), name.to_owned());
        Ok(Box::new(move || disk.sync_now(&name)))
    }

    fn rename(&mut self, from: &str, to: &str) -> Result<()> {
        let mut inner = self.lock();
        inner.operate()?;
        inner.number(from)?;
        inner.renames.push(Naming::Rename(from.into(), to.into()));
        Ok(())
    }

    fn remove(&mut self, name: &str) -> Result<()> {
        let mut inner = self.lock();
        inner.operate()?;
        inner.number(name)?;
        inner.renames.push(Naming::Remove(name.into()));
        Ok(())
    }

    fn sync_names(&mut self) -> Result<()> {
        let mut inner = self.lock();
        inner.operate()?;
        inner.names = inner.seen();
        inner.renames.clear();
        Ok(())
    }
}
