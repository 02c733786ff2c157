//! Connections to the server: scripts in, values out. A connection that had an I/O error is never used again, and a
//! call that met one is repeated once on a new one: every script is safe to repeat.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use redis::io::tcp::TcpSettings;
use redis::{Client, Connection, ErrorKind, FromRedisValue, IntoConnectionInfo, RedisError, Script, Value};
use zeroize::Zeroizing;

use super::vet::judge;
use crate::bell::lock;
use crate::config::Redis;
use crate::ports::{BackendError, Fitness};

/// Between two tries of a server that is away: doubling, from the first of these to the second.
pub(super) const PAUSES: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(1)];
/// Connections that are kept while nobody needs them: the loop's thread, and routes that render.
const IDLE: usize = 4;

/// Why a call has no answer.
pub(super) enum Failure {
    /// Its connection is broken: another one may do.
    Broken(BackendError),
    /// The server cannot be reached, does not answer in time, or refuses.
    Final(BackendError),
}

impl From<Failure> for BackendError {
    fn from(failure: Failure) -> BackendError {
        match failure {
            Failure::Broken(error) | Failure::Final(error) => error,
        }
    }
}

/// A client with a few idle connections.
pub struct Link {
    client: Client,
    connect_timeout: Duration,
    response_timeout: Duration,
    /// With the generation that each is of.
    idle: Mutex<Vec<(Connection, u64)>>,
    /// Grows when one of them has broken, or has found another server than it was made to: no other one of before is used
    /// any more.
    pub(super) generation: AtomicU64,
}

impl Link {
    /// To the server that the config names; connects with the first call.
    ///
    /// # Errors
    /// The address makes no sense, or the password's file cannot be read.
    pub fn new(config: &Redis) -> Result<Link, String> {
        let at = "runtime.platform.redis";
        let url = config.url.replacen("redis+unix://", "unix://", 1);
        let info = url.into_connection_info().map_err(|error| format!("{at}.url: {error}"))?;
        let mut login = info.redis_settings().clone().set_skip_set_lib_name();
        if let Some(file) = &config.password_file {
            let unreadable = |error| format!("{at}.password_file {file}: {error}");
            let text = Zeroizing::new(std::fs::read_to_string(Path::new(file)).map_err(unreadable)?);
            login = login.set_password(text.strip_suffix('\n').unwrap_or(&text));
        }
        if let Some(name) = &config.username {
            login = login.set_username(name);
        }
        let tcp = TcpSettings::default().set_nodelay(true);
        let info = info.set_redis_settings(login).set_tcp_settings(tcp);
        Ok(Link {
            client: Client::open(info).map_err(|error| format!("{at}.url: {error}"))?,
            connect_timeout: Duration::from_millis(config.connect_timeout_ms),
            response_timeout: Duration::from_millis(config.response_timeout_ms),
            idle: Mutex::new(Vec::new()),
            generation: AtomicU64::new(0),
        })
    }

    /// A connection of its own, for a caller that blocks.
    ///
    /// # Errors
    /// The server cannot be reached, or does not let us in.
    pub fn connect(&self) -> Result<Connection, BackendError> {
        self.open().map_err(lost)
    }

    fn open(&self) -> Result<Connection, RedisError> {
        let connection = self.client.get_connection_with_timeout(self.connect_timeout)?;
        connection.set_read_timeout(Some(self.response_timeout))?;
        connection.set_write_timeout(Some(self.response_timeout))?;
        Ok(connection)
    }

    /// One for waits of so long.
    ///
    /// # Errors
    /// As [`Link::connect`].
    pub fn connect_to_listen(&self, wait: Duration) -> Result<Connection, BackendError> {
        let connection = self.connect()?;
        connection.set_read_timeout(Some(wait + self.response_timeout)).map_err(lost)?;
        Ok(connection)
    }

    /// Is the server fit to keep jobs, and what does it promise?
    #[must_use]
    pub fn vet(&self) -> Fitness {
        let judged = self.open().and_then(|mut connection| {
            let info: String = redis::cmd("INFO").query(&mut connection)?;
            // Not every role may ask for this.
            let fsync = redis::cmd("CONFIG").arg("GET").arg("appendfsync").query(&mut connection);
            let fsync: Option<(String, String)> = fsync.ok();
            Ok(judge(&info, fsync.as_ref().map(|(_, value)| value.as_str())))
        });
        judged.unwrap_or_else(|error| {
            let is_unreachable = error.is_io_error() || error.is_connection_dropped();
            let is_away = is_unreachable || matches!(error.code(), Some("LOADING" | "MASTERDOWN"));
            let said = format!("redis: {error}{}", cure(&error));
            if is_away { Fitness::Away(said) } else { Fitness::Unfit(said) }
        })
    }

