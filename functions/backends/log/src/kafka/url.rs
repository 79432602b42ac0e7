//! `kafka://host:port[,host:port]/topic?key=value`, its keys those of librdkafka. Nothing of its values is ever shown
//! that could be a secret.

use percent_encoding::percent_decode_str;
use rdkafka::{
    ClientConfig, config::RDKafkaLogLevel, error::KafkaError, types::RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN,
};
use shared::config::ConfigError;

/// Keys that the guarantees of this log rest on.
const FIXED: &[&str] = &[
    "acks",
    "allow.auto.create.topics",
    "auto.commit.enable",
    "auto.commit.interval.ms",
    "auto.offset.reset",
    "bootstrap.servers",
    "delivery.report.only.error",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "enable.gapless.guarantee",
    "enable.idempotence",
    "enable.partition.eof",
    "enabled_events",
    "group.id",
    "group.instance.id",
    "group.protocol",
    "group.protocol.type",
    "group.remote.assignor",
    "isolation.level",
    "log.queue",
    "max.in.flight",
    "max.in.flight.requests.per.connection",
    "message.send.max.retries",
    "metadata.broker.list",
    "offset.store.method",
    "partition.assignment.strategy",
    "partitioner",
    "queuing.strategy",
    "request.required.acks",
    "retries",
    "transactional.id",
];

/// Keys that only a consumer has (librdkafka's CONFIGURATION.md), beside the fixed ones.
const CONSUMER: &[&str] = &[
    "check.crcs",
    "consume.callback.max.messages",
    "coordinator.query.interval.ms",
    "fetch.error.backoff.ms",
    "fetch.max.bytes",
    "fetch.message.max.bytes",
    "fetch.min.bytes",
    "fetch.queue.backoff.ms",
    "fetch.wait.max.ms",
    "heartbeat.interval.ms",
    "max.partition.fetch.bytes",
    "max.poll.interval.ms",
    "offset.store.path",
    "offset.store.sync.interval.ms",
    "queued.max.messages.kbytes",
    "queued.min.messages",
    "session.timeout.ms",
];

/// Keys that only a producer has.
const PRODUCER: &[&str] = &[
    "batch.num.messages",
    "batch.size",
    "compression.codec",
    "compression.level",
    "compression.type",
    "delivery.timeout.ms",
    "linger.ms",
    "message.timeout.ms",
    "produce.offset.report",
    "queue.buffering.backpressure.threshold",
    "queue.buffering.max.kbytes",
    "queue.buffering.max.messages",
    "queue.buffering.max.ms",
    "request.timeout.ms",
    "sticky.partitioning.linger.ms",
    "transaction.timeout.ms",
];

/// What a producer and a consumer have in common unless the URL says otherwise: a broker that went away is noticed,
/// and one that is back is used, within seconds.
const COMMON: &[(&str, &str)] = &[
    ("client.id", "lambda-architecture"),
    ("reconnect.backoff.max.ms", "1000"),
    ("socket.connection.setup.timeout.ms", "5000"),
    ("socket.timeout.ms", "5000"),
    ("api.version.request.timeout.ms", "5000"),
    ("topic.metadata.refresh.interval.ms", "10000"),
];

/// Two names of one key: a default for one must not contend with the other.
const ALIASES: &[(&str, &str)] =
    &[("linger.ms", "queue.buffering.max.ms"), ("message.timeout.ms", "delivery.timeout.ms")];

/// Which kind of client a configuration is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Producer,
    Consumer,
}

/// A URL taken apart. It holds secrets, so it cannot be printed.
pub(super) struct KafkaUrl {
    pub(super) brokers: String,
    pub(super) topic: String,
    keys: Vec<(String, String)>,
}

