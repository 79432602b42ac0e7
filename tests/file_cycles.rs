//! Checks that the files of a package do not refer to each other in cycles, so that each file can be read after the
//! files that it names.
//!
//! An arrow points from a file to each file of the same package whose items it names outside of tests. A declaration
//! `mod x;` or a re-export is not an arrow: a name that a parent re-exports resolves to the file that defines it. If a
//! type has an inherent `impl` in another file, an arrow points from the type's file to that file if the type's file
//! names a method of this `impl`.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::arrows::metadata;

/// Arrows that close a cycle and are allowed: the folder, from, to, and the reason.
const KNOWN: [(&str, &str, &str, &str); 1] = [(
    "functions/backends/log/src",
    "kafka/consumer.rs",
    "kafka/consumer/assignment.rs",
    "the consumer's methods about its assignment stand in a file of their own",
)];

/// A name that a `use` brings into a file, and its full path.
struct Import {
    name: String,
    path: Vec<String>,
    is_public: bool,
}

/// One source file, which is one module.
struct File {
    path: PathBuf,
    parent: Option<usize>,
    children: BTreeMap<String, usize>,
    imports: Vec<Import>,
    /// All tokens except those of tests, `use` and `mod x;`.
    tokens: Vec<String>,
}

/// The files of one library or program, its root first.
#[derive(Default)]
struct Files(Vec<File>);

impl Files {
    /// Reads a file and the modules that it declares, whose files are in `folder`. Returns the file's index.
    fn add(&mut self, path: &Path, folder: &Path, parent: Option<usize>) -> usize {
        let text =
            std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let (index, all) = (self.0.len(), without_tests(tokens(&text)));
        let (mut imports, mut rest, mut declared) = (Vec::new(), Vec::new(), Vec::new());
        let mut at = 0;
        while at < all.len() {
            match all[at].as_str() {
                "use" => {
                    let is_public = at > 0 && matches!(all[at - 1].as_str(), "pub" | ")");
                    at += 1;
                    read_use(&all, &mut at, &[], &mut |name, path| {
                        imports.push(Import { name, path, is_public });
                    });
                    rest.push(";".to_owned());
                }
                "mod" if all[at + 2] == ";" => {
                    declared.push(all[at + 1].clone());
                    at += 2;
                }
                _ => rest.push(all[at].clone()),
            }
            at += 1;
        }
        let path = path.to_owned();
        self.0.push(File { path, parent, children: BTreeMap::new(), imports, tokens: rest });
        for name in declared {
            let child = self.add(&folder.join(format!("{name}.rs")), &folder.join(&name), Some(index));
            self.0[index].children.insert(name, child);
        }
        index
    }

    /// Returns the file that defines the item at `path`, as named in file `at`, or `None` if another crate defines it.
    fn resolve(&self, at: usize, path: &[String]) -> Option<usize> {
        let file = &self.0[at];
        let Some((first, rest)) = path.split_first() else { return Some(at) };
        match first.as_str() {
            "crate" => self.resolve_in(0, rest),
            "super" => self.resolve_in(file.parent?, rest),
            "self" => self.resolve_in(at, rest),
            child => self.resolve_in(*file.children.get(child)?, rest),
        }
    }

    /// Resolves a path that starts in module `at`.
    fn resolve_in(&self, at: usize, path: &[String]) -> Option<usize> {
        let file = &self.0[at];
        let Some((first, rest)) = path.split_first() else { return Some(at) };
        if first == "super" || first == "self" || file.children.contains_key(first) {
            return self.resolve(at, path);
        }
        match file.imports.iter().find(|import| import.name == *first) {
            Some(import) => self.resolve(at, &[&import.path, rest].concat()),
            None => Some(at),
        }
    }

    /// All arrows. The files are named by their paths relative to `folder`.
    fn arrows(&self, folder: &Path) -> Arrows {
        let mut arrows = BTreeSet::new();
        for (index, file) in self.0.iter().enumerate() {
            let used = file.imports.iter().filter(|import| !import.is_public || file.names(&import.name));
            let named = used.map(|import| import.path.clone()).chain(file.paths());
            arrows.extend(named.filter_map(|path| Some((index, self.resolve(index, &path)?))));
            for (type_name, methods) in file.inherent_impls() {
                let Some(home) = self.resolve_in(index, &[type_name]) else { continue };
                if methods.iter().any(|method| self.0[home].names(method)) {
                    arrows.insert((home, index));
                }
            }
        }
        let name = |file: usize| self.0[file].path.strip_prefix(folder).unwrap().display().to_string();
        arrows.into_iter().filter(|(from, to)| from != to).map(|(from, to)| (name(from), name(to))).collect()
    }
}

/// Pairs of files: from, to.
type Arrows = BTreeSet<(String, String)>;