    /// Connections that broke since the start.
    pub fn broken(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }

    /// Runs a script: the prefix as its key, then these arguments; again if its connection breaks.
    ///
    /// # Errors
    /// The server cannot be reached, twice, or refuses.
    pub fn run(&self, script: &Script, prefix: &str, arguments: &[&[u8]]) -> Result<Value, BackendError> {
        self.run_once(script, prefix, arguments).or_else(|failure| match failure {
            Failure::Broken(_) => self.run_once(script, prefix, arguments).map_err(Failure::into),
            Failure::Final(error) => Err(error),
        })
    }

    /// The same once.
    ///
    /// # Errors
    /// The connection has broken, or the server cannot be reached, or refuses.
    pub(super) fn run_once(
        &self,
        script: &Script,
        prefix: &str,
        arguments: &[&[u8]],
    ) -> Result<Value, Failure> {
        let mut call = script.prepare_invoke();
        call.key(prefix);
        for argument in arguments {
            call.arg(*argument);
        }
        self.once(|connection| call.invoke(connection))
    }

    /// Runs a command.
    ///
    /// # Errors
    /// The server cannot be reached, twice, or refuses.
    pub fn command<T: FromRedisValue>(&self, command: &redis::Cmd) -> Result<T, BackendError> {
        let call = |connection: &mut Connection| command.query(connection);
        self.once(call).or_else(|failure| match failure {
            Failure::Broken(_) => self.once(call).map_err(Failure::into),
            Failure::Final(error) => Err(error),
        })
    }

    fn once<T>(&self, call: impl Fn(&mut Connection) -> Result<T, RedisError>) -> Result<T, Failure> {
        let (mut connection, of) = self.kept().map_or_else(|| self.new_one(), Ok).map_err(Failure::Final)?;
        let error = match call(&mut connection) {
            Ok(answer) => {
                self.keep(connection, of);
                return Ok(answer);
            }
            Err(error) => error,
        };
        if !is_lost(&error) {
            // The server has refused: the connection is as good as before.
            self.keep(connection, of);
            return Err(Failure::Final(lost(error)));
        }
        // Nothing is known of what the call did, and of the others no more than of this one.
        let _ = self.generation.compare_exchange(of, of + 1, Ordering::SeqCst, Ordering::SeqCst);
        let is_slow = error.is_timeout();
        Err(if is_slow { Failure::Final(lost(error)) } else { Failure::Broken(lost(error)) })
    }

    fn new_one(&self) -> Result<(Connection, u64), BackendError> {
        let generation = self.generation.load(Ordering::SeqCst);
        Ok((self.connect()?, generation))
    }

    fn kept(&self) -> Option<(Connection, u64)> {
        let mut idle = lock(&self.idle);
        let generation = self.generation.load(Ordering::SeqCst);
        idle.retain(|(_, of)| *of == generation);
        idle.pop()
    }

    fn keep(&self, connection: Connection, of: u64) {
        let mut idle = lock(&self.idle);
        if idle.len() < IDLE && of == self.generation.load(Ordering::SeqCst) {
            idle.push((connection, of));
        }
    }

