//! Injection without files: what annotations may say, what is done twice, what comes later.

use serde_json::{json, Value};

use super::documents::{inject as inject_all, parse, render};
use super::pod::{inject, Outcome, PROXY};
use super::probes::{Table, VARIABLE};
use super::settings::Form;
use super::{webhook, Settings};

fn pod(annotations: &Value) -> Value {
    let probe = json!({"httpGet": {"path": "/", "port": 8080}});
    let app = json!({"name": "app", "image": "app:1", "livenessProbe": probe});
    json!({"metadata": {"name": "p", "annotations": annotations}, "spec": {"containers": [app]}})
}

fn refused(annotations: &Value) -> String {
    let error = inject(&mut pod(annotations), "Pod/p", "", &Settings::default());
    error.expect_err("it is refused").to_string()
}

fn proxy_of(pod: &Value) -> &Value {
    let lists = ["initContainers", "containers"].map(|list| pod["spec"][list].as_array());
    let mut all = lists.into_iter().flatten().flatten();
    all.find(|container| container["name"] == PROXY).expect("a sidecar")
}

fn probes_of(pod: &Value) -> Table {
    let env = proxy_of(pod)["env"].as_array().expect("an environment");
    let entry = env.iter().find(|entry| entry["name"] == VARIABLE).expect("probes");
    serde_json::from_str(entry["value"].as_str().expect("a text")).expect("a table")
}

