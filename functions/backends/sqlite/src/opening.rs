//! Opens a resource in one background task whose result all callers share. A caller that is cancelled cancels nothing,
//! so no lock, transaction or half-open connection is left behind.

use std::{
    future::Future,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use connect::SingleFlight;
use tokio::task::JoinError;

/// Backoff after the first failure; it doubles with each further failure.
const FIRST_BACKOFF: Duration = Duration::from_millis(10);
/// Longest backoff.
const MAX_BACKOFF: Duration = Duration::from_millis(500);

/// A resource that is opened lazily, by one attempt at a time.
pub struct Opening<T, E> {
    attempts: SingleFlight<Result<T, Arc<E>>>,
    done: Arc<Done<T>>,
}

struct Done<T> {
    opened: OnceLock<T>,
    failures: AtomicU32,
}

impl<T, E> Default for Opening<T, E>
where
    T: Clone + Send + Sync + 'static,
    E: From<JoinError> + Send + Sync + 'static,
{
    fn default() -> Self {
        let done = Done { opened: OnceLock::new(), failures: AtomicU32::new(0) };
        Self { attempts: SingleFlight::new(Duration::ZERO), done: Arc::new(done) }
    }
}

impl<T, E> Opening<T, E>
where
    T: Clone + Send + Sync + 'static,
    E: From<JoinError> + Send + Sync + 'static,
{
    /// The resource. Joins the attempt in flight, or starts one; after failures an attempt begins with a backoff.
    ///
    /// # Errors
    /// The error of an attempt that ended while the caller waited. The next call tries again.
    pub async fn get<F>(&self, open: impl Fn() -> F + Send + Sync) -> Result<T, Arc<E>>
    where
        F: Future<Output = Result<T, E>> + Send + 'static,
    {
        loop {
            if let Some(opened) = self.done.opened.get() {
                return Ok(opened.clone());
            }
            // No result: the runtime of the attempt has ended.
            if let Some(outcome) = self.attempts.run(|| attempt(self.done.clone(), open())).await {
                return outcome;
            }
        }
    }
}

async fn attempt<T, E, F>(done: Arc<Done<T>>, open: F) -> Result<T, Arc<E>>
where
    T: Clone + Send + Sync + 'static,
    E: From<JoinError> + Send + Sync + 'static,
    F: Future<Output = Result<T, E>> + Send + 'static,
{
    if let Some(opened) = done.opened.get() {
        return Ok(opened.clone());
    }
    tokio::time::sleep(backoff(done.failures.load(Ordering::Relaxed))).await;
    // A task of its own, so that a panic becomes an error.
    match tokio::spawn(open).await.unwrap_or_else(|e| Err(e.into())) {
        Ok(opened) => Ok(done.opened.get_or_init(|| opened).clone()),
        Err(error) => {
            done.failures.fetch_add(1, Ordering::Relaxed);
            Err(Arc::new(error))
        }
    }
}

/// The backoff after a number of failures in a row.
pub(crate) fn backoff(failures: u32) -> Duration {
    match failures.checked_sub(1) {
        None => Duration::ZERO,
        Some(doublings) => FIRST_BACKOFF.saturating_mul(1 << doublings.min(10)).min(MAX_BACKOFF),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use tokio::sync::Notify;

    use super::*;
    use crate::Error;

    #[tokio::test]
    async fn callers_that_go_away_cancel_nothing_and_share_one_attempt() {
        let opening = Opening::<usize, Error>::default();
        let (started, go) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let open = || {
            let (started, go) = (started.clone(), go.clone());
            async move {
                started.fetch_add(1, Ordering::Relaxed);
                go.notified().await;
                Ok(7)
            }
        };
        for ms in [0, 1, 5] {
            let gone = tokio::time::timeout(Duration::from_millis(ms), opening.get(open)).await;
            assert!(gone.is_err());
        }
        go.notify_one();
        let opened = tokio::time::timeout(Duration::from_secs(10), opening.get(open)).await;
        assert_eq!(opened.expect("the first attempt goes on").unwrap(), 7);
        assert_eq!(opening.get(open).await.unwrap(), 7);
        assert_eq!(started.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn a_failure_and_a_panic_are_told_and_tried_again() {
        let opening = Opening::<usize, Error>::default();
        let failed = opening.get(|| async { Err(Error::Sql(sqlx::Error::PoolTimedOut)) }).await.unwrap_err();
        assert!(matches!(*failed, Error::Sql(sqlx::Error::PoolTimedOut)));
        let panicked = opening.get(|| async { panic!("on purpose") }).await.unwrap_err();
        assert!(matches!(*panicked, Error::GivenUp(_)));
        assert_eq!(opening.get(|| async { Ok(1) }).await.unwrap(), 1);
    }

    #[test]
    fn the_backoff_grows_up_to_a_bound() {
        assert_eq!([0, 1, 2, 3].map(|n| backoff(n).as_millis()), [0, 10, 20, 40]);
        assert_eq!(backoff(u32::MAX), MAX_BACKOFF);
    }
}
