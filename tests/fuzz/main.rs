//! Feeds everything that is read from outside with inputs that are mutated from a corpus, and compares what must agree:
//! the modes of an event, a record and the request made of it, and SQLite with the models of the stores in memory.
//!
//! Each target runs for `FUZZ_SECONDS`. It prints its `FUZZ_SEED`, with which it runs again. The input of a fault is made
//! smaller and kept under `target/tmp`; with its mend it moves to `corpus/TARGET`, which every run tries first.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

/// The query of `GET /analytics`.
mod analytics;
/// Runs a target.
mod engine;
/// Events in all modes, and as records.
mod events;
/// Dead letters and their replay.
mod letters;
/// The manifests of functions and event sources.
mod manifests;
/// Requests and records as text.
mod message;
/// Makes new inputs of known ones.
mod mutation;
/// Random calls of the stores and of their models.
mod stores;
/// The URLs of the stores.
mod urls;
/// Users as JSON.
mod users;

/// A runtime for what is asynchronous.
fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}
