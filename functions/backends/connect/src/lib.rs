//! How a backend gets at its store: what can be wrong with its URL, and how it connects once for many callers. Knows no
//! store.

mod backoff;
mod config;
mod resource;
mod single_flight;

pub use crate::{
    backoff::Backoff,
    config::{ConfigError, duration},
    resource::Resource,
    single_flight::SingleFlight,
};
