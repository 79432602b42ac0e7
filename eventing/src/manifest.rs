//! The manifests, read strictly: what is not known here is an error with file and line, since a field that is
//! silently ignored would behave one way on a laptop and another in a cluster. What is a cluster's alone, by its
//! kind, is left out with purpose.

mod schedule;
mod service;

use std::{collections::BTreeMap, fmt, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use jiff::tz::TimeZone;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

pub use self::{
    schedule::Schedule,
    service::{Container, EnvVar, RevisionSpec, RevisionTemplate, Service, ServiceSpec},
};

/// What is wrong with a manifest, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}: {why}")]
pub struct ManifestError {
    /// As it was named.
    pub file: String,
    /// From 1.
    pub line: u64,
    /// What is wrong.
    pub why: String,
}

/// A resource of a kind that is known here.
#[derive(Debug, Clone, PartialEq)]
pub enum Manifest {
    /// A function.
    Service(Box<Service>),
    /// An arrow from the log.
    KafkaSource(Resource<KafkaSource>),
    /// An arrow from the clock.
    PingSource(Resource<PingSource>),
    /// An arrow to the log.
    KafkaSink(Resource<KafkaSink>),
}

/// Kinds that say nothing of what a function does: who may reach it, what surrounds it, and how it is put together.
const CLUSTER_ONLY: [(&str, &str); 9] = [
    ("kustomize.config.k8s.io/v1beta1", "Kustomization"),
    ("v1", "Namespace"),
    ("v1", "ConfigMap"),
    ("v1", "Secret"),
    ("networking.k8s.io/v1", "NetworkPolicy"),
    ("networking.k8s.io/v1", "Ingress"),
    ("policy/v1", "PodDisruptionBudget"),
    ("gateway.networking.k8s.io/v1", "HTTPRoute"),
    ("gateway.networking.k8s.io/v1", "ReferenceGrant"),
];

/// What every resource has around its `spec`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Resource<S> {
    /// Group and version.
    pub api_version: String,
    /// Kind.
    pub kind: String,
    /// Name and labels.
    pub metadata: Metadata,
    /// What is wanted.
    pub spec: S,
}

/// Name and labels of a resource.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Metadata {
    /// Unique among resources of its kind in its namespace.
    #[serde(default)]
    pub name: String,
    /// `default` where absent.
    pub namespace: Option<String>,
    /// To find it by.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// To configure it by.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

impl Metadata {
    /// The namespace, or the default one.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.namespace.as_deref().unwrap_or("default")
    }
}

/// `sources.knative.dev/v1 KafkaSource`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct KafkaSource {
    /// The brokers in a cluster; the laptop's log is where `LOG_URL` says.
    pub bootstrap_servers: Vec<String>,
    /// Topics to read.
    pub topics: Vec<String>,
    /// Whose offsets are remembered; made of the source's name where absent.
    pub consumer_group: Option<String>,
    /// How many consumers read at once.
    pub consumers: Option<u32>,
    /// Where a group begins that never committed.
    #[serde(default)]
    pub initial_offset: InitialOffset,
    /// Whether a partition's events wait for each other.
    #[serde(default)]
    pub ordering: Ordering,
    /// Where events go.
    pub sink: Destination,
    /// How they are tried.
    pub delivery: Option<DeliverySpec>,
    /// Extensions to set.
    pub ce_overrides: Option<Overrides>,
    /// How to reach the brokers in a cluster.
    pub net: Option<Value>,
}

/// Where a consumer group begins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InitialOffset {
    /// At the oldest record.
    Earliest,
    /// After the newest record.
    #[default]
    Latest,
}

/// Whether events wait for each other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ordering {
    /// One of each partition is under way at a time.
    #[default]
    Ordered,
    /// As many as may be are under way at once.
    Unordered,
}

/// Where events go.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Destination {
    /// A resource; a bare `uri` is not run here.
    #[serde(rename = "ref")]
    pub reference: Reference,
}

/// A resource by name.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Reference {
    /// Group and version.
    pub api_version: String,
    /// Kind.
    pub kind: String,
    /// Name.
    pub name: String,
    /// The referring resource's namespace where absent.
    pub namespace: Option<String>,
}

/// How events are tried.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct DeliverySpec {
    /// Tries after the first.
    pub retry: Option<u32>,
    /// How the delay grows.
    pub backoff_policy: Option<Backoff>,
    /// What it grows from.
    pub backoff_delay: Option<IsoDuration>,
    /// How long one try may take.
    pub timeout: Option<IsoDuration>,
    /// Where events go that never arrive.
    pub dead_letter_sink: Option<Destination>,
}

