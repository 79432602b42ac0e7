//! Keeps a task running that others depend on: a panic is caught, logged with its cause and counted, and the task is
//! restarted after a backoff.

use std::{
    any::Any,
    future::Future,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use serde::Serialize;
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};

/// The delay before the first restart; it doubles with each further one.
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
/// The longest delay before a restart.
const MAX_BACKOFF: Duration = Duration::from_secs(30);
/// A task that ran this long before it failed starts again at the first backoff.
const STABLE_AFTER: Duration = Duration::from_secs(60);

/// How often a task failed, and the last reason; shared with status pages.
#[derive(Debug, Default)]
pub struct TaskHealth {
    restarts: AtomicU64,
    last_error: Mutex<Option<String>>,
}

impl TaskHealth {
    /// Restarts since the process began.
    #[must_use]
    pub fn restarts(&self) -> u64 {
        self.restarts.load(Relaxed)
    }

    /// The last failure, if any.
    #[must_use]
    pub fn last_error(&self) -> Option<String> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Records a failure that needed no restart.
    pub fn failed(&self, why: impl Into<String>) {
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(why.into());
    }

    /// Remembers, logs and counts a panic after which the task is started again.
    pub fn panicked(&self, name: &str, message: &str) {
        let why = format!("panicked: {message}");
        tracing::error!(task = name, why, "a task failed and is restarted");
        self.failed(why);
        self.restarts.fetch_add(1, Relaxed);
        crate::metrics::restarted(name);
    }

    /// Clears the last failure, because the task works again.
    pub fn recovered(&self) {
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// How a supervised task fares, as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TaskStatus {
    /// The task's name.
    pub name: String,
    /// Restarts after panics since the process began.
    pub restarts: u64,
    /// What fails now, or failed last; null when nothing did.
    pub last_error: Option<String>,
}

/// Supervised tasks by name, in the order in which they were registered; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct TaskRegistry(Arc<Mutex<Vec<NamedTask>>>);

type NamedTask = (String, Arc<TaskHealth>);

impl TaskRegistry {
    /// The health of a task, which is shown from now on.
    pub fn register(&self, name: &str) -> Arc<TaskHealth> {
        let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, health)) = tasks.iter().find(|(registered, _)| registered == name) {
            return health.clone();
        }
        let health = Arc::new(TaskHealth::default());
        tasks.push((name.to_owned(), health.clone()));
        health
    }

    /// How each task fares.
    #[must_use]
    pub fn status(&self) -> Vec<TaskStatus> {
        let status = |(name, health): &NamedTask| TaskStatus {
            name: name.clone(),
            restarts: health.restarts(),
            last_error: health.last_error(),
        };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().map(status).collect()
    }

    /// Registers a task and keeps it running; see [`supervise`].
    pub async fn supervise<F>(&self, name: &str, start: impl FnMut() -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        supervise(name, &self.register(name), start).await;
    }
}

/// Runs the future from `start` in a task, and a new one after each panic, until one returns. Dropping the returned
/// future aborts the task.
pub async fn supervise<F>(name: &str, health: &TaskHealth, mut start: impl FnMut() -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut backoff = FIRST_BACKOFF;
    loop {
        let started = Instant::now();
        let mut task = AbortOnDrop(tokio::spawn(start()));
        let panic = match (&mut task.0).await {
            Ok(()) => return,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => panic,
                // The runtime is shutting down.
                Err(_) => return,
            },
        };
        if started.elapsed() >= STABLE_AFTER {
            backoff = FIRST_BACKOFF;
        }
        health.panicked(name, &panic_message(&*panic));
        sleep(backoff).await;
        backoff = (backoff * 2).min(MAX_BACKOFF);
    }
}

/// The message of a panic.
#[must_use]
pub fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a message").to_owned()
}

struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_task_that_panics_is_started_again_until_it_returns() {
        let (health, runs) = (TaskHealth::default(), Arc::new(AtomicU32::new(0)));
        let begun = Instant::now();
        supervise("test", &health, || {
            let runs = runs.clone();
            async move { assert!(runs.fetch_add(1, Relaxed) == 3, "not yet") }
        })
        .await;
        assert_eq!((runs.load(Relaxed), health.restarts()), (4, 3));
        assert_eq!(health.last_error().as_deref(), Some("panicked: not yet"));
        assert!(begun.elapsed() >= Duration::from_millis(700), "{:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_registered_task_is_shown_once_whether_it_failed_or_not() {
        let (tasks, runs) = (TaskRegistry::default(), Arc::new(AtomicU32::new(0)));
        tasks.register("well");
        let start = || {
            let runs = runs.clone();
            async move { assert!(runs.fetch_add(1, Relaxed) == 2, "it broke") }
        };
        tasks.supervise("clock", start).await;
        assert_eq!(tasks.register("clock").restarts(), 2);
        let shown = |name: &str, restarts, last_error: Option<&str>| TaskStatus {
            name: name.to_owned(),
            restarts,
            last_error: last_error.map(str::to_owned),
        };
        assert_eq!(tasks.status(), [shown("well", 0, None), shown("clock", 2, Some("panicked: it broke"))]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_task_ends_with_its_supervisor() {
        let (health, held) = (TaskHealth::default(), Arc::new(()));
        let run = supervise("test", &health, || {
            let held = held.clone();
            async move {
                let _held = held;
                std::future::pending().await
            }
        });
        assert!(tokio::time::timeout(Duration::from_secs(1), run).await.is_err());
        while Arc::strong_count(&held) > 1 {
            tokio::task::yield_now().await;
        }
    }
}
