//! The master dataset in MySQL, MariaDB or TiDB, using only features of all of them.

mod batch;
mod migration;
mod session;

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use backon::{ExponentialBuilder, Retryable};
use connect::{ConfigError, Resource, SingleFlight};
use domain::{Point, User, Window};
use sqlx::{
    Connection, MySqlConnection, MySqlPool, QueryBuilder, Row,
    mysql::{MySqlConnectOptions, MySqlRow},
};
use uuid::Uuid;

use crate::{MasterError, Stored, Tick};

/// Connections per process; a hundred replicas must fit into one server.
const CONNECTIONS: u32 = 2;
/// Timeout of a storing transaction or a query.
const QUERY_TIMEOUT: Duration = Duration::from_secs(10);
/// After this time a transaction is not retried, so that a server that hangs becomes an error.
const RETRY_WINDOW: Duration = Duration::from_secs(20);
/// How long a successful readiness check is reused.
const READY_REUSE: Duration = Duration::from_secs(1);
/// Retries of a transaction that met a conflict or lost its connection. Jitter separates transactions that conflicted.
const BACKOFF: ExponentialBuilder = ExponentialBuilder::new()
    .with_min_delay(Duration::from_millis(5))
    .with_max_delay(Duration::from_millis(50))
    .with_max_times(9)
    .with_jitter();
/// Error numbers of a deadlock, of a lock wait timeout, and of a server that shuts down or hangs up.
const RETRYABLE: [u16; 4] = [1213, 1205, 1053, 1927];

/// A master dataset in a server's database.
#[derive(Clone)]
pub struct MySqlMaster(Arc<Inner>);

struct Inner {
    pool: MySqlPool,
    /// Open once the tables are known to exist.
    tables: Resource<(), MasterError>,
    /// One readiness check at a time.
    checks: SingleFlight<Result<(), Arc<MasterError>>>,
    succeeded: std::sync::Mutex<Option<Instant>>,
    clock: Box<dyn Fn() -> i64 + Send + Sync>,
}

impl MySqlMaster {
    /// The database of `mysql://user:password@host:port/db`; connects lazily.
    pub fn new(url: &str) -> Result<Self, ConfigError> {
        Self::with_clock(url, || chrono::Utc::now().timestamp_millis())
    }

    /// The same with another clock, which gives milliseconds since 1970 UTC.
    pub fn with_clock(
        url: &str,
        clock: impl Fn() -> i64 + Send + Sync + 'static,
    ) -> Result<Self, ConfigError> {
        // The parser's error must not be shown: it may contain the password.
        let wrong = || ConfigError::new("MASTER_URL", "must be like mysql://user:password@host:port/db");
        let options: MySqlConnectOptions = url.parse().map_err(|_| wrong())?;
        if options.get_database().is_none() {
            return Err(wrong());
        }
        Ok(Self(Arc::new(Inner {
            pool: session::pool(options, CONNECTIONS),
            tables: Resource::default(),
            checks: SingleFlight::new(Duration::ZERO),
            succeeded: std::sync::Mutex::new(None),
            clock: Box::new(clock),
        })))
    }

    /// Spawned, so that the transaction finishes even if the caller is cancelled: an open one would block others.
    async fn run<T: Send + 'static, F>(&self, work: impl FnOnce(Self) -> F) -> Result<T, MasterError>
    where
        F: Future<Output = Result<T, MasterError>> + Send + 'static,
    {
        self.0.migrated().await?;
        let done = tokio::spawn(work(self.clone())).await?;
        if done.is_ok() {
            self.0.note_success();
        }
        done
    }
}

/// Retries a transaction after a conflict or a broken connection. All of them are idempotent.
async fn retry_on_conflict<T, F>(transaction: impl FnMut() -> F) -> Result<T, MasterError>
where
    F: Future<Output = Result<T, sqlx::Error>>,
{
    let started = Instant::now();
    let may_retry = |error: &sqlx::Error| is_retryable(error) && started.elapsed() < RETRY_WINDOW;
    Ok(transaction.retry(BACKOFF).when(may_retry).await?)
}

