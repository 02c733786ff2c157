//! Can a program be started? As far as that can be seen without doing it.

use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::child::{User, path};
use crate::config::Program;

/// What is wrong with its command or its working directory.
///
/// # Errors
/// The reason, with the path that it is about.
pub fn vet(program: &Program, user: User) -> Result<(), String> {
    if let Some(dir) = &program.dir
        && !Path::new(dir).is_dir()
    {
        return Err(format!("dir: {dir} is no directory"));
    }
    let name = &program.command[0];
    // Where the exec shim will look: in the directory and the PATH of the program.
    let path = match (name.contains('/'), &program.dir) {
        (true, Some(dir)) => Path::new(dir).join(name),
        (true, None) => name.into(),
        (false, _) => in_path(name, program)?,
    };
    executable(&path, user)?;
    let mut head = [0; 256];
    let length = std::fs::File::open(&path).and_then(|mut file| file.read(&mut head)).unwrap_or(0);
    let line = head[..length].split(|byte| *byte == b'\n').next().unwrap_or_default();
    let Some(line) = line.strip_prefix(b"#!") else { return Ok(()) };
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

/// Where a name without a slash is found.
fn in_path(name: &str, program: &Program) -> Result<PathBuf, String> {
    let path = path(program);
    let places = std::env::split_paths(&path).map(|place| place.join(name));
    let found = places.into_iter().find(|place| executable(place, None).is_ok());
    found.ok_or_else(|| format!("{name} is not in PATH ({})", path.display()))
}

fn executable(path: &Path, user: User) -> Result<(), String> {
    let shown = path.display();
    let meta = std::fs::metadata(path).map_err(|error| format!("{shown}: {error}"))?;
    let mode = meta.permissions().mode();
    let may = match user {
        Some((user, _)) if user == meta.uid() => mode & 0o100,
        Some((_, group)) if group == meta.gid() => mode & 0o010,
        Some(_) => mode & 0o001,
        None => mode & 0o111,
    };
    match (meta.is_file(), may) {
        (false, _) => Err(format!("{shown} is no file")),
        (true, 0) => {
            Err(format!("{shown} is not executable{}", if user.is_some() { " for its user" } else { "" }))
        }
        (true, _) => Ok(()),
    }
}
