//! Group commit: all waiting requests share one commit, and so one fsync or round trip.

use std::{future::Future, sync::Arc};

use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::{error::Error, progress::Progress};

/// Maximum number of waiting requests; beyond that, a request gets 429.
const QUEUE: usize = 20_000;

/// One request's items and the channel of its outcome.
type Waiting<I, O> = (Vec<I>, oneshot::Sender<Result<Vec<O>, Error>>);

/// The queue in front of a commit. Clones share it.
pub struct GroupCommit<I, O> {
    queue: mpsc::Sender<Waiting<I, O>>,
    progress: Progress,
}

impl<I, O> Clone for GroupCommit<I, O> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone(), progress: self.progress.clone() }
    }
}

impl<I: Send + 'static, O: Send + 'static> GroupCommit<I, O> {
    /// Starts the worker that passes groups of about `most` items to `commit`, up to `at_once` groups concurrently.
    /// `commit` returns one outcome per item, in order, or one error for all. A request is never split.
    pub fn new<F, C>(most: usize, at_once: usize, commit: C) -> Self
    where
        C: Fn(Vec<I>) -> F + Send + Sync + 'static,
        F: Future<Output = Result<Vec<O>, Error>> + Send + 'static,
    {
        let (queue, waiting) = mpsc::channel(QUEUE);
        let progress = Progress::new();
        tokio::spawn(work(waiting, most, at_once, commit, progress.clone()));
        Self { queue, progress }
    }

    /// Whether commits make progress.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.progress.clone()
    }

    /// Waits until the items are committed. They are committed even if the caller stops waiting.
    pub async fn submit(&self, items: Vec<I>) -> Result<Vec<O>, Error> {
        let (answer, answered) = oneshot::channel();
        self.queue
            .try_send((items, answer))
            .map_err(|_| Error::Busy("too many requests wait already; send it again later".into()))?;
        answered
            .await
            .unwrap_or_else(|_| Err(Error::Unavailable("the commit was given up; send it again".into())))
    }
}

async fn work<I, O, F, C>(
    mut waiting: mpsc::Receiver<Waiting<I, O>>,
    most: usize,
    at_once: usize,
    commit: C,
    progress: Progress,
) where
    I: Send + 'static,
    O: Send + 'static,
    C: Fn(Vec<I>) -> F + Send + Sync + 'static,
    F: Future<Output = Result<Vec<O>, Error>> + Send + 'static,
{
    let (lanes, commit) = (Arc::new(Semaphore::new(at_once)), Arc::new(commit));
    while let Some(first) = waiting.recv().await {
        // Requests that arrive while all lanes are busy join this group.
        let Ok(lane) = lanes.clone().acquire_owned().await else { return };
        // Yield, so that every request that is readable now joins this group instead of the next.
        tokio::task::yield_now().await;
        let (items, answers) = gather(first, &mut waiting, most);
        // Spawned, so that a panic in a commit does not end the worker.
        let (commit, progress) = (commit.clone(), progress.clone());
        tokio::spawn(async move {
            answer(progress.track(async { commit(items).await }).await, answers);
            drop(lane);
        });
    }
}

fn answer<O>(committed: Result<Vec<O>, Error>, answers: Answers<O>) {
    match committed {
        Ok(outcomes) => {
            let mut outcomes = outcomes.into_iter();
            for (size, answer) in answers {
                let _ = answer.send(Ok(outcomes.by_ref().take(size).collect()));
            }
        }
        Err(error) => {
            for (_, answer) in answers {
                let _ = answer.send(Err(error.clone()));
            }
        }
    }
}

type Answers<O> = Vec<(usize, oneshot::Sender<Result<Vec<O>, Error>>)>;

fn gather<I, O>(
    first: Waiting<I, O>,
    waiting: &mut mpsc::Receiver<Waiting<I, O>>,
    most: usize,
) -> (Vec<I>, Answers<O>) {
    let (mut items, answer) = first;
    let mut answers = vec![(items.len(), answer)];
    while items.len() < most {
        let Ok((more, answer)) = waiting.try_recv() else { break };
        answers.push((more.len(), answer));
        items.extend(more);
    }
    (items, answers)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_thousand_waiting_requests_share_a_few_commits() {
        let commits = Arc::new(AtomicUsize::new(0));
        let seen = commits.clone();
        let group = GroupCommit::new(1_000, 1, move |items: Vec<usize>| {
            seen.fetch_add(1, Ordering::Relaxed);
            async move {
                tokio::task::yield_now().await;
                Ok(items.into_iter().map(|i| i * 2).collect())
            }
        });
        let requests = (0..1_000).map(|i| {
            let group = group.clone();
            tokio::spawn(async move { (i, group.submit(vec![i, i + 1]).await.unwrap()) })
        });
        for request in requests.collect::<Vec<_>>() {
            let (i, doubled) = request.await.unwrap();
            assert_eq!(doubled, [i * 2, i * 2 + 2]);
        }
        assert!(commits.load(Ordering::Relaxed) <= 10);
    }

    #[tokio::test]
    async fn one_failed_commit_fails_all_of_its_requests_and_no_later_one() {
        let calls = Arc::new(AtomicUsize::new(0));
        let group = GroupCommit::new(10, 1, move |items: Vec<u8>| {
            let first = calls.fetch_add(1, Ordering::Relaxed) == 0;
            async move { if first { Err(Error::Unavailable("away".into())) } else { Ok(items) } }
        });
        let (a, b) = tokio::join!(group.submit(vec![1]), group.submit(vec![2]));
        assert!(a.is_err() && b.is_err());
        assert_eq!(group.submit(vec![3]).await.unwrap(), [3]);
    }

    #[tokio::test]
    async fn as_many_commits_as_may_be_are_under_way_and_no_more() {
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (inside, seen) = (now.clone(), most.clone());
        let group = GroupCommit::new(1, 3, move |items: Vec<u8>| {
            let (inside, seen) = (inside.clone(), seen.clone());
            async move {
                seen.fetch_max(inside.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
                for _ in 0..10 {
                    tokio::task::yield_now().await;
                }
                inside.fetch_sub(1, Ordering::Relaxed);
                Ok(items)
            }
        });
        let requests: Vec<_> = (0..50)
            .map(|n| {
                let group = group.clone();
                tokio::spawn(async move { group.submit(vec![n]).await.unwrap() })
            })
            .collect();
        for (n, request) in requests.into_iter().enumerate() {
            assert_eq!(request.await.unwrap(), [n as u8]);
        }
        assert_eq!(most.load(Ordering::Relaxed), 3);
    }
}
