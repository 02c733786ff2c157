//! What a signature over a lane's whole state needs, kept up to date by what commits change. Pure.
//!
//! A state is signed as one: over the sum of its entries' tags modulo 2^256, each an HMAC of map, key and value that nobody
//! else can compute and that stands nowhere (an additive multiset hash; Bellare and Micciancio, "A New Paradigm for
//! Collision-free Hashing", 1997). So an entry that is altered, removed, added or taken from another time is noticed, and a
//! commit costs as much as it changes. Only a whole older state under its own signature passes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::envelope::Signer;
use super::sum::{Sum, Tag};
use crate::job::{Change, Entries};

/// Entries of all states that are remembered, beyond which those leased longest ago go: some 30 MB.
const ENTRIES_MAX: usize = 1 << 18;

/// The states that executors of this process know.
#[derive(Default)]
pub struct Sums {
    maps: HashMap<String, Known>,
    /// By the number of the last lease.
    order: BTreeMap<u64, String>,
    entries: usize,
}

struct Known {
    lease: u64,
    /// What its tags are made with: a commit goes on with that, so that tags of two secrets are never added up.
    keys: Tag,
    tags: HashMap<Arc<str>, Tag>,
    sum: Sum,
}

impl Sums {
    /// A lease has brought the whole state. False: it is not what the deployment signed.
    pub fn is_whole(
        &mut self,
        signer: &Signer,
        map: &str,
        entries: &Entries,
        signature: &[u8],
        lease: u64,
    ) -> bool {
        self.forget(map);
        let Some(tags) = signer.tags_of(map, entries, signature) else { return false };
        self.entries += tags.len();
        let sum = Sum::of(tags.values());
        self.maps.insert(map.to_owned(), Known { lease, keys: signer.first().id, tags, sum });
        self.order.insert(lease, map.to_owned());
        while self.entries > ENTRIES_MAX && self.maps.len() > 1 {
            let Some((_, oldest)) = self.order.pop_first() else { break };
            self.forget(&oldest);
        }
        true
    }

    /// A lease builds on the state as it is known here. False: it is not, or not by what signs.
    pub fn is_known(&mut self, signer: &Signer, map: &str, lease: u64) -> bool {
        let known = self.maps.get_mut(map).filter(|known| known.keys == signer.first().id);
        let Some(known) = known else { return false };
        self.order.remove(&std::mem::replace(&mut known.lease, lease));
        self.order.insert(lease, map.to_owned());
        true
    }

    /// The signature of the state with these changes, which are remembered. `None`: what it was before is not known any more.
    pub fn change(&mut self, signer: &Signer, map: &str, changes: &[Change]) -> Option<Tag> {
        let known = self.maps.get_mut(map)?;
        let keys = signer.keys_of(&known.keys)?;
        self.entries -= known.tags.len();
        for Change { key, value } in changes {
            let old = match value {
                Some(value) => {
                    let tag = signer.tag(keys, map, key, value);
                    known.sum = known.sum.plus(&tag);
                    known.tags.insert(key.clone(), tag)
                }
                None => known.tags.remove(key),
            };
            known.sum = old.iter().fold(known.sum, |sum, tag| sum.minus(tag));
        }
        self.entries += known.tags.len();
        Some(signer.sign_state(keys, map, known.sum))
    }

    /// What is known of it is not so.
    pub fn forget(&mut self, map: &str) {
        if let Some(known) = self.maps.remove(map) {
            self.order.remove(&known.lease);
            self.entries -= known.tags.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::secret::Secret;

    fn signer_of(secrets: &[u8]) -> Signer {
        let secret = |first: &u8| Secret::new(std::array::from_fn(|at| first + at as u8)).unwrap();
        let secrets: Vec<Secret> = secrets.iter().map(secret).collect();
        Signer::new(&secrets.iter().collect::<Vec<_>>(), "{p}:")
    }

    fn signer() -> Signer {
        signer_of(&[0])
    }

    fn entries(pairs: &[(&str, &str)]) -> Entries {
        pairs.iter().map(|(key, value)| (Arc::from(*key), Arc::from(value.as_bytes()))).collect()
    }

    fn change(key: &str, value: Option<&str>) -> Change {
        Change { key: key.into(), value: value.map(|value| Arc::from(value.as_bytes())) }
    }

    #[test]
    fn a_lease_goes_on_with_the_secret_that_it_began_with_and_the_next_one_begins_anew() {
        let (old, both, new) = (signer_of(&[0]), signer_of(&[1, 0]), signer_of(&[1]));
        let mut sums = Sums::default();
        assert!(sums.is_whole(&old, "m", &entries(&[]), b"", 1));
        sums.change(&old, "m", &[change("a", Some("1")), change("b", Some("2"))]).unwrap();
        let signature = sums.change(&both, "m", &[change("a", Some("3"))]).unwrap();
        let now = entries(&[("a", "3"), ("b", "2")]);
        assert!(Sums::default().is_whole(&old, "m", &now, &signature, 1), "no sum is of two secrets");
        assert!(!sums.is_known(&both, "m", 2), "the state is read again, and signed with the new one");
        assert!(sums.is_whole(&both, "m", &now, &signature, 2) && sums.is_known(&both, "m", 3));
        let signature = sums.change(&both, "m", &[change("b", None)]).unwrap();
        let left = entries(&[("a", "3")]);
        assert!(Sums::default().is_whole(&new, "m", &left, &signature, 1));
        assert!(!Sums::default().is_whole(&old, "m", &left, &signature, 1));
        // One that is not known any more signs nothing.
        assert!(sums.is_whole(&old, "m", &entries(&[]), b"", 4));
        assert_eq!(sums.change(&new, "m", &[change("a", Some("4"))]), None);
    }

    #[test]
    fn what_commits_change_gives_the_signature_of_the_whole_and_anything_else_does_not_hold() {
        let (signer, mut sums) = (signer(), Sums::default());
        assert!(sums.is_whole(&signer, "m", &entries(&[]), b"", 1), "a lane begins empty and unsigned");
        let first = sums.change(&signer, "m", &[change("a", Some("1")), change("b", Some("2"))]).unwrap();
        let second = sums.change(&signer, "m", &[change("a", Some("3")), change("c", Some("4"))]).unwrap();
        let third = sums.change(&signer, "m", &[change("b", None), change("never", None)]).unwrap();
        let (then, now) = ([("a", "1"), ("b", "2")], [("a", "3"), ("c", "4")]);
        let holds = |map: &str, pairs: &[(&str, &str)], signature: &[u8]| {
            Sums::default().is_whole(&signer, map, &entries(pairs), signature, 1)
        };
        assert!(holds("m", &then, &first), "a whole older state passes");
        assert!(holds("m", &[("a", "3"), ("b", "2"), ("c", "4")], &second));
        assert!(holds("m", &now, &third));
        for (map, pairs, signature) in [
            ("m", &now[..1], &third[..]),
            ("m", &[("a", "3"), ("c", "5")], &third),
            ("m", &[("a", "1"), ("c", "4")], &third),
            ("m", &[("a", "3"), ("c", "4"), ("b", "2")], &third),
            ("m", &[("c", "3"), ("a", "4")], &third),
            ("m", &now, &second),
            ("m", &now, b""),
            ("m", &[], &third),
            ("other", &now, &third),
        ] {
            assert!(!holds(map, pairs, signature), "{map} {pairs:?}");
        }
    }
}
