//! Parses `kafka://host:port[,host:port]/topic?key=value` with librdkafka's keys. Errors never show a value that may be
//! secret.

use connect::ConfigError;
use percent_encoding::percent_decode_str;
use rdkafka::{
    ClientConfig, config::RDKafkaLogLevel, error::KafkaError, types::RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN,
};

use super::keys::{ALIASES, COMMON, CONSUMER, FIXED, PRODUCER};

/// Which kind of client a configuration is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Producer,
    Consumer,
}

/// A parsed URL. It contains secrets, so it implements no `Debug`.
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
        let (location, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (brokers, topic) = location.split_once('/').ok_or_else(shape)?;
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
            // librdkafka knows the key, so its name may be shown.
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
            match is_like_a_key(key) && !begins_with_a_key(key) {
                true => Err(wrong(format!("`{key}` is no key of librdkafka"))),
                false => Err(wrong("a key behind the `?` is no key of librdkafka")),
            }
        }
        // librdkafka repeats the value in its reason, and of a mistyped URL that may be a password.
        Err(_) => Err(wrong(format!("`{key}` has a value that librdkafka does not take"))),
    }
}

fn is_known(key: &str) -> bool {
    let tried = ClientConfig::new().set(key, "").create_native_config();
    !matches!(tried, Err(KafkaError::ClientConfig(RD_KAFKA_CONF_UNKNOWN, ..)))
}

/// Whether a key stands there without its `=`: the rest is its value, which may be a password.
fn begins_with_a_key(name: &str) -> bool {
    (1..name.len()).filter_map(|end| name.get(..end)).any(is_known)
}

/// Whether a name is a mistyped key. In a malformed URL it may be part of a password, which must not be shown.
fn is_like_a_key(name: &str) -> bool {
    const GROUPS: [&str; 8] =
        ["sasl.", "ssl.", "security.", "socket.", "queue.", "message.", "topic.", "compression."];
    GROUPS.iter().any(|group| name.starts_with(group))
        && name.len() < 40
        && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'.')
}

fn is_broker(broker: &str) -> bool {
    broker.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
        && broker.bytes().all(|b| b.is_ascii_graphic())
}

fn is_topic(topic: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    (1..=249).contains(&topic.len()) && topic.bytes().all(allowed) && topic != "." && topic != ".."
}

/// A `+` stays a `+`: Base64 values contain them.
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
