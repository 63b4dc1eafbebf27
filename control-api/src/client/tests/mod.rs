//! Tests of the discovery client, and what they share.

mod elsewhere;
mod grpc;
mod script;
mod several;
mod sim;

use prost::Message as _;

use crate::pb::envoy::service::discovery::v3 as pb;
use crate::pb::google::protobuf::Any;

/// A resource whose field 1 is its name and whose field 2 is `text`, both strings.
fn any(url: &str, name: &str, text: &str) -> Any {
    #[derive(Clone, PartialEq, prost::Message)]
    struct Named {
        #[prost(string, tag = "1")]
        name: String,
        #[prost(string, tag = "2")]
        text: String,
    }
    let value = Named { name: name.to_owned(), text: text.to_owned() }.encode_to_vec();
    Any { type_url: url.to_owned(), value }
}

fn resource(name: &str, version: u64, body: Option<Any>) -> pb::Resource {
    let version = version.to_string();
    pb::Resource { name: name.to_owned(), version, resource: body, ..Default::default() }
}
