//! The master dataset in MySQL, or what speaks its protocol (MariaDB, TiDB): nothing is used that only one has.

mod batch;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use shared::{
    config::ConfigError,
    history::{Point, Window},
    user::User,
};
use sqlx::{
    ConnectOptions, MySqlConnection, MySqlPool, QueryBuilder, Row,
    mysql::{MySqlConnectOptions, MySqlDatabaseError, MySqlPoolOptions, MySqlRow},
};
use tokio::sync::OnceCell;
use uuid::Uuid;

use crate::{Master, MasterError, Stored, Tick};

/// Connections of a process; a hundred replicas must fit into one server.
const CONNECTIONS: u32 = 2;
/// How long a request waits for a connection.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the first process may take to create the tables while others wait for it, seconds.
const MIGRATION_S: u32 = 60;
/// How often a transaction is begun that lost against another or whose connection was lost.
const TRIES: u32 = 10;
/// How much longer each wait is before it is begun anew; a random part spreads those that lost against each other.
const AGAIN: Duration = Duration::from_millis(10);
/// Error numbers of a deadlock, of a lock that was waited for too long, and of a server that shuts down or hangs up.
const LOST: [u16; 4] = [1213, 1205, 1053, 1927];

/// A master dataset in a server's database.
#[derive(Clone)]
pub struct MySqlMaster(Arc<Inner>);

struct Inner {
    pool: MySqlPool,
    /// Whether the tables are known to be there.
    migrated: OnceCell<()>,
    clock: Box<dyn Fn() -> i64 + Send + Sync>,
}

impl MySqlMaster {
    /// The database of `mysql://user:password@host:port/db`; connects when first needed.
    pub fn new(url: &str) -> Result<Self, ConfigError> {
        Self::with_clock(url, || chrono::Utc::now().timestamp_millis())
    }

    /// The same with another clock, which gives milliseconds since 1970 UTC.
    pub fn with_clock(
        url: &str,
        clock: impl Fn() -> i64 + Send + Sync + 'static,
    ) -> Result<Self, ConfigError> {
        // What is wrong with it must not be shown: it holds a password.
        let wrong = |_| ConfigError::new("MASTER_URL", "must be like mysql://user:password@host:port/db");
        let options: MySqlConnectOptions = url.parse().map_err(wrong)?;
        let pool = MySqlPoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(PATIENCE)
            // Fewer locks than by default, and all that storing needs; what needs more asks for it.
            .after_connect(|connection, _| {
                Box::pin(async move {
                    let level = "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED";
                    sqlx::query(level).execute(connection).await.map(drop)
                })
            })
            .connect_lazy_with(options.disable_statement_logging());
        Ok(Self(Arc::new(Inner { pool, migrated: OnceCell::new(), clock: Box::new(clock) })))
    }
}

/// Repeats a transaction that lost against another or whose connection broke. Done twice, each does what it does once.
async fn until_won<T, F>(transaction: impl Fn() -> F) -> Result<T, MasterError>
where
    F: Future<Output = Result<T, sqlx::Error>>,
{
    let mut tries = 1;
    loop {
        match transaction().await {
            Err(error) if lost(&error) && tries < TRIES => {
                let random = f64::from(Uuid::new_v4().as_fields().0) / f64::from(u32::MAX);
                tokio::time::sleep((AGAIN * tries).mul_f64(random)).await;
                tries += 1;
            }
            done => return Ok(done?),
        }
    }
}

fn lost(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) => true,
        sqlx::Error::Database(error) => {
            error.try_downcast_ref::<MySqlDatabaseError>().is_some_and(|e| LOST.contains(&e.number()))
        }
        _ => false,
    }
}

#[async_trait]
impl Master for MySqlMaster {
    async fn store(&self, users: Vec<User>) -> Result<Vec<Stored>, MasterError> {
        let master = self.clone();
        // To its end also when whoever asked goes away: a transaction left open would hold up others.
        tokio::spawn(async move {
            master.0.migrate().await?;
            until_won(|| master.0.store(&users)).await
        })
        .await?
    }

    async fn tick(&self, full: bool) -> Result<Tick, MasterError> {
        let master = self.clone();
        tokio::spawn(async move {
            master.0.migrate().await?;
            until_won(|| batch::tick(&master.0.pool, full)).await
        })
        .await?
    }

    async fn longest(&self) -> Result<Option<User>, MasterError> {
        self.0.migrate().await?;
        Ok(batch::longest(&mut *self.0.pool.acquire().await?).await?)
    }

    async fn minutes(&self, window: Window) -> Result<Vec<Point>, MasterError> {
        self.0.migrate().await?;
        Ok(batch::minutes(&self.0.pool, window).await?)
    }

    fn commits_at_once(&self) -> usize {
        CONNECTIONS as usize
    }

    async fn ready(&self) -> Result<(), MasterError> {
        self.0.migrate().await?;
        Ok(sqlx::query("SELECT 1").execute(&self.0.pool).await.map(drop)?)
    }
}

impl Inner {
    /// Creates the tables where they are not there; of several processes at once, one does.
    async fn migrate(&self) -> Result<(), MasterError> {
        let migrate = || async {
            let mut connection = self.pool.acquire().await?;
            // Not the migrator's own lock: it waits with a negative time, which MariaDB takes for none.
            let lock = "SELECT GET_LOCK(CONCAT('migrate:', MD5(DATABASE())), ?)";
            sqlx::query(lock).bind(MIGRATION_S).execute(&mut *connection).await?;
            let mut migrator = sqlx::migrate!("./migrations/mysql");
            let done = migrator.set_locking(false).run(&self.pool).await;
            let unlock = "SELECT RELEASE_LOCK(CONCAT('migrate:', MD5(DATABASE())))";
            sqlx::query(unlock).execute(&mut *connection).await?;
            Ok::<_, MasterError>(done?)
        };
        self.migrated.get_or_try_init(migrate).await?;
        Ok(())
    }

    async fn store(&self, users: &[User]) -> Result<Vec<Stored>, sqlx::Error> {
        let mut transaction = self.pool.begin().await?;
        // Tells what this attempt inserted from what was there; an attempt whose commit went unanswered was another.
        let attempt = Uuid::new_v4();
        let now = (self.clock)();
        let mut insert = QueryBuilder::new("INSERT INTO users (id, name, stored_at, stored_by) ");
        insert.push_values(padded(users), |mut row, user| {
            row.push_bind(user.id.as_bytes().to_vec()).push_bind(&user.name);
            row.push_bind(now).push_bind(attempt.as_bytes().to_vec());
        });
        // Unlike IGNORE, hides no other fault.
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

/// The items and the last one again, up to a power of two, for statements to which it makes no difference: so there are
/// few statements, which stay prepared. One that is closed costs 40 ms: the server does not answer to that, and TCP
/// keeps the next one back until it acknowledges.
fn padded<T>(items: &[T]) -> impl Iterator<Item = &T> {
    let more = items.len().next_power_of_two() - items.len();
    items.iter().chain(items.last().into_iter().cycle().take(more))
}

/// What the table has for an id.
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
