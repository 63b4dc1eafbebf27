//! An authorization server for `envoy.filters.http.ext_authz`: who says `authorization: Bearer letmein` may pass, and the
//! upstream learns who that is; others are told what is missing.
//!
//! ```sh
//! cargo run --example authorization-server -- 127.0.0.1:9191
//! ```

mod unary;

use std::error::Error;

use outrigger_control_api::pb::envoy::config::core::v3::{HeaderValue, HeaderValueOption};
use outrigger_control_api::pb::envoy::r#type::v3::HttpStatus;
use outrigger_control_api::pb::envoy::service::auth::v3::check_response::HttpResponse;
use outrigger_control_api::pb::envoy::service::auth::v3::{
    CheckRequest, CheckResponse, DeniedHttpResponse, OkHttpResponse,
};
use outrigger_control_api::pb::google::rpc::Status;

const PERMISSION_DENIED: i32 = 7;

fn header(key: &str, value: &str) -> HeaderValueOption {
    let header = HeaderValue { key: key.to_owned(), value: value.to_owned(), ..HeaderValue::default() };
    HeaderValueOption { header: Some(header), ..HeaderValueOption::default() }
}

fn check(question: CheckRequest) -> CheckResponse {
    let http = question.attributes.and_then(|all| all.request).and_then(|request| request.http);
    let http = http.unwrap_or_default();
    let (code, said) = match http.headers.get("authorization").map(String::as_str) {
        Some("Bearer letmein") => {
            let headers = vec![header("x-user", "jane")];
            // The upstream has no use for it.
            let headers_to_remove = vec!["authorization".to_owned()];
            (0, HttpResponse::OkResponse(OkHttpResponse { headers, headers_to_remove, ..Default::default() }))
        }
        _ => {
            let denied = DeniedHttpResponse {
                status: Some(HttpStatus { code: 401 }),
                headers: vec![header("www-authenticate", "Bearer")],
                body: format!("{} {} needs a token\n", http.method, http.path),
            };
            (PERMISSION_DENIED, HttpResponse::DeniedResponse(denied))
        }
    };
    let status = Some(Status { code, ..Status::default() });
    CheckResponse { status, http_response: Some(said), ..CheckResponse::default() }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:9191".to_owned());
    unary::serve(&address, check).await
}
