//! Retries of conditional writes that other processes contend for.

use std::time::{Duration, Instant};

use backon::ExponentialBuilder;

use super::error::CassandraError;

/// How long a call retries.
const RETRY_WINDOW: Duration = Duration::from_secs(10);
/// Grows with each lost race; jitter separates the processes that contend.
pub(super) const BACKOFF: ExponentialBuilder = ExponentialBuilder::new()
    .with_min_delay(Duration::from_millis(1))
    .with_max_delay(Duration::from_millis(100))
    .without_max_times()
    .with_jitter();

/// Decides after each failed attempt of a call that begins now whether to retry. At least one attempt is made after
/// the first, however long that took.
pub(super) fn may_retry() -> impl FnMut(&CassandraError) -> bool + Send {
    let deadline = Instant::now() + RETRY_WINDOW;
    let mut is_last = false;
    move |error| {
        let retries = error.is_retryable() && !is_last;
        is_last = Instant::now() > deadline;
        retries
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_race_is_retried_and_a_wrong_answer_is_not() {
        let mut may_retry = may_retry();
        assert!(may_retry(&CassandraError::Contended) && may_retry(&CassandraError::Contended));
        assert!(!may_retry(&CassandraError::NoOutcome));
    }
}
