//! Supervision of essential tasks: a panic is caught, logged and recorded, and the task restarts.

use std::{
    any::Any,
    collections::BTreeMap,
    future::Future,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::FutureExt;
use serde::Serialize;
use tokio::time::sleep;

const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(10);

/// Panics of tasks, by the task's name; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct TaskHealth(Arc<Mutex<BTreeMap<String, TaskFailures>>>);

/// Panics of one task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TaskFailures {
    /// The task.
    pub name: String,
    /// Panics since the start.
    pub panics: u64,
    /// Message of the last panic.
    pub last_error: String,
}

impl TaskHealth {
    /// Records and logs a panic.
    pub fn record(&self, name: &str, message: &str) {
        tracing::error!(task = name, error = message, "a task panicked and begins again");
        let mut failures = self.lock();
        let failure = failures.entry(name.to_owned()).or_insert_with(|| TaskFailures {
            name: name.to_owned(),
            panics: 0,
            last_error: String::new(),
        });
        failure.panics += 1;
        message.clone_into(&mut failure.last_error);
    }

    /// The tasks that panicked, by name.
    #[must_use]
    pub fn failures(&self) -> Vec<TaskFailures> {
        self.lock().values().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, TaskFailures>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs the future that `task` returns until it completes. Restarts it after a panic, with exponential backoff.
pub async fn supervise<F: Future<Output = ()>>(name: &str, health: &TaskHealth, mut task: impl FnMut() -> F) {
    let mut backoff = FIRST_BACKOFF;
    while let Err(panic) = AssertUnwindSafe(async { task().await }).catch_unwind().await {
        health.record(name, &panic_message(&*panic));
        sleep(backoff).await;
        backoff = (backoff * 2).min(MAX_BACKOFF);
    }
}

/// The message of a panic.
#[must_use]
pub fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_panics_begins_again_and_is_remembered() {
        let (health, mut begun) = (TaskHealth::default(), 0);
        let task = || {
            begun += 1;
            let begun = begun;
            async move { assert!(begun > 2, "it broke") }
        };
        supervise("clock", &health, task).await;
        let failures = health.failures();
        assert_eq!((failures[0].name.as_str(), failures[0].panics), ("clock", 2));
        assert_eq!(failures[0].last_error, "it broke");
    }
}
