//! SIGHUP: what is read again, whether it may hold, and what the log hears of it, a line each. What may not hold changes nothing,
//! and nothing is ever ended.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use crate::config::secret::{Mark, Secret, read_private};
use crate::deployment::Deployment;
use crate::limits::SECRET_FILE_BYTES;
use crate::mac::wipe_stack;
use crate::ports::Fitness;

/// The process that asks does nothing else meanwhile: its own watchdog and its children would wait longer.
const REDIS_ANSWERS: Duration = Duration::from_secs(2);

/// A deployment whose files are read again.
pub struct Reread {
    /// Shared with the thread that asks.
    pub deployment: Arc<Deployment>,
    /// The secrets that are known; the first one signs.
    known: Vec<Mark>,
    /// Those that a journal's files may be signed with.
    signed: Vec<Mark>,
}

impl Reread {
    /// It was started with these secrets.
    pub fn new(deployment: Arc<Deployment>, roots: &[Secret]) -> Reread {
        let known: Vec<Mark> = roots.iter().map(Secret::mark).collect();
        Reread { deployment, signed: known.clone(), known }
    }

    /// The token file's text; `None`: the tokens that hold go on.
    pub fn tokens(&self) -> Option<String> {
        if self.deployment.config.web.auth.mode != "bearer" {
            log::info!("SIGHUP: there are no tokens to read again");
            return None;
        }
        let kept = |why| log::error!("SIGHUP: the tokens stay as they were: web.auth.token_file: {why}");
        self.deployment.read_tokens().map_err(kept).ok()
    }

    /// Other secrets, of which the first signs from now on; `None`: those that hold go on. Asks Redis whether it knows one of them,
    /// for [`REDIS_ANSWERS`] at most. What a password is worth is seen when a connection is made.
    pub fn secrets(&mut self) -> Option<Vec<Secret>> {
        let platform = self.deployment.platform();
        if let Some(file) = &platform.redis.password_file {
            match read_private(Path::new(file), SECRET_FILE_BYTES) {
                Ok(_) => log::info!("SIGHUP: each new connection has the password that {file} holds by then"),
                Err(why) => log::error!("SIGHUP: new connections have the password of the start: {why}"),
            }
        }
        let Some(file) = platform.execution_ipc.auth.secret_file.clone() else {
            log::info!("SIGHUP: the secret stays as it was: it is of this run, and in no file");
            return None;
        };
        let roots = self.other_secrets(&file);
        let kept = |why| log::error!("SIGHUP: the secrets stay as they were: {why}");
        roots.map_err(kept).ok().flatten()
    }

    /// `None`: they are those of before.
    fn other_secrets(&mut self, file: &str) -> Result<Option<Vec<Secret>>, String> {
        let (roots, marks) = read_roots(Path::new(file))?;
        // Now, not by the caller alone: what is moved to the heap from here on takes along what its gaps held on the stack.
        wipe_stack();
        if marks == self.known {
            log::info!("SIGHUP: the secrets are those of before: {file}");
            return Ok(None);
        }
        // The next start must read what a journal's files were signed with: with what was known at this one, and, where web was
        // replaced, with what signed then. Jobs at rest are signed with the first.
        let (needed, why, but) = match (self.deployment.signs_journal(), self.deployment.keeps_at_rest()) {
            (true, _) => (
                &self.signed[..],
                "one that the journal needs at the next start",
                ", but for the journal, at the next start",
            ),
            (false, true) => {
                (&self.known[..1], "the one that jobs are signed with, which belongs on the second line", "")
            }
            (false, false) => (&[][..], "", ""),
        };
        if !needed.iter().all(|mark| marks.contains(mark)) {
            return Err(format!("{file}: it lacks {why}"));
        }
        let roots = self.known_to_redis(roots).map_err(|why| format!("{file}: {why}"))?;
        let signs = if marks[0] == self.known[0] { "the same one" } else { "another one" };
        log::info!(
            "SIGHUP: the secrets are others, {} of them: {signs} signs from now on{but}: {file}",
            marks.len()
        );
        self.signed.extend((!self.signed.contains(&marks[0])).then_some(marks[0]));
        self.known = marks;
        Ok(Some(roots))
    }

    /// The same, unless Redis knows none of them. It is asked on a thread of its own: signals, as of a child's end, come to the first one and
    /// would interrupt it; and who answers late is not waited for.
    fn known_to_redis(&self, roots: Vec<Secret>) -> Result<Vec<Secret>, String> {
        let ((answer, answered), deployment) = (channel(), self.deployment.clone());
        let ask = move || {
            let fitness = deployment.fitness(Some(&deployment.at_rest(&roots)));
            wipe_stack();
            let _ = answer.send(match fitness {
                Ok(None | Some(Fitness::Fit(_))) => Ok(roots),
                Ok(Some(Fitness::Unfit(why) | Fitness::Away(why))) | Err(why) => Err(why),
            });
        };
        thread::Builder::new().spawn(ask).map_err(|error| format!("a thread: {error}"))?;
        answered.recv_timeout(REDIS_ANSWERS).unwrap_or_else(|error| match error {
            RecvTimeoutError::Timeout => Err("Redis does not answer".into()),
            RecvTimeoutError::Disconnected => Err("the thread that asks Redis has ended".into()),
        })
    }
}

/// The secrets of a file, and their marks. A frame of its own, below those that go on.
#[inline(never)]
fn read_roots(file: &Path) -> Result<(Vec<Secret>, Vec<Mark>), String> {
    let roots = Secret::read_all(file)?;
    let marks = roots.iter().map(Secret::mark).collect();
    Ok((roots, marks))
}
