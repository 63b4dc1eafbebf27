//! `outrigger-control`: serves a directory of resources to xDS clients.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use outrigger_control_api::control::{Control, NodeKey, Settings};
use tokio::net::TcpListener;
use tokio::signal::unix::{signal, SignalKind};

/// A small xDS control plane: serves a directory of files to Envoy, Outrigger and gRPC.
///
/// For development and small meshes. It knows no Kubernetes, no certificates and no second copy of itself,
/// and is not meant to replace Istio or another real control plane.
#[derive(Debug, Parser)]
#[command(name = "outrigger-control", version, after_long_help = FILES)]
struct Options {
    /// The directory with the resources. It is watched: files may be changed, added and removed.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,

    /// Where discovery is served: gRPC, aggregated or by type, delta and state of the world.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:18000")]
    listen: SocketAddr,

    /// Where the status page is served (/ and /status.json), if at all. Anybody who reaches it can read it.
    #[arg(long, value_name = "ADDRESS")]
    status: Option<SocketAddr>,

    /// What names the subdirectory with a node's own resources.
    #[arg(long, value_name = "KEY", default_value = "cluster")]
    node_key: Key,

    /// A cluster that clients have from their bootstrap, so that resources may point at it. Repeatable.
    #[arg(long, value_name = "NAME")]
    client_cluster: Vec<String>,

    /// How often clients with load_stats_config report their load, in seconds; the status page shows it. 0: never.
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    load_interval: u32,

    /// Says only what goes wrong with files and clients.
    #[arg(long, short)]
    quiet: bool,

    /// Reads the directory once, says what is wrong with it, and exits: 0 if nothing is.
    #[arg(long)]
    check: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Key {
    /// node.id
    Id,
    /// node.cluster
    Cluster,
}

const FILES: &str = "\
Files, in YAML or JSON (.yaml, .yml, .json):
  One resource of Envoy's v3 API with its `@type`, or a list of them under `resources`:

    resources:
    - '@type': type.googleapis.com/envoy.config.cluster.v3.Cluster
      name: web
      type: EDS
      eds_cluster_config: {eds_config: {ads: {}, resource_api_version: V3}}
    - '@type': type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment
      cluster_name: web
      endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 10.0.0.1, port_value: 80}}}}]}]

  Or services in a short form, which become a listener, routes, clusters and endpoints:

    listen: 127.0.0.1:15001
    services:
      web:
        port: 8080
        endpoints: ['10.0.0.1:8080', '10.0.0.2:8080']
        timeout: 2s
        retries: {attempts: 2}
      accounts:
        protocol: grpc
        versions:
          stable: {weight: 95, endpoints: ['10.0.1.1:50051']}
          canary: {weight: 5, endpoints: ['10.0.1.2:50051']}

  More fields of a service: hosts, listen, lb_policy, connect_timeout, idle_timeout, circuit_breakers,
  outlier_detection, health_check, and protocol http, http2, grpc or tcp.

  Files at the top of the directory are for every node. Those in a subdirectory are for the nodes whose key is its
  name, and replace what has the same type and name at the top. Write files elsewhere and move them in.

  With a mistake in the files the last good state stays, and the file, the resource and the field are named.";

fn main() -> ExitCode {
    let options = Options::parse();
    let mut settings = Settings::new(&options.dir);
    settings.node_key = match options.node_key {
        Key::Id => NodeKey::Id,
        Key::Cluster => NodeKey::Cluster,
    };
    settings.client_clusters.clone_from(&options.client_cluster);
    settings.quiet = options.quiet;
    let load_interval = std::time::Duration::from_secs(options.load_interval.into());
    settings.load_interval = Some(load_interval).filter(|interval| !interval.is_zero());
    let control = Control::open(settings, |line| {
        // Nobody may be listening.
        let _ = writeln!(std::io::stdout().lock(), "{line}");
    });
    if options.check {
        return if control.problems().is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let served = runtime.and_then(|runtime| runtime.block_on(serve(&options, &control)));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("outrigger-control: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(options: &Options, control: &Control) -> std::io::Result<()> {
    let discovery = bind(options.listen).await?;
    println!("outrigger-control serves {} on {}", options.dir.display(), discovery.local_addr()?);
    let status = match options.status {
        Some(address) => Some(bind(address).await?),
        None => None,
    };
    if let Some(listener) = &status {
        println!("outrigger-control status page: http://{}/", listener.local_addr()?);
    }
    let status = async {
        match status {
            Some(listener) => control.serve_status(listener).await,
            None => std::future::pending().await,
        }
    };
    let server = control.server();
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        () = server.serve(discovery) => {}
        () = status => {}
        () = control.follow() => {}
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let failed = |error: std::io::Error| {
        std::io::Error::new(error.kind(), format!("cannot listen on {address}: {error}"))
    };
    TcpListener::bind(address).await.map_err(failed)
}
