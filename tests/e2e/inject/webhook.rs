//! The admission webhook, asked as the API server asks.

use crate::harness::ports::free_port;
use crate::harness::{eventually, DEADLINE};
use crate::peers::find;
use crate::tls::certs::{put, Certs, NOW};
use base64::Engine;
use serde_json::{json, Value};
use std::path::Path;
use std::process::{Child, Command, Stdio};

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Posts to `path`; `None` where there is no connection or no TLS.
async fn post(certs: &Path, port: u16, path: &str, body: &str) -> Option<(u16, String)> {
    let mut command = tokio::process::Command::new(find("curl").expect("curl"));
    command.args(["-s", "-m", "10", "-w", "\n%{http_code}", "--cacert"]).arg(certs.join("ca.pem"));
    command.args(["--resolve", &format!("server.mesh.test:{port}:127.0.0.1")]);
    command.args(["-H", "content-type: application/json", "--data-binary", body]);
    command.arg(format!("https://server.mesh.test:{port}{path}")).stdin(Stdio::null()).kill_on_drop(true);
    let output = command.output().await.expect("curl runs");
    let text = String::from_utf8(output.stdout).expect("text");
    let (body, status) = text.rsplit_once('\n')?;
    output.status.success().then(|| (status.parse().expect("a status"), body.to_owned()))
}

fn review(namespace: &str, pod: &Value) -> String {
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {"uid": "u-1", "operation": "CREATE", "namespace": namespace, "object": pod},
    })
    .to_string()
}

/// The pod after the patch of an answer.
fn patched(pod: &Value, answer: &str) -> Value {
    let answer: Value = serde_json::from_str(answer).expect("JSON");
    assert_eq!((&answer["response"]["uid"], &answer["response"]["allowed"]), (&json!("u-1"), &json!(true)));
    let mut pod = pod.clone();
    if let Some(patch) = answer["response"]["patch"].as_str() {
        let patch = base64::engine::general_purpose::STANDARD.decode(patch).expect("base64");
        let patch: json_patch::Patch = serde_json::from_slice(&patch).expect("a patch");
        json_patch::patch(&mut pod, &patch).expect("it applies");
    }
    pod
}

#[tokio::test]
async fn pods_are_patched_as_they_are_admitted() {
    let certs = Certs::new();
    let file = |name: &str| certs.file(name).display().to_string();
    let port = free_port();
    let mut command = Command::new(env!("CARGO_BIN_EXE_outrigger"));
    command.args(["webhook", "--listen", &format!("127.0.0.1:{port}"), "--tls-cert", &file("server.pem")]);
    command.args(["--tls-key", &file("server.key")]).stdin(Stdio::null()).stderr(Stdio::null());
    let _webhook = Killed(command.spawn().expect("the webhook starts"));
    let up = eventually(DEADLINE, || async { post(certs.path(), port, "/healthz", "").await.is_some() });
    assert!(up.await, "nobody listens");

    let pod = json!({
        "metadata": {"generateName": "web-"},
        "spec": {"containers": [{"name": "app", "image": "app:1", "readinessProbe": {"tcpSocket": {"port": 80}}}]},
    });
    let (status, answer) =
        post(certs.path(), port, "/inject", &review("shop", &pod)).await.expect("an answer");
    assert_eq!(status, 200);
    let injected = patched(&pod, &answer);
    let names: Vec<_> = injected["spec"]["initContainers"].as_array().expect("ours").iter().collect();
    let names: Vec<_> = names.iter().filter_map(|container| container["name"].as_str()).collect();
    assert_eq!(names, ["outrigger-init", "outrigger-proxy"]);
    serde_json::from_value::<k8s_openapi::api::core::v1::Pod>(injected.clone()).expect("a pod of Kubernetes");
    // Asked again, there is nothing to do.
    let (_, again) =
        post(certs.path(), port, "/inject", &review("shop", &injected)).await.expect("an answer");
    assert_eq!(patched(&injected, &again), injected);
    let (_, left) =
        post(certs.path(), port, "/inject", &review("kube-system", &pod)).await.expect("an answer");
    assert_eq!(patched(&pod, &left), pod);
    // What is no review, and what says nonsense.
    let (status, said) = post(certs.path(), port, "/inject", "{}").await.expect("an answer");
    assert!(status == 400 && said.contains("AdmissionReview"), "{status} {said}");
    let mut wrong = pod.clone();
    wrong["metadata"]["annotations"] = json!({"outrigger.dev/probes": "some"});
    let (_, said) = post(certs.path(), port, "/inject", &review("shop", &wrong)).await.expect("an answer");
    let said: Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!(said["response"]["allowed"], json!(false));

    // A certificate of another authority is used from when it is there.
    let other = Certs::new();
    put(
        certs.path(),
        "server",
        &other.ca.issue("server", "spiffe://mesh.test/hook", &["server.mesh.test"], NOW, 30),
    );
    let renewed = eventually(DEADLINE, || async {
        let old = post(certs.path(), port, "/healthz", "").await;
        let new = post(other.path(), port, "/healthz", "").await;
        old.is_none() && new.is_some()
    });
    assert!(renewed.await, "the old certificate is still in use");
}
