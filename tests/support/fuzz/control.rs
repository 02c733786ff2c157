//! Decoders of the control socket.

use std::fmt::Debug;

use serde::Serialize;
use serde::de::DeserializeOwned;

use cofferdam::process::control_socket::{Leaving, ToChild, ToParent, decode, encode, framed, split};

/// A message is written as it was read, whatever follows it, and no prefix of it is one.
pub fn control(bytes: &[u8]) {
    let Ok(Some((body, length))) = split(bytes) else { return };
    assert_eq!(split(&bytes[..length]), Ok(Some((body, length))));
    assert_eq!(split(&bytes[..length - 1]), Ok(None));
    let whole = &bytes[..length];
    let to_child = is_canonical::<ToChild>(body, whole);
    let to_parent = is_canonical::<ToParent>(body, whole);
    assert!(!(to_child && to_parent), "a message belongs to one direction");
}

fn is_canonical<M: Serialize + DeserializeOwned + Debug>(body: &[u8], whole: &[u8]) -> bool {
    let Ok(message) = decode::<M>(body) else { return false };
    assert_eq!(&encode(&message)[..], whole, "{message:?}");
    true
}

pub fn messages() -> Vec<Vec<u8>> {
    let to_child = [
        ToChild::Channel("127.0.0.1:1".into()),
        ToChild::Ping,
        ToChild::Drain(5),
        ToChild::Stop,
        ToChild::Leave,
        ToChild::Replaced("execution".into(), "crashed".into(), 3),
        ToChild::Succeeds("node".into()),
    ];
    let to_parent = [
        ToParent::Ready("127.0.0.1:1".into()),
        ToParent::Pong,
        ToParent::CutOff(vec![[1; 16], [2; 16]]),
        ToParent::Drained(2),
        ToParent::Leaving(Leaving::Stuck),
        ToParent::Worked,
    ];
    let to_child = to_child.iter().map(|message| encode(message).to_vec());
    to_child.chain(to_parent.iter().map(|message| encode(message).to_vec())).collect()
}

/// Bundles as docs/protocol.md has no need to say: group, clock, config, socket directory, secrets.
pub fn bundles() -> Vec<Vec<u8>> {
    let bundle = |config: &str, secrets: usize| {
        let mut body = 3_u16.to_be_bytes().to_vec();
        body.extend_from_slice(&7_u64.to_be_bytes());
        for text in [config, "/tmp/x"] {
            body.extend_from_slice(&u32::try_from(text.len()).expect("it is short").to_be_bytes());
            body.extend_from_slice(text.as_bytes());
        }
        (0..secrets).for_each(|index| body.extend_from_slice(&[index as u8 + 1; 32]));
        framed(&body).to_vec()
    };
    vec![bundle("{}", 1), bundle(r#"{"version":1}"#, 2), bundle("", 0)]
}
