//! The master dataset in MySQL, MariaDB or TiDB, using only features of all of them.

mod batch;
mod migration;
mod retry;
mod session;
mod store;
mod values;

use std::{
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use connect::{ConfigError, Resource, SingleFlight};
use domain::{Point, User, Window};
use sqlx::{MySqlPool, mysql::MySqlConnectOptions};

use self::{
    retry::retry_on_conflict,
    session::{QUERY_TIMEOUT, bounded},
};
use crate::{MasterError, Stored, Tick};

/// Connections per process; a hundred replicas must fit into one server.
const CONNECTIONS: u32 = 2;
/// How long a successful readiness check is reused.
const READY_REUSE: Duration = Duration::from_secs(1);
/// A master dataset in a server's database.
#[derive(Clone)]
pub struct MySqlMaster(Arc<Inner>);

/// Why the pool cannot deadlock: a task holds at most one connection, and waits neither for a second one nor for
/// another task while it does. Waiting for a connection, each statement and each transaction have timeouts. Row locks of
/// transactions may form a cycle, which the server detects: it rolls one of them back, and that one is retried. The
/// migration polls its lock instead of waiting for it. The lock of `succeeded` is a leaf.
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

impl MySqlMaster {
    pub(crate) const WRITES_AT_ONCE: usize = CONNECTIONS as usize;

    pub(crate) async fn store(&self, users: Vec<User>) -> Result<Vec<Stored>, MasterError> {
        self.run(|master| async move {
            let store = || async {
                let mut connection = session::acquire(&master.0.pool).await?;
                let now = (master.0.clock)();
                let stored = bounded(QUERY_TIMEOUT, store::store(&mut connection, &users, now)).await;
                session::settle(connection, stored)
            };
            Ok(retry_on_conflict(store).await?)
        })
        .await
    }

    pub(crate) async fn tick(&self, full: bool) -> Result<Tick, MasterError> {
        self.run(move |master| async move {
            let tick = || async {
                let mut connection = session::acquire(&master.0.pool).await?;
                let tick = batch::tick(&mut connection, full).await;
                session::settle(connection, tick)
            };
            Ok(retry_on_conflict(tick).await?)
        })
        .await
    }

    pub(crate) async fn longest(&self) -> Result<Option<User>, MasterError> {
        self.run(|master| async move {
            let mut connection = session::acquire(&master.0.pool).await?;
            let longest = bounded(QUERY_TIMEOUT, batch::longest(&mut connection)).await;
            Ok(session::settle(connection, longest)?)
        })
        .await
    }

    pub(crate) async fn minutes(&self, window: Window) -> Result<Vec<Point>, MasterError> {
        self.run(|master| async move {
            let now_s = (master.0.clock)().div_euclid(1_000);
            let mut connection = session::acquire(&master.0.pool).await?;
            let minutes = bounded(QUERY_TIMEOUT, batch::points(&mut connection, window, now_s)).await;
            Ok(session::settle(connection, minutes)?)
        })
        .await
    }

    pub(crate) async fn oldest_minute(&self) -> Result<Option<Point>, MasterError> {
        self.run(|master| async move {
            let mut connection = session::acquire(&master.0.pool).await?;
            let oldest = bounded(QUERY_TIMEOUT, batch::oldest_minute(&mut connection)).await;
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
                let answered = bounded(QUERY_TIMEOUT, select).await;
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
}
