//! The arrows at work: a log in memory, a function that answers as the test says, and a clock that is turned by hand.
#![allow(clippy::unwrap_used, reason = "what a test cannot go on without")]

// What plays the log and the functions, and the verbs of the tests.
mod harness;
// What the clock does to a PingSource.
mod clock;
// How a record is sent, tried, and put into the dead letters.
mod events;
// What is under way at once, what is committed, and what a crash leaves.
mod flow;
// The manifests of this project, dead letters and replays.
mod repair;
