//! The statistics each room keeps, as structs of handles resolved when config is compiled.
//!
//! Names are Envoy's (cluster_stats.rst, http_conn_man stats, listener stats): a field
//! `upstream_rq_total` of [`ClusterStats`] is `cluster.<name>.upstream_rq_total`.

use std::sync::OnceLock;

use metrics::{Counter, Gauge, Histogram};

use super::metrics::Scope;

/// Defines a struct of metric handles and a constructor that resolves all of them in one scope.
#[macro_export]
macro_rules! stats {
    (
        $(#[$meta:meta])*
        $vis:vis struct $name:ident {
            counters { $($counter:ident),* $(,)? }
            gauges { $($gauge:ident),* $(,)? }
            histograms { $($histogram:ident : $unit:ident),* $(,)? }
        }
    ) => {
        $(#[$meta])*
        #[allow(missing_docs)]
        $vis struct $name {
            $(pub $counter: ::metrics::Counter,)*
            $(pub $gauge: ::metrics::Gauge,)*
            $(pub $histogram: ::metrics::Histogram,)*
        }

        impl $name {
            /// Resolves every handle in `scope`.
            pub fn new(scope: &$crate::telemetry::metrics::Scope) -> Self {
                Self {
                    $($counter: scope.counter(stringify!($counter)),)*
                    $($gauge: scope.gauge(stringify!($gauge)),)*
                    $($histogram: scope.histogram(
                        stringify!($histogram),
                        $crate::telemetry::metrics::Unit::$unit,
                    ),)*
                }
            }
        }

        impl $name {
            /// Those of what has none.
            #[allow(dead_code)]
            pub fn silent() -> Self {
                Self {
                    $($counter: ::metrics::Counter::noop(),)*
                    $($gauge: ::metrics::Gauge::noop(),)*
                    $($histogram: ::metrics::Histogram::noop(),)*
                }
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(stringify!($name))
            }
        }
    };
}

stats! {
    /// `cluster.<name>.` connection and request statistics.
    pub struct ClusterCounters {
        counters {
            upstream_cx_total, upstream_cx_http1_total, upstream_cx_http2_total,
            upstream_cx_connect_fail, upstream_cx_connect_timeout, upstream_cx_idle_timeout,
            upstream_cx_max_duration_reached, upstream_cx_connect_attempts_exceeded,
            upstream_cx_overflow, upstream_cx_pool_overflow, upstream_cx_destroy,
            upstream_cx_destroy_local, upstream_cx_destroy_remote,
            upstream_cx_destroy_with_active_rq, upstream_cx_destroy_local_with_active_rq,
            upstream_cx_destroy_remote_with_active_rq, upstream_cx_close_notify,
            upstream_cx_none_healthy, upstream_cx_protocol_error, upstream_cx_max_requests,
            upstream_cx_rx_bytes_total, upstream_cx_tx_bytes_total,
            upstream_rq_total, upstream_rq_completed, upstream_rq_pending_total,
            upstream_rq_active_overflow, upstream_rq_pending_overflow,
            upstream_rq_pending_failure_eject, upstream_rq_cancelled,
            upstream_rq_maintenance_mode, upstream_rq_timeout, upstream_rq_max_duration_reached,
            upstream_rq_per_try_timeout, upstream_rq_per_try_idle_timeout, upstream_rq_rx_reset,
            upstream_rq_tx_reset, upstream_rq_0rtt, upstream_rq_retry,
            upstream_rq_retry_backoff_exponential, upstream_rq_retry_backoff_ratelimited,
            upstream_rq_retry_limit_exceeded, upstream_rq_retry_success, upstream_rq_retry_overflow,
            upstream_flow_control_paused_reading_total, upstream_flow_control_resumed_reading_total,
            upstream_flow_control_backed_up_total, upstream_flow_control_drained_total,
            upstream_internal_redirect_failed_total, upstream_internal_redirect_succeeded_total,
            membership_change, lb_healthy_panic, lb_recalculate_zone_structures,
            original_dst_host_invalid, retry_or_shadow_abandoned, bind_errors,
            update_attempt, update_success, update_failure, update_empty, update_no_rebuild,
            assignment_stale, assignment_timeout_received,
        }
        gauges {
            upstream_cx_active, upstream_rq_active, upstream_rq_pending_active,
            upstream_cx_rx_bytes_buffered, upstream_cx_tx_bytes_buffered,
            membership_healthy, membership_degraded, membership_excluded, membership_total,
            max_host_weight, version, content_age_ms,
        }
        histograms { upstream_cx_connect_ms: Milliseconds, upstream_cx_length_ms: Milliseconds }
    }
}

stats! {
    /// `cluster.<name>.` statistics of what only some clusters do to choose a host.
    pub struct BalancingStats {
        counters {
            lb_local_cluster_not_ok, lb_zone_cluster_too_small, lb_zone_no_capacity_left,
            lb_zone_routing_all_directly, lb_zone_routing_cross_zone, lb_zone_routing_sampled,
            lb_subsets_created, lb_subsets_fallback, lb_subsets_fallback_panic, lb_subsets_removed,
            lb_subsets_selected,
        }
        gauges { lb_subsets_active }
        histograms {}
    }
}

stats! {
    /// `cluster.<name>.circuit_breakers.<priority>.` gauges.
    pub struct BreakerGauges {
        counters {}
        gauges {
            cx_open, cx_pool_open, rq_pending_open, rq_open, rq_retry_open,
        }
        histograms {}
    }
}

stats! {
    /// `cluster.<name>.circuit_breakers.<priority>.` gauges with `track_remaining`.
    pub struct RemainingGauges {
        counters {}
        gauges { remaining_cx, remaining_cx_pools, remaining_pending, remaining_retries, remaining_rq }
        histograms {}
    }
}

/// Everything a cluster counts.
#[derive(Debug)]
pub struct ClusterStats {
    /// Connections and requests.
    pub counters: ClusterCounters,
    /// `upstream_rq_<code>`, `upstream_rq_<class>xx` and `upstream_rq_time`.
    pub responses: ResponseCodes,
    /// Gauges of priority DEFAULT and HIGH.
    pub breakers: [BreakerGauges; 2],
    /// What is left of the limits of priority DEFAULT and HIGH; only where that is tracked.
    pub remaining: [Option<RemainingGauges>; 2],
    scope: Scope,
    http2: OnceLock<Box<Http2Stats>>,
    balancing: OnceLock<Box<BalancingStats>>,
    suspected: OnceLock<Counter>,
    replays: [OnceLock<Counter>; 2],
    duplicates: OnceLock<Gauge>,
    table: OnceLock<Box<TableGauges>>,
}

/// The size of a ring, and the entries of the host with the fewest and with the most.
type TableGauges = (Option<Gauge>, [Gauge; 2]);

impl ClusterStats {
    /// Resolves the statistics of the cluster shown as `name`; `remaining` says for which priorities
    /// `track_remaining` is set.
    pub fn for_cluster(name: &str, remaining: [bool; 2]) -> Self {
        let scope = Scope::cluster(name);
        let breakers = ["default", "high"].map(|priority| scope.sub(&format!("circuit_breakers.{priority}")));
        let [default, high] = &breakers;
        let [track_default, track_high] = remaining;
        Self {
            counters: ClusterCounters::new(&scope),
            responses: ResponseCodes::new(&scope),
            remaining: [
                track_default.then(|| RemainingGauges::new(default)),
                track_high.then(|| RemainingGauges::new(high)),
            ],
            breakers: [BreakerGauges::new(default), BreakerGauges::new(high)],
            http2: OnceLock::new(),
            balancing: OnceLock::new(),
            suspected: OnceLock::new(),
            replays: Default::default(),
            duplicates: OnceLock::new(),
            table: OnceLock::new(),
            scope,
        }
    }

    /// What only some clusters count, made when this one first does.
    pub fn balancing(&self) -> &BalancingStats {
        self.balancing.get_or_init(|| Box::new(BalancingStats::new(&self.scope)))
    }

    /// Counts a host that became suspect.
    pub fn count_suspect(&self) {
        self.suspected.get_or_init(|| self.scope.counter("upstream_host_suspected")).increment(1);
    }

    /// Counts a request that is sent again without a retry policy, or is not for want of budget.
    pub fn count_replay(&self, sent: bool) {
        let [replays, overflow] = &self.replays;
        let (counter, name) = match sent {
            true => (replays, "upstream_rq_replay"),
            false => (overflow, "upstream_rq_replay_overflow"),
        };
        counter.get_or_init(|| self.scope.counter(name)).increment(1);
    }

    /// How many subsets there are, how many hosts have no place in one that has room for one, and how many subsets
    /// came and went since the first use of the cluster.
    pub fn set_subsets(&self, active: usize, duplicates: u64, (created, removed): (u64, u64)) {
        let stats = self.balancing();
        stats.lb_subsets_active.set(active as f64);
        stats.lb_subsets_created.absolute(created);
        stats.lb_subsets_removed.absolute(removed);
        let name = "lb_subsets_single_host_per_subset_duplicate";
        self.duplicates.get_or_init(|| self.scope.gauge(name)).set(duplicates as f64);
    }

    /// The gauges of a table of consistent hashing: its entries, and those of the host with the fewest and
    /// with the most.
    pub fn set_table(&self, ring: bool, size: u64, least: u64, most: u64) {
        let gauges = self.table.get_or_init(|| {
            let (scope, what) = if ring { ("ring_hash_lb", "hashes") } else { ("maglev_lb", "entries") };
            let scope = self.scope.sub(scope);
            let of_host = |bound: &str| scope.gauge(&format!("{bound}_{what}_per_host"));
            Box::new((ring.then(|| scope.gauge("size")), [of_host("min"), of_host("max")]))
        });
        let (whole, [min, max]) = &**gauges;
        if let Some(whole) = whole {
            whole.set(size as f64);
        }
        min.set(least as f64);
        max.set(most as f64);
    }

    /// `cluster.<name>.http2.`, made when the cluster first has an HTTP/2 connection.
    pub fn http2(&self) -> &Http2Stats {
        self.http2.get_or_init(|| Box::new(Http2Stats::new(&self.scope.sub("http2"))))
    }
}

impl std::ops::Deref for ClusterStats {
    type Target = ClusterCounters;

    fn deref(&self) -> &ClusterCounters {
        &self.counters
    }
}

/// Response counters by code and class. A counter is made when its code or class is first seen, as in
/// Envoy.
pub struct ResponseCodes {
    scope: Scope,
    classes: [OnceLock<Counter>; 5],
    codes: [OnceLock<Box<[OnceLock<Counter>; 100]>>; 5],
    /// `upstream_rq_time` in milliseconds.
    pub time: Histogram,
}

impl std::fmt::Debug for ResponseCodes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ResponseCodes")
    }
}

