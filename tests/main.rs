//! System tests: the real binary, its gateway and its functions, driven over HTTP as people do.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

/// The system under test, started in a folder of its own, and the verbs that the cases use.
mod app;
/// Who may depend on whom.
mod arrows;
/// From zero to many replicas and back.
mod autoscaling;
/// Disks that fail to write or to sync.
mod bad_disk;
/// Requests that are wrong, and clients that misbehave.
mod bad_input;
/// Random kills under load.
mod chaos;
/// CloudEvents' own SDK of another language sends and receives.
mod clients;
/// What clients, proxies and attackers send that no library would.
mod clients_as_they_are;
/// The wall clock is set back and forth.
mod clocks;
/// What is acknowledged arrives or ends in the dead letter.
mod deliverable;
/// Stores that fail, vanish or fall silent, and work again.
mod faulty_stores;
/// Files of a package refer to each other in one direction.
mod file_cycles;
/// One function's process alone, and the probes that it gets.
mod function;
/// Clients that hang up.
mod hangups;
/// Replicas that hang, crash in a loop, or die in the middle of a batch.
mod hung_replica;
/// Kafka's own tools beside the system.
mod interop;
/// Start, stop, kill.
mod lifecycle;
/// Clients that do not give up.
mod load;
/// What a test says that cannot run here.
mod not_run;
/// Metrics and traces.
mod observed;
/// The real services are killed, stopped and away.
mod outages;
/// What events from outside must not do to operators.
mod outsiders;
/// Power cuts, on a disk that loses what was not synced.
mod power_loss;
/// Each function reads its own keys and no others.
mod privilege;
/// Readiness as queue-proxy asks for it.
mod probes;
/// A network that is slow or cut.
mod proxy;
/// Dead letters and replays.
mod repair;
/// Where a system under test keeps its data.
mod stores;
/// The first session of a newcomer.
mod walkthrough;
/// HTTP written byte by byte.
mod wire;
