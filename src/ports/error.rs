//! [`BackendError`]: the only error of every port.

use std::fmt;

/// The backend could not be reached or broke off. Nothing is known of what the call did, and every call is safe to
/// repeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendError(pub String);

/// What a backend has answered, if it could be reached.
pub type Reached<T> = Result<T, BackendError>;

impl fmt::Display for BackendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BackendError {}