impl ResponseCodes {
    fn new(scope: &Scope) -> Self {
        Self {
            scope: scope.clone(),
            classes: Default::default(),
            codes: Default::default(),
            time: scope.histogram("upstream_rq_time", super::metrics::Unit::Milliseconds),
        }
    }

    /// Counts one response with this status.
    pub fn count(&self, status: u16) {
        let (hundreds, rest) = (status / 100, status % 100);
        let class = usize::from(hundreds).wrapping_sub(1);
        let (Some(counter), Some(codes)) = (self.classes.get(class), self.codes.get(class)) else { return };
        counter.get_or_init(|| self.scope.counter(&format!("upstream_rq_{hundreds}xx"))).increment(1);
        let codes = codes.get_or_init(|| Box::new(std::array::from_fn(|_| OnceLock::new())));
        if let Some(code) = codes.get(usize::from(rest)) {
            code.get_or_init(|| self.scope.counter(&format!("upstream_rq_{status}"))).increment(1);
        }
    }
}

stats! {
    /// What the requests of a virtual cluster, or of a route with a name for statistics, are counted by.
    pub struct RouteCounters {
        counters {
            upstream_rq_total, upstream_rq_completed, upstream_rq_timeout, upstream_rq_retry,
            upstream_rq_retry_limit_exceeded, upstream_rq_retry_overflow, upstream_rq_retry_success,
        }
        gauges {}
        histograms {}
    }
}