#[test]
fn annotations_that_say_nonsense_are_refused_by_name() {
    for (annotations, wanted) in [
        (
            json!({"outrigger.dev/inject": "maybe"}),
            r#"metadata.annotations["outrigger.dev/inject"]: "maybe": must be one of true, enabled, false, disabled"#,
        ),
        (
            json!({"outrigger.dev/exclude-inbound-ports": "80,http"}),
            r#"metadata.annotations["outrigger.dev/exclude-inbound-ports"]: "80,http": "http" is no port (1 to 65535)"#,
        ),
        (
            json!({"traffic.sidecar.istio.io/excludeOutboundPorts": "70000"}),
            r#"metadata.annotations["traffic.sidecar.istio.io/excludeOutboundPorts"]: "70000": "70000" is no port (1 to 65535)"#,
        ),
        (
            json!({"outrigger.dev/colour": "red"}),
            r#"metadata.annotations["outrigger.dev/colour"]: "red": there is no such annotation"#,
        ),
        (json!({"outrigger.dev/form": 3}), r#"metadata.annotations["outrigger.dev/form"]: "3": is no text"#),
    ] {
        assert_eq!(refused(&annotations), wanted);
    }
}

#[test]
fn what_is_no_pod_is_refused_by_its_field() {
    let refused = |pod: Value| {
        inject(&mut pod.clone(), "Pod/p", "", &Settings::default()).expect_err("it is refused").to_string()
    };
    assert_eq!(refused(json!([])), "Pod/p: the pod is not an object");
    assert_eq!(refused(json!({})), "Pod/p: spec is not an object");
    assert_eq!(refused(json!({"spec": {"containers": {}}})), "Pod/p: spec.containers is not a list");
    let taken = json!({"spec": {"containers": [{"name": "outrigger-proxy"}]}});
    assert_eq!(refused(taken), r#"Pod/p: the name "outrigger-proxy" is that of the sidecar"#);
}

#[test]
fn injecting_twice_is_injecting_once_and_what_came_between_is_probed_too() {
    for form in [Form::Native, Form::Classic] {
        let settings = Settings { form, ..Settings::default() };
        let mut once = pod(&json!({}));
        assert_eq!(inject(&mut once, "Pod/p", "", &settings).expect("a pod"), Outcome::Injected);
        let mut twice = once.clone();
        assert_eq!(inject(&mut twice, "Pod/p", "", &settings).expect("a pod"), Outcome::Already);
        assert_eq!(once, twice);
        // Another webhook adds a container after us, and we are asked again.
        let late = json!({"name": "late", "readinessProbe": {"tcpSocket": {"port": 7}}});
        twice["spec"]["containers"].as_array_mut().expect("a list").push(late);
        assert_eq!(inject(&mut twice, "Pod/p", "", &settings).expect("a pod"), Outcome::Already);
        let keys: Vec<String> = probes_of(&twice).into_keys().collect();
        assert_eq!(keys, ["app/livez", "late/readyz"]);
        let containers = twice["spec"]["containers"].as_array().expect("a list");
        let late = containers.iter().find(|container| container["name"] == "late").expect("it stays");
        assert_eq!(
            late["readinessProbe"]["httpGet"],
            json!({"path": "/app-health/late/readyz", "port": 15020})
        );
    }
}

#[test]
fn numbers_and_flags_are_read_as_kubernetes_reads_them() {
    let text = "spec:\n  hostNetwork: no\n  volumes:\n  - {name: a, secret: {defaultMode: 0640, optional: yes}}\n  x: 0640\n  y: 'yes'\n---\n---\nkind: Other\n";
    let documents = parse("file", text).expect("YAML");
    assert_eq!(documents.len(), 2, "what is empty is left out");
    assert_eq!(documents[0]["spec"]["hostNetwork"], json!(false));
    assert_eq!(documents[0]["spec"]["volumes"][0]["secret"], json!({"defaultMode": 0o640, "optional": true}));
    let again = parse("file", &render(&documents).expect("YAML")).expect("YAML");
    assert_eq!(again, documents, "what is written reads the same");
}

#[test]
fn texts_that_kubernetes_would_read_otherwise_are_quoted() {
    let object = json!({
        "kind": "ConfigMap", "metadata": {"name": "no", "labels": {"on": "0640", "plain": "word"}},
        "data": {"lines": "debug: on\nname: no\n", "time": "12:30", "number": "1_000", "address": "10.0.0.1", "half": "0.5x"},
        "list": ["yes", "fine", {"off": 1, "text": "a: no\n- on\n"}, "x\nno\n"], "count": 8, "flag": true,
    });
    let text = render(std::slice::from_ref(&object)).expect("YAML");
    for wanted in [
        "name: 'no'",
        "'on': '0640'",
        "time: '12:30'",
        "number: '1_000'",
        "- 'yes'",
        "- 'off': 1",
        "count: 8",
    ] {
        assert!(text.contains(wanted), "{wanted} in\n{text}");
    }
    for wanted in
        ["    debug: on\n    name: no\n", "address: 10.0.0.1\n", "plain: word\n", "- fine\n", "flag: true\n"]
    {
        assert!(text.contains(wanted), "{wanted} in\n{text}");
    }
    assert_eq!(parse("file", &text).expect("YAML"), [object], "it reads the same:\n{text}");
}

#[test]
fn objects_without_pods_stay_and_such_without_a_template_are_named() {
    let settings = Settings::default();
    let mut service = json!({"kind": "Service", "metadata": {"name": "s"}, "spec": {}});
    let before = service.clone();
    assert!(inject_all(&mut service, &settings).expect("nothing to do").is_empty());
    assert_eq!(service, before);
    let mut broken = json!({"kind": "CronJob", "metadata": {"name": "c"}, "spec": {}});
    let error = inject_all(&mut broken, &settings).expect_err("it has no pod").to_string();
    assert_eq!(error, "CronJob/c: /spec/jobTemplate/spec/template is not a pod template");
}

#[test]
fn reviews_that_are_none_are_refused() {
    let answer = |review: Value| webhook::answer(&Settings::default(), review.to_string().as_bytes());
    let version = "admission.k8s.io/v1";
    for (review, wanted) in [
        (json!({"apiVersion": "admission.k8s.io/v1beta1"}), "\"admission.k8s.io/v1beta1\""),
        (json!({"apiVersion": version}), "without a request"),
        (json!({"apiVersion": version, "request": {}}), "without a uid"),
        (json!({"apiVersion": version, "request": {"uid": "u"}}), "without an object"),
    ] {
        let error = answer(review).expect_err("it is no review");
        assert!(error.contains(wanted), "{error}");
    }
    let wrong = pod(&json!({"outrigger.dev/form": "both"}));
    let said =
        answer(json!({"apiVersion": version, "request": {"uid": "u", "object": wrong}})).expect("an answer");
    assert_eq!(said["response"]["allowed"], json!(false));
    let message = said["response"]["status"]["message"].as_str().expect("a reason");
    assert!(message.contains("must be one of native, classic"), "{message}");
}
