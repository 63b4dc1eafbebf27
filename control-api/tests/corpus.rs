//! Reads real xDS resources from the folder that `OUTRIGGER_CORPUS` names: one JSON resource a file and
//! an `index.tsv` that lists them. Skipped when the variable is unset.

use std::collections::BTreeMap;
use std::path::Path;
use std::{env, fs};

use outrigger_control_api::{check_any, load_resource, load_value, message_to_json, pb, pool, unpack};
use pb::envoy::config::bootstrap::v3::Bootstrap;

/// At least this share of the valid resources must parse, in percent.
const FLOOR_PERCENT: usize = 98;

#[test]
fn real_resources_parse() {
    let Ok(folder) = env::var("OUTRIGGER_CORPUS") else {
        println!("skipped: OUTRIGGER_CORPUS is not set");
        return;
    };
    let folder = Path::new(&folder);
    let index = fs::read_to_string(folder.join("index.tsv")).unwrap();
    let mut lines = index.lines();
    let header: Vec<&str> = lines.next().unwrap().split('\t').collect();
    let column = |name: &str| header.iter().position(|h| *h == name).unwrap();
    let (file_column, kind_column, invalid_column) =
        (column("file"), column("kind"), column("invalid_because"));

    let mut sources: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    let mut failures: BTreeMap<String, usize> = BTreeMap::new();
    for line in lines {
        let cells: Vec<&str> = line.split('\t').collect();
        if !cells[invalid_column].is_empty() {
            continue;
        }
        let file = cells[file_column];
        let source = sources.entry(file.split('/').next().unwrap_or_default().to_owned()).or_default();
        source.1 += 1;
        let value = serde_json::from_slice(&fs::read(folder.join(file)).unwrap()).unwrap();
        match load_resource(&value) {
            Ok(resource) => {
                source.0 += 1;
                assert_eq!(check_any(&resource.any, "").err(), None, "{file} decodes as it was read");
                if cells[kind_column] == "bootstrap" {
                    let typed: Bootstrap = unpack(&resource.any).unwrap();
                    let again =
                        load_value::<Bootstrap>(&message_to_json(&typed)).map(|loaded| loaded.message);
                    assert!(again.as_ref() == Ok(&typed), "{file} does not survive its JSON form");
                }
            }
            Err(problems) => {
                for problem in problems {
                    if env::var("OUTRIGGER_CORPUS_VERBOSE").is_ok() {
                        println!("{file}: {problem}");
                    }
                    *failures.entry(problem.message).or_default() += 1;
                }
            }
        }
    }

    let (mut parsed, mut total) = (0, 0);
    for (source, (good, all)) in &sources {
        println!("{source:24} {good:5} of {all:5}");
        parsed += good;
        total += all;
    }
    println!("{:24} {parsed:5} of {total:5}", "all");
    let mut failures: Vec<(usize, String)> = failures.into_iter().map(|(m, n)| (n, m)).collect();
    failures.sort_by(|a, b| b.cmp(a));
    for (count, message) in failures.iter().take(60) {
        println!("{count:6} {message}");
    }
    assert!(total > 0, "the corpus is empty");
    assert!(parsed * 100 >= total * FLOOR_PERCENT, "{parsed} of {total} parse, expected {FLOOR_PERCENT} %");
}

/// The extensions that real sidecars use must be known, so that a refusal can say "not supported".
#[test]
fn real_extensions_are_known() {
    let Ok(folder) = env::var("OUTRIGGER_CORPUS") else {
        println!("skipped: OUTRIGGER_CORPUS is not set");
        return;
    };
    let features = fs::read_to_string(Path::new(&folder).join("features-sidecar.tsv")).unwrap();
    let mut known = 0;
    for line in features.lines().skip(1) {
        let feature = line.split('\t').nth(6).unwrap();
        let (_, name) = feature.split_once(" | ").unwrap();
        // A structure is written TypedStruct<TYPE>.
        let name = name.split_once('<').map_or(name, |(_, inner)| inner.trim_end_matches('>'));
        assert!(pool().get_message_by_name(name).is_some(), "{name} is unknown");
        known += 1;
    }
    assert!(known >= 60, "{known}");
}
