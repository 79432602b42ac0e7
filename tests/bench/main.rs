//! Measures every figure against its reference in one run on one machine, and prints a table.
//! A figure alone says little on a noisy machine; the ratio of two that were taken in turn says more.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a benchmark fails by panicking")]

/// Requests from many connections at once.
mod load;
/// Processes that are measured, and a bare server to compare with.
mod server;
/// The same and more on the real services.
mod services;
/// What is stored in which time.
mod storage;
/// Where what is measured keeps its data.
#[allow(dead_code, reason = "the tests use all of it")]
#[path = "../stores.rs"]
mod stores;
/// What passes through the whole system.
mod system;

/// One line of the table.
pub struct Figure {
    what: String,
    measured: String,
    reference: String,
    reach: &'static str,
    reached: bool,
}

/// A line of the table.
pub fn figure(what: &str, measured: String, reference: String, reach: &'static str, reached: bool) -> Figure {
    let figure = Figure { what: what.to_owned(), measured, reference, reach, reached };
    eprintln!("{} | {} | {}", figure.what, figure.measured, figure.reference);
    figure
}

/// The middle one.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    if server::is_reference() {
        return server::run_reference();
    }
    // `cargo bench` and `cargo test` pass arguments of their own; words without dashes choose figures.
    let chosen: Vec<_> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let is_chosen = |name: &str| chosen.is_empty() || chosen.iter().any(|word| name.contains(word.as_str()));
    let before = load_average();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let mut figures = Vec::new();
    runtime.block_on(async {
        if chosen.first().is_some_and(|word| word == "services") {
            figures.extend(services::all(&chosen[1..]).await);
            return;
        }
        if is_chosen("start") {
            figures.extend(server::start().await);
        }
        if is_chosen("ingest") {
            figures.extend(server::ingest().await);
        }
        if is_chosen("arrows") {
            figures.extend(system::arrows().await);
        }
        if is_chosen("visible") {
            figures.push(system::visible().await);
        }
        if is_chosen("tick") {
            figures.push(storage::tick().await);
        }
        if is_chosen("analytics") {
            figures.push(storage::analytics().await);
        }
        if is_chosen("idle") {
            figures.push(system::idle().await);
        }
    });
    println!("| what | measured | reference | reach | reached |\n|---|---|---|---|---|");
    for Figure { what, measured, reference, reach, reached } in figures {
        println!("| {what} | {measured} | {reference} | {reach} | {} |", if reached { "yes" } else { "no" });
    }
    let cores = std::thread::available_parallelism().unwrap();
    println!("\n{cores} cores, load average {before} before, {} after", load_average());
}

fn load_average() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().unwrap_or("unknown").to_owned()
}
