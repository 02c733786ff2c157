//! The root secret: read from its file or made anew, and wiped when it goes.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;
use rustix::process::geteuid;
use zeroize::Zeroizing;

use crate::codec::{parse_hex, write_hex};
use crate::limits::SECRET_FILE_BYTES;
use crate::mac::hkdf_extract;

/// See [`Secret::mark`].
pub type Mark = [u8; 32];

/// 32 secret bytes. No `Debug`, no `Clone`; in one place in memory, however it is moved, and wiped on drop.
pub struct Secret(Box<Zeroizing<[u8; 32]>>);

impl Secret {
    /// Takes the bytes over; all one byte is no secret.
    pub fn new(bytes: [u8; 32]) -> Result<Secret, String> {
        if bytes.iter().all(|byte| *byte == bytes[0]) {
            return Err("the secret is one byte repeated".into());
        }
        Ok(Secret(Box::new(Zeroizing::new(bytes))))
    }

    /// A new random one.
    pub fn generate() -> Result<Secret, String> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).map_err(|error| format!("no randomness for a secret: {error}"))?;
        Secret::new(bytes)
    }

    /// Reads a file that nobody else can read: 64 hex digits, and on a second line those of the secret before, if that is
    /// still to be known. The first signs, all of them verify.
    pub fn read_all(path: &Path) -> Result<Vec<Secret>, String> {
        let text = read_private(path, SECRET_FILE_BYTES)?;
        Secret::parse(&text).map_err(|error| format!("{}: {error}", path.display()))
    }

    /// The same from its text; an error says what is wrong, never what is in it.
    pub fn parse(text: &[u8]) -> Result<Vec<Secret>, String> {
        const NONE: &str = "is not 64 hex digits, or two lines of them";
        let text = text.strip_suffix(b"\n").unwrap_or(text);
        let lines = text.split(|byte| *byte == b'\n').take(3).map(|line| {
            let digits = Zeroizing::new(line.to_ascii_lowercase());
            Secret::new(parse_hex(&digits).ok_or(NONE)?)
        });
        let secrets = lines.collect::<Result<Vec<_>, String>>()?;
        if secrets.len() > 2 { Err(NONE.into()) } else { Ok(secrets) }
    }

    /// What processes of a deployment sign with at rest: `HKDF-Extract(salt "cofferdam/1 envelope", R)`.
    pub fn envelope(&self) -> Secret {
        Secret(Box::new(hkdf_extract(b"cofferdam/1 envelope", self.expose())))
    }

    /// What tells it from others, and nothing of it.
    pub fn mark(&self) -> Mark {
        *hkdf_extract(b"cofferdam/1 mark", self.expose())
    }

    /// For key derivation and for the bootstrap bundle alone.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

/// Reads a file that is ours and that nobody else can read or write. Where a service manager keeps what it hands to this
/// service (`CREDENTIALS_DIRECTORY`), it may be root's, and its group may read it: systemd lets us in by an access list, whose
/// mask is shown in the place of the group. A symbolic link is followed, as mounted secrets are links; its target is judged.
pub fn read_private(path: &Path, most_bytes: usize) -> Result<Zeroizing<Vec<u8>>, String> {
    let at = path.display();
    let unreadable = |error| format!("{at}: cannot be read: {error}");
    // Opening a FIFO would wait for its writer.
    let not_waiting = OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = File::options().read(true).custom_flags(not_waiting.bits().cast_signed()).open(path);
    let file = file.map_err(unreadable)?;
    let about = file.metadata().map_err(unreadable)?;
    let (kind, mode, own) = (about.file_type(), about.mode() & 0o777, geteuid().as_raw());
    let given = std::env::var_os(CREDENTIALS).and_then(|folder| Path::new(&folder).canonicalize().ok());
    let is_given = given.is_some_and(|folder| path.canonicalize().is_ok_and(|path| path.starts_with(folder)));
    let (owners, closed) = if is_given { ([own, 0], 0o037) } else { ([own; 2], 0o077) };
    if !kind.is_file() {
        let what = match kind {
            _ if kind.is_dir() => "a directory",
            _ if kind.is_fifo() => "a FIFO",
            _ => "a device",
        };
        return Err(format!("{at}: is {what}, not a regular file"));
    }
    if !owners.contains(&about.uid()) {
        return Err(format!("{at}: belongs to user {}, not to {own}, who runs this: chown it", about.uid()));
    }
    if mode & closed != 0 {
        return Err(format!("{at}: others can read or write it (mode {mode:03o}): chmod 600 it"));
    }
    // It never grows, which would leave its bytes where they were.
    let mut text = Zeroizing::new(Vec::with_capacity(most_bytes + 1));
    file.take(most_bytes as u64 + 1).read_to_end(&mut text).map_err(unreadable)?;
    if text.len() > most_bytes {
        return Err(format!("{at}: is longer than {most_bytes} bytes"));
    }
    Ok(text)
}

/// Names the folder of the files that a service manager hands to this service.
const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";

/// Writes a new secret, as hex, to a new file of mode 0600, or to standard output.
pub fn keygen(output: Option<&Path>) -> Result<(), String> {
    let secret = Secret::generate()?;
    let mut text = Zeroizing::new(String::with_capacity(65));
    write_hex(&mut *text, secret.expose()).map_err(|error| error.to_string())?;
    text.push('\n');
    let Some(path) = output else {
        let written = std::io::stdout().write_all(text.as_bytes());
        return written.map_err(|error| format!("standard output: {error}"));
    };
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|error| format!("{}: {error}", path.display()))
}
