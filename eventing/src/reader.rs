//! Reads a topic ahead for a source and commits for it, as a member of a group that is served whatever the source does.

use std::{collections::BTreeMap, time::Duration};

use backend_log::{Batch, Consumer, LogError};
use tokio::{
    sync::{mpsc, oneshot},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::source::{AGAIN, chain};

/// Records of one read.
const PAGE: usize = 500;
/// How long there may be no room for records before the group is served without taking any.
const ROOM: Duration = Duration::from_secs(1);

/// Partitions that others want, and where the offsets go that may be committed of them.
pub(crate) type Leaving = (Vec<i32>, oneshot::Sender<BTreeMap<i32, i64>>);

/// Owns the consumer: reads ahead as far as there is room, serves the group, and commits what it is told.
pub(crate) struct Reader {
    pub(crate) consumer: Box<dyn Consumer>,
    pub(crate) leaving: mpsc::Sender<Leaving>,
    /// What could not be committed, as when the group is being divided anew.
    pub(crate) failed: Option<BTreeMap<i32, i64>>,
}

impl Reader {
    /// Reads until whoever sends commits is gone.
    pub(crate) async fn run(
        mut self,
        records: mpsc::Sender<Batch>,
        mut commits: mpsc::Receiver<BTreeMap<i32, i64>>,
        stop: CancellationToken,
    ) {
        let mut patience = ROOM;
        loop {
            let retry = self.failed.clone();
            tokio::select! {
                // First, so that a busy log does not keep commits waiting.
                biased;
                next = commits.recv() => match next {
                    Some(next) => self.commit(next).await,
                    None => return,
                },
                Some(next) = async { sleep(AGAIN).await; retry }, if self.failed.is_some() => {
                    self.commit(next).await;
                }
                (batch, room) = next(&mut *self.consumer, &records, patience), if !stop.is_cancelled() => {
                    patience = ROOM;
                    match batch {
                        Ok(batch) => {
                            let revoked = batch.revoked.clone();
                            if let Some(room) = room.filter(|_| !batch.records.is_empty()) {
                                room.send(batch);
                            }
                            if !revoked.is_empty() {
                                self.let_go(revoked).await;
                                // The group waits for the next poll.
                                patience = Duration::ZERO;
                            }
                        }
                        Err(error) => {
                            tracing::warn!(error = %chain(&error), "cannot read the log now");
                            sleep(AGAIN).await;
                        }
                    }
                }
                () = stop.cancelled(), if !stop.is_cancelled() => {}
            }
        }
    }

    /// Commits what is finished of partitions that others want.
    async fn let_go(&mut self, partitions: Vec<i32>) {
        if let Some(failed) = &mut self.failed {
            failed.retain(|partition, _| !partitions.contains(partition));
        }
        let (answer, answered) = oneshot::channel();
        // A player that has stopped commits by itself what ended.
        if self.leaving.send((partitions, answer)).await.is_ok()
            && let Ok(next) = answered.await
            && !next.is_empty()
            && let Err(error) = self.consumer.commit(&next).await
        {
            tracing::warn!(error = %chain(&error), "cannot commit offsets of partitions that others want");
        }
    }

    async fn commit(&mut self, next: BTreeMap<i32, i64>) {
        self.failed = match self.consumer.commit(&next).await {
            Ok(()) => None,
            Err(error) => {
                tracing::warn!(error = %chain(&error), "cannot commit offsets now");
                Some(next)
            }
        };
    }
}

/// Waits for records while there is room for them; without room for that long takes none, but serves the group.
async fn next<'a>(
    consumer: &mut dyn Consumer,
    records: &'a mpsc::Sender<Batch>,
    patience: Duration,
) -> (Result<Batch, LogError>, Option<mpsc::Permit<'a, Batch>>) {
    let room = match timeout(patience, records.reserve()).await {
        Ok(room) => room,
        Err(_) => tokio::select! {
            biased;
            room = records.reserve() => room,
            batch = consumer.poll(0) => return (batch, None),
        },
    };
    match room {
        Ok(room) => (consumer.poll(PAGE).await, Some(room)),
        // The player is gone, and with it soon the commits.
        Err(_) => std::future::pending().await,
    }
}
