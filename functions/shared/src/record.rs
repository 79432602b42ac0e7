//! A record of the log in Kafka's form; see the crate `event`.

pub use event::{Delivered, Record};
