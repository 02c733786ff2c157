//! SIGHUP: what is read again, whether it may hold, and what the log hears of it, a line each. What may not hold changes nothing,
//! and nothing is ever ended.

use std::path::Path;
use std::thread;

use crate::config::secret::{Mark, Secret, read_private};
use crate::deployment::Deployment;
use crate::limits::SECRET_FILE_BYTES;
use crate::mac::wipe_stack;
use crate::ports::Fitness;

/// A deployment whose files are read again.
pub struct Reread {
    pub deployment: Deployment,
    /// The secrets that are known; the first one signs.
    known: Vec<Mark>,
}

impl Reread {
    /// It was started with these secrets.
    pub fn new(deployment: &Deployment, roots: &[Secret]) -> Reread {
        Reread { deployment: deployment.clone(), known: roots.iter().map(Secret::mark).collect() }
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
    /// within the timeouts of connections. What a password is worth is seen when a connection is made.
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
        let roots = Secret::read_all(Path::new(file))?;
        let marks: Vec<Mark> = roots.iter().map(Secret::mark).collect();
        if marks == self.known {
            log::info!("SIGHUP: the secrets are those of before: {file}");
            return Ok(None);
        }
        // The next start must read what a journal's files were signed with since this one; jobs at rest are signed with the first.
        let (needed, why, but) = match (self.deployment.signs_journal(), self.deployment.keeps_at_rest()) {
            (true, _) => (
                self.known.len(),
                "one that the journal needs at the next start",
                ", but for the journal, at the next start",
            ),
            (false, true) => (1, "the one that jobs are signed with, which belongs on the second line", ""),
            (false, false) => (0, "", ""),
        };
        if !self.known[..needed].iter().all(|mark| marks.contains(mark)) {
            return Err(format!("{file}: it lacks {why}"));
        }
        if let Some(Fitness::Unfit(why) | Fitness::Away(why)) = self.fitness(&roots)? {
            return Err(format!("{file}: {why}"));
        }
        let signs = if marks[0] == self.known[0] { "the same one" } else { "another one" };
        log::info!(
            "SIGHUP: the secrets are others, {} of them: {signs} signs from now on{but}: {file}",
            marks.len()
        );
        self.known = marks;
        Ok(Some(roots))
    }

    /// What Redis says to these secrets. It is asked on a thread of its own: signals, as of a child's end, come to the first one and
    /// would interrupt it.
    fn fitness(&self, roots: &[Secret]) -> Result<Option<Fitness>, String> {
        let ask = || {
            let fitness = self.deployment.fitness(&self.deployment.at_rest(roots));
            wipe_stack();
            fitness
        };
        let failed = |error| format!("a thread: {error}");
        thread::scope(|scope| {
            let asked = thread::Builder::new().spawn_scoped(scope, ask).map_err(failed)?;
            asked.join().unwrap_or_else(|_| Err("the thread that asks Redis has ended".into()))
        })
    }
}
