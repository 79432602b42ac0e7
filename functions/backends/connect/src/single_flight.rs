//! Runs work at most once at a time: callers that arrive meanwhile wait for the same result.

use std::{
    future::Future,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::watch;

/// When the work completed, and its result; `None` while it runs.
type Outcome<T> = Option<(Instant, T)>;

/// At most one run at a time. A run is a task of its own, so that a caller that gives up neither cancels it nor starts
/// another.
pub struct SingleFlight<T> {
    last: Mutex<Option<watch::Receiver<Outcome<T>>>>,
    reuse: Duration,
}

impl<T: Clone + Send + Sync + 'static> SingleFlight<T> {
    /// Also returns a result to callers within `reuse` after the run completed.
    #[must_use]
    pub fn new(reuse: Duration) -> Self {
        Self { last: Mutex::new(None), reuse }
    }

    /// Joins the run in flight, or reuses its recent result, or starts `work`. `None` if the work panicked or its
    /// runtime ended.
    pub async fn run<F>(&self, work: impl FnOnce() -> F + Send) -> Option<T>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let mut outcome = self.join_or_start(work);
        let outcome = outcome.wait_for(Option::is_some).await.ok()?;
        outcome.as_ref().map(|(_, result)| result.clone())
    }

    fn join_or_start<F>(&self, work: impl FnOnce() -> F) -> watch::Receiver<Outcome<T>>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(outcome) = last.as_ref().filter(|outcome| self.is_usable(outcome)) {
            return outcome.clone();
        }
        let (sender, receiver) = watch::channel(None);
        let work = work();
        tokio::spawn(async move {
            let result = work.await;
            sender.send_replace(Some((Instant::now(), result)));
        });
        last.insert(receiver).clone()
    }

    fn is_usable(&self, outcome: &watch::Receiver<Outcome<T>>) -> bool {
        match &*outcome.borrow() {
            Some((ended, _)) => ended.elapsed() < self.reuse,
            // A closed channel without a result belongs to a run that panicked.
            None => outcome.has_changed().is_ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn callers_that_give_up_share_one_run_with_those_that_wait() {
        let (flight, runs, go) =
            (SingleFlight::new(Duration::ZERO), Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let work = || {
            let (runs, go) = (runs.clone(), go.clone());
            async move {
                go.notified().await;
                runs.fetch_add(1, Ordering::Relaxed) + 1
            }
        };
        for _ in 0..100 {
            assert!(tokio::time::timeout(Duration::ZERO, flight.run(work)).await.is_err());
        }
        go.notify_one();
        assert_eq!(flight.run(work).await, Some(1));
        go.notify_one();
        assert_eq!(flight.run(work).await, Some(2), "an old result is not reused");
    }

    #[tokio::test]
    async fn a_recent_result_is_reused() {
        let flight = SingleFlight::new(Duration::from_secs(3_600));
        assert_eq!(flight.run(async || 1).await, Some(1));
        assert_eq!(flight.run(async || 2).await, Some(1));
    }

    #[tokio::test]
    async fn a_run_that_panicked_is_not_waited_for_again() {
        let flight = SingleFlight::new(Duration::from_secs(3_600));
        assert_eq!(flight.run(async || panic!("on purpose")).await, None::<u32>);
        assert_eq!(flight.run(async || 2).await, Some(2));
    }
}