/// How the delay between tries grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backoff {
    /// With the number of tries.
    Linear,
    /// It doubles with each try.
    Exponential,
}

/// A duration in ISO 8601, like `PT0.3S`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct IsoDuration(pub Duration);

impl TryFrom<String> for IsoDuration {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let parsed =
            iso8601::duration(&text).map_err(|_| format!("`{text}` is no ISO 8601 duration like PT0.3S"))?;
        Ok(Self(parsed.into()))
    }
}

/// Extensions that a source sets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Overrides {
    /// By name.
    #[serde(default)]
    pub extensions: BTreeMap<String, String>,
}

/// `sources.knative.dev/v1 PingSource`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct PingSource {
    /// When it ticks.
    pub schedule: Schedule,
    /// Whose clock the schedule means; UTC where absent.
    #[serde(default)]
    pub timezone: Zone,
    /// Media type of the data.
    pub content_type: Option<String>,
    /// The data as text.
    pub data: Option<String>,
    /// The data in Base64.
    pub data_base64: Option<String>,
    /// Where ticks go.
    pub sink: Destination,
    /// Extensions to set.
    pub ce_overrides: Option<Overrides>,
}

impl PingSource {
    /// What is wrong with its data, if anything.
    fn wrong_data(&self) -> Option<String> {
        match (&self.data, self.data_base64.as_ref().map(|data| BASE64_STANDARD.decode(data))) {
            (Some(_), Some(_)) => Some("`data` and `dataBase64` exclude each other".to_owned()),
            (_, Some(Err(error))) => Some(format!("`dataBase64` must be Base64: {error}")),
            _ => None,
        }
    }
}

/// A time zone by its IANA name.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Zone(pub TimeZone);

impl Default for Zone {
    fn default() -> Self {
        Self(TimeZone::UTC)
    }
}

impl TryFrom<String> for Zone {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        TimeZone::get(&name).map(Self).map_err(|_| format!("`{name}` is no time zone like Europe/Berlin"))
    }
}

/// `eventing.knative.dev/v1alpha1 KafkaSink`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct KafkaSink {
    /// Where events are appended.
    pub topic: String,
    /// The brokers in a cluster.
    pub bootstrap_servers: Vec<String>,
    /// Of a topic that is to be created in a cluster.
    pub num_partitions: Option<u32>,
    /// Of a topic that is to be created in a cluster.
    pub replication_factor: Option<u32>,
    /// How events become records; only `binary` is supported.
    #[serde(default)]
    pub content_mode: ContentMode,
    /// How to reach the brokers in a cluster.
    pub auth: Option<Value>,
}

/// How events become records.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ContentMode {
    /// Attributes as headers.
    #[default]
    Binary,
}

/// Reads all resources of a file that are run here; it may hold several between `---`.
pub fn read(file: &str, text: &str) -> Result<Vec<Manifest>, ManifestError> {
    let mut manifests = Vec::new();
    for document in documents(text) {
        if document.lines().any(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#')) {
            manifests.extend(resource(file, &document)?);
        }
    }
    Ok(manifests)
}

/// The documents of a file, each with as many empty lines before it as to keep its lines' numbers.
fn documents(text: &str) -> Vec<String> {
    let mut documents = vec![String::new()];
    for (number, line) in text.lines().enumerate() {
        if line.trim_end() == "---" {
            documents.push("\n".repeat(number + 1));
        } else if let Some(document) = documents.last_mut() {
            document.push_str(line);
            document.push('\n');
        }
    }
    documents
}

fn resource(file: &str, document: &str) -> Result<Option<Manifest>, ManifestError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Kind {
        api_version: String,
        kind: String,
    }
    let Kind { api_version, kind } = parse(file, document)?;
    Ok(Some(match (api_version.as_str(), kind.as_str()) {
        ("serving.knative.dev/v1", "Service") => Manifest::Service(parse(file, document)?),
        ("sources.knative.dev/v1" | "sources.knative.dev/v1beta1", "KafkaSource") => {
            Manifest::KafkaSource(parse(file, document)?)
        }
        ("sources.knative.dev/v1", "PingSource") => {
            let ping: Resource<PingSource> = parse(file, document)?;
            match ping.spec.wrong_data() {
                None => Manifest::PingSource(ping),
                Some(why) => return Err(at(file, document, "dataBase64:", why)),
            }
        }
        ("eventing.knative.dev/v1alpha1", "KafkaSink") => Manifest::KafkaSink(parse(file, document)?),
        of if CLUSTER_ONLY.contains(&of) => return Ok(None),
        _ => {
            let why = format!(
                "{api_version} {kind} is not known here; there are serving.knative.dev/v1 Service, \
                 sources.knative.dev/v1 KafkaSource and PingSource, eventing.knative.dev/v1alpha1 KafkaSink"
            );
            return Err(at(file, document, "kind:", why));
        }
    }))
}

