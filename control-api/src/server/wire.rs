//! The responses as they are written: the same fields as the messages of `envoy.service.discovery.v3`,
//! with resources as shared encoded bytes, so that no body is copied before it is framed.

use bytes::Bytes;

use crate::pb::google::protobuf::Duration;

/// Field by field a `DiscoveryResponse`; `resources` are encoded `Any`s.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct SotwResponse {
    #[prost(string, tag = "1")]
    pub version_info: String,
    #[prost(bytes = "bytes", repeated, tag = "2")]
    pub resources: Vec<Bytes>,
    #[prost(string, tag = "4")]
    pub type_url: String,
    #[prost(string, tag = "5")]
    pub nonce: String,
}

/// Field by field a `DeltaDiscoveryResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct DeltaResponse {
    #[prost(string, tag = "1")]
    pub system_version_info: String,
    #[prost(message, repeated, tag = "2")]
    pub resources: Vec<DeltaResource>,
    #[prost(string, tag = "4")]
    pub type_url: String,
    #[prost(string, tag = "5")]
    pub nonce: String,
    #[prost(string, repeated, tag = "6")]
    pub removed_resources: Vec<String>,
}

/// The type of [`DeltaResource`], for the state of the world, whose resources have no room for a name, a
/// version and a time to live.
pub(super) const WRAPPER: &str = "type.googleapis.com/envoy.service.discovery.v3.Resource";

/// Field by field a `Resource`; `resource` is an encoded `Any`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct DeltaResource {
    #[prost(string, tag = "1")]
    pub version: String,
    #[prost(bytes = "bytes", optional, tag = "2")]
    pub resource: Option<Bytes>,
    #[prost(string, tag = "3")]
    pub name: String,
    #[prost(string, repeated, tag = "4")]
    pub aliases: Vec<String>,
    #[prost(message, optional, tag = "6")]
    pub ttl: Option<Duration>,
}
