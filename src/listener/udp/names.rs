//! Queries for names: answered from the table and from clusters, or by asking others. Statistics are those of Envoy's
//! DNS filter.

use std::cell::Cell;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use outrigger_control_api::pb::google::protobuf::value::Kind;
use tokio::time::Instant;

use super::message::{self, Answer, Head, Malformed, Question, TYPE_A, TYPE_AAAA, TYPE_SRV};
use super::{record, Key, Port};
use crate::config::cluster::{Address, Dns, DnsFamily};
use crate::config::dns_filter::{DnsFilter, Endpoint, Forward, Service, QUERY_METADATA};
use crate::config::{Cluster, Slot};
use crate::telemetry::format::FormatContext;
use crate::upstream::dns::Resolver;

/// What a worker answers for one listener.
pub(super) struct Names {
    filter: Arc<DnsFilter>,
    port: Rc<Port>,
    /// For IPv4 and for IPv6 addresses.
    resolvers: Option<[Resolver; 2]>,
    /// Names that others were asked for.
    pending: Cell<u64>,
}

/// One query.
struct Query {
    key: Key,
    head: Head,
    question: Option<Question>,
    start: Instant,
    received: usize,
}

/// A name that another was asked for.
struct Pending<'a>(&'a Cell<u64>);

impl<'a> Pending<'a> {
    fn new(count: &'a Cell<u64>) -> Self {
        count.set(count.get() + 1);
        Self(count)
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

impl Names {
    pub(super) fn new(filter: &Arc<DnsFilter>, port: Rc<Port>) -> Rc<Self> {
        let resolver = |forward: &Forward, family| Resolver::new(Dns { family, ..forward.dns.clone() });
        let resolvers = filter
            .forward
            .as_ref()
            .map(|forward| [resolver(forward, DnsFamily::V4Only), resolver(forward, DnsFamily::V6Only)]);
        Rc::new(Self { filter: filter.clone(), port, resolvers, pending: Cell::default() })
    }

    /// Whether it answers as `filter` says.
    pub(super) fn is_of(&self, filter: &Arc<DnsFilter>) -> bool {
        Arc::ptr_eq(&self.filter, filter)
    }

    /// Answers one datagram, now or when others have answered.
    pub(super) fn answer(self: &Rc<Self>, key: Key, datagram: &[u8]) {
        let stats = &self.filter.stats;
        stats.downstream_rx_bytes.record(datagram.len() as f64);
        stats.downstream_rx_queries.increment(1);
        let (head, question) = message::parse(datagram);
        let query = |question| Query { key, head, question, start: Instant::now(), received: datagram.len() };
        let question = match question {
            Ok(question) => question,
            Err(why) => {
                match why {
                    Malformed::Short => stats.query_buffer_underflow.increment(1),
                    Malformed::Answered => stats.queries_with_ans_or_authority_rrs.increment(1),
                    Malformed::Questions => {}
                    Malformed::Question => stats.query_parsing_failure.increment(1),
                }
                stats.downstream_rx_invalid_queries.increment(1);
                // Two who answer each other's answers do not end, and anybody could begin it.
                if !head.is_response() {
                    self.respond(&query(None), &[]);
                }
                return;
            }
        };
        match question.kind {
            TYPE_A => stats.a_record_queries.increment(1),
            TYPE_AAAA => stats.aaaa_record_queries.increment(1),
            TYPE_SRV => stats.srv_record_queries.increment(1),
            _ => stats.unsupported_queries.increment(1),
        }
        if question.has_more {
            stats.queries_with_additional_rrs.increment(1);
        }
        let spelled = self.spelled(&question);
        let known = self.filter.table.knows_suffix(&spelled);
        if known {
            stats.known_domain_queries.increment(1);
        }
        let mut answers = Vec::new();
        let found = (known || self.resolvers.is_none()) && self.look_up(&question, &spelled, &mut answers);
        if !found && self.resolvers.is_some() {
            let (names, query) = (self.clone(), query(Some(question)));
            tokio::task::spawn_local(async move { names.ask(&query).await });
            return;
        }
        if answers.is_empty() {
            stats.unanswered_queries.increment(1);
        }
        self.respond(&query(Some(question)), &answers);
    }

    /// The name as the table has it.
    fn spelled(&self, question: &Question) -> String {
        match self.filter.table.case_insensitive {
            true => question.text.to_ascii_lowercase(),
            false => question.text.clone(),
        }
    }

    /// Finds what is known here. True when that is all there is to say.
    fn look_up(&self, question: &Question, name: &str, answers: &mut Vec<Answer>) -> bool {
        let endpoint = self.filter.table.find(name);
        match question.kind {
            TYPE_A | TYPE_AAAA => {
                // A cluster's name is one of its endpoints' too, capitals and all.
                let (slot, cluster_name) = match endpoint {
                    Some(Endpoint::Cluster(slot)) => (Some(slot.clone()), &**slot.name()),
                    _ => (self.port.worker.clusters.find(&question.text), &*question.text),
                };
                let cluster = slot.is_some_and(|slot| self.endpoints(question, &slot, cluster_name, answers));
                cluster
                    || matches!(endpoint, Some(Endpoint::Addresses(list)) if self.addresses(question, name, list, answers))
            }
            TYPE_SRV => {
                let Some(Endpoint::Service(service)) = endpoint else { return false };
                self.cluster_service(question, service, answers) || self.service(question, service, answers)
            }
            _ => false,
        }
    }

    /// Answers with a cluster's endpoints.
    fn endpoints(
        &self,
        question: &Question,
        slot: &Arc<Slot<Cluster>>,
        name: &str,
        answers: &mut Vec<Answer>,
    ) -> bool {
        let ttl = self.filter.table.ttl(name);
        let before = answers.len();
        for address in hosts(slot) {
            if let Some(record) = message::address(&question.name, question.kind, ttl, address.ip()) {
                self.count_cluster(question.kind);
                answers.push(record.into());
            }
        }
        answers.len() > before
    }

    /// Answers with a list of addresses. A name that has only others is known all the same.
    fn addresses(&self, question: &Question, name: &str, list: &[IpAddr], answers: &mut Vec<Answer>) -> bool {
        let ttl = self.filter.table.ttl(name);
        for address in list {
            if let Some(record) = message::address(&question.name, question.kind, ttl, *address) {
                self.count_local(question.kind);
                answers.push(record.into());
            }
        }
        !list.is_empty()
    }

    /// Answers with the endpoints of the cluster that offers a service; only the first target may be one.
    fn cluster_service(&self, question: &Question, service: &Service, answers: &mut Vec<Answer>) -> bool {
        let Some((target, slot)) =
            service.targets.first().and_then(|target| Some((target, target.cluster.as_ref()?)))
        else {
            return false;
        };
        let Some(name) = message::name(&target.name) else { return false };
        let ttl = self.filter.table.ttl(&target.name);
        let before = answers.len();
        for address in hosts(slot) {
            let port = if target.port == 0 { address.port() } else { target.port };
            self.count_cluster(TYPE_SRV);
            let kind = message::kind_of(address.ip());
            self.count_cluster(kind);
            answers.push(Answer {
                record: message::service(
                    &question.name,
                    service.ttl,
                    [target.priority, target.weight, port],
                    name.clone(),
                ),
                additional: message::address(&name, kind, ttl, address.ip()),
            });
        }
        answers.len() > before
    }

    /// Answers with those targets of a service whose addresses are in the table.
    fn service(&self, question: &Question, service: &Service, answers: &mut Vec<Answer>) -> bool {
        let mut found = false;
        for target in &service.targets {
            let Some(Endpoint::Addresses(list)) = self.filter.table.find(&target.name) else { continue };
            let Some(name) = message::name(&target.name) else { continue };
            let ttl = self.filter.table.ttl(&target.name);
            self.count_local(TYPE_SRV);
            for address in list {
                self.count_local(message::kind_of(*address));
                found = true;
            }
            let address = list.first().copied();
            answers.push(Answer {
                record: message::service(
                    &question.name,
                    service.ttl,
                    [target.priority, target.weight, target.port],
                    name.clone(),
                ),
                additional: address
                    .and_then(|address| message::address(&name, message::kind_of(address), ttl, address)),
            });
        }
        found
    }

    fn count_cluster(&self, kind: u16) {
        let stats = &self.filter.stats;
        match kind {
            TYPE_A => stats.cluster_a_record_answers.increment(1),
            TYPE_AAAA => stats.cluster_aaaa_record_answers.increment(1),
            TYPE_SRV => stats.cluster_srv_record_answers.increment(1),
            _ => stats.cluster_unsupported_answers.increment(1),
        }
    }

    fn count_local(&self, kind: u16) {
        let stats = &self.filter.stats;
        match kind {
            TYPE_A => stats.local_a_record_answers.increment(1),
            TYPE_AAAA => stats.local_aaaa_record_answers.increment(1),
            TYPE_SRV => stats.local_srv_record_answers.increment(1),
            _ => stats.local_unsupported_answers.increment(1),
        }
    }

    /// Answers with what others say. A name that they do not answer for in time is not found.
    async fn ask(&self, query: &Query) {
        let stats = &self.filter.stats;
        let Some(question) = &query.question else { return };
        let found = self.resolve(question).await;
        stats.externally_resolved_queries.increment(1);
        if found.is_empty() {
            stats.unanswered_queries.increment(1);
        }
        let (asked, answered) = match question.kind {
            TYPE_A => (&stats.external_a_record_queries, &stats.external_a_record_answers),
            TYPE_AAAA => (&stats.external_aaaa_record_queries, &stats.external_aaaa_record_answers),
            _ => (&stats.external_unsupported_queries, &stats.external_unsupported_answers),
        };
        asked.increment(1);
        answered.increment(found.len() as u64);
        let ttl = self.filter.table.ttl(&self.spelled(question));
        let record = |address| message::address(&question.name, question.kind, ttl, address);
        let answers: Vec<Answer> = found.into_iter().filter_map(record).map(Answer::from).collect();
        self.respond(query, &answers);
    }

    async fn resolve(&self, question: &Question) -> Vec<IpAddr> {
        let (Some([v4, v6]), Some(forward)) = (&self.resolvers, &self.filter.forward) else {
            return Vec::new();
        };
        let resolver = match question.kind {
            TYPE_A => v4,
            TYPE_AAAA => v6,
            _ => return Vec::new(),
        };
        let host: Arc<str> = question.text.as_str().into();
        for _ in 0..=forward.retries {
            if self.pending.get() > forward.max_pending {
                return Vec::new();
            }
            let _pending = Pending::new(&self.pending);
            if let Ok(found) = tokio::time::timeout(forward.timeout, resolver.addresses(&host)).await {
                return found;
            }
        }
        Vec::new()
    }

    fn respond(&self, query: &Query, answers: &[Answer]) {
        let stats = &self.filter.stats;
        let start = self.port.worker.random() as usize;
        let forwards = self.resolvers.is_some();
        let (bytes, code) = message::response(query.head, query.question.as_ref(), answers, forwards, start);
        stats.downstream_tx_responses.increment(1);
        stats.downstream_tx_bytes.record(bytes.len() as f64);
        if query.question.is_some() {
            stats.downstream_rx_query_latency.record(query.start.elapsed().as_millis() as f64);
        }
        // A client that is gone, or a full socket: it asks again.
        let _ = self.port.send(query.key, &bytes);
        if !self.filter.access_logs.is_empty() {
            self.log(query, code, answers.len(), bytes.len());
        }
    }

    fn log(&self, query: &Query, code: message::Code, count: usize, sent: usize) {
        let mut fields = vec![
            ("answer_count", count.to_string()),
            ("response_code", (code as u8).to_string()),
            ("parse_status", query.question.is_some().to_string()),
        ];
        if let Some(question) = &query.question {
            fields.push(("query_name", question.text.clone()));
            fields.push(("query_type", question.kind.to_string()));
            fields.push(("query_class", "1".to_string()));
        }
        let fields = fields.into_iter().map(|(key, text)| (key, Kind::StringValue(text))).collect();
        let mut info = record(&self.port, Some(query.key), query.start.into_std());
        info.bytes_received = query.received as u64;
        info.bytes_sent = sent as u64;
        info.metadata = Some(super::metadata(QUERY_METADATA, fields));
        let context = FormatContext::new(&info);
        for log in &self.filter.access_logs {
            log.write(&context);
        }
    }
}

/// Where a cluster's endpoints are.
fn hosts(slot: &Slot<Cluster>) -> Vec<SocketAddr> {
    let Some(cluster) = slot.wake() else { return Vec::new() };
    let hosts = cluster.hosts.load();
    let address = |host: &Arc<crate::config::Host>| match host.address {
        Address::Ip(address) => Some(address),
        _ => None,
    };
    hosts.all.iter().filter_map(address).collect()
}
