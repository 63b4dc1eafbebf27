//! Pods as people write them, beside what they should become. `OUTRIGGER_UPDATE_MANIFESTS=1` writes that anew.

use super::outrigger;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::{Pod, ReplicationController, Service};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::{Path, PathBuf};

fn pods() -> Vec<PathBuf> {
    let directory = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/inject/pods"));
    let entries = std::fs::read_dir(directory).expect("the pods");
    let mut all: Vec<PathBuf> = entries.map(|entry| entry.expect("a file").path()).collect();
    all.retain(|path| !path.to_string_lossy().contains(".injected."));
    all.sort();
    all
}

fn documents(text: &str) -> Vec<Value> {
    let documents = serde_yaml_ng::Deserializer::from_str(text);
    documents.map(|document| Value::deserialize(document).expect("YAML")).collect()
}

/// What Kubernetes' own types make of an object: what they do not know is gone.
fn as_typed<T: DeserializeOwned + Serialize>(object: &Value) -> Value {
    let typed: T = serde_json::from_value(object.clone()).unwrap_or_else(|error| panic!("{error}: {object}"));
    serde_json::to_value(typed).expect("JSON")
}

fn is_of_kubernetes(object: &Value) {
    let typed = match object["kind"].as_str().expect("a kind") {
        "Pod" => as_typed::<Pod>(object),
        "Deployment" => as_typed::<Deployment>(object),
        "StatefulSet" => as_typed::<StatefulSet>(object),
        "DaemonSet" => as_typed::<DaemonSet>(object),
        "ReplicaSet" => as_typed::<ReplicaSet>(object),
        "ReplicationController" => as_typed::<ReplicationController>(object),
        "Job" => as_typed::<Job>(object),
        "CronJob" => as_typed::<CronJob>(object),
        "Service" => as_typed::<Service>(object),
        "List" => return object["items"].as_array().expect("a list").iter().for_each(is_of_kubernetes),
        kind => panic!("no type for {kind}"),
    };
    assert!(includes(&typed, object), "Kubernetes knows no such fields:\n{object:#}\nbut only\n{typed:#}");
}

/// Whether nothing of `part` is missing in `whole`, which may have defaults besides.
fn includes(whole: &Value, part: &Value) -> bool {
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => {
            part.iter().all(|(key, part)| whole.get(key).is_some_and(|whole| includes(whole, part)))
        }
        (Value::Array(whole), Value::Array(part)) => {
            whole.len() == part.len() && whole.iter().zip(part).all(|(whole, part)| includes(whole, part))
        }
        _ => whole == part,
    }
}

#[test]
fn pods_become_what_they_should_be() {
    let update = std::env::var_os("OUTRIGGER_UPDATE_MANIFESTS").is_some();
    let mut wrong = Vec::new();
    for path in pods() {
        let output = outrigger(&["inject", "-f", path.to_str().expect("a path")]);
        assert!(output.status.success(), "{}: {}", path.display(), String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).expect("text");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let whole = said.lines().map(|line| format!("# {line}\n")).collect::<String>() + &text;
        documents(&text).iter().for_each(is_of_kubernetes);
        let golden = path.with_extension("injected.yaml");
        if update {
            std::fs::write(&golden, &whole).expect("written");
        } else if std::fs::read_to_string(&golden).unwrap_or_default() != whole {
            wrong.push(format!("{}:\n{whole}", path.display()));
        }
        // Once is enough.
        let again = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(again.path(), &text).expect("written");
        let output = outrigger(&["inject", "-f", again.path().to_str().expect("a path")]);
        assert_eq!(String::from_utf8_lossy(&output.stdout), text, "injected twice: {}", path.display());
    }
    assert!(wrong.is_empty(), "not what they should be:\n{}", wrong.join("\n"));
    assert!(pods().len() >= 10, "{} kinds of pods", pods().len());
}

#[test]
fn the_manifests_of_the_webhook_are_of_kubernetes() {
    let directory = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/kubernetes"));
    let text = std::fs::read_to_string(directory.join("webhook.yaml")).expect("the manifests");
    let mut kinds: Vec<String> = documents(&text).iter().map(is_of_a_webhook).collect();
    kinds.retain(|kind| kind != "Namespace");
    let mut of_chart: Vec<String> = chart(&directory.join("chart")).iter().map(is_of_a_webhook).collect();
    kinds.sort();
    of_chart.sort();
    assert_eq!(kinds, of_chart, "the chart has the same objects");
}

/// The chart's objects with its own values. Its templates only name values.
fn chart(directory: &Path) -> Vec<Value> {
    let read = |path: PathBuf| std::fs::read_to_string(path).expect("a file of the chart");
    let values: Value = serde_yaml_ng::from_str(&read(directory.join("values.yaml"))).expect("values");
    let mut objects = Vec::new();
    for entry in std::fs::read_dir(directory.join("templates")).expect("templates") {
        let text = read(entry.expect("a template").path());
        let mut rendered = String::new();
        for (index, part) in text.split("{{ ").enumerate() {
            let (name, rest) = if index == 0 { ("", part) } else { part.split_once(" }}").expect("an end") };
            rendered += &match name {
                "" => String::new(),
                ".Release.Name" => "mesh".to_owned(),
                ".Release.Namespace" => "mesh-system".to_owned(),
                name => {
                    let path = name.strip_prefix(".Values.").expect("a value").replace('.', "/");
                    match values.pointer(&format!("/{path}")).unwrap_or_else(|| panic!("no value {name}")) {
                        Value::String(text) => text.clone(),
                        other => other.to_string(),
                    }
                }
            };
            rendered += rest;
        }
        objects.extend(documents(&rendered));
    }
    objects
}

fn is_of_a_webhook(object: &Value) -> String {
    use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
    use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
    let kind = object["kind"].as_str().expect("a kind").to_owned();
    let typed = match kind.as_str() {
        "MutatingWebhookConfiguration" => as_typed::<MutatingWebhookConfiguration>(object),
        "Namespace" => as_typed::<Namespace>(object),
        "ServiceAccount" => as_typed::<ServiceAccount>(object),
        "ConfigMap" => as_typed::<ConfigMap>(object),
        "Service" => as_typed::<Service>(object),
        "Deployment" => as_typed::<Deployment>(object),
        kind => panic!("no type for {kind}"),
    };
    assert!(includes(&typed, object), "Kubernetes knows no such fields:\n{object:#}");
    if let Some(settings) = object["data"]["settings.yaml"].as_str() {
        // What the webhook would read.
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), settings).expect("written");
        let (file, pod) = (file.path().to_str().expect("a path"), &pods()[0]);
        let output = outrigger(&["inject", "--settings", file, "-f", pod.to_str().expect("a path")]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    kind
}

#[test]
fn the_settings_that_are_shown_are_the_defaults() {
    let shown = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/kubernetes/settings.yaml");
    let pod = &pods()[0];
    let pod = pod.to_str().expect("a path");
    let (with, without) =
        (outrigger(&["inject", "--settings", shown, "-f", pod]), outrigger(&["inject", "-f", pod]));
    assert!(with.status.success(), "{}", String::from_utf8_lossy(&with.stderr));
    assert_eq!(String::from_utf8_lossy(&with.stdout), String::from_utf8_lossy(&without.stdout));
}
