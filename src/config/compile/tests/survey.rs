//! How many real clusters, listeners and bootstraps compile: printed, not asserted. Reads the folder
//! that `OUTRIGGER_CORPUS` names.

use std::collections::BTreeMap;
use std::path::Path;

use outrigger_control_api::pb::envoy::config::bootstrap::v3::Bootstrap;

use super::*;

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
