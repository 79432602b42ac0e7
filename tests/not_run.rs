//! Reports tests that cannot run in this environment, to stderr and to the report of `infra/checks/report.sh`. Test
//! programs of other packages include this file, too.

use std::{fs::OpenOptions, io::Write};

/// A missing requirement of a test. The variant determines who can provide it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(dead_code, reason = "each test program lacks something else")]
pub enum Lacks {
    /// A Debian package. With `CI=true`, its absence fails the test.
    Debian,
    /// A PyPI package.
    Python,
    /// The real services; `infra/services/test.sh` starts them.
    Services,
    /// The folder of published schemas and features that `SCHEMAS` names.
    Schemas,
    /// Root privileges.
    Root,
    /// A kernel with FUSE, and the permission to mount.
    Fuse,
    /// The images' file trees; `task test:images` creates them.
    Images,
}

/// Reports that the current test is not run, and why.
///
/// # Panics
/// With `CI=true`, if the missing requirement is a Debian package.
pub fn not_run(lacks: Lacks, why: &str) {
    let thread = std::thread::current();
    let line = format!("{}: {why}", thread.name().unwrap_or("a test"));
    eprintln!("not run: {line}");
    let kind = format!("{lacks:?}").to_lowercase();
    if let Some(report) = std::env::var_os("CHECK_REPORT").filter(|report| !report.is_empty()) {
        // A single write, because tests run in parallel.
        let line = format!("not\t{kind}\t{}\n", line.replace(['\t', '\n'], " "));
        let file = OpenOptions::new().append(true).create(true).open(report);
        file.and_then(|mut file| file.write_all(line.as_bytes())).expect("CHECK_REPORT can be written");
    }
    let must = lacks == Lacks::Debian && std::env::var("CI").is_ok_and(|ci| ci == "true");
    assert!(!must, "{why}");
}