/// Everything that is counted for a virtual cluster, or for a route with a name for statistics.
#[derive(Debug)]
pub struct RouteStats {
    /// Requests and retries.
    pub counters: RouteCounters,
    /// `upstream_rq_<code>`, `upstream_rq_<class>xx` and `upstream_rq_time`.
    pub responses: ResponseCodes,
}

impl RouteStats {
    /// `vhost.<virtual_host>.vcluster.<virtual_cluster>.`
    pub fn for_virtual_cluster(virtual_host: &str, virtual_cluster: &str) -> Self {
        Self::new(&Scope::virtual_cluster(virtual_host, virtual_cluster))
    }

    /// `vhost.<virtual_host>.route.<stat_prefix>.`
    pub fn for_route(virtual_host: &str, stat_prefix: &str) -> Self {
        Self::new(&Scope::route(virtual_host, stat_prefix))
    }

    fn new(scope: &Scope) -> Self {
        Self { counters: RouteCounters::new(scope), responses: ResponseCodes::new(scope) }
    }

    /// Counts one response with this status.
    pub fn count(&self, status: u16) {
        self.counters.upstream_rq_completed.increment(1);
        self.responses.count(status);
    }
}

stats! {
    /// `http.<stat_prefix>.` statistics.
    pub struct HcmStats {
        counters {
            downstream_cx_total, downstream_cx_ssl_total, downstream_cx_http1_total,
            downstream_cx_http2_total, downstream_cx_upgrades_total, downstream_cx_destroy,
            downstream_cx_destroy_remote, downstream_cx_destroy_local,
            downstream_cx_destroy_active_rq, downstream_cx_destroy_local_active_rq,
            downstream_cx_destroy_remote_active_rq, downstream_cx_rx_bytes_total,
            downstream_cx_tx_bytes_total, downstream_cx_drain_close, downstream_cx_idle_timeout,
            downstream_cx_max_duration_reached, downstream_cx_max_requests_reached,
            downstream_cx_overload_disable_keepalive, downstream_cx_protocol_error,
            downstream_flow_control_paused_reading_total,
            downstream_flow_control_resumed_reading_total,
            downstream_rq_total, downstream_rq_http1_total, downstream_rq_http2_total,
            downstream_rq_rx_reset, downstream_rq_tx_reset, downstream_rq_non_relative_path,
            downstream_rq_too_large, downstream_rq_failed_path_normalization,
            downstream_rq_redirected_with_normalized_path, downstream_rq_rejected_via_ip_detection,
            downstream_rq_response_before_rq_complete, downstream_rq_completed,
            downstream_rq_1xx, downstream_rq_2xx, downstream_rq_3xx, downstream_rq_4xx,
            downstream_rq_5xx, downstream_rq_ws_on_non_ws_route, downstream_rq_timeout,
            downstream_rq_header_timeout, downstream_rq_idle_timeout, downstream_rq_max_duration_reached,
            downstream_rq_overload_close, downstream_rq_too_many_premature_resets, rs_too_large,
            no_route, no_cluster, rq_total, rq_redirect, rq_direct_response,
            rq_reset_after_downstream_response_started, rq_overload_local_reply,
            passthrough_internal_redirect_bad_location, passthrough_internal_redirect_no_route,
            passthrough_internal_redirect_predicate,
            passthrough_internal_redirect_too_many_redirects,
            passthrough_internal_redirect_unsafe_scheme,
        }
        gauges {
            downstream_cx_active, downstream_cx_ssl_active, downstream_cx_http1_active,
            downstream_cx_http2_active, downstream_cx_upgrades_active,
            downstream_cx_rx_bytes_buffered, downstream_cx_tx_bytes_buffered, downstream_rq_active,
        }
        histograms { downstream_rq_time: Milliseconds, downstream_cx_length_ms: Milliseconds }
    }
}

