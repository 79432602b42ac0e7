//! Requests, replicas and their number, against replicas that run in this process.
