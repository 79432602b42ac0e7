//! Runs a target: its corpus first, then inputs mutated from it, until its time is over. No compiler has to instrument
//! the code, so that this runs as any test does; in place of coverage, an input with a new outcome joins the corpus.

use std::{
    cell::Cell,
    collections::HashSet,
    fs,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::Path,
    sync::Once,
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::mutation::mutate;

/// How long a target runs, seconds, unless `FUZZ_SECONDS` says so.
const SECONDS: f64 = 2.0;
/// Most inputs that are mutated further, and the most bytes of each.
const POOL: (usize, usize) = (2_000, 16 * 1024);
/// How often a smaller input is tried for a fault.
const SHRINKS: usize = 2_000;

thread_local! {
    /// Whether panics of this thread are not shown.
    static QUIET: Cell<bool> = const { Cell::new(false) };
    /// Panics of this thread, also those that the code caught.
    static PANICS: Cell<usize> = const { Cell::new(0) };
}

/// Makes random inputs, besides those that are mutated from the corpus.
pub type Generate<'a> = &'a dyn Fn(&mut StdRng) -> Vec<u8>;

/// Runs a target on its corpus, and on what can be made of it.
///
/// `check` panics where a promise is broken. What it returns says in a few words what became of the input.
pub fn fuzz(name: &str, check: impl FnMut(&[u8]) -> String) {
    fuzz_with(name, Vec::new(), None, check);
}

/// The same with more seeds than the corpus has, and with inputs of a generator for half of the time.
pub fn fuzz_with(
    name: &str,
    seeds: Vec<Vec<u8>>,
    generate: Option<Generate<'_>>,
    mut check: impl FnMut(&[u8]) -> String,
) {
    hook();
    let seconds = std::env::var("FUZZ_SECONDS").map_or(SECONDS, |seconds| seconds.parse().unwrap());
    let seed = std::env::var("FUZZ_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    println!("{name}: FUZZ_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut pool = [corpus(name), seeds].concat();
    assert!(!pool.is_empty(), "{name} has no corpus");
    let (mut outcomes, mut inputs, mut slowest) = (HashSet::new(), 0, (Duration::ZERO, 0));
    let mut run = |input: &[u8]| {
        let start = Instant::now();
        let outcome = attempt(&mut check, input).unwrap_or_else(|panic| {
            let smallest = shrink(input.to_vec(), |input| attempt(&mut check, input).is_err());
            let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{name}"));
            fs::write(&file, &smallest).unwrap();
            eprintln!("{name}: FUZZ_SEED={seed}, the input is in {}", file.display());
            eprintln!("{}", String::from_utf8_lossy(&smallest[..smallest.len().min(2_000)]));
            resume_unwind(panic)
        });
        inputs += 1;
        let mut time = start.elapsed();
        if time > slowest.0 {
            // Once more, since another thread may have had the processor.
            let start = Instant::now();
            let _ = attempt(&mut check, input);
            time = time.min(start.elapsed());
        }
        slowest = slowest.max((time, input.len()));
        outcomes.insert(shape(&outcome))
    };
    for input in &pool {
        run(input);
    }
    let start = Instant::now();
    while start.elapsed().as_secs_f64() < seconds {
        let input = match generate {
            Some(generate) if random.random_bool(0.5) => generate(&mut random),
            _ => mutate(&pool, &mut random),
        };
        if run(&input) && pool.len() < POOL.0 && input.len() <= POOL.1 {
            pool.push(input);
        }
    }
    let per_second = inputs as f64 / start.elapsed().as_secs_f64().max(f64::MIN_POSITIVE);
    let (time, size) = slowest;
    println!(
        "{name}: {inputs} inputs, {per_second:.0} per second, {} outcomes, slowest {time:.1?} of {size} bytes",
        outcomes.len()
    );
}

/// What an outcome has in common with others: neither numbers nor what it quotes of the input, which may hold quotes.
fn shape(outcome: &str) -> String {
    const QUOTES: [char; 2] = ['`', '"'];
    let (head, tail) = match (outcome.split_once(QUOTES), outcome.rsplit_once(QUOTES)) {
        (Some((head, _)), Some((_, tail))) => (head, tail),
        _ => (outcome, ""),
    };
    head.chars().chain(tail.chars()).filter(|c| c.is_ascii() && !c.is_ascii_digit()).take(100).collect()
}

/// The input files of a target, in the order of their names.
pub fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(name);
    let Ok(folder) = fs::read_dir(folder) else { return Vec::new() };
    let mut files: Vec<_> = folder.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

/// A panic that the code itself catches is a fault as well.
fn attempt(check: &mut impl FnMut(&[u8]) -> String, input: &[u8]) -> std::thread::Result<String> {
    let before = PANICS.get();
    let outcome = catch_unwind(AssertUnwindSafe(|| check(input)))?;
    match PANICS.get() == before {
        true => Ok(outcome),
        false => Err(Box::new("the code panicked, and caught it")),
    }
}

/// Cuts pieces out of an input while it is still bad.
fn shrink(mut input: Vec<u8>, mut is_bad: impl FnMut(&[u8]) -> bool) -> Vec<u8> {
    QUIET.set(true);
    let (mut size, mut tries) = (input.len().div_ceil(2), 0);
    while size > 0 {
        let mut at = 0;
        while at < input.len() && tries < SHRINKS {
            let end = input.len().min(at + size);
            let shorter = [&input[..at], &input[end..]].concat();
            tries += 1;
            match is_bad(&shorter) {
                true => input = shorter,
                false => at += size,
            }
        }
        size /= 2;
    }
    QUIET.set(false);
    input
}

fn hook() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let shown = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANICS.set(PANICS.get() + 1);
            if !QUIET.get() {
                shown(panic);
            }
        }));
    });
}