/// The arrows that are part of a cycle.
fn on_cycles(arrows: &Arrows) -> Arrows {
    let leads_back = |(from, to): &&(String, String)| {
        let (mut reached, mut next) = (BTreeSet::from([to]), vec![to]);
        while let Some(file) = next.pop() {
            let further = arrows.iter().filter(|(from, _)| from == file).map(|(_, to)| to);
            next.extend(further.filter(|to| reached.insert(to)));
        }
        reached.contains(from)
    };
    arrows.iter().filter(leads_back).cloned().collect()
}

impl File {
    fn names(&self, name: &str) -> bool {
        self.tokens.iter().any(|token| token == name)
    }

    /// All paths of two or more segments outside of `use`.
    fn paths(&self) -> impl Iterator<Item = Vec<String>> {
        let is_path = |begin: &usize| {
            self.tokens.get(begin + 1).is_some_and(|next| next == "::")
                && (*begin == 0 || self.tokens[begin - 1] != "::")
        };
        (0..self.tokens.len()).filter(is_path).map(|begin| {
            let segments = self.tokens[begin..].chunks(2);
            let mut ends = false;
            let segments = segments.take_while(|pair| {
                let takes = !ends && is_word(&pair[0]);
                ends = pair.get(1).is_none_or(|next| next != "::");
                takes
            });
            segments.map(|pair| pair[0].clone()).collect()
        })
    }

    /// The types with an inherent `impl` in this file, each with the methods of that `impl`.
    fn inherent_impls(&self) -> Vec<(String, Vec<String>)> {
        let mut impls = Vec::new();
        for (begin, _) in self.tokens.iter().enumerate().filter(|(_, token)| *token == "impl") {
            let head: Vec<_> = self.tokens[begin + 1..].iter().take_while(|token| *token != "{").collect();
            let block = begin + 1 + head.len();
            // Any other `impl` is part of a signature.
            let is_item = begin == 0 || matches!(self.tokens[begin - 1].as_str(), "}" | ";" | "]");
            if !is_item || head.iter().any(|token| *token == "for") {
                continue;
            }
            let mut depth = 0;
            let name = head.iter().find(|token| {
                depth += i32::from(**token == "<") - i32::from(**token == ">");
                depth == 0 && is_word(token)
            });
            let Some(name) = name else { continue };
            let body = &self.tokens[block..block + block_length(&self.tokens[block..])];
            let methods = body.windows(2).filter(|pair| pair[0] == "fn").map(|pair| pair[1].clone());
            impls.push(((*name).clone(), methods.collect()));
        }
        impls
    }
}

fn is_word(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// The number of tokens in the block that starts with `{`.
fn block_length(tokens: &[String]) -> usize {
    let mut depth = 0;
    let end = tokens.iter().position(|token| {
        depth += i32::from(token == "{") - i32::from(token == "}");
        depth == 0
    });
    end.map_or(tokens.len(), |end| end + 1)
}

/// Parses one tree of a `use`. Leaves `at` on the token after the tree.
fn read_use(all: &[String], at: &mut usize, before: &[String], found: &mut impl FnMut(String, Vec<String>)) {
    let mut path = before.to_vec();
    loop {
        match all[*at].as_str() {
            "{" => {
                while all[*at] != "}" {
                    *at += 1;
                    if all[*at] != "}" {
                        read_use(all, at, &path, found);
                    }
                }
                *at += 1;
                return;
            }
            "::" => {}
            segment => path.push(segment.to_owned()),
        }
        *at += 1;
        if all[*at] == "as" {
            found(all[*at + 1].clone(), path);
            *at += 2;
            return;
        }
        if matches!(all[*at].as_str(), "," | "}" | ";") {
            path.retain(|segment| segment != "*");
            let name = path.iter().rev().find(|segment| *segment != "self").cloned();
            return found(name.unwrap_or_default(), path);
        }
    }
}

/// Removes each item with `#[cfg(test)]`.
fn without_tests(all: Vec<String>) -> Vec<String> {
    const TEST: [&str; 7] = ["#", "[", "cfg", "(", "test", ")", "]"];
    let (mut kept, mut at) = (Vec::new(), 0);
    while at < all.len() {
        if all[at..].len() < TEST.len() || all[at..at + TEST.len()] != TEST {
            kept.push(all[at].clone());
            at += 1;
            continue;
        }
        at += all[at..].iter().position(|token| token == "{" || token == ";").unwrap();
        at += if all[at] == ";" { 1 } else { block_length(&all[at..]) };
    }
    kept
}

/// Splits a source text into words, `::` and other single characters. Drops comments, strings, character literals and
/// lifetimes.
fn tokens(text: &str) -> Vec<String> {
    let (mut tokens, mut rest) = (Vec::new(), text);
    while let Some(first) = rest.chars().next() {
        let word = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        let quote = rest.trim_start_matches(['b', 'c', 'r']).trim_start_matches('#').starts_with('"');
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").unwrap() + 2
        } else if quote && (word == 0) == (first == '"') && word <= 2 {
            string_length(rest)
        } else if first == '\'' {
            character_length(rest)
        } else if word > 0 {
            tokens.push(rest[..word].to_owned());
            word
        } else if rest.starts_with("::") {
            tokens.push("::".to_owned());
            2
        } else {
            if !first.is_whitespace() {
                tokens.push(first.to_string());
            }
            first.len_utf8()
        };
        rest = &rest[length..];
    }
    tokens
}

