//! Reads manifests strictly: an unknown field is an error with file and line, because a field that is ignored would make
//! the laptop behave differently from the cluster. Kinds that only concern a cluster are skipped by a list.

mod delivery;
mod kafka;
mod ping;
mod resource;
mod schedule;
mod service;

use std::fmt;

use serde::{Deserialize, de::DeserializeOwned};

pub use self::{
    delivery::{Backoff, DeliverySpec, IsoDuration, Overrides},
    kafka::{ContentMode, InitialOffset, KafkaSink, KafkaSource, Ordering},
    ping::{PingSource, Zone},
    resource::{Destination, Metadata, Reference, Resource},
    schedule::Schedule,
    service::{Container, EnvVar, RevisionSpec, RevisionTemplate, Service, ServiceSpec},
};

/// What is wrong with a manifest, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}: {why}")]
pub struct ManifestError {
    /// The file's name, as given.
    pub file: String,
    /// From 1.
    pub line: u64,
    /// What is wrong.
    pub why: String,
}

/// A resource of a kind that runs here.
#[derive(Debug, Clone, PartialEq)]
pub enum Manifest {
    /// A function.
    Service(Box<Service>),
    /// From the log to a function.
    KafkaSource(Resource<KafkaSource>),
    /// From the clock to a function.
    PingSource(Resource<PingSource>),
    /// To the log.
    KafkaSink(Resource<KafkaSink>),
}

/// Kinds that only concern a cluster: network access, configuration, and how manifests are put together.
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

/// Reads all resources of a file that run here. A file may hold several documents, separated by `---`.
pub fn read(file: &str, text: &str) -> Result<Vec<Manifest>, ManifestError> {
    let mut manifests = Vec::new();
    for document in documents(text) {
        if document.lines().any(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#')) {
            manifests.extend(resource(file, &document)?);
        }
    }
    Ok(manifests)
}

/// The documents of a file, each padded with empty lines at the start so that line numbers stay those of the file.
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
}
