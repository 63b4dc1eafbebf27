//! Real servers started on free ports: nginx, Redis, a WebSocket echo.

use super::command;
use crate::harness::ports::free_port;
use crate::harness::{eventually, DEADLINE};
use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;
use tokio::net::TcpStream;

/// A Python that has `grpcio`: `OUTRIGGER_GRPC_PYTHON`, else the one that `tests/run` installed. When there is none the
/// test fails, or is skipped if that is allowed.
pub fn python() -> Option<PathBuf> {
    let named = std::env::var_os("OUTRIGGER_GRPC_PYTHON").map(PathBuf::from);
    let installed = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(".peers/grpc/bin/python");
    let python = named.unwrap_or(installed);
    if python.is_file() {
        return Some(python);
    }
    assert!(super::may_be_missing(), "no Python with grpcio: run tests/run, which installs it");
    eprintln!("skipped: no Python with grpcio");
    None
}

/// A server process; killed when dropped.
pub struct Server {
    pub port: u16,
    child: Child,
    dir: TempDir,
}

impl Server {
    /// Starts what `command` says until something listens on the port it was given.
    async fn start(mut prepare: impl FnMut(u16, &TempDir) -> Command) -> Server {
        let mut said = String::new();
        for _ in 0..4 {
            let port = free_port();
            let dir = tempfile::Builder::new().prefix("outrigger-peer").tempdir().expect("a directory");
            let output = fs::File::create(dir.path().join("output.log")).expect("the output file");
            let mut command = prepare(port, &dir);
            command.stdin(Stdio::null()).stdout(output.try_clone().expect("the output file")).stderr(output);
            let child = command.spawn().unwrap_or_else(|e| panic!("{command:?} cannot be started: {e}"));
            let mut server = Server { port, child, dir };
            let mut ended = false;
            let up = eventually(DEADLINE, || {
                ended = ended || !matches!(server.child.try_wait(), Ok(None));
                async move { ended || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.is_ok() }
            })
            .await;
            if up && !ended {
                return server;
            }
            said = server.output();
        }
        panic!("a server did not start: {said}");
    }

    /// A file in its directory.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What it printed.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.file("output.log")).unwrap_or_default()).into_owned()
    }

    /// A script that takes its port as its argument, run by the Python that has `grpcio`.
    pub async fn python(script: &std::path::Path) -> Server {
        Server::start(|port, _| {
            let mut command = Command::new(python().expect("a Python with grpcio"));
            command.arg(script).arg(port.to_string());
            command
        })
        .await
    }

    /// An nginx that answers every request with `body`, except `/big` (a file of a mebibyte), and logs each request as
    /// a line of `access.log`. With a certificate (paths of certificate and key) it speaks TLS.
    pub async fn nginx(body: &str, tls: Option<(PathBuf, PathBuf)>) -> Server {
        Server::start(|port, dir| {
            let at = dir.path().display();
            let (listen, certificate) = match &tls {
                None => (String::new(), String::new()),
                Some((certificate, key)) => (
                    " ssl".to_string(),
                    format!("ssl_certificate {}; ssl_certificate_key {};", certificate.display(), key.display()),
                ),
            };
            let user = if nobody_else() { "" } else { "user root;" };
            let config = format!(
                "{user} daemon off; worker_processes 1; pid {at}/nginx.pid; error_log {at}/error.log;\n\
                 events {{ worker_connections 1024; }}\n\
                 http {{ access_log {at}/access.log; keepalive_requests 1000000; default_type text/plain;\n\
                 client_body_temp_path {at}/body; proxy_temp_path {at}/proxy; fastcgi_temp_path {at}/fastcgi;\n\
                 uwsgi_temp_path {at}/uwsgi; scgi_temp_path {at}/scgi;\n\
                 server {{ listen 127.0.0.1:{port}{listen}; {certificate}\n\
                 location / {{ return 200 \"{body}\"; }}\n\
                 location = /big {{ root {at}; }}\n\
                 location = /status {{ access_log off; stub_status; }} }} }}\n"
            );
            fs::write(dir.path().join("nginx.conf"), config).expect("nginx.conf");
            fs::write(dir.path().join("big"), vec![b'b'; 1 << 20]).expect("a big file");
            let mut nginx = command("nginx");
            nginx.arg("-p").arg(dir.path()).arg("-c").arg(dir.path().join("nginx.conf"));
            nginx.arg("-e").arg(dir.path().join("error.log"));
            nginx
        })
        .await
    }

    /// A Redis that keeps nothing.
    pub async fn redis() -> Server {
        Server::start(|port, dir| {
            let mut redis = command("redis-server");
            redis.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--daemonize", "no"]);
            redis.arg("--port").arg(port.to_string()).arg("--dir").arg(dir.path());
            redis
        })
        .await
    }

    /// A WebSocket echo server on Python's standard library.
    pub async fn websocket() -> Server {
        Server::start(|port, dir| {
            let script = dir.path().join("websocket_echo.py");
            fs::write(&script, include_str!("websocket_echo.py")).expect("the script");
            let mut python = command("python3");
            python.arg(script).arg(port.to_string());
            python
        })
        .await
    }

    /// Lines of nginx's access log.
    pub fn logged(&self) -> usize {
        fs::read_to_string(self.file("access.log")).unwrap_or_default().lines().count()
    }
}

/// True unless this runs as root, whose nginx would hand its work to a user that cannot read the directory.
fn nobody_else() -> bool {
    fs::metadata("/proc/self").is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) != 0)
}

impl Drop for Server {
    fn drop(&mut self) {
        // nginx's master must take its worker along, which a kill would not do.
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let patience = std::time::Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            if patience.elapsed() > DEADLINE {
                let _ = self.child.kill();
                let _ = self.child.wait();
            }
            std::thread::yield_now();
        }
        if std::thread::panicking() {
            eprintln!("--- output of the server on port {}:\n{}---", self.port, self.output());
        }
    }
}

/// A self-signed certificate and its key for these names, made by openssl in `dir`.
pub fn certificate(dir: &TempDir, file: &str, names: &[&str]) -> (PathBuf, PathBuf) {
    let (certificate, key) = (dir.path().join(format!("{file}.pem")), dir.path().join(format!("{file}.key")));
    let names: Vec<String> = names.iter().map(|n| format!("DNS:{n}")).collect();
    let output = command("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"])
        .args(["-days", "2", "-subj", "/CN=outrigger test", "-addext"])
        .arg(format!("subjectAltName={}", names.join(",")))
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output()
        .expect("openssl");
    assert!(output.status.success(), "openssl req: {}", String::from_utf8_lossy(&output.stderr));
    (certificate, key)
}
