//! What every function runs on: user, event, record, error, and the HTTP server. Depends on no backend.

pub mod call;
pub mod config;
pub mod error;
pub mod event;
pub mod group;
pub mod history;
pub mod metrics;
pub mod offload;
pub mod progress;
mod readiness;
pub mod record;
pub mod router;
pub mod serve;
pub mod single_flight;
pub mod supervise;
pub mod telemetry;
pub mod user;
