//! What all functions speak: a user, an event, a record, an error, and the HTTP server around them.
//! Knows no backend: neither Kafka nor SQL nor Cassandra.

pub mod call;
pub mod config;
mod connector;
pub mod error;
pub mod event;
pub mod group;
pub mod history;
pub mod metrics;
pub mod record;
pub mod router;
pub mod serve;
pub mod single_flight;
pub mod telemetry;
pub mod user;
