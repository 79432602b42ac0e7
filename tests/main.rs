//! System tests: the real binary, its gateway and its functions, used over HTTP as clients use them.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

/// The system under test in a separate folder, and the operations that the tests use.
mod app;
/// Permitted dependencies between packages.
mod arrows;
/// Scaling from zero to many replicas and back.
mod autoscaling;
/// Disks that fail to write or to sync.
mod bad_disk;
/// Invalid requests and misbehaving clients.
mod bad_input;
/// Random kills under load.
mod chaos;
/// Interoperability with the CloudEvents SDK of another language.
mod clients;
/// Requests from clients, proxies and attackers that no HTTP library sends.
mod clients_as_they_are;
/// Steps of the wall clock, backward and forward.
mod clocks;
/// Every acknowledged event is processed or becomes a dead letter.
mod deliverable;
/// Stores that fail, disappear or stop responding, and recover.
mod faulty_stores;
/// Dependencies between the files of a package have no cycles.
mod file_cycles;
/// A single function's process without the runtime, and its probes.
mod function;
/// Clients that disconnect before the response.
mod hangups;
/// Replicas that hang, crash in a loop, or die in the middle of a batch.
mod hung_replica;
/// Interoperability with kcat, a Kafka client.
mod interop;
/// Start, stop, kill.
mod lifecycle;
/// Clients that retry until every user is acknowledged.
mod load;
/// Reports of tests that cannot run in this environment.
mod not_run;
/// Metrics, traces and logs.
mod observed;
/// Outages of the real services: killed, stopped or not started yet.
mod outages;
/// Events from foreign producers must not harm operators.
mod outsiders;
/// Power cuts on a disk that loses unsynced data.
mod power_loss;
/// Each function reads only its own configuration keys.
mod privilege;
/// Readiness probes as queue-proxy sends them.
mod probes;
/// TCP proxy that simulates a slow or interrupted network.
mod proxy;
/// Dead letters and replays.
mod repair;
/// Stores of the system under test: embedded or on the real services.
mod stores;
/// A new user's first session.
mod walkthrough;
/// Raw HTTP/1.1.
mod wire;
