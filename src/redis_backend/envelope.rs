//! Jobs, outcomes and map entries as signed bytes. Pure.
//!
//! Who can write to Redis but lacks the secret cannot make anything run or answer. Each is `body || mac`, the mac over the
//! deployment's prefix, what it belongs to, and the body, each with its length before it; the key is
//! HKDF("cofferdam/1 envelope", R, kind, 32). Web processes are given its first half, never R; executors nothing of it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use sha2::{Digest, Sha256};

use super::sum::{Sum, Tag};
use crate::codec::{Cursor, Malformed, hex, put_bytes, put_length, put_text};
use crate::config::secret::Secret;
use crate::job::{Entries, Finished, JobId, JobSpec, JobStatus, MediaType, Payload, Progress};
use crate::job_codec::{self, put_result, put_spec};
use crate::mac::{MAC_BYTES, MacKey, hkdf_expand};
use crate::negative_controls::{Control, is_off};
use crate::ports::Idempotency;

/// What is not signed by a process of this deployment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forged;

impl From<Malformed> for Forged {
    fn from(_: Malformed) -> Forged {
        Forged
    }
}

/// Signs and verifies for one deployment.
pub struct Signer {
    prefix: String,
    /// Of each secret, of which there is one at least: the first signs, all of them verify.
    keys: Vec<Keys>,
    /// The server was found to know one of them.
    pub is_ours: AtomicBool,
}

/// What follows from one secret.
pub(super) struct Keys {
    /// What processes that have it know each other by.
    pub id: Tag,
    /// One of each [`Kind`].
    of: [MacKey; 7],
}

/// What a key is for.
#[derive(Clone, Copy)]
enum Kind {
    Job,
    Outcome,
    Entry,
    Check,
    Tag,
    State,
    Progress,
}

/// A job whose signature held.
pub struct SealedJob {
    pub spec: JobSpec,
    /// Of its idempotency key and payload, see [`idempotency_digest`]; nothing without a key.
    pub idempotency: Vec<u8>,
    media_type: MediaType,
    payload_hash: [u8; 32],
}

impl SealedJob {
    /// With its payload, if that is the one that was signed.
    ///
    /// # Errors
    /// It is another one.
    pub fn with_payload(self, bytes: Vec<u8>) -> Result<(JobSpec, Payload), Forged> {
        if Sha256::digest(&bytes)[..] != self.payload_hash {
            return Err(Forged);
        }
        Ok((self.spec, Payload { media_type: self.media_type, bytes: Arc::from(bytes) }))
    }
}

impl Signer {
    /// With the keys that follow from these, see [`Secret::envelope`]; there must be one.
    pub fn new(envelopes: &[&Secret], prefix: &str) -> Signer {
        let keys = envelopes.iter().map(|envelope| {
            let key = |kind: &[u8]| MacKey::new(&*hkdf_expand::<32>(envelope.expose(), &[kind]));
            let of = [b"job", &b"outcome"[..], b"entry", b"check", b"tag", b"state", b"progress"].map(key);
            Keys { id: of[Kind::Check as usize].sign(&[prefix.as_bytes()]), of }
        });
        Signer { prefix: prefix.to_owned(), keys: keys.collect(), is_ours: AtomicBool::new(false) }
    }

    /// What processes that have one of these secrets know each other by; the first's stands in Redis.
    pub fn checks(&self) -> Vec<String> {
        self.keys.iter().map(|keys| hex(&keys.id)).collect()
    }

    /// What signs.
    pub(super) fn first(&self) -> &Keys {
        &self.keys[0]
    }

    /// What has this id, if that is still known.
    pub(super) fn keys_of(&self, id: &Tag) -> Option<&Keys> {
        self.keys.iter().find(|keys| keys.id == *id)
    }

    fn seal(&self, kind: Kind, about: &[&[u8]], mut body: Vec<u8>) -> Vec<u8> {
        let mac = self.first().of[kind as usize].sign(&[&self.before(about, &body), &body]);
        body.extend_from_slice(&mac);
        body
    }

