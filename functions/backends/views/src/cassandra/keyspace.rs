//! An open keyspace: the session, its prepared statements, and what the writers of this process share.

use scylla::client::session::Session;
use tokio::sync::Mutex;

use super::{clock::Clock, error::CassandraError, schema, statements::Statements};

/// A session, and what was learned through it.
///
/// Lock order: a task that waits for a lock of this type holds no other one, so there is no cycle. Counting takes one
/// shard's lock per batch and releases it before the history's lock is taken. The batches of one call wait for each
/// other if they are of the same shard; one task polls all of them, so the one that holds the lock proceeds. Under a
/// lock only Cassandra is awaited, with a timeout for each request and a bounded time for retries.
pub(super) struct Keyspace {
    pub(super) session: Session,
    pub(super) statements: Statements,
    pub(super) clock: Clock,
    /// One per shard. Within a process one call at a time counts in a shard, since concurrent ones would lose the race
    /// for the shard's number and retry.
    pub(super) shard_locks: Vec<Mutex<()>>,
    /// The day that points are written to, if known. Locked while a point is written.
    pub(super) day: Mutex<Option<Day>>,
}

/// A point's time, in seconds since 1970 UTC, and its count: where it stands in its day.
pub(super) type Position = (i64, i64);

/// A day that is registered in the list of days, numbered since 1970 UTC.
#[derive(Clone, Copy)]
pub(super) struct Day {
    pub(super) day: i64,
    /// The newest point of earlier days, used until this day has one.
    pub(super) before: Position,
}

impl Keyspace {
    /// With so many shards.
    pub(super) fn new(session: Session, statements: Statements, clock: Clock, shards: i32) -> Self {
        let shard_locks = (0..shards).map(|_| Mutex::default()).collect();
        Self { session, statements, clock, shard_locks, day: Mutex::default() }
    }

    /// Reads a row from a majority of the replicas, and the server's time.
    ///
    /// # Errors
    /// No id could be counted now.
    pub(super) async fn check(&self) -> Result<(), CassandraError> {
        schema::check(&self.session, &self.statements, &self.clock).await
    }

    /// Queries the server's time if the last answer is too old.
    pub(super) async fn refresh_clock(&self) -> Result<(), CassandraError> {
        match self.clock.is_stale() {
            true => self.check().await,
            false => Ok(()),
        }
    }
}
