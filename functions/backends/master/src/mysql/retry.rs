//! Retries of transactions that met a conflict or lost their connection.

use std::time::{Duration, Instant};

use backon::{ExponentialBuilder, Retryable};

use super::session;

/// After this time a transaction is not retried, so that a server that hangs becomes an error.
const RETRY_WINDOW: Duration = Duration::from_secs(20);
/// Retries of a transaction that met a conflict or lost its connection. Jitter separates transactions that conflicted.
const BACKOFF: ExponentialBuilder = ExponentialBuilder::new()
    .with_min_delay(Duration::from_millis(5))
    .with_max_delay(Duration::from_millis(50))
    .with_max_times(9)
    .with_jitter();
/// Error numbers of a deadlock, of a lock wait timeout, and of a server that shuts down or hangs up.
const RETRYABLE: [u16; 4] = [1213, 1205, 1053, 1927];

/// Retries a transaction after a conflict or a broken connection. All of them are idempotent.
pub(super) async fn retry_on_conflict<T, F>(transaction: impl FnMut() -> F) -> Result<T, sqlx::Error>
where
    F: Future<Output = Result<T, sqlx::Error>>,
{
    let started = Instant::now();
    let may_retry = |error: &sqlx::Error| is_retryable(error) && started.elapsed() < RETRY_WINDOW;
    transaction.retry(BACKOFF).when(may_retry).await
}

fn is_retryable(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Io(_))
        || session::number(error).is_some_and(|number| RETRYABLE.contains(&number))
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, io};

    use super::*;

    #[tokio::test]
    async fn only_a_conflict_or_a_broken_connection_is_retried_and_ten_attempts_are_made() {
        let cases = [
            (sqlx::Error::Io as fn(io::Error) -> sqlx::Error, 10),
            (|error| sqlx::Error::Decode(error.into()), 1),
        ];
        for (error, expected) in cases {
            let attempts = Cell::new(0);
            let transaction = || {
                attempts.set(attempts.get() + 1);
                std::future::ready(Err::<(), _>(error(io::ErrorKind::BrokenPipe.into())))
            };
            retry_on_conflict(transaction).await.unwrap_err();
            assert_eq!(attempts.get(), expected);
        }
    }
}
