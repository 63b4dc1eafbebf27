//! How many real clusters, listeners and bootstraps compile: printed, not asserted. Reads the folder
//! that `OUTRIGGER_CORPUS` names.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use outrigger_control_api::pb::envoy::config::bootstrap::v3::Bootstrap;

use outrigger_control_api::load_resource;

use super::resources::encoded;
use super::*;
use crate::config::compile::{check, Compiler};
use crate::config::problems::Problem;
use crate::config::support;

#[test]
fn real_resources() {
    let Some(root) = std::env::var_os("OUTRIGGER_CORPUS") else {
        eprintln!("skipped: OUTRIGGER_CORPUS is not set");
        return;
    };
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    for kind in ["clusters", "listeners", "bootstrap"] {
        let (mut accepted, mut all) = (0, 0);
        for source in std::fs::read_dir(Path::new(&root)).unwrap().flatten() {
            for file in std::fs::read_dir(source.path().join(kind)).into_iter().flatten().flatten() {
                let text = std::fs::read(file.path()).unwrap();
                let mut resource: Value = serde_json::from_slice(&text).unwrap();
                let bootstrap = match kind {
                    "bootstrap" => resource,
                    kind => {
                        resource.as_object_mut().unwrap().shift_remove("@type");
                        json!({"static_resources": {kind: [resource]}})
                    }
                };
                all += 1;
                match compile_any(&bootstrap) {
                    Ok(_) => accepted += 1,
                    Err(problems) => {
                        for reason in problems.iter().map(reason).collect::<std::collections::BTreeSet<_>>() {
                            *reasons.entry(format!("{kind}: {reason}")).or_default() += 1;
                        }
                    }
                }
            }
        }
        println!("{kind}: {accepted} of {all} compile");
    }
    let mut reasons: Vec<_> = reasons.into_iter().collect();
    reasons.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    for (reason, count) in reasons.iter().take(80) {
        println!("{count:5} {reason}");
    }
}

fn compile_any(bootstrap: &Value) -> Result<CompiledBootstrap, Vec<crate::config::Problem>> {
    let loaded = outrigger_control_api::load_value::<Bootstrap>(bootstrap)?;
    super::super::bootstrap(loaded, &NodeOptions::default())
}

/// The problem's field without its place, and what is said of it.
fn reason(problem: &crate::config::Problem) -> String {
    let field = problem.path.rsplit('.').next().unwrap_or_default();
    format!("{}: {}", field.split('[').next().unwrap_or_default(), problem.message)
}

/// Which compiler a kind of resource goes through.
fn compile_alone(compiler: &Compiler, kind: &str, bytes: &[u8]) -> Result<(), Vec<Problem>> {
    match kind {
        "clusters" => compiler.cluster(bytes).map(drop),
        "endpoints" => {
            compiler.check_assignment(bytes)?;
            let cluster = encoded("cluster.v3.Cluster", json!({"name": "c", "type": "STATIC"}));
            let cluster = compiler.cluster(&cluster)?.value;
            compiler.hosts(&cluster, bytes, &[]).map(drop)
        }
        "routes" => compiler.route_table(&Arc::from(bytes), &|_| true).map(drop),
        _ => compiler.listener(bytes, &|_| true).map(drop),
    }
}

#[test]
fn single_resources() {
    let Some(root) = std::env::var_os("OUTRIGGER_CORPUS") else {
        eprintln!("skipped: OUTRIGGER_CORPUS is not set");
        return;
    };
    let compiler = Compiler { has_ads: true, ..Compiler::default() };
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    let (mut quick, mut fine) = (0, 0);
    for source in std::fs::read_dir(Path::new(&root)).unwrap().flatten() {
        for kind in ["clusters", "endpoints", "routes", "listeners"] {
            let (mut accepted, mut all) = (0, 0);
            for file in std::fs::read_dir(source.path().join(kind)).into_iter().flatten().flatten() {
                let text = std::fs::read(file.path()).unwrap();
                let Ok(resource) = load_resource(&serde_json::from_slice(&text).unwrap()) else { continue };
                let (descriptor, bytes) = (resource.dynamic.descriptor(), resource.any.value);
                all += 1;
                let full = check::support(support::table(), &resource.dynamic, "");
                let mut ruled = Vec::new();
                support::rules::check(&resource.dynamic, "", &mut ruled);
                fine += usize::from(full.rejected.is_empty() && ruled.is_empty());
                if let Some(observed) = support::scan(&descriptor, &bytes) {
                    quick += 1;
                    assert!(full.rejected.is_empty() && ruled.is_empty(), "{}", file.path().display());
                    assert_eq!(observed, full.observed, "{}", file.path().display());
                }
                for length in (0..bytes.len()).step_by(bytes.len() / 16 + 1) {
                    let _ = compile_alone(&compiler, kind, &bytes[..length]);
                }
                match compile_alone(&compiler, kind, &bytes) {
                    Ok(()) => accepted += 1,
                    Err(problems) => {
                        for reason in problems.iter().map(reason).collect::<std::collections::BTreeSet<_>>() {
                            *reasons.entry(format!("{kind}: {reason}")).or_default() += 1;
                        }
                    }
                }
            }
            if all > 0 {
                println!("{:?} {kind}: {accepted} of {all}", source.file_name());
            }
        }
    }
    println!("{quick} of {fine} fine resources are known to be so by their bytes");
    assert!(quick * 10 > fine * 5, "the quick look finds {quick} of {fine}");
    let mut reasons: Vec<_> = reasons.into_iter().collect();
    reasons.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    for (reason, count) in reasons.iter().take(40) {
        println!("{count:5} {reason}");
    }
}
