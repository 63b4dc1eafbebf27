//! Every crate in the tree has a licence that `deny.toml` allows and comes from the public registry.

use serde_json::Value;
use std::process::Command;

/// The strings of a TOML array `allow = [...]`.
fn allowed(policy: &str) -> Vec<&str> {
    let list =
        policy.split_once("\nallow = [").and_then(|(_, rest)| rest.split_once(']')).expect("an allow list").0;
    list.lines().filter_map(|line| line.trim().strip_prefix('"')?.split('"').next()).collect()
}

/// Whether an SPDX expression holds when only some licences are allowed. `/` is the old way to write OR; an exception
/// (`WITH`) only grants more.
struct Expression<'a> {
    words: Vec<&'a str>,
    at: usize,
    allowed: &'a [&'a str],
}

impl Expression<'_> {
    fn holds(text: &str, allowed: &[&str]) -> bool {
        let text = text.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
        Expression { words: text.split_whitespace().collect(), at: 0, allowed }.any()
    }

    fn next_is(&mut self, word: &str) -> bool {
        let is = self.words.get(self.at) == Some(&word);
        self.at += usize::from(is);
        is
    }

    fn any(&mut self) -> bool {
        let mut holds = self.all();
        while self.next_is("OR") {
            holds |= self.all();
        }
        holds
    }

    fn all(&mut self) -> bool {
        let mut holds = self.one();
        while self.next_is("AND") {
            holds &= self.one();
        }
        holds
    }

    fn one(&mut self) -> bool {
        if self.next_is("(") {
            let holds = self.any();
            assert!(self.next_is(")"), "unbalanced licence expression {:?}", self.words);
            return holds;
        }
        let name = self.words.get(self.at).copied().unwrap_or_default();
        self.at += 1;
        if self.next_is("WITH") {
            self.at += 1;
        }
        self.allowed.contains(&name)
    }
}

#[test]
fn crates_have_allowed_licences_and_sources() {
    let policy = include_str!("../../deny.toml");
    let allowed = allowed(policy);
    assert!(allowed.contains(&"MIT") && allowed.len() > 3, "cannot read the allow list: {allowed:?}");
    assert!(Expression::holds("(MIT OR GPL-3.0) AND Apache-2.0", &allowed));
    assert!(!Expression::holds("MIT AND GPL-3.0", &allowed));

    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    // Only what is built here: the crates of other platforms have not been downloaded.
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let arguments = ["metadata", "--format-version", "1", "--locked", "--filter-platform", &platform];
    let output = Command::new(cargo).args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output();
    let output = output.expect("cargo metadata");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let tree: Value = serde_json::from_slice(&output.stdout).expect("JSON of cargo metadata");
    let packages = tree["packages"].as_array().expect("packages");
    assert!(packages.len() > 10);
    let mut bad = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap_or("?");
        let licence = package["license"].as_str().unwrap_or("none stated");
        if !Expression::holds(licence, &allowed) {
            bad.push(format!("{name}: licence {licence}"));
        }
        let source = &package["source"];
        if !source.is_null() && !source.as_str().is_some_and(|s| s.contains("crates.io-index")) {
            bad.push(format!("{name}: source {source}"));
        }
    }
    assert!(bad.is_empty(), "not allowed by deny.toml:\n{}", bad.join("\n"));
}
