//! System tests: the real binary, its gateway and its functions, driven over HTTP as people do.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

/// The system under test, started in a folder of its own, and the verbs that the cases use.
mod app;
/// Who may depend on whom.
mod arrows;
/// From zero to many replicas and back.
mod autoscaling;
/// Requests that are wrong, and clients that misbehave.
mod bad_input;
/// CloudEvents' own SDK of another language sends and receives.
mod clients;
/// Kafka's own tools beside the system.
mod foreign;
/// Start, stop, kill.
mod lifecycle;
/// Clients that do not give up.
mod load;
/// Metrics and traces.
mod observed;
/// The real services are killed, stopped and away.
mod outages;
/// Where a system under test keeps its data.
mod place;
/// Dead letters and replays.
mod repair;
/// Random kills under load.
mod violence;
/// The first session of a newcomer.
mod walkthrough;
