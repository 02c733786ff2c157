//! Decoders of the operator's words: config sources and the secret's file.

use std::collections::BTreeMap;

use cofferdam::config::secret::Secret;
use cofferdam::config::{Source, load, normalised, summary};
use cofferdam::handler::HandlerOptions;

use super::texts;

/// A line is `NAME=VALUE` of the environment if it begins with the prefix, else a `--set`. What passes is a config that
/// passes again and comes to the same.
pub fn config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let mut source = Source::default();
    for line in text.lines().take(8) {
        match line.split_once('=').filter(|(name, _)| name.starts_with("COFFERDAM_")) {
            Some((name, value)) => source.environment.push((name.to_owned(), value.to_owned())),
            None => source.sets.push(line.to_owned()),
        }
    }
    let handlers = BTreeMap::from([("echo".to_owned(), HandlerOptions::default())]);
    match load(&source, &handlers) {
        Err(issues) => {
            assert!(!issues.is_empty());
            assert!(issues.iter().all(|issue| !issue.to_string().is_empty()));
        }
        Ok(loaded) => {
            let sections = loaded.value.as_object().expect("a config is an object");
            let sets = sections.iter().map(|(name, value)| format!("{name}={value}")).collect();
            let again = load(&Source { sets, ..Source::default() }, &handlers).expect("it passed before");
            assert_eq!(again.value, loaded.value);
            assert!(normalised(&loaded).is_object() && !summary(&loaded).is_empty());
        }
    }
}

pub fn configs() -> Vec<Vec<u8>> {
    texts(&[
        "web.bind=127.0.0.1:0\nweb.limits.header_bytes=100",
        "COFFERDAM_WEB__MAX_BODY_BYTES=2048\nweb.max_body_bytes=4096",
        r#"runtime={"platform":{"queue":{"capacity":5,"retry":{"base_ms":1,"max_ms":2}}}}"#,
        r#"runtime.platform.process_groups=[{"name":"a","handlers":["echo"]},{"name":"b","workers":2,"handlers":["x"]}]
handlers={"x":{"command":["/bin/true"],"env":{"A":"b"},"limits":{"open_files":9},"ordering":{"key":"/k"}}}"#,
        r#"handlers.echo={"timeout_ms":5,"ordering":"serial","on_dead":"park","max_deliveries":null}"#,
        "runtime.platform.execution_ipc.auth.secret_file=x\nruntime.platform.queue.backend=redis",
        "web.auth={\"mode\":\"bearer\",\"token_file\":\"t\"}\nweb.bind=[::]:1\nweb.allowed_hosts=[\"a\"]",
        "version=1\nobservability.log=json\nruntime.platform.bootstrap.mode=inline",
    ])
}

/// 64 hex digits, once or on two lines, and at most one newline at the end, and nothing else, are a secret.
pub fn secret(bytes: &[u8]) {
    let text = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let lines: Vec<&[u8]> = text.split(|byte| *byte == b'\n').collect();
    let is_line = |line: &&[u8]| line.len() == 64 && line.iter().all(u8::is_ascii_hexdigit);
    let is_hex = lines.len() <= 2 && lines.iter().all(is_line);
    match Secret::parse(bytes) {
        Ok(secrets) => {
            let hex = |secret: &Secret| {
                secret.expose().iter().map(|byte| format!("{byte:02x}")).collect::<String>()
            };
            assert!(is_hex && secrets.len() == lines.len());
            for (secret, line) in secrets.iter().zip(lines) {
                assert!(hex(secret).as_bytes() == line.to_ascii_lowercase());
            }
        }
        Err(message) => {
            let is_one_byte = |line: &&[u8]| line.chunks(2).all(|pair| pair.eq_ignore_ascii_case(&line[..2]));
            assert!(!is_hex || lines.iter().any(is_one_byte), "{message}");
        }
    }
}

pub fn secrets() -> Vec<Vec<u8>> {
    let digits = "000102030405060708090a0b0c0d0e0f101112131415161718191A1B1C1D1E1F";
    let other = "f0".repeat(31) + "0F";
    texts(&[
        digits,
        &format!("{digits}\n"),
        &format!("{digits}\r\n"),
        &"ab".repeat(32),
        &format!("{digits}\n{other}"),
        &format!("{other}\n{digits}\n"),
        &format!("{digits}\n\n"),
        &format!("{digits}\n{other}\n{digits}\n"),
        &format!("{digits}\n{}\n", "ab".repeat(32)),
    ])
}
