//! Checks that a test build can switch off, so that the tests which guard them are seen to fail (negative controls).
//!
//! Only with the cargo feature `dangerous-negative-controls`, for `tools/negative-controls`; in every other build the
//! answer is a constant, and the compiler removes the question.

/// What can be switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// A frame's or handshake message's mac must hold.
    Signature,
    /// A commit must come from its lease's holder.
    LeaseHolder,
    /// A commit must build on the lane's present state.
    StateVersion,
    /// A job enters its lane at the tail.
    LaneOrder,
    /// Effects and terminal status take hold together.
    AtomicCommit,
    /// A lane's state must be as it was signed, as a whole.
    StateSum,
    /// An idempotency key must name a job that was submitted with it.
    IdempotencyScope,
    /// A job that was lost with others twice runs alone, and only a loss alone counts.
    Suspects,
    /// Effects in parts have a bound.
    Parts,
    /// Keys are wiped when they go.
    Wiping,
    /// A caller that hangs up leaves the waiter table.
    Waiters,
    /// A job is there for its owner and for admins alone.
    Owner,
    /// A token does what its scopes say.
    Scope,
    /// What clients have not read has a budget.
    Unread,
    /// A journal's turn is synced.
    JournalSync,
    /// Names in a journal's directory are synced.
    JournalNames,
    /// Nothing is answered before what it follows from is written.
    JournalFirst,
}

/// True if `COFFERDAM_DANGEROUS_OFF` names this check.
#[cfg(feature = "dangerous-negative-controls")]
pub(crate) fn is_off(control: Control) -> bool {
    static OFF: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    let off = OFF.get_or_init(|| std::env::var("COFFERDAM_DANGEROUS_OFF").unwrap_or_default());
    *off == format!("{control:?}")
}

/// Nothing can be switched off.
#[cfg(not(feature = "dangerous-negative-controls"))]
pub(crate) const fn is_off(_: Control) -> bool {
    false
}
