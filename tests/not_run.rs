//! Tests that cannot run here say so, and add a line to the report of `infra/checks/report.sh`. Test programs of other
//! packages include this file, too.

use std::{fs::OpenOptions, io::Write};

/// What a test lacks, and so who can provide it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(dead_code, reason = "each test program lacks something else")]
pub enum Lacks {
    /// A package of Debian. With `CI=true` its absence is a failure.
    Debian,
    /// A package of PyPI.
    Python,
    /// The real services; `infra/services/test.sh` starts them.
    Services,
    /// The folder of published schemas and features that `SCHEMAS` names.
    Schemas,
    /// The user root.
    Root,
    /// A kernel with FUSE, and the right to mount.
    Fuse,
    /// The images' trees; `task test:images` makes them.
    Images,
}

/// Says that the running test does not run, and why.
///
/// # Panics
/// With `CI=true` where Debian could provide what it lacks.
pub fn not_run(lacks: Lacks, why: &str) {
    let thread = std::thread::current();
    let line = format!("{}: {why}", thread.name().unwrap_or("a test"));
    eprintln!("not run: {line}");
    let kind = format!("{lacks:?}").to_lowercase();
    if let Some(report) = std::env::var_os("CHECK_REPORT").filter(|report| !report.is_empty()) {
        // One write, since tests run side by side.
        let line = format!("not\t{kind}\t{}\n", line.replace(['\t', '\n'], " "));
        let file = OpenOptions::new().append(true).create(true).open(report);
        file.and_then(|mut file| file.write_all(line.as_bytes())).expect("CHECK_REPORT can be written");
    }
    let must = lacks == Lacks::Debian && std::env::var("CI").is_ok_and(|ci| ci == "true");
    assert!(!must, "{why}");
}
