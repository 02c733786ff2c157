//! Connections to the server: commands in, values out. A connection that had an I/O error is never used again, and a
//! call that met one is repeated once on a new one: everything that we say is safe to repeat.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use redis::io::tcp::TcpSettings;
use redis::{Client, Connection, ErrorKind, FromRedisValue, IntoConnectionInfo, RedisError, Value};

use super::vet::judge;
use crate::bell::lock;
use crate::clock::millis;
use crate::config::Redis;
use crate::config::secret::read_private;
use crate::limits::SECRET_FILE_BYTES;
use crate::ports::{BackendError, Fitness, Reached};

/// Between two tries of a server that is away: doubling, from the first to the second.
pub(super) const PAUSES: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(1)];
/// Connections that are kept while nobody needs them.
const IDLE: usize = 4;

/// A client with a few idle connections.
pub struct Link {
    config: Redis,
    /// As the password was at the start.
    client: Client,
    /// With the generation that each is of.
    idle: Mutex<Vec<(Connection, u64)>>,
    /// How many have broken, or have found another server than they were made to: after that no other one of before is used.
    pub(super) generation: AtomicU64,
}

impl Link {
    /// To the server that the config names; connects with the first call.
    ///
    /// # Errors
    /// The address makes no sense, or the password's file cannot be read.
    pub fn new(config: &Redis) -> Result<Link, String> {
        Ok(Link {
            config: config.clone(),
            client: client(config)?,
            idle: Mutex::new(Vec::new()),
            generation: AtomicU64::new(0),
        })
    }

    /// A connection for answers that may take so long besides. The password's file may have another one by now.
    pub(super) fn open(&self, wait: Duration) -> Result<Connection, RedisError> {
        let client = client(&self.config).unwrap_or_else(|_| self.client.clone());
        let connect_timeout = Duration::from_millis(self.config.connect_timeout_ms);
        let response_timeout = Duration::from_millis(self.config.response_timeout_ms);
        let connection = client.get_connection_with_timeout(connect_timeout)?;
        connection.set_read_timeout(Some(wait + response_timeout))?;
        connection.set_write_timeout(Some(response_timeout))?;
        Ok(connection)
    }

    /// Is the server fit to keep jobs, and what does it promise?
    pub fn vet(&self) -> Fitness {
        let judged = self.open(Duration::ZERO).and_then(|mut connection| {
            let info: String = redis::cmd("INFO").query(&mut connection)?;
            // Not every role may ask for this.
            let fsync = redis::cmd("CONFIG").arg("GET").arg("appendfsync").query(&mut connection);
            let fsync: Option<(String, String)> = fsync.ok();
            // A user that may not call functions can do nothing here. There is none of this name.
            let called = redis::cmd("FCALL").arg("cofferdam").arg(0).exec(&mut connection);
            match called.err().filter(|error| error.code() == Some("NOPERM")) {
                Some(error) => Err(error),
                None => Ok(judge(&info, fsync.as_ref().map(|(_, value)| value.as_str()))),
            }
        });
        judged.unwrap_or_else(|error| {
            let is_unreachable = error.is_io_error() || error.is_connection_dropped();
            let is_away = is_unreachable || matches!(error.code(), Some("LOADING" | "MASTERDOWN"));
            let cure = cure(&error);
            let said = format!("{}{cure}", lost(error).0);
            if is_away { Fitness::Away(said) } else { Fitness::Unfit(said) }
        })
    }

    /// Runs a command.
    ///
    /// # Errors
    /// The server cannot be reached, twice, or refuses.
    pub fn command<T: FromRedisValue>(&self, command: &redis::Cmd) -> Reached<T> {
        read(self.call(|connection| command.query(connection))?)
    }

    /// Says something, and again if its connection breaks; not if the server only does not answer in time, or refuses.
    pub(super) fn call(
        &self,
        mut say: impl FnMut(&mut Connection) -> Result<Value, RedisError>,
    ) -> Reached<Value> {
        let mut is_repeated = false;
        loop {
            let (mut connection, of) = self.take().map_err(lost)?;
            let answer = say(&mut connection);
            let Some(error) = answer.as_ref().err().filter(|error| is_lost(error)) else {
                // Even if the server has refused, the connection is as good as before.
                self.keep(connection, of);
                return answer.map_err(lost);
            };
            // Nothing is known of what the call did, and of the other connections no more than of this one.
            let _ = self.generation.compare_exchange(of, of + 1, Ordering::SeqCst, Ordering::SeqCst);
            if is_repeated || error.is_timeout() {
                return answer.map_err(lost);
            }
            is_repeated = true;
        }
    }

