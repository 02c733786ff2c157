//! Decoders of the control socket.

use std::fmt::Debug;

use cofferdam::job::JobId;
use cofferdam::process::control_socket::{Leaving, Message, ToChild, ToParent, framed, split};

/// A message is written as it was read, whatever follows it, and no prefix of it is one.
pub fn control(bytes: &[u8]) {
    let Ok(Some((kind, body, length))) = split(bytes) else { return };
    assert_eq!(split(&bytes[..length]), Ok(Some((kind, body, length))));
    assert_eq!(split(&bytes[..length - 1]), Ok(None));
    let whole = &bytes[..length];
    let to_child = is_canonical::<ToChild>(kind, body, whole);
    let to_parent = is_canonical::<ToParent>(kind, body, whole);
    assert!(!(to_child && to_parent), "a kind belongs to one direction");
}

fn is_canonical<M: Message + Debug>(kind: u8, body: &[u8], whole: &[u8]) -> bool {
    let Ok(message) = M::decode(kind, body) else { return false };
    let (kind_again, body_again) = message.encode();
    assert_eq!(&framed(kind_again, &body_again)[..], whole, "{message:?}");
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
        ToParent::CutOff(vec![JobId([1; 16]), JobId([2; 16])]),
        ToParent::Drained(2),
        ToParent::Leaving(Leaving::Stuck),
        ToParent::Worked,
    ];
    let bytes = |(kind, body): (u8, Vec<u8>)| framed(kind, &body).to_vec();
    let to_child = to_child.iter().map(|message| bytes(message.encode()));
    to_child.chain(to_parent.iter().map(|message| bytes(message.encode()))).collect()
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
        framed(1, &body).to_vec()
    };
    vec![bundle("{}", 1), bundle(r#"{"version":1}"#, 2), bundle("", 0)]
}
