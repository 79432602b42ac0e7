//! Storage of an implementation during a test. Each test has separate storage.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use backend_master::{Master, SqliteMaster};
use memory::MemoryMaster;
use tempfile::TempDir;

/// Storage of one test.
pub enum Fixture {
    Sqlite(TempDir),
    Memory(MemoryMaster),
    #[cfg(feature = "services")]
    MySql(mysql::Database),
}

impl Fixture {
    pub async fn sqlite() -> Self {
        Self::Sqlite(tempfile::tempdir().unwrap())
    }

    pub async fn memory() -> Self {
        Self::Memory(MemoryMaster::new(Arc::new(|| 0)))
    }

    /// Opens the master dataset with the given clock, in milliseconds since 1970.
    pub fn master(&self, clock: &Arc<AtomicI64>) -> Arc<dyn Master> {
        let clock = clock.clone();
        let clock = move || clock.load(Ordering::Relaxed);
        match self {
            Self::Sqlite(dir) => Arc::new(SqliteMaster::with_clock(dir.path().join("master.db"), clock)),
            Self::Memory(master) => Arc::new(master.with_clock(Arc::new(clock))),
            #[cfg(feature = "services")]
            Self::MySql(database) => database.master(clock),
        }
    }

    /// Asserts that no migration lock is held and that open transactions end.
    pub async fn assert_nothing_is_locked(&self) {
        match self {
            Self::Sqlite(_) | Self::Memory(_) => {}
            #[cfg(feature = "services")]
            Self::MySql(database) => database.assert_nothing_is_locked().await,
        }
    }

    /// Deletes the test's data from a server.
    pub async fn clean(self) {
        match self {
            Self::Sqlite(_) | Self::Memory(_) => {}
            #[cfg(feature = "services")]
            Self::MySql(database) => database.drop().await,
        }
    }
}

#[cfg(feature = "services")]
mod mysql {
    use std::{sync::Arc, time::Duration};

    use backend_master::{Master, MySqlMaster};
    use sqlx::{AssertSqlSafe, Connection, MySqlConnection, Transaction};
    use uuid::Uuid;

    use super::Fixture;
    use crate::proxy::Proxy;

    /// A separate database on the server that `MYSQL_SERVER` names.
    pub struct Database {
        server: String,
        name: String,
    }

    impl Fixture {
        pub async fn mysql() -> Self {
            let server = std::env::var("MYSQL_SERVER")
                .expect("MYSQL_SERVER names a server like mysql://root:root@127.0.0.1:3307");
            let database = Database { server, name: format!("test_{}", Uuid::new_v4().simple()) };
            database.run("CREATE DATABASE").await;
            Self::MySql(database)
        }

        /// Opens the master dataset through a network whose round-trip time is twice `delay`.
        pub fn far_master(&self, delay: Duration) -> (Arc<dyn Master>, Proxy) {
            let Self::MySql(database) = self else { unreachable!("only a server is far away") };
            let url = database.url();
            let (server, _) = url.rsplit_once('@').unwrap().1.split_once('/').unwrap();
            let proxy = Proxy::start(server, delay);
            let url = url.replace(server, &proxy.address.to_string());
            (Arc::new(MySqlMaster::new(&url).unwrap()), proxy)
        }

        /// Puts the database into the state in which an earlier version leaves it when its migration is cancelled.
        pub async fn cut_a_migration_short(&self) {
            let Self::MySql(database) = self else {
                unreachable!("only a server commits each table by itself")
            };
            self.master(&Arc::default()).ready().await.unwrap();
            let mut connection = MySqlConnection::connect(&database.url()).await.unwrap();
            let undo =
                "UPDATE _sqlx_migrations SET success = FALSE; DROP TABLE batch; DROP TABLE batch_minutes";
            sqlx::raw_sql(undo).execute(&mut connection).await.unwrap();
        }

        /// Kills all sessions in the database.
        pub async fn kill_connections(&self) {
            let Self::MySql(database) = self else { unreachable!("only a server has connections") };
            let mut connection = MySqlConnection::connect(&database.server).await.unwrap();
            let sessions = "SELECT ID FROM information_schema.PROCESSLIST WHERE DB = ?";
            let sessions: Vec<i64> =
                sqlx::query_scalar(sessions).bind(&database.name).fetch_all(&mut connection).await.unwrap();
            assert!(!sessions.is_empty());
            for session in sessions {
                let kill = AssertSqlSafe(format!("KILL {session}"));
                // The session may have ended in the meantime.
                let _ = sqlx::raw_sql(kill).execute(&mut connection).await;
            }
        }

        /// Returns an uncommitted transaction that has stored a user.
        pub async fn begin_storing(
            &self,
            isolation: &str,
            id: Uuid,
            name: &str,
        ) -> Transaction<'static, sqlx::MySql> {
            let Self::MySql(database) = self else { unreachable!("only a server has many writers") };
            let pool = sqlx::MySqlPool::connect(&database.url()).await.unwrap();
            let level = format!("SET TRANSACTION ISOLATION LEVEL {isolation}");
            let mut connection = pool.acquire().await.unwrap();
            sqlx::query(AssertSqlSafe(level)).execute(&mut *connection).await.unwrap();
            // Returns the connection to the pool. It is the only idle one, so the transaction uses it.
            drop(connection);
            let mut transaction = pool.begin().await.unwrap();
            let user = "INSERT INTO users (id, name, stored_at, stored_by) VALUES (?, ?, 1000, ?)";
            let bytes = id.as_bytes().to_vec();
            sqlx::query(user).bind(&bytes).bind(name).bind(&bytes).execute(&mut *transaction).await.unwrap();
            let pending = "INSERT INTO batch_pending (seq) VALUES (LAST_INSERT_ID())";
            sqlx::query(pending).execute(&mut *transaction).await.unwrap();
            transaction
        }
    }

    impl Database {
        fn url(&self) -> String {
            format!("{}/{}", self.server, self.name)
        }

        pub fn master(&self, clock: impl Fn() -> i64 + Send + Sync + 'static) -> Arc<dyn Master> {
            Arc::new(MySqlMaster::with_clock(&self.url(), clock).unwrap())
        }

        pub async fn assert_nothing_is_locked(&self) {
            let mut connection = MySqlConnection::connect(&self.url()).await.unwrap();
            let lock = "SELECT IS_FREE_LOCK(CONCAT('migrate:', MD5(DATABASE())))";
            let free: i64 = sqlx::query_scalar(lock).fetch_one(&mut connection).await.unwrap();
            assert_eq!(free, 1);
            let open =
                "SELECT COUNT(*) FROM information_schema.INNODB_TRX JOIN information_schema.PROCESSLIST
                ON ID = trx_mysql_thread_id WHERE DB = DATABASE()";
            // Cancelled calls run to completion, which takes a moment.
            let ended = async {
                while sqlx::query_scalar::<_, i64>(open).fetch_one(&mut connection).await.unwrap() > 0 {
                    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                }
            };
            tokio::time::timeout(std::time::Duration::from_secs(20), ended).await.unwrap();
        }

        pub async fn drop(self) {
            self.run("DROP DATABASE").await;
        }

        async fn run(&self, what: &str) {
            let mut connection = MySqlConnection::connect(&self.server).await.unwrap();
            let statement = format!("{what} {}", self.name);
            sqlx::query(AssertSqlSafe(statement)).execute(&mut connection).await.unwrap();
        }
    }
}
