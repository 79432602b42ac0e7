//! The resources of a system, read from manifests and checked against each other.

use std::collections::BTreeSet;

use crate::{
    manifest::{
        Destination, KafkaSink, KafkaSource, Manifest, ManifestError, PingSource, Reference, Resource,
        Service,
    },
    source::Source,
};

/// Group and version of functions.
const SERVING: &str = "serving.knative.dev/v1";
/// Group and version of KafkaSinks.
const EVENTING: &str = "eventing.knative.dev/v1alpha1";

/// The resources of a system; their references are known to resolve.
#[derive(Debug, Clone, Default)]
pub struct Resources {
    /// Functions.
    pub services: Vec<Service>,
    /// From the log to functions.
    pub kafka_sources: Vec<Resource<KafkaSource>>,
    /// From the clock to functions.
    pub ping_sources: Vec<Resource<PingSource>>,
    /// To the log.
    pub kafka_sinks: Vec<Resource<KafkaSink>>,
}

impl Resources {
    /// Reads manifests, each a file's name and text. A reference that does not resolve is an error.
    pub fn read<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, ManifestError> {
        let (mut resources, mut references) = (Self::default(), Vec::new());
        for (file, text) in files {
            for manifest in crate::manifest::read(file, text)? {
                match manifest {
                    Manifest::Service(service) => resources.services.push(*service),
                    Manifest::KafkaSink(sink) => resources.kafka_sinks.push(sink),
                    Manifest::PingSource(ping) => {
                        references.push((file, text, function(file, text, &ping.spec.sink)?));
                        resources.ping_sources.push(ping);
                    }
                    Manifest::KafkaSource(source) => {
                        references.push((file, text, function(file, text, &source.spec.sink)?));
                        references.push((file, text, dead_letter_sink(file, text, &source)?));
                        resources.kafka_sources.push(source);
                    }
                }
            }
        }
        match references.iter().find(|(_, _, reference)| !resources.has(reference)) {
            Some((file, text, Reference { api_version, kind, name, .. })) => Err(at(
                file,
                text,
                &format!("name: {name}"),
                format!("there is no {api_version} {kind} `{name}`"),
            )),
            None => Ok(resources),
        }
    }

    fn has(&self, reference: &Reference) -> bool {
        let name = &reference.name;
        match (reference.api_version.as_str(), reference.kind.as_str()) {
            (SERVING, "Service") => self.services.iter().any(|service| service.metadata.name == *name),
            (EVENTING, "KafkaSink") => self.kafka_sinks.iter().any(|sink| sink.metadata.name == *name),
            _ => false,
        }
    }

    /// The sources to run, one per topic of each KafkaSource.
    #[must_use]
    pub fn sources(&self) -> Vec<Source> {
        let sources = self.kafka_sources.iter().flat_map(|source| {
            let topic = self.dead_letter_topic(source).unwrap_or_default();
            Source::of(&source.metadata, &source.spec, topic)
        });
        sources.collect()
    }

    /// Whether a KafkaSource reads the topic.
    #[must_use]
    pub fn read_topic(&self, topic: &str) -> bool {
        self.kafka_sources.iter().any(|source| source.spec.topics.iter().any(|t| t == topic))
    }

    /// The topics of dead letters.
    #[must_use]
    pub fn dead_letter_topics(&self) -> Vec<String> {
        let mut topics: Vec<_> =
            self.kafka_sources.iter().filter_map(|s| self.dead_letter_topic(s)).map(str::to_owned).collect();
        topics.sort();
        topics.dedup();
        topics
    }

    /// The functions that KafkaSources send to: the only ones that dead letters may be replayed to.
    #[must_use]
    pub fn fed_functions(&self) -> BTreeSet<String> {
        self.kafka_sources.iter().map(|source| source.spec.sink.reference.name.clone()).collect()
    }

    fn dead_letter_topic(&self, source: &Resource<KafkaSource>) -> Option<&str> {
        let sink = source.spec.delivery.as_ref()?.dead_letter_sink.as_ref()?;
        let sink = self.kafka_sinks.iter().find(|s| s.metadata.name == sink.reference.name)?;
        Some(&sink.spec.topic)
    }
}

/// The sink of a source, which must be a function: sources that feed a topic are not supported here.
fn function(file: &str, text: &str, sink: &Destination) -> Result<Reference, ManifestError> {
    match sink.reference.kind.as_str() {
        "Service" => Ok(sink.reference.clone()),
        _ => Err(at(file, text, "sink:", "the `sink` of a source must be a Service".into())),
    }
}

/// The dead-letter sink of a source. Without one, an event that runs out of retries would be lost.
fn dead_letter_sink(
    file: &str,
    text: &str,
    source: &Resource<KafkaSource>,
) -> Result<Reference, ManifestError> {
    let sink = source.spec.delivery.as_ref().and_then(|delivery| delivery.dead_letter_sink.as_ref());
    match sink {
        Some(sink) if sink.reference.kind == "KafkaSink" => Ok(sink.reference.clone()),
        _ => Err(at(
            file,
            text,
            "delivery:",
            "a KafkaSource needs a `delivery.deadLetterSink` that is a KafkaSink".into(),
        )),
    }
}

fn at(file: &str, text: &str, mark: &str, why: String) -> ManifestError {
    let line = text.lines().position(|line| line.trim() == mark).map_or(1, |at| at as u64 + 1);
    ManifestError { file: file.to_owned(), line, why }
}
