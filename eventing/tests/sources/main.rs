//! Runs event sources on an in-memory log, with a function that responds as the test specifies and a simulated clock.
#![allow(clippy::unwrap_used, reason = "what a test cannot go on without")]

// The simulated log and functions, and helpers for the tests.
mod harness;
// How a PingSource reacts to changes of the clock.
mod clock;
// How a record is sent, retried, and written to the dead letters.
mod events;
// Concurrency, commits, and the state after a crash.
mod flow;
// The manifests of this project, dead letters and replays.
mod repair;
