//! Stores of the system under test: embedded in its folder, or on the real services that the environment names
//! (`infra/services/test.sh` sets it), in a separate topic, database and keyspace.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use sqlx::{AssertSqlSafe, Connection, Row};
use uuid::Uuid;

/// The manifests of the project.
const MANIFESTS: [&str; 9] = [
    "functions/ingest/service.yaml",
    "functions/count/service.yaml",
    "functions/store/service.yaml",
    "functions/batch/service.yaml",
    "functions/analytics/service.yaml",
    "eventing/log-to-count.yaml",
    "eventing/log-to-store.yaml",
    "eventing/minute-to-batch.yaml",
    "eventing/dead-letter.yaml",
];

/// Stores of a system.
pub enum Stores {
    Embedded,
    Services(Arc<Services>),
}

/// Addresses of the services, and the name of a test's topic, database and keyspace.
pub struct Services {
    pub kafka: String,
    pub cassandra: String,
    pub mysql: String,
    pub name: String,
}

impl Stores {
    /// Creates new stores: on the services if the environment names all three of them, otherwise embedded.
    pub fn new() -> Self {
        let variable = |key| std::env::var(key).ok();
        match (variable("KAFKA_BROKER"), variable("CASSANDRA_NODE"), variable("MYSQL_SERVER")) {
            (Some(kafka), Some(cassandra), Some(mysql)) => {
                Self::Services(Arc::new(Services::create(kafka, cassandra, mysql)))
            }
            _ => Self::Embedded,
        }
    }

    /// Configures a process of the system to use these stores.
    pub fn configure(&self, command: &mut Command) {
        for key in ["LOG_URL", "MASTER_URL", "VIEWS_URL", "CONFIG_FILE", "PORT", "METRICS_PORT"] {
            command.env_remove(key);
        }
        if let Self::Services(services) = self {
            command.env("LOG_URL", services.log_url());
            command.env("MASTER_URL", services.master_url());
            command.env("VIEWS_URL", services.views_url());
        }
    }

    /// Writes the project's manifests to `folder`, with the topics and consumer groups of these stores and with
    /// `change` applied to each text. Returns the files.
    pub fn manifests(&self, folder: &Path, change: impl Fn(&str, String) -> String) -> Vec<PathBuf> {
        let write = |path: &&str| {
            let mut text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
            if let Self::Services(services) = self {
                let name = &services.name;
                for (is, becomes) in [
                    ("    - user\n".to_owned(), format!("    - {name}\n")),
                    ("topic: user-dead-letter".to_owned(), format!("topic: {name}-dead-letter")),
                    ("consumerGroup: ".to_owned(), format!("consumerGroup: {name}-")),
                ] {
                    text = text.replace(&is, &becomes);
                }
            }
            let file = folder.join(path.replace('/', "-"));
            fs::write(&file, change(path, text)).unwrap();
            file
        };
        MANIFESTS.iter().map(write).collect()
    }

    /// The ids of all users in the master dataset.
    pub async fn stored(&self, data: &Path) -> BTreeSet<Uuid> {
        match self {
            Self::Embedded => in_file(data, "master.db", "SELECT id FROM users").await,
            Self::Services(services) => services.stored().await,
        }
    }

    /// The ids of all counted users.
    pub async fn counted(&self, data: &Path) -> BTreeSet<Uuid> {
        match self {
            Self::Embedded => in_file(data, "views.db", "SELECT id FROM users_counted").await,
            Self::Services(services) => services.counted().await,
        }
    }
}

async fn in_file(data: &Path, file: &str, query: &'static str) -> BTreeSet<Uuid> {
    let url = format!("sqlite:{}", data.join(file).display());
    let mut database = sqlx::SqliteConnection::connect(&url).await.unwrap();
    let rows = sqlx::query(query).fetch_all(&mut database).await.unwrap();
    rows.iter().map(|row| Uuid::from_slice(row.get::<&[u8], _>(0)).unwrap()).collect()
}

impl Services {
    fn create(kafka: String, cassandra: String, mysql: String) -> Self {
        let name = format!("test_{}", Uuid::new_v4().simple());
        let services = Self { kafka, cassandra, mysql, name };
        services.run_mysql("CREATE DATABASE");
        services
    }

    pub fn log_url(&self) -> String {
        format!("kafka://{}/{}", self.kafka, self.name)
    }

    pub fn master_url(&self) -> String {
        format!("{}/{}", self.mysql, self.name)
    }

    pub fn views_url(&self) -> String {
        format!("cassandra://{}/{}", self.cassandra, self.name)
    }

    async fn stored(&self) -> BTreeSet<Uuid> {
        let mut server = sqlx::MySqlConnection::connect(&self.master_url()).await.unwrap();
        let rows = sqlx::query("SELECT id FROM users").fetch_all(&mut server).await.unwrap();
        rows.iter().map(|row| Uuid::from_slice(row.get::<&[u8], _>(0)).unwrap()).collect()
    }

    async fn counted(&self) -> BTreeSet<Uuid> {
        let session = scylla::client::session_builder::SessionBuilder::new();
        let session = session.known_node(&self.cassandra).build().await.unwrap();
        let all = session.query_unpaged(format!("SELECT id FROM {}.counted", self.name), ()).await.unwrap();
        let rows = all.into_rows_result().unwrap();
        // The row of a shard itself has no user id.
        rows.rows::<(&[u8],)>().unwrap().filter_map(|row| Uuid::from_slice(row.unwrap().0).ok()).collect()
    }

    fn run_mysql(&self, what: &str) {
        let (server, statement) = (self.mysql.clone(), format!("{what} {}", self.name));
        blocking(async move {
            let mut server = sqlx::MySqlConnection::connect(&server).await.unwrap();
            sqlx::query(AssertSqlSafe(statement)).execute(&mut server).await.unwrap();
        });
    }
}

/// Runs a future in another thread and waits for it, because a test's runtime must not be blocked from within.
fn blocking(work: impl Future<Output = ()> + Send + 'static) {
    let thread = std::thread::spawn(|| {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work);
    });
    let _ = thread.join();
}

/// Deletes everything that the test created on the services.
impl Drop for Services {
    fn drop(&mut self) {
        self.run_mysql("DROP DATABASE");
        let (node, keyspace) = (self.cassandra.clone(), self.name.clone());
        blocking(async move {
            let session =
                scylla::client::session_builder::SessionBuilder::new().known_node(node).build().await;
            let drop = format!("DROP KEYSPACE IF EXISTS {keyspace}");
            session.unwrap().query_unpaged(drop, ()).await.unwrap();
        });
        let (broker, topic) = (self.kafka.clone(), self.name.clone());
        blocking(async move {
            let admin: rdkafka::admin::AdminClient<_> =
                rdkafka::ClientConfig::new().set("bootstrap.servers", broker).create().unwrap();
            let topics = [topic.clone(), format!("{topic}-dead-letter")];
            let names: Vec<_> = topics.iter().map(String::as_str).collect();
            let _ = admin.delete_topics(&names, &rdkafka::admin::AdminOptions::new()).await;
        });
    }
}

/// The master's URL with another `host:port` of its server.
pub fn master_url_at(services: &Services, server: &str) -> String {
    services.master_url().replace(&mysql_server(services), server)
}

/// `host:port` of the MySQL server.
pub fn mysql_server(services: &Services) -> String {
    let url = services.master_url();
    let server = url.rsplit_once('@').and_then(|(_, rest)| rest.split_once('/'));
    server.map(|(server, _)| server.to_owned()).expect("a URL like mysql://user:password@host:port/db")
}
