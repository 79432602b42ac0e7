//! The domain: users, the history of their number, and why a store cannot keep or give them. No I/O, no HTTP.

mod failure;
mod history;
mod store;
mod user;

pub use crate::{
    failure::{Failure, FailureKind, chain},
    history::{History, Point, PointOutOfRange, Window},
    store::Store,
    user::{InvalidUser, LONGEST_NAME, User},
};