    /// Removes every key that begins so: of a deployment inside another one, which nobody uses any more.
    ///
    /// # Errors
    /// The server cannot be reached; what was removed stays removed.
    pub fn remove_all(&self, prefix: &str) -> Result<(), BackendError> {
        let mut cursor = "0".to_owned();
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(&cursor).arg("MATCH").arg(format!("{prefix}*")).arg("COUNT").arg(1_000);
            let (next, keys): (String, Vec<String>) = self.command(&scan)?;
            if !keys.is_empty() {
                let _: Value = self.command(redis::cmd("UNLINK").arg(keys))?;
            }
            if next == "0" {
                return Ok(());
            }
            cursor = next;
        }
    }

    /// The check value under this prefix is one of these, or there is none yet.
    ///
    /// # Errors
    /// The server cannot be reached.
    pub fn knows(&self, prefix: &str, checks: &[String]) -> Result<bool, BackendError> {
        let stands: Option<String> = self.command(redis::cmd("GET").arg(format!("{prefix}key")))?;
        Ok(stands.is_none_or(|stands| checks.contains(&stands)))
    }

    /// Whoever opens a deployment has its secret: the check value under this prefix is one of these, or is set to the first.
    ///
    /// # Errors
    /// The server cannot be reached.
    pub fn agrees(&self, prefix: &str, checks: &[String]) -> Result<bool, BackendError> {
        let key = format!("{prefix}key");
        let _: Value = self.command(redis::cmd("SET").arg(&key).arg(&checks[0]).arg("NX"))?;
        let stands: Option<String> = self.command(redis::cmd("GET").arg(&key))?;
        match stands.and_then(|stands| checks.iter().position(|check| *check == stands)) {
            Some(0) => Ok(true),
            Some(_) => self.command(redis::cmd("SET").arg(&key).arg(&checks[0])).map(|_: Value| true),
            None => Ok(false),
        }
    }
}

/// What to change, where the server does not let us in.
fn cure(error: &RedisError) -> &'static str {
    match (error.kind(), error.code()) {
        (ErrorKind::AuthenticationFailed, _) | (_, Some("NOAUTH" | "WRONGPASS")) => {
            ": set runtime.platform.redis.username and password_file to a user of this server"
        }
        (_, Some("NOPERM")) => ": give this user the ACL line of its role (docs/operations.md)",
        _ => "",
    }
}

/// The connection is broken, or leads to a server that is not the one that it was made to: a replica now, or one that starts.
fn is_lost(error: &RedisError) -> bool {
    const ELSEWHERE: [&str; 6] = ["READONLY", "MASTERDOWN", "LOADING", "UNBLOCKED", "MOVED", "NOAUTH"];
    let is_elsewhere = error.code().is_some_and(|code| ELSEWHERE.contains(&code));
    is_elsewhere
        || error.is_io_error()
        || error.is_connection_dropped()
        || error.is_unrecoverable_error()
        || error.kind() == ErrorKind::Parse
}

#[allow(clippy::needless_pass_by_value, reason = "it is what map_err gives")]
pub(super) fn lost(error: RedisError) -> BackendError {
    BackendError(format!("redis: {error}"))
}

/// The server has no memory for more.
pub(super) fn is_full(error: &BackendError) -> bool {
    error.0.contains("OOM")
}

/// A list, or nothing of the kind.
pub(super) fn list(value: Value) -> Result<Vec<Value>, BackendError> {
    match value {
        Value::Array(values) => Ok(values),
        other => Err(BackendError(format!("redis: a script answered with {}", kind(&other)))),
    }
}

/// The bytes of a text or number.
pub(super) fn bytes(value: Value) -> Result<Vec<u8>, BackendError> {
    match value {
        Value::BulkString(bytes) => Ok(bytes),
        Value::SimpleString(text) => Ok(text.into_bytes()),
        Value::Int(number) => Ok(number.to_string().into_bytes()),
        Value::Okay => Ok(b"OK".to_vec()),
        other => Err(BackendError(format!("redis: a script answered with {}", kind(&other)))),
    }
}

pub(super) fn text(value: Value) -> Result<String, BackendError> {
    String::from_utf8(bytes(value)?).map_err(|_| BackendError("redis: a script's answer is no text".into()))
}

/// A list of texts.
pub(super) fn texts(value: Value) -> Result<Vec<String>, BackendError> {
    list(value)?.into_iter().map(text).collect()
}

pub(super) fn number(value: Value) -> Result<u64, BackendError> {
    let text = text(value)?;
    text.parse().map_err(|_| BackendError("redis: a script's answer is no number".into()))
}

/// So many values, by position.
pub(super) fn fields<const N: usize>(value: Value) -> Result<[Value; N], BackendError> {
    let values = list(value)?;
    <[Value; N]>::try_from(values)
        .map_err(|_| BackendError("redis: a script's answer has another shape".into()))
}

/// What it is, never what it holds.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Nil => "nothing",
        Value::Int(_) => "a number",
        Value::BulkString(_) | Value::SimpleString(_) | Value::Okay => "a text",
        Value::Array(_) => "a list",
        _ => "something else",
    }
}
