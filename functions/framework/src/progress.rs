//! Tracks whether writes make progress: how long commits take, and how long they have been failing. Readiness, metrics
//! and the log use it, because a store that hangs in a commit may still answer readiness checks.

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use tokio::time::{Instant, timeout};

use crate::error::Error;

/// A commit that takes longer is a stall, and so are commits that fail for as long.
const STALL: Duration = Duration::from_secs(5);
/// How long failed commits count after the last one. An unready function gets no requests, so no success could clear
/// them.
const MEMORY: Duration = Duration::from_secs(10);

/// The progress of one writer. Clones share it.
#[derive(Clone)]
pub struct Progress(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    next: u64,
    /// Start times of the commits in flight, oldest first.
    under_way: BTreeMap<u64, Instant>,
    failing: Option<Failing>,
    /// Whether the stall was logged.
    told: bool,
    failed: u64,
}

struct Failing {
    since: Instant,
    last: Instant,
    why: String,
}

/// Every writer of this process, for its metrics.
static WRITERS: Mutex<Vec<Weak<Mutex<State>>>> = Mutex::new(Vec::new());

impl Progress {
    pub(crate) fn new() -> Self {
        let state = Arc::default();
        let mut writers = WRITERS.lock().unwrap_or_else(PoisonError::into_inner);
        writers.retain(|w| w.strong_count() > 0);
        writers.push(Arc::downgrade(&state));
        Self(state)
    }

    /// Runs a commit to completion and records its outcome.
    pub(crate) async fn track<T>(&self, commit: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let begun = self.begin();
        let mut commit = std::pin::pin!(commit);
        let result = match timeout(STALL, &mut commit).await {
            Ok(result) => result,
            Err(_) => {
                self.tell("a commit has been under way for 5 s; writing makes no progress");
                commit.await
            }
        };
        drop(begun);
        self.finish(result.as_ref().err());
        result
    }

    /// The reason for a stall, if writes make no progress.
    pub(crate) fn stalled(&self) -> Option<String> {
        let state = self.lock();
        if let Some(age) = state.oldest().filter(|age| *age > STALL) {
            return Some(format!("the last commit has been under way for {} s", age.as_secs()));
        }
        let failing = state.failing.as_ref()?;
        (failing.last.elapsed() < MEMORY && failing.last - failing.since > STALL).then(|| {
            format!("commits have failed for {} s: {}", failing.since.elapsed().as_secs(), failing.why)
        })
    }

    fn begin(&self) -> Begun<'_> {
        let mut state = self.lock();
        let id = state.next;
        state.next += 1;
        state.under_way.insert(id, Instant::now());
        Begun(self, id)
    }

    fn finish(&self, error: Option<&Error>) {
        let now = Instant::now();
        let mut state = self.lock();
        let Some(error) = error.filter(|e| !matches!(e, Error::Rejected(_))) else {
            state.failing = None;
            if std::mem::take(&mut state.told) {
                tracing::info!("commits succeed again");
            }
            return;
        };
        state.failed += 1;
        let since = state.failing.as_ref().filter(|f| now - f.last < MEMORY).map_or(now, |f| f.since);
        state.failing = Some(Failing { since, last: now, why: error.to_string() });
        drop(state);
        if now - since > STALL {
            self.tell("commits have failed for 5 s; writing makes no progress");
        }
    }

    /// Logs a stall once, until writes succeed again.
    fn tell(&self, what: &'static str) {
        let mut state = self.lock();
        if !std::mem::replace(&mut state.told, true) {
            let why = state.failing.as_ref().map(|f| f.why.as_str()).unwrap_or_default();
            tracing::error!(why, "{what}");
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn oldest(&self) -> Option<Duration> {
        self.under_way.first_key_value().map(|(_, began)| began.elapsed())
    }
}

/// A commit in flight; the guard removes it on drop, after a panic too.
struct Begun<'a>(&'a Progress, u64);

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        self.0.lock().under_way.remove(&self.1);
    }
}

/// Over all writers of this process: how long the oldest commit has been under way (zero when there is none), and how
/// many commits failed.
pub(crate) fn measure() -> (Duration, u64) {
    let writers = WRITERS.lock().unwrap_or_else(PoisonError::into_inner);
    let mut sum = (Duration::ZERO, 0);
    for writer in writers.iter().filter_map(Weak::upgrade) {
        let state = writer.lock().unwrap_or_else(PoisonError::into_inner);
        sum = (sum.0.max(state.oldest().unwrap_or_default()), sum.1 + state.failed);
    }
    sum
}

#[cfg(test)]
mod tests {
    use tokio::time::{advance, sleep};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_commit_that_hangs_is_a_stall_until_it_ends() {
        let progress = Progress::new();
        let tracked = progress.clone();
        let task = tokio::spawn(async move {
            tracked
                .track(async {
                    sleep(Duration::from_secs(20)).await;
                    Ok(())
                })
                .await
        });
        sleep(Duration::from_secs(4)).await;
        assert_eq!(progress.stalled(), None);
        sleep(Duration::from_secs(3)).await;
        assert_eq!(progress.stalled().unwrap(), "the last commit has been under way for 7 s");
        assert!(measure().0 >= Duration::from_secs(7));
        task.await.unwrap().unwrap();
        assert_eq!(progress.stalled(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn commits_that_keep_failing_are_a_stall_that_is_forgotten_when_nobody_tries() {
        let progress = Progress::new();
        for _ in 0..8 {
            let _ = progress.track(async { Err::<(), _>(Error::Unavailable("disk full".into())) }).await;
            advance(Duration::from_secs(1)).await;
        }
        assert_eq!(progress.stalled().unwrap(), "commits have failed for 8 s: disk full");
        advance(MEMORY).await;
        assert_eq!(progress.stalled(), None);
        let _ = progress.track(async { Err::<(), _>(Error::Unavailable("disk full".into())) }).await;
        assert_eq!(progress.stalled(), None);
        progress.track(async { Ok(()) }).await.unwrap();
        assert_eq!(progress.stalled(), None);
    }
}