stats! {
    /// `http2.` and `cluster.<name>.http2.` statistics (http_conn_man/stats, "Http2 codec statistics").
    pub struct Http2Stats {
        counters {
            dropped_headers_with_underscores, goaway_sent, header_overflow,
            inbound_empty_frames_flood, inbound_priority_frames_flood,
            inbound_window_update_frames_flood, keepalive_timeout, outbound_control_flood,
            outbound_flood, requests_rejected_with_underscores_in_headers, rx_messaging_error,
            rx_reset, stream_refused_errors, trailers, tx_flush_timeout, tx_reset,
        }
        gauges { streams_active }
        histograms {}
    }
}

stats! {
    /// `listener.<address>.` statistics.
    pub struct ListenerStats {
        counters {
            downstream_cx_total, downstream_cx_destroy, downstream_cx_overflow,
            downstream_cx_overload_reject, downstream_global_cx_overflow,
            downstream_cx_transport_socket_connect_timeout, downstream_pre_cx_timeout,
            downstream_listener_filter_remote_close, downstream_listener_filter_error,
            no_filter_chain_match,
        }
        gauges { downstream_cx_active, downstream_pre_cx_active }
        histograms { downstream_cx_length_ms: Milliseconds }
    }
}

stats! {
    /// `proxy_proto.[<stat_prefix>.]versions.<version>.` statistics.
    pub struct ProxyProtocolVersionStats {
        counters { found, disallowed, error }
        gauges {}
        histograms {}
    }
}

