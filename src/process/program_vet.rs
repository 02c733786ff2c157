//! Can a program be started? As far as that can be seen without doing it.

use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::config::Program;
use crate::execution::program::{User, path};

/// What is wrong with its command or its working directory.
///
/// # Errors
/// The reason, with the path that it is about.
pub fn vet(program: &Program, user: User) -> Result<(), String> {
    if let Some(dir) = &program.dir {
        if !Path::new(dir).is_dir() {
            return Err(format!("dir: {dir} is no directory"));
        }
        // As if it were looked for something in it.
        reachable(&Path::new(dir).join("it"), user).map_err(|why| format!("dir: {why}"))?;
    }
    let path = locate(program)?;
    executable(&path, user)?;
    let mut head = [0; 256];
    let length = std::fs::File::open(&path).and_then(|mut file| file.read(&mut head)).unwrap_or(0);
    let line = head[..length].split(|byte| *byte == b'\n').next().unwrap_or_default();
    let Some(line) = line.strip_prefix(b"#!") else { return Ok(()) };
    if line.ends_with(b"\r") {
        let what = "its first line ends with a carriage return, which is taken for a part of the name";
        return Err(format!("{}: {what}", path.display()));
    }
    let words = String::from_utf8_lossy(line);
    let mut words = words.split_ascii_whitespace();
    let interpreter =
        words.next().ok_or_else(|| format!("{}: its first line names no interpreter", path.display()))?;
    let of_it = |why: String| format!("{}: its interpreter: {why}", path.display());
    executable(Path::new(interpreter), user).map_err(of_it)?;
    match words.next().filter(|word| interpreter.ends_with("/env") && !word.starts_with('-')) {
        Some(word) => in_path(word, program).map(drop).map_err(of_it),
        None => Ok(()),
    }
}

/// Where the exec shim will find it: in the directory or the PATH of the program.
///
/// # Errors
/// A name without a slash is nowhere in that PATH.
pub fn locate(program: &Program) -> Result<PathBuf, String> {
    let name = &program.command[0];
    match (name.contains('/'), &program.dir) {
        (true, Some(dir)) => Ok(Path::new(dir).join(name)),
        (true, None) => Ok(name.into()),
        (false, _) => in_path(name, program),
    }
}

/// Where a name without a slash is found.
fn in_path(name: &str, program: &Program) -> Result<PathBuf, String> {
    let path = path(program);
    let dir = program.dir.as_deref().unwrap_or_default();
    let places = std::env::split_paths(&path).map(|place| Path::new(dir).join(place).join(name));
    let found = places.into_iter().find(|place| executable(place, None).is_ok());
    found.ok_or_else(|| format!("{name} is not in PATH ({})", path.display()))
}

fn executable(path: &Path, user: User) -> Result<(), String> {
    let shown = path.display();
    let meta = std::fs::metadata(path).map_err(|error| format!("{shown}: {error}"))?;
    if !meta.is_file() {
        return Err(format!("{shown} is no file"));
    }
    if !may_execute(&meta, user) {
        return Err(format!(
            "{shown} is not executable{}",
            if user.is_some() { " for its user" } else { "" }
        ));
    }
    reachable(path, user)
}

/// Another user may not enter every folder that we may.
fn reachable(path: &Path, user: User) -> Result<(), String> {
    let is_closed = |folder: &&Path| std::fs::metadata(folder).is_ok_and(|meta| !may_execute(&meta, user));
    let closed = path.ancestors().skip(1).filter(|_| user.is_some()).find(is_closed);
    closed.map_or(Ok(()), |folder| {
        Err(format!("{}: its user may not enter {}", path.display(), folder.display()))
    })
}

fn may_execute(meta: &std::fs::Metadata, user: User) -> bool {
    let bits = match user {
        Some((0, _)) | None => 0o111,
        Some((user, _)) if user == meta.uid() => 0o100,
        Some((_, group)) if group == meta.gid() => 0o010,
        Some(_) => 0o001,
    };
    meta.permissions().mode() & bits != 0
}
