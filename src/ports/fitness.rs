//! [`Fitness`]: is a backend fit to keep jobs, and what does it promise?

/// What a look at the backend came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fitness {
    /// It keeps jobs; how safely.
    Fit(String),
    /// It would lose them, or does not let us in: what to change.
    Unfit(String),
    /// It cannot be reached now.
    Away(String),
}
