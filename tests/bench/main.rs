//! Measures every figure and its reference in the same run on the same machine, and prints a table. On a noisy machine
//! the ratio of two consecutive measurements is more reliable than a single figure.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a benchmark fails by panicking")]

/// Load generator with many concurrent connections.
mod load;
/// Function processes, and a bare hyper server as their reference.
mod server;
/// Benchmarks on the real services.
mod services;
/// Benchmarks of the embedded stores.
mod storage;
/// Stores of the measured system: embedded or on the real services.
#[allow(dead_code, reason = "the tests use all of it")]
#[path = "../stores.rs"]
mod stores;
/// Benchmarks of the whole system.
mod system;

/// One row of the table.
pub struct Figure {
    what: String,
    measured: String,
    reference: String,
    reach: &'static str,
    reached: bool,
}

/// Creates a row of the table and prints it to stderr.
pub fn figure(what: &str, measured: String, reference: String, reach: &'static str, reached: bool) -> Figure {
    let figure = Figure { what: what.to_owned(), measured, reference, reach, reached };
    eprintln!("{} | {} | {}", figure.what, figure.measured, figure.reference);
    figure
}

/// Returns the median; for an even number of values, the upper of the two middle ones.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    if server::is_reference() {
        return server::run_reference();
    }
    // `cargo bench` and `cargo test` add their own flags. Arguments without a leading dash select figures.
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
