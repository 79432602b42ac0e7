//! How a backend gets at its store: what can be wrong with its URL, and how it connects once for many callers. Knows no
//! store.

mod config;
mod single_flight;

pub use crate::{
    config::{ConfigError, duration},
    single_flight::SingleFlight,
};
