//! A resource that is opened on first use, in a task of its own, and shared by all callers: a file with its tables, a
//! session. A caller that is cancelled cancels nothing, so no lock, transaction or half-open connection is left behind.

use std::{
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{task::JoinError, time::Instant};

use crate::{Backoff, SingleFlight};

/// A resource that is discarded sooner counts as another failed attempt: its novelty did not help.
const STABLE_AFTER: Duration = Duration::from_secs(10);

/// A resource `T` that is opened by one attempt at a time. Failed attempts are followed by a backoff.
///
/// Its lock is a leaf: nothing is awaited and no other lock is taken while it is held. Attempts run under no lock, and
/// callers wait for one without holding it, so an attempt that hangs blocks only those who asked for the resource.
pub struct Resource<T, E> {
    attempts: SingleFlight<Result<Arc<T>, Arc<E>>>,
    state: Arc<Mutex<State<T>>>,
}

struct State<T> {
    /// What is open, and since when.
    open: Option<(Arc<T>, Instant)>,
    /// Grows with failed attempts since a resource was last stable.
    backoff: Backoff,
}

impl<T, E> Default for Resource<T, E>
where
    T: Send + Sync + 'static,
    E: From<JoinError> + Send + Sync + 'static,
{
    fn default() -> Self {
        let state = State { open: None, backoff: Backoff::default() };
        Self { attempts: SingleFlight::new(Duration::ZERO), state: Arc::new(Mutex::new(state)) }
    }
}

impl<T, E> Resource<T, E>
where
    T: Send + Sync + 'static,
    E: From<JoinError> + Send + Sync + 'static,
{
    /// The open resource. Without one, joins the attempt in flight or starts one; an attempt after a failure begins
    /// with a delay of at most half a second.
    ///
    /// # Errors
    /// The error of the attempt that ended while the caller waited; all who waited share it. The next call tries again.
    pub async fn get<F>(&self, open: impl Fn() -> F + Send + Sync) -> Result<Arc<T>, Arc<E>>
    where
        F: Future<Output = Result<T, E>> + Send + 'static,
    {
        loop {
            if let Some(open) = lock(&self.state).current() {
                return Ok(open);
            }
            // No outcome: the runtime of the attempt has ended.
            if let Some(outcome) = self.attempts.run(|| attempt(self.state.clone(), open())).await {
                return outcome;
            }
        }
    }

    /// Gives a resource up, so that the next caller opens another one. Does nothing and returns false if that has
    /// happened already.
    pub fn discard(&self, suspect: &Arc<T>) -> bool {
        let mut state = lock(&self.state);
        let Some((_, since)) = state.open.take_if(|(open, _)| Arc::ptr_eq(open, suspect)) else {
            return false;
        };
        if since.elapsed() >= STABLE_AFTER {
            state.backoff.reset();
        } else {
            state.backoff.failed();
        }
        true
    }
}

async fn attempt<T, E, F>(state: Arc<Mutex<State<T>>>, open: F) -> Result<Arc<T>, Arc<E>>
where
    T: Send + Sync + 'static,
    E: From<JoinError> + Send + Sync + 'static,
    F: Future<Output = Result<T, E>> + Send + 'static,
{
    let delay = {
        let state = lock(&state);
        // Another attempt may have ended after the caller looked.
        if let Some(open) = state.current() {
            return Ok(open);
        }
        state.backoff.delay()
    };
    tokio::time::sleep(delay).await;
    // A task of its own, so that a panic becomes an error.
    let opened = tokio::spawn(open).await.unwrap_or_else(|error| Err(error.into()));
    let mut state = lock(&state);
    match opened {
        Ok(open) => Ok(state.open.insert((Arc::new(open), Instant::now())).0.clone()),
        Err(error) => {
            state.backoff.failed();
            Err(Arc::new(error))
        }
    }
}

impl<T> State<T> {
    fn current(&self) -> Option<Arc<T>> {
        self.open.as_ref().map(|(open, _)| open.clone())
    }
}

fn lock<T>(state: &Mutex<State<T>>) -> MutexGuard<'_, State<T>> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Notify;

    use super::*;

    #[derive(Debug)]
    enum Failed {
        OnPurpose,
        GivenUp,
    }

    impl From<JoinError> for Failed {
        fn from(_: JoinError) -> Self {
            Self::GivenUp
        }
    }

    /// Opens numbers: 1, 2, 3, …
    fn counting(opened: &Arc<AtomicUsize>) -> impl Fn() -> std::future::Ready<Result<usize, Failed>> {
        let opened = opened.clone();
        move || std::future::ready(Ok(opened.fetch_add(1, Ordering::Relaxed) + 1))
    }

    #[tokio::test]
    async fn callers_that_go_away_cancel_nothing_and_share_one_attempt() {
        let resource = Resource::<usize, Failed>::default();
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
            let gone = tokio::time::timeout(Duration::from_millis(ms), resource.get(open)).await;
            assert!(gone.is_err());
        }
        go.notify_one();
        let opened = tokio::time::timeout(Duration::from_secs(10), resource.get(open)).await;
        assert_eq!(*opened.expect("the first attempt goes on").unwrap(), 7);
        assert_eq!(*resource.get(open).await.unwrap(), 7);
        assert_eq!(started.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn a_failure_and_a_panic_are_told_and_tried_again() {
        let resource = Resource::<usize, Failed>::default();
        let failed = resource.get(|| async { Err(Failed::OnPurpose) }).await.unwrap_err();
        assert!(matches!(*failed, Failed::OnPurpose));
        let panicked = resource.get(|| async { panic!("on purpose") }).await.unwrap_err();
        assert!(matches!(*panicked, Failed::GivenUp));
        assert_eq!(*resource.get(|| async { Ok(1) }).await.unwrap(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn all_who_wait_for_a_failed_attempt_get_its_error() {
        let resource = Resource::<usize, Failed>::default();
        let attempts = AtomicUsize::new(0);
        let open = || {
            attempts.fetch_add(1, Ordering::Relaxed);
            async {
                tokio::time::sleep(Duration::from_secs(1)).await;
                Err(Failed::OnPurpose)
            }
        };
        let (one, other) = tokio::join!(resource.get(open), resource.get(open));
        assert!(Arc::ptr_eq(&one.unwrap_err(), &other.unwrap_err()));
        assert_eq!(attempts.load(Ordering::Relaxed), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_discarded_resource_is_opened_once_more_and_the_new_one_stays() {
        let (resource, opened) = (Resource::<usize, Failed>::default(), Arc::default());
        let old = resource.get(counting(&opened)).await.unwrap();
        assert!(resource.discard(&old));
        assert_eq!(*resource.get(counting(&opened)).await.unwrap(), 2);
        assert!(!resource.discard(&old), "others still hold the old one");
        assert_eq!(*resource.get(counting(&opened)).await.unwrap(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn what_fails_soon_after_it_was_opened_is_reopened_after_a_delay() {
        let (resource, opened) = (Resource::<usize, Failed>::default(), Arc::default());
        let reopen = async || {
            let begun = Instant::now();
            let open = resource.get(counting(&opened)).await.unwrap();
            (open, begun.elapsed().as_millis())
        };
        for expected in [0, 10, 20, 40] {
            let (open, waited) = reopen().await;
            assert!((expected..=expected + 2).contains(&waited), "{waited} ms instead of {expected}");
            resource.discard(&open);
        }
        let (open, _) = reopen().await;
        tokio::time::advance(STABLE_AFTER).await;
        resource.discard(&open);
        let (_, waited) = reopen().await;
        assert!(waited <= 2, "{waited} ms after a stable one");
    }
}