fn string_length(text: &str) -> usize {
    let open = text.find('"').unwrap();
    let (prefix, body) = (&text[..open], &text[open + 1..]);
    let hashes = "#".repeat(prefix.matches('#').count());
    if prefix.contains('r') {
        let end = format!("\"{hashes}");
        return open + 1 + body.find(&end).unwrap() + end.len();
    }
    let mut is_escaped = false;
    let end = body.find(|c| {
        let ends = c == '"' && !is_escaped;
        is_escaped = c == '\\' && !is_escaped;
        ends
    });
    open + 1 + end.unwrap() + 1
}

/// The length of a character literal or a lifetime. A lifetime has no second quote after one character.
fn character_length(text: &str) -> usize {
    let mut characters = text.char_indices().skip(1);
    match characters.next() {
        Some((_, '\\')) => 3 + text[3..].find('\'').unwrap() + 1,
        _ => match characters.next() {
            Some((at, '\'')) => at + 1,
            _ => 1 + text[1..].find(|c: char| !c.is_alphanumeric() && c != '_').unwrap(),
        },
    }
}

/// The root file of each library and program of the workspace.
fn roots() -> Vec<PathBuf> {
    let metadata = metadata();
    let packages = metadata["packages"].as_array().unwrap().iter();
    let targets = packages.flat_map(|package| package["targets"].as_array().unwrap());
    let is_source = |target: &&Value| matches!(target["kind"][0].as_str(), Some("lib" | "bin"));
    targets.filter(is_source).map(|target| target["src_path"].as_str().unwrap().into()).collect()
}

/// The arrows of one library or program.
fn arrows(root: &Path, folder: &Path) -> Arrows {
    let mut files = Files::default();
    files.add(root, root.parent().unwrap(), None);
    files.arrows(folder)
}

#[test]
fn files_do_not_refer_to_each_other_in_cycles() {
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut arrows: Arrows = roots().iter().flat_map(|root| arrows(root, project)).collect();
    let cyclic = on_cycles(&arrows);
    for (folder, from, to, why) in KNOWN {
        let arrow = (format!("{folder}/{from}"), format!("{folder}/{to}"));
        assert!(cyclic.contains(&arrow), "closes no cycle any more, so need not be listed: {arrow:?}, {why}");
        arrows.remove(&arrow);
    }
    let cyclic: Vec<_> = on_cycles(&arrows).iter().map(|(from, to)| format!("{from} → {to}")).collect();
    assert!(cyclic.is_empty(), "these form cycles: {cyclic:#?}");
}

/// Each case has the files `a.rs` and `b.rs` of a library that re-exports `A`, and whether they form a cycle.
#[test]
fn a_cycle_is_found_however_it_is_written() {
    let cases = [
        ("use crate::b::B; pub struct A;", "pub struct B;", false),
        ("use crate::b::B; pub struct A;", "use crate::{a::{self, A}}; pub struct B;", true),
        ("use crate::b::B; pub struct A;", "use super::A; pub struct B;", true),
        ("pub struct A; fn f<'a>(_: &'a A) { crate::b::g('\'') }", "fn g(_: char) { super::a::f() }", true),
        ("pub struct A; fn f(a: A) { a.go() }", "use crate::A; impl A { fn go(self) {} }", true),
        ("pub struct A; fn f(a: A) { a.go() }", "use crate::A; impl Go for A { fn go(self) {} }", false),
        ("use crate::b::B; pub struct A;", "/// See [`A`](crate::A).\nconst B: &str = \"crate::A\";", false),
        ("use crate::b::B; pub struct A;", "pub struct B; #[cfg(test)] mod tests { use crate::A; }", false),
        ("use crate::Root; pub struct A;", "", false),
    ];
    for (a, b, is_cycle) in cases {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("lib.rs");
        std::fs::write(&root, "mod a; mod b; pub use crate::a::A; pub struct Root;").unwrap();
        std::fs::write(folder.path().join("a.rs"), a).unwrap();
        std::fs::write(folder.path().join("b.rs"), b).unwrap();
        let cyclic = on_cycles(&arrows(&root, folder.path()));
        assert_eq!(!cyclic.is_empty(), is_cycle, "{a} {b} {cyclic:?}");
    }
}