fn is_retryable(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Io(_))
        || session::number(error).is_some_and(|number| RETRYABLE.contains(&number))
}

impl MySqlMaster {
    pub(crate) const WRITES_AT_ONCE: usize = CONNECTIONS as usize;

    pub(crate) async fn store(&self, users: Vec<User>) -> Result<Vec<Stored>, MasterError> {
        self.run(|master| async move { retry_on_conflict(|| master.0.store(&users)).await }).await
    }

    pub(crate) async fn tick(&self, full: bool) -> Result<Tick, MasterError> {
        self.run(move |master| async move {
            let tick = || async {
                let mut connection = session::acquire(&master.0.pool).await?;
                let tick = batch::tick(&mut connection, full).await;
                session::settle(connection, tick)
            };
            retry_on_conflict(tick).await
        })
        .await
    }

    pub(crate) async fn longest(&self) -> Result<Option<User>, MasterError> {
        self.run(|master| async move {
            let mut connection = session::acquire(&master.0.pool).await?;
            let longest = session::bounded(QUERY_TIMEOUT, batch::longest(&mut connection)).await;
            Ok(session::settle(connection, longest)?)
        })
        .await
    }

    pub(crate) async fn minutes(&self, window: Window) -> Result<Vec<Point>, MasterError> {
        self.run(|master| async move {
            let mut connection = session::acquire(&master.0.pool).await?;
            let minutes = session::bounded(QUERY_TIMEOUT, batch::minutes(&mut connection, window)).await;
            Ok(session::settle(connection, minutes)?)
        })
        .await
    }

    pub(crate) async fn oldest_minute(&self) -> Result<Option<Point>, MasterError> {
        self.run(|master| async move {
            let mut connection = session::acquire(&master.0.pool).await?;
            let oldest = session::bounded(QUERY_TIMEOUT, batch::oldest_minute(&mut connection)).await;
            Ok(session::settle(connection, oldest)?)
        })
        .await
    }

    pub(crate) async fn ready(&self) -> Result<(), MasterError> {
        self.0.migrated().await?;
        if self.0.succeeded().is_some_and(|at| at.elapsed() < READY_REUSE) {
            return Ok(());
        }
        let check = || {
            let inner = self.0.clone();
            async move {
                let mut connection = session::acquire(&inner.pool).await.map_err(MasterError::from)?;
                let select = sqlx::raw_sql("SELECT 1").execute(&mut *connection);
                let answered = session::bounded(QUERY_TIMEOUT, select).await;
                session::settle(connection, answered).map_err(MasterError::from)?;
                inner.note_success();
                Ok(())
            }
        };
        match self.0.checks.run(check).await {
            Some(checked) => Ok(checked?),
            None => Err(MasterError::MySql(sqlx::Error::WorkerCrashed)),
        }
    }
}

impl Inner {
    /// Creates missing tables: once per process, in a task that all callers share.
    async fn migrated(&self) -> Result<(), MasterError> {
        let open = || {
            let pool = self.pool.clone();
            async move { migration::run(&pool).await }
        };
        self.tables.get(open).await?;
        Ok(())
    }