stats! {
    /// `proxy_proto.[<stat_prefix>.]` statistics.
    pub struct ProxyProtocolCounters {
        counters { not_found_allowed, not_found_disallowed }
        gauges {}
        histograms {}
    }
}

/// What the PROXY protocol listener filter counts.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct ProxyProtocolStats {
    pub v1: ProxyProtocolVersionStats,
    pub v2: ProxyProtocolVersionStats,
    pub all: ProxyProtocolCounters,
}

impl ProxyProtocolStats {
    /// Of filters with this `stat_prefix`, which may be empty.
    pub fn new(stat_prefix: &str) -> Self {
        let root = Scope::raw("proxy_proto.");
        let scope = if stat_prefix.is_empty() { root } else { root.sub(stat_prefix) };
        let versions = scope.sub("versions");
        Self {
            v1: ProxyProtocolVersionStats::new(&versions.sub("v1")),
            v2: ProxyProtocolVersionStats::new(&versions.sub("v2")),
            all: ProxyProtocolCounters::new(&scope),
        }
    }
}

stats! {
    /// `udp.<stat_prefix>.` statistics.
    pub struct UdpProxyStats {
        counters {
            downstream_sess_no_route, downstream_sess_rx_bytes, downstream_sess_rx_datagrams,
            downstream_sess_rx_errors, downstream_sess_total, downstream_sess_tx_bytes,
            downstream_sess_tx_datagrams, downstream_sess_tx_errors, idle_timeout,
            session_filter_config_missing,
        }
        gauges { downstream_sess_active }
        histograms {}
    }
}

stats! {
    /// `dns_filter.<stat_prefix>.` statistics.
    pub struct DnsFilterStats {
        counters {
            a_record_queries, aaaa_record_queries, srv_record_queries, unsupported_queries,
            cluster_a_record_answers, cluster_aaaa_record_answers, cluster_srv_record_answers,
            cluster_unsupported_answers, downstream_rx_errors, downstream_rx_invalid_queries,
            downstream_rx_queries, downstream_tx_responses, external_a_record_answers,
            external_a_record_queries, external_aaaa_record_answers, external_aaaa_record_queries,
            external_unsupported_answers, external_unsupported_queries, externally_resolved_queries,
            known_domain_queries, local_a_record_answers, local_aaaa_record_answers,
            local_srv_record_answers, local_unsupported_answers, queries_with_additional_rrs,
            queries_with_ans_or_authority_rrs, query_buffer_underflow, query_parsing_failure,
            record_name_overflow, unanswered_queries,
        }
        gauges {}
        histograms {
            downstream_rx_bytes: Bytes, downstream_rx_query_latency: Milliseconds,
            downstream_tx_bytes: Bytes,
        }
    }
}

stats! {
    /// `listener.<address>.udp.` statistics.
    pub struct UdpListenerStats {
        counters { downstream_rx_datagram_dropped }
        gauges {}
        histograms {}
    }
}

stats! {
    /// `cluster.<name>.udp.` statistics.
    pub struct ClusterUdpStats {
        counters {
            sess_rx_datagrams, sess_rx_datagrams_dropped, sess_rx_errors, sess_tx_datagrams, sess_tx_errors,
        }
        gauges {}
        histograms {}
    }
}

stats! {
    /// `tcp.<stat_prefix>.` statistics.
    pub struct TcpProxyStats {
        counters {
            downstream_cx_total, downstream_cx_no_route, downstream_cx_tx_bytes_total,
            downstream_cx_rx_bytes_total, downstream_flow_control_paused_reading_total,
            downstream_flow_control_resumed_reading_total, early_data_received_count_total,
            idle_timeout, max_downstream_connection_duration, on_demand_cluster_attempt,
            on_demand_cluster_missing, on_demand_cluster_success, on_demand_cluster_timeout,
            upstream_flush_total,
        }
        gauges {
            downstream_cx_rx_bytes_buffered, downstream_cx_tx_bytes_buffered, upstream_flush_active,
        }
        histograms {}
    }
}

/// Raises a gauge while it lives.
pub struct Held(Gauge);

impl Held {
    /// Raises `gauge` by one until the value is dropped.
    pub fn new(gauge: &Gauge) -> Self {
        gauge.increment(1.0);
        Self(gauge.clone())
    }
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Held")
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}
