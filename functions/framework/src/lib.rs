//! What a function runs on: HTTP server, router, group commit, configuration, telemetry. Knows no store.

pub mod call;
pub mod config;
pub mod error;
pub mod etag;
pub mod group;
pub mod metrics;
pub mod offload;
pub mod progress;
mod readiness;
pub mod router;
pub mod serve;
pub mod supervise;
pub mod telemetry;
pub mod user_event;