    fn note_success(&self) {
        *self.succeeded.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    fn succeeded(&self) -> Option<Instant> {
        *self.succeeded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn store(&self, users: &[User]) -> Result<Vec<Stored>, sqlx::Error> {
        let mut connection = session::acquire(&self.pool).await?;
        let stored = session::bounded(QUERY_TIMEOUT, self.store_on(&mut connection, users)).await;
        session::settle(connection, stored)
    }

    async fn store_on(
        &self,
        connection: &mut MySqlConnection,
        users: &[User],
    ) -> Result<Vec<Stored>, sqlx::Error> {
        let mut transaction = connection.begin().await?;
        // Tells rows of this attempt from existing ones; an attempt whose commit was not confirmed is a different one.
        let attempt = Uuid::new_v4();
        // A minute before 1970 has no name.
        let now = (self.clock)().max(0);
        let mut insert = QueryBuilder::new("INSERT INTO users (id, name, stored_at, stored_by) ");
        insert.push_values(padded(users), |mut row, user| {
            row.push_bind(user.id.as_bytes().to_vec()).push_bind(&user.name);
            row.push_bind(now).push_bind(attempt.as_bytes().to_vec());
        });
        // Unlike IGNORE, hides no other error.
        insert.push(" ON DUPLICATE KEY UPDATE seq = seq");
        insert.build().execute(&mut *transaction).await?;
        let kept = kept(&mut transaction, users).await?;
        let mut new: HashSet<_> = kept.iter().filter(|(_, k)| k.by == attempt).map(|(id, _)| *id).collect();
        if !new.is_empty() {
            let mut pending = QueryBuilder::new("INSERT INTO batch_pending (seq) ");
            let seqs: Vec<_> = new.iter().filter_map(|id| kept.get(id)).map(|kept| kept.seq).collect();
            pending.push_values(padded(&seqs), |mut row, seq| {
                row.push_bind(*seq);
            });
            pending.push(" ON DUPLICATE KEY UPDATE seq = seq");
            pending.build().execute(&mut *transaction).await?;
        }
        transaction.commit().await?;
        let outcome = |user: &User| match kept.get(&user.id) {
            _ if new.remove(&user.id) => Stored::New,
            Some(kept) if kept.name != user.name => Stored::Conflict { kept: kept.name.clone() },
            _ => Stored::Duplicate,
        };
        Ok(users.iter().map(outcome).collect())
    }
}

/// Pads to a power of two by repeating the last item, so that few distinct statements exist and stay prepared. Closing
/// one costs 40 ms: the server sends no answer, and TCP delays the next statement until it acknowledges.
fn padded<T>(items: &[T]) -> impl Iterator<Item = &T> {
    let more = items.len().next_power_of_two() - items.len();
    items.iter().chain(items.last().into_iter().cycle().take(more))
}

/// The existing row of an id.
struct Kept {
    seq: i64,
    name: String,
    by: Uuid,
}

async fn kept(connection: &mut MySqlConnection, users: &[User]) -> Result<HashMap<Uuid, Kept>, sqlx::Error> {
    let mut select = QueryBuilder::new("SELECT id, seq, name, stored_by FROM users WHERE id IN (");
    let mut ids = select.separated(", ");
    for user in padded(users) {
        ids.push_bind(user.id.as_bytes().to_vec());
    }
    select.push(")");
    let rows = select.build().fetch_all(connection).await?;
    rows.iter()
        .map(|row| {
            Ok((uuid(row, 0)?, Kept { seq: row.try_get(1)?, name: row.try_get(2)?, by: uuid(row, 3)? }))
        })
        .collect()
}

fn uuid(row: &MySqlRow, column: usize) -> Result<Uuid, sqlx::Error> {
    Uuid::from_slice(row.try_get(column)?).map_err(|e| sqlx::Error::Decode(e.into()))
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, io};

    use super::*;

    #[tokio::test]
    async fn only_a_conflict_or_a_broken_connection_is_retried_and_ten_attempts_are_made() {
        let cases = [
            (sqlx::Error::Io as fn(io::Error) -> sqlx::Error, 10),
            (|error| sqlx::Error::Decode(error.into()), 1),
        ];
        for (error, expected) in cases {
            let attempts = Cell::new(0);
            let transaction = || {
                attempts.set(attempts.get() + 1);
                std::future::ready(Err::<(), _>(error(io::ErrorKind::BrokenPipe.into())))
            };
            retry_on_conflict(transaction).await.unwrap_err();
            assert_eq!(attempts.get(), expected);
        }
    }
}