impl KafkaUrl {
    /// Reads the URL and tries each of its keys, without I/O.
    pub(super) fn parse(url: &str) -> Result<Self, ConfigError> {
        let shape = || wrong("must be like kafka://host:port[,host:port]/topic?key=value");
        let rest = url.strip_prefix("kafka://").ok_or_else(shape)?;
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (brokers, topic) = place.split_once('/').ok_or_else(shape)?;
        if brokers.contains('@') {
            return Err(wrong("name and password go into the keys sasl.username and sasl.password"));
        }
        if !brokers.split(',').all(is_broker) {
            return Err(wrong("its brokers must be host:port, with commas between them"));
        }
        let topic = decode(topic)?;
        if !is_topic(&topic) {
            return Err(wrong(
                "the topic must have 1 to 249 of the characters a-z, A-Z, 0-9, `.`, `_` and `-`",
            ));
        }
        let mut keys = Vec::<(String, String)>::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) =
                pair.split_once('=').ok_or_else(|| wrong("a key has no `=value` behind it"))?;
            let (key, value) = (decode(key)?, decode(value)?);
            check(&key, &value)?;
            if keys.iter().any(|(k, _)| *k == key) {
                return Err(wrong(format!("`{key}` is there more than once")));
            }
            keys.push((key, value));
        }
        Ok(Self { brokers: brokers.to_owned(), topic, keys })
    }

    /// The configuration of a client: what the URL says, else `defaults`, and always `fixed`.
    pub(super) fn config(
        &self,
        side: Side,
        defaults: &[(&str, &str)],
        fixed: &[(&str, &str)],
    ) -> ClientConfig {
        let other = if side == Side::Producer { CONSUMER } else { PRODUCER };
        let mut config = ClientConfig::new();
        for (key, value) in COMMON.iter().chain(defaults).filter(|(key, _)| !self.has(key)) {
            config.set(*key, *value);
        }
        for (key, value) in self.keys.iter().filter(|(key, _)| !other.contains(&key.as_str())) {
            config.set(key, value);
        }
        for (key, value) in fixed {
            config.set(*key, *value);
        }
        config.set("bootstrap.servers", &self.brokers);
        config.set_log_level(RDKafkaLogLevel::Warning);
        config
    }

    /// The value that the URL gives a key.
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.keys.iter().find(|(k, _)| k == key).map(|(_, value)| value.as_str())
    }

    fn has(&self, key: &str) -> bool {
        let alias = ALIASES.iter().find(|(name, _)| *name == key).map(|(_, alias)| *alias);
        self.get(key).or_else(|| self.get(alias?)).is_some()
    }
}

fn check(key: &str, value: &str) -> Result<(), ConfigError> {
    if FIXED.contains(&key) {
        return Err(wrong(format!(
            "`{key}` is set here already, since no record may get lost or come twice"
        )));
    }
    match ClientConfig::new().set(key, value).create_native_config() {
        Ok(_) => Ok(()),
        Err(KafkaError::ClientConfig(RD_KAFKA_CONF_UNKNOWN, ..)) => {
            Err(wrong(format!("`{key}` is no key of librdkafka")))
        }
        Err(KafkaError::ClientConfig(_, why, ..)) if !is_secret(key) => Err(wrong(format!("`{key}`: {why}"))),
        Err(_) => Err(wrong(format!("`{key}` has a value that librdkafka does not take"))),
    }
}

/// Whether a key's value must not be shown.
fn is_secret(key: &str) -> bool {
    ["password", "secret", "pem", "jaas", "oauthbearer", "key"].iter().any(|part| key.contains(part))
}

fn is_broker(broker: &str) -> bool {
    broker.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
        && broker.bytes().all(|b| b.is_ascii_graphic())
}

fn is_topic(topic: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    (1..=249).contains(&topic.len()) && topic.bytes().all(allowed) && topic != "." && topic != ".."
}

/// A `+` stays one: what is encoded in base64 has them.
fn decode(text: &str) -> Result<String, ConfigError> {
    let text = percent_decode_str(text).decode_utf8().map_err(|_| wrong("a part of it is not UTF-8"))?;
    match text.contains('\0') {
        true => Err(wrong("a part of it has a zero byte")),
        false => Ok(text.into_owned()),
    }
}

fn wrong(why: impl std::fmt::Display) -> ConfigError {
    ConfigError::new("LOG_URL", why)
}