    fn open<'a>(&self, kind: Kind, about: &[&[u8]], sealed: &'a [u8]) -> Result<&'a [u8], Forged> {
        let (body, mac) = sealed.split_last_chunk::<MAC_BYTES>().ok_or(Forged)?;
        let parts: [&[u8]; 2] = [&self.before(about, body), body];
        let is_ours = self.keys.iter().any(|keys| keys.of[kind as usize].verify(&parts, mac));
        if is_ours { Ok(body) } else { Err(Forged) }
    }

    /// What is signed before the body: a large one is not copied for that.
    fn before(&self, about: &[&[u8]], body: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(128);
        [self.prefix.as_bytes()].iter().chain(about).for_each(|part| put_bytes(&mut out, part));
        put_length(&mut out, body);
        out
    }

    /// A job as it is accepted. Its payload stands beside it, and is signed by its hash: who looks at a record need not
    /// read it.
    pub fn seal_job(&self, spec: &JobSpec, payload: &Payload, idempotency: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(256);
        put_spec(&mut out, spec);
        put_text(&mut out, payload.media_type.as_str());
        out.extend_from_slice(&Sha256::digest(&payload.bytes));
        put_bytes(&mut out, idempotency);
        self.seal(Kind::Job, &[&spec.id.0], out)
    }

    /// The job of this id, if it was signed.
    ///
    /// # Errors
    /// It was not.
    pub fn open_job(&self, id: JobId, sealed: &[u8]) -> Result<SealedJob, Forged> {
        let mut fields = Cursor::new(self.open(Kind::Job, &[&id.0], sealed)?);
        let spec = job_codec::spec(&mut fields, id)?;
        let media_type = MediaType::parse(fields.text()?).ok_or(Forged)?;
        let payload_hash = fields.array()?;
        let idempotency = fields.bytes()?.to_vec();
        fields.finish()?;
        Ok(SealedJob { spec, idempotency, media_type, payload_hash })
    }

    /// How a delivery ended.
    pub fn seal_outcome(&self, id: JobId, finished: &Finished) -> Vec<u8> {
        let mut out = Vec::new();
        put_result(&mut out, finished);
        self.seal(Kind::Outcome, &[&id.0, finished.status.as_str().as_bytes()], out)
    }

    /// What a job of this status came to.
    ///
    /// # Errors
    /// It was not signed.
    pub fn open_outcome(&self, id: JobId, status: JobStatus, sealed: &[u8]) -> Result<Finished, Forged> {
        let about: [&[u8]; 2] = [&id.0, status.as_str().as_bytes()];
        let mut fields = Cursor::new(self.open(Kind::Outcome, &about, sealed)?);
        let finished = job_codec::finished(&mut fields, status)?;
        fields.finish()?;
        Ok(finished)
    }

    /// How far a job is.
    #[must_use]
    pub fn seal_progress(&self, id: JobId, progress: &Progress) -> Vec<u8> {
        self.seal(Kind::Progress, &[&id.0], progress.as_str().into())
    }

    /// The same, if it was signed for this job: in one of its lives.
    #[must_use]
    pub fn open_progress(&self, id: JobId, sealed: &[u8]) -> Option<Progress> {
        let body = self.open(Kind::Progress, &[&id.0], sealed).ok()?;
        Progress::parse(std::str::from_utf8(body).ok()?)
    }

    /// A value of a map.
    pub fn seal_entry(&self, map: &str, key: &str, value: &[u8]) -> Vec<u8> {
        self.seal(Kind::Entry, &[map.as_bytes(), key.as_bytes()], value.to_vec())
    }

    /// What an entry of a lane's state adds to its sum.
    pub(super) fn tag(&self, keys: &Keys, map: &str, key: &str, value: &[u8]) -> Tag {
        keys.of[Kind::Tag as usize].sign(&[&self.before(&[map.as_bytes(), key.as_bytes()], value), value])
    }

    /// The signature of a lane's whole state, whose entries' tags have this sum.
    pub(super) fn sign_state(&self, keys: &Keys, map: &str, sum: Sum) -> Tag {
        let sum = sum.to_bytes();
        keys.of[Kind::State as usize].sign(&[&self.before(&[map.as_bytes()], &sum), &sum])
    }

    /// The tags of a lane's state, if that is the one that was signed. One that is empty may have no signature: it is that of
    /// a lane that nobody has used.
    pub(super) fn tags_of(
        &self,
        map: &str,
        entries: &Entries,
        signature: &[u8],
    ) -> Option<HashMap<Arc<str>, Tag>> {
        let tags_by = |keys: &Keys| -> HashMap<Arc<str>, Tag> {
            let tags = entries.iter().map(|(key, value)| (key.clone(), self.tag(keys, map, key, value)));
            tags.collect()
        };
        let is_signed_by = |keys: &&Keys| {
            let sum = Sum::of(tags_by(keys).values()).to_bytes();
            let parts: [&[u8]; 2] = [&self.before(&[map.as_bytes()], &sum), &sum];
            keys.of[Kind::State as usize].verify(&parts, signature)
        };
        let is_unused = entries.is_empty() && signature.is_empty();
        let holds =
            is_unused || is_off(Control::StateSum) || self.keys.iter().any(|keys| is_signed_by(&keys));
        holds.then(|| tags_by(self.first()))
    }

    /// The value, if it was signed for this map and key.
    ///
    /// # Errors
    /// It was not.
    pub fn open_entry(&self, map: &str, key: &str, sealed: &[u8]) -> Result<Arc<[u8]>, Forged> {
        self.open(Kind::Entry, &[map.as_bytes(), key.as_bytes()], sealed).map(Arc::from)
    }
}

/// What binds an idempotency key, in the scope of its owner and handler, to the payload that it was first used with.
pub fn idempotency_digest(owner: &str, handler: &str, idempotency: &Idempotency) -> Vec<u8> {
    let mut out = Vec::new();
    [owner, handler, &idempotency.key].iter().for_each(|part| put_text(&mut out, part));
    out.extend_from_slice(&idempotency.fingerprint);
    Sha256::digest(&out).to_vec()
}