/// An error at the first line that begins with the field.
fn at(file: &str, document: &str, field: &str, why: String) -> ManifestError {
    let line = document.lines().position(|line| line.trim_start().starts_with(field));
    ManifestError { file: file.to_owned(), line: line.map_or(1, |at| at as u64 + 1), why }
}

fn parse<T: DeserializeOwned>(file: &str, document: &str) -> Result<T, ManifestError> {
    serde_saphyr::from_str(document).map_err(|error| {
        let error = error.without_snippet();
        ManifestError {
            file: file.to_owned(),
            line: error.location().map_or(1, |location| location.line()),
            why: first_line(error),
        }
    })
}

fn first_line(error: &impl fmt::Display) -> String {
    let text = error.to_string();
    text.lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PING: &str = "apiVersion: sources.knative.dev/v1
kind: PingSource
metadata:
  name: tick
spec:
  schedule: '* * * * *'
  sink:
    ref: {apiVersion: serving.knative.dev/v1, kind: Service, name: batch}
";

    #[test]
    fn what_is_not_known_is_an_error_with_file_and_line() {
        for (from, to, line, word) in [
            ("  schedule:", "  shedule:", 6, "shedule"),
            ("name: batch}", "name: batch, uri: http://x}", 8, "uri"),
            ("  name: tick", "  name: tick\n  finalizers: []", 5, "finalizers"),
            ("kind: PingSource", "kind: PongSource", 2, "PongSource"),
            ("sources.knative.dev/v1", "sources.knative.dev/v7", 2, "v7"),
            ("'* * * * *'", "'@every 5m'", 6, "@every"),
            ("'* * * * *'", "'* * * * *'\n  timezone: Mars/Olympus", 7, "Mars/Olympus"),
            ("'* * * * *'", "'* * * * *'\n  dataBase64: '%'", 7, "Base64"),
            ("'* * * * *'", "'* * * * *'\n  data: x\n  dataBase64: eA==", 8, "exclude"),
            ("'* * * * *'", "'* * * * *'\n  data: x\n  data: y", 8, "data"),
        ] {
            let text = PING.replacen(from, to, 1);
            assert_ne!(text, PING, "{from}");
            let error = read("tick.yaml", &text).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("tick.yaml:{line}: ")) && error.contains(word),
                "{to}: {error}"
            );
        }
    }

    #[test]
    fn lines_are_counted_over_all_documents_of_a_file() {
        let text = format!("# two\n{PING}---\n{}", PING.replace("schedule", "shedule"));
        assert_eq!(read("two.yaml", &text).unwrap_err().line, 16);
        assert_eq!(read("two.yaml", &format!("{PING}---\n{PING}")).unwrap().len(), 2);
    }

    #[test]
    fn what_is_a_clusters_alone_is_left_out() {
        for (api_version, kind) in CLUSTER_ONLY {
            let text = format!("apiVersion: {api_version}\nkind: {kind}\nanything: [1]\n---\n{PING}");
            assert_eq!(read("rendered.yaml", &text).unwrap().len(), 1, "{kind}");
        }
        let error = read("other.yaml", "apiVersion: apps/v1\nkind: ConfigMap\n").unwrap_err().to_string();
        assert!(error.starts_with("other.yaml:2: ") && error.contains("apps/v1 ConfigMap"), "{error}");
    }

    #[test]
    fn durations_are_written_in_iso_8601() {
        for (text, millis) in
            [("PT0.02S", Some(20)), ("PT30S", Some(30_000)), ("PT1M", Some(60_000)), ("5s", None)]
        {
            let parsed = IsoDuration::try_from(text.to_owned()).ok();
            assert_eq!(parsed.map(|d| d.0), millis.map(Duration::from_millis), "{text}");
        }
    }
}
