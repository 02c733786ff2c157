//! [`Forged`]: what a backend may find that nobody of the deployment wrote.

use crate::named::named;

named! {
    /// What was found where jobs are kept, and nobody of the deployment signed.
    Forged {
        /// A job: it is put aside, and dead.
        Job = "job",
        /// A lane's state, or a number that fences follow: the lane is parked, the number made again.
        State = "state",
        /// An idempotency key that names a job which was not submitted with it: it is refused.
        Key = "key",
        /// The end of a job: nobody is told.
        End = "end",
    }
}
