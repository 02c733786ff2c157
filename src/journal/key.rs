//! The keys that frames are signed with: of the deployment's root secret, or of a file of the directory.

use std::fs::File;
use std::path::Path;

use zeroize::Zeroizing;

use crate::config::secret::{Secret, keygen};
use crate::mac::{MacKey, hkdf_expand};

/// The directory's own secret, where the deployment has none that lasts.
const KEY_FILE: &str = "key";
const NEW_FILE: &str = "key.new";

/// A key of each of these secrets, see [`Secret::envelope`]: the first signs, all of them verify. Of none: the directory's own,
/// which is made if it is not there.
///
/// # Errors
/// The directory's own cannot be read or made.
pub fn keys(dir: &Path, envelopes: &[Secret]) -> Result<Vec<MacKey>, String> {
    let (path, new) = (dir.join(KEY_FILE), dir.join(NEW_FILE));
    if envelopes.is_empty() && !path.exists() {
        // One that a crash or a full disk has left half made.
        let _ = std::fs::remove_file(&new);
        keygen(Some(&new))?;
        let synced = File::open(&new).and_then(|file| file.sync_all());
        let named = synced.and_then(|()| std::fs::rename(&new, &path));
        let synced = named.and_then(|()| File::open(dir)?.sync_all());
        synced.map_err(|error| format!("{}: {error}", path.display()))?;
    }
    known_keys(dir, envelopes)
}

/// The same of a directory that is only looked at: nothing is made.
///
/// # Errors
/// There is none, or it cannot be read.
pub fn known_keys(dir: &Path, envelopes: &[Secret]) -> Result<Vec<MacKey>, String> {
    if !envelopes.is_empty() {
        return Ok(envelopes.iter().map(key).collect());
    }
    let path = dir.join(KEY_FILE);
    if !path.exists() {
        return Err(format!("{}: has no key of its own: its service's secret file is needed", dir.display()));
    }
    Ok(Secret::read_all(&path)?.iter().map(|root| key(&root.envelope())).collect())
}

/// `HKDF-Expand(HKDF-Extract("cofferdam/1 envelope", R), "journal", 32)`
fn key(envelope: &Secret) -> MacKey {
    let key: Zeroizing<[u8; 32]> = hkdf_expand(envelope.expose(), &[b"journal"]);
    MacKey::new(&*key)
}
