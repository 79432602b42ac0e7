//! Readiness of a function. All probes share one check of the store, which always completes; no probe waits long for
//! it.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, timeout},
};

use crate::{error::Error, progress::Progress};

/// How long a probe waits for a check. Knative's queue-proxy gives up after 100 ms.
const PROBE_TIMEOUT: Duration = Duration::from_millis(80);
/// How long a successful check is reused.
const FRESH: Duration = Duration::from_secs(1);
/// A check that takes longer is reported as hanging, even if the previous one succeeded.
const HANGING: Duration = Duration::from_secs(3);

type Check = Box<dyn Fn() -> Pin<Box<dyn Future<Output = Result<(), Error>> + Send>> + Send + Sync>;

/// The readiness of one function. Clones share it.
#[derive(Clone)]
pub(crate) struct Readiness(Arc<Shared>);

struct Shared {
    check: Check,
    /// Writers whose stalls make the function unready.
    writer: Option<Progress>,
    state: Mutex<State>,
    /// Counts finished checks, so that probes can wait for the next.
    finished: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    /// Start of the check in flight.
    running: Option<Instant>,
    last: Option<(Instant, Result<(), Error>)>,
}

impl Readiness {
    /// Unready while `writer` is stalled.
    pub(crate) fn new<F>(writer: Option<Progress>, check: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<(), Error>> + Send + 'static,
    {
        Self(Arc::new(Shared {
            check: Box::new(move || Box::pin(check())),
            writer,
            state: Mutex::default(),
            finished: watch::Sender::new(0),
        }))
    }

    /// Answers a probe within 100 ms, whatever the store does.
    pub(crate) async fn probe(&self) -> Result<(), Error> {
        if let Some(why) = self.0.writer.as_ref().and_then(Progress::stalled) {
            return Err(Error::Unavailable(why));
        }
        let mut finished = self.0.finished.subscribe();
        if self.is_fresh() {
            return Ok(());
        }
        self.start();
        let _ = timeout(PROBE_TIMEOUT, finished.changed()).await;
        self.verdict()
    }

    fn is_fresh(&self) -> bool {
        matches!(&lock(&self.0.state).last, Some((at, Ok(()))) if at.elapsed() < FRESH)
    }

    /// Starts a check unless one is in flight. Spawned, so that a client that disconnects cancels nothing.
    fn start(&self) {
        let mut state = lock(&self.0.state);
        if state.running.is_some() {
            return;
        }
        state.running = Some(Instant::now());
        let shared = self.0.clone();
        tokio::spawn(async move {
            // A nested task, so that a panic fails the check and not the readiness.
            let check = tokio::spawn((shared.check)());
            let result = check
                .await
                .unwrap_or_else(|_| Err(Error::Unavailable("the check of the store panicked".into())));
            let mut state = lock(&shared.state);
            state.running = None;
            state.last = Some((Instant::now(), result));
            drop(state);
            shared.finished.send_modify(|n| *n += 1);
        });
    }

    /// The last result, unless the check in flight hangs.
    fn verdict(&self) -> Result<(), Error> {
        let state = lock(&self.0.state);
        let running = state.running.map(|since| since.elapsed());
        match (&state.last, running) {
            (_, Some(running)) if running > HANGING => Err(Error::Unavailable(format!(
                "still connecting to the store: its check has been under way for {} s",
                running.as_secs()
            ))),
            (Some((_, last)), _) => last.clone(),
            (None, _) => Err(Error::Unavailable("still connecting to the store; ask again".into())),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::{sync::Semaphore, time::advance};

    use super::*;

    /// A check that waits for a permit; counts how many began and how many ended.
    fn gated() -> (Readiness, Arc<Semaphore>, Arc<AtomicUsize>, Arc<AtomicUsize>) {
        let (gate, began, ended) = (Arc::new(Semaphore::new(0)), Arc::default(), Arc::default());
        let (g, b, e): (_, Arc<AtomicUsize>, Arc<AtomicUsize>) = (gate.clone(), began, ended);
        let (began, ended) = (b.clone(), e.clone());
        let readiness = Readiness::new(None, move || {
            let (gate, began, ended) = (g.clone(), b.clone(), e.clone());
            async move {
                began.fetch_add(1, Ordering::Relaxed);
                gate.acquire().await.map_err(|e| Error::unavailable(&e))?.forget();
                ended.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
        });
        (readiness, gate, began, ended)
    }

    #[tokio::test(start_paused = true)]
    async fn a_hundred_impatient_probes_share_one_check_that_runs_to_its_end() {
        let (readiness, gate, began, ended) = gated();
        for _ in 0..100 {
            let started = Instant::now();
            let why = readiness.probe().await.unwrap_err().to_string();
            assert!(why.contains("still connecting"), "{why}");
            assert!(started.elapsed() < Duration::from_millis(100));
        }
        assert_eq!(began.load(Ordering::Relaxed), 1);
        gate.add_permits(1);
        readiness.probe().await.unwrap();
        assert_eq!(ended.load(Ordering::Relaxed), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_is_dropped_does_not_cancel_the_check() {
        let (readiness, gate, _, ended) = gated();
        for _ in 0..10 {
            let _ = timeout(Duration::from_millis(1), readiness.probe()).await;
        }
        gate.add_permits(1);
        readiness.probe().await.unwrap();
        assert_eq!(ended.load(Ordering::Relaxed), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_store_stays_ready_and_one_that_hangs_does_not() {
        let (readiness, gate, ..) = gated();
        gate.add_permits(1);
        readiness.probe().await.unwrap();
        advance(FRESH).await;
        readiness.probe().await.unwrap();
        advance(HANGING).await;
        let why = readiness.probe().await.unwrap_err().to_string();
        assert!(why.contains("has been under way for 3 s"), "{why}");
        gate.add_permits(1);
        readiness.probe().await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_fresh_success_is_not_checked_again() {
        let (readiness, gate, began, _) = gated();
        gate.add_permits(10);
        for _ in 0..10 {
            readiness.probe().await.unwrap();
        }
        assert_eq!(began.load(Ordering::Relaxed), 1);
        advance(FRESH).await;
        readiness.probe().await.unwrap();
        assert_eq!(began.load(Ordering::Relaxed), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_check_that_panics_is_a_failure_and_the_next_may_succeed() {
        let calls = Arc::new(AtomicUsize::new(0));
        let readiness = Readiness::new(None, move || {
            let first = calls.fetch_add(1, Ordering::Relaxed) == 0;
            async move { if first { panic!("on purpose") } else { Ok(()) } }
        });
        assert!(readiness.probe().await.is_err());
        readiness.probe().await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_last_check_failed_with_is_told_while_the_next_runs() {
        let calls = Arc::new(AtomicUsize::new(0));
        let readiness = Readiness::new(None, move || {
            let first = calls.fetch_add(1, Ordering::Relaxed) == 0;
            async move {
                if !first {
                    std::future::pending::<()>().await;
                }
                Err(Error::Unavailable("no such keyspace".into()))
            }
        });
        for _ in 0..3 {
            assert_eq!(readiness.probe().await.unwrap_err().to_string(), "no such keyspace");
        }
    }
}
