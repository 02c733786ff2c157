//! Why a program has ended, and what it had taken by then.

use std::fmt;
use std::time::Duration;

/// Why somebody ended it, or nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It ended by itself.
    Itself,
    /// Its job's timeout passed.
    Timeout,
    /// Its job was cancelled, or nobody here may run it any more.
    Cancelled,
    /// It wrote more than `max_output_bytes`.
    Output,
    /// It did not keep to the protocol of workers.
    Protocol,
    /// It had done its jobs, or had none for a while.
    Spare,
}

impl Why {
    pub fn as_str(self) -> &'static str {
        match self {
            Why::Itself => "by itself",
            Why::Timeout => "timeout",
            Why::Cancelled => "cancelled, or its lease was lost",
            Why::Output => "limit: more than max_output_bytes",
            Why::Protocol => "protocol",
            Why::Spare => "not needed",
        }
    }
}

/// What there is to say of a program that has ended.
#[derive(Debug)]
pub struct Report {
    pub why: Why,
    /// Its exit code; or the signal that ended it.
    pub code: Option<i32>,
    pub signal: Option<i32>,
    /// By which signal, if by somebody.
    pub how: &'static str,
    pub ran: Duration,
    /// As far as that was seen.
    pub peak_kib: Option<u64>,
    /// Processor time.
    pub processor: Duration,
    /// Its limits, as JSON.
    pub limits: String,
    /// The last of its standard error.
    pub words: String,
}

impl fmt::Display for Report {
    /// One line, then its last words.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.code, self.signal) {
            (Some(code), _) => write!(f, "exit code {code}")?,
            (None, Some(signal)) => write!(f, "ended by signal {signal} (SIG{})", signal_name(signal))?,
            (None, None) => f.write_str("ended")?,
        }
        if self.why != Why::Itself {
            write!(f, "; why: {}{}", self.why.as_str(), self.how)?;
        }
        write!(f, "; ran {:.3} s, processor {:.2} s", self.ran.as_secs_f64(), self.processor.as_secs_f64())?;
        if let Some(kib) = self.peak_kib {
            write!(f, ", peak memory {} MiB", kib.div_ceil(1_024))?;
        }
        if self.limits != "{}" {
            write!(f, "; limits {}", self.limits)?;
        }
        if !self.words.is_empty() {
            write!(f, "; last words: {}", self.words)?;
        }
        Ok(())
    }
}

/// By its number, without `SIG` (signal(7)).
fn signal_name(signal: i32) -> &'static str {
    const NAMES: &str = "HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM STKFLT CHLD CONT STOP TSTP \
        TTIN TTOU URG XCPU XFSZ VTALRM PROF WINCH IO PWR SYS";
    let place = usize::try_from(signal - 1).ok();
    place.and_then(|place| NAMES.split_ascii_whitespace().nth(place)).unwrap_or("…")
}