    /// With its generation.
    fn take(&self) -> Result<(Connection, u64), RedisError> {
        let generation = self.generation.load(Ordering::SeqCst);
        let kept = {
            let mut idle = lock(&self.idle);
            idle.retain(|(_, of)| *of == generation);
            idle.pop()
        };
        kept.map_or_else(|| Ok((self.open(Duration::ZERO)?, generation)), Ok)
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
    pub fn remove_all(&self, prefix: &str) -> Reached<()> {
        self.each(prefix, |keys| self.command(redis::cmd("UNLINK").arg(keys)).map(|_: Value| ()))
    }

    /// Gives them all so long to live.
    ///
    /// # Errors
    /// The same.
    pub fn renew_all(&self, prefix: &str, life: Duration) -> Reached<()> {
        self.each(prefix, |keys| {
            let mut all = redis::pipe();
            keys.iter().for_each(|key| _ = all.cmd("PEXPIRE").arg(key).arg(millis(life)));
            self.call(|connection| all.query(connection)).map(|_| ())
        })
    }

    fn each(&self, prefix: &str, work: impl Fn(&[String]) -> Reached<()>) -> Reached<()> {
        let mut cursor = "0".to_owned();
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(&cursor).arg("MATCH").arg(format!("{prefix}*")).arg("COUNT").arg(1_000);
            let (next, keys): (String, Vec<String>) = self.command(&scan)?;
            if !keys.is_empty() {
                work(&keys)?;
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
    pub fn knows(&self, prefix: &str, checks: &[String]) -> Reached<bool> {
        let stands: Option<String> = self.command(redis::cmd("GET").arg(format!("{prefix}key")))?;
        Ok(stands.is_none_or(|stands| checks.contains(&stands)))
    }

    /// Whoever opens a deployment has its secret: the check value under this prefix is one of these, or is set to the first.
    pub(super) fn agrees(&self, prefix: &str, checks: &[String]) -> Reached<bool> {
        let key = format!("{prefix}key");
        let set = redis::cmd("SET").arg(&key).arg(&checks[0]).arg("NX").arg("GET").take();
        let stands: Option<String> = self.command(&set)?;
        match stands.map(|stands| checks.iter().position(|check| *check == stands)) {
            None | Some(Some(0)) => Ok(true),
            Some(Some(_)) => self.command(redis::cmd("SET").arg(&key).arg(&checks[0])).map(|_: Value| true),
            Some(None) => Ok(false),
        }
    }
}

/// To the server that the config names, with the password that stands in its file.
fn client(config: &Redis) -> Result<Client, String> {
    let at = "runtime.platform.redis";
    let url = config.url.replacen("redis+unix://", "unix://", 1);
    let info = url.into_connection_info().map_err(|error| format!("{at}.url: {error}"))?;
    let mut login = info.redis_settings().clone().set_skip_set_lib_name();
    if let Some(file) = &config.password_file {
        let unusable = |error| format!("{at}.password_file: {error}");
        let bytes = read_private(Path::new(file), SECRET_FILE_BYTES).map_err(unusable)?;
        let text = std::str::from_utf8(&bytes).map_err(|_| unusable(format!("{file}: is not UTF-8")))?;
        login = login.set_password(text.strip_suffix('\n').unwrap_or(text));
    }
    if let Some(name) = &config.username {
        login = login.set_username(name);
    }
    let tcp = TcpSettings::default().set_nodelay(true);
    let info = info.set_redis_settings(login).set_tcp_settings(tcp);
    Client::open(info).map_err(|error| format!("{at}.url: {error}"))
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
    // The kernel's words would be that a resource is temporarily unavailable.
    let is_silent = error.is_timeout();
    BackendError(if is_silent { "redis: no answer in time".into() } else { format!("redis: {error}") })
}

/// The server has no memory for more.
pub(super) fn is_full(error: &BackendError) -> bool {
    error.0.contains("OOM")
}

/// An error that says: something of another type stands in a key's place.
pub(super) fn is_of_another_type(error: &str) -> bool {
    error.contains("WRONGTYPE")
}

/// An answer in its shape. What it holds is nothing for a log.
pub(super) fn read<T: FromRedisValue>(answer: Value) -> Reached<T> {
    redis::from_redis_value(answer)
        .map_err(|_| BackendError("redis: a script's answer has another shape".into()))
}
