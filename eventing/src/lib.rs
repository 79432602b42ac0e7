//! Runs the event sources of `eventing/*.yaml` where Knative's own are absent: as a KafkaSource, a KafkaSink and a
//! PingSource do it, each fact of theirs with its source where it is used. Knows the log; not how functions run.

pub mod dead_letters;
pub mod delivery;
pub mod event;
pub mod event_sources;
pub mod files;
pub mod manifest;
pub mod ping;
pub mod pipeline;
pub mod progress;
pub mod replay;
pub mod sink;
pub mod source;

mod append;
mod control;
mod dispatcher;
mod failing;
mod offsets;
mod queue;
mod reader;
mod warning;
