//! Runs the event sources of `eventing/*.yaml` where Knative is absent, with the behaviour of its KafkaSource, KafkaSink
//! and PingSource. Facts about these name Knative's code where they are used. Depends on the log, not on how functions
//! run.

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
mod resources;
mod warning;
