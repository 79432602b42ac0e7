//! Storage of an implementation during a test. Each test has separate storage.

use std::sync::Arc;

use backend_log::{Log, SqliteLog};
use memory::MemoryLog;
use tempfile::TempDir;

/// Storage of one test.
pub enum Fixture {
    Sqlite(TempDir),
    Memory(MemoryLog),
    #[cfg(feature = "services")]
    Kafka(kafka::Topics),
}

impl Fixture {
    pub async fn sqlite() -> Self {
        Self::Sqlite(tempfile::tempdir().unwrap())
    }

    pub async fn memory() -> Self {
        Self::Memory(MemoryLog::new(8, Arc::new(|| chrono::Utc::now().timestamp_millis())))
    }

    /// Opens a log on this storage. Each one acts as a separate process.
    pub fn log(&self) -> Arc<dyn Log> {
        match self {
            Self::Sqlite(dir) => Arc::new(SqliteLog::new(dir.path().join("log.db"))),
            Self::Memory(log) => Arc::new(log.clone()),
            #[cfg(feature = "services")]
            Self::Kafka(topics) => Arc::new(topics.log("")),
        }
    }

    /// Returns the name of a topic that only this test uses.
    pub fn topic(&self, name: &str) -> String {
        match self {
            Self::Sqlite(_) | Self::Memory(_) => name.to_owned(),
            #[cfg(feature = "services")]
            Self::Kafka(topics) => topics.name(name),
        }
    }

    /// Returns the name of a group that only this test uses.
    pub fn group(&self, name: &str) -> String {
        self.topic(name)
    }

    /// Deletes the test's data from a server.
    pub async fn clean(self) {
        match self {
            Self::Sqlite(_) | Self::Memory(_) => {}
            #[cfg(feature = "services")]
            Self::Kafka(topics) => topics.delete().await,
        }
    }
}

#[cfg(feature = "services")]
pub mod kafka {
    use backend_log::{KafkaLog, Log};
    use rdkafka::{
        ClientConfig,
        admin::{AdminClient, AdminOptions, NewPartitions},
        client::DefaultClientContext,
    };
    use uuid::Uuid;

    use super::Fixture;

    /// Topics `t` and `other` with unique names, on the broker that `KAFKA_BROKER` names.
    pub struct Topics {
        pub broker: String,
        prefix: String,
    }

    impl Fixture {
        pub async fn kafka() -> Self {
            Self::Kafka(Topics::new().await)
        }
    }

    impl Topics {
        pub async fn new() -> Self {
            let broker =
                std::env::var("KAFKA_BROKER").expect("KAFKA_BROKER names a broker like 127.0.0.1:9092");
            let topics = Self { broker, prefix: format!("test-{}", Uuid::new_v4().simple()) };
            for name in ["t", "other"] {
                topics.log("").create(&topics.name(name)).await.unwrap();
            }
            topics
        }

        pub fn name(&self, name: &str) -> String {
            format!("{}-{name}", self.prefix)
        }

        pub fn log(&self, query: &str) -> KafkaLog {
            KafkaLog::new(&format!("kafka://{}/{}?{query}", self.broker, self.name("t"))).unwrap()
        }

        /// Increases the number of partitions of the topic `t` to `partitions`.
        pub async fn grow(&self, partitions: usize) {
            let name = self.name("t");
            let more = NewPartitions::new(&name, partitions);
            let grown = self.admin().create_partitions([&more], &AdminOptions::new()).await.unwrap();
            assert!(grown.iter().all(Result::is_ok), "{grown:?}");
        }

        pub async fn delete(self) {
            let names = ["t", "other"].map(|name| self.name(name));
            let names = names.each_ref().map(String::as_str);
            self.admin().delete_topics(&names, &AdminOptions::new()).await.unwrap();
        }

        fn admin(&self) -> AdminClient<DefaultClientContext> {
            ClientConfig::new().set("bootstrap.servers", &self.broker).create().unwrap()
        }
    }
}
