//! One connection to the server: scripts in, values out. A connection that had an I/O error is never used again, and a
//! call that met one is repeated once on a new one: every script is safe to repeat.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use redis::{Client, Connection, ErrorKind, FromRedisValue, RedisError, Script, Value};

use crate::ports::BackendError;

/// A client with at most one idle connection.
pub struct Link {
    client: Client,
    connect_timeout: Duration,
    response_timeout: Duration,
    idle: Mutex<Option<Connection>>,
}

impl Link {
    /// To the server at `url`; connects with the first call.
    ///
    /// # Errors
    /// The address makes no sense.
    pub fn new(url: &str, connect_timeout: Duration, response_timeout: Duration) -> Result<Link, String> {
        let client = Client::open(url).map_err(|error| format!("runtime.platform.redis.url: {error}"))?;
        Ok(Link { client, connect_timeout, response_timeout, idle: Mutex::new(None) })
    }

    /// A connection of its own, for a caller that blocks.
    ///
    /// # Errors
    /// The server cannot be reached.
    pub fn connect(&self) -> Result<Connection, BackendError> {
        let connection = self.client.get_connection_with_timeout(self.connect_timeout).map_err(lost)?;
        connection.set_read_timeout(Some(self.response_timeout)).map_err(lost)?;
        connection.set_write_timeout(Some(self.response_timeout)).map_err(lost)?;
        Ok(connection)
    }

    /// Runs a script: the prefix as its key, then these arguments.
    ///
    /// # Errors
    /// The server cannot be reached, twice, or refuses.
    pub fn run(&self, script: &Script, prefix: &str, arguments: &[&[u8]]) -> Result<Value, BackendError> {
        self.repeat(|connection| {
            let mut call = script.prepare_invoke();
            call.key(prefix);
            for argument in arguments {
                call.arg(*argument);
            }
            call.invoke(connection)
        })
    }

    /// Runs a command.
    ///
    /// # Errors
    /// The server cannot be reached, twice, or refuses.
    pub fn command<T: FromRedisValue>(&self, command: &redis::Cmd) -> Result<T, BackendError> {
        self.repeat(|connection| command.query(connection))
    }

    fn repeat<T>(&self, call: impl Fn(&mut Connection) -> Result<T, RedisError>) -> Result<T, BackendError> {
        let mut attempt = 0;
        loop {
            let kept = self.idle.lock().unwrap_or_else(PoisonError::into_inner).take();
            let mut connection = match kept {
                Some(connection) => connection,
                None => self.connect()?,
            };
            match call(&mut connection) {
                Ok(answer) => {
                    *self.idle.lock().unwrap_or_else(PoisonError::into_inner) = Some(connection);
                    return Ok(answer);
                }
                // Nothing is known of what the call did; the connection's state is unknown too: it is dropped.
                Err(error) if is_lost(&error) && !error.is_timeout() && attempt == 0 => attempt += 1,
                Err(error) => return Err(lost(error)),
            }
        }
    }
}

fn is_lost(error: &RedisError) -> bool {
    error.is_io_error() || error.is_connection_dropped() || error.kind() == ErrorKind::Io
}

#[allow(clippy::needless_pass_by_value, reason = "it is what map_err gives")]
pub(super) fn lost(error: RedisError) -> BackendError {
    BackendError(format!("redis: {error}"))
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
